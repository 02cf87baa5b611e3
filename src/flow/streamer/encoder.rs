//! Where events go: into the lanes, or among the dead letters.
//!
//! Comes in: changes with their plans. Goes out: messages in the lanes, dead letters, rows of the history. Always holds: an
//! event is counted in the window once and settled, in a lane, among the dead letters, or left out with all after it that
//! the same lane would take; what comes after a dead letter is held back until the letter is durable.

mod called;
mod emitted;

use std::collections::{HashSet, VecDeque};

use serde_json::{Map, Value};

use super::{Counts, DeadLetter, Halted, Limits, Obstacle, WebhookCounts};
use crate::{
    error::{Error, Result},
    flow::{
        event_id::EventPosition,
        history::{History, Origin},
        lane::{Draft, Head, Lane, Noted, Rejected},
        window::Window,
    },
    route::{
        headers,
        payload::{self, Body, TransactionText},
        plan::{Linked, no_stream},
        rules::{Keep, OnError, Rules, Webhook},
        subject, trace,
    },
    wal::{
        change::{Change, Op, Position},
        lsn::Lsn,
    },
};

/// Where events go.
#[derive(Debug)]
pub struct EventEncoder {
    pub source: String,
    pub epoch: u64,
    pub inbox: String,
    pub limits: Limits,
    pub lanes: Vec<Lane>,
    pub window: Window,
    pub dead_letters: VecDeque<DeadLetter>,
    /// Of dead letters that are durable.
    pub history: History,
    pub transaction: TransactionText,
    pub counts: Counts,
    /// Of each webhook, by its index in the rules.
    pub webhook_counts: Vec<WebhookCounts>,
    /// The last event counted there, in this session or the one before: up to there nothing is counted again.
    pub counted: (Lsn, u64),
    /// The same, when this session began.
    pub counted_before: (Lsn, u64),
    /// What the log should tell.
    pub notices: Vec<String>,
    /// Webhooks of which it was told that a trace context cannot be passed on.
    untraced: HashSet<i32>,
    // Working space, kept from event to event.
    pub id: Vec<u8>,
    pub subject: Vec<u8>,
    pub scratch: Vec<u8>,
    pub origin: Origin,
}

impl EventEncoder {
    /// Without a lane yet.
    pub fn new(source: &str, epoch: u64, inbox: &str, limits: Limits, confirmed: Lsn) -> EventEncoder {
        EventEncoder {
            source: source.to_owned(),
            epoch,
            inbox: inbox.to_owned(),
            limits,
            lanes: Vec::new(),
            window: Window::new(confirmed),
            dead_letters: VecDeque::new(),
            history: History::new(limits.history_bytes),
            transaction: TransactionText::default(),
            counts: Counts::default(),
            webhook_counts: Vec::new(),
            counted: (Lsn::ZERO, 0),
            counted_before: (Lsn::ZERO, 0),
            notices: Vec::new(),
            untraced: HashSet::new(),
            id: Vec::new(),
            subject: Vec::new(),
            scratch: Vec::new(),
            origin: Origin::default(),
        }
    }

    /// The rules were compiled anew: the counters go to where their webhooks are now. `before`: the webhooks' ids as they were.
    pub fn follow_webhooks(&mut self, before: &[i32], rules: &Rules) {
        let counts = std::mem::take(&mut self.webhook_counts);
        let mut known = before.iter().zip(counts).peekable();
        // Both are in the order of the ids.
        let of = |webhook: &Webhook| {
            while known.next_if(|(id, _)| **id < webhook.id).is_some() {}
            known.next_if(|(id, _)| **id == webhook.id).map(|(_, counts)| counts).unwrap_or_default()
        };
        self.webhook_counts = rules.webhooks.iter().map(of).collect();
    }

