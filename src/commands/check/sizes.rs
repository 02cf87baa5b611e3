//! How large the rows of linked tables are, by a bounded look at some of them.
//!
//! In: the linked tables, the largest first. Out: for each the largest row that was seen, as a lower bound of its size in a message.
//! Always holds: no function of a user's runs (only sizes and PostgreSQL's own output functions are asked for); a statement ends after
//! [`STATEMENT`], all of them after [`TOGETHER`]; no lock is waited for.

use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::Client;

use crate::{
    error::{Error, Result},
    postgres::sql,
};

/// Pages of a table that are looked at, about.
const PAGES: f64 = 300.0;
/// Rows of them.
const ROWS: u32 = 2000;
/// Tables, the largest ones.
const TABLES: i64 = 50;
/// How long one statement may take.
const STATEMENT: Duration = Duration::from_millis(1000);
/// How long all may take together.
const TOGETHER: Duration = Duration::from_secs(5);

/// What was seen of a table.
pub struct Seen {
    /// Its name, as SQL has it.
    pub table: String,
    /// The webhooks that it is linked to.
    pub webhooks: Vec<i32>,
    /// The size of the largest row that was seen, in bytes.
    pub largest: i64,
}

/// What was seen, and of which tables nothing could be.
#[derive(Default)]
pub struct Sample {
    /// Tables of which rows were seen.
    pub seen: Vec<Seen>,
    /// The others, and why the first of them.
    pub unseen: Vec<String>,
    /// Why the first of these could not be seen.
    pub why: Option<Error>,
}

/// Of each table: the pages of it and its partitions, and an expression for the size of a row. Text and bytea tell their length without
/// being fetched.
const TABLES_QUERY: &str = "
    SELECT t.oid::regclass::text, t.webhooks, t.pages::float8, e.size
    FROM (SELECT c.oid, array_agg(DISTINCT l.webhook_id) AS webhooks,
                 (SELECT coalesce(sum(greatest(p.relpages, 0)) + sum(greatest(s.relpages, 0)), 0)
                  FROM walhook.rule_cdc_partitions(c.oid::regclass) b JOIN pg_catalog.pg_class p ON p.oid = b.relid
                  LEFT JOIN pg_catalog.pg_class s ON s.oid = p.reltoastrelid) AS pages
          FROM public.rule_webhook_links l
          JOIN pg_catalog.pg_namespace n ON n.nspname = l.table_schema
          JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = l.table_name AND c.relkind IN ('r', 'p')
          WHERE l.enabled GROUP BY c.oid) t
    JOIN LATERAL (
        SELECT string_agg('coalesce(' || CASE
                   WHEN coalesce(nullif(y.typbasetype, 0), y.oid) IN ('text'::regtype, 'varchar'::regtype, 'bpchar'::regtype)
                       THEN pg_catalog.format('pg_catalog.octet_length(t.%I::pg_catalog.text)', a.attname)
                   WHEN coalesce(nullif(y.typbasetype, 0), y.oid) = 'bytea'::regtype
                       THEN pg_catalog.format('pg_catalog.octet_length(t.%I::pg_catalog.bytea) * 4 / 3', a.attname)
                   WHEN y.oid IN ('json'::regtype, 'jsonb'::regtype, 'xml'::regtype)
                       THEN pg_catalog.format('pg_catalog.octet_length(t.%I::pg_catalog.text)', a.attname)
                   ELSE pg_catalog.format('pg_catalog.pg_column_size(t.%I)', a.attname) END || ', 4)', '+')
               || ' + ' || sum(pg_catalog.octet_length(a.attname::pg_catalog.text) + 4) AS size
        FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type y ON y.oid = a.atttypid
        WHERE a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped) e ON e.size IS NOT NULL
    ORDER BY t.pages DESC, 1 LIMIT $1";

/// Looks at the tables.
///
/// # Errors
/// The links cannot be read.
pub async fn sample(client: &Client) -> Result<Sample> {
    let attempted = "read the linked tables";
    let rows = client.query(TABLES_QUERY, &[&TABLES]).await.map_err(|error| sql::error(attempted, error))?;
    let end = Instant::now() + TOGETHER;
    let mut sample = Sample::default();
    for row in &rows {
        let (table, webhooks, pages, size): (String, Vec<i32>, f64, &str) =
            (row.get(0), row.get(1), row.get(2), row.get(3));
        if Instant::now() >= end {
            sample.why.get_or_insert_with(|| {
                Error::unavailable(format!("look at rows for at most {} s", TOGETHER.as_secs()))
            });
            sample.unseen.push(table);
            continue;
        }
        let percent = if pages > PAGES { (100.0 * PAGES / pages).max(0.0001) } else { 100.0 };
        match largest(client, &table, size, percent).await {
            Ok(Some(largest)) => sample.seen.push(Seen { table, webhooks, largest }),
            Ok(None) => {}
            Err(error) => {
                sample.why.get_or_insert(error);
                sample.unseen.push(table);
            }
        }
    }
    Ok(sample)
}

async fn largest(client: &Client, table: &str, size: &str, percent: f64) -> Result<Option<i64>> {
    let attempted = format!("look at rows of {table}");
    let failed = |error| sql::error(attempted.clone(), error);
    let begin = format!(
        "BEGIN READ ONLY; SET LOCAL statement_timeout = {}; SET LOCAL lock_timeout = 100",
        STATEMENT.as_millis()
    );
    client.batch_execute(&begin).await.map_err(failed)?;
    let query = format!(
        "SELECT max(s.size)::bigint FROM (SELECT {size} AS size FROM {table} t TABLESAMPLE SYSTEM ({percent}) LIMIT {ROWS}) s"
    );
    let outcome = client.query_one(&query, &[]).await.map_err(failed);
    client.batch_execute("ROLLBACK").await.map_err(failed)?;
    Ok(outcome?.get(0))
}
