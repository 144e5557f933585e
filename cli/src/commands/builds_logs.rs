//! `kiln builds logs`: a build's output as text, each line with its step.

use std::{collections::HashMap, time::Duration};

use clap::Args;
use kiln_common::{Platform, Timestamp};
use kiln_proto::{
    convert::timestamp_to_wire,
    v1::{LogsRequest, LogsResponse, progress_entry::Event},
};
use tonic::Code;

use super::duration_flag;
use crate::{
    connection::Farm,
    failure::{Exit, Failure},
    output,
    progress::step_label,
};

/// Times that a broken stream is opened anew without having brought anything.
const TRIES: u32 = 8;
const FIRST_PAUSE: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub struct Logs {
    /// The build's id, or the first 8 characters or more of it
    #[arg(value_name = "ID")]
    id: String,
    /// Keep printing until the build is final
    #[arg(short, long)]
    follow: bool,
    /// Only what is newer than this, for example 10m
    #[arg(long, value_name = "DURATION", value_parser = duration_flag)]
    since: Option<Duration>,
    /// Only this platform
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    /// Also attempts that were superseded
    #[arg(long)]
    all_attempts: bool,
    /// Each log line alone, without its step
    #[arg(long)]
    raw: bool,
}

pub async fn run(logs: Logs, farm: &Farm) -> Result<(), Failure> {
    let since = logs.since.map(|since| {
        let now = Timestamp::now().as_millis();
        timestamp_to_wire(Timestamp::from_millis(now.saturating_sub(u64::try_from(since.as_millis()).unwrap_or(now))))
    });
    let request = LogsRequest {
        id: logs.id.clone(),
        follow: logs.follow,
        platform: logs.platform.as_ref().map(ToString::to_string).unwrap_or_default(),
        since,
        all_attempts: logs.all_attempts,
    };
    let mut printer = Printer { raw: logs.raw, ..Printer::default() };
    let (mut tries, mut pause) = (0, FIRST_PAUSE);
    loop {
        let mut stream = farm.call(async |link| link.builds().logs(request.clone()).await).await?;
        let status = loop {
            match stream.message().await {
                Ok(Some(log)) => {
                    if printer.print(log)? {
                        (tries, pause) = (0, FIRST_PAUSE);
                    }
                }
                Ok(None) => return Ok(()),
                Err(status) => break status,
            }
        };
        let transient =
            matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Internal | Code::ResourceExhausted);
        if !(farm.redirect(&status) || transient) || tries == TRIES {
            let failure = Failure::from_status(&status, &farm.target().endpoints[0].to_string());
            return Err(if transient { Failure { exit: Exit::Unreachable, ..failure } } else { failure });
        }
        farm.forget();
        tries += 1;
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
}

/// Prints each entry once, however often a stream begins anew.
#[derive(Default)]
struct Printer {
    raw: bool,
    next: HashMap<String, u64>,
    names: HashMap<(String, String), String>,
}

impl Printer {
    /// Whether there was something new.
    fn print(&mut self, log: LogsResponse) -> Result<bool, Failure> {
        let next = self.next.entry(log.attempt_id.clone()).or_insert(log.first_sequence);
        let seen = usize::try_from(next.saturating_sub(log.first_sequence)).unwrap_or(usize::MAX);
        *next = (*next).max(log.first_sequence + log.entries.len() as u64);
        let fresh = log.entries.len() > seen;
        let mut text = String::new();
        for entry in log.entries.iter().skip(seen) {
            if let Some(event) = &entry.event {
                text += &self.entry(&log.platform, &log.attempt_id, event);
            }
        }
        output::write(&text)?;
        Ok(fresh)
    }

    fn entry(&mut self, platform: &str, attempt: &str, event: &Event) -> String {
        let key = |vertex: &str| (attempt.to_owned(), vertex.to_owned());
        match event {
            Event::Vertex(vertex) => {
                if !vertex.name.is_empty() {
                    self.names.insert(key(&vertex.digest), step_label(platform, &vertex.name));
                }
                let label = self.names.get(&key(&vertex.digest)).cloned().unwrap_or_default();
                if self.raw || (vertex.completed_at.is_none() && vertex.error.is_empty()) {
                    String::new()
                } else if !vertex.error.is_empty() {
                    format!("{label} ERROR: {}\n", vertex.error)
                } else if vertex.cached {
                    format!("{label} CACHED\n")
                } else {
                    format!("{label} DONE\n")
                }
            }
            Event::Line(line) => {
                let text = String::from_utf8_lossy(&line.text);
                let end = if line.partial { "" } else { "\n" };
                match self.names.get(&key(&line.vertex)) {
                    Some(label) if !self.raw => format!("{label} | {text}\n"),
                    _ => format!("{text}{end}"),
                }
            }
            Event::Warning(warning) if !self.raw => format!("[{platform}] WARNING: {}\n", warning.short),
            Event::Warning(_) | Event::Status(_) => String::new(),
        }
    }
}
