//! Network namespaces that a test makes: each joined to one bridge by a link that can be cut and mended.

use std::{ffi::OsStr, net::Ipv4Addr, process::Command};

/// In the names of all bridges, links and namespaces, before the number of the process that they are of.
const PREFIX: &str = "klt";

/// One bridge and the namespaces behind it; gone when dropped, also by a panic.
pub struct Network {
    /// Of the bridge, and the beginning of all other names.
    name: String,
    subnet: [u8; 3],
    members: usize,
}

impl Network {
    /// Takes root. One at a time in a process: its number is in the names.
    ///
    /// # Panics
    /// When `ip` refuses.
    #[must_use]
    pub fn create(members: usize) -> Self {
        let pid = std::process::id();
        // 198.18.0.0/15 is set aside for tests of network devices (RFC 2544): no machine routes it.
        let [.., high, low] = pid.to_be_bytes();
        remove_left_over();
        let network = Self { name: format!("{PREFIX}{pid}"), subnet: [198, 18 + high % 2, low], members };
        let bridge = network.name.as_str();
        ip(&["link", "add", bridge, "type", "bridge"]);
        ip(&["address", "add", &format!("{}/24", network.address()), "dev", bridge]);
        ip(&["link", "set", bridge, "up"]);
        for member in 0..members {
            network.add(member);
        }
        network
    }

    fn add(&self, member: usize) {
        let (namespace, link) = (self.namespace(member), self.link(member));
        ip(&["netns", "add", &namespace]);
        ip(&["link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns", &namespace]);
        ip(&["link", "set", &link, "master", &self.name, "up"]);
        let address = format!("{}/24", self.host(u8::try_from(member + 2).expect("few members")));
        ip(&["-n", &namespace, "address", "add", &address, "dev", "eth0"]);
        ip(&["-n", &namespace, "link", "set", "eth0", "up"]);
        ip(&["-n", &namespace, "link", "set", "lo", "up"]);
    }

    /// This machine's own address, as the members reach it.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.host(1)
    }

    /// A command that runs in a member's namespace, as a process of the same id.
    pub fn enter(&self, member: usize, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(member)]).arg(program);
        command
    }

    /// Nothing passes from now on, and nobody is told.
    pub fn cut(&self, member: usize) {
        ip(&["link", "set", &self.link(member), "down"]);
    }

    pub fn mend(&self, member: usize) {
        ip(&["link", "set", &self.link(member), "up"]);
    }

    fn host(&self, number: u8) -> Ipv4Addr {
        let [a, b, c] = self.subnet;
        Ipv4Addr::new(a, b, c, number)
    }

    fn namespace(&self, member: usize) -> String {
        format!("{}-{member}", self.name)
    }

    /// The bridge's end; the other one goes with the namespace.
    fn link(&self, member: usize) -> String {
        format!("{}v{member}", self.name)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for member in 0..self.members {
            quietly(&["link", "del", &self.link(member)]);
            quietly(&["netns", "del", &self.namespace(member)]);
        }
        quietly(&["link", "del", &self.name]);
    }
}

/// Networks of processes that were killed before they could clean up.
fn remove_left_over() {
    let names = |folder: &str| -> Vec<String> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    };
    for namespace in names("/run/netns").into_iter().filter(|name| is_left_over(name)) {
        quietly(&["netns", "del", &namespace]);
    }
    for link in names("/sys/class/net").into_iter().filter(|name| is_left_over(name)) {
        quietly(&["link", "del", &link]);
    }
}

/// Whether a bridge, link or namespace has the name of a process that is no more.
fn is_left_over(name: &str) -> bool {
    let Some(rest) = name.strip_prefix(PREFIX) else { return false };
    let pid: String = rest.chars().take_while(char::is_ascii_digit).collect();
    let own = pid == std::process::id().to_string();
    !pid.is_empty() && (own || !std::path::Path::new("/proc").join(pid).exists())
}

fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().expect("ip runs");
    assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// What is not there need not be removed.
fn quietly(arguments: &[&str]) {
    let _ = Command::new("ip").args(arguments).output();
}
