//! Rows and the streams that they become.

#![allow(clippy::unwrap_used)]

use super::{wanted::NANOS_PER_SECOND, *};
use crate::route::subject;

fn row() -> StreamRow {
    StreamRow { stream_name: "WEBHOOKS".into(), subjects: vec!["webhooks.>".into()], ..StreamRow::default() }
}

/// `STREAM.INFO` of a stream that `row` made, with `changes` to its configuration and `messages` stored.
fn info(row: &StreamRow, changes: Value, messages: u64) -> Value {
    let mut config = Wanted::parse(row).unwrap().create();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    json!({ "config": config, "created": "2026-11-23T00:00:00Z", "ts": "2026-11-23T01:00:00.5Z",
        "state": { "messages": messages, "bytes": 100 * messages, "first_seq": 1, "last_seq": messages,
            "first_ts": "2026-11-23T00:00:00Z" } })
}

/// The columns that a row changes of a stream, the new configuration, and the warnings.
fn planned(row: &StreamRow, info: &Value) -> (Vec<&'static str>, Value, Vec<String>) {
    let plan = plan(&Wanted::parse(row).unwrap(), info).unwrap();
    assert_eq!(plan.config.is_some(), !plan.changed.is_empty());
    (plan.changed, plan.config.unwrap_or_default(), plan.warnings)
}

fn refused(row: &StreamRow, info: &Value) -> String {
    let error = plan(&Wanted::parse(row).unwrap(), info).unwrap_err();
    assert_eq!(error.kind(), Kind::Config);
    error.to_string()
}

#[test]
fn a_stream_that_is_as_its_row_wants_is_left_alone() {
    let full = StreamRow {
        description: Some("d".into()),
        storage_type: Some("memory".into()),
        max_messages: Some(10),
        max_bytes: Some(0),
        max_age_seconds: Some(60),
        retention_policy: Some("interest".into()),
        discard_policy: Some("new".into()),
        replicas: Some(1),
        duplicate_window_seconds: Some(60),
        ..row()
    };
    for row in [row(), full] {
        let (changed, _, warnings) = planned(&row, &info(&row, json!({}), 5));
        assert!(changed.is_empty() && warnings.is_empty(), "{changed:?} {warnings:?}");
    }
    // NULL columns speak of nothing.
    let (changed, ..) =
        planned(&row(), &info(&row(), json!({ "storage": "memory", "max_age": 7, "duplicate_window": 5 }), 5));
    assert!(changed.is_empty(), "{changed:?}");
}

#[test]
fn an_update_keeps_all_that_the_row_does_not_speak_of() {
    let wants = StreamRow { max_messages: Some(100), ..row() };
    let (changed, config, _) =
        planned(&wants, &info(&row(), json!({ "of_tomorrow": { "a": 1 }, "max_consumers": 7 }), 5));
    assert_eq!(changed, ["max_messages"]);
    assert_eq!(
        (&config["max_msgs"], &config["of_tomorrow"]["a"], &config["max_consumers"]),
        (&json!(100), &json!(1), &json!(7))
    );
}

#[test]
fn subjects_are_added_and_never_taken_away() {
    let has = |subjects: Value| info(&row(), json!({ "subjects": subjects }), 0);
    let (changed, config, warnings) = planned(&row(), &has(json!(["orders.>"])));
    assert_eq!(changed, ["subjects"]);
    assert_eq!(config["subjects"], json!(["orders.>", "webhooks.>"]));
    assert!(warnings[0].contains("orders.>"), "{warnings:?}");
    // A wider one replaces what it covers, and a covered one is there already.
    assert_eq!(planned(&row(), &has(json!(["webhooks.*", "webhooks.a.b"]))).1["subjects"], json!(["webhooks.>"]));
    let narrow = StreamRow { subjects: vec!["webhooks.*".into()], ..row() };
    let (changed, _, warnings) = planned(&narrow, &has(json!(["webhooks.>"])));
    assert!(changed.is_empty() && warnings[0].contains("webhooks.>"), "{warnings:?}");
}

#[test]
fn no_limit_is_lowered_so_far_that_messages_would_go_at_once() {
    for (column, wants) in [
        ("max_messages", StreamRow { max_messages: Some(4), ..row() }),
        ("max_bytes", StreamRow { max_bytes: Some(499), ..row() }),
        ("max_age_seconds", StreamRow { max_age_seconds: Some(3600), duplicate_window_seconds: Some(120), ..row() }),
    ] {
        let (changed, _, warnings) = planned(&wants, &info(&row(), json!({}), 5));
        assert!(changed.is_empty(), "{changed:?}");
        assert!(warnings[0].contains(column) && warnings[0].contains("deleted at once"), "{warnings:?}");
        assert_eq!(planned(&wants, &info(&row(), json!({}), 0)).0, [column]);
    }
    let fits = StreamRow { max_messages: Some(5), max_bytes: Some(500), max_age_seconds: Some(3601), ..row() };
    assert_eq!(planned(&fits, &info(&row(), json!({}), 5)).0, ["max_messages", "max_bytes", "max_age_seconds"]);
}

