//! A `kiln-worker` beside a farm, joined as an operator joins a board.

use std::{
    fs,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{Farm, binary, process::keep_reading};

/// A running worker; ended when dropped.
pub struct Worker {
    child: Child,
    name: String,
    folder: tempfile::TempDir,
    arguments: Vec<String>,
    /// All that it printed.
    output: Arc<Mutex<String>>,
    reading: Option<JoinHandle<()>>,
}

impl Worker {
    /// Joins the farm with a token of its own and returns once the farm counts on the worker. It carries the label
    /// `name=NAME`, for `--require`.
    ///
    /// # Panics
    /// With the worker's output when it does not become ready.
    #[must_use]
    pub fn join(farm: &Farm, name: &str, engine: &str, more: &[&str]) -> Self {
        let folder = tempfile::Builder::new().prefix("kiln-worker-").tempdir().expect("temporary folder");
        let token = farm.run(&["workers", "token", "create", "-o", "json"]);
        let token: Value = serde_json::from_str(&token).expect("JSON");
        let token_file = folder.path().join("token");
        fs::write(&token_file, token["token"].as_str().expect("a token")).expect("written");
        let mut arguments = vec![
            format!("--engine={engine}"),
            format!("--name={name}"),
            format!("--label=name={name}"),
            format!("--data-dir={}", folder.path().join("data").display()),
            format!("--join-token-file={}", token_file.display()),
        ];
        arguments.extend(more.iter().map(|text| (*text).to_owned()));
        let (child, output, reading) = spawn(&arguments);
        let worker = Self { child, name: name.to_owned(), folder, arguments, output, reading: Some(reading) };
        worker.until(farm, "it is ready", |worker| worker["state"] == "WORKER_STATE_READY");
        worker
    }

    /// What the farm knows of the worker.
    #[must_use]
    pub fn shown(&self, farm: &Farm) -> Value {
        serde_json::from_str(&farm.run(&["workers", "show", &self.name, "-o", "json"])).unwrap_or_default()
    }

    /// Returns what the farm knows of the worker once that is as it should be.
    ///
    /// # Panics
    /// With the worker's output when it never is.
    pub fn until(&self, farm: &Farm, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let output = farm.kiln().args(["workers", "show", &self.name, "-o", "json"]).output().expect("kiln runs");
            let shown: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            if is_so(&shown) {
                return shown;
            }
            assert!(Instant::now() < deadline, "not so: {what}\n{shown:#}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    #[must_use]
    pub fn log(&self) -> String {
        self.output.lock().expect("output").clone()
    }

    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its state: `identity.json` and the rest.
    #[must_use]
    pub fn data(&self) -> std::path::PathBuf {
        self.folder.path().join("data")
    }

    /// Sends a signal by its name, as `kill` takes it.
    pub fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", signal, &pid]).status().expect("kill runs");
        assert!(sent.success(), "no signal {signal} for {pid}");
    }

    /// How it ended; waits for that, and for its last words.
    pub fn wait(&mut self) -> ExitStatus {
        let status = self.child.wait().expect("reaped");
        if let Some(reading) = self.reading.take() {
            reading.join().expect("no panic");
        }
        status
    }

    /// Starts it again on the same data, after it ended.
    pub fn restart(&mut self) {
        self.wait();
        let (child, output, reading) = spawn(&self.arguments);
        (self.child, self.output, self.reading) = (child, output, Some(reading));
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("---- worker {}\n{}", self.name, self.log());
        }
    }
}

fn spawn(arguments: &[String]) -> (Child, Arc<Mutex<String>>, JoinHandle<()>) {
    let mut child = Command::new(binary("kiln-worker"))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kiln-worker starts");
    let output = Arc::new(Mutex::new(String::new()));
    let (lines, _) = std::sync::mpsc::channel();
    let reading = keep_reading(child.stderr.take().expect("piped"), output.clone(), lines);
    (child, output, reading)
}
