//! `walhook setup`: migrations, publications, slot. Safe to repeat, also while applications work.

use std::time::Duration;

use tokio_postgres::{Client, SimpleQueryMessage};

use super::{
    backoff::Backoff,
    log_once::LogOnce,
    marks::{self, Mark},
    progress::Steps,
    schema,
};
use crate::{
    config::{Config, Options, Shard},
    error::{Error, Result},
    postgres::{self, sql},
    text,
};

/// What has to be so before anything is changed, and is looked at once more at the end.
const PRECONDITIONS: (&str, &str) = ("004_preconditions.sql", include_str!("../../sql/004_preconditions.sql"));

/// The migrations in their order; each is re-runnable and takes effect whole or not at all. The last one's number is the
/// version of the schema.
pub(super) const MIGRATIONS: &[(&str, &str)] = &[
    ("005_webhooks.sql", include_str!("../../sql/005_webhooks.sql")),
    ("007_nats_integration.sql", include_str!("../../sql/007_nats_integration.sql")),
    ("008_walhook.sql", include_str!("../../sql/008_walhook.sql")),
    ("009_roles.sql", include_str!("../../sql/009_roles.sql")),
    ("010_deliver.sql", include_str!("../../sql/010_deliver.sql")),
    ("011_replay.sql", include_str!("../../sql/011_replay.sql")),
    ("012_identity.sql", include_str!("../../sql/012_identity.sql")),
    ("013_rules.sql", include_str!("../../sql/013_rules.sql")),
    ("014_check.sql", include_str!("../../sql/014_check.sql")),
    ("015_server_aliases.sql", include_str!("../../sql/015_server_aliases.sql")),
    ("016_row_checks.sql", include_str!("../../sql/016_row_checks.sql")),
    ("017_jetstream.sql", include_str!("../../sql/017_jetstream.sql")),
    ("018_outbox.sql", include_str!("../../sql/018_outbox.sql")),
    ("019_last_mile.sql", include_str!("../../sql/019_last_mile.sql")),
    ("020_history.sql", include_str!("../../sql/020_history.sql")),
    ("021_emit.sql", include_str!("../../sql/021_emit.sql")),
    ("022_masks_and_schemas.sql", include_str!("../../sql/022_masks_and_schemas.sql")),
    ("023_delivery.sql", include_str!("../../sql/023_delivery.sql")),
    ("024_rule_versions.sql", include_str!("../../sql/024_rule_versions.sql")),
    ("025_consumer_schemas.sql", include_str!("../../sql/025_consumer_schemas.sql")),
    ("026_sealed_payloads.sql", include_str!("../../sql/026_sealed_payloads.sql")),
    ("027_shards.sql", include_str!("../../sql/027_shards.sql")),
    ("028_schema.sql", include_str!("../../sql/028_schema.sql")),
    ("029_column_changes.sql", include_str!("../../sql/029_column_changes.sql")),
    ("030_receivers_gone.sql", include_str!("../../sql/030_receivers_gone.sql")),
    ("031_older_runs.sql", include_str!("../../sql/031_older_runs.sql")),
    ("032_shard_left.sql", include_str!("../../sql/032_shard_left.sql")),
];

/// What we resolve names by: see sql/004_preconditions.sql.
const SESSION: &str = "SET search_path = pg_catalog, pg_temp; SET lock_timeout = 0; SET statement_timeout = 0";

/// While a statement of ours waits for a lock, everybody who comes after it waits behind it: not for long. Less than
/// `deadlock_timeout` (1 s unless somebody has changed it), so that in a deadlock setup gives way, and no application's transaction.
const LOCK_TIMEOUT: &str = "SET LOCAL lock_timeout = '500ms'";

/// So often a migration is tried that waits for a lock in vain: for some five minutes.
const ATTEMPTS: u32 = 60;

