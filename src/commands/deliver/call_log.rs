//! What is kept of calls: `rule_webhook_calls`, `rule_webhook_call_history`, `rule_nats_dead_letters`, in batches.
//!
//! In: an [`Entry`] for each attempt. Out: whether its rows are committed; the event is acknowledged after that, so that a
//! kill at any point leaves no call without its record. Always holds: a row for each event and each attempt, however often
//! a batch is tried. A database that is away holds a call up for [`PATIENCE`] at most, and costs the record, never the
//! event; only a dead letter has to be durable, and says so when it is not.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::{
    sync::{Mutex, mpsc, oneshot},
    time::{Instant, sleep, timeout},
};
use tokio_postgres::{Client, Statement, types::Type};

use crate::{
    commands::{
        away::{Away, News},
        log_once::LogOnce,
        rows::check_kept,
    },
    error::{Error, Result},
    postgres::{self, Settings, sql},
    text,
    wal::lsn::Lsn,
};

/// Entries written together.
const BATCH_MAX: usize = 500;
/// Entries that wait to be written; beyond it their senders wait.
const WAITING_MAX: usize = 4096;
/// How long an entry may wait for a database that is away.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long it may take to read how often an event was tried.
const READ_PATIENCE: Duration = Duration::from_secs(3);
/// Between two attempts to reach it.
const RECONNECT: Duration = Duration::from_millis(500);

/// An attempt, or an event given up without one.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs, reason = "the rows' columns; sql/ explains them")]
pub struct Entry {
    pub webhook_id: i32,
    pub webhook_name: String,
    pub event_id: String,
    /// `success`, `retrying` or `failed`.
    pub status: &'static str,
    pub attempt: i32,
    /// The request's body, JSON.
    pub payload: String,
    pub started: Option<SystemTime>,
    pub took: Duration,
    pub response_status: Option<i32>,
    pub response_headers: Option<String>,
    pub response_body: Option<String>,
    pub error: Option<String>,
    pub dead_letter: Option<DeadLetter>,
    /// The receiver answered 410 at this URL.
    pub disables: Option<String>,
    /// Whether the call goes into `rule_webhook_calls`.
    pub is_recorded: bool,
}

/// What is kept of an event that is given up.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs, reason = "the row's columns; sql/ explains them")]
pub struct DeadLetter {
    pub subject: String,
    pub headers: String,
    pub payload: Vec<u8>,
    pub reason: String,
    pub commit_lsn: Option<String>,
}

impl Entry {
    /// What the receiver said in ASCII, for a database whose encoding does not have its characters. Returns whether this changed it.
    fn write_ascii(&mut self) -> bool {
        let reason = self.dead_letter.as_mut().map(|letter| &mut letter.reason);
        text::to_ascii([self.response_headers.as_mut(), self.response_body.as_mut(), self.error.as_mut(), reason])
    }
}

/// What became of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// It is committed.
    Yes,
    /// It is not, and will not be.
    No,
}

struct Waiting {
    entry: Entry,
    since: Instant,
    done: oneshot::Sender<Kept>,
}

/// The way to the one task that writes, and a connection to read by.
#[derive(Clone)]
pub struct CallLog {
    writer: mpsc::Sender<Waiting>,
    settings: Settings,
    reader: Arc<Mutex<Option<Arc<Client>>>>,
}

impl CallLog {
    /// Begins to write, on a connection of its own.
    pub fn open(settings: Settings) -> CallLog {
        let (writer, receiver) = mpsc::channel(WAITING_MAX);
        tokio::spawn(write(settings.clone(), receiver));
        CallLog { writer, settings, reader: Arc::default() }
    }

    async fn reader(&self) -> Result<Arc<Client>> {
        let mut reader = self.reader.lock().await;
        Ok(match &*reader {
            Some(client) if !client.is_closed() => Arc::clone(client),
            _ => Arc::clone(reader.insert(Arc::new(sql::connect(&self.settings).await?))),
        })
    }

    /// Where the WAL ends.
    ///
    /// # Errors
    /// PostgreSQL cannot be asked, or is a standby.
    pub async fn wal_end(&self) -> Result<Lsn> {
        let attempted = "read where the WAL ends";
        let read = async {
            let statement = "SELECT pg_catalog.pg_current_wal_flush_lsn()::text";
            let row = self.reader().await?.query_one(statement, &[]).await;
            row.map_err(|error| sql::error(attempted, error))
        };
        let row = timeout(READ_PATIENCE, read).await.map_err(|_| Error::unavailable(attempted))??;
        row.get::<_, &str>(0).parse().map_err(|error| Error::protocol(attempted).caused_by(error))
    }

