//! The configuration tables as rows: `rule_webhooks`, `rule_webhook_links`, `rule_nats_config`,
//! `rule_nats_streams`.
//!
//! Comes in: rows, once from a snapshot at the start, then from the WAL, both as PostgreSQL's text. Goes out: typed
//! rows by key. Whether a row makes sense is not judged here but in `rules`, so that a bad row is one webhook's
//! problem and never the stream's.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Deref,
    sync::Arc,
};

pub use super::row_text::RowText;
use super::{mask_key::MaskKey, seal::SealKeys};
use crate::{
    error::{Error, Result},
    wal::lsn::Lsn,
};

/// One of the tables that configure walhook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// `rule_webhooks`
    Webhooks,
    /// `rule_webhook_links`
    Links,
    /// `rule_nats_config`
    Configs,
    /// `rule_nats_streams`
    Streams,
}

impl Table {
    /// All of them, in the order of their references.
    pub const ALL: [Table; 4] = [Table::Configs, Table::Streams, Table::Webhooks, Table::Links];

    /// The table's name; its schema is `public`.
    pub fn name(self) -> &'static str {
        match self {
            Table::Webhooks => "rule_webhooks",
            Table::Links => "rule_webhook_links",
            Table::Configs => "rule_nats_config",
            Table::Streams => "rule_nats_streams",
        }
    }

    /// Its primary key.
    pub fn key(self) -> &'static str {
        match self {
            Table::Webhooks => "webhook_id",
            Table::Links => "link_id",
            Table::Configs => "config_id",
            Table::Streams => "stream_id",
        }
    }

    /// The configuration table of this name, if it is one.
    pub fn named(schema: &str, name: &str) -> Option<Table> {
        (schema == "public").then(|| Table::ALL.into_iter().find(|table| table.name() == name)).flatten()
    }
}

/// A row of `rule_webhooks`: what routing needs of it.
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs, reason = "the columns' names; sql/ explains them")]
pub struct WebhookRow {
    pub name: String,
    pub url: String,
    pub method: String,
    /// A JSON object, as text.
    pub headers: Option<String>,
    pub enabled: bool,
    pub nats_enabled: bool,
    pub nats_subject: Option<String>,
    pub nats_config_id: Option<i32>,
    pub publish_mode: Option<String>,
    pub payload_format: Option<String>,
    pub on_error: Option<String>,
    pub expose_credentials: bool,
    /// A JSON object, as text.
    pub nats_headers: Option<String>,
    pub timeout_ms: Option<i32>,
    pub retry_enabled: Option<bool>,
    pub max_retries: Option<i32>,
    pub retry_delay_ms: Option<i32>,
    pub retry_backoff_multiplier: Option<f64>,
    pub signed: bool,
    pub secrets_changed_at: Option<String>,
    pub request_body: Option<String>,
    pub delivery_order: Option<String>,
    pub max_in_flight: Option<i32>,
    pub rate_limit_per_second: Option<f64>,
    pub signature_scheme: Option<String>,
    /// A JSON object, as text.
    pub signature_template: Option<String>,
    pub client_certificate: bool,
    pub order_key: Option<String>,
    pub batch_max_events: Option<i32>,
    pub batch_max_bytes: Option<i32>,
    pub batch_max_wait_ms: Option<i32>,
    pub seal_key: Option<String>,
    /// `disabled_at` is set: `walhook deliver` does not call it.
    pub has_receiver_gone: bool,
    pub publish_column_changes: bool,
    /// A JSON object, as text.
    pub oauth2: Option<String>,
    /// Which process publishes its events; `None`: that of the main shard.
    pub shard: Option<String>,
}

