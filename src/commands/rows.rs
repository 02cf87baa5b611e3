//! The configuration tables, read from the database.

use std::collections::BTreeMap;

use tokio_postgres::{Client, GenericClient, IsolationLevel, SimpleQueryMessage, Transaction};

use crate::{
    error::{Error, Kind, Result},
    postgres::{self, sql},
    route::tables::{RowText, Table, Tables},
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
    for table in Table::ALL {
        // By the simple protocol every value comes as text, as it does in the WAL.
        let rows = client
            .simple_query(&format!("SELECT * FROM public.{}", table.name()))
            .await
            .map_err(|error| missing_table(sql::error(format!("read {}", table.name()), error)))?;
        for row in &rows {
            let SimpleQueryMessage::Row(row) = row else { continue };
            let columns = row.columns().iter().enumerate();
            let text: RowText =
                columns.map(|(index, column)| (column.name().to_owned(), row.get(index).map(str::to_owned))).collect();
            let id = text.get(table.key()).cloned().flatten().and_then(|id| id.parse().ok());
            let id =
                id.ok_or_else(|| Error::protocol(format!("read a row of {}: no {}", table.name(), table.key())))?;
            all.insert((table, id), text);
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