    /// How many attempts of an event are recorded; `None` where that cannot be read now.
    pub async fn attempts(&self, event_id: &str) -> Option<u64> {
        let read = async {
            let client = self.reader().await?;
            let rows = client.query_typed(ATTEMPTS, &[(&event_id, Type::TEXT)]).await;
            rows.map_err(|error| sql::error("read how often a call was tried", error))
        };
        match timeout(READ_PATIENCE, read).await {
            Ok(Ok(rows)) => Some(rows.first().map_or(0, |row| u64::try_from(row.get::<_, i32>(0)).unwrap_or(0))),
            Ok(Err(error)) => {
                tracing::debug!("{error}");
                None
            }
            Err(_) => None,
        }
    }

    /// Writes one, together with others; returns when it is committed, or when that has failed.
    pub async fn keep(&self, entry: Entry) -> Kept {
        let (done, kept) = oneshot::channel();
        let waiting = Waiting { entry, since: Instant::now(), done };
        match self.writer.send(waiting).await {
            Ok(()) => kept.await.unwrap_or(Kept::No),
            Err(_) => Kept::No,
        }
    }
}

/// A connection with its one frequent statement prepared.
struct Connection {
    client: Client,
    calls: Statement,
}

impl Connection {
    async fn open(settings: &Settings) -> Result<Connection> {
        let client = sql::connect(settings).await?;
        let calls = client.prepare(CALLS).await.map_err(|error| sql::error("record calls", error))?;
        Ok(Connection { client, calls })
    }
}

async fn write(settings: Settings, mut receiver: mpsc::Receiver<Waiting>) {
    let mut connection: Option<Connection> = None;
    let mut logged = LogOnce::default();
    let mut away = Away::new(Duration::ZERO);
    let mut queue: Vec<Waiting> = Vec::new();
    let mut is_open = true;
    while is_open || !queue.is_empty() {
        if queue.is_empty() && receiver.recv_many(&mut queue, BATCH_MAX).await == 0 {
            break;
        }
        while queue.len() < BATCH_MAX && is_open {
            match receiver.try_recv() {
                Ok(waiting) => queue.push(waiting),
                Err(mpsc::error::TryRecvError::Disconnected) => is_open = false,
                Err(mpsc::error::TryRecvError::Empty) => break,
            }
        }
        let (batch, rest) = apart(std::mem::take(&mut queue));
        queue = rest;
        let outcome = attempt(&settings, &mut connection, &batch).await;
        match outcome {
            Ok(()) => {
                if logged.forget() {
                    tracing::info!("calls are written into rule_webhook_calls again");
                }
                away.look(std::iter::empty(), Instant::now());
                answer(batch, Kept::Yes);
            }
            Err(error) if error.is_retryable() || connection.as_ref().is_none_or(|open| open.client.is_closed()) => {
                connection = None;
                let text = error.to_string();
                if logged.is_news(&text) {
                    tracing::warn!("calls cannot be written into rule_webhook_calls; trying again: {text}");
                }
                if let [News::Still(_, lasts)] = &away.look(std::iter::once("PostgreSQL"), Instant::now())[..] {
                    let waiting = batch.len() + queue.len() + receiver.len();
                    tracing::warn!(
                        away_s = lasts.as_secs(),
                        waiting_records = waiting,
                        "calls still cannot be written into rule_webhook_calls: {text}"
                    );
                }
                let (late, patient): (Vec<_>, Vec<_>) =
                    batch.into_iter().partition(|waiting| waiting.since.elapsed() >= PATIENCE);
                answer(late, Kept::No);
                queue.splice(0..0, patient);
                sleep(RECONNECT).await;
            }
            // One of them is at fault: each alone.
            Err(_) => {
                for waiting in batch {
                    one(&settings, &mut connection, waiting).await;
                }
            }
        }
    }
}

/// An event once in a batch: a statement cannot meet a row twice.
fn apart(queue: Vec<Waiting>) -> (Vec<Waiting>, Vec<Waiting>) {
    let mut seen = HashSet::new();
    queue.into_iter().partition(|waiting| seen.insert(waiting.entry.event_id.clone()))
}

fn answer(batch: Vec<Waiting>, kept: Kept) {
    for waiting in batch {
        // Whoever does not wait any more has no use for it.
        let _ = waiting.done.send(kept);
    }
}

