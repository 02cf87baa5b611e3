//! Which messages go together into one atomic batch (ADR-50, "JetStream Batch Publishing"), so that the stream takes all of
//! them or none.
//!
//! Comes in: the line of messages, where a transaction ends, how much the stream takes at once. Goes out: each message's part.
//! Always holds: what fits into one batch is never cut, so a transaction that does waits in line until it is whole; one that
//! does not goes in several, and its first and last message say so. JetStream answers a batch once, and its first message alone
//! may say which sequence is expected. Knows nothing of the stream's answers.

use super::{
    Lane, Ordering, Slot,
    message::{Front, Mark, Part},
};
use crate::{flow::event_id::EventPosition, wal::lsn::Lsn};

/// The most messages that JetStream takes as one batch, unless its server is told otherwise.
pub const BATCH_MAX: usize = 1000;

/// What goes into one atomic batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Batches {
    /// There are none.
    #[default]
    None,
    /// One transaction's events.
    Transactions,
    /// Those of as many whole transactions as are there while earlier ones wait for their answers: where each answer costs the
    /// server a sync of its disk, many share one.
    Groups,
}

/// See the module.
#[derive(Debug)]
pub struct Batching {
    /// Of the messages that may be sent now.
    pub(super) batches: Batches,
    /// How many messages the stream takes as one batch.
    max: usize,
    /// How many bytes of a transaction are held for its end.
    bytes_max: usize,
    /// Messages before this index have their part.
    cut_upto: u64,
    /// Bytes in line from there on.
    uncut_bytes: usize,
    /// The transaction whose events are arriving, and the index of its first message that has no part yet.
    open: Option<(Lsn, u64)>,
}

impl Default for Batching {
    fn default() -> Batching {
        Batching {
            batches: Batches::None,
            max: BATCH_MAX,
            bytes_max: usize::MAX,
            cut_upto: 0,
            uncut_bytes: 0,
            open: None,
        }
    }
}

impl Batching {
    /// How many bytes of a transaction may be held for its end.
    pub fn set_bytes_max(&mut self, bytes_max: usize) {
        self.bytes_max = bytes_max;
    }

    pub fn is_wanted(&self) -> bool {
        self.batches != Batches::None
    }

    /// How many messages the stream takes as one batch.
    pub fn max(&self) -> usize {
        self.max
    }
}

impl Lane {
    /// What goes into one batch.
    pub fn batches(&self) -> Batches {
        self.batching.batches
    }

    /// All events of the transaction have come. Not so where some had to be left out: what has come waits, and comes again with
    /// the others.
    pub(in crate::flow) fn end_transaction(&mut self) {
        if !self.leaves_out() {
            self.batching.open = None;
        }
    }

    /// Whether all in line waits for the rest of its transaction, and not for the stream.
    pub(super) fn waits_for_more(&self) -> bool {
        let Batching { max, bytes_max, uncut_bytes, open, .. } = self.batching;
        let is_one_at_most = self.slots.len() <= 1;
        self.batching.is_wanted()
            && open.is_some_and(|(_, from)| from <= self.base)
            && (is_one_at_most || (self.slots.len() <= max && uncut_bytes <= bytes_max))
    }

    /// The number of the oldest event in line, unless it waits for the rest of its transaction.
    pub(in crate::flow) fn in_flight(&self) -> Option<u64> {
        self.front().filter(|_| !self.waits_for_more())
    }

    /// A message is about to be put in line.
    pub(super) fn joins(&mut self, position: &EventPosition, length: usize) {
        let index = self.base + self.slots.len() as u64;
        self.batching.uncut_bytes += length;
        if self.batching.open.is_none_or(|(commit_lsn, _)| commit_lsn != position.commit_lsn) {
            self.batching.open = Some((position.commit_lsn, index));
        }
    }

    /// A message was put in line at offset `at`, before others that have no part yet either.
    pub(super) fn inserted(&mut self, at: usize, position: &EventPosition, length: usize) {
        let index = self.base + at as u64;
        self.batching.uncut_bytes += length;
        if let Some((commit_lsn, from)) = &mut self.batching.open {
            if *commit_lsn == position.commit_lsn {
                *from = index.min(*from);
            } else if *from >= index {
                *from += 1;
            }
        }
    }

    /// The number of the first event in line that waits with event `number` of the transaction at `commit_lsn`: where batches are
    /// wanted, all of that.
    pub(super) fn first_with(&self, number: u64, commit_lsn: Lsn) -> u64 {
        let is_with = |slot: &&Slot| slot.number > number || slot.position.commit_lsn == commit_lsn;
        let first = self.slots.iter().find(is_with).filter(|_| self.batching.is_wanted());
        first.map_or(number, |slot| slot.number.min(number))
    }

    /// The lane is opened: nothing has its part yet.
    pub(super) fn recount(&mut self, batch_max: usize) {
        self.batching.max = batch_max.clamp(1, BATCH_MAX);
        self.batching.cut_upto = self.base;
        self.batching.uncut_bytes = self.slots.iter().map(|slot| slot.length).sum();
        if let Some((commit_lsn, from)) = &mut self.batching.open {
            let of_it = self.slots.iter().rev().take_while(|slot| slot.position.commit_lsn == *commit_lsn);
            *from = self.base + (self.slots.len() - of_it.count()) as u64;
        }
    }

    /// Gives as many of the first `held` messages their part as can have it by now. Returns how many have.
    pub(super) fn cut(&mut self, held: usize) -> usize {
        let mut at = self.offset(self.batching.cut_upto);
        while let Some(unit) = self.next_unit(at, held).filter(|unit| at + unit.count <= held) {
            self.give_parts(at, &unit);
            at += unit.count;
        }
        at
    }

