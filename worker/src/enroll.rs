//! Who this worker is: joins the farm once with a token, keeps the certificate, renews it in time.
//!
//! The key is made here and never leaves this machine. Invariant: key, certificate and CA are one file, replaced whole
//! and readable by its owner alone, so that a crash leaves the old identity or the new one.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use kiln_common::{
    Reason, Timestamp, limits,
    runtime::{
        Dialer, JoinToken,
        files::{self, FileError},
        tls::{self, TlsError, Trust},
    },
};
use kiln_proto::{
    convert::duration_from_wire,
    status::StatusFacts,
    v1::{EnrollRequest, EnrollResponse, worker_service_client::WorkerServiceClient},
};
use serde::{Deserialize, Serialize};
use tonic::transport::Channel;

use crate::{
    pause::Pause,
    session::{Farm, Link, client},
};

const FILE: &str = "identity.json";
const FILE_BYTES: u64 = 256 * 1024;
/// A renewal is due after this where the farm does not say when.
const RENEW_AFTER: Duration = Duration::from_secs(24 * 3600);
/// A failed renewal is tried again after this; certificates last for weeks.
const RENEW_RETRY: Duration = Duration::from_secs(60);

/// A worker's place in its farm.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    pub worker_id: String,
    pub name: String,
    key_pem: String,
    certificate_pem: String,
    ca_pem: String,
    renew_at: Timestamp,
    /// Where the farm was when the worker joined.
    pub coordinators: Vec<String>,
    /// SHA-256 of the token that it joined with, to tell a new token from the old one.
    joined_with: String,
}

/// Never shows the key.
impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("worker_id", &self.worker_id).field("name", &self.name).finish_non_exhaustive()
    }
}

/// Why a worker has no identity.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    #[error(
        "this worker has not joined a farm yet; give --join-token-file with a token from `kiln workers token create`"
    )]
    NoToken,
    #[error("the farm refuses the join token: {message}; make a new one with `kiln workers token create`")]
    TokenRefused { message: String },
    #[error("joining the farm failed: {message}")]
    Failed { message: String },
    #[error(
        "the farm answered with a CA that is not the join token's; someone may stand between this worker and the farm"
    )]
    ForeignCa,
    #[error("{} is damaged: {problem}; remove it and join again with a new token", file.display())]
    Damaged { file: PathBuf, problem: String },
    #[error("making a key or a certificate request failed: {0}")]
    Key(#[from] rcgen::Error),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl Identity {
    /// What an earlier start stored.
    ///
    /// # Errors
    /// [`EnrollError::Damaged`] or [`EnrollError::File`].
    pub fn load(data_dir: &Path) -> Result<Option<Self>, EnrollError> {
        let file = data_dir.join(FILE);
        let Some(bytes) = files::read_optional(&file, FILE_BYTES)? else { return Ok(None) };
        let identity = serde_json::from_slice(&bytes)
            .map_err(|error| EnrollError::Damaged { file, problem: error.to_string() })?;
        Ok(Some(identity))
    }

    /// What a client of the farm trusts.
    pub fn trust(&self) -> Result<Trust, TlsError> {
        Ok(Trust::Ca(tls::certificates("the farm's CA", self.ca_pem.as_bytes())?))
    }

    /// What this worker shows to the farm.
    pub fn tls(&self) -> Result<tls::Identity, TlsError> {
        Ok(tls::Identity {
            chain: tls::certificates("the worker's certificate", self.certificate_pem.as_bytes())?,
            key: tls::private_key("the worker's key", self.key_pem.as_bytes())?,
        })
    }

    /// Whether this token is another one than the worker joined with.
    #[must_use]
    pub fn is_new(&self, token: &JoinToken) -> bool {
        self.joined_with != token_hash(token)
    }

    fn store(&self, data_dir: &Path) -> Result<(), EnrollError> {
        let json =
            serde_json::to_vec_pretty(self).map_err(|error| EnrollError::Failed { message: error.to_string() })?;
        Ok(files::write_private(&data_dir.join(FILE), &json)?)
    }
}

/// The stored identity, or a new one: joins with the token, trying again while the farm cannot be reached.
///
/// # Errors
/// [`EnrollError`] for everything that another try would not change.
pub async fn identity(
    data_dir: &Path,
    token: Option<&JoinToken>,
    coordinators: &[String],
    name: &str,
) -> Result<Identity, EnrollError> {
    if let Some(identity) = Identity::load(data_dir)? {
        return Ok(identity);
    }
    join(data_dir, token.ok_or(EnrollError::NoToken)?, coordinators, name).await
}

/// Trades the token for an identity and stores it. `coordinators` go over the addresses in the token.
///
/// # Errors
/// [`EnrollError`] for everything that another try would not change.
pub async fn join(
    data_dir: &Path,
    token: &JoinToken,
    coordinators: &[String],
    name: &str,
) -> Result<Identity, EnrollError> {
    let addresses = if coordinators.is_empty() { token.coordinators.as_slice() } else { coordinators };
    let config = tls::client_config(Trust::Fingerprint(token.ca_fingerprint), None)?;
    let dialer = Dialer::new(addresses, config).map_err(|error| EnrollError::Failed { message: error.to_string() })?;
    let mut pause = Pause::default();
    let channel = loop {
        match dialer.connect().await {
            Ok(channel) => break channel,
            Err(error) => tracing::warn!(%error, "cannot join yet; trying again"),
        }
        pause.wait().await;
    };
    let request = Request::new()?;
    let response = request.send(client(channel), token.to_string(), name).await?;
    if !response.ca_is(&token.ca_fingerprint)? {
        return Err(EnrollError::ForeignCa);
    }
    let identity = request.identity(response, addresses.to_vec(), token_hash(token));
    identity.store(data_dir)?;
    tracing::info!(worker_id = identity.worker_id, name = identity.name, "joined the farm");
    Ok(identity)
}

