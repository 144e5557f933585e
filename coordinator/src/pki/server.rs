//! The coordinator's own certificate: made at every start, renewed while it runs, never interrupting a connection.

use std::sync::{Arc, RwLock};

use kiln_common::{Timestamp, runtime::tls};
use rustls::{
    ServerConfig,
    server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::{Authority, PkiError};

/// Names under which every coordinator answers.
const OWN_NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

pub struct ServerCertificate {
    authority: Arc<Authority>,
    hosts: Vec<String>,
    current: RwLock<Arc<CertifiedKey>>,
}

impl ServerCertificate {
    /// # Errors
    /// [`PkiError::Host`] for a name that no certificate can carry.
    pub fn issue(authority: Arc<Authority>, advertised_hosts: &[String], now: Timestamp) -> Result<Self, PkiError> {
        let mut hosts: Vec<String> = OWN_NAMES.map(str::to_owned).to_vec();
        for host in advertised_hosts {
            let host = host.trim_start_matches('[').trim_end_matches(']');
            if !host.is_empty() && !hosts.iter().any(|known| known == host) {
                hosts.push(host.to_owned());
            }
        }
        let current = RwLock::new(Arc::new(certify(&authority, &hosts, now)?));
        Ok(Self { authority, hosts, current })
    }

    /// Replaces the certificate; connections that are open keep theirs.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn renew(&self, now: Timestamp) -> Result<(), PkiError> {
        let fresh = Arc::new(certify(&self.authority, &self.hosts, now)?);
        *self.current.write().unwrap_or_else(std::sync::PoisonError::into_inner) = fresh;
        Ok(())
    }

    /// Renews the certificate long before it ends, until `stop`.
    pub async fn keep_fresh(self: Arc<Self>, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(self.authority.life() / 3);
        ticks.tick().await;
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            match self.renew(Timestamp::now()) {
                Ok(()) => info!("server certificate renewed"),
                Err(error) => error!(%error, "cannot renew the server certificate; trying again later"),
            }
        }
    }
}

fn certify(authority: &Authority, hosts: &[String], now: Timestamp) -> Result<CertifiedKey, PkiError> {
    let (certificate, key) = authority.issue_server(hosts, now)?;
    // The CA goes along, so that a worker can find it by the fingerprint in its join token.
    let chain = vec![certificate, authority.certificate().clone()];
    CertifiedKey::from_der(chain, key, &tls::provider()).map_err(|error| PkiError::Issue { problem: error.to_string() })
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.read().unwrap_or_else(std::sync::PoisonError::into_inner)))
    }
}

impl std::fmt::Debug for ServerCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerCertificate").field("hosts", &self.hosts).finish_non_exhaustive()
    }
}

/// TLS 1.3 alone; clients may present a certificate of the CA.
pub(super) fn config(
    authority: &Authority,
    certificate: Arc<ServerCertificate>,
) -> Result<Arc<ServerConfig>, PkiError> {
    let unusable = |error: String| PkiError::Issue { problem: error };
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.certificate().clone()).map_err(|error| unusable(error.to_string()))?;
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), tls::provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| unusable(error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| unusable(error.to_string()))?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![tls::ALPN_H2.to_vec()];
    Ok(Arc::new(config))
}
