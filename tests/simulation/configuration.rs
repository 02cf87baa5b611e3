//! The configuration rows, and a router of the simulator's own: plain, slow, and independent of the one under test.

use std::collections::BTreeMap;

use walhook::route::tables::{RowText, Table, Tables};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Webhook {
    pub enabled: bool,
    pub subject: String,
    pub halt: bool,
    /// What is too large goes into the object store.
    pub claims: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub webhook: i32,
    pub table: usize,
    pub operations: Vec<&'static str>,
    pub enabled: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    pub name: String,
    pub shared: bool,
    pub enabled: bool,
    /// `atomic`, `fsync` or nothing.
    pub batches: &'static str,
}

/// What is in the tables at some point of history.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Configuration {
    pub webhooks: BTreeMap<i32, Webhook>,
    pub links: BTreeMap<i32, Link>,
    pub streams: BTreeMap<i32, Stream>,
    /// `rule_nats_config.history`; it does not change.
    pub history: &'static str,
}

/// A changed row; `None`: it is deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Row {
    Webhook(i32, Option<Webhook>),
    Link(i32, Option<Link>),
    Stream(i32, Option<Stream>),
}

/// What becomes of a change for one webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub webhook: i32,
    pub subject: String,
    /// `None`: it cannot be published.
    pub stream: Option<String>,
}

pub const WEBHOOKS: &[&str] = &[
    "webhook_id",
    "webhook_name",
    "url",
    "method",
    "headers",
    "enabled",
    "nats_enabled",
    "nats_subject",
    "nats_config_id",
    "publish_mode",
    "payload_format",
    "on_error",
];
pub const LINKS: &[&str] =
    &["link_id", "webhook_id", "table_schema", "table_name", "operations", "subject_template", "enabled"];
pub const STREAMS: &[&str] =
    &["stream_id", "config_id", "stream_name", "subjects", "ordering", "enabled", "transactions", "durability"];

impl Configuration {
    pub fn apply(&mut self, row: &Row) {
        fn put<R: Clone>(rows: &mut BTreeMap<i32, R>, id: i32, row: &Option<R>) {
            match row {
                Some(row) => drop(rows.insert(id, row.clone())),
                None => drop(rows.remove(&id)),
            }
        }
        match row {
            Row::Webhook(id, row) => put(&mut self.webhooks, *id, row),
            Row::Link(id, row) => put(&mut self.links, *id, row),
            Row::Stream(id, row) => put(&mut self.streams, *id, row),
        }
    }

    /// As a statement reads them.
    pub fn tables(&self) -> Tables {
        let mut tables = Tables::default();
        for ((table, _), row) in self.text() {
            tables.put_text(table, &row).unwrap();
        }
        tables
    }

    /// The same as text, by table and key.
    pub fn text(&self) -> BTreeMap<(Table, i32), RowText> {
        let config = [
            ("config_id", "1"),
            ("config_name", "default"),
            ("nats_url", "nats://model"),
            ("jetstream_enabled", "t"),
            ("enabled", "t"),
            ("history", self.history),
        ];
        let config = config.into_iter().map(|(name, text)| (name.to_owned(), Some(text.to_owned())));
        let mut all = BTreeMap::from([((Table::Configs, 1), config.collect())]);
        let rows = (self.webhooks.iter().map(|(id, row)| (*id, Row::Webhook(*id, Some(row.clone())))))
            .chain(self.links.iter().map(|(id, row)| (*id, Row::Link(*id, Some(row.clone())))))
            .chain(self.streams.iter().map(|(id, row)| (*id, Row::Stream(*id, Some(row.clone())))));
        for (id, row) in rows {
            let (table, columns) = row.table();
            all.insert((table, id), columns.iter().map(|name| (*name).to_owned()).zip(row.cells()).collect());
        }
        all
    }

    fn stream_of(&self, subject: &str) -> Option<String> {
        let valid = !subject.contains(' ');
        let stream = self.streams.values().find(|row| row.enabled && subject.starts_with(&format!("{}.", row.name)));
        stream.filter(|_| valid).map(|row| row.name.clone())
    }

    /// What an operation on a user's table becomes.
    pub fn row(&self, table: usize, op: &str) -> Vec<Route> {
        let mut links: Vec<_> = self.links.values().filter(|link| link.enabled && link.table == table).collect();
        links.sort_by_key(|link| link.webhook);
        let wanted = links.into_iter().filter(|link| link.operations.contains(&op));
        let routes = wanted.filter_map(|link| {
            let webhook = self.webhooks.get(&link.webhook).filter(|webhook| webhook.enabled)?;
            let subject = webhook.subject.clone();
            Some(Route { webhook: link.webhook, stream: self.stream_of(&subject), subject })
        });
        routes.collect()
    }

    /// What a row of `rule_webhook_events` becomes.
    pub fn call(&self, webhook: i32) -> Route {
        let subject = self.webhooks.get(&webhook).map(|webhook| webhook.subject.clone()).unwrap_or_default();
        Route { webhook, stream: self.stream_of(&subject), subject }
    }
}

impl Row {
    pub fn table(&self) -> (Table, &'static [&'static str]) {
        match self {
            Row::Webhook(..) => (Table::Webhooks, WEBHOOKS),
            Row::Link(..) => (Table::Links, LINKS),
            Row::Stream(..) => (Table::Streams, STREAMS),
        }
    }

    pub fn is_delete(&self) -> bool {
        matches!(self, Row::Webhook(_, None) | Row::Link(_, None) | Row::Stream(_, None))
    }

    /// The row as PostgreSQL's text; of a deleted one the key.
    pub fn cells(&self) -> Vec<Option<String>> {
        let some = |text: &str| Some(text.to_owned());
        let boolean = |value: bool| some(if value { "t" } else { "f" });
        let key_only = |id: &i32, columns: &[&str]| {
            let mut cells = vec![None; columns.len()];
            cells[0] = some(&id.to_string());
            cells
        };
        match self {
            Row::Webhook(id, None) => key_only(id, WEBHOOKS),
            Row::Link(id, None) => key_only(id, LINKS),
            Row::Stream(id, None) => key_only(id, STREAMS),
            Row::Webhook(id, Some(row)) => vec![
                some(&id.to_string()),
                some(&format!("w{id}")),
                some("https://example.com"),
                some("POST"),
                some("{}"),
                boolean(row.enabled),
                some("t"),
                some(&row.subject),
                some("1"),
                some("nats"),
                some("webhook"),
                some(match (row.halt, row.claims) {
                    (true, _) => "halt",
                    (false, true) => "object_store",
                    (false, false) => "dead_letter",
                }),
            ],
            Row::Link(id, Some(row)) => vec![
                some(&id.to_string()),
                some(&row.webhook.to_string()),
                some("public"),
                some(&format!("t{}", row.table)),
                some(&format!("{{{}}}", row.operations.join(","))),
                None,
                boolean(row.enabled),
            ],
            Row::Stream(id, Some(row)) => vec![
                some(&id.to_string()),
                some("1"),
                some(&row.name),
                some(&format!("{{{}.>}}", row.name)),
                some(if row.shared { "shared" } else { "strict" }),
                boolean(row.enabled),
                some(if row.batches == "atomic" { "atomic" } else { "streamed" }),
                some(if row.batches == "fsync" { "fsync" } else { "default" }),
            ],
        }
    }
}
