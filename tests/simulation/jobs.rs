//! What workers do with their attempts: they end, hang, run out of time, are stopped, and die with their worker.

use std::{sync::Arc, time::Duration};

use kiln_common::{AttemptId, WorkerId};
use kiln_scheduler::{effect::Dispatch, event::AttemptOutcome};

use crate::{
    model_worker::Job,
    oracle::{Made, check_stopped},
    registry::image,
    world::{Action, Outcome, World},
};

/// Slots that a worker has at most, whatever an operator sets.
const MOST_SLOTS: usize = 3;

impl World {
    pub fn run_job(&mut self, worker: WorkerId, dispatch: Dispatch) -> Outcome {
        let attempt = dispatch.attempt;
        let emulated = dispatch.grade.is_emulated();
        let gives_up = self.now + dispatch.time_left + Duration::from_millis(self.chance.below(2_000));
        let may_hang = dispatch.spec.timeout < Duration::from_secs(1_000) && self.chance.percent(25);
        let credentials = self.store.builds.get(&dispatch.build).and_then(|build| build.credentials.clone());
        let made = Made { build: dispatch.build, spec: dispatch.spec, credentials };
        let model = self.workers.get_mut(&worker).expect("a worker");
        if model.jobs.insert(attempt, Job { made, told_to_stop: false, outcome: None }).is_some() {
            return Err(format!("attempt {attempt} was dispatched twice"));
        }
        let running = model.jobs.values().filter(|job| job.outcome.is_none()).count();
        if running > MOST_SLOTS {
            return Err(format!("worker {worker} runs {running} attempts at once"));
        }
        self.report(worker, attempt, AttemptOutcome::Started);
        if !may_hang {
            let times = if emulated { 4 } else { 1 };
            self.soon(1_000, 15_000 * times, Action::JobEnds(worker, attempt));
        }
        self.at(gives_up, Action::JobRunsOut(worker, attempt));
        Ok(())
    }

    pub fn job_ends(&mut self, worker: WorkerId, attempt: AttemptId) -> Outcome {
        let (now, calm, dice) = (self.now, self.calm, self.chance.below(100));
        let Some(model) = self.workers.get_mut(&worker) else { return Ok(()) };
        if model.is_still(now) {
            let until = model.hung_until;
            if model.alive {
                self.at(until, Action::JobEnds(worker, attempt));
            }
            return Ok(());
        }
        let is_full = now < model.full_until;
        let Some(job) = model.jobs.get_mut(&attempt).filter(|job| job.outcome.is_none()) else {
            return Ok(());
        };
        self.images += 1;
        let outcome = match dice {
            _ if is_full => AttemptOutcome::InfrastructureFailed { message: "no space left on device".into() },
            0..5 => AttemptOutcome::BuildFailed { message: "RUN make: exit code 2".into() },
            5..20 if !calm => AttemptOutcome::InfrastructureFailed { message: "the engine does not answer".into() },
            20..22 if !calm => AttemptOutcome::Cancelled,
            22..26 if !calm => AttemptOutcome::RegistryFailed { message: "the registry does not answer".into() },
            _ => {
                let image = image(self.images);
                self.made.insert(image.digest.clone(), job.made.clone());
                AttemptOutcome::Succeeded { image: Arc::new(image) }
            }
        };
        job.outcome = Some(outcome.clone());
        let (told, heard_since) = (job.told_to_stop, model.session_since.max(model.hung_until));
        let is_connected = model.session.is_some() && model.session == self.sessions.get(&worker).copied();
        if is_connected && !told {
            check_stopped(&self.store, attempt, heard_since, now)?;
        }
        self.report(worker, attempt, outcome);
        Ok(())
    }

    pub fn job_stopped(&mut self, worker: WorkerId, attempt: AttemptId, outcome: AttemptOutcome) {
        let Some(model) = self.workers.get_mut(&worker).filter(|model| model.alive) else { return };
        if let Some(job) = model.jobs.get_mut(&attempt).filter(|job| job.outcome.is_none()) {
            job.outcome = Some(outcome.clone());
            self.report(worker, attempt, outcome);
        }
    }

    /// Its process ends, and everything in it.
    pub fn die(&mut self, worker: WorkerId) {
        let model = self.workers.get_mut(&worker).expect("a worker");
        model.alive = false;
        model.jobs.clear();
        self.drop_session(worker);
        self.soon(1_000, 70_000, Action::Revive(worker));
    }
}
