//! One session: from taking the slot to losing it, or to a shutdown.
//!
//! In order: check, take the slot, raise the epoch, read the configuration; then the one `select!`. Only when the
//! lanes have read their streams' tails is anything published.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout, timeout_at},
};
use tokio_postgres::Client;

use super::{
    faults::{self, Point},
    gone,
    history_writer::HistoryWriter,
    lanes::{Identity, Lanes},
    minutes::Minutes,
    read_coalescing::ReadCoalescing,
    replay_requests::ReplayRequests,
    rules,
    server_shutdown::ServerShutdown,
    shown::Shown,
    state_store::{self, Epoch},
    webhook_registry::{Poster, WebhookRegistry},
};
use crate::{
    commands::{
        breaks::SHOWS_WITHIN,
        http,
        identity::{self, Runs},
        masks,
        presence::ThisRun,
        progress, rows, schema, seal_keys,
        setup_check::{self, Reported},
        systemd::Notify,
    },
    config::Config,
    error::{Error, Result},
    flow::{
        delay::Due,
        driver::{Found, trust::Checkpoint},
        streamer::{DeadLetter, Received, RulesRead, Streamer},
    },
    postgres::{
        self, OBJECT_IN_USE,
        replication::{Connection, Stream, SystemIdentity},
        sql::{self, Watched},
    },
    route::types::TypeCatalog,
    wal::{frame::StandbyStatus, lsn::Lsn},
};

