//! What is wrong is said clearly: what was attempted, on what, and what to try; and nothing is lost.

#![allow(clippy::unwrap_used)]

use crate::support;

use std::time::Duration;

use support::{Nats, Postgres, UNCHECKED, Walhook, feed::Feed, walhook::Finished};

/// A feed whose table `t` is linked to webhook 1, `webhooks.w`.
async fn linked() -> Feed {
    linked_on(Postgres::set_up().await, Nats::start().await)
}

fn linked_on(pg: Postgres, nats: Nats) -> Feed {
    let feed = Feed::on(pg, nats);
    assert_eq!(feed.webhook("w"), 1);
    feed.pg.psql("CREATE TABLE t (id int PRIMARY KEY, note text)");
    feed.pg.psql("SELECT rule_webhook_link_table(1, 't')");
    feed
}

/// `walhook run` ends by itself with this exit code, and its last words hold all of these.
fn refuses(run: support::walhook::Builder, code: i32, words: &[&str]) -> String {
    let mut walhook = run.start();
    let ended = walhook.wait(Duration::from_secs(30));
    let log = walhook.log();
    let last = log.lines().last().unwrap_or_default();
    assert_eq!(ended, code, "{log}");
    for word in words {
        assert!(last.contains(word), "no {word:?} in: {last}");
    }
    log
}

/// The command line ends at once with this code, and says all of these.
fn says(finished: &Finished, code: i32, words: &[&str]) {
    assert_eq!(finished.code, Some(code), "{finished:?}");
    for word in words {
        assert!(finished.stderr.contains(word), "no {word:?} in: {}", finished.stderr);
    }
}

async fn ids(feed: &Feed) -> Vec<i64> {
    feed.confirmed().await;
    feed.messages().await.iter().map(|message| message.data()["id"].as_i64().unwrap()).collect()
}

/// Reason and id of each dead letter's row.
fn letters(feed: &Feed) -> String {
    feed.pg.psql(
        "SELECT convert_from(payload, 'UTF8')::jsonb -> 'data' ->> 'id', reason FROM rule_nats_dead_letters \
         ORDER BY dead_letter_id",
    )
}

fn ended_well(walhook: &mut Walhook) {
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

// ------------------------------------------------------------------------------------------------------ the command line

#[test]
fn an_unknown_flag_or_verb_is_refused_with_what_to_try() {
    for arguments in [["run", "--no-such-flag"], ["walk", "--log=info"], ["status", "--log-format=xml"]] {
        let finished = Walhook::command(arguments[0]).arg(arguments[1]).finish();
        says(&finished, 2, &["read the command line: ", "Hint: "]);
    }
}

#[tokio::test]
async fn a_settings_file_that_cannot_be_used_is_named_with_what_is_wrong_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("walhook.toml");
    let path = path.to_str().unwrap();
    let run = || Walhook::command("run").args(["--config", path]).env("PGUSER", "x").finish();
    says(&run(), 2, &["read the file of --config (WALHOOK_CONFIG)", path, "No such file"]);
    for (text, words) in [
        ("slot = \"a\"\nnonsense = 1\n", &["line 2", "unknown field, expected one of", "config/walhook.toml"][..]),
        ("slot = 'Not A Slot'", &["the slot's name", "lower-case"]),
        ("window_events = 0", &["window_events = 0", "between 1 and"]),
        ("[nats]\ntoken = verysecret", &["line 2"]),
    ] {
        std::fs::write(path, text).unwrap();
        let finished = run();
        says(&finished, 2, words);
        assert!(!finished.stderr.contains("verysecret"), "{}", finished.stderr);
    }
}

#[test]
fn a_secret_file_that_is_not_there_is_named() {
    let finished = Walhook::command("run").env("PGUSER", "x").env("PGPASSWORD_FILE", "/etc/no-such-file").finish();
    says(&finished, 2, &["/etc/no-such-file", "PGPASSWORD_FILE"]);
}

/// A directory, a device without an end, and a FIFO that nobody writes to.
fn no_files(folder: &std::path::Path) -> [String; 3] {
    let fifo = folder.join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    [folder.to_str().unwrap().to_owned(), "/dev/zero".to_owned(), fifo.to_str().unwrap().to_owned()]
}

#[test]
fn what_is_no_regular_file_is_refused_at_once_wherever_a_setting_names_it() {
    let folder = tempfile::tempdir().unwrap();
    for path in no_files(folder.path()) {
        for variable in ["WALHOOK_CONFIG", "PGPASSWORD_FILE", "DATABASE_URL_FILE", "NATS_TOKEN_FILE", "NATS_NKEY_FILE"]
        {
            let finished = Walhook::command("run").env("PGUSER", "x").env(variable, &path).finish();
            says(&finished, 2, &[variable, &path, "must name a regular file of at most 1024 KiB"]);
        }
        // Read when a connection is opened; TLS first, so that there is one to prepare.
        for variable in ["NATS_CA", "SSL_CERT_FILE"] {
            let settings = folder.path().join("walhook.toml");
            std::fs::write(&settings, "[nats]\ntls_first = true\n").unwrap();
            let nats = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let url = format!("nats://{}", nats.local_addr().unwrap());
            let command =
                Walhook::command("deliver").args(["--no-database", "--nats-url", &url, "--config"]).arg(settings);
            let finished = command.env("PGUSER", "x").env(variable, &path).finish();
            says(&finished, 2, &[variable, &path, "must name a regular file of at most 1024 KiB"]);
        }
    }
}

#[tokio::test]
async fn what_is_no_regular_file_is_refused_at_once_wherever_a_row_names_it_and_a_stop_waits_for_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let nats = Nats::builder().config("accounts: { A: { jetstream: enabled, users: [{ nkey: UA6KOMQ67XOE3FHE37W4OXADVXVYISBNLTBUT2LSY5VFKAIJ7CRDR2RZ }] } }").start();
    let feed = Feed { pg: Postgres::start().await, nats: nats.await };
    let done = feed.command("setup").finish();
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    feed.pg.psql(&format!("SELECT rule_nats_configure('default', '{}')", feed.nats.url()));
    feed.webhook("w");
    for path in no_files(folder.path()) {
        for columns in [
            format!(
                "auth_type = 'credentials', auth_credentials_file = '{path}', tls_enabled = false, tls_ca_file = NULL"
            ),
            format!("auth_type = 'none', auth_credentials_file = NULL, tls_enabled = true, tls_ca_file = '{path}'"),
        ] {
            feed.pg.psql(&format!("UPDATE rule_nats_config SET {columns}"));
            let mut walhook = feed.run();
            let report = "SELECT rule_nats_health_check() ->> 'last_error'";
            let is_refused = async || {
                // The report may be that of the run before.
                let is_running = walhook.log().contains("slot taken");
                let log = walhook.log() + &feed.pg.psql(report);
                (is_running && log.contains("must name a regular file") && log.contains(&path)).then_some(())
            };
            support::eventually(&format!("{columns} to be refused"), is_refused).await;
            if walhook.exited().is_none() {
                assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
            }
        }
    }
}

