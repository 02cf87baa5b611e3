//! Opening a lane: what its stream is asked before anything is published, one question after the other.
//!
//! In: the stream's row, what is known of the lane and its server, and the answers. Out: the next question; at last the stream's
//! end, what of it we may trust, and what of the row the stream cannot do. Always holds: nothing is published before the stream's
//! end was read and examined, and no stream is claimed that has another history's events.

use super::trust::{self, RunIdentity, Stranger, StreamEnd};
use crate::{
    error::{Error, Kind, Result},
    flow::{
        event_id::EventPosition,
        lane::{BATCH_MAX, Listing, Tail},
        streamer::LaneSettings,
    },
    route::tables::StreamRow,
    wal::lsn::Lsn,
};

use super::{Flaw, ServerFacts};

/// A question to the servers.
#[derive(Debug, Clone)]
pub enum Question {
    /// Whether another run of this database, or of a copy, streams to this account. Answered by [`Reply::Done`].
    OtherRuns,
    /// Make the stream what the row says; without `is_current`, which a row of now is, a stream that exists is left as it is.
    /// Answered by [`Reply::Stream`].
    Ensure {
        /// The row.
        row: Box<StreamRow>,
        /// See above.
        is_current: bool,
    },
    /// The stream as it is, whose row wants what JetStream does not allow. Answered by [`Reply::Stream`].
    LookUp {
        /// The row.
        row: Box<StreamRow>,
    },
    /// Whether the database has noted this stream, which nobody owns. Answered by [`Reply::Done`].
    IsNoted {
        /// The name of the NATS configuration.
        config_name: String,
        /// The stream's name.
        stream: String,
        /// When it was created.
        created_ns: i64,
    },
    /// Make the stream ours, which nobody owns. Answered by [`Reply::Claimed`].
    Claim {
        /// The name of the NATS configuration.
        config_name: String,
        /// The stream's name.
        stream: String,
        /// When it was created.
        created_ns: i64,
    },
    /// Where the stream ends. Answered by [`Reply::End`].
    End {
        /// The stream's name.
        stream: String,
        /// Where our last message was last seen, and when its stream was created.
        place: Option<(u64, i64)>,
        /// Its order rests on our last message.
        is_strict: bool,
        /// The lane is opened by it.
        is_last: bool,
        /// [`Question::List`] follows.
        lists: bool,
    },
    /// The events of ours that `listing` asks for, up to the end that was read. Answered by [`Reply::Listed`].
    List {
        /// The stream's name.
        stream: String,
        /// Which events.
        listing: Listing,
        /// Where our last message was last seen.
        place: Option<u64>,
        /// The first and the last sequence.
        range: (u64, u64),
    },
}

/// An answer to a [`Question`].
#[derive(Debug)]
pub enum Reply {
    /// Yes.
    Done,
    /// What the stream is like.
    Stream(Box<StreamFacts>),
    /// It is ours now; what there is to say of it.
    Claimed(Vec<String>),
    /// Where it ends.
    End(StreamEnd),
    /// Events, in any order.
    Listed(Vec<EventPosition>),
}

/// What a stream is like.
#[derive(Debug, Clone, Default)]
pub struct StreamFacts {
    /// When it was created.
    pub created_ns: i64,
    /// The subjects that it takes.
    pub subjects: Vec<String>,
    /// The largest message it takes, where it is stricter than the server.
    pub max_msg_size: Option<usize>,
    /// It is gone when its servers stop.
    pub is_in_memory: bool,
    /// It takes atomic batches.
    pub allows_batches: bool,
    /// Its metadata names no owner.
    pub is_unclaimed: bool,
    /// What is allowed but unwise.
    pub warnings: Vec<String>,
}

/// What is known before, and of the server.
#[derive(Debug)]
pub struct Known {
    /// No event of ours is beyond it.
    pub server_wal: Lsn,
    /// See [`crate::flow::lane::Lane::listing`].
    pub listing: Option<Listing>,
    /// Where our last message was last seen, and when its stream was created.
    pub place: Option<(u64, i64)>,
    pub server: ServerFacts,
    /// How many messages the server takes as one, as far as it has said.
    pub batch_max: usize,
}

/// What the stream shows.
#[derive(Debug)]
pub struct Opened {
    pub tail: Tail,
    /// See [`StreamEnd::stranger`].
    pub stranger: Option<Stranger>,
    pub created_ns: i64,
    pub warnings: Vec<String>,
    pub is_in_memory: bool,
    /// What of `transactions` and `durability` this stream cannot do, and why.
    pub falls_back: Option<String>,
}

/// See the module.
#[derive(Debug)]
pub struct Opening {
    settings: LaneSettings,
    known: Known,
    step: Step,
    facts: StreamFacts,
    warnings: Vec<String>,
    /// Some question found no JetStream where the row leads.
    pub no_jetstream: bool,
}

