//! The consumers of a stream, as JetStream counts for them.
//!
//! In: the control connection and a stream's name. Out: one plain record for each durable consumer. Ephemeral ones are
//! left out: their names are made up anew with each, and nobody could watch them by name. Changes nothing.

use serde::Deserialize;
use serde_json::json;

use super::{codes::named::STREAM_NOT_FOUND, control::Control, streams};
use crate::error::{Error, Result};

/// JetStream answers with 256 at a time; past so many pages what it says of the total is not believed.
const PAGES_MAX: usize = 100;

/// A durable consumer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consumer {
    /// Its name.
    pub name: String,
    /// The queue group that shares a push consumer's messages.
    pub deliver_group: Option<String>,
    /// `explicit`, `all` or `none`.
    pub ack_policy: String,
    /// How often one message is delivered at most; -1: without end.
    pub max_deliver: i32,
    /// Deliveries so far, repeated ones too.
    pub delivered: u64,
    /// Deliveries up to which all are acknowledged.
    pub acknowledged: u64,
    /// Messages that wait for their delivery or their acknowledgement.
    pub pending: u64,
    /// Messages that were delivered more than once and are not acknowledged yet.
    pub redelivered: u64,
    /// The last delivery or acknowledgement, in nanoseconds since 1970.
    pub last_active_ns: Option<i64>,
}

/// What a stream has.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Consumers {
    /// The durable ones.
    pub known: Vec<Consumer>,
    /// Names of those that are there, but whose leader did not answer.
    pub silent: Vec<String>,
}

#[derive(Deserialize)]
struct Page {
    total: usize,
    #[serde(default)]
    consumers: Option<Vec<Info>>,
    #[serde(default)]
    missing: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Info {
    name: String,
    config: Settings,
    delivered: Reached,
    ack_floor: Reached,
    num_ack_pending: u64,
    num_redelivered: u64,
    num_pending: u64,
}

#[derive(Deserialize)]
struct Settings {
    durable_name: Option<String>,
    deliver_group: Option<String>,
    ack_policy: String,
    #[serde(default)]
    max_deliver: i32,
}

#[derive(Deserialize)]
struct Reached {
    consumer_seq: u64,
    last_active: Option<String>,
}

/// Asks for all consumers of a stream; one that is not there has none.
///
/// # Errors
/// We may not ask, or nobody answers.
pub async fn consumers(control: &Control, stream: &str) -> Result<Consumers> {
    let attempted = || format!("list the consumers of stream {stream:?}");
    let mut consumers = Consumers::default();
    let mut seen = 0;
    for _ in 0..PAGES_MAX {
        let answer = control
            .api(&format!("CONSUMER.LIST.{stream}"), &json!({ "offset": seen }))
            .await
            .map_err(|error| error.context(attempted()))?;
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) if error.err_code == STREAM_NOT_FOUND => return Ok(Consumers::default()),
            Err(error) => return Err(streams::api_error(attempted(), stream, error)),
        };
        let page: Page =
            serde_json::from_value(answer).map_err(|error| Error::protocol(attempted()).caused_by(error))?;
        let (here, silent) = (page.consumers.unwrap_or_default(), page.missing.unwrap_or_default());
        let count = here.len() + silent.len();
        seen += count;
        consumers.silent.extend(silent);
        for info in here.into_iter().filter(|info| info.config.durable_name.is_some()) {
            consumers.known.push(consumer(info)?);
        }
        if count == 0 || seen >= page.total {
            break;
        }
    }
    Ok(consumers)
}

fn consumer(info: Info) -> Result<Consumer> {
    let times = [&info.delivered.last_active, &info.ack_floor.last_active];
    let times: Vec<i64> = times.into_iter().flatten().map(|time| streams::unix_ns(time)).collect::<Result<_>>()?;
    Ok(Consumer {
        name: info.name,
        deliver_group: info.config.deliver_group,
        ack_policy: info.config.ack_policy,
        max_deliver: info.config.max_deliver,
        delivered: info.delivered.consumer_seq,
        acknowledged: info.ack_floor.consumer_seq,
        pending: info.num_pending + info.num_ack_pending,
        redelivered: info.num_redelivered,
        last_active_ns: times.into_iter().max(),
    })
}
