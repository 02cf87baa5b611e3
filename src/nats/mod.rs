//! The edge towards NATS.
//!
//! What a server says passes through [`foreign`]; what its refusals mean is in [`codes`].
//!
//! Two connections per configuration: a client of async-nats for the JetStream API ([`control`]: [`streams`], [`tail`],
//! [`locate`], [`objects`], [`schemas`]),
//! and thin publishing connections of our own, opened by [`handshake`], driven by [`publish`] and read by [`ops`] and [`ack`]. Both take the same
//! [`settings`], prove who they are by the same [`auth`] and encrypt by the same [`tls`].

pub mod ack;
pub mod auth;
pub mod codes;
pub mod consumers;
pub mod control;
pub mod foreign;
pub mod handshake;
pub mod locate;
pub mod objects;
pub mod ops;
pub mod owner;
pub mod publish;
pub mod schemas;
pub mod settings;
pub mod streams;
pub mod tail;
pub mod tls;
