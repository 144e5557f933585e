//! Sessions between workers and coordinator: what is said arrives later, in order within a session, twice now and then, and
//! reports of a session that is gone may still be read.

use std::time::Duration;

use kiln_common::{AttemptId, WorkerId};
use kiln_scheduler::{Event, event::AttemptOutcome};

use crate::world::{Action, Outcome, ToWorker, World};

const BEAT: Duration = Duration::from_secs(8);

impl World {
    pub fn connect(&mut self, worker: WorkerId) -> Outcome {
        let Some(model) = self.workers.get(&worker) else { return Ok(()) };
        if !model.alive || model.session.is_some() {
            return Ok(());
        }
        let not_before = model.hung_until.max(model.cut_until);
        if self.scheduler.is_none() || not_before > self.now {
            let at = not_before.max(self.now + Duration::from_secs(2));
            self.at(at, Action::Connect(worker));
            return Ok(());
        }
        if self.sessions.remove(&worker).is_some() {
            self.event(Event::WorkerDisconnected { worker })?;
        }
        if !self.store.workers.contains_key(&worker) {
            let record = self.workers[&worker].record.clone();
            self.event(Event::WorkerEnrolled { worker: record })?;
        }
        if self.scheduler.is_none() || !self.store.workers.contains_key(&worker) {
            self.soon(1_000, 5_000, Action::Connect(worker));
            return Ok(());
        }
        self.sequence += 1;
        let session = self.sequence;
        self.sessions.insert(worker, session);
        let model = self.workers.get_mut(&worker).expect("a worker");
        model.session = Some(session);
        model.session_since = self.now;
        let (facts, attempts) = (Box::new(model.facts.clone()), model.jobs.keys().copied().collect());
        let ended: Vec<_> =
            model.jobs.iter().filter_map(|(attempt, job)| Some((*attempt, job.outcome.clone()?))).collect();
        self.event(Event::WorkerConnected { worker, facts, attempts })?;
        for (attempt, outcome) in ended {
            self.report(worker, attempt, outcome);
        }
        self.soon(0, 1_000, Action::Beat(worker, session));
        Ok(())
    }

    pub fn arrive(&mut self, worker: WorkerId, session: u64, event: Event) -> Outcome {
        let is_current = self.sessions.get(&worker) == Some(&session);
        // What a session's last messages said may be read after it ended.
        let is_late_report = matches!(event, Event::AttemptReported { .. }) && self.chance.percent(50);
        if is_current || is_late_report { self.event(event) } else { Ok(()) }
    }

    pub fn send(&mut self, worker: WorkerId, message: ToWorker) {
        if let Some(&session) = self.sessions.get(&worker) {
            let at = self.now + Duration::from_millis(self.chance.between(1, 400));
            let at = at.max(self.last_down.get(&worker).copied().unwrap_or_default());
            self.last_down.insert(worker, at);
            self.at(at, Action::Down(worker, session, message));
        }
    }

    /// From the worker, in the order of its session.
    pub fn up(&mut self, worker: WorkerId, event: Event) {
        let late = Duration::from_millis(self.chance.between(1, 400));
        let model = self.workers.get_mut(&worker).expect("a worker");
        let Some(session) = model.session else { return };
        model.last_arrival = model.last_arrival.max(self.now + late);
        let at = model.last_arrival;
        self.at(at, Action::Up(worker, session, event));
    }

    pub fn report(&mut self, worker: WorkerId, attempt: AttemptId, outcome: AttemptOutcome) {
        let twice = self.chance.percent(5);
        let event = Event::AttemptReported { worker, attempt, outcome };
        if twice {
            self.up(worker, event.clone());
        }
        match self.workers[&worker].session {
            // Overtaken by what was said after it.
            Some(session) if self.chance.percent(3) => self.soon(400, 5_000, Action::Up(worker, session, event)),
            Some(_) | None => self.up(worker, event),
        }
    }

    pub fn beat(&mut self, worker: WorkerId, session: u64) {
        let model = &self.workers[&worker];
        if model.session != Some(session) || !model.alive {
            return;
        }
        if model.is_still(self.now) {
            let until = model.hung_until;
            return self.at(until, Action::Beat(worker, session));
        }
        let stats = model.stats(self.now);
        self.up(worker, Event::WorkerHeartbeat { worker, stats });
        self.at(self.now + BEAT, Action::Beat(worker, session));
    }

    pub fn deliver(&mut self, worker: WorkerId, session: u64, message: ToWorker) -> Outcome {
        let now = self.now;
        let model = self.workers.get_mut(&worker).expect("a worker");
        if model.session != Some(session) || !model.alive {
            return Ok(());
        }
        if model.is_still(now) {
            let until = model.hung_until;
            self.at(until, Action::Down(worker, session, message));
            return Ok(());
        }
        match message {
            ToWorker::Run(dispatch) => return self.run_job(worker, *dispatch),
            ToWorker::Stop(attempt) => match model.jobs.get_mut(&attempt).map(|job| {
                job.told_to_stop = true;
                job.outcome.is_some()
            }) {
                Some(false) => self.soon(10, 3_000, Action::JobStopped(worker, attempt)),
                Some(true) => {}
                None => self.report(worker, attempt, AttemptOutcome::Cancelled),
            },
            ToWorker::Forget(attempt) => drop(model.jobs.remove(&attempt)),
            ToWorker::Close => {
                model.session = None;
                self.soon(500, 5_000, Action::Connect(worker));
            }
        }
        Ok(())
    }

    /// The worker's side of its session is gone; the coordinator notices soon, late or never.
    pub fn drop_session(&mut self, worker: WorkerId) {
        let model = self.workers.get_mut(&worker).expect("a worker");
        if let Some(session) = model.session.take()
            && self.chance.percent(60)
        {
            self.soon(1, 10_000, Action::SessionLost(worker, session));
        }
    }
}
