//! One file per verb of the command line.

pub mod run;
pub mod setup;
pub mod status;

/// `walhook version`: one line.
pub fn version() -> String {
    format!("walhook {}", env!("CARGO_PKG_VERSION"))
}
