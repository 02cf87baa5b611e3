//! The history writer: what a run writes besides its checkpoints, on an SQL connection of its own, one piece of work
//! at a time. Delivery never waits for it.
//!
//! In: rows of the publish history from the streamer. Out: the same rows, durable, back to the streamer, which confirms no
//! event without them; old rows trimmed, JetStream's consumers surveyed. While the history takes no rows (somebody holds a
//! lock on it), delivery goes on and only the confirmation waits; rows that had to be left out meanwhile the next session
//! makes again from the slot ([`Streamer::left_out`]). Nothing that goes wrong here ends a session.

use std::{
    collections::{HashMap, HashSet},
    future::Future,
    pin::Pin,
    rc::Rc,
    time::Duration,
};

use tokio::time::{Instant, sleep};

use super::{
    consumers,
    history::{self, Writer, Written},
    lanes::{Lanes, open::position_of},
    state_store,
};
use crate::{
    commands::{backoff::Backoff, breaks::SHOWS_WITHIN, http, identity, log_once::LogOnce},
    config::Config,
    error::{Error, Kind, Result},
    flow::{
        event_id::EventPosition,
        history::{Batch, HistorySource, Place},
        lane::Ordering,
        streamer::Streamer,
    },
    nats::{
        control::Control,
        locate::{self, Sought, Wanted, Within},
    },
    postgres::sql::{self, Watched},
};

/// Rows that are under way for so long mean that the history is stuck: no statement takes that long by itself.
const PATIENCE: Duration = Duration::from_secs(5);
const _: () = assert!(PATIENCE.as_secs() + http::EVERY.as_secs() <= SHOWS_WITHIN.as_secs());
/// So many sequences are looked up in one piece of work: what it found is kept whatever becomes of the next.
const LOOKED_UP_MAX: usize = 256;
/// After few rows …
const FEW_ROWS: usize = 500;
/// … the next gather for so long: a transaction for every event costs PostgreSQL, and us, many times what its row does.
const GATHER: Duration = Duration::from_millis(20);
/// How often old rows are trimmed …
const TIDY: Duration = Duration::from_secs(60);
/// … and how many at a time. While there are more, the next come at once.
const TIDY_ROWS: i64 = 5000;

type Work = Pin<Box<dyn Future<Output = Done>>>;

/// See the module.
pub struct HistoryWriter {
    config: Rc<Config>,
    /// Of the run: its connections are marked by it.
    epoch: u64,
    work: Option<Work>,
    writer: Option<Writer>,
    /// Rows that could not be written yet.
    kept: Vec<Batches>,
    backoff: Backoff,
    /// No work before this.
    rests_until: Option<Instant>,
    /// Since when rows have been on their way into the table, or look-ups have failed: looking up by itself is no reason to do
    /// without.
    busy_since: Option<Instant>,
    /// How far each lane's stream was read by look-ups.
    reached: HashMap<usize, Reached>,
    /// Rows gather.
    gathers: bool,
    /// `None`: it is time.
    last_tidy: Option<Instant>,
    /// When JetStream was last asked for its consumers.
    last_survey: Option<Instant>,
    /// Rows of the history that were lost.
    lost: u64,
    /// The last failure told, so that the log does not repeat it.
    logged: LogOnce,
    was_stuck: bool,
    /// What went wrong with the consumers and has been told.
    told_of_consumers: HashSet<String>,
}

/// Where look-ups have got to: later events lie from that sequence on.
#[derive(Clone, Copy)]
struct Reached {
    last: EventPosition,
    next: u64,
}

/// The stream of a lane, to look up sequences in.
struct Asked {
    lane: usize,
    /// `None`: the lane is not open.
    control: Option<Control>,
    stream: String,
    is_shared: bool,
    reached: Option<Reached>,
}

/// One book's rows, and where their events are stored.
struct Batches {
    book: HistorySource,
    batch: Batch,
}

/// A piece of work that has ended.
pub struct Done {
    /// Not where the connection is lost, or may be in the midst of something.
    writer: Option<Writer>,
    outcome: Outcome,
}

/// What trimming has come to.
struct Tidied {
    /// How many rows were deleted from one of the tables, at most.
    rows: u64,
    /// Why a partition could not be made or dropped.
    problem: Option<String>,
}

