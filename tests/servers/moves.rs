//! Rules that change while events wait: each event goes by the rules in force at its own commit, whatever happens in between.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use crate::support;

use futures_util::StreamExt;
use support::{
    Nats, Postgres, Proxy, Walhook, eventually,
    feed::{Feed, Message},
    port::Port,
    rows::ended_well,
};

/// A table `t` whose rows webhook 1 gets, and streams A and B, which take `a.>` and `b.>`. A takes one message until it is
/// given room.
async fn feed() -> Feed {
    feed_on(Nats::start().await).await
}

async fn feed_on(nats: Nats) -> Feed {
    let feed = Feed::on(Postgres::set_up().await, nats);
    feed.pg.psql(
        "CREATE TABLE t (id int PRIMARY KEY, note text);
         SELECT rule_nats_stream_create('A', ARRAY['a.>'], 'default', 'limits');
         SELECT rule_nats_stream_create('B', ARRAY['b.>'], 'default', 'limits');
         UPDATE rule_nats_streams SET discard_policy = 'new', max_messages = 1 WHERE stream_name = 'A';
         SELECT rule_webhook_register('w', 'https://example.com/w');
         SELECT rule_webhook_enable_nats(1, 'a.o', 'nats');
         SELECT rule_webhook_link_table('w', 't')",
    );
    feed
}

async fn ids(feed: &Feed, stream: &str) -> Vec<i64> {
    let messages = feed.messages_of(stream).await;
    messages.iter().map(|message: &Message| message.data()["id"].as_i64().unwrap()).collect()
}

async fn holds(feed: &Feed, stream: &str, expected: &[i64]) {
    eventually(&format!("stream {stream} to hold {expected:?}"), async || {
        (ids(feed, stream).await == expected).then_some(())
    })
    .await;
}

/// What the history says, by rows: id, stream, success, and whether the sequence is that of the event's message.
async fn history_is_true(feed: &Feed) {
    let rows = feed.pg.psql(
        "SELECT coalesce(stream_name, '-') || ' ' || coalesce(sequence_number, 0) || ' ' || success || ' ' || event_id \
         FROM rule_nats_publish_history ORDER BY publish_id",
    );
    let mut seen = 0;
    for row in rows.lines() {
        let [stream, sequence, success, event] = row.split(' ').collect::<Vec<_>>()[..] else { panic!("{row}") };
        assert_eq!(success, "true", "{rows}");
        let messages = feed.messages_of(stream).await;
        let message = messages.iter().find(|message| message.sequence == sequence.parse::<u64>().unwrap());
        let message = message.unwrap_or_else(|| panic!("{row} is of no message"));
        assert!([message.header("Nats-Msg-Id"), message.header("Walhook-Id")].contains(&event), "{row}: {message:?}");
        seen += 1;
    }
    let stored = feed.messages_of("A").await.len() + feed.messages_of("B").await.len();
    assert_eq!(seen, stored, "{rows}");
}

fn room(feed: &Feed) {
    feed.pg.psql("UPDATE rule_nats_streams SET max_messages = 1000 WHERE stream_name = 'A'");
}

/// A checkpoint tells where stream A stands.
async fn noted(feed: &Feed) {
    eventually("a checkpoint of the stream", async || {
        (feed.pg.psql("SELECT count(*) FROM rule_nats_checkpoints WHERE stream_name = 'A'") == "1").then_some(())
    })
    .await;
}

/// This run, or the one before it, has found that two addresses lead to one server.
async fn aliased(feed: &Feed) {
    eventually("an alias", async || {
        (feed.pg.psql("SELECT count(*) > 0 FROM rule_cdc_server_aliases") == "t").then_some(())
    })
    .await;
}

/// How walhook is started again.
async fn again(feed: &Feed, how: &str, walhook: &mut Walhook) {
    match how {
        "kill" => {
            walhook.kill9();
            *walhook = feed.run();
            walhook.logged("slot taken").await;
        }
        "terminate" => {
            walhook.terminate();
            *walhook = feed.run();
            walhook.logged("slot taken").await;
        }
        "walsender" => {
            feed.pg.psql("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active");
        }
        "crash" => {
            feed.pg.kill9();
            feed.pg.restart().await;
        }
        other => panic!("{other}"),
    }
}

