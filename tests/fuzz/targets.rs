//! Every parser of outside data that publishing has, by name. `main.rs` runs them over the corpus and its mutations in every
//! test run; `cargo/` hands the same functions to `cargo fuzz`.

use kiln_common::ImageReference;
use kiln_coordinator::publish::fuzz;

pub type Target = fn(&[u8]);

pub const TARGETS: [(&str, Target); 6] = [
    ("manifest", fuzz::manifest),
    ("index", fuzz::index),
    ("challenge", fuzz::challenge),
    ("reference", reference),
    ("elf", fuzz::elf),
    ("layer", fuzz::layer),
];

/// What is taken as a reference is written as one that reads the same.
fn reference(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(reference) = text.parse::<ImageReference>() {
        assert_eq!(reference.to_string().parse::<ImageReference>(), Ok(reference));
    }
}
