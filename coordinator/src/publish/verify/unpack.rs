//! A layer's bytes as its archive: plain, gzip (estargz is gzip in members) or zstd (zstd:chunked is zstd in frames),
//! told by the first bytes as containerd tells them, and bounded however well it was compressed.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;
use kiln_common::limits;
use ruzstd::decoding::{
    BlockDecodingStrategy, FrameDecoder,
    errors::{FrameDecoderError, ReadFrameHeaderError},
};

const BUFFER: usize = 64 * 1024;

/// More came out of the layer than any layer may hold.
#[derive(Debug, thiserror::Error)]
#[error("it unpacks to more than {} GiB", limits::LAYER_UNPACKED_BYTES >> 30)]
pub struct TooLarge;

/// The archive in `layer`.
///
/// # Errors
/// When the first bytes cannot be read.
pub fn unpack<'a>(layer: impl Read + 'a) -> io::Result<impl Read + 'a> {
    let mut layer = BufReader::with_capacity(BUFFER, layer);
    let archive: Box<dyn Read + 'a> = match layer.fill_buf()? {
        [0x1f, 0x8b, ..] => Box::new(MultiGzDecoder::new(layer)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Box::new(Zstd::new(layer)),
        _ => Box::new(layer),
    };
    Ok(Bounded { inner: archive, left: limits::LAYER_UNPACKED_BYTES })
}

struct Bounded<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(count as u64).ok_or_else(|| io::Error::other(TooLarge))?;
        Ok(count)
    }
}

/// Frame after frame; frames that are to be skipped are.
struct Zstd<R> {
    source: R,
    decoder: Box<FrameDecoder>,
    in_frame: bool,
}

impl<R: BufRead> Zstd<R> {
    fn new(source: R) -> Self {
        let mut decoder = Box::new(FrameDecoder::new());
        decoder.set_max_window_size(limits::LAYER_WINDOW_BYTES);
        Self { source, decoder, in_frame: false }
    }

    /// Whether there is another frame.
    fn begin_frame(&mut self) -> io::Result<bool> {
        loop {
            if self.source.fill_buf()?.is_empty() {
                return Ok(false);
            }
            match self.decoder.reset(&mut self.source) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                    io::copy(&mut self.source.by_ref().take(length.into()), &mut io::sink())?;
                }
                Err(error) => return Err(io::Error::other(error)),
            }
        }
    }
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.in_frame && self.decoder.can_collect() > 0 {
                return self.decoder.read(buffer);
            }
            if self.in_frame && !self.decoder.is_finished() {
                let blocks = BlockDecodingStrategy::UptoBlocks(1);
                self.decoder.decode_blocks(&mut self.source, blocks).map_err(io::Error::other)?;
                continue;
            }
            self.in_frame = self.begin_frame()?;
            if !self.in_frame {
                return Ok(0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn all(layer: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        unpack(layer)?.read_to_end(&mut out)?;
        Ok(out)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).expect("written");
        encoder.finish().expect("finished")
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
    }

    #[test]
    fn every_compression_reads_in_one_part_and_in_several() {
        let text = b"a layer ".repeat(50_000);
        assert_eq!(all(&text).expect("plain"), text);
        assert_eq!(all(&[gzip(&text), gzip(b"end")].concat()).expect("gzip"), [&text[..], b"end"].concat());
        let skipped = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"toc"].concat();
        let frames = [skipped.clone(), zstd(&text), skipped, zstd(b"end")].concat();
        assert_eq!(all(&frames).expect("zstd"), [&text[..], b"end"].concat());
        assert_eq!(all(b"").expect("empty"), b"");
    }

    #[test]
    fn damage_is_an_error_and_a_bomb_ends_at_the_limit() {
        let mut broken = gzip(&b"a layer".repeat(1000));
        broken[20] ^= 0xff;
        assert!(all(&broken).is_err());
        let mut broken = zstd(&b"a layer".repeat(1000));
        broken.truncate(9);
        assert!(all(&broken).is_err());
        let mut bounded = Bounded { inner: io::repeat(0), left: 100_000 };
        let error = io::copy(&mut bounded, &mut io::sink()).expect_err("too large");
        assert!(error.get_ref().is_some_and(|inner| inner.is::<TooLarge>()), "{error}");
    }

    /// A frame may ask for a window of terabytes (RFC 8878, section 3.1.1.1.2).
    #[test]
    fn a_window_that_no_layer_needs_is_refused_before_it_is_allocated() {
        let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xff, 0x01, 0x00, 0x00];
        assert!(all(&frame).is_err());
    }
}
