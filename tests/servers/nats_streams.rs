//! Streams made to their rows, and tails read, against real servers.

#![allow(clippy::unwrap_used)]

use crate::support;

use std::time::Duration;

use async_nats::{
    HeaderMap,
    jetstream::{self, stream::Config},
};
use futures_util::StreamExt;
use serde_json::{Value, json};
use support::Nats;
use walhook::{
    error::{Error, Kind},
    nats::{
        control::{self, Control},
        locate,
        settings::{Overrides, Settings},
        streams::{self, StreamState},
        tail::{self, Reach, Stored, Tail},
    },
    route::tables::{ConfigRow, StreamRow},
};

const VERSIONS: [&str; 2] = ["2.10", "2.15"];
/// A strict stream of which nothing is known.
const ANYWHERE: Reach = Reach { known: None, is_strict: true };

async fn control(url: impl Into<String>) -> Control {
    let row = ConfigRow { config_name: "default".into(), nats_url: Some(url.into()), ..ConfigRow::default() };
    control::connect(&Settings::resolve(&row, &Overrides::default()).unwrap()).await.unwrap()
}

/// The row that `rule_nats_stream_create('WEBHOOKS', ARRAY['webhooks.>'])` writes.
fn row() -> StreamRow {
    StreamRow {
        stream_name: "WEBHOOKS".into(),
        subjects: vec!["webhooks.>".into()],
        storage_type: Some("file".into()),
        max_messages: Some(1_000_000),
        max_bytes: Some(1 << 30),
        max_age_seconds: Some(604_800),
        retention_policy: Some("limits".into()),
        discard_policy: Some("old".into()),
        replicas: Some(1),
        duplicate_window_seconds: Some(120),
        ..StreamRow::default()
    }
}

async fn refused(control: &Control, row: &StreamRow, words: &[&str]) -> Error {
    let error = streams::ensure(control, row).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Config, "{error}");
    for words in words {
        assert!(error.to_string().contains(words), "{words}: {error}");
    }
    error
}

async fn config(control: &Control, stream: &str) -> Value {
    control.api(&format!("STREAM.INFO.{stream}"), &Value::Null).await.unwrap().unwrap()["config"].clone()
}

#[tokio::test]
async fn a_stream_is_created_as_its_row_says_and_then_left_alone() {
    for version in VERSIONS {
        let nats = Nats::builder().version(version).start().await;
        let control = control(nats.url()).await;
        assert_eq!(streams::state(&control, "WEBHOOKS").await.unwrap_err().kind(), Kind::Config);
        let created = streams::ensure(&control, &row()).await.unwrap();
        assert_eq!((created.first_sequence, created.last_sequence, created.messages), (0, 0, 0));
        assert_eq!(created.subjects, ["webhooks.>"]);
        assert_eq!((created.storage.as_str(), created.retention.as_str(), created.replicas), ("file", "limits", 1));
        assert_eq!(created.duplicate_window, Duration::from_secs(120));
        assert!(created.created_ns > 1_700_000_000_000_000_000);
        assert!(!created.allow_atomic);

        let before = config(&control, "WEBHOOKS").await;
        assert_eq!(before["allow_direct"], json!(true));
        let again = streams::ensure(&control, &row()).await.unwrap();
        assert_eq!(again, created);
        assert_eq!(config(&control, "WEBHOOKS").await, before);
        let state = streams::state(&control, "WEBHOOKS").await.unwrap();
        assert_eq!(state, StreamState { warnings: Vec::new(), ..created });
    }
}

#[tokio::test]
async fn a_row_of_nulls_makes_a_stream_without_limits() {
    for version in VERSIONS {
        let nats = Nats::builder().version(version).start().await;
        let control = control(nats.url()).await;
        let nulls =
            StreamRow { stream_name: "S".into(), subjects: vec!["s.>".into(), "t.*".into()], ..StreamRow::default() };
        assert!(streams::ensure(&control, &nulls).await.unwrap().warnings.is_empty());
        assert!(streams::ensure(&control, &nulls).await.unwrap().warnings.is_empty());
        let config = config(&control, "S").await;
        assert_eq!(
            (&config["max_msgs"], &config["max_bytes"], &config["max_age"]),
            (&json!(-1), &json!(-1), &json!(0))
        );
    }
}

