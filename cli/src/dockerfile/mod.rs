//! Reads a Dockerfile as far as the client needs it: which images it names, and which lines a step stands on.
//!
//! BuildKit on the worker is the one that understands it; what is not understood here is left out, never refused.

mod images;
mod locate;
mod scan;

pub use images::images;
pub use locate::excerpt;
pub use scan::{Dockerfile, Instruction};
