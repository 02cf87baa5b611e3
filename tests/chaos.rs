//! Real processes under fire: a random workload, faults by a seed, and an oracle that knows nothing of walhook.
//!
//! `make chaos SECONDS=600 SEED=7` runs it for a time and prints a report. A run has a seed of its own, the first one's and one
//! more each; `make chaos SECONDS=1 SEED=n` runs that one again, as far as real processes do the same twice.

#![allow(clippy::unwrap_used)]

mod support;
mod chaos {
    pub(crate) use super::support;

    pub mod faults;
    pub mod oracle;
    pub mod run;
    pub mod workload;
}

use std::time::{Duration, Instant};

use chaos::{
    oracle::{self, Fact, Sample},
    run::{self, Outcome},
};
use serde_json::{Value, json};
use support::feed::Message;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().filter(|text| !text.is_empty()).map(|text| text.parse().expect("a number"))
}

#[tokio::test]
async fn random_faults_lose_double_and_reorder_nothing() {
    let seconds = Duration::from_secs(number("WALHOOK_CHAOS_SECONDS").unwrap_or(20));
    // Without wishes, one that kills, cuts, takes over and ends.
    let seed = number("WALHOOK_SEED").unwrap_or(5002);
    let began = Instant::now();
    let mut outcomes = Vec::new();
    while outcomes.is_empty() || began.elapsed() < seconds {
        let seed = seed + outcomes.len() as u64;
        eprintln!("seed {seed}");
        let outcome = run::run(seed).await;
        eprintln!(
            "seed {seed}: {} events, {} faults, {} samples, {} KiB{}",
            outcome.events,
            outcome.faults.len(),
            outcome.samples,
            outcome.rss_kib,
            if outcome.findings.is_clean() { "" } else { ", NOT AS PROMISED" }
        );
        outcomes.push(outcome);
    }
    let report = report(&outcomes, began.elapsed());
    eprintln!("{report}");
    for outcome in &outcomes {
        let Outcome { seed, faults, findings, .. } = outcome;
        assert!(findings.is_clean(), "WALHOOK_SEED={seed}, faults {faults:?}\n{}", findings.examples.join("\n"));
        assert!(outcome.events > 0 && outcome.samples > 0, "WALHOOK_SEED={seed}: a run in which nothing happened");
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
        "runs {} · {} s · events {} · faults {}\nlost {} · duplicated {} · reordered {} · never committed {}\n\
         recovery p50 {} ms · p99 {} ms · longest {} ms · memory at most {} KiB · confirmed compared with tails {} times\n",
        outcomes.len(),
        took.as_secs(),
        sum(|outcome| outcome.events),
        faults.len(),
        sum(|outcome| outcome.findings.lost),
        sum(|outcome| outcome.findings.duplicated),
        sum(|outcome| outcome.findings.reordered),
        sum(|outcome| outcome.findings.phantoms),
        at(50).as_millis(),
        at(99).as_millis(),
        recoveries.last().copied().unwrap_or_default().as_millis(),
        outcomes.iter().map(|outcome| outcome.rss_kib).max().unwrap_or_default(),
        sum(|outcome| outcome.samples),
    );
    for (fault, count) in run::counted(&faults) {
        text += &format!("{count:6} × {fault}\n");
    }
    text
}

/// What a slot said and what a stream holds that keeps the promise, for tampering with.
fn honest() -> (Vec<Fact>, Vec<Message>) {
    let lines = "BEGIN 700
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
    let facts = oracle::committed(lines.lines(), |table| table != "public.elsewhere");
    let message = |sequence: u64, xid: u64, op: &str, data: Value, event: Value| {
        let commit = 0x100 + if xid == 701 { 703 } else { xid };
        let id = format!("walhook-{commit:016x}-2c8f-{sequence}-1");
        let mut payload = json!({"id": id, "data": data, "event": {"xid": xid, "op": op, "table": "public.plain"}});
        payload["event"].as_object_mut().unwrap().extend(event.as_object().unwrap().clone());
        let headers = [("Nats-Msg-Id".to_owned(), id)].into();
        Message { sequence, subject: "chaos.a.plain".to_owned(), headers, payload }
    };
    let stored = vec![
        message(1, 700, "insert", json!({"id": 1, "n": 5, "note": "it's new-tuple: [x]:", "big": "xxxx"}), json!({})),
        message(2, 700, "insert", json!({"id": 2, "n": 5, "note": null, "big": null}), json!({})),
        message(3, 702, "update", json!({"id": 1, "n": 6, "note": ""}), json!({"unchanged": ["big"]})),
        message(4, 702, "update", json!({"id": 3, "n": 5, "note": null, "big": null}), json!({"old": {"id": 2}})),
        message(5, 701, "delete", json!({"id": 3}), json!({})),
        message(6, 701, "insert", json!({"a": 1}), json!({"table": "public.rule_webhook_events"})),
    ];
    (facts, stored)
}

/// Judges what `tamper` leaves of an honest stream: lost, duplicated, reordered, never committed.
fn judged(tamper: impl FnOnce(&mut Vec<Message>)) -> (usize, usize, usize, usize) {
    let (committed, mut stored) = honest();
    tamper(&mut stored);
    for (index, message) in stored.iter_mut().enumerate() {
        message.sequence = index as u64 + 1;
    }
    let found = oracle::judge(&committed, &stored);
    (found.lost, found.duplicated, found.reordered, found.phantoms)
}

#[test]
fn an_honest_stream_is_cleared() {
    assert_eq!(judged(|_| {}), (0, 0, 0, 0));
    let (committed, stored) = honest();
    assert_eq!(committed.len(), 6);
    let found = oracle::judge(&committed, &stored);
    assert!(found.is_clean(), "{found:?}");
    let folded = oracle::fold(&stored, "public.plain");
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
        stored.push(Message { headers: [].into(), ..stored[0].clone() });
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
        oracle::confirmed_too_early(&[Sample { confirmed, tails: [tail, 0] }], 0, &stored, &mut found);
        found.is_clean()
    };
    // Commits at 0x100 + 700 and 702, and 703; what is confirmed is a commit's end.
    assert!(check(0x100 + 700, 0) && check(0x100 + 701, 2) && check(0x100 + 703, 4) && check(0x900, 6));
    assert!(!check(0x100 + 701, 0), "none is stored");
    assert!(!check(0x100 + 701, 1), "half of the transaction is");
    assert!(!check(0x900, 5));
}
