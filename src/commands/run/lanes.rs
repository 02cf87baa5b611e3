//! The lanes' connections: opened, driven, and opened again after whatever went wrong.
//!
//! For each lane of the streamer: reach its NATS server, make its stream what the row says, read the stream's tail,
//! open the lane behind it; then move bytes out and acks in. One remedy for every failure: close the lane, let the
//! answers settle, read the tail, go on after it from the window.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::time::{Instant, sleep, sleep_until};

use super::{Backoff, ledger::Checkpoint};
use crate::{
    config::Config,
    error::{Error, Kind, Result},
    flow::{
        event_id::EventPosition,
        lane::{Lane, Moment, Refusal, Tail},
        streamer::Streamer,
    },
    nats::{
        ack::{Ack, HEADER_EXCEEDS_MAXIMUM, MESSAGE_EXCEEDS_MAXIMUM, WRONG_LAST_SEQUENCE},
        control::{self, Control},
        publish::Publisher,
        settings::{Overrides, Settings},
        streams, tail,
    },
    postgres,
    route::{
        payload::write_timestamp,
        tables::{ConfigRow, StreamRow},
    },
    wal::lsn::Lsn,
};

/// How long answers that are under way may take to come in before the tail is read without them.
const SETTLE: Duration = Duration::from_secs(1);
/// Bytes read from one connection before the others have their turn.
const READS_AT_A_TIME: usize = 8;

/// The database keeps microseconds of a stream's time of creation.
const CREATED_TOLERANCE_NS: u64 = 1_000_000;

/// All lanes' connections.
pub struct Lanes {
    drivers: Vec<Driver>,
    identity: Identity,
    overrides: Overrides,
    /// The configuration that they override.
    overridden: String,
    ack_timeout: Duration,
    /// What the server had written when the session began: no tail of ours is beyond it and what came since.
    server_wal: Lsn,
    /// Where earlier runs saw the streams stand.
    checkpoints: Vec<Checkpoint>,
    generation: u64,
    /// The steady clock's zero.
    began: Instant,
}

/// What tells a message of ours, and of this run.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The name of the feed.
    pub source: String,
    /// The count of this run.
    pub epoch: u64,
}

struct Driver {
    phase: Phase,
    /// The rows that the connection was made by.
    settings: Option<(ConfigRow, StreamRow)>,
    control: Option<Control>,
    backoff: Backoff,
    /// The last failure told, so that the log does not repeat it at every attempt.
    told: Option<String>,
    /// Where the stream was last seen to stand, by this run or an earlier one.
    known: Option<Checkpoint>,
    created_ns: i64,
    /// While connected: since when, in seconds since 1970.
    since: Option<u64>,
    /// The oldest event that waits for its answer, and since when.
    waiting: Option<(u64, Instant)>,
}

impl Driver {
    /// Where its stream stands; nothing while that was never seen.
    fn stands(&self, lane: &Lane) -> Option<Checkpoint> {
        let (position, sequence) = lane.floor()?;
        let (config, _) = self.settings.as_ref().filter(|_| self.created_ns != 0)?;
        Some(Checkpoint {
            config_name: config.config_name.clone(),
            stream: lane.stream().to_owned(),
            created_ns: self.created_ns,
            position,
            sequence,
        })
    }
}

enum Phase {
    /// The rows that say how to reach the stream are gone.
    Absent,
    Opening(Pin<Box<dyn Future<Output = Result<Opened>>>>),
    Running(Publisher),
    /// Closed; answers may still come.
    Settling(Publisher, Pin<Box<tokio::time::Sleep>>),
}

struct Opened {
    publisher: Publisher,
    control: Control,
    tail: Tail,
    created_ns: i64,
    warnings: Vec<String>,
    is_in_memory: bool,
}

