//! What an outside observer knows must hold, from the committed records and from what workers and registry saw.

use std::collections::{BTreeMap, BTreeSet};

use kiln_common::{BuildId, EmulationPolicy, TaskId, WorkerId};
use kiln_scheduler::{
    BuildRecord, TaskRecord, WorkerRecord,
    effect::{Dispatch, PublishJob},
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

/// A worker gets only what it can and may run; a placement is judged by what was committed with it.
pub fn check_dispatch(store: &Store, dispatch: &Dispatch) -> Result<(), String> {
    let refuse = |why: &str| Err(format!("{why}: {dispatch:?}"));
    let Some(worker) = store.workers.get(&dispatch.worker) else { return refuse("dispatched to an unknown worker") };
    let Some(facts) = &worker.facts else { return refuse("dispatched to a worker that said nothing of itself") };
    if facts.platforms.get(&dispatch.platform) != Some(&dispatch.grade) {
        return refuse("dispatched to a worker that does not run the platform so");
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
