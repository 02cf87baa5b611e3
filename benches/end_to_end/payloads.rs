//! The line `payloads`: how many events and bytes a second, by the size of a row and by its kind.

use serde_json::json;

use crate::{
    backlog, drain,
    goals::{Goal, figure, grouped},
    machine::servers,
    report::{Part, Table},
    settings::Settings,
    support::feed::Feed,
};

/// Bytes of text in a row, and their name.
const SIZES: [(u64, &str); 4] = [(100, "100 B"), (1_000, "1 KB"), (10_000, "10 KB"), (100_000, "100 KB")];
/// What a transaction holds, so that none is spilled to disk by the walsender.
const TRANSACTION_BYTES: u64 = 1_000_000;
/// Ten columns of the types that tables have; there are five of each.
pub const TYPES: [(&str, &str); 10] = [
    ("int", "i"),
    ("bigint", "i::bigint * 1000003"),
    ("numeric(12,2)", "i * 0.01"),
    ("float8", "i / 7.0"),
    ("boolean", "i % 2 = 0"),
    ("text", "'left with the \"neighbour\" on floor ' || i % 9"),
    ("timestamptz", "'2026-01-01Z'::timestamptz + i * interval '1 s'"),
    ("date", "'2026-01-01'::date + i % 365"),
    ("uuid", "md5(i::text)::uuid"),
    ("jsonb", "jsonb_build_object('sku', 'A-' || i, 'count', i % 7)"),
];
const OF_EACH_TYPE: usize = 5;

/// Text of four sizes, and a wide table.
pub async fn measure(settings: &Settings) -> Part {
    let feed = servers().await;
    let bytes_max = settings.quick(200_000_000, 1_000_000_000);
    let webhook = feed.webhook("bench");
    let mut table = Table::new(["row", "events", "events/s", "payload, bytes", "MB/s", "walhook's CPU per event, µs"]);
    let (mut goals, mut figures) = (Vec::new(), Vec::new());
    for (size, name) in SIZES {
        let rows = settings.rows.min(bytes_max / size);
        eprintln!("  {name}: {rows} rows");
        renew(&feed, webhook, "body text NOT NULL");
        feed.pg.psql("ALTER TABLE bench ALTER body SET STORAGE EXTERNAL");
        let words = "left with the \"neighbour\" on the second floor. ";
        let body = format!("left(i || repeat('{words}', {}), {size})", size / 40 + 1);
        fill(&feed, rows, (TRANSACTION_BYTES / size).clamp(1, 1_000), &body).await;
        row(&feed, settings, rows, name, &mut table, &mut goals, &mut figures).await;
    }
    let rows = (settings.rows / 5).max(1);
    eprintln!("  50 columns: {rows} rows");
    let columns = |of: &dyn Fn(usize, &str, &str) -> String| {
        let all = (0..OF_EACH_TYPE).flat_map(|time| TYPES.map(|(kind, value)| of(time, kind, value)));
        all.collect::<Vec<_>>().join(", ")
    };
    let named = |time: usize, kind: &str, _: &str| format!("{}_{time} {kind}", &kind[..3]);
    renew(&feed, webhook, &columns(&named));
    fill(&feed, rows, 500, &columns(&|_, _, value| value.to_owned())).await;
    row(&feed, settings, rows, "50 columns of 10 types", &mut table, &mut goals, &mut figures).await;
    Part {
        title: "By the size of a row".to_owned(),
        text: "Rows with one column of text, every fiftieth letter or so to be escaped, and rows of 50 columns (five each of ten types). \
               The payload is the whole message body; MB are millions of its bytes. Without history."
            .to_owned(),
        table: Some(table),
        goals,
        json: figures.into(),
        pictures: Vec::new(),
    }
}

/// A new table `bench` of an id and these columns, linked.
pub fn renew(feed: &Feed, webhook: i32, columns: &str) {
    feed.pg.psql(&format!("DROP TABLE IF EXISTS bench; CREATE TABLE bench (id bigint PRIMARY KEY, {columns})"));
    backlog::link(feed, webhook, "bench");
}

/// Fills it, in transactions of `size` rows.
pub async fn fill(feed: &Feed, rows: u64, size: u64, values: &str) {
    let insert = format!(
        "INSERT INTO bench SELECT i, {values} FROM generate_series(start, least(start + {size} - 1, {rows})) i"
    );
    backlog::write(feed, &backlog::looped(&format!("start IN 1..{rows} BY {size}"), &insert)).await;
}

async fn row(
    feed: &Feed,
    settings: &Settings,
    rows: u64,
    name: &str,
    table: &mut Table,
    goals: &mut Vec<Goal>,
    figures: &mut Vec<serde_json::Value>,
) {
    let drained = drain::rounds(feed, rows, settings.rounds).await;
    let payload = drain::sample(feed).await.len();
    let mb_per_s = drained.rate() * payload as f64 / 1e6;
    goals.push(Goal::stated(format!("{name} a row"), drained.rate(), "events/s"));
    goals.push(Goal::stated(format!("{name} a row"), mb_per_s, "MB/s"));
    table.row([
        name.to_owned(),
        grouped(rows as f64),
        grouped(drained.rate()),
        grouped(payload as f64),
        figure(mb_per_s),
        figure(drained.us_each(drained.own)),
    ]);
    figures.push(json!({"row": name, "payload_bytes": payload, "mb_per_s": mb_per_s, "walhook": drained.json()}));
}
