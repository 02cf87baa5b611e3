//! `walhook demo`: from the binary and servers on the machine alone, and nothing left behind.

#![allow(clippy::unwrap_used)]

use std::{fs, os::unix::fs::symlink, path::PathBuf};

use rustix::process::Signal;

use crate::support::{DEADLINE, Walhook, eventually, process::is_running, services, walhook::Builder};

/// The servers that tests have.
fn demo() -> Builder {
    Walhook::command("demo")
        .arg("--postgres-bin")
        .arg(services::postgres(&services::postgres_version()))
        .arg("--nats-server")
        .arg(services::nats(&services::nats_version()))
}

/// The processes that the demo has started and that still run.
fn children(demo: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{demo}/task/{demo}/children")).unwrap();
    list.split_whitespace().map(|pid| pid.parse().unwrap()).filter(|pid| is_running(*pid)).collect()
}

async fn end(children: &[u32]) {
    eventually("the demo's servers to end", async || (!children.iter().any(|pid| is_running(*pid))).then_some(()))
        .await;
}

/// The demo's folder, as it says.
fn folder_of(said: &str) -> PathBuf {
    let line = said.lines().find_map(|line| line.split("all files of the demo are in ").nth(1)).unwrap();
    PathBuf::from(line)
}

/// GET by hand: the status line and all.
fn get(address: &str) -> String {
    use std::io::{Read as _, Write as _};
    let mut socket = std::net::TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    write!(socket, "GET / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn it_shows_each_step_and_each_event_counts_both_sides_and_leaves_nothing() {
    // Its settings are its own: these would break a `run`.
    let mut walhook = demo()
        .args(["--seconds", "600"])
        .env("DATABASE_URL", "postgres://nobody@127.0.0.1:1/none")
        .env("WALHOOK_SLOT", "another")
        .env("PGPORT", "1")
        .start();
    walhook.logged("one transaction: an update, a row and rule_webhook_publish_nats").await;
    let folder = folder_of(&walhook.log());
    let children = children(walhook.pid());
    assert_eq!(children.len(), 3, "PostgreSQL, nats-server and walhook: {}", walhook.log());
    let page = walhook.log().split("The status page: http://").nth(1).unwrap().split('/').next().unwrap().to_owned();
    let answer = tokio::task::spawn_blocking(move || get(&page)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("walhook"), "{answer}");

    walhook.signal(Signal::INT);
    let code = walhook.wait(DEADLINE);
    let said = walhook.log();
    assert_eq!(code, 0, "{said}");
    for step in [
        "initdb, then postgres with wal_level = logical",
        "nats-server ",
        "walhook setup -d postgres://postgres@127.0.0.1:",
        "SELECT rule_webhook_link_table('orders', 'orders'",
        "walhook run -d postgres://walhook_streamer@127.0.0.1:",
        "webhooks.orders.delete",
        "SIGTERM: walhook ended",
        "lost: 0, duplicated: 0",
    ] {
        assert!(said.contains(step), "{step}: {said}");
    }
    assert!(!said.contains("Phantom"), "a transaction that was rolled back is shown: {said}");
    assert!(!folder.exists(), "{}", folder.display());
    end(&children).await;
}

#[tokio::test]
async fn its_servers_end_with_it_even_if_it_is_killed() {
    let mut walhook = demo().args(["--seconds", "600"]).start();
    walhook.logged("The status page: ").await;
    let folder = folder_of(&walhook.log());
    let children = children(walhook.pid());
    assert_eq!(children.len(), 3, "{}", walhook.log());
    // It alone, not its children.
    walhook.signal(Signal::KILL);
    end(&children).await;
    crate::support::postgres::forget_shared_memory(&folder.join("postgresql/data"));
    fs::remove_dir_all(&folder).unwrap();
}

#[tokio::test]
async fn servers_are_found_in_path() {
    let bin = tempfile::tempdir().unwrap();
    symlink(services::nats(&services::nats_version()), bin.path().join("nats-server")).unwrap();
    symlink(services::postgres(&services::postgres_version()).join("initdb"), bin.path().join("initdb")).unwrap();
    let path = format!("{}:/usr/bin:/bin", bin.path().display());
    let done = Walhook::command("demo").args(["--seconds", "2"]).env("PATH", path).finish();
    assert_eq!(done.code, Some(0), "{}{}", done.stdout, done.stderr);
    assert!(
        done.stdout.contains(&format!("({}) started", bin.path().join("nats-server").display())),
        "{}",
        done.stdout
    );
    assert!(done.stdout.contains("lost: 0, duplicated: 0"), "{}", done.stdout);
}

#[tokio::test]
async fn missing_servers_are_named_together_with_where_to_get_them() {
    let empty = tempfile::tempdir().unwrap();
    let nowhere = empty.path().join("nowhere");
    let done = Walhook::command("demo")
        .arg("--postgres-bin")
        .arg(&nowhere)
        .arg("--nats-server")
        .arg(nowhere.join("nats-server"))
        .finish();
    assert_eq!(done.code, Some(2), "{}{}", done.stdout, done.stderr);
    for part in [
        "nowhere/initdb",
        "nats-server cannot be run",
        "apt install postgresql",
        "--postgres-bin",
        "nats-server/releases",
    ] {
        assert!(done.stderr.contains(part), "{part}: {}", done.stderr);
    }
    assert_eq!(done.stdout, "", "nothing was begun");
}

#[tokio::test]
async fn a_signal_while_servers_start_ends_it_and_leaves_nothing() {
    let mut walhook = demo().args(["--seconds", "600"]).start();
    walhook.logged("all files of the demo are in").await;
    let folder = folder_of(&walhook.log());
    walhook.signal(Signal::TERM);
    assert_eq!(walhook.wait(DEADLINE), 130, "{}", walhook.log());
    assert!(!folder.exists(), "{}", folder.display());
}
