//! `rule_nats_consumer_stats`: what JetStream counts for the consumers of our streams, kept in the database.
//!
//! In: the streams and the connections to ask on. Out: rows, and the problems, which are told and change nothing else.
//! Bounded in time, for the history's rows may wait behind it. The average of a worker's processing time is the worker's to
//! tell (`rule_nats_consumer_update_stats`) and never touched here.

use std::{collections::HashMap, time::Duration};

use tokio::time::timeout;
use tokio_postgres::Client;

use crate::{
    error::{Error, Result},
    nats::{
        consumers::{self, Consumers},
        control::Control,
    },
    postgres::sql,
};

/// How long JetStream may take for all streams together.
const ASK: Duration = Duration::from_secs(5);

/// A stream to ask about.
pub struct Source {
    /// Its configuration.
    pub config_name: String,
    /// Its name.
    pub stream: String,
    /// Where to ask.
    pub control: Control,
}

/// Brings the table up to date. Returns what went wrong on the way, to be told once each.
pub async fn keep(client: &Client, sources: Vec<Source>) -> Vec<String> {
    let mut problems = Vec::new();
    let mut asked: HashMap<&str, &str> = HashMap::new();
    let mut found = Vec::new();
    let asking = async {
        for source in &sources {
            // The table knows a stream by its name alone.
            if let Some(first) = asked.insert(&source.stream, &source.config_name) {
                asked.insert(&source.stream, first);
                problems.push(format!(
                    "two NATS configurations have a stream {:?}: rule_nats_consumer_stats shows the consumers of \
                     {first:?}'s and not of {:?}'s",
                    source.stream, source.config_name
                ));
                continue;
            }
            match consumers::consumers(&source.control, &source.stream).await {
                Ok(consumers) => found.push((source.stream.as_str(), consumers)),
                Err(error) => problems.push(format!("rule_nats_consumer_stats stays as it is: {error}")),
            }
        }
    };
    if timeout(ASK, asking).await.is_err() {
        problems.push(format!("rule_nats_consumer_stats stays as it is: no answer within {} s", ASK.as_secs()));
    }
    for (stream, consumers) in &found {
        if let Err(error) = write(client, stream, consumers).await {
            problems.push(error.to_string());
        }
    }
    problems
}

/// The rows of one stream.
async fn write(client: &Client, stream: &str, consumers: &Consumers) -> Result<()> {
    let attempted = format!("write the consumers of stream {stream:?} into rule_nats_consumer_stats");
    let failed = |error| -> Error { sql::error(&attempted, error) };
    // Others wait for this connection.
    client
        .batch_execute("BEGIN; SET LOCAL lock_timeout = '1s'; SET LOCAL statement_timeout = '5s'")
        .await
        .map_err(failed)?;
    let outcome = upsert(client, stream, consumers).await.map_err(failed);
    let end = if outcome.is_ok() { "COMMIT" } else { "ROLLBACK" };
    client.batch_execute(end).await.map_err(failed)?;
    outcome
}

async fn upsert(client: &Client, stream: &str, consumers: &Consumers) -> Result<(), tokio_postgres::Error> {
    let Consumers { known, silent } = consumers;
    let names: Vec<&str> = known.iter().map(|consumer| consumer.name.as_str()).collect();
    let there: Vec<&str> = names.iter().copied().chain(silent.iter().map(String::as_str)).collect();
    let groups: Vec<Option<&str>> = known.iter().map(|consumer| consumer.deliver_group.as_deref()).collect();
    let policies: Vec<&str> = known.iter().map(|consumer| consumer.ack_policy.as_str()).collect();
    let limits: Vec<i32> = known.iter().map(|consumer| consumer.max_deliver).collect();
    let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let delivered: Vec<i64> = known.iter().map(|consumer| signed(consumer.delivered)).collect();
    let acknowledged: Vec<i64> = known.iter().map(|consumer| signed(consumer.acknowledged)).collect();
    let pending: Vec<i64> = known.iter().map(|consumer| signed(consumer.pending)).collect();
    let redelivered: Vec<i64> = known.iter().map(|consumer| signed(consumer.redelivered)).collect();
    let active: Vec<Option<i64>> = known.iter().map(|consumer| consumer.last_active_ns.map(|ns| ns / 1000)).collect();
    client
        .execute(
            "INSERT INTO public.rule_nats_consumer_stats AS s \
                 (stream_name, consumer_name, queue_group, ack_policy, max_deliver, messages_delivered, \
                  messages_acknowledged, messages_pending, messages_redelivered, last_active_at, active, updated_at) \
             SELECT $1, c.name, c.queue_group, c.ack_policy, c.max_deliver, c.delivered, c.acknowledged, c.pending, \
                    c.redelivered, 'epoch'::timestamptz + c.active_us * interval '1 microsecond', true, now() \
             FROM unnest($2::text[], $3::text[], $4::text[], $5::int[], $6::bigint[], $7::bigint[], $8::bigint[], \
                         $9::bigint[], $10::bigint[]) \
                  AS c (name, queue_group, ack_policy, max_deliver, delivered, acknowledged, pending, redelivered, active_us) \
             ON CONFLICT (stream_name, consumer_name) DO UPDATE SET \
                 queue_group = excluded.queue_group, ack_policy = excluded.ack_policy, \
                 max_deliver = excluded.max_deliver, messages_delivered = excluded.messages_delivered, \
                 messages_acknowledged = excluded.messages_acknowledged, messages_pending = excluded.messages_pending, \
                 messages_redelivered = excluded.messages_redelivered, \
                 last_active_at = greatest(excluded.last_active_at, s.last_active_at), active = true, updated_at = now() \
             WHERE (s.queue_group, s.ack_policy, s.max_deliver, s.messages_delivered, s.messages_acknowledged, \
                    s.messages_pending, s.messages_redelivered, s.active) \
                 IS DISTINCT FROM \
                   (excluded.queue_group, excluded.ack_policy, excluded.max_deliver, excluded.messages_delivered, \
                    excluded.messages_acknowledged, excluded.messages_pending, excluded.messages_redelivered, true)",
            &[
                &stream,
                &names,
                &groups,
                &policies,
                &limits,
                &delivered,
                &acknowledged,
                &pending,
                &redelivered,
                &active,
            ],
        )
        .await?;
    // What only a worker has told of (no ack_policy) is not JetStream's to end.
    client
        .execute(
            "UPDATE public.rule_nats_consumer_stats SET active = false, updated_at = now() \
             WHERE stream_name = $1 AND active AND ack_policy IS NOT NULL AND consumer_name <> ALL ($2::text[])",
            &[&stream, &there],
        )
        .await?;
    Ok(())
}
