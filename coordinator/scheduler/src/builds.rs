//! The life of a build: from its first leg through publishing to its end, and how it begins again.

use kiln_common::{BuildId, Timestamp, emulation::format_duration};

use crate::{
    effect::{Effect, Leg, PublishJob, Refusal},
    mutation::Mutation,
    record::{BuildState, Published, TaskState},
    scheduler::Scheduler,
    slab::{BuildIx, TaskIx},
    timers::Timer,
};

/// Builds that leave memory in one turn.
const FORGOTTEN_PER_TURN: usize = 32;

impl Scheduler {
    /// A leg ended or the build is new here: does what follows from the state of all legs.
    pub(crate) fn advance(&mut self, at: BuildIx) {
        let build = &self.builds[at];
        if build.record.state.is_final() || matches!(build.record.state, BuildState::Publishing { .. }) {
            return;
        }
        let legs = Legs::of(self, at);
        if let Some(message) = legs.failure {
            return self.fail_build(at, message);
        }
        let early = self.mutation == Mutation::PublishEarly && legs.done > 0;
        if legs.required_open > 0 && !early {
            return;
        }
        match (legs.optional_open, legs.done) {
            (0, 0) => self.fail_build(at, "no leg succeeded".to_owned()),
            (0, _) => self.complete(at),
            // Without a required leg nothing says when the build has enough.
            (_, _) if legs.required == 0 => {}
            (_, _) if early => self.begin_publish(at),
            (_, _) => self.await_optional_legs(at),
        }
    }

    fn await_optional_legs(&mut self, at: BuildIx) {
        let until = self.now + self.config.optional_patience;
        let build = &mut self.builds[at];
        if build.optional_until.is_none() {
            build.optional_until = Some(until);
            let id = build.record.id;
            self.timers.set(until, Timer::OptionalPatience(id));
        }
    }

    pub(crate) fn on_optional_patience_over(&mut self, id: BuildId, due: Timestamp) {
        let Some(&at) = self.build_ids.get(&id) else { return };
        if self.builds[at].optional_until != Some(due) {
            return;
        }
        self.builds[at].optional_until = None;
        self.end_open_legs(at, "the build waits no longer for its optional legs");
        self.advance(at);
    }

    /// All legs have ended. After a backfill that brought nothing new the tags already name all there is.
    fn complete(&mut self, at: BuildIx) {
        let build = &self.builds[at];
        let is_new = |published: &Published| {
            let newer = |task: &TaskIx| {
                let record = &self.tasks[*task].record;
                let finished = record.attempt.as_ref().and_then(|attempt| attempt.finished_at);
                matches!(record.state, TaskState::Succeeded { .. }) && finished.is_some_and(|when| when > published.at)
            };
            published.tags.len() < build.record.spec.tags.len() || build.tasks.iter().any(newer)
        };
        if build.record.published.as_ref().is_none_or(is_new) {
            self.begin_publish(at);
        } else {
            self.close_published(at);
        }
    }

    fn begin_publish(&mut self, at: BuildIx) {
        let now = self.now;
        let record = &mut self.builds[at].record;
        record.state = BuildState::Publishing { since: now };
        record.publishes += 1;
        self.changed_build(at);
        self.forget_patience(at);
        self.publish(at);
    }

    /// Hands the legs to the publisher; again after a restart, under the same number.
    pub(crate) fn publish(&mut self, at: BuildIx) {
        let build = &self.builds[at];
        let legs = build.tasks.iter().filter_map(|task| {
            let record = &self.tasks[*task].record;
            let (TaskState::Succeeded { image }, Some(attempt)) = (&record.state, &record.attempt) else { return None };
            Some(Leg { platform: record.platform.clone(), image: image.clone(), grade: attempt.grade })
        });
        let job = PublishJob {
            build: build.record.id,
            publish: build.record.publishes,
            spec: build.record.spec.clone(),
            legs: legs.collect(),
            earlier: build.record.published.clone(),
        };
        self.act(Effect::Publish(Box::new(job)));
    }

    pub(crate) fn on_published(&mut self, id: BuildId, publish: u32, published: Published) {
        let Some(at) = self.publishing(id, publish) else { return };
        self.builds[at].record.published = Some(published);
        self.close_published(at);
    }

