//! Bytes of the WAL stream become changes. Pure.
//!
//! In the order the bytes take: [`frame`] (one CopyData payload of the replication protocol), [`pgoutput`] (one message
//! of logical decoding inside it), [`change`] (relations, transactions, positions). The first two read through
//! [`cursor`], borrow what they read, and allocate nothing. [`name`] is how they have names. [`snapshot`] tells which of the transactions a read has seen.
//! [`transcode`] comes before all of them where the database has neither UTF-8 nor `SQL_ASCII`.

pub mod change;
pub mod cursor;
pub mod frame;
pub mod lsn;
pub mod name;
pub mod pgoutput;
pub mod snapshot;
pub mod transcode;
