//! Repeated message ids: what a caller's own id costs where a stream knows it already.
//!
//! A strict stream answers a known id with `duplicate` and stores nothing, so its last sequence stays, and every message sent
//! behind it is refused. Comes in: the ids that callers gave. Goes out: up to which event a lane may send. An event whose id was
//! seen before is the last one sent until its answer comes; after a duplicate, what is behind it expects one sequence less.
//! So a duplicate that was foreseen costs one round trip and no refusal. One that was not (its id is older than this
//! run, or than the ids remembered) costs one reopening of the lane, and after it all caller ids are waited for, until enough of
//! them were new. Always: only the stream decides what a duplicate is; what is remembered here only changes the pace.

use std::{
    collections::{HashSet, VecDeque, hash_map::RandomState},
    hash::BuildHasher,
};

use super::{Lane, Ordering};

/// Ids remembered, by their hashes: about 1.5 MB when full.
const REMEMBERED: usize = 65_536;
/// After an unforeseen duplicate so many new ids in a row are waited for one by one.
const DOUBTED: u32 = 64;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Repeats {
    hasher: RandomState,
    known: HashSet<u64>,
    order: VecDeque<u64>,
    /// The numbers of events in line with an id of their caller's, rising; those that have left are dropped when that is looked at.
    own_ids: VecDeque<u64>,
    /// Of these the ones whose id was seen before.
    repeated: VecDeque<u64>,
    /// How many new ids are still to be waited for.
    doubt: u32,
    /// Events of ours that the stream has stored and has no more, since it was opened.
    removed: u64,
    /// Messages before this index have to have their front written anew before they are sent, from the other index on.
    stale: (u64, u64),
}

impl Repeats {
    /// Remembers an id. Returns whether it was seen before.
    pub fn remember(&mut self, id: &[u8]) -> bool {
        let hash = self.hasher.hash_one(id);
        if !self.known.insert(hash) {
            return true;
        }
        self.order.push_back(hash);
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        false
    }

    /// An event with an id of its caller's has its place at the end of the line.
    pub fn joins(&mut self, number: u64, is_repeated: bool) {
        self.own_ids.push_back(number);
        if is_repeated {
            self.repeated.push_back(number);
        }
    }
}

impl Lane {
    /// The first event that is not to be sent yet, since one before it has an id that its stream may know.
    pub(super) fn first_behind_repeat(&mut self) -> Option<u64> {
        if self.modes.now.ordering != Ordering::Strict || self.repeats.own_ids.is_empty() {
            return None;
        }
        let front = self.slots.front().map_or(u64::MAX, |slot| slot.number);
        let Repeats { own_ids, repeated, doubt, .. } = &mut self.repeats;
        for numbers in [&mut *own_ids, &mut *repeated] {
            while numbers.front().is_some_and(|number| *number < front) {
                numbers.pop_front();
            }
        }
        // A batch is not cut here: whether it has a duplicate its own answer says.
        let doubtful = if *doubt > 0 && !self.batching.is_wanted() { own_ids.front() } else { None };
        let number = *repeated.front().into_iter().chain(doubtful).min()?;
        let at = self.slots.partition_point(|slot| slot.number < number);
        let slot = self.slots.get(at)?;
        if !self.batching.is_wanted() || slot.is_single {
            return Some(number + 1);
        }
        let commit_lsn = slot.position.commit_lsn;
        let end = self.slots.iter().skip(at).find(|slot| slot.position.commit_lsn != commit_lsn);
        end.map(|slot| slot.number)
    }

    /// The stream knew the id of the message at the front, which it has at `sequence`. Returns whether the line goes on behind
    /// it without a look at the stream's tail: nothing was sent behind it, so all that changes is what that expects.
    pub(super) fn passes_over(&mut self, index: usize, sequence: u64) -> bool {
        let at = self.base + index as u64;
        if self.modes.now.ordering != Ordering::Strict || index > 0 || self.slots[index].part != (1, 1) {
            return false;
        }
        let expected = self.expected(at);
        let Some(anchor) = &mut self.anchor else { return false };
        // In its own place or behind it: it was this very event, which an earlier connection brought.
        if sequence > expected {
            return false;
        }
        let sent = self.send_buffer.sent();
        if self.slots.get(index + 1).is_some_and(|next| next.place < sent) {
            self.repeats.doubt = DOUBTED;
            return false;
        }
        anchor.index += 1;
        self.repeats.removed += u64::from(!self.slots[index].has_own_id);
        let end = self.base + self.slots.len() as u64;
        if self.batching.is_wanted() {
            for offset in index + 1..self.slots.len() {
                self.rewrite(offset, (1, 1), None);
            }
        } else {
            self.repeats.stale = (at + 1, end);
        }
        true
    }

    /// How many events in line the stream has stored and has no more, since it was opened: purged or deleted before their acks were
    /// taken. They are settled, for the stream knows their ids and stores none of them again.
    pub(in crate::flow) fn removed(&self) -> u64 {
        self.repeats.removed
    }

    /// The stream is opened.
    pub(super) fn forget_removed(&mut self) {
        self.repeats.removed = 0;
    }

    /// A caller's id turned out to be new to the stream.
    pub(super) fn was_new(&mut self) {
        self.repeats.doubt = self.repeats.doubt.saturating_sub(1);
    }

    /// The first `upto` messages in line are about to be sent: those whose expected sequence has changed are written anew.
    pub(super) fn freshen(&mut self, upto: usize) {
        let (from, end) = self.repeats.stale;
        let from = from.max(self.base);
        let upto = (self.base + upto as u64).min(end);
        for index in from..upto {
            self.rewrite(usize::try_from(index - self.base).expect("within the line"), (1, 1), None);
        }
        if from < upto {
            self.repeats.stale.0 = upto;
        }
    }

    /// All fronts are as they have to be.
    pub(super) fn is_fresh(&mut self) {
        self.repeats.stale = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_remembered_up_to_a_number() {
        let mut repeats = Repeats::default();
        assert!(!repeats.remember(b"a") && repeats.remember(b"a"));
        for id in 0..REMEMBERED {
            assert!(!repeats.remember(&id.to_le_bytes()));
        }
        assert_eq!((repeats.known.len(), repeats.order.len()), (REMEMBERED, REMEMBERED));
        assert!(!repeats.remember(b"a"), "the oldest is forgotten");
    }
}
