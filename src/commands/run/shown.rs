//! What a run shows by HTTP: counters of all its sessions, how the streams and the slot stand.
//!
//! In: the streamer's and the lanes' own counters, once a second, and what the database and JetStream answer every few seconds. Out:
//! the snapshot that is served. Always holds: nothing here is asked for an event; counters only grow over the life of the
//! process, though each session begins to count anew.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde_json::Value;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep},
};
use tokio_postgres::Client;

use super::{history_writer::HistoryWriter, lanes::Lanes};
use crate::{
    commands::{
        breaks::{self, SHOWS_WITHIN},
        http,
        log_once::LogOnce,
        setup_check::{Finding, Severity},
    },
    config::Config,
    error::{Error, Kind, Result},
    flow::{
        lane::{Lane, Times},
        streamer::{Counts, Obstacle, Streamer, WebhookCounts},
    },
    http::{
        server::Shared,
        snapshot::{DeadLetter, Nats, Published, PublishedName, Run, Slot, Snapshot, Stream},
    },
    nats::control::Control,
    postgres::{self, sql},
    route::rules::Webhook,
    wal::{change::Op, lsn::Lsn},
};

/// How often the database is asked.
const ASK: Duration = Duration::from_secs(5);
/// How often JetStream is asked how full its streams are.
const ASK_STREAMS: Duration = Duration::from_secs(10);
const _: () = assert!(ASK.as_secs() + http::EVERY.as_secs() <= SHOWS_WITHIN.as_secs());
/// How many dead letters, replays and backfills are shown, the newest ones.
const SHOWN_MAX: i64 = 20;

const SLOT: &str = "SELECT lag_bytes, retained_bytes, safe_wal_size, wal_status FROM public.rule_cdc_slots \
    WHERE slot_name::text = $1";
const DEAD_LETTERS: &str = "SELECT count(*) FROM public.rule_nats_dead_letters WHERE status = 'dead'";
const NEWEST: &str = "SELECT dead_letter_id, webhook_name, reason, extract(epoch FROM created_at)::float8 \
    FROM public.rule_nats_dead_letters WHERE status = 'dead' ORDER BY dead_letter_id DESC LIMIT $1";
const JOBS: &str = "SELECT job::text FROM ( \
        SELECT json_build_object('kind', 'replay', 'id', replay_id, 'of', from_point, 'status', status, 'done', events_sent) AS job, \
               updated_at \
        FROM public.rule_cdc_replays WHERE source = $1 AND status IN ('requested', 'running') \
        UNION ALL \
        SELECT json_build_object('kind', 'backfill', 'id', backfill_id, 'of', table_schema || '.' || table_name, 'status', status, \
                                 'done', rows_sent, 'estimated', rows_estimated), updated_at \
        FROM public.rule_cdc_backfills WHERE status = 'running' \
    ) jobs ORDER BY updated_at DESC LIMIT $2";

/// Counters of a session, or of several.
#[derive(Debug, Clone, Default)]
struct Totals {
    counts: Counts,
    history_rows_lost: u64,
    rules: u64,
    publish_errors: BTreeMap<String, u64>,
    streams: BTreeMap<String, StreamTotals>,
}

#[derive(Debug, Clone, Default)]
struct StreamTotals {
    published: u64,
    duplicates: u64,
    times: Times,
}

impl Totals {
    fn add(&mut self, more: &Totals) {
        let add = |to: &mut [u64], from: &[u64]| to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
        add(&mut self.counts.changes, &more.counts.changes);
        add(&mut self.counts.dead_letters, &more.counts.dead_letters);
        self.counts.emitted += more.counts.emitted;
        self.counts.emitted_refused += more.counts.emitted_refused;
        self.history_rows_lost += more.history_rows_lost;
        self.rules += more.rules;
        for (code, count) in &more.publish_errors {
            *self.publish_errors.entry(code.clone()).or_default() += count;
        }
        for (stream, totals) in &more.streams {
            self.streams.entry(stream.clone()).or_default().add(totals);
        }
    }
}

