//! The connections of one configuration: made, kept few, given up where its row says so.
//!
//! In: the row, and the lanes that share its connections. Out: bytes of the lanes, in turns of whole messages; each
//! answer to the lane whose inbox it came to. Always: at most `max_connections` sockets, one of them for JetStream's API;
//! and one attempt to connect at a time. What a lost connection means to its lanes is their drivers' matter.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::time::{Instant, Sleep, sleep};

use super::{
    driver::{Driver, nats_name},
    inquiry::Inquiry,
};
use crate::{
    commands::{
        backoff::Backoff,
        log_once::Lasting,
        run::faults::{self, Point},
    },
    error::{Error, Result},
    flow::{lane::Refusal, streamer::Streamer},
    nats::{
        ack::Ack,
        codes::{self, Publish},
        control::{self, Control},
        handshake,
        publish::{Inbox, Publisher},
        settings::{Overrides, Settings},
    },
    route::tables::ConfigRow,
};

/// Bytes read from one connection before the others have their turn.
const READS_AT_A_TIME: usize = 8;
/// A connection that stood so long worked, whether or not anything was published.
const WORKED: Duration = Duration::from_secs(10);
/// Where the row names no delay; where it names none at all, so that a server is not hammered.
const RECONNECT_DELAY: (Duration, Duration) = (Duration::from_millis(2000), Duration::from_millis(10));

/// The status of a message that nobody takes; no code of JetStream is below 10000.
pub const NO_RESPONDERS: u64 = 503;

/// See the module.
pub struct Group {
    pub row: ConfigRow,
    /// The servers that the rules of its lanes' events name.
    pub servers: String,
    /// Core NATS: no stream, and so no API.
    pub is_core: bool,
    /// Its lanes by their numbers.
    pub lanes: Vec<usize>,
    pub links: Vec<Link>,
    pub control: Option<Control>,
    /// Other runs of this database, or of a copy, were asked for on its account, and none streams: this run answers there.
    pub is_asked: bool,
    /// How often it was made, and how often others were asked for by it.
    pub connected_times: u64,
    /// Whose the database is, as JetStream says.
    pub inquiry: Inquiry,
    overrides: Overrides,
    /// Some lane of it is wanted or not empty.
    pub in_use: bool,
    attempt: Option<Pin<Box<dyn Future<Output = Result<Connected>>>>>,
    pause: Option<Pin<Box<Sleep>>>,
    pub backoff: Backoff,
    failures: u32,
    pub given_up: bool,
    /// The last failure told, so that the log does not repeat it at every attempt.
    pub logged: Lasting,
    /// How many events of its lanes are in line.
    pub in_line: usize,
    /// When the last connection was made, in seconds since 1970.
    pub since: Option<u64>,
}

/// A publishing connection and the lanes that share it.
#[derive(Default)]
pub struct Link {
    pub lanes: Vec<usize>,
    publisher: Option<Publisher>,
    /// Which of the lanes writes next; the same until its message is whole.
    turn: usize,
    since: Option<Instant>,
    heard: Option<Instant>,
    /// An answer has come.
    worked: bool,
    /// What its user may not do, as the server said it last.
    forbidden: Option<String>,
    /// The server has closed the connection over some message: so many go one at a time, which shows over which.
    careful: usize,
}

struct Connected {
    control: Option<Control>,
    /// Which link, and what its connection is subscribed to.
    publishers: Vec<(usize, Publisher, Vec<Inbox>)>,
    warnings: Vec<String>,
}

impl Group {
    pub fn new(row: ConfigRow, servers: String, is_core: bool, overrides: Overrides) -> Group {
        Group {
            backoff: Backoff::from(delay(&row)),
            row,
            servers,
            is_core,
            lanes: Vec::new(),
            links: Vec::new(),
            control: None,
            connected_times: 0,
            inquiry: Inquiry::default(),
            overrides,
            in_use: false,
            attempt: None,
            pause: None,
            failures: 0,
            given_up: false,
            logged: Lasting::default(),
            in_line: 0,
            since: None,
            is_asked: false,
        }
    }

