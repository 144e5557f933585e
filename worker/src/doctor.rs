//! `kiln-worker --doctor`: what a worker would find if it started now, one line for each thing, with the remedy.

use std::{io::Write, time::Duration};

use kiln_common::{
    Feature, limits,
    runtime::{
        Dialer, dial, files,
        tls::{self, Trust},
    },
};
use kiln_proto::v1::{MachineInfo, WorkerStats};
use tonic::transport::Channel;

use crate::{
    builder::Builder,
    config::{Config, default_slots},
    disk::DiskPolicy,
    engine::{Engine, EngineFacts, EngineKind},
    enroll::Identity,
    probe::{FileSystem, Probe},
    real_builder::RealBuilder,
    session,
};

/// With less memory most compilers end before the build does.
const MEMORY_LOW: u64 = 1 << 30;

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
    match Engine::connect(config.engine.address.clone()).await {
        Ok(engine) => {
            for (what, finding) in examine_engine(engine, config).await {
                say(what, finding);
            }
        }
        Err(error) => say("engine", Finding::Bad(error.to_string())),
    }
    say("data", data(config));
    say("identity", identity(config));
    say("farm", farm(config).await);
    sound
}

/// What the engine and its machine give.
async fn examine_engine(engine: Engine, config: &Config) -> Vec<(&'static str, Finding)> {
    let local = config.engine.address.is_local();
    let probe = Probe::new(local, config.engine.data_dir.clone());
    let has_pressure = probe.measures_pressure();
    let builder = RealBuilder::new(engine, probe);
    let facts = builder.watch().borrow().facts().clone();
    let (machine, stats) = (builder.machine(&facts), builder.stats());
    let mut findings = vec![
        ("engine", Finding::Good(format!("{} {} at {}", facts.kind.name(), facts.version, config.engine.address))),
        ("features", features(&facts)),
        ("platforms", platforms(&builder, &facts, config).await),
    ];
    findings.extend(handlers(&builder, &facts).await.map(|finding| ("emulation", finding)));
    findings.push(("machine", machine_line(&machine, config)));
    findings.push(("disk", disk(builder.disk(), &facts, &config.engine.disk)));
    if local {
        findings.push(("health", health(&stats, has_pressure)));
    }
    findings
}

fn features(facts: &EngineFacts) -> Finding {
    let has: Vec<_> = facts.features.iter().map(|feature| feature.name()).collect();
    let lacks: Vec<_> =
        Feature::ALL.into_iter().filter(|feature| !facts.features.contains(feature)).map(Feature::asked_by).collect();
    let has = if has.is_empty() { "none beyond the plain build".to_owned() } else { has.join(", ") };
    if lacks.is_empty() {
        return Finding::Good(has);
    }
    let remedy = match facts.kind {
        EngineKind::DockerdClassic => "; Docker's containerd image store has more",
        EngineKind::DockerdContainerd | EngineKind::Buildkitd => "",
    };
    Finding::Note(format!("{has}; builds with {} go to other workers{remedy}", lacks.join(", ")))
}

async fn platforms(builder: &dyn Builder, facts: &EngineFacts, config: &Config) -> Finding {
    let found = if config.platforms.is_empty() { builder.platforms(facts).await } else { config.platforms.clone() };
    let listed: Vec<_> = found.iter().map(|(platform, grade)| format!("{platform} {grade}")).collect();
    if listed.is_empty() { Finding::Bad("none; see --platforms".to_owned()) } else { Finding::Good(listed.join(", ")) }
}

/// Platforms that the engine lists and no container of it can run.
async fn handlers(builder: &dyn Builder, facts: &EngineFacts) -> Option<Finding> {
    let usable = builder.platforms(facts).await;
    let lost: Vec<_> =
        facts.platforms.iter().filter(|platform| !usable.contains_key(platform)).map(ToString::to_string).collect();
    (!lost.is_empty()).then(|| {
        Finding::Note(format!(
            "{}: the handler in binfmt_misc lacks the F flag, without which containers cannot use it; register it with F, \
             as Debian's qemu-user-static does",
            lost.join(", ")
        ))
    })
}

