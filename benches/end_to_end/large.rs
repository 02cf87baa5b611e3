//! The line `large`: one transaction of rows of a mebibyte each.

use serde_json::json;

use crate::{
    backlog, drain,
    goals::{Goal, figure, grouped},
    machine::servers,
    report::{Part, Table},
    settings::Settings,
};

const MIB: u64 = 1 << 20;
/// A mebibyte that is made at little cost: one row's own 128 letters and a common rest. It is stored out of line and not
/// compressed, as a document that does not compress would be.
const ROW: &str = "i, left((SELECT string_agg(md5(i::text || k), '') FROM generate_series(1, 4) k) \
    || repeat('lorem ipsum dolor.', 58260), 1048576)";

/// Without history, and with a full one, which keeps each payload until its row is written.
pub async fn measure(settings: &Settings) -> Part {
    let feed = servers().await;
    let rows = settings.quick(256, 1024);
    let webhook = feed.webhook("bench");
    feed.pg.psql("CREATE TABLE bench (id bigint PRIMARY KEY, body text NOT NULL)");
    feed.pg.psql("ALTER TABLE bench ALTER body SET STORAGE EXTERNAL");
    backlog::link(&feed, webhook, "bench");
    eprintln!("  {rows} MiB: writing");
    backlog::write(&feed, &format!("INSERT INTO bench SELECT {ROW} FROM generate_series(1, {rows}) i")).await;

    let mut table = Table::new(["history", "MiB/s", "walhook's CPU per event, µs", "peak RSS, MiB"]);
    let (mut goals, mut json) = (Vec::new(), json!({"rows": rows, "row_bytes": MIB}));
    for history in ["off", "full"] {
        eprintln!("  {rows} MiB: draining, history {history}");
        let drained = drain::by_walhook(&feed, rows, history).await;
        let what = format!("one transaction of {rows} MiB in rows of 1 MiB, history `{history}`, peak RSS");
        goals.push(Goal::at_most(what, 96.0, drained.rss_mib(), "MiB"));
        table.row([
            history.to_owned(),
            figure(drained.rate()), // a row is a MiB
            grouped(drained.us_each(drained.own)),
            figure(drained.rss_mib()),
        ]);
        json[history] = drained.json();
    }
    Part {
        title: "Large rows in one large transaction".to_owned(),
        text: format!(
            "{rows} rows of 1 MiB of text in one transaction, {rows} MiB in all; nats-server's `max_payload` is 4 MB."
        ),
        table: Some(table),
        goals,
        json,
        pictures: Vec::new(),
    }
}
