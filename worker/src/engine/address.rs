//! Where an engine listens and which protocol it speaks there: `--engine` as a type.
//!
//! Called by the worker's configuration. A `tcp` form without TLS is accepted for this machine's own addresses alone:
//! whoever reaches an engine's port owns its machine.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use kiln_common::reference::is_loopback;

/// What `--engine` and `--engine-tls-dir` say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineAddress {
    pub protocol: Protocol,
    pub endpoint: Endpoint,
    /// Folder with `ca.pem`, `cert.pem` and `key.pem`, as Docker's own clients have it; only with TCP.
    pub tls_dir: Option<PathBuf>,
}

/// How BuildKit's control API is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Docker's Engine API, BuildKit behind `POST /grpc`.
    Docker,
    /// gRPC at once: a standalone buildkitd.
    BuildKit,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    Unix(PathBuf),
    Tcp { host: String, port: u16 },
}

/// The text is not an engine's address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not an engine: {problem}; write unix:///var/run/docker.sock, tcp://HOST:PORT, buildkit+unix://PATH \
     or buildkit+tcp://HOST:PORT"
)]
pub struct InvalidAddress {
    pub text: String,
    pub problem: &'static str,
}

impl EngineAddress {
    /// The same address, spoken to with TLS and the files of `folder`.
    ///
    /// # Errors
    /// [`InvalidAddress`] on a unix socket, which has none.
    pub fn with_tls(self, folder: &Path) -> Result<Self, InvalidAddress> {
        match self.endpoint {
            Endpoint::Unix(_) => {
                Err(InvalidAddress { text: self.to_string(), problem: "a unix socket has no TLS; drop the TLS folder" })
            }
            Endpoint::Tcp { .. } => Ok(Self { tls_dir: Some(folder.to_owned()), ..self }),
        }
    }

    /// Checks what only the whole address can tell.
    ///
    /// # Errors
    /// [`InvalidAddress`] for plain TCP to another machine.
    pub fn check(&self) -> Result<(), InvalidAddress> {
        match &self.endpoint {
            Endpoint::Tcp { host, .. } if self.tls_dir.is_none() && !is_loopback(&format!("{host}:1")) => {
                Err(InvalidAddress {
                    text: self.to_string(),
                    problem: "another machine's engine needs TLS; name the folder of ca.pem, cert.pem and key.pem",
                })
            }
            Endpoint::Tcp { .. } | Endpoint::Unix(_) => Ok(()),
        }
    }

    /// Whether the engine can be expected on this machine, so that what is measured here holds for it.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match &self.endpoint {
            Endpoint::Unix(_) => true,
            Endpoint::Tcp { host, .. } => is_loopback(&format!("{host}:1")),
        }
    }
}

impl FromStr for EngineAddress {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let invalid = |problem| InvalidAddress { text: text.chars().take(200).collect(), problem };
        let (scheme, rest) = text.split_once("://").ok_or_else(|| invalid("it has no scheme"))?;
        let (protocol, transport) = match scheme.strip_prefix("buildkit+") {
            Some(transport) => (Protocol::BuildKit, transport),
            None => (Protocol::Docker, scheme),
        };
        let endpoint = match transport {
            "unix" if rest.starts_with('/') => Endpoint::Unix(rest.into()),
            "unix" => return Err(invalid("the socket's path must be absolute")),
            "tcp" => tcp(rest).map_err(invalid)?,
            _ => return Err(invalid("its scheme is unknown")),
        };
        Ok(Self { protocol, endpoint, tls_dir: None })
    }
}

fn tcp(text: &str) -> Result<Endpoint, &'static str> {
    let (host, port) = text.trim_end_matches('/').rsplit_once(':').ok_or("the port is missing")?;
    let port = port.parse().ok().filter(|port| *port != 0).ok_or("the port is not a number from 1 to 65535")?;
    let bracketed = host.starts_with('[') && host.ends_with(']');
    if host.is_empty() || host.contains('/') || (host.contains(':') && !bracketed) {
        return Err("the host is malformed");
    }
    Ok(Endpoint::Tcp { host: host.to_owned(), port })
}

impl fmt::Display for EngineAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = match self.protocol {
            Protocol::Docker => "",
            Protocol::BuildKit => "buildkit+",
        };
        match &self.endpoint {
            Endpoint::Unix(path) => write!(f, "{prefix}unix://{}", path.display()),
            Endpoint::Tcp { host, port } => write!(f, "{prefix}tcp://{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_reads_back_as_written() {
        for text in [
            "unix:///var/run/docker.sock",
            "tcp://127.0.0.1:2375",
            "tcp://[::1]:2376",
            "buildkit+unix:///run/buildkit/buildkitd.sock",
            "buildkit+tcp://builder.example:1234",
        ] {
            assert_eq!(text.parse::<EngineAddress>().expect(text).to_string(), text);
        }
    }

    #[test]
    fn a_malformed_address_names_itself_and_the_forms() {
        for text in ["", "docker.sock", "unix://docker.sock", "tcp://host", "tcp://host:0", "tcp://:1", "ssh://h:1"] {
            let error = text.parse::<EngineAddress>().expect_err(text).to_string();
            assert!(error.contains(&format!("`{text}`")) && error.contains("buildkit+tcp"), "{error}");
        }
    }

    #[test]
    fn plain_tcp_is_for_this_machine_alone() {
        let address = |text: &str| text.parse::<EngineAddress>().expect("valid");
        assert!(address("tcp://127.0.0.1:2375").check().is_ok());
        assert!(address("tcp://[::1]:2375").check().is_ok());
        assert!(address("tcp://10.0.0.7:2375").check().is_err());
        assert!(address("tcp://10.0.0.7:2376").with_tls(Path::new("/tls")).expect("tcp").check().is_ok());
        assert!(address("unix:///d.sock").with_tls(Path::new("/tls")).is_err());
    }
}