enum Outcome {
    /// Rows have had the time to.
    Gathered,
    /// Some of the sequences were looked up, and how far that got in a lane's stream.
    LookedUp(Vec<Batches>, Result<(usize, Option<Reached>)>),
    History(Vec<Batches>, Result<Written>),
    Tidied(Result<Tidied>),
    /// With what went wrong on the way.
    Surveyed(Result<Vec<String>>),
}

impl HistoryWriter {
    /// Nothing to do yet.
    pub fn new(config: &Config, epoch: u64) -> HistoryWriter {
        HistoryWriter {
            config: Rc::new(config.clone()),
            epoch,
            work: None,
            writer: None,
            kept: Vec::new(),
            backoff: Backoff::default(),
            rests_until: None,
            busy_since: None,
            reached: HashMap::new(),
            gathers: false,
            last_tidy: None,
            last_survey: None,
            lost: 0,
            logged: LogOnce::default(),
            was_stuck: false,
            told_of_consumers: HashSet::new(),
        }
    }

    /// Rows of the history that were lost in this session.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Why the history takes no rows, if it has taken none for a while.
    pub fn stuck(&self) -> Option<&str> {
        let is_stuck = self.busy_since.is_some_and(|since| since.elapsed() >= PATIENCE);
        is_stuck.then(|| self.logged.text().unwrap_or("rows of the history are not written"))
    }

    /// Begins the next piece of work if there is one, and tells the streamer whether the history is stuck.
    pub fn look(&mut self, streamer: &mut Streamer, lanes: &Lanes) {
        let is_stuck = self.busy_since.is_some_and(|since| since.elapsed() >= PATIENCE);
        streamer.set_history_stuck(is_stuck);
        if is_stuck != self.was_stuck {
            self.was_stuck = is_stuck;
            if is_stuck {
                tracing::warn!(
                    finding = "history_blocked",
                    "rule_nats_publish_history takes no rows: confirming waits for it, and publishing does not. Hint: see who holds a \
                     lock on it or on a partition: SELECT pid, mode, relation::regclass FROM pg_locks \
                     WHERE relation::regclass::text LIKE '%rule_nats_publish_history%'"
                );
            } else {
                tracing::info!(finding = "history_blocked", "rule_nats_publish_history takes rows again");
            }
        }
        if self.work.is_some() {
            return;
        }
        if std::mem::take(&mut self.gathers) {
            let writer = self.writer.take();
            self.work = Some(Box::pin(async move {
                sleep(GATHER).await;
                Done { writer, outcome: Outcome::Gathered }
            }));
            return;
        }
        if self.kept.is_empty() {
            let batches = streamer.take_history(|lane| lanes.control(lane).is_some());
            self.kept.extend(batches.into_iter().map(|(book, batch)| Batches { book, batch }));
            self.busy_since = None;
        }
        self.work = self.next(streamer, lanes);
    }

    fn next(&mut self, streamer: &Streamer, lanes: &Lanes) -> Option<Work> {
        let wait = self.rests_until.map(|until| until.saturating_duration_since(Instant::now())).unwrap_or_default();
        let (config, epoch) = (Rc::clone(&self.config), self.epoch);
        if !self.kept.is_empty() {
            let batches = std::mem::take(&mut self.kept);
            let writer = self.writer.take();
            let unlocated = batches.iter().enumerate().find_map(|(index, Batches { book, batch })| match book {
                HistorySource::Lane(lane) if batch.unlocated().len() > 0 => Some((index, *lane)),
                _ => None,
            });
            if let Some((index, lane)) = unlocated {
                let asked = Asked {
                    lane,
                    control: lanes.control(lane).cloned(),
                    stream: streamer.lane(lane).stream().to_owned(),
                    is_shared: streamer.lane(lane).ordering() == Ordering::Shared,
                    reached: self.reached.get(&lane).copied(),
                };
                return Some(Box::pin(async move {
                    sleep(wait).await;
                    let mut batches = batches;
                    let looked_up = look_up(&config, &mut batches[index].batch, &asked).await;
                    Done { writer, outcome: Outcome::LookedUp(batches, looked_up) }
                }));
            }
            self.busy_since.get_or_insert_with(Instant::now);
            return Some(Box::pin(async move {
                sleep(wait).await;
                record(&config, epoch, writer, batches).await
            }));
        }
        if self.last_tidy.is_none_or(|last| last.elapsed() >= TIDY) {
            self.last_tidy = Some(Instant::now());
            let writer = self.writer.take();
            return Some(Box::pin(async move {
                sleep(wait).await;
                tidy(&config, epoch, writer).await
            }));
        }
        let interval = config.consumer_stats_interval;
        if !interval.is_zero() && self.last_survey.is_none_or(|last| last.elapsed() >= interval) {
            self.last_survey = Some(Instant::now());
            let (sources, writer) = (lanes.sources(streamer), self.writer.take());
            return Some(Box::pin(async move {
                sleep(wait).await;
                survey(&config, epoch, writer, sources).await
            }));
        }
        None
    }

