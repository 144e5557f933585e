//! `kiln-worker --doctor`: what a worker would find if it started now, one line for each thing, with the remedy.

use std::{io::Write, sync::Arc, time::Duration};

use kiln_common::{
    limits,
    runtime::{
        Dialer,
        tls::{self, Trust},
    },
};
use kiln_proto::v1::{MachineInfo, WorkerStats};

use crate::{
    builder::Builder,
    config::{Config, default_slots},
    engine::{Engine, EngineFacts},
    enroll::Identity,
    real_builder::RealBuilder,
};

/// Less free disk than this ends most builds.
const DISK_LOW: u64 = 4 << 30;

/// One thing that was looked at.
enum Finding {
    Good(String),
    Note(String),
    Bad(String),
}

/// Looks at everything and prints it. True: a worker would run here.
pub async fn examine(config: &Config) -> bool {
    let mut sound = true;
    let mut say = |what: &str, finding: Finding| {
        let (mark, text) = match finding {
            Finding::Good(text) => ("ok  ", text),
            Finding::Note(text) => ("note", text),
            Finding::Bad(text) => {
                sound = false;
                ("BAD ", text)
            }
        };
        // A reader that has seen enough may have closed the pipe.
        let _ = writeln!(std::io::stdout(), "{mark}  {what:<10} {text}");
    };
    match Engine::connect(config.engine.clone()).await {
        Ok(engine) => {
            let builder: Arc<dyn Builder> = Arc::new(RealBuilder::new(engine, config.engine.is_local()));
            let facts = builder.watch().borrow().facts().clone();
            let (machine, stats) = (builder.machine(&facts), builder.stats());
            say("engine", Finding::Good(format!("{} {} at {}", facts.kind.name(), facts.version, config.engine)));
            say("features", features(&facts));
            say("platforms", platforms(&*builder, &facts, config).await);
            say("machine", machine_line(&machine, config));
            say("disk", disk(&stats));
        }
        Err(error) => say("engine", Finding::Bad(error.to_string())),
    }
    say("identity", identity(config));
    say("farm", farm(config).await);
    sound
}

fn features(facts: &EngineFacts) -> Finding {
    let names: Vec<_> = facts.features.iter().map(ToString::to_string).collect();
    if names.is_empty() {
        Finding::Note("none beyond the plain build".to_owned())
    } else {
        Finding::Good(names.join(", "))
    }
}

async fn platforms(builder: &dyn Builder, facts: &EngineFacts, config: &Config) -> Finding {
    let found = if config.platforms.is_empty() { builder.platforms(facts).await } else { config.platforms.clone() };
    let listed: Vec<_> = found.iter().map(|(platform, grade)| format!("{platform} {grade}")).collect();
    if listed.is_empty() { Finding::Bad("none; see --platforms".to_owned()) } else { Finding::Good(listed.join(", ")) }
}

fn machine_line(machine: &MachineInfo, config: &Config) -> Finding {
    let slots = config.slots.unwrap_or_else(|| default_slots(machine.cpus, machine.memory_bytes));
    let memory = gib(machine.memory_bytes);
    Finding::Good(format!("{}, {} CPUs, {memory}, {}; {slots} slots", machine.cpu_model, machine.cpus, machine.os))
}

fn disk(stats: &WorkerStats) -> Finding {
    match stats.disk_available_bytes {
        0 => Finding::Note("the engine's disk cannot be seen from here".to_owned()),
        free if free < DISK_LOW => {
            Finding::Bad(format!("{} free for the engine; builds need more, try `docker system prune`", gib(free)))
        }
        free => Finding::Good(format!("{} free for the engine", gib(free))),
    }
}

fn identity(config: &Config) -> Finding {
    match Identity::load(&config.data_dir) {
        Ok(Some(identity)) => Finding::Good(format!("{} ({})", identity.name, identity.worker_id)),
        Ok(None) if config.join_token.is_some() => Finding::Note("not joined yet; the token will be used".to_owned()),
        Ok(None) => Finding::Bad(
            "not joined, and no --join-token-file; make a token with `kiln workers token create`".to_owned(),
        ),
        Err(error) => Finding::Bad(error.to_string()),
    }
}

async fn farm(config: &Config) -> Finding {
    let dialer = match dialer(config) {
        Ok(Some(dialer)) => dialer,
        Ok(None) => return Finding::Note("unknown until the worker has a token".to_owned()),
        Err(error) => return Finding::Bad(error.to_string()),
    };
    let patience: Duration = limits::HANDSHAKE_TIMEOUT * 2;
    match tokio::time::timeout(patience, dialer.connect()).await {
        Ok(Ok(_)) => {
            Finding::Good("reached, its certificate is the farm's and valid by this machine's clock".to_owned())
        }
        Ok(Err(error)) => Finding::Bad(error.to_string()),
        Err(_) => Finding::Bad("it accepts connections and does not answer".to_owned()),
    }
}

fn dialer(config: &Config) -> anyhow::Result<Option<Dialer>> {
    let identity = Identity::load(&config.data_dir).ok().flatten();
    let (trust, own, known) = match (&identity, &config.join_token) {
        (Some(identity), _) => (identity.trust()?, Some(identity.tls()?), &identity.coordinators),
        (None, Some(token)) => (Trust::Fingerprint(token.ca_fingerprint), None, &token.coordinators),
        (None, None) => return Ok(None),
    };
    let addresses = if config.coordinators.is_empty() { known } else { &config.coordinators };
    Ok(Some(Dialer::new(addresses, tls::client_config(trust, own)?)?))
}

fn gib(bytes: u64) -> String {
    // One decimal is all that anybody reads.
    format!("{}.{} GiB", bytes >> 30, ((bytes >> 20) & 1023) * 10 / 1024)
}
