//! A PostgreSQL server of a test's own.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use rustix::process::Signal;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use super::{
    DEADLINE, POLL,
    folder::Folder,
    port::Port,
    process::{Process, User, tail},
    services,
    tls::Identity,
    walhook::{Walhook, binary},
};

/// What every server starts with. Nothing survives a power cut, everything survives a SIGKILL.
const SETTINGS: &str = "
# from the test harness
listen_addresses = '127.0.0.1'
wal_level = logical
max_wal_senders = 20
max_replication_slots = 20
max_prepared_transactions = 10
shared_buffers = 32MB
fsync = off
full_page_writes = off
dynamic_shared_memory_type = mmap  # in the folder: a SIGKILL leaves nothing in /dev/shm
timezone = 'UTC'
log_timezone = 'UTC'
log_line_prefix = '%m [%p] %a '
log_replication_commands = on
";

/// The harness's own way in, whatever a test's pg_hba.conf says.
const OWN_HBA: &str = "local all postgres trust\nlocal replication postgres trust\n";

const TRUST: &str = "local all all trust\nlocal replication all trust\n\
    host all all 127.0.0.1/32 trust\nhost replication all 127.0.0.1/32 trust\n";

/// A running server; dropping it stops it and removes its folder.
pub struct Postgres {
    process: Mutex<Option<Process>>, // before the folder: fields go in this order
    bin: PathBuf,
    port: Port,
    user: User,
    environment: Vec<(String, String)>,
    /// `walhook setup` has run in the cluster that this one is a copy of.
    pub is_set_up: bool,
    folder: Folder,
}

/// What the server shall be like.
pub struct Builder {
    version: String,
    has_tools: bool,
    hba: String,
    conf: String,
    initdb: Option<Vec<String>>,
    copied: Option<PathBuf>,
    is_standby: bool,
    is_set_up: bool,
    environment: Vec<(String, String)>,
    tls: Option<Identity>,
    client_ca: Option<String>,
}

impl Builder {
    /// 14 to 18, or `default`.
    #[must_use]
    pub fn version(mut self, version: &str) -> Self {
        version.clone_into(&mut self.version);
        self
    }

    /// With `pg_upgrade`, `pg_dump` and all other programs in [`Postgres::bin_dir`]; of 14, 17 and 18.
    #[must_use]
    pub fn tools(mut self) -> Self {
        self.has_tools = true;
        self
    }

    /// The text of pg_hba.conf, in place of trust for all. The superuser's way through the unix socket stays open to
    /// the harness ([`Postgres::psql`], [`Postgres::client`]).
    #[must_use]
    pub fn hba(mut self, text: &str) -> Self {
        text.clone_into(&mut self.hba);
        self
    }

    /// Lines for postgresql.conf, after the harness's.
    #[must_use]
    pub fn conf(mut self, lines: &str) -> Self {
        self.conf.push_str(lines);
        self.conf.push('\n');
        self
    }

    /// A variable that the server runs with.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The server's certificate and key; clients may then use TLS.
    #[must_use]
    pub fn tls(mut self, server: &Identity) -> Self {
        self.tls = Some(server.clone());
        self
    }

    /// The certificate authority (PEM) whose clients are believed; demand it by `clientcert=verify-ca` in the hba.
    #[must_use]
    pub fn client_ca(mut self, pem: &str) -> Self {
        self.client_ca = Some(pem.to_owned());
        self
    }

    /// A cluster made for this server alone: all others of one version are copies of one and share a system
    /// identifier.
    #[must_use]
    pub fn fresh(self) -> Self {
        self.initdb(&[])
    }

    /// The same, with further arguments for initdb (`--locale=…`, `--encoding=…`); later ones win.
    #[must_use]
    pub fn initdb(mut self, arguments: &[&str]) -> Self {
        self.initdb = Some(arguments.iter().map(|&argument| argument.to_owned()).collect());
        self
    }

    /// A copy of that data folder, of a server of the same version that has been stopped.
    #[must_use]
    pub fn copy_of(mut self, data: &Path) -> Self {
        self.copied = Some(data.to_owned());
        self
    }

    /// One in whose database `walhook setup` has run.
    #[must_use]
    pub fn set_up(mut self) -> Self {
        self.is_set_up = true;
        self
    }

    /// A standby: `copy_of` its primary, with `primary_conninfo` in `conf`.
    #[must_use]
    pub fn standby(mut self) -> Self {
        self.is_standby = true;
        self
    }

