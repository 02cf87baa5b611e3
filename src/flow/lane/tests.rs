//! The lane by literals: what it sends, and what it makes of answers and tails.

#![allow(clippy::unwrap_used)]

mod batches;

use super::*;
use crate::wal::lsn::Lsn;

fn at(commit: u64) -> EventPosition {
    EventPosition { commit_lsn: Lsn(commit), commit_time: 9, ordinal: 0, webhook_id: 1 }
}

/// A tail whose last event of ours is at the given commit and sequence; any stranger's messages come behind it.
fn tail(last_sequence: u64, ours: Option<(u64, u64)>) -> Tail {
    let ours = ours.map(|(commit, sequence)| (at(commit), sequence));
    Tail {
        last_sequence,
        ours,
        in_stream: ours,
        listing: None,
        listed: Vec::new(),
        subjects: vec!["s.>".to_owned()],
        max_payload: 1000,
        batch_max: 1,
    }
}

fn put_as(lane: &mut Lane, commit: u64, subject: &str, message_id: Option<&[u8]>, body: &[u8]) {
    let id = at(commit).id("src");
    let head = Head { subject: subject.as_bytes(), id: id.as_bytes(), message_id, op: "insert", epoch: 3 };
    let draft = lane.draft(head, |_| ());
    lane.buffer().extend_from_slice(body);
    lane.commit(draft, commit, at(commit)).unwrap();
}

/// A lane of the events at commits 1, 2, …, each with its commit as its number.
fn lane_of(ordering: Ordering, count: u64) -> Lane {
    let mut lane = Lane::new("S", ordering, "_INBOX.i.0");
    (1..=count).for_each(|commit| put_as(&mut lane, commit, "s.a", None, b"{}"));
    lane
}

/// Opens a lane that need not probe.
fn open(lane: &mut Lane, tail: &Tail) {
    lane.open(&Tail { listing: lane.listing(), ..tail.clone() }).unwrap();
    lane.sending.is_probing = false;
}

fn send(lane: &mut Lane) -> String {
    let mut sent = Vec::new();
    while !lane.unsent().is_empty() {
        let bytes = lane.unsent();
        sent.extend_from_slice(bytes);
        let count = bytes.len();
        lane.mark_sent(count);
    }
    String::from_utf8(sent).unwrap()
}

/// Reply tokens and expected sequences of what is sent.
fn sent(lane: &mut Lane) -> Vec<(String, Option<u64>)> {
    let text = send(lane);
    let messages = text.split("HPUB ").skip(1).map(|message| {
        let token = message.split(' ').nth(1).unwrap().rsplit('.').next().unwrap().to_owned();
        let expected = message.split_once("Nats-Expected-Last-Sequence: ");
        (token, expected.map(|(_, rest)| rest.split("\r\n").next().unwrap().parse().unwrap()))
    });
    messages.collect()
}

fn tokens(lane: &mut Lane) -> Vec<String> {
    sent(lane).into_iter().map(|(token, _)| token).collect()
}

#[test]
fn a_message_is_an_hpub_with_its_ids_and_what_the_stream_must_have_before_it() {
    let mut lane = Lane::new("S", Ordering::Strict, "_INBOX.i.0");
    put_as(&mut lane, 1, "s.a", None, b"{\"a\":1}");
    put_as(&mut lane, 2, "s.b", Some(b"mine"), b"");
    assert_eq!(send(&mut lane), "", "closed");
    open(&mut lane, &tail(41, None));
    let header = "NATS/1.0\r\nNats-Expected-Last-Sequence: 00000000000000000041\r\n\
                  Nats-Msg-Id: src-0000000000000001-9-0-1\r\nNats-Expected-Stream: S\r\n\
                  Walhook-Op: insert\r\nWalhook-Epoch: 3\r\n\r\n";
    let second = "NATS/1.0\r\nNats-Expected-Last-Sequence: 00000000000000000042\r\nNats-Msg-Id: src:1:mine\r\n\
                  Walhook-Id: src-0000000000000002-9-0-1\r\nWalhook-Message-Id: mine\r\nNats-Expected-Stream: S\r\n\
                  Walhook-Op: insert\r\nWalhook-Epoch: 3\r\n\r\n";
    let expected = format!(
        "HPUB s.a _INBOX.i.0.0100000000 {:06} {:09}\r\n{header}{{\"a\":1}}\r\n\
         HPUB s.b _INBOX.i.0.0100000001 {:06} {:09}\r\n{second}\r\n",
        header.len(),
        header.len() + 7,
        second.len(),
        second.len()
    );
    assert_eq!(send(&mut lane), expected);
}