/// A row of `rule_webhook_links`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the columns' names; sql/ explains them")]
pub struct LinkRow {
    pub webhook_id: i32,
    pub table_schema: String,
    pub table_name: String,
    pub operations: Vec<String>,
    pub subject_template: Option<String>,
    pub columns: Option<Vec<String>>,
    /// A JSON object, as text.
    pub filter: Option<String>,
    pub when_changed: Option<Vec<String>>,
    pub include_old: bool,
    pub trace_column: Option<String>,
    pub payload_column: Option<String>,
    pub message_id_column: Option<String>,
    /// A JSON object of headers and columns, as text.
    pub headers_columns: Option<String>,
    /// A JSON object of columns and names, as text.
    pub rename: Option<String>,
    /// A JSON object of columns and what becomes of their values, as text.
    pub mask: Option<String>,
    /// The table's columns when the mask was set.
    pub mask_columns: Option<Vec<String>>,
    pub enabled: bool,
    /// Which process publishes its events; `None`: that of its webhook's shard.
    pub shard: Option<String>,
}

/// A row of `rule_nats_config`, column by column. NULL is `None` and means the column's default.
#[derive(Clone, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the columns' names; sql/ explains them")]
pub struct ConfigRow {
    pub config_id: i32,
    pub config_name: String,
    pub nats_url: Option<String>,
    pub nats_cluster_urls: Vec<String>,
    pub auth_type: Option<String>,
    pub auth_token: Option<String>,
    pub auth_credentials_file: Option<String>,
    pub auth_nkey_seed: Option<String>,
    pub tls_enabled: Option<bool>,
    pub tls_cert_file: Option<String>,
    pub tls_key_file: Option<String>,
    pub tls_ca_file: Option<String>,
    pub max_connections: Option<i32>,
    pub connection_timeout_ms: Option<i32>,
    pub reconnect_delay_ms: Option<i32>,
    pub max_reconnect_attempts: Option<i32>,
    pub jetstream_enabled: Option<bool>,
    pub stream_name: Option<String>,
    pub subject_prefix: Option<String>,
    pub enabled: Option<bool>,
    /// `full` (default), `failures` or `off`.
    pub history: Option<String>,
    /// `full` (default), `hash` or `none`.
    pub history_payload: Option<String>,
    /// Where payloads go that are too large.
    pub object_bucket: Option<String>,
    /// Whose JetStream is asked, where it is not that of the server.
    pub jetstream_domain: Option<String>,
    pub api_prefix: Option<String>,
    /// Below which subject walhook announces what happens to deliveries.
    pub notice_subject: Option<String>,
    /// Whether schemas of the rows of tables are published.
    pub publish_schemas: Option<bool>,
    /// Counts how often the row was written, also where nothing in it changed: who gave it up tries again.
    pub revision: u64,
}

impl WebhookRow {
    fn adapt_to_replay(&mut self) {
        self.on_error = Some("dead_letter".to_owned());
    }
}

impl ConfigRow {
    fn adapt_to_replay(&mut self) {
        self.jetstream_enabled = Some(false);
        self.history = Some("off".to_owned());
    }

    /// Whether nothing but the count of its changes is different.
    pub fn says_the_same(&self, other: &ConfigRow) -> bool {
        *other == ConfigRow { revision: other.revision, ..self.clone() }
    }

    /// The addresses of the servers that the row names, without logins, in one text that is the same whatever their order; and behind
    /// them the JetStream domain or API prefix, for with another one the same servers lead to other streams.
    pub fn servers(&self) -> String {
        let address = |url: &String| {
            let address = url.split_once("://").map_or(url.as_str(), |(_, rest)| rest);
            let address = address.split(['/', '?']).next().unwrap_or_default();
            let host = address.rsplit_once('@').map_or(address, |(_, host)| host).to_ascii_lowercase();
            let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
            if has_port { host } else { format!("{host}:4222") }
        };
        let addresses: BTreeSet<_> = self.nats_url.iter().chain(&self.nats_cluster_urls).map(address).collect();
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let domain = given(&self.jetstream_domain).map(|domain| format!("$JS.{domain}.API"));
        addresses.into_iter().chain(domain.or_else(|| given(&self.api_prefix))).collect::<Vec<_>>().join(" ")
    }

