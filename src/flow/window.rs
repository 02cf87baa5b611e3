//! What may be confirmed to PostgreSQL: the end of a commit before which every event is settled.
//!
//! Events of all lanes are numbered in one sequence as they are made. A commit is a mark in that sequence; it may be
//! confirmed once the oldest unsettled number, over all lanes and dead letters, lies behind it.

use std::collections::VecDeque;

use crate::wal::lsn::Lsn;

/// The commits that wait for their events.
#[derive(Debug)]
pub struct Window {
    commits: VecDeque<Commit>,
    next: u64,
    received: Lsn,
    confirmed: Lsn,
}

#[derive(Debug, Clone, Copy)]
struct Commit {
    end_lsn: Lsn,
    /// Events numbered below this belong to this commit or one before it.
    upto: u64,
}

impl Window {
    /// Nothing in flight; PostgreSQL has confirmed up to `confirmed`.
    pub fn new(confirmed: Lsn) -> Window {
        Window { commits: VecDeque::new(), next: 0, received: confirmed, confirmed }
    }

    /// The number of the next event; it counts up when the event is really made.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// An event was made.
    pub fn count_event(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        number
    }

    /// WAL up to here has arrived.
    pub fn receive(&mut self, upto: Lsn) {
        self.received = self.received.max(upto);
    }

    /// A transaction is complete.
    pub fn commit(&mut self, end_lsn: Lsn) {
        self.receive(end_lsn);
        match self.commits.back_mut() {
            // A commit without events of its own rides on the one before it.
            Some(last) if last.upto == self.next => last.end_lsn = last.end_lsn.max(end_lsn),
            _ => self.commits.push_back(Commit { end_lsn, upto: self.next }),
        }
    }

    /// Every event numbered below `oldest` is settled.
    pub fn settle(&mut self, oldest: u64) {
        assert!(oldest <= self.next, "only events that were made are settled");
        while let Some(commit) = self.commits.front()
            && commit.upto <= oldest
        {
            self.confirmed = self.confirmed.max(commit.end_lsn);
            self.commits.pop_front();
        }
        assert!(self.confirmed <= self.received, "what is confirmed was received");
    }

    /// Nothing received is unsettled, so there is nothing between here and `upto` for us.
    /// The caller knows that no transaction is open.
    pub fn idle(&mut self, upto: Lsn) {
        assert!(self.commits.is_empty(), "idle is when no commit waits");
        self.receive(upto);
        self.confirmed = self.confirmed.max(upto);
    }

    /// Whether no commit waits for its events.
    pub fn is_settled(&self) -> bool {
        self.commits.is_empty()
    }

    /// How many commits wait.
    pub fn waiting(&self) -> usize {
        self.commits.len()
    }

    /// The last byte of WAL + 1 that arrived.
    pub fn received(&self) -> Lsn {
        self.received
    }

    /// What PostgreSQL may forget; it never goes down.
    pub fn confirmed(&self) -> Lsn {
        self.confirmed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_commit_is_confirmed_when_all_events_before_it_are_settled() {
        let mut window = Window::new(Lsn(10));
        window.count_event();
        window.count_event();
        window.commit(Lsn(20));
        window.count_event();
        window.commit(Lsn(30));
        window.settle(1);
        assert_eq!(window.confirmed(), Lsn(10));
        window.settle(2);
        assert_eq!(window.confirmed(), Lsn(20));
        window.settle(3);
        assert_eq!((window.confirmed(), window.is_settled()), (Lsn(30), true));
        window.idle(Lsn(25));
        assert_eq!(window.confirmed(), Lsn(30), "it never goes down");
        window.idle(Lsn(40));
        assert_eq!(window.confirmed(), Lsn(40));
    }

    #[test]
    fn commits_without_events_do_not_pile_up_behind_one_that_waits() {
        let mut window = Window::new(Lsn(0));
        window.count_event();
        for end in 1..1000 {
            window.commit(Lsn(end));
        }
        assert_eq!((window.waiting(), window.confirmed()), (1, Lsn(0)));
        window.settle(1);
        assert_eq!(window.confirmed(), Lsn(999));
    }

    proptest! {
        /// Against a plain list of every event and commit.
        #[test]
        fn the_window_agrees_with_a_naive_model(steps in prop::collection::vec(0u8..4, 1..200)) {
            let mut window = Window::new(Lsn(0));
            let (mut lsn, mut oldest) = (0u64, 0u64);
            let mut model: Vec<(u64, u64)> = Vec::new(); // (end, events before it)
            for step in steps {
                match step {
                    0 | 1 => { window.count_event(); }
                    2 => { lsn += 10; window.commit(Lsn(lsn)); model.push((lsn, window.next())); }
                    _ => { oldest = (oldest + 2).min(window.next()); window.settle(oldest); }
                }
                let expected = model.iter().rev().find(|(_, upto)| *upto <= oldest).map_or(0, |(end, _)| *end);
                // A commit without events may be confirmed at the next settle only.
                window.settle(oldest);
                prop_assert_eq!(window.confirmed(), Lsn(expected));
            }
        }
    }
}
