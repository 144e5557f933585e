//! The scheduler in a model farm where everything goes wrong: workers crash, hang, are cut off, come back late, fill their
//! disks, run short of memory; reports come twice, late and out of order; the coordinator crashes between any two steps;
//! clocks jump; registries fail. One seed is one history.
//!
//! `KILN_SIMULATION_SEEDS=N` runs N seeds (10,000 unless set), from `KILN_SIMULATION_FIRST` on (0 unless set);
//! `KILN_SIMULATION_SEED=S` replays one and prints its history.

mod chance;
mod coordinator;
mod jobs;
mod model_worker;
mod oracle;
mod registry;
mod scenario;
mod sessions;
mod trouble;
mod world;

use std::{
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use kiln_scheduler::mutation::Mutation;

use crate::world::World;

const SEEDS: u64 = 10_000;
/// Seeds in which a known defect must show.
const SEEDS_PER_MUTATION: u64 = 400;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs one history to its end; `Err` is the rule that was broken.
fn run(seed: u64, mutation: Mutation) -> Result<u64, String> {
    let history = catch_unwind(AssertUnwindSafe(|| World::new(seed, mutation).run()));
    history.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        Err(text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_else(|| "a panic".into()))
    })
}

fn replay(seed: u64) -> String {
    format!("KILN_SIMULATION_SEED={seed} cargo test -p kiln-scheduler --test simulation every_history -- --nocapture")
}

/// Runs seeds on all processors; gives the first that fails.
fn first_failure(seeds: Range<u64>, mutation: Mutation) -> Option<(u64, String)> {
    let (next, failure) = (AtomicU64::new(seeds.start), Mutex::new(None::<(u64, String)>));
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || failure.lock().is_ok_and(|known| known.is_some()) {
                        return;
                    }
                    if let Err(message) = run(seed, mutation)
                        && let Ok(mut known) = failure.lock()
                    {
                        known.get_or_insert((seed, message));
                    }
                }
            });
        }
    });
    failure.into_inner().ok().flatten()
}

#[test]
fn every_history_keeps_the_rules_and_ends_every_build() {
    if let Some(seed) = number("KILN_SIMULATION_SEED") {
        let mut world = World::new(seed, Mutation::None);
        world.narrate = true;
        let outcome = world.run();
        assert!(outcome.is_ok(), "{}", outcome.err().unwrap_or_default());
        return;
    }
    let seeds = number("KILN_SIMULATION_SEEDS").unwrap_or(SEEDS);
    let first = number("KILN_SIMULATION_FIRST").unwrap_or(0);
    let started = Instant::now();
    if let Some((seed, message)) = first_failure(first..first + seeds, Mutation::None) {
        panic!("seed {seed}: {message}\nreplay it: {}", replay(seed));
    }
    println!("{seeds} histories in {:.1} s", started.elapsed().as_secs_f64());
}

#[test]
fn one_seed_run_twice_gives_the_same_bytes() {
    for seed in 0..50 {
        let trace = || {
            let mut world = World::new(seed, Mutation::None);
            world.trace = true;
            world.run()
        };
        let (first, second) = (trace(), trace());
        assert!(first.is_ok(), "seed {seed}: {first:?}");
        assert_eq!(first, second, "seed {seed} ran differently the second time");
    }
}

#[test]
fn the_simulation_finds_each_known_defect() {
    // The defects are meant to panic and to break rules; their noise is not news.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let missed: Vec<_> = Mutation::ALL
        .into_iter()
        .filter(|mutation| match first_failure(0..SEEDS_PER_MUTATION, *mutation) {
            Some((seed, message)) => {
                let message: String = message.chars().take(120).collect();
                println!("{mutation:?}: seed {seed}: {message}");
                false
            }
            None => true,
        })
        .collect();
    std::panic::set_hook(hook);
    assert!(missed.is_empty(), "not found within {SEEDS_PER_MUTATION} seeds: {missed:?}");
}