impl Lanes {
    /// No connection yet; the first [`Lanes::poll`] begins.
    pub fn new(identity: Identity, config: &Config, server_wal: Lsn, checkpoints: Vec<Checkpoint>) -> Lanes {
        Lanes {
            drivers: Vec::new(),
            identity,
            overrides: config.nats.clone(),
            overridden: config.nats_config.clone(),
            ack_timeout: config.ack_timeout,
            server_wal,
            checkpoints,
            generation: 0,
            began: Instant::now(),
        }
    }

    /// The connection for the JetStream API of a lane's servers, while there is one.
    pub fn control(&self, index: usize) -> Option<&Control> {
        self.drivers.get(index)?.control.as_ref()
    }

    /// Sends, takes answers, mends. Ready when a lane was opened or gave something up, and, if `eager`, whenever an
    /// answer came. Cancel-safe: all state is in `self`.
    ///
    /// # Errors
    /// What nobody but the operator can mend: a stream that cannot be trusted, a newer run, no permission.
    pub fn poll(&mut self, cx: &mut Context<'_>, streamer: &mut Streamer, eager: bool) -> Poll<Result<()>> {
        self.follow(streamer);
        let mut notable = false;
        for index in 0..self.drivers.len() {
            notable |= self.poll_lane(cx, index, streamer, eager)?;
        }
        if notable { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    /// Where the streams stand, as far as acks have told.
    pub fn checkpoints(&self, streamer: &Streamer) -> Vec<Checkpoint> {
        let drivers = self.drivers.iter().enumerate();
        drivers.filter_map(|(index, driver)| driver.stands(streamer.lane(index))).collect()
    }

    /// For each configuration: where it is connected and since when, or why not.
    pub fn connections(&self) -> serde_json::Value {
        let mut connections = serde_json::Map::new();
        for driver in &self.drivers {
            let Some((config, _)) = &driver.settings else { continue };
            let server = match &driver.phase {
                Phase::Running(publisher) | Phase::Settling(publisher, _) => Some(publisher.target()),
                Phase::Absent | Phase::Opening(_) => None,
            };
            let connection = serde_json::json!({
                "server": server,
                "connected": server.is_some(),
                "connected_since": driver.since.filter(|_| server.is_some()).map(timestamp),
                "last_error": driver.told,
            });
            // Of several streams the one that is down tells more.
            let entry = connections.entry(config.config_name.clone()).or_insert_with(|| connection.clone());
            if server.is_none() {
                *entry = connection;
            }
        }
        connections.into()
    }

    /// Lanes that are not open, by their streams' names.
    pub fn closed<'s>(&self, streamer: &'s Streamer) -> impl Iterator<Item = &'s str> {
        (0..self.drivers.len()).map(|index| streamer.lane(index)).filter(|lane| !lane.is_open()).map(Lane::stream)
    }

    /// New lanes get a driver; lanes whose rows have changed are opened anew.
    fn follow(&mut self, streamer: &mut Streamer) {
        if self.generation == streamer.generation() {
            return;
        }
        self.generation = streamer.generation();
        for index in 0..streamer.lane_count() {
            let settings = streamer.lane_settings(index);
            if index == self.drivers.len() {
                let driver = Driver {
                    phase: Phase::Absent,
                    settings: None,
                    control: None,
                    backoff: Backoff::default(),
                    told: None,
                    known: settings.as_ref().and_then(|(config, stream)| {
                        let is_its = |known: &&Checkpoint| {
                            known.config_name == config.config_name && known.stream == stream.stream_name
                        };
                        self.checkpoints.iter().find(is_its).cloned()
                    }),
                    created_ns: 0,
                    since: None,
                    waiting: None,
                };
                self.drivers.push(driver);
            }
            let driver = &mut self.drivers[index];
            if settings.is_none() || driver.settings == settings {
                // Rows that are gone leave the lane to drain as it is.
                continue;
            }
            let same_server = driver.settings.as_ref().map(|(config, _)| config) == settings.as_ref().map(|(c, _)| c);
            let servers = |settings: &Option<(ConfigRow, StreamRow)>| {
                settings.as_ref().map(|(config, _)| (config.nats_url.clone(), config.nats_cluster_urls.clone()))
            };
            if driver.settings.is_some() && servers(&driver.settings) != servers(&settings) {
                // Another server's stream begins anew.
                driver.known = None;
                driver.created_ns = 0;
                streamer.lane_mut(index).forget_floor();
            }
            driver.settings = settings;
            driver.told = None;
            driver.backoff = Backoff::default();
            if !same_server {
                driver.control = None;
            }
            streamer.lane_mut(index).close();
            self.open(index, streamer, None, Duration::ZERO);
        }
    }

