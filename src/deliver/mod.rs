//! Messages → calls: what is sent to a webhook's URL, what an answer means, when to try again.
//!
//! In: a webhook's row, a message of its stream, what its server answered. Out: a request's parts, a verdict, waits. Pure:
//! [`crate::commands::deliver`] owns the sockets, the clock and chance.

pub mod batch;
pub mod message;
pub mod network;
pub mod oauth2;
pub mod order;
pub mod schedule;
pub mod sign;
pub mod webhook;
