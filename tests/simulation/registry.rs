//! The registry, as the publisher sees it: slow, failing now and then, and heard of late.

use std::collections::BTreeMap;

use kiln_common::{Digest, spec::ImageDescriptor};
use kiln_scheduler::{Event, effect::PublishJob, record::Published};

use crate::{
    oracle::check_publish,
    world::{Action, Outcome, World},
};

impl World {
    pub fn begin_publish(&mut self, job: Box<PublishJob>) -> Outcome {
        check_publish(&self.store, &job)?;
        self.publishing.insert(job.build, job.publish);
        let generation = self.generation;
        // One that is abandoned may still say how it ended.
        let late = self.chance.percent(50);
        self.soon(500, 15_000, Action::PublishEnds { generation, job, abandoned: late });
        Ok(())
    }

    pub fn publish_ends(&mut self, generation: u64, job: &PublishJob, late: bool) -> Outcome {
        let (build, publish) = (job.build, job.publish);
        if generation != self.generation {
            return Ok(());
        }
        if self.publishing.get(&build) != Some(&publish) {
            let message = "abandoned".to_owned();
            let event = Event::PublishFailed { build, publish, published: None, message };
            return if late { self.event(event) } else { Ok(()) };
        }
        self.publishing.remove(&build);
        let mut published = Published {
            digest: image(self.images).digest,
            media_type: "application/vnd.oci.image.index.v1+json".to_owned(),
            size: 1,
            tags: job.spec.tags.iter().map(ToString::to_string).collect(),
            platform_sizes: BTreeMap::new(),
            at: self.now,
        };
        if !self.calm && self.chance.percent(20) {
            published.tags.truncate(1);
            let published = self.chance.percent(30).then_some(published);
            let message = "503 for two minutes".to_owned();
            return self.event(Event::PublishFailed { build, publish, published, message });
        }
        check_publish(&self.store, job)?;
        self.moved.insert(build);
        self.event(Event::PublishSucceeded { build, publish, published })
    }
}

/// The image of this number; no two are alike.
pub fn image(number: u64) -> ImageDescriptor {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    ImageDescriptor {
        media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
        digest: Digest::from_sha256(bytes),
        size: number,
        bases: Vec::new(),
    }
}