    /// Begins to open a lane after `wait`.
    fn open(&mut self, index: usize, streamer: &Streamer, publisher: Option<Publisher>, wait: Duration) {
        let driver = &mut self.drivers[index];
        driver.waiting = None;
        driver.known = driver.stands(streamer.lane(index)).or(driver.known.take());
        let Some((config, stream)) = driver.settings.clone() else {
            driver.phase = Phase::Absent;
            return;
        };
        let overrides = if config.config_name == self.overridden {
            self.overrides.clone()
        } else {
            let Overrides { allowed_hosts, allowed_dirs, .. } = self.overrides.clone();
            Overrides { allowed_hosts, allowed_dirs, ..Overrides::default() }
        };
        let opening = open(
            config,
            stream,
            overrides,
            self.identity.clone(),
            streamer.lane_inbox(index),
            streamer.known_wal().max(self.server_wal),
            streamer.lane(index).lists_behind(),
            driver.control.clone(),
            publisher,
            wait,
        );
        driver.phase = Phase::Opening(Box::pin(opening));
    }

    /// Returns whether something notable happened.
    fn poll_lane(&mut self, cx: &mut Context<'_>, index: usize, streamer: &mut Streamer, eager: bool) -> Result<bool> {
        let mut notable = false;
        loop {
            let driver = &mut self.drivers[index];
            match &mut driver.phase {
                Phase::Absent => return Ok(notable),
                Phase::Opening(opening) => match opening.as_mut().poll(cx) {
                    Poll::Pending => return Ok(notable),
                    Poll::Ready(Ok(opened)) => {
                        self.opened(index, streamer, opened)?;
                        notable = true;
                    }
                    Poll::Ready(Err(error)) => self.failed(index, streamer, error)?,
                },
                Phase::Running(publisher) => {
                    let lane = streamer.lane_mut(index);
                    let before = lane.len();
                    lane.set_time(moment(self.began));
                    let outcome = exchange(cx, publisher, lane);
                    let answered = lane.len() != before;
                    notable |= answered && eager;
                    match outcome {
                        Ok(Trouble::None) => {
                            if answered {
                                driver.backoff = Backoff::default();
                                driver.told = None;
                            }
                            let Some(error) = overdue(driver, streamer.lane(index), self.ack_timeout) else {
                                return Ok(notable);
                            };
                            // An answer that does not come may mean a connection that is dead without knowing it.
                            self.failed(index, streamer, error)?;
                        }
                        Ok(Trouble::Refused(error)) => {
                            streamer.lane_mut(index).close();
                            streamer.condemn()?;
                            notable = true;
                            tell(driver, &error);
                            let Phase::Running(publisher) = std::mem::replace(&mut driver.phase, Phase::Absent) else {
                                unreachable!("matched above")
                            };
                            driver.phase = Phase::Settling(publisher, Box::pin(sleep(SETTLE)));
                        }
                        Err(error) => self.failed(index, streamer, error)?,
                    }
                }
                Phase::Settling(publisher, until) => {
                    let lane = streamer.lane_mut(index);
                    lane.set_time(moment(self.began));
                    let outcome = exchange(cx, publisher, lane);
                    let settled = !lane.awaits_answers() || until.as_mut().poll(cx).is_ready();
                    match outcome {
                        Ok(_) => {
                            streamer.condemn()?;
                            if !settled {
                                return Ok(notable);
                            }
                            let Phase::Settling(publisher, _) = std::mem::replace(&mut driver.phase, Phase::Absent)
                            else {
                                unreachable!("matched above")
                            };
                            // At once the first time; a stream that goes on refusing is not to be hammered.
                            let first = driver.backoff.failures == 0;
                            let wait = driver.backoff.next();
                            let wait = if first { Duration::ZERO } else { wait };
                            // One that was cut off within a message is of no more use.
                            let publisher = Some(publisher).filter(Publisher::is_between);
                            self.open(index, streamer, publisher, wait);
                        }
                        Err(error) => self.failed(index, streamer, error)?,
                    }
                }
            }
        }
    }