// ------------------------------------------------------------------------------------------------------------ PostgreSQL

#[tokio::test]
async fn an_unreachable_postgresql_is_tried_again_and_named() {
    let feed = linked().await;
    feed.pg.stop();
    let mut walhook = feed.run();
    walhook.logged("retry_in_ms").await;
    let log = walhook.log();
    assert!(log.contains(&format!("127.0.0.1:{}", feed.pg.port())), "{log}");
    assert!(walhook.exited().is_none());
    feed.pg.restart().await;
    feed.pg.psql("INSERT INTO t VALUES (1)");
    assert_eq!(ids(&feed).await, [1]);
    // Other verbs do not wait.
    feed.pg.stop();
    let finished = feed.command("status").finish();
    says(&finished, 1, &["connect", &format!("127.0.0.1:{}", feed.pg.port())]);
}

#[tokio::test]
async fn a_wrong_password_ends_it_with_the_code_for_permission_and_is_not_shown() {
    let hba = "host all all 127.0.0.1/32 scram-sha-256\nhost replication all 127.0.0.1/32 scram-sha-256";
    let pg = Postgres::builder().hba(hba).start().await;
    pg.psql("ALTER ROLE postgres PASSWORD 'right'");
    let run = Walhook::run().env("DATABASE_URL", pg.conninfo()).env("PGPASSWORD", "wrong-hunter2");
    let log = refuses(run, 4, &["postgres", "28P01", "password", "PGPASSWORD"]);
    assert!(!log.contains("hunter2"), "{log}");
    let run = Walhook::run().env("DATABASE_URL", pg.conninfo());
    refuses(run, 4, &["password"]);
}

#[tokio::test]
async fn a_role_without_the_right_to_replicate_ends_it_with_the_remedy() {
    let feed = linked().await;
    feed.pg.psql("CREATE ROLE reader LOGIN SUPERUSER NOREPLICATION");
    feed.pg.psql("CREATE ROLE plain LOGIN");
    let run = feed.command("run").env("DATABASE_URL", feed.pg.conninfo().replace("user=postgres", "user=plain"));
    refuses(run, 4, &["plain", "REPLICATION"]);
}

#[tokio::test]
async fn a_wal_level_that_is_not_logical_ends_it_with_the_remedy() {
    let pg = Postgres::builder().conf("wal_level = replica").start().await;
    let finished = Walhook::command("setup").env("DATABASE_URL", pg.conninfo()).finish();
    says(&finished, 2, &["wal_level", "replica", "ALTER SYSTEM SET wal_level = logical"]);
    let run = Walhook::run().env("DATABASE_URL", pg.conninfo());
    refuses(run, 2, &["slot \"walhook\"", "wal_level is \"replica\"", "ALTER SYSTEM SET wal_level"]);
}

#[tokio::test]
async fn a_database_without_setup_ends_it_with_the_remedy() {
    let pg = Postgres::start().await;
    let run = Walhook::run().env("DATABASE_URL", pg.conninfo());
    refuses(run, 2, &["schema", "is missing", "walhook setup"]);
    let finished = Walhook::command("status").env("DATABASE_URL", pg.conninfo()).finish();
    says(&finished, 2, &["walhook setup"]);
}

#[tokio::test]
async fn a_slot_that_is_missing_or_not_ours_ends_it_with_the_remedy() {
    let feed = linked().await;
    feed.pg.psql("SELECT pg_drop_replication_slot('walhook')");
    refuses(feed.command("run"), 2, &["slot \"walhook\" does not exist", "walhook setup"]);
    feed.pg.psql("SELECT pg_create_logical_replication_slot('walhook', 'test_decoding')");
    refuses(feed.command("run"), 2, &["slot \"walhook\"", "test_decoding", "--slot"]);
    feed.pg.psql("SELECT pg_drop_replication_slot('walhook'), pg_create_physical_replication_slot('walhook')");
    refuses(feed.command("run"), 2, &["slot \"walhook\"", "physical"]);
}

#[tokio::test]
async fn a_slot_that_has_lost_its_wal_ends_it_with_the_code_for_distrust() {
    let pg = Postgres::builder()
        .conf("max_slot_wal_keep_size = 1MB\nmin_wal_size = 32MB\nmax_wal_size = 32MB")
        .set_up()
        .start()
        .await;
    let feed = linked_on(pg, Nats::start().await);
    for _ in 0..4 {
        feed.pg.psql("SELECT pg_switch_wal(); CREATE TABLE filler (); DROP TABLE filler");
    }
    feed.pg.psql("CHECKPOINT");
    assert_eq!(feed.pg.psql("SELECT wal_status FROM pg_replication_slots"), "lost");
    refuses(feed.command("run"), 3, &["slot \"walhook\" is lost", "max_slot_wal_keep_size"]);
    // To go on with a gap.
    let done = feed.command("setup").finish();
    says(
        &done,
        2,
        &[
            "To go on without the changes that are lost: SELECT rule_cdc_slot_drop('walhook'); then create the slot again.",
        ],
    );
    feed.pg.psql("SELECT rule_cdc_slot_drop('walhook')");
    assert_eq!(feed.command("setup").finish().code, Some(0));
    feed.pg.psql("INSERT INTO t VALUES (1)");
    let mut walhook = feed.run();
    assert_eq!(ids(&feed).await, [1]);
    ended_well(&mut walhook);
}

#[tokio::test]
async fn a_publication_that_is_missing_or_for_all_tables_ends_it_with_the_remedy() {
    let feed = linked().await;
    feed.pg.psql("DROP PUBLICATION walhook_changes; CREATE PUBLICATION walhook_changes FOR ALL TABLES");
    refuses(
        feed.command("run"),
        2,
        &["\"walhook_changes\" is FOR ALL TABLES", "DROP PUBLICATION walhook_changes; SELECT"],
    );
    feed.pg.psql("DROP PUBLICATION walhook_changes");
    refuses(feed.command("run"), 2, &["publication \"walhook_changes\" does not exist", "walhook setup"]);
}

#[tokio::test]
async fn a_publication_that_goes_while_it_runs_ends_it_with_the_remedy() {
    let feed = linked().await;
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO t VALUES (1)");
    feed.stored(1).await;
    feed.pg.psql("DROP PUBLICATION walhook_changes");
    feed.pg.psql("INSERT INTO t VALUES (2)");
    feed.pg.psql("INSERT INTO rule_webhook_events (webhook_id, payload) VALUES (1, '{\"id\": 3}')");
    assert_eq!(walhook.wait(Duration::from_secs(30)), 2, "{}", walhook.log());
    assert!(walhook.log().lines().last().unwrap().contains("walhook_changes"), "{}", walhook.log());
}

