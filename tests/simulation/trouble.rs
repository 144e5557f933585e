//! What goes wrong and what people do, until all faults stop.

use std::time::Duration;

use kiln_common::{BuildId, WorkerId};
use kiln_scheduler::{Event, event::WorkerUpdate};
use uuid::Uuid;

use crate::{
    scenario,
    world::{Action, Outcome, World},
};

impl World {
    pub fn trouble(&mut self) -> Outcome {
        if self.calm {
            return Ok(());
        }
        self.soon(200, 9_000, Action::Trouble);
        let worker = *self.chance.pick(&self.workers.keys().copied().collect::<Vec<_>>());
        let for_a_while = self.now + Duration::from_millis(self.chance.between(1_000, 70_000));
        let model = self.workers.get_mut(&worker).expect("a worker");
        match self.chance.below(28) {
            0 => self.die(worker),
            1 | 2 => model.hung_until = for_a_while,
            3 | 4 => {
                model.cut_until = for_a_while;
                self.drop_session(worker);
                self.at(for_a_while, Action::Connect(worker));
            }
            5 => model.full_until = for_a_while,
            6 => model.throttled = !model.throttled,
            26 => model.memory_pressure = *self.chance.pick(&[0.0, 20.0, 45.0]),
            27 => model.cpu_pressure = *self.chance.pick(&[0.0, 85.0, 97.0]),
            7 => {
                self.up(worker, Event::WorkerLeaving { worker, reason: "SIGTERM".into() });
                self.soon(500, 30_000, Action::Die(worker));
            }
            8 => {
                // It says anew what it is, within its session.
                if let Some(session) = model.session.filter(|_| !model.is_still(self.now)) {
                    model.facts.slots = 3 - model.facts.slots.min(2);
                    let facts = Box::new(model.facts.clone());
                    let attempts = model.jobs.keys().copied().collect();
                    if self.sessions.get(&worker) == Some(&session) {
                        self.up(worker, Event::WorkerConnected { worker, facts, attempts });
                    }
                }
            }
            9 => self.now = self.now + Duration::from_millis(self.chance.between(1_000, 40_000)),
            10..13 => return self.operate(worker),
            13 => return self.ask_about(|build| Event::Cancel { build, reason: "asked".into() }),
            14..16 => {
                let credentials = scenario::credentials(&mut self.chance);
                return self.ask_about(|build| Event::Retry { build, credentials: credentials.clone() });
            }
            16 => {
                let credentials = scenario::credentials(&mut self.chance);
                return self.ask_about(|build| Event::Backfill { build, credentials: credentials.clone() });
            }
            _ => return self.submit(),
        }
        Ok(())
    }

    pub fn operate(&mut self, worker: WorkerId) -> Outcome {
        let reason = "maintenance".to_owned();
        let update = match self.chance.below(8) {
            0 => WorkerUpdate::Cordon { reason },
            1 => WorkerUpdate::Drain { reason },
            2 | 3 => WorkerUpdate::Uncordon,
            4 | 5 => WorkerUpdate::Slots(u32::try_from(self.chance.between(1, 3)).unwrap_or(1)),
            6 => {
                let value = self.chance.pick(&["yes", "no"]).to_string();
                let zone = vec![(format!("z{}", self.chance.below(2)), value)];
                WorkerUpdate::Labels { set: zone, remove: Vec::new() }
            }
            _ => {
                self.event(Event::WorkerRemoved { worker })?;
                return Ok(());
            }
        };
        self.event(Event::WorkerUpdated { worker, update })
    }

    pub fn submit(&mut self) -> Outcome {
        self.builds += 1;
        let build = BuildId::from_uuid(Uuid::from_u64_pair(2, self.builds));
        let request_id = self.chance.percent(30).then(|| format!("ci-{}", self.chance.below(6)));
        let spec = Box::new(scenario::spec(&mut self.chance));
        let credentials = scenario::credentials(&mut self.chance);
        self.event(Event::Submit { build, request_id, spec, credentials })
    }

    pub fn ask_about(&mut self, event: impl Fn(BuildId) -> Event) -> Outcome {
        let known: Vec<_> = self.acknowledged.iter().copied().collect();
        if known.is_empty() {
            return Ok(());
        }
        let build = *self.chance.pick(&known);
        let forgotten = self.scheduler.as_ref().is_some_and(|scheduler| scheduler.build(build).is_none());
        if forgotten && let Some(record) = self.store.builds.get(&build) {
            let tasks = self.store.tasks_of(record);
            self.event(Event::Recall { build: Box::new(record.clone()), tasks })?;
        }
        self.event(event(build))
    }

    /// All faults end, and what operators did is undone.
    pub fn calm_down(&mut self) -> Outcome {
        self.calm = true;
        for worker in self.workers.keys().copied().collect::<Vec<_>>() {
            let model = self.workers.get_mut(&worker).expect("a worker");
            let (now, was_dead) = (self.now, !model.alive);
            model.hung_until = model.hung_until.min(now);
            model.cut_until = model.cut_until.min(now);
            model.full_until = model.full_until.min(now);
            model.throttled = false;
            model.memory_pressure = 0.0;
            model.cpu_pressure = 0.0;
            if was_dead {
                self.soon(100, 5_000, Action::Revive(worker));
            } else {
                self.soon(100, 5_000, Action::Connect(worker));
            }
            let set = ["z0", "z1"].map(|zone| (zone.to_owned(), "yes".to_owned())).to_vec();
            let updates =
                [WorkerUpdate::Uncordon, WorkerUpdate::Slots(2), WorkerUpdate::Labels { set, remove: Vec::new() }];
            for update in updates {
                self.soon(60_000, 60_000, Action::Operate(Event::WorkerUpdated { worker, update }));
            }
        }
        Ok(())
    }
}
