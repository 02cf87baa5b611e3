//! One file per verb of the command line.

pub mod adopt;
mod away;
pub mod backfill;
mod backoff;
mod breaks;
mod bucket;
pub mod check;
pub mod dead_letters;
pub mod deliver;
pub mod demo;
pub mod explain;
mod http;
mod identity;
mod log_once;
mod marks;
mod masks;
mod names;
mod notices;
#[cfg(feature = "otlp")]
pub mod otlp;
pub mod paint;
mod presence;
mod progress;
pub mod replay;
pub mod row_schemas;
mod rows;
pub mod run;
mod schema;
mod seal_keys;
pub mod seek;
pub mod setup;
mod setup_check;
pub mod status;
mod systemd;
pub mod tail;
pub mod uninstall;
pub mod webhook;

use std::{
    io::{self, Write},
    sync::LazyLock,
    time::Duration,
};

use tokio::time::{Interval, MissedTickBehavior};
use tokio_postgres::{Client, Row};

use crate::{
    config::Config,
    error::{Error, Result},
    postgres::sql,
    text,
    wal::name::readable,
};

/// Connects to the database for a verb, and compares the version of its schema with this binary's. `setup` and `uninstall` accept an
/// older schema and `run` keeps a watched connection; all other verbs begin here.
///
/// # Errors
/// PostgreSQL cannot be reached; the schema is older or newer than this binary.
pub(crate) async fn connect(config: &Config) -> Result<Client> {
    let client = sql::connect(&config.postgres).await?;
    schema::check(&client, &config.postgres.target()).await?;
    Ok(client)
}

/// An SQL expression of type text as bytes in UTF-8; in a database in `SQL_ASCII`, which converts nothing, as the bytes that are there,
/// and so are characters of other encodings that have no UTF-8.
pub(crate) fn bytes_of(expression: &str) -> String {
    format!(
        "CASE pg_catalog.getdatabaseencoding() WHEN 'UTF8' THEN pg_catalog.convert_to({expression}, 'UTF8') \
             ELSE walhook.rule_cdc_utf8({expression}) END"
    )
}

/// A column that [`bytes_of`] has made, as text: bytes that are no UTF-8 are shown by their digits.
pub(crate) fn text_of(row: &Row, column: usize) -> Option<String> {
    row.get::<_, Option<&[u8]>>(column).map(|bytes| readable(bytes).into_owned())
}

/// Writes an answer to standard output, with what would act on a terminal escaped. A reader who has seen enough (`| head`)
/// is no error.
///
/// # Errors
/// Standard output cannot be written to: a full disk, for example.
pub fn say(answer: &str) -> Result<()> {
    say_bytes(text::lines(answer).as_bytes())
}

/// The same of JSON values, a line each.
///
/// # Errors
/// As [`say`].
pub fn say_json<'v>(values: impl IntoIterator<Item = &'v serde_json::Value>) -> Result<()> {
    let answer: String = values.into_iter().map(|value| format!("{value}\n")).collect();
    say_bytes(text::json(&answer).as_bytes())
}

/// A value of JSON as a line shows it: `-` for null, text without its quotes, escaped and cut.
fn plain(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::Null => "-".to_owned(),
        serde_json::Value::String(text) => text::one_line(text).into_owned(),
        other => text::one_line(&other.to_string()).into_owned(),
    }
}

/// The same of bytes that are no text.
///
/// # Errors
/// As [`say`].
pub fn say_bytes(bytes: &[u8]) -> Result<()> {
    offer(bytes).map(drop)
}

/// The same for who goes on as long as somebody reads: `false` where nobody does any more.
///
/// # Errors
/// As [`say`].
pub fn offer(bytes: &[u8]) -> Result<bool> {
    crate::log::hide_progress();
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Error::unavailable("write to standard output").caused_by(error)),
    }
}

/// Where a command says how it goes: [`say`] where a person has called it, [`log`] in a process that runs on.
pub type Tell = fn(&str) -> Result<()>;

/// Writes into the log what would be an answer elsewhere.
///
/// # Errors
/// None; it stands in for [`say`].
pub fn log(text: &str) -> Result<()> {
    tracing::info!("{}", text.trim_end());
    Ok(())
}

/// A timer that makes up for no tick that it has missed.
fn delaying_interval(period: Duration) -> Interval {
    let mut interval = tokio::time::interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

/// `walhook version`: one line.
pub fn version() -> String {
    format!("walhook {}", *VERSION)
}

/// The version, and commit and date of the build where they are known (build.rs).
pub static VERSION: LazyLock<String> = LazyLock::new(|| {
    let given = [option_env!("WALHOOK_BUILD_COMMIT"), option_env!("WALHOOK_BUILD_DATE")];
    let given: Vec<_> = given.into_iter().flatten().filter(|text| !text.is_empty()).collect();
    let version = env!("CARGO_PKG_VERSION");
    if given.is_empty() { version.to_owned() } else { format!("{version} ({})", given.join(", ")) }
});
