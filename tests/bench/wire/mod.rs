//! The coordinator over the wire: real processes, TLS, the store on disk, workers that only pretend to build.
//!
//! ```text
//! this process: submits        kiln-coordinator        `bench crowd`: simulated workers
//! ```
//! Two scenarios: builds at a steady rate, timed from the moment at which a submit is due to the moment at which a worker
//! has the assignment; and a farm of idle workers, weighed. Every leg ends as its user's own failure: no registry is
//! measured. `KILN_WIRE_RATE`, `_SECONDS` and `_WORKERS` (idle ones) change what is measured.

mod coordinator;
mod crowd;
mod submit;
mod worker;

use std::time::Duration;

use anyhow::{Context as _, ensure};

use self::{coordinator::Coordinator, crowd::Crowd};
use super::report::Report;

/// Workers and slots of the first scenario: room for all that runs at once, as in a farm that is not overloaded.
const BUILDERS: usize = 100;
/// Before anything counts.
const WARM_UP: Duration = Duration::from_secs(3);
/// How long idle workers are left alone before they are weighed, and for how long their heartbeats are timed.
const SETTLE: Duration = Duration::from_secs(20);
const WEIGH: Duration = Duration::from_secs(30);

/// The whole life of the process that simulates workers.
pub fn crowd(token: &str, workers: usize) -> anyhow::Result<()> {
    run(worker::serve(token, workers))
}

/// Runs a scenario.
pub fn run(scenario: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    raise_file_limit()?;
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(scenario)
}

/// Builds at a steady rate.
pub async fn steady_rate(report: &mut Report) -> anyhow::Result<()> {
    let (rate, seconds) = (number("KILN_WIRE_RATE", 1_000)?, number("KILN_WIRE_SECONDS", 20)?);
    let coordinator = Coordinator::start()?;
    let mut crowd = Crowd::gather(&coordinator, BUILDERS).await?;
    let load = submit::Load { rate: u32::try_from(rate)?, warm_up: WARM_UP, duration: Duration::from_secs(seconds) };
    let cpu = coordinator.cpu()?;
    let submitted = submit::run(&coordinator, &load).await?;
    let cpu = (coordinator.cpu()? - cpu).as_secs_f64() / (load.warm_up + load.duration).as_secs_f64();
    let received = crowd.received()?;
    let mut waits = Vec::with_capacity(submitted.counted.len());
    for (build, due) in &submitted.counted {
        let at = received.get(build).with_context(|| format!("no worker got build {build}"))?;
        waits.push(milliseconds(at.saturating_sub(*due)));
    }
    waits.sort_by(f64::total_cmp);
    let recorded = submit::recorded_waits(&coordinator, &submitted, 200).await?;
    let per_second = waits.len() as f64 / load.duration.as_secs_f64();
    report.note(&format!(
        "{rate} tasks/s for {seconds} s on {BUILDERS} workers: {per_second:.0} a second started, answers p50 {:.2} ms, coordinator {cpu:.2} cores, {:.0} MB; \
         of {} records each says that it started, p50 {:.0} ms after it was accepted",
        milliseconds(submitted.answer_p50),
        coordinator.memory("VmRSS")?,
        recorded.len(),
        recorded[recorded.len() / 2],
    ));
    report.bound("submit to start at the rate, p50 ms", percentile(&waits, 0.5), 5.0);
    report.bound("submit to start at the rate, p99 ms", percentile(&waits, 0.99), 20.0);
    report.note(&format!(
        "  p90 {:.2} ms, p99.9 {:.2} ms, longest {:.2} ms",
        percentile(&waits, 0.9),
        percentile(&waits, 0.999),
        percentile(&waits, 1.0)
    ));
    ensure!(
        per_second >= 0.99 * rate as f64,
        "the submitting side did not keep up: {per_second:.0} of {rate} a second"
    );
    Ok(())
}

/// A farm of workers with nothing to do.
pub async fn idle_workers(report: &mut Report) -> anyhow::Result<()> {
    let workers = usize::try_from(number("KILN_WIRE_WORKERS", 10_000)?)?;
    let coordinator = Coordinator::start()?;
    let empty = coordinator.memory("VmRSS")?;
    let _crowd = Crowd::gather(&coordinator, workers).await?;
    tokio::time::sleep(SETTLE).await;
    let before = coordinator.cpu()?;
    tokio::time::sleep(WEIGH).await;
    let cores = (coordinator.cpu()? - before).as_secs_f64() / WEIGH.as_secs_f64();
    let online = submit::online_workers(&coordinator).await?;
    ensure!(online as usize == workers, "{online} of {workers} workers are still connected");
    let (now, peak) = (coordinator.memory("VmRSS")?, coordinator.memory("VmHWM")?);
    report.note(&format!(
        "{workers} idle workers: {:.1} kB each over {empty:.0} MB, peak while they joined {peak:.0} MB",
        (now - empty) * 1e3 / workers as f64
    ));
    report.bound("memory of the coordinator with idle workers, MB", now, 600.0);
    report.bound("cores of the coordinator with idle workers, hundredths", cores * 100.0, 25.0);
    Ok(())
}

/// Ten thousand connections want as many descriptors, in each process.
fn raise_file_limit() -> anyhow::Result<()> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).context("the limit of open files")
}

fn number(name: &str, usual: u64) -> anyhow::Result<u64> {
    std::env::var(name).map_or(Ok(usual), |text| text.parse().with_context(|| name.to_owned()))
}

fn percentile(sorted: &[f64], part: f64) -> f64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index within the slice")]
    let at = ((sorted.len() as f64 * part) as usize).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
