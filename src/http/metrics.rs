//! The snapshot as metrics: OpenMetrics text, or Prometheus's older text format.
//!
//! In: a [`Snapshot`]. Out: text. Every metric is in [`METRICS`] with its kind, its labels and what it means; docs/metrics.md has the
//! same table, which a test compares. prometheus-client writes OpenMetrics; the older format differs from it in the lines that
//! describe a metric only, and is made of it.

use std::{collections::BTreeMap, fmt};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, LabelSetEncoder, MetricEncoder, NoLabelSet, text},
    metrics::MetricType,
    registry::{Registry, Unit},
};

use super::snapshot::Snapshot;
use crate::flow::histogram::Histogram;

/// What `Accept` says where OpenMetrics is wanted, and the type of that answer.
pub const OPENMETRICS: &str = "application/openmetrics-text";
/// Its whole name.
pub const OPENMETRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The type of the older format.
pub const PROMETHEUS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, from 0 at the start of the process.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts durations in buckets.
    Histogram,
}

impl Kind {
    /// As the text formats write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }

    fn metric_type(self) -> MetricType {
        match self {
            Kind::Counter => MetricType::Counter,
            Kind::Gauge => MetricType::Gauge,
            Kind::Histogram => MetricType::Histogram,
        }
    }
}

/// A metric.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Its name in full.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// Which verbs have it.
    pub verbs: &'static [&'static str],
    /// What it means.
    pub help: &'static str,
}

const RUN: &[&str] = &["run"];
const DELIVER: &[&str] = &["deliver"];
const BOTH: &[&str] = &["run", "deliver"];

const fn metric(
    name: &'static str,
    kind: Kind,
    labels: &'static [&'static str],
    verbs: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric { name, kind, labels, verbs, help }
}

