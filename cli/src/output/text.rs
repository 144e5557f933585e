//! Small texts that every view shares: durations, ages, sizes, short ids, states.

use std::time::Duration;

use kiln_common::Timestamp;
use kiln_proto::{
    convert::timestamp_from_wire,
    v1::{BuildState, Grade, TaskState, WorkerState},
};

use super::Paint;

/// `0.3s`, `12.4s`, `1m32s`, `2h05m`.
#[must_use]
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{:.1}s", duration.as_secs_f64().min(59.9)),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
    }
}

/// How long ago, in one unit: `3s`, `5m`, `2h`, `4d`.
#[must_use]
pub fn age(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// How far ahead, in one unit and rounded: what was asked to last `10m` a moment ago still does.
#[must_use]
pub fn ahead(duration: Duration) -> String {
    let seconds = duration.saturating_add(Duration::from_millis(500)).as_secs();
    let rounded = |unit: u64| (seconds + unit / 2) / unit;
    match (rounded(60), rounded(3600)) {
        _ if seconds < 60 => format!("{seconds}s"),
        (minutes @ 0..60, _) => format!("{minutes}m"),
        (_, hours @ 0..24) => format!("{hours}h"),
        _ => format!("{}d", rounded(86_400)),
    }
}

/// Decimal units with three digits, as Docker prints them: `512B`, `38.2MB`.
#[must_use]
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if count < 1000 {
        return format!("{count}B");
    }
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mut value = count as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = if value < 9.995 {
        2
    } else if value < 99.95 {
        1
    } else {
        0
    };
    format!("{value:.digits$}{}", UNITS[unit])
}

/// Enough of a version 7 id to name it: its first 48 bits are the millisecond it was made in.
#[must_use]
pub fn short_id(id: &str) -> &str {
    id.get(..13).unwrap_or(id)
}

/// `sha256:` and twelve digits.
#[must_use]
pub fn short_digest(digest: &str) -> &str {
    digest.get(..19).unwrap_or(digest)
}

/// The age of a moment, or `-`.
#[must_use]
pub fn age_of(moment: Option<&prost_types::Timestamp>, now: Timestamp) -> String {
    moment.map_or_else(|| "-".to_owned(), |moment| age(now.since(timestamp_from_wire(moment))))
}

/// From `start` to `end`, or to now while it has not ended; `-` before it starts.
#[must_use]
pub fn span(start: Option<&prost_types::Timestamp>, end: Option<&prost_types::Timestamp>, now: Timestamp) -> String {
    match start.map(timestamp_from_wire) {
        Some(start) => duration(end.map_or(now, timestamp_from_wire).since(start)),
        None => "-".to_owned(),
    }
}

#[must_use]
pub const fn grade(grade: Grade) -> &'static str {
    match grade {
        Grade::Unspecified => "-",
        Grade::Native => "native",
        Grade::Compat => "compat",
        Grade::Emulated => "emulated",
    }
}

#[must_use]
pub const fn build_state(state: BuildState) -> &'static str {
    match state {
        BuildState::Unspecified => "unknown",
        BuildState::Queued => "queued",
        BuildState::Running => "running",
        BuildState::Publishing => "publishing",
        BuildState::Succeeded => "succeeded",
        BuildState::Incomplete => "incomplete",
        BuildState::Failed => "failed",
        BuildState::Cancelled => "cancelled",
    }
}

#[must_use]
pub const fn task_state(state: TaskState) -> &'static str {
    match state {
        TaskState::Unspecified => "unknown",
        TaskState::Waiting => "waiting",
        TaskState::Assigned => "assigned",
        TaskState::Running => "running",
        TaskState::Backoff => "backoff",
        TaskState::Succeeded => "succeeded",
        TaskState::Failed => "failed",
        TaskState::Cancelled => "cancelled",
    }
}

#[must_use]
pub const fn worker_state(state: WorkerState) -> &'static str {
    match state {
        WorkerState::Unspecified => "unknown",
        WorkerState::Ready => "ready",
        WorkerState::Cordoned => "cordoned",
        WorkerState::Draining => "draining",
        WorkerState::Offline => "offline",
        WorkerState::Quarantined => "quarantined",
    }
}

/// A state in its colour: green is well, yellow is under way or half, red is bad.
#[must_use]
pub fn paint_state(paint: Paint, state: &str) -> String {
    match state {
        "succeeded" | "ready" => paint.green(state),
        "failed" | "offline" | "quarantined" => paint.red(state),
        "running" | "publishing" | "assigned" => paint.cyan(state),
        "incomplete" | "cordoned" | "draining" | "backoff" | "cancelled" => paint.yellow(state),
        _ => state.to_owned(),
    }
}

/// Whether the build will not change any more.
#[must_use]
pub const fn is_final(state: BuildState) -> bool {
    match state {
        BuildState::Unspecified | BuildState::Queued | BuildState::Running | BuildState::Publishing => false,
        BuildState::Succeeded | BuildState::Incomplete | BuildState::Failed | BuildState::Cancelled => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_ages_and_sizes_are_short() {
        let ms = Duration::from_millis;
        assert_eq!([0, 345, 12_440, 59_999].map(|n| duration(ms(n))), ["0.0s", "0.3s", "12.4s", "59.9s"]);
        assert_eq!([60_000, 92_500, 7_500_000].map(|n| duration(ms(n))), ["1m00s", "1m32s", "2h05m"]);
        assert_eq!([3_000, 300_000, 90_000_000].map(|n| age(ms(n))), ["3s", "5m", "1d"]);
        assert_eq!([599_800, 3_599_000, 3_000, 59_900].map(|n| ahead(ms(n))), ["10m", "1h", "3s", "1m"]);
        assert_eq!([604_799_000, 86_390_000].map(|n| ahead(ms(n))), ["7d", "1d"]);
        assert_eq!([0, 999, 1000, 38_240_000, 999_999].map(bytes), ["0B", "999B", "1.00kB", "38.2MB", "1.00MB"]);
    }
}
