//! Whom the proxy trusts: the system's roots and, as Docker does, the files of `/etc/docker/certs.d/HOST`.

use std::{io, path::Path, sync::Arc};

use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};

const DOCKER_CERTIFICATES: &str = "/etc/docker/certs.d";

pub fn connector(host: &str) -> io::Result<HttpsConnector<HttpConnector>> {
    let mut roots = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(system.certs);
    for certificate in docker_certificates(&Path::new(DOCKER_CERTIFICATES).join(host)) {
        roots.add(certificate).map_err(io::Error::other)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(HttpsConnectorBuilder::new().with_tls_config(config).https_or_http().enable_http1().build())
}

fn docker_certificates(folder: &Path) -> Vec<CertificateDer<'static>> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "crt"))
        .filter_map(|path| CertificateDer::pem_file_iter(path).ok())
        .flat_map(|certificates| certificates.flatten().collect::<Vec<_>>())
        .collect()
}
