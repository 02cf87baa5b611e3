//! The edge towards PostgreSQL.
//!
//! [`settings`] says where the server is and who we are; [`wire`] dials it, [`tls`] protects and [`auth`]
//! authenticates the connection; [`replication`] speaks the walsender's protocol on it and [`sql`] gives ordinary SQL
//! by tokio-postgres over the same socket, TLS and settings. [`session`] says what is set in both, [`sqlstate`] what an error
//! of the server's means. What comes through here is bytes and rows; what they mean is not known here.

mod auth;
mod bounded;
mod dial;
mod encoding;
mod passfile;
pub mod replication;
mod session;
pub mod settings;
pub mod sql;
pub mod sqlstate;
mod tls;
mod wire;

use std::{
    fmt,
    time::{SystemTime, UNIX_EPOCH},
};

use crate::{calendar::POSTGRES_EPOCH_US, error::Error};

pub use settings::{Secret, Settings};
use sqlstate::Class;

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
        // Of data that a statement refuses (classes 22 and 23) the detail is the row itself, a payload perhaps.
        let has_data = ["22", "23"].iter().any(|class| self.sqlstate.starts_with(class));
        let detail = self.detail.as_ref().filter(|_| !has_data);
        for more in [detail, self.hint.as_ref()].into_iter().flatten() {
            write!(f, "; {more}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ServerError {}

/// µs since 2000-01-01, as PostgreSQL counts time.
pub fn now() -> i64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
    i64::try_from(since_1970).unwrap_or(i64::MAX) - POSTGRES_EPOCH_US
}

/// The server's error code, where `error` came from the server.
pub fn sqlstate(error: &Error) -> Option<&str> {
    error.cause_as::<ServerError>().map(|server| server.sqlstate.as_str())
}

/// Not PostgreSQL's protocol, or a start-up parameter that a pooler does not take.
pub(crate) const PROTOCOL_VIOLATION: &str = "08P01";
/// The slot (or another object) is in use by another session: waiting is the remedy.
pub const OBJECT_IN_USE: &str = "55006";
/// The server has ended the connection: it is shutting down, or somebody has called `pg_terminate_backend`.
pub const ADMIN_SHUTDOWN: &str = "57P01";
/// The server takes no connections now: it is shutting down, or starting.
pub const CANNOT_CONNECT_NOW: &str = "57P03";
/// A file that the server needs is not there: WAL.
pub const UNDEFINED_FILE: &str = "58P01";
/// There is no such slot or publication.
pub const UNDEFINED_OBJECT: &str = "42704";
/// A character of the database's encoding that has no UTF-8.
pub const UNTRANSLATABLE_CHARACTER: &str = "22P05";
/// The slot or the server is not in the state it must be in: `wal_level`, an invalidated slot.
pub const OBJECT_NOT_IN_PREREQUISITE_STATE: &str = "55000";

/// Whether the one statement is at fault, for the values it was given, and others go on.
pub fn concerns_the_statement(error: &Error) -> bool {
    sqlstate(error).is_some_and(|code| sqlstate::class(code) == Class::Statement)
}

/// The same of a login. A database that takes no connections for a while answers 55000, which passes.
fn login_error(attempted: impl Into<String>, server: ServerError) -> Error {
    if server.sqlstate == OBJECT_NOT_IN_PREREQUISITE_STATE {
        return Error::unavailable(attempted)
            .caused_by(server)
            .hint("if nobody else opens it again: ALTER DATABASE … ALLOW_CONNECTIONS true");
    }
    server_error(attempted, server)
}

/// Sorts what the server said by who must act, with what to try.
fn server_error(attempted: impl Into<String>, server: ServerError) -> Error {
    let (kind, hint) = (sqlstate::kind(&server.sqlstate), sqlstate::hint(&server.sqlstate));
    let error = Error::new(kind, attempted).caused_by(server);
    if hint.is_empty() { error } else { error.hint(hint) }
}
