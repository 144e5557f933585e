//! One attempt, from its assignment to its acknowledged report.
//!
//! [`Jobs::start`] is called by the session for every assignment. Invariants: every assignment ends in exactly one final
//! report; a panic ends its own attempt and nothing else; secrets are gone when the build is.

mod assignment;
mod bases;
mod chunks;
mod contexts;
mod outcome;
mod trees;

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt;
use kiln_common::{AttemptId, Timestamp, spec::ImageDescriptor};
use kiln_proto::{convert::timestamp_to_wire, v1};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

pub use self::trees::OpenTrees;
use self::{
    assignment::Assignment,
    bases::Bases,
    outcome::{Built, End},
};
use crate::{
    agent_tunnel::AgentTunnel,
    builder::{Builder, Job},
    engine::{BuildError, Progress},
    logs::{AttemptLog, SpoolDir, ship},
    session::Link,
    slots::{NotAdmitted, Slots, StopCause},
    smoke,
};

/// The report of an attempt that was stopped waits this long for its log at most: a cancel is answered within a second.
const STOPPED_LOG_WAIT: Duration = Duration::from_millis(400);

/// A build that was told to stop has this long for its last words before it is dropped.
const STOPPED_BUILD_WAIT: Duration = Duration::from_millis(300);

/// What every job of this worker shares.
#[derive(Clone)]
pub struct Jobs {
    pub slots: Arc<Slots>,
    pub builder: Arc<dyn Builder>,
    pub trees: Arc<OpenTrees>,
    pub spools: SpoolDir,
    pub link: Link,
}

impl Jobs {
    /// Takes an assignment, or reports why not. Never waits.
    pub fn start(&self, wire: v1::Assignment) {
        let Ok(attempt_id) = wire.attempt_id.parse::<AttemptId>() else {
            return tracing::error!(attempt_id = wire.attempt_id, "an assignment has no attempt id; it is ignored");
        };
        let assignment = match Assignment::decode(attempt_id, wire) {
            Ok(assignment) => assignment,
            Err(problem) => return self.refuse(attempt_id, &problem),
        };
        match self.slots.admit(attempt_id) {
            Ok(stop) => {
                tracing::info!(%attempt_id, platform = %assignment.platform, grade = %assignment.grade, "attempt taken");
                tokio::spawn(run(self.clone(), assignment, stop));
            }
            Err(NotAdmitted::Known) => tracing::debug!(%attempt_id, "this attempt was already assigned"),
            Err(error @ (NotAdmitted::Full { .. } | NotAdmitted::Leaving)) => {
                self.refuse(attempt_id, &error.to_string());
            }
        }
    }

    fn refuse(&self, attempt_id: AttemptId, problem: &str) {
        let taken = self.slots.refuse(attempt_id, outcome::infrastructure(problem.to_owned(), 0));
        tracing::warn!(%attempt_id, reason = problem, reported = taken, "attempt refused");
    }
}

/// The whole life of an attempt.
async fn run(jobs: Jobs, assignment: Assignment, stop: CancellationToken) {
    let attempt_id = assignment.attempt;
    let log = Arc::new(AttemptLog::new(attempt_id, assignment.mask(), &jobs.spools));
    let shipping = AbortOnDropHandle::new(tokio::spawn(ship(log.clone(), jobs.link.clone())));

    let end = build_or_stop(&jobs, assignment, &log, &stop).await;
    let cause = stop.is_cancelled().then(|| jobs.slots.stop_cause(attempt_id)).flatten();
    if let (End::Stopped, Some(StopCause::Told(reason))) = (&end, &cause) {
        say(&log, format!("cancelled: {reason}"));
    }

    let entries = log.close();
    jobs.slots.delivering(attempt_id);
    let durable = log.durable(|| jobs.link.is_up());
    match &cause {
        None => durable.await,
        Some(StopCause::Orphaned) => {}
        Some(StopCause::Told(_) | StopCause::Exit) => {
            let _ = tokio::time::timeout(STOPPED_LOG_WAIT, durable).await;
        }
    }
    let outcome = end.report(cause.as_ref(), entries, &log);
    tracing::info!(%attempt_id, outcome = outcome::name(&outcome), log_entries = entries, "attempt ended");
    jobs.slots.finish(attempt_id, outcome);

    // The rest of a log whose report went ahead goes on until the report is acknowledged, and a little longer.
    jobs.slots.forgotten(attempt_id).await;
    let _ = tokio::time::timeout(STOPPED_LOG_WAIT, log.durable(|| true)).await;
    drop(shipping);
}

