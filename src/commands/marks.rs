//! Marks by which walhook's sessions find each other in PostgreSQL, so that two of them do not do the same work.
//!
//! In: a connection. Out: its mark is set, or the sessions that have that mark. A mark is the session's `application_name`.
//! Anybody may give a session that name, or take an advisory lock; so only sessions of roles that may do walhook's work count
//! ([`MAY_WRITE`], [`MAY_SET_UP`]). A role that may only connect can neither hold walhook up nor have it end a session.

use tokio_postgres::Client;

use crate::{
    error::Result,
    postgres::{self, sql},
    wal::name::readable,
};

/// Roles that may write walhook's own tables: only their sessions can be a run or a replay.
const MAY_WRITE: &str = "pg_catalog.has_table_privilege(r.oid, 'public.rule_nats_checkpoints', 'UPDATE')";
/// Roles that may make publications: only their sessions can be a setup.
const MAY_SET_UP: &str = "pg_catalog.has_database_privilege(r.oid, pg_catalog.current_database(), 'CREATE')";

/// A name of a session has at most 63 bytes; a longer one would be cut, and two sources could have the same.
const MARK: &str = "CASE WHEN pg_catalog.length($1::pg_catalog.text) <= 63 THEN $1 \
                    ELSE 'walhook ' || pg_catalog.to_hex(pg_catalog.hashtextextended($1, 0)) END";

/// What a session does.
#[derive(Debug, Clone, Copy)]
pub enum Mark<'s> {
    /// It writes for the run of a source.
    Run(&'s str),
    /// It writes the history of a source, for its run.
    History(&'s str),
    /// It replays the events of a source.
    Replay(&'s str),
    /// It sets the database up.
    Setup,
    /// It waits until another one has set the database up.
    SetupWaits,
}

impl Mark<'_> {
    fn text(self) -> String {
        match self {
            Mark::Run(source) => format!("walhook run of {source}"),
            Mark::History(source) => format!("walhook history of {source}"),
            Mark::Replay(source) => format!("walhook replay of {source}"),
            Mark::Setup => "walhook setup".to_owned(),
            Mark::SetupWaits => "walhook setup (waiting)".to_owned(),
        }
    }

    fn privilege(self) -> &'static str {
        match self {
            Mark::Run(_) | Mark::History(_) | Mark::Replay(_) => MAY_WRITE,
            Mark::Setup | Mark::SetupWaits => MAY_SET_UP,
        }
    }
}

/// Another session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Its process.
    pub process: i32,
    /// Who has logged in.
    pub role: String,
}

/// Gives the session a mark, in place of one that it has.
///
/// # Errors
/// The connection is lost.
pub async fn set(client: &Client, mark: Mark<'_>) -> Result<()> {
    let statement = format!("SELECT pg_catalog.set_config('application_name', {MARK}, false)");
    let done = client.query_one(&statement, &[&mark.text()]).await;
    done.map(drop).map_err(|error| sql::error("mark the session", error))
}

/// The other sessions of this database that have a mark.
///
/// # Errors
/// PostgreSQL cannot be asked.
pub async fn others(client: &Client, mark: Mark<'_>) -> Result<Vec<Session>> {
    let statement = format!(
        "SELECT a.pid, {} FROM pg_catalog.pg_stat_activity a \
         WHERE a.application_name = {MARK} AND a.pid <> pg_catalog.pg_backend_pid() \
           AND a.datname = pg_catalog.current_database() \
           AND EXISTS (SELECT FROM pg_catalog.pg_roles r \
                       WHERE pg_catalog.pg_has_role(a.usesysid, r.oid, 'MEMBER') AND {}) \
         ORDER BY a.pid",
        sql::name_bytes("a.usename"),
        mark.privilege()
    );
    let rows = client
        .query(&statement, &[&mark.text()])
        .await
        .map_err(|error| sql::error("look for other sessions of walhook", error))?;
    Ok(rows.iter().map(|row| Session { process: row.get(0), role: readable(row.get(1)).into_owned() }).collect())
}

/// Ends another session. Returns whether it is gone.
///
/// # Errors
/// This role may not end it, or PostgreSQL cannot be asked.
pub async fn end(client: &Client, session: &Session) -> Result<bool> {
    let attempted = "end a connection of the run before";
    let ended = client.query_one("SELECT pg_catalog.pg_terminate_backend($1, 5000)", &[&session.process]).await;
    let error = match ended.map_err(|error| sql::error(attempted, error)) {
        Ok(row) if row.get(0) => return Ok(true),
        Ok(_) => None,
        Err(error) if postgres::sqlstate(&error) == Some("42501") => Some(error),
        Err(error) => return Err(error),
    };
    // One that ended by itself meanwhile is gone as well.
    let row = client
        .query_one("SELECT EXISTS (SELECT FROM pg_catalog.pg_stat_activity WHERE pid = $1)", &[&session.process])
        .await
        .map_err(|error| sql::error("look for a connection of the run before", error))?;
    match (row.get(0), error) {
        (false, _) => Ok(true),
        (true, None) => Ok(false),
        (true, Some(error)) => Err(error),
    }
}
