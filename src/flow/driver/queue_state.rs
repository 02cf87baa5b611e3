//! What one lane is doing: waiting for its connection, asking its stream, publishing, or letting answers settle.

use std::collections::BTreeMap;

use super::{GroupId, Moment, Timing, backoff::Backoff, claim_checks::Storing, opening::Opening, trust::Checkpoint};
use crate::{
    error::Error,
    flow::{
        lane::{BATCH_MAX, Lane},
        streamer::LaneSettings,
    },
    route::streams::is_same_stream,
};

/// See the module.
#[derive(Debug)]
pub struct QueueState {
    pub phase: Phase,
    /// The group of connections that it is of, once it was reached by rows.
    pub group: Option<GroupId>,
    /// The servers that the rules of its events name.
    pub servers: String,
    /// What the lane was last opened by.
    pub settings: Option<LaneSettings>,
    /// The rows as they are lead to it.
    pub is_wanted: bool,
    pub backoff: Backoff,
    /// A failure of it was reported, and not that all is well again.
    pub is_reported: bool,
    /// How many events are in line.
    pub in_line: usize,
    /// Where the stream was last seen to stand, by this run or an earlier one.
    pub known: Option<Checkpoint>,
    pub created_ns: i64,
    /// Of core NATS: its servers were reached in this session.
    pub reached_core: bool,
    /// How many messages the server takes as one batch, as far as it has said.
    pub batch_max: usize,
    /// What of its row's `transactions` and `durability` its stream cannot do.
    pub falls_back: Option<String>,
    /// An answer has come since that was looked at.
    pub answered: bool,
    /// A refusal has come since that was looked at.
    pub trouble: Option<Error>,
    /// Refusals of its stream, by JetStream's code.
    pub refusals: BTreeMap<u64, u64>,
    /// Its claim check on the way into the object store.
    pub storing: Storing,
    /// The schema that its messages wait for, on the way into its bucket.
    pub schemas: Storing,
    /// The oldest event that waits for its answer, and since when.
    pub waiting: Option<(u64, Moment)>,
    /// The oldest event in line, through whatever failures, and since when it is.
    front: Option<(u64, Moment)>,
}

/// See the module.
#[derive(Debug)]
pub enum Phase {
    /// Nothing leads to the lane any more, and nothing is in it.
    Absent,
    /// Until its connection stands, and at least until then.
    Waiting(Moment),
    /// Its stream is asked.
    Opening(Box<Opening>),
    Running,
    /// Closed; answers may still come, until then.
    Settling(Moment),
}

impl QueueState {
    pub fn new(servers: &str, known: Option<Checkpoint>, timing: &Timing) -> QueueState {
        QueueState {
            phase: Phase::Absent,
            group: None,
            servers: servers.to_owned(),
            settings: None,
            is_wanted: true,
            backoff: timing.backoff(),
            is_reported: false,
            in_line: 0,
            known,
            created_ns: 0,
            reached_core: false,
            batch_max: BATCH_MAX,
            falls_back: None,
            answered: false,
            trouble: None,
            refusals: BTreeMap::new(),
            storing: Storing::new(timing),
            schemas: Storing::new(timing),
            waiting: None,
            front: None,
        }
    }

    pub fn is_absent(&self) -> bool {
        matches!(self.phase, Phase::Absent)
    }

    /// Whether its lane has a part in the connection: bytes go out, answers are taken. Not while a stream's end is read, which
    /// may be older than an answer.
    pub fn is_on_line(&self) -> bool {
        matches!(self.phase, Phase::Running | Phase::Settling(_))
    }

    pub fn wakes_at(&self) -> Option<Moment> {
        let phase = match self.phase {
            Phase::Waiting(until) | Phase::Settling(until) => Some(until),
            Phase::Absent | Phase::Opening(_) | Phase::Running => None,
        };
        phase.into_iter().chain(self.storing.wakes_at()).chain(self.schemas.wakes_at()).min()
    }

    /// Since when nothing of its lane has been settled that could be.
    pub fn stands_still_since(&mut self, lane: &Lane, now: Moment) -> Moment {
        match (self.front, lane.in_flight()) {
            (Some((known, since)), Some(front)) if known == front => since,
            (_, front) => {
                self.front = front.map(|front| (front, now));
                now
            }
        }
    }

    /// Where its stream stands; nothing while that was never seen.
    pub fn stands(&self, lane: &Lane) -> Option<Checkpoint> {
        let (position, sequence) = lane.last_stored()?;
        let settings = self.settings.as_ref().filter(|_| self.created_ns != 0)?;
        Some(Checkpoint {
            config_name: settings.config.config_name.clone(),
            stream: lane.stream().to_owned(),
            servers: self.servers.clone(),
            created_ns: self.created_ns,
            position,
            sequence,
            retained_through: lane.retained_through(),
        })
    }

    /// Whether its stream was seen, by this run or an earlier one.
    pub fn was_reached(&self) -> bool {
        self.known.is_some() || self.was_open()
    }

    /// Whether its stream was seen, or core NATS was reached, in this session.
    pub fn was_open(&self) -> bool {
        self.created_ns != 0 || self.reached_core
    }

    /// Whether both were seen in this session to lead into one stream of one server.
    pub fn leads_with(&self, other: &QueueState) -> bool {
        self.created_ns != 0 && self.created_ns == other.created_ns
    }

    /// Whether it leads elsewhere than `other` for certain: otherwise their events may have to go in one order.
    pub fn leads_elsewhere(&self, other: &QueueState) -> bool {
        if self.reached_core && other.reached_core {
            return true;
        }
        let seen = |state: &QueueState| {
            let known = state.known.as_ref().map(|known| known.created_ns);
            Some(state.created_ns).filter(|&created| created != 0).or(known)
        };
        // Two streams may be made at the same moment on two servers; a checkpoint has that moment to the microsecond.
        let is_exact = self.created_ns != 0 && other.created_ns != 0;
        let is_other = |here: i64, there| if is_exact { here != there } else { !is_same_stream(here, there) };
        matches!((seen(self), seen(other)), (Some(here), Some(there)) if is_other(here, there))
    }

    /// Counts a refusal by its code.
    pub fn refused(&mut self, code: u64) {
        *self.refusals.entry(code).or_default() += 1;
    }

    /// Whether the oldest message has waited for its answer longer than it may.
    pub fn is_overdue(&mut self, lane: &Lane, now: Moment, timing: &Timing) -> bool {
        let Some(oldest) = lane.oldest().filter(|_| lane.awaits_answers()) else { return false };
        match self.waiting {
            Some((waiting, since)) if waiting == oldest => now.since(since) >= timing.ack_timeout,
            _ => {
                self.waiting = Some((oldest, now));
                false
            }
        }
    }
}
