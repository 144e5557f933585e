//! Tells a step that failed by itself from one that failed because the worker's disk was full.
//!
//! Both exit with a code of their own choice; what the step printed and what the disk said at that moment tell them apart.

use kiln_proto::v1::{ProgressEntry, progress_entry::Event};

use crate::{engine::BuildError, probe::FileSystem};

/// What programs print for `ENOSPC`, whatever they are written in (`strerror`).
const WORDS: &[u8] = b"No space left on device";

/// Whether the entry is a line of output that says so.
#[must_use]
pub fn says_full(entry: &ProgressEntry) -> bool {
    match &entry.event {
        Some(Event::Line(line)) => line.text.windows(WORDS.len()).any(|part| part.eq_ignore_ascii_case(WORDS)),
        Some(Event::Vertex(_) | Event::Status(_) | Event::Warning(_)) | None => false,
    }
}

/// Less than a fiftieth is free: the step may have given a little back by now.
#[must_use]
pub const fn is_full(disk: &FileSystem) -> bool {
    disk.available < disk.total / 50
}

/// A failure under a full disk is the farm's: another worker may have room.
#[must_use]
pub fn blame(error: BuildError, disk_was_full: bool) -> BuildError {
    match error {
        BuildError::Build(message) if disk_was_full => {
            BuildError::Infrastructure(format!("the worker's disk was full: {message}"))
        }
        other @ (BuildError::Build(_)
        | BuildError::Infrastructure(_)
        | BuildError::Registry(_)
        | BuildError::Cancelled) => other,
    }
}

#[cfg(test)]
mod tests {
    use kiln_proto::v1::LogLine;

    use super::*;

    fn line(text: &str) -> ProgressEntry {
        let line = LogLine { text: text.into(), ..LogLine::default() };
        ProgressEntry { time: None, event: Some(Event::Line(line)) }
    }

    #[test]
    fn a_step_that_ran_out_of_disk_is_the_farm_s_failure_and_any_other_the_user_s() {
        assert!(says_full(&line("dd: error writing '/fat': No space left on device")));
        assert!(says_full(&line("fatal: no space left on device")));
        assert!(!says_full(&line("exit 1")) && !says_full(&line("")));
        let disk = |available| FileSystem { device: 1, total: 16_000, available };
        assert!(is_full(&disk(100)) && !is_full(&disk(1000)));
        let failed = || BuildError::Build("exit code: 1".to_owned());
        assert!(
            matches!(blame(failed(), true), BuildError::Infrastructure(message) if message.contains("exit code: 1"))
        );
        assert!(matches!(blame(failed(), false), BuildError::Build(_)));
        assert!(matches!(blame(BuildError::Cancelled, true), BuildError::Cancelled));
    }
}
