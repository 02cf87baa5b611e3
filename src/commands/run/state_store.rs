//! What a run reads from and writes into the database by ordinary SQL: the configuration at the start, the epoch,
//! checkpoints, dead letters.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::SinkExt;
use tokio_postgres::{Client, GenericClient};

use super::faults::{self, Point};
use crate::{
    commands::rows::{check_kept, missing_table},
    commands::schema,
    error::{Error, Result},
    flow::{
        driver::trust::{Checkpoint, Fork},
        event_id::EventPosition,
        streamer::DeadLetter,
    },
    log,
    postgres::{UNTRANSLATABLE_CHARACTER, settings::Settings, sql},
    route::{
        emitted::EmitKeys,
        types::{TypeCatalog, TypeKind},
    },
    wal::{lsn::Lsn, snapshot::Snapshot},
};

/// Where the slot stands.
pub async fn confirmed(client: &Client, slot: &str) -> Result<Lsn> {
    let row = client
        .query_one(
            "SELECT COALESCE(confirmed_flush_lsn, '0/0')::text FROM pg_catalog.pg_replication_slots \
             WHERE slot_name::text = $1",
            &[&slot],
        )
        .await
        .map_err(|error| sql::error(format!("read where slot {slot:?} stands"), error))?;
    let text: &str = row.get(0);
    text.parse().map_err(|error| Error::protocol(format!("read where slot {slot:?} stands")).caused_by(error))
}

/// The keys by which messages of `rule_webhook_emit` are recognized.
///
/// # Errors
/// The table is missing or may not be read.
pub async fn emit_keys(client: &impl GenericClient) -> Result<EmitKeys> {
    let attempted = "read the keys of rule_webhook_emit in rule_cdc_emit_keys";
    let rows = client
        .query("SELECT key_id, inner_key, retired_lsn::text FROM public.rule_cdc_emit_keys", &[])
        .await
        .map_err(|error| missing_table(sql::error(attempted, error)))?;
    let mut keys = EmitKeys::default();
    for row in &rows {
        let retired = row.get::<_, Option<&str>>(2).map(str::parse).transpose();
        let retired = retired.map_err(|error| Error::protocol(attempted).caused_by(error))?;
        keys.put(row.get(0), row.get(1), retired);
    }
    Ok(keys)
}

/// How far the slot is behind what the server has written, in bytes; `None` where it is gone.
pub async fn lag(client: &Client, slot: &str) -> Result<Option<i64>> {
    let row = client
        .query_opt("SELECT lag_bytes::bigint FROM public.rule_cdc_slots WHERE slot_name::text = $1", &[&slot])
        .await
        .map_err(|error| sql::error(format!("read how far slot {slot:?} is behind"), error))?;
    Ok(row.and_then(|row| row.get(0)))
}

/// How far epochs jump where PostgreSQL has changed its timeline: further than anybody raises them on the one that was left.
const LEAP: i64 = 1_000_000;

/// What a run is told of those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Epoch {
    /// The run's own.
    pub epoch: u64,
    /// PostgreSQL has changed its timeline since the first run.
    pub fork: Option<Fork>,
}

/// What [`raise_epoch`] would make of it, read and not written.
pub async fn next_epoch(client: &Client, source: &str, timeline: u32, left: &[(u32, Lsn)]) -> Result<Epoch> {
    let failed = |error| missing_table(sql::error("read the epoch in rule_nats_checkpoints", error));
    let query = "SELECT epoch, timeline, commit_lsn::text, sequence FROM public.rule_nats_checkpoints \
                 WHERE source = $1 AND config_name = '' AND stream_name = ''";
    let Some(row) = client.query_opt(query, &[&source]).await.map_err(failed)? else {
        return Ok(Epoch { epoch: 1, fork: None });
    };
    let last = unsigned(source, row.get(0))?;
    if let Some(at) = fork_since(row.get(1), i32::try_from(timeline).unwrap_or(i32::MAX), left) {
        let first_epoch = last.saturating_add(LEAP.unsigned_abs());
        return Ok(Epoch { epoch: first_epoch, fork: Some(Fork { at, first_epoch }) });
    }
    Ok(Epoch { epoch: last + 1, fork: fork(source, row.get(2), row.get(3))? })
}

