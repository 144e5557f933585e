//! Parsers of outside data against the kept corpus and seeded mutations of it: none panics, none breaks its promises.
//!
//! `KILN_FUZZ_SEED` (default 1) says where the mutations start, `KILN_FUZZ_RUNS` (default 1500) how many a target gets. An
//! input that breaks something belongs into `corpus/TARGET`, so that it is tried for ever; the failure prints it.

#[path = "../simulation/chance.rs"]
#[allow(dead_code, reason = "the simulation uses all of it")]
mod chance;
mod targets;

use std::{collections::BTreeMap, fs, panic, path::Path};

use chance::Chance;
use targets::{TARGETS, Target};

/// No mutation is longer: what matters about size is tried by the hostile tests.
const LONGEST: usize = 64 * 1024;
/// Numbers at which parsers break.
const EDGES: [u8; 8] = [0, 1, 0x7f, 0x80, 0xff, b'"', b'{', b'/'];

fn number(key: &str, otherwise: u64) -> u64 {
    std::env::var(key).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

fn corpus(target: &str) -> BTreeMap<String, Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let read = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry.expect("an entry");
        (entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path()).expect("a file"))
    };
    entries.map(read).collect()
}

fn try_one(name: &str, target: Target, input: &[u8], from: &str) {
    let outcome = panic::catch_unwind(|| target(input));
    let shown: String =
        input.iter().take(4096).flat_map(|byte| std::ascii::escape_default(*byte)).map(char::from).collect();
    assert!(outcome.is_ok(), "{name} breaks on {from} ({} bytes): {shown}", input.len());
}

/// One to eight small changes, or a cut, or parts of two inputs.
fn mutate(chance: &mut Chance, all: &[&Vec<u8>]) -> Vec<u8> {
    let mut input = (*chance.pick(all)).clone();
    for _ in 0..chance.between(1, 8) {
        let at = index(chance, input.len());
        match chance.below(7) {
            0 if !input.is_empty() => input[at] ^= 1 << chance.below(8),
            1 if !input.is_empty() => input[at] = *chance.pick(&EDGES),
            2 => input.truncate(at),
            3 => input.insert(at, *chance.pick(&EDGES)),
            4 if !input.is_empty() => drop(input.remove(at)),
            5 => {
                let end = at + index(chance, input.len() - at);
                let part = input[at..end].to_vec();
                input.splice(at..at, part);
            }
            _ => {
                let other = *chance.pick(all);
                input.truncate(at);
                input.extend_from_slice(&other[index(chance, other.len())..]);
            }
        }
        input.truncate(LONGEST);
    }
    input
}

fn index(chance: &mut Chance, length: usize) -> usize {
    usize::try_from(chance.below(length as u64)).expect("fits")
}

fn run(name: &str) {
    let (_, target) = TARGETS.into_iter().find(|(known, _)| *known == name).expect("a target");
    let corpus = corpus(name);
    assert!(!corpus.is_empty(), "{name} has no corpus");
    for (file, input) in &corpus {
        try_one(name, target, input, file);
    }
    let all: Vec<&Vec<u8>> = corpus.values().collect();
    let seed = number("KILN_FUZZ_SEED", 1);
    for round in 0..number("KILN_FUZZ_RUNS", 1500) {
        // A seed of its own for each, so that one can be had again without those before it.
        let input = mutate(&mut Chance::new(seed.wrapping_mul(1_000_003).wrapping_add(round)), &all);
        try_one(name, target, &input, &format!("KILN_FUZZ_SEED={seed}, round {round}"));
    }
}

#[test]
fn manifests_of_any_bytes() {
    run("manifest");
}

#[test]
fn indexes_of_any_bytes() {
    run("index");
}

#[test]
fn challenges_of_any_bytes() {
    run("challenge");
}

#[test]
fn references_of_any_bytes() {
    run("reference");
}

#[test]
fn elf_files_of_any_bytes() {
    run("elf");
}

#[test]
fn layers_of_any_bytes() {
    run("layer");
}

#[test]
fn every_target_is_run_here_and_by_cargo_fuzz() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/cargo");
    let manifest = fs::read_to_string(folder.join("Cargo.toml")).expect("Cargo.toml");
    for (name, _) in TARGETS {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name} has no [[bin]]");
        let source = fs::read_to_string(folder.join(format!("fuzz_targets/{name}.rs"))).expect("a target");
        assert!(source.contains(&format!("\"{name}\"")), "{source}");
    }
}
