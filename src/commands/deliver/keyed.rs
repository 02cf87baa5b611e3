//! A lane whose events are called in the order of their keys: one worker of the group at a time.
//!
//! In: a consumer that all workers of the group share. Out: this worker is the one that calls, and has in hand all that was delivered to
//! others before and is not done; from then on every message in the order of the stream. Always holds: the worker is the one for as
//! long as PostgreSQL says so, and begins no call that would not end within that time; before it calls the first event, it has
//! every earlier one that is not done.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_nats::{Message, Subscriber};
use futures_util::StreamExt;
use serde_json::Value;
use tokio::{
    sync::watch,
    time::{Instant, interval_at, sleep, timeout},
};

use super::{
    configuration::Known,
    event::{self, Delivery},
    lane::{self, Calls, Lane, Word},
    order::Added,
};
use crate::error::{Error, Result};

/// How often the time is prolonged.
const RENEW: Duration = Duration::from_secs(1);
/// How often a worker asks whether the webhook is its own to call.
const ASK: Duration = Duration::from_secs(1);
/// How often the consumer is asked what is still elsewhere.
const LOOK: Duration = Duration::from_millis(250);
/// Messages asked for at once.
const PULL_MAX: usize = 256;

/// Why a session ends: the webhook is called in another order now.
pub const ORDER_CHANGED: &str = "delivery_order or order_key of the webhook has changed: its events are given back \
    and fetched again in the new order";
/// The same: this worker is not the one that calls.
pub const OTHERS_ORDER: &str = "another worker calls the webhook in the order of its keys";

/// Waits until this worker is the one that calls, and has all that was delivered before. False: it is to stop.
///
/// # Errors
/// The consumer cannot be asked.
pub async fn begin(
    lane: &Arc<Lane>,
    known: &watch::Receiver<Arc<Known>>,
    calls: &mut Calls,
    inbox: &str,
    messages: &mut Subscriber,
) -> Result<bool> {
    let gathered = tokio::select! {
        gathered = take_and_gather(lane, known, calls, inbox, messages) => gathered?,
        () = lane.stopped() => return Ok(false),
    };
    for message in gathered.into_values() {
        take(lane, calls, message).await;
    }
    Ok(true)
}

/// All that was delivered before, once this worker is the one that calls.
async fn take_and_gather(
    lane: &Arc<Lane>,
    known: &watch::Receiver<Arc<Known>>,
    calls: &mut Calls,
    inbox: &str,
    messages: &mut Subscriber,
) -> Result<BTreeMap<u64, Message>> {
    // Calls from when this worker last held the order.
    while calls.next().await.is_some() {}
    lane.order.clear();
    let mut known = known.clone();
    while !lane.is_open() && known.changed().await.is_ok() {
        lane.reopen();
    }
    take_over(lane, &known).await?;
    tokio::spawn(prolong(Arc::clone(lane)));
    gather(lane, inbox, messages).await
}

/// Waits until PostgreSQL says that this worker calls the webhook.
async fn take_over(lane: &Lane, known: &watch::Receiver<Arc<Known>>) -> Result<()> {
    loop {
        let now = Arc::clone(&known.borrow());
        if now.webhook.order_key.is_none() {
            return Err(Error::unavailable(ORDER_CHANGED));
        }
        match lane.worker.limits.take_order(&now.webhook, &lane.worker.settings.group).await? {
            Some(until) => {
                lane.order.hold(Some(until));
                return Ok(());
            }
            None => sleep(ASK).await,
        }
    }
}

/// Prolongs the time until it is over.
async fn prolong(lane: Arc<Lane>) {
    loop {
        tokio::select! {
            () = sleep(RENEW) => {}
            () = lane.order.is_over() => return,
        }
        let now = lane.now();
        match lane.worker.limits.take_order(&now.webhook, &lane.worker.settings.group).await {
            // Somebody may have ended it meanwhile.
            Ok(Some(until)) => {
                if lane.order.has_time(Duration::ZERO) {
                    lane.order.hold(Some(until));
                }
            }
            Ok(None) => lane.order.hold(None),
            Err(error) => lane.note_once(format!("the order of its calls cannot be prolonged: {error}")),
        }
    }
}

/// All messages that were delivered and are not done, by their sequences.
async fn gather(lane: &Lane, inbox: &str, messages: &mut Subscriber) -> Result<BTreeMap<u64, Message>> {
    let mut gathered: BTreeMap<u64, Message> = BTreeMap::new();
    let attempted = || format!("read consumer {:?} of stream {:?}", lane.consumer, lane.stream);
    let beat = lane.worker.settings.ack_wait / 3;
    let mut beats = interval_at(Instant::now() + beat, beat);
    let mut asked: Option<Instant> = None;
    loop {
        let request = format!("CONSUMER.INFO.{}.{}", lane.stream, lane.consumer);
        let info = lane
            .worker
            .control
            .api(&request, &Value::Null)
            .await?
            .map_err(|error| Error::unavailable(attempted()).caused_by(error))?;
        let waiting = info["num_ack_pending"].as_u64().unwrap_or(0);
        if waiting <= gathered.len() as u64 {
            return Ok(gathered);
        }
        if !lane.order.has_time(Duration::ZERO) {
            return Err(Error::unavailable(OTHERS_ORDER));
        }
        if asked.is_none_or(|asked| asked.elapsed() >= lane::PULL) {
            lane::ask(lane, inbox, PULL_MAX).await?;
            asked = Some(Instant::now());
        }
        let look = Instant::now() + LOOK;
        loop {
            tokio::select! {
                _ = beats.tick() => {
                    for reply in gathered.values().filter_map(|message| message.reply.clone()) {
                        let _ = lane.worker.client.publish(reply, "+WPI".into()).await;
                    }
                }
                message = timeout(look.saturating_duration_since(Instant::now()), messages.next()) => match message {
                    Err(_) => break,
                    Ok(None) => return Err(Error::unavailable("the connection to NATS is closed")),
                    Ok(Some(message)) => match lane::word(&message) {
                        Word::Event => {
                            let sequence = message.reply.as_deref().and_then(Delivery::parse).map(|it| it.sequence);
                            gathered.extend(sequence.map(|sequence| (sequence, message)));
                        }
                        Word::Nothing => {}
                        Word::Over => asked = None,
                        Word::Trouble(why) => {
                            return Err(Error::unavailable(format!("{}: {why}", attempted())));
                        }
                    },
                },
            }
        }
        // All that was asked for has come.
        if !gathered.is_empty() && gathered.len().is_multiple_of(PULL_MAX) {
            asked = None;
        }
    }
}

/// Puts a message into its place among those in hand.
pub async fn take(lane: &Arc<Lane>, calls: &mut Calls, message: Message) {
    let Some(delivery) = message.reply.as_deref().and_then(Delivery::parse) else { return };
    match lane.order.add(delivery.sequence, delivery.stored_at, event::keys(&lane.worker, &lane.now(), &message)) {
        Added::New => calls.push(Box::pin(lane::alive(Arc::clone(lane), message, true))),
        // Acknowledged when the call of its earlier delivery is done.
        Added::Known => {}
        Added::Done => {
            if let Some(reply) = message.reply {
                let _ = lane.worker.client.publish(reply, "+ACK".into()).await;
            }
        }
    }
}
