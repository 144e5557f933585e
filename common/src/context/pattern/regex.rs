//! The corner of Go's regular expressions that translated patterns reach: literals, classes, `.`, one optional group,
//! `*` and `?`, anchored at both ends. Run as a set of states, so in time linear in the path, whatever the pattern.

#[derive(Debug, Clone)]
pub(super) struct Regex {
    /// Each step and the index to go on at; the match is at the end.
    program: Vec<Step>,
    /// Characters that every match begins and ends with: most paths fail here.
    literal: String,
    ending: String,
}

#[derive(Debug, Clone)]
enum Step {
    Start,
    Char(char),
    /// `.`: all but a newline.
    Dot,
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
    /// Go on here and there.
    Split(usize, usize),
    Jump(usize),
}

impl Regex {
    /// `expression` begins with `^` and is anchored at its end; `None` when Go would refuse it.
    pub(super) fn new(expression: &str) -> Option<Self> {
        let mut parser = Parser { chars: expression.strip_prefix('^')?.chars().peekable(), program: Vec::new() };
        parser.sequence(false)?;
        let program = parser.program;
        let (literal, ending) = (leading_literal(&program), trailing_literal(&program));
        Some(Self { program, literal, ending })
    }

    pub(super) fn is_match(&self, text: &str) -> bool {
        if !text.starts_with(&self.literal) || !text.ends_with(&self.ending) {
            return false;
        }
        let end = self.program.len();
        let mut current = States::new(end + 1);
        let mut next = States::new(end + 1);
        self.follow(&mut current, 0, true);
        for char in text.chars() {
            next.clear();
            for index in 0..current.list.len() {
                let at = current.list[index];
                let steps = match self.program.get(at) {
                    Some(Step::Char(expected)) => *expected == char,
                    Some(Step::Dot) => char != '\n',
                    Some(Step::Class { negated, ranges }) => {
                        ranges.iter().any(|(low, high)| (*low..=*high).contains(&char)) != *negated
                    }
                    Some(Step::Start | Step::Split(..) | Step::Jump(_)) | None => false,
                };
                if steps {
                    self.follow(&mut next, at + 1, false);
                }
            }
            if next.list.is_empty() {
                return false;
            }
            std::mem::swap(&mut current, &mut next);
        }
        current.seen[end]
    }

    /// Adds `at` and all that is reached from there without a character.
    fn follow(&self, states: &mut States, at: usize, at_start: bool) {
        states.stack.push(at);
        while let Some(at) = states.stack.pop() {
            if std::mem::replace(&mut states.seen[at], true) {
                continue;
            }
            match self.program.get(at) {
                Some(Step::Split(left, right)) => states.stack.extend([*right, *left]),
                Some(Step::Jump(to)) => states.stack.push(*to),
                Some(Step::Start) if at_start => states.stack.push(at + 1),
                Some(Step::Start) => {}
                Some(Step::Char(_) | Step::Dot | Step::Class { .. }) | None => states.list.push(at),
            }
        }
    }
}

/// The characters before the first step that is none: one that may be left out or repeated stands behind a split.
fn leading_literal(program: &[Step]) -> String {
    program.iter().map_while(|step| if let Step::Char(char) = step { Some(*char) } else { None }).collect()
}

/// The characters at the end that nothing jumps over or into.
fn trailing_literal(program: &[Step]) -> String {
    let targets = program.iter().map(|step| match step {
        Step::Split(left, right) => *left.max(right),
        Step::Jump(to) => *to,
        Step::Start | Step::Char(_) | Step::Dot | Step::Class { .. } => 0,
    });
    let fixed = &program[targets.max().unwrap_or(0)..];
    let last = fixed.iter().rposition(|step| !matches!(step, Step::Char(_))).map_or(0, |index| index + 1);
    leading_literal(&fixed[last..])
}

struct States {
    seen: Vec<bool>,
    list: Vec<usize>,
    stack: Vec<usize>,
}

impl States {
    fn new(size: usize) -> Self {
        Self { seen: vec![false; size], list: Vec::new(), stack: Vec::new() }
    }

    fn clear(&mut self) {
        self.seen.fill(false);
        self.list.clear();
    }
}

struct Parser<'a> {
    chars: std::iter::Peekable<std::str::Chars<'a>>,
    program: Vec<Step>,
}

