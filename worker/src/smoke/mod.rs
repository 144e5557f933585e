//! A smoke run: one command in the image that was just pushed, on this engine, before the attempt succeeds.
//!
//! `job` calls [`run`]. To BuildKit it is a build of two lines, `FROM image@digest` and `RUN command`, that exports nothing:
//! that works on every engine, takes the image's user, environment and folder as they are, and its output is
//! in the attempt's log. The command has no network, and its time and memory are bounded.

mod output;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use kiln_common::{
    AttemptId, BuildSpec, Feature, Grade, Platform,
    context::single_file_tree,
    limits,
    smoke::Smoke,
    spec::{Dockerfile, ImageDescriptor, NetworkMode, PlatformRequest, Ulimit},
};
use tokio_util::sync::CancellationToken;

use self::output::Output;
use crate::{
    builder::{self, Builder},
    context::{ContextStore, ContextTree, FileSyncService, MemorySource},
    engine::{
        BuildError, NoAgents, Progress, RegistryCredential,
        job::{CONTEXT_DIR, DOCKERFILE_DIR},
    },
};

const FILENAME: &str = "Dockerfile";

/// What a smoke run takes over of its attempt: not its trees, its secrets or its agents.
pub struct Job {
    attempt: AttemptId,
    platform: Platform,
    grade: Grade,
    spec: Arc<BuildSpec>,
    credentials: BTreeMap<String, RegistryCredential>,
    insecure_registries: BTreeSet<String>,
}

impl Job {
    #[must_use]
    pub fn of(job: &builder::Job) -> Self {
        Self {
            attempt: job.attempt,
            platform: job.platform.clone(),
            grade: job.grade,
            spec: job.spec.clone(),
            credentials: job.credentials.clone(),
            insecure_registries: job.insecure_registries.clone(),
        }
    }
}

/// Runs the image's smoke command, if the build has one.
///
/// # Errors
/// The command failed, took too long or did not print what was expected; or the engine could not run it.
pub async fn run(
    job: Job,
    builder: &dyn Builder,
    contexts: &Arc<ContextStore>,
    log: Progress,
    stop: CancellationToken,
    image: &ImageDescriptor,
) -> Result<(), BuildError> {
    let Some(smoke) = job.spec.smoke.clone() else { return Ok(()) };
    let platform = job.platform.clone();
    let words = smoke.words(&platform).map_err(|error| BuildError::Build(format!("--smoke: {error}")))?;
    let command = words.join(" ");
    let output = Arc::new(Output::default());
    let limits_steps = builder.watch().borrow().facts().features.contains(&Feature::StepLimits);
    let run = prepare(job, contexts, limits_steps, image, &words).await?;
    let running = builder.run(run, output.clone().tap(log), stop);
    match tokio::time::timeout(limits::SMOKE_TIMEOUT, running).await {
        Ok(Ok(())) => judge(&smoke, &platform, &command, &output),
        Ok(Err(error)) => Err(explain(error, &command)),
        Err(_) => Err(BuildError::Build(format!(
            "the smoke run `{command}` did not end within {}s; it has to end by itself",
            limits::SMOKE_TIMEOUT.as_secs()
        ))),
    }
}

fn explain(error: BuildError, command: &str) -> BuildError {
    match error {
        BuildError::Build(message) => BuildError::Build(format!("the smoke run `{command}` failed: {message}")),
        // No engine runs a program of a CPU that it does not have.
        BuildError::Infrastructure(message) if message.contains("exec format error") => {
            BuildError::Build(format!("the smoke run `{command}` failed: {message}"))
        }
        error @ (BuildError::Infrastructure(_) | BuildError::Registry(_) | BuildError::Cancelled) => error,
    }
}

fn judge(smoke: &Smoke, platform: &Platform, command: &str, output: &Output) -> Result<(), BuildError> {
    let Some(expected) = smoke.expected(platform) else { return Ok(()) };
    if output.contains(&expected) {
        return Ok(());
    }
    Err(BuildError::Build(format!("the smoke run `{command}` printed {}, not `{expected}`", output.beginning())))
}

/// The two lines as a job of their own.
async fn prepare(
    job: Job,
    contexts: &Arc<ContextStore>,
    limits_steps: bool,
    image: &ImageDescriptor,
    words: &[String],
) -> Result<builder::Job, BuildError> {
    let failed = |problem: String| BuildError::Infrastructure(format!("the smoke run cannot begin: {problem}"));
    let repository = job.spec.repositories().first().map(ToString::to_string).unwrap_or_default();
    let text = format!("FROM {repository}@{}\nRUN {}\n", image.digest, exec_form(words));
    let (digest, chunks) =
        single_file_tree(FILENAME, &text).ok_or_else(|| failed("its Dockerfile is too long".to_owned()))?;
    let mut source = MemorySource::default();
    for (_, bytes) in chunks {
        source.insert(bytes);
    }
    let tree =
        ContextTree::open(contexts, Arc::new(source), digest).await.map_err(|error| failed(error.to_string()))?;
    let trees = BTreeMap::from([(CONTEXT_DIR.to_owned(), ContextTree::empty()), (DOCKERFILE_DIR.to_owned(), tree)]);
    let spec = BuildSpec {
        platforms: vec![PlatformRequest { platform: job.platform.clone(), required: true }],
        tags: job.spec.tags.clone(),
        network: NetworkMode::None,
        no_cache: true,
        ulimits: if limits_steps { vec![memory_limit()] } else { Vec::new() },
        project: job.spec.project.clone(),
        ..BuildSpec::bare(Dockerfile { tree: digest, filename: FILENAME.to_owned() })
    };
    Ok(builder::Job {
        attempt: job.attempt,
        platform: job.platform,
        grade: job.grade,
        spec: Arc::new(spec),
        secrets: BTreeMap::new(),
        credentials: job.credentials,
        insecure_registries: job.insecure_registries,
        filesync: FileSyncService::new(trees),
        agents: Arc::new(NoAgents),
        shared_key: format!("smoke-{repository}"),
        builder_id: String::new(),
    })
}

/// Memory that a process may write to. BuildKit knows no limit for all of a step's processes together.
fn memory_limit() -> Ulimit {
    let bytes = i64::try_from(limits::SMOKE_MEMORY_BYTES).unwrap_or(i64::MAX);
    Ulimit { name: "data".to_owned(), soft: bytes, hard: bytes }
}

/// JSON, so that no shell has to be there and none changes a word (Dockerfile reference, "Exec form").
fn exec_form(words: &[String]) -> String {
    serde_json::Value::from(words).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stay_what_they_are() {
        let words = ["/bin/echo", "a b", "\"quoted\"", "back\\slash", "$HOME"].map(str::to_owned);
        assert_eq!(exec_form(&words), r#"["/bin/echo","a b","\"quoted\"","back\\slash","$HOME"]"#);
    }
}
