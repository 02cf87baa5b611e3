//! walhook: committed changes of PostgreSQL become JetStream messages, in order, exactly once.

pub mod error;
pub mod flow;
pub mod nats;
pub mod postgres;
pub mod route;
pub mod wal;
