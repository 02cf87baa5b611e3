//! The lines `webhooks` and `fanout`: what many webhooks cost, and what it costs that a row has many.

use serde_json::json;

use crate::{
    backlog::{self, ROW, Shape},
    drain::{self, Drained},
    goals::{Goal, grouped},
    machine::servers,
    report::{Part, Table},
    settings::Settings,
    support::feed::Feed,
};

/// How many there are.
const COUNTS: [u32; 3] = [1, 10, 1_000];
/// As flat as figures of one machine get.
const FLAT: f64 = 0.9;
/// The rows of a transaction.
const SIZE: u64 = 1_000;

/// 1, 10, 1,000 webhooks, each of a table of its own.
pub async fn webhooks(settings: &Settings) -> Part {
    let feed = servers().await;
    backlog::prepare(&feed, "bench");
    let mut had = 1;
    let mut drained = Vec::new();
    for count in COUNTS {
        add(&feed, had, count).await;
        had = count;
        eprintln!("  {count} webhook(s)");
        backlog::fill(&feed, Shape::Of(SIZE), settings.rows).await;
        let linked = drain::rounds(&feed, settings.rows, settings.rounds).await;
        call(&feed, settings.rows).await;
        let called = drain::rounds(&feed, settings.rows, settings.rounds).await;
        drained.push((count, linked, called));
    }
    let mut table = Table::new([
        "webhooks",
        "rows of one linked table, events/s",
        "CPU, µs per event",
        "calls of all in turn, events/s",
        "CPU, µs per event",
        "peak RSS, MiB",
    ]);
    for (count, linked, called) in &drained {
        table.row([
            grouped(f64::from(*count)),
            grouped(linked.rate()),
            format!("{:.2}", linked.us_each(linked.own)),
            grouped(called.rate()),
            format!("{:.2}", called.us_each(called.own)),
            format!("{:.1}", called.rss_mib()),
        ]);
    }
    let ((_, linked_first, called_first), (_, linked_last, called_last)) = (&drained[0], &drained[COUNTS.len() - 1]);
    Part {
        title: "Many webhooks".to_owned(),
        text: format!(
            "Each webhook is linked to a table of its own. First {rows} rows go into one of the tables, then {rows} calls go to all \
             webhooks in turn through `rule_webhook_events`. Without history.",
            rows = grouped(settings.rows as f64)
        ),
        table: Some(table),
        goals: vec![
            Goal::at_least(
                "1,000 webhooks to 1, rows of one linked table",
                FLAT,
                linked_last.faster_than(linked_first),
                "×",
            ),
            Goal::at_least(
                "1,000 webhooks to 1, calls of all in turn",
                FLAT,
                called_last.faster_than(called_first),
                "×",
            ),
        ],
        json: drained
            .iter()
            .map(|(count, linked, called)| json!({"webhooks": count, "linked": linked.json(), "called": called.json()}))
            .collect(),
        pictures: Vec::new(),
    }
}

/// Webhooks up to `upto`, and a table for each.
async fn add(feed: &Feed, had: u32, upto: u32) {
    let each = "EXECUTE format('CREATE TABLE %I (id bigint PRIMARY KEY, doc jsonb NOT NULL)', 'bench' || i); \
                id := rule_webhook_register('bench' || i, 'https://example.com/' || i); \
                PERFORM rule_webhook_enable_nats(id, NULL, 'nats'); \
                PERFORM rule_webhook_link_table(id, ('bench' || i)::regclass, ARRAY['insert'])";
    let sql = format!("DO $$ DECLARE id int; BEGIN FOR i IN {}..{upto} LOOP {each}; END LOOP; END $$", had + 1);
    feed.pg.client().await.batch_execute(&sql).await.unwrap();
}

/// A backlog of calls, by plain rows of the table that the functions write: their cost is another line's.
async fn call(feed: &Feed, rows: u64) {
    let ids = "(SELECT array_agg(webhook_id ORDER BY webhook_id) FROM rule_webhooks)";
    let insert = format!(
        "INSERT INTO rule_webhook_events (webhook_id, subject, payload) \
         SELECT ids[1 + i % cardinality(ids)], 'webhooks.bench', doc \
         FROM (SELECT {ids} AS ids) w, \
         LATERAL (SELECT {ROW} FROM generate_series(start, least(start + {SIZE} - 1, {rows})) i) row (i, doc)"
    );
    backlog::write(feed, &backlog::looped(&format!("start IN 1..{rows} BY {SIZE}"), &insert)).await;
}

/// One row for one webhook and for ten.
pub async fn fanout(settings: &Settings) -> Part {
    const TEN: u32 = 10;
    let feed = servers().await;
    backlog::prepare(&feed, "bench");
    let mut drained: Vec<(u32, Drained)> = Vec::new();
    for webhooks in [1, TEN] {
        for number in 1..webhooks {
            let webhook = feed.webhook(&format!("bench{number}"));
            backlog::link(&feed, webhook, "bench");
        }
        eprintln!("  one row to {webhooks} webhook(s)");
        let rows = settings.rows / u64::from(webhooks);
        backlog::fill(&feed, Shape::Of(SIZE), rows).await;
        drained.push((webhooks, drain::rounds(&feed, rows * u64::from(webhooks), settings.rounds).await));
    }
    let mut table =
        Table::new(["webhooks of a row", "events/s", "walhook's CPU per event, µs", "walsender's", "nats-server's"]);
    for (webhooks, drained) in &drained {
        table.row([
            webhooks.to_string(),
            grouped(drained.rate()),
            format!("{:.2}", drained.us_each(drained.own)),
            format!("{:.2}", drained.us_each(drained.walsender)),
            format!("{:.2}", drained.us_each(drained.nats)),
        ]);
    }
    let [one, ten] = [0, 1].map(|index: usize| &drained[index].1);
    let cost = ten.us_each(ten.own) / one.us_each(one.own);
    Part {
        title: "One row to many webhooks".to_owned(),
        text: format!(
            "{} events: so many rows for one webhook, a tenth of them for ten. What counts is the event: the row itself is read once.",
            grouped(settings.rows as f64)
        ),
        table: Some(table),
        goals: vec![Goal::at_most("walhook's CPU per event, 10 webhooks for a row to 1", 1.1, cost, "×")],
        json: drained
            .iter()
            .map(|(webhooks, drained)| json!({"webhooks": webhooks, "walhook": drained.json()}))
            .collect(),
        pictures: Vec::new(),
    }
}
