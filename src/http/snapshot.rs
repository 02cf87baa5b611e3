//! What `run` and `deliver` show of themselves. Pure.
//!
//! In: what the process fills in, a few times a minute or once a second. Out: the same, for whoever renders it as metrics, as JSON
//! or as a page. Always holds: no payload, no secret and no header value is in here, and the lists of webhooks, findings and
//! dead letters are bounded.

use std::{collections::BTreeMap, sync::Arc};

use serde::Serialize;
use serde_json::Value;

use crate::{
    calendar::POSTGRES_EPOCH_US,
    flow::{histogram::Histogram, streamer::WebhookCounts},
};

/// How many webhooks have a line of their own in the metrics; the rest is summed up as [`OTHER`].
pub const WEBHOOKS_MAX: usize = 200;
/// The label of all other webhooks.
pub const OTHER: &str = "other";

/// Everything that is shown.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Snapshot {
    /// The name of the feed.
    pub source: String,
    /// `run` or `deliver`.
    pub verb: &'static str,
    /// Seconds since 1970 when the process began.
    pub started_at: u64,
    /// The process has been asked to end.
    pub is_stopping: bool,
    /// For `run`: the replication connection stands. For `deliver`: the last statement was answered, or there is no database.
    pub postgres_connected: bool,
    /// Why the process has not begun its work, if something keeps it from it.
    pub start_error: Option<String>,
    /// Why PostgreSQL is not connected.
    pub postgres_error: Option<String>,
    /// What `walhook check` calls that.
    pub postgres_finding: Option<&'static str>,
    /// The same of [`Snapshot::start_error`].
    pub start_finding: Option<&'static str>,
    /// Why the history takes no rows.
    pub history_blocked: Option<String>,
    /// What the role may not do any more.
    pub refused: Option<String>,
    /// Each NATS configuration.
    pub nats: Vec<Nats>,
    /// Lines of the log that could not be written.
    pub log_records_dropped: u64,
    /// Events that can never be published or delivered, by reason.
    pub dead_letters_total: Vec<(&'static str, u64)>,
    /// Dead letters that wait for somebody, if the database has told.
    pub dead_letters: Option<u64>,
    /// The newest of them.
    pub newest_dead_letters: Vec<DeadLetter>,
    /// What the check of the set-up has found, as `walhook status --json` shows it.
    pub findings: Vec<Value>,
    /// How many links publish nothing, or less than they should; `None` while nobody has looked.
    pub links_broken: Option<u64>,
    /// What `walhook check` has found, if it has run yet.
    pub checked: Option<Checked>,
    /// Replays and backfills that are asked for or run.
    pub jobs: Vec<Value>,
    /// Only of `run`.
    pub run: Option<Run>,
    /// Only of `deliver`.
    pub deliver: Option<Deliver>,
}

/// What `walhook check` found when it ran last.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Checked {
    /// When, in seconds since 1970.
    pub at: u64,
    /// Its exit code.
    pub exit_code: u8,
    /// Its findings, as `walhook check --json` shows them, but for those in [`Snapshot::findings`].
    pub findings: Vec<Value>,
}

/// A NATS configuration.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Nats {
    /// Its name.
    pub config: String,
    /// Whether it is connected.
    pub connected: bool,
    /// Where to.
    pub server: Option<String>,
    /// Why not.
    pub error: Option<String>,
    /// What `walhook check` calls that.
    pub finding: Option<String>,
    /// The slot waits for its events.
    pub holds_slot: bool,
}

/// A dead letter, without its payload.
#[derive(Debug, Clone, Serialize)]
pub struct DeadLetter {
    /// Its key.
    pub id: i64,
    /// Its webhook's name.
    pub webhook: Option<String>,
    /// Why it could not be published.
    pub reason: String,
    /// When it was written, in seconds since 1970.
    pub at: f64,
}

