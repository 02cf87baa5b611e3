//! A row of `rule_webhook_links`.
//!
//! In: its columns. Out: the typed row.

use super::cells::{Row, array, boolean, number, optional, text};
use crate::error::Result;

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