#[tokio::test]
async fn what_differs_is_updated_and_the_rest_is_kept() {
    for version in VERSIONS {
        let nats = Nats::builder().version(version).start().await;
        let control = control(nats.url()).await;
        let theirs = json!({ "name": "WEBHOOKS", "subjects": ["orders.>"], "max_consumers": 17, "max_msgs_per_subject": 5,
            "storage": "file", "num_replicas": 1, "metadata": { "team": "billing" } });
        control.api("STREAM.CREATE.WEBHOOKS", &theirs).await.unwrap().unwrap();
        let wants = StreamRow {
            description: Some("ours".into()),
            discard_policy: Some("new".into()),
            retention_policy: Some("interest".into()),
            duplicate_window_seconds: Some(30),
            ..row()
        };
        let state = streams::ensure(&control, &wants).await.unwrap();
        assert_eq!(state.subjects, ["orders.>", "webhooks.>"]);
        assert_eq!((state.discard.as_str(), state.retention.as_str()), ("new", "interest"));
        assert!(state.warnings.iter().any(|text| text.contains("orders.>")), "{:?}", state.warnings);
        let config = config(&control, "WEBHOOKS").await;
        assert_eq!((&config["max_consumers"], &config["max_msgs_per_subject"]), (&json!(17), &json!(5)));
        assert_eq!(config["metadata"]["team"], json!("billing"));
        // What the row has by default only is not put on a stream that somebody else has made.
        assert_eq!((&config["description"], &config["max_msgs"]), (&json!("ours"), &json!(-1)));
        assert_eq!((&config["max_bytes"], &config["max_age"]), (&json!(-1), &json!(0)));
        assert_eq!(config["duplicate_window"], json!(30_000_000_000_i64));
        // And the server agrees that nothing is left to do.
        let again = streams::ensure(&control, &wants).await.unwrap();
        assert_eq!(again.warnings, state.warnings);
    }
}

#[tokio::test]
async fn the_defaults_of_a_row_are_put_on_streams_that_walhook_has_made_and_on_no_others() {
    for version in VERSIONS {
        let nats = Nats::builder().version(version).start().await;
        let control = control(nats.url()).await;
        let theirs = json!({ "name": "WEBHOOKS", "subjects": ["webhooks.>"], "storage": "memory", "retention": "workqueue",
            "discard": "new", "max_msgs": 5_000_000, "max_age": 0, "duplicate_window": 600_000_000_000_i64, "num_replicas": 1 });
        control.api("STREAM.CREATE.WEBHOOKS", &theirs).await.unwrap().unwrap();
        let before = config(&control, "WEBHOOKS").await;
        streams::ensure(&control, &row()).await.unwrap();
        assert_eq!(config(&control, "WEBHOOKS").await, before, "nats-server {version}");
        streams::ensure(&control, &StreamRow { max_messages: Some(7_000_000), ..row() }).await.unwrap();
        let after = config(&control, "WEBHOOKS").await;
        assert_eq!((&after["max_msgs"], &after["discard"]), (&json!(7_000_000), &json!("new")));

        let ours = StreamRow { stream_name: "OURS".into(), subjects: vec!["ours.>".into()], ..row() };
        streams::ensure(&control, &StreamRow { max_messages: Some(5), ..ours.clone() }).await.unwrap();
        streams::ensure(&control, &ours).await.unwrap();
        assert_eq!(config(&control, "OURS").await["max_msgs"], json!(1_000_000));
    }
}

#[tokio::test]
async fn a_lower_limit_does_not_delete_what_is_stored() {
    let nats = Nats::start().await;
    let control = control(nats.url()).await;
    streams::ensure(&control, &row()).await.unwrap();
    publish(&nats, &["1", "2", "3"]).await;
    let state = streams::ensure(&control, &StreamRow { max_messages: Some(2), ..row() }).await.unwrap();
    assert_eq!(state.messages, 3);
    assert!(state.warnings.iter().any(|text| text.contains("max_messages")), "{:?}", state.warnings);
}