    fn close_published(&mut self, at: BuildIx) {
        let build = &self.builds[at];
        let is_complete =
            build.tasks.iter().all(|task| matches!(self.tasks[*task].record.state, TaskState::Succeeded { .. }));
        self.close(at, if is_complete { BuildState::Succeeded } else { BuildState::Incomplete });
    }

    pub(crate) fn on_publish_failed(
        &mut self,
        id: BuildId,
        publish: u32,
        published: Option<Published>,
        message: String,
    ) {
        let Some(at) = self.publishing(id, publish) else { return };
        let record = &mut self.builds[at].record;
        record.published = published.or_else(|| record.published.take());
        self.close(at, BuildState::Failed { message: format!("the publish failed: {message}") });
    }

    /// The build, if this is its publish that runs.
    fn publishing(&self, id: BuildId, publish: u32) -> Option<BuildIx> {
        let at = *self.build_ids.get(&id)?;
        let record = &self.builds[at].record;
        let runs = matches!(record.state, BuildState::Publishing { .. });
        (runs && record.publishes == publish).then_some(at)
    }

    pub(crate) fn fail_build(&mut self, at: BuildIx, message: String) {
        self.end_open_legs(at, "another leg of the build failed");
        self.abandon_publish(at);
        self.close(at, BuildState::Failed { message });
    }

    pub(crate) fn on_cancel(&mut self, id: BuildId, reason: String) {
        let Some(&at) = self.build_ids.get(&id) else { return };
        if self.builds[at].record.state.is_final() {
            return;
        }
        let told = if reason.is_empty() { "the build was cancelled" } else { reason.as_str() };
        self.end_open_legs(at, told);
        self.abandon_publish(at);
        self.close(at, BuildState::Cancelled { reason });
    }

    pub(crate) fn on_timeout(&mut self, id: BuildId, due: Timestamp) {
        let Some(&at) = self.build_ids.get(&id) else { return };
        let record = &self.builds[at].record;
        if record.state.is_final() || record.deadline != due {
            return;
        }
        let message = format!("the build did not finish within {}", format_duration(record.spec.timeout));
        self.fail_build(at, message);
    }

    fn abandon_publish(&mut self, at: BuildIx) {
        let record = &self.builds[at].record;
        if matches!(record.state, BuildState::Publishing { .. }) {
            let build = record.id;
            self.act(Effect::AbandonPublish { build });
        }
    }

    /// Cancels every leg that has not ended.
    fn end_open_legs(&mut self, at: BuildIx, reason: &str) {
        for task in self.builds[at].tasks.clone() {
            if !self.tasks[task].record.state.is_final() {
                self.cancel_task(task, reason);
            }
        }
    }

    fn close(&mut self, at: BuildIx, state: BuildState) {
        let now = self.now;
        let build = &mut self.builds[at];
        build.record.state = state;
        build.record.finished_at = Some(now);
        let (id, deadline) = (build.record.id, build.record.deadline);
        if let Some(selector) = build.selector.take()
            && self.farm.selectors.release(selector)
        {
            self.queue.forget_selector(selector);
        }
        self.timers.unset(deadline, Timer::Timeout(id));
        self.forget_patience(at);
        self.open -= 1;
        self.finals.push_back((now, id));
        self.changed_build(at);
        self.act(Effect::Finished { build: id });
    }

    fn forget_patience(&mut self, at: BuildIx) {
        let build = &mut self.builds[at];
        if let Some(until) = build.optional_until.take() {
            let id = build.record.id;
            self.timers.unset(until, Timer::OptionalPatience(id));
        }
    }

    pub(crate) fn on_retry(&mut self, id: BuildId) {
        self.begin_again(id, "a failed or cancelled build can be retried", |state| match state {
            BuildState::Failed { .. } | BuildState::Cancelled { .. } => true,
            BuildState::Queued
            | BuildState::Running
            | BuildState::Publishing { .. }
            | BuildState::Succeeded
            | BuildState::Incomplete => false,
        });
    }

    pub(crate) fn on_backfill(&mut self, id: BuildId) {
        self.begin_again(id, "an incomplete build can be backfilled", |state| match state {
            BuildState::Incomplete => true,
            BuildState::Queued
            | BuildState::Running
            | BuildState::Publishing { .. }
            | BuildState::Succeeded
            | BuildState::Failed { .. }
            | BuildState::Cancelled { .. } => false,
        });
    }

