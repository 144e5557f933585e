//! A farm whose coordinator, worker and client are processes of their own, so that each one's memory can be read.

use std::{
    cell::Cell,
    fs,
    io::{BufReader, Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use harness::binary;

pub struct BenchFarm {
    coordinator: Child,
    worker: Child,
    data: PathBuf,
    grpc: String,
    http: String,
    client_peak: Cell<f64>,
}

/// Bytes of context chunks that the coordinator took from clients and gave to workers.
pub struct Counters {
    pub received: u64,
    pub served: u64,
}

impl BenchFarm {
    pub fn start(engine: &str, folder: &Path) -> anyhow::Result<Self> {
        let data = folder.join("coordinator");
        let (grpc, http) = (free_address()?, free_address()?);
        let mut coordinator = Command::new(binary("kiln-coordinator"))
            .args(["--grpc-listen", &grpc, "--http-listen", &http, "--advertise", &grpc, "--data-dir"])
            .arg(&data)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("kiln-coordinator")?;
        let log = BufReader::new(coordinator.stderr.take().context("piped")?);
        wait_for(log, || TcpStream::connect(&grpc).is_ok() && data.join("admin.token").is_file())?;
        let mut farm =
            Self { worker: Command::new("true").spawn()?, coordinator, data, grpc, http, client_peak: Cell::new(0.0) };
        let token = farm.client(&["workers", "token", "create", "-o", "json"]).output()?;
        let token: serde_json::Value = serde_json::from_slice(&token.stdout).context("a join token in JSON")?;
        let file = folder.join("join.token");
        fs::write(&file, token["token"].as_str().context("token")?)?;
        farm.worker = Command::new(binary("kiln-worker"))
            .args([
                "--coordinator",
                &farm.grpc,
                "--engine",
                engine,
                "--slots",
                "4",
                "--name",
                "bench",
                "--join-token-file",
            ])
            .arg(&file)
            .arg("--data-dir")
            .arg(folder.join("worker"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("kiln-worker")?;
        let log = BufReader::new(farm.worker.stderr.take().context("piped")?);
        wait_for(log, || farm.has_worker())?;
        Ok(farm)
    }

    fn has_worker(&self) -> bool {
        let output = self.client(&["workers", "ls", "-o", "json"]).output();
        output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).to_lowercase().contains("ready"))
    }

    pub fn build(&self, more: &[&str], tag: &str, platforms: &str, context: &Path) -> anyhow::Result<Duration> {
        let context = context.display().to_string();
        let mut command = self.client(&["build", "-t", tag, "--platform", platforms, "--progress", "quiet"]);
        command.args(more).arg(&context).stdout(Stdio::piped()).stderr(Stdio::piped());
        let start = Instant::now();
        let mut child = command.spawn()?;
        let pid = child.id();
        // The high-water mark only grows: the last reading before the exit is the peak, give or take one reading.
        let watcher = std::thread::spawn(move || {
            let mut peak = 0.0_f64;
            while let Ok(now) = memory(pid, "VmHWM") {
                peak = peak.max(now);
                std::thread::sleep(Duration::from_millis(20));
            }
            peak
        });
        let mut errors = String::new();
        child.stderr.take().context("piped")?.read_to_string(&mut errors)?;
        let status = child.wait()?;
        let took = start.elapsed();
        self.client_peak.set(self.client_peak.get().max(watcher.join().unwrap_or(0.0)));
        ensure!(status.success(), "kiln build: {errors}");
        Ok(took)
    }

    pub fn client(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary("kiln"));
        command
            .args(arguments)
            .env("HOME", self.data.parent().unwrap_or(&self.data))
            .env("KILN_ENDPOINT", &self.grpc)
            .env("KILN_TOKEN_FILE", self.data.join("admin.token"))
            .env("KILN_CA", self.data.join("ca/ca.pem"))
            .stdin(Stdio::null());
        command
    }

    pub fn coordinator_memory(&self, key: &str) -> anyhow::Result<f64> {
        memory(self.coordinator.id(), key)
    }

    pub fn worker_memory(&self, key: &str) -> anyhow::Result<f64> {
        memory(self.worker.id(), key)
    }

    pub fn client_peak(&self) -> f64 {
        self.client_peak.get()
    }

    /// Read from `/metrics`, as Prometheus does.
    pub fn counters(&self) -> anyhow::Result<Counters> {
        let mut stream = TcpStream::connect(&self.http)?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: kiln\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let value = |name: &str| {
            let lines = text.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
            lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
        };
        Ok(Counters {
            received: value("kiln_context_received_bytes_total"),
            served: value("kiln_context_served_bytes_total"),
        })
    }
}

impl Drop for BenchFarm {
    fn drop(&mut self) {
        for child in [&mut self.worker, &mut self.coordinator] {
            let _ = Command::new("kill").arg(child.id().to_string()).status();
            let _ = child.wait();
        }
    }
}

/// Returns once `ready` holds after a line of the program's log; the rest of the log is read and dropped.
fn wait_for(mut log: impl std::io::BufRead + Send + 'static, ready: impl Fn() -> bool) -> anyhow::Result<()> {
    let mut seen = String::new();
    loop {
        let mut line = String::new();
        ensure!(log.read_line(&mut line)? > 0, "ended before it was ready:\n{seen}");
        seen.push_str(&line);
        if ready() {
            break;
        }
    }
    std::thread::spawn(move || log.lines().map_while(Result::ok).for_each(drop));
    Ok(())
}

fn free_address() -> anyhow::Result<String> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

/// A line of `/proc/PID/status` in MB.
pub fn memory(pid: u32, key: &str) -> anyhow::Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find(|line| line.starts_with(key)).with_context(|| format!("{key} of {pid}"))?;
    let kilobytes: f64 = line.split_whitespace().nth(1).context("a number")?.parse()?;
    Ok(kilobytes * 1024.0 / 1e6)
}