/// All metrics there are.
pub const METRICS: &[Metric] = &[
    metric(
        "walhook_build_info",
        Kind::Gauge,
        &["version", "verb", "source"],
        BOTH,
        "Always 1; its labels say what runs",
    ),
    metric(
        "walhook_postgres_connected",
        Kind::Gauge,
        &[],
        BOTH,
        "1 while walhook run holds the slot and streams, or walhook deliver reaches its database or needs none; otherwise 0",
    ),
    metric(
        "walhook_nats_connected",
        Kind::Gauge,
        &["config"],
        BOTH,
        "1 while the NATS configuration is connected and its streams are open, otherwise 0",
    ),
    metric(
        "walhook_replication_lag_bytes",
        Kind::Gauge,
        &[],
        RUN,
        "WAL that the slot has not confirmed; absent while PostgreSQL cannot be asked",
    ),
    metric(
        "walhook_replication_lag_seconds",
        Kind::Gauge,
        &[],
        RUN,
        "Age of the oldest commit whose events are not all acknowledged; 0 where there is none",
    ),
    metric(
        "walhook_slot_retained_wal_bytes",
        Kind::Gauge,
        &[],
        RUN,
        "WAL that the slot keeps on PostgreSQL's disk; absent while PostgreSQL cannot be asked",
    ),
    metric(
        "walhook_slot_safe_wal_bytes",
        Kind::Gauge,
        &[],
        RUN,
        "WAL that can still be written before the slot is lost; absent where max_slot_wal_keep_size sets no limit",
    ),
    metric(
        "walhook_slot_wal_status",
        Kind::Gauge,
        &["status"],
        RUN,
        "1 for the status that the slot has (reserved, extended, unreserved, lost), 0 for the others; absent while PostgreSQL cannot be asked",
    ),
    metric(
        "walhook_changes_total",
        Kind::Counter,
        &["op"],
        RUN,
        "Row operations received from the slot, those of tables without links and repeated ones after a reconnect included",
    ),
    metric(
        "walhook_emitted_messages_total",
        Kind::Counter,
        &["result"],
        RUN,
        "Messages received with the prefix of rule_webhook_emit: accepted, or refused (another function wrote them, and they are ignored)",
    ),
    metric("walhook_events_published_total", Kind::Counter, &["stream"], RUN, "Events that JetStream has stored"),
    metric(
        "walhook_publish_duplicates_total",
        Kind::Counter,
        &["stream"],
        RUN,
        "Acknowledgements which said that the stream had the event already",
    ),
    metric(
        "walhook_publish_errors_total",
        Kind::Counter,
        &["code"],
        RUN,
        "Refusals of JetStream by err_code; no_responders: no stream takes the subject or JetStream is away; timeout: no answer; connection: the connection was lost",
    ),
    metric(
        "walhook_publish_duration_seconds",
        Kind::Histogram,
        &["stream"],
        RUN,
        "Time from writing an event to the socket to its acknowledgement",
    ),
    metric(
        "walhook_commit_to_ack_seconds",
        Kind::Histogram,
        &["stream"],
        RUN,
        "Time from an event's commit in PostgreSQL to its acknowledgement, by the clocks of both machines",
    ),
    metric("walhook_window_events", Kind::Gauge, &["stream"], RUN, "Events that are read and not acknowledged"),
    metric("walhook_window_bytes", Kind::Gauge, &["stream"], RUN, "Size of the messages of these events"),
    metric(
        "walhook_stream_used_ratio",
        Kind::Gauge,
        &["stream"],
        RUN,
        "Used part of the nearest limit of the stream (messages or bytes), from 0 to 1; absent where it has none or JetStream cannot be asked",
    ),
    metric(
        "walhook_unconfirmed_seconds",
        Kind::Gauge,
        &[],
        RUN,
        "How long nothing has been confirmed to PostgreSQL although changes were received; 0 where all is confirmed",
    ),
    metric(
        "walhook_dead_letters_total",
        Kind::Counter,
        &["reason"],
        BOTH,
        "Events that became dead letters: invalid (no message can be made of it), too_large, refused (by its stream), undelivered (by its receiver)",
    ),
    metric(
        "walhook_dead_letters",
        Kind::Gauge,
        &[],
        BOTH,
        "Dead letters that wait to be retried or dropped; absent while PostgreSQL cannot be asked",
    ),
    metric(
        "walhook_history_rows_lost_total",
        Kind::Counter,
        &[],
        RUN,
        "Rows that rule_nats_publish_history did not take; their events are published",
    ),
    metric(
        "walhook_log_records_dropped_total",
        Kind::Counter,
        &[],
        BOTH,
        "Lines of the log that standard error did not take",
    ),
    metric(
        "walhook_config_version",
        Kind::Gauge,
        &[],
        RUN,
        "Counts the changes of the rules (webhooks, links, streams, NATS configurations) that came into force since the process began",
    ),
    metric(
        "walhook_links_broken",
        Kind::Gauge,
        &[],
        RUN,
        "Findings of severity error about the set-up: links that publish nothing or less than they should; absent until the first check",
    ),
    metric(
        "walhook_problems",
        Kind::Gauge,
        &["code"],
        BOTH,
        "Things that are wrong now, by the names of walhook check; nothing where nothing is",
    ),
    metric(
        "walhook_deliveries_total",
        Kind::Counter,
        &["webhook", "outcome"],
        DELIVER,
        "Calls of webhooks: delivered, retried (failed, and made again later), dead (given up)",
    ),
    metric(
        "walhook_delivery_duration_seconds",
        Kind::Histogram,
        &["webhook"],
        DELIVER,
        "Time that a call took, answered or not",
    ),
    metric(
        "walhook_delivery_lag_seconds",
        Kind::Histogram,
        &["webhook"],
        DELIVER,
        "Time from an event's commit in PostgreSQL to the end of the call that delivered it, by the clocks of both machines",
    ),
    metric("walhook_in_flight", Kind::Gauge, &["webhook"], DELIVER, "Calls that run"),
    metric(
        "walhook_webhooks_disabled",
        Kind::Gauge,
        &[],
        DELIVER,
        "Webhooks that are not called, because their rows are disabled or their receivers have answered 410",
    ),
];

