//! Events that cannot be published: dead letters, and the error where a webhook wants walhook to stop instead.
//!
//! Comes in: what the lanes gave up, and that a row is durable. Goes out: dead letters to be written, the oldest first. Always holds:
//! nothing behind such an event is sent or confirmed before its row is durable.

use bytes::Bytes;

use super::Streamer;
use crate::{
    error::Result,
    flow::{event_id::EventPosition, history::Outcome, lane::Noted},
    route::rules::KeepPayload,
    wal::lsn::Lsn,
};

/// The largest payload of a dead letter that its row of the history holds as well.
const HISTORY_COPY_MAX: usize = 1 << 20;

/// An event that cannot be published and waits for its row in `rule_nats_dead_letters`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the row's columns; sql/ explains them")]
pub struct DeadLetter {
    pub event_id: String,
    pub webhook_id: i32,
    pub webhook_name: Option<String>,
    pub subject: String,
    pub headers: String,
    pub payload: Bytes,
    pub reason: String,
    pub commit_lsn: Lsn,
    pub(super) number: u64,
    pub(super) position: EventPosition,
    pub(super) noted: Option<Noted>,
}

/// Why an event of a webhook with `on_error = halt` cannot be published: the cause of the error that says so, by which
/// it is told from others.
#[derive(Debug)]
pub struct Halted(pub(super) String);

impl std::fmt::Display for Halted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Halted {}

/// What kept an event from being published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obstacle {
    /// No message can be made of it: its webhook, its subject, its headers, or no stream takes it.
    Invalid,
    /// It is larger than the server takes.
    TooLarge,
    /// Its stream does not take it, or refused it for good.
    Refused,
}

impl Obstacle {
    /// All of them, in their order.
    pub const ALL: [Obstacle; 3] = [Obstacle::Invalid, Obstacle::TooLarge, Obstacle::Refused];

    /// The word for it in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Obstacle::Invalid => "invalid",
            Obstacle::TooLarge => "too_large",
            Obstacle::Refused => "refused",
        }
    }
}

impl Streamer {
    /// Makes dead letters of the events that the lanes gave up. To be called when a lane was opened or refused
    /// something; until then nothing behind such an event is sent or confirmed.
    ///
    /// # Errors
    /// A webhook among theirs has `on_error = halt`.
    pub(in crate::flow) fn reject(&mut self) -> Result<()> {
        for index in 0..self.out.lanes.len() {
            let max_payload = self.out.lanes[index].max_payload();
            for rejected in self.out.lanes[index].take_rejected() {
                // Its headers are JSON here, and a little longer than they were.
                let is_too_large = rejected.payload.len() + rejected.headers.len() > max_payload;
                let obstacle = if is_too_large { Obstacle::TooLarge } else { Obstacle::Refused };
                self.out.reject(&self.router.rules, rejected, obstacle)?;
            }
        }
        Ok(())
    }

    /// Dead letters that wait to be written, the oldest first.
    pub fn dead_letters(&self) -> impl ExactSizeIterator<Item = &DeadLetter> {
        self.out.dead_letters.iter()
    }

    /// The row of this dead letter is durable.
    pub fn dead_letter_written(&mut self, event_id: &str) {
        while let Some(index) = self.out.dead_letters.iter().position(|letter| letter.event_id == event_id) {
            let letter = self.out.dead_letters.remove(index).expect("just found");
            if let Some(Noted { note, keep, data }) = &letter.noted {
                let outcome = Outcome::Failed { reason: &letter.reason };
                let data = &letter.payload[data.clone()];
                // The letter has it whole: a second copy of a large one is not held.
                let keep = if data.len() > HISTORY_COPY_MAX { KeepPayload::Hash } else { *keep };
                self.out.history.push(letter.number, &letter.position, note, data, keep, outcome);
            }
        }
        self.out.hold_back();
        self.settle();
    }
}
