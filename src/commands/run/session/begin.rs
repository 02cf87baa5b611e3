//! How a session begins: check, take the slot, raise the epoch, read the configuration.
//!
//! In: the settings. Out: a [`Session`] that owns the slot, or nothing where walhook was stopped before. Always holds: the slot is
//! taken before anything is written that says that this run publishes, and the epoch is raised before anything is published.

use std::{rc::Rc, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_postgres::Client;

use super::{SILENCE, Session, statements::Statements};
use crate::{
    commands::{
        identity::{self, Runs},
        masks,
        presence::ThisRun,
        rows,
        run::{
            faults::{self, Point},
            history_writer::HistoryWriter,
            lanes::{Identity, Lanes},
            minutes::Minutes,
            read_coalescing::ReadCoalescing,
            rules,
            server_shutdown::ServerShutdown,
            shown::Shown,
            state_store::{self, Epoch},
            webhook_registry::{Poster, WebhookRegistry},
        },
        schema, seal_keys, setup_check,
        systemd::Notify,
    },
    config::Config,
    error::{Error, Result},
    flow::{driver::trust::Checkpoint, streamer::Streamer},
    postgres::{
        self, OBJECT_IN_USE,
        replication::{Connection, Stream, SystemIdentity},
        sql::{self, Watched},
    },
    wal::lsn::Lsn,
};

/// How often a slot that another process holds is tried.
const TAKE_OVER: Duration = Duration::from_millis(500);

/// The database, when it has been checked.
struct Checked {
    client: Watched,
    database: identity::Identity,
    /// Somebody uses `rule_webhook_emit`: without, messages of others in the WAL cost nothing.
    reads_messages: bool,
}

/// The slot, when it is ours.
struct Taken {
    stream: Stream,
    system: SystemIdentity,
    /// Where earlier timelines were left.
    left: Vec<(u32, Lsn)>,
}

/// What the database notes of this run, and knows of those before it.
struct Run {
    confirmed: Lsn,
    epoch: Epoch,
    run_id: String,
    runs: Arc<Runs>,
    checkpoints: Vec<Checkpoint>,
}

/// The session, with the slot taken. `None`: walhook was stopped before. `streamed` turns true once the slot is ours.
pub(super) async fn begin<'c>(
    config: &'c Config,
    shutdown: &mut watch::Receiver<bool>,
    streamed: &mut bool,
    last_error: Option<&'c str>,
    shown: &'c mut Option<Shown>,
    notify: &'c Notify,
) -> Result<Option<Session<'c>>> {
    let Checked { mut client, database, reads_messages } = check(config).await?;
    let taken = match take_slot(config, reads_messages, shutdown, shown, notify).await {
        Err(error) => {
            // Another server may have come behind the address since.
            if let Ok(client) = sql::connect(&config.postgres).await {
                refuse_standby(&client).await?;
            }
            return Err(setup_check::explain(config, error).await);
        }
        Ok(taken) => taken,
    };
    let Some(Taken { stream, system, left }) = taken else { return Ok(None) };
    *streamed = true;
    faults::reach(Point::SlotTaken)?;
    let run = note_run(&client, config, &system, &left).await?;
    let mut streamer = streamer(&mut client, config, &system, &run, reads_messages).await?;
    let Run { confirmed, epoch: Epoch { epoch, fork }, run_id, runs, checkpoints } = run;
    let database_id = &database.database_id;
    tracing::info!(%confirmed, epoch, timeline = system.timeline, system = system.system_id, database_id, "slot taken");
    if let Some(shown) = shown.as_ref() {
        shown.begin(&mut streamer);
    }
    let this_run = ThisRun {
        source: config.source.clone(),
        identity: database.clone(),
        run_id: run_id.clone(),
        epoch,
        timeline: system.timeline,
        postgres: config.postgres.clone(),
    };
    let poster = Poster { run: this_run, runs: Arc::clone(&runs) };
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
    Ok(Some(Session {
        minutes: Minutes::new(config.log_summary, &streamer),
        seal_keys: seal_keys::Followed::new(config, streamer.tables().seal_keys.clone()),
        drained_from: None,
        config,
        client: Rc::new(client),
        system,
        epoch,
        server_shutdown: ServerShutdown::new(config.postgres.only(stream.target())),
        stream,
        streamer,
        lanes,
        statements: Statements::new(),
        last_received: Instant::now(),
        last_asked: Instant::now(),
        silence: timeout.unwrap_or_default().max(SILENCE),
        status_every: status_interval(config, timeout),
        history_writer: HistoryWriter::new(config, epoch),
        last_error,
        is_paused: false,
        read_coalescing: ReadCoalescing::new(Instant::now()),
        webhook_registry: WebhookRegistry::new(poster),
        run_id,
        beat: None,
        shown,
        notify,
    }))
}