    /// The row has changed: all connections are to be made anew.
    pub fn replace(&mut self, row: ConfigRow) {
        self.backoff = Backoff::from(delay(&row));
        self.row = row;
        self.links.clear();
        for at in 0..self.lanes.len() {
            self.place(self.lanes[at]);
        }
        self.disconnect();
        // It may be another account.
        self.inquiry = Inquiry::default();
        self.is_asked = false;
        self.logged.forget();
        self.revive();
    }

    /// Tries again where it was given up.
    pub fn revive(&mut self) {
        self.given_up = false;
        self.failures = 0;
        self.pause = None;
    }

    /// Nothing is left to be published.
    pub fn disconnect(&mut self) {
        self.control = None;
        self.inquiry.disconnect();
        self.attempt = None;
        for link in &mut self.links {
            link.publisher = None;
        }
    }

    /// No other run streams. Returns whether that is news.
    pub fn asked(&mut self) -> bool {
        !std::mem::replace(&mut self.is_asked, true)
    }

    /// A new lane takes the place with the fewest others.
    pub fn add(&mut self, lane: usize, streamer: &Streamer) -> usize {
        self.lanes.push(lane);
        let at = self.place(lane);
        if let Some(publisher) = &mut self.links[at].publisher {
            publisher.subscribe(&inbox(lane, streamer));
        }
        at
    }

    /// Which link a lane is on.
    pub fn link_of(&self, lane: usize) -> usize {
        self.links.iter().position(|link| link.lanes.contains(&lane)).expect("every lane has its place")
    }

    fn place(&mut self, lane: usize) -> usize {
        // What makes no sense is told when the row is resolved for an attempt.
        let most = usize::try_from(self.row.max_connections.unwrap_or(10)).unwrap_or(1);
        let most = if self.is_core { 1 } else { most.saturating_sub(1).max(1) };
        if self.links.len() < most {
            self.links.push(Link::default());
        }
        let least = (0..self.links.len()).min_by_key(|&at| self.links[at].lanes.len()).expect("one at least");
        self.links[least].lanes.push(lane);
        least
    }

    fn is_whole(&self) -> bool {
        !self.lacks_control() && self.links.iter().all(|link| link.publisher.is_some())
    }

    /// Core NATS needs a connection for JetStream's API only to ask whose the database is.
    fn lacks_control(&self) -> bool {
        if self.is_core { self.inquiry.lacks_witness() } else { self.control.is_none() }
    }

    /// Whether an attempt to connect has failed since the last one that did not.
    pub fn cannot_be_reached(&self) -> bool {
        self.failures > 0 || self.given_up
    }

