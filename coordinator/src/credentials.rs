//! What a build may know and nobody else: its secrets' values and its registry credentials.
//!
//! Decoded by `api`, sealed before it reaches the store, opened by `sessions` for the one attempt and by the driver for
//! the one publish that need it. Invariant: never logged (`Debug` hides it), wiped when dropped.

use std::{collections::BTreeMap, fmt};

use kiln_common::{limits, spec::Violation};
use kiln_proto::v1;
use prost::Message;
use zeroize::Zeroizing;

/// All that is secret about one build.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct BuildSecrets {
    /// Values by id, for `RUN --mount=type=secret`.
    pub secrets: BTreeMap<String, Zeroizing<Vec<u8>>>,
    pub credentials: Vec<RegistryCredential>,
}

/// How to log in to one registry.
#[derive(Clone, PartialEq, Eq)]
pub struct RegistryCredential {
    /// `host[:port]` as in a reference; `docker.io` for Docker Hub.
    pub host: String,
    /// Empty with an identity token.
    pub username: String,
    pub password: Zeroizing<String>,
    /// OAuth2 refresh token; empty without.
    pub identity_token: Zeroizing<String>,
}

impl fmt::Debug for BuildSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids: Vec<_> = self.secrets.keys().collect();
        f.debug_struct("BuildSecrets").field("secrets", &ids).field("credentials", &self.credentials).finish()
    }
}

impl fmt::Debug for RegistryCredential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryCredential").field("host", &self.host).finish_non_exhaustive()
    }
}

/// The sealed bytes do not hold a build's secrets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the stored secrets of a build do not read: {problem}")]
pub struct InvalidSecrets {
    pub problem: String,
}

impl BuildSecrets {
    /// From a submit.
    ///
    /// # Errors
    /// Every bound that is broken, with its field.
    pub fn from_wire(
        secrets: impl IntoIterator<Item = (String, Vec<u8>)>,
        credentials: Vec<v1::RegistryCredential>,
    ) -> Result<Self, Vec<Violation>> {
        let mut violations = Vec::new();
        let secrets: BTreeMap<_, _> = secrets.into_iter().map(|(id, value)| (id, Zeroizing::new(value))).collect();
        for (id, value) in &secrets {
            if value.len() > limits::SECRET_BYTES {
                let problem = format!("{} bytes; at most {} are allowed", value.len(), limits::SECRET_BYTES);
                violations
                    .push(Violation::new(format!("secrets[{}]", id.chars().take(64).collect::<String>()), problem));
            }
        }
        if credentials.len() > limits::REGISTRY_CREDENTIALS {
            let problem = format!("{} entries; at most {}", credentials.len(), limits::REGISTRY_CREDENTIALS);
            violations.push(Violation::new("credentials", problem));
        }
        let all = Self { secrets, credentials: credentials.into_iter().map(RegistryCredential::from_wire).collect() };
        for (at, credential) in all.credentials.iter().enumerate() {
            if credential.host.is_empty() || credential.host.len() > limits::KEY_BYTES {
                violations.push(Violation::new(format!("credentials[{at}].host"), "is empty or too long"));
            }
        }
        if all.bytes() > limits::SECRETS_TOTAL_BYTES {
            let problem = format!("{} bytes together; at most {}", all.bytes(), limits::SECRETS_TOTAL_BYTES);
            violations.push(Violation::new("secrets", problem));
        }
        if violations.is_empty() { Ok(all) } else { Err(violations) }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.secrets.is_empty() && self.credentials.is_empty()
    }

    fn bytes(&self) -> usize {
        let secrets: usize = self.secrets.iter().map(|(id, value)| id.len() + value.len()).sum();
        let credentials: usize = self
            .credentials
            .iter()
            .map(|one| one.host.len() + one.username.len() + one.password.len() + one.identity_token.len())
            .sum();
        secrets + credentials
    }

    /// The form that is sealed.
    #[must_use]
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        let mut message = v1::SubmitRequest {
            secrets: self.secrets.iter().map(|(id, value)| (id.clone(), value.to_vec())).collect(),
            credentials: self.credentials.iter().map(RegistryCredential::to_wire).collect(),
            ..Default::default()
        };
        let bytes = Zeroizing::new(message.encode_to_vec());
        message.secrets.values_mut().for_each(zeroize::Zeroize::zeroize);
        bytes
    }

    /// The registry credentials alone, in one order whatever order they came in; `None` without any.
    #[must_use]
    pub fn credentials_bytes(&self) -> Option<Zeroizing<Vec<u8>>> {
        if self.credentials.is_empty() {
            return None;
        }
        let mut each: Vec<_> =
            self.credentials.iter().map(|one| Zeroizing::new(one.to_wire().encode_length_delimited_to_vec())).collect();
        each.sort_unstable_by(|a, b| a.as_slice().cmp(b.as_slice()));
        Some(Zeroizing::new(each.iter().flat_map(|one| one.iter().copied()).collect()))
    }

    /// # Errors
    /// [`InvalidSecrets`] for bytes that [`Self::to_bytes`] did not make.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, InvalidSecrets> {
        let message =
            v1::SubmitRequest::decode(bytes).map_err(|error| InvalidSecrets { problem: error.to_string() })?;
        Ok(Self {
            secrets: message.secrets.into_iter().map(|(id, value)| (id, Zeroizing::new(value))).collect(),
            credentials: message.credentials.into_iter().map(RegistryCredential::from_wire).collect(),
        })
    }
}

impl RegistryCredential {
    fn from_wire(wire: v1::RegistryCredential) -> Self {
        Self {
            host: wire.host,
            username: wire.username,
            password: Zeroizing::new(wire.password),
            identity_token: Zeroizing::new(wire.identity_token),
        }
    }

    #[must_use]
    pub fn to_wire(&self) -> v1::RegistryCredential {
        v1::RegistryCredential {
            host: self.host.clone(),
            username: self.username.clone(),
            password: self.password.to_string(),
            identity_token: self.identity_token.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credential(host: &str) -> v1::RegistryCredential {
        v1::RegistryCredential {
            host: host.into(),
            username: "u".into(),
            password: "hunter2".into(),
            ..Default::default()
        }
    }

    #[test]
    fn secrets_read_back_and_never_show_in_debug() {
        let all = BuildSecrets::from_wire([("id".to_owned(), b"hunter2".to_vec())], vec![credential("r.example")])
            .expect("sound");
        assert_eq!(BuildSecrets::from_bytes(&all.to_bytes()).expect("reads"), all);
        assert!(!format!("{all:?}").contains("hunter2"));
    }

    #[test]
    fn credentials_are_the_same_in_any_order_and_only_then() {
        let bytes = |hosts: &[&str]| {
            let credentials = hosts.iter().map(|host| credential(host)).collect();
            BuildSecrets::from_wire([], credentials).expect("sound").credentials_bytes()
        };
        assert_eq!(bytes(&["a.example", "b.example"]), bytes(&["b.example", "a.example"]));
        assert_ne!(bytes(&["a.example"]), bytes(&["a.example", "b.example"]));
        assert_eq!(bytes(&[]), None);
    }

    #[test]
    fn one_byte_too_many_is_refused_by_name() {
        let large = vec![0; limits::SECRET_BYTES + 1];
        let violations =
            BuildSecrets::from_wire([("big".to_owned(), large)], vec![credential("")]).expect_err("too large");
        let fields: Vec<_> = violations.iter().map(|violation| violation.field.as_str()).collect();
        assert_eq!(fields, ["secrets[big]", "credentials[0].host"]);
    }
}
