//! One file per verb of the command line.

pub mod adopt;
pub mod backfill;
mod backoff;
mod bucket;
pub mod dead_letters;
pub mod deliver;
mod http;
mod identity;
mod progress;
pub mod replay;
mod rows;
pub mod run;
mod schema;
pub mod seek;
pub mod setup;
mod setup_check;
pub mod status;
mod told;
pub mod uninstall;

use std::io::{self, Write};

use crate::{
    error::{Error, Result},
    text,
};

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
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::unavailable("write to standard output").caused_by(error))
        }
        _ => Ok(()),
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

/// `walhook version`: one line.
pub fn version() -> String {
    format!("walhook {}", env!("CARGO_PKG_VERSION"))
}
