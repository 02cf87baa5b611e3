//! Whether the ends of the streams were read from this WAL.
//!
//! In: the commits that come down the slot, and the last event that each stream has. Out: an error where such an event is not
//! in the WAL at its place: the database was set back since, or is a copy, and the stream has events that it does not know.
//! Until the WAL was read up to there nothing may be confirmed, for events are taken for stored by the stream's end alone.
//! Always holds: an event whose commit lies behind the position at which the slot began comes down the slot again, so one that
//! does not come is of another history.

use std::collections::VecDeque;

use crate::{flow::event_id::EventPosition, wal::lsn::Lsn};

/// So many commits are remembered, for streams that are reached later. 1 MiB.
const REMEMBERED_MAX: usize = 65_536;

/// See the module.
#[derive(Debug)]
pub struct StreamEnds {
    /// Commits up to here are not known: the slot began behind them, or they are not remembered any more.
    unknown_upto: Lsn,
    /// The commits since, and their times.
    begun: VecDeque<(Lsn, i64)>,
    /// All commits before this have come.
    passed: Lsn,
    /// Ends that have not come yet, each with its lane.
    awaited: Vec<(usize, EventPosition)>,
}

/// The last event of a lane's stream is not in the WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missing {
    /// The lane.
    pub lane: usize,
    /// The event.
    pub position: EventPosition,
}

impl StreamEnds {
    /// The slot begins at `confirmed`: commits from there on come.
    pub fn new(confirmed: Lsn) -> StreamEnds {
        let unknown_upto = Lsn(confirmed.0.saturating_sub(1));
        StreamEnds { unknown_upto, begun: VecDeque::new(), passed: confirmed, awaited: Vec::new() }
    }

    /// A transaction has come. They come in the order of their commits.
    pub fn begin(&mut self, commit_lsn: Lsn, commit_time: i64) -> Result<(), Missing> {
        if self.begun.len() == REMEMBERED_MAX
            && let Some((forgotten, _)) = self.begun.pop_front()
        {
            self.unknown_upto = forgotten;
        }
        self.begun.push_back((commit_lsn, commit_time));
        if self.awaited.is_empty() {
            return Ok(());
        }
        self.awaited.retain(|(_, end)| (end.commit_lsn, end.commit_time) != (commit_lsn, commit_time));
        self.pass(Lsn(commit_lsn.0 + 1))
    }

    /// All commits before `upto` have come, the last of them whole.
    pub fn pass(&mut self, upto: Lsn) -> Result<(), Missing> {
        self.passed = self.passed.max(upto);
        match self.awaited.iter().find(|(_, end)| end.commit_lsn < self.passed) {
            Some(&(lane, position)) => Err(Missing { lane, position }),
            None => Ok(()),
        }
    }

    /// The stream of a lane ends with this event.
    pub fn expect(&mut self, lane: usize, position: EventPosition) -> Result<(), Missing> {
        let EventPosition { commit_lsn, commit_time, .. } = position;
        if commit_lsn <= self.unknown_upto {
            return Ok(());
        }
        let read_upto = self.begun.back().map_or(self.passed, |(last, _)| self.passed.max(Lsn(last.0 + 1)));
        match self.begun.binary_search_by_key(&commit_lsn, |(lsn, _)| *lsn) {
            Ok(at) if self.begun[at].1 == commit_time => Ok(()),
            Err(_) if commit_lsn >= read_upto => {
                self.awaited.push((lane, position));
                Ok(())
            }
            Ok(_) | Err(_) => Err(Missing { lane, position }),
        }
    }

    /// Whether every end has come.
    pub fn have_come(&self) -> bool {
        self.awaited.is_empty()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn at(commit_lsn: u64, commit_time: i64) -> EventPosition {
        EventPosition { commit_lsn: Lsn(commit_lsn), commit_time, ordinal: 0, webhook_id: 1 }
    }

    #[test]
    fn an_end_has_to_come_down_the_slot_at_its_place() {
        let mut ends = StreamEnds::new(Lsn(100));
        ends.begin(Lsn(110), 1).unwrap();
        assert_eq!(ends.expect(0, at(99, 7)), Ok(()), "confirmed before: it does not come again");
        assert_eq!(ends.expect(0, at(110, 1)), Ok(()), "it has come");
        assert_eq!(
            ends.expect(3, at(110, 2)),
            Err(Missing { lane: 3, position: at(110, 2) }),
            "another commit is there"
        );
        assert_eq!(ends.expect(3, at(105, 1)), Err(Missing { lane: 3, position: at(105, 1) }), "no commit was there");
        assert!(ends.have_come());
        ends.expect(1, at(130, 3)).unwrap();
        ends.begin(Lsn(120), 2).unwrap();
        assert!(!ends.have_come());
        assert_eq!(ends.pass(Lsn(130)), Ok(()), "it begins there");
        ends.begin(Lsn(130), 3).unwrap();
        assert!(ends.have_come());
        ends.expect(1, at(140, 4)).unwrap();
        let missing = Missing { lane: 1, position: at(140, 4) };
        assert_eq!(ends.begin(Lsn(150), 5), Err(missing));
    }

    #[test]
    fn an_idle_wal_that_goes_past_an_end_does_not_have_it() {
        let mut ends = StreamEnds::new(Lsn(100));
        ends.expect(0, at(100, 1)).unwrap();
        assert!(!ends.have_come());
        assert_eq!(ends.pass(Lsn(101)), Err(Missing { lane: 0, position: at(100, 1) }));
        let mut ends = StreamEnds::new(Lsn(100));
        ends.pass(Lsn(150)).unwrap();
        assert_eq!(ends.expect(0, at(120, 1)), Err(Missing { lane: 0, position: at(120, 1) }));
    }

    #[test]
    fn what_is_not_remembered_is_taken_for_known() {
        let mut ends = StreamEnds::new(Lsn(0));
        for lsn in 1..=REMEMBERED_MAX as u64 + 10 {
            ends.begin(Lsn(lsn * 10), 1).unwrap();
        }
        assert_eq!(ends.expect(0, at(55, 9)), Ok(()));
        assert!(ends.expect(0, at(105, 9)).is_err());
    }
}
