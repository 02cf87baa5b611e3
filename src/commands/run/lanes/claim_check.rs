//! Payloads that are too large for a message, on their way into the object store.
//!
//! In: a lane's oversize event whose turn it is. Out: its claim check into the lane, once the object is durable; or, where the object store will never
//! take it, the claim check among the dead letters. What time may mend is tried again. One at a time for each lane.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::sleep;

use super::Lanes;
use crate::{
    commands::{backoff::Backoff, log_once::LogOnce},
    error::{Error, Kind, Result},
    flow::{lane::claim_check::Claim, streamer::Streamer},
    nats::objects::{self, Bucket, Writer},
    route::{
        streams::{most_replicas, streams_of_all},
        tables::ConfigRow,
    },
};

/// Where the row names no bucket.
const BUCKET: &str = "walhook_objects";

/// A claim check under way.
pub struct Storing {
    number: u64,
    /// Of the connection that it goes by: another server has another object store.
    connected_times: u64,
    work: Pin<Box<dyn Future<Output = Result<Claim>>>>,
}

/// What went wrong before.
#[derive(Default)]
pub struct Trouble {
    backoff: Backoff,
    wait: Duration,
    logged: LogOnce,
}

impl Lanes {
    /// Stores a lane's claim check. Returns whether it has come further.
    pub(super) fn poll_claim_check(
        &mut self,
        cx: &mut Context<'_>,
        at: usize,
        index: usize,
        streamer: &mut Streamer,
    ) -> Result<bool> {
        let (group, driver) = (&self.groups[at], &mut self.drivers[index]);
        let Some(claim_check) = streamer.lane(index).claim_check() else { return Ok(false) };
        let number = claim_check.number;
        let is_its = |storing: &Storing| {
            storing.number == number && storing.connected_times == group.connected_times && group.control.is_some()
        };
        if !driver.storing.as_ref().is_some_and(is_its) {
            driver.storing = None;
            let Some(control) = group.control.clone() else { return Ok(false) };
            let bucket = bucket(&group.row, streamer);
            let (name, payload) = (claim_check.position.id(&self.identity.source), claim_check.payload.clone());
            let database_id = self.identity.database.database_id.clone();
            let writer = Writer { database_id, epoch: self.identity.epoch };
            let wait = std::mem::take(&mut driver.storing_trouble.wait);
            let work = Box::pin(async move {
                sleep(wait).await;
                let sha256 = objects::put(&control, &bucket, &name, &payload, &writer).await?;
                Ok(Claim { bucket: bucket.name, name, sha256 })
            });
            driver.storing = Some(Storing { number, connected_times: group.connected_times, work });
        }
        let Some(storing) = &mut driver.storing else { return Ok(false) };
        let Poll::Ready(outcome) = storing.work.as_mut().poll(cx) else { return Ok(false) };
        driver.storing = None;
        match outcome {
            Ok(claim) => {
                tracing::debug!(object = claim.name, bucket = claim.bucket, "a payload is in the object store");
                streamer.lane_mut(index).claim(number, &claim);
                driver.storing_trouble = Trouble::default();
                self.is_notable = true;
            }
            Err(error) if error.kind() == Kind::Unavailable => driver.storing_trouble.again(&error),
            Err(error) if error.kind() == Kind::Fenced => return Err(error),
            Err(error) => {
                streamer
                    .lane_mut(index)
                    .give_up(number, &format!("its payload cannot be put into an object store: {error}"));
                self.is_notable = true;
                streamer.reject()?;
            }
        }
        Ok(true)
    }
}

impl Trouble {
    fn again(&mut self, error: &Error) {
        self.wait = self.backoff.next();
        let text = error.to_string();
        if self.logged.is_news(&text) {
            tracing::warn!("{text}; later events of the stream wait");
        }
    }
}

/// The bucket of a configuration. Where walhook makes it, it keeps objects as long as the streams keep the messages that name
/// them, and on as many servers.
fn bucket(row: &ConfigRow, streamer: &Streamer) -> Bucket {
    let (streams, _) = streams_of_all(streamer.tables()).remove(&row.config_id).unwrap_or_default();
    let ages = streams.iter().map(|stream| stream.max_age_seconds.and_then(|age| u64::try_from(age).ok()).unwrap_or(0));
    // None at all is for ever.
    let max_age = if ages.clone().any(|age| age == 0) { 0 } else { ages.max().unwrap_or(0) };
    Bucket {
        name: row.object_bucket.clone().filter(|name| !name.is_empty()).unwrap_or_else(|| BUCKET.to_owned()),
        replicas: most_replicas(&streams),
        max_age: Duration::from_secs(max_age),
    }
}
