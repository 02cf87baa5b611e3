//! Events in flight: from the moment they are encoded until PostgreSQL may forget them. Pure: no socket, no clock.
//!
//! [`send_buffer`] holds the encoded messages, [`lane`] their order, their acks and what is to be sent (again), [`window`]
//! turns acks into the LSN that may be confirmed, [`delay`] holds it back where that is wished, [`history`] turns what became
//! of them into rows, [`histogram`] counts how long they took. [`streamer`] is the one stateful heart that drives them, and [`driver`]
//! decides which connections are made and when a lane is open.

pub mod delay;
pub mod driver;
pub mod event_id;
pub mod histogram;
pub mod history;
pub mod lane;
pub mod send_buffer;
pub mod streamer;
pub mod window;
