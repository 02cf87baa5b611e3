//! The model of a NATS server with JetStream: connections that carry real `HPUB` bytes, streams with deduplication and
//! expected sequences, answers that are delayed, lost or doubled.

use std::collections::{HashMap, HashSet, VecDeque};

use fastrand::Rng;

use walhook::flow::driver::Violation;

use super::{
    oracle::position,
    postgres::Postgres,
    swarm::{Bug, Swarm, happens},
};

#[derive(Debug, Clone)]
pub struct Message {
    pub sequence: u64,
    pub subject: String,
    pub message_id: Option<String>,
    /// The id of an event of ours.
    pub event: Option<String>,
    /// The same of one that core NATS brought.
    pub core_event: Option<String>,
    /// `Walhook-Transaction`.
    pub mark: Option<String>,
    pub payload: Vec<u8>,
    /// The run that published it.
    pub epoch: u64,
    /// What it is a claim check for.
    pub object: Option<String>,
    /// `Walhook-Schema`.
    pub schema: Option<String>,
    pub stored_at: u64,
}

#[derive(Debug, Default)]
pub struct Stream {
    /// Which one of the servers, by its NATS configuration.
    pub server: i32,
    pub name: String,
    /// Both, as the models call it.
    pub key: String,
    pub messages: Vec<Message>,
    pub last_sequence: u64,
    /// Message ids of the whole life of the stream.
    pub message_ids: HashSet<String>,
    /// Ids of the events in it, and where they are.
    pub events: HashMap<String, u64>,
    synced: usize,
    /// Another time, another stream.
    pub created_ns: i64,
    /// Its metadata name the database.
    pub is_claimed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Stored {
        sequence: u64,
        duplicate: bool,
    },
    Refused(u64),
    NoResponders,
    /// To a PING: all that came before it was taken in.
    Pong,
}

/// A message that went to core NATS.
#[derive(Debug)]
pub struct CorePublished {
    pub server: i32,
    pub subject: String,
    pub event: String,
    pub payload: Vec<u8>,
}

#[derive(Debug, Default)]
struct Connection {
    server: i32,
    /// Its messages go to core NATS.
    is_core: bool,
    inboxes: Vec<String>,
    inbound: VecDeque<u8>,
    /// The reply subject without its last token, that token, and the answer.
    answers: VecDeque<(String, Vec<u8>, Answer)>,
    /// The largest message, as the client was told last.
    limit: usize,
    violation: Option<Violation>,
    is_left: bool,
    is_cut: bool,
}

#[derive(Debug)]
pub struct JetStream {
    pub streams: Vec<Stream>,
    /// The object store.
    pub objects: HashMap<String, Vec<u8>>,
    /// The keys in the bucket of schemas of each server.
    pub schemas: HashSet<(i32, String)>,
    connections: Vec<Connection>,
    /// With the bug: what a client will send again by itself.
    retries: VecDeque<Publish>,
    pub max_payload: usize,
    pub max_msg_size: usize,
    pub batch_max: usize,
    /// Batches that are gathered, by their ids, and when the last message of each came.
    batches: HashMap<String, (Vec<Publish>, u64)>,
    /// Servers that are down.
    pub down: HashSet<i32>,
    /// What core NATS has taken in, in the order in which it came.
    pub core_published: Vec<CorePublished>,
    /// By server and event.
    pub core_events: HashSet<(i32, String)>,
    /// While set, stores are refused by this answer.
    pub refusing: Option<Answer>,
    /// It has lost messages, anybody's, that it had acknowledged.
    pub has_forgotten: bool,
    /// Events that the server has acknowledged and lost.
    pub forgotten: HashSet<String>,
}

