//! Identifiers as types, so that a task's id cannot be handed in where a worker's is meant.
//!
//! All ids are UUIDs (RFC 9562). The programs make version 7; the pure core, which has no randomness of its own,
//! derives them from a seed through [`IdSource`].

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::Timestamp;

/// The text is not a UUID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a {kind} id; ids look like 0198f3c4-5d6e-7f80-9a1b-2c3d4e5f6071")]
pub struct InvalidId {
    pub kind: &'static str,
    pub text: String,
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $kind:literal;)+) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            #[must_use]
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            #[must_use]
            pub const fn as_uuid(&self) -> &Uuid {
                &self.0
            }

            /// A fresh version 7 id from the system's clock and randomness.
            #[must_use]
            pub fn generate() -> Self {
                Self(Uuid::now_v7())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Uuid::parse_str(text)
                    .map(Self)
                    .map_err(|_| InvalidId { kind: $kind, text: text.chars().take(64).collect() })
            }
        }
    )+};
}

ids! {
    /// One user request.
    BuildId = "build";
    /// One platform's leg of a build.
    TaskId = "task";
    /// One try of a task on one worker; the fence against late reports.
    AttemptId = "attempt";
    /// An agent next to one container engine.
    WorkerId = "worker";
    /// An API token (its public half; the secret half is never stored).
    TokenId = "token";
    /// An entry of the audit trail.
    AuditId = "audit";
}

/// Makes version 7 ids from a seed and the time handed in: the same seed and times give the same ids.
#[derive(Debug, Clone)]
pub struct IdSource {
    state: u64,
}

impl IdSource {
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next 128 bits as a version 7 UUID (RFC 9562, section 5.7): 48 bits of milliseconds, then pseudo-random bits.
    pub fn next(&mut self, now: Timestamp) -> Uuid {
        let high = self.split_mix();
        let low = self.split_mix();
        let mut bytes = [0_u8; 16];
        bytes[..6].copy_from_slice(&now.as_millis().to_be_bytes()[2..]);
        bytes[6..8].copy_from_slice(&high.to_be_bytes()[..2]);
        bytes[8..].copy_from_slice(&low.to_be_bytes());
        bytes[6] = (bytes[6] & 0x0f) | 0x70;
        bytes[8] = (bytes[8] & 0x3f) | 0x80;
        Uuid::from_bytes(bytes)
    }

    /// SplitMix64 (Steele, Lea, Flood 2014): every seed gives a full-period sequence.
    fn split_mix(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_ids_again_and_they_are_version_7() {
        let now = Timestamp::from_millis(1_700_000_000_123);
        let (mut a, mut b) = (IdSource::new(7), IdSource::new(7));
        for _ in 0..100 {
            let id = a.next(now);
            assert_eq!(id, b.next(now));
            assert_eq!(id.get_version_num(), 7);
        }
        assert_ne!(IdSource::new(8).next(now), IdSource::new(7).next(now));
    }

    #[test]
    fn a_malformed_id_is_refused_with_its_kind() {
        let error = "nope".parse::<BuildId>().expect_err("not a uuid");
        assert!(error.to_string().contains("`nope` is not a build id"));
    }
}
