//! What came of calls of the queue, written into their rows, in batches.
//!
//! In: an [`Entry`] for each attempt. Out: its rows, committed. Always holds: a success is never taken back; anything else is written only
//! while the call is this worker's; a row in `rule_webhook_call_history` for each attempt, however often a batch is tried; a call that
//! has failed for good has its dead letter in the same transaction. While PostgreSQL is away the entries wait: a call's row is what says
//! that it is done.

use std::time::{Duration, SystemTime};

use tokio::{
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};
use tokio_postgres::{Client, Transaction};

use super::call_log::{DISABLE, seconds};
use crate::{
    commands::{
        log_once::LogOnce,
        rows::check_kept,
        run::faults::{self, Point},
    },
    error::{Error, Result},
    postgres::{Settings, sql},
    text,
};

/// Entries written together.
const BATCH_MAX: usize = 500;
/// Entries that wait to be written; beyond it their senders wait.
const WAITING_MAX: usize = 4096;
/// Between two attempts to reach PostgreSQL.
const RECONNECT: Duration = Duration::from_millis(500);
/// How long a batch may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a call's row says then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The receiver has it.
    Success,
    /// Again after this wait.
    Retrying(Duration),
    /// Never again.
    Failed,
    /// As if nobody had taken it.
    GivenBack,
}

/// An attempt.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the rows' columns; sql/ explains them")]
pub struct Entry {
    pub call_id: i32,
    pub state: State,
    pub attempt: i32,
    pub started: Option<SystemTime>,
    pub took: Duration,
    pub response_status: Option<i32>,
    pub response_headers: Option<String>,
    pub response_body: Option<String>,
    pub error: Option<String>,
    pub letter: Option<Letter>,
    /// The receiver answered 410 at this URL.
    pub disables: Option<(i32, String)>,
    /// The receiver at this URL wants no calls for so long.
    pub pause: Option<(i32, Duration, String)>,
}

/// A dead letter.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the row's columns; sql/ explains them")]
pub struct Letter {
    pub event_id: String,
    pub webhook_id: i32,
    pub webhook_name: String,
    pub retry_of: Option<String>,
    pub reason: String,
}

impl Entry {
    /// What the receiver said in ASCII, for a database whose encoding does not have its characters. Returns whether this changed it.
    fn write_ascii(&mut self) -> bool {
        let reason = self.letter.as_mut().map(|letter| &mut letter.reason);
        text::to_ascii([self.response_headers.as_mut(), self.response_body.as_mut(), self.error.as_mut(), reason])
    }

    /// Nothing was done.
    pub fn given_back(call_id: i32) -> Entry {
        Entry {
            call_id,
            state: State::GivenBack,
            attempt: 0,
            started: None,
            took: Duration::ZERO,
            response_status: None,
            response_headers: None,
            response_body: None,
            error: None,
            letter: None,
            disables: None,
            pause: None,
        }
    }
}

struct Waiting {
    entry: Entry,
    done: oneshot::Sender<()>,
}

/// The way to the one task that writes.
pub struct QueueLog {
    writer: mpsc::Sender<Waiting>,
}

impl QueueLog {
    /// Begins to write, as this worker.
    pub fn open(settings: Settings, worker: String) -> QueueLog {
        let (writer, receiver) = mpsc::channel(WAITING_MAX);
        tokio::spawn(write(settings, worker, receiver));
        QueueLog { writer }
    }

    /// Writes one, together with others; returns when it is committed.
    pub async fn keep(&self, entry: Entry) {
        let (done, kept) = oneshot::channel();
        if self.writer.send(Waiting { entry, done }).await.is_ok() {
            let _ = kept.await;
        }
    }
}

async fn write(settings: Settings, worker: String, mut receiver: mpsc::Receiver<Waiting>) {
    let mut client: Option<Client> = None;
    let mut logged = LogOnce::default();
    let mut batch: Vec<Waiting> = Vec::new();
    while receiver.recv_many(&mut batch, BATCH_MAX).await > 0 {
        let mut alone = false;
        while !batch.is_empty() {
            let count = if alone { 1 } else { batch.len() };
            let outcome = match timeout(PATIENCE, attempt(&settings, &worker, &mut client, &batch[..count])).await {
                Ok(outcome) => outcome,
                Err(_) => {
                    client = None;
                    Err(Error::unavailable(format!(
                        "write what came of calls: no answer within {} s",
                        PATIENCE.as_secs()
                    )))
                }
            };
            match outcome {
                Ok(()) => {
                    if logged.forget() {
                        tracing::info!("what comes of calls is written into rule_webhook_calls again");
                    }
                    for waiting in batch.drain(..count) {
                        // A call that was abandoned does not wait any more.
                        let _ = waiting.done.send(());
                    }
                }
                Err(error) => {
                    let is_away = error.is_retryable() || client.as_ref().is_none_or(Client::is_closed);
                    let text = error.to_string();
                    if logged.is_news(&text) {
                        tracing::warn!(
                            "what came of calls cannot be written into rule_webhook_calls; trying again: {text}"
                        );
                    }
                    if is_away {
                        client = None;
                        sleep(RECONNECT).await;
                    } else if !alone {
                        // One of them is at fault: each alone.
                        alone = true;
                    } else if batch[0].entry.write_ascii() {
                        // Once more.
                    } else {
                        // That one waits for its time to be over, and is made again.
                        let Waiting { entry, .. } = batch.remove(0);
                        tracing::warn!(
                            call = entry.call_id,
                            "cannot record the result of a call, so the call will be made again: {text}"
                        );
                    }
                }
            }
        }
    }
}

