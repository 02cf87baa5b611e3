//! What a stream holds, read in its order.
//!
//! In: an ordered consumer's messages from a sequence on. Out: those of the feed's events that lie between two points, given to
//! [`Copy`] or counted. What the stream's limits remove before it was read ends it: nothing is left out in silence.

use std::{fmt, time::Duration};

use async_nats::{
    HeaderMap,
    jetstream::{
        self,
        consumer::{DeliverPolicy, pull::OrderedConfig},
    },
};
use futures_util::StreamExt;
use tokio::time::{Instant, sleep, timeout};

use super::{
    Plan, Source,
    filter::Verdict,
    publish::{Copy, Destination, Event},
};
use crate::{
    error::{Error, Result},
    flow::event_id::EventPosition,
    wal::lsn::Lsn,
};

/// How often it is looked whether a silent connection is one still.
const LOOK: Duration = Duration::from_secs(1);
/// Longest silence of a stream that has more.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a stream holds of what is wanted.
#[derive(Default)]
pub struct Found {
    events: u64,
    unknown: u64,
    bytes: u64,
    first: Option<(u64, Lsn)>,
    last: Option<(u64, Lsn)>,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Some((first, from)), Some((last, to))) = (self.first, self.last) else { return f.write_str("nothing") };
        write!(
            f,
            "{} events, {} bytes, from {from} (message {first}) to {to} (message {last})",
            self.events, self.bytes
        )?;
        if self.unknown > 0 {
            write!(f, "; {} more do not tell their table", self.unknown)?;
        }
        Ok(())
    }
}

/// The id of the event that a message is.
pub fn id_of(headers: Option<&HeaderMap>) -> Option<&str> {
    let headers = headers?;
    headers.get("Walhook-Id").or_else(|| headers.get("Nats-Msg-Id")).map(|id| id.as_str())
}

/// The stream's messages in its order from a sequence on.
async fn read(source: &Source, first: u64) -> Result<jetstream::consumer::pull::Ordered> {
    let attempted = || format!("read stream {:?} from message {first} on", source.stream());
    let control = &source.control;
    let stream = control.jetstream().get_stream(source.stream()).await;
    let stream = stream.map_err(|error| Error::unavailable(attempted()).caused_by(error))?;
    let wanted = OrderedConfig {
        deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: first },
        ..OrderedConfig::default()
    };
    let consumer = control.permitted(attempted, stream.create_consumer(wanted)).await?;
    let consumer = consumer.map_err(|error| Error::unavailable(attempted()).caused_by(error))?;
    consumer.messages().await.map_err(|error| Error::unavailable(attempted()).caused_by(error))
}

/// A message that was read, and its sequence; `None` behind `last`.
async fn next(
    messages: &mut jetstream::consumer::pull::Ordered,
    source: &Source,
    last: u64,
) -> Result<Option<(u64, jetstream::Message)>> {
    let attempted = || format!("read stream {:?}", source.stream());
    let message = source.control.permitted(attempted, timeout(PATIENCE, messages.next())).await?;
    let message = message.map_err(|_| silent(source))?;
    let Some(message) = message else { return Ok(None) };
    let message = message.map_err(|error| Error::unavailable(attempted()).caused_by(error))?;
    let sequence = message.info().map_err(|error| Error::protocol(attempted()).caused_by(error))?.stream_sequence;
    Ok((sequence <= last).then_some((sequence, message)))
}

fn silent(source: &Source) -> Error {
    let why = match source.control.is_connected() {
        true => format!("silence for {} s", PATIENCE.as_secs()),
        false => "the connection to NATS is lost".to_owned(),
    };
    Error::unavailable(format!("read stream {:?}: {why}", source.stream()))
}

/// Messages may be missing because somebody has deleted them; but not because the stream's limits were faster than we.
async fn check_gap(source: &Source, expected: u64) -> Result<()> {
    let state = source.state().await?;
    if state.first_sequence <= expected {
        return Ok(());
    }
    let gone = state.first_sequence - 1;
    Err(Error::config(format!(
        "read stream {:?}: its limits have removed messages {expected} to {gone} before they could be read",
        source.stream()
    ))
    .hint("raise its limits, or begin a replay --from a later point"))
}

/// Counts what is wanted.
///
/// # Errors
/// The stream cannot be read.
pub async fn count(source: &Source, feed: &str, (first, last): (u64, u64), plan: &Plan) -> Result<Found> {
    let Plan { bounds, filter, .. } = plan;
    let mut found = Found::default();
    if first > last {
        return Ok(found);
    }
    let mut messages = read(source, first).await?;
    while let Some((sequence, message)) = next(&mut messages, source, last).await? {
        let position = id_of(message.headers.as_ref()).and_then(|id| EventPosition::parse(id, feed));
        if let Some(position) = position {
            if bounds.end_before(&position) {
                break;
            }
            if bounds.contain(&position) {
                match filter.judge(&position, message.headers.as_ref(), &message.payload) {
                    Verdict::Unwanted => {}
                    Verdict::Unknown => found.unknown += 1,
                    Verdict::Wanted => {
                        found.events += 1;
                        found.bytes += message.payload.len() as u64;
                        found.last = Some((sequence, position.commit_lsn));
                        found.first = found.first.or(found.last);
                    }
                }
            }
        }
        if sequence == last {
            break;
        }
    }
    Ok(found)
}

/// Sends what is wanted of a stream. Returns whether it was all, or else it was told to stop.
///
/// # Errors
/// The stream cannot be read, the other one refuses, or progress cannot be noted.
pub async fn copy(
    copy: &mut Copy<'_>,
    feed: &str,
    source: &Source,
    to: &Destination,
    (first, last): (u64, u64),
) -> Result<bool> {
    copy.begin(&source.name, first, last);
    let mut shutdown = copy.shutdown();
    let mut is_whole = true;
    let mut expected = first;
    if first <= last {
        let mut messages = read(source, first).await?;
        let mut heard = Instant::now();
        loop {
            let read = tokio::select! {
                biased;
                _ = shutdown.wait_for(|stop| *stop) => { is_whole = false; None }
                read = next(&mut messages, source, last) => read?,
                () = sleep(LOOK) => {
                    if !source.control.is_connected() || heard.elapsed() >= PATIENCE {
                        return Err(silent(source));
                    }
                    continue;
                }
            };
            heard = Instant::now();
            let Some((sequence, message)) = read else { break };
            if sequence > expected {
                check_gap(source, expected).await?;
            }
            expected = sequence + 1;
            let headers = message.headers.as_ref();
            if let Some(id) = id_of(headers)
                && let Some(position) = EventPosition::parse(id, feed)
            {
                if copy.bounds.end_before(&position) {
                    break;
                }
                let (subject, payload) = (message.subject.as_str(), message.payload.clone());
                copy.offer(to, Event { position, id, subject, headers, payload, upto: sequence + 1 }).await?;
            }
            copy.breathe(sequence + 1).await?;
            if sequence == last {
                break;
            }
        }
    }
    copy.end(is_whole.then_some(last + 1)).await?;
    Ok(is_whole)
}