fn machine_line(machine: &MachineInfo, config: &Config) -> Finding {
    let slots = config.engine.slots.unwrap_or_else(|| default_slots(machine.cpus, machine.memory_bytes));
    let cpu = if machine.cpu_model.is_empty() { "another machine" } else { &machine.cpu_model };
    let line = format!("{cpu}, {} CPUs, {}, {}; {slots} slots", machine.cpus, gib(machine.memory_bytes), machine.os);
    match machine.memory_bytes {
        0 => Finding::Note(format!("{cpu}: its CPUs and memory cannot be seen from here; {slots} slots")),
        memory if memory < MEMORY_LOW => {
            Finding::Note(format!("{line}; builds that need more memory are killed, swap helps"))
        }
        _ => Finding::Good(line),
    }
}

fn disk(disk: Option<FileSystem>, facts: &EngineFacts, policy: &DiskPolicy) -> Finding {
    let Some(disk) = disk else {
        return Finding::Note(
            "the engine's disk cannot be seen from here; its own garbage collection has to do".to_owned(),
        );
    };
    let marks = policy.marks(disk.total);
    let free = format!("{} of {} free for the engine", gib(disk.available), gib(disk.total));
    if disk.available < marks.min {
        let prune = match facts.kind {
            EngineKind::DockerdClassic | EngineKind::DockerdContainerd => "docker system prune",
            EngineKind::Buildkitd => "buildctl prune",
        };
        return Finding::Bad(format!("{free}, and below {} it gets no build; try `{prune}`", gib(marks.min)));
    }
    let line = format!("{free}; prunes below {}, takes no build below {}", gib(marks.low), gib(marks.min));
    if disk.available < marks.low { Finding::Note(line) } else { Finding::Good(line) }
}

fn health(stats: &WorkerStats, has_pressure: bool) -> Finding {
    let temperature = match stats.temperature_celsius {
        unknown if unknown <= 0.0 => "no thermometer".to_owned(),
        degrees => format!("{degrees:.0} °C"),
    };
    if stats.throttled {
        return Finding::Note(format!(
            "{temperature}, throttled by heat or a weak power supply: it gets builds only when no other worker can"
        ));
    }
    if !has_pressure {
        return Finding::Note(format!(
            "{temperature}; the kernel does not measure pressure, boot it with psi=1 for better placement"
        ));
    }
    Finding::Good(format!("{temperature}, not throttled, load {:.2}", stats.load1))
}

fn data(config: &Config) -> Finding {
    let folder = config.data_dir.display();
    let tried = files::create_private_dir(&config.data_dir)
        .and_then(|()| files::write_private(&config.data_dir.join(".doctor"), b""));
    match tried {
        Ok(()) => {
            // It was made a moment ago.
            let _ = std::fs::remove_file(config.data_dir.join(".doctor"));
            Finding::Good(format!("{folder} can be written"))
        }
        Err(error) => Finding::Bad(format!("{error}; run it as a user that may, or set --data-dir")),
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
        Ok(Ok(channel)) => match accepted(channel, config, patience).await {
            None => {
                Finding::Good("reached, its certificate is the farm's and valid by this machine's clock".to_owned())
            }
            Some(Ok(())) => Finding::Good("reached, and it accepts this worker".to_owned()),
            Some(Err(problem)) => Finding::Bad(problem),
        },
        Ok(Err(error)) => Finding::Bad(error.to_string()),
        Err(_) => Finding::Bad("it accepts connections and does not answer".to_owned()),
    }
}

/// Whether the farm knows this worker, asked by a log without entries; `None` for one that has not joined.
async fn accepted(channel: Channel, config: &Config, patience: Duration) -> Option<Result<(), String>> {
    Identity::load(&config.data_dir).ok().flatten()?;
    let mut client = session::client(channel);
    let asked = tokio::time::timeout(patience, client.logs(tokio_stream::empty())).await;
    Some(match asked {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(status)) => {
            let why = dial::certificate_refused_behind(&status).unwrap_or_else(|| status.message());
            Err(format!(
                "it does not accept this worker: {why}; join again with a token from `kiln workers token create`"
            ))
        }
        Err(_) => Err("it accepts connections and does not answer".to_owned()),
    })
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
