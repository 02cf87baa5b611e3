//! A row of `rule_webhooks`.
//!
//! In: its columns. Out: the typed row, what concerns delivery apart from the rest: routing and publishing do not look at it.

use super::cells::{Row, boolean, optional, optional_number, switch, text};
use crate::error::Result;

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
    pub seal_key: Option<String>,
    pub publish_column_changes: bool,
    /// Which process publishes its events; `None`: that of the main shard.
    pub shard: Option<String>,
    /// How its events are delivered.
    pub delivery: DeliveryColumns,
}

/// The columns of `rule_webhooks` that say how its events are delivered.
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs, reason = "the columns' names; sql/ explains them")]
pub struct DeliveryColumns {
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
    /// `disabled_at` is set: `walhook deliver` does not call it.
    pub has_receiver_gone: bool,
    pub order_key: Option<String>,
    pub batch_max_events: Option<i32>,
    pub batch_max_bytes: Option<i32>,
    pub batch_max_wait_ms: Option<i32>,
    /// A JSON object, as text.
    pub oauth2: Option<String>,
}

impl WebhookRow {
    pub(super) fn adapt_to_replay(&mut self) {
        self.on_error = Some("dead_letter".to_owned());
    }
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
            "shard" => self.shard = optional(value),
            "seal_key" => self.seal_key = optional(value),
            "publish_column_changes" => self.publish_column_changes = boolean(column, value)?,
            _ => self.delivery.set(column, value)?,
        }
        Ok(())
    }
}

impl Row for DeliveryColumns {
    fn set(&mut self, column: &str, value: Option<&str>) -> Result<()> {
        match column {
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
            "disabled_at" => self.has_receiver_gone = optional(value).is_some(),
            "oauth2" => self.oauth2 = optional(value),
            "order_key" => self.order_key = optional(value),
            "batch_max_events" => self.batch_max_events = optional_number(column, value)?,
            "batch_max_bytes" => self.batch_max_bytes = optional_number(column, value)?,
            "batch_max_wait_ms" => self.batch_max_wait_ms = optional_number(column, value)?,
            _ => {}
        }
        Ok(())
    }
}
