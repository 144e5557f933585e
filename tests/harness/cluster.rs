//! A farm of many processes: one coordinator and workers on the bed's engines, each a process of its own that a test kills,
//! freezes and starts again; with a [`Network`] each worker also stands in a namespace of its own.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    path::PathBuf,
    process::{Command, Output},
    sync::Mutex,
};

use crate::{binary, calls::Calls, client, farm::text, network::Network, process::Process};

/// A lost worker is noticed, and given up, soon enough for a test to wait for it.
pub const LEASE: &str = "2s";
pub const GRACE: &str = "4s";

pub struct Cluster {
    coordinator: Mutex<Option<Process>>,
    workers: Vec<Member>,
    address: SocketAddr,
    pub network: Option<Network>,
    directory: tempfile::TempDir,
}

struct Member {
    name: String,
    arguments: Vec<String>,
    process: Mutex<Option<Process>>,
}

impl Cluster {
    /// A coordinator without workers. With a network it is reached at the bridge's address.
    ///
    /// # Panics
    /// When it does not get ready.
    #[must_use]
    pub fn start(network: Option<Network>) -> Self {
        let ip = network.as_ref().map_or(Ipv4Addr::LOCALHOST, Network::address);
        // Nobody else listens on the bridge; on loopback a port that was free a moment ago will do.
        let free = TcpListener::bind((ip, 0)).and_then(|listener| listener.local_addr()).expect("a free port");
        let directory = tempfile::Builder::new().prefix("kiln-cluster-").tempdir().expect("a folder");
        let address = SocketAddr::new(IpAddr::V4(ip), free.port());
        let cluster = Self { coordinator: Mutex::default(), workers: Vec::new(), address, network, directory };
        cluster.start_coordinator();
        cluster
    }

    /// Starts it on the data that is there.
    ///
    /// # Panics
    /// When it does not get ready.
    pub fn start_coordinator(&self) {
        let mut command = Command::new(binary("kiln-coordinator"));
        command
            .args(["--http-listen", "127.0.0.1:0", "--heartbeat-lease", LEASE, "--reconnect-grace", GRACE])
            .args(["--grpc-listen", &self.address.to_string(), "--advertise", &self.address.to_string(), "--data-dir"])
            .arg(self.path("coordinator"));
        *self.coordinator.lock().expect("coordinator") = Some(Process::start(command, "coordinator ready"));
    }

    /// `kill -9`.
    ///
    /// # Panics
    /// When it does not run.
    pub fn kill_coordinator(&self) {
        self.coordinator.lock().expect("coordinator").take().expect("it runs").kill();
    }

    /// Joins a worker on this engine and returns its number. In a network it gets the member of the same number.
    ///
    /// # Panics
    /// When it does not get into session.
    pub fn join(&mut self, name: &str, engine: &str, more: &[&str]) -> usize {
        let token = self.run(&["workers", "token", "create", "-o", "json"]);
        let token: serde_json::Value = serde_json::from_str(&token).expect("JSON");
        let token_file = self.path(&format!("{name}.join"));
        fs::write(&token_file, token["token"].as_str().expect("a token")).expect("written");
        let given = [
            ("--name", name.to_owned()),
            ("--engine", engine.to_owned()),
            ("--data-dir", self.path(name).display().to_string()),
            ("--join-token-file", token_file.display().to_string()),
        ];
        let arguments = given.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]);
        let arguments = arguments.chain(more.iter().map(|text| (*text).to_owned())).collect();
        self.workers.push(Member { name: name.to_owned(), arguments, process: Mutex::default() });
        let number = self.workers.len() - 1;
        self.start_worker(number);
        number
    }

    /// Starts a worker again that was killed.
    ///
    /// # Panics
    /// When it does not get into session.
    pub fn start_worker(&self, number: usize) {
        let member = &self.workers[number];
        let program = binary("kiln-worker");
        let mut command = match &self.network {
            Some(network) => network.enter(number, program),
            None => Command::new(program),
        };
        command.args(&member.arguments);
        *member.process.lock().expect("worker") = Some(Process::start(command, "in session"));
    }

    /// Does something to a worker's process.
    ///
    /// # Panics
    /// When it does not run.
    pub fn worker<T>(&self, number: usize, act: impl FnOnce(&Process) -> T) -> T {
        act(self.workers[number].process.lock().expect("worker").as_ref().expect("it runs"))
    }

    /// # Panics
    /// When there is no such worker.
    #[must_use]
    pub fn number(&self, name: &str) -> usize {
        self.workers.iter().position(|member| member.name == name).expect("a worker of this farm")
    }

    #[must_use]
    pub fn name(&self, number: usize) -> &str {
        &self.workers[number].name
    }

    #[must_use]
    pub fn calls(&self) -> Calls {
        let ca = self.path("coordinator/ca/ca.pem");
        Calls::new(&self.address.to_string(), &ca, &self.path("coordinator/admin.token"))
    }

    /// The `kiln` client of an administrator.
    #[must_use]
    pub fn kiln(&self) -> Command {
        let mut command = client(self.directory.path());
        command
            .env("KILN_ENDPOINT", self.address.to_string())
            .env("KILN_TOKEN_FILE", self.path("coordinator/admin.token"))
            .env("KILN_CA", self.path("coordinator/ca/ca.pem"));
        command
    }

    /// Runs the client and returns what it printed.
    ///
    /// # Panics
    /// With both outputs when it exits with anything but 0.
    pub fn run(&self, arguments: &[&str]) -> String {
        let output = self.kiln().args(arguments).output().expect("kiln runs");
        assert!(output.status.success(), "kiln {arguments:?} failed\n{}", text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Submits a build of this Dockerfile and returns its id.
    ///
    /// # Panics
    /// When it is refused.
    pub fn submit(&self, dockerfile: &str, tag: &str, more: &[&str]) -> String {
        let output = self.try_submit(dockerfile, tag, more);
        assert!(output.status.success(), "{tag} was refused\n{}", text(&output));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Submits a build of this Dockerfile, which may be refused.
    ///
    /// # Panics
    /// When the client does not run.
    pub fn try_submit(&self, dockerfile: &str, tag: &str, more: &[&str]) -> Output {
        let context = tempfile::tempdir_in(self.directory.path()).expect("a folder");
        fs::write(context.path().join("Dockerfile"), dockerfile).expect("written");
        let context = context.path().display().to_string();
        let mut arguments = vec!["build", "-t", tag, "--detach", "--progress", "quiet"];
        arguments.extend(more);
        arguments.push(&context);
        self.kiln().args(&arguments).output().expect("kiln runs")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Workers first: one that sees its coordinator go would only try to find it again.
        self.workers.clear();
    }
}