/// The question that has no answer yet.
#[derive(Debug)]
enum Step {
    OtherRuns,
    /// Other runs could not be asked for, or there is one: what the stream itself shows says it more exactly.
    EndAfter(Error),
    Ensure,
    LookUp(Error),
    EndBeforeClaim,
    IsNoted,
    Claim,
    End,
    List(StreamEnd),
}

/// What follows from an answer.
#[derive(Debug)]
pub enum Next {
    Ask(Question),
    Opened(Box<Opened>),
}

impl Opening {
    /// The first question of a new opening.
    pub fn begin(settings: LaneSettings, known: Known) -> (Opening, Question) {
        let (facts, warnings) = (StreamFacts::default(), Vec::new());
        let opening = Opening { settings, known, step: Step::OtherRuns, facts, warnings, no_jetstream: false };
        (opening, Question::OtherRuns)
    }

    /// Takes the answer to the last question.
    ///
    /// # Errors
    /// The lane is not opened.
    pub fn take(&mut self, reply: Result<Reply>, run: &RunIdentity, has: impl Fn(Flaw) -> bool) -> Result<Next> {
        match (std::mem::replace(&mut self.step, Step::End), reply) {
            (Step::OtherRuns, Ok(_)) => Ok(self.ensure()),
            (Step::OtherRuns, Err(error)) => Ok(self.other_runs_not_asked(error)),
            (Step::EndAfter(error), reply) => {
                if let Ok(Reply::End(end)) = reply {
                    self.judge(&end, run, has)?;
                }
                Err(error)
            }
            // The row wants what JetStream does not allow. Where the stream exists, events flow into it as it is.
            (Step::Ensure, Err(error)) if error.kind() == Kind::Config => {
                Ok(self.ask(Step::LookUp(error), Question::LookUp { row: Box::new(self.row()) }))
            }
            (Step::LookUp(error), Ok(Reply::Stream(facts))) => {
                self.warnings.push(error.to_string());
                Ok(self.is_there(*facts))
            }
            (Step::LookUp(_), Err(error)) if error.kind() == Kind::Untrusted => Err(error),
            (Step::LookUp(error), _) => Err(error),
            (_, Err(error)) => Err(error),
            (Step::Ensure, Ok(Reply::Stream(facts))) => Ok(self.is_there(*facts)),
            (Step::EndBeforeClaim, Ok(Reply::End(end))) => {
                let has_ours = self.judge(&end, run, has)?.is_some();
                Ok(self.claim(has_ours, run))
            }
            (Step::IsNoted, Ok(_)) => Ok(self.ask_end(Step::End)),
            (Step::Claim, Ok(Reply::Claimed(warnings))) => {
                self.warnings.extend(warnings);
                Ok(self.ask_end(Step::End))
            }
            (Step::End, Ok(Reply::End(end))) => {
                self.judge(&end, run, has)?;
                Ok(self.list(end))
            }
            (Step::List(end), Ok(Reply::Listed(listed))) => Ok(Next::Opened(Box::new(self.opened(end, listed)))),
            (step, Ok(reply)) => Err(Error::protocol(format!("open a lane: {reply:?} is no answer to {step:?}"))),
        }
    }

    fn ask(&mut self, step: Step, question: Question) -> Next {
        self.step = step;
        Next::Ask(question)
    }

    /// The stream's row, without what the server does not know.
    fn row(&self) -> StreamRow {
        let mut row = self.settings.stream.clone();
        if !self.known.server.knows_batches {
            row.transactions = None;
        }
        if !self.known.server.shares_syncs {
            row.durability = None;
        }
        row
    }

    fn stream(&self) -> String {
        self.settings.stream.stream_name.clone()
    }

    fn other_runs_not_asked(&mut self, error: Error) -> Next {
        match error.kind() {
            Kind::Permission => {
                self.warnings.push(format!(
                    "walhook cannot check whether a copy of this database (a base backup) publishes as well: {error}"
                ));
                self.ensure()
            }
            // What else is wrong with JetStream the stream itself shows.
            Kind::Config => self.ensure(),
            _ => self.ask_end(Step::EndAfter(error)),
        }
    }

    fn ensure(&mut self) -> Next {
        let (row, is_current) = (Box::new(self.row()), self.settings.is_current);
        self.ask(Step::Ensure, Question::Ensure { row, is_current })
    }

    fn is_there(&mut self, facts: StreamFacts) -> Next {
        self.warnings.extend(facts.warnings.iter().cloned());
        self.facts = facts;
        self.ask_end(if self.facts.is_unclaimed { Step::EndBeforeClaim } else { Step::End })
    }

