//! The command line: setup, status, version, and what each exits with.

#![allow(clippy::unwrap_used)]

use crate::support;

use std::{
    io::{BufRead as _, Write as _},
    process::Stdio,
};

use serde_json::Value;
use support::{Postgres, Walhook, feed::Feed};

fn command(pg: &Postgres, verb: &str) -> support::walhook::Builder {
    Walhook::command(verb).env("DATABASE_URL", pg.conninfo())
}

#[tokio::test]
async fn setup_can_be_repeated_and_changes_nothing_the_second_time() {
    let pg = Postgres::start().await;
    let schema = || {
        pg.psql(
            "SELECT (SELECT count(*) FROM pg_class WHERE relnamespace IN ('public'::regnamespace, to_regnamespace('walhook'))), \
                    (SELECT count(*) FROM pg_proc WHERE pronamespace IN ('public'::regnamespace, to_regnamespace('walhook'))), \
                    (SELECT string_agg(pubname || ' ' || tablename, ', ' ORDER BY 1) FROM pg_publication_tables), \
                    (SELECT string_agg(slot_name || ' ' || confirmed_flush_lsn, ', ') FROM pg_replication_slots)",
        )
    };
    for round in 0..2 {
        let done = command(&pg, "setup").finish();
        assert_eq!(done.code, Some(0), "round {round}: {}", done.stderr);
    }
    let after_two = schema();
    let done = command(&pg, "setup").finish();
    assert_eq!((done.code, schema()), (Some(0), after_two));
    let dropped = pg.psql("SELECT rule_cdc_slot_drop()");
    assert_eq!(dropped, "t");
}

#[tokio::test]
async fn two_setups_at_once_do_not_trip_over_each_other() {
    let pg = Postgres::start().await;
    let mut both = [command(&pg, "setup").start(), command(&pg, "setup").start()];
    for walhook in &mut both {
        assert_eq!(walhook.wait(support::DEADLINE), 0, "{}", walhook.log());
    }
}

#[tokio::test]
async fn run_with_setup_makes_what_is_missing_and_streams_and_may_be_repeated() {
    let (pg, nats) = (Postgres::start().await, support::Nats::start().await);
    pg.psql("CREATE TABLE orders (id int PRIMARY KEY)");
    // The database is away first, and is waited for.
    pg.stop();
    let mut walhook = command(&pg, "run").arg("--setup").start();
    walhook.logged("retry_in_ms").await;
    pg.restart().await;
    walhook.logged("slot taken").await;
    assert!(walhook.log().contains("setup is complete"), "{}", walhook.log());
    // A second one repeats it while the first streams, and takes over.
    let mut second = command(&pg, "run").arg("--setup").start();
    second.logged("waiting to take over").await;
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    second.logged("slot taken").await;
    let feed = Feed { pg, nats };
    feed.pg.psql(&format!("SELECT rule_nats_configure('default', '{}')", feed.nats.url()));
    feed.webhook("orders");
    feed.pg.psql("SELECT rule_webhook_link_table('orders', 'orders')");
    feed.pg.psql("INSERT INTO orders VALUES (1)");
    assert_eq!(feed.stored(1).await.len(), 1);
    assert_eq!(second.terminate(), 0, "{}", second.log());
}