const CALLS: &str = "WITH given AS ( \
        SELECT * FROM unnest($2::int[], $3::text[], $4::int[], $5::float8[], $6::float8[], $7::int[], $8::text[], $9::text[], \
                             $10::text[], $11::float8[]) \
            AS g (call_id, status, attempt, started, took_ms, response_status, response_headers, response_body, error, wait_s)), \
    calls AS ( \
        UPDATE public.rule_webhook_calls c SET \
            status = g.status, claimed_by = NULL, claimed_until = NULL, \
            completed_at = CASE WHEN g.status <> 'retrying' THEN to_timestamp(g.started + g.took_ms / 1000) END, \
            retry_count = greatest(c.retry_count, CASE g.status WHEN 'retrying' THEN g.attempt ELSE g.attempt - 1 END), \
            next_retry_at = CASE WHEN g.status = 'retrying' THEN clock_timestamp() + make_interval(secs => g.wait_s) END, \
            response_status = g.response_status, response_body = g.response_body, \
            response_headers = g.response_headers::jsonb, error_message = g.error, execution_time_ms = g.took_ms \
        FROM given g \
        WHERE c.call_id = g.call_id AND c.event_id IS NULL \
          AND (g.status = 'success' OR c.status = 'processing' AND c.claimed_by = $1)) \
    INSERT INTO public.rule_webhook_call_history (call_id, attempt_number, started_at, completed_at, response_status, \
        response_body, error_message, execution_time_ms) \
    SELECT g.call_id, g.attempt, to_timestamp(g.started), to_timestamp(g.started + g.took_ms / 1000), g.response_status, \
        g.response_body, g.error, g.took_ms \
    FROM given g JOIN public.rule_webhook_calls c USING (call_id) \
    WHERE NOT EXISTS ( \
        SELECT FROM public.rule_webhook_call_history h WHERE h.call_id = g.call_id AND h.attempt_number = g.attempt \
            AND h.started_at = to_timestamp(g.started))";

const GIVE_BACK: &str = "UPDATE public.rule_webhook_calls c SET \
        status = CASE WHEN c.retry_count > 0 THEN 'retrying' ELSE 'pending' END, \
        next_retry_at = CASE WHEN c.retry_count > 0 THEN clock_timestamp() END, \
        claimed_by = NULL, claimed_until = NULL \
    WHERE c.call_id = ANY ($2) AND c.status = 'processing' AND c.claimed_by = $1";

/// A call that another worker has brought to its end has no letter.
const LETTERS: &str = "INSERT INTO public.rule_nats_dead_letters \
        (event_id, webhook_id, webhook_name, headers, payload, reason, origin) \
    SELECT g.event_id, g.webhook_id, g.webhook_name, jsonb_strip_nulls(jsonb_build_object('Walhook-Retry-Of', g.retry_of)), \
        convert_to(c.payload::text, 'UTF8'), g.reason, 'queue' \
    FROM unnest($1::int[], $2::text[], $3::int[], $4::text[], $5::text[], $6::text[]) \
        AS g (call_id, event_id, webhook_id, webhook_name, retry_of, reason) \
    JOIN public.rule_webhook_calls c USING (call_id) WHERE c.status = 'failed' \
    ON CONFLICT (event_id) DO UPDATE SET reason = excluded.reason, status = 'dead', retried_call = NULL, created_at = now() \
    WHERE rule_nats_dead_letters.status = 'dead'";

const PAUSE: &str = "INSERT INTO walhook.rule_webhook_limits AS l (webhook_id, paused_until, paused_url_hash) \
    SELECT w.webhook_id, max(clock_timestamp() + make_interval(secs => g.wait_s)), hashtextextended(w.url, 0) \
    FROM unnest($1::int[], $2::float8[], $3::text[]) AS g (webhook_id, wait_s, url) \
    JOIN public.rule_webhooks w ON w.webhook_id = g.webhook_id AND w.url = g.url \
    GROUP BY w.webhook_id, w.url \
    ON CONFLICT (webhook_id) DO UPDATE SET \
        paused_until = CASE WHEN l.paused_url_hash = excluded.paused_url_hash THEN greatest(l.paused_until, excluded.paused_until) \
                            ELSE excluded.paused_until END, \
        paused_url_hash = excluded.paused_url_hash";