    /// Waits for the work under way; for ever where there is none. Cancel-safe.
    pub async fn run(&mut self) -> Done {
        match &mut self.work {
            Some(work) => work.await,
            None => std::future::pending().await,
        }
    }

    /// Takes in what the work achieved.
    pub fn finish(&mut self, Done { writer, outcome }: Done, streamer: &mut Streamer) {
        self.work = None;
        self.writer = writer;
        let failure = match outcome {
            Outcome::Gathered => return,
            Outcome::LookedUp(batches, Ok((lane, reached))) => {
                self.kept = batches;
                self.busy_since = None;
                self.reached.extend(reached.map(|reached| (lane, reached)));
                None
            }
            Outcome::LookedUp(batches, Err(error)) => {
                self.kept = batches;
                self.busy_since.get_or_insert_with(Instant::now);
                self.rests_until = Some(Instant::now() + self.backoff.next());
                Some(error)
            }
            Outcome::History(batches, Ok(Written { lost, problem })) => {
                self.gathers = batches.iter().map(|batches| batches.batch.len()).sum::<usize>() < FEW_ROWS;
                self.given_back(batches, streamer);
                self.lost += lost;
                problem.filter(|_| lost > 0).map(|problem| not_taken(lost, &problem))
            }
            // Where a newer run has taken over the session ends by that.
            Outcome::History(batches, Err(error)) if matches!(error.kind(), Kind::Unavailable | Kind::Fenced) => {
                self.kept = batches;
                self.rests_until = Some(Instant::now() + self.backoff.next());
                Some(error)
            }
            // The table or the function is missing, or we may not use them: waiting mends nothing, and the events are
            // delivered.
            Outcome::History(batches, Err(error)) => {
                let lost = batches.iter().map(|batches| batches.batch.len() as u64).sum();
                self.given_back(batches, streamer);
                self.lost += lost;
                Some(not_taken(lost, &error.reason()))
            }
            Outcome::Tidied(Ok(Tidied { rows, problem })) => {
                tracing::debug!(rows, "trimmed");
                if rows >= TIDY_ROWS.unsigned_abs() {
                    self.last_tidy = None;
                }
                let Some(problem) = problem else { return };
                Some(Error::unavailable(format!("partitions of rule_nats_publish_history: {problem}")).hint(
                    "walhook tries again every minute; meanwhile rows are written, and expired ones stay: see who holds a lock: \
                     SELECT pid, mode, relation::regclass FROM pg_locks WHERE relation::regclass::text LIKE '%rule_nats_publish_history%'",
                ))
            }
            Outcome::Surveyed(Ok(problems)) => {
                for problem in problems {
                    if !self.told_of_consumers.contains(&problem) {
                        tracing::warn!("{problem}");
                        self.told_of_consumers.insert(problem);
                    }
                }
                return;
            }
            Outcome::Tidied(Err(error)) | Outcome::Surveyed(Err(error)) => Some(error),
        };
        match failure {
            None => {
                self.logged.forget();
                self.backoff = Backoff::default();
                self.rests_until = None;
            }
            Some(error) => self.tell(&error),
        }
    }

    fn given_back(&mut self, batches: Vec<Batches>, streamer: &mut Streamer) {
        self.busy_since = None;
        for Batches { book, batch } in batches {
            streamer.recorded(book, batch);
        }
    }

    fn tell(&mut self, error: &Error) {
        let text = error.to_string();
        if self.logged.is_news(&text) {
            tracing::warn!("{text}");
        }
    }
}

/// Writes the rows.
async fn record(config: &Config, epoch: u64, writer: Option<Writer>, batches: Vec<Batches>) -> Done {
    match reach(config, epoch, writer).await {
        Err(error) => Done { writer: None, outcome: Outcome::History(batches, Err(error)) },
        Ok(mut writer) => {
            let written = writer.write(batches.iter().map(|Batches { batch, .. }| batch)).await;
            Done { writer: Some(writer).filter(|_| written.is_ok()), outcome: Outcome::History(batches, written) }
        }
    }
}

