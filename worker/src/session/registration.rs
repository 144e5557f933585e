//! What this worker says of itself, kept up with its engine: read by the session, which sends it again when it changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use kiln_common::{AttemptId, Grade, Platform};
use kiln_proto::{
    SESSION_PROTOCOLS,
    convert::worker_platform_to_wire,
    v1::{EngineInfo, Hello, MachineInfo},
};
use tokio::sync::watch;

use crate::{
    builder::Builder,
    disk::DiskPolicy,
    engine::{EngineFacts, EngineState},
};

/// What stays the same for the life of the program.
#[derive(Debug, Clone)]
pub struct Profile {
    pub slots: u32,
    pub labels: BTreeMap<String, String>,
    /// Set by the operator instead of what the probe finds; empty: as probed.
    pub platforms: BTreeMap<Platform, Grade>,
    /// How much disk stays free.
    pub disk: DiskPolicy,
    /// Distinguishes two starts of the same worker.
    pub instance_id: String,
}

/// What the worker is now.
#[derive(Debug, Clone, PartialEq)]
pub struct Registration {
    slots: u32,
    labels: BTreeMap<String, String>,
    instance_id: String,
    /// Empty while the engine is away.
    pub platforms: BTreeMap<Platform, Grade>,
    engine: EngineInfo,
    machine: MachineInfo,
}

impl Registration {
    pub(super) fn hello(&self, attempts: &BTreeSet<AttemptId>) -> Hello {
        Hello {
            protocol: SESSION_PROTOCOLS.newest,
            protocol_oldest: SESSION_PROTOCOLS.oldest,
            platforms: self
                .platforms
                .iter()
                .map(|(platform, grade)| worker_platform_to_wire(platform, *grade))
                .collect(),
            slots: self.slots,
            labels: self.labels.clone().into_iter().collect(),
            engine: Some(self.engine.clone()),
            machine: Some(self.machine.clone()),
            attempt_ids: attempts.iter().map(ToString::to_string).collect(),
            instance_id: self.instance_id.clone(),
        }
    }
}

/// Probes now, and hands back what follows the engine from then on.
pub async fn follow(
    builder: Arc<dyn Builder>,
    profile: Profile,
) -> (watch::Receiver<Registration>, impl Future<Output = ()> + Send) {
    let mut engine = builder.watch();
    let state = engine.borrow_and_update().clone();
    let (sender, receiver) = watch::channel(register(&*builder, &profile, &state).await);
    let following = async move {
        while engine.changed().await.is_ok() {
            let state = engine.borrow_and_update().clone();
            let registration = register(&*builder, &profile, &state).await;
            sender.send_if_modified(|current| {
                let changed = *current != registration;
                *current = registration;
                changed
            });
        }
    };
    (receiver, following)
}

async fn register(builder: &dyn Builder, profile: &Profile, state: &EngineState) -> Registration {
    let facts = state.facts();
    let platforms = match state {
        EngineState::Up(_) if !profile.platforms.is_empty() => profile.platforms.clone(),
        EngineState::Up(facts) => builder.platforms(facts).await,
        EngineState::Down { problem, .. } => {
            tracing::warn!(%problem, "the engine is away: this worker runs no platform until it is back");
            BTreeMap::new()
        }
    };
    let machine = builder.machine(facts);
    let disk_min_bytes = profile.disk.marks(machine.disk_bytes).min;
    Registration {
        slots: profile.slots,
        labels: profile.labels.clone(),
        instance_id: profile.instance_id.clone(),
        platforms,
        engine: engine_info(facts),
        machine: MachineInfo { disk_min_bytes, ..machine },
    }
}

fn engine_info(facts: &EngineFacts) -> EngineInfo {
    EngineInfo {
        kind: facts.kind.name().to_owned(),
        version: facts.version.clone(),
        features: facts.features.iter().map(ToString::to_string).collect(),
    }
}
