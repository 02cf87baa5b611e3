//! What the driver reports, as log and status show it.
//!
//! In: reports of the driver. Out: log lines, each failure once and again each minute while it lasts; and the last failure of each
//! lane and group.

use crate::{
    commands::log_once::{Lasting, LogOnce},
    error::{Error, Kind},
    flow::{
        driver::{Driver, GroupId, Report, StreamId},
        streamer::Streamer,
    },
    nats::{codes, control::ApiError, publish::Publisher},
};

/// The last failures.
#[derive(Default)]
pub struct Reports {
    lanes: Vec<Lasting>,
    groups: Vec<Lasting>,
    other_runs: Vec<Lasting>,
    storing: Vec<LogOnce>,
    schemas: Vec<Lasting>,
}

/// What `walhook check` calls a failure of NATS.
fn nats_name(error: &Error, otherwise: &'static str) -> &'static str {
    let by_code = || codes::finding(error.cause_as::<ApiError>()?.err_code);
    let by_kind = || (error.kind() == Kind::Permission).then_some("nats_permissions");
    error.name().or_else(by_code).or_else(by_kind).unwrap_or(otherwise)
}

fn at<T: Default>(all: &mut Vec<T>, index: usize) -> &mut T {
    if all.len() <= index {
        all.resize_with(index + 1, T::default);
    }
    &mut all[index]
}

impl Reports {
    /// The last failure of a lane, while it lasts: its name and its text.
    pub fn of_lane(&self, lane: StreamId) -> (Option<&'static str>, Option<&String>) {
        let of_both = [&self.lanes, &self.schemas].into_iter().filter_map(|all| all.get(lane.0));
        let mut failures = of_both.filter_map(|lasting| Some((lasting.name(), Some(lasting.text()?))));
        failures.next().unwrap_or_default()
    }

    /// The same of a group.
    pub fn of_group(&self, group: GroupId) -> (Option<&'static str>, Option<&String>) {
        self.groups.get(group.0).map_or((None, None), |lasting| (lasting.name(), lasting.text()))
    }

    /// A payload of the lane is stored.
    pub fn stored(&mut self, lane: StreamId) {
        at(&mut self.storing, lane.0).forget();
    }

    fn group_failed(&mut self, group: GroupId, error: &Error, given_up: Option<u32>, waiting: usize) {
        let text = given_up.map_or_else(
            || error.to_string(),
            |attempts| {
                format!(
                    "{error}; given up after {attempts} failed attempts in a row (max_reconnect_attempts): an UPDATE of its row \
                     in rule_nats_config tries again"
                )
            },
        );
        at(&mut self.groups, group.0).warn(nats_name(error, "nats_connection"), &text, waiting);
    }

    fn runs_not_asked(&mut self, group: GroupId, error: Error, waiting: usize) {
        let name = nats_name(&error, "nats_jetstream");
        let error =
            error.context("before anything is published to core NATS, ask JetStream for the last run of this database");
        at(&mut self.other_runs, group.0).warn(name, &error.to_string(), waiting);
    }

    /// Takes a report; `publisher` is the connection that it names.
    pub fn take(
        &mut self,
        report: Report,
        driver: &Driver,
        streamer: &Streamer,
        source: &str,
        publisher: Option<&Publisher>,
    ) {
        let stream = |lane: StreamId| streamer.lane(lane.0).stream();
        let config = |group: GroupId| driver.row(group).config_name.as_str();
        match report {
            Report::StreamFailed(lane, error) => {
                let (name, waiting) = (nats_name(&error, "nats_jetstream"), driver.stream_in_line(lane));
                at(&mut self.lanes, lane.0).warn(name, &error.to_string(), waiting);
            }
            Report::StreamWell(lane) => at(&mut self.lanes, lane.0).forget(),
            Report::GroupFailed { group, error, given_up } => {
                self.group_failed(group, &error, given_up, driver.in_line(group));
            }
            Report::GroupWell(group) => at(&mut self.groups, group.0).forget(),
            Report::RunsNotAsked(group, error) => {
                self.runs_not_asked(group, error, driver.in_line(group));
            }
            Report::RunsAsked(group) => at(&mut self.other_runs, group.0).forget(),
            Report::RunsHidden(group, error) => tracing::info!(
                config = config(group),
                "cannot find out whether a copy of this database also publishes to core NATS: {error}"
            ),
            Report::NotStored(lane, error) => {
                let text = error.to_string();
                if at(&mut self.storing, lane.0).is_news(&text) {
                    tracing::warn!("{text}; later events of the stream wait");
                }
            }
            Report::SchemaNotStored(lane, error) => {
                let (name, waiting) = (nats_name(&error, "consumer_schemas"), driver.stream_in_line(lane));
                let text =
                    error.context(format!("stream {:?}: events wait for their schema", stream(lane))).to_string();
                at(&mut self.schemas, lane.0).warn(name, &text, waiting);
            }
            Report::SchemasStored(lane) => at(&mut self.schemas, lane.0).forget(),
            Report::Warning(lane, text) => tracing::warn!(stream = stream(lane), "{text}"),
            Report::FallsBack(text) => tracing::warn!("{text}"),
            Report::Removed(lane, sequence) => tracing::warn!(
                stream = stream(lane),
                sequence,
                "messages were removed from the stream (purged or deleted) before their acks arrived; events that it \
                 stored and does not have any more are not published again"
            ),
            Report::OneServer(text) => tracing::info!("{text}"),
            Report::Opened { lane, last_sequence, ours, .. } => tracing::info!(
                stream = stream(lane),
                server = publisher.map(Publisher::target),
                nats = publisher.map(|publisher| publisher.info().version.as_str()),
                last_sequence,
                tail = ours.map(|position| position.id(source)),
                unsettled = streamer.lane(lane.0).len(),
                "stream opened"
            ),
            Report::CoreOpened(lane, connection) => tracing::info!(
                config = config(connection.group),
                server = publisher.map(Publisher::target),
                nats = publisher.map(|publisher| publisher.info().version.as_str()),
                unsettled = streamer.lane(lane.0).len(),
                "core NATS opened"
            ),
        }
    }
}
