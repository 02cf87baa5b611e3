//! Bytes of the WAL stream become changes. Pure.

pub mod lsn;