/// Where a timeline was left first since the last run, which was on timeline `before`.
fn fork_since(before: Option<i32>, timeline: i32, left: &[(u32, Lsn)]) -> Option<Lsn> {
    let is_since =
        |parent: u32| before.is_some_and(|before| before < timeline && i64::from(before) <= i64::from(parent));
    left.iter().find(|(parent, _)| is_since(*parent)).map(|(_, at)| *at)
}

fn unsigned(source: &str, number: i64) -> Result<u64> {
    u64::try_from(number).map_err(|_| Error::config(format!("the epoch of source {source:?} is negative: {number}")))
}

/// The fork that the row of epochs notes.
fn fork(source: &str, at: Option<&str>, first: Option<i64>) -> Result<Option<Fork>> {
    let (Some(at), Some(first)) = (at, first) else { return Ok(None) };
    let at = at.parse().map_err(|error| Error::protocol("read rule_nats_checkpoints").caused_by(error))?;
    Ok(Some(Fork { at, first_epoch: unsigned(source, first)? }))
}

/// Raises the epoch: from here on the run is the newest. `left`: where earlier timelines than `timeline` were left.
pub async fn raise_epoch(client: &Client, source: &str, timeline: u32, left: &[(u32, Lsn)]) -> Result<Epoch> {
    let failed = |error| missing_table(sql::error("raise the epoch in rule_nats_checkpoints", error));
    let timeline = i32::try_from(timeline).unwrap_or(i32::MAX);
    let before = "SELECT timeline FROM public.rule_nats_checkpoints \
                  WHERE source = $1 AND config_name = '' AND stream_name = ''";
    // Nobody else writes it: the slot is ours.
    let before: Option<i32> = client.query_opt(before, &[&source]).await.map_err(failed)?.and_then(|row| row.get(0));
    let fork_at = fork_since(before, timeline, left).map(|at| at.to_string());
    let row = client
        .query_one(
            "INSERT INTO public.rule_nats_checkpoints AS c \
                 (source, config_name, stream_name, epoch, timeline, updated_at) \
             VALUES ($1, '', '', 1, $2, now()) \
             ON CONFLICT (source, config_name, stream_name, servers) \
             DO UPDATE SET epoch = c.epoch + CASE WHEN $3::text IS NULL THEN 1 ELSE $4::bigint END, \
                 commit_lsn = coalesce($3::text::pg_lsn, c.commit_lsn), \
                 sequence = CASE WHEN $3::text IS NULL THEN c.sequence ELSE c.epoch + $4::bigint END, \
                 timeline = excluded.timeline, updated_at = now() \
             RETURNING epoch, commit_lsn::text, sequence",
            &[&source, &timeline, &fork_at, &LEAP],
        )
        .await
        .map_err(failed)?;
    Ok(Epoch { epoch: unsigned(source, row.get(0))?, fork: fork(source, row.get(1), row.get(2))? })
}

/// How long a transaction that has been decoded may be invisible still: it is decoded once its commit is on the disk, and seen once
/// its synchronous standbys have it too.
const INVISIBLE: Duration = Duration::from_secs(10);

