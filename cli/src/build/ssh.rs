//! `--ssh`: which local agent socket each id stands for. Key files get a private agent that lives as long as the build.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader},
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;

use super::options::Variables;
use crate::failure::Failure;

/// The sockets by id, and the private agents behind some of them.
#[derive(Default)]
pub struct Agents {
    pub sockets: BTreeMap<String, PathBuf>,
    private: Vec<PrivateAgent>,
}

/// An `ssh-agent` that ends when the pipe to its child closes, so also when this process is killed.
struct PrivateAgent {
    process: Child,
    _dir: TempDir,
}

impl Drop for PrivateAgent {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        // Reaped so that no zombie stays; the agent ends by itself once its child has.
        drop(self.process.wait());
    }
}

impl Agents {
    /// Reads the flags and starts what they need. Blocks while keys are loaded: `ssh-add` may ask for a passphrase.
    ///
    /// # Errors
    /// A malformed flag, a path that is no socket and no key, or `ssh-agent` that cannot be run.
    pub fn start(flags: &[String], variables: Variables<'_>) -> Result<Self, Failure> {
        let mut agents = Self::default();
        for flag in flags {
            let (id, paths) = flag.split_once('=').unwrap_or((flag.as_str(), ""));
            let id = if id.is_empty() { "default" } else { id };
            let paths: Vec<&Path> = paths.split(',').filter(|path| !path.is_empty()).map(Path::new).collect();
            let socket = agents.socket(id, &paths, variables)?;
            if agents.sockets.insert(id.to_owned(), socket).is_some() {
                return Err(Failure::usage(format!("--ssh {id} is given twice")));
            }
        }
        Ok(agents)
    }

    fn socket(&mut self, id: &str, paths: &[&Path], variables: Variables<'_>) -> Result<PathBuf, Failure> {
        if paths.is_empty() {
            let socket = variables("SSH_AUTH_SOCK").map(PathBuf::from).ok_or_else(|| {
                Failure::usage(format!("--ssh {id}: SSH_AUTH_SOCK is not set"))
                    .remedy(format!("start an ssh agent, or name a key: --ssh {id}=~/.ssh/id_ed25519"))
            })?;
            return is_socket(id, &socket).and_then(|is| {
                if is { Ok(socket) } else { Err(Failure::usage("SSH_AUTH_SOCK does not name a socket")) }
            });
        }
        match paths {
            [socket] if is_socket(id, socket)? => Ok(socket.to_path_buf()),
            keys => {
                for key in keys {
                    if is_socket(id, key)? {
                        return Err(Failure::usage(format!("--ssh {id}: a socket stands for all keys of its agent"))
                            .remedy("name one socket or key files, not both"));
                    }
                }
                let (agent, socket) = PrivateAgent::with_keys(id, keys)?;
                self.private.push(agent);
                Ok(socket)
            }
        }
    }
}

fn is_socket(id: &str, path: &Path) -> Result<bool, Failure> {
    std::fs::metadata(path)
        .map(|metadata| metadata.file_type().is_socket())
        .map_err(|error| Failure::local(format!("--ssh {id}: cannot read `{}`", path.display()), error))
}

impl PrivateAgent {
    fn with_keys(id: &str, keys: &[&Path]) -> Result<(Self, PathBuf), Failure> {
        let failed = |error: std::io::Error| {
            Failure::local(format!("--ssh {id}: cannot start an agent for the key"), error)
                .remedy("install OpenSSH's ssh-agent and ssh-add, or name an agent's socket")
        };
        let dir = tempfile::Builder::new().prefix("kiln-ssh-").tempdir().map_err(failed)?;
        let socket = dir.path().join("agent");
        // The agent serves once its child runs, and ends when the child does: when its standard input closes.
        let mut process = Command::new("ssh-agent")
            .arg("-a")
            .arg(&socket)
            .args(["sh", "-c", "echo ready; exec cat >/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed)?;
        let mut ready = String::new();
        if let Some(stdout) = process.stdout.take() {
            BufReader::new(stdout).read_line(&mut ready).map_err(failed)?;
        }
        let agent = Self { process, _dir: dir };
        for key in keys {
            let added = Command::new("ssh-add")
                .arg("-q")
                .arg(key)
                .env("SSH_AUTH_SOCK", &socket)
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .output()
                .map_err(failed)?;
            if !added.status.success() {
                let said = String::from_utf8_lossy(&added.stderr).trim().replace('\n', "; ");
                return Err(Failure::usage(format!(
                    "--ssh {id}: `{}` is not a key that can be used: {said}",
                    key.display()
                ))
                .remedy("name a private key, readable by you alone"));
            }
        }
        Ok((agent, socket))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_used_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let variables = |name: &str| (name == "SSH_AUTH_SOCK").then(|| path.display().to_string());
        let agents = Agents::start(&["default".into(), format!("x={}", path.display())], &variables).unwrap();
        assert_eq!(agents.sockets.values().collect::<Vec<_>>(), [&path, &path]);
    }

    #[test]
    fn what_is_not_there_is_named_with_a_remedy() {
        let failure = Agents::start(&["default".into()], &|_| None).map(drop).unwrap_err().to_string();
        assert!(failure.contains("SSH_AUTH_SOCK") && failure.contains("id_ed25519"), "{failure}");
        let failure = Agents::start(&["k=/nonexistent/key".into()], &|_| None).map(drop).unwrap_err().to_string();
        assert!(failure.contains("/nonexistent/key"), "{failure}");
        assert!(Agents::start(&["a=/dev/null".into(), "a=/dev/null".into()], &|_| None).is_err());
    }
}
