//! What a stream has to keep: all that it took, but for what the slot still has where confirming is delayed
//! ([`crate::flow::delay`]).

use super::{Lane, Tail};
use crate::{
    error::Error,
    flow::delay::{Retained, sequence_of},
};

/// Of two places the one that is further on.
pub(super) fn later(one: Retained, other: Retained) -> Retained {
    if sequence_of(&other) > sequence_of(&one) { other } else { one }
}

impl Tail {
    /// Whether a stream that ends here, although it had taken more, is without loss: the slot has all events behind sequence
    /// `retained_through`, and the stream those before. The last one of ours tells where that is.
    pub fn loses_nothing(&self, retained_through: Option<u64>) -> bool {
        retained_through.is_some_and(|kept| self.ours.map_or(0, |(_, sequence)| sequence) >= kept)
    }
}

impl Lane {
    /// The event with the highest sequence of those that are settled.
    pub(in crate::flow) fn last_settled(&self) -> Retained {
        self.last_settled
    }

    /// Up to which sequence the stream has to keep what it has taken, for behind it the slot has all events still. `None`: all
    /// of it, as far as is known.
    pub(in crate::flow) fn retained_through(&self) -> Option<u64> {
        self.retained_through
    }

    /// Says so. It never goes down.
    pub(in crate::flow) fn set_retained_through(&mut self, sequence: u64) {
        self.retained_through = self.retained_through.max(Some(sequence));
    }

    /// The stream ends before what it had reached.
    pub(super) fn shortened(&self, tail: &Tail) -> Error {
        let what = format!(
            "go on in stream {}: it had reached sequence {} and ends at {} now",
            self.stream, self.reached, tail.last_sequence
        );
        if tail.loses_nothing(self.retained_through) {
            return Error::unavailable(format!("{what}; what it has lost the slot still has"));
        }
        Error::untrusted(what).hint(
            "JetStream has lost messages that it had acknowledged, or somebody deleted the stream and made it again. PostgreSQL does not \
             send confirmed events again: restore the stream, or start walhook again, which names the statement that accepts the loss",
        )
    }
}
