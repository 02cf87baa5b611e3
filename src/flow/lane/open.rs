//! What the stream's tail says of the events in line, and how events leave the line.
//!
//! In: a tail, or what the server has refused for good. Out: a line in which all is to be sent, the rest settled, given up or set
//! aside. Always holds: an event that leaves goes into the history, to the rejected or to the claim checks.

use super::{
    Anchor, CRLF, Lane, Ordering, Rejected, Slot, State, Tail,
    claim_check::{ClaimCheck, too_large},
    later, noted, record, text,
};
use crate::{
    error::Result,
    flow::{event_id::EventPosition, send_buffer::SendBuffer},
    route::{headers, subject},
};

/// Why an event leaves the line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum SlotOutcome {
    /// The stream has it.
    Stored,
    /// It can never be published.
    Rejected(String),
    /// It can, with a claim check for its payload.
    TooLarge(String),
    /// The stream has later events, and no place for it any more: see [`Lane::displaces`].
    Displaced,
}

impl Lane {
    /// Goes on after the stream's tail: what it shows as stored is settled, what this stream does not take is given up
    /// ([`Lane::take_rejected`]), all else is to be sent (again). Stays closed, and wants another tail, where this one was read
    /// for a mode that has ended since.
    ///
    /// # Errors
    /// The tail and our events come from different histories, or the stream has lost what it had.
    pub fn open(&mut self, tail: &Tail) -> Result<()> {
        if tail.last_sequence < self.stream_end.reached {
            return Err(self.shortened(tail));
        }
        self.adopt_mode();
        if !self.is_answered_by(tail) {
            return Ok(());
        }
        let mut listed = tail.listed.clone();
        listed.sort_unstable_by_key(EventPosition::rank);
        let mut slot_outcomes = Vec::new();
        for (index, slot) in self.slots.iter().enumerate() {
            if let Some((stored, _)) = &tail.ours
                && slot.position.contradicts(stored)
            {
                return Err(self.rewritten(&slot.position, stored));
            }
            if let Some(slot_outcome) = self.slot_outcome(slot, tail, &listed) {
                slot_outcomes.push((index, slot_outcome));
            }
        }
        self.take_out(slot_outcomes);
        // By now it was sent, or the connection is another one.
        self.sending.rest.clear();
        self.pinged = None;
        if let Some((stored, sequence)) = &tail.ours
            && self.stream_end.last_stored.is_none_or(|(last_stored, _)| last_stored.is_at_or_before(stored))
        {
            self.stream_end.last_stored = Some((*stored, *sequence));
        }
        self.stream_end.last_settled = later(self.stream_end.last_settled, tail.in_stream);
        self.doubts.listed = None;
        if self.modes.now.ordering == Ordering::Strict && !self.doubts.ranges.is_empty() {
            self.doubts.listed = Some(listed);
        } else if self.modes.now.ordering == Ordering::Shared {
            self.stream_end.listed_upto = tail.last_sequence;
            self.known.extend(listed);
            self.known.make_contiguous().sort_unstable_by_key(EventPosition::rank);
            while let (Some(known), Some(seen)) = (self.known.front(), &self.last_seen)
                && known.is_at_or_before(seen)
            {
                self.known.pop_front();
            }
        }
        self.stream_end.reached = tail.last_sequence;
        self.stream_end.opened_behind = tail.last_sequence;
        self.payload_limit.bytes = tail.max_payload;
        self.payload_limit.read_at = self.now.steady;
        self.anchor = Some(Anchor { index: self.base, last_sequence: tail.last_sequence });
        self.sending.is_probing = self.modes.now.ordering == Ordering::Strict;
        self.forget_removed();
        for offset in 0..self.slots.len() {
            self.slots[offset].state = State::Waiting;
            self.rewrite(offset, (1, 1), None);
        }
        self.recount(tail.batch_max);
        self.is_fresh();
        let first = self.slots.front().map_or_else(|| self.send_buffer.end(), |slot| slot.place);
        self.send_buffer.rewind(first);
        self.send_buffer.release(first);
        self.sending.sent_upto = self.base;
        // What is left may be in another mode, for which this tail does not tell enough.
        self.modes.are_mixed = self.slots.iter().any(|slot| slot.mode != self.modes.now);
        self.end_mode();
        Ok(())
    }