    /// This row with the columns of `newer` that only say how to get into a server: addresses, which name the same servers or
    /// those that are in their place, credentials, TLS, pool and timeouts.
    #[must_use]
    pub fn with_access_of(&self, newer: &ConfigRow) -> ConfigRow {
        ConfigRow {
            config_id: self.config_id,
            config_name: self.config_name.clone(),
            jetstream_enabled: self.jetstream_enabled,
            stream_name: self.stream_name.clone(),
            subject_prefix: self.subject_prefix.clone(),
            enabled: self.enabled,
            history: self.history.clone(),
            history_payload: self.history_payload.clone(),
            object_bucket: self.object_bucket.clone(),
            notice_subject: self.notice_subject.clone(),
            publish_schemas: self.publish_schemas,
            ..newer.clone()
        }
    }
}

/// Without secrets: the URL may hold one too.
impl std::fmt::Debug for ConfigRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConfigRow")
            .field("config_id", &self.config_id)
            .field("config_name", &self.config_name)
            .field("auth_type", &self.auth_type)
            .field("stream_name", &self.stream_name)
            .field("enabled", &self.enabled)
            .finish_non_exhaustive()
    }
}

/// A row of `rule_nats_streams`. NULL is `None`: the default for a new stream, and as it is for one that exists.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the columns' names; sql/ explains them")]
pub struct StreamRow {
    pub config_id: Option<i32>,
    pub stream_name: String,
    pub subjects: Vec<String>,
    pub description: Option<String>,
    pub storage_type: Option<String>,
    pub max_messages: Option<i64>,
    pub max_bytes: Option<i64>,
    pub max_age_seconds: Option<i64>,
    pub retention_policy: Option<String>,
    pub discard_policy: Option<String>,
    pub replicas: Option<i32>,
    pub duplicate_window_seconds: Option<i32>,
    pub enabled: Option<bool>,
    /// `strict` (default) or `shared`.
    pub ordering: Option<String>,
    /// `streamed` (default) or `atomic`.
    pub transactions: Option<String>,
    /// `default` or `fsync`.
    pub durability: Option<String>,
    /// Durable pull consumers to be there for workers.
    pub consumers: Option<Vec<String>>,
}

impl StreamRow {
    /// Whether others may write into it.
    pub fn is_shared(&self) -> bool {
        self.ordering.as_deref() == Some("shared")
    }

    /// Whether it wants atomic batches.
    pub fn wants_batches(&self) -> bool {
        self.transactions.as_deref() == Some("atomic") || self.durability.as_deref() == Some("fsync")
    }
}

/// A column's value in a row that arrives.
#[derive(Debug, Clone, Copy)]
pub enum Cell<'a> {
    /// SQL NULL.
    Null,
    /// A large value that the update did not touch: what is known stays.
    Unchanged,
    /// PostgreSQL's text.
    Text(&'a str),
}

/// A typed row that takes its columns one by one; columns it does not know are none of its business.
trait Row: Default + Clone {
    fn set(&mut self, column: &str, value: Option<&str>) -> Result<()>;
}

/// Servers of a configuration that events go to in place of others: both addresses lead to the same server, or the first one
/// never led to any. It holds for transactions that commit before `until_lsn`, so that a later change of the row is free to name
/// the first address again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerAlias {
    /// The `rule_nats_config` row.
    pub config_id: i32,
    /// What that row names ([`ConfigRow::servers`]).
    pub servers: String,
    /// Where its events go.
    pub alias_of: String,
    /// The transactions that commit before this position.
    pub until_lsn: Lsn,
}

/// Where events of a configuration go that names `servers`: the aliases count one after the other, in their order.
pub fn resolve(aliases: &[ServerAlias], config_id: i32, servers: String) -> String {
    let of_config = aliases.iter().filter(|alias| alias.config_id == config_id);
    of_config.fold(servers, |servers, alias| if alias.servers == servers { alias.alias_of.clone() } else { servers })
}

/// The rows of a table by key. A copy shares them with the original: the newest rows, those in force and those that others look
/// at are the same ones but for a few.
#[derive(Debug, Clone)]
pub struct Rows<R>(BTreeMap<i32, Arc<R>>);

