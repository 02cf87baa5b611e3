//! One name for one thing that is broken, wherever it shows: the log's field `finding`, `walhook_problems` in the metrics, the status
//! page, `walhook status --check` and `walhook check`.
//!
//! In: errors, and the database. Out: a name of the table in [`super::check::codes`]. Where an error has a name of its own
//! ([`Error::name`]) it stays.

use std::time::Duration;

use tokio_postgres::Client;

use super::check::finding::{Finding, How, Severity};
use crate::{
    config::Config,
    error::{Error, Kind, Result},
    postgres::{self, OBJECT_IN_USE, sql},
};

/// How soon a break shows everywhere, by the intervals at which walhook looks: each module that looks compares its own with this.
pub const SHOWS_WITHIN: Duration = Duration::from_secs(15);

/// Who holds a lock on the history that keeps rows out, where somebody waits for it.
const BLOCKED: &str = "SELECT pg_catalog.min(held.pid), pg_catalog.string_agg(DISTINCT held.mode, ', ') \
    FROM pg_catalog.pg_locks held \
    WHERE held.granted \
      AND (held.relation = pg_catalog.to_regclass('public.rule_nats_publish_history') \
           OR held.relation IN (SELECT i.inhrelid FROM pg_catalog.pg_inherits i \
                                WHERE i.inhparent = pg_catalog.to_regclass('public.rule_nats_publish_history'))) \
      AND held.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()) \
      AND held.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock') \
      AND EXISTS (SELECT FROM pg_catalog.pg_locks waits WHERE NOT waits.granted AND waits.relation = held.relation \
                                                          AND waits.database = held.database)";

/// Dead letters; who holds the slot, and whether a walhook has said lately that it does.
const LIVE: &str = "SELECT (SELECT count(*) FROM public.rule_nats_dead_letters WHERE status = 'dead'), \
        (SELECT active_pid FROM pg_catalog.pg_replication_slots WHERE slot_name = $1), \
        EXISTS (SELECT FROM public.rule_cdc_status \
                WHERE source = $2 AND heartbeat_at > pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => 3 * heartbeat_seconds))";

/// The name for why PostgreSQL cannot be used.
pub fn of_postgres(error: &Error) -> &'static str {
    let otherwise = match (error.kind(), postgres::sqlstate(error)) {
        (_, Some(OBJECT_IN_USE)) => "slot_held",
        (Kind::Permission, _) | (_, Some("42501")) => "privileges",
        _ => "postgres_connection",
    };
    error.name().unwrap_or(otherwise)
}

/// An error that ends `walhook run`, with a name where its kind gives one.
pub fn name_of_end(error: Error) -> Error {
    let by_kind = match (error.kind(), postgres::sqlstate(&error)) {
        (Kind::Permission, Some(_)) => Some("privileges"),
        _ => None,
    };
    let name = error.name().or(by_kind);
    error.named(name)
}

/// The process that keeps rows out of the history by a lock, and its lock.
///
/// # Errors
/// PostgreSQL cannot be asked.
pub async fn history_blocked(client: &Client) -> Result<Option<(i32, String)>> {
    let asked = client.query_one(BLOCKED, &[]).await;
    let row = asked.map_err(|error| sql::error("see whether the history is locked", error))?;
    Ok(row.get::<_, Option<i32>>(0).zip(row.get(1)))
}

/// The same for a person.
pub fn history_blocked_text((pid, mode): &(i32, String)) -> String {
    format!(
        "process {pid} holds a lock ({mode}) on rule_nats_publish_history, and rows of the history wait for it: what they \
         record is published, and not confirmed"
    )
}

/// What `walhook check` says of what shows while walhook runs.
///
/// # Errors
/// PostgreSQL cannot be asked.
pub async fn findings(client: &Client, config: &Config) -> Result<Vec<Finding>> {
    let asked = client.query_one(LIVE, &[&config.slot, &config.source]).await;
    let row = asked.map_err(|error| sql::error("read dead letters, and who holds the slot", error))?;
    let (dead, holder, beats): (i64, Option<i32>, bool) = (row.get(0), row.get(1), row.get(2));
    let mut findings = Vec::new();
    if dead > 0 {
        let text = format!("dead letters that wait to be retried or dropped: {dead}");
        let finding = Finding::new("dead_letters", Severity::Warning, "rule_nats_dead_letters", text);
        findings.push(finding.remedy(How::Shell, "walhook dead-letters list"));
    }
    if let Some(pid) = holder.filter(|_| !beats) {
        let text = format!(
            "slot {:?} is held by process {pid}, and no walhook of source {:?} has said lately that it streams",
            config.slot, config.source
        );
        let finding = Finding::new("slot_held", Severity::Warning, format!("replication slot {:?}", config.slot), text);
        findings.push(finding.remedy(How::Sql, format!("SELECT pg_catalog.pg_terminate_backend({pid});")));
    }
    if let Some(blocked) = history_blocked(client).await? {
        let text = history_blocked_text(&blocked);
        let finding = Finding::new("history_blocked", Severity::Error, "rule_nats_publish_history", text);
        findings.push(finding.remedy(How::Sql, format!("SELECT pg_catalog.pg_terminate_backend({});", blocked.0)));
    }
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use crate::{commands::check::codes, http::snapshot::LIVE, nats};

    #[test]
    fn every_name_that_anything_is_called_by_is_in_the_one_table() {
        let of_jetstream = nats::codes::CODES.iter().filter_map(|row| nats::codes::finding(row.code));
        let live = LIVE.iter().map(|(name, _)| *name);
        let of_postgres =
            ["slot_held", "privileges", "postgres_connection", "standby", "stream_lost", "not_streaming", "slot_lag"];
        for name in of_jetstream.chain(live).chain(of_postgres) {
            assert!(codes::of(name).is_some(), "{name} is not in commands/check/codes.rs");
        }
    }
}
