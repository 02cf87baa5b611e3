//! NATS: who is reached by each configuration, what its user may do, and what would become of events in its streams.
//!
//! In: the configuration tables. Out: findings. What `walhook run` would do is foreseen and not done: nothing is created, changed or
//! published.

use super::{
    finding::{Finding, How, Severity},
    rights::{self, Allowed, Need, Places, Rights},
    server::{bytes, duration},
    sizes::Sample,
};
use crate::{
    commands::{
        bucket,
        identity::{self, Identity},
        run::{
            self,
            ledger::{self, Checkpoint},
        },
    },
    config::Config,
    error::{Error, Kind, Result},
    nats::{
        control::{self, Control},
        settings::Settings,
        streams::{
            StreamState,
            foresee::{self, Foreseen, Limits, Storage, There, Unread},
        },
        tail::CREATED_TOLERANCE_NS,
    },
    postgres::sql,
    route::{
        streams::streams_of_all,
        tables::{ConfigRow, StreamRow, Tables},
    },
    text,
};
use tokio_postgres::Client;

/// A stream that deletes events sooner than this deletes them before somebody has looked after a consumer.
const RETENTION_HOURS: f64 = 24.0;
/// How full a stream or an account is that is nearly full.
const NEARLY_FULL: f64 = 0.8;
/// Heap for each message id in the duplicate window, in bytes.
const ID_BYTES: f64 = 260.0;
/// So much of it is worth a word.
const WINDOW_BYTES: f64 = 256e6;
/// In a shared stream: how long a restart with all its retries may take.
const WINDOW_LEAST: f64 = 60.0;
/// What comes beside the row in a message: headers and the envelope.
const ENVELOPE: f64 = 1024.0;

/// A configuration and how it is reached.
pub struct Reached {
    /// Its row.
    pub row: ConfigRow,
    /// Its settings, with the process's own.
    pub settings: Settings,
    /// Its streams.
    pub streams: Vec<StreamRow>,
}

/// The configurations that publish to NATS, each with its settings or with what is wrong with them.
pub fn configurations(config: &Config, tables: &Tables) -> (Vec<Reached>, Vec<Finding>) {
    let mut tables = tables.clone();
    tables.overridden = config.nats.reaches_another().then(|| config.nats_config.clone());
    let mut streams = streams_of_all(&tables);
    let (mut reached, mut findings) = (Vec::new(), Vec::new());
    for (id, row) in tables.configs.iter().filter(|(_, row)| row.enabled != Some(false)) {
        let subject = format!("NATS configuration {:?}", row.config_name);
        let (streams, problems) = streams.remove(id).unwrap_or_default();
        findings.extend(problems.into_iter().map(|problem| {
            Finding::new("stream_rows", Severity::Warning, subject.as_str(), problem)
                .remedy(How::Advice, "Correct the row in rule_nats_streams, as the text says.")
        }));
        match Settings::resolve(row, &config.overrides_of(&row.config_name)) {
            Ok(settings) => {
                let warnings = settings.warnings.iter().map(|warning| {
                    Finding::new("nats_settings", Severity::Warning, subject.as_str(), warning.as_str()).remedy(
                        How::Advice,
                        "Put the secret into a file that the environment names, such as NATS_CREDS, and take it out of the row.",
                    )
                });
                findings.extend(warnings);
                reached.push(Reached { row: row.clone(), settings, streams });
            }
            // `run` goes on with the other configurations, and waits for the row to change.
            Err(error) => findings.push(Finding::told("nats_settings", Severity::Error, subject, &error)),
        }
    }
    if !tables.configs.values().any(|row| row.enabled != Some(false)) {
        let text = "there is no NATS configuration that is enabled, so nothing is published";
        findings.push(Finding::new("nats_settings", Severity::Warning, "rule_nats_config", text).remedy(
            How::Sql,
            "SELECT public.rule_nats_configure('default', 'nats://127.0.0.1:4222'); -- with your server's address",
        ));
    }
    (reached, findings)
}

