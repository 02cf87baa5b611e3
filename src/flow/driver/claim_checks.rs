//! Payloads that are too large for a message, on their way into the object store.
//!
//! In: a lane's oversize event whose turn it is. Out: its claim check into the lane, once the object is durable; or, where the
//! object store will never take it, the event among the rejected. What time may end is tried again. One at a time for each lane.

use super::{Action, Driver, GroupId, Moment, Report, StreamId, Task, Timing, backoff::Backoff};
use crate::{
    error::{Kind, Result},
    flow::{lane::claim_check::Claim, streamer::Streamer},
};

/// A lane's claim check on its way, or its schema.
#[derive(Debug)]
pub struct Storing {
    /// The number of its event, and of the connection that its payload goes by: another server has another object store.
    pub(super) under_way: Option<(u64, u64)>,
    /// No attempt before then.
    pub(super) from: Option<Moment>,
    pub(super) backoff: Backoff,
}

impl Storing {
    pub fn new(timing: &Timing) -> Storing {
        Storing { under_way: None, from: None, backoff: timing.backoff() }
    }

    pub fn wakes_at(&self) -> Option<Moment> {
        self.from
    }
}

impl Driver {
    /// Begins to store a lane's claim check, where it is time. Returns whether it did.
    pub(super) fn store(&mut self, id: GroupId, lane: StreamId, streamer: &Streamer) -> bool {
        let Some(claim_check) = streamer.lane(lane.0).claim_check() else { return false };
        let (group, storing) = (&self.groups[id.0], &mut self.lanes[lane.0].storing);
        let its = (claim_check.number, group.connected_times);
        if storing.under_way == Some(its) && group.has_api {
            return false;
        }
        if storing.under_way.take().is_some() {
            self.actions.push_back(Action::Abandon(Task::Store(lane)));
        }
        if group.is_core || !group.has_api || storing.from.is_some_and(|from| self.now < from) {
            return false;
        }
        storing.from = None;
        storing.under_way = Some(its);
        self.actions.push_back(Action::Store(lane, its.0));
        true
    }

    pub(super) fn stored(
        &mut self,
        lane: StreamId,
        number: u64,
        outcome: Result<Claim>,
        streamer: &mut Streamer,
    ) -> Result<bool> {
        let storing = &mut self.lanes[lane.0].storing;
        if storing.under_way.is_none_or(|(under_way, _)| under_way != number) {
            return Ok(false);
        }
        storing.under_way = None;
        match outcome {
            Ok(claim) => {
                storing.backoff.reset();
                streamer.lane_mut(lane.0).claim(number, &claim);
                self.is_notable = true;
            }
            Err(error) if error.kind() == Kind::Unavailable => {
                storing.from = Some(self.now.after(storing.backoff.next(self.chance.draw())));
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