#[tokio::test]
async fn what_cannot_be_is_refused_with_the_remedy() {
    for version in VERSIONS {
        let nats = Nats::builder().version(version).start().await;
        let control = control(nats.url()).await;
        let jetstream = nats.jetstream().await;
        streams::ensure(&control, &row()).await.unwrap();
        let memory = StreamRow { storage_type: Some("memory".into()), ..row() };
        refused(&control, &memory, &["\"WEBHOOKS\" has storage_type file", "wants memory", "another name"]).await;
        let queue = StreamRow { retention_policy: Some("workqueue".into()), ..row() };
        refused(&control, &queue, &["has retention_policy limits", "wants workqueue"]).await;
        let three = StreamRow { replicas: Some(3), ..row() };
        refused(&control, &three, &["replicas", "Set replicas to 1"]).await;
        let three = StreamRow { stream_name: "THREE".into(), subjects: vec!["three.>".into()], ..three };
        refused(&control, &three, &["create stream \"THREE\"", "Set replicas to 1"]).await;
        let taken = StreamRow { stream_name: "OTHER".into(), subjects: vec!["webhooks.orders.*".into()], ..row() };
        refused(&control, &taken, &["\"OTHER\"", "webhooks.orders.*", "taken by stream \"WEBHOOKS\""]).await;
        let huge = StreamRow {
            stream_name: "HUGE".into(),
            subjects: vec!["huge.>".into()],
            max_bytes: Some(1 << 60),
            ..row()
        };
        refused(&control, &huge, &["create stream \"HUGE\"", "Lower max_bytes"]).await;

        // A window that a short age leaves no room for: refused by the row, and told by the server where its stream says so.
        let short = StreamRow { max_age_seconds: Some(60), ..row() };
        refused(&control, &short, &["duplicate_window_seconds 120", "max_age_seconds 60"]).await;

        let mirror = Config {
            name: "MIRROR".into(),
            mirror: Some(jetstream::stream::Source { name: "WEBHOOKS".into(), ..Default::default() }),
            ..Config::default()
        };
        jetstream.create_stream(mirror).await.unwrap();
        let mirror = StreamRow { stream_name: "MIRROR".into(), subjects: vec!["mirror.>".into()], ..row() };
        refused(&control, &mirror, &["mirror of \"WEBHOOKS\""]).await;

        let mute = Config { name: "MUTE".into(), subjects: vec!["mute.>".into()], no_ack: true, ..Config::default() };
        jetstream.create_stream(mute).await.unwrap();
        let mute = StreamRow { stream_name: "MUTE".into(), subjects: vec!["mute.>".into()], ..row() };
        refused(&control, &mute, &["no_ack"]).await;

        let mut sealed = config(&control, "WEBHOOKS").await;
        sealed["sealed"] = json!(true);
        control.api("STREAM.UPDATE.WEBHOOKS", &sealed).await.unwrap().unwrap();
        refused(&control, &row(), &["sealed"]).await;
    }
}