/// Applies everything.
///
/// # Errors
/// A migration that PostgreSQL refuses, by its file; the ones before it stay.
pub async fn setup(config: &Config) -> Result<()> {
    let mut client = sql::connect(&config.postgres).await?;
    let database = config.postgres.target();
    client.batch_execute(SESSION).await.map_err(|error| sql::error("prepare the session", error))?;
    take_turn(&client).await?;
    let process = client.query_one("SELECT pg_catalog.pg_backend_pid()", &[]).await;
    let process: i32 = process.map_err(|error| sql::error("ask which process serves us", error))?.get(0);
    schema::refuse_newer(&client, &database).await?;
    apply(&mut client, PRECONDITIONS, &database).await?;
    let objects = statements(config);
    let mut steps = Steps::of(MIGRATIONS.len() + objects.len());
    let mut step = |done: usize, what: &str| {
        if let Some(steps) = &mut steps {
            steps.done(done, what);
        }
    };
    for (done, migration) in (1..).zip(MIGRATIONS) {
        apply(&mut client, *migration, &database).await?;
        tracing::info!(migration = migration.0, "applied");
        step(done, "steps of setup");
    }
    // Somebody may have been quicker than we.
    apply(&mut client, PRECONDITIONS, &database).await?;
    for (done, (what, statement)) in (MIGRATIONS.len() + 1..).zip(objects) {
        let made = async {
            let made = client.simple_query(&statement).await;
            made.map_err(|error| sql::error(format!("create {what} at {database}"), error))
        };
        let answer = tokio::select! {
            answer = made => answer?,
            () = name_blockers(config, process, &what) => unreachable!("it does not end"),
        };
        let result = answer.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        tracing::info!(result, "{what} ready");
        step(done, "steps of setup");
    }
    let [object, problem, remedy] = ["object", "problem", "remedy"].map(super::bytes_of);
    let rows = format!("SELECT {object}, {problem}, {remedy} FROM walhook.rule_cdc_check_rows()");
    for row in client
        .query(&rows, &[])
        .await
        .map_err(|error| sql::error(format!("check the configuration rows at {database}"), error))?
    {
        let [object, problem, remedy] = [0, 1, 2].map(|column| super::text_of(&row, column).unwrap_or_default());
        tracing::warn!(object, remedy, "a row cannot be used, and its events are set aside: {problem}");
    }
    let shard = config.shard_name().map(|name| format!(" --shard {name}")).unwrap_or_default();
    tracing::info!("setup is complete; start with: walhook run{shard}");
    Ok(())
}

/// Only one setup at a time: two that create the same table would trip over each other. Each marks its session and then looks for
/// the mark of another; two that see each other both step back, and wait for different times.
async fn take_turn(client: &Client) -> Result<()> {
    let (mut backoff, mut logged) = (Backoff::from(Duration::from_millis(50)), LogOnce::default());
    loop {
        marks::set(client, Mark::Setup).await?;
        let others = marks::others(client, Mark::Setup).await?;
        let Some(other) = others.first() else { return Ok(()) };
        marks::set(client, Mark::SetupWaits).await?;
        let marks::Session { process, role } = other;
        let text = format!(
            "another walhook setup works on this database, process {process} of role {role:?}: waiting for its end"
        );
        // Two that step back from each other are no news.
        if backoff.failures() > 3 && logged.is_news(&text) {
            tracing::warn!("{text}; if that session was left behind, end it: SELECT pg_terminate_backend({process})");
        }
        tokio::time::sleep(backoff.next().min(Duration::from_secs(1))).await;
    }
}

/// A slot begins where no transaction is open that has written: PostgreSQL waits for the end of each, however long that takes. Logs
/// for whom it waits, and never ends.
async fn name_blockers(config: &Config, process: i32, what: &str) {
    let mut logged = LogOnce::default();
    loop {
        tokio::time::sleep(Duration::from_secs(2)).await;
        // This is only for the log: what fails here fails the setup as well, or does not matter.
        let Ok(client) = sql::connect(&config.postgres).await else { continue };
        let Ok(blockers) = sql::blockers(&client, process).await else { continue };
        let text = format!("{what} waits for the end of transactions that have written: {}", blockers.join("; "));
        if !blockers.is_empty() && logged.is_news(&text) {
            tracing::warn!("{text}");
        }
    }
}

