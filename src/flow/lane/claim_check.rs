//! Claim checks: events too large for a message, of webhooks that want them in the object store.
//!
//! Comes in: a message that turned out too large. Goes out: its payload, to be stored elsewhere, one at a time and in order; once
//! that is durable the message goes into the line in its place, with a claim check for its payload. Always holds: nothing behind
//! a claim check is sent before it, and no claim check before what it is for is durable. What can never be stored is given up
//! as any other event.

use bytes::Bytes;

use super::{
    Draft, Keep, KeepPayload, Lane, Layout, Mode, Noted, Ordering, Rejected, Slot, SlotOutcome, State, message, text,
};
use crate::{
    flow::{event_id::EventPosition, send_buffer::Place},
    route::headers,
};

/// What a claim check may add to the headers and the body of a message, in bytes.
const CLAIM_MAX: usize = 2048;

/// How long what a stream takes counts as known, in µs.
const LIMIT_HOLDS: u64 = 1_000_000;

/// An event that waits for its payload to be stored.
#[derive(Debug)]
pub struct ClaimCheck {
    /// Its number in the window.
    pub number: u64,
    /// Its position.
    pub position: EventPosition,
    /// What is to be stored.
    pub payload: Bytes,
    /// Why it is too large.
    pub reason: String,
    /// All of its message before the payload.
    pub(super) head: Vec<u8>,
    pub(super) layout: Layout,
    pub(super) note: Vec<u8>,
    pub(super) keep: Keep,
    pub(super) mode: Mode,
}

/// Where a claim check's payload is, durably.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The object store.
    pub bucket: String,
    /// The object in it.
    pub name: String,
    /// The payload's SHA-256, in hexadecimal digits.
    pub sha256: String,
}

/// The most that JetStream takes of headers, in bytes.
const HEADER_MAX: usize = 65_535;

/// The most that a server can be told to take; what this one takes is known when the lane opens.
const MAX_PAYLOAD_MAX: usize = 64 * 1024 * 1024;

/// How large a message may be.
#[derive(Debug)]
pub(super) struct PayloadLimit {
    pub(super) bytes: usize,
    /// When the lane was last opened, and that limit read: µs of the steady clock.
    pub(super) read_at: u64,
    /// The server's own limit, in bytes; 0 where it is not known.
    of_server: usize,
}

impl Default for PayloadLimit {
    fn default() -> PayloadLimit {
        PayloadLimit { bytes: MAX_PAYLOAD_MAX, read_at: 0, of_server: 0 }
    }
}

impl Lane {
    /// The claim check whose turn it is to be stored.
    pub fn claim_check(&self) -> Option<&ClaimCheck> {
        self.claim_checks.front()
    }

    /// Why a message that has `length` bytes up to the end of its body can never be published, whatever becomes of it.
    pub(super) fn too_large(&self, layout: &Layout, length: usize) -> Option<String> {
        let (total, header) = (layout.total_max(length), layout.header_max());
        if total > self.payload_limit.bytes {
            return Some(too_large(total, self.payload_limit.bytes));
        }
        (self.modes.now.ordering != Ordering::Core && header > HEADER_MAX)
            .then(|| format!("the message's headers have {header} bytes, JetStream takes {HEADER_MAX}"))
    }

    /// The server takes messages of at most so many bytes (`max_payload`). It tells when that changes; of a stream's own limit it
    /// does not tell.
    pub(in crate::flow) fn set_server_limit(&mut self, bytes: usize) {
        self.payload_limit.of_server = bytes;
    }

    /// Whether the stream may take larger messages by now than when the lane was opened: its `max_msg_size` may have been raised,
    /// up to what the server takes. The message goes into the line then, and the lane is opened again, which reads the
    /// limit and decides. Not more often than once in [`LIMIT_HOLDS`]; a message that can have a claim check gets one instead.
    pub(super) fn may_have_grown(&self, draft: &Draft, length: usize) -> bool {
        let is_limit = draft.layout.header_max() <= HEADER_MAX || self.modes.now.ordering == Ordering::Core;
        let is_old = !self.is_open() || self.now.steady.saturating_sub(self.payload_limit.read_at) >= LIMIT_HOLDS;
        let is_within = draft.layout.total_max(length) <= self.payload_limit.of_server;
        is_within
            && is_limit
            && is_old
            && !self.can_claim(draft.may_be_claimed, &draft.layout, self.payload_limit.bytes)
    }

