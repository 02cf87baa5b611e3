//! What must hold, checked while it runs.
//!
//! The oracle routes every change by the rules in force at its own commit, which it computes when the model commits, or by
//! those that an operator has put in their place at an event. No run may route otherwise:
//!
//! - Confirmed ⇒ every event before it is stored in its stream or durable as a dead letter.
//! - Dead letters are only those that cannot be published: no stream, an impossible subject, too large, or an operator's
//!   amendment leads them into a strict stream that has later events.
//! - An amended event that core NATS has brought into the stream before is stored there.
//! - What is stored was an event of a committed transaction, under that subject, with that content.
//! - In strict streams each event is there once, and positions rise. In shared ones it is there at least once.
//! - In the mode `full` nothing is confirmed whose row is not in the history; there each event has one row, which tells
//!   the truth about where it is stored.
//! - Of core NATS: confirmed ⇒ its server has taken the event in, at least once.
//! - Where the server has lost what it acknowledged, only that may be missing, and walhook may stop (`Untrusted`); with a
//!   delay before confirming, not even that may be missing from a strict stream, nor may it stop.

use std::collections::{HashMap, HashSet, VecDeque, hash_map::Entry};

use walhook::flow::event_id::EventPosition;

use super::{
    configuration::core_of,
    jetstream::{JetStream, Message, Stream},
    postgres::{Mark, Op, Postgres, ordinals_of, routes_of, tells_note},
};

pub const SOURCE: &str = "sim";

