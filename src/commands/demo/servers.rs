//! The demo's PostgreSQL and nats-server: finding them on this machine, starting and ending them.
//!
//! In: folders and files that the user names, `PATH`, and where packages put these servers. Out: servers on 127.0.0.1 with data in
//! a folder of the demo. Always: a server ends with the demo, even where the demo is killed by SIGKILL (on Linux).

use std::{
    env,
    fs::{self, OpenOptions},
    io,
    os::unix::{
        fs::{DirBuilderExt as _, PermissionsExt as _, chown},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    error::{Error, Result},
    text,
};

/// The oldest servers that walhook works with.
const OLDEST_POSTGRES: u32 = 14;
const OLDEST_NATS: (u32, u32) = (2, 10);

/// Folders of packages, in which `*` stands for a version: Debian and PostgreSQL's own archive, Fedora and Red Hat, Alpine,
/// Arch, Homebrew, Postgres.app.
const POSTGRES_FOLDERS: [&str; 8] = [
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/usr/libexec/postgresql*",
    "/usr/bin",
    "/usr/local/pgsql/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
];
const NATS_FOLDERS: [&str; 6] =
    ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin", "/opt/homebrew/bin", "/opt/nats"];

const NO_POSTGRES: &str = "install PostgreSQL 14 or newer (Debian, Ubuntu: apt install postgresql; Fedora: dnf install \
                           postgresql-server; macOS: brew install postgresql@17), or name the folder that holds its initdb \
                           by --postgres-bin";
const NO_NATS: &str = "download nats-server 2.10 or newer from https://github.com/nats-io/nats-server/releases (macOS: brew \
                       install nats-server) and put it into PATH, or name it by --nats-server";

/// How long a server may take to answer.
pub const STARTED: Duration = Duration::from_secs(60);
/// How often is looked.
pub const POLL: Duration = Duration::from_millis(20);
/// How long a server may take to end before it is killed.
const ENDED: Duration = Duration::from_secs(10);
/// `nobody` and its group: PostgreSQL refuses to run as root.
const NOBODY: u32 = 65_534;

/// Servers that were found.
#[derive(Debug)]
pub struct Found {
    /// The folder of `initdb` and `postgres`.
    pub postgres: PathBuf,
    /// `15.18`.
    pub postgres_version: String,
    /// The program.
    pub nats: PathBuf,
    /// `2.15.1`.
    pub nats_version: String,
}

impl Found {
    /// Looks for both servers, and says of both at once what is missing.
    pub fn find(postgres_bin: Option<&Path>, nats_server: Option<&Path>) -> Result<Found> {
        match (find_postgres(postgres_bin), find_nats(nats_server)) {
            (Ok((postgres, postgres_version)), Ok((nats, nats_version))) => {
                Ok(Found { postgres, postgres_version, nats, nats_version })
            }
            (postgres, nats) => {
                let wrong: Vec<_> = [postgres.err(), nats.err()].into_iter().flatten().collect();
                let (reasons, remedies) = Error::all(&wrong);
                Err(Error::config(format!("start the demo's servers: {reasons}")).hint(remedies.unwrap_or_default()))
            }
        }
    }
}

fn find_postgres(named: Option<&Path>) -> Result<(PathBuf, String)> {
    let folders = match named {
        Some(folder) => vec![folder.to_owned()],
        // `initdb` in PATH may be a link to where the other programs are.
        None => {
            let linked = path_folders().filter_map(|folder| fs::canonicalize(folder.join("initdb")).ok());
            let mut folders: Vec<_> = linked.filter_map(|file| file.parent().map(Path::to_owned)).collect();
            folders.extend(POSTGRES_FOLDERS.iter().flat_map(|pattern| matching(Path::new(pattern))));
            folders
        }
    };
    let mut refused = Vec::new();
    for folder in folders.iter().filter(|folder| folder.join("initdb").is_file() || named.is_some()) {
        match version(&folder.join("postgres"), &["initdb"]) {
            Ok((version, (major, _))) if major >= OLDEST_POSTGRES => return Ok((folder.clone(), version)),
            Ok((version, _)) => refused.push(format!("PostgreSQL {version} in {} is too old", shown(folder))),
            Err(why) => refused.push(why),
        }
    }
    let reason = if refused.is_empty() {
        "no PostgreSQL was found in PATH or where packages install it".to_owned()
    } else {
        refused.join(", ")
    };
    Err(Error::config(reason).hint(NO_POSTGRES))
}

fn find_nats(named: Option<&Path>) -> Result<(PathBuf, String)> {
    let files: Vec<PathBuf> = match named {
        Some(file) => vec![file.to_owned()],
        None => {
            let home = env::var_os("HOME").map(|home| PathBuf::from(home).join("go/bin"));
            let folders = path_folders().chain(NATS_FOLDERS.map(PathBuf::from)).chain(home);
            folders.map(|folder| folder.join("nats-server")).filter(|file| file.is_file()).collect()
        }
    };
    let mut refused = Vec::new();
    for file in &files {
        match version(file, &[]) {
            Ok((version, number)) if number >= OLDEST_NATS => return Ok((file.clone(), version)),
            Ok((version, _)) => refused.push(format!("nats-server {version} ({}) is too old", shown(file))),
            Err(why) => refused.push(why),
        }
    }
    let reason = if refused.is_empty() { "no nats-server was found in PATH".to_owned() } else { refused.join(", ") };
    Err(Error::config(reason).hint(NO_NATS))
}

fn path_folders() -> impl Iterator<Item = PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).filter(|folder| folder.is_absolute()).collect::<Vec<_>>().into_iter()
}

