//! `walhook adopt`: a copy of a database becomes a database of its own, or a database that was moved stays the same.
//!
//! In: a database with an identity. Out: a new identity, and everything put aside that belongs to the database it was copied
//! from: checkpoints, epochs, runs, status, open replays and backfills, and the slot. With `--same`: the same identity, noted for the PostgreSQL
//! and the database that this is now. Nothing in NATS is touched. All in one transaction, but for the slot. With `--stream`: see [`stream`].

mod stream;

use std::io::{BufRead, IsTerminal, Write};

use clap::Args;
use tokio_postgres::{Client, Transaction};

use super::identity::{self, ANY_RUN, Compared};
use crate::{
    config::Config,
    error::{Error, Result},
    postgres::sql,
};

/// Which of the two, and whether to ask.
#[derive(Debug, Args)]
pub struct Arguments {
    /// It is the same database, moved by pg_upgrade, dump or restore, and the original no longer runs: keep the identity
    #[arg(long)]
    same: bool,
    /// Only note in the metadata of this stream that it belongs to this database
    #[arg(long, value_name = "NAME", conflicts_with = "same")]
    stream: Option<String>,
    /// Do not ask before it
    #[arg(long)]
    yes: bool,
}

/// Tables of which every row belongs to the database that published so far. A table that is not there is passed over.
const PUT_ASIDE: [&str; 9] = [
    "public.rule_nats_checkpoints",
    "public.rule_cdc_status",
    "walhook.rule_cdc_runs",
    "walhook.rule_cdc_claims",
    "walhook.rule_cdc_anchor_settings",
    "walhook.rule_cdc_anchor_places",
    "public.rule_cdc_rule_amendments",
    "walhook.rule_cdc_rule_versions",
    "walhook.rule_cdc_rule_sources",
];
/// What is open there will not be finished here.
const END: [&str; 2] = [
    "UPDATE public.rule_cdc_replays SET status = 'cancelled', finished_at = now(), updated_at = now() \
     WHERE status IN ('requested', 'running', 'interrupted')",
    "UPDATE walhook.rule_cdc_backfill_jobs SET status = 'cancelled' WHERE status = 'running'",
];
const CONFIGURATIONS: &str =
    "SELECT config_name, nats_url FROM public.rule_nats_config WHERE enabled IS NOT FALSE ORDER BY config_id";

/// Does it.
///
/// # Errors
/// Nobody has agreed; walhook runs here; PostgreSQL refuses.
pub async fn adopt(config: &Config, arguments: &Arguments) -> Result<()> {
    if let Some(name) = &arguments.stream {
        return stream::adopt(config, name, arguments.yes).await;
    }
    let mut client = super::connect(config).await?;
    let compared = identity::compare(&client).await?;
    refuse_running(&client, config).await?;
    super::say(&explain(&compared, config, arguments))?;
    if !arguments.yes {
        ask()?;
    }
    let failed = |error| sql::error("adopt the database", error);
    let transaction = client.transaction().await.map_err(failed)?;
    let id = if arguments.same { keep(&transaction, config).await? } else { renew(&transaction, &compared).await? };
    transaction.commit().await.map_err(failed)?;
    if arguments.same {
        return super::say(&format!("this is database {id} from now on; go on with: walhook run\n"));
    }
    let mut text = format!("this is database {id} from now on\n");
    for slot in [config.slot.clone(), format!("{}_anchor", config.slot)] {
        if drop_slot(&client, &slot).await? {
            text.push_str(&format!("slot {slot} of the copied database is dropped; setup makes a new one\n"));
        }
    }
    let rows = client.query(CONFIGURATIONS, &[]).await.map_err(|error| sql::error("read rule_nats_config", error))?;
    for row in rows {
        let (name, url): (&str, Option<&str>) = (row.get(0), row.get(1));
        let shown = url.map_or("no server", |url| url.rsplit_once('@').map_or(url, |(_, server)| server));
        text.push_str(&format!("its NATS configuration {name:?} still leads to {shown}\n"));
    }
    text.push_str(
        "next: give it a NATS server of its own, or a stream_name and a subject_prefix of its own (rule_nats_config), then: \
         walhook setup, walhook run\n",
    );
    super::say(&text)
}

/// What is about to happen.
fn explain(compared: &Compared, config: &Config, arguments: &Arguments) -> String {
    let database = config.postgres.target();
    let id = &compared.identity.database_id;
    let difference = match compared.difference() {
        Some((difference, _)) => difference,
        None => "it was made for this database, or this is a copy of its files".to_owned(),
    };
    let what = if arguments.same {
        "The database keeps this identity. The database that it was moved from must not run any more."
    } else {
        "The database gets a new identity, as a copy of another one. Checkpoints, status and open replays of the other one are put \
         aside (rule_cdc_put_aside), and the replication slot is dropped."
    };
    format!("{database} has the identity {id}: {difference}.\n{what}\n")
}

