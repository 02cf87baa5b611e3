//! Ordinary SQL, by tokio-postgres over the socket that [`wire`](super::wire) dials: the same hosts, TLS and login.
//!
//! In come settings; out goes a client whose connection runs as a task of its own and whose loss shows as
//! `is_closed()`. A loss that does not show, since a network in between holds the connection open and passes nothing on, is
//! found by asking the server on another one: see [`Watched`].

use std::{
    convert::Infallible,
    error::Error as _,
    future::{Ready, ready},
    io,
    ops::Deref,
    pin::pin,
    time::Duration,
};

use tokio::time::timeout;
use tokio_postgres::{
    Client, Config,
    config::{ChannelBinding as TheirChannelBinding, SslMode as TheirSslMode, SslNegotiation as TheirSslNegotiation},
    tls::{ChannelBinding as Binding, TlsConnect, TlsStream},
    types::ToSql,
};

use super::{
    PROTOCOL_VIOLATION, ServerError, auth,
    bounded::{Bounded, Endless},
    dial::{self, Attributes, Dialled, LoggedIn, Socket},
    login_error, server_error, session,
    settings::{ChannelBinding, Secret, Settings},
    tls,
};
use crate::{
    error::{Error, Result},
    wal::name::readable,
};

/// After so long without an answer the server is asked what it is at.
const PATIENCE: Duration = Duration::from_secs(5);

/// A client whose server can be asked what it is at.
pub struct Watched {
    client: Client,
    watch: Watch,
}

/// How to ask what the server is at.
pub struct Watch {
    settings: Settings,
    /// The server's process behind the client.
    process: i32,
}

impl Deref for Watched {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Watched {
    /// Connects and logs in.
    ///
    /// # Errors
    /// As [`connect`].
    pub async fn connect(settings: &Settings) -> Result<Watched> {
        let client = connect(settings).await?;
        let asked = client.query_one("SELECT pg_catalog.pg_backend_pid()", &[]);
        let row = match timeout(settings.connect_timeout.unwrap_or(Duration::MAX), asked).await {
            Ok(row) => row.map_err(|e| error("ask the server which process serves us", e))?,
            Err(_) => return Err(Error::unavailable(format!("log in at {}: no answer", settings.target()))),
        };
        let watch = Watch { settings: settings.clone(), process: row.get(0) };
        Ok(Watched { client, watch })
    }

    /// Both parts, to begin a transaction with.
    pub fn parts(&mut self) -> (&mut Client, &Watch) {
        (&mut self.client, &self.watch)
    }

    /// As [`Watch::answer`].
    ///
    /// # Errors
    /// As there.
    pub async fn answer<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        self.watch.answer(work).await
    }
}

impl Watch {
    /// Waits for `work` on the client. It may take as long as it does, and wait for locks; but where the server waits for
    /// us while we wait for it, there is no answer to wait for.
    ///
    /// # Errors
    /// Those of the work; Unavailable where the connection passes nothing on.
    pub async fn answer<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut work = pin!(work);
        let (mut before, mut logged) = (None, Vec::new());
        loop {
            if let Ok(outcome) = timeout(PATIENCE, &mut work).await {
                return outcome;
            }
            // A server that cannot be asked is away, which others notice.
            let Ok((now, blockers)) = self.waits().await else { continue };
            if !blockers.is_empty() && blockers != logged {
                tracing::warn!(
                    "a statement at {} waits for locks of others: {}",
                    self.settings.target(),
                    blockers.join("; ")
                );
                logged = blockers;
            }
            if now.is_some() && now == before {
                return Err(Error::unavailable(format!(
                    "wait for the answer of {}: an answer was lost, for PostgreSQL has waited for the next statement for at least {} s",
                    self.settings.target(),
                    PATIENCE.as_secs()
                ))
                .hint("check the firewalls and proxies between walhook and PostgreSQL: one may drop connections silently"));
            }
            before = now;
        }
    }

    /// What the server's process was at when it began to wait for us; `None` while it is at work. And for whom it waits.
    async fn waits(&self) -> Result<(Option<String>, Vec<String>)> {
        let client = connect(&self.settings).await?;
        let query = "SELECT CASE WHEN a.pid IS NULL THEN 'nothing' \
                         WHEN a.state <> 'active' OR a.wait_event = 'ClientRead' \
                         THEN concat_ws(' ', a.state, a.state_change, c.bytes_processed) END \
             FROM (SELECT $1::int AS pid) AS p \
                  LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = p.pid \
                  LEFT JOIN pg_catalog.pg_stat_progress_copy c ON c.pid = p.pid";
        let process: [&(dyn ToSql + Sync); 1] = [&self.process];
        let asked = client.query_one(query, &process);
        let row = timeout(PATIENCE, asked).await.map_err(|_| Error::unavailable("ask what a connection is at"))?;
        let now = row.map_err(|e| error("ask what a connection is at", e))?.get(0);
        let asked = timeout(PATIENCE, blockers(&client, self.process)).await;
        let blockers = asked.map_err(|_| Error::unavailable("ask for whom a connection waits"))?;
        Ok((now, blockers.map_err(|e| error("ask for whom a connection waits", e))?))
    }
}

