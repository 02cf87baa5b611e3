//! The line `start`: how long until the first event, with many webhooks and links.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::{
    backlog::{self, ROW},
    drain::{self, Stored},
    goals::{Goal, figure},
    machine::servers,
    report::{Part, Table},
    settings::Settings,
    support::feed::Feed,
    usage,
};

/// Webhooks, each with a link of its own …
const WEBHOOKS: u32 = 10_000;
/// … to one of so many tables.
const TABLES: u32 = 1_000;
/// Starts of each kind; the one in the middle counts.
const TIMES: usize = 5;
/// After this all is done that a start brings with it, for workers and for the status.
const SETTLED: Duration = Duration::from_secs(5);
/// A start that takes longer has failed.
const DEADLINE: Duration = Duration::from_secs(60);

/// After an orderly end, and after `kill -9`.
pub async fn measure(_: &Settings) -> Part {
    let feed = servers().await;
    backlog::prepare(&feed, "bench");
    eprintln!("  {WEBHOOKS} webhooks and links: writing");
    populate(&feed).await;
    drain::empty_stream(&feed).await;
    backlog::new_slot(&feed, "walhook");

    let mut stored = Stored::of(&feed).await;
    let mut walhook = feed.run();
    until(&mut stored, commit(&feed, 1)).await; // the stream is made, by once
    let (mut orderly, mut killed, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
    let mut number = 1;
    eprintln!("  starting, {TIMES} times after an orderly end and {TIMES} times after kill -9");
    for _ in 0..TIMES {
        feed.confirmed().await;
        assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
        number = commit(&feed, number + 1);
        let begin = Instant::now();
        walhook = feed.run();
        until(&mut stored, number).await;
        orderly.push(begin.elapsed());
        cpu.push(usage::cpu(walhook.pid()).unwrap());

        // From the kill on: the server has to notice that the slot's holder is gone.
        let begin = Instant::now();
        walhook.kill9();
        number = commit(&feed, number + 1);
        walhook = feed.run();
        until(&mut stored, number).await;
        killed.push(begin.elapsed());
    }
    tokio::time::sleep(SETTLED).await;
    let settled = usage::cpu(walhook.pid()).unwrap().as_secs_f64();
    feed.confirmed().await;
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());

    let [orderly, killed, cpu] = [orderly, killed, cpu].map(|mut times| {
        times.sort_unstable();
        times.into_iter().map(|time| time.as_secs_f64()).collect::<Vec<f64>>()
    });
    let mut table = Table::new(["started", "fastest, s", "median, s", "slowest, s"]);
    for (name, times) in [("after an orderly end", &orderly), ("walhook's CPU in it", &cpu), ("after kill -9", &killed)]
    {
        table.row([name.to_owned(), figure(times[0]), figure(times[TIMES / 2]), figure(times[TIMES - 1])]);
    }
    Part {
        title: "To the first event".to_owned(),
        text: format!(
            "{WEBHOOKS} webhooks with a link each, to {TABLES} tables. A row is committed while walhook is down; from its start, or \
             from the `kill -9` before it, until the row's event is stored."
        ),
        table: Some(table),
        goals: vec![
            Goal::at_most(
                "start with 10,000 webhooks and links, to the first event stored",
                1.0,
                orderly[TIMES / 2],
                "s",
            ),
            Goal::at_most("from kill -9 to the first event stored, with as many", 1.0, killed[TIMES / 2], "s"),
            Goal::stated("walhook's CPU for such a start, with all that follows it", settled, "s"),
        ],
        json: json!({
            "webhooks": WEBHOOKS,
            "tables": TABLES,
            "after_an_orderly_end_s": orderly,
            "cpu_s": cpu,
            "cpu_settled_s": settled,
            "after_kill_9_s": killed,
        }),
        pictures: Vec::new(),
    }
}

/// By plain rows, as the functions write them: ten thousand calls would take minutes.
async fn populate(feed: &Feed) {
    let sql = format!(
        "DO $$ DECLARE tables text; BEGIN
            FOR i IN 0..{TABLES} - 1 LOOP
                EXECUTE format('CREATE TABLE %I (id bigint PRIMARY KEY, doc jsonb NOT NULL)', 't' || i);
            END LOOP;
            INSERT INTO rule_webhooks (webhook_name, url, nats_enabled, nats_subject, nats_config_id, publish_mode)
            SELECT 'w' || i, 'https://example.com/' || i, true, 'webhooks.w' || i, config_id, 'nats'
            FROM generate_series(1, {WEBHOOKS}) i, rule_nats_config WHERE config_name = 'default';
            INSERT INTO rule_webhook_links (webhook_id, table_schema, table_name)
            SELECT webhook_id, 'public', 't' || webhook_id % {TABLES} FROM rule_webhooks WHERE webhook_name LIKE 'w%';
            SELECT string_agg('t' || i, ', ') INTO tables FROM generate_series(0, {TABLES} - 1) i;
            EXECUTE 'ALTER PUBLICATION walhook_changes ADD TABLE ' || tables;
        END $$"
    );
    feed.pg.client().await.batch_execute(&sql).await.unwrap();
}

/// The number-th row; returns the number.
fn commit(feed: &Feed, number: u64) -> u64 {
    feed.pg.psql(&format!("INSERT INTO bench SELECT {ROW} FROM generate_series({number}, {number}) i"));
    number
}

async fn until(stored: &mut Stored, number: u64) {
    let begin = Instant::now();
    while stored.last_sequence().await < number {
        assert!(begin.elapsed() < DEADLINE, "event {number} is not stored after {DEADLINE:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
