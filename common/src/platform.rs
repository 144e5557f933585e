//! Platforms, normalised as containerd does (`containerd/platforms`, `normalizeArch`): `linux/arm64/v8` is
//! `linux/arm64`, `linux/arm` is `linux/arm/v7`, and matching is exact by variant.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

/// An operating system, an architecture and, where the architecture has them, a variant (OCI image-spec, image-index.md).
/// Cheap to clone: every leg, every attempt and every assignment carries one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Platform(
    /// `os/architecture[/variant]`, normalised.
    Arc<str>,
);

/// The text is not a platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a platform: {problem}; write os/arch[/variant], for example linux/arm/v7")]
pub struct InvalidPlatform {
    pub text: String,
    pub problem: &'static str,
}

impl Platform {
    /// `os` and `architecture` as an engine or a manifest reports them, normalised.
    ///
    /// # Errors
    /// [`InvalidPlatform`] when a part is empty or has characters outside `[a-z0-9_.-]`.
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Result<Self, InvalidPlatform> {
        let text = || match variant {
            Some(variant) => format!("{os}/{architecture}/{variant}").chars().take(64).collect(),
            None => format!("{os}/{architecture}").chars().take(64).collect(),
        };
        let variant = variant.filter(|variant| !variant.is_empty());
        for part in [Some(os), Some(architecture), variant].into_iter().flatten() {
            if let Some(problem) = problem_with(part) {
                return Err(InvalidPlatform { text: text(), problem });
            }
        }
        let (architecture, variant) = (architecture.to_ascii_lowercase(), variant.map(str::to_ascii_lowercase));
        let (architecture, variant) = normalize(&architecture, variant.as_deref());
        Ok(Self::of(normalize_os(&os.to_ascii_lowercase()), architecture, variant))
    }

    fn of(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        Self(match variant {
            Some(variant) => format!("{os}/{architecture}/{variant}").into(),
            None => format!("{os}/{architecture}").into(),
        })
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    #[must_use]
    pub fn os(&self) -> &str {
        self.part(0).unwrap_or_default()
    }

    /// The Go architecture name (`GOARCH`), as the OCI image-spec asks.
    #[must_use]
    pub fn architecture(&self) -> &str {
        self.part(1).unwrap_or_default()
    }

    #[must_use]
    pub fn variant(&self) -> Option<&str> {
        self.part(2)
    }

    fn part(&self, number: usize) -> Option<&str> {
        self.0.split('/').nth(number)
    }

    /// The platforms that an engine which runs `self` natively runs with the same instructions: an armv7 CPU also runs
    /// v6 and v5 code, never the other way round.
    #[must_use]
    pub fn implied(&self) -> Vec<Self> {
        let older: &[_] = match (self.architecture(), self.variant()) {
            ("arm", Some("v8" | "v7")) => &[Some("v6"), Some("v5")],
            ("arm", Some("v6")) => &[Some("v5")],
            ("amd64", Some("v2")) => &[None],
            ("amd64", Some("v3" | "v4")) => &[Some("v2"), None],
            _ => &[],
        };
        older.iter().map(|variant| Self::of(self.os(), self.architecture(), *variant)).collect()
    }
}

fn problem_with(part: &str) -> Option<&'static str> {
    if part.is_empty() {
        Some("a part is empty")
    } else if part.len() > 32 {
        Some("a part is longer than 32 characters")
    } else if !part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-')) {
        Some("a part has characters other than letters, digits, `_`, `.` and `-`")
    } else {
        None
    }
}

fn normalize_os(os: &str) -> &str {
    match os {
        "macos" => "darwin",
        other => other,
    }
}

fn normalize<'a>(architecture: &'a str, variant: Option<&'a str>) -> (&'a str, Option<&'a str>) {
    match (architecture, variant) {
        ("i386" | "386", _) => ("386", None),
        ("x86_64" | "x86-64" | "amd64", Some("v1")) => ("amd64", None),
        ("x86_64" | "x86-64" | "amd64", variant) => ("amd64", variant),
        ("aarch64" | "arm64", Some("8" | "v8")) => ("arm64", None),
        ("aarch64" | "arm64", variant) => ("arm64", variant),
        ("armhf", _) => ("arm", Some("v7")),
        ("armel", _) => ("arm", Some("v6")),
        ("arm", None | Some("7")) => ("arm", Some("v7")),
        ("arm", Some("5")) => ("arm", Some("v5")),
        ("arm", Some("6")) => ("arm", Some("v6")),
        ("arm", Some("8")) => ("arm", Some("v8")),
        other => other,
    }
}

impl FromStr for Platform {
    type Err = InvalidPlatform;

    fn from_str(text: &str) -> Result<Self, InvalidPlatform> {
        let invalid = |problem| InvalidPlatform { text: text.chars().take(64).collect(), problem };
        let mut parts = text.split('/');
        let (Some(os), Some(architecture)) = (parts.next(), parts.next()) else {
            return Err(invalid("the architecture is missing"));
        };
        let variant = parts.next();
        if parts.next().is_some() {
            return Err(invalid("it has more than three parts"));
        }
        if variant == Some("") {
            return Err(invalid("a part is empty"));
        }
        Self::new(os, architecture, variant).map_err(|error| invalid(error.problem))
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl TryFrom<String> for Platform {
    type Error = InvalidPlatform;

    fn try_from(text: String) -> Result<Self, InvalidPlatform> {
        text.parse()
    }
}

impl From<Platform> for String {
    fn from(platform: Platform) -> Self {
        platform.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_normalised_as_containerd_does() {
        for (written, normal) in [
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/arm/6", "linux/arm/v6"),
            ("linux/armhf", "linux/arm/v7"),
            ("linux/armel", "linux/arm/v6"),
            ("linux/x86_64", "linux/amd64"),
            ("Linux/AMD64", "linux/amd64"),
            ("linux/i386", "linux/386"),
            ("windows/amd64", "windows/amd64"),
        ] {
            let platform = written.parse::<Platform>().expect(written);
            assert_eq!(platform.as_str(), normal);
            let parts = [Some(platform.os()), Some(platform.architecture()), platform.variant()];
            assert_eq!(parts.into_iter().flatten().collect::<Vec<_>>().join("/"), normal);
        }
    }

    #[test]
    fn a_malformed_platform_names_itself_and_the_form() {
        for text in ["", "linux", "linux/", "/amd64", "linux/arm/v7/x", "linux/a b", "linux//v7", "linux/arm/"] {
            let error = text.parse::<Platform>().expect_err(text).to_string();
            assert!(error.contains(&format!("`{text}`")) && error.contains("linux/arm/v7"), "{error}");
        }
    }

    #[test]
    fn an_armv7_cpu_also_runs_v6_and_never_the_other_way_round() {
        let v7: Platform = "linux/arm/v7".parse().expect("valid");
        let v6: Platform = "linux/arm/v6".parse().expect("valid");
        assert!(v7.implied().contains(&v6));
        assert!(!v6.implied().contains(&v7));
    }
}
