//! Payloads that are too large for a message, on their way into the object store.
//!
//! In: a lane's oversize event whose turn it is. Out: its claim check into the lane, once the object is durable; or, where the
//! object store will never take it, the event among the rejected. What time may end is tried again. One at a time for each lane.

use super::{Action, Driver, GroupId, Moment, Report, StreamId, Task, Timing, backoff::Backoff, group::Group};
use crate::{
    error::{Kind, Result},
    flow::{lane::claim_check::Claim, streamer::Streamer},
};

/// A lane's claim check on its way, or its schema.
#[derive(Debug)]
pub struct Storing {
    /// The number of its event, and of the connection that its payload goes by: another server has another object store.
    under_way: Option<(u64, u64)>,
    /// No attempt before then.
    from: Option<Moment>,
    pub(super) backoff: Backoff,
}

impl Storing {
    pub fn new(timing: &Timing) -> Storing {
        Storing { under_way: None, from: None, backoff: timing.backoff() }
    }

    /// Begins with `number`, where it is time. Returns whether another one that is under way is to be abandoned, and whether this begins.
    pub fn begin(&mut self, number: u64, group: &Group, now: Moment) -> (bool, bool) {
        let its = (number, group.connected_times);
        if self.under_way == Some(its) && group.has_api {
            return (false, false);
        }
        let abandons = self.end();
        let begins = !group.is_core && group.has_api && self.from.is_none_or(|from| now >= from);
        if begins {
            self.from = None;
            self.under_way = Some(its);
        }
        (abandons, begins)
    }

    /// Nothing is under way any more. Returns whether something was.
    pub fn end(&mut self) -> bool {
        self.under_way.take().is_some()
    }

    /// The answer for `number` has come. Returns whether it was waited for.
    pub fn answered(&mut self, number: u64) -> bool {
        self.under_way.take_if(|(under_way, _)| *under_way == number).is_some()
    }

    /// It failed: no attempt before then. `chance` is from 0 to 1.
    pub fn again_after(&mut self, now: Moment, chance: f64) {
        self.from = Some(now.after(self.backoff.next(chance)));
    }

    pub fn wakes_at(&self) -> Option<Moment> {
        self.from
    }
}

impl Driver {
    /// Begins to store a lane's claim check, where it is time. Returns whether it did.
    pub(super) fn store(&mut self, id: GroupId, lane: StreamId, streamer: &Streamer) -> bool {
        let Some(claim_check) = streamer.lane(lane.0).claim_check() else { return false };
        let number = claim_check.number;
        let (abandons, begins) = self.lanes[lane.0].storing.begin(number, &self.groups[id.0], self.now);
        if abandons {
            self.actions.push_back(Action::Abandon(Task::Store(lane)));
        }
        if begins {
            self.actions.push_back(Action::Store(lane, number));
        }
        begins
    }

    pub(super) fn stored(
        &mut self,
        lane: StreamId,
        number: u64,
        outcome: Result<Claim>,
        streamer: &mut Streamer,
    ) -> Result<bool> {
        let storing = &mut self.lanes[lane.0].storing;
        if !storing.answered(number) {
            return Ok(false);
        }
        match outcome {
            Ok(claim) => {
                storing.backoff.reset();
                streamer.lane_mut(lane.0).claim(number, &claim);
                self.is_notable = true;
            }
            Err(error) if error.kind() == Kind::Unavailable => {
                storing.again_after(self.now, self.chance.draw());
                self.report(Report::NotStored(lane, error));
            }
            Err(error) if error.kind() == Kind::Fenced => return Err(error),
            Err(error) => {
                let why = format!("its payload cannot be put into an object store: {error}");
                streamer.lane_mut(lane.0).give_up(number, &why);
                self.is_notable = true;
                streamer.reject()?;
            }
        }
        Ok(true)
    }
}
