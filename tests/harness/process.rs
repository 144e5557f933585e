//! A program of the workspace as a process that a test signals at will.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

/// Ended when dropped.
pub struct Process {
    child: Mutex<Child>,
    pid: Pid,
    /// All that it printed.
    output: Arc<Mutex<String>>,
    readers: Mutex<Vec<JoinHandle<()>>>,
}

impl Process {
    /// Starts it and returns once a line that it prints says `ready`.
    ///
    /// # Panics
    /// With its output when it ends, or is silent for a minute, before that.
    #[must_use]
    pub fn start(mut command: Command, ready: &str) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let pid = Pid::from_child(&child);
        let output = Arc::new(Mutex::new(String::new()));
        let (sender, lines) = mpsc::channel();
        let readers = vec![
            keep_reading(child.stdout.take().expect("piped"), Arc::clone(&output), sender.clone()),
            keep_reading(child.stderr.take().expect("piped"), Arc::clone(&output), sender),
        ];
        let process = Self { child: Mutex::new(child), pid, output, readers: Mutex::new(readers) };
        while !lines.recv_timeout(Duration::from_secs(60)).is_ok_and(|line: String| line.contains(ready)) {
            assert!(process.is_running(), "{command:?} ended before it said `{ready}`:\n{}", process.log());
        }
        process
    }

    #[must_use]
    pub fn log(&self) -> String {
        self.output.lock().expect("output").clone()
    }

    /// It stands still, with its connections open.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// `kill -9`.
    pub fn kill(&self) {
        let mut child = self.child.lock().expect("child");
        child.kill().expect("killed");
        child.wait().expect("reaped");
    }

    /// SIGTERM, and how it ended.
    pub fn stop(&self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// How it ended; waits for that, and for its last words.
    pub fn wait(&self) -> ExitStatus {
        let status = self.child.lock().expect("child").wait().expect("reaped");
        self.readers.lock().expect("readers").drain(..).for_each(|reader| reader.join().expect("no panic"));
        status
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.pid, signal).expect("signalled");
    }

    fn is_running(&self) -> bool {
        matches!(self.child.lock().expect("child").try_wait(), Ok(None))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- the last it printed\n{}", tail(&self.log()));
        }
        let child = self.child.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        // One that has ended needs neither.
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

/// Collects what a pipe brings and passes on each line, until it ends.
pub(crate) fn keep_reading(
    pipe: impl Read + Send + 'static,
    output: Arc<Mutex<String>>,
    lines: mpsc::Sender<String>,
) -> JoinHandle<()> {
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            let mut output = output.lock().expect("output");
            output.push_str(&line);
            output.push('\n');
            drop(output);
            // Nobody waits for a line any more once the program is ready.
            let _ = lines.send(line);
        }
    })
}

/// Processes of this machine, in whatever container, whose command line says `text`.
#[must_use]
pub fn that_say(text: &str) -> Vec<u32> {
    let entries = fs::read_dir("/proc").expect("/proc");
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let says = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.windows(text.len()).any(|window| window == text.as_bytes())
    };
    pids.filter(|pid| *pid != std::process::id()).filter(says).collect()
}

/// Whether a process with exactly this command line runs on this machine, in whatever container.
///
/// # Panics
/// Without `/proc`.
#[must_use]
pub fn runs(command: &str) -> bool {
    let wanted = command.replace(' ', "\0") + "\0";
    let processes = fs::read_dir("/proc").expect("proc").flatten();
    processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok()).any(|line| line == wanted.as_bytes())
}

/// Waits for what no event tells, such as another program's process.
///
/// # Panics
/// With `what` when it is not so in time.
pub fn until(patience: Duration, what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !is_so() {
        assert!(Instant::now() < deadline, "not so within {patience:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
