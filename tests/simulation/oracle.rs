//! What an outside observer knows must hold, from the committed records and from what workers and registry saw.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use kiln_common::{AttemptId, BuildId, BuildSpec, Digest, EmulationPolicy, TaskId, Timestamp, WorkerId};
use kiln_scheduler::{
    BuildRecord, CredentialsMark, TaskRecord, WorkerRecord,
    effect::{Dispatch, PublishJob},
    event::WorkerStats,
    invariants::check_transition,
    record::TaskState,
};

/// The committed records.
#[derive(Debug, Clone, Default)]
pub struct Store {
    pub builds: BTreeMap<BuildId, BuildRecord>,
    pub tasks: BTreeMap<TaskId, TaskRecord>,
    pub workers: BTreeMap<WorkerId, WorkerRecord>,
}

impl Store {
    pub fn put_task(&mut self, task: TaskRecord) -> Result<(), String> {
        if let Some(old) = self.tasks.get(&task.id) {
            check_transition(old, &task).map_err(|violation| violation.to_string())?;
        }
        self.tasks.insert(task.id, task);
        Ok(())
    }

    pub fn put_build(&mut self, build: BuildRecord) -> Result<(), String> {
        if let Some(old) = self.builds.get(&build.id)
            && old.revision >= build.revision
        {
            return Err(format!("build {} went from revision {} to {}", build.id, old.revision, build.revision));
        }
        self.builds.insert(build.id, build);
        Ok(())
    }

    pub fn tasks_of(&self, build: &BuildRecord) -> Vec<TaskRecord> {
        build.tasks.iter().filter_map(|task| self.tasks.get(task).cloned()).collect()
    }
}

/// For whom a worker made an image: whose spec, and whose registry credentials.
#[derive(Debug, Clone)]
pub struct Made {
    pub build: BuildId,
    pub spec: Arc<BuildSpec>,
    pub credentials: Option<CredentialsMark>,
}

/// What a worker said of itself, as the coordinator heard it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Heard {
    disk_full: bool,
    /// Above 30 % of the time until below 10 %.
    short_of_memory: bool,
}

impl Heard {
    pub fn hear(&mut self, stats: &WorkerStats) {
        let mark = if self.short_of_memory { 10.0 } else { 30.0 };
        self.short_of_memory = stats.memory_pressure.is_some_and(|pressure| pressure >= mark);
        self.disk_full = stats.disk_available == Some(0);
    }
}

/// A leg's image is its own build's, or one that the build would have got itself, with nothing that only another may read.
pub fn check_given(store: &Store, made: &BTreeMap<Digest, Made>, task: &TaskRecord) -> Result<(), String> {
    check_times(task)?;
    let known = store.tasks.get(&task.id).is_some_and(|old| old.state == task.state);
    let TaskState::Succeeded { image } = &task.state else { return Ok(()) };
    if known {
        return Ok(());
    }
    let (Some(build), Some(made)) = (store.builds.get(&task.build), made.get(&image.digest)) else {
        return Err(format!("nobody made the image of {task:?}"));
    };
    let (own, other) = (&build.spec, &made.spec);
    let is_private = |spec: &BuildSpec| !spec.secret_ids.is_empty() || spec.no_cache;
    let is_same = build.credentials == made.credentials
        && own.project == other.project
        && own.tags == other.tags
        && own.build_args == other.build_args
        && own.provenance == other.provenance
        && !is_private(own)
        && !is_private(other);
    if made.build == build.id || is_same {
        Ok(())
    } else {
        Err(format!("{} was given an image that was made for {}: {build:?}, {made:?}", build.id, made.build))
    }
}

