//! How messages become bytes in every call: prost's encoding, in buffers that begin small.
//!
//! The generated code names it. A call keeps both its buffers for as long as it lives, and a farm holds thousands of sessions
//! in which a hundred bytes now and then go each way; tonic's own begin with 8 KiB each. Both still grow to what a message
//! takes.

use std::marker::PhantomData;

use prost::Message;
use tonic::codec::{BufferSettings, Codec as TonicCodec};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// Bytes of a buffer before its first message.
const BUFFER: usize = 256;
/// Encoded bytes that are handed on at the latest, as tonic does.
const YIELD_AT: usize = 32 * 1024;

#[derive(Debug)]
pub struct Codec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Codec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T: Message + Send + 'static, U: Message + Default + Send + 'static> TonicCodec for Codec<T, U> {
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(BUFFER, YIELD_AT))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(BufferSettings::new(BUFFER, YIELD_AT))
    }
}
