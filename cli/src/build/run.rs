//! One build from flags to exit code, top to bottom.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use kiln_common::{BuildSpec, ImageReference, Reason, spec::NamedContext};
use kiln_proto::{
    convert,
    v1::{self, BuildState, SubmitRequest},
};
use tokio::{sync::mpsc, task::JoinSet};

use super::{
    flags::BuildFlags,
    follow::{self, Outcome},
    forward,
    interrupt::Interrupts,
    metadata,
    options::{Options, Trees},
    refuse, secrets,
    source::{Input as BuildInput, Prepared},
    ssh::Agents,
};
use crate::{
    connection::{Farm, resolve::environment},
    context::Trust,
    dockerfile::{self, Dockerfile},
    failure::{Exit, Failure},
    output::{self, Paint, text},
    progress::{Input, Mode, Progress, Upload, summary},
    registry,
};

/// Times that a context is completed after the farm lost parts of it between upload and submit.
const COMPLETIONS: u32 = 3;
const UPLOAD_QUEUE: usize = 16;
const TICK: Duration = Duration::from_millis(100);

/// # Errors
/// The exit code and the words for the way it ended, other than success.
pub async fn run(flags: BuildFlags, farm: Farm) -> Result<(), Failure> {
    refuse::refuse_foreign(&flags)?;
    let options = Options::read(&flags, &environment)?;
    let secrets = secrets::read(&flags.secret, &environment)?;
    check_files(&flags)?;
    let agents = start_agents(&flags).await?;
    let mut interrupts = Interrupts::new()?;
    let farm = Arc::new(farm);
    farm.link().await?;
    let mode = if flags.quiet { Mode::Quiet } else { flags.progress };
    let mut progress = Progress::new(mode);

    let input = prepared_input(&flags, &mut progress, &mut interrupts).await?;
    let job =
        Job { flags: &flags, input, options, secrets, ssh_ids: agents.sockets.keys().cloned().collect(), farm: &farm };
    let (build, prepared) = job.submit(&mut progress, &mut interrupts).await?;
    let id = build.id.clone();
    progress.apply(Input::Build(Box::new(build.clone())));
    if flags.detach {
        progress.finish();
        write_files(&flags, &build)?;
        return output::write(&(id + "\n"));
    }
    let mut background = JoinSet::new();
    if !agents.sockets.is_empty() {
        background.spawn(forward::serve(Arc::clone(&farm), id.clone(), agents.sockets.clone()));
    }
    let outcome = follow::follow(&farm, &id, &mut progress, &mut interrupts).await;
    drop(background);
    progress.finish();
    match outcome? {
        Outcome::Detached => Err(detached(&id)),
        Outcome::Cancelled(build) => {
            tell(mode, &progress, &prepared.dockerfile);
            Err(Failure::new(Exit::Interrupted, format!("build {} is {}", build.id, text::build_state(build.state()))))
        }
        Outcome::Final(build) => {
            tell(mode, &progress, &prepared.dockerfile);
            write_files(&flags, &build)?;
            if mode == Mode::Quiet && !build.digest.is_empty() {
                output::write(&format!("{}\n", build.digest))?;
            }
            verdict(&build)
        }
    }
}

/// What letting go of a running build says.
#[must_use]
pub fn detached(id: &str) -> Failure {
    Failure::new(Exit::Interrupted, format!("build {id} goes on without you"))
        .remedy(format!("come back with `kiln builds watch {id}`, end it with `kiln builds cancel {id}`"))
}

/// The exit of a final build.
///
/// # Errors
/// It failed or was cancelled.
pub fn verdict(build: &v1::Build) -> Result<(), Failure> {
    let failed = |what: &str| {
        let why = if build.message.is_empty() { String::new() } else { format!(": {}", build.message) };
        Err(Failure::new(Exit::BuildFailed, format!("build {} {what}{why}", build.id)))
    };
    match build.state() {
        BuildState::Succeeded | BuildState::Incomplete => Ok(()),
        BuildState::Cancelled => failed("was cancelled"),
        BuildState::Failed => failed("failed"),
        BuildState::Unspecified | BuildState::Queued | BuildState::Running | BuildState::Publishing => {
            failed("did not reach its end")
        }
    }
}

fn tell(mode: Mode, progress: &Progress, dockerfile: &summary::Source) {
    if mode.is_for_people() {
        let now = kiln_common::Timestamp::now();
        output::aside(&summary::render(&progress.model, Some(dockerfile), Paint::for_stderr(), now));
    }
}

fn check_files(flags: &BuildFlags) -> Result<(), Failure> {
    if let Some(path) = &flags.metadata_file {
        metadata::check("--metadata-file", path)?;
    }
    if let Some(path) = &flags.iidfile {
        metadata::check("--iidfile", path)?;
        if flags.detach {
            return Err(Failure::usage("--iidfile needs the result, and --detach does not wait for it")
                .remedy("leave one of them out"));
        }
    }
    Ok(())
}

fn write_files(flags: &BuildFlags, build: &v1::Build) -> Result<(), Failure> {
    if let Some(path) = &flags.metadata_file {
        metadata::write_metadata(path, build)?;
    }
    match &flags.iidfile {
        Some(path) if !build.digest.is_empty() => metadata::write_iid(path, build),
        _ => Ok(()),
    }
}

