//! What the server answered: stored, stored already, or refused.
//!
//! Comes in: answers by their reply tokens. Goes out: whether the lane has to be opened again. Always holds: an answer to an earlier
//! attempt changes nothing, and an event leaves the line at its front only, when it is stored.

#[cfg(feature = "otlp")]
use super::traced;
use super::{Lane, Ordering, Refusal, State, later, message, open::SlotOutcome, record};
use crate::{
    error::Error,
    flow::event_id::{EventPosition, REWRITTEN},
};

impl Lane {
    /// The server stored the message whose reply token this is, or had it.
    ///
    /// # Errors
    /// [`Refusal::WrongSequence`] where it was stored elsewhere than in its place: the lane has to be reopened.
    pub fn acked(&mut self, token: &[u8], sequence: u64, duplicate: bool) -> Result<(), Refusal> {
        let Some(index) = self.slot_of(token) else { return Ok(()) };
        self.stream_end.reached = self.stream_end.reached.max(sequence);
        // The answer to a batch is for its last message, and good for all of it.
        let first = index + 1 - usize::from(self.slots[index].part.1);
        for (at, back) in (first..=index).rev().zip(0..) {
            let slot = &mut self.slots[at];
            if matches!(slot.state, State::Stored(_)) {
                continue;
            }
            slot.state = State::Stored(sequence.saturating_sub(back));
            slot.is_duplicate = duplicate;
            self.tally.times.record(slot, self.now);
            #[cfg(feature = "otlp")]
            traced::note(&mut self.traced, &self.send_buffer, slot, self.now);
            if duplicate {
                self.tally.duplicates += 1;
            } else {
                self.tally.stored += 1;
            }
        }
        let has_own_id = self.slots[index].has_own_id;
        // Of ours, and the tail did not show it: the stream had it, and somebody has removed it since.
        let was_removed = duplicate && self.sending.is_probing && !has_own_id;
        let is_repeat = duplicate && (has_own_id || was_removed);
        let in_place = self.modes.now.ordering == Ordering::Shared
            || duplicate
            || self.anchor.is_none()
            || sequence == self.expected(self.base + index as u64) + 1;
        let passed_over = is_repeat && self.passes_over(index, sequence);
        if !duplicate && has_own_id {
            self.was_new();
        }
        // A duplicate of something older says nothing of where the stream ends.
        self.sending.is_probing &= !in_place || passed_over;
        if first == 0 {
            self.let_go();
        }
        if passed_over && self.batching.is_wanted() {
            self.recount(self.batching.max());
        }
        if in_place { Ok(()) } else { Err(Refusal::WrongSequence) }
    }

    /// What is stored leaves at the front.
    pub(super) fn let_go(&mut self) {
        while let Some(slot) = self.slots.front()
            && let State::Stored(sequence) = slot.state
        {
            self.stream_end.last_stored = Some((slot.position, sequence));
            if !slot.is_duplicate {
                self.stream_end.last_settled = later(self.stream_end.last_settled, Some((slot.position, sequence)));
            }
            record(&mut self.history, &self.notes, &self.send_buffer, slot, Some(sequence), self.now);
            self.bytes -= slot.length;
            self.base += 1;
            self.slots.pop_front();
        }
        let first = self.slots.front().map_or_else(|| self.send_buffer.end(), |slot| slot.place);
        self.send_buffer.release(first);
        self.release_notes();
        self.end_mode();
    }

    /// The server did not store the message whose reply token this is. Returns whether that is news; then the lane
    /// has to be closed and reopened. A message that is never stored is given up ([`Lane::take_rejected`]).
    pub fn refused(&mut self, token: &[u8], refusal: &Refusal) -> bool {
        let Some(index) = self.slot_of(token) else { return false };
        let of = usize::from(self.slots[index].part.1);
        if let (Refusal::Never(reason), 1) = (refusal, of) {
            self.take_out(vec![(index, SlotOutcome::Rejected(reason.clone()))]);
            return true;
        }
        if let (Refusal::TooLarge(reason), 1) = (refusal, of) {
            let slot_outcome = self.outcome_of_large(&self.slots[index], reason.clone(), self.payload_limit.bytes);
            self.take_out(vec![(index, slot_outcome)]);
            return true;
        }
        let is_duplicate = *refusal == Refusal::DuplicateInBatch;
        let ends = [index + 1 - of, index].map(|end| self.slots[end].position.commit_lsn);
        let is_group = ends[0] != ends[1];
        for slot in self.slots.range_mut(index + 1 - of..=index) {
            // Which of several transactions it is shows when each goes by itself.
            slot.is_ungrouped |= is_duplicate && is_group;
            slot.is_single |= is_duplicate && !is_group;
            // Which message of a batch can never be stored shows when the lane is opened and the stream's limits are known anew.
            slot.state = if *refusal == Refusal::WrongSequence { State::OutOfOrder } else { State::NotNow };
        }
        true
    }

    /// Finds the slot of a reply token; `None` for answers to earlier attempts and to what is settled.
    fn slot_of(&self, token: &[u8]) -> Option<usize> {
        let (attempt, low) = message::token(token)?;
        if attempt != self.attempt {
            return None;
        }
        // The low half of the index is enough: far fewer than 2^32 are in flight.
        let base_low = u32::try_from(self.base & 0xFFFF_FFFF).expect("masked");
        let index = usize::try_from(low.wrapping_sub(base_low)).expect("at least 32 bits");
        (index < self.slots.len()).then_some(index)
    }

    /// Forgets the notes of events that are no longer in line.
    pub(super) fn release_notes(&mut self) {
        let first = self.slots.front().map_or_else(|| self.notes.end(), |slot| slot.note.0);
        self.notes.release(first);
    }

    pub(super) fn expected(&self, index: u64) -> u64 {
        self.anchor.map_or(0, |anchor| anchor.last_sequence + (index - anchor.index))
    }

    pub(super) fn rewritten(&self, ours: &EventPosition, stored: &EventPosition) -> Error {
        Error::untrusted(format!(
            "go on in stream {}: its last event of ours is of a transaction at {} committed at {}, but PostgreSQL has \
             another one there, committed at {} (µs since 2000-01-01)",
            self.stream, stored.commit_lsn, stored.commit_time, ours.commit_time
        ))
        .hint(REWRITTEN)
    }
}