    fn opened(&mut self, index: usize, streamer: &mut Streamer, mut opened: Opened) -> Result<()> {
        let driver = &mut self.drivers[index];
        let lane = streamer.lane_mut(index);
        if let Some(known) = &driver.known {
            match trusted(known, opened.created_ns, &opened.tail) {
                // Removed since (purged, expired): the checkpoint knows what was there.
                Ok(()) => {
                    let is_newer = |(ours, _): &(EventPosition, u64)| known.position.is_at_or_before(ours);
                    if !opened.tail.ours.as_ref().is_some_and(is_newer) {
                        opened.tail.ours = Some((known.position, known.sequence));
                    }
                }
                Err(error) if opened.is_in_memory => {
                    opened.warnings.push(error.to_string());
                    lane.forget_floor();
                }
                Err(error) => return Err(error),
            }
        }
        lane.set_time(moment(self.began));
        lane.open(&opened.tail)?;
        for warning in opened.warnings {
            tracing::warn!(stream = lane.stream(), "{warning}");
        }
        tracing::info!(
            stream = lane.stream(),
            server = opened.publisher.target(),
            nats = opened.publisher.info().version,
            last_sequence = opened.tail.last_sequence,
            tail = opened.tail.ours.map(|(position, _)| position.id(&self.identity.source)),
            unsettled = lane.len(),
            "stream opened"
        );
        driver.control = Some(opened.control);
        driver.created_ns = opened.created_ns;
        driver.known = driver.stands(lane);
        driver.since = SystemTime::now().duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs());
        driver.waiting = None;
        driver.phase = Phase::Running(opened.publisher);
        streamer.condemn()
    }

    /// Something failed: back to opening, unless nobody but the operator can help.
    fn failed(&mut self, index: usize, streamer: &mut Streamer, error: Error) -> Result<()> {
        let stream = streamer.lane(index).stream();
        let error = error.context(format!("stream {stream:?}"));
        streamer.lane_mut(index).close();
        streamer.condemn()?;
        // A row that makes no sense is its own streams' problem; the others flow.
        if !matches!(error.kind(), Kind::Unavailable | Kind::Config | Kind::Protocol) {
            return Err(error);
        }
        let driver = &mut self.drivers[index];
        tell(driver, &error);
        // A new one reads files and certificates anew.
        driver.control = None;
        let wait = driver.backoff.next();
        self.open(index, streamer, None, wait);
        Ok(())
    }
}

/// Now, the steady clock counted from `began`.
fn moment(began: Instant) -> Moment {
    Moment {
        wall: postgres::now(),
        steady: u64::try_from(began.elapsed().as_micros()).expect("some hundred thousand years"),
    }
}

/// ISO 8601 of a number of seconds since 1970.
fn timestamp(seconds: u64) -> String {
    const Y2K: i64 = 946_684_800;
    let mut text = String::new();
    write_timestamp((i64::try_from(seconds).unwrap_or(i64::MAX / 2_000_000) - Y2K) * 1_000_000, &mut text);
    text
}

