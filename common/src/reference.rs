//! Image references in the grammar of `distribution/reference`: `[host[:port]/]name[:tag][@digest]`, normalised as
//! Docker does (`alpine` is `docker.io/library/alpine`).

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{Digest, limits};

/// Where Docker's short names live.
pub const DOCKER_HUB: &str = "docker.io";

/// A repository: the registry's host and the name within it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Repository {
    host: String,
    name: String,
}

/// A repository with the tag or the digest that names an image in it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageReference {
    repository: Repository,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// The text is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an image reference: {problem}")]
pub struct InvalidReference {
    pub text: String,
    pub problem: String,
}

impl Repository {
    /// The registry, with its port where it has one.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The name within the registry, without the host.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Docker's rule: a registry on the machine itself may speak plain HTTP.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        is_loopback(&self.host)
    }

    #[must_use]
    pub fn with_tag(&self, tag: &str) -> ImageReference {
        ImageReference { repository: self.clone(), tag: Some(tag.to_owned()), digest: None }
    }

    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> ImageReference {
        ImageReference { repository: self.clone(), tag: None, digest: Some(digest) }
    }
}

/// Whether `host[:port]` is `localhost` or a loopback address.
#[must_use]
pub fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

impl ImageReference {
    #[must_use]
    pub const fn repository(&self) -> &Repository {
        &self.repository
    }

    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    #[must_use]
    pub const fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The reference as a build's target: `latest` where no tag is written.
    ///
    /// # Errors
    /// [`InvalidReference`] when it has a digest: what is being built has none yet.
    pub fn into_target(self) -> Result<Self, InvalidReference> {
        if self.digest.is_some() {
            return Err(InvalidReference {
                text: self.to_string(),
                problem: "a tag to build cannot have a digest".into(),
            });
        }
        Ok(Self { tag: Some(self.tag.unwrap_or_else(|| "latest".to_owned())), ..self })
    }
}

impl FromStr for ImageReference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        let invalid =
            |problem: &str| InvalidReference { text: text.chars().take(300).collect(), problem: problem.to_owned() };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse().map_err(|_| invalid("its digest is malformed"))?)),
            None => (text, None),
        };
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if let Some(tag) = tag {
            check_tag(tag).map_err(invalid)?;
        }
        let repository = name.parse::<Repository>().map_err(|error| invalid(&error.problem))?;
        Ok(Self { repository, tag: tag.map(str::to_owned), digest })
    }
}

impl FromStr for Repository {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        let invalid =
            |problem: &str| InvalidReference { text: text.chars().take(300).collect(), problem: problem.to_owned() };
        let (host, name) = split_host(text);
        check_host(host).map_err(invalid)?;
        let name = if host == DOCKER_HUB && !name.contains('/') { format!("library/{name}") } else { name.to_owned() };
        check_name(&name).map_err(invalid)?;
        Ok(Self { host: host.to_owned(), name })
    }
}

/// Docker's rule: the first component is a host when it has a dot or a colon, or is `localhost`.
fn split_host(text: &str) -> (&str, &str) {
    match text.split_once('/') {
        Some(("docker.io" | "index.docker.io" | "registry-1.docker.io", name)) => (DOCKER_HUB, name),
        Some((first, name)) if first.contains(['.', ':', '[']) || first == "localhost" => (first, name),
        _ => (DOCKER_HUB, text),
    }
}

fn check_host(host: &str) -> Result<(), &'static str> {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']').ok_or("its host has an unclosed bracket")?;
            address.parse::<std::net::Ipv6Addr>().map_err(|_| "its host is not an IPv6 address")?;
            (None, port.strip_prefix(':').or((!port.is_empty()).then_some("")))
        }
        None => match host.split_once(':') {
            Some((name, port)) => (Some(name), Some(port)),
            None => (Some(host), None),
        },
    };
    if let Some(port) = port {
        port.parse::<u16>().ok().filter(|port| *port != 0).ok_or("its port is not a number from 1 to 65535")?;
    }
    let Some(name) = name else { return Ok(()) };
    let well_formed = !name.is_empty()
        && name.len() <= 253
        && name.split('.').all(|label| {
            !label.is_empty()
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        });
    if well_formed { Ok(()) } else { Err("its host is malformed") }
}