/// Runs one file in a transaction; where it waits for a lock in vain, again a little later.
async fn apply(client: &mut Client, (name, text): (&str, &str), database: &str) -> Result<()> {
    let attempted = || format!("apply sql/{name} at {database}");
    let mut backoff = Backoff::default();
    for attempt in 1.. {
        let transaction = client.transaction().await.map_err(|error| sql::error(attempted(), error))?;
        let outcome = async {
            transaction.batch_execute(LOCK_TIMEOUT).await?;
            transaction.batch_execute(text).await?;
            transaction.commit().await
        }
        .await;
        let Err(error) = outcome.map_err(|error| sql::error(attempted(), error)) else { return Ok(()) };
        let waits = postgres::sqlstate(&error).is_some_and(|code| WAITS.contains(&code));
        if !waits {
            return Err(error);
        } else if attempt == ATTEMPTS {
            return Err(error.hint(
                "other sessions hold locks on walhook's tables: pg_stat_activity and pg_locks show whose; end their \
                 transactions, then run walhook setup again",
            ));
        }
        let wait = backoff.next().min(Duration::from_secs(5));
        tracing::warn!(migration = name, attempt, retry_in_ms = wait.as_millis(), "{error}");
        tokio::time::sleep(wait).await;
    }
    Ok(())
}

/// lock_not_available, deadlock_detected, object_in_use: the same statement succeeds later.
const WAITS: [&str; 3] = ["55P03", "40P01", "55006"];

/// Publications before the slot: a slot cannot decode what lies before its publication.
fn statements(config: &Config) -> [(String, String); 2] {
    let quote = text::sql_literal;
    let Config { publication, slot, shard, .. } = config;
    let publications = match shard {
        None => (
            format!("publications {publication}_inserts and {publication}_changes"),
            format!("SELECT public.rule_cdc_publication_create({})", quote(publication)),
        ),
        Some(Shard { name, main_slot, main_publication, main_source }) => (
            format!("shard {name}, publications {publication}_inserts and {publication}_changes"),
            format!(
                "SELECT public.rule_cdc_shard_create({}, {}, {}, {})",
                quote(name),
                quote(main_slot),
                quote(main_publication),
                quote(main_source)
            ),
        ),
    };
    let made = (
        format!("slot {slot}"),
        format!("SELECT public.rule_cdc_slot_create({}, true, {})", quote(slot), quote(publication)),
    );
    [publications, made]
}

/// The same as SQL for `psql`, each part in a transaction of its own.
///
/// # Errors
/// Settings that cannot be.
pub fn script(options: &Options) -> Result<String> {
    // Only names matter here; a user satisfies the settings of a connection that is never made.
    let env = |name: &str| std::env::var(name).ok().or_else(|| (name == "PGUSER").then(|| "nobody".to_owned()));
    let config = Config::load(options, env)?;
    if config.publication.contains('\n') {
        return Err(Error::config("the publication's name has a line break"));
    }
    let mut script = String::from(
        "-- walhook setup, to be run by psql -X\n\\set ON_ERROR_STOP on\nSET search_path = pg_catalog, pg_temp;\n",
    );
    for (name, text) in [&PRECONDITIONS].into_iter().chain(MIGRATIONS).chain([&PRECONDITIONS]) {
        script.push_str(&format!("\n-- sql/{name}\nBEGIN;\n{LOCK_TIMEOUT};\n{}\nCOMMIT;\n", text.trim_end()));
    }
    for (what, statement) in statements(&config) {
        script.push_str(&format!("\n-- {what}\n{statement};\n"));
    }
    Ok(script)
}
