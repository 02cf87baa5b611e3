//! Bytes between the lanes and their sockets, as far as the sockets allow: what goes where is the driver's matter.

use std::task::{Context, Poll};

use crate::{
    commands::run::faults::{self, Point},
    error::{Error, Result},
    flow::{
        driver::{Answer, ConnectionId, Driver, Event, Meaning, Moment, StreamId},
        streamer::Streamer,
    },
    nats::{
        ack::Ack,
        codes::{self, Publish},
        handshake,
        publish::{Inbox, Publisher},
    },
};

/// Bytes read from one connection before the others have their turn.
const READS_AT_A_TIME: usize = 8;

/// Why moving bytes has ended.
pub enum Ended {
    /// The connection is of no more use.
    Lost(Error),
    /// The run cannot go on.
    Run(Error),
}

impl From<Error> for Ended {
    fn from(error: Error) -> Ended {
        Ended::Lost(error)
    }
}

/// Moves bytes out and answers in. Returns whether there is more to send since.
pub fn exchange(
    cx: &mut Context<'_>,
    now: Moment,
    driver: &mut Driver,
    connection: ConnectionId,
    publisher: &mut Publisher,
    streamer: &mut Streamer,
) -> Result<bool, Ended> {
    send(cx, driver, connection, publisher, streamer)?;
    if let Poll::Ready(Err(error)) = publisher.poll_flush(cx) {
        return Err(publisher.last_words(cx, error).into());
    }
    let mut again = false;
    for _ in 0..READS_AT_A_TIME {
        match publisher.poll_read(cx)? {
            Poll::Ready(()) => driver.received(connection),
            Poll::Pending => return Ok(again),
        }
        publisher.answers(|answer| {
            let lane = usize::try_from(answer.inbox).ok().and_then(|inbox| inbox.checked_sub(1)).map(StreamId);
            let Some(lane) = lane.filter(|&lane| driver.takes_answers(lane)) else { return Ok(()) };
            faults::reach(Point::Acked)?;
            again |= driver.answer(connection, lane, answer.token, answer_of(answer.ack), streamer);
            Ok(())
        })?;
        if publisher.take_limit_changed() {
            let event = Event::LimitChanged(connection, publisher.info().max_payload);
            again |= driver.handle(now, event, streamer).map_err(Ended::Run)?;
        }
        if let Some(text) = publisher.take_forbidden() {
            let (refusal, target) = (handshake::refusal(&text), publisher.target().to_owned());
            let event = Event::Forbidden { connection, refusal, target };
            again |= driver.handle(now, event, streamer).map_err(Ended::Run)?;
            if !driver.is_connected(connection) {
                return Ok(again);
            }
        }
        if publisher.take_pong() {
            again |= driver.handle(now, Event::Pong(connection), streamer).map_err(Ended::Run)?;
        }
    }
    // More may be waiting: come back after the others had their turn.
    cx.waker().wake_by_ref();
    Ok(again)
}

fn send(
    cx: &mut Context<'_>,
    driver: &mut Driver,
    connection: ConnectionId,
    publisher: &mut Publisher,
    streamer: &mut Streamer,
) -> Result<()> {
    let mut is_published = false;
    let sent = driver.send(connection, streamer, |bytes, begins| {
        publisher.set_between(begins);
        if begins {
            if std::mem::take(&mut is_published) {
                faults::reach(Point::Published)?;
            }
            faults::reach(Point::Publish)?;
        }
        match publisher.poll_write(cx, faults::at_a_time(bytes)) {
            Poll::Ready(Ok(count)) => {
                is_published = true;
                Ok(Some(count))
            }
            Poll::Ready(Err(error)) => Err(publisher.last_words(cx, error)),
            Poll::Pending => Ok(None),
        }
    })?;
    publisher.set_between(sent.is_between);
    if is_published && sent.is_between {
        faults::reach(Point::Published)?;
    }
    for _ in 0..sent.pings {
        publisher.ping();
    }
    Ok(())
}

fn answer_of(ack: Ack) -> Answer {
    match ack {
        Ack::Stored { sequence, duplicate } => Answer::Stored { sequence, duplicate },
        Ack::Refused { code, description } => {
            let meaning = match codes::publish(code) {
                Publish::Place => Meaning::Place,
                Publish::Wait => Meaning::Wait,
                Publish::Event => Meaning::Event,
                Publish::TooLarge => Meaning::TooLarge,
                Publish::OneByOne => Meaning::OneByOne,
                Publish::SmallerBatches => Meaning::SmallerBatches,
            };
            Answer::Refused { code, meaning, finding: codes::finding(code), description }
        }
        Ack::NoResponders => Answer::NoResponders,
    }
}

/// Where a lane's answers come: the number of its subscription is one more than its own.
pub fn inbox(lane: StreamId, streamer: &Streamer) -> Inbox {
    Inbox { id: lane.0 as u64 + 1, subject: streamer.lane_inbox(lane.0) }
}
