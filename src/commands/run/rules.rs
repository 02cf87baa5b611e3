//! The rules by LSN: versions of the configuration rows in `rule_cdc_rule_versions`, from which every session begins with the
//! rules as they were at the slot's confirmed position.
//!
//! In: what the streamer saw change, with its commit's position. Out: the rows as of a position, amendments, and the newest
//! rows. What always holds: a version is durable before PostgreSQL is told that anything behind its commit is done, and a
//! version is deleted only when no position to which the slot can go back needs it.

use std::collections::BTreeMap;

use bytes::BytesMut;
use tokio_postgres::{
    Client, GenericClient, Transaction,
    types::{IsNull, ToSql, Type, to_sql_checked},
};

use super::faults::{self, Point};
use crate::{
    commands::rows::{self, missing_table},
    error::{Error, Result},
    flow::{
        driver::Found,
        streamer::{Amendment, RuleCommit, RulesRead},
    },
    postgres::sql,
    route::{
        tables::{RowText, ServerAlias, Table, Tables},
        types::TypeCatalog,
    },
    wal::lsn::Lsn,
};

/// How long a version is kept at least after a later one has replaced it: a standby's copy of the slot, or of a base backup,
/// may be that much older than the slot itself.
const KEPT_DAYS: i32 = 7;

/// What `rule_cdc_rules_forget` writes in place of PostgreSQL's system identifier.
const FORGOTTEN: &str = "forgotten";

/// How many transactions' versions are written as one piece of work.
pub const COMMITS_MAX: usize = 100;

/// All that a session begins with.
pub struct Begin {
    /// The rows as they were at the confirmed position.
    pub tables: Tables,
    /// As a statement reads them now.
    pub newest: RulesRead,
    /// In the order of their events.
    pub amendments: Vec<Amendment>,
    /// The types.
    pub types: TypeCatalog,
    /// There were no versions yet: those of now are the first.
    pub is_first: bool,
    /// Events up to there may have been published by other rules: there were no versions when they were read.
    pub doubted_upto: Option<Lsn>,
}

/// Whose versions, and of when.
#[derive(Debug, Clone, Copy)]
pub struct At<'a> {
    /// The name of the feed.
    pub source: &'a str,
    /// PostgreSQL's.
    pub system_identifier: &'a str,
    /// The slot's confirmed position.
    pub confirmed: Lsn,
}

/// Reads the rules as of `at`. The first time it makes the rules of now the first version.
///
/// # Errors
/// A table is missing or may not be read; versions from so long ago are gone.
pub async fn begin(client: &mut Client, at: At<'_>) -> Result<Begin> {
    let (begin, versions) = load(client, at).await?;
    match versions {
        Versions::Known => {}
        Versions::None | Versions::Forgotten => first(client, at, &begin.newest, begin.doubted_upto).await?,
        Versions::From(complete_from) => {
            return Err(Error::untrusted(format!(
                "{}, and the slot has gone back further",
                too_early(at, complete_from)
            ))
            .hint(format!(
                "to publish the unconfirmed events by the present rules (events may come twice): SELECT rule_cdc_rules_forget('{}')",
                at.source.replace('\'', "''")
            )));
        }
    }
    Ok(begin)
}

/// The same for a replay, which writes nothing.
///
/// # Errors
/// As [`begin`]; there are no versions from that time.
pub async fn begin_replay(client: &mut Client, at: At<'_>) -> Result<Begin> {
    let (begin, versions) = load(client, at).await?;
    let problem = match versions {
        Versions::Known => return Ok(begin),
        Versions::None | Versions::Forgotten => {
            format!("read the rules as of {}: `walhook run` has kept no versions of them yet", at.confirmed)
        }
        Versions::From(complete_from) => too_early(at, complete_from),
    };
    Err(Error::config(problem).hint("--rules now (in SQL p_rules => 'now') replays by the rules as they are now"))
}

fn too_early(at: At<'_>, complete_from: Lsn) -> String {
    format!(
        "read the rules as of {}: versions for source {:?} are kept from {complete_from} on",
        at.confirmed, at.source
    )
}

/// What versions there are for a position.
enum Versions {
    Known,
    None,
    /// There were some until `rule_cdc_rules_forget`.
    Forgotten,
    /// Only from there on.
    From(Lsn),
}