/// The folders that a pattern with one `*` names, the highest version first.
fn matching(pattern: &Path) -> Vec<PathBuf> {
    let parts: Vec<_> = pattern.components().collect();
    let Some(star) = parts.iter().position(|part| part.as_os_str().to_string_lossy().contains('*')) else {
        return vec![pattern.to_owned()];
    };
    let parent: PathBuf = parts[..star].iter().collect();
    let name = parts[star].as_os_str().to_string_lossy().into_owned();
    let (before, after) = name.split_once('*').unwrap_or((&name, ""));
    let rest: PathBuf = parts[star + 1..].iter().collect();
    let entries = fs::read_dir(&parent).into_iter().flatten().flatten();
    let mut found: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let number = name.strip_prefix(before)?.strip_suffix(after)?.parse().ok()?;
            Some((number, if rest.as_os_str().is_empty() { entry.path() } else { entry.path().join(&rest) }))
        })
        .collect();
    found.sort_by_key(|(number, _)| std::cmp::Reverse(*number));
    found.into_iter().map(|(_, path)| path).collect()
}

/// What `PROGRAM --version` says; `beside` are programs that have to be there too.
fn version(program: &Path, beside: &[&str]) -> Result<(String, (u32, u32)), String> {
    for name in beside {
        let other = program.with_file_name(name);
        if !other.is_file() {
            return Err(format!("there is no {}", shown(&other)));
        }
    }
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{} cannot be run: {error}", shown(program)))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    number(&said).ok_or_else(|| format!("{} --version names no version", shown(program)))
}

/// `postgres (PostgreSQL) 15.18 (Debian …)`, `postgres (PostgreSQL) 18beta1`, `nats-server: v2.15.1`: the version, and its first two numbers.
fn number(said: &str) -> Option<(String, (u32, u32))> {
    let mut words = said.split_whitespace().map(|word| word.trim_start_matches('v'));
    let word = words.find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    let mut numbers = word.split(|c: char| !c.is_ascii_digit()).map(|digits| digits.parse().unwrap_or(0));
    Some((word.to_owned(), (numbers.next()?, numbers.next().unwrap_or(0))))
}

fn shown(path: &Path) -> String {
    text::one_line(&path.to_string_lossy()).into_owned()
}

