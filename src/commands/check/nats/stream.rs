//! One stream of a configuration: whether it is there and can be ours, what would become of events in it, and who reads it.
//!
//! In: a row of `rule_nats_streams`, and what the server says of the stream. Out: findings, whose remedies are statements for its row.
//! Always holds: nothing is created or changed.

use super::{Check, Finding, How, Reached, Severity};
use crate::{
    commands::check::{
        amounts::{bytes, duration},
        tails,
        window::Window,
    },
    error::{Error, Kind, Result},
    nats::{
        control::Control,
        streams::foresee::{self, Foreseen, Limits, There, Unread},
    },
    route::tables::StreamRow,
    text,
};

/// A stream that deletes events sooner than this deletes them before somebody has looked after a consumer.
const RETENTION_HOURS: f64 = 24.0;
/// A consumer whose unread events take up so much of what the stream keeps will lose some soon …
const NEARLY_LOST: f64 = 0.8;
/// … and one whose unread events take up so much of it lags.
const LAGS: f64 = 0.5;
/// The age of the oldest unread event is asked for so many consumers: those with the most to read.
const AGES_ASKED: usize = 20;

impl Check<'_> {
    pub(super) async fn stream(&self, control: &Control, row: &StreamRow) -> Result<Vec<Finding>> {
        let owner = self.database.identity.map(|identity| identity.owner(&self.config.source));
        let foreseen = foresee::foresee(control, row, owner.as_ref()).await?;
        let subject = named(row);
        let mut findings = Vec::new();
        match foreseen {
            Foreseen::New { taken_by, limits } => {
                if let Some(history) = self.database.history {
                    let Reached { row: config, servers, .. } = self.reached;
                    findings.extend(tails::missing(history, (config, servers), row));
                }
                findings.push(match taken_by.is_empty() {
                    true => Finding::new("stream_new", Severity::Note, subject.as_str(), format!("{subject} does not exist yet: walhook run creates it")),
                    false => Finding::new(
                        "stream_subjects_taken",
                        Severity::Error,
                        subject.as_str(),
                        format!("{} of {subject} are taken by stream {} already", row.subjects.join(", "), taken_by.join(", ")),
                    )
                    .remedy(
                        How::Advice,
                        "A subject goes to one stream: narrow the subjects of one of the two, or give that stream's name to the row.",
                    ),
                });
                findings.extend(self.retention(row, limits, None, None));
                findings.extend(self.durability(row, u64::try_from(row.replicas.unwrap_or(1)).unwrap_or(1), false));
            }
            Foreseen::There(there) => {
                findings.extend(self.existing(row, &there).await);
                findings.extend(self.tail(control, row, &there).await);
                findings.extend(self.full(row, &there));
                let ages = there.limits.age.map_or(0, |_| AGES_ASKED);
                match foresee::unread(control, &there.state, ages).await {
                    Ok(unread) => findings.extend(self.unread(row, &there, &unread)),
                    Err(error) => findings.push(Finding::not_checked(&["stream_unread"], &error)),
                }
            }
        }
        Ok(findings)
    }

    async fn existing(&self, row: &StreamRow, there: &There) -> Vec<Finding> {
        let subject = named(row);
        let mut findings = Vec::new();
        match &there.changes {
            Ok(changes) if changes.is_empty() => {}
            Ok(changes) => findings.push(Finding::new(
                "stream_changes",
                Severity::Note,
                subject.as_str(),
                format!("walhook run changes {} of {subject}, as its row says", changes.join(", ")),
            )),
            Err(error) => findings.push(Finding::with_severity(
                "stream_row_impossible",
                Severity::Warning,
                subject.as_str(),
                error,
            )),
        }
        match &there.problems {
            Ok(warnings) => findings.extend(warnings.iter().map(|warning| {
                Finding::new("stream_properties", Severity::Warning, subject.as_str(), warning.as_str())
            })),
            Err(error) => {
                findings.push(Finding::with_severity("stream_unusable", Severity::Error, subject.as_str(), error))
            }
        }
        if let Err(error) = &there.owned {
            findings.push(Finding::of_error("stream_owner", subject.as_str(), error));
        }
        findings.extend(self.retention(
            row,
            there.limits,
            there.rate,
            Some((there.state.messages as f64, there.state.bytes as f64)),
        ));
        findings.extend(self.durability(row, there.state.replicas, there.is_clustered));
        findings.extend(self.window(row, there).await);
        findings
    }

    /// `stream_tail`, `stream_writers`: of a stream that is ours, for another's end says nothing of ours.
    async fn tail(&self, control: &Control, row: &StreamRow, there: &There) -> Vec<Finding> {
        let (Some(client), Some(history)) = (self.database.client, self.database.history) else { return Vec::new() };
        if there.owned.is_err() || there.problems.is_err() {
            return Vec::new();
        }
        let way = (&self.reached.row, self.reached.servers.as_str());
        match tails::check(client, control, history, way, row, there).await {
            Ok(mut found) => {
                for finding in found.iter_mut().filter(|finding| finding.code == "stream_writers") {
                    let remedy = self.row_statement(row, "ordering = 'shared'");
                    *finding = finding.clone().remedy(How::Sql, remedy);
                }
                found
            }
            Err(error) if error.kind() == Kind::Permission => vec![self.stream_error(row, &error)],
            Err(error) => vec![Finding::not_checked(&["stream_tail", "stream_writers"], &error)],
        }
    }

    /// `stream_retention`. `has`: messages and bytes now.
    fn retention(
        &self,
        row: &StreamRow,
        limits: Limits,
        rate: Option<f64>,
        has: Option<(f64, f64)>,
    ) -> Option<Finding> {
        let subject = named(row);
        let full = |limit: Option<f64>, rate: Option<f64>| Some(limit? / rate?);
        let byte_rate = rate.and_then(|rate| {
            has.filter(|(messages, _)| *messages > 0.0).map(|(messages, bytes)| rate * bytes / messages)
        });
        let by_size = [full(limits.messages, rate), full(limits.bytes, byte_rate)].into_iter().flatten();
        let seconds = by_size.filter(|_| limits.drops_old).chain(limits.age).reduce(f64::min);
        let mut what = Vec::new();
        if limits.drops_old {
            what.extend(limits.messages.map(|limit| format!("beyond {limit} messages")));
            what.extend(limits.bytes.map(|limit| format!("beyond {}", bytes(limit))));
        }
        what.extend(limits.per_subject.map(|limit| format!("beyond {limit} messages of one subject")));
        what.extend(limits.age.map(|age| format!("after {}", duration(age))));
        if what.is_empty() {
            return None;
        }
        let mut text = format!("{subject} deletes its oldest events {}, read or not", what.join(", "));
        if let (Some(seconds), Some(_)) = (seconds, rate) {
            text = format!("{text}; at the present rate that is after {}", duration(seconds));
        }
        let is_short = seconds.is_some_and(|seconds| seconds < RETENTION_HOURS * 3600.0);
        let severity = if is_short { Severity::Warning } else { Severity::Note };
        let finding = Finding::new("stream_retention", severity, subject, text);
        Some(finding.remedy(
            How::Sql,
            self.row_statement(row, "discard_policy = 'new', max_age_seconds = 0, max_messages = 0, max_bytes = 0"),
        ))
    }

    /// `stream_full`.
    fn full(&self, row: &StreamRow, there: &There) -> Option<Finding> {
        let (limits, state) = (there.limits, &there.state);
        let is_at = |limit: Option<f64>, has: u64| limit.is_some_and(|limit| has as f64 >= limit);
        if limits.drops_old || !(is_at(limits.messages, state.messages) || is_at(limits.bytes, state.bytes)) {
            return None;
        }
        let subject = named(row);
        let text = format!(
            "{subject} has {} messages of {} and takes no more (discard_policy = 'new')",
            state.messages,
            bytes(state.bytes as f64)
        );
        let twice = |limit: Option<f64>| limit.map_or(0.0, |limit| limit * 2.0);
        let change = format!("max_messages = {:.0}, max_bytes = {:.0}", twice(limits.messages), twice(limits.bytes));
        let finding = Finding::new("stream_full", Severity::Error, subject, text);
        Some(finding.remedy(How::Sql, self.row_statement(row, &change)).exits(1))
    }

    /// `stream_unread`.
    fn unread(&self, row: &StreamRow, there: &There, unread: &[Unread]) -> Vec<Finding> {
        let subject = named(row);
        let finding = |unread: &Unread| {
            let loss = loss(there, unread)?;
            let text = format!(
                "consumer {:?} of {subject} has {} events to read, {} percent of what {} lets the stream keep{}; the oldest ones are \
                 deleted, read or not",
                unread.consumer,
                unread.messages,
                (loss.share * 100.0).round(),
                loss.limit,
                loss.within.map_or_else(String::new, |within| format!(
                    ": if nothing is read, it loses events in {} at the present rate",
                    duration(within)
                )),
            );
            let severity = if loss.share >= NEARLY_LOST { Severity::Error } else { Severity::Warning };
            let change = match loss.limit {
                "max_age" => "max_age_seconds = 0",
                _ => "discard_policy = 'new'",
            };
            let about = format!("consumer {:?} of {subject}", unread.consumer);
            let finding = Finding::new("stream_unread", severity, about, text);
            Some(finding.remedy(How::Sql, self.row_statement(row, change)))
        };
        unread.iter().filter_map(finding).collect()
    }

    /// `stream_replicas`, `nats_fsync`.
    fn durability(&self, row: &StreamRow, replicas: u64, is_clustered: bool) -> Vec<Finding> {
        if replicas > 1 {
            return Vec::new();
        }
        let subject = named(row);
        let text = format!("{subject} has one copy");
        let mut findings = vec![match is_clustered {
            true => Finding::new("stream_replicas", Severity::Warning, subject.as_str(), format!("{text}, though its server is in a cluster"))
                .remedy(How::Sql, self.row_statement(row, "replicas = 3")),
            false => Finding::new("stream_replicas", Severity::Note, subject.as_str(), format!("{text}: its server is not in a cluster"))
                .remedy(How::Advice, "Run a cluster of three servers and set replicas to 3, where the loss of a server must not lose events."),
        }];
        let is_safe = !self.config.confirm_delay.is_zero() || row.durability.as_deref() == Some("fsync");
        if !is_safe {
            findings.push(
                Finding::new(
                    "nats_fsync",
                    Severity::Note,
                    subject.as_str(),
                    format!("{subject} has one copy, and a server writes acknowledged events to disk every two minutes by default"),
                )
                .remedy(How::Settings, "confirm_delay_seconds = 150"),
            );
        }
        findings
    }

    /// `duplicate_window`.
    async fn window(&self, row: &StreamRow, there: &There) -> Option<Finding> {
        let stream = named(row);
        let mut window = Window {
            stream: &stream,
            is_shared: row.is_shared(),
            seconds: there.state.duplicate_window.as_secs_f64(),
            rate: there.rate,
            has_own_ids: None,
        };
        if let (true, Some(own_ids)) = (window.is_noted() && !window.is_shared, self.database.own_ids) {
            window.has_own_ids = own_ids.any_for(&row.subjects).await;
        }
        let (severity, text, fits) = window.check()?;
        let finding = Finding::new("duplicate_window", severity, named(row), text);
        Some(match fits {
            Some(seconds) => {
                finding.remedy(How::Sql, self.row_statement(row, &format!("duplicate_window_seconds = {seconds}")))
            }
            None => finding.remedy(
                How::Advice,
                "A shared stream needs a minute of it. Use strict ordering, where walhook is the stream's only writer, or give the \
                 server the memory.",
            ),
        })
    }

    /// A statement that changes the stream's row, which the configuration's own stream may not have yet.
    fn row_statement(&self, row: &StreamRow, change: &str) -> String {
        let name = text::sql_literal(&row.stream_name);
        let update = format!("UPDATE public.rule_nats_streams SET {change} WHERE stream_name = {name};");
        let has_row = self.tables.streams.values().any(|other| other.stream_name == row.stream_name);
        if has_row {
            return update;
        }
        let subjects: Vec<String> = row.subjects.iter().map(|subject| text::sql_literal(subject)).collect();
        // In one transaction, and without limits: a new row has some by default, and without a row the stream keeps what it has.
        format!(
            "BEGIN; SELECT public.rule_nats_stream_create({name}, ARRAY[{}], {}); UPDATE public.rule_nats_streams \
             SET max_messages = NULL, max_bytes = NULL, max_age_seconds = NULL WHERE stream_name = {name}; {update} COMMIT;",
            subjects.join(", "),
            text::sql_literal(&self.reached.row.config_name)
        )
    }

    pub(super) fn stream_error(&self, stream: &StreamRow, error: &Error) -> Finding {
        let subject = named(stream);
        match error.kind() {
            Kind::Permission => {
                let finding = Finding::with_severity("nats_permissions", Severity::Error, subject, error);
                if self.used <= 1 {
                    Finding { severity: Severity::Fatal, exit_code: Some(4), ..finding }
                } else {
                    finding
                }
            }
            _ => Finding::with_severity("nats_jetstream", Severity::Error, subject, error).exits(1),
        }
    }
}