/// The first and second row go to A, which takes one of them; the third, after `change`, to B.
async fn moved(how: &str) {
    let feed = feed().await;
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO t VALUES (1)");
    holds(&feed, "A", &[1]).await;
    feed.pg.psql("INSERT INTO t VALUES (2)");
    walhook.logged("refused a message").await;
    feed.pg.psql("UPDATE rule_webhooks SET nats_subject = 'b.o'");
    feed.pg.psql("INSERT INTO t VALUES (3)");
    holds(&feed, "B", &[3]).await;
    again(&feed, how, &mut walhook).await;
    feed.pg.psql("INSERT INTO t VALUES (4)");
    holds(&feed, "B", &[3, 4]).await;
    again(&feed, how, &mut walhook).await;
    room(&feed);
    holds(&feed, "A", &[1, 2]).await;
    feed.confirmed().await;
    assert_eq!((ids(&feed, "A").await, ids(&feed, "B").await), (vec![1, 2], vec![3, 4]), "{}", walhook.log());
    assert_eq!(feed.pg.psql("SELECT count(*) FROM rule_nats_dead_letters"), "0");
    history_is_true(&feed).await;
    ended_well(&mut walhook);
}

#[tokio::test]
async fn an_event_that_waits_while_its_webhook_moves_goes_to_its_own_stream_after_a_kill() {
    moved("kill").await;
}

#[tokio::test]
async fn an_event_that_waits_while_its_webhook_moves_goes_to_its_own_stream_after_a_stop() {
    moved("terminate").await;
}

#[tokio::test]
async fn an_event_that_waits_while_its_webhook_moves_goes_to_its_own_stream_when_the_walsender_ends() {
    moved("walsender").await;
}

#[tokio::test]
async fn an_event_that_waits_while_its_webhook_moves_goes_to_its_own_stream_after_postgresql_crashes() {
    moved("crash").await;
}

#[tokio::test]
async fn rules_that_change_while_walhook_is_down_hold_from_their_own_commits() {
    let feed = feed().await;
    room(&feed);
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO t VALUES (1)");
    feed.confirmed().await;
    ended_well(&mut walhook);
    for statement in [
        "INSERT INTO t VALUES (2)",
        "UPDATE rule_webhooks SET nats_subject = 'b.o'",
        "INSERT INTO t VALUES (3)",
        "UPDATE rule_webhooks SET enabled = false",
        "INSERT INTO t VALUES (4)",
        "UPDATE rule_webhooks SET enabled = true, payload_format = 'data'",
        "INSERT INTO t VALUES (5)",
        "UPDATE rule_webhooks SET nats_subject = 'a.o', payload_format = 'webhook'",
        "INSERT INTO t VALUES (6)",
        "DELETE FROM rule_webhook_links",
        "INSERT INTO t VALUES (7)",
        "SELECT rule_webhook_link_table('w', 't', ARRAY['delete'])",
        "INSERT INTO t VALUES (8)",
        "SELECT rule_webhook_link_table('w', 't', ARRAY['insert'])",
        "INSERT INTO t VALUES (9)",
    ] {
        feed.pg.psql(statement);
    }
    let mut walhook = feed.run();
    holds(&feed, "A", &[1, 2, 6, 9]).await;
    feed.confirmed().await;
    let of_b: Vec<_> = feed.messages_of("B").await.iter().map(|message| message.payload.clone()).collect();
    assert_eq!((of_b.len(), &of_b[0]["data"]["id"], &of_b[1]["id"]), (2, &3.into(), &5.into()), "{of_b:?}");
    history_is_true(&feed).await;
    ended_well(&mut walhook);
}

