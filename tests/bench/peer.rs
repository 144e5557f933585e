//! `docker buildx` on the bed's engine, through its remote driver.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::ensure;

use crate::forwarder;

pub struct Buildx {
    program: String,
    config: PathBuf,
}

impl Buildx {
    pub fn start(engine: &str, folder: &Path) -> anyhow::Result<Self> {
        let program = std::env::var("KILN_BED_BUILDX").expect("KILN_BED_BUILDX: run this through tests/run.sh --bench");
        let socket = folder.join("buildkit.sock");
        forwarder::listen(&socket, Path::new(engine.trim_start_matches("unix://")))?;
        let buildx = Self { program, config: folder.join("buildx") };
        let endpoint = format!("unix://{}", socket.display());
        let created = buildx.command(&["create", "--name", "bench", "--driver", "remote", &endpoint]).output()?;
        ensure!(created.status.success(), "{}", String::from_utf8_lossy(&created.stderr));
        Ok(buildx)
    }

    pub fn build(&self, more: &[&str], tag: &str, platforms: &str, context: &Path) -> anyhow::Result<Duration> {
        let context = context.display().to_string();
        let output = format!("type=image,name={tag},push=true,oci-mediatypes=true,registry.insecure=true");
        let mut command = self.command(&["build", "--builder", "bench", "--progress", "quiet", "--provenance=false"]);
        command.args(["--platform", platforms, "--output", &output]).args(more).arg(&context);
        let start = Instant::now();
        let output = command.output()?;
        let took = start.elapsed();
        ensure!(output.status.success(), "buildx: {}", String::from_utf8_lossy(&output.stderr));
        Ok(took)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .env("BUILDX_CONFIG", &self.config)
            .env("DOCKER_CONFIG", &self.config)
            .stdin(Stdio::null());
        command
    }
}