/// Label names with their values.
type Labels<'a> = Vec<(&'static str, &'a str)>;

struct LabelSet<'a>(&'a [(&'static str, &'a str)]);

impl EncodeLabelSet for LabelSet<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        prometheus_client::encoding::EncodeLabelSet::encode(&self.0, encoder)
    }
}

/// A value with its labels.
enum Sample<'a> {
    Number(Labels<'a>, f64),
    Count(Labels<'a>, u64),
    Durations(Labels<'a>, &'a Histogram),
}

#[derive(Debug)]
struct Exposed(Snapshot);

impl Collector for Exposed {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let snapshot = &self.0;
        let mut problems: BTreeMap<String, u64> = BTreeMap::new();
        for problem in snapshot.problems() {
            *problems.entry(problem.code).or_default() += 1;
        }
        let webhooks = snapshot.deliver.as_ref().map(super::snapshot::Deliver::bounded).unwrap_or_default();
        for metric in METRICS.iter().filter(|metric| metric.verbs.contains(&snapshot.verb)) {
            let (name, unit) = split(metric);
            let mut encoder = encoder.encode_descriptor(name, metric.help, unit.as_ref(), metric.kind.metric_type())?;
            for sample in samples(metric.name, snapshot, &webhooks, &problems) {
                write(&mut encoder, &sample)?;
            }
        }
        Ok(())
    }
}

/// The name without what the format adds: the unit, and `_total`.
fn split(metric: &Metric) -> (&'static str, Option<Unit>) {
    let name = metric.name.strip_suffix("_total").unwrap_or(metric.name);
    for (suffix, unit) in [("_seconds", Unit::Seconds), ("_bytes", Unit::Bytes)] {
        if let Some(stem) = name.strip_suffix(suffix) {
            return (stem, Some(unit));
        }
    }
    (name, None)
}

fn write(encoder: &mut MetricEncoder<'_>, sample: &Sample<'_>) -> fmt::Result {
    let (Sample::Number(labels, _) | Sample::Count(labels, _) | Sample::Durations(labels, _)) = sample;
    let labels = LabelSet(labels);
    if labels.0.is_empty() {
        return write_value(encoder, sample);
    }
    write_value(&mut encoder.encode_family(&labels)?, sample)
}

fn write_value(encoder: &mut MetricEncoder<'_>, sample: &Sample<'_>) -> fmt::Result {
    match sample {
        Sample::Number(_, value) => encoder.encode_gauge(value),
        Sample::Count(_, value) => encoder.encode_counter::<NoLabelSet, _, u64>(value, None),
        Sample::Durations(_, histogram) => {
            #[allow(clippy::cast_precision_loss, reason = "a float has 53 bits, and seconds no more digits than these")]
            let seconds = |micros: u64| micros as f64 / 1e6;
            let bound = |bound: Option<u64>| bound.map_or(f64::INFINITY, seconds);
            let buckets: Vec<_> = histogram.buckets().map(|(upto, count)| (bound(upto), count)).collect();
            encoder.encode_histogram::<NoLabelSet>(seconds(histogram.sum_us()), histogram.count(), &buckets, None)
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "a float has 53 bits")]
fn number(value: u64) -> f64 {
    value as f64
}

/// The samples of one metric.
fn samples<'a>(
    name: &str,
    snapshot: &'a Snapshot,
    webhooks: &'a [super::snapshot::Webhook],
    problems: &'a BTreeMap<String, u64>,
) -> Vec<Sample<'a>> {
    let run = snapshot.run.as_ref();
    of_process(name, snapshot, problems)
        .or_else(|| of_slot(name, run.and_then(|run| run.slot.as_ref())))
        .or_else(|| of_run(name, run))
        .or_else(|| of_streams(name, run.map_or(&[], |run| &run.streams)))
        .or_else(|| of_webhooks(name, webhooks))
        .unwrap_or_else(|| unreachable!("every metric of METRICS has its samples; a test asks for each"))
}