/// The types alone, read again because a table has newer ones: as transaction `shown` has left them.
pub async fn types(client: &Client, shown: Option<u32>) -> Result<TypeCatalog> {
    let attempted = "read the catalog of types";
    let until = tokio::time::Instant::now() + INVISIBLE;
    while let Some(xid) = shown {
        let row = client.query_one("SELECT pg_catalog.pg_current_snapshot()::text", &[]).await;
        let row = row.map_err(|error| sql::error(attempted, error))?;
        let snapshot: Snapshot =
            row.get::<_, &str>(0).parse().map_err(|error: String| Error::protocol(attempted).caused_by(error))?;
        if snapshot.shows(xid) || tokio::time::Instant::now() >= until {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    read_types(client).await
}

/// The types, as `client` sees them.
pub async fn read_types(client: &impl GenericClient) -> Result<TypeCatalog> {
    let (rows, encoding) =
        tokio::try_join!(client.query(TypeCatalog::QUERY, &[]), client.query_one(TypeCatalog::QUERY_ENCODING, &[]))
            .map_err(|error| sql::error("read the catalog of types", error))?;
    let mut types = TypeCatalog::new();
    for row in rows {
        types.insert(row.get(0), TypeKind::from_row(row.get(1), row.get(2), row.get(3)));
    }
    types.has_raw_bytes = encoding.get(0);
    Ok(types)
}

/// Writes dead letters; one that is there already (this run follows one that was killed) stays as it is.
pub async fn write_dead_letters(client: &Client, letters: &[DeadLetter]) -> Result<()> {
    faults::pass(Point::Unburied).await?;
    let attempted = || format!("write {} dead letters into rule_nats_dead_letters", letters.len());
    let statement = client
        .prepare(
            "INSERT INTO public.rule_nats_dead_letters \
                 (event_id, webhook_id, webhook_name, subject, headers, payload, reason, commit_lsn) \
             VALUES ($1, $2, $3, $4, $5::text::jsonb, $6, $7, $8::text::pg_lsn) ON CONFLICT (event_id) DO NOTHING",
        )
        .await
        .map_err(|error| missing_table(sql::error(attempted(), error)))?;
    let event_ids: Vec<&str> = letters.iter().map(|letter| letter.event_id.as_str()).collect();
    // Sent one behind the other without waiting; each is its own transaction, so a crash loses none that was settled.
    let (large, letters): (Vec<_>, Vec<_>) = letters.iter().partition(|letter| letter.payload.len() > LARGE);
    for letter in large {
        let written = match write_large_dead_letter(client, letter).await {
            Err(error) if has_no_character(&error) => write_large_dead_letter(client, &storable(letter)).await,
            outcome => outcome,
        };
        written.map_err(|error| sql::error(attempted(), error))?;
    }
    let writes = letters.iter().map(|letter| {
        let (statement, lsn) = (&statement, letter.commit_lsn.to_string());
        async move {
            let write = async |letter: &DeadLetter| {
                let DeadLetter { event_id, webhook_id, webhook_name, subject, headers, payload, reason, .. } = letter;
                let payload = payload.as_ref();
                client
                    .execute(statement, &[event_id, webhook_id, webhook_name, subject, headers, &payload, reason, &lsn])
                    .await
                    .map(drop)
            };
            match write(letter).await {
                Err(error) if has_no_character(&error) => write(&storable(letter)).await,
                outcome => outcome,
            }
        }
    });
    futures_util::future::try_join_all(writes).await.map_err(|error| sql::error(attempted(), error))?;
    check_kept(client, &event_ids).await.map_err(|error| error.context(attempted()))?;
    faults::pass(Point::Buried).await
}

/// Whether the database's encoding lacks a character of a text: of U+FFFD, which stands for bytes that have no UTF-8.
fn has_no_character(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|state| state.code() == UNTRANSLATABLE_CHARACTER)
}

/// The same dead letter with `?` for U+FFFD.
fn storable(letter: &DeadLetter) -> DeadLetter {
    let text = |text: &str| text.replace('\u{FFFD}', "?");
    let mut letter = letter.clone();
    letter.webhook_name = letter.webhook_name.as_deref().map(text);
    letter.subject = text(&letter.subject);
    letter.headers = text(&letter.headers);
    letter.reason = text(&letter.reason);
    letter
}

/// A payload beyond this goes to the database in pieces: as a parameter it would be copied twice.
const LARGE: usize = 1 << 20;
const PIECE: usize = 256 * 1024;

/// The same for one with a large payload, by COPY.
async fn write_large_dead_letter(client: &Client, letter: &DeadLetter) -> Result<(), tokio_postgres::Error> {
    let is_there = "SELECT FROM public.rule_nats_dead_letters WHERE event_id = $1";
    if client.query_opt(is_there, &[&letter.event_id]).await?.is_some() {
        return Ok(());
    }
    let copy = "COPY public.rule_nats_dead_letters \
                    (event_id, webhook_id, webhook_name, subject, headers, reason, commit_lsn, payload) \
                FROM STDIN (FORMAT binary)";
    let sink = client.copy_in::<_, Bytes>(copy).await?;
    let mut sink = std::pin::pin!(sink);
    // "COPY", "Binary Format": a signature, flags and no extension; then the number of columns, and each with its length.
    let mut head = BytesMut::new();
    head.extend_from_slice(b"PGCOPY\n\xff\r\n\0");
    head.put_slice(&[0; 8]);
    head.put_i16(8);
    let length = |bytes: &[u8]| i32::try_from(bytes.len()).expect("PostgreSQL's values end at 1 GiB");
    let mut put = |value: Option<&[u8]>| match value {
        None => head.put_i32(-1),
        Some(bytes) => {
            head.put_i32(length(bytes));
            head.put_slice(bytes);
        }
    };
    let jsonb = [b"\x01", letter.headers.as_bytes()].concat();
    put(Some(letter.event_id.as_bytes()));
    put(Some(&letter.webhook_id.to_be_bytes()));
    put(letter.webhook_name.as_deref().map(str::as_bytes));
    put(Some(letter.subject.as_bytes()));
    put(Some(&jsonb));
    put(Some(letter.reason.as_bytes()));
    put(Some(&letter.commit_lsn.0.to_be_bytes()));
    head.put_i32(length(&letter.payload));
    sink.send(head.freeze()).await?;
    let mut rest = letter.payload.clone();
    while !rest.is_empty() {
        sink.send(rest.split_to(rest.len().min(PIECE))).await?;
    }
    sink.send(Bytes::from_static(&[0xff, 0xff])).await?;
    sink.finish().await.map(drop)
}

/// Where the streams of `source` stood when an earlier run last looked.
///
/// # Errors
/// [`crate::error::Kind::Untrusted`] where they were written on another PostgreSQL than `system_identifier`: its WAL
/// positions say nothing here.
pub async fn checkpoints(client: &Client, source: &str, system_identifier: &str) -> Result<Vec<Checkpoint>> {
    let attempted = "read rule_nats_checkpoints";
    let rows = client
        .query(
            "SELECT config_name, stream_name, (extract(epoch FROM stream_created) * 1000000)::bigint, \
                    commit_lsn::text, commit_time, ordinal, webhook_id, sequence, system_identifier, kept_sequence, servers \
             FROM public.rule_nats_checkpoints \
             WHERE source = $1 AND commit_lsn IS NOT NULL AND commit_time IS NOT NULL AND ordinal IS NOT NULL \
               AND webhook_id IS NOT NULL AND sequence IS NOT NULL AND stream_created IS NOT NULL",
            &[&source],
        )
        .await
        .map_err(|error| missing_table(sql::error(attempted, error)))?;
    let checkpoint = |row: &tokio_postgres::Row| {
        let other: Option<&str> = row.get(8);
        if other.is_some_and(|other| other != system_identifier) {
            return Err(Error::untrusted(format!(
                "go on with source {source:?}: its checkpoints are of another PostgreSQL (system {}), this is system \
                 {system_identifier}",
                other.unwrap_or_default()
            ))
            .hint(
                "if this is the same database, moved by pg_upgrade or a dump, and the original no longer runs: `walhook adopt --same`, \
                 which puts those checkpoints aside and keeps the count of runs; if it is a copy: `walhook adopt`",
            ));
        }
        let commit_lsn = row.get::<_, &str>(3);
        Ok(Checkpoint {
            config_name: row.get(0),
            stream: row.get(1),
            created_ns: row.get::<_, i64>(2).saturating_mul(1000),
            position: EventPosition {
                commit_lsn: commit_lsn.parse().map_err(|error| Error::protocol(attempted).caused_by(error))?,
                commit_time: row.get(4),
                ordinal: row.get::<_, i64>(5).cast_unsigned(),
                webhook_id: row.get(6),
            },
            sequence: row.get::<_, i64>(7).cast_unsigned(),
            retained_through: row.get::<_, Option<i64>>(9).map(i64::cast_unsigned),
            servers: row.get(10),
        })
    };
    rows.iter().map(checkpoint).collect()
}

/// Writes checkpoints.
pub async fn checkpoint(
    client: &Client,
    source: &str,
    epoch: u64,
    system_identifier: &str,
    timeline: u32,
    checkpoints: &[Checkpoint],
) -> Result<()> {
    faults::pass(Point::Checkpoint).await?;
    for checkpoint in checkpoints {
        let Checkpoint { config_name, stream, servers, created_ns, position, sequence, retained_through } = checkpoint;
        let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        // Version 0.1 did not write the servers.
        client
            .execute(
                "UPDATE public.rule_nats_checkpoints c SET servers = $4 \
                 WHERE c.source = $1 AND c.config_name = $2 AND c.stream_name = $3 AND c.servers = '' AND $4 <> '' \
                   AND NOT EXISTS (SELECT FROM public.rule_nats_checkpoints n \
                                   WHERE n.source = $1 AND n.config_name = $2 AND n.stream_name = $3 AND n.servers = $4)",
                &[&source, config_name, stream, servers],
            )
            .await
            .map_err(|error| sql::error(format!("write the checkpoint of stream {stream:?}"), error))?;
        client
            .execute(
                "INSERT INTO public.rule_nats_checkpoints AS c \
                     (source, config_name, stream_name, epoch, system_identifier, timeline, commit_lsn, commit_time, \
                      ordinal, webhook_id, sequence, stream_created, kept_sequence, servers, updated_at) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7::text::pg_lsn, $8, $9, $10, $11, \
                         'epoch'::timestamptz + $12::float8 * interval '1 second', $13, $14, now()) \
                 ON CONFLICT (source, config_name, stream_name, servers) DO UPDATE SET \
                     epoch = excluded.epoch, system_identifier = excluded.system_identifier, \
                     timeline = excluded.timeline, commit_lsn = excluded.commit_lsn, \
                     commit_time = excluded.commit_time, ordinal = excluded.ordinal, \
                     webhook_id = excluded.webhook_id, sequence = excluded.sequence, \
                     stream_created = excluded.stream_created, kept_sequence = excluded.kept_sequence, \
                     updated_at = now() \
                 WHERE c.epoch <= excluded.epoch",
                &[
                    &source,
                    config_name,
                    stream,
                    &signed(epoch),
                    &system_identifier,
                    &i32::try_from(timeline).unwrap_or(i32::MAX),
                    &position.commit_lsn.to_string(),
                    &position.commit_time,
                    &signed(position.ordinal),
                    &position.webhook_id,
                    &signed(*sequence),
                    &(std::time::Duration::from_nanos(created_ns.unsigned_abs()).as_secs_f64()),
                    &retained_through.map(signed),
                    servers,
                ],
            )
            .await
            .map_err(|error| sql::error(format!("write the checkpoint of stream {stream:?}"), error))?;
    }
    faults::pass(Point::Checkpointed).await
}

/// What a run says of itself.
#[derive(Debug)]
pub struct Report<'a> {
    /// The feed.
    pub source: &'a str,
    /// Its slot.
    pub slot: &'a str,
    /// The stem of its publications.
    pub publication: &'a str,
    /// The count of this run.
    pub epoch: u64,
    /// By configuration: server, connected, connected_since, last_error.
    pub nats: serde_json::Value,
    /// What has arrived.
    pub received: Lsn,
    /// What is confirmed.
    pub confirmed: Lsn,
    /// Messages stored in this session.
    pub published: u64,
    /// Events that became dead letters in this session.
    pub failed: u64,
    /// Rows of the history that were lost in this session.
    pub history_lost: u64,
    /// Why the session before this one ended.
    pub last_error: Option<&'a str>,
    /// In how many seconds the next report comes; 0: this is the last one.
    pub next_in_seconds: i32,
}

