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
        let state = &mut self.lanes[lane.0];
        let wants_none = state.settings.as_ref().is_some_and(|settings| !settings.awaits_schemas);
        let (abandons, begins) = match wants_none {
            true => (state.schemas.end(), false),
            false => state.schemas.begin(nth, &self.groups[id.0], self.now),
        };
        if abandons {
            self.actions.push_back(Action::Abandon(Task::StoreSchema(lane)));
        }
        if wants_none {
            streamer.lane_mut(lane.0).pass_without_schemas();
            self.schemas_well(lane);
        } else if begins {
            self.actions.push_back(Action::StoreSchema(lane, nth));
        }
        wants_none || begins
    }

    pub(super) fn schema_stored(
        &mut self,
        lane: StreamId,
        nth: u64,
        outcome: Result<()>,
        streamer: &mut Streamer,
    ) -> Result<bool> {
        if !self.lanes[lane.0].schemas.answered(nth) {
            return Ok(false);
        }
        match outcome {
            Ok(()) => {
                streamer.lane_mut(lane.0).schema_stored(nth);
                self.schemas_well(lane);
            }
            Err(error) if !self.goes_on_after(&error) => return Err(error),
            Err(error) => {
                self.lanes[lane.0].schemas.again_after(self.now, self.chance.draw());
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
