//! One run: servers, walhook between them, a workload, faults one after the other, and the judgement in the end.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use async_nats::jetstream::{self, consumer::pull};
use fastrand::Rng;
use futures_util::StreamExt;
use serde_json::Value;
use tokio_postgres::{NoTls, SimpleQueryMessage};

use super::{
    faults::{Fault, KINDS},
    support::{
        self, Nats, Postgres, Proxy, Walhook, eventually,
        feed::{Feed, Message},
        oracle::{self, Committed, Findings, NO_STREAM, Sample},
    },
    workload::{self, STREAMS, TABLES, Workload},
};

/// Short, so that freezing for a moment costs the connection.
pub const WAL_SENDER_TIMEOUT: Duration = Duration::from_secs(3);

/// How long recovery may take on a busy machine. Nothing is waited for that long where all is well.
const RECOVERED: Duration = Duration::from_secs(120);

/// When the workload begins to do less until that is so.
const CALM: Duration = Duration::from_secs(4);

/// In KiB; the window, and what a process of this kind takes.
const RSS_MAX: u64 = 100 * 1024;

pub struct World {
    pub feed: Arc<Feed>,
    pub walhook: Walhook,
    pub postgres_proxy: Proxy,
    pub nats_proxy: Proxy,
    /// The server of the second configuration.
    pub second: Nats,
    settings: tempfile::TempDir,
    findings: Findings,
    /// What was seen to have happened.
    pub effects: Vec<&'static str>,
    /// How many copies of the database there were.
    pub copies: usize,
}

/// What a run came to.
pub struct Outcome {
    pub seed: u64,
    pub findings: Findings,
    /// Events, in all streams.
    pub events: usize,
    /// Of these, to core NATS, which promises nothing, and how many of them a stream has all the same.
    pub to_core: [usize; 2],
    /// Changes of configuration rows, by what changed.
    pub rule_changes: BTreeMap<String, usize>,
    pub faults: Vec<&'static str>,
    /// What was seen to have happened besides: a fault alone may strike nothing.
    pub effects: Vec<&'static str>,
    /// From the mending of a fault until all that was committed by then is confirmed.
    pub recoveries: Vec<Duration>,
    pub rss_kib: u64,
    /// Times that confirmed LSN and tails were compared.
    pub samples: usize,
}

