//! `walhook uninstall`: removes what walhook made in a database, and its slots.
//!
//! In: a database that was set up, and nobody who streams from it. Out: the database as it was before setup; tables and
//! views that were there before stay. In NATS nothing is removed: streams hold what others may still read.

use std::io::{BufRead, IsTerminal, Write};

use clap::Args;
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::{
    config::{Config, Options},
    error::{Error, Result},
    postgres::sql,
};

const UNINSTALL: &str = include_str!("../../sql/uninstall/uninstall.sql");

/// Whether to ask, and whether to do it.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Print the SQL for a DBA instead of running it
    #[arg(long)]
    pub print: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

/// The session's names are PostgreSQL's own, and it waits for nobody for long.
const SESSION: &str = "SET search_path = pg_catalog, pg_temp; SET lock_timeout = '10s'";

/// All slots of pgoutput in this database that walhook made: the one of the settings, those that its status names, and anchors.
const SLOTS: &str = "SELECT s.slot_name::text, s.active_pid FROM pg_replication_slots s \
    WHERE s.plugin = 'pgoutput' AND s.database = current_database() AND NOT s.temporary AND s.slot_name = ANY ($1) ORDER BY 1";

/// Removes everything.
///
/// # Errors
/// Somebody streams; nobody has said yes; an object of somebody else depends on one of ours: then nothing is changed.
pub async fn uninstall(config: &Config, arguments: &Arguments) -> Result<()> {
    let client = sql::connect(&config.postgres).await?;
    let database = config.postgres.target();
    let attempted = format!("uninstall walhook at {database}");
    let failed = |error| sql::error(&attempted, error);
    client.batch_execute(SESSION).await.map_err(failed)?;
    let mut names = vec![config.slot.clone(), format!("{}_anchor", config.slot)];
    for (table, query) in [
        ("rule_cdc_status", "SELECT slot_name FROM public.rule_cdc_status WHERE slot_name IS NOT NULL"),
        ("rule_cdc_anchor_settings", "SELECT anchor_name FROM public.rule_cdc_anchor_settings"),
    ] {
        let there =
            client.query_one("SELECT to_regclass('public.' || $1) IS NOT NULL", &[&table]).await.map_err(failed)?;
        if there.get(0) {
            names.extend(client.query(query, &[]).await.map_err(failed)?.iter().map(|row| row.get::<_, String>(0)));
        }
    }
    let slots = client.query(SLOTS, &[&names]).await.map_err(failed)?;
    if let Some(slot) = slots.iter().find(|slot| slot.get::<_, Option<i32>>(1).is_some()) {
        return Err(Error::config(format!(
            "{attempted}: process {} streams from slot {:?}",
            slot.get::<_, i32>(1),
            slot.get::<_, String>(0)
        ))
        .hint("stop that walhook first"));
    }
    let slots: Vec<String> = slots.iter().map(|slot| slot.get(0)).collect();
    let going = inventory(&client, &slots).await.map_err(failed)?;
    if !arguments.yes {
        ask(&config.postgres.dbname, &going)?;
    }
    client.batch_execute(&format!("BEGIN; {UNINSTALL}\nCOMMIT")).await.map_err(|error| {
        sql::error(&attempted, error).hint("nothing was changed; drop what depends on walhook's objects first")
    })?;
    for slot in &slots {
        client
            .execute("SELECT pg_drop_replication_slot($1)", &[slot])
            .await
            .map_err(|error| sql::error(format!("drop slot {slot:?} at {database}"), error))?;
    }
    super::say(&format!(
        "walhook is removed from {database}: {going}\nNATS is as it was: streams, consumers, and the bucket {} are there still\n",
        super::bucket::name(&config.source)
    ))
}

/// One line on what goes.
async fn inventory(client: &Client, slots: &[String]) -> Result<String, tokio_postgres::Error> {
    let query = "SELECT format('%s tables and views, %s functions, %s publications', \
        (SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v') AND relname ~ '^rule_(webhook|nats|cdc)'), \
        (SELECT count(*) FROM pg_proc p WHERE p.pronamespace = 'public'::regnamespace AND obj_description(p.oid, 'pg_proc') LIKE 'walhook:%'), \
        (SELECT count(*) FROM pg_publication p WHERE obj_description(p.oid, 'pg_publication') LIKE 'walhook:%'))";
    let answer = client.simple_query(query).await?;
    let objects = answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    let slots = if slots.is_empty() { "no slot".to_owned() } else { format!("slots {}", slots.join(", ")) };
    Ok(format!("{}, {slots}", objects.unwrap_or_default()))
}

/// Asks whoever sits there for the database's name.
fn ask(database: &str, going: &str) -> Result<()> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(Error::config("uninstall: nobody can be asked, for standard input is no terminal")
            .hint("--yes goes on without asking; --print shows the SQL"));
    }
    super::say(&format!(
        "This removes for ever: {going}, with all webhooks, links, history, dead letters, and events that are not published yet.\n\
         Type the name of the database ({database}) to go on: "
    ))?;
    std::io::stdout().flush().map_err(|error| Error::unavailable("ask").caused_by(error))?;
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer).map_err(|error| Error::unavailable("read the answer").caused_by(error))?;
    if answer.trim() == database {
        return Ok(());
    }
    Err(Error::config("uninstall: the answer is not the database's name; nothing was changed"))
}

/// The same as SQL for `psql`.
///
/// # Errors
/// Settings that cannot be.
pub fn script(options: &Options) -> Result<String> {
    let env = |name: &str| std::env::var(name).ok().or_else(|| (name == "PGUSER").then(|| "nobody".to_owned()));
    let config = Config::load(options, env)?;
    let slot = config.slot.replace('\'', "''");
    Ok(format!(
        "-- walhook uninstall, to be run by psql -X, with no walhook running\n\\set ON_ERROR_STOP on\n\
         SET search_path = pg_catalog, pg_temp;\nBEGIN;\n{}\nCOMMIT;\n\n-- slots; those in use are refused\n\
         SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots\n\
         WHERE plugin = 'pgoutput' AND database = current_database() AND slot_name IN ('{slot}', '{slot}_anchor');\n",
        UNINSTALL.trim_end()
    ))
}
