//! Shards: several processes publish the events of one database, each event by one of them, whatever dies and moves meanwhile.

#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use crate::support;

use serde_json::Value;
use support::{
    Nats, Postgres, Walhook, eventually,
    feed::{Feed, Message},
    http::Http,
    rows::{ended_well, whole},
    runtime,
};
use tokio_postgres::NoTls;

const SHARDS: [&str; 4] = ["main", "b", "c", "d"];
const TABLES: usize = 4;

/// The slot, the source and the publications of a shard.
fn name_of(shard: &str) -> String {
    if shard == "main" { "walhook".to_owned() } else { format!("walhook_{shard}") }
}

fn stream_of(shard: &str) -> String {
    if shard == "main" { "WEBHOOKS".to_owned() } else { format!("WEBHOOKS_{shard}") }
}

pub fn run(feed: &Feed, shard: &str) -> Walhook {
    let streamer = feed.streamer();
    if shard == "main" { streamer.start() } else { streamer.args(["--shard", shard]).start() }
}

pub fn set_up(feed: &Feed, shard: &str) {
    let done = feed.command("setup").args(["--shard", shard]).finish();
    assert_eq!(done.code, Some(0), "{}", done.stderr);
}

/// Each source has kept the rules as they were when it began: from then on tables may move to it.
pub async fn begun(feed: &Feed, shards: &[&str]) {
    for shard in shards {
        let asked = format!("SELECT count(*) FROM walhook.rule_cdc_rule_sources WHERE source = '{}'", name_of(shard));
        eventually(&format!("shard {shard} to begin"), async || (feed.pg.psql(&asked) == "1").then_some(())).await;
    }
}

/// Waits until each shard has confirmed everything committed so far.
pub async fn confirmed(feed: &Feed, shards: &[&str]) {
    for shard in shards {
        feed.confirmed_of(&name_of(shard)).await;
    }
}

/// The position of an event: the LSN of its commit, and its number there.
fn position(id: &str) -> (u64, u64) {
    let mut parts = id.rsplit('-');
    let (_webhook, ordinal, _time, lsn) = (parts.next(), parts.next(), parts.next(), parts.next());
    (u64::from_str_radix(lsn.unwrap(), 16).unwrap(), ordinal.unwrap().parse().unwrap())
}

/// Which stream has the event of each position.
type Stretches<'s> = BTreeMap<(u64, u64), &'s str>;

/// What an event is of: a table's row or a call, by its number.
fn what(message: &Message) -> (String, i64) {
    let data = message.data();
    let place = data["place"].as_str().unwrap_or_else(|| panic!("{message:?}"));
    (place.to_owned(), data["id"].as_i64().unwrap())
}

/// Tables `t0` to `t3`, each with a webhook; `both`, which the webhooks of `t0` and `t1` have; and webhook `calls` without a table.
/// What is committed is counted by the tables themselves, calls in `called`.
fn tables(feed: &Feed) {
    for n in 0..TABLES {
        feed.webhook(&format!("w{n}"));
        feed.pg.psql(&format!(
            "CREATE TABLE t{n} (id bigserial PRIMARY KEY, place text NOT NULL DEFAULT 't{n}', note text); \
             SELECT rule_webhook_link_table('w{n}', 't{n}')"
        ));
    }
    feed.webhook("calls");
    feed.pg.psql(
        "CREATE TABLE both_of (id bigserial PRIMARY KEY, place text NOT NULL DEFAULT 'both', note text);
         CREATE TABLE called (id bigserial PRIMARY KEY, place text NOT NULL);
         SELECT rule_webhook_link_table('w0', 'both_of'); SELECT rule_webhook_link_table('w1', 'both_of');
         SELECT rule_webhook_emit_enable()",
    );
}