/// The demo's folder, removed with this value.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// A new one below the folder for temporary files. Others may pass through it, for PostgreSQL's user has to.
    pub fn new() -> Result<Folder> {
        let path = env::temp_dir().join(format!("walhook-demo.{:016x}", fastrand::u64(..)));
        let folder = make_folder(&path, 0o711)?;
        Ok(Folder(folder))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn make_folder(path: &Path, mode: u32) -> Result<PathBuf> {
    fs::DirBuilder::new().mode(mode).create(path).map_err(|error| {
        Error::config(format!("make the folder {}", shown(path)))
            .caused_by(error)
            .hint("TMPDIR names the folder in which the demo makes its own")
    })?;
    Ok(path.to_owned())
}

/// This binary itself, even where its path is closed to the user that a process of it becomes.
pub fn own_binary() -> io::Result<PathBuf> {
    if cfg!(target_os = "linux") { Ok(PathBuf::from("/proc/self/exe")) } else { env::current_exe() }
}

/// A program that the demo has started. It ends with this value, and with the demo's process.
#[derive(Debug)]
pub struct Process {
    name: &'static str,
    child: Child,
    log: PathBuf,
    status: Option<ExitStatus>,
    /// Asks it to end.
    end: Signal,
}

impl Process {
    /// Starts `program` by way of [`become_child`]; what it says goes to the file `log`.
    pub fn start(
        name: &'static str,
        program: &Path,
        arguments: &[String],
        variables: &[(&str, &str)],
        log: &Path,
        is_unprivileged: bool,
        end: Signal,
    ) -> Result<Process> {
        let failed =
            |error: io::Error| Error::unavailable(format!("start {name} ({})", shown(program))).caused_by(error);
        let file = OpenOptions::new().create(true).append(true).open(log).map_err(failed)?;
        let mut command = Command::new(own_binary().map_err(failed)?);
        command.args(["demo", "--child-of", &std::process::id().to_string(), "--"]).arg(program).args(arguments);
        command.env_clear();
        for kept in ["PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR", "RUST_BACKTRACE"] {
            if let Some(value) = env::var_os(kept) {
                command.env(kept, value);
            }
        }
        command.envs(variables.iter().copied());
        if is_unprivileged && rustix::process::geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY).current_dir("/");
        }
        // Ctrl-C on the terminal is for the demo, which ends the others in their order.
        command.process_group(0).stdin(Stdio::null());
        command.stdout(file.try_clone().map_err(failed)?).stderr(file);
        let child = command.spawn().map_err(failed)?;
        Ok(Process { name, child, log: log.to_owned(), status: None, end })
    }

    /// How it ended, if it has.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().ok().flatten();
        }
        self.status
    }

    /// Waits for its end; an error where it fails, or runs on.
    pub async fn finished(&mut self, within: Duration) -> Result<()> {
        let began = Instant::now();
        loop {
            match self.exited() {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(self.problem(&format!("ended by {status}"))),
                None if began.elapsed() > within => {
                    return Err(self.problem(&format!("still runs after {} s", within.as_secs())));
                }
                None => tokio::time::sleep(POLL).await,
            }
        }
    }

    /// Asks it to end.
    pub fn ask_to_end(&mut self) {
        self.signal(self.end);
    }

    fn signal(&mut self, signal: Signal) {
        if self.exited().is_none()
            && let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
        {
            let _ = kill_process(pid, signal);
        }
    }

    /// All it has said.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// An error that has the end of its log.
    pub fn problem(&self, what: &str) -> Error {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let last = lines[lines.len().saturating_sub(5)..].join(" / ");
        Error::unavailable(format!("{} {what}; the end of its log: {last}", self.name))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.ask_to_end();
        let began = Instant::now();
        while self.exited().is_none() {
            if began.elapsed() > ENDED {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(POLL);
        }
    }
}

