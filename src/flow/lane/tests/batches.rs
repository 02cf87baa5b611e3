//! Atomic batches: what goes together, what waits, and what one answer for all means.

use super::*;

/// What a message says of its place, apart from its answer's.
#[derive(Debug, PartialEq, Eq)]
struct Sent {
    commit: u64,
    /// Its number in its batch; 0: alone.
    nth: u16,
    commits: bool,
    expected: Option<u64>,
    /// Where its answer comes.
    token: Option<String>,
    mark: &'static str,
    id: String,
}

fn batched(ordering: Ordering, batches: Batches) -> Lane {
    let mut lane = Lane::new("S", ordering, "_INBOX.walhook.a1.0");
    lane.set_mode(Mode { ordering: lane.ordering(), batches }, 100_000);
    lane
}

/// Opens a lane that need not probe, on a stream that takes batches of so many.
fn open_for(lane: &mut Lane, batch_max: usize, tail: &Tail) {
    open(lane, &Tail { batch_max, ..tail.clone() });
}

fn event(lane: &mut Lane, commit: u64, ordinal: u64) {
    event_of(lane, commit, ordinal, b"{}");
}

fn event_of(lane: &mut Lane, commit: u64, ordinal: u64, body: &[u8]) {
    let position = EventPosition { ordinal, ..at(commit) };
    let id = position.id("src");
    let head = Head { subject: b"s.a", id: id.as_bytes(), message_id: None, op: "insert", epoch: 3 };
    let draft = lane.draft(head, |_| ());
    lane.buffer().extend_from_slice(body);
    lane.commit(draft, commit * 10_000 + ordinal, position).unwrap();
}

/// A whole transaction.
fn transaction(lane: &mut Lane, commit: u64, count: u64) {
    (0..count).for_each(|ordinal| event(lane, commit, ordinal));
    lane.end_transaction();
}

/// What is sent, as a server reads it.
fn read(lane: &mut Lane) -> Vec<Sent> {
    let text = send(lane);
    let mut rest = text.as_str();
    let mut all = Vec::new();
    while !rest.is_empty() {
        let (line, after) = rest.split_once("\r\n").unwrap();
        let words: Vec<_> = line.split(' ').filter(|word| !word.is_empty()).collect();
        let (token, lengths) = match words[..] {
            ["HPUB", "s.a", reply, headers, total] => (Some(reply), [headers, total]),
            ["HPUB", "s.a", headers, total] => (None, [headers, total]),
            _ => panic!("{line:?}"),
        };
        let [headers, total] = lengths.map(|length| length.parse::<usize>().unwrap());
        let block = after[..headers].strip_prefix("NATS/1.0\r\n").unwrap().strip_suffix("\r\n\r\n").unwrap();
        assert_eq!(&after[total..total + 2], "\r\n");
        rest = &after[total + 2..];
        let header = |name: &str| block.split("\r\n").find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        assert_eq!(header("Nats-Expected-Stream"), Some("S"));
        let position = EventPosition::parse(header("Nats-Msg-Id").unwrap(), "src").unwrap();
        all.push(Sent {
            commit: position.commit_lsn.0,
            nth: header("Nats-Batch-Sequence").map_or(0, |nth| nth.parse().unwrap()),
            commits: header("Nats-Batch-Commit") == Some("1"),
            expected: header("Nats-Expected-Last-Sequence").map(|expected| expected.parse().unwrap()),
            token: token.map(|reply| reply.rsplit('.').next().unwrap().to_owned()),
            mark: match header("Walhook-Transaction") {
                None => "",
                Some("begin") => "begin",
                Some("end") => "end",
                Some(other) => panic!("{other}"),
            },
            id: header("Nats-Batch-Id").unwrap_or_default().to_owned(),
        });
    }
    all
}

/// Shortly: `commit` with `+` for each that follows in its batch, a `/` where it commits, and marks.
fn shape(sent: &[Sent]) -> String {
    let mut text = String::new();
    for Sent { commit, nth, commits, mark, .. } in sent {
        let begin = if *mark == "begin" { "<" } else { "" };
        let end = if *mark == "end" { ">" } else { "" };
        let joint = if *nth > 1 { "+" } else { " " };
        let commits = if *commits { "/" } else { "" };
        text.push_str(&format!("{joint}{begin}{commit}{end}{commits}"));
    }
    text.trim().to_owned()
}

