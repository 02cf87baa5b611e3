//! The edge towards NATS.