/// distribution-spec: `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/...)*`.
fn check_name(name: &str) -> Result<(), &'static str> {
    if name.len() > limits::REPOSITORY_NAME_BYTES {
        return Err("its repository name is longer than 255 characters");
    }
    if name.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("a repository name must be lower case");
    }
    if name.split('/').all(is_name_component) {
        Ok(())
    } else {
        Err(
            "its repository name is malformed; components are lower-case letters and digits separated by `.`, `_`, `__` or `-`",
        )
    }
}

fn is_name_component(component: &str) -> bool {
    let bytes = component.as_bytes();
    let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    alphanumeric(first)
        && alphanumeric(last)
        && bytes
            .split(alphanumeric)
            .filter(|separator| !separator.is_empty())
            .all(|separator| matches!(separator, b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-'))
}

/// distribution-spec: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
fn check_tag(tag: &str) -> Result<(), &'static str> {
    let mut bytes = tag.bytes();
    let first = bytes.next().ok_or("its tag is empty")?;
    if tag.len() > limits::TAG_BYTES {
        return Err("its tag is longer than 128 characters");
    }
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    if word(first) && bytes.all(|b| word(b) || matches!(b, b'.' | b'-')) {
        Ok(())
    } else {
        Err("its tag has characters other than letters, digits, `_`, `.` and `-`, or starts with `.` or `-`")
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.name)
    }
}

impl fmt::Display for ImageReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.repository.fmt(f)?;
        self.tag.as_ref().map_or(Ok(()), |tag| write!(f, ":{tag}"))?;
        self.digest.as_ref().map_or(Ok(()), |digest| write!(f, "@{digest}"))
    }
}

macro_rules! serde_as_text {
    ($($name:ident)+) => {$(
        impl TryFrom<String> for $name {
            type Error = InvalidReference;

            fn try_from(text: String) -> Result<Self, InvalidReference> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.to_string()
            }
        }
    )+};
}

serde_as_text! { Repository ImageReference }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_are_normalised_as_docker_does() {
        for (written, normal) in [
            ("alpine", "docker.io/library/alpine"),
            ("alpine:3", "docker.io/library/alpine:3"),
            ("me/app", "docker.io/me/app"),
            ("docker.io/alpine", "docker.io/library/alpine"),
            ("index.docker.io/me/app:x", "docker.io/me/app:x"),
            ("localhost/app", "localhost/app"),
            ("127.0.0.1:5000/a/b_c/d__e/f--g:V1.0-x", "127.0.0.1:5000/a/b_c/d__e/f--g:V1.0-x"),
            ("[::1]:5000/app:t", "[::1]:5000/app:t"),
            ("ghcr.io/o/r:t", "ghcr.io/o/r:t"),
        ] {
            assert_eq!(written.parse::<ImageReference>().expect(written).to_string(), normal);
        }
    }

    #[test]
    fn malformed_references_say_what_is_wrong() {
        let long_tag = format!("a:{}", "x".repeat(129));
        let long_name = "a/".repeat(128) + "a";
        for (text, problem) in [
            ("", "malformed"),
            ("UPPER/case", "lower case"),
            ("a:", "tag is empty"),
            ("a:-x", "tag has characters"),
            (long_tag.as_str(), "longer than 128"),
            (long_name.as_str(), "longer than 255"),
            ("a//b", "malformed"),
            ("a/_b", "malformed"),
            ("a___b", "malformed"),
            ("host.example:99999/a", "port"),
            ("host.example:/a", "port"),
            ("-x.example/a", "host"),
            ("a@sha256:12", "digest"),
            ("a b", "malformed"),
        ] {
            let error = text.parse::<ImageReference>().expect_err(text).to_string();
            assert!(error.contains(problem), "{text}: {error}");
        }
    }

    #[test]
    fn a_target_gets_latest_and_cannot_have_a_digest() {
        let target = |text: &str| text.parse::<ImageReference>().expect("valid").into_target();
        assert_eq!(target("r.example/app").expect("valid").tag(), Some("latest"));
        assert!(target(&format!("r.example/app@sha256:{}", "0".repeat(64))).is_err());
    }

    #[test]
    fn loopback_registries_are_recognised() {
        for host in ["localhost", "localhost:5000", "127.0.0.1:5000", "127.1.2.3", "[::1]:5000"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["example.com", "localhost.example:5000", "10.0.0.1:5000", "docker.io"] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
