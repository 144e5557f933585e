//! `.dockerignore` patterns as moby's `patternmatcher` has them: negation, `**`, what matches a directory matches all in it.
//!
//! The builder applies the same patterns again, so every quirk of the original counts. A pattern is translated to the
//! regular expression that moby makes of it; [`regex`] runs that in time linear in the path.

mod glob;
mod regex;

pub(super) use glob::matches_name;
use regex::Regex;

use crate::limits;

/// Why a list of patterns is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPattern {
    #[error("the pattern `!` excludes nothing; write what is to be kept after it")]
    LoneExclamation,
    #[error("the pattern `{pattern}` is malformed; check its brackets and backslashes")]
    Syntax { pattern: String },
    #[error("there are {count} patterns; at most {}", limits::IGNORE_RULES)]
    TooMany { count: usize },
    #[error("a pattern has {length} bytes; at most {}", limits::PATH_BYTES)]
    TooLong { length: usize },
}

/// One pattern of a list.
#[derive(Debug, Clone)]
pub struct Pattern {
    cleaned: String,
    exception: bool,
    kind: Kind,
}

/// The shapes that need no regular expression, as moby distinguishes them.
#[derive(Debug, Clone)]
enum Kind {
    Exact,
    /// `dir/**`: what starts with it.
    Prefix,
    /// `**/name`: what ends with it.
    Suffix,
    Regex(Regex),
}

impl Pattern {
    /// The cleaned pattern, without its `!`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.cleaned
    }

    /// Whether it began with `!`.
    #[must_use]
    pub const fn is_exception(&self) -> bool {
        self.exception
    }

    fn parse(text: &str) -> Result<Option<Self>, InvalidPattern> {
        let text = text.trim();
        if text.is_empty() {
            return Ok(None);
        }
        if text.len() > limits::PATH_BYTES {
            return Err(InvalidPattern::TooLong { length: text.len() });
        }
        let cleaned = clean_path(text);
        let (exception, cleaned) = match cleaned.strip_prefix('!') {
            Some("") => return Err(InvalidPattern::LoneExclamation),
            Some(rest) => (true, rest.to_owned()),
            None => (false, cleaned),
        };
        let syntax = || InvalidPattern::Syntax { pattern: cleaned.clone() };
        if !glob::is_well_formed(&cleaned) {
            return Err(syntax());
        }
        let kind = compile(&cleaned).ok_or_else(syntax)?;
        Ok(Some(Self { cleaned, exception, kind }))
    }

    fn matches(&self, path: &str) -> bool {
        match &self.kind {
            Kind::Exact => path == self.cleaned,
            Kind::Prefix => path.starts_with(&self.cleaned[..self.cleaned.len() - 2]),
            Kind::Suffix => {
                let suffix = &self.cleaned[2..];
                path.ends_with(suffix) || suffix.strip_prefix('/').is_some_and(|name| path == name)
            }
            Kind::Regex(regex) => regex.is_match(path),
        }
    }
}

/// What a directory's patterns matched, for the entries in it.
#[derive(Debug, Clone, Default)]
pub struct MatchInfo(Vec<bool>);

/// An ordered list of patterns; the last that matches decides.
#[derive(Debug, Clone)]
pub struct PatternMatcher {
    patterns: Vec<Pattern>,
    has_exceptions: bool,
}

impl PatternMatcher {
    /// # Errors
    /// When a pattern is malformed or there are too many.
    pub fn new<S: AsRef<str>>(patterns: &[S]) -> Result<Self, InvalidPattern> {
        if patterns.len() > limits::IGNORE_RULES {
            return Err(InvalidPattern::TooMany { count: patterns.len() });
        }
        let mut parsed = Vec::with_capacity(patterns.len());
        for pattern in patterns {
            parsed.extend(Pattern::parse(pattern.as_ref())?);
        }
        let has_exceptions = parsed.iter().any(Pattern::is_exception);
        Ok(Self { patterns: parsed, has_exceptions })
    }

    #[must_use]
    pub fn patterns(&self) -> &[Pattern] {
        &self.patterns
    }

    #[must_use]
    pub const fn has_exceptions(&self) -> bool {
        self.has_exceptions
    }

    /// Whether `path` matches, given what its directory matched; fills `info` for the entries below it.
    ///
    /// At the root (`parent` empty) the directories of `path` are tried one by one.
    pub fn matches(&self, path: &str, parent: &MatchInfo, info: &mut MatchInfo) -> bool {
        info.0.clear();
        info.0.resize(self.patterns.len(), false);
        let mut matched = false;
        for (index, pattern) in self.patterns.iter().enumerate() {
            let mut hit = parent.0.get(index).copied().unwrap_or(false);
            if !hit {
                // An inclusion cannot add to a match, nor an exception take from none.
                if pattern.exception != matched {
                    continue;
                }
                hit = pattern.matches(path) || parent.0.is_empty() && matches_a_parent(pattern, path);
            }
            info.0[index] = hit;
            if hit {
                matched = !pattern.exception;
            }
        }
        matched
    }

    /// Whether `path` or a directory that it is in matches.
    #[must_use]
    pub fn matches_or_parent_matches(&self, path: &str) -> bool {
        self.matches(path, &MatchInfo::default(), &mut MatchInfo::default())
    }
}

fn matches_a_parent(pattern: &Pattern, path: &str) -> bool {
    path.match_indices('/').any(|(end, _)| pattern.matches(&path[..end]))
}

/// Translates as moby's `compile` does; `None` when the regular expression is not one.
fn compile(pattern: &str) -> Option<Kind> {
    let mut expression = String::from("^");
    let mut shape = Kind::Exact;
    let mut is_regex = false;
    let mut chars = pattern.chars().peekable();
    let mut first = true;
    while let Some(char) = chars.next() {
        match char {
            '*' if chars.next_if_eq(&'*').is_some() => {
                chars.next_if_eq(&'/');
                if chars.peek().is_some() {
                    expression.push_str("(.*/)?");
                    is_regex = true;
                } else if matches!(shape, Kind::Exact) && !is_regex {
                    shape = Kind::Prefix;
                } else {
                    expression.push_str(".*");
                    is_regex = true;
                }
                if first {
                    shape = Kind::Suffix;
                    is_regex = false;
                }
            }
            '*' => {
                expression.push_str("[^/]*");
                is_regex = true;
            }
            '?' => {
                expression.push_str("[^/]");
                is_regex = true;
            }
            '.' | '+' | '(' | ')' | '|' | '{' | '}' | '$' => {
                expression.push('\\');
                expression.push(char);
            }
            '\\' => {
                expression.push('\\');
                if let Some(escaped) = chars.next() {
                    expression.push(escaped);
                    is_regex = true;
                }
            }
            '[' | ']' => {
                expression.push(char);
                is_regex = true;
            }
            other => expression.push(other),
        }
        first = false;
    }
    if is_regex { Regex::new(&expression).map(Kind::Regex) } else { Some(shape) }
}

/// Go's `filepath.Clean` for slash-separated paths.
#[must_use]
pub fn clean_path(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut names: Vec<&str> = Vec::new();
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." if names.last().is_some_and(|last| *last != "..") => {
                names.pop();
            }
            ".." if rooted => {}
            other => names.push(other),
        }
    }
    let joined = names.join("/");
    match (rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".into(),
        (false, false) => joined,
    }
}

#[cfg(test)]
mod tests;