/// Whether some webhook publishes by it, so that `walhook run` connects.
fn is_used(tables: &Tables, row: &ConfigRow) -> bool {
    let default = tables.configs.values().find(|row| row.config_name == "default").map(|row| row.config_id);
    tables.webhooks.values().any(|webhook| {
        webhook.nats_enabled
            && matches!(webhook.publish_mode.as_deref(), Some("nats" | "both"))
            && webhook.nats_config_id.or(default) == Some(row.config_id)
    })
}

/// What all checks of one configuration know.
struct Check<'a> {
    config: &'a Config,
    tables: &'a Tables,
    identity: Option<&'a Identity>,
    client: Option<&'a Client>,
    sample: &'a Sample,
    reached: &'a Reached,
    subject: String,
    used: usize,
    /// Where `walhook run` noted that the streams stood.
    checkpoints: Vec<Checkpoint>,
}

/// Everything about one configuration.
pub async fn check(
    config: &Config,
    tables: &Tables,
    client: Option<&Client>,
    identity: Option<&Identity>,
    sample: &Sample,
    reached: &Reached,
) -> Vec<Finding> {
    let used = tables.configs.values().filter(|row| row.enabled != Some(false) && is_used(tables, row)).count();
    let checkpoints = match client {
        Some(client) => checkpoints(client, config).await,
        None => Ok(Vec::new()),
    };
    let check = Check {
        // What keeps them from being read is found by other checks.
        checkpoints: checkpoints.unwrap_or_default(),
        config,
        tables,
        identity,
        client,
        sample,
        reached,
        subject: format!("NATS configuration {:?}", reached.row.config_name),
        used,
    };
    let is_used = is_used(tables, &reached.row);
    let mut findings = check.all().await;
    if !is_used {
        // Nothing of `run` depends on it.
        for finding in &mut findings {
            finding.severity = finding.severity.min(Severity::Warning);
            finding.exit_code = None;
        }
    }
    findings
}

async fn checkpoints(client: &Client, config: &Config) -> Result<Vec<Checkpoint>> {
    let asked = client.query_one("SELECT system_identifier::text FROM pg_catalog.pg_control_system()", &[]).await;
    let row = asked.map_err(|error| sql::error("read the system identifier", error))?;
    ledger::checkpoints(client, &config.source, row.get(0)).await
}

