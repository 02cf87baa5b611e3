//! The test harness keeps its promises: servers answer, come back with their data, and never outlive the test.

#![allow(clippy::unwrap_used)]

use crate::support;

use std::{os::unix::fs::PermissionsExt, process::Stdio};

use async_nats::jetstream::stream;
use support::{Nats, Postgres, Walhook, process::is_running, tls::Authority};

#[tokio::test]
async fn a_postgres_answers_with_logical_wal() {
    let pg = Postgres::start().await;
    assert_eq!(pg.psql("SHOW wal_level"), "logical");
    assert_eq!(pg.psql("SELECT 1, NULL, 'a' UNION ALL SELECT 2, 'x', 'b'"), "1||a\n2|x|b");
    let row = pg.client().await.query_one("SELECT current_user::text", &[]).await.unwrap();
    assert_eq!(row.get::<_, String>(0), "postgres");
    let (client, connection) = tokio_postgres::connect(&pg.conninfo(), tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client.simple_query("SELECT 1").await.unwrap();
    assert!(pg.try_psql("SELECT nothing").is_err());
}

#[tokio::test]
async fn every_supported_postgres_starts_and_decodes_logically() {
    for major in 14..=18 {
        let pg = Postgres::builder().version(&major.to_string()).start().await;
        assert_eq!(pg.major(), major);
        pg.psql("SELECT pg_create_logical_replication_slot('s', 'pgoutput')");
        assert_eq!(pg.psql("SELECT plugin FROM pg_replication_slots"), "pgoutput");
    }
}

#[tokio::test]
async fn a_killed_postgres_comes_back_on_its_port_with_what_was_committed() {
    let pg = Postgres::start().await;
    let port = pg.port();
    let idle = pg.client().await;
    for round in 0..3 {
        pg.psql("CREATE TABLE IF NOT EXISTS t (i int); INSERT INTO t VALUES (1)");
        pg.kill9();
        assert!(pg.try_psql("SELECT 1").is_err());
        pg.restart().await;
        assert_eq!((pg.port(), pg.psql("SELECT count(*) FROM t")), (port, (round + 1).to_string()));
    }
    assert!(idle.is_closed());
    pg.restart().await;
    assert_eq!(pg.psql("SELECT count(*) FROM t"), "3");
}

#[tokio::test]
async fn a_paused_postgres_answers_again_once_resumed() {
    let pg = Postgres::start().await;
    let client = pg.client().await;
    pg.pause();
    let query = client.simple_query("SELECT 1");
    tokio::pin!(query);
    let silence = tokio::time::timeout(std::time::Duration::from_millis(100), &mut query).await;
    assert!(silence.is_err(), "a stopped server answered");
    pg.resume();
    query.await.unwrap();
}

#[tokio::test]
async fn a_postgres_takes_settings_hba_and_its_own_cluster() {
    let pg = Postgres::builder()
        .hba("host all all 127.0.0.1/32 reject")
        .conf("application_name = 'x'\nwal_level = replica")
        .initdb(&["--encoding=LATIN1", "--locale=C"])
        .start()
        .await;
    assert_eq!(pg.psql("SHOW wal_level"), "replica");
    assert_eq!(pg.psql("SHOW server_encoding"), "LATIN1");
    assert!(tokio_postgres::connect(&pg.conninfo(), tokio_postgres::NoTls).await.is_err());
    let copied = Postgres::start().await;
    let identifier = "SELECT system_identifier FROM pg_control_system()";
    assert_ne!(pg.psql(identifier), copied.psql(identifier));
}

#[tokio::test]
async fn a_postgres_and_a_nats_server_take_certificates() {
    let (authority, folder) = (Authority::new("ours"), tempfile::tempdir().unwrap());
    let pg = Postgres::builder().tls(&authority.server()).client_ca(&authority.certificate).start().await;
    assert_eq!(pg.psql("SHOW ssl"), "on");
    let (certificate, key) = authority.server().write(folder.path(), "server");
    let config = format!("tls {{ cert_file: {certificate:?}, key_file: {key:?}, handshake_first: true }}");
    let nats = Nats::builder().config(&config).start().await;
    assert!(async_nats::connect(nats.url()).await.is_err(), "a client without TLS was let in");
}

#[tokio::test]
async fn a_stream_survives_the_death_of_its_server() {
    for version in ["2.10", "default"] {
        let nats = Nats::builder().version(version).start().await;
        let config = stream::Config { name: "S".into(), subjects: vec!["s.>".into()], ..Default::default() };
        nats.jetstream().await.create_stream(config).await.unwrap();
        nats.jetstream().await.publish("s.1", "x".into()).await.unwrap().await.unwrap();
        let port = nats.port();
        nats.kill9();
        assert!(async_nats::connect(nats.url()).await.is_err());
        nats.restart().await;
        let mut stream = nats.jetstream().await.get_stream("S").await.unwrap();
        assert_eq!((nats.port(), stream.info().await.unwrap().state.messages), (port, 1));
        nats.restart().await;
        assert_eq!(nats.jetstream().await.get_stream("S").await.unwrap().cached_info().state.messages, 1);
    }
}

#[tokio::test]
async fn many_servers_run_side_by_side() {
    let (first, second, third) = tokio::join!(Postgres::start(), Postgres::start(), Postgres::start());
    let (fourth, fifth) = tokio::join!(Nats::start(), Nats::start());
    let mut ports = vec![first.port(), second.port(), third.port(), fourth.port(), fifth.port()];
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), 5);
}