impl<R> Default for Rows<R> {
    fn default() -> Rows<R> {
        Rows(BTreeMap::new())
    }
}

impl<R> Deref for Rows<R> {
    type Target = BTreeMap<i32, Arc<R>>;

    fn deref(&self) -> &BTreeMap<i32, Arc<R>> {
        &self.0
    }
}

impl<'a, R> IntoIterator for &'a Rows<R> {
    type Item = (&'a i32, &'a Arc<R>);
    type IntoIter = std::collections::btree_map::Iter<'a, i32, Arc<R>>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl<R: Clone> Rows<R> {
    /// Inserts or replaces a row.
    pub fn insert(&mut self, id: i32, row: R) {
        self.0.insert(id, Arc::new(row));
    }

    /// Removes all rows.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// A row to be changed; copies do not see it.
    pub fn get_mut(&mut self, id: &i32) -> Option<&mut R> {
        self.0.get_mut(id).map(Arc::make_mut)
    }

    /// All rows to be changed; copies do not see it.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&i32, &mut R)> {
        self.0.iter_mut().map(|(id, row)| (id, Arc::make_mut(row)))
    }

    /// Whether the same keys have rows of which `same` holds; a shared row is the same as itself.
    fn agree(&self, other: &Rows<R>, same: impl Fn(&R, &R) -> bool) -> bool {
        self.len() == other.len()
            && self
                .0
                .iter()
                .zip(&other.0)
                .all(|((a, row), (b, other))| a == b && (Arc::ptr_eq(row, other) || same(row, other)))
    }
}

/// All the configuration rows, by key.
#[derive(Debug, Clone, Default)]
pub struct Tables {
    /// `rule_webhooks`
    pub webhooks: Rows<WebhookRow>,
    /// `rule_webhook_links`
    pub links: Rows<LinkRow>,
    /// `rule_nats_config`
    pub configs: Rows<ConfigRow>,
    /// `rule_nats_streams`
    pub streams: Rows<StreamRow>,
    /// The configuration whose server or user the process's own settings say, whatever its row says.
    pub overridden: Option<String>,
    /// Servers that events go to in place of those that the rows name, in the order in which walhook found them out.
    pub aliases: Vec<ServerAlias>,
    /// The rows are for a replay, which publishes elsewhere: events go into lanes of core NATS, in whose messages nothing names
    /// a place in a stream; there is no history; and nothing stops at an event that cannot be published.
    pub is_for_replay: bool,
    /// The key of the hashes in masks, of the process's own settings.
    pub mask_key: MaskKey,
    /// The keys with which bodies are sealed, likewise.
    pub seal_keys: SealKeys,
    /// The shard that the process publishes, of its own settings; `None`: the main one.
    pub shard: Option<String>,
}

impl Tables {
    /// The servers of a configuration, as far as its row decides that.
    pub fn servers_of(&self, row: &ConfigRow) -> String {
        if self.overridden.as_ref() == Some(&row.config_name) {
            return String::new();
        }
        resolve(&self.aliases, row.config_id, row.servers())
    }

    /// Inserts or replaces a row that was kept as text.
    ///
    /// # Errors
    /// As [`Tables::put`].
    pub fn put_text(&mut self, table: Table, row: &RowText) -> Result<()> {
        self.put(table, row.iter().map(|(column, value)| (column, value.map_or(Cell::Null, Cell::Text))))
    }

    /// Takes a row over from other tables, which both share from then on; whether they have it.
    pub fn share(&mut self, table: Table, id: i32, other: &Tables) -> bool {
        fn share<R>(rows: &mut Rows<R>, id: i32, other: &Rows<R>) -> bool {
            let row = other.get(&id);
            row.is_some_and(|row| {
                rows.0.insert(id, Arc::clone(row));
                true
            })
        }
        match table {
            Table::Webhooks => share(&mut self.webhooks, id, &other.webhooks),
            Table::Links => share(&mut self.links, id, &other.links),
            Table::Configs => share(&mut self.configs, id, &other.configs),
            Table::Streams => share(&mut self.streams, id, &other.streams),
        }
    }