async fn load(client: &mut Client, at: At<'_>) -> Result<(Begin, Versions)> {
    let attempted = "read the rules";
    let transaction = rows::snapshot(client, attempted).await?;
    let newest = read(&transaction).await?;
    let types = super::state_store::read_types(&transaction).await?;
    let known = transaction
        .query_opt(
            "SELECT system_identifier, complete_from::text, doubted_upto::text FROM walhook.rule_cdc_rule_sources \
             WHERE source = $1",
            &[&at.source],
        )
        .await
        .map_err(|error| missing_table(sql::error(attempted, error)))?;
    let versions = match &known {
        // Positions of another PostgreSQL's WAL say nothing here.
        Some(row) if row.get::<_, &str>(0) == at.system_identifier => match lsn(attempted, row.get(1))? {
            complete_from if at.confirmed < complete_from => Versions::From(complete_from),
            _ => Versions::Known,
        },
        Some(row) if row.get::<_, &str>(0) == FORGOTTEN => Versions::Forgotten,
        _ => Versions::None,
    };
    let amendments = amendments(&transaction, at).await?;
    let mut tables = match versions {
        Versions::Known => as_of(&transaction, at, &newest).await?,
        Versions::None | Versions::Forgotten | Versions::From(_) => newest.tables.clone(),
    };
    tables.aliases = aliases(&transaction, at).await?;
    transaction.commit().await.map_err(|error| sql::error(attempted, error))?;
    let is_first = matches!(versions, Versions::None | Versions::Forgotten);
    let doubted_upto = match versions {
        Versions::Known => {
            let noted = known.and_then(|row| row.get::<_, Option<String>>(2));
            noted.map(|upto| lsn(attempted, &upto)).transpose()?
        }
        Versions::Forgotten => Some(newest.upto),
        Versions::None | Versions::From(_) => None,
    };
    Ok((Begin { tables, newest, amendments, types, is_first, doubted_upto }, versions))
}

/// The configuration rows as they are now.
///
/// # Errors
/// A table is missing or may not be read.
pub async fn newest(client: &Client) -> Result<RulesRead> {
    let failed = |error| sql::error("read the configuration tables", error);
    client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await.map_err(failed)?;
    let outcome = read(client).await;
    let ended = client.batch_execute(if outcome.is_ok() { "COMMIT" } else { "ROLLBACK" }).await;
    outcome.and_then(|read| ended.map(|()| read).map_err(failed))
}

/// Rows, snapshot and position; `client` is a transaction that has one snapshot.
async fn read(client: &impl GenericClient) -> Result<RulesRead> {
    let attempted = "read the configuration tables";
    let rows = rows::read_text(client).await?;
    let mut tables = Tables::default();
    for ((table, _), row) in &rows {
        tables.put_text(*table, row)?;
    }
    let shown = client
        .query_one("SELECT pg_catalog.pg_current_snapshot()::text, pg_catalog.pg_current_wal_insert_lsn()::text", &[])
        .await
        .map_err(|error| sql::error(attempted, error))?;
    let snapshot = shown.get::<_, &str>(0).parse();
    let snapshot = snapshot.map_err(|error: String| Error::protocol(attempted).caused_by(error))?;
    Ok(RulesRead { tables, rows, snapshot, upto: lsn(attempted, shown.get(1))? })
}

/// The rows as of `at`. Most are as they are now: they are shared with the newest ones.
async fn as_of(client: &Transaction<'_>, at: At<'_>, now: &RulesRead) -> Result<Tables> {
    let attempted = || format!("read the rules as of {}", at.confirmed);
    let found = client
        .query(
            // In the order of the primary key, backwards: with 10,000 webhooks a sort took longer than all else at the start.
            "SELECT newest.table_name, newest.row_data::text, newest.row_id FROM (\
                 SELECT DISTINCT ON (v.table_name, v.row_id) v.table_name, v.row_data, v.row_id \
                 FROM walhook.rule_cdc_rule_versions v \
                 WHERE v.source = $1 AND v.since_lsn < $2::text::pg_lsn \
                 ORDER BY v.table_name DESC, v.row_id DESC, v.since_lsn DESC) newest",
            &[&at.source, &at.confirmed.to_string()],
        )
        .await
        .map_err(|error| missing_table(sql::error(attempted(), error)))?;
    let mut tables = Tables::default();
    let mut orders: BTreeMap<Table, Vec<usize>> = BTreeMap::new();
    for row in &found {
        let Some(text) = row.get::<_, Option<&str>>(1) else { continue };
        let table = table(row.get(0)).ok_or_else(|| Error::protocol(attempted()))?;
        let id = row.get(2);
        let order = orders.entry(table).or_default();
        if now.rows.get(&(table, id)).is_some_and(|row| row.is_json(text, order))
            && tables.share(table, id, &now.tables)
        {
            continue;
        }
        let row: RowText = serde_json::from_str(text).map_err(|error| Error::protocol(attempted()).caused_by(error))?;
        tables.put_text(table, &row)?;
    }
    Ok(tables)
}

