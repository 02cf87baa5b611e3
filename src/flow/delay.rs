//! What is settled and waits before it is confirmed: JetStream acknowledges before it syncs to disk, so what it may lose in a
//! power cut is to be in the slot still.
//!
//! In: how far all is settled, and up to which sequence each stream has taken what is; when. Out: a place in the WAL, once all
//! before it has been settled for the whole delay, with the last event in each. Who confirms it first asks the streams whether they
//! have these still, for a server that is dead does not say that it has lost something; and makes them durable in the
//! checkpoints: a stream that has all up to there has lost nothing that the slot does not bring again. Time comes in as an
//! argument.

use std::{collections::VecDeque, time::Duration};

use super::event_id::EventPosition;
use crate::wal::lsn::Lsn;

/// The last event that a stream has to keep, and its sequence there; `None` where there is none.
pub type Retained = Option<(EventPosition, u64)>;

/// 0 where there is none.
pub fn sequence_of(kept: &Retained) -> u64 {
    kept.map_or(0, |(_, sequence)| sequence)
}

/// Places that come so close together, in parts of the delay, wait as one: that bounds how many there are.
const GRAINS: u64 = 64;

/// A place that has waited long enough.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// The place.
    pub upto: Lsn,
    /// For each lane: up to which event its stream has to keep what it has taken.
    pub kept: Vec<Retained>,
    /// The lanes of which this is news: their streams are to be asked. With none it may be confirmed as it is.
    pub news: Vec<usize>,
}

/// See the module.
#[derive(Debug)]
pub struct Delay {
    /// In µs of a clock that only goes forward; 0: nothing waits.
    micros: u64,
    waiting: VecDeque<Waiting>,
    confirmed: Lsn,
    /// What was confirmed last.
    kept: Vec<Retained>,
}

#[derive(Debug)]
struct Waiting {
    upto: Lsn,
    kept: Vec<Retained>,
    /// When the first and the last that it stands for were settled.
    first: u64,
    last: u64,
}

impl Delay {
    /// Nothing waits; PostgreSQL has confirmed up to `confirmed`.
    pub fn new(delay: Duration, confirmed: Lsn) -> Delay {
        let micros = u64::try_from(delay.as_micros()).unwrap_or(u64::MAX);
        Delay { micros, waiting: VecDeque::new(), confirmed, kept: Vec::new() }
    }

    /// Whether there is none.
    pub fn is_off(&self) -> bool {
        self.micros == 0
    }

    /// All up to `settled` is, at `now`.
    pub fn hold(&mut self, settled: Lsn, now: u64, kept: impl Iterator<Item = Retained>) {
        if settled <= self.waiting.back().map_or(self.confirmed, |last| last.upto) {
            return;
        }
        let kept = kept.collect();
        match self.waiting.back_mut() {
            Some(last) if now.saturating_sub(last.first) < self.micros / GRAINS => {
                *last = Waiting { upto: settled, kept, first: last.first, last: now };
            }
            _ => self.waiting.push_back(Waiting { upto: settled, kept, first: now, last: now }),
        }
    }

    /// The last place that has waited long enough by `now`. A stream that was replaced has sequences of its own: of none more
    /// counts than is `settled` in it.
    pub fn due(&self, now: u64, settled: impl Iterator<Item = Retained>) -> Option<Due> {
        let count = self.waiting.partition_point(|waiting| waiting.last.saturating_add(self.micros) <= now);
        let waiting = self.waiting.get(count.checked_sub(1)?)?;
        let earlier = |(waiting, settled): (&Retained, Retained)| {
            if sequence_of(&settled) < sequence_of(waiting) { settled } else { *waiting }
        };
        let kept: Vec<_> = waiting.kept.iter().zip(settled).map(earlier).collect();
        let known = self.kept.iter().copied().chain(std::iter::repeat(None));
        let news = kept.iter().zip(known).enumerate().filter(|(_, (now, known))| *now != known);
        Some(Due { upto: waiting.upto, news: news.map(|(lane, _)| lane).collect(), kept })
    }

    /// Confirms it.
    pub fn confirm(&mut self, due: Due) {
        while self.waiting.front().is_some_and(|waiting| waiting.upto <= due.upto) {
            self.waiting.pop_front();
        }
        self.confirmed = self.confirmed.max(due.upto);
        self.kept = due.kept;
    }

    /// Whether a stream will be asked for what it has, now that so much of it is `settled`.
    pub fn asks(&self, lane: usize, settled: Retained) -> bool {
        !self.is_off() && self.kept.get(lane).copied().flatten() != settled
    }

    /// What PostgreSQL may forget; it never goes down.
    pub fn confirmed(&self) -> Lsn {
        self.confirmed
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn at(sequence: u64) -> Retained {
        let position = EventPosition { commit_lsn: Lsn(sequence), commit_time: 1, ordinal: 0, webhook_id: 1 };
        (sequence > 0).then_some((position, sequence))
    }

    fn hold(delay: &mut Delay, settled: u64, now: u64, sequences: [u64; 2]) {
        delay.hold(Lsn(settled), now, sequences.into_iter().map(at));
    }

    fn due_at(delay: &Delay, now: u64) -> Option<Due> {
        delay.due(now, [100, 100].into_iter().map(at))
    }

    fn due(delay: &Delay, now: u64) -> Option<(u64, Vec<u64>, Vec<usize>)> {
        let due = due_at(delay, now)?;
        Some((due.upto.0, due.kept.iter().map(sequence_of).collect(), due.news))
    }

    #[test]
    fn a_place_waits_for_the_whole_delay_and_those_close_together_wait_for_the_last_of_them() {
        let mut delay = Delay::new(Duration::from_micros(6400), Lsn(10));
        hold(&mut delay, 20, 1000, [5, 0]);
        hold(&mut delay, 30, 1099, [6, 0]);
        hold(&mut delay, 30, 1150, [9, 9]);
        hold(&mut delay, 40, 1100, [6, 0]);
        hold(&mut delay, 50, 1300, [6, 200]);
        assert_eq!((due(&delay, 7498), delay.confirmed()), (None, Lsn(10)));
        assert_eq!(due(&delay, 7499), Some((30, vec![6, 0], vec![0])));
        let ready = due_at(&delay, 7499).unwrap();
        delay.confirm(ready);
        assert_eq!((delay.confirmed(), due(&delay, 7499)), (Lsn(30), None));
        // Nothing has come into any stream since.
        assert_eq!(due(&delay, 7500), Some((40, vec![6, 0], vec![])));
        // The stream was replaced, and is not there yet.
        assert_eq!(due(&delay, u64::MAX), Some((50, vec![6, 100], vec![1])));
        let ready = due_at(&delay, u64::MAX).unwrap();
        delay.confirm(ready);
        assert_eq!((delay.confirmed(), due(&delay, u64::MAX)), (Lsn(50), None));
    }

    #[test]
    fn however_fast_commits_come_few_of_them_wait() {
        let mut delay = Delay::new(Duration::from_secs(120), Lsn(0));
        for commit in 1..=1_000_000 {
            delay.hold(Lsn(commit), commit * 1000, std::iter::empty());
            if let Some(due) = delay.due(commit * 1000, std::iter::empty()) {
                assert!(due.upto.0 + 120_000 <= commit, "{} is confirmed at {commit}", due.upto);
                delay.confirm(due);
            }
            assert!(delay.waiting.len() <= 66, "{} wait", delay.waiting.len());
        }
        assert!(delay.confirmed() > Lsn(1_000_000 - 125_000), "{}", delay.confirmed());
    }
}
