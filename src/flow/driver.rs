//! The driver of publishing: when to connect, when to open a lane, what to ask its stream, whether to trust what it shows, and
//! what follows from whatever went wrong.
//!
//! In: events (an attempt to connect has ended, a stream's end was read, answers have come …), each with its time. Out: actions
//! ([`Driver::next_action`]), the next bytes for each connection ([`Driver::send`]), and when to look again ([`Driver::wakes_at`]).
//! One remedy for every failure: close the lane, let its answers settle, read the stream's end, go on behind it from the window.
//! A configuration that cannot be reached keeps its own lanes waiting, and the slot; the lanes of others flow. Always holds: at
//! most one task of a kind is under way for a lane or a group, and an answer to an abandoned one changes nothing.
//!
//! Knows no socket, no clock and no chance: `commands/run/lanes` executes its actions on real servers, the simulation on models
//! of them. In its folder: the connections of one configuration ([`group`]), the state of one lane ([`queue_state`]), the questions
//! before a lane is opened ([`opening`]), whether to trust a stream ([`trust`]), several addresses of one server ([`servers`]), other
//! runs of this database ([`other_runs`]).

pub mod backoff;
mod claim_checks;
mod follow;
mod group;
mod look_after;
mod opening;
mod other_runs;
mod queue_state;
mod schemas;
mod servers;
mod state;
mod transfer;
pub mod trust;
mod turns;

use std::{collections::VecDeque, time::Duration};

use super::{event_id::EventPosition, lane::claim_check::Claim, streamer::Streamer};
use crate::{
    error::{Error, Kind, Result},
    route::tables::ServerAlias,
    wal::lsn::Lsn,
};
use backoff::{Backoff, Chance};
use group::Group;
pub use group::ServerFacts;
pub use opening::{Question, Reply, StreamFacts};
pub use other_runs::RunsAnswer;
use queue_state::{Phase, QueueState};
pub use servers::Found;
pub use state::GroupState;
pub use transfer::{Answer, Meaning, NO_RESPONDERS, Sent};
use trust::{Checkpoint, RunIdentity};

/// A lane, by its number in the streamer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub usize);

/// The connections of one configuration to the same servers, for JetStream or for core NATS; by a number that stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub usize);

/// A publishing connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId {
    /// Whose it is.
    pub group: GroupId,
    /// Which of its connections.
    pub link: usize,
}

/// A moment by a clock that only goes forward, in µs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Moment(pub u64);

impl Moment {
    /// So much later.
    #[must_use]
    pub fn after(self, wait: Duration) -> Moment {
        Moment(self.0.saturating_add(u64::try_from(wait.as_micros()).unwrap_or(u64::MAX)))
    }

    /// How long ago `earlier` was.
    pub fn since(self, earlier: Moment) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// An answer.
    pub ack_timeout: Duration,
    /// The answers that are under way when a lane is closed, before the stream's end is read without them.
    pub settle: Duration,
    /// How much longer than an answer may take a lane may stand still before others do not wait for it any more.
    pub away: Duration,
    /// A connection that stood so long worked, whether or not anything was published.
    pub worked: Duration,
    /// The first and the longest wait between two attempts with a lane.
    pub retry: (Duration, Duration),
    /// The wait between two attempts to connect where the row names none, and where it names none at all, so that a server is not
    /// hammered.
    pub reconnect: (Duration, Duration),
}

impl Timing {
    /// The waits between attempts with a lane.
    fn backoff(&self) -> Backoff {
        Backoff::new(self.retry.0, self.retry.1)
    }

    /// As a real server is treated.
    pub fn with(ack_timeout: Duration, retry: (Duration, Duration)) -> Timing {
        Timing {
            ack_timeout,
            settle: Duration::from_secs(1),
            away: Duration::from_secs(5),
            worked: Duration::from_secs(10),
            retry,
            reconnect: (Duration::from_millis(2000), Duration::from_millis(10)),
        }
    }
}

/// What a driver is made with.
#[derive(Debug)]
pub struct Settings {
    /// The run.
    pub run: RunIdentity,
    /// How long things may take.
    pub timing: Timing,
    /// What is acknowledged stays in the slot for a while.
    pub delays_confirming: bool,
    /// What the server had written when the session began: no event of ours is beyond it and what came since.
    pub server_wal: Lsn,
    /// Where earlier runs saw the streams stand.
    pub checkpoints: Vec<Checkpoint>,
    /// Of the chance that spreads attempts.
    pub seed: u64,
}

