//! A row of `rule_nats_config`.
//!
//! In: its columns. Out: the typed row, and which servers it names. Always holds: no secret of it is shown.

use std::collections::BTreeSet;

use super::cells::{Row, array, number, optional, optional_number, switch, text};
use crate::error::Result;

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

impl ConfigRow {
    pub(super) fn adapt_to_replay(&mut self) {
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