/// Logs a failure unless it is the one logged last.
fn tell(driver: &mut Driver, error: &Error) {
    let text = error.to_string();
    if driver.told.as_ref() != Some(&text) {
        tracing::warn!("{text}");
        driver.told = Some(text);
    }
}

/// The error of a lane whose oldest message has waited too long.
fn overdue(driver: &mut Driver, lane: &Lane, ack_timeout: Duration) -> Option<Error> {
    let oldest = lane.front().filter(|_| lane.awaits_answers())?;
    match driver.waiting {
        Some((waiting, since)) if waiting == oldest => (since.elapsed() >= ack_timeout).then(|| {
            Error::unavailable(format!("no answer from stream {:?} for {} ms", lane.stream(), ack_timeout.as_millis()))
                .hint("check JetStream's health; a publish that the account may not make also goes unanswered")
        }),
        _ => {
            driver.waiting = Some((oldest, Instant::now()));
            None
        }
    }
}

enum Trouble {
    None,
    Refused(Error),
}

/// Moves bytes out and answers in, as far as the socket allows.
fn exchange(cx: &mut Context<'_>, publisher: &mut Publisher, lane: &mut Lane) -> Result<Trouble> {
    loop {
        let bytes = lane.unsent();
        if bytes.is_empty() {
            let _ = publisher.poll_flush(cx)?;
            break;
        }
        match publisher.poll_write(cx, bytes)? {
            Poll::Ready(count) => {
                lane.mark_sent(count);
                publisher.set_between(lane.is_between_messages());
            }
            Poll::Pending => break,
        }
    }
    let mut trouble = Trouble::None;
    for _ in 0..READS_AT_A_TIME {
        match publisher.poll_read(cx)? {
            Poll::Ready(()) => {}
            Poll::Pending => return Ok(trouble),
        }
        publisher.answers(|answer| {
            let refusal = match answer.ack {
                Ack::Stored { sequence, duplicate } => match lane.acked(answer.token, sequence, duplicate) {
                    Ok(()) => return Ok(()),
                    Err(refusal) => refusal,
                },
                Ack::Refused { code: WRONG_LAST_SEQUENCE, .. } => Refusal::WrongSequence,
                Ack::Refused { code: MESSAGE_EXCEEDS_MAXIMUM | HEADER_EXCEEDS_MAXIMUM, description } => {
                    Refusal::Never(format!("stream {} refuses it: {description}", lane.stream()))
                }
                Ack::Refused { code, description } => Refusal::NotNow(format!("{description} ({code})")),
                Ack::NoResponders => Refusal::NotNow("no stream takes its subject, or JetStream is away".to_owned()),
            };
            let is_news = lane.refused(answer.token, &refusal);
            let out_of_place = refusal == Refusal::WrongSequence;
            if matches!(trouble, Trouble::None) && (is_news || out_of_place) {
                let why = match refusal {
                    Refusal::WrongSequence => "another last sequence than expected".to_owned(),
                    Refusal::Never(why) | Refusal::NotNow(why) => why,
                };
                let error = Error::unavailable(format!(
                    "stream {:?} refused a message: {why}; reading its tail to go on from there",
                    lane.stream()
                ));
                trouble = Trouble::Refused(error);
            }
            Ok(())
        })?;
    }
    // More may be waiting: come back after the others had their turn.
    cx.waker().wake_by_ref();
    Ok(trouble)
}