impl JetStream {
    pub fn new(swarm: &Swarm) -> JetStream {
        let stream = |(server, id)| {
            let name = format!("S{id}");
            let created_ns = i64::from(server) * 1_000_000_000 + i64::try_from(id).unwrap() * 10_000_000;
            Stream { server, key: format!("{server}/{name}"), name, created_ns, ..Stream::default() }
        };
        let all = (1..=swarm.configs).flat_map(|server| (0..swarm.streams).map(move |id| (server, id)));
        let streams = all.map(stream).collect();
        JetStream {
            streams,
            objects: HashMap::new(),
            schemas: HashSet::new(),
            connections: Vec::new(),
            retries: VecDeque::new(),
            max_payload: swarm.max_payload,
            max_msg_size: swarm.max_msg_size,
            batch_max: swarm.batch_max,
            batches: HashMap::new(),
            down: HashSet::new(),
            core_published: Vec::new(),
            core_events: HashSet::new(),
            refusing: None,
            has_forgotten: false,
            forgotten: HashSet::new(),
        }
    }

    pub fn stream(&self, key: &str) -> &Stream {
        self.streams.iter().find(|stream| stream.key == key).unwrap()
    }

    pub fn connect(&mut self, server: i32, is_core: bool, inboxes: Vec<String>) -> Option<usize> {
        if self.down.contains(&server) {
            return None;
        }
        let limit = self.max_payload;
        self.connections.push(Connection { server, is_core, inboxes, limit, ..Connection::default() });
        Some(self.connections.len() - 1)
    }

    pub fn subscribe(&mut self, connection: usize, inbox: String) {
        self.connections[connection].inboxes.push(inbox);
    }

    /// What the server has closed a connection over.
    pub fn violation(&self, connection: usize) -> Option<Violation> {
        self.connections[connection].violation.clone()
    }

    /// The server's limit, where the client has not been told yet.
    pub fn changed_limit(&mut self, connection: usize) -> Option<usize> {
        let before = std::mem::replace(&mut self.connections[connection].limit, self.max_payload);
        (before != self.max_payload).then_some(self.max_payload)
    }

    /// A stream is deleted and made again.
    pub fn recreate(&mut self, rng: &mut Rng) -> String {
        let index = rng.usize(..self.streams.len());
        let stream = &mut self.streams[index];
        self.forgotten.extend(stream.events.drain().map(|(event, _)| event));
        self.has_forgotten = true;
        stream.messages.clear();
        (stream.last_sequence, stream.synced, stream.is_claimed) = (0, 0, false);
        stream.created_ns += 100_000_000_000;
        stream.key.clone()
    }

    /// The operator deletes what is of a history that PostgreSQL has left; returns how much that was.
    pub fn delete(&mut self, is_lost: impl Fn(&str) -> bool) -> usize {
        let mut deleted = 0;
        for stream in &mut self.streams {
            let before = stream.messages.len();
            stream.messages.retain(|message| !message.event.as_deref().is_some_and(&is_lost));
            stream.events.retain(|event, _| !is_lost(event));
            stream.synced = stream.synced.min(stream.messages.len());
            deleted += before - stream.messages.len();
        }
        deleted
    }

    /// A stream's metadata names the database from here on.
    pub fn claim(&mut self, key: &str) {
        self.streams.iter_mut().find(|stream| stream.key == key).unwrap().is_claimed = true;
    }

    /// Takes bytes of a client; `None`: the connection is lost.
    pub fn write(&mut self, connection: usize, bytes: &[u8]) -> Option<()> {
        let connection = &mut self.connections[connection];
        if connection.is_cut {
            return None;
        }
        connection.inbound.extend(bytes);
        Some(())
    }

    /// The next answer for a client; `Err`: the connection is lost.
    pub fn read(&mut self, connection: usize) -> Result<Option<(String, Vec<u8>, Answer)>, ()> {
        let connection = &mut self.connections[connection];
        match connection.answers.pop_front() {
            None if connection.is_cut => Err(()),
            answer => Ok(answer),
        }
    }

    /// The client has gone (a crash, a cut line): what it had written may still come in, up to some byte.
    pub fn leave(&mut self, connection: usize, rng: &mut Rng, swarm: &Swarm) {
        let connection = &mut self.connections[connection];
        connection.is_left = true;
        let kept = if happens(rng, swarm.late) { rng.usize(..=connection.inbound.len()) } else { 0 };
        // A server reads what has come within moments: long before walhook is back, has asked anew and sent all of core NATS again.
        let kept = if connection.is_core { 0 } else { kept };
        connection.inbound.truncate(kept);
    }