/// An event that is stored, and not confirmed since another one waits, is not stored again elsewhere after a move.
#[tokio::test]
async fn an_event_that_is_stored_and_not_confirmed_is_not_stored_again_after_a_move() {
    let feed = feed().await;
    feed.pg.psql(
        "SELECT rule_webhook_register('second', 'https://example.com/second');
         SELECT rule_webhook_enable_nats(2, 'b.second', 'nats');
         CREATE TABLE u (id int PRIMARY KEY);
         SELECT rule_webhook_link_table('second', 'u')",
    );
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO t VALUES (1)");
    holds(&feed, "A", &[1]).await;
    feed.pg.psql("INSERT INTO t VALUES (2)");
    feed.pg.psql("INSERT INTO u VALUES (10)");
    holds(&feed, "B", &[10]).await;
    feed.pg.psql("UPDATE rule_webhooks SET nats_subject = 'a.second' WHERE webhook_id = 2");
    feed.pg.psql("INSERT INTO u VALUES (11)");
    for how in ["kill", "walsender", "terminate"] {
        again(&feed, how, &mut walhook).await;
    }
    room(&feed);
    holds(&feed, "A", &[1, 2, 11]).await;
    feed.confirmed().await;
    assert_eq!(ids(&feed, "B").await, [10]);
    history_is_true(&feed).await;
    ended_well(&mut walhook);
}

/// Ordering, batches and durability change while messages wait, in every pair of values and back again.
#[tokio::test]
async fn every_mode_of_a_stream_changes_at_its_commit_while_messages_wait() {
    let feed = feed().await;
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO t VALUES (1)");
    holds(&feed, "A", &[1]).await;
    let modes = [
        "strict, streamed, default",
        "strict, atomic, default",
        "strict, streamed, fsync",
        "shared, streamed, default",
        "shared, atomic, default",
        "shared, streamed, fsync",
    ];
    let mut expected = vec![1];
    for from in modes {
        for to in modes {
            for mode in [from, to] {
                let [ordering, transactions, durability] = mode.split(", ").collect::<Vec<_>>()[..] else { panic!() };
                feed.pg.psql(&format!(
                    "UPDATE rule_nats_streams SET ordering = '{ordering}', transactions = '{transactions}', \
                     durability = '{durability}' WHERE stream_name = 'A'"
                ));
                let next = expected.len() as i64 + 1;
                feed.pg.psql(&format!("INSERT INTO t VALUES ({next}), ({})", next + 1));
                expected.extend([next, next + 1]);
            }
        }
        again(&feed, "kill", &mut walhook).await;
    }
    room(&feed);
    holds(&feed, "A", &expected).await;
    feed.confirmed().await;
    assert_eq!(feed.pg.psql("SELECT count(*) FROM rule_nats_dead_letters"), "0", "{}", walhook.log());
    assert!(!walhook.log().contains("panicked"), "{}", walhook.log());
    history_is_true(&feed).await;
    ended_well(&mut walhook);
}

/// Servers of a configuration that change are a move too.
#[tokio::test]
async fn a_configuration_that_names_another_server_leaves_waiting_events_to_the_one_before() {
    let feed = feed().await;
    let second = Nats::start().await;
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO t VALUES (1)");
    holds(&feed, "A", &[1]).await;
    // The client below writes the stream's configuration without its metadata; a checkpoint tells that the stream is ours.
    noted(&feed).await;
    feed.pg.psql("INSERT INTO t VALUES (2)");
    walhook.logged("refused a message").await;
    feed.pg.psql(&format!("UPDATE rule_nats_config SET nats_url = '{}' WHERE config_name = 'default'", second.url()));
    feed.pg.psql("INSERT INTO t VALUES (3)");
    let there = Feed { pg: Postgres::start().await, nats: second };
    holds(&there, "A", &[3]).await;
    for how in ["kill", "walsender"] {
        again(&feed, how, &mut walhook).await;
    }
    // Stored at the first server and not confirmed, it is not stored at the second as well.
    let jetstream = feed.nats.jetstream().await;
    let mut config = jetstream.get_stream("A").await.unwrap().cached_info().config.clone();
    config.max_messages = 1000;
    jetstream.update_stream(config).await.unwrap();
    holds(&feed, "A", &[1, 2]).await;
    feed.pg.psql("UPDATE rule_nats_streams SET max_messages = 1000 WHERE stream_name = 'A'");
    feed.pg.psql("INSERT INTO t VALUES (4)");
    holds(&there, "A", &[3, 4]).await;
    feed.confirmed().await;
    assert_eq!((ids(&feed, "A").await, ids(&there, "A").await), (vec![1, 2], vec![3, 4]), "{}", walhook.log());
    ended_well(&mut walhook);
}

