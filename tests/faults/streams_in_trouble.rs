//! Streams, accounts and certificates that somebody changes under a running walhook: nothing is lost, nothing comes twice, and
//! what cannot be trusted ends it.

#![allow(clippy::unwrap_used)]

use crate::support;

use std::time::Duration;

use async_nats::jetstream::stream;
use futures_util::StreamExt;
use support::{
    Nats, NetworkFault, Postgres, Proxy, Walhook,
    disk::Disk,
    eventually,
    feed::Feed,
    login::Operator,
    rows::{ended_well, exactly, insert, linked_on, taken},
    skip,
    tls::Authority,
};

async fn linked() -> Feed {
    let feed = linked_on(Postgres::set_up().await, Nats::start().await);
    feed.pg.psql("SELECT rule_nats_stream_create('WEBHOOKS', ARRAY['webhooks.>'])");
    feed
}

/// The stream's configuration, changed by hand.
async fn edit(nats: &Nats, change: impl FnOnce(&mut stream::Config)) {
    let jetstream = nats.jetstream().await;
    let mut config = jetstream.get_stream("WEBHOOKS").await.unwrap().cached_info().config.clone();
    change(&mut config);
    jetstream.update_stream(config).await.unwrap();
}

#[tokio::test]
async fn a_full_stream_that_discards_new_messages_holds_the_slot_until_there_is_room() {
    let feed = linked().await;
    feed.pg.psql("UPDATE rule_nats_streams SET discard_policy = 'new', max_messages = 100");
    let mut walhook = feed.run();
    insert(&feed.pg, 0, 300);
    taken(&feed, 100).await;
    walhook.logged("WARN").await;
    assert!(!feed.is_confirmed(), "{}", walhook.log());
    assert_eq!(feed.last_sequence("WEBHOOKS").await, 100);
    feed.pg.psql("UPDATE rule_nats_streams SET max_messages = 1000");
    exactly(&feed, 300).await;
    assert_eq!(feed.pg.psql("SELECT count(*) FROM rule_nats_dead_letters"), "0");
    ended_well(&mut walhook);
}

#[tokio::test]
async fn a_full_disk_under_nats_is_waited_for_and_once_there_is_room_all_arrives_once() {
    let disk = match Disk::of(6 * 1024) {
        Ok(disk) => disk,
        Err(why) => return skip("a full disk under NATS", &why),
    };
    let feed = linked_on(Postgres::set_up().await, Nats::builder().disk(disk).start().await);
    let mut walhook = feed.run();
    insert(&feed.pg, 0, 100);
    feed.confirmed().await;
    feed.pg.psql("INSERT INTO t SELECT i, repeat('x', 10000) FROM generate_series(100, 999) i");
    eventually("NATS to find its disk full", async || feed.nats.log().contains("no space left").then_some(())).await;
    walhook.logged("WARN").await;
    insert(&feed.pg, 1000, 1100);
    assert!(!feed.is_confirmed(), "{}", walhook.log());
    assert!(walhook.exited().is_none(), "{}", walhook.log());
    // JetStream has switched itself off, and wants to be started again.
    feed.nats.disk().grow(64 * 1024);
    feed.nats.restart().await;
    exactly(&feed, 1100).await;
    assert_eq!(feed.pg.psql("SELECT count(*) FROM rule_nats_dead_letters"), "0");
    ended_well(&mut walhook);
}

#[tokio::test]
async fn a_stream_edited_so_that_the_subject_is_uncovered_loses_nothing_in_silence() {
    let feed = linked().await;
    let mut walhook = feed.run();
    insert(&feed.pg, 0, 100);
    feed.confirmed().await;
    edit(&feed.nats, |config| config.subjects = vec!["elsewhere.>".to_owned()]).await;
    insert(&feed.pg, 100, 200);
    feed.confirmed().await;
    // Each of them is stored, for the row's subjects were given back to the stream, or a dead letter that says why.
    let stored = feed.last_sequence("WEBHOOKS").await;
    let letters: u64 = feed.pg.psql("SELECT count(*) FROM rule_nats_dead_letters").parse().unwrap();
    assert_eq!(stored + letters, 200, "{}", walhook.log());
    ended_well(&mut walhook);
}