    /// The keys of a table's rows.
    pub fn ids(&self, table: Table) -> Vec<i32> {
        match table {
            Table::Webhooks => self.webhooks.keys().copied().collect(),
            Table::Links => self.links.keys().copied().collect(),
            Table::Configs => self.configs.keys().copied().collect(),
            Table::Streams => self.streams.keys().copied().collect(),
        }
    }

    /// Whether both say the same, however often their rows were written.
    pub fn say_the_same(&self, other: &Tables) -> bool {
        self.webhooks.agree(&other.webhooks, WebhookRow::eq)
            && self.links.agree(&other.links, LinkRow::eq)
            && self.streams.agree(&other.streams, StreamRow::eq)
            && self.configs.agree(&other.configs, ConfigRow::says_the_same)
    }

    /// Inserts or updates a row.
    ///
    /// # Errors
    /// A value that is not of the column's type, or a row without its key.
    pub fn put<'a>(&mut self, table: Table, row: impl Iterator<Item = (&'a str, Cell<'a>)> + Clone) -> Result<()> {
        let key = row
            .clone()
            .find_map(|(column, cell)| match cell {
                Cell::Text(text) if column == table.key() => Some(text),
                _ => None,
            })
            .ok_or_else(|| Error::protocol(format!("read a row of {}: no {}", table.name(), table.key())))?;
        let key = number(table.key(), key)?;
        match table {
            Table::Webhooks => fill(&mut self.webhooks, key, row),
            Table::Links => fill(&mut self.links, key, row),
            Table::Configs => fill(&mut self.configs, key, row).map(|()| {
                if let Some(row) = self.configs.get_mut(&key) {
                    row.revision += 1;
                }
            }),
            Table::Streams => fill(&mut self.streams, key, row),
        }
        .map_err(|error| error.context(format!("read row {key} of {}", table.name())))?;
        if self.is_for_replay {
            match table {
                Table::Webhooks => self.webhooks.get_mut(&key).into_iter().for_each(WebhookRow::adapt_to_replay),
                Table::Configs => self.configs.get_mut(&key).into_iter().for_each(ConfigRow::adapt_to_replay),
                Table::Links | Table::Streams => {}
            }
        }
        Ok(())
    }

    /// Makes the rows fit for a replay, and those that come later too ([`Tables::is_for_replay`]).
    pub fn adapt_to_replay(&mut self) {
        self.is_for_replay = true;
        self.configs.iter_mut().for_each(|(_, row)| row.adapt_to_replay());
        self.webhooks.iter_mut().for_each(|(_, row)| row.adapt_to_replay());
    }

    /// Removes a row; `key` is the text of its primary key.
    ///
    /// # Errors
    /// A key that is no number.
    pub fn remove(&mut self, table: Table, key: &str) -> Result<()> {
        let key: i32 = number(table.key(), key)?;
        match table {
            Table::Webhooks => drop(self.webhooks.0.remove(&key)),
            Table::Links => drop(self.links.0.remove(&key)),
            Table::Configs => drop(self.configs.0.remove(&key)),
            Table::Streams => drop(self.streams.0.remove(&key)),
        }
        Ok(())
    }

    /// Removes all rows of a table.
    pub fn clear(&mut self, table: Table) {
        match table {
            Table::Webhooks => self.webhooks.clear(),
            Table::Links => self.links.clear(),
            Table::Configs => self.configs.clear(),
            Table::Streams => self.streams.clear(),
        }
    }
}

fn fill<'a, R: Row>(rows: &mut Rows<R>, key: i32, columns: impl Iterator<Item = (&'a str, Cell<'a>)>) -> Result<()> {
    // A copy is filled, so that an error leaves the row as it was.
    let mut row = rows.get(&key).map(|row| R::clone(row)).unwrap_or_default();
    for (column, cell) in columns {
        match cell {
            Cell::Null => row.set(column, None)?,
            Cell::Text(text) => row.set(column, Some(text))?,
            Cell::Unchanged => {}
        }
    }
    rows.insert(key, row);
    Ok(())
}

