//! After a start: everything is rebuilt from the records.
//!
//! Live attempts wait the grace period for their workers; a build that was publishing hands its job out again; a final build's
//! `Finished` is given out again, for the crash may have come before its secrets were forgotten.

use crate::{
    effect::Effect,
    entity::Place,
    farm::{grade_index, worker::Link},
    mutation::Mutation,
    record::{BuildRecord, BuildState, TaskRecord, TaskState, WorkerRecord},
    scheduler::Scheduler,
    slab::{BuildIx, TaskIx, WorkerIx},
    submit::repository_of,
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
        for at in &restored {
            self.resume(*at);
        }
        for at in restored {
            self.resume_shared(at);
        }
    }

    /// Once it is known which attempts are still there.
    fn resume_shared(&mut self, at: BuildIx) {
        for task in self.builds[at].tasks.clone() {
            self.resume_sharing(task);
            self.gather(task);
        }
    }

    /// A build that is not in memory any more is wanted again.
    pub(crate) fn on_recall(&mut self, build: BuildRecord, tasks: Vec<TaskRecord>) {
        if build.state.is_final() {
            self.load(build, tasks);
        }
    }

    fn restore_worker(&mut self, record: WorkerRecord) {
        let canary_at = record.quarantine.as_ref().map(|quarantine| quarantine.canary_at);
        let at = self.farm.enroll(record);
        if let Some(canary_at) = canary_at {
            self.timers.set(canary_at, Timer::Canary(at));
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
        let mut tasks = tasks;
        tasks.sort_by_key(|task| record.tasks.iter().position(|id| *id == task.id).unwrap_or(usize::MAX));
        let at = self.add_build(record, tasks);
        for task in self.builds[at].tasks.clone() {
            self.learn_from_record(task);
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
        if attempt.began_for.is_some() {
            return;
        }
        let (Some(finished), Some(worker)) = (attempt.finished_at, self.farm.find(attempt.worker)) else { return };
        let took = finished.since(attempt.started_at.unwrap_or(attempt.assigned_at)).as_millis();
        let (emulated, worker, platform) =
            (attempt.grade.is_emulated(), (worker, attempt.worker), self.tasks[at].platform);
        let repository = self.history.acquire(&repository_of(&self.builds[self.tasks[at].build].spec));
        self.history.learn(repository, platform, worker, emulated, u64::try_from(took).unwrap_or(u64::MAX));
        self.history.release(repository);
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
            TaskState::Waiting { .. } => self.join_queue(at),
            TaskState::Backoff { until, .. } => self.timers.set(until, Timer::Backoff(at)),
            TaskState::Assigned | TaskState::Running => self.resume_attempt(at),
            TaskState::Shared { .. }
            | TaskState::Succeeded { .. }
            | TaskState::Failed { .. }
            | TaskState::Cancelled => {}
        }
    }

    fn resume_attempt(&mut self, at: TaskIx) {
        let task = &self.tasks[at];
        let attempt = task.record.attempt.as_ref();
        let known = attempt.and_then(|attempt| Some((attempt.id, attempt.grade, self.farm.find(attempt.worker)?)));
        let Some((attempt, grade, worker)) = known else { return self.begin_waiting(at) };
        self.farm.platforms[task.platform.0 as usize].live[grade_index(grade)] += 1;
        self.tasks[at].place = Place::On(worker);
        self.farm.workers[worker].attempts.insert(attempt, at);
        self.await_worker(worker);
    }

    fn await_worker(&mut self, at: WorkerIx) {
        let until = self.now + self.config.reconnect_grace;
        let entry = &mut self.farm.workers[at];
        entry.excess = entry.excess.max(entry.held());
        if entry.link == Link::Offline {
            entry.link = Link::Grace { until };
            self.timers.set(until, Timer::Grace(at));
        }
    }
}
