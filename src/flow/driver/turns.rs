//! Whose turn it is: what each group and each lane may begin now.
//!
//! In: the state of all groups and lanes. Out: attempts to connect, questions, lanes that open or close. Always holds: of the two
//! halves of a configuration that was switched between JetStream and core NATS one publishes at a time.

use std::time::Duration;

use super::{
    Action, ConnectionId, Driver, Flaw, GroupId, Report, StreamId,
    group::Group,
    opening::{Known, Next, Opened, Opening, Reply},
    queue_state::Phase,
    trust::{self, TailTrust},
};
use crate::{
    error::Result,
    flow::{
        event_id::EventPosition,
        lane::{Tail, still_in_slot},
        streamer::Streamer,
    },
};

impl Driver {
    /// All that a group and its lanes may begin now. Returns whether something was.
    pub(super) fn turn(&mut self, id: GroupId, streamer: &mut Streamer) -> Result<bool> {
        self.rest(id, streamer);
        let mut moved = self.connect(id) | self.ask_runs(id);
        for at in 0..self.groups[id.0].lanes.len() {
            let lane = self.groups[id.0].lanes[at];
            moved |= self.begin_opening(id, lane, streamer)?;
            moved |= self.store(id, lane, streamer);
            moved |= self.store_schema(id, lane, streamer);
        }
        // Before anything is sent: rows may have changed since.
        if !self.has_its_turn(id, streamer) {
            for at in 0..self.groups[id.0].lanes.len() {
                let lane = self.groups[id.0].lanes[at];
                if matches!(self.lanes[lane.0].phase, Phase::Running) {
                    streamer.lane_mut(lane.0).close();
                    self.settle(lane);
                    moved = true;
                }
            }
            streamer.reject()?;
        }
        Ok(moved)
    }

    /// The other half of a configuration that was switched between JetStream and core NATS. On one server core NATS may
    /// lead into the same streams, whose order wants no other writer: so one of them publishes at a time. Core NATS does not
    /// tell whether two addresses are one server, so they count as one.
    fn other_half(&self, id: GroupId) -> impl Iterator<Item = &Group> {
        let here = &self.groups[id.0];
        let is_its = |there: &&Group| there.is_core != here.is_core && there.row.config_id == here.row.config_id;
        self.groups.iter().filter(is_its)
    }

    fn other_half_is_on_line(&self, id: GroupId) -> bool {
        let mut others = self.other_half(id).flat_map(|other| &other.lanes);
        others.any(|lane| self.lanes[lane.0].is_on_line()) && !self.has(Flaw::BothWaysAtOnce)
    }

    /// Whether something is left in a group from before a switch. What an address has left that the same server had before is as
    /// what comes by its newer one.
    fn has_left(&self, group: &Group, streamer: &Streamer) -> bool {
        let is_same = |other: &&Group| other.is_core == group.is_core && self.are_one_server(group, other);
        let is_continued = |lane: StreamId| {
            let mut others = self.groups.iter().filter(is_same).flat_map(|other| &other.lanes);
            let stream = streamer.lane(lane.0).stream();
            others.any(|other| self.lanes[other.0].is_wanted && streamer.lane(other.0).stream() == stream)
        };
        let is_left = |lane: &StreamId| {
            !self.lanes[lane.0].is_wanted && !streamer.lane(lane.0).is_at_rest() && !is_continued(*lane)
        };
        group.lanes.iter().any(is_left)
    }

    /// Whether it is this half's turn: first comes what is left from before the switch.
    fn has_its_turn(&self, id: GroupId, streamer: &Streamer) -> bool {
        if self.has(Flaw::BothWaysAtOnce) {
            return true;
        }
        // What the other half has sent may still be on its way into the stream.
        let is_under_way = |lane: &StreamId| self.lanes[lane.0].is_on_line() && streamer.lane(lane.0).awaits_answers();
        let mut others = self.other_half(id).flat_map(|other| &other.lanes);
        if others.any(is_under_way) {
            return false;
        }
        let here = &self.groups[id.0];
        let is_half = |group: &&Group| group.is_core == here.is_core && group.row.config_id == here.row.config_id;
        let mut halves = self.groups.iter().filter(is_half);
        !self.other_half(id).any(|other| self.has_left(other, streamer))
            || (!here.is_core && halves.any(|half| self.has_left(half, streamer)))
    }