#[tokio::test]
async fn a_publication_with_a_table_of_secrets_is_refused() {
    let feed = linked().await;
    feed.pg.psql("ALTER PUBLICATION walhook_inserts ADD TABLE rule_webhook_secrets");
    refuses(feed.command("run"), 2, &["rule_webhook_secrets", "ALTER PUBLICATION", "DROP TABLE"]);
}

// ------------------------------------------------------------------------------------------------------------------ NATS

#[tokio::test]
async fn an_unreachable_nats_is_tried_again_and_named_without_its_password() {
    let feed = linked().await;
    feed.nats.stop();
    let port = feed.nats.port();
    let run = feed.command("run").env("NATS_URL", format!("nats://u:hunter2@127.0.0.1:{port}"));
    let mut walhook = run.start();
    walhook.logged("WARN").await;
    let log = walhook.log();
    assert!(log.contains(&format!("127.0.0.1:{port}")) && log.contains("WEBHOOKS"), "{log}");
    assert!(!log.contains("hunter2"), "{log}");
    feed.pg.psql("INSERT INTO t VALUES (1)");
    feed.nats.restart().await;
    assert_eq!(ids(&feed).await, [1]);
    ended_well(&mut walhook);
}

#[tokio::test]
async fn a_password_that_nats_does_not_take_ends_it_with_the_code_for_permission() {
    let nats = Nats::builder().config("authorization { user: app, password: right }").start().await;
    let feed = linked_on(Postgres::set_up().await, nats);
    let run = feed.command("run").env("NATS_USER", "app").env("NATS_PASSWORD", "hunter2");
    let log = refuses(run, 4, &["WEBHOOKS", &format!("127.0.0.1:{}", feed.nats.port())]);
    assert!(!log.contains("hunter2"), "{log}");
    refuses(feed.command("run"), 4, &["WEBHOOKS"]);
}

#[tokio::test]
async fn no_secret_of_the_database_or_the_environment_is_ever_logged() {
    let nats = Nats::builder().config("authorization { token: hunter2-token }").start().await;
    let hba = "host all all 127.0.0.1/32 scram-sha-256\nhost replication all 127.0.0.1/32 scram-sha-256";
    let pg = Postgres::builder().hba(hba).start().await;
    pg.psql("ALTER ROLE postgres PASSWORD 'hunter2-pg'");
    let url = format!("postgres://postgres:hunter2-pg@127.0.0.1:{}/postgres", pg.port());
    let setup = Walhook::command("setup").env("DATABASE_URL", &url).finish();
    says(&setup, 0, &[]);
    let feed = Feed { pg, nats };
    feed.pg.psql(&format!("SELECT rule_nats_configure('default', '{}', 'token')", feed.nats.url()));
    feed.pg.psql("UPDATE rule_nats_config SET auth_token = 'hunter2-token'");
    let id = feed.webhook("w");
    feed.pg.psql(&format!("SELECT rule_webhook_secret_set({id}, 'key', 'hunter2-secret')"));
    let mut walhook = Walhook::run().env("DATABASE_URL", &url).env("WALHOOK_LOG", "trace").start();
    walhook.logged("stream opened").await;
    feed.pg.psql("UPDATE rule_nats_config SET auth_token = 'hunter2-wrong'");
    let ended = walhook.wait(Duration::from_secs(30));
    assert_eq!(ended, 4, "{}", walhook.log());
    let log = walhook.log();
    assert!(log.contains("WARN") && log.contains("auth_token"), "a plaintext secret in a row is warned of:\n{log}");
    for part in [&log, &setup.stderr, &setup.stdout] {
        assert!(!part.contains("hunter2"), "{part}");
    }
}

#[tokio::test]
async fn a_stream_that_cannot_be_made_is_waited_for_and_the_others_flow() {
    let feed = linked().await;
    let fenced = feed.webhook("other");
    feed.pg.psql("SELECT rule_nats_stream_create('HUGE', ARRAY['huge.>'])");
    feed.pg.psql("UPDATE rule_nats_streams SET replicas = 3");
    feed.pg.psql(&format!("UPDATE rule_webhooks SET nats_subject = 'huge.x' WHERE webhook_id = {fenced}"));
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO t VALUES (1)");
    feed.pg.psql(&format!("SELECT rule_webhook_publish_nats({fenced}, '{{\"id\": 2}}')"));
    feed.pg.psql("INSERT INTO t VALUES (3)");
    feed.stored(2).await;
    walhook.logged("HUGE").await;
    let line = walhook.log().lines().find(|line| line.contains("HUGE")).unwrap().to_owned();
    assert!(line.contains("replicas"), "{line}");
    feed.pg.psql("UPDATE rule_nats_streams SET replicas = 1");
    assert_eq!(ids(&feed).await, [1, 3]);
    assert_eq!(feed.messages_of("HUGE").await[0].data()["id"], 2);
    assert_eq!(letters(&feed), "");
    ended_well(&mut walhook);
}

#[tokio::test]
async fn a_subject_outside_every_stream_is_a_dead_letter_that_says_so_and_the_next_event_flows() {
    let feed = linked().await;
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO t VALUES (1)");
    feed.pg.psql("UPDATE rule_webhooks SET nats_subject = 'elsewhere.x'");
    feed.pg.psql("INSERT INTO t VALUES (2)");
    feed.pg.psql("UPDATE rule_webhooks SET nats_subject = 'webhooks.w'");
    feed.pg.psql("INSERT INTO t VALUES (3)");
    assert_eq!(ids(&feed).await, [1, 3]);
    assert_eq!(letters(&feed), "2|no stream of its NATS configuration takes the subject \"elsewhere.x\"");
    ended_well(&mut walhook);
}

#[tokio::test]
async fn an_event_over_max_payload_is_a_dead_letter_with_its_payload_and_the_next_event_flows() {
    let nats = Nats::builder().config("max_payload: 64KB").start().await;
    let feed = linked_on(Postgres::set_up().await, nats);
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO t VALUES (1, 'small')");
    feed.pg.psql("INSERT INTO t VALUES (2, repeat('x', 70000)), (3, repeat('y', 60000)), (4, repeat('z', 65536))");
    feed.pg.psql("INSERT INTO t VALUES (5, 'small')");
    assert_eq!(ids(&feed).await, [1, 3, 5]);
    let rows = feed.pg.psql(
        "SELECT convert_from(payload, 'UTF8')::jsonb -> 'data' ->> 'id', reason LIKE '%NATS takes 65536 (max_payload%', subject, \
                webhook_name, status, octet_length(payload) > 65536 FROM rule_nats_dead_letters ORDER BY dead_letter_id",
    );
    assert_eq!(rows, "2|t|webhooks.w|w|dead|t\n4|t|webhooks.w|w|dead|t");
    let log = walhook.log();
    assert!(log.contains("dead letter") && log.contains("max_payload"), "{log}");
    ended_well(&mut walhook);
}

