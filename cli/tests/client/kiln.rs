//! Runs the program with a home directory of its own.

use std::{
    path::Path,
    process::{Command, Output, Stdio},
};

use crate::fake::Fake;

pub struct Kiln {
    pub home: tempfile::TempDir,
    environment: Vec<(String, String)>,
}

pub struct Ended {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Kiln {
    /// A client that knows no farm.
    pub fn new() -> Self {
        Self { home: tempfile::tempdir().unwrap(), environment: Vec::new() }
    }

    /// A client of this farm with this token.
    pub fn of(fake: &Fake, token: &str) -> Self {
        let mut kiln = Self::new();
        let ca = kiln.home.path().join("ca.pem");
        std::fs::write(&ca, &fake.ca).unwrap();
        kiln.set("KILN_ENDPOINT", &fake.endpoint);
        kiln.set("KILN_TOKEN", token);
        kiln.set("KILN_CA", &ca.display().to_string());
        kiln
    }

    pub fn set(&mut self, name: &str, value: &str) {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// A directory with this Dockerfile under the home.
    pub fn context(&self, dockerfile: &str) -> String {
        let dir = self.home.path().join("context");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("Dockerfile"), dockerfile).unwrap();
        dir.display().to_string()
    }

    pub fn path(&self) -> &Path {
        self.home.path()
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
        command
            .args(arguments)
            .env_clear()
            .env("HOME", self.home.path())
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(self.home.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs to the end; off the runtime's threads, because the farm lives there.
    pub async fn run(&self, arguments: &[&str]) -> Ended {
        let mut command = self.command(arguments);
        ended(tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap())
    }
}

pub fn ended(output: Output) -> Ended {
    Ended {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

impl Ended {
    #[track_caller]
    pub fn expect(self, code: i32, said: &[&str]) -> Self {
        assert_eq!(self.code, code, "stdout:\n{}\nstderr:\n{}", self.out, self.err);
        for text in said {
            assert!(
                self.out.contains(text) || self.err.contains(text),
                "`{text}` is not said\nstdout:\n{}\nstderr:\n{}",
                self.out,
                self.err
            );
        }
        self
    }
}