    fn begin_again(&mut self, id: BuildId, remedy: &'static str, allowed: impl Fn(&BuildState) -> bool) {
        match self.check_again(id, remedy, allowed) {
            Ok(at) => self.reopen(at),
            Err(refusal) => self.act(Effect::Refused { build: id, refusal }),
        }
    }

    fn check_again(
        &self,
        id: BuildId,
        remedy: &'static str,
        allowed: impl Fn(&BuildState) -> bool,
    ) -> Result<BuildIx, Refusal> {
        let &at = self.build_ids.get(&id).ok_or(Refusal::UnknownBuild { build: id })?;
        let build = &self.builds[at];
        if !allowed(&build.record.state) {
            return Err(Refusal::WrongState { build: id, state: build.record.state.name(), remedy });
        }
        if self.open >= self.config.open_builds {
            return Err(Refusal::Overloaded { open: self.open });
        }
        let lacking = build.tasks.iter().map(|task| &self.tasks[*task].record);
        let lacking = lacking.filter(|record| !matches!(record.state, TaskState::Succeeded { .. }));
        self.check_platforms(&build.record.spec, lacking.map(|record| &record.platform))?;
        Ok(at)
    }

    /// Legs that have their digest keep it; the others wait anew, with all their tries.
    fn reopen(&mut self, at: BuildIx) {
        let now = self.now;
        let record = &mut self.builds[at].record;
        record.state = BuildState::Queued;
        record.finished_at = None;
        record.deadline = now + record.spec.timeout;
        let id = record.id;
        self.open_build(at);
        self.changed_build(at);
        self.act(Effect::Accepted { build: id });
        for task in self.builds[at].tasks.clone() {
            let record = &mut self.tasks[task].record;
            let is_done = matches!(record.state, TaskState::Succeeded { .. });
            if !is_done || self.mutation == Mutation::RebuildFinishedLegs {
                record.attempts = 0;
                record.avoid.clear();
                self.begin_waiting(task);
            }
        }
        self.advance(at);
    }

    /// Final builds leave memory after a while; the store has them.
    pub(crate) fn forget_old_builds(&mut self) {
        for _ in 0..FORGOTTEN_PER_TURN {
            let Some(&(finished, id)) = self.finals.front() else { return };
            let is_due = finished + self.config.final_kept <= self.now || self.finals.len() > self.config.finals_kept;
            if !is_due {
                return;
            }
            self.finals.pop_front();
            let Some(&at) = self.build_ids.get(&id) else { continue };
            // A build that began again is final later, or has a later entry of its own.
            if self.builds[at].record.finished_at == Some(finished) {
                self.forget_build(at);
            }
        }
    }

    fn forget_build(&mut self, at: BuildIx) {
        let Some(build) = self.builds.remove(at) else { return };
        self.build_ids.remove(&build.record.id);
        for task in build.tasks {
            if let Some(task) = self.tasks.remove(task) {
                self.task_ids.remove(&task.record.id);
            }
        }
        if let Some(request) = build.record.request_id {
            self.old_requests.push_back(request);
        }
        while self.old_requests.len() > self.config.request_ids_kept {
            if let Some(request) = self.old_requests.pop_front() {
                self.requests.remove(&request);
            }
        }
    }
}

/// How the legs of a build stand.
#[derive(Debug, Default)]
struct Legs {
    required: usize,
    required_open: usize,
    optional_open: usize,
    done: usize,
    /// Of the first required leg that failed.
    failure: Option<String>,
}

impl Legs {
    fn of(scheduler: &Scheduler, build: BuildIx) -> Self {
        let mut legs = Self::default();
        for task in &scheduler.builds[build].tasks {
            let record = &scheduler.tasks[*task].record;
            legs.required += usize::from(record.required);
            match &record.state {
                TaskState::Succeeded { .. } => legs.done += 1,
                TaskState::Failed { message } if record.required && legs.failure.is_none() => {
                    legs.failure = Some(format!("{}: {message}", record.platform));
                }
                TaskState::Cancelled if record.required && legs.failure.is_none() => {
                    legs.failure = Some(format!("{}: cancelled", record.platform));
                }
                TaskState::Failed { .. } | TaskState::Cancelled => {}
                TaskState::Waiting { .. } | TaskState::Assigned | TaskState::Running | TaskState::Backoff { .. } => {
                    legs.required_open += usize::from(record.required);
                    legs.optional_open += usize::from(!record.required);
                }
            }
        }
        legs
    }
}
