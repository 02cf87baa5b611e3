//! What a person and a monitor see: status, tail, explain, completions, colours, and the log's lines of once a minute.

#![allow(clippy::unwrap_used)]

use crate::support;

use std::{
    collections::BTreeSet,
    fs::File,
    io::{BufRead as _, BufReader, Read as _},
    process::{Child, Command, Stdio},
};

use async_nats::jetstream::{self, consumer::pull};
use futures_util::StreamExt;
use rustix::{
    process::{Pid, Signal, kill_process},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};
use serde_json::{Value, json};
use support::{DEADLINE, Walhook, eventually, eventually_blocking, feed::Feed};

/// A verb as the database's superuser.
pub fn command(feed: &Feed, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_walhook"));
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("DATABASE_URL", feed.pg.conninfo());
    command.args(arguments).stdin(Stdio::null());
    command
}

/// What it writes on a terminal of so many columns, to its end: its answer alone.
pub fn on_terminal(command: Command, columns: u16) -> String {
    shown(command, columns, false)
}

/// The same with what it writes to standard error.
pub fn all_on_terminal(command: Command, columns: u16) -> String {
    shown(command, columns, true)
}

fn shown(mut command: Command, columns: u16, has_errors: bool) -> String {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let path = ptsname(&master, Vec::new()).unwrap();
    let slave = File::options().read(true).write(true).open(path.to_str().unwrap()).unwrap();
    tcsetwinsize(&slave, Winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    let errors = if has_errors { Stdio::from(slave.try_clone().unwrap()) } else { Stdio::null() };
    let mut child = command.stdout(slave.try_clone().unwrap()).stderr(errors).spawn().unwrap();
    drop((command, slave));
    let mut shown = Vec::new();
    // The end of a terminal without a writer is an error.
    let _ = File::from(master).read_to_end(&mut shown);
    child.wait().unwrap();
    String::from_utf8(shown).unwrap().replace("\r\n", "\n")
}

/// Without escape sequences.
pub fn bare(text: &str) -> String {
    let mut parts = text.split('\x1b');
    let mut bare = parts.next().unwrap().to_owned();
    for part in parts {
        bare.push_str(part.split_once('m').unwrap().1);
    }
    bare
}

/// A process whose lines are read one by one.
struct Lines {
    child: Child,
    lines: Option<std::io::Lines<BufReader<std::process::ChildStdout>>>,
}

impl Lines {
    fn of(mut command: Command) -> Lines {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = Some(BufReader::new(child.stdout.take().unwrap()).lines());
        Lines { child, lines }
    }

    fn next(&mut self) -> String {
        match self.lines.as_mut().unwrap().next() {
            Some(line) => line.unwrap(),
            None => panic!("it has ended: {}", self.said()),
        }
    }

    /// Reads no more, as `| head` does.
    fn close(&mut self) {
        self.lines = None;
    }

    fn said(&mut self) -> String {
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        said
    }

    fn interrupt(&self) {
        kill_process(Pid::from_child(&self.child), Signal::INT).unwrap();
    }

    fn code(&mut self) -> Option<i32> {
        let ended = eventually_blocking(DEADLINE, || self.child.try_wait().unwrap());
        ended.unwrap_or_else(|| panic!("it still runs")).code()
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A table with one link.
async fn orders() -> (Feed, i32) {
    let feed = Feed::start().await;
    let webhook = feed.webhook("orders");
    feed.pg.psql("CREATE TABLE orders (id int PRIMARY KEY, note text)");
    feed.pg.psql(&format!(
        "SELECT rule_webhook_link_table({webhook}, 'orders', p_subject_template => 'webhooks.{{table}}.{{op}}')"
    ));
    (feed, webhook)
}

#[tokio::test]
async fn status_fits_a_terminal_of_forty_columns_in_any_locale_and_is_coloured_only_where_wanted() {
    let (feed, _) = orders().await;
    let status = |settings: &[(&str, &str)], more: &[&str]| {
        let mut status = command(&feed, &[&["status"], more].concat());
        status.env("LC_ALL", "xx_XX.broken").env("TERM", "xterm").envs(settings.iter().copied());
        status
    };
    let shown = on_terminal(status(&[], &[]), 40);
    assert!(shown.contains('\x1b') && bare(&shown).is_ascii(), "{shown}");
    // But for the numbers: PostgreSQL writes WAL in between.
    let is_word = |word: &&str| !word.bytes().all(|byte| byte.is_ascii_digit());
    let words = |text: &str| bare(text).split_whitespace().filter(is_word).map(str::to_owned).collect::<Vec<_>>();
    for line in bare(&shown).lines() {
        let is_one_word = line.split_whitespace().count() <= 2;
        assert!(line.len() <= 40 || is_one_word, "{line:?} in\n{shown}");
    }
    // Nothing is cut: a wide one says the same, and so does a pipe, without colours.
    let wide = on_terminal(status(&[("NO_COLOR", "1")], &[]), 250);
    assert!(
        !wide.contains('\x1b') && wide.lines().next().unwrap().starts_with("walhook       nobody streams"),
        "{wide}"
    );
    let piped = status(&[], &[]).output().unwrap();
    let piped = String::from_utf8(piped.stdout).unwrap();
    for text in [&wide, &piped] {
        assert_eq!(words(text), words(&shown));
    }
    assert!(!piped.contains('\x1b'));
    assert!(!on_terminal(status(&[], &["--color", "never"]), 80).contains('\x1b'));
    assert!(!on_terminal(status(&[("TERM", "dumb")], &[]), 80).contains('\x1b'));
    let always = status(&[("NO_COLOR", "1")], &["--color=always"]).output().unwrap();
    assert!(String::from_utf8(always.stdout).unwrap().contains('\x1b'));
}

#[tokio::test]
async fn status_watches_until_it_is_told_to_stop_or_nobody_reads() {
    let (feed, _) = orders().await;
    let mut watching = Lines::of(command(&feed, &["status", "--watch", "1"]));
    assert!(watching.next().contains("nobody streams"));
    let walhook = feed.run();
    while !watching.next().starts_with("walhook       streams") {}
    watching.interrupt();
    assert_eq!(watching.code(), Some(0));
    let mut watching = Lines::of(command(&feed, &["status", "--watch", "3600", "--json"]));
    let first: Value = serde_json::from_str(&watching.next()).unwrap();
    assert_eq!(first["streaming"], true);
    // It has an hour until it writes again.
    watching.close();
    assert_eq!(watching.code(), Some(0));
    drop(walhook);
}

#[tokio::test]
async fn check_has_a_code_for_each_thing_that_monitoring_minds() {
    let (feed, webhook) = orders().await;
    let check = |more: &[&str]| {
        let done = feed.command("status").arg("--check").args(more.iter().copied()).finish();
        assert!(done.stdout.lines().count() == 1 && done.stderr.is_empty(), "{done:?}");
        (done.code.unwrap(), done.stdout)
    };
    let becomes = async |code: i32, text: &str| {
        eventually(&format!("code {code} with {text:?}"), async || {
            let (now, said) = check(&[]);
            (now == code && said.contains(text)).then_some(())
        })
        .await;
    };
    assert_eq!(check(&[]).0, 10);
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO orders VALUES (1)");
    feed.stored(1).await;
    becomes(0, "walhook OK: streaming").await;
    feed.pg.psql("INSERT INTO rule_webhook_events (webhook_id, payload, message_id) VALUES (1, '{}', E'\\t')");
    becomes(14, "1 dead letters").await;
    assert_eq!(check(&["--max-dead-letters", "1"]).0, 0);
    feed.pg.psql("UPDATE rule_nats_dead_letters SET status = 'dropped'");
    feed.pg.psql("ALTER PUBLICATION walhook_changes DROP TABLE orders");
    becomes(12, "orders").await;
    let as_json: Value = serde_json::from_str(&check(&["--json"]).1).unwrap();
    assert_eq!((&as_json["code"], &as_json["problems"][0]["name"]), (&json!(12), &json!("table_not_published")));
    feed.pg.psql("ALTER PUBLICATION walhook_changes ADD TABLE orders");
    becomes(0, "").await;
    feed.nats.stop();
    feed.pg.psql("INSERT INTO orders VALUES (2)");
    becomes(11, "NATS default").await;
    // Generated WAL that nobody can publish yet: the slot lags.
    feed.pg.psql("INSERT INTO orders SELECT n, repeat('x', 1000) FROM generate_series(3, 3000) n");
    let lagging = serde_json::from_str::<Value>(&check(&["--max-lag", "0", "--json"]).1).unwrap();
    let names: Vec<_> = lagging["problems"].as_array().unwrap().iter().map(|problem| &problem["name"]).collect();
    assert_eq!(names, ["nats_connection", "slot_lag"]);
    feed.nats.restart().await;
    feed.stored(3000).await;
    becomes(0, "").await;
    // With what it ended, and why.
    feed.pg.psql(&format!("UPDATE rule_webhooks SET on_error = 'halt' WHERE webhook_id = {webhook}"));
    feed.pg.psql("INSERT INTO rule_webhook_events (webhook_id, payload, message_id) VALUES (1, '{}', E'\\t')");
    assert_eq!(walhook.wait(DEADLINE), 2, "{}", walhook.log());
    let (code, said) = check(&[]);
    assert!(
        code == 10 && said.contains("the last run ended with exit code 2") && said.contains("rule_cdc_rules_amend"),
        "{said}"
    );
    let status = feed.command("status").finish();
    assert_eq!(status.code, Some(1), "as without --check");
    assert!(status.stdout.contains("ended with exit code 2"), "{}", status.stdout);
    // What cannot be asked has the codes of any command.
    let away = Walhook::command("status").args(["--check", "-d", "host=127.0.0.1 port=1 user=nobody"]).finish();
    assert_eq!(away.code, Some(1), "{away:?}");
}

#[tokio::test]
async fn tail_shows_what_passes_and_nobody_else_notices() {
    let (feed, webhook) = orders().await;
    let bare_rows = feed.webhook("bare");
    feed.pg.psql(&format!("UPDATE rule_webhooks SET payload_format = 'data' WHERE webhook_id = {bare_rows}"));
    feed.pg.psql(&format!(
        "CREATE TABLE \"Other Ones\" (id int PRIMARY KEY); SELECT rule_webhook_link_table({bare_rows}, '\"Other Ones\"')"
    ));
    let _walhook = feed.run();
    feed.pg.psql("INSERT INTO orders VALUES (1, 'before')");
    let first = feed.stored(1).await.remove(0);
    // Somebody else's durable consumer, in the midst of its work.
    let stream = feed.nats.jetstream().await.get_stream("WEBHOOKS").await.unwrap();
    let config = pull::Config { durable_name: Some("work".to_owned()), ..Default::default() };
    let mut consumer: jetstream::consumer::Consumer<pull::Config> = stream.create_consumer(config).await.unwrap();
    let before = consumer.info().await.unwrap().clone();
    let names = async || {
        let stream = feed.nats.jetstream().await.get_stream("WEBHOOKS").await.unwrap();
        stream.consumer_names().map(Result::unwrap).collect::<BTreeSet<String>>().await
    };
    let known = names().await;
    let from_now = |more: &[&str]| Lines::of(command(&feed, &[&["tail", "--json"], more].concat()));
    let mut all = from_now(&[]);
    let mut others = from_now(&["--table", "Other Ones"]);
    let mut by_webhook = from_now(&["--webhook", "bare", "-n", "1"]);
    let mut by_subject = from_now(&["--subject", "webhooks.*.delete"]);
    // By name: consumers of earlier reads may go meanwhile.
    eventually("all of them to read", async || (names().await.difference(&known).count() == 4).then_some(())).await;
    feed.pg.psql(
        "INSERT INTO orders VALUES (2, 'now'); INSERT INTO \"Other Ones\" VALUES (3); DELETE FROM orders WHERE id = 2",
    );
    let ids = |lines: &mut Lines, count: usize| {
        let of = |line: &str| serde_json::from_str::<Value>(line).unwrap();
        (0..count).map(|_| of(&lines.next())).collect::<Vec<_>>()
    };
    let events = ids(&mut all, 3);
    assert_eq!(
        events.iter().map(|event| event["op"].as_str().unwrap()).collect::<Vec<_>>(),
        ["insert", "insert", "delete"]
    );
    assert_eq!((&events[0]["table"], &events[0]["webhook"]), (&json!("public.orders"), &json!("orders")));
    assert_eq!(
        (&events[0]["payload"]["data"], &events[0]["subject"]),
        (&json!({"id": 2, "note": "now"}), &json!("webhooks.orders.insert"))
    );
    assert_eq!(events[1]["table"], "public.Other Ones", "a bare row has its table in a header");
    assert_eq!(
        (&ids(&mut others, 1)[0]["payload"], &ids(&mut by_subject, 1)[0]["op"]),
        (&json!({"id": 3}), &json!("delete"))
    );
    assert_eq!(ids(&mut by_webhook, 1)[0]["webhook_id"], bare_rows);
    assert_eq!(by_webhook.code(), Some(0), "it was to end after one");
    // Ctrl-C, and a reader who has seen enough while nothing comes.
    others.interrupt();
    assert_eq!(others.code(), Some(0));
    by_subject.close();
    assert_eq!(by_subject.code(), Some(0));
    // From an LSN, a time and an age on, for a person.
    let since = |since: &str| {
        let shown = command(&feed, &["tail", "--since", since, "-n", "4"]).output().unwrap();
        assert_eq!(shown.status.code(), Some(0), "{}", String::from_utf8_lossy(&shown.stderr));
        String::from_utf8(shown.stdout).unwrap()
    };
    let event: Value = serde_json::from_str(&events[0].to_string()).unwrap();
    let by_age = since("1h");
    assert_eq!(by_age.lines().count(), 12, "{by_age}");
    assert!(
        by_age.contains("insert public.orders for orders") && by_age.contains("webhooks.orders.insert in WEBHOOKS #1"),
        "{by_age}"
    );
    assert_eq!(since(first.payload["event"]["lsn"].as_str().unwrap()), by_age);
    let later = command(&feed, &["tail", "--since", event["commit_lsn"].as_str().unwrap(), "-n", "1", "--json"])
        .output()
        .unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&later.stdout).unwrap()["payload"]["data"]["id"], 2);
    all.interrupt();
    assert_eq!(all.code(), Some(0));
    let after = consumer.info().await.unwrap();
    assert_eq!(
        (after.num_pending, after.num_ack_pending, after.ack_floor.stream_sequence),
        (before.num_pending + 3, 0, 0)
    );
    // What is mistyped is answered with what is like it.
    for (arguments, near) in [
        (["--webhook", "ordres"], "did you mean \"orders\""),
        (["--table", "order"], "did you mean \"public.orders\""),
        (["--stream", "WEBHOOK"], "did you mean \"WEBHOOKS\""),
        (["--subject", "a..b"], "--subject \"a..b\""),
    ] {
        let refused = feed.command("tail").args(arguments).finish();
        assert!(refused.code == Some(2) && refused.stderr.contains(near), "{refused:?}");
    }
    assert_ne!(webhook, bare_rows);
}

#[tokio::test]
async fn tail_takes_nothing_from_a_workqueue_and_shows_large_events_as_such() {
    let (feed, webhook) = orders().await;
    feed.pg.psql("SELECT rule_nats_stream_create('Q', ARRAY['q.>'], 'default', 'workqueue')");
    feed.pg.psql(&format!("UPDATE rule_webhooks SET on_error = 'object_store' WHERE webhook_id = {webhook}"));
    feed.pg.psql(&format!("SELECT rule_webhook_link_table({webhook}, 'orders', p_subject_template => 'q.{{op}}')"));
    let _walhook = feed.run();
    feed.pg.psql("INSERT INTO orders VALUES (1, 'small'), (2, repeat('x', 2000000))");
    feed.confirmed().await;
    let shown = command(&feed, &["tail", "--since", "1h", "-n", "2"]).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(
        shown.contains("\"note\":\"small\"") && shown.contains("large: the payload is in the object store, as "),
        "{shown}"
    );
    assert!(shown.len() < 3000, "{}", shown.len());
    // A consumer of all that comes now still gets it all: there is room for one on such a stream.
    let mut live = Lines::of(command(&feed, &["tail", "--json", "--since", "1h"]));
    live.next();
    let mut stream = feed.nats.jetstream().await.get_stream("Q").await.unwrap();
    let state = stream.info().await.unwrap().state.clone();
    assert_eq!((state.consumer_count, state.messages), (0, 2));
    let config = pull::Config { durable_name: Some("work".to_owned()), ..Default::default() };
    stream.create_consumer(config).await.unwrap();
    live.interrupt();
    assert_eq!(live.code(), Some(0));
}

#[tokio::test]
async fn explain_shows_what_run_publishes() {
    let (feed, webhook) = orders().await;
    feed.pg.psql("ALTER TABLE orders ADD COLUMN amount numeric(8,2), ADD COLUMN is_paid bool, ADD COLUMN at timestamptz, ADD COLUMN raw bytea");
    let row = "(1, 'Ada & Co', 9.90, true, '2026-11-29 10:00+00', '\\x00ff')";
    feed.pg.psql(&format!("INSERT INTO orders VALUES {row}"));
    let mut walhook = feed.run();
    feed.confirmed().await;
    let formats = ["webhook", "data", "debezium", "cloudevents", "cloudevents_binary"];
    for (index, format) in formats.iter().enumerate() {
        feed.pg.psql(&format!(
            "UPDATE rule_webhooks SET payload_format = '{format}', nats_headers = '{{\"X-Team\": \"a\"}}' WHERE webhook_id = {webhook}"
        ));
        let done = feed.command("explain").args(["orders", "--json"]).finish();
        assert_eq!(done.code, Some(0), "{done:?}");
        let told: Value = serde_json::from_str(&done.stdout).unwrap();
        let operations = told["links"][0]["operations"].as_array().unwrap().clone();
        assert_eq!(told["links"][0]["webhook"], "orders");
        feed.pg.psql(&format!("DELETE FROM orders; INSERT INTO orders VALUES {row}; UPDATE orders SET note = note"));
        let count = 1 + 3 * (index as u64 + 1);
        let messages = feed.stored(count).await;
        let mut of_round = messages[messages.len() - 3..].to_vec();
        of_round.rotate_left(1); // insert, update, delete
        for (message, told) in of_round.iter().zip(&operations) {
            assert_eq!(told["published"], true, "{told}");
            assert_eq!((&told["subject"], &told["stream"]), (&json!(message.subject), &json!("WEBHOOKS")));
            let names = |headers: &Value| headers.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
            let stored: serde_json::Map<_, _> = message
                .headers
                .iter()
                .filter(|(name, _)| !name.starts_with("Nats-Expected-"))
                .map(|(name, value)| (name.clone(), json!(value)))
                .collect();
            let mut wanted = names(&Value::Object(stored));
            wanted.sort();
            let mut shown = names(&told["headers"]);
            shown.sort();
            assert_eq!(shown, wanted, "{format}");
            // All but ids, positions and times, which are those of another commit.
            let strip = |value: &Value| {
                let mut value = value.clone();
                if !matches!(*format, "data" | "cloudevents_binary") {
                    for key in [
                        "id",
                        "timestamp",
                        "time",
                        "ts_ms",
                        "ts_us",
                        "ts_ns",
                        "sequence",
                        "transaction",
                        "walhooklsn",
                        "walhookxid",
                    ] {
                        value.as_object_mut().unwrap().remove(key);
                    }
                    for inner in ["event", "source"] {
                        if let Some(inner) = value[inner].as_object_mut() {
                            for key in ["lsn", "xid", "commit_time", "ts_ms", "ts_us", "ts_ns", "txId", "sequence"] {
                                inner.remove(key);
                            }
                        }
                    }
                }
                value
            };
            assert_eq!(strip(&told["payload"]), strip(&message.payload), "{format}");
        }
        assert!(operations[3]["why"].as_str().unwrap().contains("the link has only insert, update, delete"));
    }
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    let person = feed.command("explain").arg("orders").finish().stdout;
    for expected in [
        "webhook orders (link 1): POST https://example.com/orders",
        "INSERT   webhooks.orders.insert into WEBHOOKS (default)",
        "X-Team: a",
    ] {
        assert!(person.contains(expected), "{expected} is not in\n{person}");
    }
}

#[tokio::test]
async fn explain_says_why_nothing_would_come() {
    let (feed, webhook) = orders().await;
    let explain = |arguments: &[&str]| feed.command("explain").args(arguments.iter().copied()).finish();
    assert!(explain(&["orders"]).stdout.contains("the table has no row"));
    feed.pg.psql("INSERT INTO orders VALUES (1, 'x')");
    let link = |more: &str| {
        feed.pg.psql(&format!("SELECT rule_webhook_link_table({webhook}, 'orders', '{{insert,truncate}}'{more})"))
    };
    let insert = || {
        let told: Value = serde_json::from_str(&explain(&["public.orders", "--json"]).stdout).unwrap();
        let operation = &told["links"][0]["operations"][0];
        (operation["published"] == true, operation["why"].as_str().unwrap_or_default().to_owned())
    };
    link(", p_filter => '{\"note\": \"y\"}'");
    assert_eq!(insert(), (false, "none of the 1 rows looked at passes the filter".to_owned()));
    link(", p_subject_template => 'nobody.takes'");
    assert!(
        insert().1.contains("no stream of its NATS configuration takes the subject \"nobody.takes\""),
        "{:?}",
        insert()
    );
    link(", p_subject_template => 'webhooks.{note}'");
    assert_eq!(insert(), (true, String::new()));
    feed.pg.psql("ALTER PUBLICATION walhook_changes DROP TABLE orders");
    assert!(insert().1.contains("do not send it"));
    feed.pg.psql("ALTER PUBLICATION walhook_changes ADD TABLE orders; UPDATE rule_webhook_links SET enabled = false");
    assert!(explain(&["orders"]).stdout.contains("nothing is published: the link is not enabled"));
    feed.pg.psql("CREATE TABLE unlinked (id int PRIMARY KEY)");
    assert!(explain(&["unlinked"]).stdout.contains("no webhook is linked to it"));
    feed.pg.psql("UPDATE rule_webhook_links SET enabled = true");
    // Mistyped, among ten thousand webhooks.
    feed.pg.psql(
        "SELECT count(rule_webhook_register('hook_' || n, 'https://example.com/')) FROM generate_series(1, 10000) n",
    );
    for (arguments, near) in [
        (&["order"][..], "did you mean \"public.orders\""),
        (&["no.such.table.at.all"], "write it as SQL does"),
        (&["orders", "--webhook", "hook_99x9"], "did you mean \"hook_99"),
        (&["rule_webhook_status"], "there is no such table"),
    ] {
        let refused = explain(arguments);
        assert!(refused.code == Some(2) && refused.stderr.contains(near), "{arguments:?}: {refused:?}");
    }
    // Row-level security, and a role that may not read: an error with what to do, and an answer without a row.
    feed.pg.psql(
        "CREATE ROLE guarded LOGIN IN ROLE walhook_streamer; ALTER TABLE orders ENABLE ROW LEVEL SECURITY; \
         GRANT SELECT ON orders TO guarded",
    );
    let guarded =
        |more: &[&str]| explain(&[&["orders", "-d", &format!("{} user=guarded", feed.pg.conninfo())], more].concat());
    let refused = guarded(&[]);
    assert!(refused.code == Some(4) && refused.stderr.contains("BYPASSRLS"), "{refused:?}");
    feed.pg.psql("ALTER TABLE orders DISABLE ROW LEVEL SECURITY; REVOKE SELECT ON orders FROM guarded");
    let refused = guarded(&[]);
    assert!(refused.code == Some(4) && refused.stderr.contains("GRANT SELECT"), "{refused:?}");
    let told = guarded(&["--no-row"]);
    assert!(told.code == Some(0) && told.stdout.contains("webhooks.{note}"), "{told:?}");
}

#[test]
fn help_shows_a_commands_own_options_first_and_completions_and_manual_need_no_server() {
    let help = Walhook::command("tail").arg("--help").finish().stdout;
    let (own, global) = (help.find("--since").unwrap(), help.find("Settings of every command:").unwrap());
    assert!(own < global && global < help.find("--database-url").unwrap(), "{help}");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let done = Walhook::command("completions").arg(shell).finish();
        assert!(done.code == Some(0) && done.stdout.contains("dead-letters"), "{shell}: {done:?}");
    }
    let page = Walhook::command("man").finish();
    assert!(page.code == Some(0) && page.stdout.contains(".TH walhook 1"), "{page:?}");
    let folder = tempfile::tempdir().unwrap();
    let pages = Walhook::command("man").args(["--folder", folder.path().to_str().unwrap()]).finish();
    assert_eq!(pages.code, Some(0), "{pages:?}");
    assert!(
        folder.path().join("walhook-status.1").exists() && folder.path().join("walhook-dead-letters-list.1").exists()
    );
    let wrong = Walhook::command("completions").arg("cmd").finish();
    assert!(wrong.code == Some(2) && wrong.stderr.contains("bash"), "{wrong:?}");
}

