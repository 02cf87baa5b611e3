//! Where the last event of ours in a stream does not tell enough: which events of it have to be listed, and what follows for an event
//! that is not among them.
//!
//! In: ranges of events that an operator's change of rules may have led elsewhere. Out: what the next tail has to list, and which
//! events have no place in the stream any more.

use super::{Lane, Ordering, State, Tail};
use crate::{flow::event_id::EventPosition, wal::lsn::Lsn};

/// Which events of ours a tail has to list, where the last one does not tell enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listing {
    /// Those behind this sequence of the stream.
    Behind(u64),
    /// Those whose transactions committed at or behind this position.
    Since(Lsn),
}

/// Events that may have been published by other rules before: an operator amended the rules, or had them forgotten. The last event
/// in a stream says nothing of those before it then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Doubt {
    /// The first of them: its commit and its ordinal.
    pub from: (Lsn, u64),
    /// The last commit of them.
    pub upto: Lsn,
}

/// The doubts of a lane, and what helps to decide them.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    pub(super) ranges: Vec<Doubt>,
    /// Where the slot is confirmed: what was committed before does not come again.
    since: Lsn,
    /// The events in the stream when it was last opened, in their order, if that was in strict ordering with doubts.
    pub(super) listed: Option<Vec<EventPosition>>,
}

impl Doubt {
    fn covers(&self, position: &EventPosition) -> bool {
        self.from <= (position.commit_lsn, position.ordinal) && position.commit_lsn <= self.upto
    }
}

impl Lane {
    /// Which events of ours the next tail has to list, where its last one does not tell enough.
    ///
    /// In strict ordering that is when a message was refused for its place: an older copy of it may have come in late,
    /// or another writer's message may have taken the place. In shared ordering holes are possible at any time.
    pub fn listing(&self) -> Option<Listing> {
        match self.mode_to_open().ordering {
            Ordering::Shared => Some(Listing::Behind(self.stream_end.listed_upto)),
            Ordering::Strict if !self.doubts.ranges.is_empty() => Some(Listing::Since(self.doubts.since)),
            Ordering::Strict => {
                let is_out_of_order = self.slots.iter().any(|slot| slot.state == State::OutOfOrder);
                is_out_of_order.then_some(Listing::Behind(self.stream_end.opened_behind))
            }
            Ordering::Core => None,
        }
    }

    /// Events that may have been published by other rules before, all of them committed at or behind `since`.
    pub(in crate::flow) fn set_doubts(&mut self, doubts: &[Doubt], since: Lsn) {
        if self.doubts.ranges != doubts {
            self.doubts.ranges = doubts.to_vec();
        }
        if doubts.is_empty() {
            self.doubts.listed = None;
        }
        self.doubts.since = since;
    }

    /// Why an event cannot be stored any more: its stream has later ones and not this one, for other rules led those there.
    pub(in crate::flow) fn displaces(&self, position: &EventPosition) -> Option<String> {
        let is_missing =
            |listed: &Vec<EventPosition>| listed.binary_search_by_key(&position.rank(), EventPosition::rank).is_err();
        let is_displaced = self.modes.next.ordering == Ordering::Strict
            && self.is_covered_by_last_stored(position)
            && self.is_doubtful(position)
            && self.doubts.listed.as_ref().is_some_and(is_missing);
        is_displaced.then(|| self.displaced())
    }

    /// Whether it takes another opening to tell if the stream has this event: the last one was in another mode and listed nothing.
    pub(super) fn is_undecided(&self, position: &EventPosition) -> bool {
        self.doubts.listed.is_none() && self.is_doubtful(position)
    }

    pub(super) fn is_covered_by_last_stored(&self, position: &EventPosition) -> bool {
        self.stream_end.last_stored.is_some_and(|(last_stored, _)| position.is_at_or_before(&last_stored))
    }

    /// Whether a tail tells all that opening the lane in its present mode takes. The mode may have changed since the tail was read.
    pub(super) fn is_answered_by(&self, tail: &Tail) -> bool {
        match (self.listing(), tail.listing) {
            (None, _) => true,
            (Some(Listing::Behind(wanted)), Some(Listing::Behind(listed))) => listed <= wanted,
            (Some(Listing::Since(wanted)), Some(Listing::Since(listed))) => listed <= wanted,
            (Some(_), _) => false,
        }
    }

    pub(super) fn is_doubtful(&self, position: &EventPosition) -> bool {
        self.doubts.ranges.iter().any(|doubt| doubt.covers(position))
    }

    pub(super) fn displaced(&self) -> String {
        format!(
            "stream {} has later events and not this one, or not any more, and keeps their order: the rules of this event were \
             changed by rule_cdc_rules_amend or rule_cdc_rules_forget after it was committed",
            self.stream
        )
    }
}