#[tokio::test]
async fn run_with_setup_is_refused_where_setup_or_run_is() {
    let pg = Postgres::start().await;
    pg.psql("CREATE ROLE nobody_special LOGIN");
    let conninfo = pg.conninfo().replace("user=postgres", "user=nobody_special");
    let done = Walhook::command("run").arg("--setup").env("DATABASE_URL", conninfo).finish();
    let setup =
        Walhook::command("setup").env("DATABASE_URL", pg.conninfo().replace("user=postgres", "user=nobody_special"));
    assert_eq!(done.code, setup.finish().code, "{}", done.stderr);
    assert_eq!(done.code, Some(4), "{}", done.stderr);

    // A slot that was lost: setup would make another, and the changes since would be missing in silence.
    let feed = Feed::on(pg, support::Nats::start().await);
    feed.webhook("orders");
    feed.pg.psql("CREATE TABLE orders (id int PRIMARY KEY)");
    feed.pg.psql("SELECT rule_webhook_link_table('orders', 'orders')");
    assert_eq!(feed.after(&["INSERT INTO orders VALUES (1)"]).await.len(), 1);
    feed.pg.psql("SELECT pg_drop_replication_slot('walhook')");
    feed.pg.psql("INSERT INTO orders VALUES (2)");
    let done = feed.command("run").arg("--setup").finish();
    assert_eq!(done.code, Some(3), "{}", done.stderr);
    assert!(done.stderr.contains("backfill"), "{}", done.stderr);
    assert_eq!(feed.pg.psql("SELECT count(*) FROM pg_replication_slots"), "0");
    assert_eq!(feed.command("setup").finish().code, Some(0), "a person may decide so");

    // A schema of a later version.
    feed.pg.psql("INSERT INTO rule_cdc_migrations (version, description) VALUES ('999', 'of a later walhook')");
    let done = feed.command("run").arg("--setup").finish();
    assert_eq!(done.code, feed.command("setup").finish().code, "{}", done.stderr);
    assert_eq!(done.code, Some(2), "{}", done.stderr);
}

#[tokio::test]
async fn setup_prints_sql_that_a_dba_can_run_instead() {
    let pg = Postgres::start().await;
    let printed = Walhook::command("setup").args(["--print", "--slot", "feed", "--publication", "feed"]).finish();
    assert_eq!(printed.code, Some(0), "{}", printed.stderr);
    let psql = |conninfo: &str| {
        let mut psql = std::process::Command::new("psql")
            .args(["-X", "-q", "-d", conninfo])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It does not read on behind an error.
        let _ = psql.stdin.take().unwrap().write_all(printed.stdout.as_bytes());
        let ended = psql.wait_with_output().unwrap();
        (ended.status.code(), String::from_utf8_lossy(&ended.stderr).into_owned())
    };
    pg.psql("CREATE ROLE nobody_special LOGIN");
    let (code, said) = psql(&format!("{} user=nobody_special", pg.conninfo()));
    assert_eq!((code, said.matches("ERROR:").count()), (Some(3), 1), "{said}");
    let (code, said) = psql(&pg.conninfo());
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(pg.psql("SELECT slot_name, plugin FROM rule_cdc_slots"), "feed|pgoutput");
    assert_eq!(
        pg.psql("SELECT string_agg(pubname, ' ' ORDER BY pubname) FROM pg_publication"),
        "feed_changes feed_inserts"
    );
}

#[tokio::test]
async fn status_tells_slot_streams_webhooks_and_dead_letters() {
    let feed = Feed::start().await;
    let webhook = feed.webhook("orders");
    feed.pg.psql("CREATE TABLE orders (id int PRIMARY KEY)");
    feed.pg.psql(&format!("SELECT rule_webhook_link_table({webhook}, 'orders')"));
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO orders VALUES (1)");
    feed.stored(1).await;
    feed.confirmed().await;
    let running = feed.command("status").arg("--json").finish();
    assert_eq!(running.code, Some(0), "{running:?}");
    let running: Value = serde_json::from_str(&running.stdout).unwrap();
    assert_eq!((&running["slot"]["active"], &running["streaming"]), (&true.into(), &true.into()));
    assert_eq!(running["findings"], serde_json::json!([]));
    support::eventually("the status to show the stream while walhook runs", async || {
        feed.command("status").finish().stdout.contains("WEBHOOKS (default): sequence 1").then_some(())
    })
    .await;
    assert_eq!(running["webhooks"]["publishing"], 1);
    assert_eq!(running["webhooks"]["linked_tables"], 1);
    assert_eq!(running["dead_letters"]["dead"], 0);
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    let stopped = feed.command("status").finish();
    assert_eq!(stopped.code, Some(1), "{stopped:?}");
    assert!(stopped.stderr.contains("nobody streams from slot \"walhook\""), "{stopped:?}");
    for expected in ["held by nobody", "WEBHOOKS (default): sequence 1", "1 publish to NATS", "dead letters  0"] {
        assert!(stopped.stdout.contains(expected), "{expected} is not in\n{}", stopped.stdout);
    }
    // The application asks the database, and is told that nobody is running.
    let report: Value = serde_json::from_str(&feed.pg.psql("SELECT rule_nats_health_check()")).unwrap();
    assert_eq!((&report["running"], &report["connected"]), (&false.into(), &false.into()));
}

