//! Splits a Dockerfile into instructions: comments, continuations, the escape directive, here-documents.

/// One instruction with the lines it stands on, counted from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instruction {
    /// In capitals.
    pub keyword: String,
    /// The rest, continued lines joined by a space, without here-documents.
    pub arguments: String,
    pub first_line: usize,
    pub last_line: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dockerfile {
    /// The frontend image of a `# syntax=` directive.
    pub syntax: Option<String>,
    pub instructions: Vec<Instruction>,
}

impl Dockerfile {
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let (mut syntax, mut escape) = (None, '\\');
        for line in text.lines() {
            match directive(line) {
                Some(("syntax", value)) => syntax = Some(value.to_owned()),
                Some(("escape", "`")) => escape = '`',
                Some(_) => {}
                None => break,
            }
        }
        let mut lines = text.lines().enumerate().map(|(at, line)| (at + 1, line));
        let mut instructions = Vec::new();
        while let Some((first, line)) = lines.next() {
            if is_blank(line) {
                continue;
            }
            let (mut logical, mut last, mut next) = (String::new(), first, Some(line));
            while let Some(line) = next.take() {
                let (part, continues) = continued(line, escape);
                logical.push_str(part);
                if continues {
                    logical.push(' ');
                    if let Some((number, line)) = lines.by_ref().find(|(_, line)| !is_blank(line)) {
                        (last, next) = (number, Some(line));
                    }
                }
            }
            for end in here_documents(&logical) {
                for (number, line) in lines.by_ref() {
                    last = number;
                    if line.trim_start_matches('\t') == end {
                        break;
                    }
                }
            }
            let (keyword, arguments) = logical.trim().split_once(char::is_whitespace).unwrap_or((logical.trim(), ""));
            instructions.push(Instruction {
                keyword: keyword.to_ascii_uppercase(),
                arguments: arguments.trim().to_owned(),
                first_line: first,
                last_line: last,
            });
        }
        Self { syntax, instructions }
    }
}

/// `# key=value` at the top of the file.
fn directive(line: &str) -> Option<(&str, &str)> {
    let (key, value) = line.trim().strip_prefix('#')?.split_once('=')?;
    let key = key.trim();
    key.bytes().all(|b| b.is_ascii_alphanumeric()).then_some((key, value.trim()))
}

fn is_blank(line: &str) -> bool {
    let line = line.trim_start();
    line.is_empty() || line.starts_with('#')
}

fn continued(line: &str, escape: char) -> (&str, bool) {
    let trimmed = line.trim_end();
    trimmed.strip_suffix(escape).map_or((trimmed, false), |part| (part, true))
}

/// The end marks of the here-documents that an instruction opens.
fn here_documents(logical: &str) -> Vec<String> {
    let keyword = logical.split_whitespace().next().unwrap_or("").to_ascii_uppercase();
    if !["RUN", "COPY", "ADD"].contains(&keyword.as_str()) {
        return Vec::new();
    }
    let mark = |word: &str| {
        let rest = word.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix("<<")?;
        let name = rest.strip_prefix('-').unwrap_or(rest).trim_matches(['"', '\'']);
        let sound = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        sound.then(|| name.to_owned())
    };
    logical.split_whitespace().filter_map(mark).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_keep_their_lines_through_comments_continuations_and_here_documents() {
        let file = Dockerfile::parse(
            "# syntax=docker/dockerfile:1\n\
             FROM alpine AS base\n\
             \n\
             run apk add \\\n\
             # a comment inside\n\
             \x20 git \\\n\
             \x20 make\n\
             RUN <<EOF\n\
             FROM not-an-instruction\n\
             EOF\n\
             CMD [\"sh\"]\n",
        );
        assert_eq!(file.syntax.as_deref(), Some("docker/dockerfile:1"));
        let told: Vec<_> = file
            .instructions
            .iter()
            .map(|one| (one.keyword.as_str(), one.arguments.as_str(), one.first_line, one.last_line))
            .collect();
        assert_eq!(
            told,
            [
                ("FROM", "alpine AS base", 2, 2),
                ("RUN", "apk add    git    make", 4, 7),
                ("RUN", "<<EOF", 8, 10),
                ("CMD", "[\"sh\"]", 11, 11),
            ]
        );
    }

    #[test]
    fn the_escape_directive_and_an_unfinished_file_are_understood() {
        let file = Dockerfile::parse("# escape=`\nRUN a `\n b\\\nRUN c `\n");
        assert_eq!(file.instructions.len(), 2);
        assert_eq!(file.instructions[0].arguments, "a   b\\");
        assert!(Dockerfile::parse("").instructions.is_empty());
        assert_eq!(Dockerfile::parse("RUN <<EOF\nnever ended").instructions[0].last_line, 2);
    }
}