/// A value without labels.
fn one<'a>(value: f64) -> Vec<Sample<'a>> {
    vec![Sample::Number(Vec::new(), value)]
}

/// The same, where it is known.
fn maybe<'a>(value: Option<u64>) -> Vec<Sample<'a>> {
    value.map(number).map(one).unwrap_or_default()
}

/// Counts, each with its word as the label.
fn by_word<'a>(label: &'static str, counts: &'a [(&'static str, u64)]) -> Vec<Sample<'a>> {
    counts.iter().map(|(word, count)| Sample::Count(vec![(label, *word)], *count)).collect()
}

/// What any process has: what it is, whether it is connected, what has failed. `None`: the metric is no such one.
fn of_process<'a>(name: &str, snapshot: &'a Snapshot, problems: &'a BTreeMap<String, u64>) -> Option<Vec<Sample<'a>>> {
    Some(match name {
        "walhook_build_info" => vec![Sample::Number(
            vec![("version", env!("CARGO_PKG_VERSION")), ("verb", snapshot.verb), ("source", &snapshot.source)],
            1.0,
        )],
        "walhook_postgres_connected" => one(f64::from(u8::from(snapshot.postgres_connected))),
        "walhook_nats_connected" => {
            let of = |nats: &'a super::snapshot::Nats| {
                Sample::Number(vec![("config", nats.config.as_str())], f64::from(u8::from(nats.connected)))
            };
            snapshot.nats.iter().map(of).collect()
        }
        "walhook_dead_letters_total" => by_word("reason", &snapshot.dead_letters_total),
        "walhook_dead_letters" => maybe(snapshot.dead_letters),
        "walhook_log_records_dropped_total" => vec![Sample::Count(Vec::new(), snapshot.log_records_dropped)],
        "walhook_links_broken" => maybe(snapshot.links_broken),
        "walhook_problems" => {
            problems.iter().map(|(code, count)| Sample::Number(vec![("code", code.as_str())], number(*count))).collect()
        }
        "walhook_webhooks_disabled" => maybe(snapshot.deliver.as_ref().map(|deliver| deliver.webhooks_disabled)),
        _ => return None,
    })
}

/// What PostgreSQL says of the replication slot. `None`: the metric is no such one.
fn of_slot<'a>(name: &str, slot: Option<&'a super::snapshot::Slot>) -> Option<Vec<Sample<'a>>> {
    Some(match name {
        "walhook_replication_lag_bytes" => maybe(slot.map(|slot| slot.lag_bytes)),
        "walhook_slot_retained_wal_bytes" => maybe(slot.map(|slot| slot.retained_bytes)),
        "walhook_slot_safe_wal_bytes" => maybe(slot.and_then(|slot| slot.safe_bytes)),
        "walhook_slot_wal_status" => {
            let of = |slot: &super::snapshot::Slot| {
                let is = |status: &'static str| f64::from(u8::from(slot.wal_status == status));
                ["reserved", "extended", "unreserved", "lost"]
                    .map(|status| Sample::Number(vec![("status", status)], is(status)))
            };
            slot.into_iter().flat_map(of).collect()
        }
        _ => return None,
    })
}

/// What `walhook run` counts over all its streams. `None`: the metric is no such one.
fn of_run<'a>(name: &str, run: Option<&'a super::snapshot::Run>) -> Option<Vec<Sample<'a>>> {
    Some(match name {
        "walhook_replication_lag_seconds" => run.map(|run| one(run.lag_seconds)).unwrap_or_default(),
        "walhook_changes_total" => run.map(|run| by_word("op", &run.changes)).unwrap_or_default(),
        "walhook_emitted_messages_total" => run.map(|run| by_word("result", &run.emitted)).unwrap_or_default(),
        "walhook_publish_errors_total" => {
            let errors = run.into_iter().flat_map(|run| &run.publish_errors);
            errors.map(|(code, count)| Sample::Count(vec![("code", code.as_str())], *count)).collect()
        }
        "walhook_unconfirmed_seconds" => run.map(|run| one(run.unconfirmed_seconds)).unwrap_or_default(),
        "walhook_history_rows_lost_total" => {
            run.map(|run| vec![Sample::Count(Vec::new(), run.history_rows_lost)]).unwrap_or_default()
        }
        "walhook_config_version" => maybe(run.map(|run| run.config_version)),
        _ => return None,
    })
}