    /// A change of a linked table, for all its links or `only` some.
    pub fn row(&mut self, rules: &Rules, table: &Linked, change: &Change<'_>, only: Option<&[i32]>) -> Result<()> {
        for target in &table.targets {
            if only.is_some_and(|links| !links.contains(&target.link)) {
                continue;
            }
            if !target.wants(change, &table.columns, &mut self.scratch) {
                continue;
            }
            if let Some(Err(wrong)) = trace::of_row(target, change) {
                let webhook = &rules.webhooks[target.webhook];
                let what = format!("a row of {}", table.unescaped);
                self.note_untraced(webhook, &what, &String::from_utf8_lossy(wrong));
            }
            let body = Body::Row { table, target, change };
            self.subject.clear();
            let (lane, problem) = target.address(rules, change, &mut self.subject);
            self.event(rules, target.webhook, body, change, lane, None, problem)?;
        }
        Ok(())
    }

    /// Why nothing of this webhook can be published to the subject that was written.
    fn problem_of_webhook(&self, webhook: &Webhook) -> Option<String> {
        let of_subject = || subject::invalid(&self.subject).map(|why| format!("its subject is invalid: {why}"));
        webhook.problem.clone().or_else(of_subject)
    }

    /// The dead letter of an event whose webhook does not exist; `own`: its own headers.
    fn without_webhook(
        &mut self,
        position: EventPosition,
        op: Op,
        message_id: Option<&[u8]>,
        own: Option<&Map<String, Value>>,
        payload: &[u8],
    ) -> Rejected {
        let id = position.id(&self.source);
        let head = Head { subject: b"", id: id.as_bytes(), message_id, op: op.as_str(), epoch: self.epoch };
        let mut block = Vec::new();
        head.write_ids(&mut block);
        head.write_origin(&mut block);
        if let Some(own) = own {
            headers::write_again(own, &mut block);
        }
        Rejected {
            number: self.window.count_event(),
            position,
            subject: String::new(),
            headers: headers::to_json(&block),
            payload: payload.to_vec(),
            reason: "its webhook does not exist".to_owned(),
            // It has no webhook that a row of the history could name.
            noted: None,
            halts: false,
        }
    }

    /// A trace context that is none is dropped, and its event is not. The first one of a webhook is reported.
    fn note_untraced(&mut self, webhook: &Webhook, what: &str, wrong: &str) {
        if self.untraced.insert(webhook.id) {
            self.notices.push(format!(
                "webhook {} {:?}: {what} has the traceparent {:?}, which is not valid (W3C Trace Context): the event is published \
                 without a trace; further ones are not logged",
                webhook.id,
                webhook.name,
                wrong.chars().take(80).collect::<String>()
            ));
        }
    }

    /// One change for one webhook: into its lane, or among the dead letters.
    #[allow(clippy::too_many_arguments, reason = "what an event is made of; a struct would only name them twice")]
    fn event(
        &mut self,
        rules: &Rules,
        index: usize,
        body: Body<'_>,
        change: &Change<'_>,
        lane: Option<usize>,
        message_id: Option<&[u8]>,
        problem: Option<String>,
    ) -> Result<()> {
        let webhook = &rules.webhooks[index];
        let position = event_position(change.position, webhook.id);
        self.counts.events += 1;
        self.write_id(&position);
        let lane = match (problem, lane) {
            (None, Some(lane)) => lane,
            (problem, _) => {
                self.check_seal(webhook, body)?;
                let reason = problem.unwrap_or_else(|| no_stream(&self.subject));
                self.count_for(index, &position);
                let rejected = self.impossible(webhook, body, change, message_id, reason);
                return self.reject(rules, rejected, Obstacle::Invalid);
            }
        };
        if let Some(reason) = self.lanes[lane].displaces(&position) {
            self.check_seal(webhook, body)?;
            self.count_for(index, &position);
            let mut rejected = self.impossible(webhook, body, change, message_id, reason);
            // The operator has decided already what is to become of this one.
            rejected.halts = false;
            return self.reject(rules, rejected, Obstacle::Refused);
        }
        let is_stored = self.lanes[lane].has(&position)?;
        if is_stored {
            self.counts.skipped += 1;
            if !matches!(webhook.keep, Keep::Everything(_)) {
                return Ok(());
            }
        }
        self.check_seal(webhook, body)?;
        if !is_stored {
            self.count_for(index, &position);
        }
        if !is_stored && self.has_no_place(&self.lanes[lane]) {
            let number = self.window.count_event();
            self.lanes[lane].leave_out(number);
            return Ok(());
        }
        let draft = self.draft(lane, webhook, body, change.op, message_id);
        let lane = &mut self.lanes[lane];
        let number = self.window.count_event();
        if is_stored {
            lane.skip(draft, number, position);
            return Ok(());
        }
        if let Some(schema) = body.schema() {
            lane.names(schema, number, &position);
        }
        match lane.commit(draft, number, position) {
            Ok(()) => Ok(()),
            Err(rejected) => self.reject(rules, *rejected, Obstacle::TooLarge),
        }
    }