/// On a thread that may block: loading a key can ask for its passphrase.
async fn start_agents(flags: &BuildFlags) -> Result<Agents, Failure> {
    let ssh = flags.ssh.clone();
    blocking(move || Agents::start(&ssh, &environment)).await
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Failure::new(Exit::BuildFailed, error)),
    }
}

/// What stays the same while a build is being submitted.
struct Job<'a> {
    flags: &'a BuildFlags,
    input: BuildInput,
    options: Options,
    secrets: HashMap<String, Vec<u8>>,
    ssh_ids: Vec<String>,
    farm: &'a Arc<Farm>,
}

impl Job<'_> {
    /// Uploads what the farm lacks and submits, again where the farm lost a part of the context in between. The
    /// request id makes a repeated submit the same build.
    async fn submit(
        &self,
        progress: &mut Progress,
        interrupts: &mut Interrupts,
    ) -> Result<(v1::Build, Prepared), Failure> {
        let request_id = uuid::Uuid::now_v7().to_string();
        let mut completed = 0;
        loop {
            let (uploads, news) = mpsc::channel(UPLOAD_QUEUE);
            let trust = if completed == 0 { Trust::EarlierUploads } else { Trust::Nothing };
            let upload = self.input.upload(self.farm, trust, uploads);
            let prepared = attended(upload, news, progress, interrupts).await?;
            let request = self.request(&request_id, &prepared).await?;
            let submitted = self.farm.call_status(async |link| link.builds().submit(request.clone()).await).await;
            match submitted {
                Ok(v1::SubmitResponse { build: Some(build), .. }) => return Ok((build, prepared)),
                Ok(v1::SubmitResponse { build: None, .. }) => {
                    return Err(Failure::new(Exit::BuildFailed, "the farm accepted a build and did not say which"));
                }
                Err(refusal) if refusal.is(Reason::ContextIncomplete) && completed < COMPLETIONS => completed += 1,
                Err(refusal) => return Err(refusal.into_failure()),
            }
        }
    }

    async fn request(&self, request_id: &str, prepared: &Prepared) -> Result<SubmitRequest, Failure> {
        let mut secret_ids: Vec<_> = self.secrets.keys().cloned().collect();
        secret_ids.sort();
        let trees: Trees = prepared.trees.clone();
        let spec = self.options.clone().spec(self.flags, trees, secret_ids, self.ssh_ids.clone())?;
        let credentials = match registry::config_file() {
            Some(config) => {
                let hosts = hosts(&spec, &prepared.dockerfile.text);
                blocking(move || registry::credentials(&config, &hosts)).await?
            }
            None => Vec::new(),
        };
        let secrets = self.secrets.iter().map(|(id, value)| (id.clone(), value.clone())).collect();
        let spec = Some(convert::spec::encode(&spec));
        Ok(SubmitRequest { request_id: request_id.to_owned(), spec, secrets, credentials })
    }
}

async fn prepared_input(
    flags: &BuildFlags,
    progress: &mut Progress,
    interrupts: &mut Interrupts,
) -> Result<BuildInput, Failure> {
    let (_, silence) = mpsc::channel(1);
    attended(BuildInput::read(flags), silence, progress, interrupts).await
}

/// Shows how the context gets on, and lets the user interrupt: nothing runs on the farm yet.
async fn attended<T>(
    work: impl Future<Output = Result<T, Failure>>,
    mut news: mpsc::Receiver<Upload>,
    progress: &mut Progress,
    interrupts: &mut Interrupts,
) -> Result<T, Failure> {
    let mut tick = tokio::time::interval(TICK);
    tokio::pin!(work);
    loop {
        tokio::select! {
            biased;
            Some(upload) = news.recv() => progress.apply(Input::Upload(upload)),
            done = &mut work => return done,
            () = interrupts.next() => {
                progress.finish();
                return Err(Failure::new(Exit::Interrupted, "interrupted before the build was submitted"));
            }
            _ = tick.tick() => progress.tick(),
        }
    }
}

/// The registries that the build names: of its tags, its caches, its named contexts and its Dockerfile's images.
fn hosts(spec: &BuildSpec, dockerfile: &str) -> BTreeSet<String> {
    let names: Vec<&str> = spec.named_contexts.keys().map(String::as_str).collect();
    let from_dockerfile = dockerfile::images(&Dockerfile::parse(dockerfile), &spec.build_args, &names);
    let contexts = spec.named_contexts.values().filter_map(|context| match context {
        NamedContext::Reference(reference) => reference.strip_prefix("docker-image://").map(str::to_owned),
        NamedContext::Tree(_) => None,
    });
    let caches = spec.cache_from.iter().chain(&spec.cache_to).filter_map(|cache| cache.attributes.get("ref").cloned());
    let named = from_dockerfile.into_iter().chain(contexts).chain(caches);
    named
        .filter_map(|text| text.parse::<ImageReference>().ok())
        .chain(spec.tags.iter().cloned())
        .map(|reference| reference.repository().host().to_owned())
        .collect()
}
