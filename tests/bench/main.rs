//! Kiln beside `docker buildx` on the same engine, interleaved run by run: ratios, not times.
//!
//! `tests/run.sh --bench` brings up the bed and runs this with release binaries. Every scenario prints the medians, their
//! ratio, and the ratio that Kiln is held against; a ratio above its bound makes the exit code 1.
//! `KILN_BENCH_ONLY=context,cached` runs some scenarios alone, `KILN_BENCH_RUNS` says how often. Without an engine and a
//! peer: `rate` and `idle`, see [`wire`].

mod context_tree;
mod farm;
mod forwarder;
mod merge;
mod peer;
mod report;
mod wire;

use std::{collections::BTreeSet, path::Path, time::Duration};

use anyhow::{Context as _, bail, ensure};
use context_tree::ContextTree;
use farm::BenchFarm;
use harness::{Bed, bed::EngineKind};
use peer::Buildx;
use report::Report;

const FOUR: &str = "linux/amd64,linux/arm64,linux/arm/v7,linux/arm/v6";
const ONE: &str = "linux/amd64";

const ON_AN_ENGINE: [&str; 5] = ["memory", "cached", "steps", "context", "merge"];
const OVER_THE_WIRE: [&str; 2] = ["rate", "idle"];

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some((first, rest)) = arguments.split_first()
        && first == merge::ONCE
    {
        return merge::once(rest);
    }
    if let [crowd, token, workers] = arguments.as_slice()
        && crowd == "crowd"
    {
        return wire::crowd(token, workers.parse()?);
    }
    let chosen = chosen()?;
    let mut report = Report::default();
    if chosen.contains("rate") {
        wire::run(wire::steady_rate(&mut report)).context("builds at a steady rate")?;
    }
    if chosen.contains("idle") {
        wire::run(wire::idle_workers(&mut report)).context("idle workers")?;
    }
    if ON_AN_ENGINE.iter().any(|name| chosen.contains(*name)) {
        beside_buildx(&chosen, &mut report)?;
    }
    report.finish()
}

fn beside_buildx(chosen: &BTreeSet<String>, report: &mut Report) -> anyhow::Result<()> {
    let runs = std::env::var("KILN_BENCH_RUNS").ok().and_then(|text| text.parse().ok()).unwrap_or(7);
    let engine = Bed.engine(EngineKind::Docker28).expect("docker 28");
    let folder = tempfile::Builder::new().prefix("kiln-bench-").tempdir()?;
    if chosen.contains("merge") {
        merge::compare(folder.path(), runs, report)?;
    }
    if !ON_AN_ENGINE.iter().any(|name| *name != "merge" && chosen.contains(*name)) {
        return Ok(());
    }
    let peer = Buildx::start(&engine, folder.path())?;
    let farm = BenchFarm::start(&engine, folder.path())?;
    if chosen.contains("memory") {
        idle_memory(&farm, report)?;
    }
    if chosen.contains("cached") {
        all_cached(&farm, &peer, runs, report)?;
    }
    if chosen.contains("steps") {
        uncached_steps(&farm, &peer, runs, report)?;
    }
    if chosen.contains("context") {
        large_context(&farm, &peer, folder.path(), runs, report)?;
    }
    peak_memory(&farm, report)
}

fn chosen() -> anyhow::Result<BTreeSet<String>> {
    let known: Vec<&str> = OVER_THE_WIRE.into_iter().chain(ON_AN_ENGINE).collect();
    let Ok(names) = std::env::var("KILN_BENCH_ONLY") else { return Ok(known.into_iter().map(str::to_owned).collect()) };
    let names: BTreeSet<String> = names.split(',').map(str::to_owned).collect();
    if let Some(unknown) = names.iter().find(|name| !known.contains(&name.as_str())) {
        bail!("KILN_BENCH_ONLY names `{unknown}`; there are {}", known.join(", "));
    }
    Ok(names)
}

fn idle_memory(farm: &BenchFarm, report: &mut Report) -> anyhow::Result<()> {
    report.bound("idle memory of kiln-coordinator, MB", farm.coordinator_memory("VmRSS")?, 30.0);
    report.bound("idle memory of kiln-worker, MB", farm.worker_memory("VmRSS")?, 15.0);
    let worker = std::fs::metadata(harness::binary("kiln-worker"))?.len();
    report.bound("stripped kiln-worker, MB", megabytes(worker), 12.0);
    Ok(())
}

fn all_cached(farm: &BenchFarm, peer: &Buildx, runs: usize, report: &mut Report) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("file"), "same every time\n")?;
    std::fs::write(folder.path().join("Dockerfile"), "FROM busybox\nCOPY file /\nRUN cat /file\n")?;
    let (a, b) = (tag("cached-kiln"), tag("cached-buildx"));
    let kiln = || farm.build(&[], &a, FOUR, folder.path());
    let buildx = || peer.build(&[], &b, FOUR, folder.path());
    kiln()?;
    buildx()?;
    report.compare("four platforms, all cached", runs, 0.9, kiln, buildx)
}