/// Each made by hand as somebody might, before its row names it.
#[tokio::test]
async fn what_a_stream_has_that_does_not_suit_is_said_by_name_at_the_start() {
    for version in VERSIONS {
        let nats = Nats::builder().version(version).start().await;
        let control = control(nats.url()).await;
        let mut made = 0;
        let mut judged = async |changes: Value, row: StreamRow| {
            made += 1;
            let (name, subject) = (format!("S{made}"), format!("s{made}.>"));
            let mut config = json!({ "name": name, "subjects": [subject], "storage": "file", "num_replicas": 1 });
            config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            control.api(&format!("STREAM.CREATE.{name}"), &config).await.unwrap().unwrap();
            let row = StreamRow { stream_name: name.clone(), subjects: vec![subject], ..row };
            streams::ensure(&control, &row).await.map(|state| state.warnings.join("; ").replace(&name, "S"))
        };
        let silent = StreamRow::default;
        for (changes, words) in [
            (json!({ "retention": "interest" }), "stream \"S\" has interest retention"),
            (json!({ "retention": "workqueue" }), "stream \"S\" has workqueue retention"),
            (json!({ "storage": "memory" }), "stream \"S\" lives in memory"),
            (json!({ "sources": [{ "name": "S1" }] }), "stream \"S\" gathers from other streams"),
            (
                json!({ "max_msgs_per_subject": 1, "discard": "new", "discard_new_per_subject": true }),
                "once one subject is full",
            ),
            (json!({ "subject_transform": { "src": ">", "dest": "x.>" } }), "under other subjects"),
        ] {
            let warnings = judged(changes.clone(), silent()).await.unwrap();
            assert!(warnings.contains(words), "{version} {changes}: {warnings}");
        }
        if version != "2.10" {
            let markers = json!({ "subject_delete_marker_ttl": 1_000_000_000, "allow_msg_ttl": true });
            assert!(judged(markers.clone(), silent()).await.unwrap().contains("delete markers"));
            let shared = StreamRow { ordering: Some("shared".into()), ..silent() };
            assert_eq!(judged(markers, shared).await.unwrap(), "");
            let counter = json!({ "allow_msg_counter": true, "allow_direct": true });
            assert!(judged(counter, silent()).await.unwrap_err().to_string().contains("allow_msg_counter"));
            let late = json!({ "persist_mode": "async" });
            assert!(judged(late, silent()).await.unwrap().contains("after it acknowledges"));
        }
        // None of these concerns who only publishes.
        let harmless = json!({ "deny_delete": true, "deny_purge": true, "allow_direct": true, "max_age": 60_000_000_000_i64,
            "duplicate_window": 1_000_000_000, "max_msg_size": 1000, "max_msgs": 10, "discard": "new" });
        assert_eq!(judged(harmless, silent()).await.unwrap(), "", "{version}");
    }
}

#[tokio::test]
async fn without_the_right_to_create_what_is_there_will_do_if_it_suits() {
    for version in VERSIONS {
        let users = "authorization { users: [ { user: admin, password: p }, { user: low, password: p, permissions: { \
            publish: [ \"$JS.API.STREAM.INFO.*\", \"$JS.API.STREAM.MSG.GET.*\" ] } } ] }";
        let nats = Nats::builder().version(version).config(users).start().await;
        let low = control(format!("nats://low:p@127.0.0.1:{}", nats.port())).await;
        let admin = control(format!("nats://admin:p@127.0.0.1:{}", nats.port())).await;
        let permission = |error: Error, subject: &str| {
            assert_eq!(error.kind(), Kind::Permission, "{error}");
            assert!(error.to_string().contains(subject), "{error}");
        };
        permission(streams::ensure(&low, &row()).await.unwrap_err(), "$JS.API.STREAM.CREATE.WEBHOOKS");
        streams::ensure(&admin, &row()).await.unwrap();
        assert_eq!(streams::ensure(&low, &row()).await.unwrap(), streams::ensure(&admin, &row()).await.unwrap());

        let longer = StreamRow { max_age_seconds: Some(700_000), ..row() };
        let warnings = streams::ensure(&low, &longer).await.unwrap().warnings;
        assert!(warnings.iter().any(|text| text.contains("$JS.API.STREAM.UPDATE.WEBHOOKS")), "{warnings:?}");
        let more = StreamRow { subjects: vec!["webhooks.>".into(), "events.>".into()], ..row() };
        permission(streams::ensure(&low, &more).await.unwrap_err(), "$JS.API.STREAM.UPDATE.WEBHOOKS");
    }
}

#[tokio::test]
async fn atomic_batches_are_known_by_what_the_server_gives_back() {
    for (version, knows) in [("2.10", false), ("2.15", true)] {
        let nats = Nats::builder().version(version).start().await;
        let control = control(nats.url()).await;
        let config = json!({ "name": "WEBHOOKS", "subjects": ["webhooks.>"], "storage": "file", "num_replicas": 1,
            "max_msg_size": 1000, "allow_atomic": true });
        control.api("STREAM.CREATE.WEBHOOKS", &config).await.unwrap().unwrap();
        let state = streams::ensure(&control, &row()).await.unwrap();
        assert_eq!((state.allow_atomic, state.max_msg_size), (knows, Some(1000)), "{version}");
    }
}