    /// Cuts a connection as the client sees it.
    pub fn cut(&mut self, rng: &mut Rng) {
        let live: Vec<_> = (0..self.connections.len()).filter(|&index| !self.connections[index].is_cut).collect();
        if let Some(&index) = live.get(rng.usize(..live.len().max(1))) {
            self.connections[index].is_cut = true;
            if self.connections[index].is_core {
                self.connections[index].inbound.clear();
            }
            let kept = rng.usize(..=self.connections[index].answers.len());
            self.connections[index].answers.truncate(kept);
        }
    }

    /// Some of the servers, or all.
    pub fn crash(&mut self, servers: &HashSet<i32>) {
        self.down.extend(servers);
        self.retries.clear();
        self.batches.clear();
        for connection in self.connections.iter_mut().filter(|connection| servers.contains(&connection.server)) {
            connection.is_cut = true;
            connection.inbound.clear();
            connection.answers.clear();
        }
    }

    /// All that is stored is on disk.
    pub fn sync(&mut self) {
        for stream in &mut self.streams {
            stream.synced = stream.messages.len();
        }
    }

    /// Loses what is not on disk. What is older than `sync_interval` is.
    pub fn forget(&mut self, rng: &mut Rng, now: u64, sync_interval: Option<u64>) {
        for stream in self.streams.iter_mut().filter(|stream| self.down.contains(&stream.server)) {
            if let Some(interval) = sync_interval {
                let old = stream.messages.partition_point(|message| message.stored_at + interval <= now);
                stream.synced = stream.synced.max(old);
            }
            let keep = rng.usize(stream.synced..=stream.messages.len());
            for message in stream.messages.split_off(keep) {
                self.has_forgotten = true;
                if let Some(event) = message.event {
                    stream.events.remove(&event);
                    self.forgotten.insert(event);
                }
            }
            // Messages that somebody had deleted count in it.
            let last_sequence = stream.messages.last().map_or(0, |message| message.sequence);
            self.has_forgotten |= last_sequence != stream.last_sequence;
            stream.last_sequence = last_sequence;
            stream.synced = keep;
        }
    }

    pub fn foreign(&mut self, stream: usize, now: u64) {
        let stream = &mut self.streams[stream];
        stream.last_sequence += 1;
        let sequence = stream.last_sequence;
        stream.messages.push(Message {
            sequence,
            subject: format!("{}.foreign", stream.name),
            message_id: None,
            event: None,
            core_event: None,
            mark: None,
            payload: Vec::new(),
            epoch: 0,
            object: None,
            schema: None,
            stored_at: now,
        });
    }