#[test]
fn a_transaction_is_one_batch_and_one_event_needs_none() {
    let mut lane = batched(Ordering::Strict, Batches::Transactions);
    open_for(&mut lane, BATCH_MAX, &tail(40, None));
    transaction(&mut lane, 1, 1);
    transaction(&mut lane, 2, 3);
    transaction(&mut lane, 3, 2);
    let sent = read(&mut lane);
    assert_eq!(shape(&sent), "1 2+2+2/ 3+3/");
    assert_eq!(
        sent.iter().map(|sent| sent.expected).collect::<Vec<_>>(),
        [Some(40), Some(41), None, None, Some(44), None]
    );
    // Only what ends a batch is answered.
    let tokens: Vec<_> = sent.iter().map(|sent| sent.token.as_deref()).collect();
    assert_eq!(tokens, [Some("0100000000"), None, None, Some("0100000003"), None, Some("0100000005")]);
    assert_eq!((sent[1].id.as_str(), sent[4].id.as_str()), ("a1.0.0100000001", "a1.0.0100000004"));
    assert!(sent[1].id == sent[3].id && sent[0].id.is_empty());
}

#[test]
fn a_transaction_waits_for_its_end_and_is_not_counted_as_in_flight() {
    let mut lane = batched(Ordering::Strict, Batches::Transactions);
    open_for(&mut lane, BATCH_MAX, &tail(0, None));
    event(&mut lane, 1, 0);
    event(&mut lane, 1, 1);
    assert_eq!(shape(&read(&mut lane)), "");
    assert_eq!((lane.front(), lane.in_flight(), lane.oldest()), (Some(10_000), None, Some(10_000)));
    assert!(lane.has_room(1, 1), "no answer will make room");
    lane.end_transaction();
    assert!(!lane.has_room(1, 1));
    assert_eq!((lane.in_flight(), shape(&read(&mut lane)).as_str()), (Some(10_000), "1+1/"));
}

#[test]
fn one_answer_settles_all_of_a_batch_each_at_its_own_sequence() {
    let mut lane = batched(Ordering::Strict, Batches::Transactions);
    open_for(&mut lane, BATCH_MAX, &tail(40, None));
    transaction(&mut lane, 1, 3);
    transaction(&mut lane, 2, 2);
    lane.unsent();
    lane.mark_sent(100);
    assert!(!lane.awaits_answers(), "a batch that is not whole has no answer");
    send(&mut lane);
    assert!(lane.awaits_answers());
    // The later one's answer first.
    lane.acked(b"0100000004", 45, false).unwrap();
    assert_eq!((lane.len(), lane.last_stored()), (5, None));
    lane.acked(b"0100000002", 43, false).unwrap();
    assert_eq!((lane.len(), lane.counts()), (0, (5, 0)));
    assert_eq!(lane.last_stored().map(|(position, sequence)| (position.commit_lsn, sequence)), Some((Lsn(2), 45)));
}

#[test]
fn a_refused_batch_is_sent_again_whole_under_another_id() {
    let mut lane = batched(Ordering::Strict, Batches::Transactions);
    open_for(&mut lane, BATCH_MAX, &tail(0, None));
    transaction(&mut lane, 1, 3);
    transaction(&mut lane, 2, 2);
    let first = read(&mut lane);
    assert!(lane.refused(b"0100000002", &Refusal::WrongSequence));
    assert_eq!(lane.listing(), Some(Listing::Behind(0)));
    lane.close();
    // The first one is there: an older copy of it had come in late.
    let stored = EventPosition { ordinal: 2, ..at(1) };
    let listed = (0..3).map(|ordinal| EventPosition { ordinal, ..at(1) }).collect();
    open_for(&mut lane, BATCH_MAX, &Tail { ours: Some((stored, 3)), listed, ..tail(3, None) });
    let again = read(&mut lane);
    assert_eq!((shape(&again).as_str(), again[0].expected), ("2+2/", Some(3)));
    assert_ne!(again[0].id, first[3].id);
}

