//! What workers say, checked once: facts, measurements, reports.

use std::collections::{BTreeMap, BTreeSet};

use kiln_common::{AttemptId, limits};
use kiln_proto::{convert, v1};
use kiln_scheduler::{
    event::{AttemptOutcome, WorkerStats},
    record::{EngineFacts, MachineFacts, WorkerFacts},
};

/// Longest message of a failure that is kept, in bytes.
const MESSAGE_BYTES: usize = 16 * 1024;

/// # Errors
/// Says which part of the Hello is out of bounds.
pub(super) fn facts(hello: v1::Hello) -> Result<(WorkerFacts, Vec<AttemptId>), String> {
    if !(1..=limits::WORKER_SLOTS).contains(&hello.slots) {
        return Err(format!("{} slots; a worker has 1 to {}", hello.slots, limits::WORKER_SLOTS));
    }
    if hello.platforms.len() > limits::WORKER_PLATFORMS || hello.labels.len() > limits::WORKER_LABELS {
        let (platforms, labels) = (limits::WORKER_PLATFORMS, limits::WORKER_LABELS);
        return Err(format!("more than {platforms} platforms or {labels} labels"));
    }
    if hello.attempt_ids.len() > 4 * limits::WORKER_SLOTS as usize {
        return Err(format!("{} attempts; no worker has so many", hello.attempt_ids.len()));
    }
    for (key, value) in &hello.labels {
        if key.is_empty() || key.len() > limits::KEY_BYTES || value.len() > limits::KEY_BYTES {
            return Err(format!("a label's key or value is empty or longer than {} bytes", limits::KEY_BYTES));
        }
    }
    let platforms =
        hello.platforms.iter().map(convert::worker_platform_from_wire).collect::<Result<BTreeMap<_, _>, _>>()?;
    let attempts = hello.attempt_ids.iter().map(|id| id.parse().map_err(|error| format!("{error}")));
    let attempts = attempts.collect::<Result<BTreeSet<AttemptId>, String>>()?.into_iter().collect();
    let engine = hello.engine.unwrap_or_default();
    let machine = hello.machine.unwrap_or_default();
    let facts = WorkerFacts {
        platforms,
        slots: hello.slots,
        labels: hello.labels.into_iter().collect(),
        // A feature that a newer worker knows and this coordinator does not is none that a build can ask for.
        features: engine.features.iter().filter_map(|name| name.parse().ok()).collect(),
        engine: EngineFacts { kind: short(engine.kind), version: short(engine.version) },
        machine: MachineFacts {
            cpu_model: short(machine.cpu_model),
            cpus: machine.cpus,
            memory: machine.memory_bytes,
            disk: machine.disk_bytes,
            disk_min: machine.disk_min_bytes,
            kiln_version: short(machine.kiln_version),
            os: short(machine.os),
        },
    };
    Ok((facts, attempts))
}

pub(super) fn stats(wire: v1::WorkerStats) -> WorkerStats {
    let known = |bytes: u64| (bytes > 0).then_some(bytes);
    let finite = |number: f64| number.is_finite().then_some(number);
    WorkerStats {
        load1: finite(wire.load1).unwrap_or(0.0),
        memory_available: known(wire.memory_available_bytes),
        disk_available: known(wire.disk_available_bytes),
        temperature_celsius: finite(wire.temperature_celsius).filter(|celsius| *celsius != 0.0),
        throttled: wire.throttled,
        cpu_pressure: wire.cpu_pressure.and_then(percent),
        memory_pressure: wire.memory_pressure.and_then(percent),
        io_pressure: wire.io_pressure.and_then(percent),
        pruned: wire.pruned_bytes,
    }
}

fn percent(number: f64) -> Option<f64> {
    number.is_finite().then(|| number.clamp(0.0, 100.0))
}

