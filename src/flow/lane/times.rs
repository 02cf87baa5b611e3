//! How long the messages of a lane took, and how things stand in it: for whoever shows that.

use super::{Lane, Slot, Timestamps};
use crate::flow::histogram::Histogram;

/// How long the acknowledged messages of a lane took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Times {
    /// From the socket to the ack.
    pub publish: Histogram,
    /// From the commit in PostgreSQL to the ack, by the clocks of both machines.
    pub commit_to_ack: Histogram,
}

impl Times {
    /// Adds those of another lane.
    pub fn add(&mut self, other: &Times) {
        self.publish.add(&other.publish);
        self.commit_to_ack.add(&other.commit_to_ack);
    }

    pub(super) fn record(&mut self, slot: &Slot, now: Timestamps) {
        self.publish.record(now.steady.saturating_sub(slot.sent_at));
        self.commit_to_ack.record(u64::try_from(now.wall.saturating_sub(slot.position.commit_time)).unwrap_or(0));
    }
}

/// What was counted of a lane's messages since it began.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Those that the stream stored.
    pub(super) stored: u64,
    /// Acks that said that it had them.
    pub(super) duplicates: u64,
    pub(super) times: Times,
}

impl Lane {
    /// How many bytes its server takes as one message, as far as it has told.
    pub fn max_payload(&self) -> usize {
        self.payload_limit.bytes
    }

    /// How long they took, since the lane began.
    pub fn times(&self) -> &Times {
        &self.tally.times
    }

    /// When the oldest event in line was committed, in µs since 2000-01-01.
    pub fn oldest_commit_time(&self) -> Option<i64> {
        let claim_check = self.claim_checks.front().map(|claim_check| claim_check.position.commit_time);
        self.slots.front().map(|slot| slot.position.commit_time).into_iter().chain(claim_check).min()
    }
}