    /// Whether a message that is too large can be sent with a claim check instead of its payload, to a server that takes
    /// `max_payload`.
    fn can_claim(&self, may_be_claimed: bool, layout: &Layout, max_payload: usize) -> bool {
        may_be_claimed
            && self.modes.now.ordering != Ordering::Core
            && layout.header_max() + CLAIM_MAX <= max_payload.min(HEADER_MAX)
    }

    /// What there is to say of one that cannot.
    fn without_claim(&self, may_be_claimed: bool, reason: String) -> String {
        match (may_be_claimed, self.modes.now.ordering) {
            (false, _) => reason,
            (true, Ordering::Core) => format!("{reason}; core NATS has no object store"),
            (true, _) => format!("{reason}; its headers leave no room for a claim check"),
        }
    }

    /// What becomes of a message in line that is too large for `reason`.
    pub(super) fn outcome_of_large(&self, slot: &Slot, reason: String, max_payload: usize) -> SlotOutcome {
        match self.can_claim(slot.may_be_claimed, &slot.layout, max_payload) {
            true => SlotOutcome::TooLarge(reason),
            false => SlotOutcome::Rejected(self.without_claim(slot.may_be_claimed, reason)),
        }
    }

    /// A message that is too large from the beginning: a claim check, or given up.
    pub(super) fn set_aside(
        &mut self,
        draft: Draft,
        number: u64,
        position: EventPosition,
        reason: String,
    ) -> Result<(), Box<Rejected>> {
        let Draft { place, layout, note, keep, may_be_claimed, halts, .. } = draft;
        let message = Bytes::from(self.send_buffer.take_back(place));
        let (head, payload) = (message[..layout.body_at].to_vec(), message.slice(layout.body_at..));
        let claim_check_note = self.note_at(note).to_vec();
        if note.1 > 0 {
            self.notes.truncate(note.0);
        }
        let is_claim_check = self.can_claim(may_be_claimed, &layout, self.payload_limit.bytes);
        let reason = if is_claim_check { reason } else { self.without_claim(may_be_claimed, reason) };
        let mode = self.modes.next;
        let claim_check =
            ClaimCheck { number, position, payload, reason, head, layout, note: claim_check_note, keep, mode };
        drop(message);
        if !is_claim_check {
            return Err(Box::new(Rejected { halts, ..claim_check.rejected() }));
        }
        self.put_aside(claim_check);
        // What comes of its transaction waits for its end with it.
        self.joins(&position, 0);
        Ok(())
    }

    pub(super) fn put_aside(&mut self, claim_check: ClaimCheck) {
        self.bytes += claim_check.payload.len();
        let at = self.claim_checks.partition_point(|other| other.number < claim_check.number);
        self.claim_checks.insert(at, claim_check);
    }

    /// A note; that of an event without one is nowhere.
    pub(super) fn note_at(&self, (place, length): (Place, usize)) -> &[u8] {
        if length == 0 { &[] } else { self.notes.message(place, length) }
    }

    fn take_claim_check(&mut self, number: u64) -> Option<ClaimCheck> {
        let at = self.claim_checks.iter().position(|claim_check| claim_check.number == number)?;
        let claim_check = self.claim_checks.remove(at)?;
        self.bytes -= claim_check.payload.len();
        Some(claim_check)
    }