#[test]
fn what_is_larger_than_a_batch_goes_in_several_with_marks_at_its_ends() {
    let check = |max: usize, counts: &[u64], expected: &str| {
        let mut lane = batched(Ordering::Strict, Batches::Transactions);
        open_for(&mut lane, max, &tail(0, None));
        let mut sent = Vec::new();
        for (commit, &count) in (1..).zip(counts) {
            for ordinal in 0..count {
                event(&mut lane, commit, ordinal);
                sent.extend(read(&mut lane));
            }
            lane.end_transaction();
            sent.extend(read(&mut lane));
        }
        assert_eq!(shape(&sent), expected, "{max} {counts:?}");
    };
    check(3, &[3, 4], "1+1+1/ <2+2+2/ 2>");
    check(3, &[7], "<1+1+1/ 1+1+1/ 1>");
    check(3, &[6, 1], "<1+1+1/ 1+1+1>/ 2");
    // Where the stream takes none each goes alone, and a transaction of several is marked.
    check(1, &[1, 3, 2], "1 <2 2 2> <3 3>");
}

#[test]
fn bytes_bound_what_is_held_and_at_least_one_message_always_goes() {
    let mut lane = batched(Ordering::Strict, Batches::Transactions);
    lane.set_mode(Mode { ordering: lane.ordering(), batches: Batches::Transactions }, 1500);
    open_for(&mut lane, BATCH_MAX, &Tail { max_payload: 10_000, ..tail(0, None) });
    event_of(&mut lane, 1, 0, &[b'x'; 2000]);
    assert_eq!(shape(&read(&mut lane)), "");
    assert!(lane.has_room(1, 1), "whether it is the last is not known");
    event_of(&mut lane, 1, 1, &[b'x'; 500]);
    event_of(&mut lane, 1, 2, b"");
    assert_eq!(shape(&read(&mut lane)), "<1");
    lane.end_transaction();
    assert_eq!(shape(&read(&mut lane)), "1+1>/");
}

#[test]
fn a_transaction_whose_beginning_is_stored_is_not_begun_again() {
    let mut lane = batched(Ordering::Strict, Batches::Transactions);
    (2..7).for_each(|ordinal| event(&mut lane, 1, ordinal));
    lane.end_transaction();
    open_for(&mut lane, 3, &Tail { ours: Some((EventPosition { ordinal: 3, ..at(1) }, 2)), ..tail(2, None) });
    let sent = read(&mut lane);
    assert_eq!((shape(&sent).as_str(), sent[0].expected), ("1+1+1>/", Some(2)));
}

#[test]
fn a_batch_that_has_a_known_id_in_it_goes_message_by_message() {
    let mut lane = batched(Ordering::Strict, Batches::Transactions);
    open_for(&mut lane, BATCH_MAX, &tail(0, None));
    transaction(&mut lane, 1, 3);
    transaction(&mut lane, 2, 2);
    read(&mut lane);
    assert!(lane.refused(b"0100000002", &Refusal::DuplicateInBatch));
    assert!(lane.refused(b"0100000004", &Refusal::WrongSequence));
    lane.close();
    open_for(&mut lane, BATCH_MAX, &tail(0, None));
    assert_eq!(shape(&read(&mut lane)), "<1 1 1> 2+2/");
}

#[test]
fn a_message_that_can_never_be_stored_is_found_when_the_limits_are_known_anew_and_the_rest_stays_one_batch() {
    let mut lane = batched(Ordering::Strict, Batches::Transactions);
    open_for(&mut lane, BATCH_MAX, &tail(0, None));
    event(&mut lane, 1, 0);
    event_of(&mut lane, 1, 1, &[b'x'; 500]);
    event(&mut lane, 1, 2);
    lane.end_transaction();
    read(&mut lane);
    assert!(lane.refused(b"0100000002", &Refusal::Never("too large".to_owned())));
    assert_eq!(lane.len(), 3, "which one it is is not known");
    lane.close();
    open_for(&mut lane, BATCH_MAX, &Tail { max_payload: 500, ..tail(0, None) });
    let rejected = lane.take_rejected();
    assert_eq!((rejected.len(), rejected[0].position.ordinal), (1, 1));
    assert_eq!(
        rejected[0].headers,
        r#"{"Nats-Msg-Id":"src-0000000000000001-9-1-1","Walhook-Epoch":"3","Walhook-Op":"insert"}"#
    );
    assert_eq!(shape(&read(&mut lane)), "1+1/");
}

