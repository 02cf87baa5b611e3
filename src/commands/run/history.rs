//! The publish history's way into the database: rows in batches by COPY, off the delivery path.
//!
//! In: batches of rows as [`crate::flow::history`] made them. Out: rows in `rule_nats_publish_history`, each event once however
//! often it is written. What the table refuses is logged and counted, and holds up nothing.
//!
//! Rows of which all is known are copied straight into the partition of the day, which has no unique index: an event can have a row
//! already only if it was committed before this connection began to write, and up to which commit that is so the database says
//! once (`rule_nats_history_written`). Such rows, and those where something has to be looked up first or that the table refuses, go into
//! a temporary table, from which a function of sql/ moves them as far as they will go, each event once. Nobody else writes
//! meanwhile: a connection that the rows of a source were written by before is ended first ([`identity::hold_history`]).

use std::pin::pin;

use bytes::Bytes;
use futures_util::SinkExt;
use tokio_postgres::{Client, Statement};

use super::faults::{self, Point};
use crate::{
    config::Config,
    error::Result,
    flow::history::{Batch, COLUMNS},
    postgres::{
        sql::{self, Watched},
        sqlstate::{self, Class},
    },
    wal::lsn::Lsn,
};

/// How a stream of binary COPY begins: signature, flags, and no extension (manual, "COPY", Binary Format).
const HEADER: &[u8] = b"PGCOPY\n\xFF\r\n\0\0\0\0\0\0\0\0\0";
/// How it ends.
const TRAILER: &[u8] = b"\xFF\xFF";

/// What became of rows.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Written {
    /// Rows that the table did not take.
    pub lost: u64,
    /// Why, for the first of them.
    pub problem: Option<String>,
}

/// A connection to write by.
pub struct Writer {
    client: Watched,
    source: String,
    slot: String,
    /// Prepared when the first rows come.
    prepared: Option<Prepared>,
}

struct Prepared {
    /// Up to this commit events may have a row already.
    written: Option<Lsn>,
    begin: Statement,
    /// The copy into the table that the last rows went into, by its name.
    straight: Option<(String, Statement)>,
    aside: Statement,
    write: Statement,
}

/// How much of a batch is handed to the connection at once.
const CHUNK: usize = 64 << 10;

impl Writer {
    /// Over this connection, which [`identity::hold_history`] holds.
    ///
    /// [`identity::hold_history`]: crate::commands::identity::hold_history
    pub fn new(client: Watched, config: &Config) -> Writer {
        Writer { client, source: config.source.clone(), slot: config.slot.clone(), prepared: None }
    }

    /// The connection, for other work.
    pub fn client(&self) -> &Watched {
        &self.client
    }

    /// Writes the rows of all batches in one transaction. Rows that the table refuses are left out.
    ///
    /// # Errors
    /// Nothing was written.
    pub async fn write<'b>(&mut self, batches: impl Iterator<Item = &'b Batch> + Clone) -> Result<Written> {
        faults::pass(Point::HistoryUnwritten).await?;
        let Writer { client, source, slot, prepared } = self;
        let count: usize = batches.clone().map(Batch::len).sum();
        let failed = |error| sql::error(format!("write {count} rows into rule_nats_publish_history"), error);
        let writing = async {
            let prepared = match prepared.take() {
                Some(there) => prepared.insert(there),
                None => {
                    // Before anything of it is looked at or locked.
                    if let Some(problem) = make_partitions(client).await? {
                        tracing::warn!("rows of the history go into rule_nats_publish_history itself: {problem}");
                    }
                    prepared.insert(prepare(client, source, slot).await.map_err(failed)?)
                }
            };
            client.batch_execute("BEGIN").await.map_err(failed)?;
            let outcome = write(client, prepared, batches).await;
            // Also where it failed: a transaction left open would take the next batch with it.
            let ended = client.batch_execute(if outcome.is_ok() { "COMMIT" } else { "ROLLBACK" }).await;
            outcome.and_then(|written| ended.map(|()| written)).map_err(failed)
        };
        let written = client.answer(writing).await?;
        faults::pass(Point::HistoryWritten).await?;
        Ok(written)
    }
}

