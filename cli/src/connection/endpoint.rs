//! The address of a coordinator: `HOST`, `HOST:PORT` or `https://HOST:PORT`.

use std::{fmt, str::FromStr};

use crate::failure::Failure;

/// Where coordinators listen unless told otherwise.
const DEFAULT_PORT: u16 = 7070;

/// A host and a port; the connection is always TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    host: String,
    port: u16,
}

impl Endpoint {
    /// The URL that the transport dials.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://{self}")
    }

    /// The name that the server's certificate has to carry.
    #[must_use]
    pub fn server_name(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }

    /// Every endpoint of a list separated by commas, in the order given.
    ///
    /// # Errors
    /// A usage failure that names the part that is not an endpoint.
    pub fn list(text: &str) -> Result<Vec<Self>, Failure> {
        let all: Vec<Self> =
            text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::parse).collect::<Result<_, _>>()?;
        if all.is_empty() {
            return Err(Failure::usage("no endpoint is given").remedy("write HOST:PORT, for example farm.example:7070"));
        }
        Ok(all)
    }
}

impl FromStr for Endpoint {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        let invalid = |problem: &str| {
            Failure::usage(format!("`{text}` is not an endpoint: {problem}"))
                .remedy("write HOST:PORT, for example farm.example:7070")
        };
        if text.starts_with("http://") {
            return Err(invalid("a farm always speaks TLS"));
        }
        let address = text.strip_prefix("https://").unwrap_or(text).trim_end_matches('/');
        let (host, port) = match address.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => {
                let port = port.parse().ok().filter(|port| *port != 0);
                (host, port.ok_or_else(|| invalid("its port is not a number from 1 to 65535"))?)
            }
            _ => (address, DEFAULT_PORT),
        };
        let bracketed = host.starts_with('[') && host.ends_with(']');
        let sound = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        if host.is_empty() || (!bracketed && !host.bytes().all(sound)) {
            return Err(invalid("its host is malformed"));
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_read_with_or_without_scheme_and_port() {
        for (written, read) in [
            ("farm.example", "farm.example:7070"),
            ("farm.example:80", "farm.example:80"),
            ("https://10.0.0.1:7070/", "10.0.0.1:7070"),
            ("[::1]:9", "[::1]:9"),
            ("[::1]", "[::1]:7070"),
        ] {
            assert_eq!(written.parse::<Endpoint>().expect(written).to_string(), read);
        }
        for text in ["", "http://farm:1", "farm:0", "farm:x", "a b:1", "farm:99999", "user@farm:1", "a/b:1"] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
        assert_eq!(Endpoint::list("a, b:1,").expect("a list").len(), 2);
        assert!(Endpoint::list(" ,").is_err());
    }
}
