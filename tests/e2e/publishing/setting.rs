//! A farm, a context folder and a tag of its own for each test.

use std::{fs, path::Path};

use harness::{Bed, Farm, bed::EngineKind};

pub fn farm(kind: EngineKind) -> Option<Farm> {
    // The bed says at its start which engines this machine cannot have.
    Some(Farm::start(&Bed.engine(kind)?))
}

pub fn docker28() -> Farm {
    farm(EngineKind::Docker28).expect("docker 28")
}

/// A repository that no other test and no earlier run has written to.
pub fn repository(name: &str) -> String {
    let unique = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_nanos();
    format!("{}/publishing/{name}-{unique}", Bed.registry())
}

pub struct Context(tempfile::TempDir);

impl Context {
    pub fn new(dockerfile: &str) -> Self {
        Self(tempfile::tempdir().expect("temporary folder")).with("Dockerfile", dockerfile.as_bytes())
    }

    pub fn with(self, name: &str, bytes: &[u8]) -> Self {
        fs::write(self.0.path().join(name), bytes).expect("file");
        self
    }

    pub fn path(&self) -> String {
        self.0.path().display().to_string()
    }

    pub fn folder(&self) -> &Path {
        self.0.path()
    }
}

pub fn says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "`{part}` is missing in:\n{message}");
    }
}

/// Copies an image or index as it is, with all its children, under another name.
pub fn copy(from: &str, to: &str) {
    let output = std::process::Command::new("skopeo")
        .args(["copy", "--all", "--preserve-digests", "--src-tls-verify=false", "--dest-tls-verify=false"])
        .args([format!("docker://{from}"), format!("docker://{to}")])
        .output()
        .expect("skopeo runs");
    assert!(output.status.success(), "{}", harness::farm::text(&output));
}
