//! The last words of a build for people: what each platform became, what the tags name, or what failed and where.

use kiln_common::Timestamp;
use kiln_proto::v1::{self, BuildState, Grade, TaskState};

use super::{Model, step::Step};
use crate::{
    dockerfile,
    output::{Paint, Table, text},
};

/// The Dockerfile as the client read it, for the lines of a failed step.
#[derive(Debug, Clone, Default)]
pub struct Source {
    pub filename: String,
    pub text: String,
}

/// How a final build ended.
#[must_use]
pub fn render(model: &Model, source: Option<&Source>, paint: Paint, now: Timestamp) -> String {
    let Some(build) = &model.build else { return String::new() };
    let mut out = String::new();
    for leg in &model.legs {
        if let Some(task) = &leg.task
            && task.state() == TaskState::Failed
        {
            out += &failure(task, leg.steps.iter().find(|step| !step.error.is_empty()), source, paint);
        }
    }
    out += &tasks(build, paint, now);
    out.push('\n');
    out + &verdict(build, paint, now)
}

/// One line for each platform.
#[must_use]
pub fn tasks(build: &v1::Build, paint: Paint, now: Timestamp) -> String {
    let mut table = Table::new(["PLATFORM", "STATE", "WORKER", "GRADE", "TIME", "DIGEST"]);
    for task in &build.tasks {
        let grade = match task.grade() {
            Grade::Emulated => paint.yellow("emulated"),
            grade @ (Grade::Unspecified | Grade::Native | Grade::Compat) => text::grade(grade).to_owned(),
        };
        let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
        table.row([
            if task.optional { format!("{} (optional)", task.platform) } else { task.platform.clone() },
            text::paint_state(paint, text::task_state(task.state())),
            or_dash(&task.worker_name),
            grade,
            text::span(task.started_at.as_ref(), task.finished_at.as_ref(), now),
            or_dash(text::short_digest(&task.digest)),
        ]);
    }
    table.render(paint)
}

fn verdict(build: &v1::Build, paint: Paint, now: Timestamp) -> String {
    let time = text::span(build.created_at.as_ref(), build.finished_at.as_ref(), now);
    let id = paint.dim(&format!("build {}", build.id));
    let built = build.tasks.iter().filter(|task| task.state() == TaskState::Succeeded).count();
    let platforms = if built == 1 { "1 platform".to_owned() } else { format!("{built} platforms") };
    let mut out = match build.state() {
        BuildState::Succeeded => format!("{} {platforms} in {time}  {id}\n", paint.green("✔")),
        BuildState::Incomplete => {
            let hint = format!("add the missing ones later with `kiln builds backfill {}`", text::short_id(&build.id));
            format!("{} {platforms} of {} in {time}; {hint}  {id}\n", paint.yellow("!"), build.tasks.len())
        }
        BuildState::Failed => format!("{} failed after {time}  {id}\n", paint.red("✗")),
        BuildState::Cancelled => format!("{} cancelled after {time}  {id}\n", paint.yellow("■")),
        BuildState::Unspecified | BuildState::Queued | BuildState::Running | BuildState::Publishing => {
            format!("{} {} for {time}  {id}\n", paint.cyan("…"), text::build_state(build.state()))
        }
    };
    if !build.digest.is_empty() {
        let kind =
            if build.media_type.contains("index") || build.media_type.contains("list") { "index" } else { "image" };
        out += &format!("  {kind}  {}\n", build.digest);
    }
    for tag in &build.published_tags {
        out += &format!("  tag    {}\n", paint.bold(tag));
    }
    out
}

