//! Whatever an event holds, its row of the history is one that COPY takes: its fields counted, each of its length.

#![no_main]

use libfuzzer_sys::fuzz_target;
use walhook::{
    flow::{
        event_id::EventPosition,
        history::{History, Note, Outcome, Place},
    },
    route::rules::KeepPayload,
    wal::lsn::Lsn,
};

fuzz_target!(|input: &[u8]| {
    let Some((choice, text)) = input.split_first() else { return };
    let mut parts = text.split(|&byte| byte == b'\n');
    let mut part = || parts.next().unwrap_or_default();
    let number = u64::from(*choice);
    let note = Note {
        webhook_id: i32::from(*choice) - 128,
        event_id: part(),
        subject: part(),
        headers: part(),
        message_id: part(),
        triggered_by: (choice & 1 != 0).then(&mut part),
        rule_execution_id: (choice & 2 != 0).then_some(i64::from(*choice)),
        webhook_event_id: None,
    };
    let mut noted = Vec::new();
    note.write((choice & 4 != 0).then_some("STREAM"), &mut noted);
    let position = EventPosition { commit_lsn: Lsn(number), commit_time: -1, ordinal: 0, webhook_id: 1 };
    let reason = String::from_utf8_lossy(text);
    let outcomes = [
        Outcome::Stored { at: Some(i64::MIN), sequence: None, latency: Some(u64::MAX) },
        Outcome::Stored { at: None, sequence: Some(number), latency: None },
        Outcome::Failed { reason: &reason },
    ];
    let mut history = History::new(1 << 20);
    for (at, (outcome, kept)) in
        outcomes.into_iter().zip([KeepPayload::Full, KeepPayload::Hash, KeepPayload::None]).enumerate()
    {
        history.push(at as u64, &position, &noted, text, kept, outcome);
    }
    let mut batch = history.take().expect("three rows");
    assert_eq!((batch.len(), batch.unlocated().len()), (3, 1));
    batch.locate(&[Place::At(number)]);
    let mut rest = batch.bytes();
    for _ in 0..3 {
        let (count, after) = rest.split_first_chunk::<2>().expect("a count");
        rest = after;
        for _ in 0..i16::from_be_bytes(*count) {
            let (length, after) = rest.split_first_chunk::<4>().expect("a length");
            rest = match usize::try_from(i32::from_be_bytes(*length)) {
                Ok(length) => &after[length..],
                Err(_) => after,
            };
        }
    }
    assert!(rest.is_empty());
});