impl Row for WebhookRow {
    fn set(&mut self, column: &str, value: Option<&str>) -> Result<()> {
        match column {
            "webhook_name" => self.name = text(value),
            "url" => self.url = text(value),
            "method" => self.method = value.unwrap_or("POST").to_owned(),
            "headers" => self.headers = optional(value),
            "enabled" => self.enabled = boolean(column, value)?,
            "nats_enabled" => self.nats_enabled = boolean(column, value)?,
            "nats_subject" => self.nats_subject = optional(value),
            "nats_config_id" => self.nats_config_id = optional_number(column, value)?,
            "publish_mode" => self.publish_mode = optional(value),
            "payload_format" => self.payload_format = optional(value),
            "on_error" => self.on_error = optional(value),
            "expose_credentials" => self.expose_credentials = boolean(column, value)?,
            "nats_headers" => self.nats_headers = optional(value),
            "timeout_ms" => self.timeout_ms = optional_number(column, value)?,
            "retry_enabled" => self.retry_enabled = switch(column, value)?,
            "max_retries" => self.max_retries = optional_number(column, value)?,
            "retry_delay_ms" => self.retry_delay_ms = optional_number(column, value)?,
            "retry_backoff_multiplier" => self.retry_backoff_multiplier = optional_number(column, value)?,
            "signed" => self.signed = boolean(column, value)?,
            "secrets_changed_at" => self.secrets_changed_at = optional(value),
            "request_body" => self.request_body = optional(value),
            "delivery_order" => self.delivery_order = optional(value),
            "max_in_flight" => self.max_in_flight = optional_number(column, value)?,
            "rate_limit_per_second" => self.rate_limit_per_second = optional_number(column, value)?,
            "signature_scheme" => self.signature_scheme = optional(value),
            "signature_template" => self.signature_template = optional(value),
            "client_certificate" => self.client_certificate = boolean(column, value)?,
            "oauth2" => self.oauth2 = optional(value),
            "shard" => self.shard = optional(value),
            "order_key" => self.order_key = optional(value),
            "batch_max_events" => self.batch_max_events = optional_number(column, value)?,
            "batch_max_bytes" => self.batch_max_bytes = optional_number(column, value)?,
            "batch_max_wait_ms" => self.batch_max_wait_ms = optional_number(column, value)?,
            "seal_key" => self.seal_key = optional(value),
            "publish_column_changes" => self.publish_column_changes = boolean(column, value)?,
            "disabled_at" => self.has_receiver_gone = optional(value).is_some(),
            _ => {}
        }
        Ok(())
    }
}

impl Row for LinkRow {
    fn set(&mut self, column: &str, value: Option<&str>) -> Result<()> {
        match column {
            "webhook_id" => self.webhook_id = number(column, value.unwrap_or_default())?,
            "table_schema" => self.table_schema = text(value),
            "table_name" => self.table_name = text(value),
            "operations" => self.operations = array(column, value)?.unwrap_or_default(),
            "subject_template" => self.subject_template = optional(value),
            "columns" => self.columns = array(column, value)?,
            "filter" => self.filter = optional(value),
            "when_changed" => self.when_changed = array(column, value)?,
            "include_old" => self.include_old = boolean(column, value)?,
            "trace_column" => self.trace_column = optional(value),
            "payload_column" => self.payload_column = optional(value),
            "message_id_column" => self.message_id_column = optional(value),
            "headers_columns" => self.headers_columns = optional(value),
            "rename" => self.rename = optional(value),
            "mask" => self.mask = optional(value),
            "mask_columns" => self.mask_columns = array(column, value)?,
            "shard" => self.shard = optional(value),
            "enabled" => self.enabled = boolean(column, value)?,
            _ => {}
        }
        Ok(())
    }
}

