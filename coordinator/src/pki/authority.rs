//! The farm's CA: made on the first start, kept in two files, issues the other certificates.

use std::{path::Path, time::Duration};

use kiln_common::{
    Timestamp, WorkerId, limits,
    runtime::{files, tls},
};
use rand::RngCore;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SerialNumber,
};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::PkiError;

const CERTIFICATE_FILE: &str = "ca.pem";
const KEY_FILE: &str = "ca.key";
const PEM_BYTES: u64 = 64 * 1024;
const DAY: Duration = Duration::from_secs(24 * 3600);
const CA_LIFE: Duration = Duration::from_secs(3650 * 24 * 3600);
/// Boards without a battery-backed clock may be behind.
const CLOCK_SKEW: Duration = DAY;

pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    /// Of what it issues.
    life: Duration,
}

/// A worker's new certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// The certificate and the CA's, leaf first.
    pub chain_pem: String,
    /// When the worker should renew it, from now.
    pub renew_after: Duration,
}

impl Authority {
    /// Reads `ca.pem` and `ca.key` from `folder`; makes both where neither exists. What it issues is valid for `life`.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn open(folder: &Path, life: Duration, now: Timestamp) -> Result<Self, PkiError> {
        let (certificate_path, key_path) = (folder.join(CERTIFICATE_FILE), folder.join(KEY_FILE));
        let certificate = files::read_optional(&certificate_path, PEM_BYTES)?;
        let key = files::read_optional(&key_path, PEM_BYTES)?.map(Zeroizing::new);
        let half = |have: &Path, lack: &Path| PkiError::HalfAuthority {
            have: have.display().to_string(),
            lack: lack.display().to_string(),
        };
        match (certificate, key) {
            (Some(certificate), Some(key)) => Self::read(&certificate, &key, life)
                .map_err(|problem| PkiError::Authority { folder: folder.display().to_string(), problem }),
            (Some(_), None) => Err(half(&certificate_path, &key_path)),
            (None, Some(_)) => Err(half(&key_path, &certificate_path)),
            (None, None) => {
                let (certificate_pem, key_pem) = make(now).map_err(issue)?;
                files::write_private(&key_path, key_pem.as_bytes())?;
                files::write_public(&certificate_path, certificate_pem.as_bytes())?;
                Self::read(certificate_pem.as_bytes(), key_pem.as_bytes(), life)
                    .map_err(|problem| PkiError::Issue { problem })
            }
        }
    }

    fn read(certificate: &[u8], key: &[u8], life: Duration) -> Result<Self, String> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| "it is not PEM".to_owned());
        let certificate_pem = text(certificate)?;
        let key = KeyPair::from_pem(&Zeroizing::new(text(key)?)).map_err(|error| format!("{KEY_FILE}: {error}"))?;
        let mut all = tls::certificates(CERTIFICATE_FILE, certificate).map_err(|error| error.to_string())?;
        let certificate = all.swap_remove(0);
        check_pair(&certificate, &key)?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(|error| error.to_string())?;
        Ok(Self { issuer, certificate, certificate_pem, life })
    }

    #[must_use]
    pub const fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    #[must_use]
    pub const fn life(&self) -> Duration {
        self.life
    }

    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// A certificate for the coordinator and a new key, which lives in memory alone.
    ///
    /// # Errors
    /// [`PkiError::Host`] for a name that no certificate can carry.
    pub fn issue_server(
        &self,
        hosts: &[String],
        now: Timestamp,
    ) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), PkiError> {
        let mut params = CertificateParams::default();
        for host in hosts {
            // rcgen takes IP addresses and DNS names apart.
            let one = CertificateParams::new([host.clone()]).map_err(|_| PkiError::Host { host: host.clone() })?;
            params.subject_alt_names.extend(one.subject_alt_names);
        }
        leaf(&mut params, "kiln-coordinator", ExtendedKeyUsagePurpose::ServerAuth, now, self.life);
        let key = new_key().map_err(issue)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(issue)?;
        Ok((certificate.der().clone(), PrivatePkcs8KeyDer::from(key.serialize_der()).into()))
    }

    /// # Errors
    /// [`PkiError::Request`].
    pub fn issue_worker(&self, worker: WorkerId, csr_der: &[u8], now: Timestamp) -> Result<Issued, PkiError> {
        let request = |problem: String| PkiError::Request { problem };
        if csr_der.len() > limits::CSR_BYTES {
            return Err(request(format!("it has more than {} bytes", limits::CSR_BYTES)));
        }
        let mut csr = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr_der))
            .map_err(|error| request(error.to_string()))?;
        // Of the request only the key counts: names and usages are the farm's to give.
        csr.params = CertificateParams::default();
        leaf(&mut csr.params, &worker.to_string(), ExtendedKeyUsagePurpose::ClientAuth, now, self.life);
        let certificate = csr.signed_by(&self.issuer).map_err(issue)?;
        let chain_pem = format!("{}{}", certificate.pem(), self.certificate_pem);
        Ok(Issued { chain_pem, renew_after: self.life * 2 / 3 })
    }
}

fn check_pair(certificate: &CertificateDer<'_>, key: &KeyPair) -> Result<(), String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(|error| error.to_string())?;
    if parsed.public_key().subject_public_key.data == key.public_key_raw() {
        Ok(())
    } else {
        Err(format!("{KEY_FILE} is not the key of {CERTIFICATE_FILE}"))
    }
}

/// A self-signed CA: certificate and key in PEM.
fn make(now: Timestamp) -> Result<(String, Zeroizing<String>), rcgen::Error> {
    let key = new_key()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(&format!("Kiln CA {}", hex::encode(random::<4>())));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(serial());
    validity(&mut params, now, CA_LIFE);
    Ok((params.self_signed(&key)?.pem(), Zeroizing::new(key.serialize_pem())))
}

fn leaf(params: &mut CertificateParams, name: &str, usage: ExtendedKeyUsagePurpose, now: Timestamp, life: Duration) {
    params.distinguished_name = common_name(name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(serial());
    validity(params, now, life);
}

fn validity(params: &mut CertificateParams, now: Timestamp, life: Duration) {
    let seconds = i64::try_from(now.as_millis() / 1000).unwrap_or(i64::MAX);
    let now = OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now + life;
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn new_key() -> Result<KeyPair, rcgen::Error> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
}

/// RFC 5280, section 4.1.2.2: positive, at most 20 octets; CAB Forum: at least 64 random bits.
fn serial() -> SerialNumber {
    let mut bytes = random::<16>();
    bytes[0] = bytes[0] & 0x7f | 0x01;
    SerialNumber::from_slice(&bytes)
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::rng().fill_bytes(&mut bytes);
    bytes
}

fn issue(error: rcgen::Error) -> PkiError {
    PkiError::Issue { problem: error.to_string() }
}
