//! Ctrl-C while a build runs: the first asks (or, without a terminal, cancels), the second lets go of the build.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, IsTerminal as _, Write as _},
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
};

use crate::failure::Failure;

/// What the user wants after an interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Stop the build on the farm.
    Cancel,
    /// Go on watching.
    Continue,
    /// Leave the build running.
    Detach,
}

/// SIGINT and SIGTERM of this process.
pub struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    /// # Errors
    /// The handlers cannot be installed.
    pub fn new() -> Result<Self, Failure> {
        let on = |kind| signal(kind).map_err(|error| Failure::local("cannot handle signals", error));
        Ok(Self { interrupt: on(SignalKind::interrupt())?, terminate: on(SignalKind::terminate())? })
    }

    /// The next signal.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// Asks on the terminal whether to cancel; another signal meanwhile means to let go. Without a terminal nobody
    /// can be asked, and whoever sent the signal wants the build to end.
    pub async fn ask(&mut self, build: &str) -> Wish {
        let Some(answer) = question(build) else { return Wish::Cancel };
        tokio::select! {
            answer = answer => match answer {
                Ok(true) => Wish::Cancel,
                Ok(false) | Err(_) => Wish::Continue,
            },
            () = self.next() => Wish::Detach,
        }
    }
}

/// Prints the question and reads the answer on a thread of its own: a read of a terminal cannot be cancelled, and
/// must not hold up the end of the process.
fn question(build: &str) -> Option<oneshot::Receiver<bool>> {
    if !std::io::stderr().is_terminal() {
        return None;
    }
    let terminal = File::open("/dev/tty").ok()?;
    let mut stderr = std::io::stderr();
    write!(stderr, "\ncancel build {build} on the farm? [y/N]  (Ctrl-C again: leave it running) ").ok()?;
    stderr.flush().ok()?;
    let (sender, receiver) = oneshot::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = BufReader::new(terminal).read_line(&mut line);
        let yes = read.is_ok() && matches!(line.trim().to_ascii_lowercase().as_str(), "y" | "yes");
        // Nobody waits for the answer any more once the user let go.
        let _unheard = sender.send(yes);
    });
    Some(receiver)
}