#[tokio::test]
async fn what_is_too_large_is_judged_by_the_server_that_is_there_and_not_before_it_is_known() {
    let nats = Nats::builder().config("max_payload: 4MB").start().await;
    let feed = linked_on(Postgres::set_up().await, nats);
    feed.nats.stop();
    let mut walhook = feed.run();
    walhook.logged("WARN").await;
    feed.pg.psql("INSERT INTO t VALUES (1, 'a'), (2, repeat('x', 2000000)), (3, repeat('x', 5000000)), (4, 'b')");
    feed.nats.restart().await;
    assert_eq!(ids(&feed).await, [1, 2, 4]);
    assert!(letters(&feed).starts_with("3|"), "{}", letters(&feed));
    ended_well(&mut walhook);
}

#[tokio::test]
async fn events_too_large_for_the_stream_alone_are_dead_letters_too() {
    let feed = linked().await;
    let jetstream = feed.nats.jetstream().await;
    let config = async_nats::jetstream::stream::Config {
        name: "WEBHOOKS".to_owned(),
        subjects: vec!["webhooks.>".to_owned()],
        max_message_size: 2000,
        ..Default::default()
    };
    jetstream.create_stream(config).await.unwrap();
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO t VALUES (1, 'small'), (2, repeat('x', 3000)), (3, 'small')");
    assert_eq!(ids(&feed).await, [1, 3]);
    assert!(letters(&feed).starts_with("2|"), "{}", letters(&feed));
    ended_well(&mut walhook);
}

// ------------------------------------------------------------------------------------------------------ rows of nonsense

#[tokio::test]
async fn subjects_and_templates_that_cannot_be_are_refused_by_the_database_and_survived_by_walhook() {
    let feed = linked().await;
    // The functions refuse them …
    for bad in ["webhooks.*", "webhooks.a b", "webhooks..a", "webhooks.", "$SYS.x", ">"] {
        let refused = feed.pg.try_psql(&format!("SELECT rule_webhook_enable_nats(1, '{bad}')")).unwrap_err();
        let text = refused.as_db_error().unwrap().to_string();
        assert!(text.contains("cannot publish to the subject"), "{bad}: {text}");
    }
    for bad in ["a.{nope}", "a.{id", "a..{id}", "a.*"] {
        let refused = feed.pg.try_psql(&format!("SELECT rule_webhook_link_table(1, 't', subject_template => '{bad}')"));
        assert!(refused.is_err(), "{bad}");
        let refused =
            feed.pg.try_psql(&format!("SELECT rule_webhook_link_table(1, 't', p_subject_template => '{bad}')"));
        assert!(refused.unwrap_err().as_db_error().is_some_and(|error| error.message().contains("template")), "{bad}");
    }
    // … and where somebody writes the rows by hand, they cost their own events only, and each says why.
    let mut walhook = feed.run();
    let mut id = 0;
    let mut expected = Vec::new();
    for (bad, why) in [
        ("webhooks.*", "wildcard"),
        ("webhooks.a b", "space"),
        ("webhooks..a", "empty token"),
        ("webhooks.a.", "empty token"),
        ("$JS.API.x", "server"),
        ("webhooks.\n", "control"),
    ] {
        id += 1;
        feed.pg.psql(&format!(
            "{UNCHECKED}; UPDATE rule_webhooks SET nats_subject = '{bad}'; INSERT INTO t VALUES ({id})"
        ));
        expected.push((id, why));
    }
    feed.pg.psql("UPDATE rule_webhooks SET nats_subject = 'webhooks.w'");
    for (bad, why) in [
        ("a.{nope}", "\"nope\" is neither"),
        ("a.{id", "braces"),
        ("a.id}", "braces"),
        ("a..{id}", "empty token"),
        ("a.*.{id}", "wildcard"),
        ("webhooks.{note}", "note"),
    ] {
        id += 1;
        feed.pg.psql(&format!(
            "{UNCHECKED}; UPDATE rule_webhook_links SET subject_template = '{bad}'; INSERT INTO t VALUES ({id})"
        ));
        expected.push((id, why));
    }
    feed.pg.psql("UPDATE rule_webhook_links SET subject_template = NULL; INSERT INTO t VALUES (100)");
    assert_eq!(ids(&feed).await, [100]);
    let letters = letters(&feed);
    assert_eq!(letters.lines().count(), expected.len(), "{letters}");
    for (line, (id, why)) in letters.lines().zip(expected) {
        assert!(line.starts_with(&format!("{id}|")) && line.contains(why), "no {why:?} in {line}");
    }
    ended_well(&mut walhook);
}

#[tokio::test]
async fn an_unknown_mode_format_or_filter_sets_its_webhook_aside_with_the_reason() {
    let feed = linked().await;
    feed.pg.psql(
        // Rows from before the database checked them.
        "ALTER TABLE rule_webhooks DROP CONSTRAINT valid_publish_mode, DROP CONSTRAINT valid_payload_format, \
             DROP CONSTRAINT valid_on_error, DROP CONSTRAINT valid_nats_headers; \
         ALTER TABLE rule_webhook_links DROP CONSTRAINT valid_operations; \
         ALTER TABLE rule_webhooks DISABLE TRIGGER USER; ALTER TABLE rule_webhook_links DISABLE TRIGGER USER",
    );
    let good = feed.webhook("good");
    feed.pg.psql(&format!("SELECT rule_webhook_link_table({good}, 't')"));
    let mut walhook = feed.run();
    let mut expected = Vec::new();
    for (id, (table, set, back, why)) in [
        ("webhooks", "publish_mode = 'carrier'", "publish_mode = 'nats'", "publish_mode \"carrier\" is none of"),
        ("webhooks", "payload_format = 'xml'", "payload_format = 'webhook'", "payload_format \"xml\" is none of"),
        ("webhooks", "on_error = 'panic'", "on_error = 'dead_letter'", "on_error \"panic\" is none of"),
        ("webhooks", "headers = '[1]'", "headers = '{}'", "not a JSON object"),
        (
            "webhooks",
            "nats_headers = '{\"nats-Rollup\": \"all\"}'",
            "nats_headers = NULL",
            "\"nats-Rollup\" is reserved",
        ),
        ("webhooks", "nats_headers = '{\"A\": \"b\\r\\nc\"}'", "nats_headers = NULL", "control character"),
        ("webhook_links", "filter = '[1]'", "filter = NULL", "filter is not a JSON object"),
        ("webhook_links", "filter = '{\"nope\": 1}'", "filter = NULL", "\"nope\" is not a column"),
        ("webhook_links", "when_changed = '{nope}'", "when_changed = NULL", "\"nope\" is not a column"),
        ("webhook_links", "operations = '{insert,upsert}'", "operations = '{insert}'", "\"upsert\" is none of"),
    ]
    .into_iter()
    .enumerate()
    {
        feed.pg.psql(&format!("UPDATE rule_{table} SET {set} WHERE webhook_id = 1"));
        feed.pg.psql(&format!("INSERT INTO t VALUES ({id})"));
        feed.pg.psql(&format!("UPDATE rule_{table} SET {back} WHERE webhook_id = 1"));
        expected.push(why);
    }
    feed.confirmed().await;
    let letters = letters(&feed);
    assert_eq!(letters.lines().count(), expected.len(), "{letters}");
    for (id, (line, why)) in letters.lines().zip(&expected).enumerate() {
        assert!(line.starts_with(&format!("{id}|")) && line.contains(why), "no {why:?} in {line}");
    }
    assert_eq!(feed.messages().await.len(), expected.len(), "the good one had them all");
    ended_well(&mut walhook);
}