/// How often a slot that another process holds is tried.
const TAKE_OVER: Duration = Duration::from_millis(500);
/// After so long without a word the server is asked where it stands, so that an idle slot moves on.
const IDLE_ASK: Duration = Duration::from_secs(5);
/// After so long without a word, though asked, the connection is given up: a network in between may hold it open for ever.
/// As long as PostgreSQL's own receivers wait (`wal_receiver_timeout`), or as the server does if that is longer: amid a large
/// transaction it speaks up only as often as that makes it.
const SILENCE: Duration = Duration::from_secs(60);
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
    let mut client = Watched::connect(&config.postgres).await?;
    client.answer(refuse_standby(&client)).await?;
    client.answer(schema::check(&*client, &config.postgres.target())).await?;
    let publications = [format!("{}_inserts", config.publication), format!("{}_changes", config.publication)];
    let database = client.answer(identity::read(&client)).await;
    let is_checked = match &database {
        // Whose database it is comes first, but for a role that may not ask: the check says what it lacks.
        Err(error) => postgres::sqlstate(error) == Some("42501"),
        Ok(_) => true,
    };
    if is_checked {
        setup_check::refuse(config, &client.answer(setup_check::read_for_start(&client, config)).await?)?;
    }
    let database = database?;
    // Messages of others cost nothing where nobody uses rule_webhook_emit.
    let reads_messages = !client.answer(state_store::emit_keys(&*client)).await?.is_empty();
    let taken = match take_slot(config, &publications, reads_messages, shutdown, shown, notify).await {
        Err(error) => {
            // Another server may have come behind the address since.
            if let Ok(client) = sql::connect(&config.postgres).await {
                refuse_standby(&client).await?;
            }
            return Err(setup_check::explain(config, error).await);
        }
        Ok(taken) => taken,
    };
    let Some((stream, system, left)) = taken else { return Ok(()) };
    *streamed = true;
    faults::reach(Point::SlotTaken)?;
    let confirmed = client.answer(state_store::confirmed(&client, &config.slot)).await?;
    let raised = state_store::raise_epoch(&client, &config.source, system.timeline, &left);
    let Epoch { epoch, fork } = client.answer(raised).await?;
    faults::reach(Point::EpochRaised)?;
    client.answer(identity::take_over(&client, &config.source)).await?;
    client.answer(identity::hold(&client, &config.source, epoch)).await?;
    let runs = Arc::new(client.answer(Runs::read(&client, &config.source)).await?);
    let run_id = format!("{:016x}", fastrand::u64(..));
    let checkpoints = client.answer(state_store::checkpoints(&client, &config.source, &system.system_id)).await?;
    let (reader, watch) = client.parts();
    let at = rules::At { source: &config.source, system_identifier: &system.system_id, confirmed };
    let rules::Begin { mut tables, newest, amendments, types, is_first, doubted_upto } =
        watch.answer(rules::begin(reader, at)).await?;
    rows::apply_settings(&mut tables, config);
    tables.mask_key = masks::key(config);
    if let Some(problem) = masks::problem(&tables, &tables.mask_key) {
        tracing::error!("{problem}. Give mask_key_file and start walhook again");
    }
    tables.seal_keys = seal_keys::keys(config);
    if let Some(problem) = seal_keys::problem(&tables, &tables.seal_keys) {
        tracing::error!(finding = "seal_key", "{problem}");
    }
    let seal_keys = seal_keys::Followed::new(config, tables.seal_keys.clone());
    if is_first {
        tracing::info!(%confirmed, "first version of the rules: as they are now, from the confirmed position on");
    }
    let database_id = &database.database_id;
    tracing::info!(%confirmed, epoch, timeline = system.timeline, system = system.system_id, database_id, "slot taken");
    let inbox = config.nats.publish_inbox();
    let streamer = Streamer::new(&config.source, epoch, &inbox, config.limits, tables, types, confirmed);
    let mut streamer = streamer.with_confirm_delay(config.confirm_delay);
    streamer.set_database(&system.dbname);
    streamer.set_newest_rules(newest, true);
    streamer.set_amendments(amendments);
    // Read behind the slot's position: keys that come later are in the WAL.
    streamer.set_emit_keys(client.answer(state_store::emit_keys(&*client)).await?, reads_messages);
    streamer.ask_for_messages()?;
    if let Some(shown) = shown.as_ref() {
        shown.begin(&mut streamer);
    }
    if let Some(upto) = doubted_upto {
        streamer.doubt((confirmed, 0), upto);
    }
    let run = ThisRun {
        source: config.source.clone(),
        identity: database.clone(),
        run_id: run_id.clone(),
        epoch,
        timeline: system.timeline,
        postgres: config.postgres.clone(),
    };
    let poster = Poster { run, runs: Arc::clone(&runs) };
    let identity = Identity {
        source: config.source.clone(),
        database,
        run_id: run_id.clone(),
        runs,
        postgres: config.postgres.clone(),
        epoch,
        fork,
    };
    let lanes = Lanes::new(identity, config, system.flushed, checkpoints);
    let timeout = client.answer(wal_sender_timeout(&client)).await?;
    let interval = status_interval(config, timeout);
    let minutes = Minutes::new(config.log_summary, &streamer);
    let server_shutdown = ServerShutdown::new(config.postgres.only(stream.target()));
    let mut session = Session {
        minutes,
        seal_keys,
        drained_from: None,
        config,
        client: Rc::new(client),
        system,
        epoch,
        stream,
        streamer,
        lanes,
        job: None,
        last_received: Instant::now(),
        last_asked: Instant::now(),
        server_shutdown,
        silence: timeout.unwrap_or_default().max(SILENCE),
        last_checkpoint: Instant::now(),
        checkpoints: Vec::new(),
        last_heartbeat: None,
        last_prune: Some(Instant::now()),
        last_newest: Instant::now(),
        connections: serde_json::Map::new(),
        history_writer: HistoryWriter::new(config, epoch),
        last_error,
        is_paused: false,
        read_coalescing: ReadCoalescing::new(Instant::now()),
        webhook_registry: WebhookRegistry::new(poster),
        run_id,
        beat: None,
        shown,
        notify,
    };
    let shared = session.shown.as_ref().map(|shown| shown.shared().clone());
    let replay_requests = ReplayRequests::start(config, epoch, reported.clone(), shared);
    let in_loop = notify.enter_loop();
    notify.ready();
    notify.status(&session.status());
    let outcome = session.stream(shutdown, interval).await;
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

/// A standby is waited for: it may be about to be promoted. What it says about slots and privileges would end walhook.
pub(super) async fn refuse_standby(client: &Client) -> Result<()> {
    let attempted = "ask whether the server is a standby";
    let asked = client.query_one("SELECT pg_catalog.pg_is_in_recovery()", &[]).await;
    if asked.map_err(|error| sql::error(attempted, error))?.get(0) {
        return Err(Error::unavailable("take the slot: the server is a standby").hint(
            "walhook goes on when it is promoted; where several servers are named, target_session_attrs=primary picks the primary",
        ));
    }
    Ok(())
}