impl StreamTotals {
    fn add(&mut self, more: &StreamTotals) {
        self.published += more.published;
        self.duplicates += more.duplicates;
        self.times.add(&more.times);
    }
}

/// See the module.
pub struct Shown {
    shared: Shared,
    slot_name: String,
    /// Of the sessions before this one.
    before: Totals,
    /// Of this session, as last seen.
    now: Totals,
    /// What was confirmed when it last moved, and when that was.
    confirmed: (Lsn, Instant),
    fullness: Fullness,
    published: WebhookTotals,
}

/// What was counted of each webhook, over all sessions.
#[derive(Default)]
struct WebhookTotals {
    /// Of the sessions before this one, by id.
    before: HashMap<i32, WebhookCounts>,
    /// The same in the order of `shown`.
    base: Vec<WebhookCounts>,
    /// Of the rules, in this session.
    generation: u64,
    /// The last event that was counted.
    counted: (Lsn, u64),
    shown: Published,
}

impl WebhookTotals {
    /// The names are made anew only when the rules have changed: there may be ten thousand of them.
    fn follow(&mut self, streamer: &Streamer) -> Published {
        let (webhooks, counts) = streamer.webhooks();
        self.counted = streamer.counted();
        if self.generation != streamer.generation() {
            self.generation = streamer.generation();
            self.base =
                webhooks.iter().map(|webhook| self.before.get(&webhook.id).copied().unwrap_or_default()).collect();
            let name = |webhook: &Webhook| PublishedName {
                id: webhook.id,
                name: webhook.name.clone(),
                problem: webhook.problem.clone(),
                publishes: webhook.publishes,
            };
            self.shown.names = webhooks.iter().map(name).collect();
        }
        let sum = |(base, now): (&WebhookCounts, &WebhookCounts)| WebhookCounts {
            events: base.events + now.events,
            dead: base.dead + now.dead,
            last: base.last.max(now.last),
        };
        self.shown.counts = self.base.iter().zip(counts).map(sum).collect();
        self.shown.clone()
    }

    /// The next session counts from 0.
    fn end_session(&mut self) {
        let counts = self.shown.names.iter().map(|name| name.id).zip(self.shown.counts.iter().copied());
        self.before.extend(counts.filter(|(_, counts)| counts.events > 0));
        self.generation = 0;
    }
}

impl Shown {
    /// Nothing to show yet.
    pub fn new(shared: Shared, config: &Config) -> Shown {
        Shown {
            shared,
            slot_name: config.slot.clone(),
            before: Totals::default(),
            now: Totals::default(),
            confirmed: (Lsn::ZERO, Instant::now()),
            fullness: Fullness::default(),
            published: WebhookTotals::default(),
        }
    }

    /// Where others put what they know.
    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// A session begins.
    pub fn begin(&self, streamer: &mut Streamer) {
        streamer.set_counted(self.published.counted);
    }

    /// The session has ended, or did not come about.
    pub fn disconnected(&mut self, name: &'static str, why: &str) {
        self.before.add(&std::mem::take(&mut self.now));
        self.fullness = Fullness::default();
        self.published.end_session();
        self.shared.update(|snapshot| {
            snapshot.postgres_connected = false;
            snapshot.postgres_error = Some(why.to_owned());
            snapshot.postgres_finding = Some(name);
            snapshot.history_blocked = None;
            snapshot.refused = None;
            snapshot.dead_letters = None;
            if let Some(run) = &mut snapshot.run {
                run.slot = None;
            }
        });
    }