/// What the process started by [`Process::start`] does: it asks the kernel to be killed when the demo ends, and becomes `program`.
/// The request outlives that, but not a change of user, so it is made here and not by the demo.
///
/// # Errors
/// The program cannot be run.
pub fn become_child(parent: u32, program: &[std::ffi::OsString]) -> Result<()> {
    #[cfg(target_os = "linux")]
    {
        let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
        // It may have ended before.
        let is_there = rustix::process::getppid().and_then(|pid| u32::try_from(pid.as_raw_nonzero().get()).ok());
        if is_there != Some(parent) {
            return Err(Error::unavailable("start a server of the demo: the demo has ended"));
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = parent;
    let Some((program, arguments)) = program.split_first() else {
        return Err(Error::config(
            "start a server of the demo: no program is named; use walhook demo without this option",
        ));
    };
    let error = Command::new(program).args(arguments).exec();
    Err(Error::unavailable(format!("run {}", shown(Path::new(program)))).caused_by(error))
}

/// A port of 127.0.0.1 that is free now.
fn free_port() -> Result<u16> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0));
    let address = listener.and_then(|listener| listener.local_addr());
    Ok(address.map_err(|error| Error::unavailable("find a free port on 127.0.0.1").caused_by(error))?.port())
}

/// Starts a server on a free port, a few times where somebody else takes the port first.
async fn on_free_port(
    start: impl Fn(u16) -> Result<Process>,
    mut answers: impl AsyncFnMut(u16, &Process) -> bool,
) -> Result<(Process, u16)> {
    let mut attempt = 1;
    loop {
        let port = free_port()?;
        let mut process = start(port)?;
        let began = Instant::now();
        let status = loop {
            if answers(port, &process).await {
                return Ok((process, port));
            }
            match process.exited() {
                Some(status) => break status,
                None if began.elapsed() > STARTED => {
                    return Err(process.problem(&format!("does not answer within {} s", STARTED.as_secs())));
                }
                None => tokio::time::sleep(POLL).await,
            }
        };
        if attempt == 5 || !process.log().to_lowercase().contains("address already in use") {
            return Err(process.problem(&format!("ended by {status}")));
        }
        attempt += 1;
    }
}

/// A throw-away PostgreSQL.
#[derive(Debug)]
pub struct Postgres {
    /// Ends with this value.
    _process: Process,
    /// On 127.0.0.1.
    pub port: u16,
    /// Of its superuser `postgres`: others on this machine must not get in.
    pub password: String,
}

/// Nothing survives a power cut, and nothing has to. Without a unix socket, whose path may be too long.
const SETTINGS: &str = "
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
wal_level = logical
max_wal_senders = 10
max_replication_slots = 10
shared_buffers = 32MB
fsync = off
full_page_writes = off
dynamic_shared_memory_type = mmap
timezone = 'UTC'
";

impl Postgres {
    /// Makes a database cluster and starts it.
    pub async fn start(bin: &Path, folder: &Path) -> Result<Postgres> {
        let home = make_folder(&folder.join("postgresql"), 0o700)?;
        let (data, log) = (home.join("data"), folder.join("postgresql.log"));
        let password = password()?;
        let secret = home.join("password");
        let wrote = |path: &Path, content: &str| {
            fs::write(path, content)
                .map_err(|error| Error::unavailable(format!("write {}", shown(path))).caused_by(error))
        };
        wrote(&secret, &password)?;
        let _ = fs::set_permissions(&secret, fs::Permissions::from_mode(0o600));
        if rustix::process::geteuid().is_root() {
            for path in [&home, &secret] {
                chown(path, Some(NOBODY), Some(NOBODY)).map_err(|error| {
                    Error::unavailable(format!("give {} to the user nobody", shown(path)))
                        .caused_by(error)
                        .hint("run walhook demo as another user than root")
                })?;
            }
        }
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let (data_folder, secret) = (data.to_string_lossy(), secret.to_string_lossy());
        let arguments = words(&[
            "-U",
            "postgres",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--no-locale",
            "--no-sync",
            "--pwfile",
            &secret,
            "-D",
            &data_folder,
        ]);
        let mut initdb = Process::start("initdb", &bin.join("initdb"), &arguments, &[], &log, true, Signal::KILL)?;
        initdb.finished(STARTED).await?;
        let conf = data.join("postgresql.conf");
        let settings = fs::read_to_string(&conf).unwrap_or_default() + SETTINGS;
        wrote(&conf, &settings)?;
        let start = |port: u16| {
            let arguments = words(&["-D", &data_folder, "-p", &port.to_string()]);
            Process::start("PostgreSQL", &bin.join("postgres"), &arguments, &[], &log, true, Signal::INT)
        };
        let answers = async |port, _: &Process| connect(port, &password).await.is_ok();
        let (process, port) = on_free_port(start, answers).await?;
        Ok(Postgres { _process: process, port, password })
    }

