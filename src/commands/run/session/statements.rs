//! What is written into the database and when: dead letters, versions of the rules, checkpoints, the status.
//!
//! In: what the streamer and the lanes hold, and the clock. Out: statements, one under way at a time, and what each of them achieved.
//! Always holds: what others wait for comes first, and nothing is taken for written before its statement has ended.

use std::{future::Future, pin::Pin, rc::Rc, time::Duration};

use tokio::time::Instant;

use super::Session;
use crate::{
    commands::{
        breaks::SHOWS_WITHIN,
        identity,
        run::{gone, rules, state_store},
    },
    config::Config,
    error::{Error, Result},
    flow::{
        delay::Due,
        driver::{Found, trust::Checkpoint},
        streamer::{DeadLetter, RulesRead},
    },
    route::types::TypeCatalog,
    wal::lsn::Lsn,
};

/// How often checkpoints are written, if streams have moved.
const CHECKPOINT: Duration = Duration::from_secs(10);
/// The same until there is a first one: who has just started it wants to see in the status that it works.
const FIRST_CHECKPOINT: Duration = Duration::from_secs(1);
/// How often `rule_cdc_status` is written, if nothing of note happens.
const HEARTBEAT: Duration = Duration::from_secs(10);
const _: () = assert!(HEARTBEAT.as_secs() <= SHOWS_WITHIN.as_secs());
/// How often versions of the rules that no position needs any more are deleted.
const PRUNE: Duration = Duration::from_secs(3600);
/// How often the rules are read as they are now, while a stream takes nothing: how to reach it may have changed since.
const NEWEST: Duration = Duration::from_secs(5);
/// Dead letters written together.
const BURY_MAX: usize = 200;
/// And so many bytes of their payloads, one at least.
const BURY_BYTES_MAX: usize = 8 << 20;

type Job = Pin<Box<dyn Future<Output = Result<Done>>>>;

/// What a job achieved.
pub(super) enum Done {
    Buried(Vec<String>),
    /// Versions of the rules are durable up to the commit of this number.
    RulesWritten(u64),
    RulesPruned,
    /// The rules as they are now.
    Newest(Box<RulesRead>),
    Types(TypeCatalog),
    Checkpointed(Due),
    Reported(i64, Lsn),
    /// How far the slot is behind.
    Lag(Option<i64>),
    Written,
}

/// The statement under way, and when each kind was last begun.
pub(super) struct Statements {
    under_way: Option<Job>,
    last_checkpoint: Instant,
    /// As last written.
    checkpoints: Vec<Checkpoint>,
    last_heartbeat: Option<Instant>,
    last_prune: Option<Instant>,
    last_newest: Instant,
    /// As last reported.
    connections: serde_json::Map<String, serde_json::Value>,
}

impl Statements {
    /// Nothing is under way.
    pub(super) fn new() -> Statements {
        Statements {
            under_way: None,
            last_checkpoint: Instant::now(),
            checkpoints: Vec::new(),
            last_heartbeat: None,
            last_prune: Some(Instant::now()),
            last_newest: Instant::now(),
            connections: serde_json::Map::new(),
        }
    }

    /// Ends with the statement under way; pends for ever where there is none. Cancel-safe.
    pub(super) async fn run(&mut self) -> Result<Done> {
        let Some(job) = &mut self.under_way else { return std::future::pending().await };
        let outcome = job.await;
        self.under_way = None;
        outcome
    }
}

