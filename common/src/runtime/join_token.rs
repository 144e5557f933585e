//! The join token: all that a worker needs to find the farm, to know it for the right one, and to be let in once.
//!
//! Text form: `kiln-join-` and base64url of JSON. The secret is 256 bits; the coordinator keeps only its hash.

use std::{fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

const PREFIX: &str = "kiln-join-";
/// Longest text that is looked at.
const TOKEN_BYTES: usize = 4096;

#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// `HOST:PORT` of each coordinator; never empty.
    pub coordinators: Vec<String>,
    /// SHA-256 of the CA's certificate in DER.
    pub ca_fingerprint: [u8; 32],
    pub secret: [u8; 32],
}

/// The text is not a join token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this is not a join token; make one with `kiln workers token create` and copy all of it")]
pub struct InvalidJoinToken;

/// Short names keep the token short.
#[derive(Serialize, Deserialize)]
struct Wire {
    a: Vec<String>,
    f: String,
    s: String,
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wire = Wire {
            a: self.coordinators.clone(),
            f: URL_SAFE_NO_PAD.encode(self.ca_fingerprint),
            s: URL_SAFE_NO_PAD.encode(self.secret),
        };
        let json = serde_json::to_vec(&wire).map_err(|_| fmt::Error)?;
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(json))
    }
}

/// Never shows the secret.
impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("coordinators", &self.coordinators).finish_non_exhaustive()
    }
}

impl FromStr for JoinToken {
    type Err = InvalidJoinToken;

    fn from_str(text: &str) -> Result<Self, InvalidJoinToken> {
        let text = text.trim();
        if text.len() > TOKEN_BYTES {
            return Err(InvalidJoinToken);
        }
        let json = decode(text.strip_prefix(PREFIX).ok_or(InvalidJoinToken)?)?;
        let wire: Wire = serde_json::from_slice(&json).map_err(|_| InvalidJoinToken)?;
        if wire.a.is_empty() {
            return Err(InvalidJoinToken);
        }
        let array = |text: &str| decode(text)?.try_into().map_err(|_| InvalidJoinToken);
        Ok(Self { ca_fingerprint: array(&wire.f)?, secret: array(&wire.s)?, coordinators: wire.a })
    }
}

fn decode(text: &str) -> Result<Vec<u8>, InvalidJoinToken> {
    URL_SAFE_NO_PAD.decode(text).map_err(|_| InvalidJoinToken)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> JoinToken {
        JoinToken {
            coordinators: vec!["farm.example:7070".into(), "[::1]:7070".into()],
            ca_fingerprint: [7; 32],
            secret: [9; 32],
        }
    }

    #[test]
    fn a_token_reads_back_even_with_a_line_end() {
        let text = token().to_string();
        assert!(text.starts_with(PREFIX));
        assert_eq!(format!("{text}\n").parse(), Ok(token()));
    }

    #[test]
    fn a_cut_or_foreign_token_is_refused() {
        let text = token().to_string();
        for bad in ["", "kiln-join-", "kiln_abc", &text[..text.len() - 9], &text.replace("kiln", "kilo")] {
            assert_eq!(bad.parse::<JoinToken>(), Err(InvalidJoinToken), "{bad}");
        }
    }

    #[test]
    fn its_secret_is_not_in_debug_output() {
        assert!(!format!("{:?}", token()).contains('9'));
    }
}