/// A name of PostgreSQL's own in UTF-8, also where walhook is not set up; in a database in `SQL_ASCII`, where it is any bytes, as it is.
pub fn name_bytes(column: &str) -> String {
    format!(
        "pg_catalog.convert_to(coalesce({column}::pg_catalog.text, ''), \
             CASE pg_catalog.getdatabaseencoding() WHEN 'SQL_ASCII' THEN 'SQL_ASCII' ELSE 'UTF8' END)"
    )
}

/// Who keeps a process of the server waiting, each with the statement that ends it.
///
/// # Errors
/// PostgreSQL cannot be asked.
pub async fn blockers(client: &Client, process: i32) -> std::result::Result<Vec<String>, tokio_postgres::Error> {
    // A prepared transaction has no process.
    let query = format!(
        "SELECT DISTINCT b.pid, {}, {} FROM pg_catalog.unnest(pg_catalog.pg_blocking_pids($1)) b (pid) \
             LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = b.pid ORDER BY b.pid",
        name_bytes("a.usename"),
        name_bytes("a.application_name")
    );
    let rows = client.query(&query, &[&process]).await?;
    let blocker = |row: &tokio_postgres::Row| match row.get::<_, i32>(0) {
        0 => "a prepared transaction (SELECT * FROM pg_prepared_xacts)".to_owned(),
        pid => {
            let (role, application) = (readable(row.get(1)), readable(row.get(2)));
            format!(
                "process {pid} of role {role:?}, application {application:?} (SELECT pg_terminate_backend({pid}) ends it)"
            )
        }
    };
    Ok(rows.iter().map(blocker).collect())
}

/// Connects and logs in.
///
/// # Errors
/// As [`Connection::connect`](super::replication::Connection::connect).
pub async fn connect(settings: &Settings) -> Result<Client> {
    let log_in = |options| dial::connect(settings, move |dialled| log_in(dialled, settings, options));
    let client = match log_in(Options::Whole).await {
        // A pooler that does not know the parameter `options`.
        Err(error) if super::sqlstate(&error) == Some(PROTOCOL_VIOLATION) => log_in(Options::OnlyOwn).await?,
        outcome => outcome?,
    };
    client.batch_execute(&session::statements()).await.map_err(|e| error("prepare the session", e))?;
    Ok(client)
}

/// The client that is there, or a new one where there is none or its connection has ended.
///
/// # Errors
/// As [`connect`].
pub async fn reconnect<'c>(client: &'c mut Option<Client>, settings: &Settings) -> Result<&'c mut Client> {
    client.take_if(|there| there.is_closed());
    match client {
        Some(there) => Ok(there),
        None => Ok(client.insert(connect(settings).await?)),
    }
}

/// What the start-up message has as `options`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Options {
    /// The user's, and all settings of [`session`].
    Whole,
    /// The user's.
    OnlyOwn,
}

async fn log_in(dialled: Dialled, settings: &Settings, options: Options) -> Result<LoggedIn<Client>> {
    let config = config(settings, dialled.password.as_ref(), options);
    let (client, connection) = config.connect_raw(Bounded::new(dialled.socket), Protected).await.map_err(not_let_in)?;
    let is_on = |parameter| connection.parameter(parameter) == Some("on");
    let attributes =
        Attributes { in_hot_standby: is_on("in_hot_standby"), read_only: is_on("default_transaction_read_only") };
    tokio::spawn(async move {
        // Whoever uses the client gets the error; this tells why, to those who look closely.
        if let Err(e) = connection.await {
            tracing::debug!(target = dialled.target, error = %e, "an SQL connection ended");
        }
    });
    Ok(LoggedIn { session: client, attributes })
}

