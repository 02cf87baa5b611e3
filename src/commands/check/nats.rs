//! NATS: who is reached by each configuration, what its user may do, and what would become of events in its streams.
//!
//! In: the configuration tables. Out: findings. What `walhook run` would do is foreseen and not done: nothing is created, changed or
//! published.
//!
//! One of its streams is checked in `stream`, what its user may do in `permissions`.

mod permissions;
mod stream;

use super::{
    amounts::bytes,
    finding::{Finding, How, Severity},
    schemas,
    sizes::Sample,
    tails::History,
    window::OwnIds,
};
use crate::{
    commands::{
        bucket,
        identity::{self, Identity},
        rows,
    },
    config::Config,
    error::{Error, Kind, Result},
    nats::{
        control::{self, Control},
        settings::Settings,
        streams::foresee::{self, Storage},
    },
    route::{
        streams::streams_of_all,
        tables::{ConfigRow, StreamRow, Tables},
    },
    text,
};
use tokio_postgres::Client;

pub use permissions::permissions;
use stream::named;

/// How full a stream or an account is that is nearly full.
const NEARLY_FULL: f64 = 0.8;
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
    /// The servers to which it leads, as checkpoints name them.
    pub servers: String,
}

/// The configurations that publish to NATS, each with its settings or with what is wrong with them.
pub fn configurations(config: &Config, tables: &Tables) -> (Vec<Reached>, Vec<Finding>) {
    let mut tables = tables.clone();
    rows::apply_settings(&mut tables, config);
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
                let servers = tables.servers_of(row);
                reached.push(Reached { row: ConfigRow::clone(row), settings, streams, servers });
            }
            // `run` goes on with the other configurations, and waits for the row to change.
            Err(error) => findings.push(Finding::with_severity("nats_settings", Severity::Error, subject, &error)),
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

/// What the database says, as far as it could be asked.
#[derive(Clone, Copy, Default)]
pub struct Database<'a> {
    /// A connection to it.
    pub client: Option<&'a Client>,
    /// Which one it is.
    pub identity: Option<&'a Identity>,
    /// What it knows of the streams.
    pub history: Option<&'a History>,
    /// Which subjects take calls with message ids of their callers.
    pub own_ids: Option<&'a OwnIds<'a>>,
}

/// What all checks of one configuration know.
struct Check<'a> {
    config: &'a Config,
    tables: &'a Tables,
    database: Database<'a>,
    sample: &'a Sample,
    reached: &'a Reached,
    subject: String,
    used: usize,
}

/// Everything about one configuration.
pub async fn check(
    config: &Config,
    tables: &Tables,
    database: Database<'_>,
    sample: &Sample,
    reached: &Reached,
) -> Vec<Finding> {
    // `run` connects to all that are enabled, whether or not a webhook publishes by them.
    let used = tables.configs.values().filter(|row| row.enabled != Some(false)).count();
    let check = Check {
        config,
        tables,
        database,
        sample,
        reached,
        subject: format!("NATS configuration {:?}", reached.row.config_name),
        used,
    };
    check.all().await
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
            findings.extend(self.rights(&control, &[], &[]).await);
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
        let buckets = self.buckets(&control).await;
        let (row, source) = (&self.reached.row, &self.config.source);
        let (schemas, unfit) = schemas::check(&control, row, source, self.database.identity, &self.subject).await;
        findings.extend(unfit);
        findings.extend(self.rights(&control, &buckets, &schemas).await);
        for stream in &self.reached.streams {
            if let Err(error) = foresee::check_row(stream) {
                findings.push(Finding::with_severity("stream_row_impossible", Severity::Error, named(stream), &error));
                continue;
            }
            match self.stream(&control, stream).await {
                Ok(found) => findings.extend(found),
                Err(error) => findings.push(self.stream_error(stream, &error)),
            }
        }
        // Behind the streams: what a stream itself shows ends `run` first.
        match self.copies(&control).await {
            Ok(found) => findings.extend(found),
            Err(error) => findings.push(Finding::not_checked(&["database_copy"], &error)),
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
        let mut finding = Finding::with_severity("nats_connection", Severity::Error, self.subject.as_str(), error);
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
        Finding::with_severity("nats_jetstream", Severity::Error, self.subject.as_str(), error).exits(1)
    }

    /// `database_copy`: the mark of the last run in the bucket.
    async fn copies(&self, control: &Control) -> Result<Vec<Finding>> {
        let (Some(client), Some(identity)) = (self.database.client, self.database.identity) else {
            return Ok(Vec::new());
        };
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
}
