//! What the context argument means: a directory, a Git URL or standard input, told apart as Docker does.

use std::{fmt, path::PathBuf};

use super::ContextError;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    Directory(PathBuf),
    Git(GitUrl),
    Stdin,
}

/// `URL[#REF[:SUBDIRECTORY]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GitUrl {
    pub(super) remote: String,
    /// A branch, a tag or a commit; `None` is the remote's HEAD.
    pub(super) reference: Option<String>,
    pub(super) subdirectory: Option<String>,
}

impl Source {
    /// # Errors
    /// When it looks like a URL and is none that a context can be fetched from.
    pub fn parse(text: &str) -> Result<Self, ContextError> {
        if text == "-" {
            return Ok(Self::Stdin);
        }
        if is_git(text) {
            return GitUrl::parse(text).map(Self::Git);
        }
        if text.starts_with("http://") || text.starts_with("https://") {
            let why = "it does not end in .git; download it and pipe it into `kiln build -`";
            return Err(ContextError::GitUrl { url: text.into(), why });
        }
        Ok(Self::Directory(text.into()))
    }
}

fn is_git(text: &str) -> bool {
    let before_fragment = text.split('#').next().unwrap_or_default();
    let http = text.starts_with("http://") || text.starts_with("https://");
    http && before_fragment.ends_with(".git")
        || ["git://", "ssh://", "github.com/"].iter().any(|prefix| text.starts_with(prefix))
        || is_scp_like(before_fragment)
}

/// `user@host:path`.
fn is_scp_like(text: &str) -> bool {
    let Some((user, rest)) = text.split_once('@') else { return false };
    let Some((host, path)) = rest.split_once(':') else { return false };
    let word = |text: &str, more: &[char]| {
        !text.is_empty() && text.chars().all(|char| char.is_ascii_alphanumeric() || more.contains(&char))
    };
    word(user, &['_', '-']) && word(host, &['.', '-']) && !path.is_empty() && !path.starts_with("//")
}

impl GitUrl {
    fn parse(text: &str) -> Result<Self, ContextError> {
        let refuse = |why| ContextError::GitUrl { url: text.chars().take(200).collect(), why };
        if text.chars().any(char::is_control) {
            return Err(refuse("it has control characters"));
        }
        let (remote, fragment) = text.split_once('#').unwrap_or((text, ""));
        let (reference, subdirectory) = fragment.split_once(':').unwrap_or((fragment, ""));
        if [remote, reference].iter().any(|part| part.starts_with('-')) {
            return Err(refuse("neither it nor its ref may begin with a dash"));
        }
        if subdirectory.split('/').any(|name| name == "..") {
            return Err(refuse("its subdirectory leads out of the repository"));
        }
        let remote = if remote.starts_with("github.com/") { format!("https://{remote}") } else { remote.to_owned() };
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Ok(Self { remote, reference: some(reference), subdirectory: some(subdirectory.trim_matches('/')) })
    }
}

impl fmt::Display for GitUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Credentials in a URL are not for records and screens.
        match self.remote.split_once("://").and_then(|(scheme, rest)| Some((scheme, rest.split_once('@')?.1))) {
            Some((scheme, rest)) => write!(f, "{scheme}://{rest}")?,
            None => f.write_str(&self.remote)?,
        }
        match (&self.reference, &self.subdirectory) {
            (None, None) => Ok(()),
            (reference, None) => write!(f, "#{}", reference.as_deref().unwrap_or_default()),
            (reference, Some(directory)) => write!(f, "#{}:{directory}", reference.as_deref().unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn git(text: &str) -> GitUrl {
        match Source::parse(text) {
            Ok(Source::Git(url)) => url,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn sources_are_told_apart_as_docker_does() {
        for text in [
            "https://h/x.git",
            "https://h/x.git#main:sub",
            "git://h/x",
            "git@h:x/y.git",
            "ssh://git@h/x",
            "github.com/x/y",
        ] {
            git(text);
        }
        for text in [".", "dir", "/abs", "a@b", "x.git", "./github.com/x"] {
            assert_eq!(Source::parse(text).expect("path"), Source::Directory(text.into()));
        }
        assert_eq!(Source::parse("-").expect("stdin"), Source::Stdin);
        assert!(Source::parse("https://h/x.tar.gz").is_err());
    }

    #[test]
    fn ref_and_subdirectory_are_read_and_options_refused() {
        let url = git("github.com/x/y#v1:a/b/");
        assert_eq!(url.remote, "https://github.com/x/y");
        assert_eq!((url.reference.as_deref(), url.subdirectory.as_deref()), (Some("v1"), Some("a/b")));
        assert_eq!(git("git@h:x#:sub").reference, None);
        for text in ["git://h/x#--upload-pack=x", "git://h/x#main:../..", "git://h/x\n"] {
            assert!(Source::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn credentials_are_not_shown() {
        assert_eq!(git("https://u:secret@h/x.git#v1").to_string(), "https://h/x.git#v1");
        assert_eq!(git("git@h:x/y.git").to_string(), "git@h:x/y.git");
    }
}