impl Parser<'_> {
    fn sequence(&mut self, in_group: bool) -> Option<()> {
        while let Some(char) = self.chars.next() {
            let start = self.program.len();
            match char {
                ')' if in_group => return Some(()),
                '(' if !in_group => self.sequence(true)?,
                '^' => self.program.push(Step::Start),
                '.' => self.program.push(Step::Dot),
                '[' => self.class()?,
                '\\' => {
                    let escaped = self.chars.next()?;
                    let step = escape(escaped)?;
                    self.program.push(step);
                }
                '*' | '?' | '+' | '(' | ')' | '|' | '$' => return None,
                literal => self.program.push(Step::Char(literal)),
            }
            self.quantifier(start);
        }
        if in_group { None } else { Some(()) }
    }

    fn quantifier(&mut self, start: usize) {
        if self.chars.next_if_eq(&'*').is_some() {
            self.shift(start);
            let end = self.program.len() + 1;
            self.program[start] = Step::Split(start + 1, end);
            self.program.push(Step::Jump(start));
        } else if self.chars.next_if_eq(&'?').is_some() {
            self.shift(start);
            let end = self.program.len();
            self.program[start] = Step::Split(start + 1, end);
        }
    }

    /// Makes room for a step at `start`.
    fn shift(&mut self, start: usize) {
        self.program.insert(start, Step::Jump(0));
        for step in &mut self.program[start + 1..] {
            match step {
                Step::Split(left, right) => {
                    *left += 1;
                    *right += 1;
                }
                Step::Jump(to) => *to += 1,
                Step::Start | Step::Char(_) | Step::Dot | Step::Class { .. } => {}
            }
        }
    }

    /// After `[`: ranges up to `]`, which stands for itself right at the start.
    fn class(&mut self) -> Option<()> {
        let negated = self.chars.next_if_eq(&'^').is_some();
        let mut ranges = Vec::new();
        let mut first = true;
        loop {
            let low = match self.chars.next()? {
                ']' if !first => break,
                // Go has named classes here, which no pattern means.
                '[' if self.chars.peek() == Some(&':') => return None,
                '\\' => match escape(self.chars.next()?)? {
                    Step::Char(char) => char,
                    Step::Class { negated: false, ranges: named } => {
                        ranges.extend(named);
                        first = false;
                        continue;
                    }
                    Step::Class { .. } | Step::Start | Step::Dot | Step::Split(..) | Step::Jump(_) => return None,
                },
                other => other,
            };
            first = false;
            let high = self.range_end(low)?;
            if high < low {
                return None;
            }
            ranges.push((low, high));
        }
        self.program.push(Step::Class { negated, ranges });
        Some(())
    }

    fn range_end(&mut self, low: char) -> Option<char> {
        let mut ahead = self.chars.clone();
        if ahead.next() != Some('-') || ahead.peek().is_none_or(|char| *char == ']') {
            return Some(low);
        }
        self.chars = ahead;
        match self.chars.next()? {
            '\\' => match escape(self.chars.next()?)? {
                Step::Char(char) => Some(char),
                Step::Class { .. } | Step::Start | Step::Dot | Step::Split(..) | Step::Jump(_) => None,
            },
            other => Some(other),
        }
    }
}

/// What a backslash makes of a character (Go's regexp/syntax); word boundaries and the like are refused.
fn escape(char: char) -> Option<Step> {
    let class = |negated, ranges: &[(char, char)]| Some(Step::Class { negated, ranges: ranges.to_vec() });
    match char {
        'd' => class(false, &[('0', '9')]),
        'D' => class(true, &[('0', '9')]),
        'w' => class(false, &[('0', '9'), ('A', 'Z'), ('_', '_'), ('a', 'z')]),
        'W' => class(true, &[('0', '9'), ('A', 'Z'), ('_', '_'), ('a', 'z')]),
        's' => class(false, &[('\t', '\n'), ('\x0c', '\r'), (' ', ' ')]),
        'S' => class(true, &[('\t', '\n'), ('\x0c', '\r'), (' ', ' ')]),
        'a' => Some(Step::Char('\x07')),
        'f' => Some(Step::Char('\x0c')),
        'n' => Some(Step::Char('\n')),
        'r' => Some(Step::Char('\r')),
        't' => Some(Step::Char('\t')),
        'v' => Some(Step::Char('\x0b')),
        punctuation if punctuation.is_ascii() && !punctuation.is_ascii_alphanumeric() => Some(Step::Char(punctuation)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_linear_in_the_path() {
        let regex = Regex::new(&format!("^{}x", "(.*/)?[^/]*".repeat(30))).expect("valid");
        let path = "a/".repeat(2000);
        let start = std::time::Instant::now();
        assert!(!regex.is_match(&path));
        assert!(start.elapsed() < std::time::Duration::from_secs(5));
    }

    #[test]
    fn a_leading_literal_stops_where_something_optional_begins() {
        assert_eq!(Regex::new("^ab[^/]*c").expect("valid").literal, "ab");
        assert_eq!(Regex::new("^(.*/)?c").expect("valid").literal, "");
        let endings = [
            ("^(.*/)?[^/]*\\.pyc", ".pyc"),
            ("^a?", ""),
            ("^ba?", ""),
            ("^a*b", "b"),
            ("^ab", "ab"),
            ("^a[b]c", "c"),
            ("^ab*", ""),
        ];
        for (expression, ending) in endings {
            assert_eq!(Regex::new(expression).expect("valid").ending, ending, "{expression}");
        }
        assert!(Regex::new("^ab*c").expect("valid").is_match("ac"));
    }
}