/// What `run` adds.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Run {
    /// The slot's name.
    pub slot_name: String,
    /// The slot, if PostgreSQL has told of it lately.
    pub slot: Option<Slot>,
    /// How old the oldest commit is that is not acknowledged, in seconds.
    pub lag_seconds: f64,
    /// For how long nothing has been confirmed although something was received, in seconds.
    pub unconfirmed_seconds: f64,
    /// Row operations received, by operation.
    pub changes: Vec<(&'static str, u64)>,
    /// Messages of `rule_webhook_emit` received, by whether they were.
    pub emitted: Vec<(&'static str, u64)>,
    /// Each stream.
    pub streams: Vec<Stream>,
    /// Each webhook.
    #[serde(skip)]
    pub webhooks: Published,
    /// Refusals of JetStream, by `err_code` or a word.
    pub publish_errors: Vec<(String, u64)>,
    /// Rows of the history that were lost.
    pub history_rows_lost: u64,
    /// How often the rules have changed since the process began.
    pub config_version: u64,
}

/// All webhooks that publish, with what was published for them. A copy costs nothing for the names and little for the numbers.
#[derive(Debug, Clone, Default)]
pub struct Published {
    /// In the order of their ids.
    pub names: Arc<[PublishedName]>,
    /// In the same order.
    pub counts: Arc<[WebhookCounts]>,
}

/// Which webhook it is.
#[derive(Debug, Clone)]
pub struct PublishedName {
    /// Its key.
    pub id: i32,
    /// Its name.
    pub name: String,
    /// Why its events cannot be published, if they cannot.
    pub problem: Option<String>,
    /// Changes of linked tables go to NATS for it.
    pub publishes: bool,
}

/// A webhook on the page of `run`.
#[derive(Debug, Serialize)]
pub struct PublishedWebhook<'s> {
    /// Its key.
    pub id: i32,
    /// Its name.
    pub name: &'s str,
    /// Why its events cannot be published, if they cannot.
    pub problem: Option<&'s str>,
    /// Changes of linked tables go to NATS for it.
    pub publishes: bool,
    /// Events made for it since the process began.
    pub events: u64,
    /// How many of them became dead letters.
    pub dead: u64,
    /// When the last of them was committed, in seconds since 1970.
    pub last_at: Option<f64>,
}

impl Published {
    /// Each webhook with its numbers.
    pub fn iter(&self) -> impl Iterator<Item = PublishedWebhook<'_>> {
        #[allow(clippy::cast_precision_loss, reason = "seconds with a few digits")]
        let seconds = |micros: i64| (micros as f64) / 1e6 + POSTGRES_EPOCH_US as f64 / 1e6;
        self.names.iter().zip(self.counts.iter()).map(move |(known, counts)| PublishedWebhook {
            id: known.id,
            name: &known.name,
            problem: known.problem.as_deref(),
            publishes: known.publishes,
            events: counts.events,
            dead: counts.dead,
            last_at: (counts.events > 0).then(|| seconds(counts.last)),
        })
    }
}

/// The slot, as PostgreSQL shows it.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Slot {
    /// What it has not confirmed.
    pub lag_bytes: u64,
    /// The WAL that it keeps on disk.
    pub retained_bytes: u64,
    /// How much more it may keep before it is lost; `None`: without limit.
    pub safe_bytes: Option<u64>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: String,
}

/// A stream.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Stream {
    /// Its configuration.
    pub config: String,
    /// Its name.
    pub stream: String,
    /// Messages go out at present.
    pub is_open: bool,
    /// Messages stored.
    pub published: u64,
    /// Acks that said `duplicate`.
    pub duplicates: u64,
    /// Events that are not acknowledged.
    pub window_events: u64,
    /// Their bytes.
    pub window_bytes: u64,
    /// The sequence of the last event of ours.
    pub last_sequence: Option<u64>,
    /// How much of the nearest of its limits is used, from 0 to 1; `None`: it has none, or nobody could ask.
    pub used_ratio: Option<f64>,
    /// From the socket to the ack.
    #[serde(skip)]
    pub publish: Histogram,
    /// From the commit to the ack.
    #[serde(skip)]
    pub commit_to_ack: Histogram,
}

/// What `deliver` adds.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Deliver {
    /// Webhooks that are not called, for their rows are disabled or their receivers have answered 410.
    pub webhooks_disabled: u64,
    /// Each webhook that is delivered.
    pub webhooks: Vec<Webhook>,
}

/// A webhook, as its calls went.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Webhook {
    /// Its key.
    pub id: i32,
    /// Its name.
    pub name: String,
    /// It is called.
    pub is_enabled: bool,
    /// Calls that were answered with success.
    pub delivered: u64,
    /// Calls that failed and are made again.
    pub retried: u64,
    /// Events that became dead letters.
    pub dead: u64,
    /// Calls that run.
    pub in_flight: u64,
    /// When the last call ended, in seconds since 1970.
    pub last_at: Option<f64>,
    /// Why the last call failed, if it did.
    pub last_error: Option<String>,
    /// What calls took.
    #[serde(skip)]
    pub duration: Histogram,
    /// From the commit to the call that succeeded.
    #[serde(skip)]
    pub lag: Histogram,
}

