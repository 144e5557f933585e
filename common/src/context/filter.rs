//! What of a tree is sent: include and exclude patterns over a sorted walk, as BuildKit's fsutil (`filter.go`) applies them.
//!
//! The client's scan uses it with the ignore file's patterns, the worker's file sync with what the engine asks for.

use super::pattern::{InvalidPattern, MatchInfo, Pattern, PatternMatcher};

/// The patterns of one walk.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    include: Option<PatternMatcher>,
    exclude: Option<PatternMatcher>,
    /// No include has a wildcard but at its end, so a directory that begins none cannot hold a match.
    only_prefix_includes: bool,
    /// The same for exceptions from the excludes.
    only_prefix_exceptions: bool,
}

impl Filter {
    /// Empty lists include everything and exclude nothing.
    ///
    /// # Errors
    /// When a pattern is malformed.
    pub fn new<S: AsRef<str>>(include: &[S], exclude: &[S]) -> Result<Self, InvalidPattern> {
        let matcher = |patterns: &[S]| match patterns {
            [] => Ok(None),
            some => PatternMatcher::new(some).map(Some),
        };
        let (include, exclude) = (matcher(include)?, matcher(exclude)?);
        let simple = |matcher: &Option<PatternMatcher>, exceptions: bool| {
            let mut patterns = matcher.iter().flat_map(PatternMatcher::patterns);
            patterns.all(|pattern| {
                pattern.is_exception() != exceptions || !without_trailing_glob(pattern).contains(WILDCARDS)
            })
        };
        Ok(Self {
            only_prefix_includes: simple(&include, false),
            only_prefix_exceptions: simple(&exclude, true),
            include,
            exclude,
        })
    }

    /// Begins a walk; `D` is what the caller wants back of a directory that has to be emitted late.
    #[must_use]
    pub fn walk<D>(&self) -> FilterWalk<'_, D> {
        FilterWalk { filter: self, open: Vec::new(), include: MatchInfo::default(), exclude: MatchInfo::default() }
    }

    const fn passes_all(&self) -> bool {
        self.include.is_none() && self.exclude.is_none()
    }
}

const WILDCARDS: [char; 6] = ['*', '[', ']', '?', '^', '\\'];

fn without_trailing_glob(pattern: &Pattern) -> &str {
    let text = pattern.as_str();
    let text = text.strip_suffix("/**").unwrap_or(text);
    text.strip_suffix("/*").unwrap_or(text)
}

/// What becomes of a path.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict<D> {
    /// Emit it, after these directories above it that no pattern had let through.
    Emit(Vec<D>),
    /// Leave it out; if it is a directory, look into it.
    Skip,
    /// Leave it and all below it out.
    SkipTree,
}

/// A walk in progress. Paths come in manifest order.
#[derive(Debug)]
pub struct FilterWalk<'f, D> {
    filter: &'f Filter,
    open: Vec<OpenDir<D>>,
    include: MatchInfo,
    exclude: MatchInfo,
}

#[derive(Debug)]
struct OpenDir<D> {
    /// The path with a slash at its end.
    prefix: String,
    include: MatchInfo,
    exclude: MatchInfo,
    /// Taken when it is emitted.
    pending: Option<D>,
}

