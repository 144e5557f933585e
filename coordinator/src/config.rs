//! The coordinator's flags, and what follows from them. `main` and `kiln up` hand a [`Config`] to [`crate::start`].

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use kiln_common::{emulation::parse_duration, limits, runtime::config::CommonArgs};

use crate::publish::{SigningKey, SigningKeyError};

/// Where a coordinator that runs as a service keeps its state.
const DATA_DIR: &str = "/var/lib/kiln";

#[derive(Debug, Clone, Args)]
pub struct Config {
    #[command(flatten)]
    pub common: CommonArgs,
    /// Where gRPC is served, with TLS
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:7070")]
    pub grpc_listen: SocketAddr,
    /// Where the dashboard, metrics and webhooks are served
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:7080")]
    pub http_listen: SocketAddr,
    /// The address that clients and workers are to use; this machine's own by default
    #[arg(long, value_name = "HOST:PORT", value_parser = parse_advertise)]
    pub advertise: Option<String>,
    /// Where builds are kept: redb, the embedded store
    #[arg(long, value_name = "URL", default_value = "redb", value_parser = parse_store)]
    pub store: String,
    /// Where contexts and logs are kept: file, under the data directory
    #[arg(long, value_name = "URL", default_value = "file", value_parser = parse_objects)]
    pub objects: String,
    /// A registry that speaks plain HTTP; may be repeated
    #[arg(long = "insecure-registry", value_name = "HOST[:PORT]", value_delimiter = ',')]
    pub insecure_registries: Vec<String>,
    /// How long certificates of workers are valid; each is renewed after two thirds of it
    #[arg(long, value_name = "DURATION", default_value = "2160h", value_parser = parse_certificate_life)]
    pub certificate_life: Duration,
    /// A worker that is not heard of for this long is lost; it sends four signs of life in that time
    #[arg(long, value_name = "DURATION", default_value = "20s", value_parser = parse_patience)]
    pub heartbeat_lease: Duration,
    /// How long a lost worker's tasks wait for its return before they are built elsewhere
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_patience)]
    pub reconnect_grace: Duration,
    /// Sign everything that is published with this key: ECDSA on P-256, PKCS#8, PEM, mode 0600
    #[arg(long, value_name = "FILE")]
    pub signing_key: Option<PathBuf>,
}

impl Config {
    /// What can be wrong beyond the flags' own form, for `--config-check`.
    ///
    /// # Errors
    /// The first problem, for people.
    pub fn check(&self) -> Result<(), SigningKeyError> {
        self.signing_key().map(drop)
    }

    /// # Errors
    /// [`SigningKeyError`].
    pub fn signing_key(&self) -> Result<Option<SigningKey>, SigningKeyError> {
        self.signing_key.as_deref().map(SigningKey::read).transpose()
    }

    #[must_use]
    pub fn data_dir(&self) -> &Path {
        self.common.data_dir.as_deref().unwrap_or(Path::new(DATA_DIR))
    }

    /// How the scheduler is set up.
    #[must_use]
    pub fn scheduling(&self) -> kiln_scheduler::Config {
        kiln_scheduler::Config {
            heartbeat_lease: self.heartbeat_lease,
            reconnect_grace: self.reconnect_grace,
            ..kiln_scheduler::Config::default()
        }
    }

    /// What a client dials: what was asked for, or this machine's address with the port that is listened on.
    #[must_use]
    pub fn endpoint(&self, grpc: SocketAddr) -> String {
        self.advertise.clone().unwrap_or_else(|| reachable(grpc).to_string())
    }

    /// The HTTP address as people open it.
    #[must_use]
    pub fn dashboard_url(&self, http: SocketAddr) -> String {
        let advertised = self.advertise.as_deref().and_then(|advertise| advertise.rsplit_once(':'));
        match advertised {
            Some((host, _)) => format!("http://{host}:{}/", http.port()),
            None => format!("http://{}/", reachable(http)),
        }
    }
}

