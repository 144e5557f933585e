//! The metrics that `/metrics` shows: every name is here, with its meaning; whoever measures uses these constants.

use std::sync::{Mutex, PoisonError};

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

// The farm, set from the scheduler's state whenever someone looks.
pub const BUILDS: &str = "kiln_builds";
pub const TASKS_WAITING: &str = "kiln_tasks_waiting";
pub const WORKERS: &str = "kiln_workers";
pub const SLOTS: &str = "kiln_slots";
pub const SLOTS_USED: &str = "kiln_slots_used";
pub const PROCESS_RESIDENT: &str = "process_resident_memory_bytes";

// Contexts, counted by `contexts`.
pub const CONTEXT_RECEIVED: &str = "kiln_context_received_bytes_total";
pub const CONTEXT_SERVED: &str = "kiln_context_served_bytes_total";

// Publishing, counted by `publish`.
pub const PUBLISHES: &str = "kiln_publishes_total";
pub const PUBLISH_SECONDS: &str = "kiln_publish_seconds";
pub const REGISTRY_RETRIES: &str = "kiln_registry_retries_total";

/// Upper bounds of the histogram of publishes, in seconds: a merge takes milliseconds, a budget is two minutes.
const PUBLISH_BUCKETS: [f64; 10] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 120.0];

/// The process's one recorder, made with the first call; the handle renders what was recorded.
///
/// # Errors
/// When the process has a recorder of someone else.
pub fn recorder() -> Result<PrometheusHandle, BuildError> {
    static RECORDER: Mutex<Option<PrometheusHandle>> = Mutex::new(None);
    let mut recorder = RECORDER.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(handle) = &*recorder {
        return Ok(handle.clone());
    }
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Full(PUBLISH_SECONDS.to_owned()), &PUBLISH_BUCKETS)?
        .install_recorder()?;
    describe();
    Ok(recorder.insert(handle).clone())
}

fn describe() {
    use metrics::{describe_counter, describe_gauge, describe_histogram};
    describe_gauge!(BUILDS, "builds that are not final, by state");
    describe_gauge!(TASKS_WAITING, "tasks that wait for a worker");
    describe_gauge!(WORKERS, "workers, by state");
    describe_gauge!(SLOTS, "slots of the workers that are connected");
    describe_gauge!(SLOTS_USED, "slots in use");
    describe_gauge!(PROCESS_RESIDENT, "resident memory of the coordinator");
    describe_counter!(CONTEXT_RECEIVED, "bytes of contexts that clients uploaded");
    describe_counter!(CONTEXT_SERVED, "bytes of contexts that workers fetched");
    describe_counter!(PUBLISHES, "publishes, by result");
    describe_histogram!(PUBLISH_SECONDS, "time from the last required leg to the last tag");
    describe_counter!(REGISTRY_RETRIES, "registry calls that were tried again");
    // Shown as 0 from the start, so that a rate has something to start from.
    for name in [CONTEXT_RECEIVED, CONTEXT_SERVED, REGISTRY_RETRIES] {
        metrics::counter!(name).increment(0);
    }
}
