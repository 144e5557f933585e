//! A smoke run: one command in the finished image, on each platform, before a tag moves.

use serde::{Deserialize, Serialize};

use crate::{Platform, limits};

/// What to run and what it has to print. Both are templates: `{os}`, `{arch}`, `{variant}` and `{goarch}` stand for the
/// parts of the leg's platform.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Smoke {
    /// Words as a shell separates and quotes them; no shell runs them, for the image may have none.
    pub command: String,
    /// Part of what the command prints.
    #[serde(default)]
    pub expect: Option<String>,
}

/// The command is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSmoke {
    #[error("`{command}` is not a command; write a program and its arguments, quoted as in a shell")]
    Words { command: String },
    #[error("the command has {length} bytes; at most {} are allowed", limits::SMOKE_BYTES)]
    TooLong { length: usize },
    #[error("what to expect is empty or longer than {} bytes", limits::SMOKE_BYTES)]
    Expect,
}

impl Smoke {
    /// The words of the command on a platform.
    ///
    /// # Errors
    /// [`InvalidSmoke`] when quotes do not end or no word is left.
    pub fn words(&self, platform: &Platform) -> Result<Vec<String>, InvalidSmoke> {
        let words = shlex::split(&self.command).filter(|words| words.first().is_some_and(|first| !first.is_empty()));
        let words = words.ok_or_else(|| InvalidSmoke::Words { command: self.command.chars().take(64).collect() })?;
        Ok(words.iter().map(|word| fill(word, platform)).collect())
    }

    /// What the command has to print on a platform.
    #[must_use]
    pub fn expected(&self, platform: &Platform) -> Option<String> {
        self.expect.as_ref().map(|text| fill(text, platform))
    }

    /// Checks all that does not depend on a platform.
    ///
    /// # Errors
    /// [`InvalidSmoke`].
    pub fn validate(&self) -> Result<(), InvalidSmoke> {
        if self.command.len() > limits::SMOKE_BYTES {
            return Err(InvalidSmoke::TooLong { length: self.command.len() });
        }
        if self.expect.as_ref().is_some_and(|text| text.is_empty() || text.len() > limits::SMOKE_BYTES) {
            return Err(InvalidSmoke::Expect);
        }
        let control = self.command.chars().any(char::is_control);
        match shlex::split(&self.command) {
            Some(words) if !control && words.first().is_some_and(|first| !first.is_empty()) => Ok(()),
            _ => Err(InvalidSmoke::Words { command: self.command.chars().take(64).collect() }),
        }
    }
}

/// OCI's architecture names are Go's, so `{arch}` and `{goarch}` are the same.
fn fill(template: &str, platform: &Platform) -> String {
    template
        .replace("{os}", platform.os())
        .replace("{arch}", platform.architecture())
        .replace("{goarch}", platform.architecture())
        .replace("{variant}", platform.variant().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn smoke(command: &str) -> Smoke {
        Smoke { command: command.into(), expect: None }
    }

    #[test]
    fn the_platform_is_filled_in_after_the_words_are_told_apart() {
        let this =
            Smoke { command: "/bin/hello --for '{os} {variant}'".into(), expect: Some("Hello, {goarch}!".into()) };
        let arm: Platform = "linux/arm/v6".parse().expect("valid");
        assert_eq!(this.words(&arm), Ok(vec!["/bin/hello".into(), "--for".into(), "linux v6".into()]));
        assert_eq!(this.expected(&arm).as_deref(), Some("Hello, arm!"));
        assert_eq!(this.expected(&"linux/arm64".parse().expect("valid")).as_deref(), Some("Hello, arm64!"));
    }

    #[test]
    fn what_is_no_command_is_refused() {
        for command in ["", "  ", "'open", "''", "a\nb"] {
            assert!(matches!(smoke(command).validate(), Err(InvalidSmoke::Words { .. })), "{command}");
        }
        assert!(smoke(&"x".repeat(limits::SMOKE_BYTES + 1)).validate().is_err());
        assert!(Smoke { expect: Some(String::new()), ..smoke("a") }.validate().is_err());
        assert_eq!(smoke("a 'b c'").validate(), Ok(()));
    }
}
