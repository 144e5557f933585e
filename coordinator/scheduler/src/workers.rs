//! The life of a worker: enrolled, connected, lost, returned, operated, removed.

use kiln_common::{AttemptId, Timestamp, WorkerId, limits};

use crate::{
    effect::Effect,
    event::{WorkerStats, WorkerUpdate},
    farm::worker::Link,
    mutation::Mutation,
    record::{Cordon, WorkerFacts, WorkerRecord},
    scheduler::Scheduler,
    slab::{TaskIx, WorkerIx},
    timers::Timer,
};

impl Scheduler {
    /// A worker that renews its certificate keeps what is known of it.
    pub(crate) fn on_worker_enrolled(&mut self, mut record: WorkerRecord) {
        if let Some(at) = self.farm.find(record.id) {
            let known = &self.farm.workers[at].record;
            record.facts = record.facts.or_else(|| known.facts.clone());
            record.quarantine = record.quarantine.or_else(|| known.quarantine.clone());
            record.cordon = record.cordon.or_else(|| known.cordon.clone());
        }
        let at = self.farm.enroll(record);
        self.changed_worker(at);
        self.touch(at);
    }

    pub(crate) fn on_worker_connected(&mut self, id: WorkerId, facts: WorkerFacts, announced: &[AttemptId]) {
        let Some(at) = self.farm.find(id) else {
            for attempt in announced {
                let reason = "the farm does not know this worker".to_owned();
                self.act(Effect::CancelAttempt { worker: id, attempt: *attempt, reason });
            }
            return self
                .act(Effect::CloseSession { worker: id, reason: "the farm does not know this worker".to_owned() });
        };
        let was_online = self.farm.workers[at].is_online();
        self.go_online(at);
        if self.farm.workers[at].record.facts.as_ref() != Some(&facts) {
            self.farm.workers[at].record.facts = Some(facts);
            self.redescribe(at);
            self.changed_worker(at);
        }
        self.reconcile(at, announced, was_online);
        self.touch(at);
    }

    /// What it can do changed: tasks that counted on it may have to go where they have failed before.
    fn redescribe(&mut self, at: WorkerIx) {
        self.turn.shaken.extend(self.farm.workers[at].table.iter().map(|(platform, _)| *platform));
        self.farm.redescribe(at);
    }

    fn go_online(&mut self, at: WorkerIx) {
        let lease = self.now + self.config.heartbeat_lease;
        let now = self.now;
        let entry = &mut self.farm.workers[at];
        match &mut entry.link {
            Link::Online { lease: known, .. } => *known = lease,
            link @ (Link::Offline | Link::Grace { .. }) => {
                if let Link::Grace { until } = *link {
                    self.timers.unset(until, Timer::Grace(at));
                }
                *link = Link::Online { lease, check: lease };
                self.timers.set(lease, Timer::Lease(at));
            }
        }
        entry.health.leaving = None;
        entry.health.last_seen = Some(now);
    }

    /// Compares what the worker says it has with what it should have.
    fn reconcile(&mut self, at: WorkerIx, announced: &[AttemptId], was_online: bool) {
        let entry = &self.farm.workers[at];
        let adopted: Vec<_> = announced.iter().copied().filter(|attempt| entry.attempts.has(*attempt)).collect();
        let strangers: Vec<_> = announced.iter().copied().filter(|attempt| !entry.attempts.has(*attempt)).collect();
        // Within a session an assignment that was not started yet may still be on its way.
        let lost: Vec<_> = entry
            .attempts
            .iter()
            .filter(|(attempt, task)| !(announced.contains(attempt) || was_online && self.is_assigned(*task)))
            .map(|(_, task)| task)
            .collect();
        let worker = entry.id;
        self.act(Effect::Adopted { worker, attempts: adopted });
        for attempt in strangers {
            self.stop_stranger(at, attempt);
        }
        let entry = &mut self.farm.workers[at];
        entry.excess = entry.excess.max(entry.held());
        let name = entry.name.clone();
        for task in lost {
            self.lose(task, &format!("worker `{name}` came back without the attempt"));
        }
    }

    fn is_assigned(&self, task: TaskIx) -> bool {
        self.tasks[task].record.state == crate::record::TaskState::Assigned
    }

    pub(crate) fn on_worker_heartbeat(&mut self, id: WorkerId, stats: WorkerStats) {
        let Some(at) = self.farm.find(id) else { return };
        let lease = self.now + self.config.heartbeat_lease;
        let now = self.now;
        let entry = &mut self.farm.workers[at];
        match &mut entry.link {
            Link::Online { lease: known, .. } => *known = lease,
            // It was given up: it must say anew what it has before it is trusted with anything.
            Link::Offline | Link::Grace { .. } => {
                let reason = "its lease ran out; connect again".to_owned();
                return self.act(Effect::CloseSession { worker: id, reason });
            }
        }
        entry.health.last_seen = Some(now);
        entry.health.stats = stats;
        if self.mutation == Mutation::IgnorePressure {
            entry.health.stats.memory_pressure = None;
        }
        if self.mutation == Mutation::IgnoreFullDisk {
            entry.health.stats.disk_available = None;
        }
        entry.health.strain = entry.health.strain.after(&entry.health.stats);
        if entry.condition != entry.condition_now() {
            self.touch(at);
        }
    }

