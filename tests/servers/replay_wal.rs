//! Going back in the WAL, which an anchor slot keeps; by request from SQL; and which way is taken.

#![allow(clippy::unwrap_used)]

use crate::support;

use async_nats::jetstream;
use support::{
    eventually,
    feed::{Feed, Message},
    nats::Nats,
    postgres::Postgres,
    walhook::Finished,
};

const STATUS: &str = "SELECT string_agg(concat_ws(' ', replay_id, via, status, events_sent), ', ' ORDER BY replay_id) \
                      FROM rule_cdc_replays";

/// Table `t` linked to webhook 1 and anchored, a running walhook, and rows 1 to `rows`, a transaction each.
async fn fed(feed: Feed, rows: u32) -> (Feed, support::Walhook) {
    feed.webhook("w");
    feed.pg.psql("CREATE TABLE t (id int PRIMARY KEY, note text)");
    feed.pg.psql("SELECT rule_webhook_link_table(1, 't')");
    let walhook = feed.run();
    feed.confirmed().await;
    feed.pg.psql("SELECT rule_cdc_anchor_create()");
    for id in 1..=rows {
        feed.pg.psql(&format!("INSERT INTO t VALUES ({id})"));
    }
    feed.stored(rows.into()).await;
    (feed, walhook)
}

fn replay(feed: &Feed, arguments: &[&str], code: i32) -> Finished {
    let finished = feed.command("replay").args(["--create-stream", "REPLAY"]).args(arguments).finish();
    assert_eq!(finished.code, Some(code), "{arguments:?}: {finished:?}");
    finished
}

fn lsn_of(message: &Message) -> &str {
    message.payload["event"]["lsn"].as_str().unwrap()
}

async fn ids(feed: &Feed, stream: &str) -> Vec<i64> {
    feed.messages_of(stream).await.iter().map(|message| message.data()["id"].as_i64().unwrap()).collect()
}

async fn purge(feed: &Feed) {
    let jetstream = jetstream::new(feed.nats.client().await);
    jetstream.get_stream("WEBHOOKS").await.unwrap().purge().await.unwrap();
}

/// Waits until the replays are in these states.
async fn become_(feed: &Feed, states: &str) {
    eventually(&format!("replays to be {states:?}"), async || (feed.pg.psql(STATUS) == states).then_some(())).await;
}

async fn the_same_comes_from_the_wal(feed: Feed) {
    let (feed, mut streamer) = fed(feed, 5).await;
    feed.pg.psql("UPDATE t SET note = repeat('é', 3000) WHERE id = 5; DELETE FROM t WHERE id = 1");
    feed.pg.psql("SELECT rule_webhook_call_unified(1, '{\"id\": 77}')");
    let messages = feed.stored(8).await;
    purge(&feed).await;

    // Live rows come meanwhile, and the live flow has them once.
    let from = lsn_of(&messages[2]);
    let told = replay(&feed, &["--from", from, "--via", "wal"], 0);
    assert!(told.stdout.contains("by the wal") && told.stdout.contains("6 events"), "{told:?}");
    let again = feed.messages_of("REPLAY").await;
    assert_eq!(again.len(), 6, "{again:?}");
    for (copy, first) in again.iter().zip(&messages[2..]) {
        assert_eq!(copy.payload, first.payload, "the same, its id too");
        assert_eq!(copy.subject, format!("replay.1.{}", first.subject));
        let id = first.header("Nats-Msg-Id");
        assert_eq!((copy.header("Walhook-Replay-Of"), copy.header("Walhook-Op")), (id, first.header("Walhook-Op")));
        assert_eq!(copy.header("Nats-Msg-Id"), format!("replay.1:{id}"));
        assert_eq!(copy.header("Nats-Expected-Last-Sequence"), "");
    }
    // A part of it, by time too, and none of the live flow's business.
    replay(&feed, &["--from", from, "--to", lsn_of(&messages[3]), "--via", "wal"], 0);
    let time = messages[7].payload["event"]["commit_time"].as_str().unwrap();
    let refused = replay(&feed, &["--from", time, "--via", "wal"], 2);
    assert!(refused.stderr.contains("keeps it from 0/"), "too young to be sure of 5 s of disorder: {}", refused.stderr);
    feed.pg.psql("UPDATE walhook.rule_cdc_anchor_places SET seen_at = seen_at - interval '1 minute'");
    replay(&feed, &["--from", time, "--via", "wal", "--webhook", "w"], 0);
    assert_eq!(ids(&feed, "REPLAY").await[6..], [3, 4, 77]);
    let temporary = "SELECT count(*) FROM pg_replication_slots WHERE temporary";
    eventually("the temporary slots to go with their connections", async || {
        (feed.pg.psql(temporary) == "0").then_some(())
    })
    .await;
    feed.pg.psql("INSERT INTO t VALUES (6)");
    feed.confirmed().await;
    assert_eq!(ids(&feed, "WEBHOOKS").await, [6]);
    assert_eq!(feed.pg.psql(STATUS), "1 wal done 6, 2 wal done 2, 3 wal done 1");
    assert_eq!(streamer.terminate(), 0, "{}", streamer.log());
}

