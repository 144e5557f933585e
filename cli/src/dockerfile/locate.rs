//! From a step's name back to its lines: `[build 2/4] RUN make` is the second of four steps of the stage `build`.

use super::{Dockerfile, Instruction};

/// Lines shown around the step's own.
const AROUND: usize = 2;

/// The lines of the step with those around them, as BuildKit prints the source of a failure; `None` where the step's
/// name does not say.
#[must_use]
pub fn excerpt(text: &str, filename: &str, step: &str) -> Option<Vec<String>> {
    let file = Dockerfile::parse(text);
    let (first, last) = locate(&file, step)?;
    let lines: Vec<&str> = text.lines().collect();
    let shown = first.saturating_sub(AROUND).max(1)..=(last + AROUND).min(lines.len());
    let rule = "-".repeat(20);
    let mut out = vec![format!("{filename}:{first}"), rule.clone()];
    out.extend(shown.map(|number| {
        let mark = if (first..=last).contains(&number) { ">>>" } else { "   " };
        let line = lines.get(number - 1).copied().unwrap_or("").replace('\t', "    ");
        format!("{number:>4} | {mark} {line}").trim_end().to_owned()
    }));
    out.push(rule);
    Some(out)
}

/// First and last line of the step.
fn locate(file: &Dockerfile, step: &str) -> Option<(usize, usize)> {
    let (place, command) = step.strip_prefix('[')?.split_once("] ")?;
    let mut words = place.split_whitespace().rev();
    let (at, of) = words.next()?.split_once('/')?;
    let (at, of): (usize, usize) = (at.parse().ok()?, of.parse().ok()?);
    let stage = stage(file, words.next().filter(|word| !word.contains('/')))?;
    let keyword = command.split_whitespace().next()?.to_ascii_uppercase();
    if keyword == "FROM" {
        return stage.first().map(|from| (from.first_line, from.last_line));
    }
    let steps: Vec<_> =
        stage.iter().filter(|one| matches!(one.keyword.as_str(), "RUN" | "COPY" | "ADD" | "WORKDIR")).collect();
    // Counted from the end: whether FROM counts as a step depends on what it names.
    let found = steps.get(steps.len().checked_sub(of.checked_sub(at)? + 1)?)?;
    (found.keyword == keyword).then_some((found.first_line, found.last_line))
}

/// The instructions of a stage, its FROM first.
fn stage<'a>(file: &'a Dockerfile, name: Option<&str>) -> Option<&'a [Instruction]> {
    let starts: Vec<usize> =
        (0..file.instructions.len()).filter(|at| file.instructions[*at].keyword == "FROM").collect();
    let alias = |at: usize| {
        let mut words = file.instructions[at].arguments.split_whitespace().rev();
        let (alias, keyword) = (words.next()?, words.next()?);
        keyword.eq_ignore_ascii_case("as").then_some(alias)
    };
    let index = match name {
        None => starts.len().checked_sub(1)?,
        Some(name) => {
            match starts.iter().position(|at| alias(*at).is_some_and(|alias| alias.eq_ignore_ascii_case(name))) {
                Some(index) => index,
                None => name.strip_prefix("stage-")?.parse().ok()?,
            }
        }
    };
    let end = starts.get(index + 1).copied().unwrap_or(file.instructions.len());
    file.instructions.get(*starts.get(index)?..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "FROM golang:alpine AS build\n\
                        WORKDIR /src\n\
                        COPY main.go .\n\
                        RUN go build \\\n    -o /hello .\n\
                        FROM alpine\n\
                        COPY --from=build /hello /hello\n\
                        CMD [\"/hello\"]\n";

    #[test]
    fn a_step_is_found_by_stage_and_count() {
        let file = Dockerfile::parse(FILE);
        for (step, lines) in [
            ("[build 4/4] RUN go build     -o /hello .", (4, 5)),
            ("[build 1/4] FROM docker.io/library/golang:alpine", (1, 1)),
            ("[linux/arm64 build 2/4] WORKDIR /src", (2, 2)),
            ("[stage-1 2/2] COPY --from=build /hello /hello", (7, 7)),
        ] {
            assert_eq!(locate(&file, step), Some(lines), "{step}");
        }
        for step in [
            "[internal] load metadata",
            "exporting to image",
            "[nope 1/1] RUN x",
            "[build 4/4] COPY x",
            "[build 9/2] RUN x",
        ] {
            assert_eq!(locate(&file, step), None, "{step}");
        }
    }

    #[test]
    fn the_excerpt_marks_the_step_s_lines() {
        let lines = excerpt(FILE, "Dockerfile", "[build 4/4] RUN go build").unwrap();
        assert_eq!(lines[0], "Dockerfile:4");
        assert_eq!(lines[3], "   3 |     COPY main.go .");
        assert_eq!(lines[4], "   4 | >>> RUN go build \\");
        assert_eq!(lines[5], "   5 | >>>     -o /hello .");
    }
}