#[tokio::test]
async fn a_stream_deleted_and_made_anew_by_hand_ends_walhook_with_the_code_for_distrust() {
    let feed = linked().await;
    let mut walhook = feed.run();
    insert(&feed.pg, 0, 100);
    feed.confirmed().await;
    ended_well(&mut walhook);
    let jetstream = feed.nats.jetstream().await;
    let config = jetstream.get_stream("WEBHOOKS").await.unwrap().cached_info().config.clone();
    jetstream.delete_stream("WEBHOOKS").await.unwrap();
    jetstream.create_stream(config).await.unwrap();
    insert(&feed.pg, 100, 200);
    let mut walhook = feed.run();
    assert_eq!(walhook.wait(Duration::from_secs(30)), 3, "{}", walhook.log());
    assert!(walhook.log().lines().last().unwrap().contains("made anew"), "{}", walhook.log());
    assert_eq!(feed.last_sequence("WEBHOOKS").await, 0, "nothing is published");
}

#[tokio::test]
async fn a_password_that_is_revoked_while_it_runs_ends_it_with_the_code_for_permission_and_nothing_is_lost() {
    let authorization = |password: &str| format!("authorization {{ user: app, password: {password} }}");
    let nats = Nats::builder().config(&authorization("first")).start().await;
    let mut feed = linked_on(Postgres::set_up().await, nats);
    let run = |feed: &Feed| feed.streamer().env("NATS_USER", "app").env("NATS_PASSWORD", "first").start();
    let mut walhook = run(&feed);
    insert(&feed.pg, 0, 100);
    feed.confirmed().await;
    feed.nats.stop();
    feed.nats.set_config(&authorization("second"));
    feed.nats.restart().await;
    insert(&feed.pg, 100, 200);
    assert_eq!(walhook.wait(Duration::from_secs(30)), 4, "{}", walhook.log());
    assert!(!feed.is_confirmed());
    feed.nats.stop();
    feed.nats.set_config(&authorization("first"));
    feed.nats.restart().await;
    let mut walhook = run(&feed);
    feed.confirmed().await;
    ended_well(&mut walhook);
    feed.nats.stop();
    feed.nats.set_config(""); // for the test's own client
    feed.nats.restart().await;
    let ids: Vec<_> = feed.messages().await.iter().map(|message| message.data()["id"].as_i64().unwrap()).collect();
    assert_eq!(ids, (0..200).collect::<Vec<_>>());
}

/// A server with a certificate of that authority, which the file `ca.crt` in its folder names.
fn certified(folder: &std::path::Path, authority: &Authority) -> String {
    let (certificate, key) = authority.server().write(folder, "server");
    std::fs::write(folder.join("ca.crt"), &authority.certificate).unwrap();
    format!("tls {{ cert_file: \"{}\", key_file: \"{}\" }}", certificate.display(), key.display())
}

#[tokio::test]
async fn a_certificate_and_its_authority_that_are_rotated_under_a_running_walhook_are_read_anew() {
    let folder = tempfile::tempdir().unwrap();
    let nats = Nats::builder().config(&certified(folder.path(), &Authority::new("old"))).start().await;
    let feed = linked_on(Postgres::set_up().await, nats);
    let run = |feed: &Feed| -> Walhook { feed.streamer().env("NATS_CA", folder.path().join("ca.crt")).start() };
    let mut walhook = run(&feed);
    insert(&feed.pg, 0, 100);
    feed.confirmed().await;
    feed.nats.stop();
    certified(folder.path(), &Authority::new("new"));
    feed.nats.restart().await;
    insert(&feed.pg, 100, 200);
    feed.confirmed().await;
    assert_eq!(feed.pg.psql("SELECT count(*) FROM rule_nats_publish_history WHERE success"), "200");
    ended_well(&mut walhook);
}

#[tokio::test]
async fn a_certificate_that_has_expired_is_named_and_nothing_is_lost_until_it_is_renewed() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("ours");
    let nats = Nats::builder().config(&certified(folder.path(), &authority)).start().await;
    let feed = linked_on(Postgres::set_up().await, nats);
    let run = |feed: &Feed| -> Walhook { feed.streamer().env("NATS_CA", folder.path().join("ca.crt")).start() };
    let mut walhook = run(&feed);
    insert(&feed.pg, 0, 100);
    feed.confirmed().await;
    feed.nats.stop();
    authority.expired_server().write(folder.path(), "server");
    feed.nats.restart().await;
    insert(&feed.pg, 100, 200);
    eventually("the certificate to be named", async || walhook.log().contains("expired").then_some(())).await;
    assert!(!feed.is_confirmed());
    feed.nats.stop();
    authority.server().write(folder.path(), "server");
    feed.nats.restart().await;
    if walhook.exited().is_some() {
        walhook = run(&feed);
    }
    feed.confirmed().await;
    assert_eq!(feed.pg.psql("SELECT count(*) FROM rule_nats_publish_history WHERE success"), "200");
    ended_well(&mut walhook);
}