impl Check<'_> {
    async fn all(&self) -> Vec<Finding> {
        let control = match control::connect(&self.reached.settings).await {
            Ok(control) => control,
            Err(error) => return vec![self.not_connected(&error)],
        };
        let mut findings = Vec::new();
        let info = control.client().server_info();
        findings.extend(self.row_sizes(info.max_payload));
        if self.reached.row.jetstream_enabled == Some(false) {
            findings.extend(self.rights(&control, &[]).await);
            return findings;
        }
        match foresee::account(&control).await {
            Ok(storage) => findings.extend(self.storage(storage)),
            // Nothing depends on the right to ask; whether JetStream answers shows with the streams.
            Err(error) if error.kind() == Kind::Permission => {}
            Err(error) => {
                findings.push(self.no_jetstream(&error));
                return findings;
            }
        }
        match self.copies(&control).await {
            Ok(found) => findings.extend(found),
            Err(error) => findings.push(Finding::not_checked(&["database_copy"], &error)),
        }
        let buckets = self.buckets(&control).await;
        findings.extend(self.rights(&control, &buckets).await);
        for stream in &self.reached.streams {
            if let Err(error) = foresee::check_row(stream) {
                findings.push(Finding::told("stream_row_impossible", Severity::Error, named(stream), &error));
                continue;
            }
            match self.stream(&control, stream).await {
                Ok(found) => findings.extend(found),
                Err(error) => findings.push(self.stream_error(stream, &error)),
            }
        }
        findings
    }

    /// `nats_storage`.
    fn storage(&self, storage: Storage) -> Option<Finding> {
        let (used, limit) = storage.filter(|(used, limit)| used / limit >= NEARLY_FULL)?;
        let text = format!("the account has stored {} of {} that it may store", bytes(used), bytes(limit));
        let severity = if used >= limit { Severity::Error } else { Severity::Warning };
        let finding = Finding::new("nats_storage", severity, self.subject.as_str(), text);
        Some(finding.remedy(How::NatsServer, format!("jetstream: {{ max_file: {:.0} }}", limit * 2.0)))
    }

    fn not_connected(&self, error: &Error) -> Finding {
        let mut finding = Finding::told("nats_connection", Severity::Error, self.subject.as_str(), error);
        finding.exit_code = match error.kind() {
            // Where it is the only one in use, `run` ends.
            Kind::Permission if self.used <= 1 => {
                finding.severity = Severity::Fatal;
                Some(4)
            }
            _ => Some(1),
        };
        finding
    }

    fn no_jetstream(&self, error: &Error) -> Finding {
        Finding::told("nats_jetstream", Severity::Error, self.subject.as_str(), error).exits(1)
    }

    fn stream_error(&self, stream: &StreamRow, error: &Error) -> Finding {
        let subject = named(stream);
        match error.kind() {
            Kind::Permission => {
                let finding = Finding::told("nats_permissions", Severity::Error, subject, error);
                if self.used <= 1 {
                    Finding { severity: Severity::Fatal, exit_code: Some(4), ..finding }
                } else {
                    finding
                }
            }
            _ => Finding::told("nats_jetstream", Severity::Error, subject, error).exits(1),
        }
    }

    /// `database_copy`: the mark of the last run in the bucket.
    async fn copies(&self, control: &Control) -> Result<Vec<Finding>> {
        let (Some(client), Some(identity)) = (self.client, self.identity) else { return Ok(Vec::new()) };
        let mark = match bucket::find(control, &self.config.source, identity).await {
            Ok(place) => place.mark,
            Err(error) => return Err(error),
        };
        let Some(mark) = mark else { return Ok(Vec::new()) };
        let runs = identity::Runs::read(client, &self.config.source).await?;
        Ok(match runs.check(&mark, &identity.database_id) {
            Ok(()) => Vec::new(),
            Err(error) => vec![Finding::of_error("database_copy", self.subject.as_str(), &error)],
        })
    }

    /// The names that the bucket for workers may have.
    async fn buckets(&self, control: &Control) -> Vec<String> {
        match self.identity {
            Some(identity) => bucket_names(control, &self.config.source, identity).await,
            None => Vec::new(),
        }
    }

    /// `nats_permissions`.
    async fn rights(&self, control: &Control, buckets: &[String]) -> Vec<Finding> {
        let rights = self.needed(buckets);
        let allowed = match control.user_info().await {
            Ok(answer) => Allowed::parse(&answer),
            Err(error) => return vec![self.rights_unseen(&error)],
        };
        let Some(allowed) = allowed else {
            return vec![self.rights_unseen(&Error::protocol("the server's answer has no permissions"))];
        };
        let (publish, subscribe) = allowed.lacking(&rights);
        let mut findings = Vec::new();
        for need in [Need::Must, Need::Should] {
            let lacking: Vec<_> = publish
                .iter()
                .filter(|right| {
                    right.need == need && ![rights::USER_INFO, rights::ACCOUNT_INFO].contains(&right.subject.as_str())
                })
                .collect();
            let mut purposes: Vec<&str> = lacking.iter().map(|right| right.purpose).collect();
            purposes.dedup();
            let mut subjects: Vec<String> =
                lacking.iter().map(|right| format!("publish on {}", right.subject)).collect();
            if need == Need::Must {
                subjects.extend(subscribe.iter().map(|subject| format!("subscribe to {subject}")));
                if !subscribe.is_empty() {
                    purposes.push("receive answers");
                }
            }
            if subjects.is_empty() {
                continue;
            }
            let text = format!(
                "the user may not {}; walhook needs this to {}",
                subjects.join(", "),
                purposes.join(", and to ")
            );
            let severity = if need == Need::Must { Severity::Error } else { Severity::Warning };
            let mut finding = Finding::new("nats_permissions", severity, self.subject.as_str(), text);
            if need == Need::Must && self.used <= 1 {
                finding = Finding { severity: Severity::Fatal, ..finding.exits(4) };
            }
            findings.push(finding.remedy(How::Shell, "walhook check --permissions"));
        }
        findings
    }

    fn needed(&self, buckets: &[String]) -> Rights {
        let places = Places {
            row: &self.reached.row,
            streams: &self.reached.streams,
            buckets,
            inbox_prefix: &self.reached.settings.inbox_prefix,
        };
        rights::of_run(self.config, self.tables, &places)
    }

    fn rights_unseen(&self, error: &Error) -> Finding {
        Finding::unknown(
            "nats_permissions",
            &format!("{} does not say what its user may do: {}", self.subject, error.reason()),
            How::Shell,
            "walhook check --permissions",
        )
    }

    /// `nats_max_payload`.
    fn row_sizes(&self, max_payload: usize) -> Vec<Finding> {
        let limit = max_payload as f64;
        let takes = |webhook: &i32| {
            let row = self.tables.webhooks.get(webhook)?;
            let default =
                self.tables.configs.values().find(|row| row.config_name == "default").map(|row| row.config_id);
            (row.nats_config_id.or(default) == Some(self.reached.row.config_id)).then_some(row)
        };
        let finding = |seen: &super::sizes::Seen| {
            let webhooks: Vec<_> = seen.webhooks.iter().filter_map(takes).collect();
            let first = *webhooks.first()?;
            if seen.largest as f64 + ENVELOPE <= limit {
                return None;
            }
            let stores = webhooks.iter().all(|webhook| webhook.on_error.as_deref() == Some("object_store"));
            let severity = if stores { Severity::Note } else { Severity::Warning };
            let text = format!(
                "{} has rows of {} at least, and the server takes messages of at most {} (max_payload)",
                seen.table,
                bytes(seen.largest as f64),
                bytes(limit)
            );
            let finding = Finding::new("nats_max_payload", severity, format!("table {}", seen.table), text);
            Some(match stores {
                true => finding,
                false => finding.remedy(
                    How::Sql,
                    format!(
                        "UPDATE public.rule_webhooks SET on_error = 'object_store' WHERE webhook_name = {};",
                        text::sql_literal(&first.name)
                    ),
                ),
            })
        };
        self.sample.seen.iter().filter_map(finding).collect()
    }

    async fn stream(&self, control: &Control, row: &StreamRow) -> Result<Vec<Finding>> {
        let owner = self.identity.map(|identity| identity.owner(&self.config.source));
        let foreseen = foresee::foresee(control, row, owner.as_ref()).await?;
        let subject = named(row);
        let mut findings = Vec::new();
        match foreseen {
            Foreseen::New { taken_by, limits } => {
                findings.extend(self.lost(row, None));
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
                findings.extend(self.existing(row, &there));
                findings.extend(self.lost(row, Some(&there.state)));
                findings.extend(self.full(row, &there));
                match foresee::unread(control, &there.state).await {
                    Ok(unread) => findings.extend(self.unread(row, &there, &unread)),
                    Err(error) => findings.push(Finding::not_checked(&["stream_unread"], &error)),
                }
            }
        }
        Ok(findings)
    }

    fn existing(&self, row: &StreamRow, there: &There) -> Vec<Finding> {
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
            Err(error) => {
                findings.push(Finding::told("stream_row_impossible", Severity::Warning, subject.as_str(), error))
            }
        }
        match &there.problems {
            Ok(warnings) => findings.extend(warnings.iter().map(|warning| {
                Finding::new("stream_properties", Severity::Warning, subject.as_str(), warning.as_str())
            })),
            Err(error) => findings.push(Finding::told("stream_unusable", Severity::Error, subject.as_str(), error)),
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
        findings.extend(self.window(row, there));
        findings
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

    /// `stream_lost`: what `walhook run` had noted of the stream against what it is.
    fn lost(&self, row: &StreamRow, state: Option<&StreamState>) -> Option<Finding> {
        let config_name = &self.reached.row.config_name;
        let known = self
            .checkpoints
            .iter()
            .find(|known| known.config_name == *config_name && known.stream == row.stream_name)?;
        if !known.servers.is_empty() && known.servers != self.tables.servers_of(&self.reached.row) {
            return None;
        }
        let what = match state {
            _ if row.storage_type.as_deref() == Some("memory") => return None,
            None => "it does not exist any more".to_owned(),
            Some(state) if known.created_ns.abs_diff(state.created_ns) > CREATED_TOLERANCE_NS => {
                "it was made anew since".to_owned()
            }
            Some(state) if state.last_sequence < known.sequence && known.kept_upto.is_none() => {
                format!("it ends at message {} now", state.last_sequence)
            }
            Some(_) => return None,
        };
        Some(Finding::of_error("stream_lost", named(row), &run::stream_lost(known, &what)))
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
        let fill = |limit: Option<f64>, has: u64| limit.map_or(0.0, |limit| has as f64 / limit);
        let state = &there.state;
        let fullness = fill(there.limits.messages, state.messages).max(fill(there.limits.bytes, state.bytes));
        if !there.limits.drops_old || fullness < NEARLY_FULL {
            return Vec::new();
        }
        let subject = named(row);
        // Of what is there, so little is read that the next deletions meet unread events.
        let is_late = |unread: &&Unread| (unread.acknowledged as f64) < state.messages as f64 * 0.1;
        let finding = |unread: &Unread| {
            let text = format!(
                "consumer {:?} of {subject} has {} events to read, and the stream is {} percent full and deletes the oldest ones",
                unread.consumer,
                unread.messages,
                (fullness * 100.0).round()
            );
            Finding::new("stream_unread", Severity::Error, format!("consumer {:?} of {subject}", unread.consumer), text)
                .remedy(How::Sql, self.row_statement(row, "discard_policy = 'new'"))
        };
        unread.iter().filter(is_late).map(finding).collect()
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
    fn window(&self, row: &StreamRow, there: &There) -> Option<Finding> {
        let subject = named(row);
        let window = there.state.duplicate_window.as_secs_f64();
        let memory = there.rate.unwrap_or(0.0) * window * ID_BYTES;
        if row.ordering.as_deref() == Some("shared") && window < WINDOW_LEAST {
            let text = format!(
                "{subject} is shared and remembers message ids for {}: an event that is sent again after a longer outage is stored twice",
                duration(window)
            );
            let finding = Finding::new("duplicate_window", Severity::Warning, subject, text);
            return Some(finding.remedy(How::Sql, self.row_statement(row, "duplicate_window_seconds = 120")));
        }
        if memory > WINDOW_BYTES {
            let text = format!(
                "{subject} remembers message ids for {}, which at the present rate takes {} of the server's memory",
                duration(window),
                bytes(memory)
            );
            let finding = Finding::new("duplicate_window", Severity::Warning, subject, text);
            return Some(finding.remedy(How::Sql, self.row_statement(row, "duplicate_window_seconds = 120")));
        }
        None
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
        format!(
            "SELECT public.rule_nats_stream_create({name}, ARRAY[{}], {}); {update}",
            subjects.join(", "),
            text::sql_literal(&self.reached.row.config_name)
        )
    }
}

fn named(stream: &StreamRow) -> String {
    format!("stream {:?}", stream.stream_name)
}

/// The names that the bucket for workers has or may have. Where nothing can be asked, both.
async fn bucket_names(control: &Control, source: &str, identity: &Identity) -> Vec<String> {
    let (first, own) = bucket::names(source, identity);
    match bucket::find(control, source, identity).await {
        Ok(place) if place.info.is_some() => vec![place.name],
        _ => vec![first, own],
    }
}

/// What `walhook check --permissions` prints: for each configuration the block for its user.
pub fn permissions(
    config: &Config,
    tables: &Tables,
    identity: Option<&Identity>,
    reached: &[Reached],
    is_deliver: bool,
) -> String {
    let mut printed = String::new();
    for reached in reached {
        let buckets = match identity {
            Some(identity) => {
                let (first, own) = bucket::names(&config.source, identity);
                vec![first, own]
            }
            None => Vec::new(),
        };
        let places = Places {
            row: &reached.row,
            streams: &reached.streams,
            buckets: &buckets,
            inbox_prefix: &reached.settings.inbox_prefix,
        };
        let rights =
            if is_deliver { rights::of_deliver(tables, &places) } else { rights::of_run(config, tables, &places) };
        let verb = if is_deliver { "deliver" } else { "run" };
        printed.push_str(&format!(
            "# For the user of walhook {verb} by NATS configuration {}, in nats-server's configuration.\n{}",
            text::one_line(&reached.row.config_name),
            rights.block()
        ));
    }
    printed
}
