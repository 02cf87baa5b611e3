//! How messages go into a stream, and when that changes.
//!
//! Always holds: messages of two modes are never on their way at once. A lane is closed where its front is in another mode than it
//! was opened in, and opened anew by a tail that was read for that mode.

use super::{Batches, Lane};
use crate::route::tables::StreamRow;

/// How a lane keeps its order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ordering {
    /// Every message names the stream sequence it expects before it: after a hole nothing is stored.
    Strict,
    /// Message ids only, for streams with other writers.
    Shared,
    /// No stream at all: core NATS, which acknowledges nothing (see `core`).
    Core,
}

/// How messages go into a stream. It changes at the commit that changes the stream's row: messages from before go as that
/// row said, and only when all of them are settled is the lane opened again for those behind them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mode {
    /// How it keeps its order.
    pub ordering: Ordering,
    /// What goes into one atomic batch.
    pub batches: Batches,
}

impl Mode {
    /// As a stream's row wants it.
    pub fn of(row: &StreamRow) -> Mode {
        let ordering = if row.is_shared() { Ordering::Shared } else { Ordering::Strict };
        let batches = match (row.durability.as_deref(), row.transactions.as_deref()) {
            (Some("fsync"), _) => Batches::Groups,
            (_, Some("atomic")) => Batches::Transactions,
            _ => Batches::None,
        };
        Mode { ordering, batches }
    }

    /// Has a stream's row say so.
    pub fn write(self, row: &mut StreamRow) {
        if Mode::of(row) == self {
            return;
        }
        let ordering = if self.ordering == Ordering::Shared { "shared" } else { "strict" };
        row.ordering = Some(ordering.to_owned());
        row.durability = (self.batches == Batches::Groups).then(|| "fsync".to_owned());
        row.transactions = (self.batches == Batches::Transactions).then(|| "atomic".to_owned());
    }
}

/// The modes of the messages in line.
#[derive(Debug)]
pub(super) struct Modes {
    /// Of the messages that may be sent now.
    pub(super) now: Mode,
    /// Of the events that come from here on.
    pub(super) next: Mode,
    /// Some message in line is in another mode than those that may be sent.
    pub(super) are_mixed: bool,
}

impl Lane {
    /// How events go into the stream that come from here on, and how many bytes of a transaction may be held for its end.
    pub(in crate::flow) fn set_mode(&mut self, mode: Mode, bytes_max: usize) {
        let batches = if mode.ordering == Ordering::Core { Batches::None } else { mode.batches };
        self.modes.next = Mode { batches, ..mode };
        self.batching.set_bytes_max(bytes_max);
        let is_idle = self.slots.is_empty() && self.claim_checks.is_empty();
        if is_idle && self.modes.now != self.modes.next {
            self.close();
            self.adopt_mode();
        }
    }

    /// The mode in which the lane is to be opened.
    pub(in crate::flow) fn mode_to_open(&self) -> Mode {
        self.first_in_line().map_or(self.modes.next, |(_, _, mode)| mode)
    }

    /// Messages in the mode of the front may be sent from here on, once the lane is open.
    pub(super) fn adopt_mode(&mut self) {
        self.modes.now = self.mode_to_open();
        self.batching.batches = self.modes.now.batches;
        self.modes.are_mixed = self.slots.iter().any(|slot| slot.mode != self.modes.now);
    }

    /// Closes the lane where the message at the front is in another mode than it was opened in: all before it are settled.
    pub(super) fn end_mode(&mut self) {
        if self.modes.are_mixed
            && self.anchor.is_some()
            && self.slots.front().is_some_and(|slot| slot.mode != self.modes.now)
        {
            self.close();
        }
    }

    /// The number of the first event in line that is in another mode than those that may be sent.
    pub(super) fn first_in_other_mode(&self) -> Option<u64> {
        // Nearly always none is, and the line is long.
        if !self.modes.are_mixed {
            return None;
        }
        self.slots.iter().find(|slot| slot.mode != self.modes.now).map(|slot| slot.number)
    }
}
