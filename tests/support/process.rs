//! Child processes that end with us, however we end.
//!
//! `setpriv --pdeathsig KILL` asks the kernel to kill the child when its parent dies. The parent is the *thread* that
//! started it, and a test's thread ends with the test, so one thread that lives as long as the process starts them all.
//! The kernel forgets the wish at a change of user; setpriv utters it after that.

use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{LazyLock, mpsc},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use super::{DEADLINE, eventually_blocking};

/// Who runs a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum User {
    /// Whoever runs the tests.
    Ourselves,
    /// `nobody`, since PostgreSQL refuses to run as root.
    Nobody,
}

impl User {
    /// Who may run PostgreSQL.
    pub fn unprivileged() -> Self {
        if rustix::process::geteuid().is_root() { User::Nobody } else { User::Ourselves }
    }

    /// Their user and group, where they are not ours.
    pub fn id(self) -> Option<u32> {
        match self {
            User::Ourselves => None,
            User::Nobody => Some(65_534),
        }
    }

    /// A command that runs `program` as this user and ends with us.
    pub fn command(self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("setpriv");
        if let Some(id) = self.id() {
            command.args([&format!("--reuid={id}"), &format!("--regid={id}"), "--clear-groups"]);
        }
        command.args(["--pdeathsig", "KILL", "--"]).arg(program).stdin(Stdio::null());
        command.process_group(0); // Ctrl-C on our terminal is for us; when they end is ours to say
        command
    }
}

/// Starts `command` from a thread that lives as long as the process.
fn spawn(command: Command) -> io::Result<Child> {
    type Order = (Command, mpsc::Sender<io::Result<Child>>);
    static SPAWNER: LazyLock<mpsc::Sender<Order>> = LazyLock::new(|| {
        let (orders, inbox) = mpsc::channel::<Order>();
        std::thread::Builder::new()
            .name("spawner".to_owned())
            .spawn(move || {
                for (mut command, reply) in inbox {
                    let _ = reply.send(command.spawn());
                }
            })
            .unwrap();
        orders
    });
    let (reply, child) = mpsc::channel();
    SPAWNER.send((command, reply)).unwrap();
    child.recv().unwrap()
}

/// A running child whose output goes to a log file. Dropping it kills it and its children.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    status: Option<ExitStatus>,
}

impl Process {
    /// Starts `command` (of [`User::command`]); what it says on both channels is added to `log`.
    pub fn start(name: &str, command: Command, log: &Path) -> Self {
        Self::start_onto(name, command, log, None)
    }

    /// The same with standard error elsewhere.
    pub fn start_onto(name: &str, mut command: Command, log: &Path, stderr: Option<Stdio>) -> Self {
        let file = OpenOptions::new().create(true).append(true).open(log).unwrap();
        command.stdout(file.try_clone().unwrap()).stderr(stderr.unwrap_or_else(|| file.into()));
        let child = spawn(command).unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        Process { name: name.to_owned(), child, log: log.to_owned(), status: None }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Itself first, then its children.
    pub fn family(&self) -> Vec<u32> {
        let me = self.pid();
        let mut family = vec![me];
        family.extend(processes().filter(|process| process.parent == me).map(|process| process.pid));
        family
    }

    /// Sends it a signal; one that has ended is left alone, for its id may be another's by now.
    pub fn signal(&mut self, which: Signal) {
        if self.exited().is_none() {
            signal(self.pid(), which);
        }
    }

    /// Sends the whole family a signal.
    pub fn signal_family(&mut self, which: Signal) {
        if self.exited().is_none() {
            for pid in self.family() {
                signal(pid, which);
            }
        }
    }

    /// How it ended, if it has.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().unwrap();
        }
        self.status
    }

    /// Waits for its end; None where it still runs after `deadline`.
    pub fn wait(&mut self, deadline: Duration) -> Option<ExitStatus> {
        eventually_blocking(deadline, || self.exited())
    }

    /// SIGKILL to it and its children, and waits until all of them are gone.
    pub fn kill9(&mut self) {
        if self.exited().is_some() {
            return;
        }
        let family = self.family();
        for pid in &family {
            signal(*pid, Signal::KILL);
        }
        self.status = Some(self.child.wait().unwrap());
        let gone = eventually_blocking(DEADLINE, || (!family.iter().any(|pid| is_running(*pid))).then_some(()));
        assert!(gone.is_some(), "children of {} survive SIGKILL", self.name);
    }

    /// All it has said.
    pub fn log(&self) -> String {
        read_lossy(&self.log)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill9();
        if std::thread::panicking() {
            eprintln!("--- the last lines of {} ({}):\n{}", self.name, self.log.display(), tail(&self.log()));
        }
    }
}

/// The last lines of a log.
pub fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

/// A file's text; empty where there is none yet.
pub fn read_lossy(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

/// Whether that process runs; one that has ended and waits for its parent's notice does not.
pub fn is_running(pid: u32) -> bool {
    stat(pid).is_some_and(|process| process.state != 'Z')
}

fn signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("the kernel's own process id");
    match kill_process(pid, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => panic!("cannot send {signal:?} to {pid:?}: {error}"),
    }
}

struct Stat {
    pid: u32,
    parent: u32,
    state: char,
}

fn processes() -> impl Iterator<Item = Stat> {
    fs::read_dir("/proc").unwrap().filter_map(|entry| stat(entry.ok()?.file_name().to_str()?.parse().ok()?))
}

/// `/proc/PID/stat`: the id, the name in parentheses (which may hold anything), the state, the parent.
fn stat(pid: u32) -> Option<Stat> {
    let line = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = line.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    Some(Stat { pid, parent, state })
}
