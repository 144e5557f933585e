//! `kiln-coordinator` as a process of its own, and what it takes of the machine.

use std::{
    fs,
    io::BufRead as _,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use harness::{binary, calls::Calls};

use crate::farm;

pub struct Coordinator {
    child: Child,
    pub endpoint: String,
    directory: tempfile::TempDir,
}

impl Coordinator {
    pub fn start() -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("kiln-wire-").tempdir()?;
        let mut child = Command::new(binary("kiln-coordinator"))
            .args(["--grpc-listen=127.0.0.1:0", "--http-listen=127.0.0.1:0", "--log-format=json", "--data-dir"])
            .arg(directory.path())
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("kiln-coordinator")?;
        let mut lines = std::io::BufReader::new(child.stderr.take().context("piped")?).lines();
        let ready = lines.by_ref().map_while(Result::ok).find(|line| line.contains("coordinator ready"));
        let ready: serde_json::Value = serde_json::from_str(&ready.context("it did not get ready")?)?;
        let endpoint = ready["fields"]["endpoint"].as_str().or_else(|| ready["endpoint"].as_str());
        let endpoint = endpoint.context("an endpoint in its log")?.to_owned();
        // A full pipe would stop it.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(Self { child, endpoint, directory })
    }

    /// An administrator's connection of its own.
    pub fn calls(&self) -> Calls {
        let path = |name: &str| self.directory.path().join(name);
        Calls::new(&self.endpoint, &path("ca/ca.pem"), &path("admin.token"))
    }

    /// A line of `/proc/PID/status` in MB.
    pub fn memory(&self, key: &str) -> anyhow::Result<f64> {
        farm::memory(self.child.id(), key)
    }

    /// The processor time that it took so far (proc(5): fields 14 and 15 of stat, in ticks).
    pub fn cpu(&self) -> anyhow::Result<Duration> {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let after_name = text.rsplit_once(')').context("a name")?.1;
        let fields: Vec<&str> = after_name.split_whitespace().collect();
        let ticks = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        Ok(Duration::from_secs(ticks) / u32::try_from(rustix::param::clock_ticks_per_second())?)
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