    /// How things are in the session.
    pub fn show(&mut self, streamer: &Streamer, lanes: &Lanes, history_writer: &HistoryWriter) {
        self.now = totals(streamer, lanes, history_writer);
        let mut all = self.before.clone();
        all.add(&self.now);
        let (received, confirmed) = (streamer.received(), streamer.confirmed());
        if confirmed > self.confirmed.0 || confirmed >= received {
            self.confirmed = (confirmed, Instant::now());
        }
        #[allow(clippy::cast_precision_loss, reason = "seconds with a few digits")]
        let age = |time: i64| (postgres::now().saturating_sub(time) as f64 / 1e6).max(0.0);
        let run = Run {
            slot_name: self.slot_name.clone(),
            slot: None,
            lag_seconds: streamer.oldest_commit_time().map_or(0.0, age),
            unconfirmed_seconds: self.confirmed.1.elapsed().as_secs_f64(),
            changes: Op::ALL.iter().map(|op| (op.as_str(), all.counts.changes[op.index()])).collect(),
            emitted: vec![
                ("accepted", all.counts.emitted - all.counts.emitted_refused),
                ("refused", all.counts.emitted_refused),
            ],
            streams: self.streams(&all, streamer),
            webhooks: self.published.follow(streamer),
            publish_errors: all.publish_errors.into_iter().collect(),
            history_rows_lost: all.history_rows_lost,
            config_version: all.rules,
        };
        let reasons =
            Obstacle::ALL.iter().map(|obstacle| (obstacle.as_str(), all.counts.dead_letters[*obstacle as usize]));
        let dead_letters_total = reasons.collect();
        let nats = lanes.connections(streamer).iter().map(|(config, connection)| nats(config, connection)).collect();
        self.fullness.follow(streamer, lanes);
        let history_blocked = history_writer.stuck().map(str::to_owned);
        self.shared.update(|snapshot| {
            snapshot.postgres_connected = true;
            snapshot.postgres_error = None;
            snapshot.postgres_finding = None;
            snapshot.history_blocked = history_blocked;
            snapshot.dead_letters_total = dead_letters_total;
            snapshot.nats = nats;
            let slot = snapshot.run.take().and_then(|run| run.slot);
            snapshot.run = Some(Run { slot, ..run });
        });
    }

    /// Each stream once: where two configurations have one of the same name, both together.
    fn streams(&self, all: &Totals, streamer: &Streamer) -> Vec<Stream> {
        let mut streams: BTreeMap<&str, Stream> = BTreeMap::new();
        for (name, totals) in &all.streams {
            let StreamTotals { published, duplicates, times } = totals;
            let stream = Stream {
                stream: name.clone(),
                is_open: true,
                published: *published,
                duplicates: *duplicates,
                publish: times.publish,
                commit_to_ack: times.commit_to_ack,
                used_ratio: self.fullness.of(name),
                ..Stream::default()
            };
            streams.insert(name, stream);
        }
        for index in 0..streamer.lane_count() {
            let lane: &Lane = streamer.lane(index);
            let Some(stream) = streams.get_mut(lane.stream()) else { continue };
            if let Some(settings) = streamer.lane_settings(index).filter(|_| stream.config.is_empty()) {
                stream.config = settings.config.config_name;
            }
            stream.is_open &= lane.is_open() || lane.is_empty();
            stream.window_events += lane.len() as u64;
            stream.window_bytes += lane.bytes() as u64;
            stream.last_sequence = stream.last_sequence.max(lane.last_stored().map(|(_, sequence)| sequence));
        }
        streams.into_values().collect()
    }
}

fn totals(streamer: &Streamer, lanes: &Lanes, history_writer: &HistoryWriter) -> Totals {
    let mut streams: BTreeMap<String, StreamTotals> = BTreeMap::new();
    for index in 0..streamer.lane_count() {
        let lane = streamer.lane(index);
        let (published, duplicates) = lane.counts();
        let totals = StreamTotals { published, duplicates, times: *lane.times() };
        streams.entry(lane.stream().to_owned()).or_default().add(&totals);
    }
    Totals {
        counts: streamer.counts(),
        history_rows_lost: history_writer.lost(),
        rules: streamer.generation(),
        publish_errors: lanes.driver().publish_errors(),
        streams,
    }
}

