//! After a start: everything is rebuilt from the records.
//!
//! Live attempts wait the grace period for their workers; a build that was publishing hands its job out again; a final build's
//! `Finished` is given out again, for the crash may have come before its secrets were forgotten.

use kiln_common::WorkerId;

use crate::{
    effect::Effect,
    entity::Build,
    farm::{grade_index, worker::Link},
    mutation::Mutation,
    record::{BuildRecord, BuildState, TaskRecord, TaskState, WorkerRecord},
    scheduler::Scheduler,
    slab::{BuildIx, TaskIx, WorkerIx},
    timers::Timer,
};

impl Scheduler {
    pub(crate) fn on_restore(&mut self, builds: Vec<(BuildRecord, Vec<TaskRecord>)>, workers: Vec<WorkerRecord>) {
        for worker in workers {
            self.restore_worker(worker);
        }
        let mut restored = Vec::new();
        for (build, tasks) in builds {
            if let Some(at) = self.load(build, tasks) {
                restored.push(at);
            }
        }
        for at in restored {
            self.resume(at);
        }
    }

    /// A build that is not in memory any more is wanted again.
    pub(crate) fn on_recall(&mut self, build: BuildRecord, tasks: Vec<TaskRecord>) {
        if build.state.is_final() {
            self.load(build, tasks);
        }
    }

    fn restore_worker(&mut self, record: WorkerRecord) {
        let id = record.id;
        let canary_at = record.quarantine.as_ref().map(|quarantine| quarantine.canary_at);
        self.farm.enroll(record);
        if let Some(canary_at) = canary_at {
            self.timers.set(canary_at, Timer::Canary(id));
        }
    }

    /// Takes the records over as they are; `None` when the build is here already.
    fn load(&mut self, record: BuildRecord, tasks: Vec<TaskRecord>) -> Option<BuildIx> {
        if self.build_ids.contains_key(&record.id) {
            return None;
        }
        let id = record.id;
        if let Some(request) = &record.request_id {
            self.requests.insert(request.clone(), id);
        }
        let (is_final, finished) = (record.state.is_final(), record.finished_at);
        let order = record.tasks.clone();
        let at = self.builds.insert(Build {
            project: record.spec.project.as_str().into(),
            record,
            tasks: Vec::new(),
            selector: None,
            optional_until: None,
            dirty: false,
        });
        self.build_ids.insert(id, at);
        let place = |task: &TaskRecord| order.iter().position(|id| *id == task.id);
        let mut tasks = tasks;
        tasks.sort_by_key(|task| place(task).unwrap_or(usize::MAX));
        for task in tasks {
            let index = self.add_task(at, task);
            self.learn_from_record(index);
        }
        if is_final {
            let finished = finished.unwrap_or(self.now);
            let entry = (finished, id);
            let position = self.finals.partition_point(|other| *other <= entry);
            self.finals.insert(position, entry);
        } else {
            self.open_build(at);
        }
        Some(at)
    }

    fn learn_from_record(&mut self, at: TaskIx) {
        let record = &self.tasks[at].record;
        let (TaskState::Succeeded { .. }, Some(attempt)) = (&record.state, &record.attempt) else { return };
        let (Some(finished), Some(worker)) = (attempt.finished_at, self.farm.find(attempt.worker)) else { return };
        let took = finished.since(attempt.started_at.unwrap_or(attempt.assigned_at)).as_millis();
        let (emulated, worker, platform) =
            (attempt.grade.is_emulated(), (worker, attempt.worker), self.tasks[at].platform);
        self.tie(at);
        if let Some(ties) = self.tasks[at].ties {
            let took = u64::try_from(took).unwrap_or(u64::MAX);
            self.history.learn(ties.memory, platform, worker, emulated, took);
        }
        self.untie(at);
    }

    /// Goes on where the records end.
    fn resume(&mut self, at: BuildIx) {
        let build = self.builds[at].record.id;
        match self.builds[at].record.state {
            BuildState::Queued | BuildState::Running => {
                for task in self.builds[at].tasks.clone() {
                    self.resume_task(task);
                }
                self.advance(at);
            }
            BuildState::Publishing { .. } => {
                if self.mutation != Mutation::ForgetPublishOnRestore {
                    self.publish(at);
                }
            }
            BuildState::Succeeded
            | BuildState::Incomplete
            | BuildState::Failed { .. }
            | BuildState::Cancelled { .. } => self.act(Effect::Finished { build }),
        }
    }

    fn resume_task(&mut self, at: TaskIx) {
        match self.tasks[at].record.state {
            TaskState::Waiting { .. } => {
                self.tie(at);
                self.join_queue(at);
            }
            TaskState::Backoff { until, .. } => {
                self.tie(at);
                let id = self.tasks[at].record.id;
                self.timers.set(until, Timer::Backoff(id));
            }
            TaskState::Assigned | TaskState::Running => {
                self.tie(at);
                self.resume_attempt(at);
            }
            TaskState::Succeeded { .. } | TaskState::Failed { .. } | TaskState::Cancelled => {}
        }
    }

    fn resume_attempt(&mut self, at: TaskIx) {
        let attempt = self.tasks[at].record.attempt.clone();
        let worker = attempt.as_ref().and_then(|attempt| self.farm.find(attempt.worker));
        let (Some(attempt), Some(worker)) = (attempt, worker) else { return self.begin_waiting(at) };
        let platform = self.tasks[at].platform;
        self.farm.platforms[platform.0 as usize].live[grade_index(attempt.grade)] += 1;
        self.tasks[at].worker = Some(worker);
        self.farm.workers[worker].attempts.insert(attempt.id, at);
        self.await_worker(worker, attempt.worker);
    }

    fn await_worker(&mut self, at: WorkerIx, id: WorkerId) {
        let until = self.now + self.config.reconnect_grace;
        let entry = &mut self.farm.workers[at];
        entry.excess = entry.excess.max(entry.held());
        if entry.link == Link::Offline {
            entry.link = Link::Grace { until };
            self.timers.set(until, Timer::Grace(id));
        }
    }
}