/// Looks up where the next of the batch's events are whose sequence is not known. Only a message with the event's own id counts.
async fn look_up(config: &Config, batch: &mut Batch, asked: &Asked) -> Result<(usize, Option<Reached>)> {
    let Asked { lane, control, stream, is_shared, reached } = asked;
    let Some(control) = control else {
        return Err(Error::unavailable("look up sequences for the history: the stream's lane is not open"));
    };
    let key = |position: &EventPosition| (position.rank(), position.commit_time);
    let unlocated = batch.unlocated().take(LOOKED_UP_MAX);
    let wanted: Vec<_> = unlocated.map(|(position, subject)| Wanted { key: key(position), subject }).collect();
    let last = batch.unlocated().take(LOOKED_UP_MAX).last().map(|(position, _)| *position);
    let from = reached.filter(|reached| wanted.first().is_some_and(|first| key(&reached.last) < first.key));
    let within = Within { stream, from: from.map(|reached| reached.next), is_shared: *is_shared };
    let key_of = |stored: &_| position_of(stored, &config.source).map(|position| key(&position));
    let (places, next) = match locate::locate(control, within, &wanted, key_of).await {
        Ok(located) => located,
        Err(error) if error.kind() == Kind::Unavailable => return Err(error),
        Err(error) => {
            tracing::warn!(
                "cannot look up the sequences of {} events; their rows in rule_nats_publish_history have none: {error}",
                wanted.len()
            );
            (vec![Sought::Unknown; wanted.len()], None)
        }
    };
    let place = |sought: &Sought| match sought {
        Sought::At(sequence) => Place::At(*sequence),
        Sought::Removed => Place::Removed,
        Sought::Unknown => Place::Unknown,
    };
    let places: Vec<_> = places.iter().map(place).collect();
    batch.locate(&places);
    Ok((*lane, last.zip(next).map(|(last, next)| Reached { last, next })))
}

async fn tidy(config: &Config, epoch: u64, writer: Option<Writer>) -> Done {
    match reach(config, epoch, writer).await {
        Err(error) => Done { writer: None, outcome: Outcome::Tidied(Err(error)) },
        Ok(writer) => {
            let tidied = async {
                let client = writer.client();
                // Behind somebody's lock it would keep the history waiting.
                let limited = client.batch_execute("SET lock_timeout = '1s'").await;
                limited.map_err(|error| sql::error("limit how long trimming waits for locks", error))?;
                let events = state_store::trim_events(client, config.events_retention, TIDY_ROWS).await?;
                let unmade = history::make_partitions(client).await?;
                let undropped = history::retire_partitions(client).await?;
                let rows = history::expire(client, TIDY_ROWS).await?;
                let free = client.batch_execute("SET lock_timeout = 0").await;
                free.map_err(|error| sql::error("let statements wait for locks again", error))?;
                Ok(Tidied { rows: events.max(rows), problem: unmade.or(undropped) })
            };
            let tidied = writer.client().answer(tidied).await;
            Done { writer: Some(writer).filter(|_| tidied.is_ok()), outcome: Outcome::Tidied(tidied) }
        }
    }
}

async fn survey(config: &Config, epoch: u64, writer: Option<Writer>, sources: Vec<consumers::Source>) -> Done {
    match reach(config, epoch, writer).await {
        Err(error) => Done { writer: None, outcome: Outcome::Surveyed(Err(error)) },
        Ok(writer) => {
            let kept = async { Ok(consumers::keep(writer.client(), sources).await) };
            let problems = writer.client().answer(kept).await;
            Done { writer: Some(writer).filter(|_| problems.is_ok()), outcome: Outcome::Surveyed(problems) }
        }
    }
}

async fn reach(config: &Config, epoch: u64, writer: Option<Writer>) -> Result<Writer> {
    match writer {
        Some(writer) => Ok(writer),
        None => {
            let client = Watched::connect(&config.postgres).await?;
            client.answer(identity::hold(&client, &config.source, epoch)).await?;
            client.answer(identity::hold_history(&client, &config.source)).await?;
            Ok(Writer::new(client, config))
        }
    }
}

fn not_taken(lost: u64, problem: &str) -> Error {
    Error::config(format!("rule_nats_publish_history refused {lost} rows; their events are published: {problem}"))
        .hint("repair the table (`walhook setup` makes what is missing), or keep no history: UPDATE rule_nats_config SET history = 'off'")
}