#[tokio::test]
async fn a_replica_identity_and_a_type_changed_between_rows_are_followed() {
    let feed = linked().await;
    let mut walhook = feed.run();
    insert(&feed.pg, 0, 2);
    feed.pg.psql("ALTER TABLE t REPLICA IDENTITY FULL");
    feed.pg.psql("DELETE FROM t WHERE id = 0");
    feed.pg.psql("ALTER TABLE t REPLICA IDENTITY DEFAULT");
    feed.pg.psql("DELETE FROM t WHERE id = 1");
    feed.pg.psql("ALTER TABLE t ALTER note TYPE int USING 1");
    feed.pg.psql("INSERT INTO t VALUES (2, 5)");
    let data = eventually("five messages", async || {
        let messages = feed.messages().await;
        (messages.len() == 5).then(|| messages.iter().map(|message| message.data().clone()).collect::<Vec<_>>())
    })
    .await;
    assert!(data[2]["note"].is_string(), "the whole old row: {data:?}");
    assert_eq!(data[3], serde_json::json!({"id": 1}));
    assert_eq!(data[4], serde_json::json!({"id": 2, "note": 5}));
    ended_well(&mut walhook);
}

/// How often walhook has opened the stream, as its log says.
fn openings(walhook: &Walhook) -> usize {
    walhook.log().matches("stream opened").count()
}

#[tokio::test]
async fn a_repeated_message_id_holds_up_nobody_and_reopens_nothing_but_for_the_first_that_is_older_than_the_run() {
    for version in ["2.10", "2.15"] {
        let feed = linked_on(Postgres::set_up().await, Nats::builder().version(version).start().await);
        feed.pg.psql("SELECT rule_nats_stream_create('WEBHOOKS', ARRAY['webhooks.>'])");
        // Every other event has an id that one of fifty others has.
        let repeat = |from: i64, to: i64| {
            feed.pg.psql(&format!(
                "SELECT count(rule_webhook_publish_nats(1, jsonb_build_object('id', i),
                     CASE WHEN i % 2 = 0 THEN 'own-' || i % 100 WHEN i % 3 = 0 THEN 'new-' || i END))
                 FROM generate_series({from}, {}) i",
                to - 1
            ));
        };
        let wanted = |to: i64| (0..to).filter(|id| id % 2 == 1 || *id < 100).collect::<Vec<_>>();
        let ids = async || -> Vec<i64> {
            feed.messages().await.iter().map(|message| message.data()["id"].as_i64().unwrap()).collect()
        };
        let mut walhook = feed.run();
        repeat(0, 2000);
        feed.confirmed().await;
        assert_eq!(ids().await, wanted(2000));
        assert_eq!(openings(&walhook), 1, "{}", walhook.log());
        ended_well(&mut walhook);
        let mut walhook = feed.run();
        repeat(2000, 3000);
        feed.confirmed().await;
        assert_eq!(ids().await, wanted(3000));
        assert!(openings(&walhook) <= 2, "{}", walhook.log());
        ended_well(&mut walhook);
    }
}

/// A feed whose NATS believes an operator's users, walhook's being that of the file.
async fn of_operator(operator: &Operator, file: &std::path::Path) -> Feed {
    let feed = linked_on(Postgres::set_up().await, Nats::builder().config(&operator.config()).start().await);
    feed.pg.psql("SELECT rule_nats_stream_create('WEBHOOKS', ARRAY['webhooks.>'])");
    feed.pg.psql(&format!(
        "UPDATE rule_nats_config SET auth_type = 'credentials', auth_credentials_file = '{}'",
        file.display()
    ));
    feed
}

/// How many events are durably told as published.
fn published(feed: &Feed) -> String {
    feed.pg.psql("SELECT count(*) FROM rule_nats_publish_history WHERE success")
}

fn letters(feed: &Feed) -> String {
    feed.pg.psql("SELECT coalesce(string_agg(reason, '|'), '') FROM rule_nats_dead_letters")
}

