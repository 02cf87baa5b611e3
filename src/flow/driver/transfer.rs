//! Bytes out and answers in: which lane of a connection writes next, and what an answer means to its lane.
//!
//! In: what the socket takes, answers with the lane whose inbox they came to. Out: bytes of the lanes, in turns of whole messages.
//! Nothing is copied and nothing is allocated for a message that is stored.

use super::{ConnectionId, Driver, Report, StreamId, queue_state::QueueState};
use crate::{
    error::{Error, Result},
    flow::{lane::Refusal, streamer::Streamer},
};

/// The status of a message that nobody takes; no code of JetStream is below 10000.
pub const NO_RESPONDERS: u64 = 503;

/// An answer to a message.
#[derive(Debug)]
pub enum Answer {
    /// It is stored at this sequence; `duplicate`: it was before.
    Stored {
        /// Of the stream.
        sequence: u64,
        /// By its message id.
        duplicate: bool,
    },
    /// It is not.
    Refused {
        /// JetStream's `err_code`; 0 where there is none.
        code: u64,
        /// What that means.
        meaning: Meaning,
        /// The name of `walhook check` for it, where it has one.
        finding: Option<&'static str>,
        /// The server's words.
        description: String,
    },
    /// Nobody listens on the subject: no stream takes it, or JetStream is not there.
    NoResponders,
}

/// What a refused publish means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// Nothing was stored for its place: the stream's end tells how to go on.
    Place,
    /// Not now: the stream is opened again, and what was refused is sent again, after ever longer waits.
    Wait,
    /// This event only, for good.
    Event,
    /// This event only, for its size.
    TooLarge,
    /// The messages of this batch go one by one.
    OneByOne,
    /// Smaller batches from here on.
    SmallerBatches,
}

/// What was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// It ends with a whole message.
    pub is_between: bool,
    /// So many PINGs are to follow.
    pub pings: usize,
}

impl Driver {
    /// Whether a connection stands.
    pub fn is_connected(&self, connection: ConnectionId) -> bool {
        let links = self.groups.get(connection.group.0).map_or(&[][..], |group| &group.links);
        links.get(connection.link).is_some_and(|link| link.server.is_some())
    }

    /// Whether a lane takes answers now.
    pub fn takes_answers(&self, lane: StreamId) -> bool {
        self.lanes.get(lane.0).is_some_and(QueueState::is_on_line)
    }

    /// Gives the next bytes of a connection's lanes to `write`, again and again: what the socket took of them, or `None` where it
    /// takes no more now. `write` is told whether a message begins there.
    ///
    /// # Errors
    /// Those of `write`: [`super::Event::Lost`] is to follow.
    pub fn send(
        &mut self,
        connection: ConnectionId,
        streamer: &mut Streamer,
        mut write: impl FnMut(&[u8], bool) -> Result<Option<usize>>,
    ) -> Result<Sent> {
        let group = &mut self.groups[connection.group.0];
        let (is_core, link) = (group.is_core, &mut group.links[connection.link]);
        for lane in &link.lanes {
            streamer.lane_mut(lane.0).set_careful(link.careful > 0);
        }
        let mut had_nothing = 0;
        while had_nothing < link.lanes.len() {
            let is_begun = |lane: &StreamId| streamer.lane(lane.0).has_begun();
            if link.careful > 0 && !link.is_within && link.lanes.iter().any(is_begun) {
                break;
            }
            let lane = link.lanes[link.turn];
            let queue = streamer.lane_mut(lane.0);
            let bytes = if self.lanes[lane.0].is_on_line() { queue.unsent() } else { &[] };
            if bytes.is_empty() {
                // A message that is begun and held back is waited for.
                if link.is_within {
                    break;
                }
                link.turn = (link.turn + 1) % link.lanes.len();
                had_nothing += 1;
                continue;
            }
            let Some(count) = write(bytes, !link.is_within)? else { break };
            queue.mark_sent(count);
            link.is_within = !queue.is_between_messages();
            if !link.is_within {
                link.turn = (link.turn + 1) % link.lanes.len();
            }
            had_nothing = 0;
        }
        let mut pings = 0;
        if is_core && !link.is_within {
            for lane in &link.lanes {
                let queue = streamer.lane_mut(lane.0);
                if self.lanes[lane.0].is_on_line() && queue.wants_ping() {
                    queue.pinged();
                    pings += 1;
                }
            }
        }
        Ok(Sent { is_between: !link.is_within, pings })
    }

