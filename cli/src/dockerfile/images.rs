//! The images that a Dockerfile names, with the build's arguments and the ARG defaults filled in.

use std::collections::BTreeMap;

use super::{Dockerfile, Instruction};

/// Every image that FROM, COPY --from, RUN --mount=from and the syntax directive name; no stage, no named context.
#[must_use]
pub fn images(file: &Dockerfile, build_args: &BTreeMap<String, String>, contexts: &[&str]) -> Vec<String> {
    let mut variables = BTreeMap::new();
    let mut stages: Vec<String> = Vec::new();
    let mut seen_from = false;
    let mut found: Vec<String> = file.syntax.iter().cloned().collect();
    for instruction in &file.instructions {
        let named: Vec<String> = match instruction.keyword.as_str() {
            "ARG" if !seen_from => {
                declare(&mut variables, &instruction.arguments, build_args);
                continue;
            }
            "FROM" => {
                seen_from = true;
                let words: Vec<&str> =
                    instruction.arguments.split_whitespace().filter(|word| !word.starts_with("--")).collect();
                let image = words.first().map(|word| expand(word, &variables));
                let named: Vec<_> = image.into_iter().filter(|image| !is_known(image, &stages, contexts)).collect();
                let alias = match words.as_slice() {
                    [_, word, alias] if word.eq_ignore_ascii_case("as") => alias.to_lowercase(),
                    _ => String::new(),
                };
                stages.push(alias);
                named
            }
            "COPY" | "ADD" | "RUN" => sources(instruction)
                .map(|source| expand(&source, &variables))
                .filter(|source| !is_known(source, &stages, contexts))
                .collect(),
            _ => continue,
        };
        found.extend(named);
    }
    found.retain(|image| !image.is_empty());
    found
}

fn is_known(name: &str, stages: &[String], contexts: &[&str]) -> bool {
    name == "scratch"
        || name.bytes().all(|b| b.is_ascii_digit())
        || contexts.contains(&name)
        || stages.iter().any(|stage| !stage.is_empty() && stage.eq_ignore_ascii_case(name))
}

/// `--from=X` of COPY and `--mount=...,from=X` of RUN.
fn sources(instruction: &Instruction) -> impl Iterator<Item = String> + '_ {
    instruction.arguments.split_whitespace().take_while(|word| word.starts_with("--")).filter_map(|flag| {
        if let Some(source) = flag.strip_prefix("--from=") {
            return Some(source.to_owned());
        }
        let options = flag.strip_prefix("--mount=")?;
        options.split(',').find_map(|option| option.strip_prefix("from=")).map(str::to_owned)
    })
}

/// `ARG NAME[=DEFAULT] ...` before the first FROM.
fn declare(variables: &mut BTreeMap<String, String>, arguments: &str, build_args: &BTreeMap<String, String>) {
    for argument in arguments.split_whitespace() {
        let (name, default) = argument.split_once('=').unwrap_or((argument, ""));
        let value = match build_args.get(name) {
            Some(value) => value.clone(),
            None => expand(default.trim_matches(['"', '\'']), variables),
        };
        variables.insert(name.to_owned(), value);
    }
}

/// `$NAME`, `${NAME}`, `${NAME:-default}`, `${NAME:+other}`; an unknown name is empty.
fn expand(text: &str, variables: &BTreeMap<String, String>) -> String {
    let text = text.trim_matches(['"', '\'']);
    let Some((before, rest)) = text.split_once('$') else { return text.to_owned() };
    let value = |name: &str| variables.get(name).filter(|value| !value.is_empty());
    let (replaced, rest) = match rest.strip_prefix('{').and_then(|inner| Some((inner, closing(inner)?))) {
        Some((inner, end)) => {
            let (inside, rest) = (&inner[..end], &inner[end + 1..]);
            let replaced = if let Some((name, default)) = inside.split_once(":-") {
                value(name).cloned().unwrap_or_else(|| expand(default, variables))
            } else if let Some((name, other)) = inside.split_once(":+") {
                value(name).map(|_| expand(other, variables)).unwrap_or_default()
            } else {
                value(inside).cloned().unwrap_or_default()
            };
            (replaced, rest)
        }
        None => {
            let end = rest.bytes().take_while(|b| b.is_ascii_alphanumeric() || *b == b'_').count();
            (value(&rest[..end]).cloned().unwrap_or_default(), &rest[end..])
        }
    };
    format!("{before}{replaced}{}", expand(rest, variables))
}

/// The brace that closes an opened one, past nested pairs.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0_usize;
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => return Some(at),
            '}' => depth -= 1,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(text: &str, args: &[(&str, &str)], contexts: &[&str]) -> Vec<String> {
        let args = args.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        images(&Dockerfile::parse(text), &args, contexts)
    }

    #[test]
    fn every_image_is_found_and_no_stage_is_taken_for_one() {
        let text = "# syntax=docker/dockerfile:1\n\
                    ARG REG=registry.example\n\
                    ARG BASE=$REG/base:${TAG:-1}\n\
                    FROM --platform=$BUILDPLATFORM ${BASE} AS Build\n\
                    RUN --mount=type=bind,from=tools.example/x,target=/x make\n\
                    COPY --from=other.example/y:2 /a /b\n\
                    FROM scratch\n\
                    COPY --from=build /a /a\n\
                    COPY --from=0 /a /a\n\
                    COPY --from=assets /a /a\n\
                    FROM build\n";
        assert_eq!(
            named(text, &[], &["assets"]),
            ["docker/dockerfile:1", "registry.example/base:1", "tools.example/x", "other.example/y:2"]
        );
        assert_eq!(named(text, &[("REG", "r:5000")], &["assets"])[1], "r:5000/base:1");
    }

    #[test]
    fn odd_variables_do_not_break_the_reading() {
        for text in ["FROM ${", "FROM $", "FROM ${a:-${b:-x}}y", "FROM", "ARG", "COPY --from= a b", "FROM ${A:+}"] {
            named(text, &[], &[]);
        }
        assert_eq!(named("FROM ${a:-${b:-x}}y", &[], &[]), ["xy"]);
    }
}
