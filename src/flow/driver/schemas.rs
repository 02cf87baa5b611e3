//! Schemas on their way into their bucket, before messages that name them are sent.
//!
//! In: the schema that a lane waits for. Out: the lane goes on, once the schema is durable. Whatever keeps it from that is reported
//! and tried again: nothing is sent without its schema, unless the newest row wants none any more. One at a time for each lane.

use super::{Action, Driver, GroupId, Report, StreamId, Task};
use crate::{error::Result, flow::streamer::Streamer};

impl Driver {
    /// Begins to store the schema that a lane waits for, where it is time. Returns whether something has changed.
    pub(super) fn store_schema(&mut self, id: GroupId, lane: StreamId, streamer: &mut Streamer) -> bool {
        let Some((nth, _)) = streamer.lane(lane.0).schema_to_store() else { return false };
        let (group, state) = (&self.groups[id.0], &mut self.lanes[lane.0]);
        if state.settings.as_ref().is_some_and(|settings| !settings.awaits_schemas) {
            if state.schemas.under_way.take().is_some() {
                self.actions.push_back(Action::Abandon(Task::StoreSchema(lane)));
            }
            streamer.lane_mut(lane.0).pass_without_schemas();
            self.schemas_well(lane);
            return true;
        }
        let its = (nth, group.connected_times);
        if state.schemas.under_way == Some(its) && group.has_api {
            return false;
        }
        if state.schemas.under_way.take().is_some() {
            self.actions.push_back(Action::Abandon(Task::StoreSchema(lane)));
        }
        if group.is_core || !group.has_api || state.schemas.from.is_some_and(|from| self.now < from) {
            return false;
        }
        state.schemas.from = None;
        state.schemas.under_way = Some(its);
        self.actions.push_back(Action::StoreSchema(lane, nth));
        true
    }

    pub(super) fn schema_stored(
        &mut self,
        lane: StreamId,
        nth: u64,
        outcome: Result<()>,
        streamer: &mut Streamer,
    ) -> Result<bool> {
        let storing = &mut self.lanes[lane.0].schemas;
        if storing.under_way.is_none_or(|(under_way, _)| under_way != nth) {
            return Ok(false);
        }
        storing.under_way = None;
        match outcome {
            Ok(()) => {
                streamer.lane_mut(lane.0).schema_stored(nth);
                self.schemas_well(lane);
            }
            Err(error) if !self.goes_on_after(&error) => return Err(error),
            Err(error) => {
                let storing = &mut self.lanes[lane.0].schemas;
                storing.from = Some(self.now.after(storing.backoff.next(self.chance.draw())));
                self.report(Report::SchemaNotStored(lane, error));
            }
        }
        Ok(true)
    }

    fn schemas_well(&mut self, lane: StreamId) {
        let backoff = &mut self.lanes[lane.0].schemas.backoff;
        if backoff.failures > 0 {
            backoff.reset();
            self.report(Report::SchemasStored(lane));
        }
    }
}