#[tokio::test]
async fn events_for_no_webhook_or_with_an_impossible_message_id_are_dead_letters() {
    let feed = linked().await;
    let mut walhook = feed.run();
    for (webhook, message_id, id) in [
        (1, "'a\r\nNats-Rollup: all'", 1),
        (1, "'a\tb'", 2),
        (1, "repeat('x', 600)", 3),
        (77, "NULL", 4),
        (1, "'ä ö'", 5),
    ] {
        feed.pg.psql(&format!(
            "INSERT INTO rule_webhook_events (webhook_id, payload, message_id) VALUES ({webhook}, '{{\"id\": {id}}}', {message_id})"
        ));
    }
    assert_eq!(ids(&feed).await, [5]);
    let reasons = feed.pg.psql("SELECT webhook_id, reason FROM rule_nats_dead_letters ORDER BY dead_letter_id");
    let reasons: Vec<_> = reasons.lines().collect();
    assert_eq!(reasons.len(), 4, "{reasons:?}");
    assert!(reasons[..3].iter().all(|reason| reason.starts_with("1|") && reason.contains("message_id")), "{reasons:?}");
    assert!(reasons[3].starts_with("77|") && reasons[3].contains("does not exist"), "{reasons:?}");
    ended_well(&mut walhook);
}

#[tokio::test]
async fn an_event_whose_own_headers_would_forge_others_is_a_dead_letter() {
    let feed = linked().await;
    let mut walhook = feed.run();
    for (id, headers) in [
        r#"{"Nats-Rollup": "all"}"#,
        r#"{"walhook-id": "x"}"#,
        r#"{"A": "b\r\nNats-Rollup: all"}"#,
        r#"{"A: b\r\nNats-Rollup": "all"}"#,
        r#"{"": "x"}"#,
        r#"{"X-N": 5}"#,
    ]
    .into_iter()
    .enumerate()
    {
        // Past the function that would refuse them.
        feed.pg.psql(&format!(
            "INSERT INTO rule_webhook_events (webhook_id, payload, headers) VALUES (1, '{{\"id\": {id}}}', '{headers}')"
        ));
    }
    assert_eq!(ids(&feed).await, [5], "a number is written out");
    let reasons = feed.pg.psql("SELECT reason FROM rule_nats_dead_letters ORDER BY dead_letter_id");
    assert_eq!(reasons.lines().count(), 5, "{reasons}");
    assert!(reasons.lines().all(|reason| reason.contains("its own headers cannot be sent")), "{reasons}");
    ended_well(&mut walhook);
}

#[tokio::test]
async fn a_webhook_that_halts_stops_walhook_at_its_event_and_goes_on_there_when_mended() {
    let feed = linked().await;
    feed.pg.psql("UPDATE rule_webhooks SET on_error = 'halt'");
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO t VALUES (1)");
    feed.stored(1).await;
    feed.pg.psql("INSERT INTO t VALUES (2)");
    feed.pg.psql("UPDATE rule_webhooks SET nats_subject = 'elsewhere.x'");
    feed.pg.psql("INSERT INTO t VALUES (3)");
    assert_eq!(walhook.wait(Duration::from_secs(30)), 2, "{}", walhook.log());
    let log = walhook.log();
    let last = log.lines().last().unwrap();
    for word in ["webhook 1 \"w\"", "elsewhere.x", "no stream", "on_error"] {
        assert!(last.contains(word), "no {word:?} in {last}");
    }
    // It stays so until somebody acts; a corrected row alone says nothing of an event before it.
    refuses(feed.command("run"), 2, &["elsewhere.x"]);
    feed.pg.psql("UPDATE rule_webhooks SET nats_subject = 'webhooks.w'");
    refuses(feed.command("run"), 2, &["elsewhere.x"]);
    feed.pg.psql(&amendment_of(&log));
    assert_eq!(
        feed.pg
            .psql("SELECT count(*), bool_and(made_by = session_user), min(at_ordinal) FROM rule_cdc_rule_amendments"),
        "1|t|0"
    );
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO t VALUES (4)");
    assert_eq!(ids(&feed).await, [1, 2, 3, 4]);
    ended_well(&mut walhook);
}

/// The statement that the hint of a halt names.
fn amendment_of(log: &str) -> String {
    let at = log.rfind("SELECT rule_cdc_rules_amend(").expect("the hint names the statement");
    let end = log[at..].find(')').expect("it is whole");
    log[at..=at + end].to_owned()
}

#[tokio::test]
async fn an_amendment_wants_the_id_of_an_event_of_this_database() {
    let feed = linked().await;
    for (event, problem) in [("'nonsense'", "is not the id of an event"), ("NULL", "is not the id of an event")] {
        let said = feed.pg.try_psql(&format!("SELECT rule_cdc_rules_amend({event})")).expect_err("it is refused");
        let said = said.as_db_error().unwrap();
        assert!(said.message().contains(problem) && said.hint().is_some(), "{said}");
    }
    let beyond = "SELECT rule_cdc_rules_amend('walhook-0fffffff00000000-1-0-1')";
    let said = feed.pg.try_psql(beyond).expect_err("it is refused");
    assert!(said.as_db_error().unwrap().message().contains("beyond the WAL"), "{said}");
}

#[tokio::test]
async fn a_webhook_that_halts_in_the_transaction_that_broke_it_goes_on_when_mended() {
    let feed = linked().await;
    feed.pg.psql("UPDATE rule_webhooks SET on_error = 'halt'");
    let mut walhook = feed.run();
    feed.pg.psql(
        "BEGIN; INSERT INTO t VALUES (1); UPDATE rule_webhooks SET nats_subject = 'elsewhere.x'; \
         INSERT INTO t VALUES (2); COMMIT",
    );
    assert_eq!(walhook.wait(Duration::from_secs(30)), 2, "{}", walhook.log());
    feed.pg.psql("UPDATE rule_webhooks SET nats_subject = 'webhooks.w'");
    feed.pg.psql(&amendment_of(&walhook.log()));
    assert_eq!(feed.pg.psql("SELECT at_ordinal FROM rule_cdc_rule_amendments"), "2", "of the row after the change");
    let mut walhook = feed.run();
    assert_eq!(ids(&feed).await, [1, 2]);
    ended_well(&mut walhook);
}

// ------------------------------------------------------------------------------------------------------- tables that change

