//! `kiln builds explain`: why each leg waits, readable for a farm of three workers and for one of ten thousand.

use kiln_common::Timestamp;
use kiln_proto::{
    convert::timestamp_from_wire,
    v1::{ExplainBuildResponse, TaskExplanation, WorkerAnswer},
};

use crate::output::{Paint, Table, text};

/// As many workers are shown one by one; more are counted by their answers.
const ONE_BY_ONE: u32 = 20;

pub(super) fn text(answer: &ExplainBuildResponse, paint: Paint, now: Timestamp) -> String {
    if answer.tasks.is_empty() {
        return "every leg has ended; nothing waits\n".to_owned();
    }
    answer.tasks.iter().map(|one| leg(one, paint, now)).collect::<Vec<_>>().join("\n")
}

fn leg(one: &TaskExplanation, paint: Paint, now: Timestamp) -> String {
    let task = one.task.clone().unwrap_or_default();
    let state = text::paint_state(paint, text::task_state(task.state()));
    let mut out = format!("{}  {state}  {}\n", paint.bold(&task.platform), one.summary);
    out += &outlook(one, paint, now);
    let workers: u32 = one.answers.iter().map(|answer| answer.workers).sum();
    out += &if workers <= ONE_BY_ONE { one_by_one(one, paint) } else { counted(&one.answers, paint) };
    out
}

/// The place in the queue, and what is expected.
fn outlook(one: &TaskExplanation, paint: Paint, now: Timestamp) -> String {
    let mut out = String::new();
    if one.queue_position > 0 {
        out += &format!("  place {} in its queue\n", one.queue_position);
    }
    let moment = |moment: &prost_types::Timestamp| timestamp_from_wire(moment);
    let ahead = |moment: Timestamp| match moment.since(now) {
        wait if wait.is_zero() => "now".to_owned(),
        wait => format!("in {}", text::duration(wait)),
    };
    match one.predicted_start.as_ref().map(moment) {
        Some(start) if start <= now && one.queue_position == 0 => {}
        Some(start) => out += &format!("  expected to start {}\n", ahead(start)),
        None => out += "  nobody can tell when it starts\n",
    }
    if let Some(finish) = one.predicted_finish.as_ref().map(moment) {
        out += &format!("  expected to finish {}\n", ahead(finish));
    }
    if one.predicted_emulated {
        out += &paint.yellow(&format!("  expected to run EMULATED, {:.1} times slower\n", one.slowdown));
    }
    out
}

fn one_by_one(one: &TaskExplanation, paint: Paint) -> String {
    if one.workers.is_empty() {
        return String::new();
    }
    let mut table = Table::new(["  WORKER", "CAN", "GRADE", "WHY"]);
    for worker in &one.workers {
        let name = format!("  {}", worker.worker_name);
        table.row([name, can(worker.qualifies, paint), text::grade(worker.grade()).to_owned(), worker.reason.clone()]);
    }
    table.render(paint)
}

fn counted(answers: &[WorkerAnswer], paint: Paint) -> String {
    let mut table = Table::new(["  WORKERS", "CAN", "GRADE", "WHY", "FOR EXAMPLE"]);
    for answer in answers {
        let more = answer.workers as usize - answer.names.len().min(answer.workers as usize);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        table.row([
            format!("  {}", answer.workers),
            can(answer.qualifies, paint),
            text::grade(answer.grade()).to_owned(),
            answer.answer.clone(),
            answer.names.join(", ") + &more,
        ]);
    }
    table.render(paint)
}

fn can(qualifies: bool, paint: Paint) -> String {
    if qualifies { paint.green("yes") } else { paint.red("no") }
}

#[cfg(test)]
mod tests {
    use kiln_proto::{
        convert::timestamp_to_wire,
        v1::{Grade, Task, TaskState, WorkerVerdict},
    };

    use super::*;

    fn waiting() -> TaskExplanation {
        let now = Timestamp::from_millis(1_700_000_000_000);
        let at = |seconds| Some(timestamp_to_wire(now + std::time::Duration::from_secs(seconds)));
        TaskExplanation {
            task: Some(Task { platform: "linux/arm64".into(), state: TaskState::Waiting.into(), ..Task::default() }),
            queue_position: 3,
            predicted_start: at(60),
            predicted_finish: at(180),
            summary: "linux/arm64 waits at position 3: the 2 workers that run it are full".into(),
            ..TaskExplanation::default()
        }
    }

    fn shown(one: TaskExplanation) -> String {
        let now = Timestamp::from_millis(1_700_000_000_000);
        text(&ExplainBuildResponse { tasks: vec![one] }, Paint::new(false), now)
    }

    #[test]
    fn a_small_farm_is_shown_worker_by_worker() {
        let verdict = |name: &str, reason: &str| WorkerVerdict {
            worker_name: name.into(),
            grade: Grade::Native.into(),
            reason: reason.into(),
            ..WorkerVerdict::default()
        };
        let text = shown(TaskExplanation {
            workers: vec![verdict("pi-1", "full: 1 of 1 slots in use"), verdict("pi-2", "offline")],
            answers: vec![WorkerAnswer { workers: 2, ..WorkerAnswer::default() }],
            ..waiting()
        });
        for part in ["place 3", "start in 1m", "finish in 3m", "pi-1", "full: 1 of 1 slots in use", "pi-2", "offline"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("EMULATED"), "{text}");
    }

    #[test]
    fn ten_thousand_workers_take_a_few_lines() {
        let answer = |answer: &str, workers, names: &[&str]| WorkerAnswer {
            answer: answer.into(),
            workers,
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            ..WorkerAnswer::default()
        };
        let text = shown(TaskExplanation {
            answers: vec![
                answer("full", 12, &["b-1", "b-2"]),
                answer("does not run the platform", 9_988, &["b-0", "b-3"]),
            ],
            ..waiting()
        });
        assert!(text.lines().count() < 10, "{text}");
        assert!(text.contains("full") && text.contains("b-1, b-2 and 10 more"), "{text}");
        assert!(text.contains("9988") && text.contains("b-0, b-3 and 9986 more"), "{text}");
    }

    #[test]
    fn an_emulated_outlook_says_how_much_slower() {
        let text = shown(TaskExplanation { predicted_emulated: true, slowdown: 7.5, ..waiting() });
        assert!(text.contains("EMULATED, 7.5 times slower"), "{text}");
    }
}