/// One run of `seed`.
pub async fn run(seed: u64) -> Outcome {
    let (mut rng, began) = (Rng::with_seed(seed), Instant::now());
    let conf = format!("wal_sender_timeout = {}", WAL_SENDER_TIMEOUT.as_millis());
    let pg = Postgres::builder().conf(&conf).start().await;
    let (nats, second) = (Nats::start().await, Nats::start().await);
    let remembers = rng.bool();
    let mut world = World::begin(pg, nats, second, if remembers { 120 } else { 1 }).await;
    let sampler = Sampler::start(&world);
    let shares = remembers && rng.bool();
    let urls = [world.nats_urls(), world.addresses()];
    let mut workload = Workload::start(&world.feed.pg, urls, seed, rng.u64(2..5), shares);
    // Each seed has some kinds of fault and not the others: what is rare is found where much else is quiet.
    let mut kinds: Vec<(&'static str, Fault)> = KINDS.to_vec();
    rng.shuffle(&mut kinds);
    kinds.truncate(rng.usize(2..9));
    let (mut faults, mut recoveries, mut rss_kib) = (Vec::new(), Vec::new(), 0);
    for _ in 0..rng.u32(3..7) {
        tokio::time::sleep(Duration::from_millis(rng.u64(0..600))).await;
        let (name, fault) = kinds[rng.usize(0..kinds.len())];
        faults.push(name);
        eprintln!("seed {seed}, after {:.1} s: {name}", began.elapsed().as_secs_f32());
        fault.happen(&mut world, &mut rng).await;
        rss_kib = rss_kib.max(peak_rss_kib(world.walhook.pid()));
        match world.recovered(&workload.calm).await {
            Ok(took) => recoveries.push(took),
            Err(problem) => {
                world.findings.add(format!("after {name}: {problem}"));
                break;
            }
        }
    }
    workload.stop();
    if !world.findings.is_clean() {
        world.findings.add("not waited for in the end");
    } else if let Err(problem) = world.recovered(&workload.calm).await {
        world.findings.add(format!("in the end: {problem}"));
    }
    rss_kib = rss_kib.max(peak_rss_kib(world.walhook.pid()));
    world.expect(rss_kib < RSS_MAX, || format!("{rss_kib} KiB of memory"));
    if world.findings.is_clean() {
        let code = world.walhook.terminate();
        world.expect(code == 0, || format!("exit code {code} in the end"));
    }
    let samples = sampler.stop();
    eprintln!("seed {seed}, after {:.1} s: judgement", began.elapsed().as_secs_f32());
    let (committed, stored_by_core) = world.judge(&samples).await;
    let mut findings = std::mem::take(&mut world.findings);
    if !findings.is_clean() {
        let log = world.walhook.log();
        let file = std::env::temp_dir().join(format!("walhook-chaos-{seed}-{}.log", std::process::id()));
        std::fs::write(&file, &log).unwrap();
        let panics = log.lines().skip_while(|line| !line.contains("panicked at")).take(3);
        findings.examples.extend(panics.map(str::to_owned));
        findings.examples.push(format!("all of walhook's log: {}", file.display()));
        findings.examples.push(format!("the last of walhook's log:\n{}", support::process::tail(&log)));
    }
    world.wake();
    let to_core = committed.facts.iter().filter(|fact| fact.stream == NO_STREAM).count();
    Outcome {
        seed,
        findings,
        events: committed.facts.len(),
        to_core: [to_core, stored_by_core],
        rule_changes: committed.rule_changes,
        faults,
        effects: std::mem::take(&mut world.effects),
        recoveries,
        rss_kib,
        samples: samples.len(),
    }
}

impl World {
    /// Everything started and linked, walhook too.
    async fn begin(pg: Postgres, nats: Nats, second: Nats, window_s: u32) -> World {
        let (postgres_proxy, nats_proxy) = (Proxy::before(pg.port()), Proxy::before(nats.port()));
        let feed = Arc::new(Feed::on(pg, nats));
        let proxied = format!("nats://127.0.0.1:{}", nats_proxy.port());
        let addresses = [proxied.as_str(), &second.url()];
        workload::prepare(&feed.pg, addresses, window_s);
        let settings = tempfile::tempdir().unwrap();
        std::fs::write(settings.path().join("walhook.toml"), "ack_timeout_ms = 2000\n").unwrap();
        let mut walhook = start(&feed, &postgres_proxy, &settings);
        // Before that the rules are those that it reads at its first start.
        eventually("the first version of the rules", async || {
            (feed.pg.psql("SELECT count(*) FROM walhook.rule_cdc_rule_sources") == "1").then_some(())
        })
        .await;
        // It writes its checkpoints when it ends.
        workload::reach(&feed.pg, addresses);
        feed.confirmed().await;
        assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
        let known = "SELECT count(*) FROM rule_nats_checkpoints WHERE stream_name = 'CHAOS_C'";
        assert_eq!(feed.pg.psql(known), "2", "{}", walhook.log());
        let walhook = start(&feed, &postgres_proxy, &settings);
        let (findings, effects) = (Findings::default(), Vec::new());
        World { feed, walhook, postgres_proxy, nats_proxy, second, settings, findings, effects, copies: 0 }
    }

    fn nats_urls(&self) -> [String; 2] {
        [self.feed.nats.url(), self.second.url()]
    }

    /// How walhook gets to them.
    fn addresses(&self) -> [String; 2] {
        [format!("nats://127.0.0.1:{}", self.nats_proxy.port()), self.second.url()]
    }

    /// What the slot's position is on this side.
    pub fn confirmed(&self) -> u64 {
        let asked =
            "SELECT (confirmed_flush_lsn - '0/0')::bigint FROM pg_replication_slots WHERE slot_name = 'walhook'";
        self.feed.pg.psql(asked).parse().unwrap()
    }

    /// One more walhook.
    pub fn start(&self) -> Walhook {
        start(&self.feed, &self.postgres_proxy, &self.settings)
    }

    pub fn expect(&mut self, holds: bool, words: impl FnOnce() -> String) {
        if !holds {
            self.findings.add(words());
        }
    }

    /// Waits until all that is committed by now is confirmed, and tells how long that took.
    async fn recovered(&mut self, calm: &AtomicBool) -> Result<Duration, String> {
        let since = Instant::now();
        calm.store(false, Ordering::Relaxed);
        let upto = self.feed.pg.psql("SELECT pg_current_wal_lsn()");
        let asked =
            format!("SELECT confirmed_flush_lsn >= '{upto}' FROM pg_replication_slots WHERE slot_name = 'walhook'");
        loop {
            if self.feed.pg.psql(&asked) == "t" {
                calm.store(false, Ordering::Relaxed);
                return Ok(since.elapsed());
            }
            if let Some(status) = self.walhook.exited() {
                return Err(format!("walhook ended by itself: {status}"));
            }
            calm.store(since.elapsed() > CALM, Ordering::Relaxed);
            if since.elapsed() > RECOVERED {
                let at = self
                    .feed
                    .pg
                    .psql("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = 'walhook'");
                return Err(format!("{at} is confirmed and not {upto} after {RECOVERED:?}"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Everything that must hold of what is stored; returns what was committed, and how many events the streams have by core NATS.
    async fn judge(&mut self, samples: &[Sample]) -> (Committed, usize) {
        let client = self.feed.pg.client().await;
        let lines = client
            .simple_query(
                "SELECT data FROM pg_logical_slot_peek_changes('oracle', NULL, NULL, 'include-timestamp', '0', 'skip-empty-xacts', '1')",
            )
            .await
            .unwrap();
        let lines: Vec<&str> = lines
            .iter()
            .filter_map(|line| match line {
                SimpleQueryMessage::Row(row) => row.get(0),
                _ => None,
            })
            .collect();
        let mut committed = Committed::new(workload::places(vec![self.nats_proxy.port(), self.second.port()]));
        committed.read(lines.iter().copied());
        let mut streams = Vec::new();
        for (_, server, stream, _) in STREAMS {
            streams.push(stored([&self.feed.nats, &self.second][server], stream).await);
        }
        let found = oracle::judge(&committed, &streams);
        self.findings.lost += found.lost;
        self.findings.duplicated += found.duplicated;
        self.findings.misrouted += found.misrouted;
        self.findings.reordered += found.reordered;
        self.findings.phantoms += found.phantoms;
        for example in found.examples {
            self.findings.add(example);
        }
        for (stream, messages) in streams.iter().enumerate() {
            for message in messages {
                if message.payload.to_string().contains(workload::ROLLED_BACK) {
                    self.findings.add(format!("message {} of {stream} was rolled back", message.sequence));
                }
            }
            if !committed.shared.contains(&stream) {
                oracle::confirmed_too_early(samples, stream, messages, &mut self.findings);
            }
        }
        for (table, webhook) in TABLES.iter().zip(1..) {
            self.compare_fold(table, &oracle::of_webhook(&streams, webhook));
        }
        self.compare_history(&committed, &streams);
        let stored_by_core = streams.iter().flatten().filter(|message| oracle::by_core(message)).count();
        (committed, stored_by_core)
    }

    /// Who follows the stream has the table.
    fn compare_fold(&mut self, table: &str, stored: &[&Message]) {
        let folded = oracle::fold(stored.iter().copied(), &format!("public.{table}"));
        let rows = self.feed.pg.psql(&format!(
            "SELECT jsonb_build_object('id', id, 'n', n, 'note', note, 'big', md5(big)) FROM {table} ORDER BY id"
        ));
        let mut folded_rows: Vec<Value> = Vec::new();
        for row in folded.values() {
            folded_rows.push(row.get("big").cloned().unwrap_or_default());
        }
        let keys: Vec<i64> = folded.keys().copied().collect();
        let rows: Vec<Value> = rows.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let table_keys: Vec<i64> = rows.iter().map(|row| row["id"].as_i64().unwrap()).collect();
        if keys != table_keys {
            self.findings.add(format!("{table} has {} rows, and the stream's reader {}", table_keys.len(), keys.len()));
            return;
        }
        let sums = self.sums(&folded_rows);
        for ((row, expected), sum) in folded.values().zip(&rows).zip(sums) {
            let same = ["id", "n", "note"].iter().all(|column| row.get(*column) == expected.get(*column))
                && expected["big"].as_str().unwrap_or_default() == sum;
            self.expect(same, || format!("{table} has {expected}, and the stream's reader {row:?}"));
        }
    }

    /// PostgreSQL's own digests of large values.
    fn sums(&self, values: &[Value]) -> Vec<String> {
        let literals: Vec<String> = values
            .iter()
            .map(|value| value.as_str().map_or("NULL".to_owned(), |text| format!("'{}'", text.replace('\'', "''"))))
            .collect();
        let mut sums = Vec::new();
        for chunk in literals.chunks(500) {
            let all = self.feed.pg.psql(&format!(
                "SELECT coalesce(md5(value), '') FROM unnest(ARRAY[{}]::text[]) WITH ORDINALITY u (value, n) ORDER BY n",
                chunk.join(",")
            ));
            sums.extend(all.split('\n').map(str::to_owned));
        }
        sums
    }

    /// Each event is told once, with the stream and the sequence that it has. With a webhook its rows are deleted.
    fn compare_history(&mut self, committed: &Committed, streams: &[Vec<Message>]) {
        let told = self.feed.pg.psql(
            "SELECT event_id || ' ' || coalesce(stream_name, '-') || ' ' || coalesce(sequence_number::text, '-') \
             FROM rule_nats_publish_history WHERE success",
        );
        let is_kept = |id: &str| oracle::position(id).is_none_or(|(.., webhook)| !committed.deleted.contains(&webhook));
        let is_core = |row: &&str| row.contains(" (core NATS) ");
        let (by_core, mut told): (Vec<&str>, Vec<&str>) = told.lines().partition(is_core);
        let of_stream = |((_, _, stream, _), stored): ((&str, usize, &str, &str), &Vec<Message>)| -> Vec<String> {
            let stored = stored.iter().filter(|message| !oracle::by_core(message));
            stored.map(|message| format!("{} {stream} {}", oracle::id(message), message.sequence)).collect()
        };
        let mut held: Vec<String> = STREAMS.into_iter().zip(streams).flat_map(of_stream).collect();
        let id_of = |row: &str| row.split(' ').next().unwrap_or_default().to_owned();
        // Of a webhook that was deleted some rows may be left, and these are true.
        let left: HashSet<String> = told.iter().map(|row| id_of(row)).collect();
        held.retain(|row| is_kept(&id_of(row)) || left.contains(&id_of(row)));
        let kept = by_core.iter().filter(|row| is_kept(&id_of(row))).count();
        let is_its = |fact: &&oracle::Fact| fact.stream == NO_STREAM && !committed.deleted.contains(&fact.webhook);
        let sent = committed.facts.iter().filter(is_its).count();
        self.expect(kept == sent, || format!("the history has {kept} events by core NATS, and there were {sent}"));
        told.sort_unstable();
        held.sort_unstable();
        if told != held {
            let differ: Vec<&str> =
                told.iter().copied().filter(|row| held.binary_search(&(*row).to_owned()).is_err()).collect();
            let missing: Vec<&String> = held.iter().filter(|row| told.binary_search(&row.as_str()).is_err()).collect();
            self.findings.add(format!(
                "the history has {} events, the streams {}; only in the history {:?}, only in the streams {:?}",
                told.len(),
                held.len(),
                differ.iter().take(5).collect::<Vec<_>>(),
                missing.iter().take(5).collect::<Vec<_>>()
            ));
        }
        // Without an error: nothing is known of the event.
        let failures = self.feed.pg.psql(
            "SELECT count(*), min(error_message), min(event_id), max(event_id) FROM rule_nats_publish_history \
             WHERE NOT success",
        );
        self.expect(failures.starts_with("0|"), || format!("failures in the history: {failures}"));
        let letters = self.feed.pg.psql("SELECT count(*), min(reason) FROM rule_nats_dead_letters");
        self.expect(letters.starts_with("0|"), || format!("dead letters: {letters}"));
    }
}

fn start(feed: &Feed, proxy: &Proxy, settings: &tempfile::TempDir) -> Walhook {
    let conninfo =
        format!("host=127.0.0.1 port={} dbname=postgres user=walhook_streamer connect_timeout=5", proxy.port());
    let file = settings.path().join("walhook.toml");
    feed.command("run").arg("--config").arg(file).env("DATABASE_URL", conninfo).start()
}

/// All that a stream holds, in its order, by a consumer: as fast as a reader can.
pub async fn stored(nats: &Nats, stream: &str) -> Vec<Message> {
    let jetstream = jetstream::new(nats.client().await);
    let Ok(mut stream) = jetstream.get_stream(stream).await else { return Vec::new() };
    let count = usize::try_from(stream.info().await.unwrap().state.messages).unwrap();
    let consumer = stream.create_consumer(pull::OrderedConfig::default()).await.unwrap();
    let mut messages = consumer.messages().await.unwrap().take(count);
    let mut stored = Vec::with_capacity(count);
    while let Some(message) = messages.next().await {
        let message = message.unwrap();
        let headers = message.headers.iter().flat_map(|headers| headers.iter());
        stored.push(Message {
            sequence: message.info().unwrap().stream_sequence,
            subject: message.subject.to_string(),
            headers: headers.map(|(name, values)| (name.to_string(), values[0].as_str().to_owned())).collect(),
            payload: serde_json::from_slice(&message.payload).unwrap(),
        });
    }
    stored
}

/// What a peak of memory was, in KiB; 0 of one that has ended.
fn peak_rss_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or_default()
}

/// Takes [`Sample`]s while everything else goes on.
struct Sampler {
    stop: Arc<AtomicBool>,
    samples: Arc<Mutex<Vec<Sample>>>,
    thread: Option<JoinHandle<()>>,
}

impl Sampler {
    fn start(world: &World) -> Sampler {
        let (conninfo, urls) = (world.feed.pg.conninfo(), world.nats_urls());
        let (stop, samples) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let thread = std::thread::spawn({
            let (stop, samples) = (Arc::clone(&stop), Arc::clone(&samples));
            move || {
                support::runtime().block_on(async {
                    while !stop.load(Ordering::Relaxed) {
                        // None while a server is away, or where there are no streams yet.
                        if let Ok(Some(sample)) =
                            tokio::time::timeout(Duration::from_secs(2), sample(&conninfo, &urls)).await
                        {
                            samples.lock().unwrap().push(sample);
                        }
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                });
            }
        });
        Sampler { stop, samples, thread: Some(thread) }
    }

    fn stop(mut self) -> Vec<Sample> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
        std::mem::take(&mut self.samples.lock().unwrap())
    }
}

async fn sample(conninfo: &str, urls: &[String; 2]) -> Option<Sample> {
    let (client, connection) = tokio_postgres::connect(conninfo, NoTls).await.ok()?;
    let connection = tokio::spawn(connection);
    let row = client
        .query_one(
            "SELECT (confirmed_flush_lsn - '0/0')::bigint FROM pg_replication_slots WHERE slot_name = 'walhook'",
            &[],
        )
        .await;
    connection.abort();
    let confirmed = u64::try_from(row.ok()?.get::<_, i64>(0)).ok()?;
    let mut tails = Vec::new();
    for (_, server, stream, _) in STREAMS {
        let jetstream = jetstream::new(async_nats::connect(&urls[server]).await.ok()?);
        tails.push(jetstream.get_stream(stream).await.ok()?.cached_info().state.last_sequence);
    }
    Some(Sample { confirmed, tails })
}

/// How many of what, in words.
pub fn counted(faults: impl IntoIterator<Item = &'static str>) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for fault in faults {
        *counts.entry(fault).or_default() += 1;
    }
    counts
}
