//! Throw-away servers for tests: PostgreSQL, nats-server, walhook itself, and certificates.
//!
//! In: which version, which settings. Out: a server that answers, in a folder and on a port of its own. Always: several
//! test binaries may run side by side; nothing outlives its value, nor the test process, even where that is killed.
//! Nothing here knows what is tested.
//!
//! `WALHOOK_TEST_POSTGRES` and `WALHOOK_TEST_NATS` name the versions that `start()` takes (default: `default`), which is
//! how `make test` runs one test against several.

#![allow(dead_code, unused_imports, clippy::unwrap_used)] // each test binary uses its part of this

pub mod canary;
pub mod disk;
pub mod feed;
pub mod folder;
pub mod http;
pub mod last_mile;
pub mod login;
pub mod nats;
pub mod oracle;
pub mod port;
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod rows;
pub mod sealed;
pub mod services;
pub mod test_files;
pub mod tls;
pub mod walhook;

use std::{
    io::Write,
    time::{Duration, Instant},
};

pub use nats::Nats;
pub use postgres::Postgres;
pub use proxy::{NetworkFault, Proxy};
pub use walhook::Walhook;

/// How long anything may take that a test waits for; far more than it needs on a busy machine with two cores, on which four tests
/// run at once.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// How often a condition is looked at.
pub const POLL: Duration = Duration::from_millis(10);

/// What a session of a superuser does to write a configuration row that the triggers of walhook refuse: as one from before they were there.
pub const UNCHECKED: &str = "SET session_replication_role = replica";

/// Says that a test has tested nothing, where everybody sees it.
pub fn skip(what: &str, why: &str) {
    let said = format!("\nSKIPPED, nothing was tested: {what}: {why}\n");
    std::io::stderr().write_all(said.as_bytes()).unwrap();
}

/// Waits until `check` answers with a value; panics, naming `what`, where that takes longer than [`DEADLINE`].
pub async fn eventually<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let polling = async {
        loop {
            if let Some(value) = check().await {
                return value;
            }
            tokio::time::sleep(POLL).await;
        }
    };
    match tokio::time::timeout(DEADLINE, polling).await {
        Ok(value) => value,
        Err(_) => panic!("waited {DEADLINE:?} in vain for {what}"),
    }
}

/// [`eventually`] without a runtime, for the edges that must not need one (`Drop`).
pub fn eventually_blocking<T>(deadline: Duration, mut check: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(value) = check() {
            return Some(value);
        }
        if Instant::now() > end {
            return None;
        }
        std::thread::sleep(POLL);
    }
}

/// A runtime for a thread that has none.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}
