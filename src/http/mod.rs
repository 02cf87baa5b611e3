//! What a running walhook shows of itself by HTTP: probes, metrics, a status page.
//!
//! `run` and `deliver` fill a [`snapshot`] once a second; [`server`] answers from it, on a thread of its own, so that no reader, however
//! slow, takes time from the streamer. [`metrics`] renders it for Prometheus, [`page`] for people; [`settings`] says where to listen and who may ask;
//! [`operator`] is the one thing that changes something: it passes on what an operator wants done.
//! Nothing here knows PostgreSQL, NATS or the commands, and nothing shows payloads or secrets.

pub mod metrics;
pub mod operator;
pub mod page;
pub mod server;
pub mod settings;
pub mod snapshot;
