//! Fetches one commit of a Git repository with the user's own git: shallow, no prompts, no hooks, no options from URLs.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Stdio,
};

use kiln_common::limits;
use tokio::{process::Command, time::timeout};

use super::{ContextError, source::GitUrl};

/// A checked-out commit without its `.git`.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) directory: tempfile::TempDir,
    /// The repository's root, or the subdirectory that the URL names.
    pub(super) root: PathBuf,
    pub(super) commit: String,
    /// Nanoseconds since the Unix epoch: every file's time, so that one commit is one tree.
    pub(super) commit_time: i64,
}

pub(super) async fn fetch(url: &GitUrl) -> Result<Fetched, ContextError> {
    let fetching = timeout(limits::GIT_FETCH_TIMEOUT, fetch_unbounded(url));
    fetching.await.map_err(|_| ContextError::GitTimeout { url: url.to_string() })?
}

async fn fetch_unbounded(url: &GitUrl) -> Result<Fetched, ContextError> {
    let directory = tempfile::Builder::new().prefix("kiln-git-").tempdir().map_err(ContextError::Temporary)?;
    let path = directory.path();
    git(url, path, &["init", "--quiet", "."]).await?;
    let reference = url.reference.as_deref().unwrap_or("HEAD");
    git(url, path, &["fetch", "--quiet", "--depth=1", "--no-tags", "--", &url.remote, reference]).await?;
    git(url, path, &["checkout", "--quiet", "--detach", "FETCH_HEAD"]).await?;
    if path.join(".gitmodules").exists() {
        git(url, path, &["submodule", "--quiet", "update", "--init", "--recursive", "--depth=1"]).await?;
    }
    let head = git(url, path, &["log", "-1", "--format=%H %ct"]).await?;
    let (commit, seconds) = head.trim().split_once(' ').unwrap_or((head.trim(), "0"));
    let commit_time = seconds.parse::<i64>().unwrap_or_default().saturating_mul(1_000_000_000);
    std::fs::remove_dir_all(path.join(".git")).map_err(ContextError::Temporary)?;
    let root = subdirectory(url, path)?;
    Ok(Fetched { root, commit: commit.to_owned(), commit_time, directory })
}

/// The named subdirectory, unless a link leads out of the repository.
fn subdirectory(url: &GitUrl, path: &Path) -> Result<PathBuf, ContextError> {
    let Some(name) = &url.subdirectory else { return Ok(path.to_owned()) };
    let missing = || ContextError::Git { url: url.to_string(), message: format!("it has no directory `{name}`") };
    let base = path.canonicalize().map_err(ContextError::Temporary)?;
    let root = base.join(name).canonicalize().map_err(|_| missing())?;
    if root.starts_with(&base) && root.is_dir() { Ok(root) } else { Err(missing()) }
}

async fn git<S: AsRef<OsStr>>(url: &GitUrl, directory: &Path, arguments: &[S]) -> Result<String, ContextError> {
    let mut command = Command::new("git");
    command
        .args(["-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "-c", "protocol.ext.allow=never"])
        .args(["-c", "advice.detachedHead=false", "-c", "init.defaultBranch=main"])
        .args(arguments)
        .current_dir(directory)
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    for variable in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_CEILING_DIRECTORIES"] {
        command.env_remove(variable);
    }
    if std::env::var_os("GIT_SSH_COMMAND").is_none() {
        command.env("GIT_SSH_COMMAND", "ssh -o BatchMode=yes");
    }
    let output = command.output().await.map_err(ContextError::GitMissing)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    // git repeats the URL with its credentials.
    let message = said.trim().replace(&url.remote, &url.to_string()).chars().take(2000).collect();
    Err(ContextError::Git { url: url.to_string(), message })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(directory: &Path, script: &str) {
        let status = std::process::Command::new("sh").args(["-ec", script]).current_dir(directory).status();
        assert!(status.expect("sh").success(), "{script}");
    }

    fn repository() -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("dir");
        run(
            directory.path(),
            "git init -q -b main . && git config user.email a@b && git config user.name n
             mkdir sub && echo one > sub/file && ln -s /etc out && git add . && git commit -qm one && git tag v1
             echo two > sub/file && git commit -qam two",
        );
        directory
    }

    fn url(directory: &tempfile::TempDir, reference: Option<&str>, subdirectory: Option<&str>) -> GitUrl {
        GitUrl {
            remote: directory.path().display().to_string(),
            reference: reference.map(Into::into),
            subdirectory: subdirectory.map(Into::into),
        }
    }

    #[tokio::test]
    async fn a_branch_a_tag_and_a_subdirectory_are_fetched_without_history() {
        let repository = repository();
        let head = fetch(&url(&repository, None, None)).await.expect("fetches");
        assert_eq!(std::fs::read_to_string(head.root.join("sub/file")).expect("reads"), "two\n");
        assert!(!head.root.join(".git").exists() && head.commit.len() == 40 && head.commit_time > 0);
        let tag = fetch(&url(&repository, Some("v1"), Some("sub"))).await.expect("fetches");
        assert_eq!(std::fs::read_to_string(tag.root.join("file")).expect("reads"), "one\n");
    }

    #[tokio::test]
    async fn a_missing_ref_or_directory_and_a_way_out_are_one_error() {
        let repository = repository();
        for (reference, directory) in [(Some("nope"), None), (None, Some("nope")), (None, Some("out"))] {
            let error = fetch(&url(&repository, reference, directory)).await.expect_err("fails");
            assert!(matches!(error, ContextError::Git { .. }), "{error}");
        }
    }
}