/// What has happened.
#[derive(Debug)]
pub enum Event {
    /// A round begins: rows may have changed, time has passed, events have come into the lanes.
    Round,
    /// It is a group's turn.
    Turn(GroupId),
    /// An attempt to connect has made what it was to make.
    Connected {
        /// Whose it was.
        group: GroupId,
        /// There is a connection for JetStream's API now.
        has_api: bool,
        /// The publishing connections, and which lanes' answers each is subscribed to.
        connections: Vec<(ConnectionId, ServerFacts, Vec<StreamId>)>,
    },
    /// An attempt to connect has failed.
    NotConnected(GroupId, Error),
    /// A publishing connection is of no more use.
    Lost {
        /// Which one.
        connection: ConnectionId,
        /// Why.
        error: Error,
        /// The server has closed it over a message.
        violation: Option<Violation>,
    },
    /// The server has said what the connection's user may not do; the connection goes on.
    Forbidden {
        /// Which one.
        connection: ConnectionId,
        /// What it said.
        refusal: Error,
        /// The server's address.
        target: String,
    },
    /// The server takes larger or only smaller messages from here on.
    LimitChanged(ConnectionId, usize),
    /// The server has taken in what was sent to core NATS.
    Pong(ConnectionId),
    /// Bytes and answers of a connection were moved. `eager`: every answer is of note.
    Exchanged {
        /// Which one.
        connection: ConnectionId,
        /// See above.
        eager: bool,
    },
    /// What a group's account says of other runs.
    RunsAsked(GroupId, RunsAnswer),
    /// The answer to [`Action::Ask`]. `no_jetstream`: there is none where the row leads.
    Replied {
        /// Whose opening it belongs to.
        lane: StreamId,
        /// What came of it.
        reply: Result<Reply>,
        /// See above.
        no_jetstream: bool,
    },
    /// What came of [`Action::Store`].
    Stored {
        /// Whose payload it was.
        lane: StreamId,
        /// The number of its event.
        number: u64,
        /// Where it is.
        outcome: Result<Claim>,
    },
    /// What came of [`Action::StoreSchema`].
    SchemaStored {
        /// Whose messages name it.
        lane: StreamId,
        /// Its number.
        nth: u64,
        /// It is durable, or why not.
        outcome: Result<()>,
    },
}

/// A message that the server closes the connection over; it does not say which.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// By its size, and not by its subject.
    pub is_size: bool,
    /// The server's words.
    pub text: String,
}

/// What the edge executes besides moving bytes. Each task is answered by one event.
#[derive(Debug)]
pub enum Action {
    /// Make these connections, all or none. Answered by [`Event::Connected`] or [`Event::NotConnected`].
    Connect {
        /// Whose.
        group: GroupId,
        /// The connection for JetStream's API too.
        wants_api: bool,
        /// The publishing connections, each with the lanes whose answers come on it.
        connections: Vec<(ConnectionId, Vec<StreamId>)>,
    },
    /// Close all connections of a group.
    Disconnect(GroupId),
    /// Close its connection for JetStream's API.
    CloseApi(GroupId),
    /// Close a publishing connection.
    Close(ConnectionId),
    /// Answers of this lane come on that connection from here on.
    Subscribe(ConnectionId, StreamId),
    /// Ask a group's account for other runs of this database. Answered by [`Event::RunsAsked`].
    AskRuns(GroupId),
    /// Ask this before the lane is opened. Answered by [`Event::Replied`].
    Ask(StreamId, Box<Question>),
    /// Store the payload of the lane's claim check with this number. Answered by [`Event::Stored`].
    Store(StreamId, u64),
    /// Store the schema with this number that the lane waits for. Answered by [`Event::SchemaStored`].
    StoreSchema(StreamId, u64),
    /// What this task comes to does not count any more.
    Abandon(Task),
    /// For the log and the status.
    Report(Report),
}

/// What is under way at the edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// [`Action::Connect`]
    Connect(GroupId),
    /// [`Action::AskRuns`]
    AskRuns(GroupId),
    /// [`Action::Ask`]
    Ask(StreamId),
    /// [`Action::Store`]
    Store(StreamId),
    /// [`Action::StoreSchema`]
    StoreSchema(StreamId),
}