#[tokio::test]
async fn an_address_that_was_wrong_from_the_beginning_is_corrected_and_nothing_waits_for_it() {
    let feed = feed().await;
    room(&feed);
    let right = feed.nats.url();
    feed.pg.psql("UPDATE rule_nats_config SET nats_url = 'nats://127.0.0.1:1' WHERE config_name = 'default'");
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO t SELECT i FROM generate_series(1, 20) i");
    walhook.logged("connect").await;
    feed.pg.psql(&format!("UPDATE rule_nats_config SET nats_url = '{right}' WHERE config_name = 'default'"));
    feed.pg.psql("INSERT INTO t SELECT i FROM generate_series(21, 30) i");
    holds(&feed, "A", &(1..=30).collect::<Vec<_>>()).await;
    feed.confirmed().await;
    history_is_true(&feed).await;
    ended_well(&mut walhook);
}

/// The window is full, so the WAL is not read, and with it not the change that mends it.
#[tokio::test]
async fn an_address_is_corrected_though_the_window_is_full() {
    let feed = feed().await;
    room(&feed);
    let right = feed.nats.url();
    feed.pg.psql("UPDATE rule_nats_config SET nats_url = 'nats://127.0.0.1:1' WHERE config_name = 'default'");
    let mut walhook = feed.streamer().env("WALHOOK_WINDOW_EVENTS", "5").start();
    feed.pg.psql("INSERT INTO t SELECT i FROM generate_series(1, 20) i");
    walhook.logged("connect").await;
    feed.pg.psql(&format!("UPDATE rule_nats_config SET nats_url = '{right}' WHERE config_name = 'default'"));
    feed.pg.psql("INSERT INTO t SELECT i FROM generate_series(21, 30) i");
    holds(&feed, "A", &(1..=30).collect::<Vec<_>>()).await;
    feed.confirmed().await;
    ended_well(&mut walhook);
}

#[tokio::test]
async fn a_server_known_by_another_name_gets_what_waits_before_what_is_new() {
    let feed = feed().await;
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO t VALUES (1)");
    holds(&feed, "A", &[1]).await;
    feed.pg.psql("INSERT INTO t VALUES (2)");
    walhook.logged("refused a message").await;
    let url = feed.nats.url().replace("127.0.0.1", "localhost");
    feed.pg.psql(&format!("UPDATE rule_nats_config SET nats_url = '{url}' WHERE config_name = 'default'"));
    feed.pg.psql("INSERT INTO t VALUES (3)");
    again(&feed, "kill", &mut walhook).await;
    feed.pg.psql("INSERT INTO t VALUES (4)");
    aliased(&feed).await;
    room(&feed);
    holds(&feed, "A", &[1, 2, 3, 4]).await;
    feed.confirmed().await;
    history_is_true(&feed).await;
    ended_well(&mut walhook);
}

/// The name changes back while events of each name wait.
#[tokio::test]
async fn a_server_whose_name_changes_and_changes_back_gets_all_in_their_order() {
    let feed = feed().await;
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO t VALUES (1)");
    holds(&feed, "A", &[1]).await;
    feed.pg.psql("INSERT INTO t VALUES (2)");
    walhook.logged("refused a message").await;
    let first = feed.nats.url();
    let second = first.replace("127.0.0.1", "localhost");
    for (id, url) in [(3, &second), (4, &first), (5, &second), (6, &first)] {
        feed.pg.psql(&format!("UPDATE rule_nats_config SET nats_url = '{url}' WHERE config_name = 'default'"));
        feed.pg.psql(&format!("INSERT INTO t VALUES ({id})"));
    }
    aliased(&feed).await;
    room(&feed);
    holds(&feed, "A", &[1, 2, 3, 4, 5, 6]).await;
    feed.confirmed().await;
    assert_eq!(sessions(&walhook), 1, "{}", walhook.log());
    history_is_true(&feed).await;
    ended_well(&mut walhook);
}