/// Publishes a message for each id; `!` before an id: somebody else's.
async fn publish(nats: &Nats, ids: &[&str]) {
    let mut jetstream = nats.jetstream().await;
    jetstream.set_timeout(Duration::from_secs(1));
    for id in ids {
        let mut headers = HeaderMap::new();
        match id.strip_prefix('!') {
            Some(id) => headers.insert("Nats-Msg-Id", id),
            None => {
                headers.insert("Nats-Msg-Id", *id);
                headers.insert("Walhook-Epoch", "7");
            }
        }
        // A stream that gets more copies has no leader for a while; the id makes a second attempt harmless.
        support::eventually("an ack", async || {
            let sent = jetstream.publish_with_headers("webhooks.a", headers.clone(), "{}".into()).await.ok()?;
            sent.await.ok()
        })
        .await;
    }
}

async fn last(control: &Control) -> Tail {
    tail::last_of_ours(control, "WEBHOOKS", ANYWHERE, |stored: &Stored| stored.header("Walhook-Epoch").is_some())
        .await
        .unwrap()
}

fn id(tail: &Tail) -> Option<&str> {
    tail.ours.as_ref().and_then(|ours| ours.header("Nats-Msg-Id"))
}

#[tokio::test]
async fn the_tail_is_our_last_message_whatever_lies_behind_it() {
    for version in VERSIONS {
        let nats = Nats::builder().version(version).start().await;
        let control = control(nats.url()).await;
        let state = streams::ensure(&control, &row()).await.unwrap();
        let stream = nats.jetstream().await.get_stream("WEBHOOKS").await.unwrap();

        let empty = last(&control).await;
        assert_eq!((empty.last_sequence, id(&empty)), (0, None));
        assert_eq!(empty.created_ns, state.created_ns);

        publish(&nats, &["a", "b"]).await;
        let tail = last(&control).await;
        assert_eq!((tail.last_sequence, tail.first_sequence, id(&tail)), (2, 1, Some("b")));
        let ours = tail.ours.unwrap();
        assert_eq!((ours.sequence, ours.subject.as_str(), ours.header("Walhook-Epoch")), (2, "webhooks.a", Some("7")));
        assert!(ours.time_ns > state.created_ns);
        let ours_behind = async |behind, last| {
            let is_ours = |stored: &Stored| stored.header("Walhook-Epoch").is_some();
            let ours = tail::ours_behind(&control, "WEBHOOKS", behind, last, None, is_ours).await.unwrap();
            ours.iter().map(|stored| stored.sequence).collect::<Vec<_>>()
        };
        assert_eq!(ours_behind(0, 2).await, [2, 1]);
        assert_eq!(ours_behind(1, 2).await, [2]);
        assert!(ours_behind(2, 2).await.is_empty() && ours_behind(0, 0).await.is_empty());

        // Foreign ones behind ours, more than one stride of requests.
        let foreign: Vec<String> = (0..50).map(|n| format!("!{n}")).collect();
        publish(&nats, &foreign.iter().map(String::as_str).collect::<Vec<_>>()).await;
        let tail = last(&control).await;
        assert_eq!((tail.last_sequence, id(&tail)), (52, Some("b")));

        // The last message deleted: its sequence stays given.
        publish(&nats, &["c", "d"]).await;
        stream.delete_message(54).await.unwrap();
        assert_eq!(tail::message(&control, "WEBHOOKS", 54).await.unwrap(), None);
        assert_eq!(tail::message(&control, "WEBHOOKS", 5400).await.unwrap(), None);
        let tail = last(&control).await;
        assert_eq!((tail.last_sequence, id(&tail)), (54, Some("c")));

        // Only foreign ones are left.
        stream.purge().sequence(4).await.unwrap();
        stream.delete_message(53).await.unwrap();
        let tail = last(&control).await;
        assert_eq!((tail.first_sequence, tail.last_sequence, id(&tail)), (4, 54, None));

        stream.purge().await.unwrap();
        let tail = last(&control).await;
        assert_eq!((tail.first_sequence, tail.last_sequence, id(&tail)), (55, 54, None));

        nats.jetstream().await.delete_stream("WEBHOOKS").await.unwrap();
        let error = tail::last_of_ours(&control, "WEBHOOKS", ANYWHERE, |_| true).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Config, "{error}");
        let error = tail::message(&control, "WEBHOOKS", 1).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Config, "{error}");
    }
}