/// What people may want to know.
#[derive(Debug)]
pub enum Report {
    /// A lane has failed and is tried again.
    StreamFailed(StreamId, Error),
    /// All is well with it again, or its row has changed.
    StreamWell(StreamId),
    /// A group cannot connect, or has lost a connection. `given_up`: after so many attempts in a row, until its row changes.
    GroupFailed {
        /// Which one.
        group: GroupId,
        /// Why.
        error: Error,
        /// See above.
        given_up: Option<u32>,
    },
    /// All is well with it again, or its row has changed.
    GroupWell(GroupId),
    /// JetStream could not be asked for other runs before anything goes to core NATS; it is asked again.
    RunsNotAsked(GroupId, Error),
    /// It has answered.
    RunsAsked(GroupId),
    /// It may not be asked.
    RunsHidden(GroupId, Error),
    /// A payload could not be stored, and is tried again.
    NotStored(StreamId, Error),
    /// The same of a schema that messages of the lane name; they wait for it.
    SchemaNotStored(StreamId, Error),
    /// None of its messages waits for a schema any more that could not be stored.
    SchemasStored(StreamId),
    /// Something to say of a stream.
    Warning(StreamId, String),
    /// What a stream cannot do of its row's `transactions` and `durability`, when that changes.
    FallsBack(String),
    /// Messages were removed from a stream before their acks arrived; this is the sequence of the first.
    Removed(StreamId, u64),
    /// Two addresses of a configuration are one server.
    OneServer(String),
    /// A lane is open behind this end of its stream.
    Opened {
        /// Which one.
        lane: StreamId,
        /// By which connection.
        connection: ConnectionId,
        /// The stream's last sequence.
        last_sequence: u64,
        /// Our last event in it.
        ours: Option<EventPosition>,
    },
    /// A lane to core NATS is open.
    CoreOpened(StreamId, ConnectionId),
}

/// Decisions that a test can have made wrongly, to see that the simulation notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// JetStream and core NATS publish at the same time after a switch.
    BothWaysAtOnce,
    /// A lane to which nothing leads any more stays open, and goes on when something does, without a look at its stream.
    KeepIdleLaneOpen,
    /// A message begins on a connection that was left in the midst of another.
    ReuseTornConnection,
    /// Whatever a stream has lost, it is filled again from where it ends.
    TrustAnyTail,
    /// A stream that was deleted and created again counts as the one that was known.
    TrustRecreated,
    /// A stream to which nothing leads any more is not asked for what it has before that is confirmed.
    LeaveRetiredUnasked,
    /// A lane to which nothing leads any more, and in which nothing is, is retired only when it could be opened.
    RetireInTurn,
    /// A newer run's messages in a stream do not end this run.
    IgnoreNewerRun,
    /// Messages of a history that PostgreSQL has left count as this one's.
    IgnoreFork,
    /// A lane whose answers do not come is not opened again.
    WaitForEver,
    /// A configuration that was given up is not tried again when its row is written.
    GiveUpForGood,
}

/// See the module.
#[derive(Debug)]
pub struct Driver {
    settings: Settings,
    lanes: Vec<QueueState>,
    groups: Vec<Group>,
    actions: VecDeque<Action>,
    now: Moment,
    chance: Chance,
    /// Of the streamer's rules that are followed.
    generation: u64,
    /// A lane was opened or gave something up.
    is_notable: bool,
    /// How often no answer came in time, and how often a publishing connection was lost.
    timeouts: u64,
    losses: u64,
    /// See [`servers`].
    siblings: Vec<(StreamId, Vec<StreamId>)>,
    alias: Option<(ServerAlias, Found, String)>,
    /// Pairs of addresses that were found to lead to one server in this session, and how many of them were written.
    met: Vec<ServerAlias>,
    met_written: usize,
    #[cfg(feature = "fault-points")]
    flaw: Option<Flaw>,
}

impl Driver {
    /// No lane yet; [`Event::Round`] begins.
    pub fn new(settings: Settings) -> Driver {
        Driver {
            chance: Chance::new(settings.seed),
            settings,
            lanes: Vec::new(),
            groups: Vec::new(),
            actions: VecDeque::new(),
            now: Moment::default(),
            generation: 0,
            is_notable: false,
            timeouts: 0,
            losses: 0,
            siblings: Vec::new(),
            alias: None,
            met: Vec::new(),
            met_written: 0,
            #[cfg(feature = "fault-points")]
            flaw: None,
        }
    }

    /// The same with a wrong decision.
    #[cfg(feature = "fault-points")]
    #[must_use]
    pub fn with_flaw(mut self, flaw: Option<Flaw>) -> Driver {
        self.flaw = flaw;
        self
    }

    #[cfg(feature = "fault-points")]
    fn has(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }

    #[cfg(not(feature = "fault-points"))]
    #[allow(clippy::unused_self, reason = "as with the feature")]
    const fn has(&self, _: Flaw) -> bool {
        false
    }