#[test]
fn a_transaction_with_a_dead_letter_in_it_waits_for_the_letter_as_a_whole() {
    let mut lane = batched(Ordering::Strict, Batches::Transactions);
    open_for(&mut lane, BATCH_MAX, &tail(0, None));
    event(&mut lane, 1, 0);
    lane.hold_from(Some(10_001));
    event(&mut lane, 1, 2);
    lane.end_transaction();
    assert_eq!(shape(&read(&mut lane)), "");
    lane.hold_from(None);
    assert_eq!(shape(&read(&mut lane)), "1+1/");
}

#[test]
fn headers_longer_than_jetstream_takes_are_found_before_they_spoil_a_batch() {
    let mut lane = batched(Ordering::Strict, Batches::Transactions);
    open_for(&mut lane, BATCH_MAX, &Tail { max_payload: 1 << 20, ..tail(0, None) });
    let head = Head { subject: b"s.a", id: b"id", message_id: None, op: "insert", epoch: 3 };
    let draft = lane.draft(head, |out| out.extend_from_slice(format!("\r\nX: {}", "x".repeat(65_400)).as_bytes()));
    let rejected = lane.commit(draft, 1, at(1)).unwrap_err();
    assert!(rejected.reason.contains("JetStream takes 65535"), "{}", rejected.reason);
}

#[test]
fn a_lane_that_was_just_opened_sends_one_batch_and_more_when_that_is_in_its_place() {
    let mut lane = batched(Ordering::Strict, Batches::Transactions);
    transaction(&mut lane, 1, 2);
    transaction(&mut lane, 2, 2);
    lane.open(&Tail { batch_max: BATCH_MAX, ..tail(5, None) }).unwrap();
    assert_eq!(shape(&read(&mut lane)), "1+1/");
    lane.acked(b"0100000001", 7, false).unwrap();
    assert_eq!(shape(&read(&mut lane)), "2+2/");
}

#[test]
fn a_lane_closed_within_a_batch_ends_the_message_and_never_commits() {
    let mut lane = batched(Ordering::Strict, Batches::Transactions);
    open_for(&mut lane, BATCH_MAX, &tail(0, None));
    transaction(&mut lane, 1, 3);
    let first = lane.slots[0].length;
    lane.unsent();
    lane.mark_sent(first + 9);
    lane.close();
    let rest = send(&mut lane);
    assert!(!rest.contains("HPUB") && !rest.contains("Nats-Batch-Commit"), "{rest}");
    assert!(lane.is_between_messages() && !lane.awaits_answers());
}

#[test]
fn groups_gather_whole_transactions_while_others_are_under_way() {
    let mut lane = batched(Ordering::Strict, Batches::Groups);
    open_for(&mut lane, 5, &tail(0, None));
    transaction(&mut lane, 1, 1);
    assert_eq!(shape(&read(&mut lane)), "1", "nothing is waited for when all is quiet");
    transaction(&mut lane, 2, 1);
    transaction(&mut lane, 3, 2);
    assert_eq!(shape(&read(&mut lane)), "");
    // As much as a batch takes does not wait; nor is a transaction cut that fits into the next one.
    transaction(&mut lane, 4, 3);
    assert_eq!(shape(&read(&mut lane)), "2+3+3/");
    lane.acked(b"0100000000", 1, false).unwrap();
    assert_eq!(shape(&read(&mut lane)), "");
    lane.acked(b"0100000003", 4, false).unwrap();
    event(&mut lane, 5, 0);
    let sent = read(&mut lane);
    assert_eq!((shape(&sent).as_str(), sent[0].expected), ("4+4+4/", Some(4)));
    lane.acked(b"0100000006", 7, false).unwrap();
    assert_eq!(shape(&read(&mut lane)), "", "the last one's end has not come");
    lane.end_transaction();
    assert_eq!(shape(&read(&mut lane)), "5");
}