    /// Something has come from the server of a connection.
    pub fn received(&mut self, connection: ConnectionId) {
        self.groups[connection.group.0].links[connection.link].last_received = Some(self.now);
    }

    /// An answer for a lane that takes answers. Returns whether there is more to send since.
    pub fn answer(
        &mut self,
        connection: ConnectionId,
        lane: StreamId,
        token: &[u8],
        answer: Answer,
        streamer: &mut Streamer,
    ) -> bool {
        if !self.takes_answers(lane) || !self.take_answer(lane, token, answer, streamer) {
            return false;
        }
        let link = &mut self.groups[connection.group.0].links[connection.link];
        link.worked = true;
        let was_careful = link.careful > 0;
        link.careful = link.careful.saturating_sub(1);
        was_careful
    }

    /// The server of core NATS has taken in what was sent before a PING. Returns whether there is more to send since.
    pub(super) fn pong(&mut self, connection: ConnectionId, streamer: &mut Streamer) -> bool {
        let link = &mut self.groups[connection.group.0].links[connection.link];
        let mut again = false;
        for lane in &link.lanes {
            if streamer.lane_mut(lane.0).ponged() {
                link.careful = link.careful.saturating_sub(1);
                link.worked = true;
                self.lanes[lane.0].answered = true;
                again = true;
            }
        }
        again
    }

    /// Returns whether the message is stored.
    fn take_answer(&mut self, lane: StreamId, token: &[u8], answer: Answer, streamer: &mut Streamer) -> bool {
        let queue = streamer.lane_mut(lane.0);
        let (refusal, finding) = match answer {
            Answer::Stored { sequence, duplicate } => match queue.acked(token, sequence, duplicate) {
                Ok(()) => {
                    self.lanes[lane.0].answered = true;
                    if duplicate && queue.removed() == 1 {
                        self.report(Report::Removed(lane, sequence));
                    }
                    return true;
                }
                Err(refusal) => (refusal, None),
            },
            Answer::Refused { code, meaning, finding, description } => {
                let refusal = self.refusal(lane, code, meaning, description, queue.stream());
                (refusal, finding)
            }
            Answer::NoResponders => {
                self.lanes[lane.0].refused(NO_RESPONDERS);
                (Refusal::NotNow("no stream takes its subject, or JetStream is away".to_owned()), None)
            }
        };
        let has_changed = queue.refused(token, &refusal);
        let trouble = &mut self.lanes[lane.0].trouble;
        if trouble.is_none() && (has_changed || refusal == Refusal::WrongSequence) {
            let why = match refusal {
                Refusal::WrongSequence => "another last sequence than expected".to_owned(),
                Refusal::DuplicateInBatch => {
                    "a message id in its batch is known already, so this transaction goes message by message and is not atomic"
                        .to_owned()
                }
                Refusal::Never(why) | Refusal::TooLarge(why) | Refusal::NotNow(why) => why,
            };
            let stream = queue.stream();
            let text = format!("stream {stream:?} refused a message: {why}; reading its tail to go on from there");
            *trouble = Some(Error::unavailable(text).named(finding));
        }
        false
    }

    /// What a refusal means to a lane; it is counted by its code.
    fn refusal(&mut self, lane: StreamId, code: u64, meaning: Meaning, description: String, stream: &str) -> Refusal {
        let state = &mut self.lanes[lane.0];
        state.refused(code);
        match meaning {
            Meaning::Place => Refusal::WrongSequence,
            Meaning::OneByOne => Refusal::DuplicateInBatch,
            Meaning::SmallerBatches => {
                // That smaller ones are wanted the code says; how small, its words: they end with the server's limit. Without
                // them it is found by halves.
                let limit = description.rsplit(' ').next().and_then(|limit| limit.parse().ok());
                // A batch that was under way when the limit became known is refused as well, which says nothing new.
                let limit = limit.filter(|limit| *limit <= state.batch_max);
                state.batch_max = limit.unwrap_or(state.batch_max / 2).max(1);
                Refusal::NotNow(format!("{description} ({code})"))
            }
            Meaning::TooLarge => Refusal::TooLarge(format!("stream {stream} refuses it: {description}")),
            Meaning::Event => Refusal::Never(format!("stream {stream} refuses it: {description}")),
            Meaning::Wait => Refusal::NotNow(format!("{description} ({code})")),
        }
    }
}
