//! `kiln builds`: what runs and ran, and what to do with it.

use std::sync::Arc;

use clap::{Args, Subcommand, ValueEnum};
use kiln_common::{ImageReference, Timestamp, limits};
use kiln_proto::v1::{
    BackfillBuildRequest, Build, BuildState, CancelBuildRequest, ExplainBuildRequest, GetBuildRequest,
    ListBuildsRequest, ListBuildsResponse, RegistryCredential, RetryBuildRequest, TaskState, build_spec, named_context,
};

use super::{
    builds_explain,
    builds_logs::{self, Logs},
};
use crate::{
    build::{
        follow::{self, Outcome},
        interrupt::Interrupts,
        run::{detached, verdict},
    },
    connection::Farm,
    failure::{Exit, Failure},
    output::{self, Format, OutputFlag, Paint, Table, text},
    progress::{Input, Mode, Progress, summary},
    registry,
};

#[derive(Debug, Args)]
pub struct Builds {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List builds, newest first
    Ls(List),
    /// Show one build with its platforms
    Show {
        #[command(flatten)]
        build: BuildId,
        #[command(flatten)]
        output: OutputFlag,
    },
    /// Print a build's output
    Logs(Logs),
    /// Follow a build as `kiln build` does
    Watch {
        #[command(flatten)]
        build: BuildId,
        /// How to show progress
        #[arg(long, value_enum, env = "BUILDKIT_PROGRESS", default_value_t, value_name = "MODE")]
        progress: Mode,
    },
    /// End a build; its legs are stopped on their workers
    Cancel {
        #[command(flatten)]
        build: BuildId,
        /// Why, for the record
        #[arg(long, default_value = "cancelled with kiln builds cancel", hide_default_value = true)]
        reason: String,
    },
    /// Run the failed legs, or only the publish, again
    Retry {
        #[command(flatten)]
        build: BuildId,
    },
    /// Run the optional platforms that an incomplete build lacks
    Backfill {
        #[command(flatten)]
        build: BuildId,
    },
    /// Say why each waiting leg waits
    Explain {
        #[command(flatten)]
        build: BuildId,
        #[command(flatten)]
        output: OutputFlag,
    },
}

#[derive(Debug, Args)]
struct BuildId {
    /// The build's id, or the first 8 characters or more of it
    #[arg(value_name = "ID")]
    id: String,
}

#[derive(Debug, Args)]
struct List {
    /// Only builds in these states
    #[arg(long, value_enum, value_name = "STATES", value_delimiter = ',')]
    state: Vec<State>,
    /// Only builds of this project
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    project: String,
    /// Only builds that name this repository
    #[arg(long, value_name = "REPOSITORY")]
    repository: Option<String>,
    /// At most this many builds
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20)]
    limit: u32,
    #[command(flatten)]
    output: OutputFlag,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum State {
    Queued,
    Running,
    Publishing,
    Succeeded,
    Incomplete,
    Failed,
    Cancelled,
}

impl State {
    const fn wire(self) -> BuildState {
        match self {
            Self::Queued => BuildState::Queued,
            Self::Running => BuildState::Running,
            Self::Publishing => BuildState::Publishing,
            Self::Succeeded => BuildState::Succeeded,
            Self::Incomplete => BuildState::Incomplete,
            Self::Failed => BuildState::Failed,
            Self::Cancelled => BuildState::Cancelled,
        }
    }
}

