//! Real processes under fire: a random workload, faults by a seed, and an oracle that knows nothing of walhook.
//!
//! `make chaos SECONDS=600 SEED=7` runs it for a time and prints a report. A run has a seed of its own, the first one's and one
//! more each; `make chaos SECONDS=1 SEED=n` runs that one again, as far as real processes do the same twice.

#![allow(clippy::unwrap_used)]

mod faults;
mod run;
#[path = "../support/mod.rs"]
mod support;
mod workload;

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use faults::KINDS;
use run::Outcome;
use serde_json::{Value, json};
use support::{
    feed::Message,
    oracle::{self, Committed, Sample},
};

/// In so many runs each kind of fault and each change of rules happens, by far.
const RUNS_OF_ALL: usize = 60;

/// What has to be seen in that many runs: faults that may strike nothing, and changes of rules by what changed.
const SEEN: [&str; 18] = [
    "the slot went back",
    "a new timeline began",
    "a copy was refused",
    "an adopted copy had a stream of its own",
    "rule_webhooks: deleted",
    "rule_webhooks: made again",
    "rule_webhook_links: deleted",
    "rule_webhook_links: made again",
    "rule_webhooks: enabled",
    "rule_webhooks: nats_subject",
    "nats_config_id",
    "payload_format",
    "rule_nats_config: jetstream_enabled",
    "rule_nats_config: nats_url",
    "rule_nats_streams: durability",
    "rule_nats_streams: max_messages",
    "rule_nats_streams: ordering",
    "rule_nats_streams: transactions",
];

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().filter(|text| !text.is_empty()).map(|text| text.parse().expect("a number"))
}

#[tokio::test]
async fn random_faults_lose_double_and_reorder_nothing() {
    let seconds = Duration::from_secs(number("WALHOOK_CHAOS_SECONDS").unwrap_or(20));
    // Without wishes, one that ends walhook's sessions and freezes NATS; longer runs have all kinds.
    let seed = number("WALHOOK_SEED").unwrap_or(5002);
    let began = Instant::now();
    let mut outcomes = Vec::new();
    while outcomes.is_empty() || began.elapsed() < seconds {
        let seed = seed + outcomes.len() as u64;
        eprintln!("seed {seed}");
        let outcome = run::run(seed).await;
        eprintln!(
            "seed {seed}: {} events, {} changes of rules, {} faults, {} samples, {} KiB{}",
            outcome.events,
            outcome.rule_changes.values().sum::<usize>(),
            outcome.faults.len(),
            outcome.samples,
            outcome.rss_kib,
            if outcome.findings.is_clean() { "" } else { ", NOT AS PROMISED" }
        );
        outcome.findings.examples.iter().for_each(|example| eprintln!("{example}"));
        outcomes.push(outcome);
    }
    let report = report(&outcomes, began.elapsed());
    eprintln!("{report}");
    for outcome in &outcomes {
        let Outcome { seed, faults, findings, .. } = outcome;
        assert!(findings.is_clean(), "WALHOOK_SEED={seed}, faults {faults:?}\n{}", findings.examples.join("\n"));
        assert!(
            outcome.events > 0 && !outcome.rule_changes.is_empty() && outcome.samples > 0,
            "WALHOOK_SEED={seed}: a run in which nothing happened"
        );
    }
    if outcomes.len() >= RUNS_OF_ALL {
        let happened = |what: &str| report.lines().any(|line| line.contains(" × ") && line.contains(what));
        let missing: Vec<_> = KINDS.iter().map(|(name, _)| *name).chain(SEEN).filter(|what| !happened(what)).collect();
        assert!(missing.is_empty(), "never happened in {} runs: {missing:?}", outcomes.len());
    }
}