/// Writes `rule_cdc_status`, unless a newer run has.
pub async fn report(client: &Client, report: &Report<'_>) -> Result<()> {
    let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let pid = i32::try_from(std::process::id()).unwrap_or(0);
    client
        .execute(
            "INSERT INTO public.rule_cdc_status AS s \
                 (source, slot_name, publication, pid, host, version, epoch, connected_since, nats, received_lsn, \
                  confirmed_lsn, events_published, events_failed, last_error, last_error_at, heartbeat_at, \
                  heartbeat_seconds, history_lost, log_lines_lost, publishes_messages, schema_version) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, now(), $8::text::jsonb, $9::text::pg_lsn, $10::text::pg_lsn, $11, $12, \
                     $13, CASE WHEN $13::text IS NOT NULL THEN now() END, now(), $14, $15, $16, true, $17) \
             ON CONFLICT (source) DO UPDATE SET \
                 slot_name = excluded.slot_name, publication = excluded.publication, pid = excluded.pid, \
                 host = excluded.host, version = excluded.version, epoch = excluded.epoch, \
                 connected_since = CASE WHEN s.epoch = excluded.epoch THEN s.connected_since ELSE now() END, \
                 nats = excluded.nats, received_lsn = excluded.received_lsn, confirmed_lsn = excluded.confirmed_lsn, \
                 events_published = excluded.events_published, events_failed = excluded.events_failed, \
                 last_error = COALESCE(excluded.last_error, s.last_error), \
                 last_error_at = CASE WHEN excluded.last_error IS DISTINCT FROM s.last_error \
                     AND excluded.last_error IS NOT NULL THEN now() ELSE s.last_error_at END, \
                 heartbeat_at = now(), heartbeat_seconds = excluded.heartbeat_seconds, \
                 history_lost = excluded.history_lost, log_lines_lost = excluded.log_lines_lost, \
                 publishes_messages = excluded.publishes_messages, \
                 schema_version = excluded.schema_version \
             WHERE s.epoch IS NULL OR s.epoch <= excluded.epoch",
            &[
                &report.source,
                &report.slot,
                &report.publication,
                &pid,
                &host.trim(),
                &env!("CARGO_PKG_VERSION"),
                &signed(report.epoch),
                &report.nats.to_string(),
                &report.received.to_string(),
                &report.confirmed.to_string(),
                &signed(report.published),
                &signed(report.failed),
                &report.last_error,
                &report.next_in_seconds,
                &signed(report.history_lost),
                &signed(log::lost()),
                &schema::version(),
            ],
        )
        .await
        .map_err(|error| missing_table(sql::error("write rule_cdc_status", error)))?;
    Ok(())
}