#[test]
fn a_shared_stream_is_not_sent_an_expected_sequence() {
    let mut lane = lane_of(Ordering::Shared, 1);
    open(&mut lane, &tail(7, None));
    assert_eq!(sent(&mut lane), [("0100000000".to_owned(), None)]);
}

#[test]
fn a_message_larger_than_the_server_takes_leaves_the_line_as_it_was() {
    let mut lane = lane_of(Ordering::Strict, 1);
    open(&mut lane, &tail(0, None));
    let bytes = lane.bytes();
    let head = Head { subject: b"s.a", id: b"id", message_id: None, op: "insert", epoch: 3 };
    let draft = lane.draft(head, |out| out.extend_from_slice(b"\r\nX: 1"));
    lane.buffer().extend_from_slice(&[b'x'; 1000]);
    let rejected = lane.commit(draft, 2, at(2)).unwrap_err();
    assert_eq!((rejected.number, rejected.subject.as_str(), rejected.payload.len()), (2, "s.a", 1000));
    assert_eq!(rejected.headers, r#"{"Nats-Msg-Id":"id","Walhook-Epoch":"3","Walhook-Op":"insert","X":"1"}"#);
    assert!(rejected.reason.contains("NATS takes 1000"), "{}", rejected.reason);
    assert_eq!((lane.len(), lane.bytes(), lane.oldest()), (1, bytes, Some(1)));
    assert_eq!(tokens(&mut lane).len(), 1);
}

#[test]
fn what_was_in_line_before_the_limit_was_known_is_judged_when_the_lane_opens() {
    let mut lane = lane_of(Ordering::Strict, 1);
    put_as(&mut lane, 2, "s.a", None, &[b'x'; 1000]);
    put_as(&mut lane, 3, "t.a", None, b"");
    put_as(&mut lane, 4, "s.a", None, b"");
    open(&mut lane, &tail(5, None));
    assert_eq!(lane.unsent(), b"", "not before the dead letters are taken");
    assert_eq!(lane.oldest(), Some(1));
    let rejected = lane.take_rejected();
    assert_eq!(rejected.iter().map(|rejected| rejected.number).collect::<Vec<_>>(), [2, 3]);
    assert_eq!(rejected[0].payload, [b'x'; 1000]);
    assert!(rejected[1].reason.contains("takes s.>"), "{}", rejected[1].reason);
    assert_eq!(sent(&mut lane).iter().map(|(_, expected)| expected.unwrap()).collect::<Vec<_>>(), [5, 6]);
}

#[test]
fn a_condemned_event_counts_as_not_settled_until_it_is_taken() {
    let mut lane = lane_of(Ordering::Strict, 1);
    open(&mut lane, &tail(0, None));
    let token = tokens(&mut lane).remove(0);
    assert!(lane.refused(token.as_bytes(), &Refusal::Never("too large".to_owned())));
    assert_eq!((lane.len(), lane.oldest(), lane.is_empty()), (0, Some(1), false));
    assert_eq!(lane.take_rejected().len(), 1);
    assert_eq!((lane.oldest(), lane.is_empty()), (None, true));
}

/// A strict lane of four events opens behind a tail; what is left to send, and the sequence before it.
fn check_open(tail: &Tail, expected: &[u64]) {
    let mut lane = lane_of(Ordering::Strict, 4);
    open(&mut lane, tail);
    let left = sent(&mut lane).into_iter().map(|(_, expected)| expected.unwrap()).collect::<Vec<_>>();
    assert_eq!(left, expected, "{tail:?}");
}

#[test]
fn a_lane_goes_on_behind_the_tail() {
    check_open(&tail(0, None), &[0, 1, 2, 3]);
    check_open(&tail(70, None), &[70, 71, 72, 73]);
    check_open(&tail(70, Some((1, 70))), &[70, 71, 72]);
    check_open(&tail(75, Some((3, 72))), &[75]);
    check_open(&tail(80, Some((4, 80))), &[]);
    check_open(&tail(80, Some((9, 80))), &[]);
}

#[test]
fn a_tail_of_another_history_is_not_believed() {
    let mut lane = lane_of(Ordering::Strict, 3);
    let mut other = tail(5, Some((2, 5)));
    other.ours.as_mut().unwrap().0.commit_time = 10;
    assert!(lane.open(&other).unwrap_err().to_string().contains("another one there"));
    let mut lane = lane_of(Ordering::Strict, 0);
    open(&mut lane, &other);
    assert!(lane.has(&at(1)).unwrap());
    assert!(lane.has(&at(2)).is_err());
}

#[test]
fn a_stream_that_has_become_shorter_is_not_believed() {
    let mut lane = lane_of(Ordering::Strict, 2);
    open(&mut lane, &tail(5, None));
    let token = tokens(&mut lane).remove(0);
    lane.acked(token.as_bytes(), 6, false).unwrap();
    lane.close();
    let error = lane.open(&tail(5, None)).unwrap_err();
    assert_eq!(error.kind(), crate::error::Kind::Untrusted, "{error}");
    open(&mut lane, &tail(6, Some((1, 6))));
}

#[test]
fn an_older_copy_that_came_in_late_is_distinguished_from_another_writers_message() {
    for (listed, dead) in [(vec![at(1), at(2)], vec![]), (vec![at(2)], vec![1])] {
        let mut lane = lane_of(Ordering::Strict, 3);
        open(&mut lane, &tail(10, None));
        let first = tokens(&mut lane).remove(0);
        assert_eq!(lane.listing(), None);
        assert!(lane.refused(first.as_bytes(), &Refusal::WrongSequence));
        lane.close();
        assert_eq!(lane.listing(), Some(Listing::Behind(10)));
        open(&mut lane, &Tail { listed, ..tail(12, Some((2, 12))) });
        let rejected = lane.take_rejected();
        assert_eq!(rejected.iter().map(|rejected| rejected.number).collect::<Vec<_>>(), dead);
        assert_eq!(sent(&mut lane).into_iter().map(|(_, expected)| expected).collect::<Vec<_>>(), [Some(12)]);
    }
}

#[test]
fn a_hole_in_a_shared_stream_is_filled_and_nothing_else_sent_again() {
    let mut lane = lane_of(Ordering::Shared, 4);
    open(&mut lane, &tail(0, None));
    let sent = tokens(&mut lane);
    assert!(lane.refused(sent[0].as_bytes(), &Refusal::NotNow("429".to_owned())));
    lane.acked(sent[1].as_bytes(), 1, false).unwrap();
    lane.close();
    assert_eq!(lane.listing(), Some(Listing::Behind(0)));
    // The ack of the third was lost.
    open(&mut lane, &Tail { listed: vec![at(3), at(2)], ..tail(2, Some((3, 2))) });
    assert!(send(&mut lane).split("HPUB").skip(1).map(|message| message.contains("0000001-9")).eq([true, false]));
    assert_eq!((lane.len(), lane.oldest()), (2, Some(1)));
}

/// Rules that an operator changed after the commit lead an event into a stream that has later ones: the last event of ours there says
/// nothing of it.
#[test]
fn an_event_in_doubt_is_stored_only_if_the_stream_lists_it() {
    let doubts = [Doubt { from: (Lsn(1), 0), upto: Lsn(3) }];
    let mut lane = lane_of(Ordering::Strict, 4);
    lane.set_doubts(&doubts, Lsn(1));
    assert_eq!(lane.listing(), Some(Listing::Since(Lsn(1))));
    open(&mut lane, &Tail { listed: vec![at(5), at(2)], ..tail(9, Some((5, 9))) });
    let rejected = lane.take_rejected();
    assert_eq!(rejected.iter().map(|rejected| rejected.position).collect::<Vec<_>>(), [at(1), at(3)]);
    assert!(rejected.iter().all(|rejected| !rejected.halts && rejected.reason.contains("rule_cdc_rules_amend")));
    assert_eq!(lane.len(), 0, "the second is listed, and the fourth is in no doubt");

    let mut lane = lane_of(Ordering::Strict, 0);
    lane.set_doubts(&doubts, Lsn(1));
    open(&mut lane, &Tail { listed: vec![at(5), at(2)], ..tail(9, Some((5, 9))) });
    let displaced = (1..=6).filter(|&commit| lane.displaces(&at(commit)).is_some()).collect::<Vec<_>>();
    assert_eq!(displaced, [1, 3]);
    lane.set_doubts(&[], Lsn(4));
    assert_eq!((lane.listing(), lane.displaces(&at(1))), (None, None));
}

/// An earlier session has counted what it published.
#[test]
fn only_events_that_this_session_sent_count_as_stored() {
    let mut lane = lane_of(Ordering::Strict, 3);
    open(&mut lane, &tail(1, Some((1, 1))));
    assert_eq!((lane.len(), lane.counts()), (2, (0, 0)), "the first was stored before");
    lane.set_time(Timestamps { wall: 0, steady: 5 });
    tokens(&mut lane);
    lane.close();
    open(&mut lane, &tail(3, Some((3, 3))));
    assert_eq!((lane.len(), lane.counts()), (0, (2, 0)), "the others were sent, and their answers lost");
}

/// A tail that was read for another mode lists other events, or none.
#[test]
fn an_event_in_doubt_waits_for_a_tail_that_lists_it() {
    let doubts = [Doubt { from: (Lsn(1), 0), upto: Lsn(3) }];
    let strict = Mode { ordering: Ordering::Strict, batches: Batches::None };
    let mut lane = lane_of(Ordering::Shared, 0);
    lane.set_doubts(&doubts, Lsn(1));
    open(&mut lane, &Tail { listed: vec![at(2)], ..tail(9, Some((2, 9))) });
    put_as(&mut lane, 1, "s.a", None, b"{}");
    lane.set_mode(strict, 100_000);
    // Neither stored nor missing, for nothing was listed in this mode.
    assert_eq!((lane.displaces(&at(2)), lane.has(&at(2)).unwrap()), (None, false));
    put_as(&mut lane, 2, "s.a", None, b"{}");
    tokens(&mut lane);
    lane.close();
    let read_before = Tail { listing: lane.listing(), ..tail(10, Some((2, 9))) };
    assert_eq!(read_before.listing, Some(Listing::Behind(9)));
    open(&mut lane, &Tail { listed: vec![at(1)], ..tail(10, Some((2, 9))) });
    assert!(!lane.is_open(), "the front is in another mode now");
    lane.open(&read_before).unwrap();
    assert!(!lane.is_open(), "the tail was read for another mode");
    assert_eq!(lane.listing(), Some(Listing::Since(Lsn(1))));
    open(&mut lane, &Tail { listed: vec![at(1), at(2)], ..tail(10, Some((2, 9))) });
    assert!(lane.is_open() && lane.is_empty(), "the second is listed");
}

#[test]
fn a_shared_stream_has_what_is_listed_and_not_what_comes_before_it() {
    let mut lane = lane_of(Ordering::Shared, 0);
    open(&mut lane, &Tail { listed: vec![at(5), at(2)], ..tail(2, Some((5, 2))) });
    let has = (1..=6).filter(|&commit| lane.has(&at(commit)).unwrap()).collect::<Vec<_>>();
    assert_eq!(has, [2, 5]);
    let mut strict = lane_of(Ordering::Strict, 0);
    open(&mut strict, &tail(2, Some((5, 2))));
    assert_eq!((1..=6).filter(|&commit| strict.has(&at(commit)).unwrap()).count(), 5);
}

#[test]
fn answers_to_earlier_attempts_and_to_what_is_settled_mean_nothing() {
    let mut lane = lane_of(Ordering::Strict, 2);
    open(&mut lane, &tail(0, None));
    let first = tokens(&mut lane);
    lane.close();
    open(&mut lane, &tail(0, None));
    let second = tokens(&mut lane);
    for old in &first {
        lane.acked(old.as_bytes(), 1, false).unwrap();
        assert!(!lane.refused(old.as_bytes(), &Refusal::WrongSequence));
    }
    assert_eq!(lane.len(), 2);
    for token in [second[0].as_str(), second[0].as_str(), "", "zz", "0200000009", "02ffffffff", "02+0000000"] {
        lane.acked(token.as_bytes(), 1, false).unwrap();
    }
    assert_eq!((lane.len(), lane.counts()), (1, (1, 0)));
}

#[test]
fn attempts_may_be_counted_round() {
    let mut lane = lane_of(Ordering::Strict, 1);
    for attempt in 1..600u64 {
        open(&mut lane, &tail(0, None));
        let token = tokens(&mut lane).remove(0);
        assert_eq!(token, format!("{:02x}00000000", attempt % 256));
        assert!(lane.refused(token.as_bytes(), &Refusal::NotNow(String::new())));
        lane.close();
    }
}

#[test]
fn acks_out_of_their_order_settle_from_the_front() {
    let mut lane = lane_of(Ordering::Shared, 3);
    open(&mut lane, &tail(0, None));
    let tokens = tokens(&mut lane);
    assert!(lane.awaits_answers());
    lane.acked(tokens[2].as_bytes(), 3, false).unwrap();
    lane.acked(tokens[1].as_bytes(), 2, true).unwrap();
    assert_eq!((lane.oldest(), lane.last_stored()), (Some(1), None));
    lane.acked(tokens[0].as_bytes(), 1, false).unwrap();
    assert_eq!((lane.oldest(), lane.last_stored(), lane.counts()), (None, Some((at(3), 3)), (2, 1)));
    assert!(!lane.awaits_answers());
}

#[test]
fn a_message_stored_out_of_its_place_has_the_lane_opened_anew() {
    let mut lane = lane_of(Ordering::Strict, 1);
    open(&mut lane, &tail(4, None));
    let token = tokens(&mut lane).remove(0);
    assert_eq!(lane.acked(token.as_bytes(), 9, false), Err(Refusal::WrongSequence));
}

#[test]
fn a_duplicate_of_a_callers_own_id_takes_no_sequence_and_holds_nothing_up() {
    let mut lane = Lane::new("S", Ordering::Strict, "_INBOX.i.0");
    put_as(&mut lane, 1, "s.a", Some(b"own"), b"");
    put_as(&mut lane, 2, "s.a", None, b"");
    open(&mut lane, &tail(8, None));
    let first = tokens(&mut lane);
    lane.acked(first[0].as_bytes(), 3, true).unwrap();
    assert!(lane.refused(first[1].as_bytes(), &Refusal::WrongSequence));
    lane.close();
    open(&mut lane, &tail(8, None));
    let second = sent(&mut lane);
    assert_eq!(second.iter().map(|(_, expected)| expected.unwrap()).collect::<Vec<_>>(), [8]);
    lane.acked(second[0].0.as_bytes(), 9, false).unwrap();
    assert!(lane.is_empty());
}

#[test]
fn what_comes_after_a_limit_is_held_back_and_a_begun_message_stays_begun() {
    let mut lane = lane_of(Ordering::Strict, 3);
    open(&mut lane, &tail(0, None));
    lane.hold_from(Some(2));
    assert_eq!(tokens(&mut lane), ["0100000000"]);
    assert!(lane.is_between_messages());
    lane.hold_from(None);
    let whole = lane.unsent().len() / 2;
    lane.mark_sent(5);
    assert!(!lane.is_between_messages());
    lane.hold_from(Some(1));
    assert_eq!(lane.unsent(), b"");
    lane.hold_from(Some(3));
    assert_eq!(lane.unsent().len(), whole - 5);
    lane.mark_sent(whole - 5);
    assert!(lane.is_between_messages());
    assert_eq!(lane.unsent(), b"");
}

#[test]
fn between_messages_is_known_over_segments_and_partial_writes() {
    let mut lane = Lane::new("S", Ordering::Strict, "_INBOX.i.0");
    let lengths: Vec<usize> = (1..=6)
        .map(|commit| {
            let before = lane.bytes();
            put_as(&mut lane, commit, "s.a", None, &[b'x'; 70_000]);
            lane.bytes() - before
        })
        .collect();
    open(&mut lane, &Tail { max_payload: 1 << 20, ..tail(0, None) });
    for length in lengths {
        assert!(lane.is_between_messages());
        lane.unsent();
        lane.mark_sent(1);
        assert!(!lane.is_between_messages());
        lane.mark_sent(length - 2);
        assert!(!lane.is_between_messages());
        lane.mark_sent(1);
    }
    assert!(lane.is_between_messages());
    assert_eq!(lane.unsent(), b"");
}

#[test]
fn an_event_taken_out_of_the_middle_leaves_the_others_as_they_were() {
    let mut lane = lane_of(Ordering::Strict, 3);
    open(&mut lane, &tail(0, None));
    let first = tokens(&mut lane);
    assert!(lane.refused(first[1].as_bytes(), &Refusal::Never("no".to_owned())));
    assert!(!lane.is_open() && !lane.awaits_answers());
    // Answers under way name places in a line that is no more.
    lane.acked(first[2].as_bytes(), 3, false).unwrap();
    assert_eq!(lane.take_rejected()[0].position, at(2));
    put_as(&mut lane, 4, "s.a", None, b"");
    open(&mut lane, &tail(1, Some((1, 1))));
    let text = send(&mut lane);
    let ids = text.split("Nats-Msg-Id: ").skip(1).map(|rest| rest.split("\r\n").next().unwrap());
    assert_eq!(ids.collect::<Vec<_>>(), [at(3).id("src"), at(4).id("src")]);
}

/// A lane to core NATS, open, with the events at commits 1, 2, ….
fn core_lane_of(count: u64) -> Lane {
    let mut lane = lane_of(Ordering::Core, count);
    open(&mut lane, &Tail { subjects: vec![">".to_owned()], ..tail(0, None) });
    lane
}

#[test]
fn a_message_of_core_nats_asks_for_no_answer_and_names_no_stream() {
    let mut lane = core_lane_of(1);
    let header =
        "NATS/1.0\r\nNats-Msg-Id: src-0000000000000001-9-0-1\r\nWalhook-Op: insert\r\nWalhook-Epoch: 3\r\n\r\n";
    let expected = format!("HPUB s.a {:06} {:09}\r\n{header}{{}}\r\n", header.len(), header.len() + 2);
    assert_eq!(send(&mut lane), expected);
}

#[test]
fn a_pong_settles_what_was_sent_before_its_ping_and_nothing_else() {
    let mut lane = core_lane_of(2);
    assert!(!lane.wants_ping(), "nothing is sent");
    // One message, and the beginning of the next.
    let first = lane.slots[0].length;
    lane.mark_sent(first + 5);
    assert!(lane.wants_ping());
    lane.pinged();
    assert!(!lane.wants_ping(), "one is under way");
    send(&mut lane);
    assert!(lane.ponged());
    assert_eq!((lane.len(), lane.oldest(), lane.counts().0, lane.awaits_answers()), (1, Some(2), 1, true));
    assert!(lane.wants_ping());
    lane.pinged();
    assert!(lane.ponged());
    assert!(lane.is_empty() && lane.bytes() == 0 && !lane.wants_ping());
    assert!(!lane.ponged(), "nobody asked");
}

#[test]
fn after_a_lost_connection_core_nats_gets_again_what_no_pong_stood_for() {
    let mut lane = core_lane_of(3);
    let first = lane.slots[0].length;
    lane.mark_sent(first);
    lane.pinged();
    lane.ponged();
    send(&mut lane);
    lane.pinged();
    lane.close();
    open(&mut lane, &Tail { subjects: vec![">".to_owned()], ..tail(0, None) });
    assert!(!lane.ponged(), "that PING went with its connection");
    assert_eq!(send(&mut lane).matches("HPUB").count(), 2);
    assert!(lane.wants_ping());
}

#[test]
fn a_lane_that_is_closed_within_a_message_still_ends_it_and_nothing_more() {
    for rejects in [false, true] {
        let mut lane = lane_of(Ordering::Strict, 3);
        open(&mut lane, &tail(0, None));
        let whole = String::from_utf8(lane.unsent().to_vec()).unwrap();
        let first = lane.slots[0].length;
        lane.mark_sent(first + 7);
        assert!(!lane.is_between_messages());
        if rejects {
            assert!(lane.refused(b"0100000000", &Refusal::Never("too large".to_owned())));
        } else {
            lane.close();
        }
        lane.close();
        assert!(!lane.is_between_messages());
        assert_eq!(send(&mut lane), whole[first + 7..first + lane_message_length(&whole, 1)]);
        assert!(lane.is_between_messages() && lane.unsent().is_empty());
        // Or the connection is lost in the midst of it: the next one begins with a whole message.
        lane.take_rejected();
        open(&mut lane, &tail(0, None));
        assert!(send(&mut lane).starts_with("HPUB "));
    }
}

fn lane_message_length(sent: &str, index: usize) -> usize {
    5 + sent.split("HPUB ").nth(index + 1).unwrap().len()
}

#[test]
fn a_strict_lane_that_was_just_opened_sends_one_message_and_more_when_that_is_in_its_place() {
    let mut lane = lane_of(Ordering::Strict, 4);
    lane.open(&tail(10, None)).unwrap();
    let alone = tokens(&mut lane);
    assert_eq!(alone.len(), 1);
    // Two messages of others came in between: nothing behind it has been sent that could pass for the third.
    assert!(lane.refused(alone[0].as_bytes(), &Refusal::WrongSequence));
    lane.close();
    lane.open(&Tail { listing: lane.listing(), ..tail(12, None) }).unwrap();
    let again = sent(&mut lane);
    assert_eq!(again.iter().map(|(_, expected)| *expected).collect::<Vec<_>>(), [Some(12)]);
    lane.acked(again[0].0.as_bytes(), 13, false).unwrap();
    assert_eq!(sent(&mut lane).len(), 3);
}

#[test]
fn what_comes_behind_a_repeated_id_waits_for_its_answer_and_then_expects_one_sequence_less() {
    let mut lane = Lane::new("S", Ordering::Strict, "_INBOX.i.0");
    open(&mut lane, &tail(7, None));
    for (commit, id) in [(1, Some(&b"own"[..])), (2, None), (3, Some(b"own")), (4, None), (5, None)] {
        put_as(&mut lane, commit, "s.a", id, b"{}");
    }
    assert_eq!(sent(&mut lane).iter().map(|(_, expected)| expected.unwrap()).collect::<Vec<_>>(), [7, 8, 9]);
    lane.acked(b"0100000000", 8, false).unwrap();
    lane.acked(b"0100000001", 9, false).unwrap();
    assert!(lane.unsent().is_empty(), "until it is answered");
    lane.acked(b"0100000002", 8, true).unwrap();
    put_as(&mut lane, 6, "s.a", None, b"{}");
    assert_eq!(
        sent(&mut lane),
        [("0100000003", 9), ("0100000004", 10), ("0100000005", 11)].map(|(token, last)| (token.to_owned(), Some(last)))
    );
    for (token, sequence) in [(b"0100000003", 10), (b"0100000004", 11), (b"0100000005", 12)] {
        lane.acked(token, sequence, false).unwrap();
    }
    assert_eq!((lane.is_empty(), lane.counts()), (true, (5, 1)));
}

#[test]
fn after_a_duplicate_that_nobody_foresaw_ids_are_waited_for_one_by_one_until_many_were_new() {
    let mut lane = Lane::new("S", Ordering::Strict, "_INBOX.i.0");
    open(&mut lane, &tail(7, None));
    let put = |lane: &mut Lane, commit: u64| put_as(lane, commit, "s.a", Some(commit.to_string().as_bytes()), b"{}");
    (1..=3).for_each(|commit| put(&mut lane, commit));
    assert_eq!(sent(&mut lane).len(), 3);
    lane.acked(b"0100000000", 2, true).unwrap();
    assert!(lane.refused(b"0100000001", &Refusal::WrongSequence), "it expected more");
    lane.close();
    open(&mut lane, &tail(7, None));
    assert_eq!(sent(&mut lane).len(), 1);
    lane.acked(b"0200000001", 3, true).unwrap();
    assert_eq!(sent(&mut lane), [("0200000002".to_owned(), Some(7))]);
    lane.acked(b"0200000002", 8, false).unwrap();
    (4..200).for_each(|commit| put(&mut lane, commit));
    let mut at_once = Vec::new();
    let (mut index, mut sequence) = (3, 9);
    while !lane.is_empty() {
        let count = sent(&mut lane).len();
        at_once.push(count);
        for _ in 0..count {
            lane.acked(format!("02{index:08x}").as_bytes(), sequence, false).unwrap();
            (index, sequence) = (index + 1, sequence + 1);
        }
    }
    assert_eq!(at_once.iter().filter(|count| **count == 1).count(), 63);
    assert_eq!(at_once.last(), Some(&133));
}

#[test]
fn an_event_that_an_earlier_connection_brought_is_no_repeated_id() {
    let mut lane = Lane::new("S", Ordering::Strict, "_INBOX.i.0");
    open(&mut lane, &tail(7, None));
    put_as(&mut lane, 1, "s.a", Some(b"own"), b"{}");
    assert_eq!(sent(&mut lane).len(), 1);
    put_as(&mut lane, 2, "s.a", None, b"{}");
    lane.acked(b"0100000000", 8, true).unwrap();
    assert_eq!(sent(&mut lane), [("0100000001".to_owned(), Some(8))]);
}

/// A caller gave event 2 the id of event 1, so that the checkpoint has event 2 at the sequence of event 1.
#[test]
fn what_a_stream_has_to_keep_is_in_it_and_no_event_that_it_took_for_a_repeat() {
    let mut lane = lane_of(Ordering::Shared, 0);
    open(&mut lane, &Tail { ours: Some((at(2), 1)), ..tail(1, Some((1, 1))) });
    assert_eq!(lane.last_stored(), Some((at(2), 1)));
    assert_eq!(lane.last_settled(), Some((at(1), 1)));
}
