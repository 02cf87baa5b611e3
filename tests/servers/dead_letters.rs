//! What could not be published is kept whole, and can be published again: as it was, once, and in a place of its own.

#![allow(clippy::unwrap_used)]

use crate::support;

use serde_json::{Value, json};
use support::{Nats, Postgres, feed::Feed, walhook::Finished};

/// A feed whose table `t` is linked to webhook 1, `webhooks.w`.
fn linked_on(pg: Postgres, nats: Nats) -> Feed {
    let feed = Feed::on(pg, nats);
    assert_eq!(feed.webhook("w"), 1);
    feed.pg.psql("CREATE TABLE t (id int PRIMARY KEY, note text)");
    feed.pg.psql("SELECT rule_webhook_link_table(1, 't')");
    feed
}

async fn linked() -> Feed {
    linked_on(Postgres::set_up().await, Nats::start().await)
}

/// `walhook dead-letters …`, which must exit with `code`.
fn letters(feed: &Feed, arguments: &[&str], code: i32) -> Finished {
    let finished = feed.command("dead-letters").args(arguments).finish();
    assert_eq!(finished.code, Some(code), "{arguments:?}: {finished:?}");
    finished
}

/// `list --json`, as values.
fn listed(feed: &Feed, arguments: &[&str]) -> Vec<Value> {
    let listed = letters(feed, &[&["list", "--json"], arguments].concat(), 0);
    listed.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

async fn ids(feed: &Feed) -> Vec<i64> {
    feed.confirmed().await;
    feed.messages().await.iter().map(|message| message.data()["id"].as_i64().unwrap()).collect()
}

/// The body of a stored message, as hexadecimal digits.
async fn body(feed: &Feed, stream: &str, sequence: u64) -> String {
    let stream = feed.nats.jetstream().await.get_stream(stream).await.unwrap();
    let message = stream.get_raw_message(sequence).await.unwrap();
    message.payload.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn an_event_too_large_is_published_as_it_was_once_the_server_takes_it() {
    let nats = Nats::builder().config("max_payload: 64KB").start().await;
    let mut feed = linked_on(Postgres::set_up().await, nats);
    feed.pg.psql(r#"UPDATE rule_webhooks SET nats_headers = '{"X-Team": "billing"}'"#);
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO t VALUES (1), (2)");
    feed.pg.psql("UPDATE t SET note = repeat('ä', 50000) WHERE id = 2");
    feed.pg.psql("INSERT INTO t VALUES (3)");
    assert_eq!(ids(&feed).await, [1, 2, 3]);

    // Too early: it is one again, under its own id, with all that the first had.
    letters(&feed, &["retry", "1"], 0);
    feed.confirmed().await;
    let rows = listed(&feed, &["--status", "all"]);
    assert_eq!(
        (rows[0]["status"].as_str(), rows[1]["status"].as_str(), rows.len()),
        (Some("retried"), Some("dead"), 2)
    );
    assert_ne!(rows[0]["event_id"], rows[1]["event_id"]);
    let same = "SELECT count(DISTINCT payload), count(DISTINCT headers - '{Nats-Msg-Id,Walhook-Retry-Of,Walhook-Epoch}'::text[]) \
                FROM rule_nats_dead_letters";
    assert_eq!(feed.pg.psql(same), "1|1");

    // What has changed since is not in it.
    feed.pg.psql(r#"UPDATE rule_webhooks SET payload_format = 'data', nats_headers = '{"X-Late": "1"}'"#);
    feed.nats.set_config("max_payload: 1MB");
    feed.nats.restart().await;
    // The limit is known when the connection is back.
    feed.pg.psql("SELECT rule_webhook_publish_nats(1, '{\"id\": 4}')");
    feed.stored(4).await;
    let done = letters(&feed, &["retry", "--all"], 0);
    assert!(done.stdout.contains("dead letter 2 will be published again as event"), "{}", done.stdout);
    feed.confirmed().await;
    feed.pg.psql("UPDATE rule_webhooks SET payload_format = 'webhook'; INSERT INTO t VALUES (5)");
    feed.confirmed().await;
    let messages = feed.messages().await;
    assert_eq!((messages.len(), &messages[5].data()["id"]), (6, &json!(5)));
    let message = &messages[4];
    assert_eq!(message.subject, "webhooks.w");
    // An id of its own each time; the first one stays visible.
    assert_eq!(message.header("Walhook-Retry-Of"), rows[0]["event_id"]);
    for row in &rows {
        assert_ne!(message.header("Nats-Msg-Id"), row["event_id"].as_str().unwrap());
    }
    assert_eq!(
        (message.header("Walhook-Op"), message.header("X-Team"), message.header("X-Late")),
        ("update", "billing", "")
    );
    let first = feed.pg.psql("SELECT encode(payload, 'hex') FROM rule_nats_dead_letters WHERE dead_letter_id = 1");
    assert_eq!(body(&feed, "WEBHOOKS", 5).await, first);
    assert_eq!(message.payload["event"]["op"], "update");
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

#[tokio::test]
async fn an_event_that_no_stream_took_is_published_once_there_is_one_and_a_replay_does_not_double_it() {
    let feed = linked().await;
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO t VALUES (1)");
    feed.pg.psql("UPDATE rule_webhooks SET nats_subject = 'elsewhere.x', payload_format = 'cloudevents_binary'");
    feed.pg.psql("INSERT INTO t VALUES (2)");
    feed.pg.psql("SELECT rule_webhook_publish_nats(1, '{\"id\": 3}', message_id => 'mine')");
    feed.pg.psql("UPDATE rule_webhooks SET nats_subject = NULL, payload_format = 'webhook'");
    assert_eq!(ids(&feed).await, [1]);

    // Nobody is running when they are retried, and the one that does is killed on the way.
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    feed.pg.psql("SELECT rule_nats_stream_create('ELSEWHERE', ARRAY['elsewhere.>'])");
    letters(&feed, &["retry", "2", "1"], 0);
    feed.pg.psql("INSERT INTO t VALUES (4)");
    let mut walhook = feed.run();
    support::eventually("the second to be stored", async || (feed.last_sequence("ELSEWHERE").await >= 2).then_some(()))
        .await;
    walhook.kill9();
    let mut walhook = feed.run();
    assert_eq!(ids(&feed).await, [1, 4]);
    let messages = feed.messages_of("ELSEWHERE").await;
    let told: Vec<_> = messages
        .iter()
        .map(|message| {
            json!([message.payload["id"], message.subject, message.header("ce-type"), message.header("Walhook-Op")])
        })
        .collect();
    assert_eq!(
        json!(told),
        json!([[3, "elsewhere.x", "webhook.call", "insert"], [2, "elsewhere.x", "public.t.insert", "insert"]]),
        "in the order of the retries"
    );
    assert_eq!(messages[0].header("Walhook-Message-Id"), "mine");
    let first = feed.pg.psql("SELECT event_id FROM rule_nats_dead_letters WHERE dead_letter_id = 1");
    assert_eq!((messages[1].header("Walhook-Retry-Of"), messages[1].header("ce-id")), (&*first, &*first));
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

#[tokio::test]
async fn a_letter_is_retried_once_for_each_time_it_is_wanted_and_a_dropped_one_stays_away() {
    let feed = linked().await;
    feed.pg.psql("UPDATE rule_webhooks SET nats_subject = 'elsewhere.x'");
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO t VALUES (1), (2), (3)");
    feed.confirmed().await;
    assert!(letters(&feed, &["drop", "2"], 0).stdout.contains("dead letter 2 is dropped"));
    assert!(letters(&feed, &["drop", "2"], 0).stdout.contains("dead letter 2 was dropped already"));
    let all = ["retry", "--all", "--subject", "webhooks.w"];
    assert_eq!(letters(&feed, &all, 0).stdout.lines().count(), 2);
    assert_eq!(letters(&feed, &all, 0).stdout, "no such dead letters\n");
    let refused = letters(&feed, &["retry", "2", "1", "77"], 2);
    for word in ["dead letter 2: it is dropped", "dead letter 1: it is retried", "there is no dead letter 77"] {
        assert!(refused.stderr.contains(word), "no {word:?} in {}", refused.stderr);
    }
    assert_eq!(ids(&feed).await, [1, 3]);

    // One that somebody wants once more is stored once more, also within the stream's duplicate window.
    feed.pg.psql("UPDATE rule_nats_dead_letters SET status = 'dead' WHERE dead_letter_id = 1");
    letters(&feed, &["retry", "--webhook", "w", "--subject", "webhooks.w"], 0);
    feed.pg.psql("UPDATE rule_webhooks SET nats_subject = NULL; INSERT INTO t VALUES (4)");
    assert_eq!(ids(&feed).await, [1, 3, 1, 4]);
    assert_eq!(listed(&feed, &[]).len(), 0);
    let event = feed.pg.psql("SELECT retried_as FROM rule_nats_dead_letters WHERE dead_letter_id = 1");
    let status: Value =
        serde_json::from_str(&feed.pg.psql(&format!("SELECT rule_nats_event_status({event})"))).unwrap();
    assert_eq!((&status["status"], &status["sequence"]), (&json!("published"), &json!(3)), "{status}");
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

#[tokio::test]
async fn dead_letters_are_listed_by_webhook_status_and_age_and_shown_whole() {
    let feed = linked().await;
    feed.pg.psql(
        r#"INSERT INTO rule_nats_dead_letters (event_id, webhook_id, webhook_name, subject, headers, payload, reason, created_at)
           VALUES ('s-1', 1, 'w', 'webhooks.w', '{"X": "1"}', '{"a": "ä"}', 'too large', now() - interval '3 hours'),
                  ('s-2', 1, 'w', 'webhooks.w', NULL, '\xff00', E'odd\r\nreason', now()),
                  ('s-3', 7, 'other', '', NULL, NULL, 'gone', now())"#
        .replace("'{\"a\"", "convert_to('{\"a\"").replace("\"ä\"}'", "\"ä\"}', 'UTF8')")
        .as_str(),
    );
    feed.pg.psql("UPDATE rule_nats_dead_letters SET status = 'dropped' WHERE dead_letter_id = 3");
    let chosen = |arguments: &[&str]| -> Vec<i64> {
        listed(&feed, arguments).iter().map(|letter| letter["dead_letter_id"].as_i64().unwrap()).collect()
    };
    assert_eq!(chosen(&[]), [1, 2]);
    assert_eq!(chosen(&["--status", "all"]), [1, 2, 3]);
    assert_eq!(chosen(&["--status", "dropped"]), [3]);
    assert_eq!(chosen(&["--webhook", "w", "--since", "2h"]), [2]);
    assert_eq!(chosen(&["--since", "2020-01-01 00:00+00"]), [1, 2]);
    assert_eq!(chosen(&["--limit", "1"]), [2], "the newest");
    assert_eq!(chosen(&["--webhook", "nobody"]), [0; 0]);

    let table = letters(&feed, &["list"], 0).stdout;
    assert_eq!(table.lines().count(), 3, "{table}");
    assert!(table.contains(r"odd\r\nreason") && table.contains("too large"), "{table}");
    assert_eq!(letters(&feed, &["list", "--webhook", "nobody"], 0).stdout, "no such dead letters\n");

    let shown = letters(&feed, &["show", "1"], 0).stdout;
    assert!(shown.contains("X: 1") && shown.ends_with("\n\n{\"a\": \"ä\"}\n"), "{shown}");
    let shown: Value = serde_json::from_str(&letters(&feed, &["show", "2", "--json"], 0).stdout).unwrap();
    assert_eq!((&shown["payload"], &shown["payload_is_base64"]), (&json!("/wA="), &json!(true)));
    assert_eq!(letters(&feed, &["show", "1", "--payload"], 0).stdout, "{\"a\": \"ä\"}");
    assert!(letters(&feed, &["show", "3"], 0).stdout.contains("not kept"));

    for (arguments, words) in [
        (&["show", "99"][..], "there is no dead letter 99"),
        (&["list", "--since", "yesterdayish"], "yesterdayish"),
        (&["list", "--status", "undead"], "use one of dead, retried, dropped, all"),
        (&["retry"], "is missing"),
        (&["retry", "1", "--all"], "cannot be used together with"),
        (&["retry", "1", "--subject", "a.*"], "wildcard"),
        (&["drop", "one"], "cannot have this value"),
    ] {
        let refused = letters(&feed, arguments, 2);
        assert!(refused.stderr.contains(words), "no {words:?} in {}", refused.stderr);
    }
    // The streamer's own role will do; an application's will not.
    feed.pg.psql("CREATE ROLE app LOGIN IN ROLE walhook_application");
    let with = |user: &str| {
        let database = feed.streamer_conninfo().replace("walhook_streamer", user);
        feed.command("dead-letters").args(["retry", "1"]).env("DATABASE_URL", database).finish().code
    };
    assert_eq!((with("app"), with("walhook_streamer")), (Some(4), Some(0)));
}