    /// Starts it and waits until it answers.
    pub async fn start(self) -> Postgres {
        let bin =
            if self.has_tools { services::postgres_tools(&self.version) } else { services::postgres(&self.version) };
        let is_copy = self.initdb.is_none() && self.copied.is_none();
        assert!(is_copy || !self.is_set_up, "a cluster that is set up is a copy of the one that is kept for this");
        let user = User::unprivileged();
        let folder = Folder::new("pg", user);
        let data = folder.path().join("data");
        match (&self.initdb, &self.copied) {
            (Some(arguments), _) => initdb(&bin, user, &data, arguments),
            (None, copied) => {
                let from = match copied {
                    Some(data) => data.clone(),
                    None if self.is_set_up => self.set_up_template(&bin, user).await,
                    None => template(&bin, user).await,
                };
                let copy = Command::new("cp").arg("-a").arg(from).arg(&data).output().unwrap();
                succeeded("cp", copy);
            }
        }
        self.configure(&data, user);
        if self.is_standby {
            user.write(&data.join("standby.signal"), "");
        }
        let environment = self.environment;
        let is_set_up = self.is_set_up;
        let process = Mutex::new(None);
        let mut server = Postgres { process, bin, port: Port::take(), user, environment, is_set_up, folder };
        for _ in 0..5 {
            match server.launch().await {
                Ok(()) => {
                    if is_set_up {
                        server.psql(OTHER_DATABASE);
                    }
                    return server;
                }
                // Somebody who does not know our lock was faster.
                Err(log) if log.contains("Address already in use") => server.port = Port::take(),
                Err(log) => panic!("PostgreSQL did not start; it says:\n{}", tail(&log)),
            }
        }
        panic!("PostgreSQL found five ports taken, one after the other");
    }

    /// A cluster to copy in which `walhook setup` has run, made once by each build of walhook: a setup takes half a second of a
    /// processor.
    async fn set_up_template(&self, bin: &Path, user: User) -> PathBuf {
        let binary = binary();
        let built = fs::metadata(&binary).unwrap();
        let since = built.modified().unwrap().duration_since(std::time::UNIX_EPOCH).unwrap();
        let folder = binary.ancestors().nth(2).unwrap().join("tmp/set-up");
        let version = template_name(bin, user);
        let name = format!("{version}-{}-{}", built.len(), since.as_nanos());
        let make = async |data: &Path| {
            for older in fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()) {
                // Those of earlier builds, each of some 80 MB.
                if older.is_dir() && older.file_name().unwrap().to_str().unwrap().starts_with(&version) {
                    fs::remove_dir_all(older).unwrap();
                }
            }
            let server = Box::pin(Postgres::builder().version(&self.version).start()).await;
            let done = Walhook::command("setup").env("DATABASE_URL", server.conninfo()).finish();
            assert_eq!(done.code, Some(0), "{}", done.stderr);
            server.stop();
            succeeded("cp", Command::new("cp").arg("-a").arg(server.data_dir()).arg(data).output().unwrap());
        };
        made_once(&folder, &name, make).await
    }

    fn configure(&self, data: &Path, user: User) {
        let conf = data.join("postgresql.conf");
        let mut settings = fs::read_to_string(&conf).unwrap() + SETTINGS;
        if let Some(identity) = &self.tls {
            user.write(&data.join("server.crt"), &identity.certificate);
            user.write(&data.join("server.key"), &identity.key);
            settings.push_str("ssl = on\n");
        }
        if let Some(pem) = &self.client_ca {
            user.write(&data.join("client_ca.crt"), pem);
            settings.push_str("ssl_ca_file = 'client_ca.crt'\n");
        }
        settings.push_str(&self.conf);
        user.write(&conf, settings);
        user.write(&data.join("pg_hba.conf"), format!("{OWN_HBA}{}\n", self.hba));
    }
}

impl Postgres {
    /// A server of the version under test that trusts everybody.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// The same, with walhook's objects in it.
    pub async fn set_up() -> Self {
        Self::builder().set_up().start().await
    }

    /// One with wishes.
    pub fn builder() -> Builder {
        Builder {
            version: services::postgres_version(),
            has_tools: false,
            hba: TRUST.to_owned(),
            conf: String::new(),
            initdb: None,
            copied: None,
            is_standby: false,
            is_set_up: false,
            environment: Vec::new(),
            tls: None,
            client_ca: None,
        }
    }

    /// libpq's words for the superuser by TCP.
    pub fn conninfo(&self) -> String {
        format!("host=127.0.0.1 port={} user=postgres dbname=postgres", self.port())
    }

    /// The TCP port, on 127.0.0.1; the unix socket is named after it.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Where the unix socket is.
    pub fn socket_dir(&self) -> &Path {
        self.folder.path()
    }