fn nats(config: &str, connection: &Value) -> Nats {
    let text = |name: &str| connection[name].as_str().map(str::to_owned);
    let connected = connection["connected"] == true;
    let is_wrong = !connected || connection["refuses"] == true;
    Nats {
        config: config.to_owned(),
        connected,
        server: text("server"),
        error: text("last_error").filter(|_| is_wrong),
        finding: text("finding").filter(|_| is_wrong),
        holds_slot: connection["holds_slot"] == true,
    }
}

/// Streams, each with a connection to ask about it.
type Wanted = Vec<(Control, String)>;

/// How full the streams are that take no more when they are full.
#[derive(Default)]
struct Fullness {
    ratios: Arc<Mutex<HashMap<String, f64>>>,
    /// Of the rules and of the connections, as last told to the task.
    generations: (u64, u64),
    task: Option<(watch::Sender<Wanted>, JoinHandle<()>)>,
}

impl Drop for Fullness {
    fn drop(&mut self) {
        if let Some((_, task)) = &self.task {
            task.abort();
        }
    }
}

impl Fullness {
    fn of(&self, stream: &str) -> Option<f64> {
        self.ratios.lock().unwrap_or_else(PoisonError::into_inner).get(stream).copied()
    }

    fn follow(&mut self, streamer: &Streamer, lanes: &Lanes) {
        let generations = (streamer.generation(), lanes.driver().connected_times());
        if generations == self.generations {
            return;
        }
        self.generations = generations;
        let controls = lanes.controls();
        let wanted = lanes.wanted_streams(streamer);
        let streams = wanted.into_iter().filter_map(|(config, streams)| Some((controls.get(&config)?, streams)));
        let streams = streams.flat_map(|(control, streams)| streams.into_iter().map(|name| (control.clone(), name)));
        let streams: Vec<_> = streams.collect();
        let (sender, _) = self.task.get_or_insert_with(|| {
            let (sender, receiver) = watch::channel(Vec::new());
            (sender, tokio::spawn(ask_streams(receiver, Arc::clone(&self.ratios))))
        });
        sender.send_replace(streams);
    }
}

async fn ask_streams(mut wanted: watch::Receiver<Wanted>, ratios: Arc<Mutex<HashMap<String, f64>>>) {
    loop {
        let streams = wanted.borrow_and_update().clone();
        let mut found = HashMap::new();
        for (control, stream) in streams {
            // What goes wrong here goes wrong where the stream is used as well, and is told there.
            if let Ok(Ok(info)) = control.api(&format!("STREAM.INFO.{stream}"), &Value::Null).await
                && let Some(ratio) = used_ratio(&info)
            {
                found.insert(stream, ratio);
            }
        }
        *ratios.lock().unwrap_or_else(PoisonError::into_inner) = found;
        tokio::select! {
            () = sleep(ASK_STREAMS) => {}
            changed = wanted.changed() => if changed.is_err() { return },
        }
    }
}

/// Of a stream that refuses what it has no room for: how much of its nearest limit is used. One that deletes its oldest messages
/// instead is full most of the time.
fn used_ratio(info: &Value) -> Option<f64> {
    if info["config"]["discard"] != "new" {
        return None;
    }
    let ratio = |used: &str, limit: &str| {
        let limit = info["config"][limit].as_f64().filter(|limit| *limit > 0.0)?;
        Some(info["state"][used].as_f64()? / limit)
    };
    [ratio("messages", "max_msgs"), ratio("bytes", "max_bytes")].into_iter().flatten().reduce(f64::max)
}