/// Starts replication; waits while another process holds the slot. `None`: told to stop before.
async fn take_slot(
    config: &Config,
    publications: &[String; 2],
    reads_messages: bool,
    shutdown: &mut watch::Receiver<bool>,
    shown: &mut Option<Shown>,
    notify: &Notify,
) -> Result<Option<(Stream, SystemIdentity, Vec<(u32, Lsn)>)>> {
    let names = publications.each_ref().map(|name| format!("\"{}\"", name.replace('"', "\"\""))).join(",");
    let mut said = false;
    loop {
        let mut connection = Connection::connect(&config.postgres).await?;
        let taking = async {
            let system = connection.identify_system().await?;
            let left = connection.timelines_left(system.timeline).await?;
            let messages = if reads_messages { "true" } else { "false" };
            let options = [("proto_version", "1"), ("publication_names", names.as_str()), ("messages", messages)];
            // From 0/0 the server starts where the slot is confirmed; above that it would obey and skip.
            let stream = connection.start_replication(&config.slot, Lsn::ZERO, &options).await?;
            Ok::<_, Error>((stream, system, left))
        };
        let error = match timeout(SILENCE, taking).await {
            Ok(Ok(taken)) => return Ok(Some(taken)),
            Ok(Err(error)) => error,
            Err(_) => {
                let seconds = SILENCE.as_secs();
                return Err(Error::unavailable(format!("take slot {:?}: no answer within {seconds} s", config.slot)));
            }
        };
        if postgres::sqlstate(&error) != Some(OBJECT_IN_USE) {
            return Err(error);
        }
        if !said {
            tracing::info!(finding = "slot_held", slot = config.slot, "{error}; waiting to take over");
            notify.status(&format!("not streaming: {error}; waiting to take over"));
            notify.ready();
            if let Some(shown) = shown {
                shown.disconnected("slot_held", &format!("{error}; waiting to take over"));
            }
            said = true;
        }
        tokio::select! {
            () = sleep(TAKE_OVER) => {}
            _ = shutdown.wait_for(|stop| *stop) => return Ok(None),
        }
    }
}

/// After how much silence the server gives us up; `None`: never.
async fn wal_sender_timeout(client: &Client) -> Result<Option<Duration>> {
    let row = client
        .query_one("SELECT setting::bigint FROM pg_catalog.pg_settings WHERE name = 'wal_sender_timeout'", &[])
        .await
        .map_err(|error| sql::error("read wal_sender_timeout", error))?;
    Ok(u64::try_from(row.get::<_, i64>(0)).ok().filter(|millis| *millis > 0).map(Duration::from_millis))
}