#[tokio::test]
async fn a_running_walhook_answers_health_checks_through_the_database() {
    let feed = Feed::start().await;
    feed.webhook("orders");
    let _walhook = feed.run();
    let report: Value = support::eventually("rule_nats_health_check to say connected", async || {
        let report: Value = serde_json::from_str(&feed.pg.psql("SELECT rule_nats_health_check()")).unwrap();
        (report["connected"] == true).then_some(report)
    })
    .await;
    assert_eq!(report["success"], true);
    assert!(report["server"].as_str().unwrap().ends_with(&feed.nats.port().to_string()), "{report}");
    assert_eq!(report["epoch"], 1);
}

#[test]
fn version_and_mistakes_need_no_server() {
    let version = Walhook::command("version").finish();
    assert_eq!(
        (version.code, version.stdout.as_str()),
        (Some(0), concat!("walhook ", env!("CARGO_PKG_VERSION"), "\n"))
    );
    let check = |arguments: &[&str], expected: &str| {
        let done = Walhook::command("run").args(arguments).env("PGUSER", "app").finish();
        assert_eq!(done.code, Some(2), "{arguments:?}: {}", done.stderr);
        assert!(done.stderr.contains(expected), "{arguments:?}: {}", done.stderr);
    };
    check(&["--slot", "Not A Slot"], "the slot's name (--slot, WALHOOK_SLOT, slot)");
    check(&["--config", "/etc/nowhere.toml"], "/etc/nowhere.toml");
    check(&["--no-such-flag"], "--no-such-flag");
    for flag in ["-V", "--version"] {
        let done = Walhook::command(flag).finish();
        assert_eq!((done.code, &done.stdout), (Some(0), &version.stdout));
    }
    // A filter that would mute the log, errors too, is refused with the list of levels.
    for filter in ["warning", "walhook=sometimes", "walhok=debug", "info warn"] {
        check(&["--log", filter], "off, error, warn, info, debug, trace");
    }
}

/// Ten committed rows are in the stream though nobody takes the log, and the process ends well and counts the lost lines.
async fn publishes_without_a_log(stderr: Stdio) {
    let feed = Feed::start().await;
    let webhook = feed.webhook("orders");
    feed.pg.psql("CREATE TABLE orders (id int PRIMARY KEY)");
    feed.pg.psql(&format!("SELECT rule_webhook_link_table({webhook}, 'orders')"));
    let mut walhook = feed.streamer().args(["--log", "trace"]).start_onto(Some(stderr));
    feed.pg.psql("INSERT INTO orders SELECT generate_series(1, 10)");
    feed.stored(10).await;
    feed.confirmed().await;
    assert_eq!(walhook.terminate(), 0);
    assert_eq!(feed.pg.psql("SELECT log_lines_lost > 0 FROM rule_cdc_status"), "t");
    // A last word that nobody takes changes no exit code.
    let mut refused = Walhook::run().args(["--slot", "Not A Slot"]).start_onto(Some(full()));
    assert_eq!(refused.wait(support::DEADLINE), 2);
}

