//! A row of `rule_nats_streams`.
//!
//! In: its columns. Out: the typed row.

use super::cells::{Row, array, optional, optional_number, switch, text};
use crate::error::Result;

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
