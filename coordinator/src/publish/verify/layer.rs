//! One layer from its compressed bytes to a verdict: whether all of its programs run on the platform.

use std::io::{self, Read};

use kiln_common::context::pattern::PatternMatcher;

use super::{
    elf::Inspector,
    expected::Expected,
    tar::{self, TarError},
    unpack::unpack,
};

/// How much of a file is looked at at once.
const PIECE: usize = 64 * 1024;

/// A layer that may be published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing in it depends on the platform.
    NoPrograms,
    /// Its programs are the platform's, or allowed.
    Fits,
}

/// Why a layer may not be published.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The file and what it is, in words that go on after "is".
    #[error("`{path}` is {found}")]
    Foreign { path: String, found: String },
    #[error(transparent)]
    Unreadable(#[from] TarError),
}

impl From<io::Error> for LayerError {
    fn from(error: io::Error) -> Self {
        Self::Unreadable(error.into())
    }
}

/// Reads all of `layer` and looks at its ELF files.
///
/// # Errors
/// The first file that is out of place and not allowed, or why the layer does not read.
pub fn check(layer: impl Read, expected: &Expected, allowed: &PatternMatcher) -> Result<Verdict, LayerError> {
    let mut archive = unpack(layer)?;
    let mut piece = vec![0; PIECE];
    let mut verdict = Verdict::NoPrograms;
    tar::walk(&mut archive, |path, _, content| {
        let mut inspector = Inspector::default();
        while inspector.wants_more() {
            match content.read(&mut piece)? {
                0 => break,
                count => inspector.feed(&piece[..count]),
            }
        }
        let Some(program) = inspector.finish() else { return Ok(()) };
        verdict = Verdict::Fits;
        let Some(found) = expected.mismatch(&program) else { return Ok(()) };
        let path = path.trim_start_matches(['.', '/']);
        if allowed.matches_or_parent_matches(path) {
            return Ok(());
        }
        Err(LayerError::Foreign { path: format!("/{}", shown(path)), found })
    })?;
    Ok(verdict)
}

/// A path of outside data, fit for a message.
fn shown(path: &str) -> String {
    path.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).take(512).collect()
}