#[tokio::test]
async fn a_users_own_limit_of_payload_makes_a_dead_letter_and_what_comes_behind_it_flows() {
    let (operator, folder) = (Operator::new(), tempfile::tempdir().unwrap());
    let file = folder.path().join("app.creds");
    operator.write_limited(&file, 3000, None);
    let feed = of_operator(&operator, &file).await;
    let mut walhook = feed.run();
    insert(&feed.pg, 0, 10);
    feed.pg.psql("INSERT INTO t VALUES (10, repeat('x', 5000))");
    insert(&feed.pg, 11, 20);
    feed.confirmed().await;
    assert_eq!(published(&feed), "19", "{}", walhook.log());
    assert!(letters(&feed).contains("NATS takes 3000"), "{}", letters(&feed));
    assert!(!walhook.log().contains("Maximum Payload Violation"), "{}", walhook.log());
    ended_well(&mut walhook);
}

#[tokio::test]
async fn a_subject_longer_than_the_server_reads_is_a_dead_letter_that_says_so_and_others_flow() {
    let nats = Nats::builder().config("max_control_line: 1024").start().await;
    let feed = linked_on(Postgres::set_up().await, nats);
    feed.pg.psql("SELECT rule_nats_stream_create('WEBHOOKS', ARRAY['webhooks.>'])");
    feed.pg.psql("SELECT rule_nats_stream_create('OTHERS', ARRAY['others.>'])");
    let other = feed.webhook("other");
    feed.pg.psql(&format!("SELECT rule_webhook_enable_nats({other}, 'others.a', 'nats')"));
    let mut walhook = feed.run();
    insert(&feed.pg, 0, 10);
    let subject = format!("webhooks.{}", "s".repeat(990));
    feed.pg.psql(&format!(
        "BEGIN; INSERT INTO rule_webhook_events (webhook_id, payload, subject) VALUES (1, '{{\"id\": 10}}', '{subject}');
         SELECT rule_webhook_publish_nats({other}, '{{\"id\": 0}}'); INSERT INTO t VALUES (11), (12); COMMIT"
    ));
    feed.confirmed().await;
    let ids: Vec<_> = feed.messages().await.iter().map(|message| message.data()["id"].as_i64().unwrap()).collect();
    assert_eq!(ids, (0..13).filter(|id| *id != 10).collect::<Vec<_>>(), "{}", walhook.log());
    assert_eq!(feed.last_sequence("OTHERS").await, 1);
    assert!(letters(&feed).to_lowercase().contains("maximum control line"), "{}", letters(&feed));
    ended_well(&mut walhook);
}

#[tokio::test]
async fn a_login_that_expires_is_shown_anew_from_its_renewed_file_and_only_one_that_is_refused_ends_it() {
    let (operator, folder) = (Operator::new(), tempfile::tempdir().unwrap());
    let file = folder.path().join("app.creds");
    let in_seconds = |seconds| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        Some(now.as_secs() + seconds)
    };
    operator.write_limited(&file, -1, in_seconds(8));
    let feed = of_operator(&operator, &file).await;
    let mut walhook = feed.run();
    insert(&feed.pg, 0, 10);
    feed.confirmed().await;
    operator.write_limited(&file, -1, in_seconds(16));
    walhook.logged("ended this login").await;
    insert(&feed.pg, 10, 20);
    feed.confirmed().await;
    assert_eq!(published(&feed), "20", "{}", walhook.log());
    assert!(walhook.exited().is_none(), "{}", walhook.log());
    // Nobody renews it this time.
    assert_eq!(walhook.wait(Duration::from_secs(60)), 4, "{}", walhook.log());
}

/// So many messages of somebody else, stored.
async fn foreign(feed: &Feed, count: u64) {
    let client = feed.nats.client().await;
    let before = feed.last_sequence("WEBHOOKS").await;
    for sent in 1..=count {
        client.publish("webhooks.others", "{\"data\": {}}".into()).await.unwrap();
        // The server drops what it cannot queue.
        if sent % 1000 == 0 || sent == count {
            taken(feed, before + sent).await;
        }
    }
}

#[tokio::test]
async fn thousands_of_messages_of_others_are_gone_on_behind_with_and_without_a_checkpoint() {
    let feed = linked().await;
    feed.pg.psql("UPDATE rule_nats_streams SET ordering = 'shared'");
    let mut wanted = 0;
    for forgets in [false, true] {
        let mut walhook = feed.run();
        insert(&feed.pg, wanted, wanted + 100);
        feed.confirmed().await;
        ended_well(&mut walhook);
        foreign(&feed, 5000).await;
        if forgets {
            feed.pg.psql("DELETE FROM rule_nats_checkpoints");
        }
        insert(&feed.pg, wanted + 100, wanted + 200);
        let mut walhook = feed.run();
        feed.confirmed().await;
        wanted += 200;
        ended_well(&mut walhook);
    }
    assert_eq!(feed.last_sequence("WEBHOOKS").await, 10_400);
    assert_eq!(published(&feed), "400");
}

