//! Faults one by one, on real processes: crashes, failovers, networks, clocks, limits, and the fault points of the binary.

#[path = "../support/mod.rs"]
mod support;

mod clock;
mod cluster;
mod failover;
#[cfg(feature = "fault-points")] // `make test` builds them
mod fault_points;
mod large;
mod network;
mod postgres_shutdown;
mod recovery;
mod streams_in_trouble;
mod tpcb;
