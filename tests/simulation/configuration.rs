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
    /// `nats_config_id`.
    pub config: i32,
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
    pub config: i32,
    pub name: String,
    pub shared: bool,
    pub enabled: bool,
    /// `atomic`, `fsync` or nothing.
    pub batches: &'static str,
}

impl Stream {
    /// As the models call it: streams of two servers may have one name.
    pub fn key(&self) -> String {
        format!("{}/{}", self.config, self.name)
    }
}

/// Where events of a configuration go that publishes to core NATS, as the models call it.
pub fn core_of(config: i32) -> String {
    format!("{config}/core")
}

/// What is in the tables at some point of history.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Configuration {
    pub webhooks: BTreeMap<i32, Webhook>,
    pub links: BTreeMap<i32, Link>,
    pub streams: BTreeMap<i32, Stream>,
    /// The NATS configurations, each with a server of its own: whether they publish to JetStream.
    pub configs: BTreeMap<i32, (bool, Access)>,
    /// `rule_nats_config.history`; it does not change.
    pub history: &'static str,
}

/// How a NATS configuration is reached; 0: nothing is said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Access {
    pub max_connections: u8,
    pub max_attempts: u8,
    /// Another number, another row; it means nothing.
    pub touched: u32,
}

/// A changed row; `None`: it is deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Row {
    Webhook(i32, Option<Webhook>),
    Link(i32, Option<Link>),
    Stream(i32, Option<Stream>),
    Config(i32, bool, &'static str, Access),
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
pub const CONFIGS: &[&str] = &[
    "config_id",
    "config_name",
    "nats_url",
    "jetstream_enabled",
    "enabled",
    "history",
    "max_connections",
    "max_reconnect_attempts",
    "connection_timeout_ms",
    "publish_schemas",
];
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
            Row::Config(id, jetstream, _, access) => drop(self.configs.insert(*id, (*jetstream, *access))),
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
        let mut all = BTreeMap::new();
        let rows = (self.webhooks.iter().map(|(id, row)| (*id, Row::Webhook(*id, Some(row.clone())))))
            .chain(self.links.iter().map(|(id, row)| (*id, Row::Link(*id, Some(row.clone())))))
            .chain(self.streams.iter().map(|(id, row)| (*id, Row::Stream(*id, Some(row.clone())))))
            .chain(
                self.configs
                    .iter()
                    .map(|(id, (jetstream, access))| (*id, Row::Config(*id, *jetstream, self.history, *access))),
            );
        for (id, row) in rows {
            let (table, columns) = row.table();
            all.insert((table, id), columns.iter().map(|name| (*name).to_owned()).zip(row.cells()).collect());
        }
        all
    }

    fn stream_of(&self, config: i32, subject: &str) -> Option<String> {
        if subject.contains(' ') {
            return None;
        }
        if !self.configs[&config].0 {
            return Some(core_of(config));
        }
        let takes =
            |row: &&Stream| row.enabled && row.config == config && subject.starts_with(&format!("{}.", row.name));
        self.streams.values().find(takes).map(Stream::key)
    }

    /// What an operation on a user's table becomes.
    pub fn row(&self, table: usize, op: &str) -> Vec<Route> {
        let mut links: Vec<_> = self.links.values().filter(|link| link.enabled && link.table == table).collect();
        links.sort_by_key(|link| link.webhook);
        let wanted = links.into_iter().filter(|link| link.operations.contains(&op));
        let routes = wanted.filter_map(|link| {
            let webhook = self.webhooks.get(&link.webhook).filter(|webhook| webhook.enabled)?;
            let subject = webhook.subject.clone();
            Some(Route { webhook: link.webhook, stream: self.stream_of(webhook.config, &subject), subject })
        });
        routes.collect()
    }

    /// What a row of `rule_webhook_events` becomes.
    pub fn call(&self, webhook: i32) -> Route {
        let Some(row) = self.webhooks.get(&webhook) else {
            return Route { webhook, subject: String::new(), stream: None };
        };
        Route { webhook, stream: self.stream_of(row.config, &row.subject), subject: row.subject.clone() }
    }
}

impl Row {
    pub fn table(&self) -> (Table, &'static [&'static str]) {
        match self {
            Row::Webhook(..) => (Table::Webhooks, WEBHOOKS),
            Row::Link(..) => (Table::Links, LINKS),
            Row::Stream(..) => (Table::Streams, STREAMS),
            Row::Config(..) => (Table::Configs, CONFIGS),
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
                some(&row.config.to_string()),
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
            Row::Config(id, jetstream, history, access) => vec![
                some(&id.to_string()),
                some(if *id == 1 { "default" } else { "other" }),
                some(&format!("nats://model{id}")),
                boolean(*jetstream),
                some("t"),
                some(history),
                Some(access.max_connections.to_string()).filter(|text| text != "0"),
                Some(access.max_attempts.to_string()).filter(|text| text != "0"),
                Some((5000 + access.touched).to_string()),
                // In some worlds, and there always.
                boolean(*history == "failures"),
            ],
            Row::Stream(id, Some(row)) => vec![
                some(&id.to_string()),
                some(&row.config.to_string()),
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
