//! What goes to the socket: which messages may be sent, and how far that has got.
//!
//! Comes in: what holds messages back, and how many bytes the socket took. Goes out: bytes. Always holds: a message that was begun is
//! sent to its end, for others may share the connection; and nothing behind an event that is held back is sent.

use super::{Lane, State};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Sending {
    /// The first event that may not be sent: a dead letter before it is not durable yet.
    limit: Option<u64>,
    /// The first event that may have to wait for an earlier one in another lane.
    turn_limit: Option<u64>,
    /// What a closed lane still owes the socket: the end of the message that it was in the midst of.
    pub(super) rest: Vec<u8>,
    /// Strict and just opened: one message goes alone, and its ack shows that the tail was the tail. Something may have been
    /// on its way into the stream when it was read (by an older connection, or by core NATS, which tells nobody when it is
    /// there). Of many messages the first would be refused and one behind them be taken, where as many came before it.
    pub(super) is_probing: bool,
    /// One message goes at a time, whatever the ordering: the server closes the connection over one of them.
    pub(super) is_careful: bool,
    /// The index of the first message that was not handed to the socket since the lane was opened.
    pub(super) sent_upto: u64,
}

impl Lane {
    /// Messages numbered from `limit` on are held back: a dead letter before them is not durable yet.
    pub fn hold_from(&mut self, limit: Option<u64>) {
        self.sending.limit = limit;
    }

    /// Messages numbered from `limit` on are held back: another lane has an earlier event, and may lead into the same stream.
    pub(in crate::flow) fn set_turn_limit(&mut self, limit: Option<u64>) {
        self.sending.turn_limit = limit;
    }

    /// The next bytes for the socket.
    pub fn unsent(&mut self) -> &[u8] {
        if !self.sending.rest.is_empty() {
            return &self.sending.rest;
        }
        if self.anchor.is_none() || !self.rejected.is_empty() {
            return &[];
        }
        let claim_check = self.claim_checks.front();
        let claim_check =
            claim_check.map(|claim_check| self.first_with(claim_check.number, claim_check.position.commit_lsn));
        let schema = self.first_without_schema();
        let repeat = self.first_behind_repeat();
        let other = self.first_in_other_mode();
        let limit = self
            .sending
            .limit
            .into_iter()
            .chain(self.sending.turn_limit)
            .chain(claim_check)
            .chain(schema)
            .chain(repeat)
            .chain(other)
            .min();
        let held = limit.map_or(self.slots.len(), |limit| self.slots.partition_point(|slot| slot.number < limit));
        let held = if self.batching.is_wanted() { self.cut(held).min(held) } else { held };
        let alone = self.slots.front().map_or(1, |first| usize::from(first.part.1));
        let held = if self.sending.is_probing || self.sending.is_careful { held.min(alone) } else { held };
        self.freshen(held);
        let limit = self.slots.get(held).map(|slot| slot.place);
        self.send_buffer.unsent(limit)
    }

    /// The socket took `count` of the unsent bytes.
    pub fn mark_sent(&mut self, count: usize) {
        if !self.sending.rest.is_empty() {
            self.sending.rest.drain(..count);
            return;
        }
        self.send_buffer.mark_sent(count);
        let sent = self.send_buffer.sent();
        self.sending.sent_upto = self.sending.sent_upto.max(self.base);
        let from = usize::try_from(self.sending.sent_upto - self.base).expect("within the line");
        for slot in self.slots.range_mut(from..).take_while(|slot| slot.place < sent) {
            slot.sent_at = self.now.steady;
            self.sending.sent_upto += 1;
        }
    }

    /// Whether the bytes sent so far end with a whole message, so that another command may follow.
    pub fn is_between_messages(&self) -> bool {
        if self.anchor.is_none() {
            return self.sending.rest.is_empty();
        }
        let sent = self.send_buffer.sent();
        self.send_buffer.sent_whole_segment() || self.slots.binary_search_by_key(&sent, |slot| slot.place).is_ok()
    }

    /// Stops sending, but for the end of a message that is under way: others may share the connection. Answers are
    /// still taken. [`Lane::open`] is the way on.
    pub fn close(&mut self) {
        if self.anchor.is_some() && !self.is_between_messages() {
            let sent = self.send_buffer.sent();
            let begun = self.slots.partition_point(|slot| slot.place < sent);
            if let Some(slot) = begun.checked_sub(1).map(|last| &self.slots[last]) {
                self.sending.rest.extend_from_slice(self.send_buffer.message_after(slot.place, slot.length, sent));
            }
        }
        self.anchor = None;
    }

    /// Whether something was sent that has no answer yet, and can have one: a batch has its answer when all of it was sent.
    pub(in crate::flow) fn awaits_answers(&self) -> bool {
        let sent = self.send_buffer.sent();
        let mut begun = self.slots.iter().take_while(|slot| slot.place < sent);
        let Some(index) = begun.position(|slot| slot.state == State::Waiting) else { return false };
        let (nth, of) = self.slots[index].part;
        self.slots.get(index + usize::from(of - nth)).is_some_and(|last| last.place < sent)
    }

    /// How many events in line were handed to the socket, whole or in part.
    pub fn under_way(&self) -> usize {
        let sent = self.send_buffer.sent();
        self.slots.partition_point(|slot| slot.place < sent)
    }
}