pub async fn run(builds: Builds, farm: Farm) -> Result<(), Failure> {
    let default = || {
        let output = OutputFlag { output: Format::Table };
        Action::Ls(List { state: Vec::new(), project: String::new(), repository: None, limit: 20, output })
    };
    match builds.action.unwrap_or_else(default) {
        Action::Ls(list) => ls(list, &farm).await,
        Action::Show { build, output } => {
            let build = get(&build.id, &farm).await?;
            output::print(output.output, &build, |paint| show(&build, paint))
        }
        Action::Logs(logs) => builds_logs::run(logs, &farm).await,
        Action::Watch { build, progress } => watch(&build.id, progress, farm).await,
        Action::Cancel { build, reason } => {
            let request = CancelBuildRequest { id: build.id, reason };
            let build = farm.call(async |link| link.builds().cancel(request.clone()).await).await?;
            output::write(&format!("build {} is being cancelled ({})\n", build.id, text::build_state(build.state())))
        }
        Action::Retry { build } => {
            let credentials = credentials(&build.id, &farm).await?;
            let request = RetryBuildRequest { id: build.id, credentials };
            let build = farm.call_once(async |link| link.builds().retry(request.clone()).await).await?;
            again(&build)
        }
        Action::Backfill { build } => {
            let credentials = credentials(&build.id, &farm).await?;
            let request = BackfillBuildRequest { id: build.id, credentials };
            let build = farm.call_once(async |link| link.builds().backfill(request.clone()).await).await?;
            again(&build)
        }
        Action::Explain { build, output } => {
            let request = ExplainBuildRequest { id: build.id };
            let answer = farm.call(async |link| link.builds().explain(request.clone()).await).await?;
            output::print(output.output, &answer, |paint| builds_explain::text(&answer, paint, Timestamp::now()))
        }
    }
}

/// This machine's credentials for the registries that the build pushes to and keeps its caches in.
async fn credentials(id: &str, farm: &Farm) -> Result<Vec<RegistryCredential>, Failure> {
    let spec = get(id, farm).await?.spec.unwrap_or_default();
    let caches = spec.cache_from.iter().chain(&spec.cache_to).flat_map(|option| option.split(','));
    let caches = caches.filter_map(|part| part.strip_prefix("ref="));
    let named = spec.tags.iter().map(String::as_str).chain(caches);
    let references = named.filter_map(|text| text.parse::<ImageReference>().ok());
    registry::of_hosts(references.map(|reference| reference.repository().host().to_owned()).collect()).await
}

async fn get(id: &str, farm: &Farm) -> Result<Build, Failure> {
    let request = GetBuildRequest { id: id.to_owned() };
    farm.call(async |link| link.builds().get(request.clone()).await).await
}

fn again(build: &Build) -> Result<(), Failure> {
    let (id, state) = (&build.id, text::build_state(build.state()));
    output::write(&format!("build {id} is {state}; follow it with `kiln builds watch {id}`\n"))
}

async fn ls(list: List, farm: &Farm) -> Result<(), Failure> {
    let repository = match &list.repository {
        Some(text) => text.parse::<kiln_common::Repository>().map_err(Failure::usage)?.to_string(),
        None => String::new(),
    };
    let limit = list.limit.max(1) as usize;
    let mut all = ListBuildsResponse::default();
    loop {
        let request = ListBuildsRequest {
            page_size: u32::try_from((limit - all.builds.len()).min(limits::PAGE_SIZE_MAX)).unwrap_or(0),
            page_token: all.next_page_token.clone(),
            states: list.state.iter().map(|state| state.wire().into()).collect(),
            project: list.project.clone(),
            repository: repository.clone(),
        };
        let page = farm.call(async |link| link.builds().list(request.clone()).await).await?;
        all.builds.extend(page.builds);
        all.next_page_token = page.next_page_token;
        if all.next_page_token.is_empty() || all.builds.len() >= limit {
            break;
        }
    }
    output::print(list.output.output, &all, |paint| table(&all.builds, paint))
}

fn table(builds: &[Build], paint: Paint) -> String {
    if builds.is_empty() {
        return "no build yet; start one with `kiln build -t REPOSITORY:TAG PATH`\n".to_owned();
    }
    let now = Timestamp::now();
    let mut table = Table::new(["ID", "STATE", "IMAGE", "PLATFORMS", "TIME", "AGE"]);
    for build in builds {
        let tags = build.spec.as_ref().map(|spec| spec.tags.as_slice()).unwrap_or_default();
        let more = if tags.len() > 1 { format!(" +{}", tags.len() - 1) } else { String::new() };
        let done = build.tasks.iter().filter(|task| task.state() == TaskState::Succeeded).count();
        table.row([
            text::short_id(&build.id).to_owned(),
            text::paint_state(paint, text::build_state(build.state())),
            tags.first().cloned().unwrap_or_default() + &more,
            format!("{done}/{}", build.tasks.len()),
            text::span(build.created_at.as_ref(), build.finished_at.as_ref(), now),
            text::age_of(build.created_at.as_ref(), now),
        ]);
    }
    table.render(paint)
}