/// Renews the identity whenever it is due, over whatever session stands. Never ends.
pub async fn keep_renewed(data_dir: PathBuf, farm: Farm, link: Link) {
    loop {
        let due = farm.identity().renew_at.since(Timestamp::now());
        tokio::time::sleep(due).await;
        match renew(&data_dir, &farm, &link).await {
            Ok(()) => tracing::info!("renewed this worker's certificate"),
            Err(error) => {
                tracing::warn!(%error, "the certificate could not be renewed; trying again");
                tokio::time::sleep(RENEW_RETRY).await;
            }
        }
    }
}

async fn renew(data_dir: &Path, farm: &Farm, link: &Link) -> Result<(), EnrollError> {
    let old = farm.identity();
    let request = Request::new()?;
    let client = link.bulk().await.client();
    let response = request.send(client, String::new(), &old.name).await?;
    let identity = request.identity(response, old.coordinators.clone(), old.joined_with.clone());
    identity.store(data_dir)?;
    farm.replace_identity(identity);
    Ok(())
}

/// A fresh key and the request to certify it.
struct Request {
    key_pem: String,
    csr_der: Vec<u8>,
}

impl Request {
    fn new() -> Result<Self, rcgen::Error> {
        let key = rcgen::KeyPair::generate()?;
        let csr = rcgen::CertificateParams::default().serialize_request(&key)?;
        Ok(Self { key_pem: key.serialize_pem(), csr_der: csr.der().to_vec() })
    }

    async fn send(
        &self,
        mut client: WorkerServiceClient<Channel>,
        join_token: String,
        name: &str,
    ) -> Result<EnrollResponse, EnrollError> {
        let request = EnrollRequest { join_token, csr_der: self.csr_der.clone(), name: name.to_owned() };
        let answer = tokio::time::timeout(limits::HANDSHAKE_TIMEOUT, client.enroll(request)).await;
        let answer = answer.map_err(|_| EnrollError::Failed { message: "the farm does not answer".to_owned() })?;
        answer.map(tonic::Response::into_inner).map_err(|status| {
            let facts = StatusFacts::from(&status);
            let message = status.message().to_owned();
            if facts.is(Reason::JoinTokenRejected) || facts.is(Reason::Unauthenticated) {
                EnrollError::TokenRefused { message }
            } else {
                EnrollError::Failed { message }
            }
        })
    }

    fn identity(self, response: EnrollResponse, coordinators: Vec<String>, joined_with: String) -> Identity {
        let renew_after = response.renew_after.as_ref().and_then(duration_from_wire).unwrap_or(RENEW_AFTER);
        Identity {
            worker_id: response.worker_id,
            name: response.name,
            key_pem: self.key_pem,
            certificate_pem: response.certificate_pem,
            ca_pem: response.ca_pem,
            renew_at: Timestamp::now() + renew_after,
            coordinators,
            joined_with,
        }
    }
}

/// The pinned CA must be the one to trust later, too.
trait CaCheck {
    fn ca_is(&self, fingerprint: &[u8; 32]) -> Result<bool, TlsError>;
}

impl CaCheck for EnrollResponse {
    fn ca_is(&self, fingerprint: &[u8; 32]) -> Result<bool, TlsError> {
        let all = tls::certificates("the farm's CA", self.ca_pem.as_bytes())?;
        Ok(all.iter().all(|certificate| tls::fingerprint(certificate) == *fingerprint))
    }
}

fn token_hash(token: &JoinToken) -> String {
    use sha2::{Digest, Sha256};
    hex::encode(Sha256::digest(token.secret))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(secret: u8) -> JoinToken {
        JoinToken { coordinators: vec!["127.0.0.1:1".into()], ca_fingerprint: [1; 32], secret: [secret; 32] }
    }

    #[tokio::test]
    async fn a_worker_without_identity_and_token_says_how_to_get_one() {
        let dir = tempfile::tempdir().unwrap();
        let error = identity(dir.path(), None, &[], "w").await.expect_err("no token").to_string();
        assert!(error.contains("--join-token-file") && error.contains("kiln workers token create"), "{error}");
    }

    #[test]
    fn an_identity_reads_back_and_hides_its_key() {
        let dir = tempfile::tempdir().unwrap();
        let response = EnrollResponse { worker_id: "w-1".into(), name: "pi".into(), ..EnrollResponse::default() };
        let stored = Request::new().unwrap().identity(response, vec!["farm:7070".into()], token_hash(&token(2)));
        stored.store(dir.path()).unwrap();
        let read = Identity::load(dir.path()).unwrap().expect("stored");
        assert_eq!((read.name.as_str(), read.coordinators.as_slice()), ("pi", ["farm:7070".to_owned()].as_slice()));
        assert!(read.is_new(&token(3)) && !read.is_new(&token(2)));
        assert!(!format!("{read:?}").contains("PRIVATE"));
    }

    #[test]
    fn a_damaged_file_is_named_with_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        files::write_private(&dir.path().join(FILE), b"{").unwrap();
        let error = Identity::load(dir.path()).expect_err("damaged").to_string();
        assert!(error.contains("identity.json") && error.contains("join again"), "{error}");
    }
}