#[tokio::test]
async fn a_linked_table_may_change_its_columns_while_rows_flow() {
    let feed = linked().await;
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO t VALUES (1, 'a')");
    feed.pg.psql("BEGIN; ALTER TABLE t ADD extra int DEFAULT 7; INSERT INTO t VALUES (2, 'b'); COMMIT");
    feed.pg.psql("ALTER TABLE t RENAME note TO remark");
    feed.pg.psql("INSERT INTO t VALUES (3, 'c', 8)");
    feed.pg.psql("ALTER TABLE t DROP remark");
    feed.pg.psql("INSERT INTO t VALUES (4, 9)");
    feed.pg.psql("ALTER TABLE t ALTER extra TYPE text USING 'n' || extra");
    feed.pg.psql("INSERT INTO t VALUES (5, 'ten')");
    feed.pg.psql("CREATE TYPE mood AS ENUM ('good', 'bad'); ALTER TABLE t ADD mood mood, ADD moods mood[]");
    feed.pg.psql("INSERT INTO t VALUES (6, 'x', 'good', '{good,bad}')");
    feed.confirmed().await;
    let rows: Vec<_> = feed.messages().await.iter().map(|message| message.data().clone()).collect();
    assert_eq!(
        rows,
        [
            serde_json::json!({"id": 1, "note": "a"}),
            serde_json::json!({"id": 2, "note": "b", "extra": 7}),
            serde_json::json!({"id": 3, "remark": "c", "extra": 8}),
            serde_json::json!({"id": 4, "extra": 9}),
            serde_json::json!({"id": 5, "extra": "ten"}),
            serde_json::json!({"id": 6, "extra": "x", "mood": "good", "moods": ["good", "bad"]}),
        ]
    );
    ended_well(&mut walhook);
}

#[tokio::test]
async fn a_column_that_a_link_needs_and_that_is_dropped_costs_its_events_only_until_the_link_is_mended() {
    let feed = linked().await;
    feed.pg.psql("SELECT rule_webhook_link_table(1, 't', p_subject_template => 'webhooks.{note}', p_columns => '{id,note}', p_operations => '{insert}')");
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO t VALUES (1, 'a')");
    feed.pg.psql("ALTER TABLE t DROP note");
    feed.pg.psql("INSERT INTO t VALUES (2)");
    feed.pg.psql("UPDATE rule_webhook_links SET subject_template = NULL");
    feed.pg.psql("INSERT INTO t VALUES (3)");
    assert_eq!(ids(&feed).await, [1, 3]);
    let letters = letters(&feed);
    assert!(letters.starts_with("2|") && letters.contains("\"note\"") && letters.lines().count() == 1, "{letters}");
    let log = walhook.log();
    assert!(log.contains("column \"note\" is not in public.t"), "{log}");
    ended_well(&mut walhook);
}

#[tokio::test]
async fn a_linked_table_may_be_dropped_made_again_and_renamed_while_others_flow() {
    let feed = linked().await;
    feed.pg.psql("CREATE TABLE u (id int PRIMARY KEY)");
    feed.pg.psql("SELECT rule_webhook_link_table(1, 'u')");
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO t VALUES (1)");
    feed.pg.psql("DROP TABLE t");
    feed.pg.psql("INSERT INTO u VALUES (2)");
    feed.pg.psql("CREATE TABLE t (id bigint PRIMARY KEY)");
    feed.pg.psql("INSERT INTO t VALUES (3)");
    feed.pg.psql("SELECT rule_webhook_link_table(1, 't')");
    feed.pg.psql("INSERT INTO t VALUES (4)");
    feed.pg.psql("ALTER TABLE t RENAME TO renamed");
    feed.pg.psql("INSERT INTO renamed VALUES (5)");
    feed.pg.psql("INSERT INTO u VALUES (6)");
    assert_eq!(ids(&feed).await, [1, 2, 4, 6]);
    let log = walhook.log();
    assert!(log.contains("public.renamed") && log.contains("was it renamed?"), "{log}");
    ended_well(&mut walhook);
}

// ------------------------------------------------------------------------------- what the schema and the functions allow