    /// What is to be done next, in this order. To be asked after every event, until there is nothing.
    pub fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Whether a lane was opened or gave something up since that was last asked, or an answer came that is of note.
    pub fn take_notable(&mut self) -> bool {
        std::mem::take(&mut self.is_notable)
    }

    /// When [`Event::Round`] is due again, whatever happens by then.
    pub fn wakes_at(&self) -> Option<Moment> {
        let lanes = self.lanes.iter().filter_map(QueueState::wakes_at);
        let groups = self.groups.iter().filter(|group| group.in_use).filter_map(Group::wakes_at);
        // What is overdue by now waits for something else, and is looked at each time.
        lanes.chain(groups).filter(|at| *at > self.now).min()
    }

    /// Takes an event. Returns whether something has changed, so that it is worth while to give the group another turn.
    ///
    /// # Errors
    /// What only the operator can end: a stream that cannot be trusted, a newer run, no permission.
    pub fn handle(&mut self, now: Moment, event: Event, streamer: &mut Streamer) -> Result<bool> {
        self.now = now;
        match event {
            Event::Round => {
                self.begin(streamer);
                Ok(true)
            }
            Event::Turn(group) => self.turn(group, streamer),
            Event::Connected { group, has_api, connections } => {
                self.connected(group, has_api, connections);
                Ok(true)
            }
            Event::NotConnected(group, error) => self.not_connected(group, error, streamer).map(|()| true),
            Event::Lost { connection, error, violation } => {
                self.lost(connection, error, violation.as_ref(), streamer).map(|()| true)
            }
            Event::Forbidden { connection, refusal, target } => self.forbidden(connection, refusal, &target, streamer),
            Event::LimitChanged(connection, limit) => {
                self.limit_changed(connection, limit, streamer);
                Ok(false)
            }
            Event::Pong(connection) => Ok(self.pong(connection, streamer)),
            Event::Exchanged { connection, eager } => self.look_after(connection, streamer, eager),
            Event::RunsAsked(group, answer) => self.runs_asked(group, answer),
            Event::Replied { lane, reply, no_jetstream } => self.replied(lane, reply, no_jetstream, streamer),
            Event::Stored { lane, number, outcome } => self.stored(lane, number, outcome, streamer),
            Event::SchemaStored { lane, nth, outcome } => self.schema_stored(lane, nth, outcome, streamer),
        }
    }

    /// Whether publishing goes on after this error, for time or a change of the rows may end it.
    fn goes_on_after(&self, error: &Error) -> bool {
        match error.kind() {
            // A row that makes no sense is its own configuration's problem; the others flow.
            Kind::Unavailable | Kind::Config | Kind::Protocol => true,
            // Who is refused everywhere has nothing to wait for.
            Kind::Permission => self.groups.iter().filter(|group| group.in_use).count() > 1,
            Kind::Untrusted | Kind::Fenced => false,
        }
    }

    fn report(&mut self, report: Report) {
        self.actions.push_back(Action::Report(report));
    }

    fn stream_failed(&mut self, lane: StreamId, error: Error) {
        self.lanes[lane.0].is_reported = true;
        self.report(Report::StreamFailed(lane, error));
    }

    fn stream_well(&mut self, lane: StreamId) {
        if std::mem::take(&mut self.lanes[lane.0].is_reported) {
            self.report(Report::StreamWell(lane));
        }
    }

    fn group_well(&mut self, group: GroupId) {
        if std::mem::take(&mut self.groups[group.0].is_reported) {
            self.report(Report::GroupWell(group));
        }
    }

    /// The lane leaves its phase: what was asked for it does not count any more.
    fn set_phase(&mut self, lane: StreamId, phase: Phase) {
        let before = std::mem::replace(&mut self.lanes[lane.0].phase, phase);
        if matches!(before, Phase::Opening(_)) && !matches!(self.lanes[lane.0].phase, Phase::Opening(_)) {
            self.actions.push_back(Action::Abandon(Task::Ask(lane)));
        }
    }

    /// To be opened, after `wait` and when its connection stands.
    fn wait(&mut self, lane: StreamId, wait: Duration) {
        self.set_phase(lane, Phase::Waiting(self.now.after(wait)));
        let state = &mut self.lanes[lane.0];
        state.waiting = None;
        state.trouble = None;
    }

    /// Closed; answers may still come.
    fn settle(&mut self, lane: StreamId) {
        self.set_phase(lane, Phase::Settling(self.now.after(self.settings.timing.settle)));
    }
}
