//! One session: from taking the slot to losing it, or to a shutdown.
//!
//! In: the settings. Out: why it ended. How it begins is in `begin`, what is written into the database in `statements`; here
//! is the one `select!`. Only when the lanes have read their streams' tails is anything published.

mod begin;
mod statements;

use std::{future::poll_fn, rc::Rc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use super::{
    faults::{self, Point},
    gone,
    history_writer::HistoryWriter,
    lanes::Lanes,
    minutes::Minutes,
    read_coalescing::ReadCoalescing,
    replay_requests::ReplayRequests,
    server_shutdown::ServerShutdown,
    shown::Shown,
    webhook_registry::WebhookRegistry,
};
use crate::{
    commands::{
        delaying_interval, http, progress, seal_keys,
        setup_check::{self, Reported},
        systemd::Notify,
    },
    config::Config,
    error::{Error, Result},
    flow::streamer::{Received, Streamer},
    postgres::{
        self,
        replication::{Stream, SystemIdentity},
        sql::Watched,
    },
    wal::{frame::StandbyStatus, lsn::Lsn},
};
pub(super) use begin::refuse_standby;
use statements::Statements;

/// After so long without a word the server is asked where it stands, so that an idle slot moves on.
const IDLE_ASK: Duration = Duration::from_secs(5);
/// After so long without a word, though asked, the connection is given up: a network in between may hold it open for ever.
/// As long as PostgreSQL's own receivers wait (`wal_receiver_timeout`), or as the server does if that is longer: amid a large
/// transaction it speaks up only as often as that makes it.
const SILENCE: Duration = Duration::from_secs(60);

/// Who follows how a session goes.
pub struct Watchers<'w> {
    /// What was logged of the set-up.
    pub reported: &'w Reported,
    /// What is shown by HTTP, where that is served.
    pub shown: &'w mut Option<Shown>,
    /// The service manager.
    pub notify: &'w Notify,
}

/// Streams until shutdown. `streamed` turns true once the slot is ours; `last_error` is why the session before this one
/// ended.
pub async fn session(
    config: &Config,
    shutdown: &mut watch::Receiver<bool>,
    streamed: &mut bool,
    last_error: Option<&str>,
    watchers: Watchers<'_>,
) -> Result<()> {
    let Watchers { reported, shown, notify } = watchers;
    let begun = begin::begin(config, shutdown, streamed, last_error, shown, notify).await?;
    let Some(mut session) = begun else { return Ok(()) };
    let shared = session.shown.as_ref().map(|shown| shown.shared().clone());
    let replay_requests = ReplayRequests::start(config, session.epoch, reported.clone(), shared);
    let in_loop = notify.enter_loop();
    notify.ready();
    notify.status(&session.status());
    let outcome = session.stream(shutdown).await;
    drop(in_loop);
    drop(replay_requests);
    let Session { stream, .. } = session;
    match outcome {
        Ok(()) => {
            faults::reach(Point::LastWords)?;
            stream.finish().await?;
            tracing::info!("slot released");
            Ok(())
        }
        Err(error) => Err(setup_check::explain(config, error).await),
    }
}

struct Session<'c> {
    /// What is told once a minute.
    minutes: Minutes,
    /// The keys with which payloads are sealed.
    seal_keys: seal_keys::Followed,
    /// How many events were in flight when a shutdown was first shown.
    drained_from: Option<u64>,
    config: &'c Config,
    client: Rc<Watched>,
    system: SystemIdentity,
    epoch: u64,
    stream: Stream,
    streamer: Streamer,
    lanes: Lanes,
    statements: Statements,
    last_received: Instant,
    last_asked: Instant,
    server_shutdown: ServerShutdown,
    /// Of the server, that is borne.
    silence: Duration,
    /// How often PostgreSQL gets what is confirmed.
    status_every: Duration,
    history_writer: HistoryWriter,
    last_error: Option<&'c str>,
    /// The window was full and has not emptied enough yet.
    is_paused: bool,
    read_coalescing: ReadCoalescing,
    /// Tells workers what is configured.
    webhook_registry: WebhookRegistry,
    /// Random, of this session.
    run_id: String,
    /// How often it has counted on, and the position behind which the database knows: shown once all before it has arrived, for then
    /// a standby that may take over knows as well.
    beat: Option<(i64, Lsn)>,
    /// What is shown by HTTP, where that is served.
    shown: &'c mut Option<Shown>,
    /// The service manager.
    notify: &'c Notify,
}

