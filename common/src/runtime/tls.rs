//! TLS 1.3 with rustls on ring: what clients trust and who they are. The server's side is the coordinator's `pki`.

use std::sync::Arc;

use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject};

/// gRPC's application protocol (RFC 7301).
pub const ALPN_H2: &[u8] = b"h2";

/// How a client knows the farm for the right one.
#[derive(Debug, Clone)]
pub enum Trust {
    /// Its certificate is signed by one of these.
    Ca(Vec<CertificateDer<'static>>),
    /// It presents a CA with this fingerprint and a certificate signed by that CA: for the first contact, with a join token.
    Fingerprint([u8; 32]),
}

/// The client's own certificate chain and key.
#[derive(Debug)]
pub struct Identity {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self { chain: self.chain.clone(), key: self.key.clone_key() }
    }
}

/// Certificates or keys that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{what} has no PEM certificate")]
    NoCertificate { what: String },
    #[error("{what} is not PEM: {problem}")]
    Pem { what: String, problem: String },
    #[error("the certificate or its key cannot be used: {0}")]
    Unusable(#[from] rustls::Error),
}

/// Makes ring the process's provider, for libraries that ask rustls for the default. Harmless when called again.
pub fn install_provider() {
    drop(rustls::crypto::ring::default_provider().install_default());
}

#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// SHA-256 of a certificate in DER.
#[must_use]
pub fn fingerprint(certificate: &CertificateDer<'_>) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, certificate).as_ref());
    bytes
}

/// All certificates of a PEM text; `what` names it in errors.
///
/// # Errors
/// [`TlsError`] when it is malformed or has none.
pub fn certificates(what: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let all = all.map_err(|error| TlsError::Pem { what: what.to_owned(), problem: error.to_string() })?;
    if all.is_empty() { Err(TlsError::NoCertificate { what: what.to_owned() }) } else { Ok(all) }
}

/// The first private key of a PEM text.
///
/// # Errors
/// [`TlsError::Pem`].
pub fn private_key(what: &str, pem: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(pem)
        .map_err(|error| TlsError::Pem { what: what.to_owned(), problem: error.to_string() })
}

/// A configuration for gRPC over TLS 1.3.
///
/// # Errors
/// [`TlsError`] when the CA or the identity cannot be used.
pub fn client_config(trust: Trust, identity: Option<Identity>) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&rustls::version::TLS13])?;
    let builder = match trust {
        Trust::Ca(certificates) => builder.with_root_certificates(roots(certificates)?),
        Trust::Fingerprint(fingerprint) => {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(FingerprintVerifier::new(fingerprint)))
        }
    };
    let mut config = match identity {
        Some(identity) => builder.with_client_auth_cert(identity.chain, identity.key)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    Ok(config)
}

fn roots(certificates: Vec<CertificateDer<'static>>) -> Result<RootCertStore, rustls::Error> {
    let mut store = RootCertStore::empty();
    certificates.into_iter().try_for_each(|certificate| store.add(certificate))?;
    Ok(store)
}

/// Accepts exactly a chain whose root has the fingerprint; names, dates and signatures are checked as ever.
#[derive(Debug)]
struct FingerprintVerifier {
    fingerprint: [u8; 32],
    algorithms: WebPkiSupportedAlgorithms,
}

impl FingerprintVerifier {
    fn new(fingerprint: [u8; 32]) -> Self {
        Self { fingerprint, algorithms: rustls::crypto::ring::default_provider().signature_verification_algorithms }
    }
}

impl ServerCertVerifier for FingerprintVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let root = intermediates.iter().find(|certificate| fingerprint(certificate) == self.fingerprint);
        let unknown = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let root = root.ok_or(unknown)?.clone().into_owned();
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots(vec![root])?), provider())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::PeerIncompatible(rustls::PeerIncompatible::Tls12NotOfferedOrEnabled))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_certificates_is_named() {
        let error = certificates("ca.pem", b"hello").expect_err("no certificate").to_string();
        assert_eq!(error, "ca.pem has no PEM certificate");
        assert!(private_key("ca.key", b"").is_err());
    }
}
