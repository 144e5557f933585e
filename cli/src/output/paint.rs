//! Colours, off where the output is not a terminal or NO_COLOR is set.

use std::io::IsTerminal as _;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paint {
    enabled: bool,
}

impl Paint {
    #[must_use]
    pub const fn new(enabled: bool) -> Self {
        Self { enabled }
    }

    #[must_use]
    pub fn for_stdout() -> Self {
        Self::new(std::io::stdout().is_terminal() && wanted())
    }

    #[must_use]
    pub fn for_stderr() -> Self {
        Self::new(std::io::stderr().is_terminal() && wanted())
    }

    fn with(self, code: &str, text: &str) -> String {
        if self.enabled && !text.is_empty() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    #[must_use]
    pub fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    #[must_use]
    pub fn dim(self, text: &str) -> String {
        self.with("2", text)
    }

    #[must_use]
    pub fn red(self, text: &str) -> String {
        self.with("31", text)
    }

    #[must_use]
    pub fn green(self, text: &str) -> String {
        self.with("32", text)
    }

    #[must_use]
    pub fn yellow(self, text: &str) -> String {
        self.with("33", text)
    }

    #[must_use]
    pub fn cyan(self, text: &str) -> String {
        self.with("36", text)
    }
}

fn wanted() -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}
