//! `walhook setup`: migrations, publications, slot. Safe to repeat.

use tokio_postgres::SimpleQueryMessage;

use crate::{
    config::{Config, Options},
    error::{Error, Result},
    postgres::sql,
    text,
};

/// The migrations in their order; each is re-runnable and takes effect whole or not at all.
const MIGRATIONS: [(&str, &str); 9] = [
    ("005_webhooks.sql", include_str!("../../sql/005_webhooks.sql")),
    ("007_nats_integration.sql", include_str!("../../sql/007_nats_integration.sql")),
    ("008_walhook.sql", include_str!("../../sql/008_walhook.sql")),
    ("009_roles.sql", include_str!("../../sql/009_roles.sql")),
    ("010_deliver.sql", include_str!("../../sql/010_deliver.sql")),
    ("011_replay.sql", include_str!("../../sql/011_replay.sql")),
    ("012_identity.sql", include_str!("../../sql/012_identity.sql")),
    ("013_rules.sql", include_str!("../../sql/013_rules.sql")),
    ("014_check.sql", include_str!("../../sql/014_check.sql")),
];

/// Only one setup at a time: two that create the same table would trip over each other.
const LOCK: &str = "SELECT pg_catalog.pg_advisory_lock(7763486874)";

/// Applies everything.
///
/// # Errors
/// A migration that PostgreSQL refuses, by its file; the ones before it stay.
pub async fn setup(config: &Config) -> Result<()> {
    let mut client = sql::connect(&config.postgres).await?;
    let database = config.postgres.target();
    client.batch_execute(LOCK).await.map_err(|error| sql::error("wait for another setup", error))?;
    for (name, text) in MIGRATIONS {
        let attempted = || format!("apply sql/{name} at {database}");
        let transaction = client.transaction().await.map_err(|error| sql::error(attempted(), error))?;
        transaction.batch_execute(text).await.map_err(|error| sql::error(attempted(), error))?;
        transaction.commit().await.map_err(|error| sql::error(attempted(), error))?;
        tracing::info!(migration = name, "applied");
    }
    for (what, statement) in statements(&config.publication, &config.slot) {
        let answer = client
            .simple_query(&statement)
            .await
            .map_err(|error| sql::error(format!("create {what} at {database}"), error))?;
        let result = answer.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        tracing::info!(result, "{what} ready");
    }
    tracing::info!("setup is complete; start with: walhook run");
    Ok(())
}

/// Publications before the slot: a slot cannot decode what lies before its publication.
fn statements(publication: &str, slot: &str) -> [(String, String); 2] {
    let quote = text::sql_literal;
    [
        (
            format!("publications {publication}_inserts and {publication}_changes"),
            format!("SELECT public.rule_cdc_publication_create({})", quote(publication)),
        ),
        (
            format!("slot {slot}"),
            format!("SELECT public.rule_cdc_slot_create({}, true, {})", quote(slot), quote(publication)),
        ),
    ]
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
    // Behind an error psql would go on, and the next part would meet what is not there.
    let mut script = String::from("-- walhook setup, to be run by psql -X\n\\set ON_ERROR_STOP on\n");
    for (name, text) in MIGRATIONS {
        script.push_str(&format!("\n-- sql/{name}\nBEGIN;\n{}\nCOMMIT;\n", text.trim_end()));
    }
    for (what, statement) in statements(&config.publication, &config.slot) {
        script.push_str(&format!("\n-- {what}\n{statement};\n"));
    }
    Ok(script)
}
