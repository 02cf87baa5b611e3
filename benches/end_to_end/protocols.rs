//! The line `protocols`: what values cost PostgreSQL's walsender as text, which walhook asks for, and in binary form.

use serde_json::json;

use crate::{
    backlog, drain,
    goals::figure,
    machine::servers,
    payloads::{self, TYPES},
    report::{Part, Table},
    settings::Settings,
};

/// Values in a row, all of one type.
const COLUMNS: usize = 20;
/// Rows of a transaction.
const SIZE: u64 = 500;

/// Each type by both.
pub async fn measure(settings: &Settings) -> Part {
    let feed = servers().await;
    let webhook = feed.webhook("bench");
    let rows = (settings.rows / 5).max(1);
    let mut table =
        Table::new(["type", "text: walsender's CPU per row, µs", "reader's", "binary: walsender's", "reader's"]);
    let mut figures = Vec::new();
    for (kind, value) in TYPES {
        eprintln!("  {kind}: {rows} rows");
        let columns = (0..COLUMNS).map(|column| format!("c{column} {kind}")).collect::<Vec<_>>().join(", ");
        payloads::renew(&feed, webhook, &columns);
        payloads::fill(&feed, rows, SIZE, &vec![value; COLUMNS].join(", ")).await;
        let text = drain::by_recvlogical(&feed, rows, &[]).await;
        let binary = drain::by_recvlogical(&feed, rows, &["binary=true"]).await;
        backlog::forget(&feed);
        let [text_us, binary_us] =
            [&text, &binary].map(|read| [read.walsender, read.own].map(|cpu| figure(read.us_each(cpu))));
        let ([text_sent, text_read], [binary_sent, binary_read]) = (text_us, binary_us);
        table.row([kind.to_owned(), text_sent, text_read, binary_sent, binary_read]);
        figures.push(json!({ "type": kind, "text": text.json(), "binary": binary.json() }));
    }
    Part {
        title: "Text or binary".to_owned(),
        text: format!(
            "Rows of {COLUMNS} columns of one type, read by `pg_recvlogical` to /dev/null, once with pgoutput's option `binary`."
        ),
        table: Some(table),
        goals: Vec::new(),
        json: figures.into(),
        pictures: Vec::new(),
    }
}