fn ask() -> Result<()> {
    let refused =
        |why: &str| Error::config(format!("adopt the database: {why}")).hint("--yes agrees without being asked");
    if !std::io::stdin().is_terminal() {
        return Err(refused(
            "the command asks for confirmation, and standard input is not a terminal: run it with --yes",
        ));
    }
    super::say("Go on? Type yes: ")?;
    let _ = std::io::stdout().flush();
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    match read {
        Ok(_) if answer.trim() == "yes" => Ok(()),
        _ => Err(refused("the answer was not yes")),
    }
}

/// A run that is at it would go on with what it has read.
async fn refuse_running(client: &Client, config: &Config) -> Result<()> {
    let attempted = "check whether walhook streams from this database";
    let row = client
        .query_opt(
            "SELECT active_pid FROM pg_catalog.pg_replication_slots \
             WHERE slot_name::text = $1 AND database::text = pg_catalog.current_database() AND active",
            &[&config.slot],
        )
        .await
        .map_err(|error| sql::error(attempted, error))?;
    match row {
        Some(_) => Err(Error::config(format!("adopt the database: slot {:?} is in use", config.slot))
            .hint("stop `walhook run` of this database first")),
        None => Ok(()),
    }
}

/// The same identity for where the database is now.
async fn keep(transaction: &Transaction<'_>, config: &Config) -> Result<String> {
    let failed = |error| sql::error("keep the identity", error);
    let row = transaction
        .query_one(
            "UPDATE public.rule_cdc_identity i SET adopted_at = now(), database_oid = d.oid::bigint, database_name = d.datname, \
                 system_identifier = s.system_identifier::text \
             FROM pg_catalog.pg_control_system() s, pg_catalog.pg_database d \
             WHERE d.datname = pg_catalog.current_database() RETURNING i.database_id",
            &[],
        )
        .await
        .map_err(failed)?;
    // Positions of another PostgreSQL say nothing here; the epochs go on.
    transaction
        .execute(
            "WITH gone AS (DELETE FROM public.rule_nats_checkpoints c USING public.rule_cdc_identity i \
                           WHERE c.system_identifier <> i.system_identifier RETURNING c.*) \
             INSERT INTO public.rule_cdc_put_aside (database_id, table_name, contents) \
             SELECT $1, 'rule_nats_checkpoints', to_jsonb(gone) FROM gone",
            &[&row.get::<_, &str>(0)],
        )
        .await
        .map_err(failed)?;
    transaction
        .execute(
            "INSERT INTO walhook.rule_cdc_runs (source, run_id, beat) \
             SELECT DISTINCT s.source, $1, 0 FROM (SELECT source FROM public.rule_nats_checkpoints UNION SELECT $2) s \
             ON CONFLICT (source, run_id) DO NOTHING",
            &[&ANY_RUN, &config.source],
        )
        .await
        .map_err(failed)?;
    Ok(row.get(0))
}

/// Another identity.
async fn renew(transaction: &Transaction<'_>, compared: &Compared) -> Result<String> {
    let failed = |error| sql::error("give the database an identity of its own", error);
    let old = &compared.identity.database_id;
    for table in PUT_ASIDE {
        let (_, name) = table.split_once('.').unwrap_or_default();
        let there =
            transaction.query_one("SELECT pg_catalog.to_regclass($1) IS NOT NULL", &[&table]).await.map_err(failed)?;
        if !there.get::<_, bool>(0) {
            continue;
        }
        let statement = format!(
            "WITH gone AS (DELETE FROM {table} RETURNING *) \
             INSERT INTO public.rule_cdc_put_aside (database_id, table_name, contents) \
             SELECT $1, '{name}', to_jsonb(gone) FROM gone"
        );
        transaction.execute(&statement, &[old]).await.map_err(failed)?;
    }
    for statement in END {
        transaction.execute(statement, &[]).await.map_err(failed)?;
    }
    let row = transaction
        .query_one(
            "UPDATE public.rule_cdc_identity i SET adopted_at = now(), previous_ids = i.previous_ids || i.database_id, \
                 database_id = left(replace(pg_catalog.gen_random_uuid()::text, '-', ''), 16), is_upgraded = false, \
                 database_oid = d.oid::bigint, database_name = d.datname, system_identifier = s.system_identifier::text \
             FROM pg_catalog.pg_control_system() s, pg_catalog.pg_database d \
             WHERE d.datname = pg_catalog.current_database() RETURNING i.database_id",
            &[],
        )
        .await
        .map_err(failed)?;
    Ok(row.get(0))
}

/// Drops the slot that came along with the files of the other database, if it did.
async fn drop_slot(client: &Client, slot: &str) -> Result<bool> {
    let dropped = client
        .execute(
            "SELECT pg_catalog.pg_drop_replication_slot(slot_name) FROM pg_catalog.pg_replication_slots \
             WHERE slot_name::text = $1 AND database::text = pg_catalog.current_database() AND NOT active",
            &[&slot],
        )
        .await
        .map_err(|error| sql::error(format!("drop slot {slot:?} of the copied database"), error))?;
    Ok(dropped > 0)
}