/// Messages of others, and waits until they are stored.
async fn foreign(nats: &Nats, control: &Control, count: u64) {
    let before = streams::state(control, "WEBHOOKS").await.unwrap().last_sequence;
    let client = nats.client().await;
    for sent in 0..count {
        client.publish("webhooks.b", "".into()).await.unwrap();
        // The server drops what it cannot queue.
        if sent % 1000 == 999 {
            support::eventually("the messages to be stored", async || {
                let state = streams::state(control, "WEBHOOKS").await.unwrap();
                (state.last_sequence > before + sent).then_some(())
            })
            .await;
        }
    }
    support::eventually("the messages to be stored", async || {
        let state = streams::state(control, "WEBHOOKS").await.unwrap();
        (state.last_sequence == before + count).then_some(())
    })
    .await;
}

#[tokio::test]
async fn our_last_message_is_found_before_thousands_of_others_and_holes_of_any_size_are_stepped_over() {
    for version in VERSIONS {
        let nats = Nats::builder().version(version).start().await;
        let control = control(nats.url()).await;
        streams::ensure(&control, &row()).await.unwrap();
        publish(&nats, &["ours"]).await;
        foreign(&nats, &control, tail::STEPS_MAX + 2).await;
        assert_eq!(id(&last(&control).await), Some("ours"));

        // Another of ours, and then a hole before and behind messages of others.
        publish(&nats, &["later"]).await;
        foreign(&nats, &control, 10_000).await;
        let stream = nats.jetstream().await.get_stream("WEBHOOKS").await.unwrap();
        let end = streams::state(&control, "WEBHOOKS").await.unwrap().last_sequence;
        let kept = [end - 5000, end - 4999];
        let gone = (end - 9999..=end).filter(|sequence| !kept.contains(sequence));
        futures_util::stream::iter(gone)
            .for_each_concurrent(64, async |sequence| {
                stream.delete_message(sequence).await.unwrap();
            })
            .await;
        let tail = last(&control).await;
        assert_eq!((id(&tail), tail.last_sequence), (Some("later"), end), "nats-server {version}");

        // What is known need not be looked for, nor what comes before it.
        let ours = |stored: &Stored| stored.header("Walhook-Epoch").is_some();
        let reach = Reach { known: Some((end - 9999, tail.created_ns)), is_strict: true };
        let known = tail::last_of_ours(&control, "WEBHOOKS", reach, ours).await.unwrap();
        assert!(known.ours.is_none(), "{known:?}");
        let another = Reach { known: Some((end - 9999, tail.created_ns + 10_000_000)), ..reach };
        assert_eq!(id(&tail::last_of_ours(&control, "WEBHOOKS", another, ours).await.unwrap()), Some("later"));
    }
}

#[tokio::test]
async fn among_too_many_messages_of_others_a_strict_stream_is_not_guessed_and_a_shared_one_goes_on() {
    let nats = Nats::start().await;
    let control = control(nats.url()).await;
    streams::ensure(&control, &row()).await.unwrap();
    publish(&nats, &["ours"]).await;
    foreign(&nats, &control, tail::STRICT_STEPS_MAX + 20).await;
    let ours = |stored: &Stored| stored.header("Walhook-Epoch").is_some();
    let error = tail::last_of_ours(&control, "WEBHOOKS", ANYWHERE, ours).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Untrusted, "{error}");
    assert!(error.to_string().contains("SET ordering = 'shared' WHERE stream_name = 'WEBHOOKS'"), "{error}");
    let shared = Reach { is_strict: false, ..ANYWHERE };
    assert!(tail::last_of_ours(&control, "WEBHOOKS", shared, ours).await.unwrap().ours.is_none());
    let last = tail::STRICT_STEPS_MAX + 21;
    let known = tail::ours_behind(&control, "WEBHOOKS", 0, last, Some(1), ours).await.unwrap();
    assert_eq!(known.len(), 1, "around the place that was known");
}

#[tokio::test]
async fn a_message_of_the_largest_size_is_read_too() {
    let nats = Nats::start().await;
    let control = control(nats.url()).await;
    streams::ensure(&control, &row()).await.unwrap();
    let jetstream = nats.jetstream().await;
    let body = vec![b'x'; 1024 * 1024 - 200];
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", "large");
    headers.insert("Walhook-Epoch", "7");
    jetstream.publish_with_headers("webhooks.a", headers, body.into()).await.unwrap().await.unwrap();
    assert_eq!(id(&last(&control).await), Some("large"));
}