impl Deliver {
    /// As many webhooks as may have labels of their own, and all others in one.
    pub fn bounded(&self) -> Vec<Webhook> {
        let mut webhooks = self.webhooks.clone();
        // Which ones have a label must not change from scrape to scrape: the oldest ones keep theirs.
        webhooks.sort_by_key(|webhook| webhook.id);
        let mut bounded: BTreeMap<String, Webhook> = BTreeMap::new();
        for (index, webhook) in webhooks.into_iter().enumerate() {
            let name = if index < WEBHOOKS_MAX { webhook.name.clone() } else { OTHER.to_owned() };
            // A name may have been another webhook's before: a label stands once.
            let entry = bounded.entry(name.clone()).or_insert_with(|| Webhook { name, ..Webhook::default() });
            entry.delivered += webhook.delivered;
            entry.retried += webhook.retried;
            entry.dead += webhook.dead;
            entry.in_flight += webhook.in_flight;
            entry.duration.add(&webhook.duration);
            entry.lag.add(&webhook.lag);
        }
        bounded.into_values().collect()
    }
}

/// Something that is wrong now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Its name, the same everywhere: of the table in `commands/check/codes.rs`.
    pub code: String,
    /// What is wrong.
    pub text: String,
    /// What to do.
    pub remedy: String,
}

/// What is wrong by other means than [`Snapshot::findings`], with what to do. The findings of a check that may be minutes old leave
/// these out.
pub const LIVE: &[(&str, &str)] = &[
    ("postgres_connection", "see that PostgreSQL runs and lets walhook in; `walhook check` says what it lacks"),
    ("standby", "walhook goes on when the server is promoted"),
    ("slot_held", "nothing, if the other walhook is meant to run; otherwise stop it"),
    ("slot_lost", "walhook check"),
    ("slot_wal_status", "find what walhook waits for, or raise max_slot_wal_keep_size"),
    ("nats_connection", "see that NATS runs, and the address in rule_nats_config; `walhook check` says what it finds"),
    ("nats_jetstream", "enable JetStream for the account; `walhook check` says what it finds"),
    ("nats_permissions", "walhook check --permissions"),
    ("nats_storage", "give the account or the server more storage, or lower max_bytes of a stream"),
    ("stream_full", "raise the stream's limits in rule_nats_streams, or have its consumers read"),
    ("history_blocked", "end the transaction that holds a lock on rule_nats_publish_history: see pg_locks"),
    ("privileges", "walhook check names the GRANT that is missing"),
    ("dead_letters", "walhook dead-letters list; then retry or drop them"),
    (
        "webhook_not_called",
        "correct the receiver, then SELECT rule_webhook_update(id, p_enabled => true), or p_url => the new URL",
    ),
];

/// How many problems are listed.
const PROBLEMS_MAX: usize = 50;

fn problem(code: &str, text: impl Into<String>) -> Problem {
    let remedy = LIVE.iter().find(|(known, _)| *known == code).map_or("walhook check", |(_, remedy)| remedy);
    let text = text.into();
    // An error that says what to do knows more than the table.
    match text.split_once(". Hint: ") {
        Some((text, hint)) => Problem { code: code.to_owned(), text: text.to_owned(), remedy: hint.to_owned() },
        None => Problem { code: code.to_owned(), remedy: remedy.to_owned(), text },
    }
}

/// Whether the process does its work, and why not.
#[derive(Debug, Serialize)]
pub struct Readiness {
    /// It does.
    pub ready: bool,
    /// What keeps it from it, for a person.
    pub reasons: Vec<String>,
}