/// The configured one, but at least three times in a `wal_sender_timeout`.
fn status_interval(config: &Config, timeout: Option<Duration>) -> Duration {
    timeout
        .map_or(config.status_interval, |timeout| config.status_interval.min(timeout / 3))
        .max(Duration::from_millis(10))
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
    /// The one statement under way on the SQL connection.
    job: Option<Job>,
    last_received: Instant,
    last_asked: Instant,
    server_shutdown: ServerShutdown,
    /// Of the server, that is borne.
    silence: Duration,
    last_checkpoint: Instant,
    checkpoints: Vec<Checkpoint>,
    last_heartbeat: Option<Instant>,
    last_prune: Option<Instant>,
    last_newest: Instant,
    /// As last reported.
    connections: serde_json::Map<String, serde_json::Value>,
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

type Job = Pin<Box<dyn Future<Output = Result<Done>>>>;

/// What a job achieved.
enum Done {
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

impl Session<'_> {
    /// The loop. The arms in their order: (1) shutdown, (2) lanes, (3) status timer, (4) what is shown and reported, (5) SQL, and
    /// whether the server shuts down where there is none, (6) the history writer, (7) the WAL stream.
    async fn stream(&mut self, shutdown: &mut watch::Receiver<bool>, status: Duration) -> Result<()> {
        let mut tick = interval(status);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut show = interval(http::EVERY);
        show.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let is_shown = self.shown.is_some();
        let mut alive = interval(self.notify.every());
        alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
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
            let Session { stream, streamer, lanes, job, server_shutdown, history_writer, read_coalescing, .. } = self;
            tokio::select! {
                biased;
                _ = shutdown.wait_for(|stop| *stop), if drain_until.is_none() => {
                    faults::reach(Point::Shutdown)?;
                    tracing::info!("stopping: reading has ended; waiting for the acknowledgements of events in flight");
                    self.notify.stopping("stopping: waits for the acknowledgements of events in flight");
                    drain_until = Some(Instant::now() + self.config.shutdown_timeout);
                }
                outcome = poll_fn(|cx| lanes.poll(cx, streamer, !is_reading)) => outcome?,
                _ = tick.tick() => {
                    faults::reach(Point::Report)?;
                    self.report();
                    if let Some(keys) = self.seal_keys.look() {
                        self.streamer.set_seal_keys(keys);
                    }
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
                done = run_job(job) => match done {
                    Ok(done) => self.finish_job(done),
                    Err(error) => {
                        self.job = None;
                        self.server_shutdown.failed(error, &self.client, self.streamer.confirmed())?;
                    }
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

    /// Begins the next statement on the SQL connection, if one is wanted and none is under way.
    fn start_job(&mut self) -> Result<()> {
        if self.job.is_some() || self.server_shutdown.is_without_sql() {
            return Ok(());
        }
        if self.client.is_closed() {
            let error = gone("write what is to be written");
            return self.server_shutdown.failed(error, &self.client, self.streamer.confirmed());
        }
        if let Some(job) = self.next_job() {
            let client = Rc::clone(&self.client);
            self.job = Some(Box::pin(async move { client.answer(job).await }));
        }
        Ok(())
    }

    fn next_job(&mut self) -> Option<Job> {
        let client = Rc::clone(&self.client);
        if let Some((alias, kind, found)) = self.lanes.alias().cloned() {
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
        } else if self.last_prune.is_none_or(|last| last.elapsed() >= PRUNE) {
            self.last_prune = Some(Instant::now());
            let (source, slot) = (self.config.source.clone(), self.config.slot.clone());
            Some(Box::pin(async move {
                let rows = rules::prune(&client, &source, &slot).await?;
                tracing::debug!(rows, "old versions of the rules deleted");
                Ok(Done::RulesPruned)
            }))
        } else if self.last_newest.elapsed() >= NEWEST && self.lanes.has_trouble(&self.streamer) {
            // What waits may hold back the change of a row that mends it.
            self.last_newest = Instant::now();
            Some(Box::pin(async move { rules::newest(&client).await.map(|read| Done::Newest(Box::new(read))) }))
        } else if self.is_heartbeat_due() {
            Some(self.heartbeat(i32::try_from(HEARTBEAT.as_secs()).expect("a few seconds")))
        } else if self.last_checkpoint.elapsed() >= self.checkpoint_interval() {
            self.last_checkpoint = Instant::now();
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
        match self.last_heartbeat {
            None => true,
            Some(last) if last.elapsed() >= HEARTBEAT => true,
            Some(last) => {
                last.elapsed() >= Duration::from_secs(1) && self.lanes.connections(&self.streamer) != self.connections
            }
        }
    }

    /// Says in `rule_cdc_status` that we live.
    fn heartbeat(&mut self, next_in_seconds: i32) -> Job {
        self.last_heartbeat = Some(Instant::now());
        self.connections = self.lanes.connections(&self.streamer);
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
            _ if self.checkpoints.is_empty() => FIRST_CHECKPOINT,
            Duration::ZERO => CHECKPOINT,
            // Without one nothing more is confirmed.
            delay => CHECKPOINT.min(delay / 8),
        }
    }

    /// Writes where the streams stand, if they have moved. What is due is confirmed behind it, if the streams have it still.
    fn checkpoint(&mut self, due: Option<Due>) -> Option<Job> {
        let due = due.and_then(|due| Some((self.lanes.ask(&self.streamer, &due)?, due)));
        let checkpoints = self.lanes.checkpoints(&self.streamer, due.as_ref().map(|(_, due)| due));
        if due.is_none() && (checkpoints.is_empty() || checkpoints == self.checkpoints) {
            return None;
        }
        self.checkpoints.clone_from(&checkpoints);
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

    fn finish_job(&mut self, done: Done) {
        self.job = None;
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
        let last_words = [self.job.take(), self.checkpoint(None), Some(self.heartbeat(0))];
        let written = async {
            for job in last_words.into_iter().flatten() {
                job.await?;
            }
            Ok(())
        };
        match timeout_at(limit, written).await {
            Ok(outcome) => outcome,
            Err(_) => {
                tracing::warn!("checkpoints and status could not be written in time");
                Ok(())
            }
        }
    }
}

/// Pends for ever where there is no job.
async fn run_job(job: &mut Option<Job>) -> Result<Done> {
    match job {
        Some(job) => job.await,
        None => std::future::pending().await,
    }
}