/// How often a session began.
fn sessions(walhook: &Walhook) -> usize {
    walhook.log().lines().filter(|line| line.contains("slot taken")).count()
}

/// Two names of one server take turns within one session, however often the address changes, also where JetStream is switched off and
/// on at either of them, and while events wait.
#[tokio::test]
async fn a_servers_name_changes_again_and_again_within_one_session() {
    let feed = feed().await;
    room(&feed);
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO t VALUES (0)");
    holds(&feed, "A", &[0]).await;
    let first = feed.nats.url();
    let names = [first.replace("127.0.0.1", "localhost"), first];
    let (mut next, mut by_core) = (1, Vec::new());
    let mut change = |round: usize, switches: bool| {
        let has_jetstream = !switches || !round.is_multiple_of(3);
        feed.pg.psql(&format!(
            "BEGIN; UPDATE rule_nats_config SET nats_url = '{}', jetstream_enabled = {has_jetstream}; \
             INSERT INTO t SELECT generate_series({next}, {}); COMMIT",
            names[round % 2],
            next + 4
        ));
        by_core.extend((next..next + 5).filter(|_| !has_jetstream));
        next += 5;
    };
    for round in 0..30 {
        change(round, true);
    }
    feed.confirmed().await;
    feed.pg.psql("UPDATE rule_nats_streams SET max_messages = 151 WHERE stream_name = 'A'");
    (0..12).for_each(|round| change(round, false));
    walhook.logged("refused a message").await;
    room(&feed);
    feed.confirmed().await;
    let messages = feed.messages_of("A").await;
    let is_core = |message: &&Message| !message.headers.contains_key("Nats-Expected-Stream");
    let id = |message: &Message| message.data()["id"].as_i64().unwrap();
    let mut core: Vec<_> = messages.iter().filter(is_core).map(id).collect();
    core.sort_unstable();
    let stored: Vec<_> = messages.iter().filter(|message| !is_core(message)).map(id).collect();
    let expected: Vec<_> = (0..next).filter(|id| !by_core.contains(id)).collect();
    assert_eq!((core, stored), (by_core, expected), "{}", walhook.log());
    assert_eq!(sessions(&walhook), 1, "{}", walhook.log());
    // Another session has one lane for both names.
    again(&feed, "kill", &mut walhook).await;
    feed.pg.psql("INSERT INTO t VALUES (1000)");
    feed.confirmed().await;
    assert_eq!(feed.messages_of("A").await.len(), messages.len() + 1);
    assert_eq!(feed.pg.psql("SELECT count(*) FROM rule_nats_dead_letters"), "0");
    ended_well(&mut walhook);
}

