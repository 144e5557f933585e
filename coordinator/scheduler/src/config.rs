//! The scheduler's settings. `Default` is what the farm runs with; tests and the simulator shorten the times.

use std::time::Duration;

use kiln_common::limits;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Builds that are not final yet; one more is refused.
    pub open_builds: usize,
    /// How often a task is tried again after infrastructure failures.
    pub retries_per_task: u32,
    /// A worker unheard of for this long is lost.
    pub heartbeat_lease: Duration,
    /// A lost worker's attempts wait this long for it to return.
    pub reconnect_grace: Duration,
    /// The first wait after an infrastructure failure; doubles with each, plus or minus half of it by chance.
    pub backoff_base: Duration,
    pub backoff_most: Duration,
    /// This many infrastructure failures of one worker within the window quarantine it.
    pub quarantine_failures: usize,
    pub quarantine_window: Duration,
    /// How long a quarantined worker waits for its canary task; doubles with each canary that fails.
    pub canary_wait: Duration,
    pub canary_wait_most: Duration,
    /// How long a build whose required legs are done waits for its optional legs before it publishes without them.
    pub optional_patience: Duration,
    /// A worker that was told to stop an attempt and stays silent is told again this often.
    pub stop_again: Duration,
    /// How often tasks that wait for a native worker are compared with emulation anew.
    pub emulation_review: Duration,
    /// Final builds stay in memory this long, and this many at most; the store has them, and a retry brings one back.
    pub final_kept: Duration,
    pub finals_kept: usize,
    /// Request ids of forgotten builds that are still recognised.
    pub request_ids_kept: usize,
    /// Effects of one deadline call, about; what is due beyond comes with the next call.
    pub effects_per_turn: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            open_builds: limits::OPEN_BUILDS,
            retries_per_task: limits::RETRIES_PER_TASK,
            heartbeat_lease: limits::HEARTBEAT_LEASE,
            reconnect_grace: limits::RECONNECT_GRACE,
            backoff_base: Duration::from_secs(2),
            backoff_most: Duration::from_secs(60),
            quarantine_failures: 3,
            quarantine_window: Duration::from_secs(600),
            canary_wait: Duration::from_secs(120),
            canary_wait_most: Duration::from_secs(3600),
            optional_patience: Duration::from_secs(600),
            stop_again: Duration::from_secs(30),
            emulation_review: Duration::from_secs(5),
            final_kept: Duration::from_secs(60),
            finals_kept: 64,
            request_ids_kept: 20_000,
            effects_per_turn: 512,
        }
    }
}