/// Deletes events older than `retention`, at most `most`; returns how many. What is not published yet is in the WAL, so
/// nothing is lost.
pub async fn trim_events(client: &Client, retention: Duration, most: i64) -> Result<u64> {
    let row = client
        .query_one(
            "SELECT public.rule_webhook_events_cleanup($1::float8 * interval '1 second', $2::bigint::integer)",
            &[&retention.as_secs_f64(), &most],
        )
        .await
        .map_err(|error| sql::error("trim rule_webhook_events", error))?;
    Ok(u64::try_from(row.get::<_, i64>(0)).unwrap_or(0))
}
/// Notes with what a run has ended, and why.
///
/// # Errors
/// The database is away, or was set up by an earlier version.
pub async fn ended(settings: &Settings, source: &str, error: Option<&Error>) -> Result<()> {
    let client = sql::connect(settings).await?;
    let code = error.map_or(0, |error| i32::from(error.exit_code()));
    client
        .execute(
            "INSERT INTO public.rule_cdc_status AS s (source, last_exit_code, last_exit_reason, last_exit_at, heartbeat_at) \
             VALUES ($1, $2, $3, now(), 'epoch') \
             ON CONFLICT (source) DO UPDATE SET last_exit_code = excluded.last_exit_code, \
                 last_exit_reason = excluded.last_exit_reason, last_exit_at = excluded.last_exit_at",
            &[&source, &code, &error.map(reason)],
        )
        .await
        .map(drop)
        .map_err(|error| sql::error("note with what this run has ended", error))
}

