//! Progress of a build on standard error: a pure [`Model`] and one view per `--progress` mode.

mod live;
mod model;
mod plain;
mod rawjson;
mod screen;
mod step;
pub mod summary;
#[cfg(test)]
pub mod testing;

use std::io::{self, IsTerminal as _};

use kiln_common::Timestamp;

pub use model::{Input, Model, Upload};
pub use step::label as step_label;

use model::Change;

use crate::output::Paint;

/// `--progress`, as docker buildx names them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// Live in a terminal, plain elsewhere.
    #[default]
    Auto,
    /// Live, also where the terminal is not recognised.
    Tty,
    /// One line after the other.
    Plain,
    /// BuildKit's status messages as JSON lines.
    Rawjson,
    /// Only the digest, on standard output.
    Quiet,
}

impl Mode {
    /// Whether people read along, so that a summary in words is welcome.
    #[must_use]
    pub const fn is_for_people(self) -> bool {
        match self {
            Self::Auto | Self::Tty | Self::Plain => true,
            Self::Rawjson | Self::Quiet => false,
        }
    }
}

/// How progress is shown.
trait View {
    /// Tells what changed.
    fn changes(&mut self, model: &Model, changes: Vec<Change>, now: Timestamp) -> io::Result<()>;
    /// Time passed; called about ten times a second.
    fn tick(&mut self, model: &Model, now: Timestamp) -> io::Result<()>;
    /// Leaves the terminal to somebody else until the next tick or change.
    fn suspend(&mut self) -> io::Result<()>;
    /// The end: tells what is still held back and gives the terminal back.
    fn finish(&mut self, model: &Model, now: Timestamp) -> io::Result<()>;
}

/// The model and its view. A terminal that went away ends the view, never the build.
pub struct Progress {
    pub model: Model,
    view: Option<Box<dyn View + Send>>,
    suspended: bool,
}

impl Progress {
    #[must_use]
    pub fn new(mode: Mode) -> Self {
        let view: Option<Box<dyn View + Send>> = match mode {
            Mode::Auto if io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb") => {
                Some(Box::new(live::Live::new(Paint::for_stderr())))
            }
            Mode::Tty => Some(Box::new(live::Live::new(Paint::for_stderr()))),
            Mode::Auto | Mode::Plain => Some(Box::new(plain::Plain::new(io::stderr()))),
            Mode::Rawjson => Some(Box::new(rawjson::RawJson::new(io::stderr()))),
            Mode::Quiet => None,
        };
        Self { model: Model::default(), view, suspended: false }
    }

    pub fn apply(&mut self, input: Input) {
        let now = Timestamp::now();
        let changes = self.model.apply(input, now);
        if let Some(view) = &mut self.view
            && view.changes(&self.model, changes, now).is_err()
        {
            self.view = None;
        }
    }

    pub fn tick(&mut self) {
        if !self.suspended
            && let Some(view) = &mut self.view
            && view.tick(&self.model, Timestamp::now()).is_err()
        {
            self.view = None;
        }
    }

    /// Leaves the terminal to a question.
    pub fn suspend(&mut self) {
        self.suspended = true;
        if let Some(view) = &mut self.view
            && view.suspend().is_err()
        {
            self.view = None;
        }
    }

    pub fn resume(&mut self) {
        self.suspended = false;
    }

    pub fn finish(&mut self) {
        if let Some(mut view) = self.view.take() {
            // Whether the last words could be written changes nothing about the build.
            drop(view.finish(&self.model, Timestamp::now()));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}