#[tokio::test]
async fn what_the_anchor_keeps_comes_again_the_same_beside_the_live_flow() {
    the_same_comes_from_the_wal(Feed::start().await).await;
}

#[tokio::test]
async fn what_the_anchor_keeps_comes_again_on_the_oldest_postgresql() {
    let pg = Postgres::builder().version("14").set_up().start().await;
    the_same_comes_from_the_wal(Feed::on(pg, Nats::start().await)).await;
}

#[tokio::test]
async fn what_the_anchor_keeps_comes_again_on_the_newest_postgresql() {
    let pg = Postgres::builder().version("18").set_up().start().await;
    the_same_comes_from_the_wal(Feed::on(pg, Nats::start().await)).await;
}

#[tokio::test]
async fn the_anchor_stays_as_far_behind_as_configured_and_shows_how_far_it_reaches() {
    let (feed, _streamer) = fed(Feed::start().await, 1).await;
    let reaches = "SELECT reaches_lsn FROM rule_cdc_anchors";
    let first = feed.pg.psql(reaches);
    let messages = feed.stored(1).await;
    assert_eq!(feed.pg.psql("SELECT rule_cdc_anchor_move()"), first, "a day has not gone by");
    // As if a day had.
    feed.confirmed().await;
    feed.pg.psql(
        "UPDATE walhook.rule_cdc_anchor_places SET seen_at = seen_at - interval '2 minutes'; SELECT rule_cdc_anchor_move()",
    );
    feed.pg.psql("UPDATE walhook.rule_cdc_anchor_places SET seen_at = seen_at - interval '1 day 1 minute'");
    let moved = eventually("the running walhook to move the anchor", async || {
        Some(feed.pg.psql(reaches)).filter(|lsn| *lsn != first)
    })
    .await;
    let is_behind = "SELECT bool_and(a.reaches_lsn <= s.confirmed_flush_lsn) FROM rule_cdc_anchors a JOIN rule_cdc_slots s USING (slot_name)";
    assert_eq!(feed.pg.psql(is_behind), "t");
    let told = replay(&feed, &["--from", lsn_of(&messages[0]), "--via", "wal"], 2).stderr;
    assert!(told.contains(&format!("keeps it from {moved}")) && told.contains(&format!("--from {moved}")), "{told}");
    let status = feed.command("status").finish();
    assert!(status.stdout.contains(&format!("anchor        walhook_anchor: keeps WAL from {moved} on")), "{status:?}");

    // By bytes, which max_slot_wal_keep_size bounds as well.
    feed.pg.psql("SELECT rule_cdc_anchor_create('24 hours', 50000)");
    feed.pg.psql("INSERT INTO t SELECT n, repeat('x', 500) FROM generate_series(2, 600) n");
    feed.stored(600).await;
    feed.confirmed().await;
    let kept = "SELECT pg_current_wal_lsn() - reaches_lsn < 60000 FROM rule_cdc_anchors";
    eventually("the anchor to let WAL go", async || {
        feed.pg.psql("INSERT INTO t VALUES (random() * 1e9)");
        (feed.pg.psql(kept) == "t").then_some(())
    })
    .await;
    feed.pg.psql("UPDATE walhook.rule_cdc_anchor_settings SET keep_bytes = 1e12");
    feed.pg.psql("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'");
    feed.pg.psql("SELECT pg_reload_conf()");
    feed.pg.psql("INSERT INTO t SELECT n, repeat('x', 900) FROM generate_series(1000, 2500) n");
    feed.confirmed().await;
    eventually("the anchor to stay within what PostgreSQL keeps", async || {
        (feed.pg.psql("SELECT pg_current_wal_lsn() - reaches_lsn < 800000 FROM rule_cdc_anchors") == "t").then_some(())
    })
    .await;

    for (statement, words) in [
        ("SELECT rule_cdc_anchor_create('0')", "cannot keep WAL"),
        ("SELECT rule_cdc_anchor_create('1 h', 1, 'nobody')", "no slot of that name"),
    ] {
        let error = feed.pg.try_psql(statement).unwrap_err();
        assert!(format!("{error:?}").contains(words), "{error:?}");
    }
    assert_eq!(feed.pg.psql("SELECT rule_cdc_anchor_drop()"), "t");
    assert_eq!(feed.pg.psql("SELECT rule_cdc_anchor_drop()"), "f");
    assert_eq!(feed.pg.psql("SELECT count(*) FROM pg_replication_slots"), "1");
}

