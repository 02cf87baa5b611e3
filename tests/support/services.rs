//! Where the servers' binaries are, as `scripts/services` says.

use std::{
    collections::HashMap,
    path::PathBuf,
    process::{Command, Stdio},
    sync::{LazyLock, Mutex},
};

/// The version of PostgreSQL that tests take where they name none.
pub fn postgres_version() -> String {
    std::env::var("WALHOOK_TEST_POSTGRES").unwrap_or_else(|_| "default".to_owned())
}

/// The version of nats-server that tests take where they name none.
pub fn nats_version() -> String {
    std::env::var("WALHOOK_TEST_NATS").unwrap_or_else(|_| "default".to_owned())
}

/// The `bin` folder of that PostgreSQL, fetched where it is missing.
pub fn postgres(version: &str) -> PathBuf {
    ask(&["postgres", version])
}

/// The `bin` folder of that PostgreSQL (14, 17 or 18) with `pg_upgrade`, `pg_dump` and all other programs.
pub fn postgres_tools(version: &str) -> PathBuf {
    ask(&["postgres-tools", version])
}

/// The binary of that nats-server, fetched where it is missing.
pub fn nats(version: &str) -> PathBuf {
    ask(&["nats", version])
}

/// PgBouncer, installed where it is missing.
pub fn pgbouncer() -> PathBuf {
    ask(&["pgbouncer"])
}

/// The folder of playwright-core, fetched where it is missing.
pub fn playwright() -> PathBuf {
    ask(&["playwright"])
}

/// The cache folder.
pub fn cache() -> PathBuf {
    ask(&["cache"])
}

/// The root folder of a small `debian` or `ubuntu`, with one more package or `""`, made where it is missing; why not, where that cannot
/// be.
pub fn bare_root(distribution: &str, package: &str) -> Result<PathBuf, String> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/services");
    let output = Command::new(script)
        .args([distribution, package])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim_end()))
}

fn ask(question: &[&str]) -> PathBuf {
    static ANSWERS: LazyLock<Mutex<HashMap<String, PathBuf>>> = LazyLock::new(Mutex::default);
    let mut answers = ANSWERS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(answer) = answers.get(&question.join(" ")) {
        return answer.clone();
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/services");
    let output = Command::new(script).args(question).stdin(Stdio::null()).output().unwrap();
    assert!(
        output.status.success(),
        "scripts/services {} failed:\n{}",
        question.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    let answer = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim_end());
    answers.insert(question.join(" "), answer.clone());
    answer
}
