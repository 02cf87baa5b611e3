//! The database's side: SQL functions, `walhook setup`, the checks of a set-up, identity, and the statements that are printed.

#[path = "../support/mod.rs"]
mod support;

mod guide;
mod identity;
mod own_schema;
mod raises;
mod remedies;
mod rfc;
mod setup;
mod setup_check;
mod sql;
