//! The life of a build: from its first leg through publishing to its end, and how it begins again.

use std::sync::Arc;

use kiln_common::{BuildId, Timestamp, emulation::format_duration};

use crate::{
    effect::{Effect, Leg, PublishJob, Refusal},
    mutation::Mutation,
    record::{BuildState, CredentialsMark, Published, TaskState},
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
        let legs = build.legs;
        let early = self.mutation == Mutation::PublishEarly && legs.done > 0;
        if legs.required_lost == 0 && legs.required_open > 0 && !early {
            return;
        }
        if build.record.state.is_final() || matches!(build.record.state, BuildState::Publishing { .. }) {
            return;
        }
        if legs.required_lost > 0 {
            return self.fail_build(at, self.first_loss(at));
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

    /// What became of the first required leg that did not succeed.
    fn first_loss(&self, at: BuildIx) -> String {
        let required = self.builds[at].tasks.iter().map(|task| &self.tasks[*task].record).filter(|task| task.required);
        let mut lost = required.filter_map(|task| match &task.state {
            TaskState::Failed { message } => Some(format!("{}: {message}", task.platform)),
            TaskState::Cancelled => Some(format!("{}: cancelled", task.platform)),
            TaskState::Waiting { .. }
            | TaskState::Assigned
            | TaskState::Running
            | TaskState::Shared { .. }
            | TaskState::Backoff { .. }
            | TaskState::Succeeded { .. } => None,
        });
        lost.next().unwrap_or_default()
    }

    fn await_optional_legs(&mut self, at: BuildIx) {
        let until = self.now + self.config.optional_patience;
        let build = &mut self.builds[at];
        if build.optional_until.is_none() {
            build.optional_until = Some(until);
            self.timers.set(until, Timer::OptionalPatience(at));
        }
    }

    pub(crate) fn on_optional_patience_over(&mut self, at: BuildIx, due: Timestamp) {
        let Some(build) = self.builds.get_mut(at).filter(|build| build.optional_until == Some(due)) else { return };
        build.optional_until = None;
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
        let record = self.builds[at].record_mut();
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
            Some(Leg { platform: record.platform.clone(), image: Arc::clone(image), grade: attempt.grade })
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
        self.builds[at].record_mut().published = Some(published);
        self.close_published(at);
    }

    fn close_published(&mut self, at: BuildIx) {
        let build = &self.builds[at];
        let is_complete = usize::from(build.legs.done) == build.tasks.len();
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
        let record = self.builds[at].record_mut();
        record.published = published.or_else(|| record.published.take());
        self.close(at, BuildState::Failed { message: format!("the publish failed: {message}") });
    }

    /// The build, if this is its publish that runs.
    pub(crate) fn publishing(&self, id: BuildId, publish: u32) -> Option<BuildIx> {
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

    pub(crate) fn on_timeout(&mut self, at: BuildIx, due: Timestamp) {
        let Some(build) = self.builds.get(at) else { return };
        let record = &build.record;
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
        let record = build.record_mut();
        record.state = state;
        record.finished_at = Some(now);
        let (id, deadline) = (record.id, record.deadline);
        self.timers.unset(deadline, Timer::Timeout(at));
        self.forget_patience(at);
        self.untie(at);
        self.open -= 1;
        self.finals.push_back((now, id));
        self.changed_build(at);
        self.act(Effect::Finished { build: id });
    }

    fn untie(&mut self, at: BuildIx) {
        let Some(ties) = self.builds[at].ties.take() else { return };
        if self.farm.selectors.release(ties.selector) {
            self.queue.forget_selector(ties.selector);
        }
        self.queue.flows.release(ties.project);
        self.history.release(ties.repository);
        if let Some(group) = ties.alike {
            self.leave_alike(at, group);
        }
    }

    fn forget_patience(&mut self, at: BuildIx) {
        if let Some(until) = self.builds[at].optional_until.take() {
            self.timers.unset(until, Timer::OptionalPatience(at));
        }
    }

    pub(crate) fn on_retry(&mut self, id: BuildId, credentials: Option<CredentialsMark>) {
        self.begin_again(id, credentials, "a failed or cancelled build can be retried", |state| match state {
            BuildState::Failed { .. } | BuildState::Cancelled { .. } => true,
            BuildState::Queued
            | BuildState::Running
            | BuildState::Publishing { .. }
            | BuildState::Succeeded
            | BuildState::Incomplete => false,
        });
    }

    pub(crate) fn on_backfill(&mut self, id: BuildId, credentials: Option<CredentialsMark>) {
        self.begin_again(id, credentials, "an incomplete build can be backfilled", |state| match state {
            BuildState::Incomplete => true,
            BuildState::Queued
            | BuildState::Running
            | BuildState::Publishing { .. }
            | BuildState::Succeeded
            | BuildState::Failed { .. }
            | BuildState::Cancelled { .. } => false,
        });
    }

    fn begin_again(
        &mut self,
        id: BuildId,
        credentials: Option<CredentialsMark>,
        remedy: &'static str,
        allowed: impl Fn(&BuildState) -> bool,
    ) {
        match self.check_again(id, remedy, allowed) {
            Ok(at) => self.reopen(at, credentials),
            Err(refusal) => self.act(Effect::Refused { build: id, refusal: Box::new(refusal) }),
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
    fn reopen(&mut self, at: BuildIx, credentials: Option<CredentialsMark>) {
        let now = self.now;
        let build = &mut self.builds[at];
        build.deadline = now + build.spec.timeout;
        let (id, deadline, record) = (build.id, build.deadline, build.record_mut());
        record.state = BuildState::Queued;
        record.finished_at = None;
        record.deadline = deadline;
        record.credentials = credentials;
        self.open_build(at);
        self.changed_build(at);
        self.act(Effect::Accepted { build: id });
        for task in self.builds[at].tasks.clone() {
            let is_done = matches!(self.tasks[task].record.state, TaskState::Succeeded { .. });
            if !is_done || self.mutation == Mutation::RebuildFinishedLegs {
                self.tasks[task].tried = false;
                let record = self.change_task(task);
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
            self.tasks.remove(task);
        }
        if let Some(request) = &build.record.request_id {
            self.old_requests.push_back(request.clone());
        }
        while self.old_requests.len() > self.config.request_ids_kept {
            if let Some(request) = self.old_requests.pop_front() {
                self.requests.remove(&request);
            }
        }
    }
}
