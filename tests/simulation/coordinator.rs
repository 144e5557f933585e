//! The coordinator: a turn is the driver's, which is one event, its effects, the commit, the acts. It may crash before the
//! commit (the turn never was) or after it (the acts never happen).

use std::{hash::Hasher, sync::Arc};

use kiln_common::Timestamp;
use kiln_scheduler::{Effect, Event, Scheduler, invariants::check_all, query::WorkerState};

use crate::{
    oracle::{check_dispatch, check_given},
    scenario,
    world::{Action, Outcome, ToWorker, World},
};

impl World {
    pub fn event(&mut self, event: Event) -> Outcome {
        self.turn(Some(event))
    }

    /// The driver's turn: for an event, or because the scheduler's own deadline has come.
    pub fn turn(&mut self, input: Option<Event>) -> Outcome {
        let Some(scheduler) = self.scheduler.as_mut() else { return Ok(()) };
        // A clock that is set back for a moment must not matter.
        let restores = matches!(input, Some(Event::Restore { .. }));
        let back = if self.chance.percent(2) && !restores { self.chance.below(5_000) } else { 0 };
        let now = Timestamp::from_millis(self.now.as_millis() - back);
        if self.narrate
            && let Some(event) = &input
        {
            println!("{} > {}", self.now, short(event));
        }
        // One that was given up is not listened to.
        if let Some(Event::WorkerHeartbeat { worker, stats }) = &input
            && scheduler.worker(*worker).is_some_and(|view| view.state != WorkerState::Offline)
        {
            self.heard.entry(*worker).or_default().hear(stats);
        }
        if let Some(Event::WorkerRemoved { worker }) = &input {
            self.heard.remove(worker);
        }
        let effects = match input {
            Some(event) => scheduler.handle(event, now),
            None => scheduler.handle_deadline(self.now),
        };
        check_all(scheduler).map_err(|violation| violation.to_string())?;
        let crash = !self.calm && self.chance.below(300) == 0;
        if crash && self.chance.percent(50) {
            self.crash_coordinator();
            return Ok(());
        }
        let mut acts = Vec::new();
        for effect in effects {
            if self.narrate {
                println!("{}   < {}", self.now, short(&effect));
            }
            if self.trace {
                self.hasher.write(format!("{effect:?}").as_bytes());
            }
            match effect {
                Effect::PutBuild(build) => self.store.put_build(Arc::unwrap_or_clone(build))?,
                Effect::PutTask(task) => {
                    check_given(&self.store, &self.made, &task)?;
                    self.store.put_task(Arc::unwrap_or_clone(task))?;
                }
                Effect::PutWorker(worker) => drop(self.store.workers.insert(worker.id, *worker)),
                Effect::DeleteWorker(worker) => drop(self.store.workers.remove(&worker)),
                act @ (Effect::Accepted { .. }
                | Effect::Refused { .. }
                | Effect::Dispatch(_)
                | Effect::PassOn(_)
                | Effect::CancelAttempt { .. }
                | Effect::AcknowledgeReport { .. }
                | Effect::Adopted { .. }
                | Effect::CloseSession { .. }
                | Effect::Publish(_)
                | Effect::AbandonPublish { .. }
                | Effect::Finished { .. }) => acts.push(act),
            }
        }
        if crash {
            self.crash_coordinator();
            return Ok(());
        }
        acts.into_iter().try_for_each(|act| self.act(act))
    }

    pub fn act(&mut self, effect: Effect) -> Outcome {
        match effect {
            Effect::Accepted { build } => {
                if !self.store.builds.contains_key(&build) {
                    return Err(format!("build {build} was acknowledged before it was durable"));
                }
                self.acknowledged.insert(build);
            }
            Effect::Dispatch(dispatch) => {
                let heard = self.heard.get(&dispatch.worker).copied().unwrap_or_default();
                check_dispatch(&self.store, heard, &dispatch)?;
                self.send(dispatch.worker, ToWorker::Run(dispatch));
            }
            Effect::CancelAttempt { worker, attempt, .. } => self.send(worker, ToWorker::Stop(attempt)),
            Effect::AcknowledgeReport { worker, attempt } => self.send(worker, ToWorker::Forget(attempt)),
            Effect::CloseSession { worker, .. } => {
                self.send(worker, ToWorker::Close);
                self.sessions.remove(&worker);
            }
            Effect::Publish(job) => self.begin_publish(job)?,
            Effect::AbandonPublish { build } => drop(self.publishing.remove(&build)),
            Effect::PassOn(_) | Effect::Adopted { .. } | Effect::Refused { .. } | Effect::Finished { .. } => {}
            Effect::PutBuild(_) | Effect::PutTask(_) | Effect::PutWorker(_) | Effect::DeleteWorker(_) => {
                return Err("a record after an act".into());
            }
        }
        Ok(())
    }

    pub fn crash_coordinator(&mut self) {
        self.scheduler = None;
        self.generation += 1;
        self.sessions.clear();
        self.publishing.clear();
        self.heard.clear();
        for worker in self.workers.keys().copied().collect::<Vec<_>>() {
            let model = self.workers.get_mut(&worker).expect("a worker");
            if model.session.take().is_some() {
                self.soon(500, 40_000, Action::Connect(worker));
            }
        }
        self.soon(500, 15_000, Action::StartCoordinator);
    }

    pub fn start_coordinator(&mut self) -> Outcome {
        if self.scheduler.is_some() {
            return Ok(());
        }
        let seed = self.seed + self.generation;
        self.scheduler = Some(Scheduler::with_mutation(scenario::config(), seed, self.mutation));
        let recent =
            |finished: Option<Timestamp>| finished.is_none_or(|at| self.now.since(at) < scenario::config().final_kept);
        let builds = self.store.builds.values().filter(|build| recent(build.finished_at));
        let builds = builds.map(|build| (build.clone(), self.store.tasks_of(build))).collect();
        self.event(Event::Restore { builds, workers: self.store.workers.values().cloned().collect() })
    }
}

fn short(value: &impl std::fmt::Debug) -> String {
    format!("{value:?}").chars().take(400).collect()
}