#[tokio::test]
async fn a_workqueue_whose_last_thousands_were_acknowledged_away_is_gone_on_with() {
    let feed = linked().await;
    feed.pg.psql("UPDATE rule_nats_streams SET retention_policy = 'workqueue'");
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO t SELECT i FROM generate_series(0, 5999) i");
    feed.confirmed().await;
    ended_well(&mut walhook);
    let stream = feed.nats.jetstream().await.get_stream("WEBHOOKS").await.unwrap();
    let consumer = stream
        .create_consumer(async_nats::jetstream::consumer::pull::Config {
            durable_name: Some("worker".to_owned()),
            max_ack_pending: -1,
            ..Default::default()
        })
        .await
        .unwrap();
    let mut messages = consumer.messages().await.unwrap();
    for sequence in 1..=6000 {
        let message = messages.next().await.unwrap().unwrap();
        // One stays, far from the end.
        if sequence != 3 {
            message.ack().await.unwrap();
        }
    }
    eventually("all but one to be gone", async || {
        let mut stream = feed.nats.jetstream().await.get_stream("WEBHOOKS").await.unwrap();
        (stream.info().await.unwrap().state.messages == 1).then_some(())
    })
    .await;
    feed.pg.psql("DELETE FROM rule_nats_checkpoints");
    insert(&feed.pg, 6000, 6100);
    let mut walhook = feed.run();
    feed.confirmed().await;
    assert_eq!(feed.last_sequence("WEBHOOKS").await, 6100, "{}", walhook.log());
    ended_well(&mut walhook);
}

/// All messages are removed from the stream by hand, as `nats stream purge` does.
async fn purge(feed: &Feed) {
    feed.nats.jetstream().await.get_stream("WEBHOOKS").await.unwrap().purge().await.unwrap();
}

async fn ids(feed: &Feed) -> Vec<i64> {
    feed.messages().await.iter().map(|message| message.data()["id"].as_i64().unwrap()).collect()
}

#[tokio::test]
async fn a_strict_stream_that_is_purged_under_a_running_walhook_or_between_two_goes_on_where_it_was() {
    let feed = linked().await;
    let mut walhook = feed.run();
    insert(&feed.pg, 0, 100);
    feed.confirmed().await;
    purge(&feed).await;
    insert(&feed.pg, 100, 200);
    feed.confirmed().await;
    assert_eq!(ids(&feed).await, (100..200).collect::<Vec<_>>(), "{}", walhook.log());
    ended_well(&mut walhook);
    // While nobody runs, with a checkpoint and without one.
    for (from, forgets) in [(200, false), (300, true)] {
        purge(&feed).await;
        if forgets {
            feed.pg.psql("DELETE FROM rule_nats_checkpoints");
        }
        insert(&feed.pg, from, from + 100);
        let mut walhook = feed.run();
        feed.confirmed().await;
        assert_eq!(ids(&feed).await, (from..from + 100).collect::<Vec<_>>(), "{}", walhook.log());
        ended_well(&mut walhook);
    }
}

/// Stored, the acks lost, and purged before walhook is back: the stream remembers their ids and has none of them. Each costs a
/// round trip at the most, and what is committed later is stored in its order.
#[tokio::test]
async fn what_is_purged_before_its_ack_has_come_holds_nothing_up() {
    let feed = linked().await;
    let proxy = Proxy::before(feed.nats.port());
    feed.pg.psql(&format!("UPDATE rule_nats_config SET nats_url = 'nats://127.0.0.1:{}'", proxy.port()));
    let mut walhook = feed.run();
    insert(&feed.pg, 0, 100);
    feed.confirmed().await;
    proxy.set(NetworkFault::Mute);
    insert(&feed.pg, 100, 1100);
    taken(&feed, 1100).await;
    purge(&feed).await;
    proxy.set(NetworkFault::Fair);
    insert(&feed.pg, 1100, 1200);
    feed.confirmed().await;
    let there = ids(&feed).await;
    assert!(there.ends_with(&(1100..1200).collect::<Vec<_>>()) && there.is_sorted(), "{there:?} {}", walhook.log());
    let openings = openings(&walhook);
    assert!(openings <= 4, "{openings} openings: {}", walhook.log());
    assert!(walhook.log().contains("messages were removed from the stream"), "{}", walhook.log());
    assert_eq!(published(&feed), "1200");
    ended_well(&mut walhook);
}