fn failure(task: &v1::Task, step: Option<&Step>, source: Option<&Source>, paint: Paint) -> String {
    let place = match task.worker_name.as_str() {
        "" => String::new(),
        worker => format!(" on {worker} ({})", text::grade(task.grade())),
    };
    let mut out = paint.red(&format!("✗ {} failed{place}", task.platform)) + "\n";
    let Some(step) = step else { return out + &format!("  {}\n\n", task.message) };
    out += &format!(" > {}\n", paint.bold(&step.label(&task.platform)));
    for (at, line) in &step.tail {
        out += &format!("   {} {line}\n", paint.dim(&format!("{:.3}", at.as_secs_f64())));
    }
    out += &format!("   {}\n", paint.red(&step.error));
    let excerpt = source.and_then(|source| dockerfile::excerpt(&source.text, &source.filename, &step.name));
    for line in excerpt.into_iter().flatten() {
        out += &format!(" {line}\n");
    }
    out + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::{
        Input,
        testing::{at, build, failed, line, log, task, vertex, wire},
    };

    fn told(model: &Model) -> String {
        let source = Source { filename: "Dockerfile".into(), text: "FROM alpine\nRUN false\n".into() };
        render(model, Some(&source), Paint::new(false), at(9.0))
    }

    fn finished(platform: &str, grade: Grade, state: TaskState) -> v1::Task {
        let digest = match state {
            TaskState::Succeeded => format!("sha256:{}", "12".repeat(32)),
            TaskState::Unspecified
            | TaskState::Waiting
            | TaskState::Assigned
            | TaskState::Running
            | TaskState::Backoff
            | TaskState::Failed
            | TaskState::Cancelled => String::new(),
        };
        v1::Task { finished_at: Some(wire(3.5)), digest, ..task(platform, state, "tower", grade) }
    }

    #[test]
    fn success_names_every_platform_the_index_and_the_tags() {
        let mut model = Model::default();
        let tasks = vec![
            finished("linux/amd64", Grade::Native, TaskState::Succeeded),
            finished("linux/arm/v6", Grade::Emulated, TaskState::Succeeded),
        ];
        let mut done = build(BuildState::Succeeded, tasks);
        done.finished_at = Some(wire(4.0));
        done.digest = format!("sha256:{}", "ab".repeat(32));
        done.media_type = "application/vnd.oci.image.index.v1+json".into();
        done.published_tags = vec!["r.example/app:1.0".into()];
        model.apply(Input::Build(Box::new(done)), at(4.0));
        assert_eq!(
            told(&model),
            format!(
                "PLATFORM      STATE      WORKER  GRADE     TIME  DIGEST\n\
                 linux/amd64   succeeded  tower   native    3.5s  sha256:121212121212\n\
                 linux/arm/v6  succeeded  tower   emulated  3.5s  sha256:121212121212\n\
                 \n\
                 ✔ 2 platforms in 4.0s  build 0198f3c4-5d6e-7f80-9a1b-2c3d4e5f6071\n  \
                   index  sha256:{}\n  \
                   tag    r.example/app:1.0\n",
                "ab".repeat(32)
            )
        );
    }

    #[test]
    fn failure_names_the_leg_the_step_its_last_lines_and_its_place_in_the_dockerfile() {
        let mut model = Model::default();
        let entries = vec![
            vertex("r", "[2/2] RUN false", Some(1.0), None),
            line("r", "no such thing", 1.5),
            failed("r", "", 1.0, 2.0, "exit code: 1"),
        ];
        model.apply(Input::Log(log("linux/arm64", "a1", 0, entries)), at(2.0));
        let mut task = finished("linux/arm64", Grade::Native, TaskState::Failed);
        task.message = "exit code: 1".into();
        model.apply(Input::Build(Box::new(build(BuildState::Failed, vec![task]))), at(2.0));
        let text = told(&model);
        assert!(
            text.starts_with(
                "✗ linux/arm64 failed on tower (native)\n > [linux/arm64 2/2] RUN false\n   0.500 no such thing\n   \
                 exit code: 1\n Dockerfile:2\n --------------------\n    1 |     FROM alpine\n    2 | >>> RUN false\n \
                 --------------------\n\n"
            ),
            "{text}"
        );
    }
}