    /// The payload of claim check `number` is durable: its event goes into the line, before all that came behind it. Nothing of that
    /// was sent.
    pub fn claim(&mut self, number: u64, claim: &Claim) {
        let Some(claim_check) = self.take_claim_check(number) else { return };
        let at = self.slots.partition_point(|slot| slot.number < number);
        let behind = self.slots.split_off(at);
        // Rare, so what is behind is simply laid anew.
        let mut rest = Vec::with_capacity(behind.len());
        for slot in behind {
            let message = self.send_buffer.message(slot.place, slot.length).to_vec();
            let note = self.note_at(slot.note).to_vec();
            rest.push((slot, message, note));
        }
        if let Some((first, ..)) = rest.first() {
            self.send_buffer.cut(first.place);
        }
        if let Some((first, ..)) = rest.iter().find(|(.., note)| !note.is_empty()) {
            self.notes.cut(first.note.0);
        }
        let ClaimCheck { position, payload, mut head, mut layout, note, keep, mode, .. } = claim_check;
        let name = format!("{}/{}", claim.bucket, claim.name);
        head.truncate(head.len() - b"\r\n\r\n".len());
        for (header, value) in [("Walhook-Object", &name), ("Walhook-Object-SHA256", &claim.sha256)] {
            head.extend_from_slice(format!("\r\n{header}: {value}").as_bytes());
        }
        head.extend_from_slice(b"\r\n\r\n");
        layout.body_at = head.len();
        let Claim { bucket, name, sha256 } = claim;
        let bytes = payload.len();
        let body =
            format!(r#"{{"object":{{"bucket":"{bucket}","name":"{name}","sha256":"{sha256}","bytes":{bytes}}}}}"#);
        head.extend_from_slice(body.as_bytes());
        layout.data = (layout.body_at, head.len());
        head.extend_from_slice(message::CRLF);
        layout.finish(&mut head);
        // The claim check is what a hash would be.
        let keep = match keep {
            Keep::Everything(KeepPayload::Hash) => Keep::Everything(KeepPayload::Full),
            Keep::Failures(KeepPayload::Hash) => Keep::Failures(KeepPayload::Full),
            keep => keep,
        };
        self.bytes += head.len();
        self.inserted(at, &position, head.len());
        self.lay(
            Slot {
                number,
                position,
                place: self.send_buffer.end(),
                length: head.len(),
                layout,
                state: State::Waiting,
                sent_at: 0,
                note: (self.notes.end(), 0),
                keep,
                part: (1, 1),
                is_duplicate: false,
                is_single: false,
                is_ungrouped: false,
                may_be_claimed: false,
                halts: false,
                mode,
                has_own_id: false,
            },
            &head,
            &note,
        );
        for (slot, message, note) in rest {
            self.lay(slot, &message, &note);
        }
        self.modes.are_mixed |= mode != self.modes.now;
        self.end_mode();
    }

    /// Puts a message and its note at the end of the line.
    fn lay(&mut self, mut slot: Slot, message: &[u8], note: &[u8]) {
        slot.place = self.send_buffer.begin();
        self.send_buffer.buffer().extend_from_slice(message);
        slot.note = (self.notes.end(), 0);
        if !note.is_empty() {
            let place = self.notes.begin();
            self.notes.buffer().extend_from_slice(note);
            slot.note = (place, note.len());
        }
        let offset = self.slots.len();
        self.slots.push_back(slot);
        // Its index is another now.
        self.rewrite(offset, (1, 1), None);
    }

    /// The payload of claim check `number` can never be stored: its event is given up ([`Lane::take_rejected`]).
    pub fn give_up(&mut self, number: u64, why: &str) {
        if let Some(claim_check) = self.take_claim_check(number) {
            let reason = format!("{}; {why}", claim_check.reason);
            self.rejected.push(ClaimCheck { reason, ..claim_check }.rejected());
        }
    }
}

impl ClaimCheck {
    /// A message that was in line.
    pub(super) fn of(slot: &Slot, message: &[u8], note: &[u8], reason: String) -> ClaimCheck {
        let Slot { number, position, keep, mode, .. } = *slot;
        let layout = slot.layout.clone();
        let (head, rest) = message.split_at(layout.body_at);
        let payload = Bytes::copy_from_slice(&rest[..rest.len() - message::CRLF.len()]);
        ClaimCheck { number, position, payload, reason, head: head.to_vec(), layout, note: note.to_vec(), keep, mode }
    }

