//! Access tokens from a registry's token service (distribution, `spec/auth/token.md` and `spec/auth/oauth.md`).

use std::time::{Duration, Instant};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use kiln_common::limits;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::upstream::{Failure, HttpClient, empty, full};
use crate::engine::{failure::Whose, job::RegistryCredential};

const ANSWER_BYTES: usize = 256 * 1024;
/// What the specification names where a service does not say.
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
/// A token is not used in the last moments of its life.
const MARGIN: Duration = Duration::from_secs(10);

/// A token and until when to use it.
#[derive(Clone)]
pub struct Token {
    pub text: Zeroizing<String>,
    pub expires: Instant,
}

/// What a challenge asks for.
pub struct Wanted<'a> {
    pub realm: &'a str,
    pub service: Option<&'a str>,
    pub scope: &'a str,
}

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

pub async fn fetch(
    client: &HttpClient,
    wanted: &Wanted<'_>,
    credential: Option<&RegistryCredential>,
) -> Result<Token, Failure> {
    let farm = |problem: String| Failure {
        message: format!("token service {} cannot be used: {problem}", wanted.realm),
        whose: Whose::Registry,
    };
    let mut fields = vec![("scope", wanted.scope)];
    fields.extend(wanted.service.map(|service| ("service", service)));
    let request = match credential {
        Some(RegistryCredential::IdentityToken(token)) => {
            fields.extend([("grant_type", "refresh_token"), ("client_id", "kiln"), ("refresh_token", token.as_str())]);
            Request::post(wanted.realm)
                .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(full(Bytes::from(encoded(&fields))))
        }
        Some(RegistryCredential::Password { username, password }) => {
            let basic = BASE64_STANDARD.encode(format!("{username}:{}", password.as_str()));
            fields.push(("account", username));
            Request::get(with_query(wanted.realm, &fields))
                .header(header::AUTHORIZATION, format!("Basic {basic}"))
                .body(empty())
        }
        None => Request::get(with_query(wanted.realm, &fields)).body(empty()),
    };
    let request = request.map_err(|error| farm(error.to_string()))?;
    let call = async {
        let response = client.request(request).await.map_err(|error| farm(crate::engine::causes(&error)))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES).collect().await;
        Ok((status, body.map_err(|error| farm(error.to_string()))?.to_bytes()))
    };
    let answer = timeout(limits::REGISTRY_CALL_TIMEOUT, call).await;
    let (status, body) = answer.map_err(|_| farm("it does not answer".to_owned()))??;
    match status {
        StatusCode::OK => read(&body).ok_or_else(|| farm("its answer has no token".to_owned())),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => Err(Failure {
            message: format!(
                "token service {} refuses this login with {status}; log in to the registry again",
                wanted.realm
            ),
            whose: Whose::User,
        }),
        status => Err(farm(format!("it answers {status}"))),
    }
}

fn read(body: &[u8]) -> Option<Token> {
    let answer: Answer = serde_json::from_slice(body).ok()?;
    let text = answer.token.or(answer.access_token).filter(|text| !text.is_empty())?;
    let life = answer.expires_in.map_or(DEFAULT_LIFE, Duration::from_secs);
    Some(Token { text: text.into(), expires: Instant::now() + life.saturating_sub(MARGIN) })
}

fn with_query(realm: &str, fields: &[(&str, &str)]) -> String {
    let separator = if realm.contains('?') { '&' } else { '?' };
    format!("{realm}{separator}{}", encoded(fields))
}

fn encoded(fields: &[(&str, &str)]) -> String {
    let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    fields.iter().map(|(key, value)| format!("{key}={}", encode(value))).collect::<Vec<_>>().join("&")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_names_of_a_token_are_known_and_its_life_is_kept() {
        let token = read(br#"{"token":"abc","expires_in":300}"#).expect("a token");
        assert_eq!(token.text.as_str(), "abc");
        assert!(token.expires > Instant::now() + Duration::from_secs(280));
        assert_eq!(read(br#"{"access_token":"x"}"#).expect("a token").text.as_str(), "x");
        assert!(read(br#"{"token":""}"#).is_none() && read(b"nonsense").is_none());
    }

    #[test]
    fn a_query_is_encoded_and_joined_to_the_realm_s_own() {
        assert_eq!(with_query("https://a/t?x=1", &[("scope", "a:b,c")]), "https://a/t?x=1&scope=a%3Ab%2Cc");
    }
}
