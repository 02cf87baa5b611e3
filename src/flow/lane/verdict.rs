//! One message at a time: how the message is found over which a server closes the connection.
//!
//! Comes in: that a connection was closed over some message, too large or with too long a subject. Goes out: while a lane is careful,
//! its first message alone; and that message given up, where the connection was closed over it. Always: only a message that was
//! under way alone is given up.

use super::{Lane, SlotOutcome};

impl Lane {
    /// Sends its first message (or batch) alone from here on, or no more.
    pub(in crate::flow) fn set_careful(&mut self, is_careful: bool) {
        self.sending.is_careful = is_careful;
    }

    /// Whether some of its first message was handed to the socket.
    pub(in crate::flow) fn has_begun(&self) -> bool {
        self.is_open() && self.slots.front().is_some_and(|first| first.place < self.send_buffer.sent())
    }

    /// The server has closed the connection over the first message, for its size or for its command line. Of a batch each message
    /// goes alone then.
    pub(in crate::flow) fn reject_first(&mut self, reason: String, is_size: bool) {
        let Some(first) = self.slots.front() else { return };
        let of = usize::from(first.part.1);
        if of > 1 {
            self.slots.range_mut(..of).for_each(|slot| slot.is_single = true);
            return;
        }
        let slot_outcome = if is_size {
            self.outcome_of_large(first, reason, self.payload_limit.bytes)
        } else {
            SlotOutcome::Rejected(reason)
        };
        self.take_out(vec![(0, slot_outcome)]);
    }
}
