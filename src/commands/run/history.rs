//! The publish history's way into the database: rows in batches by COPY, off the delivery path.
//!
//! In: batches of rows as [`crate::flow::history`] made them. Out: rows in `rule_nats_publish_history`, each event once however
//! often it is written: the table knows the event's id. What the table refuses is told and counted, and holds up nothing.
//!
//! Rows of which all is known are copied straight into the table. Where one of them is there already, where the table refuses one,
//! and where something has to be looked up first, they go into a temporary table, from which a function of sql/ moves them one
//! by one as far as they will go.

use std::pin::pin;

use bytes::Bytes;
use futures_util::SinkExt;
use tokio_postgres::{Client, Statement};

use super::faults::{self, Point};
use crate::{
    error::Result,
    flow::history::{Batch, COLUMNS},
    postgres::{
        sql::{self, Watched},
        sqlstate::{self, Class},
    },
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
    /// Prepared when the first rows come.
    statements: Option<Statements>,
}

struct Statements {
    straight: Statement,
    aside: Statement,
    write: Statement,
}

/// How much of a batch is handed to the connection at once.
const CHUNK: usize = 64 << 10;

impl Writer {
    /// Over this connection.
    pub fn new(client: Watched) -> Writer {
        Writer { client, statements: None }
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
        let Writer { client, statements } = self;
        let written = client.answer(write(client, statements, batches)).await?;
        faults::pass(Point::HistoryWritten).await?;
        Ok(written)
    }
}

async fn write<'b>(
    client: &Client,
    kept: &mut Option<Statements>,
    batches: impl Iterator<Item = &'b Batch> + Clone,
) -> Result<Written> {
    let count: usize = batches.clone().map(Batch::len).sum();
    let failed = |error| sql::error(format!("write {count} rows into rule_nats_publish_history"), error);
    let statements = match kept.take() {
        Some(statements) => statements,
        None => prepare(client).await.map_err(failed)?,
    };
    let statements = kept.insert(statements);
    if batches.clone().all(Batch::is_plain) {
        match copy(client, &statements.straight, batches.clone()).await {
            Ok(()) => return Ok(Written::default()),
            Err(error) if is_about_a_row(&error) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    client.batch_execute("BEGIN").await.map_err(failed)?;
    let outcome = move_over(client, statements, batches).await;
    // Also where it failed: a transaction left open would take the next batch with it.
    let ended = client.batch_execute(if outcome.is_ok() { "COMMIT" } else { "ROLLBACK" }).await;
    outcome.and_then(|written| ended.map(|()| written)).map_err(failed)
}

async fn prepare(client: &Client) -> Result<Statements, tokio_postgres::Error> {
    client.batch_execute("SELECT public.rule_nats_history_open()").await?;
    let columns = COLUMNS.join(", ");
    let copy = |table: &str| format!("COPY {table} ({columns}) FROM STDIN (FORMAT binary)");
    Ok(Statements {
        straight: client.prepare(&copy("public.rule_nats_publish_history")).await?,
        aside: client.prepare(&copy("pg_temp.walhook_history")).await?,
        write: client.prepare("SELECT lost, problem FROM public.rule_nats_history_write()").await?,
    })
}

/// Whether one of the rows is the cause: a value that cannot be stored, an event that is there already, a webhook that is not,
/// an exception that a trigger raised.
fn is_about_a_row(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|state| sqlstate::class(state.code()) == Class::Statement)
}

async fn move_over<'b>(
    client: &Client,
    statements: &Statements,
    batches: impl Iterator<Item = &'b Batch>,
) -> Result<Written, tokio_postgres::Error> {
    copy(client, &statements.aside, batches).await?;
    let row = client.query_one(&statements.write, &[]).await?;
    Ok(Written { lost: u64::try_from(row.get::<_, i64>(0)).unwrap_or(0), problem: row.get(1) })
}

async fn copy<'b>(
    client: &Client,
    statement: &Statement,
    batches: impl Iterator<Item = &'b Batch>,
) -> Result<(), tokio_postgres::Error> {
    let mut sink = pin!(client.copy_in::<_, Bytes>(statement).await?);
    sink.feed(Bytes::from_static(HEADER)).await?;
    for batch in batches {
        for chunk in batch.bytes().chunks(CHUNK) {
            sink.feed(Bytes::copy_from_slice(chunk)).await?;
        }
    }
    sink.feed(Bytes::from_static(TRAILER)).await?;
    sink.finish().await.map(drop)
}

/// Deletes rows that have expired, at most `most` of them; returns how many.
pub async fn expire(client: &Client, most: i64) -> Result<u64> {
    client
        .execute(
            "DELETE FROM public.rule_nats_publish_history WHERE publish_id IN (\
                 SELECT h.publish_id FROM public.rule_nats_publish_history h \
                 WHERE h.expires_at < now() ORDER BY h.expires_at LIMIT $1)",
            &[&most],
        )
        .await
        .map_err(|error| sql::error("trim rule_nats_publish_history", error))
}
