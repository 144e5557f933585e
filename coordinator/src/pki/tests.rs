//! The certificates at work: real handshakes over loopback.

use std::collections::BTreeMap;

use kiln_common::{
    limits,
    runtime::tls::{self, Identity, Trust},
};
use rustls_pki_types::{PrivatePkcs8KeyDer, ServerName};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::store::MemoryStore;

fn open(folder: &Path) -> Pki {
    Pki::open(folder, &["farm.example".into()], limits::CERTIFICATE_LIFE, Timestamp::now()).expect("pki")
}

fn identity(pki: &Pki, worker: WorkerId) -> Identity {
    let key = rcgen::KeyPair::generate().expect("key");
    let csr = rcgen::CertificateParams::new(["evil.example".to_owned()]).expect("params");
    let csr = csr.serialize_request(&key).expect("request");
    let issued = pki.issue_worker(worker, csr.der(), Timestamp::now()).expect("issued");
    let chain = tls::certificates("chain", issued.chain_pem.as_bytes()).expect("chain");
    Identity { chain, key: PrivatePkcs8KeyDer::from(key.serialize_der()).into() }
}

/// One connection; gives what the server sees of the client.
async fn handshake(
    pki: &Pki,
    name: &str,
    trust: Trust,
    identity: Option<Identity>,
) -> Result<Option<WorkerId>, String> {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("address");
    let acceptor = TlsAcceptor::from(pki.server_config().expect("configuration"));
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("accepted");
        let mut stream = acceptor.accept(stream).await.map_err(|error| error.to_string())?;
        let peer = stream.get_ref().1.peer_certificates().map(|chain| worker_of(&chain[0]).expect("a worker"));
        stream.write_all(b"hello").await.map_err(|error| error.to_string())?;
        Ok::<_, String>(peer)
    });
    let config = tls::client_config(trust, identity).expect("client configuration");
    let connector = TlsConnector::from(Arc::new(config));
    let stream = TcpStream::connect(address).await.expect("connected");
    let name = ServerName::try_from(name.to_owned()).expect("name");
    let mut stream = connector.connect(name, stream).await.map_err(|error| error.to_string())?;
    let mut hello = [0; 5];
    stream.read_exact(&mut hello).await.map_err(|error| error.to_string())?;
    server.await.expect("server task")
}

#[tokio::test]
async fn clients_that_trust_the_ca_reach_the_coordinator_under_all_its_names() {
    let folder = tempfile::tempdir().expect("folder");
    let pki = open(folder.path());
    for name in ["farm.example", "localhost", "127.0.0.1", "::1"] {
        let trust = Trust::Ca(vec![pki.ca_certificate().clone()]);
        assert_eq!(handshake(&pki, name, trust, None).await, Ok(None), "{name}");
    }
    let trust = Trust::Ca(vec![pki.ca_certificate().clone()]);
    let error = handshake(&pki, "other.example", trust, None).await.expect_err("another name");
    assert!(error.contains("other.example"), "{error}");
}

#[tokio::test]
async fn a_join_token_s_fingerprint_finds_the_farm_and_only_it() {
    let (one, two) = (tempfile::tempdir().expect("folder"), tempfile::tempdir().expect("folder"));
    let (farm, other) = (open(one.path()), open(two.path()));
    let trust = Trust::Fingerprint(farm.ca_fingerprint());
    assert_eq!(handshake(&farm, "farm.example", trust.clone(), None).await, Ok(None));
    assert!(handshake(&other, "farm.example", trust, None).await.expect_err("another CA").contains("UnknownIssuer"));
}

#[tokio::test]
async fn a_worker_is_known_by_its_certificate_and_gets_no_name_that_it_asks_for() {
    let folder = tempfile::tempdir().expect("folder");
    let pki = open(folder.path());
    let worker = WorkerId::generate();
    let identity = identity(&pki, worker);
    let (_, parsed) = x509_parser::parse_x509_certificate(&identity.chain[0]).expect("parses");
    assert!(parsed.subject_alternative_name().expect("extensions").is_none());
    let trust = Trust::Ca(vec![pki.ca_certificate().clone()]);
    assert_eq!(handshake(&pki, "localhost", trust, Some(identity)).await, Ok(Some(worker)));
}

#[tokio::test]
async fn a_certificate_of_another_farm_is_refused() {
    let (one, two) = (tempfile::tempdir().expect("folder"), tempfile::tempdir().expect("folder"));
    let (farm, other) = (open(one.path()), open(two.path()));
    let foreign = identity(&other, WorkerId::generate());
    let trust = Trust::Ca(vec![farm.ca_certificate().clone()]);
    assert!(handshake(&farm, "localhost", trust, Some(foreign)).await.is_err());
}

#[tokio::test]
async fn an_expired_certificate_is_refused() {
    let folder = tempfile::tempdir().expect("folder");
    let pki = open(folder.path());
    let key = rcgen::KeyPair::generate().expect("key");
    let csr = rcgen::CertificateParams::default().serialize_request(&key).expect("request");
    let long_ago = Timestamp::from_millis(Timestamp::now().as_millis() - 200 * 24 * 3_600_000);
    let issued = pki.issue_worker(WorkerId::generate(), csr.der(), long_ago).expect("issued");
    let chain = tls::certificates("chain", issued.chain_pem.as_bytes()).expect("chain");
    let identity = Identity { chain, key: PrivatePkcs8KeyDer::from(key.serialize_der()).into() };
    let trust = Trust::Ca(vec![pki.ca_certificate().clone()]);
    assert!(handshake(&pki, "localhost", trust, Some(identity)).await.is_err());
}

