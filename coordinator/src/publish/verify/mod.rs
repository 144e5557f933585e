//! What a leg's layers hold: every program in them is the platform's own, before a tag moves.
//!
//! `leg` asks for each leg as it finishes. Invariants: a layer is read as a stream and never held; a layer that was found
//! good is not read again; `--verify off` alone skips the check.

mod attributes;
mod bases;
mod elf;
mod expected;
pub mod fuzz;
mod layer;
mod read;
mod tar;
mod unpack;
mod verdicts;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::future::try_join_all;
use kiln_common::{
    Digest, Repository,
    context::pattern::PatternMatcher,
    limits,
    spec::{BuildSpec, Verify},
};
use kiln_scheduler::effect::Leg;
use tokio::sync::Semaphore;

use self::{bases::Origin, expected::Expected, layer::Verdict, read::Question, verdicts::Verdicts};
use super::{
    error::{Fault, RegistryError},
    manifest::Descriptor,
    registry::Session,
};

/// Where programs of other platforms lie on purpose in images of every kind: npm's prebuilt add-ons, the test data of
/// compilers and parsers, firmware, and what a debugger of both of a CPU's modes brings along.
const ALLOWED_EVERYWHERE: [&str; 5] =
    ["**/prebuilds/**", "**/testdata/**", "lib/firmware/**", "usr/lib/firmware/**", "usr/libexec/valgrind/**"];

/// Verifies layers, each once.
pub struct Verifier {
    verdicts: Verdicts,
    /// A layer that several legs share is read by one of them.
    reading: Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
    permits: Semaphore,
}

impl Verifier {
    /// Keeps its verdicts at `path`.
    #[must_use]
    pub fn new(path: Option<PathBuf>) -> Self {
        let verdicts = path.map(Verdicts::at).unwrap_or_default();
        Self { verdicts, reading: Mutex::default(), permits: Semaphore::new(limits::LAYERS_VERIFIED_AT_ONCE) }
    }

    /// Checks the layers of a leg's image.
    ///
    /// # Errors
    /// The first file that is not the platform's, with its layer.
    pub async fn check(
        &self,
        session: &Session,
        repository: &Repository,
        spec: &BuildSpec,
        leg: &Leg,
        layers: &[Descriptor],
    ) -> Result<(), RegistryError> {
        let (Verify::Programs, Some(expected)) = (spec.verify, Expected::of(&leg.platform)) else { return Ok(()) };
        let allowed = &spec.verify_allow;
        let is_open = |layer: &&Descriptor| is_archive(layer) && !self.is_known(layer, leg, allowed);
        let open: Vec<&Descriptor> = layers.iter().filter(is_open).collect();
        if open.is_empty() {
            return Ok(());
        }
        let patterns: Vec<&str> = ALLOWED_EVERYWHERE.into_iter().chain(allowed.iter().map(String::as_str)).collect();
        let patterns = PatternMatcher::new(&patterns)
            .map_err(|error| RegistryError::new(Fault::Final, format!("--verify-allow: {error}")))?;
        let question = Question { expected, allowed: Arc::new(patterns) };
        let case = Case { session, repository, leg, allowed, question };
        try_join_all(open.into_iter().map(|layer| self.check_layer(&case, layer))).await.map(drop)
    }

    fn is_known(&self, layer: &Descriptor, leg: &Leg, allowed: &[String]) -> bool {
        self.verdicts.contains(&layer.digest, &leg.platform, allowed)
    }

    async fn check_layer(&self, case: &Case<'_>, layer: &Descriptor) -> Result<(), RegistryError> {
        let turn = self.turn(&layer.digest);
        let _turn = turn.lock().await;
        if self.is_known(layer, case.leg, case.allowed) {
            return Ok(());
        }
        let _permit = self.permits.acquire().await;
        let checked = read::check(case.session, case.repository, layer, &case.question).await;
        // However long it took: what comes after it has the whole budget.
        case.session.budget.renew();
        let verdict = match checked {
            Err(error) if error.fault == Fault::Foreign => case.excuse(layer, error).await?,
            verdict => verdict?,
        };
        self.verdicts.add(&layer.digest, &case.leg.platform, case.allowed, verdict);
        Ok(())
    }

    fn turn(&self, layer: &Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        reading.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(reading.entry(layer.clone()).or_default())
    }
}

/// One leg's layers and what they are checked against.
struct Case<'a> {
    session: &'a Session,
    repository: &'a Repository,
    leg: &'a Leg,
    allowed: &'a [String],
    question: Question,
}

impl Case<'_> {
    /// What came with a base image is not the build's to mend.
    async fn excuse(&self, layer: &Descriptor, error: RegistryError) -> Result<Verdict, RegistryError> {
        match bases::origin(self.session, &self.leg.image.bases, &self.leg.platform, &layer.digest).await {
            Origin::Base => {
                tracing::info!(layer = %layer.digest, found = %error, "left alone: it came with a base image");
                Ok(Verdict::Fits)
            }
            Origin::Build => Err(error),
            Origin::Unknown(why) => {
                let message = format!("{} (whether it came with a base image is not known: {why})", error.message);
                Err(RegistryError { message, ..error })
            }
        }
    }
}

/// Artifacts may have layers of other kinds; images' are archives (OCI image-spec, layer.md; Docker's schema 2).
fn is_archive(layer: &Descriptor) -> bool {
    let kind = layer.media_type.split('+').next().unwrap_or_default();
    let is_image_layer = kind.starts_with("application/vnd.oci.image.layer.")
        || kind.starts_with("application/vnd.docker.image.rootfs.");
    is_image_layer
        && !layer.media_type.contains("encrypted")
        && !kind.contains("foreign")
        && !kind.contains("nondistributable")
}
