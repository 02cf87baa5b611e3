//! The version of walhook's schema: of this binary, and of a database.
//!
//! Both are the numbers of files in sql/; `rule_cdc_migrations` has those that a database has had. Comes in: a connection.
//! Goes out: nothing, or which of the two is the older one and what to do.

use tokio_postgres::GenericClient;

use super::setup::MIGRATIONS;
use crate::{
    error::{Error, Result},
    postgres::{self, sql},
};

/// The numbers of this binary's files: `011` of `011_replay.sql`.
fn known() -> impl Iterator<Item = &'static str> {
    MIGRATIONS.iter().map(|(name, _)| name.split_once('_').map_or(*name, |(number, _)| number))
}

/// The newest of them.
pub fn version() -> &'static str {
    known().last().unwrap_or_default()
}

/// The numbers of the files that the database has had; none where walhook was never set up there, or by version 0.1.
async fn applied(client: &impl GenericClient) -> Result<Vec<String>> {
    let failed = |error| sql::error("read the schema's version in rule_cdc_migrations", error);
    let there = "SELECT pg_catalog.to_regclass('public.rule_cdc_migrations') IS NOT NULL";
    if !client.query_one(there, &[]).await.map_err(failed)?.get::<_, bool>(0) {
        return Ok(Vec::new());
    }
    let rows =
        client.query("SELECT version FROM public.rule_cdc_migrations ORDER BY version", &[]).await.map_err(failed)?;
    let versions = rows.iter().map(|row| row.get::<_, String>(0));
    Ok(versions.filter(|version| version.bytes().all(|byte| byte.is_ascii_digit())).collect())
}

fn newer(applied: &[String], database: &str) -> Result<()> {
    match applied.iter().rfind(|there| there.as_str() > version()) {
        Some(newest) => Err(Error::config(format!(
            "walhook's schema at {database} has version {newest}, and walhook {} knows {}: this walhook is the older one",
            env!("CARGO_PKG_VERSION"),
            version()
        ))
        .hint("use the walhook by which the database was set up last, or a newer one; walhook version shows which one this is")),
        None => Ok(()),
    }
}

/// Compares both before something is done with the tables.
///
/// # Errors
/// Configuration: one of the two is older.
pub async fn check(client: &impl GenericClient, database: &str) -> Result<()> {
    let applied = match applied(client).await {
        // What a role may not read here it may not read elsewhere; what needs that says so, with the right that is missing.
        Err(error) if postgres::sqlstate(&error) == Some("42501") => return Ok(()),
        applied => applied?,
    };
    newer(&applied, database)?;
    if known().all(|number| applied.iter().any(|there| there == number)) {
        return Ok(());
    }
    let has = match applied.last() {
        Some(last) => format!("has version {last}"),
        None => "is missing, or of walhook 0.1".to_owned(),
    };
    Err(Error::config(format!(
        "walhook's schema at {database} {has}, and walhook {} needs {}: the database is the older one",
        env!("CARGO_PKG_VERSION"),
        version()
    ))
    .hint("run walhook setup with this walhook, as the role that ran it before"))
}

/// For setup: an older binary must not put its older functions in the place of newer ones.
///
/// # Errors
/// Configuration: this binary is the older one.
pub async fn refuse_newer(client: &impl GenericClient, database: &str) -> Result<()> {
    newer(&applied(client).await?, database)
}
