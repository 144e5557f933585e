//! A build on an engine, from its job to the descriptor of what was pushed.
//!
//! `Engine::build` is this. Whatever ends a build (the end of the job, a cancel, a dropped future, a killed worker) resets
//! its solve call, and the engine stops.

use std::{collections::HashMap, sync::Arc};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bollard_buildkit_proto::moby::buildkit::v1::SolveRequest;
use kiln_common::{Digest, limits, spec::ImageDescriptor};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::{
    EngineError,
    divided::Dividable,
    facts::EngineFacts,
    failure,
    job::{BuildError, BuildJob, BuildOutcome, CONTEXT_DIR, Progress},
    push::ClassicPush,
    request::{self, Order, Target},
    session::{Served, Sessions},
    solve::{self, SolveEnd},
};

/// Builds and pushes; stops when `cancel` says so.
pub async fn run(
    sessions: &Arc<Sessions>,
    facts: &EngineFacts,
    job: BuildJob,
    progress: Progress,
    cancel: &CancellationToken,
) -> BuildOutcome {
    let push = if request::pushes(facts.kind) {
        None
    } else {
        Some(
            ClassicPush::start(sessions.dialer(), &job.spec, &job.platform, &job.credentials, &job.insecure_registries)
                .await?,
        )
    };
    let target = match &push {
        Some(push) => Target::Store { names: push.names() },
        None => Target::Registries,
    };
    let outcome = solve_job(sessions, facts, job, &target, progress.clone(), cancel).await;
    match push {
        Some(push) => push.finish(outcome.map(drop), &progress, cancel).await,
        None => pushed_descriptor(&outcome?),
    }
}

/// Builds, exports nothing and stops when `cancel` says so.
pub async fn run_only(
    sessions: &Arc<Sessions>,
    facts: &EngineFacts,
    job: BuildJob,
    progress: Progress,
    cancel: &CancellationToken,
) -> Result<(), BuildError> {
    solve_job(sessions, facts, job, &Target::Nowhere, progress, cancel).await.map(drop)
}

async fn solve_job(
    sessions: &Arc<Sessions>,
    facts: &EngineFacts,
    job: BuildJob,
    target: &Target<'_>,
    progress: Progress,
    cancel: &CancellationToken,
) -> Result<HashMap<String, String>, BuildError> {
    let order = Order {
        spec: &job.spec,
        platform: &job.platform,
        facts,
        insecure_registries: &job.insecure_registries,
        builder_id: &job.builder_id,
    };
    let request = request::solve_request(&order, target)?;
    let dividable = dividable(sessions, &job);
    let served = Served {
        filesync: job.filesync,
        secrets: job.secrets,
        credentials: job.credentials,
        ssh_ids: job.spec.ssh_ids.clone(),
        agents: job.agents,
        shared_key: job.shared_key,
    };
    let lease = sessions.lease(served).await?;
    let session = lease.session();
    // An attempt may solve twice, and BuildKit remembers a name for a while.
    let name = format!("kiln-{}-{:08x}", job.attempt, rand::random::<u32>());
    let request = SolveRequest { r#ref: name, session: session.id.clone(), ..request };
    let solved = solve::solve(session.channel.clone(), request, dividable.as_ref(), progress, cancel).await;
    solved.map_err(|end| match end {
        SolveEnd::Refused { status, step } => failure::of_solve(&status, step.as_deref()),
        SolveEnd::Cancelled => BuildError::Cancelled,
    })
}

/// The context, where asking for all of its names takes longer than telling its parts apart. Provenance tells of the frontend
/// only where the engine itself runs it.
fn dividable(sessions: &Arc<Sessions>, job: &BuildJob) -> Option<Dividable> {
    let context = job.filesync.tree(CONTEXT_DIR)?;
    let is_large = context.manifest().entries().len() >= limits::CONTEXT_ENTRIES_TO_DIVIDE;
    let is_attested = job.spec.provenance.is_some() || job.spec.sbom.is_some();
    (is_large && !is_attested).then(|| Dividable {
        sessions: sessions.clone(),
        context: context.clone(),
        shared_key: job.shared_key.clone(),
    })
}

/// `containerimage.descriptor` of the exporters' answer.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Pushed {
    media_type: String,
    digest: Digest,
    size: u64,
}

fn pushed_descriptor(answer: &HashMap<String, String>) -> BuildOutcome {
    let pushed = answer
        .get("containerimage.descriptor")
        .and_then(|text| BASE64_STANDARD.decode(text).ok())
        .and_then(|json| serde_json::from_slice::<Pushed>(&json).ok())
        .ok_or_else(|| {
            BuildError::Infrastructure(
                "the engine does not say what it pushed; buildkitd 0.10 is the oldest that does".to_owned(),
            )
        })?;
    Ok(ImageDescriptor { media_type: pushed.media_type, digest: pushed.digest, size: pushed.size, bases: Vec::new() })
}

/// What stops a build before it begins is the engine's.
impl From<EngineError> for BuildError {
    fn from(error: EngineError) -> Self {
        Self::Infrastructure(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_pushed_is_read_from_the_answer() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let json = format!(
            r#"{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}","size":481,"annotations":{{}}}}"#
        );
        let answer = HashMap::from([("containerimage.descriptor".to_owned(), BASE64_STANDARD.encode(json))]);
        let pushed = pushed_descriptor(&answer).expect("well formed");
        assert_eq!((pushed.digest.to_string(), pushed.size), (digest, 481));
        assert!(matches!(pushed_descriptor(&HashMap::new()), Err(BuildError::Infrastructure(_))));
    }
}
