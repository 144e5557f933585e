//! A farm of one, started with `kiln up` as a user starts it.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Mutex},
};

use tempfile::TempDir;

use crate::{binary, client, process::keep_reading};

/// A running `kiln up`; stopped when dropped.
pub struct Farm {
    child: Child,
    directory: Arc<TempDir>,
    arguments: Vec<String>,
    /// Its up.env: KILN_ENDPOINT, KILN_TOKEN_FILE, KILN_CA, KILN_DASHBOARD.
    variables: BTreeMap<String, String>,
    /// All that it printed.
    pub output: Arc<Mutex<String>>,
}

impl Farm {
    /// Starts a farm on this engine and returns once its worker is registered.
    ///
    /// # Panics
    /// With the farm's output when it ends before it is ready.
    #[must_use]
    pub fn start(engine: &str) -> Self {
        Self::start_with(engine, &[])
    }

    /// The same with more arguments for `kiln up`.
    #[must_use]
    pub fn start_with(engine: &str, more: &[&str]) -> Self {
        let directory = Arc::new(tempfile::Builder::new().prefix("kiln-farm-").tempdir().expect("temporary folder"));
        let mut arguments: Vec<String> =
            ["up", "--grpc-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--engine", engine, "--data-dir"]
                .map(str::to_owned)
                .into();
        arguments.push(directory.path().join("data").display().to_string());
        arguments.extend(more.iter().map(|text| (*text).to_owned()));
        Self::spawn(directory, arguments)
    }

    fn spawn(directory: Arc<TempDir>, arguments: Vec<String>) -> Self {
        let mut child = Command::new(binary("kiln"))
            .args(&arguments)
            .env("HOME", directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kiln starts");
        let output = Arc::new(Mutex::new(String::new()));
        let file = directory.path().join("data/up.env");
        let (sender, lines) = std::sync::mpsc::channel();
        keep_reading(child.stdout.take().expect("piped"), output.clone(), sender.clone());
        keep_reading(child.stderr.take().expect("piped"), output.clone(), sender);
        // Each line that it prints may be the one that says it is ready; both pipes end when it ends.
        while !file.is_file() {
            if lines.recv_timeout(std::time::Duration::from_secs(60)).is_err() {
                let _ = child.kill();
                panic!("kiln up did not become ready:\n{}", output.lock().expect("output"));
            }
        }
        let variables = read_variables(&file);
        Self { child, directory, arguments, variables, output }
    }

    /// The `kiln` client with this farm's connection, an empty Docker config and a home of its own.
    #[must_use]
    pub fn kiln(&self) -> Command {
        let mut command = client(self.directory.path());
        command.envs(&self.variables);
        command
    }

    /// Runs the client and returns what it printed.
    ///
    /// # Panics
    /// With both outputs when it exits with anything but 0.
    pub fn run(&self, arguments: &[&str]) -> String {
        let output = self.kiln().args(arguments).output().expect("kiln runs");
        assert!(output.status.success(), "kiln {arguments:?} failed\n{}\nfarm:\n{}", text(&output), self.log());
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs the client, which is to fail with this exit code, and returns what it printed on standard error.
    ///
    /// # Panics
    /// When it exits otherwise.
    pub fn fail(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.kiln().args(arguments).output().expect("kiln runs");
        assert_eq!(output.status.code(), Some(code), "kiln {arguments:?}\n{}", text(&output));
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// `host:port` of the gRPC endpoint.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        self.variables["KILN_ENDPOINT"].trim_start_matches("https://")
    }

    #[must_use]
    pub fn token(&self) -> String {
        fs::read_to_string(&self.variables["KILN_TOKEN_FILE"]).expect("token file").trim().to_owned()
    }

    #[must_use]
    pub fn ca_pem(&self) -> String {
        fs::read_to_string(&self.variables["KILN_CA"]).expect("CA file")
    }

    #[must_use]
    pub fn dashboard(&self) -> &str {
        &self.variables["KILN_DASHBOARD"]
    }

    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Process id of `kiln up`.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    #[must_use]
    pub fn log(&self) -> String {
        self.output.lock().expect("output").clone()
    }

    /// `kill -9`, then a start on the same data.
    #[must_use]
    pub fn crash_and_restart(mut self) -> Self {
        self.child.kill().expect("killed");
        self.child.wait().expect("reaped");
        let directory = self.directory.clone();
        let _ = fs::remove_file(directory.path().join("data/up.env"));
        let arguments = std::mem::take(&mut self.arguments);
        Self::spawn(directory, arguments)
    }

    /// SIGTERM, and how it ended.
    pub fn stop(&mut self) -> ExitStatus {
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        self.child.wait().expect("reaped")
    }
}

impl Drop for Farm {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // Twice: the second one does not wait for builds.
            let pid = self.child.id().to_string();
            let _ = Command::new("kill").arg(&pid).status();
            let _ = Command::new("kill").arg(&pid).status();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("---- farm\n{}", self.log());
        }
    }
}

/// Both outputs of a finished program.
#[must_use]
pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn read_variables(file: &Path) -> BTreeMap<String, String> {
    let text = fs::read_to_string(file).expect("up.env");
    text.lines()
        .filter_map(|line| line.split_once('='))
        .map(|(k, v)| (k.to_owned(), v.trim_matches('"').to_owned()))
        .collect()
}
