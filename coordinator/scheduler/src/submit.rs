//! Submits: what is refused and why, and how a build and its tasks begin.

use std::sync::Arc;

use kiln_common::{BuildId, BuildSpec, EmulationPolicy, Grade, Platform, TaskId};

use crate::{
    effect::{Effect, Refusal},
    entity::{Build, Task},
    farm::{GRADES, selector::Needs, worker::Worker},
    record::{BuildRecord, BuildState, TaskRecord, TaskState},
    scheduler::Scheduler,
    slab::{BuildIx, TaskIx},
    timers::Timer,
};

/// Workers that a refusal names.
const NAMED: usize = 5;

impl Scheduler {
    pub(crate) fn on_submit(&mut self, id: BuildId, request_id: Option<String>, spec: BuildSpec) {
        let earlier = request_id.as_ref().and_then(|request| self.requests.get(request).copied());
        if let Some(build) = earlier.or_else(|| self.build_ids.contains_key(&id).then_some(id)) {
            return self.act(Effect::Accepted { build });
        }
        if let Err(refusal) = self.check_submit(&spec) {
            return self.act(Effect::Refused { build: id, refusal });
        }
        if let Some(request) = &request_id {
            self.requests.insert(request.clone(), id);
        }
        let at = self.begin_build(id, request_id, spec);
        self.act(Effect::Accepted { build: id });
        for task in self.builds[at].tasks.clone() {
            self.begin_waiting(task);
        }
    }

    fn check_submit(&self, spec: &BuildSpec) -> Result<(), Refusal> {
        spec.validate().map_err(|violations| Refusal::Invalid { violations })?;
        if self.open >= self.config.open_builds {
            return Err(Refusal::Overloaded { open: self.open });
        }
        self.check_platforms(spec, spec.platforms.iter().map(|request| &request.platform))
    }

    /// Each platform must have a registered worker, connected or not, that could build it.
    pub(crate) fn check_platforms<'a>(
        &self,
        spec: &BuildSpec,
        mut platforms: impl Iterator<Item = &'a Platform>,
    ) -> Result<(), Refusal> {
        let needs = Needs::of(spec);
        let grades = match spec.emulation {
            EmulationPolicy::Never => &GRADES[..2],
            EmulationPolicy::Auto | EmulationPolicy::Wait(_) | EmulationPolicy::Now => &GRADES[..],
        };
        platforms.try_for_each(|platform| self.check_platform(platform, grades, &needs))
    }

    fn check_platform(&self, platform: &Platform, grades: &[Grade], needs: &Needs) -> Result<(), Refusal> {
        let platform = platform.clone();
        let entry = self.farm.platform(&platform).map(|at| self.farm.entry(at));
        let Some(entry) = entry.filter(|entry| GRADES.iter().any(|grade| entry.is_known(*grade))) else {
            return Err(Refusal::NoWorkerForPlatform { platform, available: self.farm.available(&GRADES) });
        };
        if !grades.iter().any(|grade| entry.is_known(*grade)) {
            return Err(Refusal::OnlyEmulated { platform });
        }
        let at = self.farm.platform(&platform);
        let able = || {
            let runs = move |worker: &&Worker| {
                at.and_then(|at| worker.grade_of(at)).is_some_and(|grade| grades.contains(&grade))
            };
            self.farm.workers.iter().map(|(_, worker)| worker).filter(runs)
        };
        if able().any(|worker| needs.met_by(worker)) {
            return Ok(());
        }
        let labelled = || able().filter(|worker| needs.labels_met_by(worker));
        if labelled().next().is_some() {
            let asked_by = needs.features.iter().map(|feature| feature.asked_by()).collect::<Vec<_>>().join(", ");
            return Err(Refusal::NoWorkerWithFeature { platform, asked_by, detail: lacking(needs, labelled()) });
        }
        let labels = needs.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(", ");
        Err(Refusal::NoWorkerWithLabels { platform, labels })
    }

    fn begin_build(&mut self, id: BuildId, request_id: Option<String>, spec: BuildSpec) -> BuildIx {
        let now = self.now;
        let spec = Arc::new(spec);
        let deadline = now + spec.timeout;
        let at = self.builds.insert(Build {
            project: spec.project.as_str().into(),
            tasks: Vec::new(),
            selector: None,
            optional_until: None,
            dirty: false,
            record: BuildRecord {
                id,
                request_id,
                spec: Arc::clone(&spec),
                state: BuildState::Queued,
                tasks: Vec::new(),
                created_at: now,
                started_at: None,
                finished_at: None,
                deadline,
                publishes: 0,
                published: None,
                revision: 0,
            },
        });
        self.build_ids.insert(id, at);
        for request in &spec.platforms {
            let record = TaskRecord {
                id: TaskId::from_uuid(self.ids.next(now)),
                build: id,
                platform: request.platform.clone(),
                required: request.required,
                state: TaskState::Waiting { since: now },
                attempts: 0,
                attempt: None,
                avoid: Vec::new(),
                revision: 0,
            };
            self.builds[at].record.tasks.push(record.id);
            self.add_task(at, record);
        }
        self.open_build(at);
        self.changed_build(at);
        at
    }

    pub(crate) fn add_task(&mut self, build: BuildIx, record: TaskRecord) -> TaskIx {
        let id = record.id;
        let platform = self.farm.intern(&record.platform);
        let at = self.tasks.insert(Task {
            record,
            build,
            platform,
            ties: None,
            spot: None,
            worker: None,
            emulation_at: None,
            dirty: false,
        });
        self.task_ids.insert(id, at);
        self.builds[build].tasks.push(at);
        at
    }

    /// The build is not final (any more): it counts, has a selector and runs out of time one day.
    pub(crate) fn open_build(&mut self, at: BuildIx) {
        let needs = Needs::of(&self.builds[at].record.spec);
        let selector = self.farm.selectors.acquire(needs, &self.farm.workers);
        let build = &mut self.builds[at];
        build.selector = Some(selector);
        let (deadline, id) = (build.record.deadline, build.record.id);
        self.timers.set(deadline, Timer::Timeout(id));
        self.open += 1;
    }
}

/// Which engines lack what, for a refusal.
fn lacking<'a>(needs: &Needs, workers: impl Iterator<Item = &'a Worker>) -> String {
    let mut named = Vec::new();
    let mut more = 0;
    for worker in workers {
        if named.len() == NAMED {
            more += 1;
            continue;
        }
        let name = &worker.record.name;
        named.push(match &worker.record.facts {
            Some(facts) => {
                let lacks = needs.features.difference(&facts.features).map(|feature| feature.name());
                let lacks = lacks.collect::<Vec<_>>().join(" and ");
                format!("`{name}` ({} {}) lacks {lacks}", facts.engine.kind, facts.engine.version)
            }
            None => format!("`{name}` has not said yet what it is"),
        });
    }
    if more > 0 {
        named.push(format!("and {more} more"));
    }
    named.join(", ")
}