    /// Works on what some connection has sent.
    ///
    /// # Errors
    /// The bytes are not what the protocol wants.
    pub fn process(
        &mut self,
        rng: &mut Rng,
        swarm: &Swarm,
        bug: Bug,
        postgres: &Postgres,
        now: u64,
    ) -> Result<(), String> {
        if self.down.is_empty()
            && bug == Bug::RetryOneEvent
            && let Some(publish) = self.retries.pop_front()
        {
            let answer = self.store(&publish, rng, swarm, bug, postgres, now);
            if let Some(reply) = &publish.reply {
                self.answer(reply, answer, rng, swarm);
            }
        }
        let waiting = (0..self.connections.len()).filter(|&index| !self.connections[index].inbound.is_empty());
        let waiting: Vec<_> = waiting.filter(|&index| !self.down.contains(&self.connections[index].server)).collect();
        if waiting.is_empty() {
            return Ok(());
        }
        let index = waiting[rng.usize(..waiting.len())];
        for _ in 0..rng.usize(1..10) {
            let connection = &mut self.connections[index];
            if connection.is_core && connection.inbound.iter().take(6).eq(b"PING\r\n") {
                connection.inbound.drain(..6);
                connection.answers.push_back((String::new(), Vec::new(), Answer::Pong));
                continue;
            }
            if connection.is_core && connection.inbound.len() < 6 {
                break;
            }
            let Some(mut publish) = Publish::read(connection.inbound.make_contiguous())? else {
                if connection.is_left {
                    connection.inbound.clear();
                }
                break;
            };
            connection.inbound.drain(..publish.length);
            publish.server = connection.server;
            if publish.total > self.max_payload {
                // -ERR 'Maximum Payload Violation', and the server closes the connection.
                connection.is_cut = true;
                connection.inbound.clear();
                let text = "Maximum Payload Violation".to_owned();
                connection.violation = Some(Violation { is_size: true, text });
                break;
            }
            if connection.is_core {
                self.hear(publish, rng, swarm, bug, postgres, now);
                continue;
            }
            if happens(rng, swarm.swallow) {
                self.retries.extend(Some(publish).filter(|_| bug == Bug::RetryOneEvent));
                continue;
            }
            let reply = publish.reply.clone();
            let answer = match publish.headers.get("Nats-Batch-Id").cloned() {
                Some(id) if bug != Bug::StoreBatchesAsTheyCome => self.gather(id, publish, rng, swarm, now),
                _ => {
                    let answer = self.store(&publish, rng, swarm, bug, postgres, now);
                    if bug == Bug::RetryOneEvent && !matches!(answer, Answer::Stored { .. } | Answer::Refused(10054)) {
                        self.retries.push_back(publish);
                        None
                    } else {
                        Some(answer)
                    }
                }
            };
            if let (Some(reply), Some(answer)) = (reply, answer) {
                self.answer(&reply, answer, rng, swarm);
            }
        }
        Ok(())
    }

    /// A message for core NATS. A stream that takes its subject stores it as anybody else's, if it can; nobody learns that.
    fn hear(&mut self, publish: Publish, rng: &mut Rng, swarm: &Swarm, bug: Bug, postgres: &Postgres, now: u64) {
        let event = publish.headers.get("Walhook-Id").or(publish.headers.get("Nats-Msg-Id")).cloned().expect("ours");
        let published = CorePublished {
            server: publish.server,
            subject: publish.subject.clone(),
            event: event.clone(),
            payload: publish.payload.clone(),
        };
        self.core_published.push(published);
        self.core_events.insert((publish.server, event));
        let _ = self.store(&publish, rng, swarm, bug, postgres, now);
    }

    /// A message of an atomic batch. `None`: no answer, as more of it is to come.
    fn gather(&mut self, id: String, publish: Publish, rng: &mut Rng, swarm: &Swarm, now: u64) -> Option<Answer> {
        let Some(at) = self.streams.iter().position(|stream| stream.takes(&publish)) else {
            return Some(Answer::NoResponders);
        };
        if let Some(answer) = self.refusing
            && rng.u8(..4) > 0
        {
            return Some(answer);
        }
        if publish.total > self.max_msg_size {
            return Some(Answer::Refused(10054));
        }
        if self.batch_max < 2 {
            return Some(Answer::Refused(10174));
        }
        let is_commit = publish.headers.contains_key("Nats-Batch-Commit");
        let nth: usize = publish.headers["Nats-Batch-Sequence"].parse().unwrap();
        let (batch, touched) = self.batches.entry(id.clone()).or_insert_with(|| (Vec::new(), now));
        let is_late = now.saturating_sub(*touched) > swarm.batch_timeout;
        if is_late || batch.len() + 1 != nth {
            self.batches.remove(&id);
            return Some(Answer::Refused(10176));
        }
        batch.push(publish);
        *touched = now;
        if !is_commit {
            return None;
        }
        let (batch, _) = self.batches.remove(&id)?;
        // nats-server says so only now, as its 2.15 does.
        if nth > self.batch_max {
            return Some(Answer::Refused(10199));
        }
        let stream = &mut self.streams[at];
        let mut staged = HashSet::new();
        for (nth, publish) in batch.iter().enumerate() {
            if publish.headers.get("Nats-Expected-Stream").is_some_and(|expected| *expected != stream.name) {
                return Some(Answer::Refused(10060));
            }
            let message_id = publish.headers.get("Nats-Msg-Id");
            let is_known = |message: &Message| {
                message.message_id.as_ref() == message_id && now.saturating_sub(message.stored_at) < swarm.dedup_window
            };
            if !staged.insert(message_id) || stream.messages.iter().any(is_known) {
                return Some(Answer::Refused(10201));
            }
            match publish.headers.get("Nats-Expected-Last-Sequence").map(|text| text.parse::<u64>().unwrap()) {
                Some(_) if nth > 0 => return Some(Answer::Refused(10164)),
                Some(expected) if expected != stream.last_sequence => return Some(Answer::Refused(10071)),
                _ => {}
            }
        }
        for publish in &batch {
            stream.put(publish, publish.headers.get("Nats-Msg-Id").cloned(), now);
        }
        Some(Answer::Stored { sequence: stream.last_sequence, duplicate: false })
    }