/// The attempt that a report is on, and how it stands, or what is wrong with the rest of the report.
///
/// # Errors
/// Says why the report names no attempt.
pub(super) fn report(wire: v1::AttemptReport) -> Result<(AttemptId, Result<AttemptOutcome, String>), String> {
    let attempt = wire.attempt_id.parse().map_err(|error| format!("{error}"))?;
    Ok((attempt, outcome(wire.outcome)))
}

fn outcome(wire: Option<v1::attempt_report::Outcome>) -> Result<AttemptOutcome, String> {
    use v1::attempt_report::Outcome;
    Ok(match wire.ok_or("the report has no outcome")? {
        Outcome::Started(_) => AttemptOutcome::Started,
        Outcome::Succeeded(succeeded) => {
            AttemptOutcome::Succeeded { image: convert::image_from_wire(&succeeded)?.into() }
        }
        Outcome::Failed(failed) => {
            let kind = failed.kind();
            let message = cut(failed.message, MESSAGE_BYTES);
            match kind {
                v1::FailureKind::Build => AttemptOutcome::BuildFailed { message },
                v1::FailureKind::Registry => AttemptOutcome::RegistryFailed { message },
                v1::FailureKind::Infrastructure | v1::FailureKind::Unspecified => {
                    AttemptOutcome::InfrastructureFailed { message }
                }
            }
        }
        Outcome::Cancelled(_) => AttemptOutcome::Cancelled,
    })
}

fn short(text: String) -> String {
    cut(text, limits::KEY_BYTES)
}

fn cut(mut text: String, most: usize) -> String {
    if text.len() > most {
        text.truncate(text.floor_char_boundary(most));
        text.push_str(" [cut]");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> v1::Hello {
        v1::Hello {
            slots: 2,
            platforms: vec![v1::WorkerPlatform { platform: "linux/arm64".into(), grade: v1::Grade::Native.into() }],
            engine: Some(v1::EngineInfo {
                features: vec!["named-contexts".into(), "time-travel".into()],
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn a_sound_hello_is_taken_and_unknown_features_are_left_out() {
        let (facts, attempts) = facts(hello()).expect("sound");
        assert_eq!((facts.slots, facts.features.len(), attempts.len()), (2, 1, 0));
    }

    #[test]
    fn what_is_out_of_bounds_is_refused() {
        for broken in [
            v1::Hello { slots: 0, ..hello() },
            v1::Hello { slots: limits::WORKER_SLOTS + 1, ..hello() },
            v1::Hello { attempt_ids: vec!["x".into()], ..hello() },
            v1::Hello { labels: [(String::new(), String::new())].into(), ..hello() },
        ] {
            assert!(facts(broken).is_err());
        }
    }

    #[test]
    fn pressure_is_a_percentage_or_unknown() {
        let of = |memory_pressure| stats(v1::WorkerStats { memory_pressure, ..Default::default() }).memory_pressure;
        assert_eq!(
            [None, Some(f64::NAN), Some(12.5), Some(-1.0), Some(1e9)].map(of),
            [None, None, Some(12.5), Some(0.0), Some(100.0)]
        );
    }

    #[test]
    fn a_report_without_outcome_or_with_a_false_digest_still_says_which_attempt_it_is_on() {
        let attempt = AttemptId::generate();
        let succeeded = v1::AttemptSucceeded { digest: "sha256:no".into(), ..Default::default() };
        for outcome in [None, Some(v1::attempt_report::Outcome::Succeeded(succeeded))] {
            let (named, outcome) =
                report(v1::AttemptReport { attempt_id: attempt.to_string(), outcome }).expect("an attempt");
            assert!(named == attempt && outcome.is_err());
        }
        assert!(report(v1::AttemptReport::default()).is_err());
    }

    #[test]
    fn a_long_message_is_cut_at_a_character_and_says_so() {
        let cut = cut("é".repeat(300), 255);
        assert!(cut.ends_with("é [cut]") && cut.len() <= 255 + 6);
    }
}