impl Session<'_> {
    /// Begins the next statement on the SQL connection, if one is wanted and none is under way.
    pub(super) fn start_job(&mut self) -> Result<()> {
        if self.statements.under_way.is_some() || self.server_shutdown.is_without_sql() {
            return Ok(());
        }
        if self.client.is_closed() {
            let error = gone("write what is to be written");
            return self.server_shutdown.failed(error, &self.client, self.streamer.confirmed());
        }
        if let Some(job) = self.next_job() {
            let client = Rc::clone(&self.client);
            self.statements.under_way = Some(Box::pin(async move { client.answer(job).await }));
        }
        Ok(())
    }

    fn next_job(&mut self) -> Option<Job> {
        let client = Rc::clone(&self.client);
        if let Some((alias, kind, found)) = self.lanes.driver().alias().cloned() {
            let (source, system) = (self.config.source.clone(), self.system.system_id.clone());
            let from = self.streamer.confirmed();
            Some(Box::pin(async move {
                rules::write_alias(&client, &source, &system, &alias, kind).await?;
                Err(Error::unavailable(format!("{found}; reading the events again from {from}")))
            }))
        } else if let Some(alias) = self.lanes.take_met() {
            let (source, system) = (self.config.source.clone(), self.system.system_id.clone());
            Some(Box::pin(async move {
                rules::write_alias(&client, &source, &system, &alias, Found::OneServer).await?;
                Ok(Done::Written)
            }))
        } else if self.streamer.awaits_types() {
            let shown = self.streamer.open_transaction();
            Some(Box::pin(async move { state_store::types(&client, shown).await.map(Done::Types) }))
        } else if self.streamer.dead_letters().len() > 0 {
            let mut bytes = 0;
            let mut within = |letter: &&DeadLetter| {
                let is_first = bytes == 0;
                bytes += letter.payload.len().max(1);
                is_first || bytes <= BURY_BYTES_MAX
            };
            let letters: Vec<DeadLetter> =
                self.streamer.dead_letters().take(BURY_MAX).take_while(&mut within).cloned().collect();
            for letter in &letters {
                tracing::warn!(
                    event = letter.event_id,
                    webhook = letter.webhook_name.as_deref().unwrap_or("?"),
                    subject = letter.subject,
                    "dead letter: {}",
                    letter.reason
                );
            }
            Some(Box::pin(async move {
                state_store::write_dead_letters(&client, &letters).await?;
                Ok(Done::Buried(letters.into_iter().map(|letter| letter.event_id).collect()))
            }))
        } else if self.streamer.rule_commits().len() > 0 {
            let commits: Vec<_> = self.streamer.rule_commits().take(rules::COMMITS_MAX).cloned().collect();
            let source = self.config.source.clone();
            Some(Box::pin(async move {
                rules::write(&client, &source, &commits).await?;
                Ok(Done::RulesWritten(commits.last().map_or(0, |commit| commit.number)))
            }))
        } else if self.statements.last_prune.is_none_or(|last| last.elapsed() >= PRUNE) {
            self.statements.last_prune = Some(Instant::now());
            let (source, slot) = (self.config.source.clone(), self.config.slot.clone());
            Some(Box::pin(async move {
                let rows = rules::prune(&client, &source, &slot).await?;
                tracing::debug!(rows, "old versions of the rules deleted");
                Ok(Done::RulesPruned)
            }))
        } else if self.statements.last_newest.elapsed() >= NEWEST && self.lanes.driver().has_trouble(&self.streamer) {
            // What waits may hold back the change of a row that mends it.
            self.statements.last_newest = Instant::now();
            Some(Box::pin(async move { rules::newest(&client).await.map(|read| Done::Newest(Box::new(read))) }))
        } else if self.is_heartbeat_due() {
            Some(self.heartbeat(i32::try_from(HEARTBEAT.as_secs()).expect("a few seconds")))
        } else if self.statements.last_checkpoint.elapsed() >= self.checkpoint_interval() {
            self.statements.last_checkpoint = Instant::now();
            let due = self.streamer.due();
            self.checkpoint(due)
        } else if self.minutes.is_due() {
            let slot = self.config.slot.clone();
            Some(Box::pin(async move { state_store::lag(&client, &slot).await.map(Done::Lag) }))
        } else {
            None
        }
    }

    /// It is time, or a connection has come or gone.
    fn is_heartbeat_due(&mut self) -> bool {
        match self.statements.last_heartbeat {
            None => true,
            Some(last) if last.elapsed() >= HEARTBEAT => true,
            Some(last) => {
                last.elapsed() >= Duration::from_secs(1)
                    && self.lanes.connections(&self.streamer) != self.statements.connections
            }
        }
    }

    /// Says in `rule_cdc_status` that we live.
    fn heartbeat(&mut self, next_in_seconds: i32) -> Job {
        self.statements.last_heartbeat = Some(Instant::now());
        self.statements.connections = self.lanes.connections(&self.streamer);
        let (client, nats, epoch) = (Rc::clone(&self.client), self.lanes.report(&self.streamer), self.epoch);
        let Config { source, slot, publication, .. } = self.config.clone();
        let (received, confirmed) = (self.streamer.received(), self.streamer.confirmed());
        let published = (0..self.streamer.lane_count()).map(|index| self.streamer.lane(index).counts().0).sum();
        let failed = self.streamer.counts().dead_letters.iter().sum();
        let history_lost = self.history_writer.lost();
        let last_error = self.last_error.map(str::to_owned);
        let (run_id, has_marked) = (self.run_id.clone(), self.webhook_registry.has_marked());
        Box::pin(async move {
            let report = state_store::Report {
                source: &source,
                slot: &slot,
                publication: &publication,
                epoch,
                nats,
                received,
                confirmed,
                published,
                failed,
                history_lost,
                last_error: last_error.as_deref(),
                next_in_seconds,
            };
            state_store::report(&client, &report).await?;
            if has_marked {
                identity::accept_no_more(&client, &source).await?;
            }
            let (beat, lsn) = identity::beat(&client, &source, &run_id, epoch).await?;
            Ok(Done::Reported(beat, lsn))
        })
    }

    fn checkpoint_interval(&self) -> Duration {
        match self.config.confirm_delay {
            _ if self.statements.checkpoints.is_empty() => FIRST_CHECKPOINT,
            Duration::ZERO => CHECKPOINT,
            // Without one nothing more is confirmed.
            delay => CHECKPOINT.min(delay / 8),
        }
    }

    /// Writes where the streams stand, if they have moved. What is due is confirmed behind it, if the streams have it still.
    fn checkpoint(&mut self, due: Option<Due>) -> Option<Job> {
        let due = due.and_then(|due| Some((self.lanes.ask(&self.streamer, &due)?, due)));
        let checkpoints = self.lanes.driver().checkpoints(&self.streamer, due.as_ref().map(|(_, due)| due));
        if due.is_none() && (checkpoints.is_empty() || checkpoints == self.statements.checkpoints) {
            return None;
        }
        self.statements.checkpoints.clone_from(&checkpoints);
        let (client, source, epoch) = (Rc::clone(&self.client), self.config.source.clone(), self.epoch);
        let (system, timeline) = (self.system.system_id.clone(), self.system.timeline);
        Some(Box::pin(async move {
            let mut done = Done::Written;
            if let Some((asked, due)) = due {
                if !asked.await? {
                    // Some stream has no answer now: that much is not confirmed, and not said.
                    return Ok(done);
                }
                done = Done::Checkpointed(due);
            }
            state_store::checkpoint(&client, &source, epoch, &system, timeline, &checkpoints).await?;
            Ok(done)
        }))
    }

    pub(super) fn finish_job(&mut self, done: Done) {
        match done {
            Done::Buried(events) => {
                tracing::warn!(
                    finding = "dead_letters",
                    count = events.len(),
                    first = events.first(),
                    "events became dead letters: see `walhook dead-letters list`"
                );
                for event in events {
                    self.streamer.dead_letter_written(&event);
                }
            }
            Done::Types(types) => self.streamer.set_types(types),
            Done::Checkpointed(due) => self.streamer.checkpointed(due),
            Done::RulesWritten(number) => self.streamer.rules_written(number),
            Done::Newest(read) => {
                self.streamer.set_newest_rules(*read, false);
                self.streamer.follow_newest_rules();
            }
            // One that waits to be shown comes first.
            Done::Reported(beat, lsn) => self.beat = self.beat.or(Some((beat, lsn))),
            Done::Lag(lag) => self.minutes.tell(lag, &self.streamer, &self.lanes),
            Done::Written | Done::RulesPruned => {}
        }
    }

    /// What a shutdown writes: what is under way, the checkpoints, and that we live no longer.
    pub(super) async fn write_last(&mut self) -> Result<()> {
        let last = [self.statements.under_way.take(), self.checkpoint(None), Some(self.heartbeat(0))];
        for job in last.into_iter().flatten() {
            job.await?;
        }
        Ok(())
    }
}