    fn store(
        &mut self,
        publish: &Publish,
        rng: &mut Rng,
        swarm: &Swarm,
        bug: Bug,
        postgres: &Postgres,
        now: u64,
    ) -> Answer {
        let Some(stream) = self.streams.iter_mut().find(|stream| stream.takes(publish)) else {
            return Answer::NoResponders;
        };
        if publish.headers.get("Nats-Expected-Stream").is_some_and(|expected| *expected != stream.name) {
            return Answer::Refused(10060);
        }
        if let Some(answer) = self.refusing
            && rng.u8(..4) > 0
        {
            return answer;
        }
        if publish.total > self.max_msg_size || (publish.total > 3000 && happens(rng, swarm.too_large)) {
            return Answer::Refused(10054);
        }
        let event = || publish.headers.get("Walhook-Id").or(publish.headers.get("Nats-Msg-Id"));
        let message_id = match bug {
            Bug::IdOfRowLsn => event().and_then(|id| row_id(id, postgres)),
            _ => publish.headers.get("Nats-Msg-Id").cloned(),
        };
        let known = || {
            let is_known = |message: &&Message| {
                message.message_id == message_id && now.saturating_sub(message.stored_at) < swarm.dedup_window
            };
            stream.messages.iter().rev().find(is_known).map(|message| message.sequence)
        };
        let duplicate = message_id.as_ref().and_then(|_| known());
        if let Some(sequence) = duplicate
            && !swarm.expected_before_dedup
        {
            return Answer::Stored { sequence, duplicate: true };
        }
        let expected: Option<u64> =
            publish.headers.get("Nats-Expected-Last-Sequence").map(|text| text.parse().unwrap());
        let ignores = matches!(bug, Bug::NoExpectedSequence | Bug::RetryOneEvent);
        if expected.is_some_and(|expected| expected != stream.last_sequence) && !ignores {
            return Answer::Refused(10071);
        }
        if let Some(sequence) = duplicate {
            return Answer::Stored { sequence, duplicate: true };
        }
        Answer::Stored { sequence: stream.put(publish, message_id, now), duplicate: false }
    }

    fn answer(&mut self, reply: &str, answer: Answer, rng: &mut Rng, swarm: &Swarm) {
        if happens(rng, swarm.lose_ack) {
            return;
        }
        let Some((inbox, token)) = reply.rsplit_once('.') else { return };
        let listens = |connection: &&mut Connection| {
            !connection.is_left && !connection.is_cut && connection.inboxes.iter().any(|known| known == inbox)
        };
        // An answer to what an older connection sent comes to the one that listens now.
        if let Some(connection) = self.connections.iter_mut().rev().find(listens) {
            let entry = (inbox.to_owned(), token.as_bytes().to_vec(), answer);
            if happens(rng, swarm.double_ack) {
                connection.answers.push_back(entry.clone());
            }
            connection.answers.push_back(entry);
        }
    }
}

/// What an event would be called by where its row stands in the WAL.
fn row_id(id: &str, postgres: &Postgres) -> Option<String> {
    let (commit_lsn, ordinal, webhook) = position(id)?;
    Some(format!("{:x}-{webhook}", postgres.row_lsn(commit_lsn, ordinal)?))
}

impl Stream {
    fn takes(&self, publish: &Publish) -> bool {
        self.server == publish.server && publish.subject.starts_with(&format!("{}.", self.name))
    }