/// The files of a data directory.
#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.root.join("kiln.redb")
    }

    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.root.join("ca")
    }

    #[must_use]
    pub fn ca_file(&self) -> PathBuf {
        self.ca().join("ca.pem")
    }

    #[must_use]
    pub fn seal_key(&self) -> PathBuf {
        self.root.join("seal.key")
    }

    #[must_use]
    pub fn admin_token(&self) -> PathBuf {
        self.root.join("admin.token")
    }

    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    #[must_use]
    pub fn verdicts(&self) -> PathBuf {
        self.root.join("verified-layers")
    }

    #[must_use]
    pub fn contexts(&self) -> PathBuf {
        self.root.join("contexts")
    }
}

/// `listen` with an address that others can dial in place of "all of them".
fn reachable(listen: SocketAddr) -> SocketAddr {
    if listen.ip().is_unspecified() { SocketAddr::new(own_address(), listen.port()) } else { listen }
}

/// The address from which this machine would leave its network. Connecting a UDP socket sends nothing.
fn own_address() -> IpAddr {
    let outward = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| {
        // TEST-NET-1 (RFC 5737): routed like any other address, owned by nobody.
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        socket.local_addr()
    });
    outward.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |address| address.ip())
}

fn parse_advertise(text: &str) -> Result<String, String> {
    let (host, port) = text.rsplit_once(':').ok_or("write HOST:PORT")?;
    if host.is_empty() || port.parse::<u16>().is_err() {
        return Err("write HOST:PORT, the port from 1 to 65535".to_owned());
    }
    Ok(text.to_owned())
}

fn parse_certificate_life(text: &str) -> Result<Duration, String> {
    let life = parse_duration(text).ok_or("write a duration as 720h")?;
    if !(limits::CERTIFICATE_LIFE_MIN..=limits::CERTIFICATE_LIFE_MAX).contains(&life) {
        let (least, most) =
            (limits::CERTIFICATE_LIFE_MIN.as_secs() / 60, limits::CERTIFICATE_LIFE_MAX.as_secs() / 3600);
        return Err(format!("write {least}m to {most}h"));
    }
    Ok(life)
}

fn parse_patience(text: &str) -> Result<Duration, String> {
    let allowed = limits::PATIENCE_RANGE;
    let parsed = parse_duration(text).filter(|patience| allowed.contains(patience));
    parsed.ok_or_else(|| "write a duration from 1s to 1h, for example 20s".to_owned())
}

fn parse_store(text: &str) -> Result<String, String> {
    match text {
        "redb" => Ok(text.to_owned()),
        etcd if etcd.starts_with("etcd://") => Err("etcd is not in this version; use redb".to_owned()),
        _ => Err("use redb".to_owned()),
    }
}

fn parse_objects(text: &str) -> Result<String, String> {
    match text {
        "file" => Ok(text.to_owned()),
        s3 if s3.starts_with("s3://") => Err("s3 is not in this version; use file".to_owned()),
        _ => Err("use file".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_version_lacks_is_said() {
        assert!(parse_store("etcd://a:2379/kiln").is_err_and(|problem| problem.contains("not in this version")));
        assert!(parse_objects("s3://bucket/x").is_err_and(|problem| problem.contains("not in this version")));
        assert!(parse_store("redb").is_ok() && parse_objects("file").is_ok());
        assert!(parse_advertise("kiln.example").is_err() && parse_advertise("kiln.example:7070").is_ok());
    }

    #[test]
    fn certificates_live_neither_too_briefly_to_be_renewed_nor_for_ever() {
        assert_eq!(parse_certificate_life("2160h"), Ok(limits::CERTIFICATE_LIFE));
        for text in ["1s", "1000000h", "long"] {
            assert!(parse_certificate_life(text).is_err(), "{text}");
        }
    }

    #[test]
    fn patience_is_bounded() {
        assert_eq!(parse_patience("90s"), Ok(Duration::from_secs(90)));
        assert!(["0s", "500ms", "2h", "soon"].iter().all(|text| parse_patience(text).is_err()));
    }

    #[test]
    fn nobody_is_told_to_dial_every_address() {
        let listen = "0.0.0.0:7070".parse().expect("an address");
        assert!(!reachable(listen).ip().is_unspecified());
        let own = "10.1.2.3:1".parse().expect("an address");
        assert_eq!(reachable(own), own);
    }
}
