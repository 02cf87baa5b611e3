//! The configuration tables, read from the database; and what the verbs share of its other tables.

use std::{collections::BTreeMap, sync::Arc};

use tokio_postgres::{Client, GenericClient, IsolationLevel, SimpleQueryMessage, Transaction};

use crate::{
    config::Config,
    error::{Error, Kind, Result},
    postgres::{self, sql},
    route::{
        tables::{RowText, Table, Tables},
        value::write_bytes,
    },
    wal::name::readable,
};

/// Begins to read in one snapshot.
///
/// # Errors
/// The connection's; `attempted` says what for.
pub async fn snapshot<'c>(client: &'c mut Client, attempted: &str) -> Result<Transaction<'c>> {
    client
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .read_only(true)
        .start()
        .await
        .map_err(|error| sql::error(attempted, error))
}

/// What the process's own settings say of the rows: its shard, and the configuration whose servers they name.
pub fn apply_settings(tables: &mut Tables, config: &Config) {
    tables.shard = config.shard_name();
    tables.overridden = config.nats.reaches_another().then(|| config.nats_config.clone());
}

/// All rows, as `client` sees them: in one snapshot where it is a transaction that has one.
///
/// # Errors
/// A table that is missing or may not be read; a row without its key.
pub async fn read(client: &impl GenericClient) -> Result<Tables> {
    let mut tables = Tables::default();
    for ((table, _), row) in read_text(client).await? {
        tables.put_text(table, &row)?;
    }
    Ok(tables)
}

/// The same as text, by table and key.
///
/// # Errors
/// As [`read`].
pub async fn read_text(client: &impl GenericClient) -> Result<BTreeMap<(Table, i32), RowText>> {
    let mut all = BTreeMap::new();
    let attempted = "read the database's encoding";
    let encoding = client.query_one("SELECT pg_catalog.getdatabaseencoding()::text", &[]).await;
    if encoding.map_err(|error| sql::error(attempted, error))?.get::<_, &str>(0) != "UTF8" {
        return read_bytes(client).await;
    }
    for table in Table::ALL {
        // By the simple protocol every value comes as text, as it does in the WAL.
        let rows = client
            .simple_query(&format!("SELECT * FROM public.{}", table.name()))
            .await
            .map_err(|error| missing_table(sql::error(format!("read {}", table.name()), error)))?;
        let mut names: Option<Arc<[String]>> = None;
        for row in &rows {
            let SimpleQueryMessage::Row(row) = row else { continue };
            let names =
                names.get_or_insert_with(|| row.columns().iter().map(|column| column.name().to_owned()).collect());
            let text = RowText::new(names, (0..row.len()).map(|index| row.get(index)));
            all.insert((table, id_of(table, &text)?), text);
        }
    }
    Ok(all)
}

/// A row's key.
///
/// # Errors
/// It has none.
pub fn id_of(table: Table, row: &RowText) -> Result<i32> {
    let id = row.get(table.key()).flatten().and_then(|id| id.parse().ok());
    id.ok_or_else(|| Error::protocol(format!("read a row of {}: no {}", table.name(), table.key())))
}

/// The same from a database in another encoding, whose texts may have no UTF-8: as hexadecimal digits, which any text can be sent as.
async fn read_bytes(client: &impl GenericClient) -> Result<BTreeMap<(Table, i32), RowText>> {
    let mut all = BTreeMap::new();
    for table in Table::ALL {
        let failed = |error| missing_table(sql::error(format!("read {}", table.name()), error));
        let name = format!("public.{}", table.name());
        let columns = client
            .query(
                "SELECT a.attname::text, pg_catalog.format('CASE WHEN t.%1$I IS NOT DISTINCT FROM NULL THEN NULL ELSE \
                     pg_catalog.encode(walhook.rule_cdc_utf8(pg_catalog.format(''%%s'', t.%1$I)), ''hex'') END', \
                     a.attname) \
                 FROM pg_catalog.pg_attribute a \
                 WHERE a.attrelid = $1::text::regclass AND a.attnum > 0 AND NOT a.attisdropped AND a.attname::text ~ '^[ -\x7e]+$' \
                 ORDER BY a.attnum",
                &[&name],
            )
            .await
            .map_err(failed)?;
        let list: Vec<&str> = columns.iter().map(|column| column.get(1)).collect();
        let query = format!("SELECT {} FROM {name} t", list.join(", "));
        for row in &client.query(&query, &[]).await.map_err(failed)? {
            let values = columns.iter().enumerate().map(|(index, column)| {
                let value = row.get::<_, Option<&str>>(index).map(|digits| {
                    let mut bytes = Vec::new();
                    write_bytes(format!("\\x{digits}").as_bytes(), &mut bytes);
                    readable(&bytes).into_owned()
                });
                (column.get::<_, &str>(0), value)
            });
            let text: RowText = values.collect();
            all.insert((table, id_of(table, &text)?), text);
        }
    }
    Ok(all)
}

/// Names the remedy where a table is not there.
pub fn missing_table(error: Error) -> Error {
    if postgres::sqlstate(&error) == Some("42P01") {
        return error.of_kind(Kind::Config).hint("run `walhook setup`, which applies the migrations");
    }
    error
}

/// Whether the dead letters of these events are in the table: a trigger or a rule on it may drop rows without an error.
pub async fn check_kept(client: &impl GenericClient, event_ids: &[&str]) -> Result<()> {
    let row = client
        .query_one(
            "SELECT count(*) FROM pg_catalog.unnest($1::text[]) i (event_id) \
             WHERE NOT EXISTS (SELECT FROM public.rule_nats_dead_letters d WHERE d.event_id = i.event_id)",
            &[&event_ids],
        )
        .await
        .map_err(|error| sql::error("read the dead letters that were just written", error))?;
    match row.get::<_, i64>(0) {
        0 => Ok(()),
        missing => Err(Error::config(format!(
            "{missing} of {} rows were written into rule_nats_dead_letters without an error and are not there",
            event_ids.len()
        ))
        .hint(
            "a trigger or a rule on rule_nats_dead_letters drops rows; find it and drop it: SELECT tgname FROM pg_trigger WHERE \
             tgrelid = 'public.rule_nats_dead_letters'::regclass AND NOT tgisinternal; SELECT rulename FROM pg_rules WHERE \
             tablename = 'rule_nats_dead_letters'",
        )),
    }
}