/// What `walhook run` counts of each stream. `None`: the metric is no such one.
fn of_streams<'a>(name: &str, streams: &'a [super::snapshot::Stream]) -> Option<Vec<Sample<'a>>> {
    let each = |sample: &dyn Fn(&'a super::snapshot::Stream, Labels<'a>) -> Option<Sample<'a>>| -> Vec<Sample<'a>> {
        streams.iter().filter_map(|stream| sample(stream, vec![("stream", &stream.stream)])).collect()
    };
    Some(match name {
        "walhook_events_published_total" => each(&|stream, labels| Some(Sample::Count(labels, stream.published))),
        "walhook_publish_duplicates_total" => each(&|stream, labels| Some(Sample::Count(labels, stream.duplicates))),
        "walhook_publish_duration_seconds" => each(&|stream, labels| Some(Sample::Durations(labels, &stream.publish))),
        "walhook_commit_to_ack_seconds" => {
            each(&|stream, labels| Some(Sample::Durations(labels, &stream.commit_to_ack)))
        }
        "walhook_window_events" => each(&|stream, labels| Some(Sample::Number(labels, number(stream.window_events)))),
        "walhook_window_bytes" => each(&|stream, labels| Some(Sample::Number(labels, number(stream.window_bytes)))),
        "walhook_stream_used_ratio" => {
            each(&|stream, labels| stream.used_ratio.map(|ratio| Sample::Number(labels, ratio)))
        }
        _ => return None,
    })
}

/// What `walhook deliver` counts of each webhook. `None`: the metric is no such one.
fn of_webhooks<'a>(name: &str, webhooks: &'a [super::snapshot::Webhook]) -> Option<Vec<Sample<'a>>> {
    let each = |sample: &dyn Fn(&'a super::snapshot::Webhook, Labels<'a>) -> Sample<'a>| -> Vec<Sample<'a>> {
        webhooks.iter().map(|webhook| sample(webhook, vec![("webhook", &webhook.name)])).collect()
    };
    Some(match name {
        "walhook_deliveries_total" => {
            let of = |webhook: &'a super::snapshot::Webhook| {
                [("delivered", webhook.delivered), ("retried", webhook.retried), ("dead", webhook.dead)].map(
                    |(outcome, count)| {
                        Sample::Count(vec![("webhook", webhook.name.as_str()), ("outcome", outcome)], count)
                    },
                )
            };
            webhooks.iter().flat_map(of).collect()
        }
        "walhook_delivery_duration_seconds" => each(&|webhook, labels| Sample::Durations(labels, &webhook.duration)),
        "walhook_delivery_lag_seconds" => each(&|webhook, labels| Sample::Durations(labels, &webhook.lag)),
        "walhook_in_flight" => each(&|webhook, labels| Sample::Number(labels, number(webhook.in_flight))),
        _ => return None,
    })
}

/// OpenMetrics text.
pub fn openmetrics(snapshot: Snapshot) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Exposed(snapshot)));
    let mut out = String::new();
    text::encode(&mut out, &registry).expect("writing to a string");
    out
}