#[tokio::test]
async fn a_renewed_server_certificate_serves_new_connections() {
    let folder = tempfile::tempdir().expect("folder");
    let pki = open(folder.path());
    pki.server_certificate().renew(Timestamp::now()).expect("renewed");
    let trust = Trust::Ca(vec![pki.ca_certificate().clone()]);
    assert_eq!(handshake(&pki, "localhost", trust, None).await, Ok(None));
}

#[test]
fn the_ca_survives_a_restart_and_half_of_it_is_an_error() {
    let folder = tempfile::tempdir().expect("folder");
    let first = open(folder.path()).ca_fingerprint();
    assert_eq!(open(folder.path()).ca_fingerprint(), first);
    std::fs::remove_file(folder.path().join("ca.key")).expect("removed");
    let error =
        Pki::open(folder.path(), &[], limits::CERTIFICATE_LIFE, Timestamp::now()).err().expect("no key").to_string();
    assert!(error.contains("ca.pem is there without") && error.contains("backup"), "{error}");
    let other = tempfile::tempdir().expect("folder");
    open(other.path());
    std::fs::copy(other.path().join("ca.key"), folder.path().join("ca.key")).expect("copied");
    let error =
        Pki::open(folder.path(), &[], limits::CERTIFICATE_LIFE, Timestamp::now()).err().expect("wrong key").to_string();
    assert!(error.contains("ca.key is not the key of ca.pem"), "{error}");
}

#[test]
fn a_malformed_request_is_refused() {
    let folder = tempfile::tempdir().expect("folder");
    let pki = open(folder.path());
    for csr in [&b""[..], b"nonsense", &[0x30; 100_000]] {
        assert!(matches!(pki.issue_worker(WorkerId::generate(), csr, Timestamp::now()), Err(PkiError::Request { .. })));
    }
}

#[tokio::test]
async fn a_join_token_lets_in_as_many_as_it_says_and_no_longer_than_it_says() {
    let tokens = JoinTokens::new(Arc::new(MemoryStore::default()), vec!["farm.example:7070".into()], [1; 32]);
    let now = Timestamp::from_millis(1_000);
    let labels = BTreeMap::from([("zone".to_owned(), "attic".to_owned())]);
    let hour = std::time::Duration::from_secs(3600);
    let NewJoinToken { token, id, expires_at } = tokens.create(hour, 2, labels.clone(), now).await.expect("made");
    let text = token.to_string();
    let fault = async |text: &str, now| match tokens.redeem(text, now).await {
        Err(JoinRejected::NotValid { fault, .. }) => fault,
        other => panic!("{other:?}"),
    };
    assert_eq!(tokens.redeem(&text, now).await.expect("first use").labels, labels);
    assert_eq!(fault(&text, expires_at).await, TokenFault::Expired);
    assert_eq!(tokens.redeem(&text, now).await.expect("second use").id, id);
    assert_eq!(fault(&text, now).await, TokenFault::UsedUp);
    assert_eq!(fault("kiln-join-x", now).await, TokenFault::Malformed);
    let forged = kiln_common::runtime::JoinToken { secret: [0; 32], ..token.clone() };
    assert_eq!(fault(&forged.to_string(), now).await, TokenFault::Unknown);
    let foreign = kiln_common::runtime::JoinToken { ca_fingerprint: [2; 32], ..token };
    assert_eq!(fault(&foreign.to_string(), now).await, TokenFault::OtherFarm);
    let other = tokens.create(hour, 5, labels, now).await.expect("made");
    assert_eq!(tokens.revoke(&other.id[..6], now).await.expect("revoked"), other.id);
    assert_eq!(fault(&other.token.to_string(), now).await, TokenFault::Revoked);
    assert!(matches!(tokens.revoke("../x", now).await, Err(JoinRejected::NoSuchToken { .. })));
    let listed = tokens.list(now).await.expect("listed");
    assert_eq!(listed.iter().filter_map(|view| view.fault).count(), 2, "{listed:?}");
    let long = limits_exceeded(&tokens, now).await;
    assert!(matches!(long, Err(JoinRejected::TooLong)));
}

async fn limits_exceeded(tokens: &JoinTokens, now: Timestamp) -> Result<(), JoinRejected> {
    let ttl = kiln_common::limits::JOIN_TOKEN_TTL_MAX + std::time::Duration::from_secs(1);
    tokens.create(ttl, 1, BTreeMap::new(), now).await.map(drop)
}

#[tokio::test]
async fn a_revocation_survives_a_restart() {
    let store = MemoryStore::default();
    let revocations = Revocations::load(&store).await.expect("loaded");
    let worker = WorkerId::generate();
    revocations.revoke(&store, worker).await.expect("revoked");
    assert!(revocations.contains(worker));
    let again = Revocations::load(&store).await.expect("loaded again");
    assert!(again.contains(worker) && !again.contains(WorkerId::generate()));
}
