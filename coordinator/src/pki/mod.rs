//! Who is who on the wire: the farm's own CA, the coordinator's certificate, the workers' certificates, join tokens.
//!
//! `run` opens it once and hands [`Pki::server_config`] to the acceptor; `api` enrols workers through it. A worker's
//! certificate names it by its id and nothing else; what it may do, `access` decides. The CA's key never leaves its file.

mod authority;
mod join;
mod peer;
mod server;

use std::{path::Path, sync::Arc, time::Duration};

use kiln_common::{Timestamp, WorkerId, runtime::files::FileError};
use rustls_pki_types::CertificateDer;

pub use authority::{Authority, Issued};
pub use join::{JoinGrant, JoinRejected, JoinTokenView, JoinTokens, NewJoinToken, TokenFault};
pub use peer::{PeerError, Revocations, worker_of};
pub use server::ServerCertificate;

/// The CA and what it vouches for.
pub struct Pki {
    authority: Arc<Authority>,
    server: Arc<ServerCertificate>,
}

/// Certificates could not be made, read or used.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{have} is there without {lack}; restore it from a backup, or remove both to start a new farm")]
    HalfAuthority { have: String, lack: String },
    #[error("the CA in {folder} cannot be used: {problem}")]
    Authority { folder: String, problem: String },
    #[error("`{host}` cannot stand in a certificate; advertise a DNS name or an IP address")]
    Host { host: String },
    #[error("the certificate request cannot be used: {problem}")]
    Request { problem: String },
    #[error("cannot make a certificate: {problem}")]
    Issue { problem: String },
}

impl Pki {
    /// Opens the CA in `folder`, or makes one there on the first start, and makes a fresh server certificate. Certificates
    /// of the coordinator and of workers are valid for `life`.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn open(folder: &Path, advertised_hosts: &[String], life: Duration, now: Timestamp) -> Result<Self, PkiError> {
        let authority = Arc::new(Authority::open(folder, life, now)?);
        let server = Arc::new(ServerCertificate::issue(Arc::clone(&authority), advertised_hosts, now)?);
        Ok(Self { authority, server })
    }

    /// The CA's certificate, for clients to trust.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        self.authority.certificate_pem()
    }

    #[must_use]
    pub fn ca_certificate(&self) -> &CertificateDer<'static> {
        self.authority.certificate()
    }

    /// What a join token carries.
    #[must_use]
    pub fn ca_fingerprint(&self) -> [u8; 32] {
        kiln_common::runtime::tls::fingerprint(self.authority.certificate())
    }

    /// The server certificate; hand it to a task that calls [`ServerCertificate::keep_fresh`].
    #[must_use]
    pub fn server_certificate(&self) -> Arc<ServerCertificate> {
        Arc::clone(&self.server)
    }

    /// TLS 1.3 for the gRPC acceptor; a client certificate of the CA is asked for, not demanded.
    ///
    /// # Errors
    /// [`PkiError::Authority`].
    pub fn server_config(&self) -> Result<Arc<rustls::ServerConfig>, PkiError> {
        server::config(&self.authority, Arc::clone(&self.server))
    }

    /// A certificate for the worker over the key of its PKCS #10 request.
    ///
    /// # Errors
    /// [`PkiError::Request`] when the request is malformed or its signature does not hold.
    pub fn issue_worker(&self, worker: WorkerId, csr_der: &[u8], now: Timestamp) -> Result<Issued, PkiError> {
        self.authority.issue_worker(worker, csr_der, now)
    }
}

#[cfg(test)]
mod tests;