/// Prometheus's text format: counters are described by the names that their samples have, and there is neither a unit nor an end.
pub fn prometheus(snapshot: Snapshot) -> String {
    let openmetrics = openmetrics(snapshot);
    let mut out = String::with_capacity(openmetrics.len());
    let mut help = "";
    for line in openmetrics.lines() {
        if line.starts_with("# HELP ") {
            // Which kind it is comes in the next line.
            help = line;
            continue;
        }
        if line.starts_with("# UNIT ") || line == "# EOF" {
            continue;
        }
        if let Some(described) = line.strip_prefix("# TYPE ") {
            let is_counter = described.ends_with(" counter");
            for described in [&help[2..], &line[2..]] {
                let mut words = described.splitn(3, ' ');
                let mut word = || words.next().unwrap_or_default();
                let (what, name, rest) = (word(), word(), word());
                let total = if is_counter { "_total" } else { "" };
                out.push_str(&format!("# {what} {name}{total} {rest}\n"));
            }
            continue;
        }
        out.push_str(line);
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::snapshot::{Deliver, Nats, Run, Slot, Stream, Webhook};

    /// A snapshot in which every metric has a sample.
    fn full(verb: &'static str) -> Snapshot {
        let mut histogram = Histogram::default();
        histogram.record(1500);
        let stream = Stream {
            stream: "WEBHOOKS".to_owned(),
            published: 3,
            used_ratio: Some(0.5),
            publish: histogram,
            ..Stream::default()
        };
        let run = Run {
            slot: Some(Slot { safe_bytes: Some(7), wal_status: "reserved".to_owned(), ..Slot::default() }),
            changes: vec![("insert", 3)],
            emitted: vec![("accepted", 2), ("refused", 0)],
            streams: vec![stream],
            publish_errors: vec![("10071".to_owned(), 1)],
            ..Run::default()
        };
        let webhook =
            Webhook { name: "a \"b\"\\\n".to_owned(), delivered: 5, duration: histogram, ..Webhook::default() };
        Snapshot {
            source: "walhook".to_owned(),
            verb,
            postgres_connected: true,
            nats: vec![Nats { config: "default".to_owned(), connected: true, ..Nats::default() }],
            dead_letters_total: vec![("refused", 2)],
            dead_letters: Some(1),
            links_broken: Some(0),
            run: (verb == "run").then_some(run),
            deliver: (verb == "deliver").then(|| Deliver { webhooks: vec![webhook], ..Deliver::default() }),
            ..Snapshot::default()
        }
    }

    #[test]
    fn every_metric_is_written_in_both_formats_with_what_it_means() {
        for verb in ["run", "deliver"] {
            let (new, old) = (openmetrics(full(verb)), prometheus(full(verb)));
            assert!(new.ends_with("# EOF\n") && !old.contains("# EOF") && !old.contains("# UNIT"), "{old}");
            for metric in METRICS {
                let has = metric.verbs.contains(&verb);
                let stem = metric.name.strip_suffix("_total").unwrap_or(metric.name);
                let (kind, help) = (metric.kind.as_str(), metric.help);
                for (text, name) in [(&new, stem), (&old, metric.name)] {
                    assert_eq!(text.contains(&format!("# TYPE {name} {kind}\n")), has, "{name}\n{text}");
                    assert_eq!(text.contains(&format!("# HELP {name} {help}\n")), has, "{name}\n{text}");
                    let sample = |line: &str| {
                        line.strip_prefix(metric.name).is_some_and(|rest| rest.starts_with([' ', '{', '_']))
                    };
                    assert_eq!(text.lines().any(sample), has, "a sample of {name}\n{text}");
                }
                assert!(!help.contains(['\\', '\n']), "{help}");
            }
        }
        let text = prometheus(full("run"));
        assert!(
            text.contains("walhook_publish_duration_seconds_bucket{le=\"0.002048\",stream=\"WEBHOOKS\"} 1\n"),
            "{text}"
        );
        assert!(text.contains("walhook_publish_duration_seconds_sum{stream=\"WEBHOOKS\"} 0.0015\n"), "{text}");
    }

    #[test]
    fn what_others_write_stays_within_its_label() {
        let text = prometheus(full("deliver"));
        assert!(text.contains("{webhook=\"a \\\"b\\\"\\\\\\n\",outcome=\"delivered\"} 5\n"), "{text}");
    }
}
