//! `benches/peers/race`: it runs with walhook and pg_recvlogical alone, says what is missing, and counts what a peer does wrong.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

const RACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers/race");

/// In the place of wal-listener: it publishes the thousand rows, but row 4 never and rows 2 and 3 twice, and again at each start.
const FAULTY: &str = r#"#!/usr/bin/env python3
import re, socket, sys, time
if "--version" in sys.argv:
    sys.exit("faulty 1.0")
config = open(sys.argv[sys.argv.index("--config") + 1]).read()
nats = socket.create_connection(("127.0.0.1", int(re.search(r"address: 127.0.0.1:(\d+)", config)[1])))
out = [b'CONNECT {"verbose":false}\r\n']
for row in [1, 2, 3, 2, 3, *range(5, 1001)]:
    body = b'{"id": "%x", "table": "bench", "data": {"id": %d}}' % (row, row)
    out.append(b"PUB PEERS.public_bench %d\r\n%s\r\n" % (len(body), body))
nats.sendall(b"".join(out))
time.sleep(600)
"#;

fn race(arguments: &[&str], peer: Option<&Path>) -> Output {
    let mut command = Command::new(RACE);
    command.args(arguments).env("PEER_WALHOOK", env!("CARGO_BIN_EXE_walhook"));
    command.env_remove("PEER_DEBEZIUM_SERVER").env_remove("PEER_WAL_LISTENER");
    if let Some(peer) = peer {
        command.env("PEER_WAL_LISTENER", peer);
    }
    command.output().unwrap()
}

#[test]
fn the_race_finds_no_fault_in_walhook_and_each_fault_of_a_faulty_peer() {
    let folder = tempfile::tempdir().unwrap();
    let (faulty, file) = (folder.path().join("wal-listener"), folder.path().join("results.json"));
    fs::write(&faulty, FAULTY).unwrap();
    fs::set_permissions(&faulty, fs::Permissions::from_mode(0o755)).unwrap();
    let names = "pg_recvlogical,walhook,walhook-history,wal-listener";
    let sizes = ["--rows", "3000", "--slow-rows", "1000", "--kill-rows", "1000", "--rounds", "1", "--kills", "1"];
    let output = race(&[&["--only", names, "--json", file.to_str().unwrap()], &sizes[..]].concat(), Some(&faulty));
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
    let results: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    let results = results["results"].as_array().unwrap();
    let run = |test: &str, peer: &str, transaction: u64| {
        let is_it = |one: &&Value| one["test"] == test && one["peer"] == peer && one["transaction"] == transaction;
        results.iter().find(is_it).unwrap_or_else(|| panic!("no {test} of {peer}: {said}"))["runs"][0].clone()
    };
    let faults = |run: &Value| ["duplicates", "lost", "backwards", "unknown"].map(|fault| run[fault].as_u64().unwrap());
    for transaction in [1, 1000] {
        assert!(run("race", "pg_recvlogical", transaction)["rows_per_s"].as_f64().unwrap() > 0.0, "{said}");
        for walhook in ["walhook", "walhook, history full"] {
            let run = run("race", walhook, transaction);
            assert_eq!((run["messages"].as_u64(), faults(&run)), (Some(3000), [0; 4]), "{said}");
        }
        assert_eq!(faults(&run("race", "wal-listener", transaction)), [2, 1, 1, 0], "{said}");
    }
    for walhook in ["walhook", "walhook, history full"] {
        assert_eq!(faults(&run("kill", walhook, 1)), [0; 4], "{said}");
    }
    let killed = run("kill", "wal-listener", 1);
    assert_eq!((killed["kills"].as_u64(), killed["lost"].as_u64()), (Some(2), Some(1)), "{said}");
    assert!(killed["duplicates"].as_u64() >= Some(2) && killed["backwards"].as_u64() >= Some(3), "{killed} {said}");
}

#[test]
fn a_peer_that_this_machine_lacks_is_named_with_its_variable_and_where_its_releases_are() {
    let output = race(&["--only", "walhook,debezium"], None);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("PEER_DEBEZIUM_SERVER is not set") && said.contains("https://debezium.io/releases"),
        "{said}"
    );
    let output = race(&["--only", "wal-listener"], Some(Path::new("/nowhere/wal-listener")));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("PEER_WAL_LISTENER=/nowhere/wal-listener is no program"), "{said}");
}