    /// A lane that waits to be opened: its stream is asked, or core NATS needs no asking. Returns whether it has come further.
    fn begin_opening(&mut self, id: GroupId, lane: StreamId, streamer: &mut Streamer) -> Result<bool> {
        let Phase::Waiting(until) = self.lanes[lane.0].phase else { return Ok(false) };
        // Whose turn it is does not matter to a lane that publishes nothing more, and confirming waits until it is retired.
        let is_left = !self.lanes[lane.0].is_wanted && streamer.lane(lane.0).is_at_rest();
        if is_left && !self.has(Flaw::RetireInTurn) {
            self.retire(id, lane, streamer);
            return Ok(false);
        }
        if !self.has_its_turn(id, streamer) || self.other_half_is_on_line(id) {
            return Ok(false);
        }
        let state = &self.lanes[lane.0];
        let group = &self.groups[id.0];
        let (is_core, has_api) = (group.is_core, group.has_api);
        let Some(server) = &group.links[group.link_of(lane)].server else { return Ok(false) };
        let is_held = || if is_core { !self.may_open_core(id) } else { self.waits_for_twin(lane, streamer) };
        if self.now < until || (!is_core && !has_api) || is_held() {
            return Ok(false);
        }
        let server = server.clone();
        let stands = state.stands(streamer.lane(lane.0));
        let server_wal = streamer.known_wal().max(self.settings.server_wal);
        let state = &mut self.lanes[lane.0];
        state.known = stands.or(state.known.take());
        let Some(mut settings) = state.settings.clone().filter(|_| !is_core) else {
            self.open_core(id, lane, server.max_payload, streamer)?;
            return Ok(true);
        };
        streamer.lane(lane.0).mode_to_open().write(&mut settings.stream);
        let known = Known {
            server_wal,
            listing: streamer.lane(lane.0).listing(),
            place: state.known.as_ref().map(|known| (known.sequence, known.created_ns)),
            server,
            batch_max: state.batch_max,
        };
        let (opening, question) = Opening::begin(settings, known);
        self.set_phase(lane, Phase::Opening(Box::new(opening)));
        self.actions.push_back(Action::Ask(lane, Box::new(question)));
        Ok(true)
    }

    /// An answer to what was asked before a lane is opened.
    pub(super) fn replied(
        &mut self,
        lane: StreamId,
        reply: Result<Reply>,
        no_jetstream: bool,
        streamer: &mut Streamer,
    ) -> Result<bool> {
        let Some(id) = self.lanes[lane.0].group else { return Ok(false) };
        let flaws = [Flaw::IgnoreNewerRun, Flaw::IgnoreFork].map(|flaw| (flaw, self.has(flaw)));
        let has = |flaw| flaws.contains(&(flaw, true));
        let Phase::Opening(opening) = &mut self.lanes[lane.0].phase else { return Ok(false) };
        opening.no_jetstream |= no_jetstream;
        let no_jetstream = opening.no_jetstream;
        let opened = match opening.take(reply, &self.settings.run, has) {
            Ok(Next::Ask(question)) => {
                self.actions.push_back(Action::Ask(lane, Box::new(question)));
                return Ok(true);
            }
            Ok(Next::Opened(opened)) => self.meet(lane, opened.created_ns, streamer).map(|()| opened),
            Err(error) => Err(error),
        };
        match opened {
            // What the other half, or another lane, has sent meanwhile may not be in this tail.
            Ok(_) if self.other_half_is_on_line(id) || self.waits_for_twin(lane, streamer) => {
                self.wait(lane, Duration::ZERO);
            }
            Ok(opened) => self.opened(id, lane, *opened, streamer)?,
            Err(error) => {
                streamer.lane_mut(lane.0).close();
                streamer.reject()?;
                let error = error.context(format!("stream {:?}", streamer.lane(lane.0).stream()));
                let error = if no_jetstream { self.explain_old_servers(id, streamer, error) } else { error };
                if !self.goes_on_after(&error) {
                    return Err(error);
                }
                let wait = self.lanes[lane.0].backoff.next(self.chance.draw());
                self.wait(lane, wait);
                if error.is_retryable() && std::mem::take(&mut self.groups[id.0].has_api) {
                    // A new one reads files and certificates again.
                    self.actions.push_back(Action::CloseApi(id));
                }
                self.stream_failed(lane, error);
                if no_jetstream {
                    // A JetStream domain that was wrong is as an address that was.
                    self.doubt_servers(id, streamer);
                }
            }
        }
        Ok(true)
    }

    /// There is no stream's end to go on from: all that is in line is sent.
    fn open_core(&mut self, id: GroupId, lane: StreamId, max_payload: usize, streamer: &mut Streamer) -> Result<()> {
        let queue = streamer.lane_mut(lane.0);
        let subjects = vec![">".to_owned()];
        let (listing, listed) = (queue.listing(), Vec::new());
        queue.open(&Tail {
            last_sequence: 0,
            ours: None,
            in_stream: None,
            listing,
            listed,
            subjects,
            max_payload,
            batch_max: 1,
        })?;
        self.report(Report::CoreOpened(lane, ConnectionId { group: id, link: 0 }));
        self.lanes[lane.0].reached_core = true;
        self.set_phase(lane, Phase::Running);
        self.is_notable = true;
        streamer.reject()
    }