/// The `Nats-Msg-Id` that a caller's own message id is sent as.
fn sent_id(webhook: i32, message_id: &str) -> String {
    format!("{SOURCE}:{webhook}:{message_id}")
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Expected {
    commit_lsn: u64,
    id: String,
    stream: Option<String>,
    subject: String,
    /// What its payload must contain.
    marker: String,
    message_id: Option<String>,
    is_huge: bool,
    has_webhook: bool,
    /// By the rules of its commit its stream has a strict order.
    is_strict: bool,
}

/// A row of the publish history.
#[derive(Debug)]
struct Recorded {
    message_id: String,
    stream: String,
    sequence: u64,
    success: bool,
    is_unknown: bool,
}

pub type Position = (u64, u64, i32);

#[derive(Debug, Default)]
pub struct Oracle {
    /// By stream and id, of all runs.
    ever: HashMap<(String, String), Vec<Expected>>,
    may_die: HashSet<String>,
    /// Commits and ordinals for which an operator has put other rules in force after they were committed.
    amended: HashSet<(u64, u64)>,
    /// Stream and event: amended ones that became dead letters, for the stream had later events and not them.
    displaced: HashSet<(String, String)>,
    pub dead_letters: HashSet<String>,
    /// By event id, which is unique there.
    history: HashMap<String, Recorded>,
    checked: HashMap<String, (usize, Option<Position>)>,
    /// How much of what core NATS has published.
    checked_published: usize,
    /// Confirming is delayed for longer than the server takes to sync.
    nothing_is_lost: bool,
    /// Streams change their ordering.
    flips: bool,
    /// The position and the time of commit from which, and before which, events never were.
    pub lost_history: Option<(u64, i64)>,
}

/// What the oracle knows of one run.
#[derive(Debug)]
pub struct View {
    waiting: VecDeque<Expected>,
    ordinal: u64,
    /// Transactions before this one have arrived whole.
    upto: usize,
    confirmed: u64,
    last_keepalive: u64,
}

impl View {
    pub fn new(postgres: &Postgres) -> View {
        View {
            waiting: VecDeque::new(),
            ordinal: 0,
            upto: postgres.transactions.partition_point(|transaction| transaction.commit_lsn < postgres.confirmed),
            confirmed: postgres.confirmed,
            last_keepalive: 0,
        }
    }
}

impl Oracle {
    pub fn new(nothing_is_lost: bool, flips: bool) -> Oracle {
        Oracle { nothing_is_lost, flips, ..Oracle::default() }
    }

    /// A frame is about to be given to the run.
    pub fn receives(&mut self, view: &mut View, mark: Mark, postgres: &Postgres) {
        match mark {
            Mark::Nothing => {}
            Mark::Keepalive(end) => view.last_keepalive = end,
            Mark::Commit(index) => {
                view.upto = index + 1;
                view.ordinal = 0;
            }
            Mark::Op(index, number) => {
                let transaction = &postgres.transactions[index];
                let op = &transaction.ops[number].2;
                let (marker, message_id, is_huge) = match op {
                    Op::Change { op: "delete", id, .. } => (format!("\"id\":{id}"), None, false),
                    Op::Change { op, id, huge, .. } if !tells_note(op, *id) => {
                        ("\"unchanged\":[\"note\"]".to_owned(), None, *huge)
                    }
                    Op::Change { note, huge, .. } => (format!("\"{note}\""), None, *huge),
                    Op::Call { note, message_id, huge, .. } => (format!("\"{note}\""), message_id.clone(), *huge),
                    Op::Truncate { .. } | Op::Configure(_) => (String::new(), None, false),
                };
                for of_table in 0..ordinals_of(op) {
                    let rules = postgres.rules_at(index, number, view.ordinal);
                    if postgres.is_amended(index, view.ordinal) {
                        self.amended.insert((transaction.commit_lsn, view.ordinal));
                    }
                    let routes = routes_of(&rules, op).swap_remove(of_table);
                    let (lsn, time) = (transaction.commit_lsn, transaction.commit_time);
                    let id = |webhook| format!("{SOURCE}-{lsn:016x}-{time:x}-{}-{webhook}", view.ordinal);
                    for route in routes {
                        let row = rules.streams.values().find(|row| Some(row.key()) == route.stream);
                        let expected = Expected {
                            is_strict: row.is_some_and(|row| !row.shared),
                            commit_lsn: lsn,
                            id: id(route.webhook),
                            stream: route.stream,
                            subject: route.subject,
                            marker: marker.clone(),
                            message_id: message_id.as_ref().map(|id| sent_id(route.webhook, id)),
                            is_huge,
                            has_webhook: rules.webhooks.contains_key(&route.webhook),
                        };
                        let claims = |webhook: &super::configuration::Webhook| webhook.claims && !webhook.halt;
                        let is_claimed = rules.webhooks.get(&route.webhook).is_some_and(claims);
                        match &expected.stream {
                            None => drop(self.may_die.insert(expected.id.clone())),
                            Some(stream) => {
                                let of_id = self.ever.entry((stream.clone(), expected.id.clone())).or_default();
                                if !of_id.contains(&expected) {
                                    of_id.push(expected.clone());
                                }
                            }
                        }
                        // Core NATS has no object store.
                        let is_core = server_of_core(expected.stream.as_deref()).is_some();
                        if is_huge && (!is_claimed || is_core) {
                            self.may_die.insert(expected.id.clone());
                        }
                        view.waiting.push_back(expected);
                    }
                    view.ordinal += 1;
                }
            }
        }
    }

    /// The run confirms (or would confirm) up to here.
    pub fn confirms(
        &self,
        view: &mut View,
        confirmed: u64,
        postgres: &Postgres,
        jetstream: &JetStream,
    ) -> Result<(), String> {
        if confirmed < view.confirmed {
            return Err(format!("confirmed went down from {} to {confirmed}", view.confirmed));
        }
        view.confirmed = confirmed;
        if let Some(missed) = postgres.transactions.get(view.upto)
            && missed.commit_lsn < confirmed
        {
            return Err(format!("{confirmed} is confirmed, but the commit at {} has not come", missed.commit_lsn));
        }
        while let Some(event) = view.waiting.front()
            && event.commit_lsn < confirmed
        {
            if !self.is_settled(event, postgres, jetstream) {
                return Err(format!("{confirmed} is confirmed, but nobody has {event:?}"));
            }
            if postgres.configuration.history == "full" && event.has_webhook && !self.history.contains_key(&event.id) {
                return Err(format!("{confirmed} is confirmed, but the history does not have {event:?}"));
            }
            view.waiting.pop_front();
        }
        Ok(())
    }

    fn is_settled(&self, event: &Expected, postgres: &Postgres, jetstream: &JetStream) -> bool {
        let is_dead = self.dead_letters.contains(&event.id);
        let Some(name) = &event.stream else { return is_dead };
        if let Some(server) = server_of_core(Some(name)) {
            return jetstream.core_events.contains(&(server, event.id.clone())) || (event.is_huge && is_dead);
        }
        let stream = jetstream.stream(name);
        // There others' messages may have taken the places of what it forgot, and hide that.
        let is_shared =
            || self.flips || postgres.configuration.streams.values().any(|row| row.key() == *name && row.shared);
        let is_amended = position(&event.id).is_some_and(|here| self.amended.contains(&(here.0, here.1)));
        // Core NATS has brought it into the stream by the rules before, under the same id.
        let is_brought = || stream.messages.iter().any(|message| message.core_event.as_ref() == Some(&event.id));
        stream.events.contains_key(&event.id)
            || (is_amended && is_brought())
            || (is_dead && (event.is_huge || self.displaced.contains(&(name.clone(), event.id.clone()))))
            || event.message_id.as_ref().is_some_and(|id| stream.message_ids.contains(id))
            || (jetstream.forgotten.contains(&event.id) && (!self.nothing_is_lost || is_shared()))
    }

    /// The object store takes the event's payload for good no more.
    pub fn cannot_be_claimed(&mut self, event_id: String) {
        self.may_die.insert(event_id);
    }

    /// A dead letter's row is in.
    pub fn writes_dead_letter(&mut self, event_id: &str, reason: &str, jetstream: &JetStream) -> Result<(), String> {
        self.dead_letters.insert(event_id.to_owned());
        // First, for it is noted: an event that nothing took by the rules of its commit may be displaced by those of an amendment.
        if self.is_displaced(event_id, jetstream) || self.may_die.contains(event_id) {
            return Ok(());
        }
        Err(format!("{event_id} needs no dead letter: {reason}"))
    }

    /// Whether an amendment led this event into a strict stream that has later events and not this one.
    fn is_displaced(&mut self, event_id: &str, jetstream: &JetStream) -> bool {
        let here = position(event_id).expect("the oracle has made the id");
        if !self.amended.contains(&(here.0, here.1)) {
            return false;
        }
        let of_event =
            self.ever.iter().filter(|((_, id), events)| id == event_id && events.iter().any(|e| e.is_strict));
        let displacing = of_event.filter(|((name, _), events)| {
            let stream = jetstream.stream(name);
            let mut stored = stream.events.keys().filter_map(|id| position(id));
            // The stream had an older event with the same id of the caller's, so this one counts as stored there: all before it are.
            let is_repeat =
                || events.iter().any(|e| e.message_id.as_ref().is_some_and(|id| stream.message_ids.contains(id)));
            !stream.events.contains_key(event_id)
                && (jetstream.has_forgotten || stored.any(|stored| stored > here) || is_repeat())
        });
        let displacing: Vec<_> = displacing.map(|((name, _), _)| (name.clone(), event_id.to_owned())).collect();
        let is_displaced = !displacing.is_empty();
        self.displaced.extend(displacing);
        is_displaced
    }

    /// Rows of the history are in, in PostgreSQL's binary COPY format.
    pub fn records(&mut self, mut bytes: &[u8], rows: usize) {
        for _ in 0..rows {
            let fields: Vec<Option<&[u8]>> = (0..take(&mut bytes, 2)[1])
                .map(|_| {
                    let length = i32::from_be_bytes(take(&mut bytes, 4).try_into().unwrap());
                    usize::try_from(length).ok().map(|length| take(&mut bytes, length))
                })
                .collect();
            let text = |index: usize| fields[index].map(|text| String::from_utf8(text.to_vec()).unwrap());
            let mut row = Recorded {
                sequence: fields[1].map_or(0, |bytes| u64::from_be_bytes(bytes.try_into().unwrap())),
                success: fields[3].unwrap()[0] != 0,
                message_id: text(8).unwrap(),
                stream: text(12).unwrap_or_default(),
                is_unknown: false,
            };
            // As rule_nats_history_insert does. Another event with the same id of the caller's is found by `reads_history`.
            let id = text(5).unwrap();
            // Of core NATS it is NULL.
            if row.success && row.sequence == 0 && fields[1].is_some() {
                row.is_unknown = row.message_id == id && !self.dead_letters.contains(&id);
                row.success = row.message_id != id && !self.dead_letters.contains(&id);
            }
            match self.history.entry(id) {
                Entry::Occupied(mut old)
                    if !old.get().success && (row.success && row.sequence != 0 || old.get().is_unknown) =>
                {
                    old.insert(row);
                }
                Entry::Occupied(_) => {}
                Entry::Vacant(vacant) => drop(vacant.insert(row)),
            }
        }
    }

    /// Whether the history tells the truth, at the end.
    pub fn reads_history(&self, jetstream: &JetStream) -> Result<(), String> {
        for (id, row) in self.history.iter().filter(|(id, _)| !self.is_of_lost_history(id)) {
            let is_true = if row.is_unknown {
                jetstream.has_forgotten
            } else if !row.success {
                self.dead_letters.contains(id)
            } else {
                let webhook = id.rsplit('-').next().and_then(|webhook| webhook.parse().ok()).unwrap_or(0);
                let sent = sent_id(webhook, &row.message_id);
                let is_its = |message: &&Message| {
                    [&message.event, &message.core_event].contains(&&Some(id.clone()))
                        || message.message_id.as_ref() == Some(&sent)
                };
                // The history does not say which server.
                let is_told_by = |stream: &Stream| {
                    let at = stream.messages.iter().find(|message| message.sequence == row.sequence);
                    // What was known by its caller's id is in the stream as another event, and after a restart it is looked for by its own.
                    let is_known = row.sequence == 0
                        && row.message_id != *id
                        && stream.messages.iter().any(|message| message.message_id.as_ref() == Some(&sent));
                    at.is_some_and(|message| is_its(&message)) || is_known
                };
                let is_published = row.stream == "(core NATS)"
                    && row.sequence == 0
                    && jetstream.core_events.iter().any(|(_, event)| event == id);
                let mut named = jetstream.streams.iter().filter(|stream| stream.name == row.stream);
                // What the server has forgotten and replaced, nobody can tell any more.
                is_published || named.any(is_told_by) || jetstream.has_forgotten
            };
            if !is_true {
                return Err(format!("the history says of {id}: {row:?}"));
            }
        }
        Ok(())
    }

    /// Whether this event was committed in a history that a failover has left.
    pub fn is_of_lost_history(&self, event: &str) -> bool {
        let position = EventPosition::parse(event, SOURCE);
        let is_lost = |(from, before): (u64, i64)| {
            position.is_some_and(|position| position.commit_lsn.0 >= from && position.commit_time < before)
        };
        self.lost_history.is_some_and(is_lost)
    }

    /// Events that the servers have lost after they acknowledged them, and have again, where nothing may be lost.
    pub fn filled_again(&self, jetstream: &JetStream) -> u64 {
        let is_there = |id: &&String| jetstream.streams.iter().any(|stream| stream.events.contains_key(*id));
        if self.nothing_is_lost { jetstream.forgotten.iter().filter(is_there).count() as u64 } else { 0 }
    }

    /// Whether each transaction that fits into a batch is in its stream whole or not at all, but for events that have their own
    /// reasons: dead letters, ids of the caller's own that may be known, what runs have routed otherwise.
    pub fn finds_transactions_whole(
        &self,
        jetstream: &JetStream,
        postgres: &Postgres,
        atomic: &HashSet<String>,
    ) -> Result<(), String> {
        if atomic.is_empty() || jetstream.has_forgotten {
            return Ok(());
        }
        // On another timeline another transaction may have committed at the same LSN, at another time.
        type InStream<'o> = (&'o String, u64, Option<i64>);
        let mut transactions: HashMap<InStream<'_>, Vec<(&Expected, bool)>> = HashMap::new();
        for ((stream, id), events) in self.ever.iter().filter(|((stream, _), _)| atomic.contains(stream)) {
            let is_stored = jetstream.stream(stream).events.contains_key(id);
            let event = &events[0];
            let commit_time = EventPosition::parse(id, SOURCE).map(|position| position.commit_time);
            transactions.entry((stream, event.commit_lsn, commit_time)).or_default().push((event, is_stored));
        }
        for ((stream, commit_lsn, _), events) in &transactions {
            let has_own_ids = events.iter().any(|(event, _)| event.message_id.is_some());
            // An amendment within the transaction leads the events behind it elsewhere.
            let is_amended = self.amended.iter().any(|(amended, _)| amended == commit_lsn);
            // One that leads a configuration to core NATS and back, or disables a stream and enables it again, is sent in parts.
            let is_switched = postgres.changes_ways(*commit_lsn);
            if events.len() > jetstream.batch_max || has_own_ids || is_amended || is_switched {
                continue;
            }
            let is_plain = |event: &Expected| !event.is_huge && !self.dead_letters.contains(&event.id);
            let plain: Vec<_> = events.iter().filter(|(event, _)| is_plain(event)).collect();
            let stored = plain.iter().filter(|(_, is_stored)| *is_stored).count();
            if stored != 0 && stored != plain.len() {
                return Err(format!(
                    "{stream} has {stored} of the {} events of the transaction at {commit_lsn}",
                    plain.len()
                ));
            }
            let marked = jetstream.stream(stream).messages.iter().find(|message| {
                message.mark.is_some() && plain.iter().any(|(event, _)| message.event.as_ref() == Some(&event.id))
            });
            if let Some(marked) = marked.filter(|_| plain.len() == events.len()) {
                return Err(format!("{marked:?} of a transaction that fits into a batch is marked"));
            }
        }
        Ok(())
    }

    /// Looks at what the streams have got since it last looked.
    pub fn looks(&mut self, jetstream: &JetStream) -> Result<(), String> {
        for stream in &jetstream.streams {
            let checked = self.checked.entry(stream.key.clone()).or_default();
            if checked.0 > stream.messages.len() {
                // The server has forgotten some.
                let before = stream.messages.iter().filter_map(|message| position(message.event.as_ref()?)).max();
                *checked = (stream.messages.len(), before);
            }
            for message in &stream.messages[checked.0..] {
                let Some(event) = &message.event else { continue };
                let known = self.ever.get(&(stream.key.clone(), event.clone()));
                let payload = match &message.object {
                    None => &message.payload,
                    Some(object) => jetstream
                        .objects
                        .get(object)
                        .ok_or_else(|| format!("{message:?} of {} is for an object that is not there", stream.name))?,
                };
                if let Some(schema) = &message.schema
                    && !jetstream.schemas.contains(&(stream.server, schema.clone()))
                {
                    return Err(format!("{message:?} of {} names a schema that is not there", stream.name));
                }
                let payload = String::from_utf8_lossy(payload);
                if !known.is_some_and(|known| {
                    known.iter().any(|event| event.subject == message.subject && payload.contains(&event.marker))
                }) {
                    return Err(format!("{message:?} of {} is no event", stream.name));
                }
                let here = position(event).ok_or_else(|| format!("{event} is no id"))?;
                // An amendment may have put it into another order.
                let is_strict = known.is_some_and(|known| known.iter().all(|event| event.is_strict));
                if is_strict && let Some(before) = checked.1.filter(|before| *before >= here) {
                    return Err(format!("{} has {event} behind {before:?}", stream.key));
                }
                checked.1 = checked.1.max(Some(here));
            }
            checked.0 = stream.messages.len();
        }
        for published in &jetstream.core_published[self.checked_published..] {
            let known = self.ever.get(&(core_of(published.server), published.event.clone()));
            let payload = String::from_utf8_lossy(&published.payload);
            let is_it = |event: &Expected| event.subject == published.subject && payload.contains(&event.marker);
            if !known.is_some_and(|known| known.iter().any(is_it)) {
                return Err(format!("{published:?} is no event for core NATS"));
            }
        }
        self.checked_published = jetstream.core_published.len();
        Ok(())
    }
}

/// The server whose core NATS this is.
fn server_of_core(stream: Option<&str>) -> Option<i32> {
    stream?.strip_suffix("/core")?.parse().ok()
}

fn take<'b>(bytes: &mut &'b [u8], count: usize) -> &'b [u8] {
    let (taken, rest) = bytes.split_at(count);
    *bytes = rest;
    taken
}

/// Commit LSN, ordinal and webhook of an id.
pub fn position(id: &str) -> Option<Position> {
    let mut parts = id.strip_prefix(SOURCE)?.strip_prefix('-')?.split('-');
    let lsn = u64::from_str_radix(parts.next()?, 16).ok()?;
    let _time = parts.next()?;
    Some((lsn, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}