/// Writes one that a batch failed with, as it is, then in ASCII, then with its payload as a string: jsonb refuses some JSON.
async fn one(settings: &Settings, connection: &mut Option<Connection>, mut waiting: Waiting) {
    let mut outcome = attempt(settings, connection, std::slice::from_ref(&waiting)).await;
    if outcome.as_ref().is_err_and(postgres::concerns_the_statement) && waiting.entry.write_ascii() {
        outcome = attempt(settings, connection, std::slice::from_ref(&waiting)).await;
    }
    if outcome.as_ref().is_err_and(postgres::concerns_the_statement) {
        waiting.entry.payload = serde_json::Value::from(std::mem::take(&mut waiting.entry.payload)).to_string();
        outcome = attempt(settings, connection, std::slice::from_ref(&waiting)).await;
    }
    if let Err(error) = &outcome {
        tracing::warn!(event = waiting.entry.event_id, "a call cannot be written into rule_webhook_calls: {error}");
    }
    let kept = if outcome.is_ok() { Kept::Yes } else { Kept::No };
    let _ = waiting.done.send(kept);
}

/// The call's row is made by its first attempt and brought up to date by the others; a success is never taken back. A
/// webhook that is gone takes its calls with it.
const CALLS: &str = "WITH given AS ( \
        SELECT * FROM unnest($1::int[], $2::text[], $3::text[], $4::int[], $5::text[], $6::float8[], $7::float8[], \
                             $8::int[], $9::text[], $10::text[], $11::text[]) \
            AS g (webhook_id, event_id, status, attempt, payload, started, took_ms, response_status, response_headers, \
                  response_body, error)), \
    calls AS ( \
        INSERT INTO public.rule_webhook_calls AS c (webhook_id, event_id, status, payload, started_at, completed_at, \
            retry_count, response_status, response_body, response_headers, error_message, execution_time_ms) \
        SELECT g.webhook_id, g.event_id, g.status, g.payload::jsonb, to_timestamp(g.started), \
            CASE WHEN g.status <> 'retrying' THEN to_timestamp(g.started + g.took_ms / 1000) END, \
            greatest(g.attempt - 1, 0), g.response_status, g.response_body, g.response_headers::jsonb, g.error, g.took_ms \
        FROM given g JOIN public.rule_webhooks w USING (webhook_id) \
        ON CONFLICT (event_id) WHERE event_id IS NOT NULL DO UPDATE SET \
            status = CASE WHEN c.status = 'success' THEN c.status ELSE excluded.status END, \
            completed_at = excluded.completed_at, \
            retry_count = greatest(c.retry_count, excluded.retry_count), \
            response_status = excluded.response_status, response_body = excluded.response_body, \
            response_headers = excluded.response_headers, error_message = excluded.error_message, \
            execution_time_ms = excluded.execution_time_ms \
        RETURNING c.call_id, c.event_id) \
    INSERT INTO public.rule_webhook_call_history (call_id, attempt_number, started_at, completed_at, response_status, \
        response_body, error_message, execution_time_ms) \
    SELECT c.call_id, g.attempt, to_timestamp(g.started), to_timestamp(g.started + g.took_ms / 1000), g.response_status, \
        g.response_body, g.error, g.took_ms \
    FROM given g JOIN calls c USING (event_id) \
    WHERE g.attempt > 0 AND NOT EXISTS ( \
        SELECT FROM public.rule_webhook_call_history h WHERE h.call_id = c.call_id AND h.attempt_number = g.attempt \
            AND h.started_at = to_timestamp(g.started))";

const ATTEMPTS: &str =
    "SELECT retry_count + 1 FROM public.rule_webhook_calls WHERE event_id = $1 AND started_at IS NOT NULL";

