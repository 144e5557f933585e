//! Which images a build began from, read from the names of its steps: `[2/3] FROM registry/name:tag@sha256:...`.
//!
//! BuildKit tells them nowhere else unless provenance is on. The coordinator wants them when it finds something wrong in a
//! layer: what came with a base image is not the build's own.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use kiln_common::{ImageReference, limits};
use kiln_proto::v1::{ProgressEntry, progress_entry::Event};

use crate::engine::Progress;

#[derive(Debug, Default)]
pub struct Bases(Mutex<BTreeSet<ImageReference>>);

impl Bases {
    /// Reads along with what goes to `log`.
    #[must_use]
    pub fn tap(self: Arc<Self>, log: Progress) -> Progress {
        Arc::new(move |entry: ProgressEntry| {
            if let Some(Event::Vertex(vertex)) = &entry.event
                && let Some(base) = base_of(&vertex.name)
            {
                let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                if known.len() < limits::BASE_IMAGES {
                    known.insert(base);
                }
            }
            log(entry);
        })
    }

    /// All that were seen.
    pub fn take(&self) -> Vec<ImageReference> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner)).into_iter().collect()
    }
}

fn base_of(step: &str) -> Option<ImageReference> {
    let (_, after) = step.split_once("] FROM ")?;
    let reference: ImageReference = after.split_whitespace().next()?.parse().ok()?;
    reference.digest().is_some().then_some(reference)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_begins_from_an_image_names_it() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let name = format!("docker.io/library/busybox:latest@{digest}");
        let found = |step: String| base_of(&step).map(|base| base.digest().expect("a digest").to_string());
        assert_eq!(found(format!("[build 1/3] FROM {name}")), Some(digest.clone()));
        assert_eq!(found(format!("[linux/arm64 1/2] FROM {name}")), Some(digest));
        assert_eq!(found("[1/2] FROM busybox".to_owned()), None);
        assert_eq!(found("[2/2] RUN echo ] FROM x".to_owned()), None);
    }
}
