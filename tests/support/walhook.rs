//! The real binary.

use std::{
    ffi::OsString,
    path::PathBuf,
    process::{Command, ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::Signal;

use super::{
    DEADLINE,
    folder::Folder,
    process::{Process, User},
};

/// Within this a terminated walhook has drained and gone (25 s by its promise), and some for a busy machine.
const DRAINED: Duration = Duration::from_secs(40);

/// A running `walhook`; dropping it kills it.
pub struct Walhook {
    process: Process, // before the folder: fields go in this order
    folder: Folder,
}

/// What a command that has ended left behind.
#[derive(Debug)]
pub struct Finished {
    /// The exit code; None where a signal ended it.
    pub code: Option<i32>,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

/// A command line in the making; its environment is empty but for `PATH` and what is added.
pub struct Builder {
    binary: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
}

impl Builder {
    /// Another binary than the one under test: that of an earlier release.
    #[must_use]
    pub fn binary(mut self, path: impl Into<PathBuf>) -> Self {
        self.binary = path.into();
        self
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// One more variable.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Starts it and returns at once; both its channels go to the log.
    pub fn start(self) -> Walhook {
        self.start_onto(None)
    }

    /// The same with standard error elsewhere; its log is empty then.
    pub fn start_onto(self, stderr: Option<Stdio>) -> Walhook {
        let folder = Folder::new("run", User::Ourselves);
        let log = folder.path().join("log");
        Walhook { process: Process::start_onto("walhook", self.command(), &log, stderr), folder }
    }

    /// Runs it to its end. Blocks; call it from [`tokio::task::spawn_blocking`] where it needs the test's own runtime.
    pub fn finish(self) -> Finished {
        let output = self.command().output().unwrap();
        Finished {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    fn command(self) -> Command {
        let mut command = User::Ourselves.command(self.binary);
        command.env_clear();
        for inherited in ["PATH", "RUST_BACKTRACE", "LLVM_PROFILE_FILE"] {
            if let Some(value) = std::env::var_os(inherited) {
                command.env(inherited, value);
            }
        }
        command.args(self.arguments).envs(self.environment);
        command
    }
}

impl Walhook {
    /// `walhook run`, to be completed.
    pub fn run() -> Builder {
        Self::command("run")
    }

    /// Any other verb.
    pub fn command(verb: &str) -> Builder {
        Builder { binary: binary(), arguments: vec![verb.into()], environment: Vec::new() }
    }

    /// Ends it as a power cut would.
    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    /// SIGTERM, and waits for its exit code. Panics where it does not go, or goes by a signal.
    pub fn terminate(&mut self) -> i32 {
        self.process.signal(Signal::TERM);
        self.wait(DRAINED)
    }

    /// Sends it a signal.
    pub fn signal(&mut self, signal: Signal) {
        self.process.signal(signal);
    }

    /// SIGSTOP: connections stay open, nothing answers.
    pub fn pause(&mut self) {
        self.process.signal(Signal::STOP);
    }

    /// SIGCONT, after [`Walhook::pause`].
    pub fn resume(&mut self) {
        self.process.signal(Signal::CONT);
    }

    /// How it ended, if it has.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.process.exited()
    }

    /// Waits until it ends by itself and answers with its exit code. Panics after `deadline`.
    pub fn wait(&mut self, deadline: Duration) -> i32 {
        let status = self.process.wait(deadline);
        let status = status.unwrap_or_else(|| panic!("walhook still runs after {deadline:?}"));
        status.code().unwrap_or_else(|| panic!("walhook ended by {status}"))
    }

    /// Waits until its log holds `text`; panics where it ends before.
    pub async fn logged(&mut self, text: &str) {
        super::eventually(&format!("{text:?} in walhook's log"), async || {
            if self.log().contains(text) {
                return Some(());
            }
            if let Some(status) = self.process.exited() {
                panic!("walhook ended ({status}) without having said {text:?}");
            }
            None
        })
        .await;
    }

    /// All it has said.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// A folder of its own, for files its settings name.
    pub fn folder(&self) -> PathBuf {
        self.folder.path().to_owned()
    }
}

/// Cargo tells tests where it is; a bench or an example lies in a folder beside it.
pub fn binary() -> PathBuf {
    match option_env!("CARGO_BIN_EXE_walhook") {
        Some(path) => path.into(),
        None => std::env::current_exe().unwrap().ancestors().nth(2).expect("target/<profile>/deps/…").join("walhook"),
    }
}