    fn put(&mut self, publish: &Publish, message_id: Option<String>, now: u64) -> u64 {
        self.last_sequence += 1;
        let sequence = self.last_sequence;
        let event = publish.headers.get("Walhook-Id").or(publish.headers.get("Nats-Msg-Id")).cloned();
        self.message_ids.extend(message_id.clone());
        // What core NATS brought names no stream that it expects.
        let by_core = !publish.headers.contains_key("Nats-Expected-Stream");
        let (event, core_event) = if by_core { (None, event) } else { (event, None) };
        if let Some(event) = &event {
            self.events.insert(event.clone(), sequence);
        }
        self.messages.push(Message {
            sequence,
            subject: publish.subject.clone(),
            message_id,
            event,
            core_event,
            mark: publish.headers.get("Walhook-Transaction").cloned(),
            payload: publish.payload.clone(),
            epoch: publish.headers.get("Walhook-Epoch").map_or(0, |epoch| epoch.parse().unwrap()),
            object: publish.headers.get("Walhook-Object").cloned(),
            schema: publish.headers.get("Walhook-Schema").cloned(),
            stored_at: now,
        });
        sequence
    }
}

/// An `HPUB` as the server's parser reads it.
#[derive(Debug)]
struct Publish {
    /// To which it was sent.
    server: i32,
    subject: String,
    /// Within a batch only the last message asks for an answer.
    reply: Option<String>,
    headers: HashMap<String, String>,
    payload: Vec<u8>,
    /// Of the whole command.
    length: usize,
    /// Of headers and payload.
    total: usize,
}

impl Publish {
    fn read(bytes: &[u8]) -> Result<Option<Publish>, String> {
        let bad = |what: &str| {
            format!("the server cannot parse: {what}: {:?}", bytes[..bytes.len().min(200)].escape_ascii().to_string())
        };
        let Some(line_end) = bytes.windows(2).position(|pair| pair == b"\r\n") else {
            return if bytes.len() > 4096 || !b"HPUB ".starts_with(&bytes[..bytes.len().min(5)]) {
                Err(bad("control line"))
            } else {
                Ok(None)
            };
        };
        let line = std::str::from_utf8(&bytes[..line_end]).map_err(|_| bad("control line"))?;
        let words: Vec<&str> = line.split(' ').filter(|word| !word.is_empty()).collect();
        let (subject, reply, header_length, total) = match words[..] {
            ["HPUB", subject, reply, header_length, total] => (subject, Some(reply.to_owned()), header_length, total),
            ["HPUB", subject, header_length, total] => (subject, None, header_length, total),
            _ => return Err(bad("words")),
        };
        let number = |text: &str| {
            let is_number = text.len() <= 9 && text.bytes().all(|byte| byte.is_ascii_digit());
            is_number.then(|| text.parse::<usize>().ok()).flatten().ok_or_else(|| bad("length"))
        };
        let (header_length, total) = (number(header_length)?, number(total)?);
        let start = line_end + 2;
        if bytes.len() < start + total + 2 {
            return Ok(None);
        }
        if &bytes[start + total..start + total + 2] != b"\r\n" {
            return Err(bad("no CRLF behind the payload"));
        }
        let header = bytes.get(start..start + header_length).ok_or_else(|| bad("header length"))?;
        let header = std::str::from_utf8(header).map_err(|_| bad("header"))?;
        let lines = header.strip_prefix("NATS/1.0\r\n").and_then(|rest| rest.strip_suffix("\r\n\r\n"));
        let mut headers = HashMap::new();
        for line in lines.ok_or_else(|| bad("header block"))?.split("\r\n") {
            let (name, value) = line.split_once(": ").ok_or_else(|| bad("header line"))?;
            if headers.insert(name.to_owned(), value.to_owned()).is_some() {
                return Err(bad("header twice"));
            }
        }
        Ok(Some(Publish {
            server: 0,
            subject: subject.to_owned(),
            reply,
            headers,
            payload: bytes[start + header_length..start + total].to_vec(),
            length: start + total + 2,
            total,
        }))
    }
}
