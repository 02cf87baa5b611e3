//! One file per verb of the command line.

pub mod backfill;
mod backoff;
mod bucket;
pub mod dead_letters;
pub mod deliver;
mod progress;
pub mod replay;
mod rows;
pub mod run;
mod schema;
pub mod seek;
pub mod setup;
pub mod status;
mod told;
pub mod uninstall;

use std::io::{self, Write};

use crate::error::{Error, Result};

/// Writes an answer to standard output. A reader who has seen enough (`| head`) is no error.
///
/// # Errors
/// Standard output cannot be written to: a full disk, for example.
pub fn say(text: &str) -> Result<()> {
    say_bytes(text.as_bytes())
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
