//! Changes become events: which webhooks want a change, under which subject, with which payload. Pure.
//!
//! In the order of use: [`tables`] holds the configuration rows, [`streams`] and [`rules`] judge and compile them,
//! [`plan`] lays them over one table, [`filter`] and [`subject`] decide about one change, [`types`] and [`value`] write its
//! columns (`json` knows the grammar, [`digits`] numbers of fixed width), [`payload`] the whole, with [`headers`] beside it. [`chunk`] lets rows of a backfill go the same way,
//! [`message_columns`] makes messages of columns as they are, [`emitted`] tells messages of `rule_webhook_emit` from those of others,
//! [`shard`] says which process publishes them, [`trace`] passes on the trace that a row or a call belongs to, [`row_schema`] describes
//! the rows of a table to consumers.

pub mod chunk;
pub mod chunk_row;
pub mod digits;
pub mod emitted;
pub mod filter;
pub mod headers;
mod json;
pub mod mask;
pub mod mask_key;
pub mod message_columns;
pub mod payload;
pub mod plan;
pub mod row_schema;
pub mod row_text;
pub mod rules;
pub mod seal;
pub mod shard;
pub mod shown_url;
pub mod streams;
pub mod subject;
pub mod tables;
pub mod trace;
pub mod types;
pub mod value;
