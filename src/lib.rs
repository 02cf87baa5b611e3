//! walhook: committed changes of PostgreSQL become JetStream messages, in order, exactly once.
//!
//! # The way of a change
//!
//! socket bytes → CopyData ([`postgres`]) → replication frame → pgoutput message → change with its position ([`wal`]) →
//! events, by webhooks and links ([`route`]) → lane and window ([`flow`]) → JetStream ([`nats`]) → acks → confirmed LSN →
//! standby status update ([`postgres`]).
//!
//! From there [`deliver`] judges and [`commands::deliver`] calls: message → request → answer → ack, or a later attempt.
//!
//! [`wal`], [`route`], [`flow`] and [`deliver`] are pure: no socket, no clock, no task. [`flow::streamer::Streamer`] holds the events,
//! [`flow::driver::Driver`] decides about connections and streams; [`commands::run`] runs both with one `select!` on one thread, and
//! the simulation runs the same two on models of the servers. `tests/tidy/tidy.rs` holds who may use whom.
//!
//! # What always holds
//!
//! 1. `confirmed ≤ received`, and both only grow.
//! 2. `confirmed` is the end of a commit before which every event is settled: stored by its stream, or durable as a dead
//!    letter. Or it is a keepalive's position while nothing is unsettled and no transaction is open.
//! 3. An event's id is a function of source, commit LSN and time, ordinal of the change, and webhook; of nothing else.
//! 4. An unchanged TOAST value is its own variant, never null.
//! 5. Nothing is skipped in silence: what can never be published stops the stream or goes to a named place, by setting.
//! 6. An event is made by the rules in force at its own commit, in every session: their rows come down the same slot, and their
//!    versions are durable before anything behind that commit is confirmed.
//!
//! # The one remedy
//!
//! Whatever goes wrong with a stream: close its lane, let answers settle, read the stream's tail, drop what the tail shows
//! as stored, send the rest again from the window. Whatever goes wrong with PostgreSQL: end the session and begin one as
//! the first began, from the slot and the tails. There is no retry of a single event.

mod calendar;
pub mod commands;
pub mod config;
pub mod deliver;
pub mod error;
pub mod files;
pub mod flow;
pub mod http;
pub mod log;
pub mod nats;
mod percent;
pub mod postgres;
pub mod route;
pub mod text;
pub mod wal;