#[allow(clippy::too_many_arguments, reason = "a future of its own holds all that it needs")]
async fn open(
    config: ConfigRow,
    stream: StreamRow,
    overrides: Overrides,
    identity: Identity,
    inbox: String,
    server_wal: Lsn,
    lists_behind: Option<u64>,
    control: Option<Control>,
    publisher: Option<Publisher>,
    wait: Duration,
) -> Result<Opened> {
    sleep_until(Instant::now() + wait).await;
    let settings = Settings::resolve(&config, &overrides)?;
    let control = match control {
        Some(control) => control,
        None => control::connect(&settings).await?,
    };
    let mut warnings = settings.warnings.clone();
    let state = match streams::ensure(&control, &stream).await {
        Ok(state) => state,
        // The row wants what JetStream does not allow. Where the stream exists, events flow into it as it is.
        Err(error) if error.kind() == Kind::Config => {
            let state =
                streams::state(&control, &stream.stream_name).await.map_err(|_| Error::config(error.to_string()))?;
            warnings.push(error.to_string());
            state
        }
        Err(error) => return Err(error),
    };
    warnings.extend(state.warnings.iter().cloned());
    let end =
        tail::last_of_ours(&control, &stream.stream_name, |stored| position_of(stored, &identity.source).is_some())
            .await?;
    let ours = end.ours.as_ref().and_then(|stored| Some((position_of(stored, &identity.source)?, stored.sequence)));
    if let Some(stored) = &end.ours {
        let epoch = stored.header("Walhook-Epoch").and_then(|epoch| epoch.parse::<u64>().ok()).unwrap_or(0);
        if epoch > identity.epoch {
            return Err(Error::new(
                Kind::Fenced,
                format!(
                    "run {} of source {:?} publishes already; this is run {}",
                    epoch, identity.source, identity.epoch
                ),
            )
            .hint("a newer walhook has taken over; let this one go"));
        }
    }
    if let Some((position, sequence)) = &ours
        && position.commit_lsn > server_wal
    {
        return Err(Error::untrusted(format!(
            "go on in stream {:?}: its message {sequence} is of {}, beyond PostgreSQL's WAL, which ends at {server_wal}",
            stream.stream_name, position.commit_lsn
        ))
        .hint(
            "the database was restored or failed over to an earlier point; decide what of the stream is true, then \
               start with another source name or another stream",
        ));
    }
    let publisher = match publisher {
        Some(publisher) => publisher,
        None => Publisher::open(&settings, &inbox).await?,
    };
    let max_payload = publisher.info().max_payload.min(state.max_msg_size.unwrap_or(usize::MAX));
    let listed = match lists_behind {
        None => Vec::new(),
        Some(behind) => {
            let is_ours = |stored: &tail::Stored| position_of(stored, &identity.source).is_some();
            let stored = tail::ours_behind(&control, &stream.stream_name, behind, end.last_sequence, is_ours).await?;
            stored.iter().filter_map(|stored| position_of(stored, &identity.source)).collect()
        }
    };
    let tail = Tail { last_sequence: end.last_sequence, ours, listed, subjects: state.subjects, max_payload };
    let is_in_memory = state.storage == "memory";
    Ok(Opened { publisher, control, tail, created_ns: end.created_ns, warnings, is_in_memory })
}

/// Whether a stream is the one that was known and has kept what it acknowledged. What was removed from it in an orderly
/// way still counts in its last sequence.
fn trusted(known: &Checkpoint, created_ns: i64, tail: &Tail) -> Result<()> {
    let Checkpoint { config_name, stream, sequence, .. } = known;
    let what = if known.created_ns.abs_diff(created_ns) > CREATED_TOLERANCE_NS {
        "it was made anew since".to_owned()
    } else if tail.last_sequence < *sequence {
        format!("it ends at message {} now", tail.last_sequence)
    } else {
        return Ok(());
    };
    Err(Error::untrusted(format!("go on in stream {stream:?}, which had taken message {sequence}: {what}")).hint(
        format!(
            "acknowledged events are missing from it: bring the old stream back, or accept the loss by DELETE FROM \
         rule_nats_checkpoints WHERE config_name = '{config_name}' AND stream_name = '{stream}'"
        ),
    ))
}

/// The position that a stored message of ours tells.
pub fn position_of(stored: &tail::Stored, source: &str) -> Option<EventPosition> {
    let id = stored.header("Walhook-Id").or_else(|| stored.header("Nats-Msg-Id"))?;
    EventPosition::parse(id, source)
}
