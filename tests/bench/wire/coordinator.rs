//! `kiln-coordinator` as a process of its own, and what it takes of the machine.

use std::{
    fs,
    io::BufRead as _,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use harness::binary;
use kiln_common::runtime::{Dialer, tls};
use kiln_proto::v1::{build_service_client::BuildServiceClient, farm_service_client::FarmServiceClient};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::interceptor::InterceptedService,
    transport::Channel,
};

pub type Builds = BuildServiceClient<InterceptedService<Channel, Bearer>>;
pub type Farm = FarmServiceClient<InterceptedService<Channel, Bearer>>;

pub struct Coordinator {
    child: Child,
    pub endpoint: String,
    directory: tempfile::TempDir,
}

/// An admin's token on every call.
#[derive(Clone)]
pub struct Bearer(MetadataValue<Ascii>);

impl tonic::service::Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
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

    /// A connection of its own.
    fn connection(&self) -> anyhow::Result<(Channel, Bearer)> {
        let read = |name: &str| fs::read(self.directory.path().join(name)).with_context(|| name.to_owned());
        let trust = tls::Trust::Ca(tls::certificates("ca", &read("ca/ca.pem")?)?);
        let channel = Dialer::new(&[&self.endpoint], tls::client_config(trust, None)?)?.channel()?;
        let token = String::from_utf8(read("admin.token")?)?;
        Ok((channel, Bearer(format!("Bearer {}", token.trim()).parse()?)))
    }

    pub fn builds(&self) -> anyhow::Result<Builds> {
        let (channel, bearer) = self.connection()?;
        Ok(BuildServiceClient::with_interceptor(channel, bearer))
    }

    pub fn farm(&self) -> anyhow::Result<Farm> {
        let (channel, bearer) = self.connection()?;
        Ok(FarmServiceClient::with_interceptor(channel, bearer))
    }

    /// A line of `/proc/PID/status` in MB.
    pub fn memory(&self, key: &str) -> anyhow::Result<f64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = text.lines().find(|line| line.starts_with(key)).with_context(|| key.to_owned())?;
        let kilobytes: f64 = line.split_whitespace().nth(1).context("a number")?.parse()?;
        Ok(kilobytes * 1024.0 / 1e6)
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