    /// Writes the id of an event of this transaction.
    #[inline]
    fn write_id(&mut self, position: &EventPosition) {
        self.id.clear();
        self.id.extend_from_slice(&self.transaction.id_prefix);
        self.id.extend_from_slice(itoa::Buffer::new().format(position.ordinal).as_bytes());
        self.id.push(b'-');
        self.id.extend_from_slice(itoa::Buffer::new().format(position.webhook_id).as_bytes());
    }

    /// Writes the message of an event into its lane's buffer, and beside it what the history is to have of it.
    #[inline]
    fn draft(&mut self, lane: usize, webhook: &Webhook, body: Body<'_>, op: Op, message_id: Option<&[u8]>) -> Draft {
        let (source, transaction) = (&self.source, &self.transaction);
        let lane = &mut self.lanes[lane];
        let head = Head { subject: &self.subject, id: &self.id, message_id, op: op.as_str(), epoch: self.epoch };
        let schema = body.schema();
        let mut draft = lane.draft(head, |out| {
            payload::write_headers(body, webhook, source, transaction, &self.id, out);
            if let Some(schema) = schema {
                out.extend_from_slice(&schema.line);
            }
        });
        if webhook.on_error == OnError::ObjectStore {
            draft.allow_claim();
        }
        if webhook.on_error == OnError::Halt {
            draft.halt_on_error();
        }
        let data = payload::write(body, webhook, source, transaction, &self.id, lane.buffer());
        if webhook.keep != Keep::Nothing {
            self.origin.fill(body, webhook);
            let note = self.origin.note(body, webhook, &self.id, &self.subject, message_id);
            lane.note(&mut draft, data, payload::keep(body, webhook), &note);
        }
        draft
    }

    /// # Errors
    /// The event has to be sealed and there is no key: it waits in the WAL, with all that comes behind it.
    fn check_seal(&self, webhook: &Webhook, body: Body<'_>) -> Result<()> {
        let Some(why) = payload::seal_problem(body, webhook) else { return Ok(()) };
        let id = String::from_utf8_lossy(&self.id);
        Err(Error::unavailable(format!("seal event {id} of webhook {} {:?}: {why}", webhook.id, webhook.name)).hint(
            format!(
                "walhook waits with this and all later events: put the key into that folder, and it continues by itself. If \
                 seal_key is wrong, correct it in rule_webhooks, then run SELECT rule_cdc_rules_amend('{id}')"
            ),
        ))
    }

    /// Whether no session before this one has counted the event for its webhook.
    fn is_new(&self, position: &EventPosition) -> bool {
        (position.commit_lsn, position.ordinal) > self.counted_before
    }

    #[inline]
    fn count_for(&mut self, index: usize, position: &EventPosition) {
        if !self.is_new(position) {
            return;
        }
        self.counted = (position.commit_lsn, position.ordinal);
        if let Some(counts) = self.webhook_counts.get_mut(index) {
            counts.events += 1;
            counts.last = counts.last.max(position.commit_time);
        }
    }

    /// An event that no lane can take.
    fn impossible(
        &mut self,
        webhook: &Webhook,
        body: Body<'_>,
        change: &Change<'_>,
        message_id: Option<&[u8]>,
        reason: String,
    ) -> Rejected {
        let (source, transaction) = (&self.source, &self.transaction);
        let head = Head { subject: &self.subject, id: &self.id, message_id, op: change.op.as_str(), epoch: self.epoch };
        let mut block = Vec::new();
        head.write_ids(&mut block);
        head.write_origin(&mut block);
        payload::write_headers(body, webhook, source, transaction, &self.id, &mut block);
        let mut payload = Vec::new();
        let data = payload::write(body, webhook, source, transaction, &self.id, &mut payload);
        let noted = match payload::keep(body, webhook) {
            Keep::Nothing => None,
            Keep::Failures(keep) | Keep::Everything(keep) => {
                let mut note = Vec::new();
                self.origin.fill(body, webhook);
                self.origin.note(body, webhook, &self.id, &self.subject, message_id).write(None, &mut note);
                Some(Noted { note, keep, data })
            }
        };
        Rejected {
            number: self.window.count_event(),
            position: event_position(change.position, webhook.id),
            subject: String::from_utf8_lossy(&self.subject).into_owned(),
            headers: headers::to_json(&block),
            payload,
            reason,
            noted,
            halts: webhook.on_error == OnError::Halt,
        }
    }