    /// A connection of the superuser.
    pub async fn client(&self) -> Result<tokio_postgres::Client> {
        let connected = connect(self.port, &self.password).await;
        connected.map_err(|error| Error::unavailable("connect to the demo's PostgreSQL").caused_by(error))
    }

    /// How a role connects.
    pub fn url(&self, role: &str) -> String {
        format!("postgres://{role}:{}@127.0.0.1:{}/postgres", self.password, self.port)
    }
}

async fn connect(port: u16, password: &str) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(port).user("postgres").password(password).dbname("postgres");
    let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

fn password() -> Result<String> {
    use ring::rand::SecureRandom as _;
    let mut bytes = [0; 16];
    let filled = ring::rand::SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| Error::unavailable("get random bytes for a password from the system"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A throw-away nats-server with JetStream.
#[derive(Debug)]
pub struct Nats {
    /// Ends with this value.
    _process: Process,
    /// On 127.0.0.1.
    pub port: u16,
}

impl Nats {
    /// Starts it.
    pub async fn start(program: &Path, folder: &Path) -> Result<Nats> {
        let store = make_folder(&folder.join("nats"), 0o700)?;
        let start = |port: u16| {
            let conf = folder.join("nats.conf");
            let text = format!(
                "listen: \"127.0.0.1:{port}\"\njetstream {{ store_dir: {:?}, max_file_store: 256MB, max_memory_store: 64MB }}\n",
                store.to_string_lossy()
            );
            fs::write(&conf, text)
                .map_err(|error| Error::unavailable(format!("write {}", shown(&conf))).caused_by(error))?;
            let arguments = ["--config".to_owned(), conf.to_string_lossy().into_owned()];
            let log = folder.join("nats-server.log");
            Process::start("nats-server", program, &arguments, &[], &log, false, Signal::TERM)
        };
        let answers = async |_, process: &Process| process.log().contains("Server is ready");
        let (process, port) = on_free_port(start, answers).await?;
        Ok(Nats { _process: process, port })
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_servers_say_them() {
        for (said, version, numbers) in [
            ("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n", "15.18", (15, 18)),
            ("postgres (PostgreSQL) 18beta1\n", "18beta1", (18, 0)),
            ("postgres (PostgreSQL) 9.6.24\n", "9.6.24", (9, 6)),
            ("nats-server: v2.15.1\n", "2.15.1", (2, 15)),
            ("nats-server: v2.10.0-RC.3\n", "2.10.0-RC.3", (2, 10)),
        ] {
            assert_eq!(number(said), Some((version.to_owned(), numbers)));
        }
        assert_eq!(number("bash: postgres: command not found"), None);
        // As Debian 12 has it.
        assert!(number("nats-server: v2.9.10").is_some_and(|(_, numbers)| numbers < OLDEST_NATS));
    }

    #[test]
    fn of_several_versions_the_highest_comes_first() {
        let folder = tempfile::tempdir().unwrap();
        for version in ["9.6", "14", "16", "9", "common"] {
            fs::create_dir_all(folder.path().join("postgresql").join(version).join("bin")).unwrap();
        }
        let found = matching(&folder.path().join("postgresql/*/bin"));
        let names: Vec<_> =
            found.iter().map(|path| path.strip_prefix(folder.path()).unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["postgresql/16/bin", "postgresql/14/bin", "postgresql/9/bin"]);
        assert_eq!(matching(Path::new("/usr/bin")), [Path::new("/usr/bin")]);
    }
}
