//! A database with walhook's schema, a NATS server, and the stream between them as a reader sees it.

use std::collections::HashMap;

use async_nats::jetstream;
use serde_json::Value;

use super::{Nats, Postgres, Walhook, eventually, walhook::Builder};

/// PostgreSQL and NATS, set up for walhook.
pub struct Feed {
    /// The database.
    pub pg: Postgres,
    /// The server.
    pub nats: Nats,
}

/// A message as it is stored.
#[derive(Debug, Clone)]
pub struct Message {
    /// Its sequence in the stream.
    pub sequence: u64,
    /// Its subject.
    pub subject: String,
    /// Its headers.
    pub headers: HashMap<String, String>,
    /// Its payload.
    pub payload: Value,
}

impl Message {
    /// A header, or nothing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// The row or the caller's payload.
    pub fn data(&self) -> &Value {
        &self.payload["data"]
    }
}

/// How many messages a stream has ever taken.
pub async fn last_sequence(jetstream: &jetstream::Context, stream: &str) -> u64 {
    let Ok(mut stream) = jetstream.get_stream(stream).await else { return 0 };
    stream.info().await.map_or(0, |info| info.state.last_sequence)
}

impl Feed {
    /// Both servers, `walhook setup` done, the default configuration pointing at the NATS server.
    pub async fn start() -> Self {
        Self::on(Postgres::set_up().await, Nats::start().await)
    }

    /// The same on servers that are there.
    pub fn on(pg: Postgres, nats: Nats) -> Self {
        let feed = Feed { pg, nats };
        if !feed.pg.is_set_up {
            let done = feed.command("setup").finish();
            assert_eq!(done.code, Some(0), "{}", done.stderr);
        }
        feed.pg.psql(&format!("SELECT rule_nats_configure('default', '{}')", feed.nats.url()));
        feed
    }

    /// A verb of the binary, pointed at these servers.
    pub fn command(&self, verb: &str) -> Builder {
        Walhook::command(verb).env("DATABASE_URL", self.pg.conninfo())
    }

    /// `walhook run` by the role that the migrations made for it, to be completed.
    pub fn streamer(&self) -> Builder {
        self.command("run").env("DATABASE_URL", self.streamer_conninfo())
    }

    /// How the streamer's role connects.
    pub fn streamer_conninfo(&self) -> String {
        format!("host=127.0.0.1 port={} dbname=postgres user=walhook_streamer", self.pg.port())
    }

    /// `walhook run`, started.
    pub fn run(&self) -> Walhook {
        self.streamer().start()
    }

    /// A webhook in mode `nats`; returns its id.
    pub fn webhook(&self, name: &str) -> i32 {
        let id = self.pg.psql(&format!("SELECT rule_webhook_register('{name}', 'https://example.com/{name}')"));
        self.pg.psql(&format!("SELECT rule_webhook_enable_nats({id}, NULL, 'nats')"));
        id.parse().unwrap()
    }

    /// All that the stream holds, in its order.
    pub async fn messages_of(&self, stream: &str) -> Vec<Message> {
        let jetstream = jetstream::new(self.nats.client().await);
        let Ok(mut stream) = jetstream.get_stream(stream).await else { return Vec::new() };
        let state = stream.info().await.unwrap().state.clone();
        let mut messages = Vec::new();
        for sequence in state.first_sequence.max(1)..=state.last_sequence {
            let Ok(raw) = stream.get_raw_message(sequence).await else { continue };
            messages.push(Message {
                sequence,
                subject: raw.subject.to_string(),
                headers: raw
                    .headers
                    .iter()
                    .map(|(name, values)| (name.to_string(), values[0].as_str().to_owned()))
                    .collect(),
                payload: serde_json::from_slice(&raw.payload).unwrap(),
            });
        }
        messages
    }

    /// All that the default stream holds.
    pub async fn messages(&self) -> Vec<Message> {
        self.messages_of("WEBHOOKS").await
    }

    /// How many messages the stream has ever taken.
    pub async fn last_sequence(&self, stream: &str) -> u64 {
        last_sequence(&self.nats.jetstream().await, stream).await
    }

    /// Waits until the default stream has taken `count` messages, and returns them.
    pub async fn stored(&self, count: u64) -> Vec<Message> {
        eventually(&format!("{count} messages in the stream"), async || {
            (self.last_sequence("WEBHOOKS").await >= count).then_some(())
        })
        .await;
        self.messages().await
    }

    /// Runs walhook over what has been done and what `sql` does, and returns the messages.
    pub async fn after(&self, sql: &[&str]) -> Vec<Message> {
        for statement in sql {
            self.pg.psql(statement);
        }
        let mut walhook = self.run();
        self.confirmed().await;
        assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
        self.messages().await
    }

    /// Waits until PostgreSQL knows that everything committed so far is confirmed.
    pub async fn confirmed(&self) {
        self.confirmed_of("walhook").await;
    }

    /// The same of another slot.
    pub async fn confirmed_of(&self, slot: &str) {
        let upto = self.pg.psql("SELECT pg_current_wal_lsn()");
        eventually(&format!("slot {slot} to be confirmed up to {upto}"), async || {
            let asked =
                format!("SELECT confirmed_flush_lsn >= '{upto}' FROM pg_replication_slots WHERE slot_name = '{slot}'");
            (self.pg.psql(&asked) == "t").then_some(())
        })
        .await;
    }

    /// Whether everything committed so far is confirmed now.
    pub fn is_confirmed(&self) -> bool {
        let asked =
            "SELECT confirmed_flush_lsn >= pg_current_wal_lsn() FROM pg_replication_slots WHERE slot_name = 'walhook'";
        self.pg.psql(asked) == "t"
    }
}