#[test]
fn the_window_shrinks_with_the_age() {
    let wants = StreamRow { max_age_seconds: Some(60), ..row() };
    let (changed, config, _) = planned(&wants, &info(&row(), json!({}), 0));
    assert_eq!(changed, ["max_age_seconds", "duplicate_window_seconds"]);
    assert_eq!(config["duplicate_window"], json!(60 * NANOS_PER_SECOND));
    assert_eq!(Wanted::parse(&wants).unwrap().create()["duplicate_window"], json!(60 * NANOS_PER_SECOND));
}

#[test]
fn what_jetstream_cannot_change_is_refused_with_has_and_wants() {
    let with = |storage: &str, retention: &str| StreamRow {
        storage_type: Some(storage.into()),
        retention_policy: Some(retention.into()),
        ..row()
    };
    let text = refused(&with("file", "limits"), &info(&with("memory", "limits"), json!({}), 0));
    assert!(text.contains("\"WEBHOOKS\" has storage_type memory") && text.contains("wants file"), "{text}");
    for (has, wants) in [("limits", "workqueue"), ("workqueue", "limits"), ("interest", "workqueue")] {
        let text = refused(&with("file", wants), &info(&with("file", has), json!({}), 0));
        assert!(
            text.contains(&format!("retention_policy {has}")) && text.contains(&format!("wants {wants}")),
            "{text}"
        );
    }
    assert_eq!(
        planned(&with("file", "interest"), &info(&with("file", "limits"), json!({}), 0)).0,
        ["retention_policy"]
    );
    let three = StreamRow { replicas: Some(3), ..row() };
    let mut has = info(&row(), json!({}), 0);
    has["cluster"] = json!({ "leader": "alone" });
    assert!(refused(&three, &has).contains("cannot have replicas 3"));
    has["cluster"] = json!({ "name": "C", "leader": "n1" });
    assert_eq!(planned(&three, &has).0, ["replicas"]);
    assert_eq!(parse_state(&has).unwrap().leader.as_deref(), Some("n1"));
    let text = refused(&row(), &info(&row(), json!({ "mirror": { "name": "ORDERS" } }), 0));
    assert!(text.contains("mirror of \"ORDERS\""), "{text}");
}

#[test]
fn impossible_rows_are_refused_before_anybody_is_asked() {
    let subjects = |list: &[&str]| StreamRow { subjects: list.iter().map(|&s| s.to_owned()).collect(), ..row() };
    for (wrong, words) in [
        (StreamRow { stream_name: "a.b".into(), ..row() }, "name of a stream"),
        (StreamRow { stream_name: String::new(), ..row() }, "name of a stream"),
        (StreamRow { stream_name: "x".repeat(256), ..row() }, "name of a stream"),
        (subjects(&[]), "subjects is empty"),
        (subjects(&["a..b"]), "empty token"),
        (subjects(&["a b"]), "space"),
        (subjects(&["a.>.b"]), "> before its end"),
        (subjects(&["a.b*"]), "part of a token"),
        (subjects(&["$JS.API.>"]), "NATS's own"),
        (subjects(&[">"]), "everything"),
        (subjects(&["a.*", "a.b"]), "overlap"),
        (StreamRow { storage_type: Some("tape".into()), ..row() }, "storage_type \"tape\""),
        (StreamRow { ordering: Some("loose".into()), ..row() }, "ordering \"loose\""),
        (StreamRow { transactions: Some("maybe".into()), ..row() }, "transactions \"maybe\""),
        (StreamRow { durability: Some("hope".into()), ..row() }, "durability \"hope\""),
        (StreamRow { replicas: Some(0), ..row() }, "replicas is 0"),
        (StreamRow { max_age_seconds: Some(i64::MAX), ..row() }, "292 years"),
        (
            StreamRow { max_age_seconds: Some(60), duplicate_window_seconds: Some(61), ..row() },
            "duplicate_window_seconds 61",
        ),
    ] {
        let error = Wanted::parse(&wrong).unwrap_err();
        assert_eq!(error.kind(), Kind::Config);
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[test]
fn patterns_overlap_and_cover_token_by_token() {
    for (a, b, overlaps, a_covers_b) in [
        ("a", "a", true, true),
        ("a", "b", false, false),
        ("a.*", "a.b", true, true),
        ("a.b", "a.*", true, false),
        ("a.*", "*.b", true, false),
        ("a.*", "a.b.c", false, false),
        ("a.>", "a", false, false),
        ("a.>", "a.b.c", true, true),
        ("a.*", "a.>", true, false),
        ("a.>", "a.*", true, true),
        ("a.>", "a.>", true, true),
    ] {
        assert_eq!(subject::overlaps(a, b), overlaps, "{a} {b}");
        assert_eq!(subject::overlaps(b, a), overlaps, "{b} {a}");
        assert_eq!(subject::covers(a, b), a_covers_b, "{a} {b}");
    }
}

#[test]
fn answers_that_lack_something_are_errors() {
    for wrong in [json!(null), json!({}), json!({ "config": {}, "created": "soon" })] {
        assert!(parse_state(&wrong).is_err(), "{wrong}");
    }
}