impl Row for ConfigRow {
    fn set(&mut self, column: &str, value: Option<&str>) -> Result<()> {
        match column {
            "config_id" => self.config_id = number(column, value.unwrap_or_default())?,
            "config_name" => self.config_name = text(value),
            "nats_url" => self.nats_url = optional(value),
            "nats_cluster_urls" => self.nats_cluster_urls = array(column, value)?.unwrap_or_default(),
            "auth_type" => self.auth_type = optional(value),
            "auth_token" => self.auth_token = optional(value),
            "auth_credentials_file" => self.auth_credentials_file = optional(value),
            "auth_nkey_seed" => self.auth_nkey_seed = optional(value),
            "tls_enabled" => self.tls_enabled = switch(column, value)?,
            "tls_cert_file" => self.tls_cert_file = optional(value),
            "tls_key_file" => self.tls_key_file = optional(value),
            "tls_ca_file" => self.tls_ca_file = optional(value),
            "connection_timeout_ms" => self.connection_timeout_ms = optional_number(column, value)?,
            "reconnect_delay_ms" => self.reconnect_delay_ms = optional_number(column, value)?,
            "max_connections" => self.max_connections = optional_number(column, value)?,
            "max_reconnect_attempts" => self.max_reconnect_attempts = optional_number(column, value)?,
            "jetstream_enabled" => self.jetstream_enabled = switch(column, value)?,
            "stream_name" => self.stream_name = optional(value),
            "subject_prefix" => self.subject_prefix = optional(value),
            "history" => self.history = optional(value),
            "history_payload" => self.history_payload = optional(value),
            "object_bucket" => self.object_bucket = optional(value),
            "jetstream_domain" => self.jetstream_domain = optional(value),
            "api_prefix" => self.api_prefix = optional(value),
            "notice_subject" => self.notice_subject = optional(value),
            "publish_schemas" => self.publish_schemas = switch(column, value)?,
            "enabled" => self.enabled = switch(column, value)?,
            _ => {}
        }
        Ok(())
    }
}

impl Row for StreamRow {
    fn set(&mut self, column: &str, value: Option<&str>) -> Result<()> {
        match column {
            "config_id" => self.config_id = optional_number(column, value)?,
            "stream_name" => self.stream_name = text(value),
            "subjects" => self.subjects = array(column, value)?.unwrap_or_default(),
            "description" => self.description = optional(value),
            "storage_type" => self.storage_type = optional(value),
            "max_messages" => self.max_messages = optional_number(column, value)?,
            "max_bytes" => self.max_bytes = optional_number(column, value)?,
            "max_age_seconds" => self.max_age_seconds = optional_number(column, value)?,
            "retention_policy" => self.retention_policy = optional(value),
            "discard_policy" => self.discard_policy = optional(value),
            "replicas" => self.replicas = optional_number(column, value)?,
            "duplicate_window_seconds" => self.duplicate_window_seconds = optional_number(column, value)?,
            "ordering" => self.ordering = optional(value),
            "transactions" => self.transactions = optional(value),
            "durability" => self.durability = optional(value),
            "consumers" => self.consumers = array(column, value)?,
            "enabled" => self.enabled = switch(column, value)?,
            _ => {}
        }
        Ok(())
    }
}

fn text(value: Option<&str>) -> String {
    value.unwrap_or_default().to_owned()
}

fn optional(value: Option<&str>) -> Option<String> {
    value.map(str::to_owned)
}

/// NULL counts as false: a switch that nobody set is off.
fn boolean(column: &str, value: Option<&str>) -> Result<bool> {
    match value {
        None | Some("f" | "false") => Ok(false),
        Some("t" | "true") => Ok(true),
        Some(other) => Err(Error::protocol(format!("column {column}: {other:?} is not a boolean"))),
    }
}

/// NULL is left to the reader.
fn switch(column: &str, value: Option<&str>) -> Result<Option<bool>> {
    value.map(|value| boolean(column, Some(value))).transpose()
}

fn optional_number<N: std::str::FromStr>(column: &str, value: Option<&str>) -> Result<Option<N>> {
    value.map(|value| number(column, value)).transpose()
}

