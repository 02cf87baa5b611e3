//! Publishing, replay and backfill against real PostgreSQL and NATS servers, one module per subject.

#[path = "../support/mod.rs"]
mod support;

mod backfill;
mod backups;
mod bad_input;
mod batches;
mod breaks;
mod check;
mod check_agrees;
mod claim_checks;
mod commands;
mod compose;
mod configuration;
mod confirm_delay;
mod consumer_stats;
mod dead_letters;
mod decoys;
mod demo;
mod end_to_end;
mod formats;
mod history;
mod hostile;
mod http;
mod linked_tables;
mod locks;
mod moves;
mod nats_configurations;
mod nats_connection;
mod nats_streams;
mod outbox;
mod package;
mod page;
mod payloads;
mod peers;
mod postgres_connection;
mod replay;
mod replay_wal;
mod support_works;
mod systemd;
mod terminal;
mod terminal_bounds;
mod upgrades;
mod values;