/// What must be so before the slot is taken.
async fn check(config: &Config) -> Result<Checked> {
    let client = Watched::connect(&config.postgres).await?;
    client.answer(refuse_standby(&client)).await?;
    client.answer(schema::check(&*client, &config.postgres.target())).await?;
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
    let reads_messages = !client.answer(state_store::emit_keys(&*client)).await?.is_empty();
    Ok(Checked { client, database, reads_messages })
}

/// A standby is waited for: it may be about to be promoted. What it says about slots and privileges would end walhook.
pub async fn refuse_standby(client: &Client) -> Result<()> {
    let attempted = "ask whether the server is a standby";
    let asked = client.query_one("SELECT pg_catalog.pg_is_in_recovery()", &[]).await;
    if asked.map_err(|error| sql::error(attempted, error))?.get(0) {
        return Err(Error::unavailable("take the slot: the server is a standby").hint(
            "walhook goes on when it is promoted; if the URL names several servers, add target_session_attrs=primary",
        ));
    }
    Ok(())
}

/// Starts replication; waits while another process holds the slot. `None`: told to stop before.
async fn take_slot(
    config: &Config,
    reads_messages: bool,
    shutdown: &mut watch::Receiver<bool>,
    shown: &mut Option<Shown>,
    notify: &Notify,
) -> Result<Option<Taken>> {
    let publications = [format!("{}_inserts", config.publication), format!("{}_changes", config.publication)];
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
            Ok::<_, Error>(Taken { stream, system, left })
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

/// Raises the epoch, and notes that this run publishes from here on.
async fn note_run(client: &Watched, config: &Config, system: &SystemIdentity, left: &[(u32, Lsn)]) -> Result<Run> {
    let confirmed = client.answer(state_store::confirmed(client, &config.slot)).await?;
    let raised = state_store::raise_epoch(client, &config.source, system.timeline, left);
    let epoch = client.answer(raised).await?;
    faults::reach(Point::EpochRaised)?;
    client.answer(identity::take_over(client, &config.source)).await?;
    client.answer(identity::hold(client, &config.source, epoch.epoch)).await?;
    let runs = Arc::new(client.answer(Runs::read(client, &config.source)).await?);
    let run_id = format!("{:016x}", fastrand::u64(..));
    let checkpoints = client.answer(state_store::checkpoints(client, &config.source, &system.system_id)).await?;
    Ok(Run { confirmed, epoch, run_id, runs, checkpoints })
}

/// The streamer, by the rules as they were at the slot's position.
async fn streamer(
    client: &mut Watched,
    config: &Config,
    system: &SystemIdentity,
    run: &Run,
    reads_messages: bool,
) -> Result<Streamer> {
    let confirmed = run.confirmed;
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
    if is_first {
        tracing::info!(%confirmed, "recorded the present rules as the first version, in force from the confirmed position on");
    }
    let inbox = config.nats.publish_inbox();
    let streamer = Streamer::new(&config.source, run.epoch.epoch, &inbox, config.limits, tables, types, confirmed);
    let mut streamer = streamer.with_confirm_delay(config.confirm_delay);
    streamer.set_database(&system.dbname);
    streamer.set_newest_rules(newest, true);
    streamer.set_amendments(amendments);
    // Read behind the slot's position: keys that come later are in the WAL.
    streamer.set_emit_keys(client.answer(state_store::emit_keys(&**client)).await?, reads_messages)?;
    if let Some(upto) = doubted_upto {
        streamer.doubt((confirmed, 0), upto);
    }
    Ok(streamer)
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