    /// The lease is looked at when it would have ended without any heartbeat, not with each heartbeat.
    pub(crate) fn on_lease(&mut self, at: WorkerIx) {
        let now = self.now;
        let Some(entry) = self.farm.workers.get_mut(at) else { return };
        let id = entry.id;
        let Link::Online { lease, check } = &mut entry.link else { return };
        if *check > now {
            return;
        }
        if *lease > now {
            *check = *lease;
            return self.timers.set(*check, Timer::Lease(at));
        }
        self.disconnect(at);
        let reason = format!("nothing was heard of it for {} s", self.config.heartbeat_lease.as_secs());
        self.act(Effect::CloseSession { worker: id, reason });
    }

    pub(crate) fn on_worker_disconnected(&mut self, id: WorkerId) {
        if let Some(at) = self.farm.find(id) {
            self.disconnect(at);
        }
    }

    /// Its attempts wait for its return; what it was to stop is asked for again then.
    fn disconnect(&mut self, at: WorkerIx) {
        let until = self.now + self.config.reconnect_grace;
        let entry = &mut self.farm.workers[at];
        let Link::Online { check, .. } = entry.link else { return };
        entry.stopping.clear();
        entry.settle_excess();
        let waits = !entry.attempts.is_empty();
        entry.link = if waits { Link::Grace { until } } else { Link::Offline };
        self.timers.unset(check, Timer::Lease(at));
        if waits {
            self.timers.set(until, Timer::Grace(at));
        }
        self.touch(at);
    }

    pub(crate) fn on_grace_over(&mut self, at: WorkerIx, due: Timestamp) {
        let is_due = self.farm.workers.get(at).is_some_and(|entry| entry.link == Link::Grace { until: due });
        if !is_due || self.mutation == Mutation::ForgetRequeue {
            return;
        }
        self.farm.workers[at].link = Link::Offline;
        let was_canary = self.farm.workers[at].canary.take().is_some();
        let name = self.farm.workers[at].name.clone();
        self.worker_failed(at, was_canary, "it was lost while it had tasks");
        let message =
            format!("worker `{name}` was lost and did not return within {} s", self.config.reconnect_grace.as_secs());
        for (_, task) in self.farm.workers[at].attempts.iter().collect::<Vec<_>>() {
            self.lose(task, &message);
        }
        self.touch(at);
    }

    pub(crate) fn on_worker_leaving(&mut self, id: WorkerId, reason: String) {
        if let Some(at) = self.farm.find(id) {
            self.farm.workers[at].health.leaving = Some(reason);
            self.touch(at);
        }
    }

    pub(crate) fn on_worker_updated(&mut self, id: WorkerId, update: WorkerUpdate) {
        let Some(at) = self.farm.find(id) else { return };
        let entry = &mut self.farm.workers[at];
        match update {
            WorkerUpdate::Labels { set, remove } => {
                for key in remove {
                    entry.record.labels.remove(&key);
                }
                for (key, value) in set {
                    if entry.record.labels.len() < limits::WORKER_LABELS || entry.record.labels.contains_key(&key) {
                        entry.record.labels.insert(key, value);
                    }
                }
                self.redescribe(at);
            }
            WorkerUpdate::Slots(slots) => {
                entry.record.slots = Some(slots.clamp(1, limits::WORKER_SLOTS));
                entry.excess = entry.excess.max(entry.held());
            }
            WorkerUpdate::Cordon { reason } => entry.record.cordon = Some(Cordon { reason, draining: false }),
            WorkerUpdate::Drain { reason } => entry.record.cordon = Some(Cordon { reason, draining: true }),
            WorkerUpdate::Uncordon => {
                entry.record.cordon = None;
                self.end_quarantine(at);
            }
        }
        self.changed_worker(at);
        self.touch(at);
    }

    pub(crate) fn on_worker_removed(&mut self, id: WorkerId) {
        let Some(at) = self.farm.find(id) else { return };
        // Its slots are gone before its tasks look for others.
        let entry = &mut self.farm.workers[at];
        entry.record.cordon = Some(Cordon { reason: "removed".to_owned(), draining: false });
        let name = entry.name.clone();
        let held: Vec<_> = entry.attempts.iter().collect();
        let platforms: Vec<_> = entry.table.iter().map(|(platform, _)| *platform).collect();
        self.forget_timers(at);
        self.act(Effect::DeleteWorker(id));
        for (attempt, task) in held {
            let reason = "the worker was removed from the farm".to_owned();
            self.act(Effect::CancelAttempt { worker: id, attempt, reason });
            self.lose(task, &format!("worker `{name}` was removed from the farm"));
        }
        self.act(Effect::CloseSession { worker: id, reason: "it was removed from the farm".to_owned() });
        self.farm.remove(at);
        self.turn.shaken.extend(platforms);
    }

    fn forget_timers(&mut self, at: WorkerIx) {
        match self.farm.workers[at].link {
            Link::Online { check, .. } => self.timers.unset(check, Timer::Lease(at)),
            Link::Grace { until } => self.timers.unset(until, Timer::Grace(at)),
            Link::Offline => {}
        }
    }
}
