//! How a registry asks for credentials (RFC 9110, section 11.6.1) and how they become an `Authorization` header:
//! Basic as it is, Bearer through the token service (distribution's token and OAuth2 specifications).

use kiln_common::{Repository, limits};
use reqwest::{Client, header::HeaderValue};
use serde::Deserialize;

use super::error::{Fault, RegistryError};
use crate::credentials::RegistryCredential;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String> },
}

impl Challenge {
    /// From `WWW-Authenticate`; `None` for a scheme that is not spoken here.
    pub fn parse(header: &str) -> Option<Self> {
        let (scheme, parameters) = header.split_once(' ').unwrap_or((header, ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service) = (None, None);
        let mut rest = parameters.trim();
        while let Some((name, after)) = rest.split_once('=') {
            let (value, after) = match after.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"')?,
                None => after.split_once(',').unwrap_or((after, "")),
            };
            match name.trim().to_ascii_lowercase().as_str() {
                "realm" => realm = Some(value.to_owned()),
                "service" => service = Some(value.to_owned()),
                _ => {}
            }
            rest = after.trim_start_matches([',', ' ']);
        }
        Some(Self::Bearer { realm: realm?, service })
    }
}

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
}

/// The header that answers the challenge; `None` when there is nothing to answer with.
pub(super) async fn answer(
    client: &Client,
    challenge: &Challenge,
    repository: &Repository,
    credential: Option<&RegistryCredential>,
) -> Result<Option<HeaderValue>, RegistryError> {
    match challenge {
        Challenge::Basic => Ok(credential.and_then(basic)),
        Challenge::Bearer { realm, service } => {
            let token = fetch_token(client, realm, service.as_deref(), repository, credential).await?;
            Ok(sensitive(format!("Bearer {token}")))
        }
    }
}

fn basic(credential: &RegistryCredential) -> Option<HeaderValue> {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let pair = zeroize::Zeroizing::new(format!("{}:{}", credential.username, *credential.password));
    sensitive(format!("Basic {}", STANDARD.encode(pair.as_bytes())))
}

fn sensitive(text: String) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

async fn fetch_token(
    client: &Client,
    realm: &str,
    service: Option<&str>,
    repository: &Repository,
    credential: Option<&RegistryCredential>,
) -> Result<String, RegistryError> {
    let scope = format!("repository:{}:pull,push", repository.name());
    let service = service.unwrap_or_default();
    let request = match credential {
        Some(credential) if !credential.identity_token.is_empty() => client.post(realm).form(&[
            ("grant_type", "refresh_token"),
            ("service", service),
            ("scope", &scope),
            ("client_id", "kiln"),
            ("refresh_token", &credential.identity_token),
        ]),
        Some(credential) => client
            .get(realm)
            .query(&[("service", service), ("scope", &scope)])
            .basic_auth(&credential.username, Some(&*credential.password)),
        None => client.get(realm).query(&[("service", service), ("scope", &scope)]),
    };
    let host = repository.host();
    let response = request.send().await.map_err(|error| RegistryError::connection(host, &error))?;
    let status = response.status();
    let body = super::registry::read_bounded(response, limits::REGISTRY_ANSWER_BYTES, host).await?;
    if status == reqwest::StatusCode::UNAUTHORIZED || status == reqwest::StatusCode::FORBIDDEN {
        return Err(RegistryError::denied(repository, "log in for", "", credential.is_some()));
    }
    if !status.is_success() {
        let message = format!("the token service of {host} answers {status}");
        let is_final = status.is_client_error() && status != reqwest::StatusCode::TOO_MANY_REQUESTS;
        let fault = if is_final { Fault::Final } else { Fault::Transient { retry_after: None } };
        return Err(RegistryError::new(fault, message));
    }
    let answer: TokenAnswer = serde_json::from_slice(&body)
        .map_err(|_| RegistryError::new(Fault::Final, format!("the token service of {host} gives no token")))?;
    let token = if answer.token.is_empty() { answer.access_token } else { answer.token };
    if token.is_empty() {
        return Err(RegistryError::new(Fault::Final, format!("the token service of {host} gives no token")));
    }
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read_as_registries_write_them() {
        let bearer = |realm: &str, service: Option<&str>| {
            Some(Challenge::Bearer { realm: realm.into(), service: service.map(Into::into) })
        };
        for (header, challenge) in [
            ("Basic realm=\"Registry\"", Some(Challenge::Basic)),
            ("basic", Some(Challenge::Basic)),
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#,
                bearer("https://auth.docker.io/token", Some("registry.docker.io")),
            ),
            ("Bearer realm=\"http://h/t\"", bearer("http://h/t", None)),
            ("bearer Realm=http://h/t, service=x", bearer("http://h/t", Some("x"))),
            ("Bearer service=\"x\"", None),
            ("Bearer realm=\"open", None),
            ("Negotiate", None),
            ("", None),
        ] {
            assert_eq!(Challenge::parse(header), challenge, "{header}");
        }
    }
}