    /// The same, given up.
    fn rejected(self) -> Rejected {
        let ClaimCheck { number, position, payload, reason, head, layout, note, keep, .. } = self;
        let noted = match keep {
            Keep::Nothing => None,
            Keep::Everything(keep) | Keep::Failures(keep) => {
                let data = layout.data.0 - layout.body_at..layout.data.1 - layout.body_at;
                Some(Noted { note, keep, data })
            }
        };
        Rejected {
            number,
            position,
            subject: text(&head[layout.subject.clone()]),
            headers: headers::to_json(&head[layout.header_at..]),
            payload: payload.into(),
            reason,
            noted,
            halts: false,
        }
    }
}

pub(super) fn too_large(total: usize, max_payload: usize) -> String {
    format!(
        "the message has {total} bytes with its headers, NATS takes {max_payload} (max_payload of the server, or max_msg_size of the stream)"
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{
        flow::lane::{Head, Refusal, Tail},
        wal::lsn::Lsn,
    };

    fn at(commit: u64) -> EventPosition {
        EventPosition { commit_lsn: Lsn(commit), commit_time: 9, ordinal: 0, webhook_id: 1 }
    }

    fn tail(last_sequence: u64, ours: Option<(EventPosition, u64)>, max_payload: usize) -> Tail {
        let subjects = vec!["s.>".to_owned()];
        Tail {
            last_sequence,
            ours,
            in_stream: ours,
            listing: None,
            listed: Vec::new(),
            subjects,
            max_payload,
            batch_max: 1,
        }
    }

    /// An open lane into a stream that ends at 7 and a server that takes 3000 bytes, with an event for each body.
    fn lane_of(ordering: Ordering, bodies: &[&str]) -> (Lane, Vec<Rejected>) {
        let mut lane = Lane::new("S", ordering, "_INBOX.i.0");
        lane.open(&tail(7, None, 3000)).unwrap();
        lane.sending.is_probing = false;
        let mut refused = Vec::new();
        for (commit, body) in (1..).zip(bodies) {
            let id = at(commit).id("src");
            let head = Head { subject: b"s.a", id: id.as_bytes(), message_id: None, op: "insert", epoch: 3 };
            let mut draft = lane.draft(head, |out| out.extend_from_slice(b"\r\nX-Own: 1"));
            draft.allow_claim();
            lane.buffer().extend_from_slice(body.as_bytes());
            refused.extend(lane.commit(draft, commit, at(commit)).err().map(|rejected| *rejected));
        }
        (lane, refused)
    }

    /// Of what is sent: the last digit of its index, its expected sequence, and its body.
    fn sent(lane: &mut Lane) -> Vec<(String, u64, String)> {
        let mut sent = Vec::new();
        while !lane.unsent().is_empty() {
            let bytes = lane.unsent().to_vec();
            lane.mark_sent(bytes.len());
            sent.extend(bytes);
        }
        let text = String::from_utf8(sent).unwrap();
        let message = |message: &str| {
            let (head, body) = message.split_once("\r\n\r\n").unwrap();
            let line: Vec<_> = head.lines().next().unwrap().split_ascii_whitespace().collect();
            let block = head.split_once("\r\n").unwrap().1;
            let total: usize = line[3].parse().unwrap();
            assert_eq!(line[2].parse::<usize>().unwrap(), block.len() + 4, "the length of the headers");
            assert_eq!(total, block.len() + 4 + body.len() - 2, "the length of all");
            let expected = head.split_once("Last-Sequence: ").unwrap().1.lines().next().unwrap();
            (line[1].rsplit('.').next().unwrap().to_owned(), expected.parse().unwrap(), body.trim_end().to_owned())
        };
        text.split("HPUB ").skip(1).map(message).collect()
    }

    fn claim(lane: &mut Lane, commit: u64) {
        let (bucket, name, sha256) = ("b".to_owned(), at(commit).id("src"), "ab".to_owned());
        lane.claim(commit, &Claim { bucket, name, sha256 });
    }

    fn check_claim(body: &str, commit: u64, bytes: usize) {
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        let expected =
            serde_json::json!({ "bucket": "b", "name": at(commit).id("src"), "sha256": "ab", "bytes": bytes });
        assert_eq!(body["object"], expected);
    }

    #[test]
    fn a_claim_check_holds_back_the_events_behind_it_and_is_sent_in_its_place() {
        let large = "x".repeat(4000);
        let (mut lane, _) = lane_of(Ordering::Strict, &["{1}", &large, "{3}", &large, "{5}"]);
        assert_eq!((lane.len(), lane.front(), lane.claim_check().unwrap().number), (5, Some(1), 2));
        assert_eq!(sent(&mut lane), [("0100000000".to_owned(), 7, "{1}".to_owned())]);
        lane.acked(b"0100000000", 8, false).unwrap();
        assert_eq!((lane.front(), lane.oldest()), (Some(2), Some(2)));
        let before = lane.bytes();
        claim(&mut lane, 2);
        assert!(lane.bytes() < before - 3000, "its payload is let go");
        let messages = sent(&mut lane);
        check_claim(&messages[0].2, 2, 4000);
        assert_eq!((messages[0].0.as_str(), messages[0].1), ("0100000001", 8));
        assert_eq!(messages[1..], [("0100000002".to_owned(), 9, "{3}".to_owned())]);
        claim(&mut lane, 4);
        let messages = sent(&mut lane);
        check_claim(&messages[0].2, 4, 4000);
        assert_eq!((messages[1].0.as_str(), messages[1].1, messages[1].2.as_str()), ("0100000004", 11, "{5}"));
        for (index, sequence) in (1..5).zip(9..) {
            lane.acked(format!("01{index:08x}").as_bytes(), sequence, false).unwrap();
        }
        assert_eq!((lane.is_empty(), lane.bytes(), lane.is_settled()), (true, 0, true));
    }

    #[test]
    fn one_that_cannot_be_stored_is_given_up_whole() {
        let large = "x".repeat(4000);
        let (mut lane, refused) = lane_of(Ordering::Strict, &[&large, "{2}"]);
        assert!(refused.is_empty());
        lane.give_up(1, "no right to");
        assert!(lane.unsent().is_empty(), "until it is taken");
        let letter = lane.take_rejected().remove(0);
        assert_eq!((letter.number, letter.payload.len(), letter.subject.as_str()), (1, 4000, "s.a"));
        assert!(letter.reason.contains("max_payload") && letter.reason.ends_with("; no right to"), "{}", letter.reason);
        let headers: serde_json::Value = serde_json::from_str(&letter.headers).unwrap();
        assert_eq!((&headers["X-Own"], &headers["Walhook-Op"]), (&"1".into(), &"insert".into()));
        assert_eq!(sent(&mut lane), [("0100000000".to_owned(), 7, "{2}".to_owned())]);
    }

    #[test]
    fn an_event_refused_for_its_size_becomes_a_claim_check_and_the_events_sent_behind_it_are_sent_again() {
        let (mut lane, _) = lane_of(Ordering::Strict, &["{1}", "{2}", "{3}"]);
        assert_eq!(sent(&mut lane).len(), 3);
        lane.acked(b"0100000000", 8, false).unwrap();
        assert!(lane.refused(b"0100000001", &Refusal::TooLarge("too large".to_owned())));
        assert!(lane.take_rejected().is_empty());
        let ours = Some((at(1), 8));
        lane.open(&tail(8, ours, 3000)).unwrap();
        lane.sending.is_probing = false;
        assert!(lane.unsent().is_empty());
        claim(&mut lane, 2);
        let messages = sent(&mut lane);
        check_claim(&messages[0].2, 2, 3);
        let second = (messages[0].1, messages[1].1, messages[1].2.as_str());
        assert_eq!(second, (8, 9, "{3}"));
    }

    #[test]
    fn without_an_object_store_or_room_for_a_claim_check_it_is_given_up() {
        let large = "x".repeat(4000);
        let (_, refused) = lane_of(Ordering::Core, &[&large]);
        assert!(refused[0].reason.ends_with("core NATS has no object store"), "{}", refused[0].reason);
        let mut lane = Lane::new("S", Ordering::Strict, "_INBOX.i.0");
        lane.open(&tail(7, None, 300)).unwrap();
        let head = Head { subject: b"s.a", id: b"i", message_id: None, op: "insert", epoch: 3 };
        let mut draft = lane.draft(head, |_| ());
        draft.allow_claim();
        lane.buffer().extend_from_slice(large.as_bytes());
        let refused = lane.commit(draft, 1, at(1)).unwrap_err();
        assert!(refused.reason.ends_with("no room for a claim check"), "{}", refused.reason);
        assert!(lane.is_empty() && lane.bytes() == 0);
    }
}
