//! Submits at a steady rate, whether the farm keeps up or not, and what the farm's records say of it afterwards.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use kiln_common::Timestamp;
use kiln_proto::{
    convert::timestamp_from_wire,
    v1::{BuildSpec, GetBuildRequest, GetInfoRequest, PlatformRequest, SubmitRequest, build_spec::Dockerfile},
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::coordinator::Coordinator;

/// Clients that share the load.
const CLIENTS: usize = 8;

pub struct Load {
    pub rate: u32,
    pub warm_up: Duration,
    pub duration: Duration,
}

pub struct Submitted {
    /// Builds after the warm-up, with the moment at which each submit was due, since the Unix epoch.
    pub counted: Vec<(String, Duration)>,
    /// From due to answered.
    pub answer_p50: Duration,
}

/// Every submit must be accepted.
pub async fn run(coordinator: &Coordinator, load: &Load) -> anyhow::Result<Submitted> {
    let clients: Vec<_> = (0..CLIENTS).map(|_| coordinator.calls().builds).collect();
    let (start, epoch) = (Instant::now(), SystemTime::now().duration_since(UNIX_EPOCH)?);
    let pause = Duration::from_secs(1) / load.rate;
    let whole = (load.warm_up + load.duration).as_nanos() / pause.as_nanos();
    let mut calls = JoinSet::new();
    let mut answers = Vec::new();
    for number in 0..u32::try_from(whole)? {
        let due = pause * number;
        sleep_until(start + due).await;
        let mut client = clients[number as usize % CLIENTS].clone();
        let counts = due >= load.warm_up;
        calls.spawn(async move {
            let build = client.submit(request(number)).await.map(|answer| answer.into_inner().build);
            (counts, due, start.elapsed() - due, build)
        });
        while let Some(answer) = calls.try_join_next() {
            answers.push(answer?);
        }
    }
    while let Some(answer) = calls.join_next().await {
        answers.push(answer?);
    }
    let (mut counted, mut took) = (Vec::new(), Vec::new());
    for (counts, due, wait, build) in answers {
        let build = build.context("a submit was refused")?.context("a build")?;
        if counts {
            counted.push((build.id, epoch + due));
            took.push(wait);
        }
    }
    took.sort();
    let answer_p50 = *took.get(took.len() / 2).context("nothing was counted")?;
    // The last ones are on their way to their workers still.
    tokio::time::sleep(Duration::from_millis(500)).await;
    Ok(Submitted { counted, answer_p50 })
}

/// What `most` of the records say: milliseconds from accepted to started, sorted. Each must say that it started.
pub async fn recorded_waits(coordinator: &Coordinator, submitted: &Submitted, most: usize) -> anyhow::Result<Vec<f64>> {
    let mut builds = coordinator.calls().builds;
    let mut waits = Vec::new();
    for (id, _) in submitted.counted.iter().step_by((submitted.counted.len() / most).max(1)) {
        let build = builds.get(GetBuildRequest { id: id.clone() }).await?.into_inner();
        let moment = |at: &Option<prost_types::Timestamp>| at.as_ref().map(timestamp_from_wire);
        let started: Option<Timestamp> = moment(&build.started_at);
        let (Some(started), Some(created)) = (started, moment(&build.created_at)) else {
            anyhow::bail!("the record of build {id} does not say that it started");
        };
        ensure!(build.message.contains("simulated"), "build {id} ended otherwise: {}", build.message);
        waits.push(started.since(created).as_secs_f64() * 1e3);
    }
    waits.sort_by(f64::total_cmp);
    Ok(waits)
}

pub async fn online_workers(coordinator: &Coordinator) -> anyhow::Result<u32> {
    Ok(coordinator.calls().farm.get_info(GetInfoRequest {}).await?.into_inner().online_workers)
}

/// Each from one of a hundred projects, so that fairness and affinity have something to weigh, and no two the same: a leg
/// that is in flight already would be shared, and no worker would get it.
fn request(number: u32) -> SubmitRequest {
    let spec = BuildSpec {
        dockerfile: Some(Dockerfile::DockerfileInline("FROM scratch\nCOPY . /\n".into())),
        platforms: vec![PlatformRequest { platform: "linux/amd64".into(), optional: false }],
        tags: vec![format!("registry.example/team/app-{}:{number}", number % 100)],
        build_args: [("NUMBER".to_owned(), number.to_string())].into(),
        ..Default::default()
    };
    SubmitRequest { spec: Some(spec), ..Default::default() }
}