    /// What a tail says of an event in line; `None`: it is to be sent.
    fn slot_outcome(&self, slot: &Slot, tail: &Tail, listed: &[EventPosition]) -> Option<SlotOutcome> {
        let is_listed = || listed.binary_search_by_key(&slot.position.rank(), EventPosition::rank).is_ok();
        match slot.mode.ordering {
            Ordering::Strict => {
                let is_missing = self.is_doubtful(&slot.position) && !is_listed();
                // What is listed for another ordering does not tell that an event is missing: the opening in its own decides.
                let is_decided = !is_missing || self.modes.now.ordering == Ordering::Strict;
                if is_decided && tail.ours.is_some_and(|(stored, _)| slot.position.is_at_or_before(&stored)) {
                    if is_missing {
                        return Some(SlotOutcome::Displaced);
                    }
                    // Nothing is stored behind a hole, unless another writer fills it.
                    return Some(if slot.state != State::OutOfOrder || is_listed() {
                        SlotOutcome::Stored
                    } else {
                        SlotOutcome::Rejected(format!(
                            "another publisher's message is in its place in stream {}; only walhook may publish into a strict stream",
                            self.stream
                        ))
                    });
                }
            }
            Ordering::Shared => {
                if matches!(slot.state, State::Stored(_)) || is_listed() {
                    return Some(SlotOutcome::Stored);
                }
            }
            Ordering::Core => {}
        }
        let message = self.send_buffer.message(slot.place, slot.length);
        let subject = &message[slot.layout.subject.clone()];
        if !tail.subjects.iter().any(|pattern| subject::matches(pattern.as_bytes(), subject)) {
            let takes = tail.subjects.join(", ");
            return Some(SlotOutcome::Rejected(format!("stream {} takes {takes}, not this subject", self.stream)));
        }
        // It was put in line before the server's limit was known, or before it was lowered; such a message would cost
        // the connection, again and again.
        let total = slot.layout.total_max(slot.length - CRLF.len());
        (total > tail.max_payload)
            .then(|| self.outcome_of_large(slot, too_large(total, tail.max_payload), tail.max_payload))
    }

    /// Removes messages from the line (indexes rising) and closes the lane.
    pub(super) fn take_out(&mut self, slot_outcomes: Vec<(usize, SlotOutcome)>) {
        self.close();
        // Answers that are under way name places in a line that is no more.
        self.attempt = self.attempt.wrapping_add(1);
        if slot_outcomes
            .iter()
            .enumerate()
            .all(|(at, (index, slot_outcome))| at == *index && *slot_outcome == SlotOutcome::Stored)
        {
            for slot in self.slots.drain(..slot_outcomes.len()) {
                record(&mut self.history, &self.notes, &self.send_buffer, &slot, slot.sequence(), self.now);
                self.bytes -= slot.length;
                self.base += 1;
                self.tally.stored += u64::from(slot.sent_at != 0 && !matches!(slot.state, State::Stored(_)));
            }
            self.release_notes();
            return;
        }
        // Something within the line goes. Rare, so the send buffer is simply laid anew.
        let mut slot_outcomes = slot_outcomes.into_iter().peekable();
        let mut send_buffer = SendBuffer::default();
        let mut set_aside = Vec::new();
        for (index, mut slot) in std::mem::take(&mut self.slots).into_iter().enumerate() {
            let message = self.send_buffer.message(slot.place, slot.length);
            let Some((_, slot_outcome)) = slot_outcomes.next_if(|(out, _)| *out == index) else {
                slot.place = send_buffer.begin();
                send_buffer.buffer().extend_from_slice(message);
                self.slots.push_back(slot);
                continue;
            };
            self.bytes -= slot.length;
            match slot_outcome {
                SlotOutcome::Stored => {
                    record(&mut self.history, &self.notes, &self.send_buffer, &slot, slot.sequence(), self.now);
                    self.tally.stored += u64::from(slot.sent_at != 0 && !matches!(slot.state, State::Stored(_)));
                }
                SlotOutcome::TooLarge(reason) => {
                    set_aside.push(ClaimCheck::of(&slot, message, self.note_at(slot.note), reason));
                }
                slot_outcome @ (SlotOutcome::Rejected(_) | SlotOutcome::Displaced) => {
                    // The operator has decided already what is to become of this one.
                    let halts = slot.halts && slot_outcome != SlotOutcome::Displaced;
                    let reason =
                        if let SlotOutcome::Rejected(reason) = slot_outcome { reason } else { self.displaced() };
                    self.rejected.push(Rejected {
                        number: slot.number,
                        position: slot.position,
                        subject: text(&message[slot.layout.subject.clone()]),
                        headers: headers::to_json(&message[slot.layout.header_at..slot.layout.body_at]),
                        payload: message[slot.layout.body_at..message.len() - CRLF.len()].to_vec(),
                        reason,
                        noted: noted(&self.notes, slot.note, slot.keep, &slot.layout),
                        halts,
                    });
                }
            }
        }
        self.send_buffer = send_buffer;
        set_aside.into_iter().for_each(|claim_check| self.put_aside(claim_check));
        self.release_notes();
    }
}