    /// Where the server's data are.
    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The folder of this server's binaries; only Debian's package brings clients (`psql`, `pg_recvlogical`).
    pub fn bin_dir(&self) -> &Path {
        &self.bin
    }

    /// Runs one of PostgreSQL's own programs as the user who runs the server, against its socket. Panics where it fails.
    pub fn tool(&self, name: &str, arguments: &[&str]) -> String {
        succeeded(name, self.try_tool(name, arguments))
    }

    /// [`Postgres::tool`] for one that may fail.
    pub fn try_tool(&self, name: &str, arguments: &[&str]) -> Output {
        let mut command = self.user.command(self.bin.join(name));
        command.args(arguments).current_dir(self.folder.path());
        command.env("PGHOST", self.socket_dir()).env("PGPORT", self.port().to_string()).env("PGUSER", "postgres");
        command.output().unwrap()
    }

    /// 14 to 18.
    pub fn major(&self) -> u32 {
        fs::read_to_string(self.data_dir().join("PG_VERSION")).unwrap().trim().parse().unwrap()
    }

    /// Runs SQL as the superuser and answers as `psql -At` does: a line per row, columns parted by `|`. Blocks; needs no
    /// runtime. Panics on an error.
    pub fn psql(&self, sql: &str) -> String {
        self.psql_in("postgres", sql)
    }

    /// The same in another database.
    pub fn psql_in(&self, database: &str, sql: &str) -> String {
        self.try_psql_in(database, sql).unwrap_or_else(|error| match error.as_db_error() {
            Some(error) => panic!("{error}\nby the statement: {sql}"),
            None => panic!("{error:?}\nby the statement: {sql}"),
        })
    }

    /// What the error of a statement says, and its hint.
    pub fn refused(&self, sql: &str) -> (String, String) {
        let error = self.try_psql(sql).unwrap_err();
        let error = error.as_db_error().unwrap();
        (error.message().to_owned(), error.hint().unwrap_or_default().to_owned())
    }

    /// [`Postgres::psql`] for SQL that may fail.
    pub fn try_psql(&self, sql: &str) -> Result<String, tokio_postgres::Error> {
        self.try_psql_in("postgres", sql)
    }

    /// The same in another database.
    pub fn try_psql_in(&self, database: &str, sql: &str) -> Result<String, tokio_postgres::Error> {
        let query = async {
            let client = self.connect(database).await?;
            Ok(client.simple_query(sql).await?.iter().filter_map(line).collect::<Vec<_>>().join("\n"))
        };
        // A thread of its own: the caller's may be inside a runtime, which would not block for us.
        std::thread::scope(|scope| scope.spawn(|| super::runtime().block_on(query)).join().unwrap())
    }

    /// A superuser's connection in database `postgres`.
    pub async fn client(&self) -> Client {
        self.connect("postgres").await.unwrap_or_else(|error| panic!("cannot connect: {error:?}"))
    }