/// How near a consumer is to losing events that it has not read.
struct Loss {
    /// Of what the limit lets the stream keep, so much is unread.
    share: f64,
    /// Which limit it is.
    limit: &'static str,
    /// In so many seconds the oldest unread event goes, where a rate is known and it has not gone already.
    within: Option<f64>,
}

/// By the limit that is nearest, where one is near.
fn loss(there: &There, unread: &Unread) -> Option<Loss> {
    let (limits, state) = (there.limits, &there.state);
    let each = if state.messages > 0 { state.bytes as f64 / state.messages as f64 } else { 0.0 };
    let messages = unread.messages as f64;
    let by_size = |limit: &'static str, most: Option<f64>, has: f64, rate: Option<f64>| {
        let most = most.filter(|_| limits.drops_old)?;
        let within = rate.filter(|rate| *rate > 0.0).map(|rate| (most - has).max(0.0) / rate);
        Some(Loss { share: has / most, limit, within: within.filter(|within| *within > 0.0) })
    };
    let by_age = || {
        let (most, age) = (limits.age?, unread.oldest_age?);
        Some(Loss { share: age / most, limit: "max_age", within: Some(most - age).filter(|within| *within > 0.0) })
    };
    let losses = [
        by_size("max_msgs", limits.messages, messages, there.rate),
        by_size("max_bytes", limits.bytes, messages * each, there.rate.map(|rate| rate * each)),
        by_age(),
    ];
    let nearest = losses.into_iter().flatten().max_by(|a, b| a.share.total_cmp(&b.share))?;
    (nearest.share >= LAGS).then_some(nearest)
}