impl Snapshot {
    /// What is wrong now, each under the name by which `walhook check`, the log and `walhook status --check` know it.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if let Some(error) = &self.start_error {
            problems.push(problem(self.start_finding.unwrap_or("postgres_connection"), error));
        } else if !self.postgres_connected {
            let why = self.postgres_error.as_deref().unwrap_or("no connection yet");
            problems.push(problem(self.postgres_finding.unwrap_or("postgres_connection"), why));
        }
        for nats in self.nats.iter().filter(|nats| !nats.connected || nats.error.is_some()) {
            let code = nats.finding.as_deref().unwrap_or("nats_connection");
            problems.push(problem(code, nats.error.as_deref().unwrap_or("no connection yet")));
        }
        let status = self.run.as_ref().and_then(|run| run.slot.as_ref()).map(|slot| slot.wal_status.as_str());
        match status {
            Some("lost") => problems.push(problem("slot_lost", "PostgreSQL has removed WAL that the slot needed")),
            Some("unreserved") => {
                problems.push(problem("slot_wal_status", "the slot has used up its allowance of WAL"))
            }
            _ => {}
        }
        problems.extend(self.history_blocked.as_ref().map(|why| problem("history_blocked", why)));
        problems.extend(self.refused.as_ref().map(|why| problem("privileges", why)));
        // Without the database nobody knows whether they still hold.
        for finding in self.findings.iter().filter(|_| self.postgres_connected) {
            let text = |name: &str| finding[name].as_str().unwrap_or_default().to_owned();
            if ["error", "fatal"].contains(&text("severity").as_str()) {
                problems.push(Problem { code: text("name"), text: text("problem"), remedy: text("remedy") });
            }
        }
        if let Some(count) = self.dead_letters.filter(|count| *count > 0) {
            problems.push(problem("dead_letters", format!("dead letters that wait to be retried or dropped: {count}")));
        }
        if let Some(count) = self.deliver.as_ref().map(|deliver| deliver.webhooks_disabled).filter(|count| *count > 0) {
            problems.push(problem("webhook_not_called", format!("webhooks that are not called: {count}")));
        }
        problems.truncate(PROBLEMS_MAX);
        problems
    }

    /// Whether the process does its work now.
    pub fn readiness(&self) -> Readiness {
        let mut reasons = Vec::new();
        if self.is_stopping {
            reasons.push("it was asked to stop".to_owned());
        }
        if let Some(error) = &self.start_error {
            reasons.push(format!("not started: {error}"));
        }
        if !self.postgres_connected {
            let why = self.postgres_error.as_deref().unwrap_or("no connection yet");
            reasons.push(format!("PostgreSQL: not connected: {why}"));
        }
        if self.nats.is_empty() && self.verb == "deliver" {
            reasons.push("NATS: not connected yet".to_owned());
        }
        for nats in self.nats.iter().filter(|nats| !nats.connected) {
            let why = nats.error.as_deref().unwrap_or("no connection yet");
            reasons.push(format!("NATS configuration {:?}: not connected: {why}", nats.config));
        }
        if let Some(slot) = self.run.as_ref().and_then(|run| run.slot.as_ref()).filter(|slot| slot.wal_status == "lost")
        {
            reasons
                .push(format!("the slot's WAL is {}: what it had not confirmed cannot be published", slot.wal_status));
        }
        Readiness { ready: reasons.is_empty(), reasons }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_the_bound_webhooks_are_summed_up_and_the_sum_of_all_stays() {
        let webhooks = (0..10_000).map(|id| Webhook { id, name: format!("w{id}"), delivered: 2, ..Webhook::default() });
        let bounded = Deliver { webhooks: webhooks.rev().collect(), ..Deliver::default() }.bounded();
        assert_eq!(bounded.len(), WEBHOOKS_MAX + 1);
        let of = |name: &str| bounded.iter().find(|webhook| webhook.name == name).map(|webhook| webhook.delivered);
        assert_eq!([of("w0"), of("w199"), of("w200"), of(OTHER)], [Some(2), Some(2), None, Some(19_600)]);
        assert_eq!(bounded.iter().map(|webhook| webhook.delivered).sum::<u64>(), 20_000);
    }

    #[test]
    fn what_is_not_ready_says_why() {
        let mut snapshot = Snapshot { verb: "run", postgres_connected: true, ..Snapshot::default() };
        assert!(snapshot.readiness().ready);
        snapshot.nats.push(Nats { config: "default".to_owned(), error: Some("refused".to_owned()), ..Nats::default() });
        snapshot.is_stopping = true;
        let readiness = snapshot.readiness();
        assert!(!readiness.ready && readiness.reasons.len() == 2, "{readiness:?}");
        assert!(readiness.reasons[1].contains("\"default\": not connected: refused"), "{readiness:?}");
    }
}