fn show(build: &Build, paint: Paint) -> String {
    let now = Timestamp::now();
    let spec = build.spec.clone().unwrap_or_default();
    let state = text::paint_state(paint, text::build_state(build.state()));
    let why = if build.message.is_empty() { String::new() } else { format!(": {}", build.message) };
    let dockerfile = match &spec.dockerfile {
        Some(build_spec::Dockerfile::DockerfileInTree(file)) => file.filename.clone(),
        Some(build_spec::Dockerfile::DockerfileInline(_)) => "inline".to_owned(),
        None => String::new(),
    };
    let mut args: Vec<_> = spec.build_args.iter().map(|(key, value)| format!("{key}={value}")).collect();
    args.sort();
    let context = |(name, context): (&String, &kiln_proto::v1::NamedContext)| match &context.source {
        Some(named_context::Source::Reference(reference)) => format!("{name}={reference}"),
        Some(named_context::Source::Tree(_)) | None => format!("{name}=uploaded"),
    };
    let mut contexts: Vec<_> = spec.named_contexts.iter().map(context).collect();
    contexts.sort();
    let time = text::span(build.created_at.as_ref(), build.finished_at.as_ref(), now);
    let mut lines = vec![
        ("build", paint.bold(&build.id)),
        ("state", state + &why),
        ("source", spec.source.clone()),
        ("dockerfile", dockerfile),
        ("target", spec.target.clone()),
        ("build args", args.join(" ")),
        ("contexts", contexts.join(" ")),
        ("project", spec.project.clone()),
        ("emulation", spec.emulation.clone()),
        ("created", format!("{} ago, took {time}", text::age_of(build.created_at.as_ref(), now))),
        ("digest", build.digest.clone()),
    ];
    lines.extend(spec.tags.iter().map(|tag| {
        let moved = if build.published_tags.contains(tag) { paint.green(" published") } else { String::new() };
        ("tag", format!("{tag}{moved}"))
    }));
    let line = |(key, value): (&str, String)| format!("{} {value}\n", paint.dim(&format!("{key:10}")));
    let mut out: String = lines.into_iter().filter(|(_, value)| !value.is_empty()).map(line).collect();
    out += &format!("\n{}", summary::tasks(build, paint, now));
    for task in build.tasks.iter().filter(|task| !task.reason.is_empty() || !task.message.is_empty()) {
        let said = if task.message.is_empty() { &task.reason } else { &task.message };
        out += &format!("{} {said}\n", paint.dim(&format!("{}:", task.platform)));
    }
    out
}

async fn watch(id: &str, mode: Mode, farm: Farm) -> Result<(), Failure> {
    let build = get(id, &farm).await?;
    let id = build.id.clone();
    let mut interrupts = Interrupts::new()?;
    let mut progress = Progress::new(mode);
    progress.apply(Input::Build(Box::new(build)));
    let outcome = follow::follow(&Arc::new(farm), &id, &mut progress, &mut interrupts).await;
    progress.finish();
    let (build, cancelled) = match outcome? {
        Outcome::Detached => return Err(detached(&id)),
        Outcome::Cancelled(build) => (build, true),
        Outcome::Final(build) => (build, false),
    };
    if mode.is_for_people() {
        output::aside(&summary::render(&progress.model, None, Paint::for_stderr(), Timestamp::now()));
    }
    if mode == Mode::Quiet && !build.digest.is_empty() {
        output::write(&format!("{}\n", build.digest))?;
    }
    if cancelled {
        let state = text::build_state(build.state());
        return Err(Failure::new(Exit::Interrupted, format!("build {id} is {state}")));
    }
    verdict(&build)
}