pub(super) fn named(stream: &StreamRow) -> String {
    format!("stream {:?}", stream.stream_name)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A stream that has `messages` of 100 bytes, and what its limits are.
    fn stream(messages: u64, limits: Limits, rate: Option<f64>) -> There {
        let info = json!({
            "config": { "name": "S", "subjects": ["s"] }, "created": "2026-11-23T00:00:00Z",
            "state": { "messages": messages, "bytes": messages * 100, "first_seq": 1, "last_seq": messages },
        });
        There {
            state: crate::nats::streams::foresee::state_of(&info).unwrap(),
            limits,
            changes: Ok(Vec::new()),
            problems: Ok(Vec::new()),
            owned: Ok(()),
            rate,
            is_clustered: false,
        }
    }

    #[test]
    fn a_consumer_loses_events_by_whichever_limit_is_nearest_and_one_that_is_in_step_by_none() {
        let limits = Limits { messages: None, bytes: None, age: None, per_subject: None, drops_old: true };
        let found = |limits: Limits, messages: u64, oldest_age: Option<f64>| {
            let unread = Unread { consumer: "c".to_owned(), messages, oldest_age };
            loss(&stream(1000, limits, Some(10.0)), &unread)
                .map(|loss| (loss.limit, (loss.share * 100.0).round(), loss.within.map(f64::round)))
        };
        assert_eq!(found(limits, 1000, Some(1e9)), None, "without limits nothing is deleted");
        let by_messages = Limits { messages: Some(1000.0), ..limits };
        assert_eq!(found(by_messages, 10, None), None, "a full stream whose consumer is in step");
        assert_eq!(found(by_messages, 600, None), Some(("max_msgs", 60.0, Some(40.0))));
        assert_eq!(found(by_messages, 1000, None), Some(("max_msgs", 100.0, None)));
        let by_bytes = Limits { bytes: Some(100_000.0), ..limits };
        assert_eq!(found(by_bytes, 900, None), Some(("max_bytes", 90.0, Some(10.0))));
        assert_eq!(found(Limits { drops_old: false, ..by_messages }, 1000, None), None, "new ones are refused instead");
        let by_age = Limits { age: Some(3600.0), drops_old: false, ..limits };
        assert_eq!(found(by_age, 5, Some(60.0)), None);
        assert_eq!(found(by_age, 5, Some(3000.0)), Some(("max_age", 83.0, Some(600.0))));
        let both = Limits { age: Some(3600.0), ..by_messages };
        assert_eq!(found(both, 700, Some(2000.0)).unwrap().0, "max_msgs");
    }
}