/// A message may come again after its letter was written: its last acknowledgement was lost, or its consumer was recreated. If somebody
/// has retried or dropped the letter by then, it stays so; a retry is an event with an id, and a letter, of its own. Where one
/// row would be of two messages (a recreated stream counts from 1 again), the newest has it.
const DEAD_LETTERS: &str = "INSERT INTO public.rule_nats_dead_letters AS d \
        (event_id, webhook_id, webhook_name, subject, headers, payload, reason, commit_lsn, origin) \
    SELECT event_id, webhook_id, webhook_name, subject, headers::jsonb, payload, reason, commit_lsn::pg_lsn, 'deliver' \
    FROM unnest($1::text[], $2::int[], $3::text[], $4::text[], $5::text[], $6::bytea[], $7::text[], $8::text[]) \
        AS g (event_id, webhook_id, webhook_name, subject, headers, payload, reason, commit_lsn) \
    ON CONFLICT (event_id) DO UPDATE SET subject = excluded.subject, headers = excluded.headers, payload = excluded.payload, \
        reason = excluded.reason, origin = excluded.origin, status = 'dead', retried_as = NULL, created_at = now() \
    WHERE d.status = 'dead' OR d.origin <> 'deliver' \
       OR (d.subject, d.headers, d.payload) IS DISTINCT FROM (excluded.subject, excluded.headers, excluded.payload)";

/// Unless somebody has given the webhook another URL in the meantime.
pub const DISABLE: &str = "UPDATE public.rule_webhooks w SET updated_at = now(), \
        disabled_at = clock_timestamp(), disabled_reason = 'its receiver answered 410: it wants no more calls' \
    FROM unnest($1::int[], $2::text[]) AS g (webhook_id, url) \
    WHERE w.webhook_id = g.webhook_id AND w.url = g.url AND w.enabled AND w.disabled_at IS NULL";

/// Writes a batch in a transaction.
async fn attempt(settings: &Settings, connection: &mut Option<Connection>, batch: &[Waiting]) -> Result<()> {
    let Connection { client, calls: statement } = match connection {
        Some(connection) if !connection.client.is_closed() => connection,
        _ => connection.insert(Connection::open(settings).await?),
    };
    let failed = |error| sql::error("record calls", error);
    let transaction = client.transaction().await.map_err(failed)?;
    let calls: Vec<&Entry> = batch.iter().map(|waiting| &waiting.entry).filter(|entry| entry.is_recorded).collect();
    if !calls.is_empty() {
        macro_rules! column {
            ($value:expr) => {
                calls.iter().map($value).collect::<Vec<_>>()
            };
        }
        transaction
            .execute(
                &*statement,
                &[
                    &column!(|entry| entry.webhook_id),
                    &column!(|entry| entry.event_id.as_str()),
                    &column!(|entry| entry.status),
                    &column!(|entry| entry.attempt),
                    &column!(|entry| entry.payload.as_str()),
                    &column!(|entry| seconds(entry.started.unwrap_or_else(SystemTime::now))),
                    &column!(|entry| (entry.took.as_secs_f64() * 1e5).round() / 1e2),
                    &column!(|entry| entry.response_status),
                    &column!(|entry| entry.response_headers.as_deref()),
                    &column!(|entry| entry.response_body.as_deref()),
                    &column!(|entry| entry.error.as_deref()),
                ],
            )
            .await
            .map_err(failed)?;
    }
    let letters: Vec<(&Entry, &DeadLetter)> =
        batch.iter().filter_map(|waiting| Some((&waiting.entry, waiting.entry.dead_letter.as_ref()?))).collect();
    if !letters.is_empty() {
        macro_rules! column {
            ($value:expr) => {
                letters.iter().map($value).collect::<Vec<_>>()
            };
        }
        transaction
            .execute(
                DEAD_LETTERS,
                &[
                    &column!(|(entry, _)| entry.event_id.as_str()),
                    &column!(|(entry, _)| entry.webhook_id),
                    &column!(|(entry, _)| entry.webhook_name.as_str()),
                    &column!(|(_, letter)| letter.subject.as_str()),
                    &column!(|(_, letter)| letter.headers.as_str()),
                    &column!(|(_, letter)| letter.payload.as_slice()),
                    &column!(|(_, letter)| letter.reason.as_str()),
                    &column!(|(_, letter)| letter.commit_lsn.as_deref()),
                ],
            )
            .await
            .map_err(failed)?;
        let event_ids: Vec<&str> = letters.iter().map(|(entry, _)| entry.event_id.as_str()).collect();
        check_kept(&transaction, &event_ids).await?;
    }
    let gone = batch.iter().map(|waiting| &waiting.entry);
    let (ids, urls): (Vec<i32>, Vec<&str>) =
        gone.filter_map(|entry| Some((entry.webhook_id, entry.disables.as_deref()?))).unzip();
    if !ids.is_empty() {
        transaction.execute(DISABLE, &[&ids, &urls]).await.map_err(failed)?;
    }
    transaction.commit().await.map_err(failed)
}

pub(super) fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