fn not_written(error: tokio_postgres::Error) -> Error {
    sql::error("write what came of calls", error)
}

async fn attempt(settings: &Settings, worker: &str, client: &mut Option<Client>, batch: &[Waiting]) -> Result<()> {
    let client = sql::reconnect(client, settings).await?;
    let failed = not_written;
    faults::pass(Point::QueueUnwritten).await?;
    let transaction = client.transaction().await.map_err(failed)?;
    let entries = || batch.iter().map(|waiting| &waiting.entry);
    let calls: Vec<&Entry> = entries().filter(|entry| entry.state != State::GivenBack).collect();
    if !calls.is_empty() {
        write_calls(&transaction, worker, &calls).await?;
    }
    let given_back: Vec<i32> =
        entries().filter(|entry| entry.state == State::GivenBack).map(|entry| entry.call_id).collect();
    if !given_back.is_empty() {
        transaction.execute(GIVE_BACK, &[&worker, &given_back]).await.map_err(failed)?;
    }
    let letters: Vec<(i32, &Letter)> =
        entries().filter_map(|entry| Some((entry.call_id, entry.letter.as_ref()?))).collect();
    if !letters.is_empty() {
        write_letters(&transaction, &letters).await?;
    }
    let (ids, urls): (Vec<i32>, Vec<&str>) =
        entries().filter_map(|entry| entry.disables.as_ref()).map(|(id, url)| (*id, url.as_str())).unzip();
    if !ids.is_empty() {
        transaction.execute(DISABLE, &[&ids, &urls]).await.map_err(failed)?;
    }
    let pauses: Vec<_> = entries().filter_map(|entry| entry.pause.as_ref()).collect();
    if !pauses.is_empty() {
        let ids: Vec<i32> = pauses.iter().map(|(id, ..)| *id).collect();
        let waits: Vec<f64> = pauses.iter().map(|(_, wait, _)| wait.as_secs_f64()).collect();
        let urls: Vec<&str> = pauses.iter().map(|(.., url)| url.as_str()).collect();
        transaction.execute(PAUSE, &[&ids, &waits, &urls]).await.map_err(failed)?;
    }
    transaction.commit().await.map_err(failed)?;
    faults::pass(Point::QueueWritten).await
}

async fn write_calls(transaction: &Transaction<'_>, worker: &str, calls: &[&Entry]) -> Result<()> {
    macro_rules! column {
        ($value:expr) => {
            calls.iter().map($value).collect::<Vec<_>>()
        };
    }
    transaction
        .execute(
            CALLS,
            &[
                &worker,
                &column!(|entry| entry.call_id),
                &column!(|entry| match entry.state {
                    State::Success => "success",
                    State::Retrying(_) => "retrying",
                    State::Failed | State::GivenBack => "failed",
                }),
                &column!(|entry| entry.attempt),
                &column!(|entry| seconds(entry.started.unwrap_or_else(SystemTime::now))),
                &column!(|entry| (entry.took.as_secs_f64() * 1e5).round() / 1e2),
                &column!(|entry| entry.response_status),
                &column!(|entry| entry.response_headers.as_deref()),
                &column!(|entry| entry.response_body.as_deref()),
                &column!(|entry| entry.error.as_deref()),
                &column!(|entry| match entry.state {
                    State::Retrying(wait) => wait.as_secs_f64(),
                    _ => 0.0,
                }),
            ],
        )
        .await
        .map_err(not_written)?;
    Ok(())
}

async fn write_letters(transaction: &Transaction<'_>, letters: &[(i32, &Letter)]) -> Result<()> {
    macro_rules! column {
        ($value:expr) => {
            letters.iter().map($value).collect::<Vec<_>>()
        };
    }
    let written = transaction
        .execute(
            LETTERS,
            &[
                &column!(|(call_id, _)| *call_id),
                &column!(|(_, letter)| letter.event_id.as_str()),
                &column!(|(_, letter)| letter.webhook_id),
                &column!(|(_, letter)| letter.webhook_name.as_str()),
                &column!(|(_, letter)| letter.retry_of.as_deref()),
                &column!(|(_, letter)| letter.reason.as_str()),
            ],
        )
        .await
        .map_err(not_written)?;
    if written == letters.len() as u64 {
        let event_ids: Vec<&str> = letters.iter().map(|(_, letter)| letter.event_id.as_str()).collect();
        check_kept(transaction, &event_ids).await?;
    }
    Ok(())
}
