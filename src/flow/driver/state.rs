//! How publishing stands: for checkpoints, for what is asked before more is confirmed, and for status and metrics.

use std::collections::BTreeMap;

use super::{
    ConnectionId, Driver, Flaw, GroupId, NO_RESPONDERS, StreamId,
    trust::{Checkpoint, Retention},
};
use crate::{
    flow::{
        delay::{Due, sequence_of},
        streamer::Streamer,
    },
    route::tables::ConfigRow,
};

/// How a group stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupState {
    /// All its lanes are open, or need not be.
    pub is_up: bool,
    /// Events wait for it, and with them the slot.
    pub holds_slot: bool,
    /// Connecting was given up until its row changes.
    pub given_up: bool,
}

impl Driver {
    /// The groups that are in use.
    pub fn groups(&self) -> impl Iterator<Item = GroupId> + '_ {
        (0..self.groups.len()).map(GroupId).filter(|id| self.groups[id.0].in_use)
    }

    /// How many groups there are; it only grows.
    pub fn group_count(&self) -> usize {
        self.groups.len()
    }

    /// The group of a lane, once rows lead to it.
    pub fn group_of_stream(&self, lane: StreamId) -> Option<GroupId> {
        self.lanes.get(lane.0)?.group
    }

    /// The row of a group.
    pub fn row(&self, group: GroupId) -> &ConfigRow {
        &self.groups[group.0].row
    }

    /// Whether a group publishes to core NATS.
    pub fn is_core(&self, group: GroupId) -> bool {
        self.groups[group.0].is_core
    }

    /// The lanes of a group.
    pub fn lanes(&self, group: GroupId) -> &[StreamId] {
        &self.groups[group.0].lanes
    }

    /// The publishing connections of a group, whether they stand or not.
    pub fn connections(&self, group: GroupId) -> impl Iterator<Item = ConnectionId> + use<> {
        (0..self.groups[group.0].links.len()).map(move |link| ConnectionId { group, link })
    }

    /// How many events of a group, or of a lane, are in line.
    pub fn in_line(&self, group: GroupId) -> usize {
        self.groups[group.0].lanes.iter().map(|lane| self.lanes[lane.0].in_line).sum()
    }

    /// The same of a lane.
    pub fn stream_in_line(&self, lane: StreamId) -> usize {
        self.lanes[lane.0].in_line
    }

    /// Whether rows as they are lead to a lane.
    pub fn is_wanted(&self, lane: StreamId) -> bool {
        self.lanes[lane.0].is_wanted
    }

    /// What a lane's stream cannot do of its row.
    pub fn falls_back(&self, lane: StreamId) -> Option<&str> {
        self.lanes[lane.0].falls_back.as_deref()
    }

    /// Whether this run answers others on a group's account: none of them streams.
    pub fn answers_others(&self, group: GroupId) -> bool {
        let group = &self.groups[group.0];
        group.in_use && group.is_asked && (!group.is_core || group.other_runs.is_done())
    }

    /// Whether this database has a bucket on the account of a group that publishes to core NATS.
    pub fn has_bucket(&self, group: GroupId) -> bool {
        let group = &self.groups[group.0];
        group.in_use && group.is_core && group.other_runs.has_bucket()
    }

    /// How often connections for JetStream's API were made, and others asked for by them: when it changes, there are others.
    pub fn connected_times(&self) -> u64 {
        self.groups.iter().map(|group| group.connected_times).sum()
    }

    /// How a group stands.
    pub fn group_state(&self, group: GroupId, streamer: &Streamer) -> GroupState {
        let group = &self.groups[group.0];
        let is_up = |lane: &StreamId| self.lanes[lane.0].is_on_line() || self.lanes[lane.0].is_absent();
        let holds = |lane: &StreamId| !self.lanes[lane.0].is_on_line() && !streamer.lane(lane.0).is_empty();
        GroupState {
            is_up: group.lanes.iter().all(is_up),
            holds_slot: group.lanes.iter().any(holds),
            given_up: group.given_up,
        }
    }

    /// Whether events wait for a stream that takes none of them.
    pub fn has_trouble(&self, streamer: &Streamer) -> bool {
        let mut lanes = self.lanes.iter().enumerate();
        lanes.any(|(index, state)| {
            let has_failed = state.backoff.failures > 0 || state.schemas.backoff.failures > 0;
            (has_failed || !state.is_on_line()) && !streamer.lane(index).is_empty()
        })
    }

    /// What went wrong with publishing, by JetStream's code or a word, and how often.
    pub fn publish_errors(&self) -> BTreeMap<String, u64> {
        let mut errors =
            BTreeMap::from([("timeout".to_owned(), self.timeouts), ("connection".to_owned(), self.losses)]);
        for (code, count) in self.lanes.iter().flat_map(|state| &state.refusals) {
            let code = if *code == NO_RESPONDERS { "no_responders".to_owned() } else { code.to_string() };
            *errors.entry(code).or_default() += count;
        }
        errors
    }

    /// Where the streams stand, as far as acks have shown, and what they have to keep once that is confirmed which is `due`.
    pub fn checkpoints(&self, streamer: &Streamer, due: Option<&Due>) -> Vec<Checkpoint> {
        let lanes = self.lanes.iter().enumerate();
        let stands = lanes.filter_map(|(index, state)| {
            let stands = state.stands(streamer.lane(index))?;
            let due = due.and_then(|due| due.kept.get(index)).map_or(0, sequence_of);
            Some(Checkpoint { retained_through: stands.retained_through.map(|kept| kept.max(due)), ..stands })
        });
        stands.collect()
    }

    /// What the streams have to be asked before that is confirmed which is `due`: a server that is dead does not say that it has
    /// lost something. `None` while some of them cannot be asked; those `can_be_asked` have a connection that stands.
    pub fn retentions(
        &self,
        streamer: &Streamer,
        due: &Due,
        can_be_asked: impl Fn(StreamId) -> bool,
    ) -> Option<Vec<(StreamId, Retention)>> {
        let of = |&index: &usize| {
            let (lane, state) = (streamer.lane(index), &self.lanes[index]);
            let is_retired = state.is_absent() && !self.has(Flaw::LeaveRetiredUnasked);
            if !can_be_asked(StreamId(index)) || !(lane.is_open() || is_retired) {
                return None;
            }
            let (stream, created_ns) = (lane.stream().to_owned(), state.created_ns);
            Some((StreamId(index), Retention { stream, created_ns, kept: due.kept[index] }))
        };
        due.news.iter().map(of).collect()
    }
}