/// What `make chaos` prints.
fn report(outcomes: &[Outcome], took: Duration) -> String {
    let sum = |part: fn(&Outcome) -> usize| outcomes.iter().map(part).sum::<usize>();
    let mut recoveries: Vec<Duration> = outcomes.iter().flat_map(|outcome| outcome.recoveries.clone()).collect();
    recoveries.sort_unstable();
    let at = |percent: usize| recoveries.get(recoveries.len() * percent / 100).copied().unwrap_or_default();
    let faults: Vec<&'static str> = outcomes.iter().flat_map(|outcome| outcome.faults.clone()).collect();
    let mut text = format!(
        "runs {} · {} s · events {} · changes of rules {} · faults {}\nlost {} · duplicated {} · misrouted {} · reordered {} · never committed {}\n\
         to core NATS {}, of which streams have {}\n\
         recovery p50 {} ms · p99 {} ms · longest {} ms · memory at most {} KiB · confirmed compared with tails {} times\n",
        outcomes.len(),
        took.as_secs(),
        sum(|outcome| outcome.events),
        sum(|outcome| outcome.rule_changes.values().sum()),
        faults.len(),
        sum(|outcome| outcome.findings.lost),
        sum(|outcome| outcome.findings.duplicated),
        sum(|outcome| outcome.findings.misrouted),
        sum(|outcome| outcome.findings.reordered),
        sum(|outcome| outcome.findings.phantoms),
        sum(|outcome| outcome.to_core[0]),
        sum(|outcome| outcome.to_core[1]),
        at(50).as_millis(),
        at(99).as_millis(),
        recoveries.last().copied().unwrap_or_default().as_millis(),
        outcomes.iter().map(|outcome| outcome.rss_kib).max().unwrap_or_default(),
        sum(|outcome| outcome.samples),
    );
    for (fault, count) in run::counted(faults) {
        text += &format!("{count:6} × {fault}\n");
    }
    for (effect, count) in run::counted(outcomes.iter().flat_map(|outcome| outcome.effects.clone())) {
        text += &format!("{count:6} × seen: {effect}\n");
    }
    let mut changes: BTreeMap<&str, usize> = BTreeMap::new();
    for (what, count) in outcomes.iter().flat_map(|outcome| &outcome.rule_changes) {
        *changes.entry(what).or_default() += count;
    }
    for (what, count) in changes {
        text += &format!("{count:6} × {what}\n");
    }
    text
}

/// The rows of configurations, as the slot says them.
const CONFIGS: &str = "BEGIN 689
table public.rule_nats_config: INSERT: config_id[integer]:1 config_name[text]:'default' nats_url[text]:'nats://127.0.0.1:4222' jetstream_enabled[boolean]:true
COMMIT 689
";

/// What these lines amount to.
fn committed(lines: &str) -> Committed {
    let mut committed = Committed::new(workload::places(vec![4222, 4223]));
    committed.read(CONFIGS.lines().chain(lines.lines()));
    committed
}

/// What a slot said and what a stream holds that keeps the promise, for tampering with.
fn honest() -> (Committed, Vec<Message>) {
    let lines = "BEGIN 690
table public.rule_webhooks: INSERT: webhook_id[integer]:1 enabled[boolean]:true nats_enabled[boolean]:true publish_mode[text]:'nats' nats_subject[text]:'chaos.a.plain' nats_config_id[integer]:1 payload_format[text]:'webhook'
table public.rule_webhook_links: INSERT: link_id[integer]:1 webhook_id[integer]:1 table_schema[text]:'public' table_name[text]:'plain' operations[text[]]:'{insert,update,delete}' subject_template[text]:null columns[text[]]:null filter[jsonb]:null enabled[boolean]:true
COMMIT 690
BEGIN 700
table public.plain: INSERT: id[bigint]:1 n[bigint]:5 note[text]:'it''s new-tuple: [x]:' big[text]:'xxxx'
table public.elsewhere: INSERT: id[bigint]:1
table public.plain: INSERT: id[bigint]:2 n[bigint]:5 note[text]:null big[text]:null
COMMIT 700
BEGIN 702
table public.plain: UPDATE: id[bigint]:1 n[bigint]:6 note[text]:'' big[text]:unchanged-toast-datum
table public.plain: UPDATE: old-key: id[bigint]:2 new-tuple: id[bigint]:3 n[bigint]:5 note[text]:null big[text]:null
COMMIT 702
BEGIN 701
table public.plain: DELETE: id[bigint]:3
table public.rule_webhook_events: INSERT: event_id[bigint]:1 webhook_id[integer]:1 payload[jsonb]:'{\"a\": 1}' subject[text]:null
COMMIT 701";
    let committed = committed(lines);
    let message = |sequence: u64, xid: u64, op: &str, data: Value, event: Value| {
        let commit = 0x100 + if xid == 701 { 703 } else { xid };
        let id = format!("walhook-{commit:016x}-2c8f-{sequence}-1");
        let mut payload = json!({"id": id, "data": data, "event": {"xid": xid, "op": op, "table": "public.plain"}});
        payload["event"].as_object_mut().unwrap().extend(event.as_object().unwrap().clone());
        Message { sequence, subject: "chaos.a.plain".to_owned(), headers: headers(&id), payload }
    };
    let stored = vec![
        message(1, 700, "insert", json!({"id": 1, "n": 5, "note": "it's new-tuple: [x]:", "big": "xxxx"}), json!({})),
        message(2, 700, "insert", json!({"id": 2, "n": 5, "note": null, "big": null}), json!({})),
        message(3, 702, "update", json!({"id": 1, "n": 6, "note": ""}), json!({"unchanged": ["big"]})),
        message(4, 702, "update", json!({"id": 3, "n": 5, "note": null, "big": null}), json!({"old": {"id": 2}})),
        message(5, 701, "delete", json!({"id": 3}), json!({})),
        message(6, 701, "insert", json!({"a": 1}), json!({"table": "public.rule_webhook_events"})),
    ];
    (committed, stored)
}