#[tokio::test]
async fn a_cluster_keeps_as_many_copies_as_the_row_says() {
    for version in VERSIONS {
        let routes = [(); 3].map(|()| support::port::Port::take());
        let urls = routes.each_ref().map(|port| format!("nats://127.0.0.1:{}", port.number())).join(", ");
        let mut servers = Vec::new();
        for (number, port) in routes.iter().enumerate() {
            let config = format!(
                "server_name: n{number}\ncluster {{ name: C, listen: \"127.0.0.1:{}\", routes: [ {urls} ] }}",
                port.number()
            );
            servers.push(Nats::builder().version(version).config(&config).start().await);
        }
        let control = control(servers.iter().map(Nats::url).collect::<Vec<_>>().join(",")).await;
        // Before that nobody answers. All three, for a server that has just met the leader offers no room yet.
        support::eventually("every server to know the cluster's leader", async || {
            servers.iter().all(|server| server.log().contains("metadata leader")).then_some(())
        })
        .await;
        let created = support::eventually("the cluster to create a stream", async || {
            streams::ensure(&control, &row()).await.ok()
        })
        .await;
        assert_eq!((created.replicas, created.leader.is_some()), (1, true));

        // A peer that the leader has not heard of yet cannot take a copy.
        let three = support::eventually("every server to offer room for a copy", async || {
            let ensured = streams::ensure(&control, &StreamRow { replicas: Some(3), ..row() }).await;
            ensured.inspect_err(|refusal| eprintln!("{refusal}")).ok()
        })
        .await;
        assert_eq!(three.replicas, 3);
        publish(&servers[1], &["a", "b", "!c"]).await;
        let tail = last(&control).await;
        assert_eq!((tail.last_sequence, id(&tail)), (3, Some("b")));
        let again = streams::ensure(&control, &StreamRow { replicas: Some(3), ..row() }).await.unwrap();
        assert_eq!((again.replicas, again.messages, again.leader.is_some()), (3, 3, true));

        let five =
            StreamRow { stream_name: "FIVE".into(), subjects: vec!["five.>".into()], replicas: Some(5), ..row() };
        refused(&control, &five, &["Lower replicas"]).await;
    }
}

/// A JetStream that lies: somebody who answers under an API prefix.
#[tokio::test]
async fn answers_that_cannot_be_are_refused_and_no_search_goes_on_for_ever() {
    let nats = Nats::start().await;
    let client = nats.client().await;
    let mut asked = client.subscribe("liar.>").await.unwrap();
    client.flush().await.unwrap();
    tokio::spawn(async move {
        while let Some(message) = asked.next().await {
            let info = |last: u64| {
                json!({ "config": { "name": "S", "subjects": ["s.>"] }, "created": "2026-11-23T00:00:00Z",
                    "state": { "messages": 9, "bytes": 9, "first_seq": 1, "last_seq": last } })
            };
            let answer = match message.subject.as_str() {
                "liar.STREAM.INFO.HUGE" => info(u64::MAX),
                "liar.STREAM.INFO.BACK" => info(9),
                // Whichever was asked for.
                _ => json!({ "message": { "seq": 1, "subject": "s.x", "time": "2026-11-23T00:00:00Z" } }),
            };
            client.publish(message.reply.unwrap(), answer.to_string().into()).await.unwrap();
        }
    });
    let config = ConfigRow { nats_url: Some(nats.url()), api_prefix: Some("liar".into()), ..ConfigRow::default() };
    let control = control::connect(&Settings::resolve(&config, &Overrides::default()).unwrap()).await.unwrap();
    for error in [
        streams::state(&control, "HUGE").await.map(drop).unwrap_err(),
        tail::last_of_ours(&control, "BACK", ANYWHERE, |_| false).await.map(drop).unwrap_err(),
        locate::first_from(&control, "BACK", |_| None::<u64>, |_| true).await.map(drop).unwrap_err(),
    ] {
        assert_eq!(error.kind(), Kind::Protocol, "{error}");
    }
}