/// One transaction changes the address and switches JetStream off, and walhook has not seen yet that both addresses are one server.
#[tokio::test]
async fn core_nats_by_another_address_comes_after_what_waits_for_jetstream() {
    let monitoring = Port::take();
    let feed = feed_on(Nats::builder().config(&format!("http: 127.0.0.1:{}", monitoring.number())).start().await).await;
    let connections = || {
        let url = format!("http://127.0.0.1:{}/connz", monitoring.number());
        let answer = ureq::get(url).call().unwrap().body_mut().read_to_string().unwrap();
        let all = serde_json::from_str::<serde_json::Value>(&answer).unwrap()["connections"].take();
        let is_walhooks =
            |connection: &&serde_json::Value| connection["name"].as_str().unwrap_or("").contains("walhook");
        all.as_array().unwrap().iter().filter(is_walhooks).count()
    };
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO t VALUES (1)");
    holds(&feed, "A", &[1]).await;
    feed.pg.psql("INSERT INTO t VALUES (2)");
    walhook.logged("refused a message").await;
    let before = connections();
    let name = feed.nats.url().replace("127.0.0.1", "localhost");
    feed.pg.psql(&format!(
        "BEGIN; UPDATE rule_nats_config SET nats_url = '{name}', jetstream_enabled = false; INSERT INTO t VALUES (3); COMMIT"
    ));
    feed.pg.psql("INSERT INTO t VALUES (4)");
    eventually("a connection for core NATS, and one to ask JetStream", async || {
        (connections() >= before + 2).then_some(())
    })
    .await;
    // Core NATS could be used by now, and JetStream refuses the event that waits again and again.
    let client = feed.nats.client().await;
    let mut heard = client.subscribe("a.>").await.unwrap();
    for _ in 0..2 {
        let message = heard.next().await.unwrap();
        let payload: serde_json::Value = serde_json::from_slice(&message.payload).unwrap();
        assert_eq!(payload["data"]["id"], 2, "{}", walhook.log());
    }
    // No row describes the stream of that address now: walhook leaves it as NATS has it.
    let jetstream = feed.nats.jetstream().await;
    let mut limits = jetstream.get_stream("A").await.unwrap().info().await.unwrap().config.clone();
    limits.max_messages = 1000;
    jetstream.update_stream(limits).await.unwrap();
    feed.confirmed().await;
    holds(&feed, "A", &[1, 2, 3, 4]).await;
    ended_well(&mut walhook);
}

/// The old address leads nowhere any more, and only a checkpoint tells which stream it led to.
#[tokio::test]
async fn a_server_whose_old_name_is_gone_gets_what_waits_before_what_is_new() {
    let feed = feed().await;
    let proxy = Proxy::before(feed.nats.port());
    let old = format!("nats://localhost:{}", proxy.port());
    feed.pg.psql(&format!("UPDATE rule_nats_config SET nats_url = '{old}' WHERE config_name = 'default'"));
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO t VALUES (1)");
    holds(&feed, "A", &[1]).await;
    noted(&feed).await;
    feed.pg.psql("INSERT INTO t VALUES (2)");
    walhook.logged("refused a message").await;
    let new = feed.nats.url();
    feed.pg.psql(&format!("UPDATE rule_nats_config SET nats_url = '{new}' WHERE config_name = 'default'"));
    feed.pg.psql("INSERT INTO t VALUES (3)");
    drop(proxy);
    again(&feed, "kill", &mut walhook).await;
    aliased(&feed).await;
    room(&feed);
    holds(&feed, "A", &[1, 2, 3]).await;
    feed.confirmed().await;
    history_is_true(&feed).await;
    ended_well(&mut walhook);
}

/// Events for servers that never come back go by the rules of now, once the operator says so. The new stream keeps its order: what
/// has no place in it any more becomes a dead letter, and is not taken for stored.
#[tokio::test]
async fn events_for_servers_that_never_come_back_become_dead_letters_by_an_amendment() {
    let feed = feed().await;
    let second = Nats::start().await;
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO t VALUES (1)");
    holds(&feed, "A", &[1]).await;
    noted(&feed).await;
    feed.pg.psql("INSERT INTO t VALUES (2)");
    walhook.logged("refused a message").await;
    feed.pg.psql(&format!("UPDATE rule_nats_config SET nats_url = '{}' WHERE config_name = 'default'", second.url()));
    feed.pg.psql("INSERT INTO t VALUES (3)");
    let there = Feed { pg: Postgres::start().await, nats: second };
    holds(&there, "A", &[3]).await;
    feed.nats.kill9();
    walhook.logged("rule_cdc_rules_amend(").await;
    let log = walhook.log();
    let statement = log.lines().rev().find_map(|line| {
        let from = line.find("SELECT rule_cdc_rules_amend('")?;
        Some(line[from..].split_inclusive(')').next()?.to_owned())
    });
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    feed.pg.psql(&statement.unwrap());
    room(&feed);
    for start in 0..2 {
        walhook = feed.run();
        eventually("a dead letter", async || {
            (feed.pg.psql("SELECT count(*) FROM rule_nats_dead_letters") == "1").then_some(())
        })
        .await;
        feed.pg.psql(&format!("INSERT INTO t VALUES ({})", 4 + start));
        holds(&there, "A", &(3..=4 + start).collect::<Vec<_>>()).await;
        walhook.kill9();
    }
    walhook = feed.run();
    feed.confirmed().await;
    let letter = feed.pg.psql("SELECT reason FROM rule_nats_dead_letters");
    assert!(letter.contains("rule_cdc_rules_amend"), "{letter}");
    feed.pg.psql("SELECT rule_nats_dead_letter_retry(dead_letter_id) FROM rule_nats_dead_letters");
    holds(&there, "A", &[3, 4, 5, 2]).await;
    feed.pg.psql("INSERT INTO t VALUES (6)");
    holds(&there, "A", &[3, 4, 5, 2, 6]).await;
    ended_well(&mut walhook);
}