/// A worker that has heard everything since then and was not told to stop the attempt works for somebody, or did so a moment
/// ago.
pub fn check_stopped(store: &Store, attempt: AttemptId, heard_since: Timestamp, now: Timestamp) -> Result<(), String> {
    let named = |task: &&TaskRecord| task.attempt.as_ref().is_some_and(|known| known.id == attempt);
    let tasks: Vec<_> = store.tasks.values().filter(named).collect();
    let ended = tasks.iter().filter_map(|task| task.attempt.as_ref()?.finished_at).max();
    let is_unwanted = !tasks.is_empty() && tasks.iter().all(|task| task.state == TaskState::Cancelled);
    match ended {
        Some(ended) if is_unwanted && heard_since < ended && now.since(ended) > Duration::from_secs(2) => {
            Err(format!("nobody told the worker to stop what nobody wants any more: {tasks:?}"))
        }
        Some(_) | None => Ok(()),
    }
}

/// Time goes on, whatever the clock says.
fn check_times(task: &TaskRecord) -> Result<(), String> {
    let Some(attempt) = &task.attempt else { return Ok(()) };
    let moments: Vec<_> =
        [Some(attempt.assigned_at), attempt.started_at, attempt.finished_at].into_iter().flatten().collect();
    if moments.is_sorted() { Ok(()) } else { Err(format!("an attempt ran backwards: {attempt:?}")) }
}

/// A worker gets only what it can and may run; a placement is judged by what was committed with it.
pub fn check_dispatch(store: &Store, heard: Heard, dispatch: &Dispatch) -> Result<(), String> {
    let refuse = |why: &str| Err(format!("{why}: {dispatch:?}"));
    let Some(worker) = store.workers.get(&dispatch.worker) else { return refuse("dispatched to an unknown worker") };
    let Some(facts) = &worker.facts else { return refuse("dispatched to a worker that said nothing of itself") };
    if facts.platforms.get(&dispatch.platform) != Some(&dispatch.grade) {
        return refuse("dispatched to a worker that does not run the platform so");
    }
    if heard.disk_full {
        return refuse("dispatched to a worker whose disk is full");
    }
    if heard.short_of_memory {
        return refuse("dispatched to a worker whose tasks wait for memory");
    }
    if worker.cordon.is_some() {
        return refuse("dispatched to a cordoned worker");
    }
    if !dispatch.spec.required_features().is_subset(&facts.features) {
        return refuse("dispatched to an engine that cannot");
    }
    let label = |key: &String| worker.labels.get(key).or_else(|| facts.labels.get(key));
    if !dispatch.spec.required_labels.iter().all(|(key, value)| label(key) == Some(value)) {
        return refuse("dispatched against the required labels");
    }
    if dispatch.grade.is_emulated() && dispatch.spec.emulation == EmulationPolicy::Never {
        return refuse("emulated although never was asked");
    }
    let task = store.tasks.get(&dispatch.task);
    let named = task.and_then(|task| task.attempt.as_ref()).map(|attempt| attempt.id);
    if named != Some(dispatch.attempt) {
        return refuse("dispatched without its record");
    }
    Ok(())
}

/// A tag moves only to something complete: every required leg, each as its own task pushed it.
pub fn check_publish(store: &Store, job: &PublishJob) -> Result<(), String> {
    let Some(build) = store.builds.get(&job.build) else {
        return Err(format!("published an unknown build {}", job.build));
    };
    let legs: BTreeSet<_> = job.legs.iter().map(|leg| &leg.platform).collect();
    let missing = job.spec.platforms.iter().find(|request| request.required && !legs.contains(&request.platform));
    if let Some(missing) = missing {
        return Err(format!("the tags of {} move without {}", job.build, missing.platform));
    }
    for leg in &job.legs {
        let is_own = build.tasks.iter().filter_map(|task| store.tasks.get(task)).any(|task| {
            task.platform == leg.platform && task.state == (TaskState::Succeeded { image: leg.image.clone() })
        });
        if !is_own {
            return Err(format!("the tags of {} move to a foreign image for {}", job.build, leg.platform));
        }
    }
    Ok(())
}