#[tokio::test]
async fn names_of_any_kind_are_published_under_subjects_that_nats_takes() {
    let feed = linked().await;
    let mut walhook = feed.run();
    let names = [
        r#"it's "quoted""#,
        "a.b..c",
        "two  words",
        "*.>",
        "$JS.API",
        "Ωμέγα 💥 名前",
        "\\back\tslash\n",
        &"n".repeat(1000),
        &"Ω".repeat(1000),
        "{op}",
    ];
    let (client, connection) = tokio_postgres::connect(&feed.pg.conninfo(), tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    for name in names {
        let row = client.query_one("SELECT rule_webhook_register($1, 'https://example.com')", &[&name]).await.unwrap();
        let id: i32 = row.get(0);
        if let Err(refused) = client.query_one("SELECT rule_webhook_enable_nats($1, NULL, 'nats')", &[&id]).await {
            // Percent-encoded it has 6,000 bytes: the error has the statement that will do.
            assert!(name.starts_with("ΩΩ"), "{name}: {refused}");
            let hint = refused.as_db_error().unwrap().hint().unwrap().to_owned();
            let statement = hint.strip_prefix("For example: ").unwrap();
            client.batch_execute(statement).await.unwrap();
        }
        client.query_one("SELECT rule_webhook_publish_nats($1, to_jsonb($2::text))", &[&id, &name]).await.unwrap();
        client.query_one("SELECT rule_webhook_link_table($1::int, 't', '{insert}')", &[&id]).await.unwrap();
    }
    feed.pg.psql("INSERT INTO t VALUES (1)");
    feed.confirmed().await;
    let messages = feed.messages().await;
    let calls: Vec<_> = messages.iter().filter(|message| message.payload["type"] == "webhook.call").collect();
    let called: Vec<_> = calls.iter().map(|message| message.data().as_str().unwrap()).collect();
    assert_eq!(called, names);
    for (message, name) in calls.iter().zip(names) {
        assert_eq!(message.payload["webhook_name"], *name);
        assert_eq!(message.subject.split('.').count(), 2, "one token: {}", message.subject);
    }
    assert_eq!(messages.len(), names.len() + 1 + names.len(), "and the row's, for each of them and for w");
    assert_eq!(letters(&feed), "");
    ended_well(&mut walhook);
}

#[tokio::test]
async fn payloads_of_any_json_arrive_and_one_of_10_mb_is_a_dead_letter() {
    let feed = linked().await;
    let mut walhook = feed.run();
    let payloads = ["null", "true", "-1.50", "\"text\"", "[]", "[1, [null]]", "{}", "{\"\": {\"a.b\": \"Ω\\u0001\"}}"];
    for payload in payloads {
        feed.pg.psql(&format!("SELECT rule_webhook_call_unified(1, '{payload}')"));
    }
    feed.pg.psql(
        "SELECT rule_webhook_call_unified(1, jsonb_build_object('id', 10, 'large', repeat('x', 10 * 1024 * 1024)))",
    );
    feed.pg.psql("SELECT rule_webhook_call_unified(1, '{\"id\": 11}')");
    feed.confirmed().await;
    let messages = feed.messages().await;
    let arrived: Vec<_> = messages.iter().map(|message| message.data().clone()).collect();
    let expected = payloads.iter().chain([&"{\"id\": 11}"]).map(|json| serde_json::from_str(json).unwrap());
    assert_eq!(arrived, expected.collect::<Vec<serde_json::Value>>());
    let letters = letters(&feed);
    assert!(letters.starts_with("10|") && letters.contains("max_payload") && letters.lines().count() == 1, "{letters}");
    assert_eq!(feed.pg.psql("SELECT octet_length(payload) > 10 * 1024 * 1024 FROM rule_nats_dead_letters"), "t");
    ended_well(&mut walhook);
}

#[tokio::test]
async fn a_null_wherever_the_schema_allows_one_costs_the_other_webhooks_nothing() {
    let feed = linked().await;
    let nulls = feed.webhook("nulls");
    feed.pg.psql(&format!("SELECT rule_webhook_link_table({nulls}, 't')"));
    feed.pg.psql("SELECT rule_nats_stream_create('WEBHOOKS', ARRAY['webhooks.>'])");
    let mut walhook = feed.run();
    let mut row = 0;
    let mut tried = Vec::new();
    for (table, key) in [
        ("rule_webhooks", format!("webhook_id = {nulls}")),
        ("rule_webhook_links", format!("webhook_id = {nulls}")),
        ("rule_nats_config", "config_id = 1".to_owned()),
        ("rule_nats_streams", "stream_name = 'WEBHOOKS'".to_owned()),
    ] {
        let columns = feed.pg.psql(&format!(
            "SELECT attname FROM pg_attribute WHERE attrelid = '{table}'::regclass AND attnum > 0 AND NOT attnotnull \
             AND NOT attisdropped ORDER BY attnum"
        ));
        for column in columns.lines() {
            let before = feed.pg.psql(&format!("SELECT quote_nullable({column}) FROM {table} WHERE {key}"));
            row += 1;
            feed.pg.psql(&format!(
                "BEGIN; UPDATE {table} SET {column} = NULL WHERE {key}; INSERT INTO t VALUES ({row}); COMMIT"
            ));
            // A call of it is answered, or refused by an error that has a hint.
            for call in ["rule_webhook_call_unified", "rule_webhook_publish_nats"] {
                if let Err(refused) = feed.pg.try_psql(&format!("SELECT {call}({nulls}, '{{}}')")) {
                    let refused = refused.as_db_error().unwrap().clone();
                    assert!(refused.hint().is_some(), "{table}.{column}: {refused:?}");
                }
            }
            feed.pg.psql("SELECT count(*) FROM rule_webhook_links_check()");
            feed.pg.psql(&format!("UPDATE {table} SET {column} = {before} WHERE {key}"));
            tried.push(format!("{table}.{column}"));
        }
    }
    assert!(tried.len() > 50, "{tried:?}");
    feed.confirmed().await;
    let messages = feed.messages().await;
    let of_w = messages.iter().filter(|message| message.payload["webhook_id"] == 1);
    let ids: Vec<_> = of_w.map(|message| message.data()["id"].as_i64().unwrap()).collect();
    assert_eq!(ids, (1..=row).collect::<Vec<_>>(), "each row for w, whatever was NULL: {tried:?}");
    // Columns of the event itself
    feed.pg.psql(&format!(
        "INSERT INTO rule_webhook_events (webhook_id, payload, subject, message_id, headers, triggered_by, rule_execution_id, created_at) \
         VALUES ({nulls}, '{{\"id\": 1000}}', NULL, NULL, NULL, NULL, NULL, NULL)"
    ));
    feed.confirmed().await;
    let last = feed.messages().await.pop().unwrap();
    assert_eq!((last.subject.as_str(), &last.data()["id"]), ("webhooks.nulls", &serde_json::json!(1000)));
    ended_well(&mut walhook);
}

#[tokio::test]
async fn two_configurations_of_one_server_never_publish_into_one_stream() {
    let feed = linked().await;
    // Around rule_nats_configure, which would give it a stream and a prefix of its own.
    feed.pg.psql(
        "INSERT INTO rule_nats_config (config_name, nats_url, stream_name) \
         SELECT name, nats_url, stream FROM rule_nats_config, (VALUES ('same', 'WEBHOOKS'), ('overlapping', 'OTHER')) v (name, stream)",
    );
    for config in ["same", "overlapping"] {
        let id = feed.webhook(config);
        feed.pg.psql(&format!(
            "UPDATE rule_webhooks SET nats_config_id = (SELECT config_id FROM rule_nats_config WHERE config_name = '{config}') \
             WHERE webhook_id = {id}; SELECT rule_webhook_link_table({id}, 't')"
        ));
    }
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO t SELECT generate_series(1, 3)");
    assert_eq!(ids(&feed).await, [1, 2, 3], "those of the first configuration");
    let letters =
        feed.pg.psql("SELECT webhook_name, count(*), max(reason) FROM rule_nats_dead_letters GROUP BY 1 ORDER BY 1");
    let expected =
        |name: &str| format!("{name}|3|no stream of its NATS configuration takes the subject \"webhooks.{name}\"");
    assert_eq!(letters, format!("{}\n{}", expected("overlapping"), expected("same")));
    let log = walhook.log();
    for said in [
        "\"WEBHOOKS\" of NATS configuration \"same\" is set aside: NATS configuration \"default\" publishes to it, on the same server",
        "\"OTHER\" of NATS configuration \"overlapping\" does not take \"webhooks.>\": \"webhooks.>\" goes to stream \"WEBHOOKS\"",
    ] {
        assert!(log.contains(said), "{said:?} in\n{log}");
    }
    ended_well(&mut walhook);
}

/// What is put where it does not belong, each with a secret in it.
const MISPLACED: [&str; 30] = [
    "CANARY",
    "CANARY==",
    "x CANARY",
    "CANARY=x",
    "'CANARY",
    "=CANARY",
    ",CANARY",
    "/CANARY",
    "CANARY/CANARY",
    "./x/CANARY",
    "-CANARY",
    "--CANARY",
    "a\u{1b}[31mCANARY",
    "-----BEGIN PRIVATE KEY-----\nCANARY\n-----END PRIVATE KEY-----\n",
    "postgres://u:CANARY@127.0.0.1:x/d",
    "postgres://u:CANARY",
    "postgres://u:CA/NARY/CANARY@127.0.0.1:1/d",
    "postgres://u:1?CANARY@127.0.0.1/d",
    "postgres://u:%CANARY@127.0.0.1/d",
    "mysql://u:CANARY@127.0.0.1/d",
    "u:CANARY@127.0.0.1/d",
    "user=u password=open CANARY host=127.0.0.1",
    "user=u password='CANARY host=127.0.0.1",
    "user=u host=u:CANARY@127.0.0.1",
    "nats://u:CANARY@127.0.0.1:99999",
    "nats://u:%CANARY@127.0.0.1",
    "nats://u@x:CANARY",
    "nats://CANARY/x@",
    "ws://u:CANARY@127.0.0.1",
    "info,CANARY=debug",
];

#[test]
fn no_wrong_setting_shows_what_stands_in_it() {
    use walhook::{
        config::{Config, Options},
        nats::settings::{Overrides, Settings},
        route::tables::ConfigRow,
    };
    let check = |what: &str, said: &str| assert!(!said.to_uppercase().contains("CANARY"), "{what}: {said}");
    let variables = [
        "WALHOOK_DATABASE_URL",
        "DATABASE_URL",
        "DATABASE_URL_FILE",
        "PGHOSTADDR",
        "PGPORT",
        "PGPASSWORD",
        "PGPASSWORD_FILE",
        "PGSSLMODE",
        "PGSSLNEGOTIATION",
        "PGCHANNELBINDING",
        "PGCONNECT_TIMEOUT",
        "PGTARGETSESSIONATTRS",
        "PGSERVICE",
        "PGSERVICEFILE",
        "PGREQUIREAUTH",
        "NATS_PASSWORD",
        "NATS_PASSWORD_FILE",
        "NATS_TOKEN",
        "NATS_TOKEN_FILE",
        "NATS_NKEY",
        "NATS_NKEY_FILE",
        "NATS_CREDS",
        "NATS_CA",
        "NATS_CERT",
        "NATS_KEY",
        "NATS_USER",
    ];
    let load = |options: &Options, variable: &str, value: &str| {
        Config::load(options, |name| match name {
            _ if name == variable => Some(value.to_owned()),
            "PGUSER" => Some("app".to_owned()),
            _ => None,
        })
    };
    let judge = |what: &str, loaded: walhook::error::Result<Config>, row: &ConfigRow| match loaded {
        Err(error) => check(what, &format!("{error} {error:?}")),
        Ok(config) => {
            check(what, &format!("{:?} {:?}", config.nats, config.postgres.password));
            match Settings::resolve(row, &config.nats) {
                Err(error) => check(what, &error.to_string()),
                Ok(settings) => check(what, &format!("{:?} {:?}", settings.auth, settings.warnings)),
            }
        }
    };
    let row = ConfigRow { nats_url: Some("127.0.0.1".to_owned()), ..ConfigRow::default() };
    let folder = tempfile::tempdir().unwrap();
    for wrong in MISPLACED {
        for variable in variables {
            // NATS_CREDS and its like are paths, which Debug shows; they are judged where they are read.
            let is_path = ["NATS_CREDS", "NATS_CA", "NATS_CERT", "NATS_KEY"].contains(&variable);
            if !is_path {
                judge(&format!("{variable}={wrong:?}"), load(&Options::default(), variable, wrong), &row);
            }
        }
        let flag = |set: fn(&mut Options, String)| {
            let mut options = Options::default();
            set(&mut options, wrong.to_owned());
            options
        };
        for options in [
            flag(|options, value| options.config = Some(value.into())),
            flag(|options, value| options.database_url = Some(value)),
            flag(|options, value| options.source = Some(value)),
            flag(|options, value| options.slot = Some(value)),
            flag(|options, value| options.publication = Some(value)),
        ] {
            if let Err(error) = load(&options, "", "") {
                check(&format!("{options:?}"), &error.to_string());
            }
        }
        // The file: as a value of another type, as a key, as a section, and where it stands bare.
        let quoted = format!("{wrong:?}");
        for text in [
            format!("window_events = {quoted}"),
            format!("slot = {quoted}"),
            format!("{quoted} = 1"),
            format!("[{quoted}]"),
            format!("[nats]\ntoken = {wrong}"),
            format!("[nats]\nurl = {quoted}"),
            format!("[nats]\ninbox_prefix = {quoted}"),
            format!("[nats]\ntls_first = {quoted}"),
            format!("[postgres]\npassword = {quoted}"),
            format!("[postgres]\npassword_file = {quoted}"),
            format!("[postgres]\nurl = {quoted}"),
            format!("[log]\nformat = {quoted}"),
            format!("[deliver]\nrecord = {quoted}"),
            wrong.to_owned(),
        ] {
            let path = folder.path().join("walhook.toml");
            std::fs::write(&path, &text).unwrap();
            let options = Options { config: Some(path), ..Options::default() };
            judge(&text, load(&options, "", ""), &row);
        }
        // A row of rule_nats_config.
        let text = || Some(wrong.to_owned());
        for row in [
            ConfigRow { nats_url: text(), ..ConfigRow::default() },
            ConfigRow { auth_type: text(), ..row.clone() },
            ConfigRow { auth_type: Some("token".to_owned()), auth_token: text(), ..row.clone() },
            ConfigRow { auth_type: Some("nkey".to_owned()), auth_nkey_seed: text(), ..row.clone() },
            ConfigRow { auth_type: Some("credentials".to_owned()), auth_credentials_file: text(), ..row.clone() },
            ConfigRow { tls_ca_file: text(), ..row.clone() },
        ] {
            match Settings::resolve(&row, &Overrides::default()) {
                Err(error) => check(wrong, &error.to_string()),
                Ok(settings) => check(wrong, &format!("{:?}", settings.warnings)),
            }
        }
        if let Err(error) = walhook::log::targets(wrong) {
            check(wrong, &error.to_string());
        }
    }
}

#[test]
fn no_word_of_a_wrong_command_line_is_shown() {
    let lines: [&[&str]; 15] = [
        &["?"],
        &["status", "?"],
        &["status", "-d", "?"],
        &["status", "-d?"],
        &["status", "--slot", "?"],
        &["status", "--log", "?"],
        &["status", "--log-format", "?"],
        &["status", "--confirm-delay-seconds=?"],
        &["--config", "?", "status"],
        &["deliver", "--no-database", "--nats-url", "nats://127.0.0.1:1", "--group", "?"],
        &["deliver", "--no-database", "--nats-url", "nats://127.0.0.1:1", "--allow-network", "?"],
        &["deliver", "--no-database", "--nats-url", "nats://127.0.0.1:1", "--record", "?"],
        &["dead-letters", "?"],
        &["dead-letters", "show", "?"],
        &["dead-letters", "list", "--status", "?"],
    ];
    for wrong in MISPLACED {
        for line in lines {
            let arguments = line.iter().map(|word| word.replace('?', wrong));
            let [host, port, user] = [("PGHOST", "127.0.0.1"), ("PGPORT", "1"), ("PGUSER", "app")];
            let command = Walhook::command("--log-format=text").args(arguments);
            // A group or a network that can be one would be waited with for a NATS server.
            if line[0] == "deliver" && matches!(wrong, "CANARY" | "-CANARY" | "--CANARY") {
                continue;
            }
            let done = command.env(host.0, host.1).env(port.0, port.1).env(user.0, user.1).finish();
            let said = done.stdout + &done.stderr;
            assert!(done.code != Some(0) && !said.contains("CANARY"), "{line:?} {wrong:?}: {said}");
        }
    }
}
