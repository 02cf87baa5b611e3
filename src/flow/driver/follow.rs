//! What a round begins with: the configuration rows as they are now, and how each lane stands.

use std::time::Duration;

use super::{
    Driver, GroupId, StreamId,
    group::Group,
    queue_state::{Phase, QueueState},
    trust,
};
use crate::{
    flow::{
        lane::Ordering,
        streamer::{LaneSettings, Streamer},
    },
    route::tables::ConfigRow,
};

impl Driver {
    /// Whether rows have changed since they were followed.
    pub fn is_behind(&self, streamer: &Streamer) -> bool {
        self.generation != streamer.generation()
    }

    pub(super) fn begin(&mut self, streamer: &mut Streamer) {
        if self.is_behind(streamer) {
            self.follow(streamer);
        }
        let patience = self.settings.timing.ack_timeout + self.settings.timing.away;
        for (index, state) in self.lanes.iter_mut().enumerate() {
            let lane = streamer.lane_mut(index);
            state.in_line = lane.len();
            let since = state.stands_still_since(lane, self.now);
            lane.set_away(self.now.since(since) >= patience);
        }
        self.give_turns(streamer);
    }

    /// New lanes get a state; lanes whose rows have changed are opened again.
    fn follow(&mut self, streamer: &mut Streamer) {
        self.generation = streamer.generation();
        for index in 0..streamer.lane_count() {
            let lane = StreamId(index);
            let settings = streamer.lane_settings(index);
            if index == self.lanes.len() {
                let servers = &streamer.lane_key(index).servers;
                let known = settings.as_ref().and_then(|LaneSettings { config, stream, .. }| {
                    let aliases = &streamer.tables().aliases;
                    let checkpoints = &self.settings.checkpoints;
                    trust::checkpoint_of(checkpoints, aliases, config, &stream.stream_name, servers)
                });
                let known = known.cloned();
                self.lanes.push(QueueState::new(servers, known, &self.settings.timing));
            }
            let state = &mut self.lanes[index];
            state.is_wanted = streamer.lane_is_wanted(index);
            let Some(settings) = settings else { continue };
            let is_at_rest = state.is_absent() && streamer.lane(index).is_at_rest();
            let is_as_known =
                state.settings.as_ref().filter(|_| !state.is_absent()).is_some_and(|known| {
                    known.config.says_the_same(&settings.config) && known.stream == settings.stream
                });
            if !state.is_wanted && (is_as_known || is_at_rest) {
                // Rows that are gone leave the lane to drain as it is, by the newest way into its server. They may have come
                // and gone in one moment, though, and left something in it.
                if let Some(known) = &mut state.settings {
                    known.is_current = settings.is_current;
                    known.awaits_schemas = settings.awaits_schemas;
                }
                // Its stream may still have to be asked what it has: a row that was written tries its servers again.
                if self.lanes[index].group.is_some_and(|id| self.groups[id.0].given_up) {
                    self.group_of(lane, &settings.config, streamer);
                }
                continue;
            }
            self.follow_settings(lane, settings, streamer);
        }
        self.find_siblings(streamer);
    }

    fn follow_settings(&mut self, lane: StreamId, settings: LaneSettings, streamer: &mut Streamer) {
        let id = self.group_of(lane, &settings.config, streamer);
        let backoff = self.settings.timing.backoff();
        let state = &mut self.lanes[lane.0];
        let stream_changed = state.settings.as_ref().is_none_or(|known| known.stream != settings.stream);
        state.settings = Some(settings);
        if state.is_absent() {
            self.wait(lane, Duration::ZERO);
            self.groups[id.0].in_use = true;
        } else if stream_changed {
            state.backoff = backoff;
            self.stream_well(lane);
            streamer.lane_mut(lane.0).close();
            match self.lanes[lane.0].phase {
                Phase::Running => self.settle(lane),
                Phase::Settling(_) => {}
                Phase::Absent | Phase::Waiting(_) | Phase::Opening(_) => self.wait(lane, Duration::ZERO),
            }
        }
    }

    /// The group of a lane, which follows the row `config` from here on.
    fn group_of(&mut self, lane: StreamId, config: &ConfigRow, streamer: &mut Streamer) -> GroupId {
        let is_core = streamer.lane(lane.0).ordering() == Ordering::Core;
        let servers = &streamer.lane_key(lane.0).servers;
        let is_its = |group: &Group| {
            group.row.config_id == config.config_id && group.is_core == is_core && group.servers == *servers
        };
        let id = GroupId(self.groups.iter().position(is_its).unwrap_or_else(|| {
            self.groups.push(Group::new(config.clone(), servers.clone(), is_core, &self.settings.timing));
            self.groups.len() - 1
        }));
        let group = &mut self.groups[id.0];
        if !group.row.says_the_same(config) {
            self.replace_row(id, config.clone());
            for lane in self.groups[id.0].lanes.clone() {
                streamer.lane_mut(lane.0).close();
                // It may be another account.
                streamer.lane_mut(lane.0).ask_for_schemas_again();
                self.stream_well(lane);
                self.lanes[lane.0].backoff = self.settings.timing.backoff();
                if !self.lanes[lane.0].is_absent() {
                    self.wait(lane, Duration::ZERO);
                }
            }
        } else if group.row.revision != config.revision {
            group.row.revision = config.revision;
            if group.given_up {
                self.revive(id);
                self.group_well(id);
            }
        }
        if self.lanes[lane.0].group.is_none() {
            self.add_stream(id, lane);
            self.lanes[lane.0].group = Some(id);
        }
        id
    }
}