impl<D> FilterWalk<'_, D> {
    /// Judges the next path; `directory` makes what stands for it if it is one.
    pub fn visit(&mut self, path: &str, directory: Option<impl FnOnce() -> D>) -> Verdict<D> {
        if self.filter.passes_all() {
            return Verdict::Emit(Vec::new());
        }
        while self.open.last().is_some_and(|open| !path.starts_with(&open.prefix)) {
            self.open.pop();
        }
        let is_directory = directory.is_some();
        let skip = match (self.not_included(path, is_directory), self.excluded(path, is_directory)) {
            (Judgement::SkipTree, _) | (_, Judgement::SkipTree) => return Verdict::SkipTree,
            (Judgement::Pass, Judgement::Pass) => false,
            (Judgement::Skip, _) | (_, Judgement::Skip) => true,
        };
        let late =
            if skip { Vec::new() } else { self.open.iter_mut().filter_map(|open| open.pending.take()).collect() };
        if let Some(make) = directory {
            self.open.push(OpenDir {
                prefix: format!("{path}/"),
                include: std::mem::take(&mut self.include),
                exclude: std::mem::take(&mut self.exclude),
                pending: skip.then(make),
            });
        }
        if skip { Verdict::Skip } else { Verdict::Emit(late) }
    }

    fn not_included(&mut self, path: &str, is_directory: bool) -> Judgement {
        let Some(matcher) = &self.filter.include else { return Judgement::Pass };
        let root = MatchInfo::default();
        let parent = self.open.last().map_or(&root, |open| &open.include);
        if matcher.matches(path, parent, &mut self.include) {
            return Judgement::Pass;
        }
        let hopeless = is_directory
            && self.filter.only_prefix_includes
            && !matcher.patterns().iter().any(|pattern| !pattern.is_exception() && leads_into(path, pattern));
        if hopeless { Judgement::SkipTree } else { Judgement::Skip }
    }

    fn excluded(&mut self, path: &str, is_directory: bool) -> Judgement {
        let Some(matcher) = &self.filter.exclude else { return Judgement::Pass };
        let root = MatchInfo::default();
        let parent = self.open.last().map_or(&root, |open| &open.exclude);
        if !matcher.matches(path, parent, &mut self.exclude) {
            return Judgement::Pass;
        }
        let hopeless = is_directory
            && self.filter.only_prefix_exceptions
            && !matcher.patterns().iter().any(|pattern| pattern.is_exception() && leads_into(path, pattern));
        if hopeless { Judgement::SkipTree } else { Judgement::Skip }
    }
}

enum Judgement {
    Pass,
    Skip,
    SkipTree,
}

/// Whether the pattern, without a glob at its end, is the directory or lies in it.
fn leads_into(directory: &str, pattern: &Pattern) -> bool {
    let pattern = without_trailing_glob(pattern);
    pattern.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TREE: &[&str] = &["a/", "a/b/", "a/b/x.go", "a/b/y.md", "a/c.md", "d/", "d/e/", "d/e/z.md", "f.go"];

    fn run(include: &[&str], exclude: &[&str]) -> (Vec<String>, usize) {
        let filter = Filter::new(include, exclude).expect("valid");
        let mut walk = filter.walk();
        let (mut sent, mut visited) = (Vec::new(), 0);
        let mut skipped: Option<&str> = None;
        for path in TREE {
            if skipped.is_some_and(|prefix| path.starts_with(prefix)) {
                continue;
            }
            visited += 1;
            let name = path.trim_end_matches('/');
            let directory = path.ends_with('/').then_some(|| name.to_owned());
            match walk.visit(name, directory) {
                Verdict::Emit(parents) => {
                    sent.extend(parents);
                    sent.push(name.to_owned());
                }
                Verdict::Skip => {}
                Verdict::SkipTree => skipped = Some(path),
            }
        }
        (sent, visited)
    }

    fn sent(include: &[&str], exclude: &[&str]) -> Vec<String> {
        run(include, exclude).0
    }

    #[test]
    fn parents_of_what_is_kept_are_sent_once_and_before_it() {
        assert_eq!(sent(&[], &["**", "!a/b/x.go", "!a/b/y.md"]), ["a", "a/b", "a/b/x.go", "a/b/y.md"]);
        assert_eq!(sent(&["a/b/x.go"], &[]), ["a", "a/b", "a/b/x.go"]);
        assert_eq!(sent(&["**/*.go"], &[]), ["a", "a/b", "a/b/x.go", "f.go"]);
    }

    #[test]
    fn an_excluded_directory_takes_all_in_it_along_unless_an_exception_leads_there() {
        assert_eq!(sent(&[], &["a"]), ["d", "d/e", "d/e/z.md", "f.go"]);
        assert_eq!(sent(&[], &["a", "!a/c.md", "d/e"]), ["a", "a/c.md", "d", "f.go"]);
        assert_eq!(sent(&[], &["**/*.md"]), ["a", "a/b", "a/b/x.go", "d", "d/e", "f.go"]);
        assert_eq!(sent(&[], &["*", "!d/**"]), ["d", "d/e", "d/e/z.md"]);
    }

    #[test]
    fn directories_that_cannot_hold_a_match_are_not_looked_into() {
        assert_eq!(run(&["f.go"], &[]).1, 3);
        assert_eq!(run(&[], &["a", "d"]).1, 3);
        assert_eq!(run(&[], &["a", "!d/e", "d"]).1, 5);
    }

    #[test]
    fn without_patterns_everything_is_sent() {
        assert_eq!(sent(&[], &[]).len(), TREE.len());
        assert_eq!(sent(&["a"], &["a/b"]), ["a", "a/c.md"]);
    }
}