#[test]
fn a_group_has_nothing_to_do_with_a_transaction_that_needs_several() {
    let mut lane = batched(Ordering::Shared, Batches::Groups);
    transaction(&mut lane, 1, 2);
    transaction(&mut lane, 2, 7);
    transaction(&mut lane, 3, 1);
    open_for(&mut lane, 3, &tail(0, None));
    let sent = read(&mut lane);
    assert_eq!(shape(&sent), "1+1/ <2+2+2/ 2+2+2/");
    assert!(sent.iter().all(|sent| sent.expected.is_none()));
    for (sequence, token) in [(2, b"0100000001"), (5, b"0100000004"), (8, b"0100000007")] {
        lane.acked(token, sequence, false).unwrap();
    }
    assert_eq!(shape(&read(&mut lane)), "2>");
}

#[test]
fn what_is_left_out_within_a_transaction_leaves_what_has_come_of_it_waiting() {
    let mut lane = batched(Ordering::Strict, Batches::Transactions);
    open_for(&mut lane, BATCH_MAX, &tail(0, None));
    event(&mut lane, 1, 0);
    lane.leave_out(10_001);
    lane.end_transaction();
    assert_eq!((shape(&read(&mut lane)).as_str(), lane.in_flight(), lane.oldest()), ("", None, Some(10_000)));
}

#[test]
fn messages_from_before_a_change_of_batches_go_as_they_were_and_only_then_those_behind() {
    let mut lane = batched(Ordering::Strict, Batches::None);
    transaction(&mut lane, 1, 2);
    lane.set_mode(Mode { ordering: Ordering::Strict, batches: Batches::Transactions }, 100_000);
    transaction(&mut lane, 2, 2);
    lane.set_mode(Mode { ordering: Ordering::Strict, batches: Batches::None }, 100_000);
    transaction(&mut lane, 3, 1);
    open_for(&mut lane, BATCH_MAX, &tail(0, None));
    assert_eq!(shape(&read(&mut lane)), "1 1");
    lane.acked(b"0100000000", 1, false).unwrap();
    assert!(lane.is_open());
    lane.acked(b"0100000001", 2, false).unwrap();
    assert!(!lane.is_open(), "the tail has to be read for what comes next");
    open_for(&mut lane, BATCH_MAX, &tail(2, None));
    assert_eq!(shape(&read(&mut lane)), "2+2/");
    lane.acked(b"0200000003", 4, false).unwrap();
    assert!(!lane.is_open());
    open_for(&mut lane, BATCH_MAX, &tail(4, None));
    assert_eq!(shape(&read(&mut lane)), "3");
}

#[test]
fn an_event_that_is_stored_is_found_whatever_the_order_it_was_published_in() {
    let mut lane = batched(Ordering::Strict, Batches::None);
    let shared = Mode { ordering: Ordering::Shared, batches: Batches::None };
    transaction(&mut lane, 1, 1);
    lane.set_mode(shared, 100_000);
    // Of these the stream has the second, not the first.
    transaction(&mut lane, 2, 2);
    let stored = |commit, ordinal| EventPosition { commit_lsn: Lsn(commit), commit_time: 9, ordinal, webhook_id: 1 };
    let end = Tail { ours: Some((stored(2, 1), 2)), ..tail(2, None) };
    assert_eq!(lane.listing(), None);
    open_for(&mut lane, 1, &end);
    assert!(!lane.is_open(), "what the tail of a strict stream tells is not enough for what is left");
    assert_eq!((lane.len(), lane.listing()), (2, Some(Listing::Behind(0))));
    open_for(&mut lane, 1, &Tail { listed: vec![stored(2, 1)], ..end });
    assert_eq!((shape(&read(&mut lane)).as_str(), lane.len()), ("2", 1));
}
