//! What a worker finds out by trying: the programs that it tries CPUs with, trials on engines, and a cache that gives room.

mod bed;

use std::{
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use bed::{Seen, built, engines, fresh_repository, job, registry, spec};
use kiln_common::{BuildSpec, Feature, Platform};
use kiln_worker::{
    engine::{Engine, EngineAddress, EngineKind},
    probe::elf,
};
use tokio_util::sync::CancellationToken;

fn program(platform: &str) -> Vec<u8> {
    elf::program(&platform.parse::<Platform>().expect("a platform")).expect(platform)
}

/// The same program with the padding that emulators' handlers look for.
fn for_emulators(mut program: Vec<u8>) -> Vec<u8> {
    program[8..16].fill(0);
    program
}

fn file(folder: &Path, name: &str, program: &[u8]) -> PathBuf {
    let path = folder.join(name.replace('/', "-"));
    let mut options = std::fs::OpenOptions::new();
    let file = options.create(true).truncate(true).write(true).mode(0o755).open(&path);
    file.expect("opened").write_all(program).expect("written");
    path
}

fn output(command: &mut Command) -> String {
    let output = command.output().expect("it runs");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn the_programs_are_sound_executables_of_their_machine() {
    let folder = tempfile::tempdir().unwrap();
    for (platform, machine) in
        [("linux/arm/v7", "ARM"), ("linux/arm/v6", "ARM"), ("linux/arm/v5", "ARM"), ("linux/386", "Intel 80386")]
    {
        let path = file(folder.path(), platform, &program(platform));
        let said = output(Command::new("readelf").arg("-hlW").arg(&path));
        for part in ["ELF32", "2's complement, little endian", "EXEC (Executable file)", machine, "LOAD", "R E"] {
            assert!(said.contains(part), "{platform}: `{part}` is missing in\n{said}");
        }
        assert_eq!(said.contains("Version5 EABI"), machine == "ARM", "{said}");
        assert_eq!(said.matches("LOAD").count(), 1, "{said}");
    }
}

/// QEMU's models of CPUs know the instructions of their real ones, and no others.
#[test]
fn each_arm_program_runs_on_its_cpu_and_newer_ones_alone() {
    let folder = tempfile::tempdir().unwrap();
    for (cpu, runs) in [
        ("arm926", ["linux/arm/v5"].as_slice()),
        ("arm1176", &["linux/arm/v5", "linux/arm/v6"]),
        ("cortex-a7", &["linux/arm/v5", "linux/arm/v6", "linux/arm/v7"]),
    ] {
        for platform in ["linux/arm/v5", "linux/arm/v6", "linux/arm/v7"] {
            let path = file(folder.path(), platform, &program(platform));
            let status = Command::new(bed::qemu("arm")).args(["-cpu", cpu]).arg(&path).status().unwrap();
            assert_eq!(status.success(), runs.contains(&platform), "{platform} on {cpu}: {status}");
        }
    }
}

#[test]
fn no_emulator_takes_a_program_for_its_own() {
    for platform in ["linux/arm/v7", "linux/arm/v6", "linux/arm/v5"] {
        assert!(!elf::runs(&program(platform)).unwrap_or(false), "{platform} is not this machine's");
        // The bed has handlers for arm: without the padding they do take it.
        assert!(elf::runs(&for_emulators(program(platform))).unwrap(), "{platform}");
    }
}

#[tokio::test]
async fn an_engine_tries_programs_in_a_container_and_leaves_emulators_out() {
    for (name, engine) in engines().await {
        assert!(!engine.runs(&program("linux/arm/v7")).await.unwrap(), "{name}");
        assert!(engine.runs(&for_emulators(program("linux/arm/v7"))).await.unwrap(), "{name}: by the bed's handler");
        let here = elf::runs(&program("linux/386")).unwrap_or(false);
        assert_eq!(engine.runs(&program("linux/386")).await.unwrap(), here, "{name}: as this machine's CPU does");
    }
}

#[tokio::test]
async fn a_buildkitd_over_tcp_wants_the_certificates_of_its_folder() {
    let Ok(address) = std::env::var("KILN_BED_BUILDKIT_TCP") else { return };
    let address: EngineAddress = address.parse().unwrap();
    let folder = PathBuf::from(bed::bed("KILN_BED_BUILDKIT_TLS_DIR"));
    let engine = Engine::connect(address.clone().with_tls(&folder).unwrap()).await.expect("connected");
    assert_eq!(engine.facts().kind, EngineKind::Buildkitd);
    assert!(Engine::connect(address.clone()).await.is_err(), "without TLS");
    let empty = tempfile::tempdir().unwrap();
    let error = Engine::connect(address.with_tls(empty.path()).unwrap()).await.err().expect("no files").to_string();
    assert!(error.contains("ca.pem"), "{error}");
}

#[tokio::test]
async fn a_prune_frees_what_nobody_uses_and_spares_a_running_build() {
    for (name, engine) in engines().await {
        let stamp = fresh_repository("x");
        // Cache that is not in use, as large as what is asked for.
        let fat = format!("FROM busybox\nRUN echo {stamp} && dd if=/dev/urandom of=/fat bs=1M count=2\n");
        built(name, &engine, job(spec(&fresh_repository(&registry())), &fat, &[]).await).await;
        let (cancel, seen) = (CancellationToken::new(), Seen::default());
        let slow = format!("FROM busybox\nRUN echo {stamp} > /a && sleep 3 && cat /a\nRUN cat /a\n");
        let asked = BuildSpec { no_cache: true, ..spec(&fresh_repository(&registry())) };
        let build = engine.build(job(asked, &slow, &[]).await, seen.progress(), cancel);
        let prune = async {
            bed::eventually(|| bed::runs("sleep 3")).await;
            engine.prune(1 << 20).await.expect("pruned")
        };
        let (outcome, freed) = tokio::join!(build, prune);
        assert!(freed >= 1 << 20, "{name}: {freed}");
        outcome.unwrap_or_else(|error| panic!("{name}: {error}\n{}", seen.output()));
    }
}

#[tokio::test]
async fn what_only_some_engines_grant_is_found_by_asking() {
    for (name, engine) in engines().await {
        let features = engine.facts().features;
        let is_docker = engine.facts().kind != EngineKind::Buildkitd;
        assert_eq!(features.contains(&Feature::HostGateway), is_docker, "{name}");
        // The bed's buildkitd has no `insecure-entitlements`.
        assert_eq!(features.contains(&Feature::HostNetwork), is_docker, "{name}");
    }
}
