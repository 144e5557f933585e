//! What a history starts from: its workers, and the builds that it may submit.

use std::{collections::BTreeMap, time::Duration};

use kiln_common::{
    BuildSpec, EmulationPolicy, Feature, FeatureSet, Grade, Platform, Timestamp, WorkerId,
    context::{ChunkId, ContextDigest},
    spec::{Dockerfile, PlatformRequest},
};
use kiln_scheduler::{
    Config, CredentialsMark, WorkerRecord,
    record::{EngineFacts, MachineFacts, WorkerFacts},
};
use uuid::Uuid;

use crate::chance::Chance;

/// `linux/arm64` has two native workers at least, `linux/amd64` three, `linux/arm/v7` none: it is always compat or emulated.
const PLATFORMS: [&str; 3] = ["linux/amd64", "linux/arm64", "linux/arm/v7"];

/// The farm's settings, with times short enough for a history of a few minutes.
pub fn config() -> Config {
    Config {
        open_builds: 12,
        final_kept: Duration::from_secs(60),
        finals_kept: 6,
        request_ids_kept: 4,
        canary_wait: Duration::from_secs(20),
        canary_wait_most: Duration::from_secs(60),
        quarantine_window: Duration::from_secs(300),
        optional_patience: Duration::from_secs(40),
        effects_per_turn: 12,
        ..Config::default()
    }
}

pub fn workers(chance: &mut Chance) -> Vec<(WorkerRecord, WorkerFacts)> {
    let amd64: &[(&str, Grade)] =
        &[("linux/amd64", Grade::Native), ("linux/arm64", Grade::Emulated), ("linux/arm/v7", Grade::Emulated)];
    let arm64: &[(&str, Grade)] = &[("linux/arm64", Grade::Native), ("linux/arm/v7", Grade::Compat)];
    let kinds = [amd64, arm64, &amd64[..1], &arm64[..1], amd64];
    let count = chance.between(4, 6);
    (0..count)
        .map(|number| {
            let kind = kinds[usize::try_from(number).unwrap_or(0) % kinds.len()];
            let facts = WorkerFacts {
                platforms: kind.iter().map(|(text, grade)| (platform(text), *grade)).collect(),
                slots: u32::try_from(chance.between(1, 2)).unwrap_or(1),
                labels: BTreeMap::from([(format!("z{}", number / 2 % 2), "yes".to_owned())]),
                features: if number < 2 { FeatureSet::from([Feature::Attestations]) } else { FeatureSet::new() },
                engine: EngineFacts::default(),
                machine: MachineFacts::default(),
            };
            (record(number), facts)
        })
        .collect()
}

fn record(number: u64) -> WorkerRecord {
    WorkerRecord {
        id: WorkerId::from_uuid(Uuid::from_u64_pair(1, number)),
        name: format!("w{number}").into(),
        joined_at: Timestamp::from_millis(1),
        facts: None,
        labels: BTreeMap::new(),
        slots: None,
        cordon: None,
        quarantine: None,
    }
}

pub fn platform(text: &str) -> Platform {
    text.parse().expect("a platform")
}

/// Most builds come without registry credentials, the others with those of one of two people.
pub fn credentials(chance: &mut Chance) -> Option<CredentialsMark> {
    chance.pick(&[None, None, Some("alice"), Some("bob")]).map(|person| CredentialsMark(person.into()))
}

pub fn spec(chance: &mut Chance) -> BuildSpec {
    let project = format!("team/app-{}", chance.below(3));
    let first = chance.below(3);
    let legs = chance.between(1, 3);
    let platforms = (0..legs).map(|leg| {
        let text = PLATFORMS[usize::try_from((first + leg) % 3).unwrap_or(0)];
        PlatformRequest { platform: platform(text), required: leg == 0 || chance.percent(70) }
    });
    let platforms: Vec<_> = platforms.collect();
    let emulation = match chance.below(5) {
        0 => EmulationPolicy::Now,
        1 => EmulationPolicy::Wait(Duration::from_secs(chance.between(1, 60))),
        2 => EmulationPolicy::Never,
        _ => EmulationPolicy::Auto,
    };
    // Together they might ask for a worker that only an operator's label makes.
    let attests = chance.percent(10);
    let zone = BTreeMap::from([(format!("z{}", chance.below(2)), "yes".to_owned())]);
    BuildSpec {
        platforms,
        tags: vec![
            format!("r.example/{project}:1").parse().expect("a tag"),
            format!("r.example/{project}:latest").parse().expect("a tag"),
        ],
        provenance: attests.then(|| "mode=max".to_owned()),
        // Some builds ask for the same, and some of those must not share.
        build_args: BTreeMap::from([("REVISION".to_owned(), chance.below(2).to_string())]),
        no_cache: chance.percent(10),
        secret_ids: if chance.percent(10) { vec!["token".to_owned()] } else { Vec::new() },
        queue_timeout: chance.percent(15).then(|| Duration::from_secs(chance.between(5, 120))),
        emulation,
        required_labels: if !attests && chance.percent(15) { zone } else { BTreeMap::new() },
        priority: i32::try_from(chance.below(21)).unwrap_or(0) - 10,
        // Long ones outlive the history: nothing but the scheduler's own doing ends them.
        timeout: Duration::from_secs(if chance.percent(20) { chance.between(30, 300) } else { 40 * 3600 }),
        project,
        ..BuildSpec::bare(Dockerfile {
            tree: ContextDigest(ChunkId::from_bytes([1; 32])),
            filename: "Dockerfile".into(),
        })
    }
}
