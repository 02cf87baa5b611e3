//! What PostgreSQL may forget.
//!
//! Comes in: what the lanes have settled, where streams end, and the clock. Goes out: the position to confirm. Always holds: it is the
//! end of a commit before which every event is settled, or a keepalive's position while nothing is unsettled and no transaction is
//! open; and it only grows.

use super::{Streamer, ends::Missing};
use crate::{
    error::{Error, Result},
    flow::{
        delay::{Due, sequence_of},
        event_id::{EventPosition, REWRITTEN},
        lane::Lane,
    },
    wal::lsn::Lsn,
};

impl Streamer {
    /// Moves `confirmed` as far as what is settled allows.
    pub fn settle(&mut self) {
        if !self.ends.have_come() {
            return;
        }
        let oldest = self.oldest();
        self.out.window.settle(oldest);
        if let Some(upto) = self.idle_upto
            && self.is_drained()
        {
            self.out.window.idle(upto);
            self.idle_upto = None;
        }
        if !self.doubts.is_empty() {
            self.set_doubts();
        }
        if self.delay.is_off() {
            return;
        }
        self.delay.hold(self.out.window.confirmed(), self.now.steady, self.out.lanes.iter().map(Lane::last_settled));
        if let Some(due) = self.due().filter(|due| due.news.is_empty()) {
            self.delay.confirm(due);
        }
    }

    /// What could be confirmed after its delay, and may be once the streams are known to have what it says, and the checkpoints
    /// say it too: [`Streamer::checkpointed`].
    pub fn due(&self) -> Option<Due> {
        self.delay.due(self.now.steady, self.out.lanes.iter().map(Lane::last_settled))
    }

    /// The stream of a lane ends with this event of ours. Nothing more is confirmed before it has come down the slot.
    ///
    /// # Errors
    /// [`crate::error::Kind::Untrusted`]: it is not in the WAL, now or when the WAL was read up to there ([`Streamer::receive`]).
    pub(in crate::flow) fn expect_end(&mut self, index: usize, position: EventPosition) -> Result<()> {
        self.ends.expect(index, position).map_err(|missing| rewritten(&self.out.lanes, missing))
    }

    /// Whether a lane's stream will be asked for what it has, before more is confirmed.
    pub(in crate::flow) fn is_to_be_asked(&self, index: usize) -> bool {
        self.delay.asks(index, self.out.lanes[index].last_settled())
    }

    /// The streams have it, and the checkpoints say that they have to keep it.
    pub fn checkpointed(&mut self, due: Due) {
        // Of a stream that was not looked at yet only its tail will tell.
        let lanes = self.out.lanes.iter_mut().zip(&due.kept).filter(|(lane, _)| lane.retained_through().is_some());
        lanes.for_each(|(lane, kept)| lane.set_retained_through(sequence_of(kept)));
        self.delay.confirm(due);
    }

    /// Whether all that was received whole is settled and no transaction is open.
    pub fn is_drained(&self) -> bool {
        self.assembler.transaction().is_none()
            && self.out.window.is_settled()
            && self.oldest() == self.out.window.next()
    }

    /// The number of the oldest event, or change of rules, that is not settled; or the next number.
    pub(super) fn oldest(&self) -> u64 {
        self.out.oldest().min(self.router.log.oldest().unwrap_or(u64::MAX))
    }

    /// Whether every event made so far is settled, or waits for the rest of its transaction.
    pub fn has_nothing_in_flight(&self) -> bool {
        let rest = |lane: &Lane| if lane.in_flight().is_some() { lane.oldest() } else { lane.oldest_behind_line() };
        let oldest = self.out.oldest_by(rest).min(self.router.log.oldest().unwrap_or(u64::MAX));
        oldest == self.out.window.next()
    }

    /// What PostgreSQL may forget.
    pub fn confirmed(&self) -> Lsn {
        if self.delay.is_off() { self.out.window.confirmed() } else { self.delay.confirmed() }
    }

    /// What has arrived.
    pub fn received(&self) -> Lsn {
        self.out.window.received()
    }

    /// How far PostgreSQL's WAL reaches, as far as it has told: what has arrived, and the commit of the transaction
    /// whose rows are arriving, which lies ahead of them.
    pub fn known_wal(&self) -> Lsn {
        let open = self.assembler.transaction().map(|transaction| transaction.commit_lsn);
        self.received().max(open.unwrap_or(Lsn::ZERO))
    }
}

/// A stream ends with an event that is not in the WAL.
pub(super) fn rewritten(lanes: &[Lane], Missing { lane, position }: Missing) -> Error {
    Error::untrusted(format!(
        "go on in stream {:?}: its last event of this database was committed at {}, and PostgreSQL's WAL has no such commit there",
        lanes[lane].stream(),
        position.commit_lsn
    ))
    .hint(REWRITTEN)
}
