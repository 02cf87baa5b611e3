//! A lane on its connection, after bytes and answers were moved: whether it goes on, settles, or is opened again.

use std::time::Duration;

use super::{ConnectionId, Driver, Flaw, StreamId, queue_state::Phase};
use crate::{
    error::{Error, Result},
    flow::streamer::Streamer,
};

impl Driver {
    /// Looks after all lanes of a connection. Returns whether something was begun.
    pub(super) fn look_after(
        &mut self,
        connection: ConnectionId,
        streamer: &mut Streamer,
        eager: bool,
    ) -> Result<bool> {
        let mut moved = false;
        for at in 0..self.groups[connection.group.0].links[connection.link].lanes.len() {
            let lane = self.groups[connection.group.0].links[connection.link].lanes[at];
            if self.lanes[lane.0].is_on_line() && std::mem::take(&mut self.lanes[lane.0].answered) {
                self.is_notable |= eager;
                self.lanes[lane.0].backoff.reset();
                self.stream_well(lane);
                self.groups[connection.group.0].backoff.reset();
                self.group_well(connection.group);
            }
            moved |= match self.lanes[lane.0].phase {
                Phase::Running => self.look_after_running(connection, lane, streamer)?,
                Phase::Settling(until) => self.look_after_settling(connection, lane, until <= self.now, streamer)?,
                Phase::Absent | Phase::Waiting(_) | Phase::Opening(_) => false,
            };
        }
        Ok(moved)
    }

    fn look_after_settling(
        &mut self,
        connection: ConnectionId,
        lane: StreamId,
        is_due: bool,
        streamer: &mut Streamer,
    ) -> Result<bool> {
        // What is refused while it settles is seen in the tail.
        self.lanes[lane.0].trouble = None;
        streamer.reject()?;
        let queue = streamer.lane(lane.0);
        let is_between = queue.is_between_messages() || self.has(Flaw::ReuseTornConnection);
        if !is_due && (queue.awaits_answers() || !is_between) {
            return Ok(false);
        }
        if !is_between {
            // Cut off within a message, a connection is of no more use.
            let error = Error::unavailable(format!("publish to {:?}: the server takes no more bytes", queue.stream()));
            self.lost(connection, error, None, streamer)?;
            return Ok(true);
        }
        // The other half may have waited for this.
        self.is_notable = true;
        // At once the first time; a stream that goes on refusing is not to be hammered.
        let backoff = &mut self.lanes[lane.0].backoff;
        let first = backoff.failures == 0;
        let wait = backoff.next(self.chance.draw());
        self.wait(lane, if first { Duration::ZERO } else { wait });
        if self.has(Flaw::ReuseTornConnection) {
            self.groups[connection.group.0].links[connection.link].is_within = false;
        }
        Ok(true)
    }

    fn look_after_running(
        &mut self,
        connection: ConnectionId,
        lane: StreamId,
        streamer: &mut Streamer,
    ) -> Result<bool> {
        let queue = streamer.lane(lane.0);
        // The messages that come next are in another mode, for which the stream's tail has to be read again; or another lane into the
        // same stream comes first.
        let yields = !self.siblings.is_empty() && !queue.awaits_answers() && !self.comes_first(lane, streamer);
        let state = &mut self.lanes[lane.0];
        if (!queue.is_open() || yields) && state.trouble.is_none() {
            streamer.lane_mut(lane.0).close();
            self.settle(lane);
            return Ok(true);
        }
        // Its stream may still be asked for the history. Opened again, the lane reads the stream's end again: the other half of its
        // configuration may publish meanwhile.
        if !state.is_wanted && queue.is_at_rest() && queue.is_between_messages() && !self.has(Flaw::KeepIdleLaneOpen) {
            streamer.lane_mut(lane.0).close();
            self.retire(connection.group, lane, streamer);
            return Ok(false);
        }
        let waits_for_ever = self.has(Flaw::WaitForEver);
        let state = &mut self.lanes[lane.0];
        let is_overdue =
            state.trouble.is_none() && state.is_overdue(queue, self.now, &self.settings.timing) && !waits_for_ever;
        let error = match state.trouble.take() {
            Some(error) => error,
            None if !is_overdue => return Ok(false),
            None => {
                let (error, is_dead) = self.no_answer(connection, lane, streamer);
                if is_dead {
                    self.lost(connection, error, None, streamer)?;
                    return Ok(true);
                }
                error
            }
        };
        streamer.lane_mut(lane.0).close();
        streamer.reject()?;
        self.is_notable = true;
        if !self.goes_on_after(&error) {
            return Err(error);
        }
        self.settle(lane);
        self.stream_failed(lane, error);
        Ok(true)
    }

    /// A message has waited for its answer for too long. Unless others are answered on its connection, that may be dead without
    /// knowing it.
    fn no_answer(&mut self, connection: ConnectionId, lane: StreamId, streamer: &Streamer) -> (Error, bool) {
        self.timeouts += 1;
        let ack_timeout = self.settings.timing.ack_timeout;
        let link = &self.groups[connection.group.0].links[connection.link];
        let stream = streamer.lane(lane.0).stream();
        let attempted = format!("no answer from {stream:?} for {} ms", ack_timeout.as_millis());
        let error = match &link.forbidden {
            Some(forbidden) => forbidden.error().context(attempted),
            None => Error::unavailable(attempted)
                .hint("check JetStream's health; a publish that the account may not make also goes unanswered"),
        };
        let is_dead = link.lanes.len() == 1 || !link.has_received(self.now, ack_timeout);
        (error, is_dead)
    }
}
