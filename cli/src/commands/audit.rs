//! `kiln audit`: who did what to the farm, and who was refused.

use std::time::Duration;

use clap::{Args, ValueEnum};
use kiln_common::{Timestamp, limits};
use kiln_proto::{
    convert::timestamp_to_wire,
    v1::{AuditActor, AuditEntry, AuditObject, AuditOutcome, ListAuditRequest, ListAuditResponse},
};

use super::duration_flag;
use crate::{
    connection::Farm,
    failure::Failure,
    output::{self, Format, Paint, Table, text},
};

#[derive(Debug, Args)]
pub struct Audit {
    /// Only what happened within this time, for example 30m or 7d
    #[arg(long, value_name = "DURATION", value_parser = duration_flag)]
    since: Option<Duration>,
    /// Only what this token or worker did: a token's name, an id, or one of token, worker, farm, unknown
    #[arg(long, value_name = "ACTOR", default_value = "", hide_default_value = true)]
    actor: String,
    /// Only this action, such as worker.cordon, or all of a kind, such as worker
    #[arg(long, value_name = "ACTION", default_value = "", hide_default_value = true)]
    action: String,
    /// Only what was done, or only what was refused
    #[arg(long, value_enum, value_name = "OUTCOME")]
    outcome: Option<Outcome>,
    /// At most this many entries; 0: all [default: 50, with jsonl all]
    #[arg(short = 'n', long, value_name = "N")]
    limit: Option<usize>,
    /// How to print them; jsonl is one JSON object on each line, oldest last
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: AuditFormat,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Outcome {
    Done,
    Refused,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum AuditFormat {
    #[default]
    Table,
    Json,
    Yaml,
    Jsonl,
}

pub async fn run(audit: Audit, farm: &Farm) -> Result<(), Failure> {
    let streams = audit.output == AuditFormat::Jsonl;
    let limit = match audit.limit {
        Some(0) => usize::MAX,
        Some(limit) => limit,
        None if streams => usize::MAX,
        None => 50,
    };
    let since = audit.since.map(|since| Timestamp::from_millis(millis_before_now(since)));
    let outcome = match audit.outcome {
        None => AuditOutcome::Unspecified,
        Some(Outcome::Done) => AuditOutcome::Done,
        Some(Outcome::Refused) => AuditOutcome::Refused,
    };
    let mut request = ListAuditRequest {
        since: since.map(timestamp_to_wire),
        actor: audit.actor,
        action: audit.action,
        outcome: outcome.into(),
        ..Default::default()
    };
    let (mut all, mut count) = (ListAuditResponse::default(), 0);
    loop {
        request.page_size = u32::try_from((limit - count).min(limits::PAGE_SIZE_MAX)).unwrap_or(0);
        let page = farm.call(async |link| link.farm().list_audit(request.clone()).await).await?;
        count += page.entries.len();
        request.page_token.clone_from(&page.next_page_token);
        if streams {
            output::write(&output::lines(&page.entries)?)?;
        } else {
            all.entries.extend(page.entries);
        }
        if page.next_page_token.is_empty() || count >= limit {
            break;
        }
    }
    all.next_page_token = request.page_token;
    match audit.output {
        AuditFormat::Table => output::print(Format::Table, &all, |paint| table(&all.entries, paint)),
        AuditFormat::Json => output::print(Format::Json, &all, |_| String::new()),
        AuditFormat::Yaml => output::print(Format::Yaml, &all, |_| String::new()),
        AuditFormat::Jsonl => Ok(()),
    }
}

fn millis_before_now(since: Duration) -> u64 {
    let since = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    Timestamp::now().as_millis().saturating_sub(since)
}

fn table(entries: &[AuditEntry], paint: Paint) -> String {
    let now = Timestamp::now();
    let mut table = Table::new(["AGE", "ACTOR", "FROM", "ACTION", "OBJECT", "OUTCOME", "DETAIL"]);
    for entry in entries {
        let repeats = if entry.repeats == 0 { String::new() } else { format!(" (and {} more)", entry.repeats) };
        table.row([
            text::age_of(entry.at.as_ref(), now),
            entry.actor.as_ref().map(actor).unwrap_or_default(),
            if entry.source.is_empty() { "-".to_owned() } else { entry.source.clone() },
            entry.action.clone(),
            entry.object.as_ref().map(object).unwrap_or_default(),
            match entry.outcome() {
                AuditOutcome::Unspecified => "-".to_owned(),
                AuditOutcome::Done => paint.green("done"),
                AuditOutcome::Refused => paint.red("refused"),
            },
            format!("{}{repeats}", entry.detail),
        ]);
    }
    table.render(paint)
}

fn actor(actor: &AuditActor) -> String {
    match (actor.name.as_str(), actor.id.as_str()) {
        ("", "") => actor.kind.clone(),
        ("", id) => format!("{} {}", actor.kind, text::short_id(id)),
        (name, _) => format!("{} `{name}`", actor.kind),
    }
}

/// Ids of version 7 are short enough by their beginnings; references and paths are shown whole.
fn object(object: &AuditObject) -> String {
    let is_id = matches!(object.kind.as_str(), "build" | "attempt" | "worker" | "token");
    let id = if is_id { text::short_id(&object.id) } else { &object.id };
    format!("{} {id}", object.kind).trim_end().to_owned()
}