/// For `run --setup`: a slot that is missing although the source has streamed before is not made again without a person's decision,
/// for what was committed since would be missing in silence.
///
/// # Errors
/// Untrusted: that is so.
pub async fn refuse_new_slot(client: &Client, source: &str, slot: &str) -> Result<()> {
    let failed = |error| sql::error("ask whether this source has streamed before", error);
    let there = "SELECT pg_catalog.to_regclass('public.rule_cdc_status') IS NOT NULL \
                 AND NOT EXISTS (SELECT FROM pg_catalog.pg_replication_slots WHERE slot_name = $1)";
    if !client.query_one(there, &[&slot]).await.map_err(failed)?.get::<_, bool>(0) {
        return Ok(());
    }
    let streamed = "SELECT EXISTS (SELECT FROM public.rule_cdc_status WHERE source = $1 AND confirmed_lsn IS NOT NULL)";
    if !client.query_one(streamed, &[&source]).await.map_err(failed)?.get::<_, bool>(0) {
        return Ok(());
    }
    Err(Error::untrusted(format!("apply setup before the run: slot {slot:?} is missing, and source {source:?} has streamed before"))
        .hint(
            "a new slot has no changes from before it is made: run walhook setup by hand, and walhook backfill for the rows that \
             tables have now",
        ))
}

/// What a run ended by, with the name that `walhook check` has for it before it.
fn reason(error: &Error) -> String {
    let name = error.name().map(|name| format!("{name}: ")).unwrap_or_default();
    format!("{name}{error}")
}