    /// Connects what is missing. Returns whether it did.
    ///
    /// # Errors
    /// An attempt has failed; [`Group::failed`] is the way on.
    pub fn poll_connect(&mut self, cx: &mut Context<'_>, streamer: &Streamer) -> Result<bool> {
        if !self.in_use || self.given_up || self.is_whole() {
            return Ok(false);
        }
        if self.attempt.is_none() {
            if self.pause.as_mut().is_some_and(|pause| pause.as_mut().poll(cx).is_pending()) {
                return Ok(false);
            }
            self.pause = None;
            let missing = self.links.iter().enumerate().filter(|(_, link)| link.publisher.is_none());
            let inboxes = |link: &Link| link.lanes.iter().map(|&lane| inbox(lane, streamer)).collect();
            let missing = missing.map(|(at, link)| (at, inboxes(link))).collect();
            let wants_control = self.lacks_control();
            self.attempt = Some(Box::pin(connect(self.row.clone(), self.overrides.clone(), wants_control, missing)));
        }
        let Some(attempt) = &mut self.attempt else { return Ok(false) };
        let Poll::Ready(outcome) = attempt.as_mut().poll(cx) else { return Ok(false) };
        self.attempt = None;
        let connected = outcome?;
        self.failures = 0;
        self.since = SystemTime::now().duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs());
        match connected.control {
            Some(witness) if self.is_core => self.inquiry.begin(witness),
            Some(control) => {
                self.connected_times += 1;
                self.control = Some(control);
            }
            None => {}
        }
        for warning in connected.warnings {
            tracing::warn!("{warning}");
        }
        for (at, mut publisher, subscribed) in connected.publishers {
            let link = &mut self.links[at];
            // Lanes have come and gone since the attempt began.
            let inboxes = link.lanes.iter().map(|&lane| inbox(lane, streamer));
            inboxes.filter(|inbox| !subscribed.contains(inbox)).for_each(|inbox| publisher.subscribe(&inbox));
            let (lanes, careful) = (std::mem::take(&mut link.lanes), link.careful);
            let (since, heard) = (Some(Instant::now()), None);
            *link = Link { lanes, publisher: Some(publisher), since, heard, careful, ..Link::default() };
        }
        Ok(true)
    }

    /// An attempt failed: the next one after a pause, unless there were as many as the row allows.
    pub fn failed(&mut self, error: &Error) {
        self.failures += 1;
        self.next(error, false);
    }

    /// A connection is lost.
    pub fn lost(&mut self, at: usize, error: &Error) {
        let link = &mut self.links[at];
        link.publisher = None;
        self.inquiry.lose();
        let worked = link.worked || link.since.is_some_and(|since| since.elapsed() >= WORKED);
        if worked {
            self.backoff.failures = 0;
        }
        self.next(error, worked);
    }

    fn next(&mut self, error: &Error, at_once: bool) {
        let most = self.row.max_reconnect_attempts.and_then(|most| u32::try_from(most).ok());
        if most.is_some_and(|most| self.failures >= most) {
            self.given_up = true;
            self.control = None;
            self.attempt = None;
            self.tell(error, &format!(
                "{error}; given up after {} failed attempts in a row (max_reconnect_attempts): an UPDATE of its row in \
                 rule_nats_config tries again",
                self.failures
            ));
            return;
        }
        self.tell(error, &error.to_string());
        if self.attempt.is_none() {
            self.pause = (!at_once).then(|| Box::pin(sleep(self.backoff.next())));
        }
    }

    /// Logs a failure unless it is the one logged last, or that was a while ago.
    fn tell(&mut self, error: &Error, text: &str) {
        self.logged.warn(nats_name(error, "nats_connection"), text, self.in_line);
    }

    /// What it is called in errors: by its streams.
    pub fn name(&self, streamer: &Streamer) -> String {
        let streams: Vec<_> = self.lanes.iter().map(|&lane| format!("{:?}", streamer.lane(lane).stream())).collect();
        match (self.is_core, streams.len()) {
            (true, _) => "core NATS".to_owned(),
            (false, 1) => format!("stream {}", streams[0]),
            (false, _) => format!("streams {}", streams.join(", ")),
        }
    }
}

impl Link {
    /// Its connection, while it stands.
    pub fn publisher(&self) -> Option<&Publisher> {
        self.publisher.as_ref()
    }

    /// Whether the server has said something within that time.
    pub fn has_received(&self, within: Duration) -> bool {
        self.heard.is_some_and(|heard| heard.elapsed() < within)
    }

    /// What its user may not do, as far as the server has said.
    pub fn forbidden(&self) -> Option<&str> {
        self.forbidden.as_deref()
    }

    /// The connection is lost. Was it closed over a message, that message is given up where it was the only one under way; from
    /// here on one goes at a time, until as many went well as were in line.
    pub fn judge(&mut self, streamer: &mut Streamer) {
        let Some(violation) = self.publisher.as_ref().and_then(Publisher::violation) else { return };
        let under_way: Vec<_> = self.lanes.iter().copied().filter(|&index| streamer.lane(index).has_begun()).collect();
        if let ([index], true) = (&under_way[..], self.careful > 0) {
            let reason = format!("the server closes the connection over it: {}", violation.text);
            streamer.lane_mut(*index).reject_first(reason, violation.is_size);
        }
        let in_line: usize = self.lanes.iter().map(|&index| streamer.lane(index).len()).sum();
        self.careful = self.careful.max(in_line).max(1);
    }