    pub fn reject(&mut self, rules: &Rules, rejected: Rejected, obstacle: Obstacle) -> Result<()> {
        let Rejected { number, position, subject, headers, payload, reason, noted, halts } = rejected;
        let index = rules.webhook(position.webhook_id);
        let webhook = index.map(|index| &rules.webhooks[index]);
        let event_id = position.id(&self.source);
        if halts {
            let name = webhook.map_or("?", |webhook| webhook.name.as_str());
            return Err(Error::config(format!(
                "publish event {event_id} of webhook {} {name:?} to {subject:?}",
                position.webhook_id
            ))
            .caused_by(Halted(reason))
            .hint(format!(
                "the webhook has on_error = 'halt': correct its configuration or set on_error = 'dead_letter', then run \
                 SELECT rule_cdc_rules_amend('{event_id}') to put the corrected rules in force at this event, and start \
                 walhook again"
            )));
        }
        self.counts.dead_letters[obstacle as usize] += 1;
        let is_new = self.is_new(&position);
        if let Some(counts) = index.and_then(|index| self.webhook_counts.get_mut(index)).filter(|_| is_new) {
            counts.dead += 1;
        }
        let letter = DeadLetter {
            event_id,
            webhook_id: position.webhook_id,
            webhook_name: webhook.map(|webhook| webhook.name.clone()),
            subject,
            headers,
            payload: payload.into(),
            reason,
            commit_lsn: position.commit_lsn,
            number,
            position,
            noted,
        };
        let at = self.dead_letters.partition_point(|other| other.number < number);
        self.dead_letters.insert(at, letter);
        self.hold_back();
        Ok(())
    }

    /// What comes after a dead letter must not reach a stream before the letter is durable: after a crash the
    /// stream's tail would say that it was dealt with.
    pub fn hold_back(&mut self) {
        let limit = self.dead_letters.front().map(|letter| letter.number);
        for lane in &mut self.lanes {
            lane.hold_from(limit);
        }
    }

    /// Whether a lane takes no more, and others need not wait for it.
    fn has_no_place(&self, lane: &Lane) -> bool {
        let Limits { window_events, window_bytes, .. } = self.limits;
        lane.leaves_out() || (lane.is_away() && !lane.has_room(window_events, window_bytes) && self.others_flow())
    }

    /// Whether some lane that is in use, or open for what is still to be read, is not away. An open one counts though it had no event yet:
    /// its first may lie behind those of the lane that is away.
    pub fn others_flow(&self) -> bool {
        let is_in_use = |lane: &Lane| lane.is_open() || lane.front().is_some() || lane.counts() != (0, 0);
        self.lanes.iter().any(|lane| !lane.is_away() && is_in_use(lane))
    }

    /// The number of the oldest event that is not settled, or of the next one.
    pub fn oldest(&self) -> u64 {
        self.oldest_by(Lane::oldest)
    }

    /// The same, with what `of_lane` says of each lane.
    pub fn oldest_by(&self, of_lane: impl Fn(&Lane) -> Option<u64>) -> u64 {
        let waiting = self.dead_letters.front().map(|letter| letter.number);
        let lanes = self.lanes.iter().filter_map(of_lane);
        lanes.chain(waiting).chain(self.history.oldest()).min().unwrap_or_else(|| self.window.next())
    }
}

fn event_position(position: Position, webhook_id: i32) -> EventPosition {
    EventPosition {
        commit_lsn: position.commit_lsn,
        commit_time: position.commit_time,
        ordinal: position.ordinal,
        webhook_id,
    }
}