impl Session<'_> {
    /// The loop. The arms in their order: (1) shutdown, (2) lanes, (3) status timer, (4) what is shown and reported, (5) SQL, and
    /// whether the server shuts down where there is none, (6) the history writer, (7) the WAL stream.
    async fn stream(&mut self, shutdown: &mut watch::Receiver<bool>) -> Result<()> {
        let mut tick = delaying_interval(self.status_every);
        let mut show = delaying_interval(http::EVERY);
        let is_shown = self.shown.is_some();
        let mut alive = delaying_interval(self.notify.every());
        let mut drain_until: Option<Instant> = None;
        loop {
            let is_reading = drain_until.is_none() && self.pump()?;
            if self.is_paused && drain_until.is_none() {
                ReadCoalescing::rest(
                    (0..self.streamer.lane_count()).map(|index| self.streamer.lane(index).under_way()).sum(),
                );
            }
            self.start_job()?;
            self.history_writer.look(&mut self.streamer, &self.lanes);
            if let Some(what) = self.streamer.left_out() {
                let from = self.streamer.confirmed();
                return Err(Error::unavailable(format!("{what}; reading them again from {from}")));
            }
            if let Some(until) = drain_until
                && (self.streamer.has_nothing_in_flight() || Instant::now() >= until)
            {
                return self.send_final_status(until).await;
            }
            let Session {
                stream, streamer, lanes, statements, server_shutdown, history_writer, read_coalescing, ..
            } = self;
            tokio::select! {
                biased;
                _ = shutdown.wait_for(|stop| *stop), if drain_until.is_none() => {
                    drain_until = Some(self.end_reading()?);
                }
                outcome = poll_fn(|cx| lanes.poll(cx, streamer, !is_reading)) => outcome?,
                _ = tick.tick() => {
                    self.report_on_time()?;
                    if drain_until.is_some() {
                        self.show_drain(false);
                    }
                    faults::reported();
                }
                _ = alive.tick(), if self.notify.is_on() => {
                    self.notify.alive();
                    if drain_until.is_none() {
                        self.notify.ready();
                        self.notify.status_now_and_then(|| self.status());
                    }
                }
                _ = show.tick(), if is_shown => {
                    if let Some(shown) = self.shown {
                        shown.show(&self.streamer, &self.lanes, &self.history_writer);
                    }
                }
                done = statements.run() => match done {
                    Ok(done) => self.finish_job(done),
                    Err(error) => self.server_shutdown.failed(error, &self.client, self.streamer.confirmed())?,
                },
                outcome = server_shutdown.ask() => {
                    outcome?;
                    self.report();
                    self.server_shutdown.look(self.streamer.confirmed(), self.streamer.received())?;
                }
                done = history_writer.run() => self.history_writer.finish(done, &mut self.streamer),
                // Polled last, when the lanes have sent all they could.
                outcome = async { if is_reading { read_coalescing.gather() } stream.drive(is_reading).await } => {
                    outcome?;
                    faults::exchanged()?;
                }
            }
        }
    }

    /// Reads no more, for a shutdown. Returns until when it waits for events in flight.
    fn end_reading(&self) -> Result<Instant> {
        faults::reach(Point::Shutdown)?;
        tracing::info!("stopping: reading has ended; waiting for the acknowledgements of events in flight");
        self.notify.stopping("stopping: waits for the acknowledgements of events in flight");
        Ok(Instant::now() + self.config.shutdown_timeout)
    }

    /// What the status timer is for: the report to PostgreSQL, and a look at the folder of keys.
    fn report_on_time(&mut self) -> Result<()> {
        faults::reach(Point::Report)?;
        self.report();
        if let Some(keys) = self.seal_keys.look() {
            self.streamer.set_seal_keys(keys);
        }
        Ok(())
    }

    /// Takes what is buffered while there is room. Returns whether more may be read.
    fn pump(&mut self) -> Result<bool> {
        let mut heard = 0;
        let has_room = if self.is_paused { self.streamer.has_ample_room() } else { self.streamer.has_room() };
        self.is_paused = !has_room;
        while !self.is_paused {
            let Some(copy_data) = self.stream.next_copy_data()? else { break };
            heard += 1;
            faults::reach(Point::Read)?;
            let received = self.streamer.receive(copy_data)?;
            faults::taken(copy_data)?;
            match received {
                Received::Nothing | Received::UnknownTypes => {}
                Received::ReplyRequested => {
                    self.report();
                    self.server_shutdown.asked(self.streamer.confirmed(), self.streamer.received())?;
                }
            }
            self.is_paused = !self.streamer.has_room();
        }
        self.streamer.follow_rules();
        self.webhook_registry.follow(&self.streamer, &self.lanes)?;
        if let Some((beat, lsn)) = self.beat
            && self.streamer.received() >= lsn
        {
            self.beat = None;
            self.webhook_registry.count_on(beat);
        }
        let now = Instant::now();
        // Whom we do not listen to may well have spoken.
        if heard > 0 || self.is_paused {
            self.last_received = now;
        }
        let silent = self.last_received.elapsed();
        if silent >= self.silence {
            return Err(Error::unavailable(format!(
                "read from PostgreSQL: no byte came for {} s, although walhook asked for an answer",
                silent.as_secs()
            ))
            .hint(
                "check the firewalls and proxies between walhook and PostgreSQL: one may drop connections silently",
            ));
        }
        self.read_coalescing.count(heard, now);
        for notice in self.streamer.take_notices() {
            tracing::warn!("{notice}");
        }
        Ok(!self.is_paused)
    }

    /// Tells PostgreSQL what is confirmed.
    fn report(&mut self) {
        self.streamer.settle();
        self.minutes.look(&self.streamer, &self.lanes);
        let ask = self.last_received.elapsed() >= IDLE_ASK && self.last_asked.elapsed() >= IDLE_ASK;
        if ask {
            self.last_asked = Instant::now();
        }
        let confirmed = self.streamer.confirmed();
        let status = StandbyStatus {
            written: self.streamer.received(),
            flushed: confirmed,
            applied: confirmed,
            sent_at: postgres::now(),
            reply_requested: ask,
        };
        // Where much is unsent already, a later status tells what this one would have.
        let _ = self.stream.queue_copy_data(|out| status.write(out));
    }

    /// What `systemctl status` shows.
    fn status(&self) -> String {
        let unsettled: usize = (0..self.streamer.lane_count()).map(|index| self.streamer.lane(index).len()).sum();
        let closed: Vec<_> = self.lanes.closed(&self.streamer).collect();
        let waits = if closed.is_empty() { String::new() } else { format!("; waits for {}", closed.join(", ")) };
        let (slot, confirmed) = (&self.config.slot, self.streamer.confirmed());
        format!("streams from slot {slot:?}, confirmed {confirmed}, {unsettled} events in flight{waits}")
    }

    /// How many events a shutdown waits for, on a terminal.
    fn show_drain(&mut self, is_end: bool) {
        if !progress::is_watched() {
            return;
        }
        let left: u64 = (0..self.streamer.lane_count()).map(|index| self.streamer.lane(index).len() as u64).sum();
        let all = *self.drained_from.get_or_insert(left.max(1));
        progress::show(&format!("{} {left} events in flight", progress::bar(all.saturating_sub(left), all)), is_end);
    }

    /// The last words of a shutdown: the final status and the checkpoints.
    async fn send_final_status(&mut self, until: Instant) -> Result<()> {
        if self.drained_from.is_some() {
            self.show_drain(true);
        }
        faults::reach(Point::Drained)?;
        if self.streamer.has_nothing_in_flight() {
            tracing::info!(confirmed = %self.streamer.confirmed(), "all acknowledged");
        } else {
            let closed: Vec<_> = self.lanes.closed(&self.streamer).collect();
            tracing::warn!(
                confirmed = %self.streamer.confirmed(),
                closed_streams = closed.join(", "),
                "not all events were acknowledged in time; they will be sent again at the next start"
            );
        }
        self.report();
        if self.client.is_closed() {
            return Err(gone("write the checkpoints"));
        }
        let limit = until.max(Instant::now() + Duration::from_secs(2));
        match timeout_at(limit, self.write_last()).await {
            Ok(outcome) => outcome,
            Err(_) => {
                tracing::warn!("checkpoints and status could not be written in time");
                Ok(())
            }
        }
    }
}
