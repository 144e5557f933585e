//! `kiln doctor`: tries each step of the way to the farm and says which one does not hold.

use clap::Args;
use kiln_proto::v1::{GetInfoRequest, ListBuildsRequest};

use super::platforms_text;
use crate::{
    args::Global,
    connection::{Link, Target, resolve::environment},
    failure::{Exit, Failure},
    output::{self, Paint},
    registry,
};

#[derive(Debug, Args)]
pub struct Doctor {}

pub async fn run(_doctor: Doctor, global: &Global) -> Result<(), Failure> {
    let mut findings = Findings { paint: Paint::for_stdout(), worst: None };
    check(global, &mut findings).await?;
    match findings.worst {
        Some(exit) => Err(Failure::silent(exit)),
        None => Ok(()),
    }
}

async fn check(global: &Global, findings: &mut Findings) -> Result<(), Failure> {
    let target = match Target::resolve(global.connection.as_deref(), &environment) {
        Ok(target) => target,
        Err(failure) => return findings.bad("configuration", &failure),
    };
    let list: Vec<_> = target.endpoints.iter().map(ToString::to_string).collect();
    findings.good("configuration", &format!("{} from {}", list.join(", "), target.origin))?;
    let mut reached = None;
    for endpoint in &target.endpoints {
        match Link::dial(endpoint, &target).await {
            Ok(link) => {
                findings.good("connection", &format!("{endpoint} answers with TLS"))?;
                reached = reached.or(Some(link));
            }
            Err(failure) => findings.bad("connection", &failure)?,
        }
    }
    let Some(link) = reached else { return Ok(()) };
    let refused = |status: &tonic::Status| Failure::from_status(status, &link.endpoint().to_string());
    match link.builds().list(ListBuildsRequest { page_size: 1, ..ListBuildsRequest::default() }).await {
        Ok(_) => findings.good("token", "accepted")?,
        Err(status) => findings.bad("token", &refused(&status))?,
    }
    match link.farm().get_info(GetInfoRequest {}).await {
        Ok(info) => {
            let info = info.into_inner();
            let client = env!("CARGO_PKG_VERSION");
            findings.good("versions", &format!("client {client}, farm {}", info.version))?;
            let workers = format!("{} online: {}", info.online_workers, platforms_text(&info.platforms));
            if info.online_workers == 0 {
                let failure =
                    Failure::usage("no worker is connected").remedy("join one with `kiln workers token create`");
                findings.bad("workers", &failure)?;
            } else {
                findings.good("workers", &workers)?;
            }
        }
        Err(status) => findings.bad("versions", &refused(&status))?,
    }
    match registry::config_file().filter(|file| file.exists()) {
        Some(file) => findings.good("credentials", &format!("from {}", file.display())),
        None => findings.good("credentials", "no Docker configuration: only registries without a login can be used"),
    }
}

struct Findings {
    paint: Paint,
    worst: Option<Exit>,
}

impl Findings {
    fn good(&self, what: &str, text: &str) -> Result<(), Failure> {
        output::write(&format!("{} {what:13} {text}\n", self.paint.green("✔")))
    }

    fn bad(&mut self, what: &str, failure: &Failure) -> Result<(), Failure> {
        self.worst = self.worst.or(Some(failure.exit));
        let mut text = format!("{} {what:13} {}\n", self.paint.red("✗"), failure.message);
        for line in failure.details.iter().chain(&failure.remedy) {
            text += &format!("  {:13} {line}\n", "");
        }
        output::write(&text)
    }
}