fn uncached_steps(farm: &BenchFarm, peer: &Buildx, runs: usize, report: &mut Report) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let steps = "FROM busybox\nARG STAMP\nRUN echo 1 $STAMP >/1\nRUN echo 2 $STAMP >/2\nRUN echo 3 $STAMP >/3\n";
    std::fs::write(folder.path().join("Dockerfile"), steps)?;
    let (a, b) = (tag("steps-kiln"), tag("steps-buildx"));
    let mut stamps = 0..;
    let mut stamp = || format!("STAMP={}-{}", std::process::id(), stamps.next().unwrap_or_default());
    let mut pairs = Vec::new();
    for _ in 0..=runs {
        let (mine, theirs) = (stamp(), stamp());
        let kiln = farm.build(&["--build-arg", &mine], &a, ONE, folder.path())?;
        let buildx = peer.build(&["--build-arg", &theirs], &b, ONE, folder.path())?;
        pairs.push((kiln, buildx));
    }
    // The first pair warms the base image.
    report.pairs("three uncached RUN steps", &pairs[1..], 1.0);
    Ok(())
}

/// 20,000 files and 500 MB: two thirds of the image come from a folder that stays, one small folder changes. The Dockerfile
/// copies them apart, as its authors recommend, so that the figure is the context's and not the layer compressor's.
fn large_context(
    farm: &BenchFarm,
    peer: &Buildx,
    scratch: &Path,
    runs: usize,
    report: &mut Report,
) -> anyhow::Result<()> {
    let (mut first, mut unchanged, mut changed) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..runs.min(4) {
        println!("large context, round {}", round + 1);
        // Kiln's engines know a context by its image, buildx's by its folder: both begin with nothing.
        let (a, b) = (tag(&format!("context-kiln-{round}")), tag(&format!("context-buildx-{round}")));
        let mine = ContextTree::create(&scratch.join(format!("kiln-{round}")), 20_000, 500 << 20)?;
        let theirs = ContextTree::create(&scratch.join(format!("buildx-{round}")), 20_000, 500 << 20)?;
        let before = farm.counters()?;
        first.push(in_turns(
            round,
            || settled(|| farm.build(&[], &a, ONE, mine.path())),
            || settled(|| peer.build(&[], &b, ONE, theirs.path())),
        )?);
        let sent = farm.counters()?;
        report.note(&format!(
            "  first: client sent {} bytes, coordinator sent {} bytes",
            sent.received - before.received,
            sent.served - before.served
        ));
        for again in 0..3 {
            unchanged.push(in_turns(
                again,
                || farm.build(&[], &a, ONE, mine.path()),
                || peer.build(&[], &b, ONE, theirs.path()),
            )?);
        }
        let before = farm.counters()?;
        report.note(&format!(
            "  unchanged: client sent {} bytes, coordinator sent {} bytes",
            before.received - sent.received,
            before.served - sent.served
        ));
        for edit in 0..3 {
            let size = mine.change_one(edit)?;
            theirs.change_one(edit)?;
            let before = farm.counters()?;
            changed.push(in_turns(
                edit,
                || farm.build(&[], &a, ONE, mine.path()),
                || peer.build(&[], &b, ONE, theirs.path()),
            )?);
            let after = farm.counters()?;
            report.note(&format!(
                "  one file of {size} bytes changed: client sent {} bytes, coordinator sent {} bytes",
                after.received - before.received,
                after.served - before.served
            ));
        }
        mine.remove()?;
        theirs.remove()?;
    }
    report.pairs("20,000 files, 500 MB: first build", &first, 1.2);
    report.pairs("20,000 files, 500 MB: unchanged", &unchanged, 0.5);
    report.pairs("20,000 files, 500 MB: one file changed", &changed, 0.5);
    Ok(())
}

type Timed = anyhow::Result<Duration>;

/// Both, the other one first each time: who comes second finds a warmer machine, or what the first left to write.
fn in_turns(turn: usize, kiln: impl Fn() -> Timed, peer: impl Fn() -> Timed) -> anyhow::Result<(Duration, Duration)> {
    if turn.is_multiple_of(2) {
        let kiln = kiln()?;
        return Ok((kiln, peer()?));
    }
    let peer = peer()?;
    Ok((kiln()?, peer))
}

/// After what others have written is on the disk: steps of a build wait for all of it.
fn settled(build: impl Fn() -> Timed) -> Timed {
    ensure!(std::process::Command::new("sync").status()?.success(), "sync failed");
    build()
}

fn peak_memory(farm: &BenchFarm, report: &mut Report) -> anyhow::Result<()> {
    report.bound("peak memory of kiln-coordinator, MB", farm.coordinator_memory("VmHWM")?, 150.0);
    report.bound("peak memory of kiln-worker, MB", farm.worker_memory("VmHWM")?, 150.0);
    report.bound("peak memory of kiln build, MB", farm.client_peak(), 150.0);
    Ok(())
}

fn tag(name: &str) -> String {
    format!("{}/bench/{name}:latest", Bed.registry())
}

#[expect(clippy::cast_precision_loss, reason = "megabytes for people")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
