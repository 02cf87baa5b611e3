//! `walhook deliver` and the example workers, against real servers and receivers.

#[path = "../support/mod.rs"]
mod support;

mod batches;
mod deliver;
mod deliver_bad_input;
mod keys;
mod limits;
mod notices;
#[cfg(feature = "otlp")]
mod otlp;
mod outbox;
mod queue;
mod receivers;
mod sealed;
mod workers;