fn config(settings: &Settings, password: Option<&Secret>, options: Options) -> Config {
    let mut config = Config::new();
    config
        .user(&settings.user)
        .dbname(&settings.dbname)
        .application_name(&settings.application_name)
        // What makes tokio-postgres take the socket as it is, and its channel binding with it: see `Protected`.
        .ssl_mode(TheirSslMode::Require)
        .ssl_negotiation(TheirSslNegotiation::Direct)
        .channel_binding(match settings.channel_binding {
            ChannelBinding::Disable => TheirChannelBinding::Disable,
            ChannelBinding::Prefer => TheirChannelBinding::Prefer,
            ChannelBinding::Require => TheirChannelBinding::Require,
        });
    if let Some(password) = password {
        config.password(password.reveal());
    }
    match (options, &settings.options) {
        (Options::Whole, own) => config.options(session::options(own.as_deref())),
        (Options::OnlyOwn, Some(own)) => config.options(own),
        (Options::OnlyOwn, None) => &mut config,
    };
    config
}

/// The TLS step of a socket on which TLS, or the decision against it, is done.
struct Protected;

impl TlsConnect<Bounded<Socket>> for Protected {
    type Stream = Bounded<Socket>;
    type Error = Infallible;
    type Future = Ready<Result<Bounded<Socket>, Infallible>>;

    fn connect(self, socket: Bounded<Socket>) -> Self::Future {
        ready(Ok(socket))
    }
}

impl TlsStream for Bounded<Socket> {
    fn channel_binding(&self) -> Binding {
        self.socket.end_point_hash().map_or_else(Binding::none, Binding::tls_server_end_point)
    }
}

/// Why a login failed. Two of tokio-postgres's own refusals are ours as well, and get the same words.
fn not_let_in(e: tokio_postgres::Error) -> Error {
    let io = e.source().and_then(|source| source.downcast_ref::<io::Error>());
    if io.and_then(io::Error::get_ref).is_some_and(|cause| cause.is::<Endless>()) {
        return Error::protocol("authenticate")
            .caused_by(Endless)
            .hint("is it a PostgreSQL server? Check host and port");
    }
    match e.source().map(ToString::to_string).as_deref() {
        Some("password missing") => auth::no_password(),
        Some("server did not use channel binding") => auth::unbound(),
        _ => match cause(&e) {
            Cause::Other => Error::config("authenticate").caused_by(e).hint("check user, password and pg_hba.conf"),
            Cause::Server(server) => login_error("authenticate", server),
            Cause::Connection => error("authenticate", e),
        },
    }
}

enum Cause {
    Server(ServerError),
    Connection,
    Other,
}

fn cause(e: &tokio_postgres::Error) -> Cause {
    if let Some(db) = e.as_db_error() {
        return Cause::Server(ServerError {
            sqlstate: db.code().code().to_owned(),
            message: db.message().to_owned(),
            detail: db.detail().map(str::to_owned),
            hint: db.hint().map(str::to_owned),
        });
    }
    let io = e.source().and_then(|source| source.downcast_ref::<io::Error>());
    // Encoding, parsing and SCRAM wrap their complaints in io::Error too; a system call never has these kinds.
    let is_io = io.is_some_and(|e| !matches!(e.kind(), io::ErrorKind::Other | io::ErrorKind::InvalidInput));
    if e.is_closed() || is_io { Cause::Connection } else { Cause::Other }
}

/// What a failed statement means, sorted by who must act; `attempted` says what it was for.
pub fn error(attempted: impl Into<String>, e: tokio_postgres::Error) -> Error {
    match cause(&e) {
        Cause::Server(server) => server_error(attempted, server),
        Cause::Connection => match e.into_source().map(|source| source.downcast::<io::Error>()) {
            Some(Ok(e)) => tls::io_error(attempted, *e),
            _ => Error::unavailable(format!("{}: the connection to PostgreSQL is closed", attempted.into())),
        },
        Cause::Other => Error::protocol(attempted).caused_by(e),
    }
}