/// Asks the database for what only it knows, until the connection is lost.
pub async fn ask(config: &Config, client: &Client, shared: &Shared) -> Result<Infallible> {
    let mut logged = LogOnce::default();
    loop {
        let began = Instant::now();
        match answers(config, client).await {
            Ok(answers) => {
                logged.forget();
                shared.update(|snapshot| answers.put(snapshot));
                shared.update(|snapshot| snapshot.refused = None);
            }
            Err(error) if client.is_closed() => return Err(error),
            Err(error) => {
                let text = error.to_string();
                if logged.is_news(&text) {
                    tracing::warn!(finding = breaks::of_postgres(&error), "{text}");
                }
                if error.kind() == Kind::Permission {
                    shared.update(|snapshot| snapshot.refused = Some(text));
                }
            }
        }
        // Where there is much to count, it takes no more than a twentieth of the time.
        sleep(ASK.max(began.elapsed() * 20)).await;
    }
}

struct Answers {
    slot: Option<Slot>,
    dead_letters: u64,
    newest: Vec<DeadLetter>,
    jobs: Vec<Value>,
}

impl Answers {
    fn put(self, snapshot: &mut Snapshot) {
        snapshot.dead_letters = Some(self.dead_letters);
        snapshot.newest_dead_letters = self.newest;
        snapshot.jobs = self.jobs;
        if let Some(run) = &mut snapshot.run {
            run.slot = self.slot;
        }
    }
}

async fn answers(config: &Config, client: &Client) -> Result<Answers> {
    let failed = |error| sql::error("read the slot, dead letters, replays and backfills for HTTP", error);
    let unsigned = |value: i64| u64::try_from(value).unwrap_or(0);
    let slot = client.query_opt(SLOT, &[&config.slot]).await.map_err(failed)?.map(|row| Slot {
        lag_bytes: row.get::<_, Option<i64>>(0).map_or(0, unsigned),
        retained_bytes: row.get::<_, Option<i64>>(1).map_or(0, unsigned),
        safe_bytes: row.get::<_, Option<i64>>(2).map(unsigned),
        wal_status: row.get::<_, Option<String>>(3).unwrap_or_default(),
    });
    let count = client.query_one(DEAD_LETTERS, &[]).await.map_err(failed)?;
    let newest = client.query(NEWEST, &[&SHOWN_MAX]).await.map_err(failed)?;
    let newest = newest.iter().map(|row| DeadLetter {
        id: row.get(0),
        webhook: row.get(1),
        reason: crate::text::one_line(row.get(2)).into_owned(),
        at: row.get(3),
    });
    let jobs = client.query(JOBS, &[&config.source, &SHOWN_MAX]).await.map_err(failed)?;
    let job = |row: &tokio_postgres::Row| {
        serde_json::from_str(row.get(0)).map_err(|error| Error::protocol("read replays and backfills").caused_by(error))
    };
    Ok(Answers {
        slot,
        dead_letters: unsigned(count.get(0)),
        newest: newest.collect(),
        jobs: jobs.iter().map(job).collect::<Result<_>>()?,
    })
}

/// Shows what the check of the set-up has found.
pub fn show_findings(shared: &Shared, findings: &[Finding]) {
    let broken = findings.iter().filter(|finding| finding.severity >= Severity::Error).count() as u64;
    let findings = findings.iter().take(200).map(|finding| serde_json::json!(finding)).collect();
    shared.update(|snapshot| {
        snapshot.links_broken = Some(broken);
        snapshot.findings = findings;
    });
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_a_stream_that_refuses_what_it_has_no_room_for_can_be_too_full() {
        let info = |discard: &str, max_msgs: i64, max_bytes: i64| {
            json!({"config": {"discard": discard, "max_msgs": max_msgs, "max_bytes": max_bytes},
                   "state": {"messages": 50, "bytes": 900}})
        };
        assert_eq!(used_ratio(&info("new", 100, 1000)), Some(0.9));
        assert_eq!(used_ratio(&info("new", 100, -1)), Some(0.5));
        assert_eq!(used_ratio(&info("new", -1, -1)), None);
        assert_eq!(used_ratio(&info("old", 100, 1000)), None);
    }
}
