//! What a stream has to keep: all that it took, but for what the slot still has where confirming is delayed
//! ([`crate::flow::delay`]).

use super::{Lane, Tail};
use crate::{
    error::Error,
    flow::{
        delay::{Retained, sequence_of},
        event_id::EventPosition,
    },
};

/// Of two places the one that is further on.
pub(super) fn later(one: Retained, other: Retained) -> Retained {
    if sequence_of(&other) > sequence_of(&one) { other } else { one }
}

/// The error that ends a session, so that the next one reads from the slot what the stream has lost.
pub(in crate::flow) fn still_in_slot(what: &str) -> Error {
    Error::unavailable(format!("{what}; what it has lost the slot still has"))
}

impl Tail {
    /// Whether a stream that ends here, although it had taken more, is without loss: the slot has all events behind sequence
    /// `retained_through`, and the stream those before. The last one of ours tells where that is.
    pub fn loses_nothing(&self, retained_through: Option<u64>) -> bool {
        retained_through.is_some_and(|kept| self.ours.map_or(0, |(_, sequence)| sequence) >= kept)
    }
}

/// Where a stream ends, as far as is known. Of another stream nothing of it holds.
#[derive(Debug, Default)]
pub(super) struct StreamEnd {
    /// Its last sequence when the lane was opened: what is not settled was not stored up to there.
    pub(super) opened_behind: u64,
    /// Its last sequence when it was last opened in shared ordering: up to there its events are known.
    pub(super) listed_upto: u64,
    /// The highest sequence that it is known to have reached.
    pub(super) reached: u64,
    /// The last event of ours known to be in it, and its sequence there.
    pub(super) last_stored: Option<(EventPosition, u64)>,
    /// The event with the highest sequence of those that were settled.
    pub(super) last_settled: Retained,
    /// Where confirming is delayed: the sequence behind which the slot still has all events.
    retained_through: Option<u64>,
}

impl Lane {
    /// The event with the highest sequence of those that are settled.
    pub(in crate::flow) fn last_settled(&self) -> Retained {
        self.stream_end.last_settled
    }

    /// Up to which sequence the stream has to keep what it has taken, for behind it the slot has all events still. `None`: all
    /// of it, as far as is known.
    pub(in crate::flow) fn retained_through(&self) -> Option<u64> {
        self.stream_end.retained_through
    }

    /// Says so. It never goes down.
    pub(in crate::flow) fn set_retained_through(&mut self, sequence: u64) {
        self.stream_end.retained_through = self.stream_end.retained_through.max(Some(sequence));
    }

    /// The stream ends before what it had reached.
    pub(super) fn shortened(&self, tail: &Tail) -> Error {
        let what = format!(
            "go on in stream {}: it had reached sequence {} and ends at {} now",
            self.stream, self.stream_end.reached, tail.last_sequence
        );
        if tail.loses_nothing(self.stream_end.retained_through) {
            return still_in_slot(&what);
        }
        Error::untrusted(what).hint(
            "JetStream has lost messages that it had acknowledged, or somebody deleted the stream and made it again. PostgreSQL does not \
             send confirmed events again: restore the stream, or start walhook again, which names the statement that accepts the loss",
        )
    }

    /// The last event of ours known to be stored, with its stream sequence.
    pub fn last_stored(&self) -> Option<(EventPosition, u64)> {
        self.stream_end.last_stored
    }

    /// The stream is another one from here on: what the old one holds says nothing of it.
    pub(in crate::flow) fn forget_last_stored(&mut self) {
        self.stream_end = StreamEnd::default();
    }
}