/// Those of a message that was published into a stream.
fn headers(id: &str) -> HashMap<String, String> {
    [("Nats-Msg-Id", id), ("Nats-Expected-Stream", "CHAOS_A")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

/// Judges what `tamper` leaves of an honest stream: lost, duplicated, reordered, never committed.
fn judged(tamper: impl FnOnce(&mut Vec<Message>)) -> (usize, usize, usize, usize) {
    let (committed, mut stored) = honest();
    tamper(&mut stored);
    for (index, message) in stored.iter_mut().enumerate() {
        message.sequence = index as u64 + 1;
    }
    let found = oracle::judge(&committed, &[stored]);
    (found.lost, found.duplicated, found.reordered, found.phantoms)
}

#[test]
fn an_honest_stream_is_cleared() {
    assert_eq!(judged(|_| {}), (0, 0, 0, 0));
    let (committed, stored) = honest();
    assert_eq!(committed.facts.len(), 6);
    let folded = oracle::fold(&stored, "public.plain");
    let found = oracle::judge(&committed, &[stored]);
    assert!(found.is_clean(), "{found:?}");
    assert_eq!(folded.len(), 1);
    assert_eq!(folded[&1]["big"], "xxxx", "what did not change is known from before");
}

#[test]
fn a_lost_message_is_caught() {
    for index in 0..6 {
        assert_eq!(judged(|stored| drop(stored.remove(index))), (1, 0, 0, 0), "{index}");
    }
    assert_eq!(judged(Vec::clear), (6, 0, 0, 0));
}

#[test]
fn a_doubled_message_is_caught_with_its_id_and_with_another() {
    let doubled = |stored: &mut Vec<Message>| stored.insert(1, stored[0].clone());
    assert_eq!(judged(doubled), (0, 1, 0, 0));
    // As by one who makes ids of the row's LSN or by chance.
    let renamed = |stored: &mut Vec<Message>| {
        doubled(stored);
        let id = stored[0].header("Nats-Msg-Id").replace("-1-1", "-0-1");
        stored[0].headers.insert("Nats-Msg-Id".to_owned(), id);
    };
    assert_eq!(judged(renamed), (0, 1, 0, 0));
    // Far away, as by one who sends again what was stored.
    let (_, _, reordered, _) = judged(|stored| {
        stored.push(Message { headers: headers(""), ..stored[0].clone() });
    });
    assert!(reordered > 0);
}

#[test]
fn swapped_messages_are_caught_by_their_ids_and_without_them() {
    let (lost, duplicated, reordered, phantoms) = judged(|stored| stored.swap(0, 1));
    assert!(reordered > 0 && lost + duplicated + phantoms == 0);
    let content = |stored: &mut Vec<Message>| {
        let first = std::mem::replace(&mut stored[0].payload, Value::Null);
        stored[0].payload = std::mem::replace(&mut stored[1].payload, first);
    };
    assert_eq!(judged(content), (0, 0, 1, 0));
}

#[test]
fn what_was_never_committed_or_not_like_that_is_caught() {
    let phantom = |stored: &mut Vec<Message>| {
        let mut message = stored[5].clone();
        message.headers.insert("Nats-Msg-Id".to_owned(), "walhook-0000000000000fff-2c8f-7-1".to_owned());
        message.payload["event"]["xid"] = json!(703);
        stored.push(message);
    };
    assert_eq!(judged(phantom), (0, 0, 0, 1));
    assert_eq!(judged(|stored| stored[1].payload["data"]["n"] = json!("5")), (1, 0, 0, 1), "a text is no number");
    assert_eq!(judged(|stored| stored[1].payload["data"]["note"] = json!("null")), (1, 0, 0, 1));
}

#[test]
fn null_for_a_large_value_that_did_not_change_is_caught() {
    let null = |stored: &mut Vec<Message>| stored[2].payload["data"]["big"] = Value::Null;
    assert_eq!(judged(null), (1, 0, 0, 1));
    let unnamed = |stored: &mut Vec<Message>| drop(stored[2].payload["event"]["unchanged"].take());
    assert_eq!(judged(unnamed), (1, 0, 0, 1));
    let (_, mut stored) = honest();
    null(&mut stored);
    stored[2].payload["event"]["unchanged"].take();
    assert_eq!(oracle::fold(&stored, "public.plain")[&1]["big"], Value::Null, "which the table is compared with");
}

#[test]
fn a_confirmation_before_its_event_is_stored_is_caught() {
    let (_, stored) = honest();
    let check = |confirmed: u64, tail: u64| {
        let mut found = oracle::Findings::default();
        oracle::confirmed_too_early(&[Sample { confirmed, tails: vec![tail] }], 0, &stored, &mut found);
        found.is_clean()
    };
    // Commits at 0x100 + 700 and 702, and 703; what is confirmed is a commit's end.
    assert!(check(0x100 + 700, 0) && check(0x100 + 701, 2) && check(0x100 + 703, 4) && check(0x900, 6));
    assert!(!check(0x100 + 701, 0), "none is stored");
    assert!(!check(0x100 + 701, 1), "half of the transaction is");
    assert!(!check(0x900, 5));
}

/// What a slot said of a webhook that moved and was switched off and on, and of a link that changed; and what two streams hold.
fn moving() -> (Committed, Vec<Vec<Message>>) {
    let webhook = |subject: &str, enabled: bool, format: &str| {
        format!(
            "webhook_id[integer]:1 enabled[boolean]:{enabled} nats_enabled[boolean]:true publish_mode[text]:'nats' nats_subject[text]:'{subject}' nats_config_id[integer]:1 payload_format[text]:'{format}'"
        )
    };
    let link = |columns: &str, filter: &str| {
        format!(
            "link_id[integer]:1 webhook_id[integer]:1 table_schema[text]:'public' table_name[text]:'plain' operations[text[]]:'{{insert,update}}' subject_template[text]:null columns[text[]]:{columns} filter[jsonb]:{filter} enabled[boolean]:true"
        )
    };
    let row = |id: u64| format!("table public.plain: INSERT: id[bigint]:{id} n[bigint]:{id}");
    let rules = |op: &str, table: &str, row: String| format!("table public.{table}: {op}: {row}");
    let lines = [
        "BEGIN 700".to_owned(),
        rules("INSERT", "rule_webhooks", webhook("chaos.a.t", true, "webhook")),
        rules("INSERT", "rule_webhook_links", link("null", "null")),
        "COMMIT 700".to_owned(),
        "BEGIN 701".to_owned(),
        row(1),
        rules("UPDATE", "rule_webhooks", webhook("chaos.b.t", true, "webhook")),
        row(2),
        rules("UPDATE", "rule_webhooks", webhook("chaos.b.t", false, "webhook")),
        row(3),
        rules("UPDATE", "rule_webhooks", webhook("chaos.b.t", true, "data")),
        row(4),
        "COMMIT 701".to_owned(),
        "BEGIN 702".to_owned(),
        rules("UPDATE", "rule_webhooks", webhook("chaos.a.t", true, "webhook")),
        rules("UPDATE", "rule_webhook_links", link("'{id}'", "'{\"n\": 6}'")),
        row(5),
        row(6),
        "COMMIT 702".to_owned(),
    ];
    let message = |sequence: u64, subject: &str, xid: u64, ordinal: u64, payload: Value| {
        let id = format!("walhook-{:016x}-2c8f-{ordinal}-1", 0x100 + xid);
        Message { sequence, subject: subject.to_owned(), headers: headers(&id), payload }
    };
    let whole =
        |xid: u64, data: Value| json!({"data": data, "event": {"xid": xid, "op": "insert", "table": "public.plain"}});
    let a = vec![
        message(1, "chaos.a.t", 701, 0, whole(701, json!({"id": 1, "n": 1}))),
        message(2, "chaos.a.t", 702, 1, whole(702, json!({"id": 6}))),
    ];
    let b = vec![
        message(1, "chaos.b.t", 701, 1, whole(701, json!({"id": 2, "n": 2}))),
        message(2, "chaos.b.t", 701, 2, json!({"id": 4, "n": 4})),
    ];
    (committed(&lines.join("\n")), vec![a, b])
}

/// Judges what `tamper` leaves of two honest streams: lost, duplicated, misrouted, reordered, never committed.
fn judged_moving(tamper: impl FnOnce(&mut [Vec<Message>])) -> [usize; 5] {
    let (committed, mut streams) = moving();
    tamper(&mut streams);
    for message in streams.iter_mut().flat_map(|stored| stored.iter_mut().enumerate()) {
        message.1.sequence = message.0 as u64 + 1;
    }
    let found = oracle::judge(&committed, &streams);
    [found.lost, found.duplicated, found.misrouted, found.reordered, found.phantoms]
}

#[test]
fn events_by_the_rules_at_their_own_place_are_cleared() {
    let (committed, streams) = moving();
    let found = oracle::judge(&committed, &streams);
    assert!(found.is_clean(), "{found:?}");
    assert_eq!((committed.facts.len(), committed.rule_changes.values().sum::<usize>()), (4, 8));
}

#[test]
fn an_event_in_the_other_stream_is_caught() {
    let moved = |streams: &mut [Vec<Message>]| {
        let message = streams[0].remove(0);
        streams[1].insert(0, message);
    };
    assert_eq!(judged_moving(moved), [0, 0, 1, 0, 0]);
    // As rules of now would have named it.
    let renamed = |streams: &mut [Vec<Message>]| {
        moved(streams);
        streams[1][0].subject = "chaos.b.t".to_owned();
    };
    assert_eq!(judged_moving(renamed), [0, 0, 1, 0, 0]);
    assert_eq!(judged_moving(|streams| streams[0][0].subject = "chaos.a.other".to_owned()), [0, 0, 1, 0, 0]);
}

#[test]
fn an_event_in_both_streams_is_caught() {
    assert_eq!(
        judged_moving(|streams| {
            let message = streams[0][0].clone();
            streams[1].insert(0, message);
        })[..3],
        [0, 1, 0]
    );
}

#[test]
fn an_event_removed_between_moves_is_caught() {
    for (stream, index) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        assert_eq!(judged_moving(|streams| drop(streams[stream].remove(index))), [1, 0, 0, 0, 0]);
    }
}

#[test]
fn an_event_by_rules_not_in_force_at_its_place_is_caught() {
    // The webhook was disabled, the link's filter did not let it pass.
    for (xid, ordinal, id) in [(701, 3, 3), (702, 2, 5)] {
        let added = judged_moving(|streams| {
            let mut message = streams[0][1].clone();
            message.headers.insert("Nats-Msg-Id".to_owned(), format!("walhook-{:016x}-2c8f-{ordinal}-1", 0x100 + xid));
            message.payload["event"]["xid"] = json!(xid);
            message.payload["data"] = json!({"id": id, "n": id});
            streams[0].insert(usize::from(xid == 702) + 1, message);
        });
        assert_eq!(added, [0, 0, 0, 0, 1], "{xid}");
    }
    // A column that the link did not have, a format that the webhook did not have.
    assert_eq!(judged_moving(|streams| streams[0][1].payload["data"]["n"] = json!(6)), [1, 0, 0, 0, 1]);
    assert_eq!(judged_moving(|streams| streams[1][0].payload = json!({"id": 2, "n": 2})), [1, 0, 0, 0, 1]);
}

/// What a slot said of a configuration that publishes to core NATS for a while, and what its stream holds: of its time there one
/// event, out of order and twice.
fn past_jetstream() -> (Committed, Vec<Message>) {
    let config = |enabled: bool| {
        format!(
            "config_id[integer]:1 config_name[text]:'default' nats_url[text]:'nats://127.0.0.1:4222' jetstream_enabled[boolean]:{enabled}"
        )
    };
    let lines = format!(
        "BEGIN 690
table public.rule_webhooks: INSERT: webhook_id[integer]:1 enabled[boolean]:true nats_enabled[boolean]:true publish_mode[text]:'nats' nats_subject[text]:'chaos.a.t' nats_config_id[integer]:1 payload_format[text]:'webhook'
table public.rule_webhook_links: INSERT: link_id[integer]:1 webhook_id[integer]:1 table_schema[text]:'public' table_name[text]:'plain' operations[text[]]:'{{insert}}' subject_template[text]:null columns[text[]]:null filter[jsonb]:null enabled[boolean]:true
COMMIT 690
BEGIN 701
table public.plain: INSERT: id[bigint]:1
table public.rule_nats_config: UPDATE: {}
table public.plain: INSERT: id[bigint]:2
table public.plain: INSERT: id[bigint]:3
table public.rule_nats_config: UPDATE: {}
table public.plain: INSERT: id[bigint]:4
COMMIT 701",
        config(false),
        config(true)
    );
    let message = |sequence: u64, ordinal: u64, id: u64, by_core: bool| {
        let payload = json!({"data": {"id": id}, "event": {"xid": 701, "op": "insert", "table": "public.plain"}});
        let mut headers = headers(&format!("walhook-{:016x}-2c8f-{ordinal}-1", 0x100 + 701));
        headers.retain(|name, _| name == "Nats-Msg-Id" || !by_core);
        Message { sequence, subject: "chaos.a.t".to_owned(), headers, payload }
    };
    let stored = vec![message(1, 1, 2, true), message(2, 0, 1, false), message(3, 3, 4, false), message(4, 1, 2, true)];
    (committed(&lines), stored)
}

#[test]
fn events_to_core_nats_may_be_missing_and_come_twice_and_must_have_been_committed_like_that() {
    let judged = |tamper: fn(&mut Vec<Message>)| {
        let (committed, mut stored) = past_jetstream();
        tamper(&mut stored);
        for (index, message) in stored.iter_mut().enumerate() {
            message.sequence = index as u64 + 1;
        }
        let found = oracle::judge(&committed, &[stored]);
        [found.lost, found.duplicated, found.misrouted, found.reordered, found.phantoms]
    };
    assert_eq!(judged(|_| {}), [0; 5]);
    assert_eq!(judged(|stored| drop(stored.remove(1))), [1, 0, 0, 0, 0]);
    assert_eq!(judged(|stored| stored.swap(1, 2)), [0, 0, 0, 1, 0]);
    // By the other way than its rules said.
    assert_eq!(judged(|stored| drop(stored[1].headers.remove("Nats-Expected-Stream"))), [0, 0, 1, 0, 0]);
    assert_eq!(judged(|stored| stored[0].headers = headers("walhook-00000000000003bd-2c8f-1-1")), [0, 0, 0, 1, 1]);
    assert_eq!(judged(|stored| stored[0].payload["data"]["id"] = json!(7)), [0, 0, 0, 0, 1]);
}

#[test]
fn what_changed_of_rules_is_named() {
    let (committed, _) = past_jetstream();
    assert_eq!(committed.rule_changes["rule_nats_config: jetstream_enabled"], 2);
    let webhook = "table public.rule_webhooks: INSERT: webhook_id[integer]:1 enabled[boolean]:true";
    let mut committed = self::committed("BEGIN 1");
    committed.read([webhook, "table public.rule_webhooks: DELETE: webhook_id[integer]:1", webhook]);
    let names: Vec<_> = committed.rule_changes.keys().map(String::as_str).collect();
    let made = ["rule_nats_config: made", "rule_webhooks: deleted", "rule_webhooks: made", "rule_webhooks: made again"];
    assert_eq!(names, made);
    assert!(committed.deleted.contains(&1));
}