#[tokio::test]
async fn nothing_is_left_of_servers_that_were_dropped() {
    let (pg, nats) = (Postgres::start().await, Nats::start().await);
    let _client = pg.client().await;
    let (pids, folders) = ([pg.pid(), nats.pid()], [pg.socket_dir().to_owned(), nats.folder().to_owned()]);
    assert!(pids.iter().all(|pid| is_running(*pid)));
    pg.pause(); // even so
    drop((pg, nats));
    assert!(!pids.iter().any(|pid| is_running(*pid)));
    assert!(!folders.iter().any(|folder| folder.exists()));
}

#[tokio::test]
async fn servers_die_with_a_test_that_is_killed() {
    let folder = tempfile::tempdir().unwrap(); // what a killed test cannot clean up
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = support::process::User::Ourselves.command(std::env::current_exe().unwrap());
    command.env("TMPDIR", folder.path()).args([
        "--ignored",
        "--exact",
        "--nocapture",
        "support_works::servers_wait_to_be_orphaned",
    ]);
    let mut test = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(test.stdout.take().unwrap()));
    let line = lines.find_map(|line| line.unwrap().split_once("orphans: ").map(|(_, pids)| pids.to_owned())).unwrap();
    let pids: Vec<u32> = line.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
    assert_eq!(pids.len(), 2);
    test.kill().unwrap();
    test.wait().unwrap();
    support::eventually("the servers' end", async || (!pids.iter().any(|pid| is_running(*pid))).then_some(())).await;
    for left in std::fs::read_dir(folder.path()).unwrap() {
        support::postgres::forget_shared_memory(&left.unwrap().path().join("data"));
    }
}

#[tokio::test]
#[ignore = "the other half of servers_die_with_a_test_that_is_killed, which runs it"]
async fn servers_wait_to_be_orphaned() {
    // Started by a thread that ends long before they do.
    let start = || support::runtime().block_on(async { (Postgres::start().await, Nats::start().await) });
    let (pg, nats) = std::thread::spawn(start).join().unwrap();
    assert_eq!(pg.psql("SELECT 1"), "1");
    println!("orphans: {} {}", pg.pid(), nats.pid());
    tokio::time::sleep(2 * support::DEADLINE).await;
}

#[test]
fn the_binary_runs_in_an_environment_of_its_own() {
    let finished = Walhook::command("version").env("WALHOOK_SOMETHING", "x").finish();
    assert!(finished.code.is_some());
    let mut running = Walhook::command("version").start();
    running.wait(support::DEADLINE);
    running.kill9();
}
