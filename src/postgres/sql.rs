//! Ordinary SQL, by tokio-postgres over the socket that [`wire`](super::wire) dials: the same hosts, TLS and login.
//!
//! In come settings; out goes a client whose connection runs as a task of its own and whose loss shows as
//! `is_closed()`.

use std::{
    convert::Infallible,
    error::Error as _,
    future::{Ready, ready},
    io,
};

use tokio_postgres::{
    Client, Config,
    config::{ChannelBinding as TheirChannelBinding, SslMode as TheirSslMode, SslNegotiation as TheirSslNegotiation},
    tls::{ChannelBinding as Binding, TlsConnect, TlsStream},
};

use super::{
    ServerError, auth, server_error,
    settings::{ChannelBinding, Secret, Settings},
    tls,
    wire::{self, Attributes, Dialled, LoggedIn, Socket},
};
use crate::error::{Error, Result};

/// Connects and logs in.
///
/// # Errors
/// As [`Connection::connect`](super::replication::Connection::connect).
pub async fn connect(settings: &Settings) -> Result<Client> {
    wire::connect(settings, |dialled| log_in(dialled, settings)).await
}

async fn log_in(dialled: Dialled, settings: &Settings) -> Result<LoggedIn<Client>> {
    let config = config(settings, dialled.password.as_ref());
    let (client, connection) = config.connect_raw(dialled.socket, Protected).await.map_err(not_let_in)?;
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

fn config(settings: &Settings, password: Option<&Secret>) -> Config {
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
    if let Some(options) = &settings.options {
        config.options(options);
    }
    config
}

/// The TLS step of a socket on which TLS, or the decision against it, is done.
struct Protected;

impl TlsConnect<Socket> for Protected {
    type Stream = Socket;
    type Error = Infallible;
    type Future = Ready<Result<Socket, Infallible>>;

    fn connect(self, socket: Socket) -> Self::Future {
        ready(Ok(socket))
    }
}

impl TlsStream for Socket {
    fn channel_binding(&self) -> Binding {
        self.end_point_hash().map_or_else(Binding::none, Binding::tls_server_end_point)
    }
}

/// Why a login failed. Two of tokio-postgres's own refusals are ours as well, and get the same words.
fn not_let_in(e: tokio_postgres::Error) -> Error {
    match e.source().map(ToString::to_string).as_deref() {
        Some("password missing") => auth::no_password(),
        Some("server did not use channel binding") => auth::unbound(),
        _ => match cause(&e) {
            Cause::Other => Error::config("authenticate").caused_by(e).hint("check user, password and pg_hba.conf"),
            _ => error("authenticate", e),
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