async fn prepare(client: &Client, source: &str, slot: &str) -> Result<Prepared, tokio_postgres::Error> {
    client.batch_execute("SELECT walhook.rule_nats_history_open()").await?;
    let asked = "SELECT walhook.rule_nats_history_written($1, $2)";
    let written: Option<String> = client.query_one(asked, &[&source, &slot]).await?.get(0);
    Ok(Prepared {
        written: written.and_then(|lsn| u64::from_str_radix(&lsn, 16).ok()).map(Lsn),
        begin: client.prepare("SELECT target, missing FROM walhook.rule_nats_history_begin($1)").await?,
        straight: None,
        aside: client.prepare(&copy_into("pg_temp.walhook_history")).await?,
        write: client.prepare("SELECT lost, problem FROM walhook.rule_nats_history_write()").await?,
    })
}

fn copy_into(table: &str) -> String {
    format!("COPY {table} ({}) FROM STDIN (FORMAT binary)", COLUMNS.join(", "))
}

/// In a transaction, which is still good for a COMMIT if this is.
async fn write<'b>(
    client: &Client,
    prepared: &mut Prepared,
    batches: impl Iterator<Item = &'b Batch> + Clone,
) -> Result<Written, tokio_postgres::Error> {
    let is_new = |batch: &Batch| batch.is_plain() && batch.first_commit() > prepared.written;
    if batches.clone().all(is_new) {
        match copy_straight(client, prepared, batches.clone()).await {
            Ok(true) => return Ok(Written::default()),
            Ok(false) => {}
            Err(error) if is_about_a_row(&error) => client.batch_execute("ROLLBACK; BEGIN").await?,
            Err(error) => return Err(error),
        }
    }
    match copy(client, &prepared.aside, batches.clone()).await {
        // A name with bytes that have no UTF-8, in a database that has no character for what stands for them.
        Err(error) if is_about_a_row(&error) => {
            client.batch_execute("ROLLBACK; BEGIN").await?;
            let rows: Vec<u8> = batches.flat_map(|batch| storable(batch.bytes())).collect();
            copy_bytes(client, &prepared.aside, std::iter::once(rows.as_slice())).await?;
        }
        outcome => outcome?,
    }
    let row = client.query_one(&prepared.write, &[]).await?;
    Ok(Written { lost: u64::try_from(row.get::<_, i64>(0)).unwrap_or(0), problem: row.get(1) })
}

/// Copies the rows into the partition of the day, unless one of their webhooks does not exist any more.
async fn copy_straight<'b>(
    client: &Client,
    prepared: &mut Prepared,
    batches: impl Iterator<Item = &'b Batch> + Clone,
) -> Result<bool, tokio_postgres::Error> {
    let mut webhooks: Vec<i32> = batches.clone().flat_map(Batch::webhooks).copied().collect();
    webhooks.sort_unstable();
    webhooks.dedup();
    let row = client.query_one(&prepared.begin, &[&webhooks]).await?;
    let (target, missing): (String, Vec<i32>) = (row.get(0), row.get(1));
    if !missing.is_empty() {
        return Ok(false);
    }
    if prepared.straight.as_ref().is_none_or(|(table, _)| *table != target) {
        let statement = client.prepare(&copy_into(&target)).await?;
        prepared.straight = Some((target, statement));
    }
    let (_, statement) = prepared.straight.as_ref().expect("just prepared");
    copy(client, statement, batches).await?;
    Ok(true)
}