/// Builds until the end, the timeout or the stop, whichever is first. What is dropped stops in the engine.
async fn build_or_stop(jobs: &Jobs, assignment: Assignment, log: &Arc<AttemptLog>, stop: &CancellationToken) -> End {
    let timeout = assignment.timeout;
    let mut building = Box::pin(AssertUnwindSafe(build(jobs, assignment, log, stop)).catch_unwind());
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = tokio::time::sleep(timeout) => return End::TimedOut(timeout),
        result = &mut building => return match result {
            Ok(result) => End::Built(result),
            Err(panic) => End::Panicked(outcome::panic_message(&*panic)),
        },
    }
    let _ = tokio::time::timeout(STOPPED_BUILD_WAIT, building).await;
    End::Stopped
}

/// Contexts, then the engine.
async fn build(
    jobs: &Jobs,
    assignment: Assignment,
    log: &Arc<AttemptLog>,
    stop: &CancellationToken,
) -> Result<Built, BuildError> {
    let attempt = assignment.attempt;
    if let Some(warning) = assignment.emulation_warning() {
        log.append(entry(v1::progress_entry::Event::Warning(warning)));
    }
    let trees = contexts::open(&jobs.trees, &assignment, log).await?;
    let job = Job {
        attempt,
        platform: assignment.platform,
        grade: assignment.grade,
        shared_key: contexts::shared_key(&assignment.spec),
        spec: assignment.spec,
        secrets: assignment.secrets,
        credentials: assignment.credentials,
        insecure_registries: assignment.insecure_registries,
        filesync: trees.service(),
        agents: Arc::new(AgentTunnel::new(attempt, jobs.link.clone())),
        builder_id: assignment.builder_id,
    };
    let smoke = job.spec.smoke.is_some().then(|| smoke::Job::of(&job));
    let sink = log.clone();
    let progress: Progress = Arc::new(move |entry| sink.append(entry));
    jobs.slots.started(attempt);
    let bases = Arc::new(Bases::default());
    let built = jobs.builder.build(job, bases.clone().tap(progress.clone()), stop.clone()).await;
    let context_bytes_fetched = trees.fetched(log);
    match (built, trees.failure()) {
        (Ok(image), _) => {
            if let Some(smoke) = smoke {
                smoke::run(smoke, &*jobs.builder, jobs.trees.store(), progress, stop.clone(), &image).await?;
            }
            let image = ImageDescriptor { bases: bases.take(), ..image };
            Ok(Built { image, context_bytes_fetched })
        }
        (Err(BuildError::Build(message)), Some(failure)) => {
            Err(BuildError::Infrastructure(format!("{message}; the context failed: {failure}")))
        }
        (Err(error), _) => Err(error),
    }
}

/// A line of the worker's own.
fn say(log: &AttemptLog, text: String) {
    let vertex = "kiln:worker".to_owned();
    let now = Some(timestamp_to_wire(Timestamp::now()));
    log.append(entry(v1::progress_entry::Event::Vertex(v1::Vertex {
        digest: vertex.clone(),
        name: "[kiln] worker".to_owned(),
        started_at: now,
        completed_at: now,
        ..v1::Vertex::default()
    })));
    let line = v1::LogLine { vertex, stream: 2, text: text.into_bytes(), partial: false };
    log.append(entry(v1::progress_entry::Event::Line(line)));
}

fn entry(event: v1::progress_entry::Event) -> v1::ProgressEntry {
    v1::ProgressEntry { time: Some(timestamp_to_wire(Timestamp::now())), event: Some(event) }
}
