//! Core NATS: messages without a stream, which nobody acknowledges.
//!
//! A message goes out without a reply subject and without expectations. What settles it is the server's PONG to a PING
//! that was sent behind it: the server has taken it in, and has passed it on to whoever listens. One PING is under way
//! at a time, behind all that was sent by then, so that asking costs next to nothing. After a lost connection all that
//! no PONG stands for is sent again: at least once, and to nobody where nobody listens.

use super::{Lane, Ordering, State};

impl Lane {
    /// Whether messages have been sent that no PING is behind, and none is under way.
    pub fn wants_ping(&self) -> bool {
        self.modes.now.ordering == Ordering::Core && self.pinged.is_none() && self.sent_whole() > 0
    }

    /// A PING was sent behind all that has been sent.
    pub fn pinged(&mut self) {
        self.pinged = Some(self.base + self.sent_whole() as u64);
    }

    /// The PONG has come: what was sent before the PING is settled. Returns whether that is anything.
    pub fn ponged(&mut self) -> bool {
        let Some(upto) = self.pinged.take() else { return false };
        let count = usize::try_from(upto - self.base).expect("counted in memory");
        for slot in self.slots.iter_mut().take(count) {
            slot.state = State::Stored(0);
            self.tally.times.record(slot, self.now);
            #[cfg(feature = "otlp")]
            super::traced::note(&mut self.traced, &self.send_buffer, slot, self.now);
        }
        self.tally.stored += count as u64;
        self.let_go();
        count > 0
    }

    /// How many messages in line have been sent to their last byte.
    fn sent_whole(&self) -> usize {
        let sent = self.send_buffer.sent();
        let begun = self.slots.partition_point(|slot| slot.place < sent);
        begun - usize::from(begun > 0 && !self.is_between_messages())
    }
}