async fn amendments(client: &Transaction<'_>, at: At<'_>) -> Result<Vec<Amendment>> {
    let attempted = "read the amendments of the rules";
    let found = client
        .query(
            "SELECT at_lsn::text, at_ordinal, rules::text, snapshot, made_at_lsn::text \
             FROM public.rule_cdc_rule_amendments \
             WHERE source = $1 AND system_identifier = $2 AND made_at_lsn > $3::text::pg_lsn \
             ORDER BY amendment_id",
            &[&at.source, &at.system_identifier, &at.confirmed.to_string()],
        )
        .await
        .map_err(|error| missing_table(sql::error(attempted, error)))?;
    found.iter().map(|row| amendment(row).map_err(|error| error.context(attempted))).collect()
}

fn amendment(row: &tokio_postgres::Row) -> Result<Amendment> {
    let unreadable = |error: String| Error::protocol("read rule_cdc_rule_amendments").caused_by(error);
    let by_table: BTreeMap<String, Vec<RowText>> =
        serde_json::from_str(row.get(2)).map_err(|error| unreadable(error.to_string()))?;
    let mut tables = Tables::default();
    let mut rows = BTreeMap::new();
    for (name, of_table) in by_table {
        let table = table(&name).ok_or_else(|| unreadable(format!("{name:?} is no table of ours")))?;
        for row in of_table {
            tables.put_text(table, &row)?;
            rows.insert((table, rows::id_of(table, &row)?), row);
        }
    }
    let snapshot = row.get::<_, &str>(3).parse().map_err(unreadable)?;
    let rules = RulesRead { tables, rows, snapshot, upto: lsn("read rule_cdc_rule_amendments", row.get(4))? };
    Ok(Amendment {
        commit_lsn: lsn("read rule_cdc_rule_amendments", row.get(0))?,
        ordinal: row.get::<_, i64>(1).cast_unsigned(),
        rules,
    })
}

/// Makes `newest` the first version, good from the confirmed position on.
async fn first(client: &mut Client, at: At<'_>, newest: &RulesRead, doubted_upto: Option<Lsn>) -> Result<()> {
    let attempted = || format!("write the first version of the rules of source {:?}", at.source);
    let failed = |error| missing_table(sql::error(attempted(), error));
    let transaction = client.transaction().await.map_err(failed)?;
    for table in ["rule_cdc_rule_versions", "rule_cdc_rule_sources"] {
        let statement = format!("DELETE FROM walhook.{table} WHERE source = $1");
        transaction.execute(&statement, &[&at.source]).await.map_err(failed)?;
    }
    transaction
        .execute(
            "INSERT INTO walhook.rule_cdc_rule_sources (source, system_identifier, complete_from, doubted_upto) \
             VALUES ($1, $2, $3::text::pg_lsn, $4::text::pg_lsn)",
            &[&at.source, &at.system_identifier, &at.confirmed.to_string(), &doubted_upto.map(|upto| upto.to_string())],
        )
        .await
        .map_err(failed)?;
    let rows = newest.rows.iter().map(|(&(table, id), row)| Version { table, id, row: Some(row), is_partial: false });
    insert(&transaction, at.source, Lsn::ZERO, false, rows).await.map_err(failed)?;
    transaction.commit().await.map_err(failed)
}

/// Servers that lead elsewhere than their rows say, for what commits from the confirmed position on.
pub async fn aliases(client: &impl GenericClient, at: At<'_>) -> Result<Vec<ServerAlias>> {
    let attempted = "read the aliases of servers";
    let found = client
        .query(
            "SELECT config_id, servers, alias_of, until_lsn::text FROM public.rule_cdc_server_aliases \
             WHERE source = $1 AND system_identifier = $2 AND until_lsn > $3::text::pg_lsn ORDER BY alias_id",
            &[&at.source, &at.system_identifier, &at.confirmed.to_string()],
        )
        .await
        .map_err(|error| missing_table(sql::error(attempted, error)))?;
    let alias = |row: &tokio_postgres::Row| {
        Ok(ServerAlias {
            config_id: row.get(0),
            servers: row.get(1),
            alias_of: row.get(2),
            until_lsn: lsn(attempted, row.get(3))?,
        })
    };
    found.iter().map(alias).collect()
}