    async fn connect(&self, database: &str) -> Result<Client, tokio_postgres::Error> {
        let (client, connection) = tokio_postgres::Config::new()
            .host_path(self.socket_dir())
            .port(self.port())
            .user("postgres")
            .dbname(database)
            .application_name("test")
            .connect(NoTls)
            .await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// Ends it as a power cut would, with all its backends; returns when they are gone.
    pub fn kill9(&self) {
        self.process().take();
    }

    /// A fast shutdown, as an administrator's; its clients are sent away, walsenders first get the rest of the WAL.
    pub fn stop(&self) {
        let Some(mut process) = self.process().take() else { return };
        process.signal(Signal::INT);
        assert!(process.wait(DEADLINE).is_some(), "PostgreSQL did not shut down within {DEADLINE:?}");
    }

    /// Starts it again, on the same port and data; stops it first where it runs.
    pub async fn restart(&self) {
        self.stop();
        self.launch().await.unwrap_or_else(|log| panic!("PostgreSQL did not start again; it says:\n{}", tail(&log)));
    }

    /// [`Postgres::restart`] as a standby that nobody feeds: it recovers what WAL it has, and takes queries until it is promoted.
    pub async fn restart_as_standby(&self) {
        self.stop();
        self.user.write(&self.data_dir().join("standby.signal"), "");
        self.restart().await;
    }

    /// SIGSTOP for the whole server: sockets stay open, nothing answers.
    pub fn pause(&self) {
        self.process().as_mut().expect("a running server").signal_family(Signal::STOP);
    }

    /// SIGCONT, after [`Postgres::pause`].
    pub fn resume(&self) {
        self.process().as_mut().expect("a running server").signal_family(Signal::CONT);
    }

    /// The postmaster's process id.
    pub fn pid(&self) -> u32 {
        self.process().as_ref().expect("a running server").pid()
    }

    /// What the server has logged since its first start.
    pub fn log(&self) -> String {
        super::process::read_lossy(&self.log_file())
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Starts the server and waits until it answers; the error is what it has said.
    async fn launch(&self) -> Result<(), String> {
        let said = self.log().len();
        // By `env`, so that it is the server's alone, not that of what starts it as another user.
        let mut command = self.user.command("env");
        command.args(self.environment.iter().map(|(name, value)| format!("{name}={value}")));
        command.arg(self.bin.join("postgres"));
        command.arg("-D").arg(self.data_dir()).arg("-k").arg(self.socket_dir()).args(["-p", &self.port().to_string()]);
        command.current_dir(self.folder.path());
        *self.process() = Some(Process::start("PostgreSQL", command, &self.log_file()));

        let deadline = tokio::time::Instant::now() + 2 * DEADLINE;
        loop {
            if let Ok(client) = self.connect("postgres").await
                && client.simple_query("SELECT 1").await.is_ok()
            {
                return Ok(());
            }
            let ended = self.process().as_mut().and_then(Process::exited).is_some();
            if ended || tokio::time::Instant::now() > deadline {
                self.process().take();
                return Err(self.log().split_off(said));
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(process) = self.process().as_mut() {
            process.signal_family(Signal::CONT); // a stopped one would not hear the next
            process.signal(Signal::QUIT); // immediate, yet it takes its shared memory with it
            process.wait(Duration::from_secs(5));
        }
        self.process().take();
        forget_shared_memory(&self.data_dir());
    }
}

/// A killed server leaves 56 bytes of System V shared memory, and their id in the file that it leaves as well.
pub fn forget_shared_memory(data: &Path) {
    if let Ok(text) = fs::read_to_string(data.join("postmaster.pid"))
        && let Some(id) = text.lines().nth(6).and_then(|line| line.split_whitespace().nth(1))
    {
        let _ = Command::new("ipcrm").args(["-m", id]).output();
    }
}

fn line(message: &SimpleQueryMessage) -> Option<String> {
    let SimpleQueryMessage::Row(row) = message else { return None };
    let columns: Vec<&str> = (0..row.len()).map(|column| row.get(column).unwrap_or_default()).collect();
    Some(columns.join("|"))
}

/// A copy of a database that is set up is a database of its own to the servers that both use.
const OTHER_DATABASE: &str =
    "UPDATE rule_cdc_identity SET database_id = left(replace(gen_random_uuid()::text, '-', ''), 16)";

/// An initialized cluster to copy, made once per binary and user and kept in the cache: initdb takes a second, a copy a
/// tenth of it.
async fn template(bin: &Path, user: User) -> PathBuf {
    let make = async |data: &Path| {
        let temporary = Folder::new("initdb", user);
        initdb(bin, user, &temporary.path().join("data"), &[]);
        succeeded("mv", Command::new("mv").arg(temporary.path().join("data")).arg(data).output().unwrap());
    };
    made_once(&services::cache().join("templates"), &template_name(bin, user), make).await
}

fn template_name(bin: &Path, user: User) -> String {
    let version = succeeded("postgres", user.command(bin.join("postgres")).arg("--version").output().unwrap());
    format!("{version} {} {}", bin.display(), rustix::process::geteuid().as_raw())
        .chars()
        .map(|letter| if letter.is_ascii_alphanumeric() || letter == '.' { letter } else { '-' })
        .collect()
}

/// What `make` has put in this folder under this name, once for all tests.
async fn made_once(folder: &Path, name: &str, make: impl AsyncFnOnce(&Path)) -> PathBuf {
    fs::create_dir_all(folder).unwrap();
    let made = folder.join(name);
    let lock = File::create(folder.join(format!("{name}.lock"))).unwrap();
    lock.lock().unwrap(); // until the end of this function
    if !made.exists() {
        let temporary = tempfile::tempdir_in(folder).unwrap();
        make(&temporary.path().join("data")).await;
        fs::rename(temporary.path().join("data"), &made).unwrap(); // at once: a half one must not be found
    }
    made
}

fn initdb(bin: &Path, user: User, data: &Path, arguments: &[String]) {
    let mut command = user.command(bin.join("initdb"));
    command.args(["-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"]);
    command.arg("-D").arg(data).args(arguments).current_dir(data.parent().unwrap());
    succeeded("initdb", command.output().unwrap());
}

/// What a command said, where it succeeded.
fn succeeded(name: &str, output: Output) -> String {
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{name} failed:\n{said}\n{}", String::from_utf8_lossy(&output.stderr));
    said.trim_end().to_owned()
}