#[tokio::test]
async fn an_anchor_that_postgresql_has_left_behind_says_so_and_so_does_one_that_is_gone() {
    let feed = Feed::on(
        Postgres::builder().conf("max_slot_wal_keep_size = '1MB'").set_up().start().await,
        Nats::start().await,
    );
    feed.pg.psql("CREATE TABLE filler (n int)");
    feed.pg.psql("SELECT rule_cdc_anchor_create()");
    eventually("the anchor to be lost", async || {
        feed.pg.psql("INSERT INTO filler VALUES (1)");
        feed.pg.psql("SELECT pg_switch_wal()");
        feed.pg.psql("CHECKPOINT");
        (feed.pg.psql("SELECT wal_status FROM rule_cdc_anchors") == "lost").then_some(())
    })
    .await;
    // The live slot is lost with it; one that is new has an anchor's name to be told of.
    feed.pg.psql("SELECT rule_cdc_slot_drop()");
    assert!(feed.pg.log().contains("slot 'walhook_anchor' stays and keeps WAL"), "{}", feed.pg.log());
    feed.pg.psql("SELECT rule_cdc_slot_create()");
    let mut walhook = feed.run();
    walhook.logged("PostgreSQL has removed WAL that it needed").await;
    let problem = "SELECT problem FROM rule_cdc_anchors";
    eventually("the problem to be noted", async || {
        feed.pg.psql(problem).contains("rule_cdc_anchor_drop()").then_some(())
    })
    .await;
    let told = replay(&feed, &["--from", "1h", "--via", "wal"], 2).stderr;
    assert!(told.contains("PostgreSQL has removed WAL that slot \"walhook_anchor\" needed"), "{told}");

    feed.pg.psql("SELECT pg_drop_replication_slot('walhook_anchor')");
    walhook.logged("it is gone").await;
    let told = replay(&feed, &["--from", "1h", "--via", "wal"], 2).stderr;
    assert!(told.contains("its slot \"walhook_anchor\" is gone"), "{told}");
    feed.pg.psql("SELECT rule_cdc_anchor_drop()");
    feed.pg.psql("SELECT rule_cdc_anchor_create()");
    assert_eq!(feed.pg.psql("SELECT wal_status, problem FROM rule_cdc_anchors"), "reserved|");
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

#[tokio::test]
async fn the_first_source_that_still_has_the_range_is_used_and_named() {
    let (feed, _streamer) = fed(Feed::start().await, 3).await;
    let messages = feed.stored(3).await;
    let first = lsn_of(&messages[0]);
    let told = replay(&feed, &["--from", first], 0);
    assert!(told.stdout.contains("by the stream") && !told.stderr.contains("no other way"), "{told:?}");
    purge(&feed).await;
    let told = replay(&feed, &["--from", first], 0);
    assert!(
        told.stdout.contains("by the wal")
            && told.stderr.contains("replay via wal: no earlier source has the requested range"),
        "{told:?}"
    );
    assert!(told.stderr.contains("up to 3 are gone"), "{}", told.stderr);
    feed.pg.psql("SELECT rule_cdc_anchor_drop()");
    let told = feed.command("replay").args(["--from", first, "--table", "t"]).finish();
    assert_eq!(told.code, Some(0), "{told:?}");
    assert!(told.stderr.contains("replay via table") && told.stderr.contains("has no anchor"), "{}", told.stderr);
    assert!(told.stdout.contains("replay 3 is done: 3 rows"), "{}", told.stdout);
    let snapshot = feed.stored(6).await;
    assert!(snapshot.iter().all(|message| message.header("Walhook-Op") == "snapshot"), "{snapshot:?}");
    assert_eq!(feed.pg.psql(STATUS), "1 stream done 3, 2 wal done 3, 3 table done 3");
    assert_eq!(ids(&feed, "REPLAY").await, [1, 2, 3, 1, 2, 3]);

    // Who asks for it gets all that is linked.
    let told = feed.command("replay").args(["--from", "1h", "--via", "table", "--dry-run"]).finish();
    assert_eq!(told.stdout, "table public.t: the rows that it has now\n");
}

#[tokio::test]
async fn a_replay_that_sql_asks_for_is_carried_out_and_one_after_the_other() {
    let (feed, mut streamer) = fed(Feed::start().await, 4).await;
    let messages = feed.stored(4).await;
    let ask = |arguments: &str| feed.pg.try_psql(&format!("SELECT rule_cdc_replay({arguments})"));
    feed.pg.psql("GRANT walhook_operator TO CURRENT_USER");
    let as_operator =
        format!("SET ROLE walhook_operator; SELECT rule_cdc_replay('{}', NULL, 'w', 'stream')", lsn_of(&messages[1]));
    // The first has nowhere to go; the others have.
    feed.pg.psql(&as_operator);
    become_(&feed, "1 stream failed 0").await;
    let error = feed.pg.psql("SELECT error FROM rule_cdc_replays WHERE replay_id = 1");
    assert!(error.contains("no stream takes these subjects"), "{error}");
    assert_eq!(ask("'1h', p_create_stream => 'REPLAY', p_via => 'wal'").unwrap(), "2");
    assert_eq!(ask(&format!("'{}', '{}'", lsn_of(&messages[0]), lsn_of(&messages[1]))).unwrap(), "3");
    become_(&feed, "1 stream failed 0, 2 wal failed 0, 3 stream failed 0").await;
    assert_eq!(ask(&format!("'{}', p_create_stream => 'REPLAY', p_via => 'wal'", lsn_of(&messages[0]))).unwrap(), "4");
    assert_eq!(ask(&format!("'{}', '{}'", lsn_of(&messages[0]), lsn_of(&messages[1]))).unwrap(), "5");
    become_(&feed, "1 stream failed 0, 2 wal failed 0, 3 stream failed 0, 4 wal done 4, 5 stream done 2").await;
    assert_eq!(ids(&feed, "REPLAY").await, [1, 2, 3, 4, 1, 2]);

    // By the tables, once their owner lets it.
    ask("'1h', p_via => 'table', p_table => 't'").unwrap();
    let is_failed = "SELECT status || ' ' || error FROM rule_cdc_replays WHERE replay_id = 6";
    let why = eventually("the rows to be refused", async || {
        Some(feed.pg.psql(is_failed)).filter(|told| told.starts_with("failed"))
    })
    .await;
    assert!(why.contains("GRANT SELECT, UPDATE ON public.t TO walhook_streamer"), "{why}");
    feed.pg.psql("GRANT SELECT, UPDATE ON t TO walhook_streamer");
    ask("'1h', p_via => 'table', p_table => 't'").unwrap();
    feed.stored(8).await;

    for (arguments, words) in [
        ("NULL", "p_from is NULL"),
        ("'FFFF/0'", "it is in the future"),
        ("'2100-01-01'", "it is in the future"),
        ("'noon or so'", "neither an LSN nor a time"),
        ("'0/2', '0/1'", "lies before"),
        ("'1h', p_webhook => 'nobody'", "none of that name"),
        ("'1h', p_via => 'rumour'", "rumour"),
        ("'1h', p_subject_prefix => 'a..b'", "empty token"),
        ("'1h', p_rate => 0", "0 events a second"),
    ] {
        let error = ask(arguments).unwrap_err();
        assert!(format!("{error:?}").contains(words), "{arguments}: {error:?}");
    }
    assert_eq!(streamer.terminate(), 0, "{}", streamer.log());
}

#[tokio::test]
async fn a_replay_from_sql_outlives_a_kill_waits_its_turn_and_can_be_cancelled() {
    let (feed, mut streamer) = fed(Feed::start().await, 1).await;
    feed.pg.psql("INSERT INTO t SELECT generate_series(2, 300)");
    let messages = feed.stored(300).await;
    purge(&feed).await;
    let from = lsn_of(&messages[0]);
    let ask = |rate: u32| {
        let text = format!("SELECT rule_cdc_replay('{from}', p_create_stream => 'REPLAY', p_rate => {rate})");
        feed.pg.psql(&text)
    };
    ask(10);
    let is_on_its_way = "SELECT count(*) FROM rule_cdc_replays WHERE status = 'running' AND events_sent > 5";
    eventually("the replay to be on its way", async || (feed.pg.psql(is_on_its_way) == "1").then_some(())).await;
    // Nobody else may meanwhile; the live flow goes on.
    feed.pg.psql("INSERT INTO t VALUES (301)");
    feed.confirmed().await;
    let busy = replay(&feed, &["--from", from], 2);
    assert!(busy.stderr.contains("replay 1 since") && busy.stderr.contains("runs already"), "{}", busy.stderr);
    streamer.kill9();
    feed.pg.psql("UPDATE rule_cdc_replays SET rate = NULL");
    let mut streamer = feed.run();
    eventually("the next walhook to end the replay", async || {
        (feed.pg.psql("SELECT status FROM rule_cdc_replays") == "done").then_some(())
    })
    .await;
    assert_eq!(ids(&feed, "REPLAY").await, (1..=300).collect::<Vec<_>>(), "each once, in order");

    ask(10);
    ask(10);
    eventually("the second replay to run", async || {
        let running =
            "SELECT count(*) FROM rule_cdc_replays WHERE replay_id = 2 AND status = 'running' AND via = 'wal'";
        (feed.pg.psql(running) == "1").then_some(())
    })
    .await;
    assert_eq!(feed.pg.psql("SELECT status FROM rule_cdc_replays WHERE replay_id = 3"), "requested");
    assert_eq!(feed.pg.psql("SELECT rule_cdc_replay_cancel(3)"), "t");
    assert_eq!(feed.pg.psql("SELECT rule_cdc_replay_cancel(2)"), "t");
    ask(100_000);
    eventually("the fourth to be done behind it", async || {
        (feed.pg.psql("SELECT status FROM rule_cdc_replays WHERE replay_id = 4") == "done").then_some(())
    })
    .await;
    let states = "SELECT string_agg(status, ' ' ORDER BY replay_id) FROM rule_cdc_replays";
    assert_eq!(feed.pg.psql(states), "done cancelled cancelled done");
    assert_eq!(feed.pg.psql("SELECT rule_cdc_replay_cancel(1)"), "f");
    assert_eq!(streamer.terminate(), 0, "{}", streamer.log());
}

#[tokio::test]
async fn a_replay_outlives_an_outage_of_nats() {
    let (feed, mut streamer) = fed(Feed::start().await, 1).await;
    feed.pg.psql("INSERT INTO t SELECT generate_series(2, 200)");
    feed.stored(200).await;
    feed.pg.psql("SELECT rule_cdc_replay('1h', p_create_stream => 'REPLAY', p_rate => 50, p_via => 'stream')");
    eventually("the replay to be on its way", async || (feed.last_sequence("REPLAY").await > 20).then_some(())).await;
    feed.nats.kill9();
    feed.nats.restart().await;
    feed.pg.psql("UPDATE rule_cdc_replays SET rate = 100000");
    eventually("the replay to be done all the same", async || {
        (feed.pg.psql("SELECT status FROM rule_cdc_replays") == "done").then_some(())
    })
    .await;
    assert_eq!(ids(&feed, "REPLAY").await, (1..=200).collect::<Vec<_>>(), "each once, in order");
    assert_eq!(streamer.terminate(), 0, "{}", streamer.log());
}