    fn opened(&mut self, id: GroupId, lane: StreamId, mut opened: Opened, streamer: &mut Streamer) -> Result<()> {
        if let Some((position, _)) = opened.tail.ours {
            streamer.expect_end(lane.0, position)?;
        }
        self.compare_with_known(lane, &mut opened, streamer)?;
        let state = &mut self.lanes[lane.0];
        let queue = streamer.lane_mut(lane.0);
        if state.falls_back != opened.falls_back {
            state.falls_back.clone_from(&opened.falls_back);
            if let Some(text) = opened.falls_back.take() {
                self.actions.push_back(Action::Report(Report::FallsBack(text)));
            }
        }
        for warning in std::mem::take(&mut opened.warnings) {
            self.actions.push_back(Action::Report(Report::Warning(lane, warning)));
        }
        if self.settings.delays_confirming && queue.retained_through().is_none() {
            // What earlier runs have confirmed, or may have.
            let kept = state.known.as_ref().and_then(|known| known.retained_through);
            queue.set_retained_through(kept.unwrap_or(opened.tail.ours.map_or(0, |(_, sequence)| sequence)));
        }
        let group = &mut self.groups[id.0];
        group.connected_times += u64::from(group.asked());
        let connection = ConnectionId { group: id, link: group.link_of(lane) };
        let server = group.links[connection.link].server.as_ref();
        queue.set_server_limit(server.map_or(0, |server| server.max_payload));
        queue.open(&opened.tail)?;
        state.created_ns = opened.created_ns;
        state.known = state.stands(queue);
        let (last_sequence, ours) = (opened.tail.last_sequence, opened.tail.ours.map(|(position, _)| position));
        self.report(Report::Opened { lane, connection, last_sequence, ours });
        self.set_phase(lane, Phase::Running);
        self.is_notable = true;
        streamer.reject()
    }

    /// Whether the stream is the one that was known, and has what it acknowledged.
    fn compare_with_known(&mut self, lane: StreamId, opened: &mut Opened, streamer: &mut Streamer) -> Result<()> {
        let (recreated, any) = (self.has(Flaw::TrustRecreated), self.has(Flaw::TrustAnyTail));
        let Some(known) = &self.lanes[lane.0].known else { return Ok(()) };
        let queue = streamer.lane_mut(lane.0);
        if any {
            queue.forget_last_stored();
            return Ok(());
        }
        let created_ns = if recreated { known.created_ns } else { opened.created_ns };
        match trust::trusted(&self.settings.run.source, known, created_ns, &opened.tail, opened.stranger) {
            // Removed since (purged, expired): the checkpoint knows what was there.
            Ok(TailTrust::Whole) => {
                let is_newer = |(ours, _): &(EventPosition, u64)| known.position.is_at_or_before(ours);
                if !opened.tail.ours.as_ref().is_some_and(is_newer) {
                    opened.tail.ours = Some((known.position, known.sequence));
                }
            }
            Ok(TailTrust::SetBack) => {
                let now = match opened.stranger {
                    Some(_) => "has another one in its place".to_owned(),
                    None => format!("ends at {}", opened.tail.last_sequence),
                };
                let what = format!("it had taken message {} and {now} now", known.sequence);
                // Only the slot has what the lane took for stored: the next session reads it from there.
                if opened.stranger.is_some() && queue.last_stored().is_some_and(|(stored, _)| stored == known.position)
                {
                    return Err(still_in_slot(&format!("go on in stream {}: {what}", queue.stream())));
                }
                opened.warnings.push(format!(
                    "{what}: it has lost messages that it had acknowledged. They are younger than confirm_delay_seconds, so walhook \
                     reads them from the slot and publishes them again"
                ));
            }
            Err(error) if opened.is_in_memory => {
                opened.warnings.push(error.to_string());
                queue.forget_last_stored();
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Nothing leads to a lane any more, and nothing is in it.
    pub(super) fn retire(&mut self, id: GroupId, lane: StreamId, streamer: &Streamer) {
        self.set_phase(lane, Phase::Absent);
        // Others may have waited for it.
        self.is_notable = true;
        self.rest(id, streamer);
    }

    /// With the last of its lanes a group ends its connections, unless one of their streams has to be asked for what it has: before
    /// more is confirmed, or for the sequences of rows of the history.
    fn rest(&mut self, id: GroupId, streamer: &Streamer) {
        let is_at_rest = |lane: &StreamId| {
            self.lanes[lane.0].is_absent() && streamer.lane(lane.0).is_settled() && !streamer.is_to_be_asked(lane.0)
        };
        let group = &self.groups[id.0];
        if group.in_use && group.lanes.iter().all(is_at_rest) {
            self.groups[id.0].in_use = false;
            self.disconnect(id);
        }
    }
}