    /// What goes together from offset `at` on, of the first `held`; `None` while that is not known, or not to be sent yet.
    fn next_unit(&self, at: usize, held: usize) -> Option<Unit> {
        let Batching { batches, max, bytes_max, uncut_bytes, .. } = self.batching;
        let uncut = self.slots.len() - at;
        let has_much = uncut > max || uncut_bytes > bytes_max;
        if uncut == 0 || (!has_much && self.is_open_from(at)) {
            return None;
        }
        // While some are under way the others gather.
        let gathers = batches == Batches::Groups && at > 0;
        if gathers && uncut < max && uncut_bytes < bytes_max {
            return None;
        }
        let begun = self.is_begun(at);
        let (mut count, mut bytes, is_end) = self.fitting(at, max, bytes_max);
        if is_end && self.is_open_from(at) {
            return None;
        }
        let goes_by_itself = |from: usize, count: usize| {
            self.slots.range(from..from + count).any(|slot| slot.is_single || slot.is_ungrouped)
        };
        let mut is_full = !is_end || begun || goes_by_itself(at, count) || count == max;
        while batches == Batches::Groups && !is_full {
            let next = at + count;
            if next == self.slots.len() || self.is_open_from(next) {
                break;
            }
            // What is held back is not waited for.
            if next >= held {
                is_full = true;
                break;
            }
            let (more, more_bytes, is_end) = self.fitting(next, max - count, bytes_max.saturating_sub(bytes));
            is_full = !is_end || goes_by_itself(next, more) || bytes + more_bytes > bytes_max;
            if !is_full {
                count += more;
                bytes += more_bytes;
                is_full = count == max;
            }
        }
        (is_full || !gathers).then_some(Unit { count, begun, is_end })
    }

    /// How many messages of one transaction, from offset `at` on, go together within these bounds (one always does), their
    /// bytes, and whether these are all that are in line.
    fn fitting(&self, at: usize, max: usize, bytes_max: usize) -> (usize, usize, bool) {
        let first = &self.slots[at];
        let mut bytes = first.length;
        let mut count = 1;
        loop {
            let Some(next) = self.slots.get(at + count) else { return (count, bytes, true) };
            if next.position.commit_lsn != first.position.commit_lsn {
                return (count, bytes, true);
            }
            let has_room = count < max && bytes + next.length <= bytes_max;
            if !has_room || first.is_single || next.is_single || next.mode != first.mode {
                return (count, bytes, false);
            }
            bytes += next.length;
            count += 1;
        }
    }

    /// Whether the message at this offset is of the transaction whose events are arriving.
    fn is_open_from(&self, at: usize) -> bool {
        self.batching.open.is_some_and(|(_, from)| from <= self.base + at as u64)
    }

    /// Whether an event of the same transaction went before the one at this offset.
    fn is_begun(&self, at: usize) -> bool {
        let before = match at.checked_sub(1) {
            Some(before) => Some(self.slots[before].position),
            None => self.stream_end.last_stored.map(|(position, _)| position),
        };
        before.is_some_and(|before| before.commit_lsn == self.slots[at].position.commit_lsn)
    }

    fn give_parts(&mut self, at: usize, unit: &Unit) {
        let Unit { count, begun, is_end } = *unit;
        let is_whole = is_end && !begun;
        let of = u16::try_from(count).expect("at most BATCH_MAX");
        for nth in 1..=of {
            let offset = at + usize::from(nth) - 1;
            self.batching.uncut_bytes -= self.slots[offset].length;
            let mark = match nth {
                1 if !is_whole && !begun => Some(Mark::Begin),
                _ if nth == of && !is_whole && is_end => Some(Mark::End),
                _ => None,
            };
            // Alone and without a mark it is as it was written.
            if of > 1 || mark.is_some() {
                self.rewrite(offset, (nth, of), mark);
            }
        }
        self.batching.cut_upto += count as u64;
        if let Some((_, from)) = &mut self.batching.open {
            *from = self.batching.cut_upto.max(*from);
        }
    }

    /// Writes a message's front anew: for this attempt, and its part in a batch.
    pub(super) fn rewrite(&mut self, offset: usize, part: (u16, u16), mark: Option<Mark>) {
        let (nth, of) = part;
        let index = self.base + offset as u64;
        let ordering = self.slots[offset].mode.ordering;
        let expected = (ordering == Ordering::Strict && nth == 1).then(|| self.expected(index));
        let slot = &mut self.slots[offset];
        slot.part = part;
        let prefix = self.reply_prefix.as_slice();
        let has_stream = ordering != Ordering::Core;
        let front = Front {
            reply: (has_stream && nth == of).then_some((prefix, self.attempt, index)),
            expected,
            part: (of > 1).then(|| Part {
                id: (prefix, self.attempt, index + 1 - u64::from(nth)),
                nth,
                is_last: nth == of,
            }),
            // What was encoded before batches were wanted has no room for it.
            mark: mark.filter(|_| slot.layout.may_be_batched),
        };
        let message = self.send_buffer.message_mut(slot.place, slot.length);
        slot.layout.set_front(&front, message);
        slot.layout.finish(message);
    }

    fn offset(&self, index: u64) -> usize {
        usize::try_from(index - self.base).expect("within the line")
    }
}

/// Messages that go together.
struct Unit {
    count: usize,
    /// An event of its transaction went before.
    begun: bool,
    /// None of its transaction comes after.
    is_end: bool,
}