fn number<N: std::str::FromStr>(column: &str, value: &str) -> Result<N> {
    value.parse().map_err(|_| Error::protocol(format!("column {column}: {value:?} is not a number that fits")))
}

fn array(column: &str, value: Option<&str>) -> Result<Option<Vec<String>>> {
    value
        .map(|value| {
            parse_text_array(value)
                .ok_or_else(|| Error::protocol(format!("column {column}: {value:?} is not a one-dimensional array")))
        })
        .transpose()
}

/// PostgreSQL's text of a `text[]` (manual, section 8.15.6); NULL elements are left out.
fn parse_text_array(text: &str) -> Option<Vec<String>> {
    let mut rest = text.strip_prefix('{')?.strip_suffix('}')?;
    let mut elements = Vec::new();
    while !rest.is_empty() {
        let mut element = String::new();
        let after = if let Some(quoted) = rest.strip_prefix('"') {
            let mut chars = quoted.char_indices();
            loop {
                match chars.next()? {
                    (_, '\\') => element.push(chars.next()?.1),
                    (at, '"') => break &quoted[at + 1..],
                    (_, other) => element.push(other),
                }
            }
        } else {
            let end = rest.find(',').unwrap_or(rest.len());
            element.push_str(&rest[..end]);
            if element.contains(['{', '}', '"']) {
                return None;
            }
            &rest[end..]
        };
        if rest.starts_with('"') || !element.eq_ignore_ascii_case("null") {
            elements.push(element);
        }
        rest = match after.strip_prefix(',') {
            Some("") => return None,
            Some(next) => next,
            None if after.is_empty() => after,
            None => return None,
        };
    }
    Some(elements)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_text_array_is_read_as_postgresql_writes_it() {
        let check = |text: &str, expected: &[&str]| {
            let expected = expected.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
            assert_eq!(parse_text_array(text), Some(expected), "{text}");
        };
        check("{}", &[]);
        check("{insert,update}", &["insert", "update"]);
        check(r#"{"a b","c\"d\\e",""}"#, &["a b", r#"c"d\e"#, ""]);
        check(r#"{NULL,"NULL",x}"#, &["NULL", "x"]);
        for bad in ["", "{", "{a", "{\"a}", "{a,}", "{{a},{b}}", "{\"a\"b}"] {
            assert_eq!(parse_text_array(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_update_keeps_what_it_did_not_touch() {
        let mut tables = Tables::default();
        let row = [
            ("webhook_id", Cell::Text("7")),
            ("webhook_name", Cell::Text("slack")),
            ("headers", Cell::Text("{}")),
            ("enabled", Cell::Text("t")),
            ("nats_config_id", Cell::Null),
            ("tags", Cell::Text("{}")),
        ];
        tables.put(Table::Webhooks, row.into_iter()).unwrap();
        let update = [
            ("webhook_id", Cell::Text("7")),
            ("webhook_name", Cell::Text("mail")),
            ("headers", Cell::Unchanged),
            ("enabled", Cell::Text("f")),
        ];
        tables.put(Table::Webhooks, update.into_iter()).unwrap();
        let webhook = &tables.webhooks[&7];
        assert_eq!((webhook.name.as_str(), webhook.headers.as_deref(), webhook.enabled), ("mail", Some("{}"), false));
        tables.remove(Table::Webhooks, "7").unwrap();
        assert!(tables.webhooks.is_empty());
    }

    #[test]
    fn a_value_of_the_wrong_type_is_an_error_and_leaves_the_row_alone() {
        let mut tables = Tables::default();
        let row = [("webhook_id", Cell::Text("1")), ("enabled", Cell::Text("perhaps"))];
        let error = tables.put(Table::Webhooks, row.into_iter()).unwrap_err().to_string();
        assert!(error.contains("rule_webhooks") && error.contains("perhaps"), "{error}");
        assert!(tables.webhooks.is_empty());
        assert!(tables.put(Table::Links, [("enabled", Cell::Text("t"))].into_iter()).is_err());
    }
}
