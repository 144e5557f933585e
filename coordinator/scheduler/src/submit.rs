//! Submits: what is refused and why, and how a build and its tasks begin.

use std::sync::Arc;

use kiln_common::{BuildId, BuildSpec, EmulationPolicy, Grade, Platform, TaskId};

use crate::{
    effect::{Effect, Refusal},
    entity::{Build, Place, Task, Ties},
    farm::{GRADES, grade_index, selector::Needs, worker::Worker},
    legs::Legs,
    queue::lane::due_of,
    record::{BuildRecord, BuildState, CredentialsMark, TaskRecord, TaskState},
    scheduler::Scheduler,
    slab::BuildIx,
    timers::Timer,
};

/// Workers that a refusal names.
const NAMED: usize = 5;

impl Scheduler {
    pub(crate) fn on_submit(
        &mut self,
        id: BuildId,
        request_id: Option<String>,
        spec: BuildSpec,
        credentials: Option<CredentialsMark>,
    ) {
        let earlier = request_id.as_ref().and_then(|request| self.requests.get(request).copied());
        if let Some(build) = earlier.or_else(|| self.build_ids.contains_key(&id).then_some(id)) {
            return self.act(Effect::Accepted { build });
        }
        if let Err(refusal) = self.check_submit(&spec) {
            return self.act(Effect::Refused { build: id, refusal: Box::new(refusal) });
        }
        if let Some(request) = &request_id {
            self.requests.insert(request.clone(), id);
        }
        let at = self.begin_build(id, request_id, spec, credentials);
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
        let at = self.farm.platform(platform);
        let known = |grade: &Grade| at.is_some_and(|at| self.farm.entry(at).is_known(*grade));
        if let (Some(at), Some(able)) = (at, self.farm.selectors.members(needs))
            && grades.iter().any(|grade| self.farm.entry(at).pools[grade_index(*grade)].known.meets(able))
        {
            return Ok(());
        }
        let platform = platform.clone();
        if !GRADES.iter().any(known) {
            return Err(Refusal::NoWorkerForPlatform { platform, available: self.farm.available(&GRADES) });
        }
        if !grades.iter().any(known) {
            return Err(Refusal::OnlyEmulated { platform });
        }
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

    fn begin_build(
        &mut self,
        id: BuildId,
        request_id: Option<String>,
        spec: BuildSpec,
        credentials: Option<CredentialsMark>,
    ) -> BuildIx {
        let now = self.now;
        let spec = Arc::new(spec);
        let requests = spec.platforms.iter();
        let tasks: Vec<_> = requests
            .map(|request| TaskRecord {
                id: TaskId::from_uuid(self.ids.next(now)),
                build: id,
                platform: request.platform.clone(),
                required: request.required,
                state: TaskState::Waiting { since: now },
                attempts: 0,
                attempt: None,
                avoid: Vec::new(),
                revision: 0,
            })
            .collect();
        let record = BuildRecord {
            id,
            request_id,
            credentials,
            deadline: now + spec.timeout,
            spec,
            state: BuildState::Queued,
            tasks: tasks.iter().map(|task| task.id).collect(),
            created_at: now,
            started_at: None,
            finished_at: None,
            publishes: 0,
            published: None,
            revision: 0,
        };
        let at = self.add_build(record, tasks);
        self.open_build(at);
        self.changed_build(at);
        at
    }

    /// Takes a build and its tasks in, as their records are.
    pub(crate) fn add_build(&mut self, record: BuildRecord, tasks: Vec<TaskRecord>) -> BuildIx {
        let (id, spec) = (record.id, &record.spec);
        let policy_waits = matches!(spec.emulation, EmulationPolicy::Wait(_));
        let at = self.builds.insert(Build {
            id,
            spec: Arc::clone(spec),
            deadline: record.deadline,
            tasks: Vec::with_capacity(tasks.len()),
            ties: None,
            legs: Legs::default(),
            due: due_of(record.created_at, spec.priority),
            sequence: 0,
            has_twins: false,
            times_waits: policy_waits || spec.queue_timeout.is_some(),
            dirty: false,
            optional_until: None,
            record: Arc::new(record),
        });
        self.build_ids.insert(id, at);
        for record in tasks {
            self.add_task(at, record);
        }
        at
    }

    fn add_task(&mut self, build: BuildIx, mut record: TaskRecord) {
        let platform = self.farm.intern(&record.platform);
        record.platform = self.farm.entry(platform).platform.clone();
        self.builds[build].legs.add(record.required, &record.state);
        let tried = record.is_tried();
        let record = Arc::new(record);
        let at = self.tasks.insert(Task { record, build, platform, place: Place::Nowhere, tried, dirty: false });
        self.builds[build].tasks.push(at);
    }

    /// The build is not final (any more): it counts, has its ties and runs out of time one day.
    pub(crate) fn open_build(&mut self, at: BuildIx) {
        let (spec, deadline) = (Arc::clone(&self.builds[at].spec), self.builds[at].deadline);
        let ties = Ties {
            selector: self.farm.selectors.acquire(Needs::of(&spec), &self.farm.workers),
            project: self.queue.flows.acquire(&spec.project),
            repository: self.history.acquire(&repository_of(&spec)),
            alike: self.join_alike(at),
        };
        self.opened += 1;
        let build = &mut self.builds[at];
        build.ties = Some(ties);
        build.sequence = self.opened;
        self.timers.set(deadline, Timer::Timeout(at));
        self.open += 1;
    }
}

/// What a build's history is kept under.
pub(crate) fn repository_of(spec: &BuildSpec) -> String {
    spec.tags.first().map(|tag| tag.repository().to_string()).unwrap_or_default()
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