fn full() -> Stdio {
    std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap().into()
}

#[tokio::test]
async fn a_log_on_a_full_disk_ends_nothing() {
    publishes_without_a_log(full()).await;
}

#[tokio::test]
async fn a_log_into_a_closed_pipe_ends_nothing() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    publishes_without_a_log(writer.into()).await;
}

/// A pipe that is full and that nobody reads, with the end that has to stay open.
fn stalled() -> (std::io::PipeReader, Stdio) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(&[b'.'; 65_536]).unwrap();
    (reader, writer.into())
}

#[tokio::test]
async fn a_worker_calls_its_webhooks_though_nobody_takes_its_log() {
    let mile = support::last_mile::LastMile::start().await;
    let http = support::http::Http::ok();
    let id = mile.webhook("w", &http.url("/"));
    let (_reader, pipe) = stalled();
    for (round, stderr) in [full(), pipe].into_iter().enumerate() {
        let mut worker = mile.worker().args(["--log", "trace"]).start_onto(Some(stderr));
        mile.publish_many(id, 20);
        http.received(20 * (round + 1)).await;
        mile.eventually("SELECT count(*) % 20 FROM rule_webhook_calls WHERE status = 'success'", "0").await;
        assert_eq!(worker.terminate(), 0);
    }
}

