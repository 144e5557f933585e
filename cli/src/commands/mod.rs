//! One file for each command.

pub mod audit;
pub mod builds;
mod builds_explain;
mod builds_logs;
pub mod completions;
pub mod doctor;
pub mod images;
pub mod login;
pub mod logout;
pub mod man;
pub mod token;
#[cfg(feature = "up")]
pub mod up;
pub mod version;
pub mod workers;

use kiln_proto::v1;

use crate::failure::Failure;

/// The longest time that a duration flag may name, ten years: more is a slip of the finger.
const LONGEST: std::time::Duration = std::time::Duration::from_secs(10 * 365 * 86_400);

/// `90s`, `30m`, `1h30m`, or days as `7d`.
fn duration_flag(text: &str) -> Result<std::time::Duration, String> {
    let days = text.strip_suffix('d').and_then(|days| days.parse::<u64>().ok());
    let duration = match days {
        Some(days) => std::time::Duration::from_secs(days.saturating_mul(86_400)),
        None => crate::build::options::timeout(text).map_err(|failure| failure.to_string().replace('\n', ";"))?,
    };
    if duration.is_zero() || duration > LONGEST {
        return Err(format!("`{text}` is not between one second and ten years"));
    }
    Ok(duration)
}

/// `KEY=VALUE`.
fn label_flag(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".to_owned()),
    }
}

fn labels_text(labels: &std::collections::HashMap<String, String>) -> String {
    let mut all: Vec<_> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    all.sort();
    all.join(",")
}

fn platforms_text(platforms: &[v1::WorkerPlatform]) -> String {
    let tell = |one: &v1::WorkerPlatform| match one.grade() {
        v1::Grade::Native | v1::Grade::Unspecified => one.platform.clone(),
        v1::Grade::Compat => format!("{} (compat)", one.platform),
        v1::Grade::Emulated => format!("{} (emulated)", one.platform),
    };
    platforms.iter().map(tell).collect::<Vec<_>>().join(", ")
}

/// An answer that lacks what the API promises.
fn incomplete_answer(what: &str) -> Failure {
    Failure::new(crate::failure::Exit::BuildFailed, format!("the farm's answer has no {what}"))
        .remedy("upgrade the farm or the client to the same version (`kiln version`)")
}
