//! What one lane is doing: waiting for its connection, reading its stream's tail, publishing, or letting answers settle.

use std::{collections::BTreeMap, future::Future, pin::Pin, time::Duration};

use tokio::time::{Instant, Sleep, sleep};

use super::{
    claim_check::{Storing, Trouble},
    open::Opened,
};
use crate::{
    commands::{backoff::Backoff, log_once::Lasting, run::state_store::Checkpoint},
    error::{Error, Kind, Result},
    flow::{
        lane::{BATCH_MAX, Lane},
        streamer::LaneSettings,
    },
    nats::{codes, control::ApiError, tail::CREATED_TOLERANCE_NS},
};

/// See the module.
pub struct Driver {
    pub phase: Phase,
    /// The group of connections that it is of, once it was reached by rows.
    pub group: Option<usize>,
    /// The servers that the rules of its events name.
    pub servers: String,
    /// What the lane was last opened by.
    pub settings: Option<LaneSettings>,
    /// The rows as they are lead to it.
    pub is_wanted: bool,
    pub backoff: Backoff,
    /// The last failure told, so that the log does not repeat it at every attempt.
    pub logged: Lasting,
    /// How many events are in line.
    pub in_line: usize,
    /// Where the stream was last seen to stand, by this run or an earlier one.
    pub known: Option<Checkpoint>,
    pub created_ns: i64,
    /// Of core NATS: its servers were reached in this session.
    pub reached_core: bool,
    /// How many messages the server takes as one batch, as far as it has told.
    pub batch_max: usize,
    /// What of its row's `transactions` and `durability` its stream cannot do.
    pub falls_back: Option<String>,
    /// An answer has come since that was looked at.
    pub answered: bool,
    /// A refusal has come since that was looked at.
    pub trouble: Option<Error>,
    /// Refusals of its stream, by JetStream's code.
    pub refusals: BTreeMap<u64, u64>,
    /// Its claim check on the way into the object store, and what went wrong with it before.
    pub storing: Option<Storing>,
    pub storing_trouble: Trouble,
    /// The oldest event that waits for its answer, and since when.
    waiting: Option<(u64, Instant)>,
    /// The oldest event in line, through whatever failures, and since when it is.
    front: Option<(u64, Instant)>,
}

/// What `walhook check` calls a failure of NATS.
pub fn nats_name(error: &Error, otherwise: &'static str) -> &'static str {
    let by_code = || codes::finding(error.cause_as::<ApiError>()?.err_code);
    let by_kind = || (error.kind() == Kind::Permission).then_some("nats_permissions");
    error.name().or_else(by_code).or_else(by_kind).unwrap_or(otherwise)
}

/// See [`Driver`].
pub enum Phase {
    /// Nothing leads to the lane any more, and nothing is in it.
    Absent,
    /// Until its connection stands, and at least until then.
    Waiting(Pin<Box<Sleep>>),
    Opening(Pin<Box<dyn Future<Output = Result<Opened>>>>),
    Running,
    /// Closed; answers may still come.
    Settling(Pin<Box<Sleep>>),
}

impl Driver {
    pub fn new(servers: &str, known: Option<Checkpoint>) -> Driver {
        Driver {
            phase: Phase::Absent,
            group: None,
            servers: servers.to_owned(),
            settings: None,
            is_wanted: true,
            backoff: Backoff::default(),
            logged: Lasting::default(),
            in_line: 0,
            known,
            created_ns: 0,
            reached_core: false,
            batch_max: BATCH_MAX,
            falls_back: None,
            answered: false,
            trouble: None,
            refusals: BTreeMap::new(),
            storing: None,
            storing_trouble: Trouble::default(),
            waiting: None,
            front: None,
        }
    }

    /// For how long nothing of its lane has been settled that could be.
    pub fn stands_still(&mut self, lane: &Lane) -> Duration {
        self.in_line = lane.len();
        match (self.front, lane.in_flight()) {
            (Some((known, since)), Some(front)) if known == front => since.elapsed(),
            (_, front) => {
                self.front = front.map(|front| (front, Instant::now()));
                Duration::ZERO
            }
        }
    }

    /// Whether its lane has a part in the connection: bytes go out, answers are taken. Not while a tail is read, which
    /// may be older than an answer.
    pub fn is_on_line(&self) -> bool {
        matches!(self.phase, Phase::Running | Phase::Settling(_))
    }

    /// To be opened, after `wait` and when its connection stands.
    pub fn wait(&mut self, wait: Duration) {
        self.phase = Phase::Waiting(Box::pin(sleep(wait)));
        self.waiting = None;
        self.trouble = None;
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
    pub fn leads_with(&self, other: &Driver) -> bool {
        self.created_ns != 0 && self.created_ns == other.created_ns
    }

    /// Whether it leads elsewhere than `other` for certain: otherwise their events may have to go in one order.
    pub fn leads_elsewhere(&self, other: &Driver) -> bool {
        if self.reached_core && other.reached_core {
            return true;
        }
        let seen = |driver: &Driver| {
            let known = driver.known.as_ref().map(|known| known.created_ns);
            Some(driver.created_ns).filter(|&created| created != 0).or(known)
        };
        // Two streams may be made at the same moment on two servers; a checkpoint has that moment to the microsecond.
        let tolerance = if self.created_ns != 0 && other.created_ns != 0 { 0 } else { CREATED_TOLERANCE_NS };
        matches!((seen(self), seen(other)), (Some(here), Some(there)) if here.abs_diff(there) > tolerance)
    }

    /// Notes what its stream cannot do, and logs it when that is news.
    pub fn set_falls_back(&mut self, falls_back: Option<String>) {
        if let Some(text) = falls_back.as_ref().filter(|_| self.falls_back != falls_back) {
            tracing::warn!("{text}");
        }
        self.falls_back = falls_back;
    }

    /// Logs a failure unless it is the one logged last, or that was a while ago.
    pub fn tell(&mut self, error: &Error) {
        self.logged.warn(nats_name(error, "nats_jetstream"), &error.to_string(), self.in_line);
    }

    /// Counts a refusal by its code.
    pub fn refused(&mut self, code: u64) {
        *self.refusals.entry(code).or_default() += 1;
    }

    /// Whether the oldest message has waited longer than that.
    pub fn is_overdue(&mut self, lane: &Lane, ack_timeout: Duration) -> bool {
        let Some(oldest) = lane.oldest().filter(|_| lane.awaits_answers()) else { return false };
        match self.waiting {
            Some((waiting, since)) if waiting == oldest => since.elapsed() >= ack_timeout,
            _ => {
                self.waiting = Some((oldest, Instant::now()));
                false
            }
        }
    }
}