/// Transactions that span tables, calls and messages, every fifth rolled back, until the test stops them.
async fn write(conninfo: String, seed: u64, stop: Arc<AtomicBool>, committed: Arc<AtomicU64>) {
    let (client, connection) = tokio_postgres::connect(&conninfo, NoTls).await.unwrap();
    tokio::spawn(connection);
    let mut random = fastrand::Rng::with_seed(seed);
    while !stop.load(Ordering::Relaxed) {
        let mut text = String::from("BEGIN;");
        for _ in 0..random.usize(1..6) {
            match random.usize(0..TABLES + 3) {
                n if n < TABLES => {
                    let rows = random.usize(1..4);
                    text.push_str(&format!("INSERT INTO t{n} (note) SELECT 'x' FROM generate_series(1, {rows});"));
                }
                n if n == TABLES => text.push_str("INSERT INTO both_of (note) VALUES ('x');"),
                n if n == TABLES + 1 => text.push_str(
                    "WITH c AS (INSERT INTO called (place) VALUES ('call') RETURNING id) \
                     SELECT rule_webhook_call_unified((SELECT webhook_id FROM rule_webhooks WHERE webhook_name = 'calls'), \
                            jsonb_build_object('place', 'call', 'id', c.id)) FROM c;",
                ),
                _ => text.push_str(
                    "WITH c AS (INSERT INTO called (place) VALUES ('emit') RETURNING id) \
                     SELECT rule_webhook_emit('calls', jsonb_build_object('place', 'emit', 'id', c.id)) FROM c;",
                ),
            }
        }
        let commits = random.usize(0..5) > 0;
        text.push_str(if commits { "COMMIT" } else { "ROLLBACK" });
        match client.simple_query(&text).await {
            Ok(_) if commits => drop(committed.fetch_add(1, Ordering::Relaxed)),
            Ok(_) => {}
            // A move and a transaction that waited for each other.
            Err(error) if error.code().is_some_and(|code| code.code() == "40P01") => {
                client.simple_query("ROLLBACK").await.unwrap();
            }
            Err(error) => panic!("{error}: {text}"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(random.u64(0..4))).await;
    }
}

/// What is committed: place and number, and how many events each makes.
fn expected(feed: &Feed) -> BTreeMap<(String, i64), usize> {
    let mut all = BTreeMap::new();
    let tables = (0..TABLES).map(|n| (format!("t{n}"), 1)).chain([("both_of".to_owned(), 2), ("called".to_owned(), 1)]);
    for (table, events) in tables {
        for row in feed.pg.psql(&format!("SELECT place || ' ' || id FROM {table}")).lines() {
            let (place, id) = row.split_once(' ').unwrap();
            all.insert((place.to_owned(), id.parse().unwrap()), events);
        }
    }
    all
}

/// Each row and call once for each of its webhooks, over all streams; each stream in commit order; and what a place and a webhook have
/// in several streams lies in stretches of the WAL one behind the other, one more than it has moved at most.
fn check_streams(feed: &Feed, streams: &BTreeMap<String, Vec<Message>>, moves: &BTreeMap<String, usize>) {
    let mut found: BTreeMap<(String, i64), usize> = BTreeMap::new();
    let mut stretches: BTreeMap<(String, String), Stretches<'_>> = BTreeMap::new();
    let mut ids = BTreeSet::new();
    for (stream, messages) in streams {
        let mut before = (0, 0, 0);
        for message in messages {
            let id = message.header("Nats-Msg-Id");
            assert!(ids.insert(id.to_owned()), "{stream}: {id} came twice");
            let at = position(id);
            let webhook = id.rsplit('-').next().unwrap();
            let order = (at.0, at.1, webhook.parse::<u64>().unwrap());
            assert!(order > before, "{stream}: {id} comes too late");
            before = order;
            let (place, number) = what(message);
            *found.entry((place.clone(), number)).or_default() += 1;
            stretches.entry((place, webhook.to_owned())).or_default().insert(at, stream);
        }
    }
    let committed = expected(feed);
    let lost: Vec<_> = committed.iter().filter(|(key, count)| found.get(*key).unwrap_or(&0) < count).collect();
    let doubled: Vec<_> = found.iter().filter(|(key, count)| committed.get(*key).unwrap_or(&0) < count).collect();
    assert!(lost.is_empty() && doubled.is_empty(), "lost {lost:?}, doubled or never committed {doubled:?}");
    for ((place, webhook), events) in &stretches {
        let mut owners: Vec<&str> = events.values().copied().collect();
        owners.dedup();
        let most = 1 + moves.get(place).copied().unwrap_or(0);
        assert!(owners.len() <= most, "{place} of webhook {webhook} went to and fro: {owners:?}");
    }
}

/// A stream that gathers those of all shards.
async fn gather(feed: &Feed) {
    let config = feed.pg.psql("SELECT rule_cdc_shard_gathering('WEBHOOKS', 'WEBHOOKS_ALL')");
    let client = feed.nats.client().await;
    let answer = client.request("$JS.API.STREAM.CREATE.WEBHOOKS_ALL", config.into()).await.unwrap();
    let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
    assert!(answer["error"].is_null(), "{answer}");
}

/// The gathered stream has all that the streams have, those of each in their order, by the subjects that they have without shards.
async fn check_gathered(feed: &Feed, streams: &BTreeMap<String, Vec<Message>>) {
    let total: usize = streams.values().map(Vec::len).sum();
    let jetstream = feed.nats.jetstream().await;
    eventually("the gathered stream to have everything", async || {
        let mut stream = jetstream.get_stream("WEBHOOKS_ALL").await.ok()?;
        (stream.info().await.ok()?.state.messages == total as u64).then_some(())
    })
    .await;
    let all = feed.messages_of("WEBHOOKS_ALL").await;
    for (stream, messages) in streams {
        let id = |message: &Message| message.header("Nats-Msg-Id").to_owned();
        let is_its_own = |message: &&Message| message.header("Nats-Stream-Source").split(' ').next() == Some(stream);
        let gathered: Vec<_> = all.iter().filter(is_its_own).map(id).collect();
        assert_eq!(gathered, messages.iter().map(id).collect::<Vec<_>>());
    }
    assert!(all.iter().all(|message| message.subject.starts_with("webhooks.")), "{:?}", all.first());
}

async fn rounds(feed: Feed, seed: u64, rounds: usize) {
    tables(&feed);
    for shard in &SHARDS[1..] {
        set_up(&feed, shard);
    }
    let mut processes: BTreeMap<&str, Walhook> = SHARDS.iter().map(|shard| (*shard, run(&feed, shard))).collect();
    begun(&feed, &SHARDS).await;
    gather(&feed).await;
    let (stop, committed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writers: Vec<_> = (0..3)
        .map(|n| {
            let (conninfo, stop, committed) = (feed.pg.conninfo(), Arc::clone(&stop), Arc::clone(&committed));
            // Each beside the test, whose statements wait for the writers.
            std::thread::spawn(move || runtime().block_on(write(conninfo, seed * 10 + n, stop, committed)))
        })
        .collect();
    let mut random = fastrand::Rng::with_seed(seed);
    let mut moves: BTreeMap<String, usize> = BTreeMap::new();
    for round in 0..rounds {
        // Some load between one change and the next.
        let enough = committed.load(Ordering::Relaxed) + 25;
        eventually("transactions", async || (committed.load(Ordering::Relaxed) >= enough).then_some(())).await;
        let to = SHARDS[random.usize(0..SHARDS.len())];
        let subject = if round % 3 < 2 {
            let table = random.usize(0..=TABLES);
            let table = if table == TABLES { "both_of".to_owned() } else { format!("t{table}") };
            *moves.entry(table.replace("both_of", "both")).or_default() += 1;
            format!("p_tables => ARRAY['{table}']::regclass[]")
        } else {
            // Its tables come along.
            let name = ["calls", "w0", "w2"][random.usize(0..3)];
            let places: &[&str] = match name {
                "calls" => &["call", "emit"],
                "w0" => &["t0", "both"],
                _ => &["t2"],
            };
            places.iter().for_each(|place| *moves.entry((*place).to_owned()).or_default() += 1);
            format!("p_webhooks => ARRAY['{name}']")
        };
        let statement = format!("SELECT rule_cdc_shard_move('{to}', {subject}, p_lock_timeout => '20 s')");
        feed.pg.psql(&statement);
        let killed = SHARDS[random.usize(0..SHARDS.len())];
        let process = processes.get_mut(killed).unwrap();
        process.kill9();
        *process = run(&feed, killed);
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.join().unwrap();
    }
    confirmed(&feed, &SHARDS).await;
    let streams = streams(&feed, &SHARDS).await;
    check_streams(&feed, &streams, &moves);
    assert!(streams.values().filter(|messages| !messages.is_empty()).count() >= 3, "several shards had a share");
    assert_eq!(feed.pg.psql("SELECT count(*) FROM rule_nats_dead_letters"), "0");
    // The history has each event once, of all shards.
    let total: usize = streams.values().map(Vec::len).sum();
    assert_eq!(
        feed.pg
            .psql("SELECT count(*) || ' ' || count(DISTINCT message_id) FROM rule_nats_publish_history WHERE success"),
        format!("{total} {total}")
    );
    check_gathered(&feed, &streams).await;
    processes.values_mut().for_each(ended_well);
}

#[tokio::test]
async fn four_shards_publish_each_event_once_while_they_are_killed_and_tables_move() {
    let seeds = if whole() { 1..=10 } else { 1..=1 };
    for seed in seeds {
        rounds(Feed::start().await, seed, 12).await;
    }
}

/// Tables `t0` and `t1` of webhooks `w0` and `w1`, and shard b, which runs.
async fn two() -> (Feed, Walhook, Walhook) {
    let feed = Feed::start().await;
    tables(&feed);
    set_up(&feed, "b");
    let (main, b) = (run(&feed, "main"), run(&feed, "b"));
    begun(&feed, &["main", "b"]).await;
    (feed, main, b)
}

async fn streams(feed: &Feed, shards: &[&str]) -> BTreeMap<String, Vec<Message>> {
    let mut streams = BTreeMap::new();
    for shard in shards {
        streams.insert(stream_of(shard), feed.messages_of(&stream_of(shard)).await);
    }
    streams
}

#[tokio::test]
async fn a_move_waits_for_who_has_written_into_the_table_and_moves_nothing_where_they_do_not_end() {
    let (feed, mut main, mut b) = two().await;
    let writer = feed.pg.client().await;
    writer.batch_execute("BEGIN; INSERT INTO t0 (note) VALUES ('before')").await.unwrap();
    let (error, hint) =
        feed.pg.refused("SELECT rule_cdc_shard_move('b', ARRAY['t0']::regclass[], p_lock_timeout => '300 ms')");
    assert!(error.contains("did not end within") && error.contains("t0"), "{error}");
    // The hint names the session that is in the way.
    let asked = hint.split("they are: ").nth(1).unwrap().split(';').next().unwrap();
    let process = writer.query_one("SELECT pg_backend_pid()::text", &[]).await.unwrap();
    assert!(feed.pg.psql(asked).starts_with(process.get::<_, &str>(0)), "{hint}");
    assert_eq!(feed.pg.psql("SELECT tables FROM rule_cdc_shards WHERE shard = 'b'"), "{}");
    writer.batch_execute("INSERT INTO t0 (note) VALUES ('before'); COMMIT").await.unwrap();
    assert_eq!(feed.pg.psql("SELECT rule_cdc_shard_move('b', ARRAY['t0']::regclass[])"), "1");
    assert_eq!(feed.pg.psql("SELECT tables FROM rule_cdc_shards WHERE shard = 'b'"), "{public.t0}");
    feed.pg.psql("INSERT INTO t0 (note) VALUES ('behind')");
    confirmed(&feed, &["main", "b"]).await;
    let streams = streams(&feed, &["main", "b"]).await;
    check_streams(&feed, &streams, &BTreeMap::from([("t0".to_owned(), 1)]));
    assert_eq!((streams["WEBHOOKS"].len(), streams["WEBHOOKS_b"].len()), (2, 1));
    // The verb looks at the links of its own shard, with what they mask.
    feed.pg.psql("UPDATE rule_webhook_links SET mask = '{\"note\": \"drop\"}' WHERE table_name = 't0'");
    let schema = feed.command("schema").args(["t0", "--shard", "b"]).finish();
    assert_eq!(schema.code, Some(0), "{}", schema.stderr);
    assert!(schema.stdout.contains("\"id\"") && !schema.stdout.contains("note"), "{}", schema.stdout);
    assert_eq!(streams["WEBHOOKS_b"][0].subject, "_shard.b.webhooks.w0");
    ended_well(&mut main);
    ended_well(&mut b);
}

#[tokio::test]
#[should_panic(expected = "lost")]
async fn rows_of_a_transaction_that_was_open_during_a_move_are_missed() {
    let (feed, _main, _b) = two().await;
    // The move as it must not be: it waits for nobody.
    feed.pg.psql(
        "DO $do$ BEGIN EXECUTE replace(pg_get_functiondef('walhook.rule_cdc_shard_lock'::regproc), 'SHARE ROW EXCLUSIVE', 'ACCESS SHARE'); END $do$",
    );
    let writer = feed.pg.client().await;
    writer.batch_execute("BEGIN; INSERT INTO t0 (note) VALUES ('before')").await.unwrap();
    assert_eq!(feed.pg.psql("SELECT rule_cdc_shard_move('b', ARRAY['t0']::regclass[])"), "1");
    writer.batch_execute("INSERT INTO t0 (note) VALUES ('before'); COMMIT").await.unwrap();
    confirmed(&feed, &["main", "b"]).await;
    check_streams(&feed, &streams(&feed, &["main", "b"]).await, &BTreeMap::from([("t0".to_owned(), 1)]));
}

#[tokio::test]
async fn a_shard_that_has_not_begun_is_refused_and_a_row_moves_as_well_as_a_function_does() {
    let feed = Feed::start().await;
    tables(&feed);
    let mut main = run(&feed, "main");
    begun(&feed, &["main"]).await;
    let to_b = "SELECT rule_cdc_shard_move('b', p_webhooks => ARRAY['calls'])";
    let (error, hint) = feed.pg.refused(to_b);
    assert!(error == "there is no shard 'b'" && hint.contains("walhook setup --shard NAME"), "{error} {hint}");
    assert_eq!(feed.pg.psql("SELECT rule_cdc_shard_create('b')"), "t");
    let (error, hint) = feed.pg.refused(to_b);
    assert!(error.contains("its slot 'walhook_b' does not exist"), "{error}");
    let remedy = hint.strip_prefix("In a transaction of its own: ").unwrap().split(';').next().unwrap();
    feed.pg.psql(remedy);
    // Calls from before the move are main's, in whichever order the processes begin.
    let call = || {
        feed.pg.psql("BEGIN; INSERT INTO called (place) VALUES ('emit'); \
                      SELECT rule_webhook_emit('calls', jsonb_build_object('place', 'emit', 'id', currval('called_id_seq'))); COMMIT")
    };
    call();
    let (error, hint) = feed.pg.refused(to_b);
    assert!(error.contains("`walhook run --shard b` has not run"), "{error}");
    assert!(hint.contains("Start `walhook run --shard b`"), "{hint}");
    let mut b = run(&feed, "b");
    begun(&feed, &["b"]).await;
    assert_eq!(feed.pg.psql(to_b), "1");
    assert_eq!(feed.pg.psql(to_b), "0", "it is there already");
    call();
    // By the rows themselves, as an operator may write them: the publications follow.
    feed.pg.psql("UPDATE rule_webhook_links SET shard = 'b' WHERE table_name = 't1'");
    feed.pg.psql("INSERT INTO t1 (note) VALUES ('x')");
    let (error, _) = feed.pg.refused("UPDATE rule_webhook_links SET shard = 'x' WHERE table_name = 't1'");
    assert_eq!(error, "there is no shard 'x'");
    let (error, _) = feed.pg.refused("UPDATE rule_webhooks SET shard = 'x' WHERE webhook_id = 1");
    assert_eq!(error, "there is no shard 'x'");
    confirmed(&feed, &["main", "b"]).await;
    let streams = streams(&feed, &["main", "b"]).await;
    check_streams(&feed, &streams, &BTreeMap::from([("emit".to_owned(), 1)]));
    assert_eq!((streams["WEBHOOKS"].len(), streams["WEBHOOKS_b"].len()), (1, 2));
    // What checks find wrong is nothing, of both.
    for publication in ["walhook", "walhook_b"] {
        let found = format!(
            "SELECT string_agg(name || ': ' || problem, E'\\n') FROM rule_cdc_check('{publication}', '{publication}')"
        );
        assert_eq!(feed.pg.psql(&found), "", "{publication}");
    }
    for shard in [&[][..], &["--shard", "b"]] {
        let done = feed.command("check").args(shard).finish();
        assert_eq!(done.code, Some(0), "{}{}", done.stdout, done.stderr);
        let done = feed.command("status").args(shard).finish();
        assert_eq!(done.code, Some(0), "{}{}", done.stdout, done.stderr);
    }
    ended_well(&mut b);
    let idle = "SELECT severity || ' ' || object FROM rule_cdc_check() WHERE name = 'shard_idle'";
    assert_eq!(feed.pg.psql(idle), "warning shard \"b\"");
    ended_well(&mut main);
}

#[tokio::test]
async fn a_shard_is_dropped_when_it_has_published_all_that_was_its_own() {
    let (feed, mut main, mut b) = two().await;
    feed.pg.psql("SELECT rule_cdc_shard_move('b', ARRAY['t0', 'both_of']::regclass[], ARRAY['w2'])");
    let drop_it = "SELECT rule_cdc_shard_drop('b')";
    let (error, hint) = feed.pg.refused(drop_it);
    assert_eq!(error, "cannot drop shard 'b': it has tables or webhooks");
    // It stands still while events come and its tables go back.
    b.kill9();
    feed.pg.psql("INSERT INTO t0 (note) VALUES ('x'); INSERT INTO t2 (note) VALUES ('x'); INSERT INTO both_of (note) VALUES ('x')");
    feed.pg.psql(hint.strip_prefix("Move them to another shard first: ").unwrap());
    feed.pg.psql("INSERT INTO t0 (note) VALUES ('y'); INSERT INTO t2 (note) VALUES ('y'); INSERT INTO both_of (note) VALUES ('y')");
    eventually("the slot to be free", async || {
        (feed.pg.psql("SELECT active FROM pg_replication_slots WHERE slot_name = 'walhook_b'") == "f").then_some(())
    })
    .await;
    let (error, hint) = feed.pg.refused(drop_it);
    assert!(error.contains("events from before its last move wait in its slot"), "{error}");
    assert!(hint.contains("Start `walhook run --shard b` once more"), "{hint}");
    let mut b = run(&feed, "b");
    b.logged("slot taken").await;
    let (error, hint) = feed.pg.refused(drop_it);
    assert!(error.contains("streams from its slot") && hint.contains("Stop `walhook run --shard b`"), "{error} {hint}");
    confirmed(&feed, &["main", "b"]).await;
    ended_well(&mut b);
    assert_eq!(feed.pg.psql(drop_it), "t");
    let moves = ["t0", "t2", "both"].map(|place| (place.to_owned(), 1));
    let found = streams(&feed, &["main", "b"]).await;
    check_streams(&feed, &found, &BTreeMap::from(moves));
    assert_eq!((found["WEBHOOKS"].len(), found["WEBHOOKS_b"].len()), (4, 4));
    let left = "SELECT count(*) FROM pg_publication WHERE pubname LIKE 'walhook\\_b%' \
                UNION ALL SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'walhook\\_b%' \
                UNION ALL SELECT count(*) FROM rule_cdc_shards WHERE shard = 'b'";
    assert_eq!(feed.pg.psql(left), "0\n0\n0");
    // Made anew it goes on with its stream.
    set_up(&feed, "b");
    let mut b = run(&feed, "b");
    begun(&feed, &["b"]).await;
    feed.pg.psql("SELECT rule_cdc_shard_move('b', ARRAY['t0']::regclass[])");
    feed.pg.psql("INSERT INTO t0 (note) VALUES ('z')");
    confirmed(&feed, &["main", "b"]).await;
    let moves = [("t0", 3), ("t2", 1), ("both", 1)].map(|(place, count)| (place.to_owned(), count));
    check_streams(&feed, &streams(&feed, &["main", "b"]).await, &BTreeMap::from(moves));
    ended_well(&mut b);
    ended_well(&mut main);
    let done = feed.command("uninstall").args(["--yes", "--nats"]).finish();
    assert_eq!(done.code, Some(0), "{}{}", done.stdout, done.stderr);
    assert_eq!(feed.pg.psql("SELECT count(*) FROM pg_replication_slots"), "0");
    assert!(feed.messages_of("WEBHOOKS_b").await.is_empty(), "its stream is gone");
}

/// The moves and what lies between them are in the slot alone: the shard has read nothing of it.
#[tokio::test]
async fn a_shard_that_stood_still_while_tables_came_and_went_is_not_dropped_with_their_events() {
    let (feed, mut main, mut b) = two().await;
    ended_well(&mut b);
    feed.pg.psql("SELECT rule_cdc_shard_move('b', ARRAY['t0']::regclass[])");
    feed.pg.psql("INSERT INTO t0 (note) VALUES ('its own')");
    feed.pg.psql("SELECT rule_cdc_shard_move('main', ARRAY['t0']::regclass[])");
    feed.pg.psql("INSERT INTO t0 (note) VALUES ('of main again')");
    let drop_it = "SELECT rule_cdc_shard_drop('b')";
    let (error, _) = feed.pg.refused(drop_it);
    assert!(error.contains("events from before its last move wait in its slot"), "{error}");
    let mut b = run(&feed, "b");
    confirmed(&feed, &["main", "b"]).await;
    ended_well(&mut b);
    assert_eq!(feed.pg.psql(drop_it), "t");
    let found = streams(&feed, &["main", "b"]).await;
    assert_eq!((found["WEBHOOKS"].len(), found["WEBHOOKS_b"].len()), (1, 1));
    ended_well(&mut main);
}

#[tokio::test]
async fn mistakes_about_shards_are_named_with_what_to_do() {
    let feed =
        Feed::on(Postgres::builder().conf("max_replication_slots = 2").set_up().start().await, Nats::start().await);
    tables(&feed);
    for (statement, words) in [
        ("SELECT rule_cdc_shard_create('B')", "a shard cannot have the name 'B'"),
        ("SELECT rule_cdc_shard_create('main')", "a shard cannot have the name 'main'"),
        ("SELECT rule_cdc_shard_create(NULL)", "a shard cannot have the name NULL"),
        ("SELECT rule_cdc_shard_create('b', repeat('s', 62))", "cannot have its slot, publications and source"),
        ("SELECT rule_cdc_shard_create('b', 'walhook', 'none')", "publication none_inserts does not exist"),
        ("SELECT rule_cdc_shard_move('b', ARRAY['t0']::regclass[])", "there is no shard 'b'"),
        ("SELECT rule_cdc_shard_drop('b')", "there is no shard 'b'"),
        ("SELECT rule_cdc_shard_gathering('WEBHOOKS', 'WEBHOOKS')", "cannot gather stream 'WEBHOOKS'"),
        ("SELECT rule_cdc_shard_gathering('NONE', 'ALL')", "there is no stream 'NONE' in the configuration"),
    ] {
        let (error, hint) = feed.pg.refused(statement);
        assert!(error.contains(words) && !hint.is_empty(), "{statement}: {error} {hint}");
    }
    let (_, hint) = feed.pg.refused("SELECT rule_cdc_shard_create('b', 'walhook', 'none')");
    feed.pg.psql(hint.split(';').next().unwrap());
    let (_, hint) = feed.pg.refused("SELECT rule_cdc_shard_gathering('WEBHOOKS', 'WEBHOOKS')");
    feed.pg.psql(hint.split("has: ").nth(1).unwrap());
    let (_, hint) = feed.pg.refused("SELECT rule_cdc_shard_gathering('NONE', 'ALL')");
    feed.pg.psql(hint.split(';').next().unwrap());
    let (_, hint) = feed.pg.refused("SELECT rule_cdc_shard_drop('b')");
    feed.pg.psql(hint.split(';').next().unwrap());
    set_up(&feed, "b");
    let (mut main, mut b) = (run(&feed, "main"), run(&feed, "b"));
    begun(&feed, &["main", "b"]).await;
    for (statement, words) in [
        ("SELECT rule_cdc_shard_move('b')", "name nothing"),
        ("SELECT rule_cdc_shard_move('b', ARRAY[NULL]::regclass[])", "have a NULL in them"),
        ("SELECT rule_cdc_shard_move('b', ARRAY['called']::regclass[])", "no webhook is linked to it"),
        ("SELECT rule_cdc_shard_move('b', p_webhooks => ARRAY['none'])", "Webhook 'none' not found"),
        ("SELECT rule_cdc_shard_move('b', ARRAY['t0']::regclass[], p_lock_timeout => '0')", "must be more than zero"),
        ("SELECT rule_cdc_shard_drop('main')", "cannot drop the shard main"),
        ("SELECT rule_cdc_shard_create('b', 'other')", "has the slot 'walhook_b'"),
    ] {
        let (error, hint) = feed.pg.refused(statement);
        assert!(error.contains(words) && !hint.is_empty(), "{statement}: {error} {hint}");
    }
    let error = feed.pg.try_psql("SELECT rule_cdc_shard_move('b', ARRAY['none']::regclass[])").unwrap_err();
    assert!(error.as_db_error().unwrap().message().contains("\"none\" does not exist"), "{error}");
    let (_, hint) = feed.pg.refused("SELECT rule_cdc_shard_move('b', ARRAY['called']::regclass[])");
    feed.pg.psql(&hint.split(';').next().unwrap().replace("'webhook'", "'calls'"));
    assert_eq!(feed.pg.psql("SELECT rule_cdc_shard_move('b', ARRAY['called']::regclass[])"), "1");
    // No slot is left for another one; the remedy makes room.
    let done = feed.command("setup").args(["--shard", "c"]).finish();
    assert_eq!(done.code, Some(2), "{}", done.stderr);
    assert!(done.stderr.contains("all 2 replication slots are in use (max_replication_slots)"), "{}", done.stderr);
    let (_, hint) = feed.pg.refused("SELECT rule_cdc_shard_create('c')");
    hint.split("Or drop").next().unwrap().split(';').take(1).for_each(|remedy| drop(feed.pg.psql(remedy)));
    feed.pg.psql(hint.split("nobody uses: ").nth(1).unwrap());
    feed.pg.stop();
    feed.pg.restart().await;
    set_up(&feed, "c");
    for (shard, words) in [("B", "the shard's name"), ("main", "the shard's name")] {
        let done = feed.command("run").args(["--shard", shard]).finish();
        assert_eq!(done.code, Some(2), "{}", done.stderr);
        assert!(done.stderr.contains(words), "{}", done.stderr);
    }
    ended_well(&mut main);
    ended_well(&mut b);
}

#[tokio::test]
async fn a_shard_has_workers_backfills_and_dead_letters_like_the_main_one() {
    let (feed, mut main, mut b) = two().await;
    let http = Http::ok();
    feed.pg.psql(&format!("UPDATE rule_webhooks SET url = '{}' WHERE webhook_name = 'w0'", http.url("/w0")));
    feed.pg.psql("INSERT INTO t0 (note) VALUES ('before')");
    feed.pg.psql("SELECT rule_cdc_shard_move('b', ARRAY['t0']::regclass[], ARRAY['calls'])");
    feed.pg.psql("INSERT INTO t0 (note) VALUES ('behind')");
    let mut worker = feed.command("deliver").args(["--shard", "b", "--allow-network", "127.0.0.0/8"]).start();
    let requests = http.received(1).await;
    assert_eq!((requests.len(), requests[0].json()["id"].as_i64()), (1, Some(2)), "{requests:?}");
    // Rows of a backfill are the shard's, as the live ones are.
    let done = feed.command("backfill").args(["--shard", "b", "--table", "t0"]).finish();
    assert_eq!(done.code, Some(0), "{}{}", done.stdout, done.stderr);
    http.received(3).await;
    assert_eq!((feed.messages().await.len(), feed.messages_of("WEBHOOKS_b").await.len()), (1, 3));
    // A call that no stream takes, tried again when one does, by whichever shard has the webhook then.
    feed.pg.psql("UPDATE rule_webhooks SET nats_subject = 'nowhere.x' WHERE webhook_name = 'calls'");
    let call = "SELECT rule_webhook_emit('calls', '{\"place\": \"emit\", \"id\": 1}')";
    feed.pg.psql(call);
    feed.pg.psql(call);
    let letters =
        "SELECT string_agg(DISTINCT subject || ' ' || status, ', ') FROM rule_nats_dead_letters HAVING count(*) = 2";
    eventually("two dead letters", async || (feed.pg.psql(letters) == "_shard.b.nowhere.x dead").then_some(())).await;
    feed.pg.psql("SELECT rule_nats_stream_create('N', ARRAY['nowhere.>'])");
    feed.pg.psql("SELECT rule_nats_dead_letter_retry(1)");
    eventually("the first one", async || (feed.messages_of("N_b").await.len() == 1).then_some(())).await;
    assert_eq!(feed.messages_of("N_b").await[0].subject, "_shard.b.nowhere.x");
    feed.pg.psql("SELECT rule_cdc_shard_move('main', p_webhooks => ARRAY['calls'])");
    feed.pg.psql("SELECT rule_nats_dead_letter_retry(2)");
    eventually("the second one", async || (feed.messages_of("N").await.len() == 1).then_some(())).await;
    assert_eq!(feed.messages_of("N").await[0].subject, "nowhere.x");
    for process in [&mut worker, &mut main, &mut b] {
        ended_well(process);
    }
}