#[tokio::test]
async fn the_log_says_what_is_away_for_how_long_and_what_waits_and_what_was_done_where_asked() {
    let (feed, _) = orders().await;
    let mut quiet = feed.run();
    feed.pg.psql("INSERT INTO orders VALUES (0)");
    feed.stored(1).await;
    assert_eq!(quiet.terminate(), 0);
    assert!(!quiet.log().contains("summary"), "{}", quiet.log());
    let mut walhook = feed.streamer().args(["--log-summary", "1"]).start();
    feed.pg.psql("INSERT INTO orders SELECT generate_series(1, 10)");
    let field = |line: &str, name: &str| -> u64 {
        let value = line.split(&format!(" {name}=")).nth(1).unwrap_or_else(|| panic!("no {name} in {line}"));
        value.split_whitespace().next().unwrap().parse().unwrap()
    };
    let total = |log: &str, name: &str| {
        log.lines().filter(|line| line.contains(" summary")).map(|line| field(line, name)).sum::<u64>()
    };
    eventually("ten published events in summaries", async || (total(&walhook.log(), "published") == 10).then_some(()))
        .await;
    assert!(total(&walhook.log(), "wal_bytes") > 0);
    feed.nats.stop();
    feed.pg.psql("INSERT INTO orders SELECT generate_series(11, 13)");
    let still = "NATS cannot be reached or takes no messages: events wait";
    eventually("what waits, twice", async || (walhook.log().matches(still).count() >= 2).then_some(())).await;
    let log = walhook.log();
    let last = log.lines().rfind(|line| line.contains(still)).unwrap();
    assert!(
        field(last, "away_s") >= 1 && field(last, "waiting_events") == 3 && field(last, "slot_behind_bytes") > 0,
        "{last}"
    );
    feed.nats.restart().await;
    walhook.logged("NATS is back").await;
    feed.confirmed().await;
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}