    /// Moves bytes out and answers in, as far as the socket allows. Returns whether there is more to write since.
    ///
    /// # Errors
    /// The connection is of no more use.
    pub fn exchange(
        &mut self,
        cx: &mut Context<'_>,
        is_core: bool,
        streamer: &mut Streamer,
        drivers: &mut [Driver],
    ) -> Result<bool> {
        let Some(publisher) = &mut self.publisher else { return Ok(false) };
        for &index in &self.lanes {
            streamer.lane_mut(index).set_careful(self.careful > 0);
        }
        let mut had_nothing = 0;
        while had_nothing < self.lanes.len() {
            if self.careful > 0
                && publisher.is_between()
                && self.lanes.iter().any(|&index| streamer.lane(index).has_begun())
            {
                break;
            }
            let index = self.lanes[self.turn];
            let lane = streamer.lane_mut(index);
            let bytes = if drivers[index].is_on_line() { lane.unsent() } else { &[] };
            if bytes.is_empty() {
                // A message that is begun and held back is waited for.
                if !publisher.is_between() {
                    break;
                }
                self.turn = (self.turn + 1) % self.lanes.len();
                had_nothing += 1;
                continue;
            }
            if publisher.is_between() {
                faults::reach(Point::Publish)?;
            }
            match publisher.poll_write(cx, faults::at_a_time(bytes)) {
                Poll::Ready(Err(error)) => return Err(publisher.last_words(cx, error)),
                Poll::Ready(Ok(count)) => {
                    lane.mark_sent(count);
                    publisher.set_between(lane.is_between_messages());
                    if publisher.is_between() {
                        faults::reach(Point::Published)?;
                        self.turn = (self.turn + 1) % self.lanes.len();
                    }
                    had_nothing = 0;
                }
                Poll::Pending => break,
            }
        }
        if is_core && publisher.is_between() {
            for &index in &self.lanes {
                let lane = streamer.lane_mut(index);
                if drivers[index].is_on_line() && lane.wants_ping() {
                    publisher.ping();
                    lane.pinged();
                }
            }
        }
        if let Poll::Ready(Err(error)) = publisher.poll_flush(cx) {
            return Err(publisher.last_words(cx, error));
        }
        let mut again = false;
        for _ in 0..READS_AT_A_TIME {
            match publisher.poll_read(cx)? {
                Poll::Ready(()) => self.heard = Some(Instant::now()),
                Poll::Pending => return Ok(again),
            }
            publisher.answers(|answer| {
                let index = usize::try_from(answer.inbox).ok().and_then(|inbox| inbox.checked_sub(1));
                let Some(index) = index.filter(|&index| drivers.get(index).is_some_and(Driver::is_on_line)) else {
                    return Ok(());
                };
                faults::reach(Point::Acked)?;
                if take(answer.token, answer.ack, index, streamer, &mut drivers[index]) {
                    self.worked = true;
                    again |= self.careful > 0;
                    self.careful = self.careful.saturating_sub(1);
                }
                Ok(())
            })?;
            if publisher.take_limit_changed() {
                let limit = publisher.info().max_payload;
                for &index in &self.lanes {
                    let text = format!(
                        "stream {:?}: the server takes messages of at most {limit} bytes from now on (max_payload)",
                        streamer.lane(index).stream()
                    );
                    drivers[index].trouble.get_or_insert_with(|| Error::unavailable(text));
                }
            }
            if let Some(text) = publisher.take_forbidden() {
                if let [_] = self.lanes[..] {
                    return Err(handshake::refusal(&text).context(format!("publish at {}", publisher.target())));
                }
                // Which of the lanes it is about shows in what gets no answer.
                self.forbidden = Some(text);
            }
            if is_core && publisher.take_pong() {
                for &index in &self.lanes {
                    if streamer.lane_mut(index).ponged() {
                        self.careful = self.careful.saturating_sub(1);
                        drivers[index].answered = true;
                        self.worked = true;
                        again = true;
                    }
                }
            }
        }
        // More may be waiting: come back after the others had their turn.
        cx.waker().wake_by_ref();
        Ok(again)
    }
}

