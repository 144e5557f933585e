//! The process of simulated workers, as the measuring process sees it.

use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader},
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use kiln_proto::v1::CreateJoinTokenRequest;

use super::coordinator::Coordinator;

pub struct Crowd {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Crowd {
    /// Returns once all of them are welcome.
    pub async fn gather(coordinator: &Coordinator, workers: usize) -> anyhow::Result<Self> {
        let request = CreateJoinTokenRequest { uses: u32::try_from(workers)?, ..Default::default() };
        let token = coordinator.calls().farm.create_join_token(request).await?.into_inner().token;
        let mut child = Command::new(std::env::current_exe()?)
            .args(["crowd", &token, &workers.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = BufReader::new(child.stdout.take().context("piped")?);
        let mut crowd = Self { child, output };
        let line = crowd.line()?;
        ensure!(line == "ready", "the workers did not get ready: {line}");
        Ok(crowd)
    }

    /// When which build reached its worker, since the Unix epoch. Ends the crowd's work.
    pub fn received(&mut self) -> anyhow::Result<HashMap<String, Duration>> {
        drop(self.child.stdin.take());
        let mut received = HashMap::new();
        loop {
            let line = self.line()?;
            let Some((build, micros)) = line.split_once(' ') else { return Ok(received) };
            received.insert(build.to_owned(), Duration::from_micros(micros.parse()?));
        }
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
