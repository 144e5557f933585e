//! Registry credentials from the user's Docker configuration and its credential helpers, for the hosts that a build
//! names and for no others.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{BufReader, ErrorKind},
    path::{Path, PathBuf},
};

use docker_credential::{CredentialRetrievalError, DockerCredential};
use kiln_common::reference::DOCKER_HUB;
use kiln_proto::v1::RegistryCredential;

use crate::failure::{Exit, Failure};

/// The key of Docker Hub in a Docker configuration.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// `$DOCKER_CONFIG/config.json` or `~/.docker/config.json`.
#[must_use]
pub fn config_file() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let dir = set("DOCKER_CONFIG").or_else(|| set("HOME").map(|home| home.join(".docker")))?;
    Some(dir.join("config.json"))
}

/// What this machine's configuration has for the hosts, read on a thread that may wait for credential helpers.
///
/// # Errors
/// As [`credentials`].
pub async fn of_hosts(hosts: BTreeSet<String>) -> Result<Vec<RegistryCredential>, Failure> {
    let Some(config) = config_file() else { return Ok(Vec::new()) };
    let reading = tokio::task::spawn_blocking(move || credentials(&config, &hosts)).await;
    reading.unwrap_or_else(|error| Err(Failure::new(Exit::BuildFailed, error)))
}

/// What the configuration has for each host; a host without credentials is left out. Runs credential helpers, so it
/// blocks.
///
/// # Errors
/// The configuration is malformed, or a helper that it names does not work.
pub fn credentials(config: &Path, hosts: &BTreeSet<String>) -> Result<Vec<RegistryCredential>, Failure> {
    let mut found = Vec::new();
    for host in hosts {
        let file = match File::open(config) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Failure::local(format!("cannot read `{}`", config.display()), error)),
        };
        let key = if host == DOCKER_HUB { DOCKER_HUB_KEY } else { host };
        match docker_credential::get_credential_from_reader(BufReader::new(file), key) {
            Ok(DockerCredential::UsernamePassword(username, password)) => {
                found.push(RegistryCredential { host: host.clone(), username, password, identity_token: String::new() })
            }
            Ok(DockerCredential::IdentityToken(identity_token)) => {
                found.push(RegistryCredential { host: host.clone(), identity_token, ..RegistryCredential::default() });
            }
            Err(error) if means_none(&error) => {}
            Err(error) => return Err(explain(config, host, &error)),
        }
    }
    Ok(found)
}

/// Helpers answer with a message where they hold nothing for a host (docker-credential-helpers, `credentials/error.go`).
fn means_none(error: &CredentialRetrievalError) -> bool {
    match error {
        CredentialRetrievalError::NoCredentialConfigured | CredentialRetrievalError::ConfigNotFound => true,
        CredentialRetrievalError::HelperFailure { stdout, stderr, .. } => {
            let said = format!("{stdout}{stderr}").to_lowercase();
            said.contains("credentials not found") || said.contains("no credentials server url")
        }
        CredentialRetrievalError::HelperCommunicationError
        | CredentialRetrievalError::MalformedHelperResponse
        | CredentialRetrievalError::CredentialDecodingError
        | CredentialRetrievalError::CredentialMismatchError
        | CredentialRetrievalError::ConfigReadError => false,
    }
}

fn explain(config: &Path, host: &str, error: &CredentialRetrievalError) -> Failure {
    let problem = match error {
        CredentialRetrievalError::HelperFailure { helper, stdout, stderr } => {
            let said = if stderr.trim().is_empty() { stdout.trim() } else { stderr.trim() };
            format!("`{helper}` failed: {said}")
        }
        CredentialRetrievalError::ConfigReadError => "it is not a Docker configuration".to_owned(),
        CredentialRetrievalError::HelperCommunicationError => "its credential helper cannot be run".to_owned(),
        CredentialRetrievalError::MalformedHelperResponse => "its credential helper answered nonsense".to_owned(),
        CredentialRetrievalError::CredentialDecodingError => "its `auth` entry is malformed".to_owned(),
        CredentialRetrievalError::CredentialMismatchError
        | CredentialRetrievalError::NoCredentialConfigured
        | CredentialRetrievalError::ConfigNotFound => error.to_string(),
    };
    Failure::usage(format!("cannot get credentials for {host} from `{}`: {problem}", config.display()))
        .remedy(format!("try `docker login {host}`, or point DOCKER_CONFIG at another directory"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(config: &str, hosts: &[&str]) -> Result<Vec<RegistryCredential>, Failure> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, config).unwrap();
        credentials(&path, &hosts.iter().map(|host| (*host).to_owned()).collect())
    }

    #[test]
    fn only_the_named_hosts_are_looked_up_and_docker_hub_under_its_own_key() {
        // `dTpw` is `u:p`.
        let config = r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "dTpw"},
            "r.example:5000": {"auth": "dTpw"},
            "token.example": {"identitytoken": "t"},
            "secret.example": {"auth": "dTpw"}
        }}"#;
        let found = from(config, &["docker.io", "r.example:5000", "token.example", "none.example"]).unwrap();
        let told: Vec<_> =
            found.iter().map(|c| (c.host.as_str(), c.username.as_str(), c.identity_token.as_str())).collect();
        assert_eq!(told, [("docker.io", "u", ""), ("r.example:5000", "u", ""), ("token.example", "", "t")]);
    }

    #[test]
    fn no_configuration_is_no_credential_and_a_broken_one_names_itself() {
        let none = Path::new("/nonexistent/config.json");
        assert_eq!(credentials(none, &BTreeSet::from(["r.example".to_owned()])), Ok(Vec::new()));
        let failure = from("{", &["r.example"]).unwrap_err().to_string();
        assert!(failure.contains("config.json") && failure.contains("docker login r.example"), "{failure}");
        let missing = from(r#"{"credsStore": "no-such-helper-here"}"#, &["r.example"]).unwrap_err().to_string();
        assert!(missing.contains("helper"), "{missing}");
    }
}