/// Sessions that stopped at an event have followed rules behind it. An amendment is in their place, also for a session that begins
/// within its range.
#[tokio::test]
async fn an_amendment_makes_later_versions_void() {
    let feed = feed().await;
    feed.pg.psql(
        "UPDATE rule_webhooks SET on_error = 'halt';
         SELECT rule_webhook_register('v', 'https://example.com/v');
         SELECT rule_webhook_enable_nats(2, 'b.v', 'nats');
         SELECT rule_webhook_link_table('v', 't')",
    );
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO t VALUES (1)");
    holds(&feed, "A", &[1]).await;
    holds(&feed, "B", &[1]).await;
    feed.confirmed().await;
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    // What the server takes is not known while it is away, so walhook reads on behind the event at which it has to stop.
    feed.nats.kill9();
    walhook = feed.run();
    feed.pg.psql(
        "BEGIN; INSERT INTO t VALUES (2, repeat('x', 2000000));
         UPDATE rule_webhooks SET nats_subject = 'b.first' WHERE webhook_id = 2; COMMIT",
    );
    feed.pg.psql("UPDATE rule_webhooks SET nats_subject = 'b.second' WHERE webhook_id = 2");
    feed.pg.psql("INSERT INTO t VALUES (3)");
    let written = async |expected: &str| {
        let versions = "SELECT string_agg(row_data->>'nats_subject', ' ' ORDER BY since_lsn) FROM walhook.rule_cdc_rule_versions \
                        WHERE table_name = 'rule_webhooks' AND row_id = 2 AND row_data->>'nats_subject' <> 'b.v'";
        eventually(&format!("versions {expected}"), async || (feed.pg.psql(versions) == expected).then_some(())).await;
    };
    written("b.first b.second").await;
    feed.nats.restart().await;
    assert_eq!(walhook.wait(Duration::from_secs(60)), 2, "{}", walhook.log());
    let log = walhook.log();
    let from = log.rfind("SELECT rule_cdc_rules_amend('").expect("the hint names the statement");
    feed.pg.psql(
        "UPDATE rule_webhooks SET on_error = 'dead_letter';
         UPDATE rule_webhooks SET nats_subject = 'b.amended' WHERE webhook_id = 2",
    );
    feed.pg.psql(log[from..].split_inclusive(')').next().unwrap());

    walhook = feed.run();
    written("b.amended").await;
    // The third row waits for room in A.
    eventually("a position behind the amended event", async || {
        let position = "SELECT confirmed_flush_lsn > at_lsn FROM pg_replication_slots, rule_cdc_rule_amendments";
        (feed.pg.psql(position) == "t").then_some(())
    })
    .await;
    walhook.kill9();
    feed.pg.psql("INSERT INTO t VALUES (4)");
    walhook = feed.run();
    holds(&feed, "B", &[1, 3, 4]).await;
    room(&feed);
    feed.confirmed().await;
    holds(&feed, "A", &[1, 3, 4]).await;
    let messages = feed.messages_of("B").await;
    let subjects = messages.iter().map(|message| message.subject.as_str()).collect::<Vec<_>>();
    assert_eq!(subjects, ["b.v", "b.amended", "b.amended"]);
    ended_well(&mut walhook);
}
