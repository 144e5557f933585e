//! The targets by name, for the programs that `cargo fuzz` builds.

#[path = "../targets.rs"]
mod targets;

/// Runs one target.
///
/// # Panics
/// Where the parser breaks a promise.
pub fn run(name: &str, data: &[u8]) {
    let target = targets::TARGETS.into_iter().find(|(known, _)| *known == name);
    target.expect("a target").1(data);
}