/// The same rows with `?` for each byte that is no part of UTF-8, and for each byte of U+FFFD, which stands for such bytes in names.
fn storable(rows: &[u8]) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::with_capacity(rows.len()), rows);
    while let Some((columns, following)) = rest.split_first_chunk::<2>() {
        out.extend_from_slice(columns);
        rest = following;
        for name in COLUMNS {
            let Some((length, following)) = rest.split_first_chunk::<4>() else { return rows.to_vec() };
            // -1: NULL.
            let bytes = usize::try_from(i32::from_be_bytes(*length)).unwrap_or(0);
            let Some((value, following)) = following.split_at_checked(bytes) else { return rows.to_vec() };
            out.extend_from_slice(length);
            rest = following;
            if !TEXTS.contains(&name) {
                out.extend_from_slice(value);
                continue;
            }
            for chunk in value.utf8_chunks() {
                out.extend_from_slice(chunk.valid().replace('\u{FFFD}', "???").as_bytes());
                out.extend(chunk.invalid().iter().map(|_| b'?'));
            }
        }
    }
    out
}

/// Those of [`COLUMNS`] that are text or JSON.
const TEXTS: [&str; 8] =
    ["event_id", "subject", "headers", "message_id", "triggered_by", "stream_name", "payload", "error_message"];

/// Whether one of the rows is the cause: a value that cannot be stored, an event that is there already, a webhook that is not,
/// an exception that a trigger raised.
fn is_about_a_row(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|state| sqlstate::class(state.code()) == Class::Statement)
}

async fn copy<'b>(
    client: &Client,
    statement: &Statement,
    batches: impl Iterator<Item = &'b Batch>,
) -> Result<(), tokio_postgres::Error> {
    copy_bytes(client, statement, batches.map(Batch::bytes)).await
}

async fn copy_bytes<'b>(
    client: &Client,
    statement: &Statement,
    batches: impl Iterator<Item = &'b [u8]>,
) -> Result<(), tokio_postgres::Error> {
    let mut sink = pin!(client.copy_in::<_, Bytes>(statement).await?);
    sink.feed(Bytes::from_static(HEADER)).await?;
    for batch in batches {
        for chunk in batch.chunks(CHUNK) {
            sink.feed(Bytes::copy_from_slice(chunk)).await?;
        }
    }
    sink.feed(Bytes::from_static(TRAILER)).await?;
    sink.finish().await.map(drop)
}

/// Makes the partitions of today and tomorrow if they are missing, so that no row waits for one; why not, where that fails.
///
/// # Errors
/// PostgreSQL cannot be asked.
pub async fn make_partitions(client: &Client) -> Result<Option<String>> {
    let statement = "SELECT pg_catalog.min(m.problem) FROM (VALUES (0), (1)) days (ahead), \
                     LATERAL walhook.rule_nats_history_make(pg_catalog.now() + pg_catalog.make_interval(days => days.ahead)) m";
    let made = client.query_one(statement, &[]).await;
    Ok(made.map_err(|error| sql::error("make the next partitions of rule_nats_publish_history", error))?.get(0))
}

/// Drops partitions that have expired; why not, for the first that cannot be dropped.
///
/// # Errors
/// PostgreSQL cannot be asked.
pub async fn retire_partitions(client: &Client) -> Result<Option<String>> {
    let rows = client.query("SELECT partition, problem FROM public.rule_nats_history_retire()", &[]).await;
    let rows = rows.map_err(|error| sql::error("drop expired partitions of rule_nats_publish_history", error))?;
    for dropped in rows.iter().filter_map(|row| row.get::<_, Option<&str>>(0)) {
        tracing::info!(partition = dropped, "dropped a partition of the history: all its rows had expired");
    }
    Ok(rows.iter().find_map(|row| row.get(1)))
}

/// Deletes rows that have expired from what is in no partition, at most `most` of them; returns how many.
///
/// # Errors
/// PostgreSQL refuses it.
pub async fn expire(client: &Client, most: i64) -> Result<u64> {
    client
        .execute(
            "DELETE FROM ONLY public.rule_nats_publish_history WHERE publish_id IN (\
                 SELECT h.publish_id FROM ONLY public.rule_nats_publish_history h \
                 WHERE h.expires_at < now() ORDER BY h.expires_at LIMIT $1)",
            &[&most],
        )
        .await
        .map_err(|error| sql::error("trim rule_nats_publish_history", error))
}
