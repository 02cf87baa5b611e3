//! The edge towards PostgreSQL.
//!
//! [`settings`] says where the server is and who we are; [`wire`] dials it, [`tls`] protects and [`auth`]
//! authenticates the connection; [`replication`] speaks the walsender's protocol on it and [`sql`] gives ordinary SQL
//! by tokio-postgres over the same socket, TLS and settings. What comes through here is bytes and rows; what they
//! mean is not known here.

mod auth;
pub mod replication;
pub mod settings;
pub mod sql;
mod tls;
mod wire;

use std::{
    fmt,
    time::{SystemTime, UNIX_EPOCH},
};

use crate::error::{Error, Kind};

pub use settings::{Secret, Settings};

/// What PostgreSQL's server said in an ErrorResponse or NoticeResponse (manual, section 55.8).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServerError {
    /// Five characters (manual, appendix A).
    pub sqlstate: String,
    /// The primary message.
    pub message: String,
    /// More about the problem.
    pub detail: Option<String>,
    /// What the server would try.
    pub hint: Option<String>,
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (SQLSTATE {})", self.message, self.sqlstate)?;
        for more in [&self.detail, &self.hint].into_iter().flatten() {
            write!(f, "; {more}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ServerError {}

/// µs since 2000-01-01, as PostgreSQL counts time.
pub fn now() -> i64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
    i64::try_from(since_1970).unwrap_or(i64::MAX) - 946_684_800_000_000
}

/// The server's error code, where `error` came from the server.
pub fn sqlstate(error: &Error) -> Option<&str> {
    error.cause_as::<ServerError>().map(|server| server.sqlstate.as_str())
}

/// The slot (or another object) is in use by another session: waiting is the remedy.
pub const OBJECT_IN_USE: &str = "55006";
/// There is no such slot or publication.
pub const UNDEFINED_OBJECT: &str = "42704";
/// The slot or the server is not in the state it must be in: `wal_level`, an invalidated slot.
pub const OBJECT_NOT_IN_PREREQUISITE_STATE: &str = "55000";

/// Sorts what the server said by who must act, with what to try.
fn server_error(attempted: impl Into<String>, server: ServerError) -> Error {
    let (kind, hint) = sort(&server);
    let error = Error::new(kind, attempted).caused_by(server);
    if hint.is_empty() { error } else { error.hint(hint) }
}

fn sort(server: &ServerError) -> (Kind, &'static str) {
    let says = |words: &str| server.message.contains(words);
    match server.sqlstate.as_str() {
        "28P01" => (Kind::Permission, "check the user and its password (PGPASSWORD, password file, .pgpass)"),
        _ if says("pg_hba.conf") => {
            (Kind::Permission, "add a line for this user, database, address and encryption to the server's pg_hba.conf")
        }
        _ if says("valid client certificate") => {
            (Kind::Permission, "set sslcert and sslkey to a certificate the server trusts")
        }
        "42501" if says("WAL sender") || says("walsender") || says("replication slots") || says("replication role") => {
            (Kind::Permission, "give the role the right to replicate: ALTER ROLE … REPLICATION")
        }
        "42501" => (Kind::Permission, "grant the role what the message asks for, or connect as another role"),
        code if code.starts_with("28") => (Kind::Permission, "check the user, and that it may log in"),
        "3D000" => (Kind::Config, "check dbname (PGDATABASE)"),
        "55006" => (Kind::Unavailable, ""),
        "55000" if says("wal_level") => {
            (Kind::Config, "run ALTER SYSTEM SET wal_level = logical and restart the PostgreSQL server")
        }
        // 14 to 16, 17, 18 each have words of their own.
        "55000" if says("no longer") || says("cannot read from logical replication slot") => (
            Kind::Untrusted,
            "the server has thrown away WAL this slot needed: changes are lost; see the documentation on lost slots",
        ),
        "58P01" if says("has already been removed") => {
            (Kind::Untrusted, "WAL this slot needed is gone: changes are lost; see the documentation on lost slots")
        }
        "42704" if says("replication slot") => (Kind::Config, "create the slot with: walhook setup"),
        "42704" | "55000" if says("publication") => (
            Kind::Config,
            "create the publication with: walhook setup; it must be older than the slot's position, so if it was \
             dropped, the slot must be made anew",
        ),
        "42P01" | "42883" | "3F000" | "42703" => (Kind::Config, "bring the database up to date with: walhook setup"),
        "53300" if says("max_wal_senders") || says("wal senders") => {
            (Kind::Unavailable, "raise max_wal_senders on the server, or end another replication connection")
        }
        "53300" => (Kind::Unavailable, "raise max_connections on the server, or end other connections"),
        "53400" => (Kind::Config, "raise max_replication_slots on the server, or drop a slot nobody reads"),
        "25006" => (Kind::Config, "connect to the primary server (target_session_attrs=primary picks it)"),
        // Connections, resources, an operator's intervention, a system call that failed, a deadlock: all pass.
        code if ["08", "53", "57", "58", "40"].iter().any(|class| code.starts_with(class)) => (Kind::Unavailable, ""),
        code if ["42", "55", "0A"].iter().any(|class| code.starts_with(class)) => (Kind::Config, ""),
        _ => (Kind::Protocol, ""),
    }
}