/// Notes that events go to other servers than their rules name. Sessions from here on follow it.
///
/// Where both addresses are one server this holds for all that is committed by now, not only for what was read: a configuration
/// whose address changes to and fro would end a session with each change in the backlog.
///
/// # Errors
/// It is not durable.
pub async fn write_alias(
    client: &Client,
    source: &str,
    system_identifier: &str,
    alias: &ServerAlias,
    found: Found,
) -> Result<()> {
    let ServerAlias { config_id, servers, alias_of, until_lsn } = alias;
    client
        .execute(
            "INSERT INTO public.rule_cdc_server_aliases \
             (source, system_identifier, config_id, servers, alias_of, until_lsn) \
             VALUES ($1, $2, $3, $4, $5, \
                     greatest($6::text::pg_lsn, CASE WHEN $7 THEN pg_current_wal_insert_lsn() END))",
            &[
                &source,
                &system_identifier,
                config_id,
                servers,
                alias_of,
                &until_lsn.to_string(),
                &(found == Found::OneServer),
            ],
        )
        .await
        .map(drop)
        .map_err(|error| missing_table(sql::error(format!("note that {servers} is an alias of {alias_of}"), error)))
}

struct Version<'a> {
    table: Table,
    id: i32,
    row: Option<&'a RowText>,
    is_partial: bool,
}

/// Writes the versions of a transaction that changed rules. To be repeated at will.
///
/// # Errors
/// They are not durable.
pub async fn write(client: &Client, source: &str, commits: &[RuleCommit]) -> Result<()> {
    faults::pass(Point::RulesUnwritten).await?;
    for commit in commits {
        let attempted = || format!("write the versions of {} rules at {}", commit.changes.len(), commit.commit_lsn);
        let rows = commit.changes.iter().map(|change| Version {
            table: change.table,
            id: change.id,
            row: change.row.as_ref(),
            is_partial: change.is_partial,
        });
        insert(client, source, commit.commit_lsn, commit.replaces, rows)
            .await
            .map_err(|error| missing_table(sql::error(attempted(), error)))?;
    }
    faults::pass(Point::RulesWritten).await
}

async fn insert<'v>(
    client: &impl GenericClient,
    source: &str,
    since: Lsn,
    replaces: bool,
    versions: impl Iterator<Item = Version<'v>>,
) -> Result<(), tokio_postgres::Error> {
    let (mut names, mut ids, mut rows, mut partial) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for version in versions {
        names.push(version.table.name());
        ids.push(version.id);
        // As `readable` writes bytes without UTF-8; a database in another encoding may not have it, and `json` keeps an escape as it is.
        let json = |row| serde_json::to_string(row).expect("text of text").replace('\u{FFFD}', "\\ufffd");
        rows.push(version.row.map(json));
        partial.push(version.is_partial);
    }
    client
        .execute(
            "SELECT walhook.rule_cdc_rules_write($1, $2::text::pg_lsn, $3, $4, $5, $6, $7)",
            &[&source, &since.to_string(), &replaces, &names, &ids, &Withheld(rows), &partial],
        )
        .await
        .map(drop)
}

/// Rows of `rule_nats_config` hold credentials, and tokio-postgres logs the parameters of statements.
struct Withheld(Vec<Option<String>>);

impl std::fmt::Debug for Withheld {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} rows", self.0.len())
    }
}

impl ToSql for Withheld {
    fn to_sql(
        &self,
        of: &Type,
        out: &mut BytesMut,
    ) -> std::result::Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        self.0.to_sql(of, out)
    }

    fn accepts(of: &Type) -> bool {
        Vec::<Option<String>>::accepts(of)
    }

    to_sql_checked!();
}

/// Deletes versions that no position needs to which the slot, or its anchor, can go back.
///
/// # Errors
/// The statement's.
pub async fn prune(client: &Client, source: &str, slot: &str) -> Result<u64> {
    let row = client
        .query_one("SELECT walhook.rule_cdc_rules_prune($1, $2, $3)", &[&source, &slot, &KEPT_DAYS])
        .await
        .map_err(|error| missing_table(sql::error("delete old versions of the rules", error)))?;
    Ok(u64::try_from(row.get::<_, i64>(0)).unwrap_or(0))
}

fn table(name: &str) -> Option<Table> {
    Table::ALL.into_iter().find(|table| table.name() == name)
}

fn lsn(attempted: &str, text: &str) -> Result<Lsn> {
    text.parse().map_err(|error| Error::protocol(attempted).caused_by(error))
}