#[tokio::test]
async fn no_short_command_waits_for_a_log_that_nobody_takes_or_ends_otherwise() {
    let feed = Feed::start().await;
    let webhook = feed.webhook("orders");
    feed.pg.psql("CREATE TABLE orders (id int PRIMARY KEY)");
    feed.pg.psql(&format!("SELECT rule_webhook_link_table({webhook}, 'orders')"));
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO orders SELECT generate_series(1, 10)");
    feed.confirmed().await;
    let commands: [(&[&str], i32); 9] = [
        (&["setup"], 0),
        (&["status"], 0),
        (&["backfill", "--table", "orders"], 0),
        (&["replay", "--from", "0/0", "--create-stream", "REPLAY"], 0),
        (&["seek", "--stream", "WEBHOOKS", "--consumer", "w", "--from", "0/0"], 0),
        (&["dead-letters", "list"], 0),
        (&["dead-letters", "show", "7"], 2),
        (&["seek", "--stream", "NONE", "--consumer", "w", "--from", "0/0"], 2),
        (&["replay", "--from", "nonsense"], 2),
    ];
    for (words, code) in commands {
        let (_reader, pipe) = stalled();
        for stderr in [full(), pipe] {
            let command = feed.command(words[0]).args(&words[1..]).args(["--log", "trace"]);
            assert_eq!(command.start_onto(Some(stderr)).wait(support::DEADLINE), code, "{words:?}");
        }
    }
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

#[tokio::test]
async fn a_stalled_reader_of_the_log_holds_nothing_up_and_learns_how_many_lines_it_missed() {
    let feed = Feed::start().await;
    let webhook = feed.webhook("orders");
    feed.pg.psql("CREATE TABLE orders (id int PRIMARY KEY)");
    feed.pg.psql(&format!("SELECT rule_webhook_link_table({webhook}, 'orders')"));
    // The pipe is full before the first line: whoever writes to it waits.
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(&[b'.'; 65_536]).unwrap();
    let mut walhook = feed.streamer().start_onto(Some(writer.into()));
    // Each of these is a dead letter, which is logged; together they are more than what waits for the reader.
    feed.pg.psql(
        "INSERT INTO rule_webhook_events (webhook_id, payload, message_id) \
         SELECT 1, '{}', repeat('x', 500) || E'\\t' || n FROM generate_series(1, 6000) n",
    );
    feed.pg.psql("INSERT INTO orders VALUES (1)");
    feed.stored(1).await;
    feed.confirmed().await;
    let lines_lost = async || {
        let lost = feed.pg.psql("SELECT log_lines_lost FROM rule_cdc_status WHERE log_lines_lost > 0");
        (!lost.is_empty()).then_some(lost)
    };
    support::eventually("the lost lines in the status", lines_lost).await;
    let status = feed.command("status").finish();
    assert!(status.stdout.contains(" lines lost: standard error"), "{}", status.stdout);
    // The reader goes on: it is told where lines are missing, and then gets every line again.
    let (sender, told) = std::sync::mpsc::channel();
    let reading = std::thread::spawn(move || {
        let mut all = String::new();
        for line in std::io::BufReader::new(&mut reader).lines() {
            let line = line.unwrap();
            if line.contains("lines of the log were lost here") {
                let _ = sender.send(());
            }
            all.push_str(&line);
            all.push('\n');
        }
        all
    });
    support::eventually("the gap in the log", async || {
        // A line behind the gap, so that there is one to write.
        feed.pg.psql("INSERT INTO rule_webhook_events (webhook_id, payload, message_id) VALUES (1, '{}', E'\\t')");
        told.try_recv().ok()
    })
    .await;
    assert_eq!(walhook.terminate(), 0);
    let log = reading.join().unwrap();
    assert!(log.contains("walhook starts"), "the first lines waited");
    assert!(log.lines().any(|line| line.contains("lines of the log were lost here") && line.contains("lines=")));
}

#[tokio::test]
async fn a_log_holds_no_payload_at_any_level() {
    let feed = Feed::start().await;
    let webhook = feed.webhook("orders");
    feed.pg.psql("CREATE TABLE orders (id int PRIMARY KEY, note text)");
    feed.pg.psql(&format!("SELECT rule_webhook_link_table({webhook}, 'orders')"));
    let trace = "trace,async_nats=trace,tokio_postgres=trace,rustls=trace,hyper=trace,hyper_util=trace";
    let mut walhook = feed.streamer().args(["--log", trace]).start();
    // A row, a call, a dead letter with its payload, and a row of the history for each.
    feed.pg.psql("INSERT INTO orders VALUES (1, 'canary')");
    feed.pg.psql(&format!("SELECT rule_webhook_publish_nats({webhook}, '{{\"note\": \"canary\"}}')"));
    feed.pg.psql("INSERT INTO rule_webhook_events (webhook_id, payload, message_id) VALUES (1, '\"canary\"', E'\\t')");
    feed.stored(2).await;
    feed.confirmed().await;
    support::eventually("the dead letter", async || {
        (feed.pg.psql("SELECT count(*) FROM rule_nats_dead_letters") == "1").then_some(())
    })
    .await;
    assert_eq!(walhook.terminate(), 0);
    let log = walhook.log();
    assert!(log.contains("DEBUG") && !log.contains("canary"), "{log}");
}

#[tokio::test]
async fn what_others_write_reaches_no_terminal_raw() {
    let feed = Feed::start().await;
    let webhook = feed.webhook("orders");
    feed.pg.psql("CREATE TABLE orders (id int PRIMARY KEY, note text)");
    feed.pg.psql(&format!("SELECT rule_webhook_link_table({webhook}, 'orders')"));
    feed.pg.psql("UPDATE rule_webhooks SET webhook_name = E'evil\\x1b[31m\\u202e\\r\\nERROR forged'");
    feed.pg.psql(
        "INSERT INTO rule_nats_dead_letters (event_id, webhook_id, webhook_name, subject, reason, headers, payload) \
         VALUES ('walhook-1', 1, E'evil\\x1b[31m\\u202e\\r\\nforged', E's\\x1b', \
             repeat(E'\\x1b[2J\\u009b\\r\\nforged ', 10000), '{\"A\\u001b\": \"\\u009b\"}', E'a\\\\033[2J\\\\302\\\\233'::bytea)",
    );
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO orders VALUES (1, 'x')");
    feed.confirmed().await;
    let mut said = vec![];
    for arguments in [&["status"][..], &["status", "--json"], &["dead-letters", "list"], &["dead-letters", "show", "1"]]
    {
        let done = feed.command(arguments[0]).args(&arguments[1..]).finish();
        said.push((format!("{arguments:?}"), done.stdout + &done.stderr));
    }
    for arguments in [["list", "--json"], ["show", "--json"]] {
        let id = (arguments[0] == "show").then_some("1");
        let done = feed.command("dead-letters").args(arguments).args(id).finish();
        for line in done.stdout.lines() {
            let value: Value = serde_json::from_str(line).unwrap();
            assert!(value["reason"].as_str().unwrap().contains('\u{9b}'), "the value stays what it is");
        }
        said.push((format!("{arguments:?}"), done.stdout + &done.stderr));
    }
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    said.push(("the log".to_owned(), walhook.log()));
    for (what, text) in said {
        let acts = |c: char| (c.is_control() && c != '\n' && c != '\t') || ('\u{202a}'..='\u{202e}').contains(&c);
        assert!(!text.chars().any(acts), "{what}: {text:?}");
        assert!(!text.lines().any(|line| line.starts_with("forged") || line.starts_with("ERROR")), "{what}: {text}");
        let longest = text.lines().map(str::len).max().unwrap_or(0);
        assert!(what.contains("--json") || longest < 20_000, "{what}: a line of {longest} bytes");
    }
}

#[tokio::test]
async fn a_list_that_is_cut_says_so() {
    let feed = Feed::start().await;
    feed.webhook("orders");
    feed.pg.psql(
        "INSERT INTO rule_nats_dead_letters (event_id, webhook_id, webhook_name, reason) \
         SELECT 'walhook-' || n, 1, 'orders', 'r' FROM generate_series(1, 52) n",
    );
    let cut = "there are more: only the newest 50 are listed; --limit N lists up to N";
    let list = |arguments: &[&str]| feed.command("dead-letters").arg("list").args(arguments).finish();
    let table = list(&[]).stdout;
    assert!(table.ends_with(&format!("{cut}\n")) && table.lines().count() == 52, "{table}");
    let json = list(&["--json"]);
    assert_eq!((json.stdout.lines().count(), json.stderr), (50, format!("{cut}\n")));
    assert!(!list(&["--limit", "52"]).stdout.contains(cut));
}

#[cfg(feature = "fault-points")]
#[tokio::test]
async fn a_bug_of_ours_ends_with_its_exit_code_and_one_line() {
    let feed = Feed::start().await;
    let webhook = feed.webhook("orders");
    feed.pg.psql("CREATE TABLE orders (id int PRIMARY KEY)");
    feed.pg.psql(&format!("SELECT rule_webhook_link_table({webhook}, 'orders')"));
    // In the loop, and in a task beside it.
    for point in ["Acked", "Report", "HistoryUnwritten"] {
        let mut walhook =
            feed.streamer().env("WALHOOK_FAULTS", format!("{point}=panic@1")).env("RUST_BACKTRACE", "0").start();
        feed.pg.psql("INSERT INTO orders SELECT count(*) FROM orders");
        assert_eq!(walhook.wait(support::DEADLINE), 70, "{point}: {}", walhook.log());
        let log = walhook.log();
        let last = log.lines().last().unwrap();
        assert!(
            last.contains("ERROR walhook has a bug and ends: fault point") && last.contains("exit_code=70"),
            "{log}"
        );
        assert!(!log.contains("stack backtrace") && !log.contains("thread '"), "{log}");
    }
    let mut walhook = feed.run();
    feed.confirmed().await;
    assert_eq!(feed.messages().await.len(), 3, "each row once");
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

#[tokio::test]
async fn logs_are_json_where_asked_for() {
    let pg = Postgres::start().await;
    let done = command(&pg, "setup").args(["--log-format", "json"]).finish();
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    for line in done.stderr.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        assert!(line["level"].is_string() && line["message"].is_string(), "{line}");
    }
}

#[tokio::test]
async fn a_reader_who_has_seen_enough_is_no_error() {
    let mut setup = std::process::Command::new(env!("CARGO_BIN_EXE_walhook"))
        .args(["setup", "--print"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(setup.stdout.take()); // as `| head` does
    let ended = setup.wait_with_output().unwrap();
    assert_eq!((ended.status.code(), String::from_utf8_lossy(&ended.stderr).as_ref()), (Some(0), ""));
}

#[tokio::test]
async fn verbs_read_names_and_reasons_in_databases_of_any_encoding() {
    let pg = Postgres::start().await;
    for (encoding, shown) in [("SQL_ASCII", "caf\u{FFFD}E9"), ("LATIN1", "caf\u{e9}")] {
        let database = encoding.to_lowercase();
        pg.psql(&format!("CREATE DATABASE {database} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0"));
        let command = |words: &[&str]| {
            let conninfo = format!("host=127.0.0.1 port={} user=postgres dbname={database}", pg.port());
            let command = Walhook::command(words[0]).args(words[1..].iter().copied()).env("DATABASE_URL", conninfo);
            command.args(["--slot", &database]).finish()
        };
        let done = command(&["setup"]);
        assert_eq!(done.code, Some(0), "{encoding}: {}", done.stderr);
        pg.psql_in(
            &database,
            r#"SELECT rule_webhook_register(E'caf\xe9', 'https://example.com'), rule_webhook_enable_nats(1, 'webhooks.cafe', 'nats');
               DO $$ BEGIN EXECUTE format('CREATE TABLE %I (id int PRIMARY KEY)', E't\xe9');
                           PERFORM rule_webhook_link_table(1, format('%I', E't\xe9')::regclass); END $$;
               UPDATE rule_webhook_links SET enabled = false;
               INSERT INTO rule_nats_dead_letters (event_id, webhook_id, webhook_name, subject, headers, payload, reason)
               VALUES ('e', 1, E'caf\xe9', 'webhooks.cafe', '{}', '\xe9', E'for caf\xe9');
               SET session_replication_role = replica; UPDATE rule_webhooks SET url = E'caf\xe9'"#,
        );
        // What is wrong with the set-up names the webhook; nobody streams.
        for words in [&["status"][..], &["status", "--json"]] {
            let done = command(words);
            assert_eq!(done.code, Some(1), "{encoding}, {words:?}: {}", done.stderr);
            assert!(done.stdout.contains(&format!("for {shown}")), "{encoding}, {words:?}: {}", done.stdout);
            assert!(done.stdout.contains("webhook_id 1"), "{encoding}, {words:?}: {}", done.stdout);
        }
        for words in [
            &["dead-letters", "list"][..],
            &["dead-letters", "list", "--json"],
            &["dead-letters", "show", "1"],
            &["dead-letters", "show", "1", "--json"],
            &["dead-letters", "show", "1", "--payload"],
            &["dead-letters", "retry", "1"],
            &["uninstall", "--print"],
        ] {
            let done = command(words);
            assert_eq!(done.code, Some(0), "{encoding}, {words:?}: {}", done.stderr);
            let names_it = !["--payload", "retry", "--print"].iter().any(|word| words.contains(word));
            assert!(!names_it || done.stdout.contains(shown), "{encoding}, {words:?}: {}", done.stdout);
        }
        // A repeated setup says which row cannot be used.
        let done = command(&["setup"]);
        assert_eq!(done.code, Some(0), "{encoding}: {}", done.stderr);
        assert!(
            done.stderr.contains("a row cannot be used") && done.stderr.contains(shown),
            "{encoding}: {}",
            done.stderr
        );
        let done = command(&["uninstall", "--yes"]);
        assert_eq!(done.code, Some(0), "{encoding}: {}", done.stderr);
    }
}