    fn ask_end(&mut self, step: Step) -> Next {
        let question = Question::End {
            stream: self.stream(),
            place: self.known.place,
            is_strict: !self.settings.stream.is_shared(),
            is_last: matches!(step, Step::End),
            lists: self.known.listing.is_some(),
        };
        self.ask(step, question)
    }

    fn judge(
        &self,
        end: &StreamEnd,
        run: &RunIdentity,
        has: impl Fn(Flaw) -> bool,
    ) -> Result<Option<(EventPosition, u64)>> {
        let mut end = *end;
        if let Some(ours) = end.ours.as_mut().filter(|_| has(Flaw::IgnoreNewerRun)) {
            ours.epoch = ours.epoch.min(run.epoch);
        }
        let run = match has(Flaw::IgnoreFork) {
            true => &RunIdentity { fork: None, ..run.clone() },
            false => run,
        };
        trust::judge_end(&end, &self.settings.stream.stream_name, run, self.known.server_wal)
    }

    /// Makes a stream ours whose metadata says nothing yet: one that was made by hand, or by walhook before databases had
    /// identities. Where it has events of this source, the database has to know of it.
    fn claim(&mut self, has_ours: bool, run: &RunIdentity) -> Next {
        let (config_name, stream) = (self.settings.config.config_name.clone(), self.stream());
        let created_ns = self.facts.created_ns;
        if has_ours && !trust::is_known(run, self.known.place.map(|(_, created_ns)| created_ns), created_ns) {
            return self.ask(Step::IsNoted, Question::IsNoted { config_name, stream, created_ns });
        }
        self.ask(Step::Claim, Question::Claim { config_name, stream, created_ns })
    }

    fn list(&mut self, end: StreamEnd) -> Next {
        let Some(listing) = self.known.listing else { return Next::Opened(Box::new(self.opened(end, Vec::new()))) };
        let place = self.known.place.map(|(sequence, _)| sequence);
        let (stream, range) = (self.stream(), (end.first_sequence, end.last_sequence));
        self.ask(Step::List(end), Question::List { stream, listing, place, range })
    }

    fn opened(&mut self, end: StreamEnd, listed: Vec<EventPosition>) -> Opened {
        let facts = &self.facts;
        let takes_batches = facts.allows_batches && self.row().wants_batches();
        let ours = end.ours.map(|ours| (ours.position, ours.sequence));
        let tail = Tail {
            last_sequence: end.last_sequence,
            ours,
            in_stream: ours,
            listing: self.known.listing,
            listed,
            subjects: facts.subjects.clone(),
            max_payload: self.known.server.max_payload.min(facts.max_msg_size.unwrap_or(usize::MAX)),
            batch_max: if takes_batches { self.known.batch_max } else { 1 },
        };
        Opened {
            tail,
            stranger: end.stranger,
            created_ns: end.created_ns,
            warnings: std::mem::take(&mut self.warnings),
            is_in_memory: facts.is_in_memory,
            falls_back: falls_back(&self.settings.stream, &self.known, takes_batches, facts.is_in_memory),
        }
    }
}

/// What of the row's `transactions` and `durability` is not so, and why.
fn falls_back(row: &StreamRow, known: &Known, takes_batches: bool, is_in_memory: bool) -> Option<String> {
    let Known { server: ServerFacts { version, knows_batches, shares_syncs, .. }, batch_max, .. } = known;
    let disallowed = "it does not allow atomic batches, and walhook may not change that (allow_atomic)";
    let mut missing = Vec::new();
    if row.transactions.as_deref() == Some("atomic") {
        if !knows_batches {
            missing.push(format!(
                "transactions = 'atomic' does not hold, events are published one by one: nats-server {version} has no atomic \
                 batches that walhook can use, 2.12.1 has"
            ));
        } else if !takes_batches {
            missing
                .push(format!("transactions = 'atomic' does not hold, events are published one by one: {disallowed}"));
        } else if *batch_max < BATCH_MAX {
            missing.push(format!(
                "transactions = 'atomic' holds up to {batch_max} events: its server takes no larger batches \
                 (limits.max_batch_size)"
            ));
        }
    }
    if row.durability.as_deref() == Some("fsync") {
        if is_in_memory {
            missing.push("durability = 'fsync' has no effect: the stream is in memory".to_owned());
        } else if !shares_syncs {
            missing.push(format!(
                "durability = 'fsync' gains nothing: nats-server {version} syncs each message by itself, 2.15.0 a whole batch"
            ));
        } else if !takes_batches {
            missing.push(format!("durability = 'fsync' falls back to single messages: {disallowed}"));
        }
    }
    (!missing.is_empty()).then(|| format!("stream {:?}: {}", row.stream_name, missing.join("; ")))
}
