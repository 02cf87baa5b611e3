//! A lane of which nothing has been settled for long: others do not wait for it.
//!
//! Comes in: that it is so, and events that it has no room for. Goes out: where the slot has to be read again for what was left out.

use super::Lane;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Absence {
    /// Nothing of it has been settled for long.
    is_away: bool,
    /// The first event that it had no room for while it was away.
    pub(super) left_out: Option<u64>,
}

impl Lane {
    /// Says whether nothing of it has been settled for long.
    pub fn set_away(&mut self, is_away: bool) {
        self.absence.is_away = is_away;
    }

    /// Whether nothing of it has been settled for long.
    pub(in crate::flow) fn is_away(&self) -> bool {
        self.absence.is_away
    }

    /// Whether there is room within these bounds. What waits for the rest of its transaction is not waited for.
    pub fn has_room(&self, events: usize, bytes: usize) -> bool {
        (self.len() < events && self.bytes < bytes) || self.waits_for_more()
    }

    /// Event `number` is not taken, nor any after it: the slot has to be read again from before it.
    pub fn leave_out(&mut self, number: u64) {
        self.absence.left_out.get_or_insert(number);
    }

    /// Whether events are left out.
    pub(in crate::flow) fn leaves_out(&self) -> bool {
        self.absence.left_out.is_some()
    }
}