/// An answer for a lane. Returns whether it was stored.
fn take(token: &[u8], ack: Ack, index: usize, streamer: &mut Streamer, driver: &mut Driver) -> bool {
    let lane = streamer.lane_mut(index);
    let name = match &ack {
        Ack::Refused { code, .. } => codes::finding(*code),
        _ => None,
    };
    let refusal = match ack {
        Ack::Stored { sequence, duplicate } => match lane.acked(token, sequence, duplicate) {
            Ok(()) => {
                driver.answered = true;
                if duplicate && lane.removed() == 1 {
                    tracing::warn!(
                        stream = lane.stream(),
                        sequence,
                        "messages were removed from the stream (purged or deleted) before their acks arrived; events that it \
                         stored and does not have any more are not published again"
                    );
                }
                return true;
            }
            Err(refusal) => refusal,
        },
        Ack::Refused { code, description } => match counted(code, driver) {
            Publish::Place => Refusal::WrongSequence,
            Publish::OneByOne => Refusal::DuplicateInBatch,
            Publish::SmallerBatches => {
                // That smaller ones are wanted the code says; how small, its words: they end with the server's limit. Without
                // them it is found by halves.
                let limit = description.rsplit(' ').next().and_then(|limit| limit.parse().ok());
                let limit = limit.filter(|limit| *limit < driver.batch_max);
                driver.batch_max = limit.unwrap_or(driver.batch_max / 2).max(1);
                Refusal::NotNow(format!("{description} ({code})"))
            }
            Publish::TooLarge => Refusal::TooLarge(format!("stream {} refuses it: {description}", lane.stream())),
            Publish::Event => Refusal::Never(format!("stream {} refuses it: {description}", lane.stream())),
            Publish::Wait => Refusal::NotNow(format!("{description} ({code})")),
        },
        Ack::NoResponders => {
            driver.refused(NO_RESPONDERS);
            Refusal::NotNow("no stream takes its subject, or JetStream is away".to_owned())
        }
    };
    let is_news = lane.refused(token, &refusal);
    let out_of_place = refusal == Refusal::WrongSequence;
    if driver.trouble.is_none() && (is_news || out_of_place) {
        let why = match refusal {
            Refusal::WrongSequence => "another last sequence than expected".to_owned(),
            Refusal::DuplicateInBatch => {
                "a message id in its batch is known already, so this transaction goes message by message and is not atomic"
                    .to_owned()
            }
            Refusal::Never(why) | Refusal::TooLarge(why) | Refusal::NotNow(why) => why,
        };
        driver.trouble = Some(
            Error::unavailable(format!(
                "stream {:?} refused a message: {why}; reading its tail to go on from there",
                lane.stream()
            ))
            .named(name),
        );
    }
    false
}

/// What a refusal means.
fn counted(code: u64, driver: &mut Driver) -> Publish {
    driver.refused(code);
    codes::publish(code)
}

/// Where a lane's answers come: the number of its subscription is one more than its own.
fn inbox(lane: usize, streamer: &Streamer) -> Inbox {
    Inbox { id: lane as u64 + 1, subject: streamer.lane_inbox(lane) }
}

fn delay(row: &ConfigRow) -> Duration {
    let (default, least) = RECONNECT_DELAY;
    let millis = row.reconnect_delay_ms.and_then(|millis| u64::try_from(millis).ok());
    millis.map_or(default, Duration::from_millis).max(least)
}

async fn connect(
    row: ConfigRow,
    overrides: Overrides,
    wants_control: bool,
    missing: Vec<(usize, Vec<Inbox>)>,
) -> Result<Connected> {
    let settings = Settings::resolve(&row, &overrides)?;
    let control = if wants_control { Some(control::connect(&settings).await?) } else { None };
    let mut publishers = Vec::new();
    for (at, inboxes) in missing {
        publishers.push((at, Publisher::open(&settings, &inboxes).await?, inboxes));
    }
    Ok(Connected { control, publishers, warnings: settings.warnings })
}
