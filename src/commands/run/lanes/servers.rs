//! Addresses of servers: which lanes may lead into one stream, and what walhook finds out about it.
//!
//! A lane belongs to the servers that the rules of its events name. If a configuration's address changes, there are two lanes for
//! one stream name. In: where the lanes' streams were seen, and failures to connect. Out: which events have to wait for one another,
//! and aliases, which the session writes before it ends; in the next one the events of both addresses are in one lane. Always holds:
//! no event is sent before an earlier one of the same configuration that may have to go into the same stream.

use super::{Lanes, connection::Group, driver::Phase};
use crate::{
    commands::run::rules::Found,
    error::{Error, Result},
    flow::{event_id::EventPosition, streamer::Streamer},
    route::tables::ServerAlias,
};

impl Lanes {
    /// Holds back in each lane what is behind an event of another lane of the same configuration and stream, which names other
    /// servers, as long as both may turn out to be one server.
    pub(super) fn give_turns(&self, streamer: &mut Streamer) {
        for (index, others) in &self.siblings {
            let driver = &self.drivers[*index];
            let may_be_one = others.iter().filter(|&&other| !driver.leads_elsewhere(&self.drivers[other]));
            let limit = may_be_one.filter_map(|&other| streamer.lane(other).front()).min();
            streamer.lane_mut(*index).set_turn_limit(limit);
        }
    }

    /// Lanes with others of the same configuration and stream, and these: there are some while the servers of a configuration
    /// change.
    pub(super) fn find_siblings(&mut self, streamer: &Streamer) {
        let count = self.drivers.len();
        let is_sibling = |index: usize, other: usize| {
            let (here, there) = (streamer.lane_key(index), streamer.lane_key(other));
            here.config_id == there.config_id && here.stream == there.stream && here.servers != there.servers
        };
        let of = |index| (0..count).filter(|&other| is_sibling(index, other)).collect::<Vec<_>>();
        self.siblings = (0..count).map(|index| (index, of(index))).filter(|(_, others)| !others.is_empty()).collect();
    }

    /// Refuses to open a second lane into the same stream of the same server: two would take each other's messages for their own.
    /// Within a configuration that is one server by two addresses, and from the next session on there is one lane.
    pub(super) fn refuse_other_lane(&mut self, index: usize, created_ns: i64, streamer: &Streamer) -> Result<()> {
        let is_its = |other: &usize| {
            *other != index
                && self.drivers[*other].created_ns == created_ns
                && streamer.lane(*other).stream() == streamer.lane(index).stream()
                && !matches!(self.drivers[*other].phase, Phase::Absent)
        };
        let Some(other) = (0..self.drivers.len()).find(is_its) else { return Ok(()) };
        let (here, there) = (streamer.lane_key(index), streamer.lane_key(other));
        let name = self.drivers[other].settings.as_ref().map_or("?", |settings| settings.config.config_name.as_str());
        if here.config_id != there.config_id {
            return Err(Error::config(format!(
                "open it: NATS configuration {name:?} publishes to the same stream of the same server"
            ))
            .hint("give one of the two another stream_name and subject_prefix, or use one configuration for both"));
        }
        let is_newest = streamer.newest_servers(here.config_id).as_ref() == Some(&here.servers);
        let (servers, alias_of) =
            if is_newest { (&there.servers, &here.servers) } else { (&here.servers, &there.servers) };
        let found = one_server(name, servers, alias_of);
        self.alias = Some((streamer.alias(here.config_id, servers, alias_of), Found::OneServer, found.clone()));
        Err(Error::unavailable(found))
    }

    /// The servers of a group cannot be reached. Events go to others if these are known to be the same by another address, or if
    /// walhook has never reached these and the newest row names others.
    pub(super) fn doubt_servers(&mut self, at: usize, streamer: &Streamer) {
        let Group { row, servers, lanes, .. } = &self.groups[at];
        let events: usize = lanes.iter().map(|&index| streamer.lane(index).len()).sum();
        if events == 0 {
            return;
        }
        // One of them is known by its checkpoint alone: it could not be asked.
        let is_same = |here: &usize, there: &&usize| {
            let (here, there) = (&self.drivers[*here], &self.drivers[**there]);
            here.was_reached() && there.was_open() && !here.leads_elsewhere(there)
        };
        let of_lane = |here: &usize| {
            let (_, others) = self.siblings.iter().find(|(index, _)| index == here)?;
            others.iter().find(|there| is_same(here, there))
        };
        let name = &row.config_name;
        let (alias_of, kind, found) = if let Some(&other) = lanes.iter().find_map(of_lane) {
            let alias_of = streamer.lane_key(other).servers.clone();
            let found = one_server(name, servers, &alias_of);
            (alias_of, Found::OneServer, found)
        } else if let Some(newest) = streamer.newest_servers(row.config_id).filter(|newest| newest != servers)
            && !lanes.iter().any(|&index| self.drivers[index].was_reached())
        {
            let found = format!(
                "NATS configuration {name:?}: walhook has never reached {servers}, for which {events} events wait, and sends them \
                 to {newest}, which the configuration names now"
            );
            (newest, Found::NeverReached, found)
        } else {
            return;
        };
        self.alias = Some((streamer.alias(row.config_id, servers, &alias_of), kind, found));
    }

    /// Servers cannot be reached that the newest row of their configuration does not name: what to do if they never come back.
    pub(super) fn explain_old_servers(&self, at: usize, streamer: &Streamer, error: Error) -> Error {
        let Group { row, servers, lanes, .. } = &self.groups[at];
        let is_newest = streamer.newest_servers(row.config_id).is_none_or(|newest| newest == *servers);
        let waiting = lanes.iter().filter_map(|&index| streamer.lane(index).front_position());
        let Some(first) = waiting.min_by_key(EventPosition::rank).filter(|_| !is_newest) else { return error };
        let hint = error.remedy().map_or_else(String::new, |hint| format!("{hint}; "));
        error.hint(format!(
            "{hint}events from before NATS configuration {:?} named other servers wait for {servers}: start these again. To give \
             them up, run SELECT rule_cdc_rules_amend('{}') and start walhook again: the events then follow the current rules, and those \
             whose place in a stream is taken by later ones become dead letters",
            row.config_name,
            first.id(&self.identity.source),
        ))
    }

    /// What was found out about the addresses of a configuration: to be written, and to be in force from the next session on.
    pub fn alias(&self) -> Option<&(ServerAlias, Found, String)> {
        self.alias.as_ref()
    }
}

/// What is found of two addresses that lead to one stream.
fn one_server(config_name: &str, servers: &str, alias_of: &str) -> String {
    format!("NATS configuration {config_name:?}: {servers} and {alias_of} are one server")
}
