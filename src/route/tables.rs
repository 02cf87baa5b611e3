//! The configuration tables as rows: `rule_webhooks`, `rule_webhook_links`, `rule_nats_config`,
//! `rule_nats_streams`.
//!
//! Comes in: rows, once from a snapshot at the start, then from the WAL, both as PostgreSQL's text. Goes out: typed
//! rows by key. Whether a row makes sense is not judged here but in `rules`, so that a bad row is one webhook's
//! problem and never the stream's.
//!
//! Each table's columns are in a file of its name; how a column's text is read is in `cells`.

mod cells;
mod configs;
mod links;
mod streams;
mod webhooks;

use std::{collections::BTreeMap, ops::Deref, sync::Arc};

pub use super::row_text::RowText;
use super::{mask_key::MaskKey, seal::SealKeys};
use crate::{
    error::{Error, Result},
    wal::lsn::Lsn,
};
pub use cells::Cell;
use cells::{Row, number};
pub use configs::ConfigRow;
pub use links::LinkRow;
pub use streams::StreamRow;
pub use webhooks::{DeliveryColumns, WebhookRow};

/// One of the tables that configure walhook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// `rule_webhooks`
    Webhooks,
    /// `rule_webhook_links`
    Links,
    /// `rule_nats_config`
    Configs,
    /// `rule_nats_streams`
    Streams,
}

impl Table {
    /// All of them, in the order of their references.
    pub const ALL: [Table; 4] = [Table::Configs, Table::Streams, Table::Webhooks, Table::Links];

    /// The table's name; its schema is `public`.
    pub fn name(self) -> &'static str {
        match self {
            Table::Webhooks => "rule_webhooks",
            Table::Links => "rule_webhook_links",
            Table::Configs => "rule_nats_config",
            Table::Streams => "rule_nats_streams",
        }
    }

    /// Its primary key.
    pub fn key(self) -> &'static str {
        match self {
            Table::Webhooks => "webhook_id",
            Table::Links => "link_id",
            Table::Configs => "config_id",
            Table::Streams => "stream_id",
        }
    }

    /// The configuration table of this name, if it is one.
    pub fn named(schema: &str, name: &str) -> Option<Table> {
        (schema == "public").then(|| Table::ALL.into_iter().find(|table| table.name() == name)).flatten()
    }
}

/// Servers of a configuration that events go to in place of others: both addresses lead to the same server, or the first one
/// never led to any. It holds for transactions that commit before `until_lsn`, so that a later change of the row is free to name
/// the first address again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerAlias {
    /// The `rule_nats_config` row.
    pub config_id: i32,
    /// What that row names ([`ConfigRow::servers`]).
    pub servers: String,
    /// Where its events go.
    pub alias_of: String,
    /// The transactions that commit before this position.
    pub until_lsn: Lsn,
}

/// Where events of a configuration go that names `servers`: the aliases count one after the other, in their order.
pub fn resolve(aliases: &[ServerAlias], config_id: i32, servers: String) -> String {
    let of_config = aliases.iter().filter(|alias| alias.config_id == config_id);
    of_config.fold(servers, |servers, alias| if alias.servers == servers { alias.alias_of.clone() } else { servers })
}

/// The rows of a table by key. A copy shares them with the original: the newest rows, those in force and those that others look
/// at are the same ones but for a few.
#[derive(Debug, Clone)]
pub struct Rows<R>(BTreeMap<i32, Arc<R>>);

impl<R> Default for Rows<R> {
    fn default() -> Rows<R> {
        Rows(BTreeMap::new())
    }
}

impl<R> Deref for Rows<R> {
    type Target = BTreeMap<i32, Arc<R>>;

    fn deref(&self) -> &BTreeMap<i32, Arc<R>> {
        &self.0
    }
}

impl<'a, R> IntoIterator for &'a Rows<R> {
    type Item = (&'a i32, &'a Arc<R>);
    type IntoIter = std::collections::btree_map::Iter<'a, i32, Arc<R>>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl<R: Clone> Rows<R> {
    /// Inserts or replaces a row.
    pub fn insert(&mut self, id: i32, row: R) {
        self.0.insert(id, Arc::new(row));
    }

    /// Removes all rows.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// A row to be changed; copies do not see it.
    pub fn get_mut(&mut self, id: &i32) -> Option<&mut R> {
        self.0.get_mut(id).map(Arc::make_mut)
    }

    /// All rows to be changed; copies do not see it.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&i32, &mut R)> {
        self.0.iter_mut().map(|(id, row)| (id, Arc::make_mut(row)))
    }

    /// Whether the same keys have rows of which `same` holds; a shared row is the same as itself.
    fn agree(&self, other: &Rows<R>, same: impl Fn(&R, &R) -> bool) -> bool {
        self.len() == other.len()
            && self
                .0
                .iter()
                .zip(&other.0)
                .all(|((a, row), (b, other))| a == b && (Arc::ptr_eq(row, other) || same(row, other)))
    }
}

/// All the configuration rows, by key.
#[derive(Debug, Clone, Default)]
pub struct Tables {
    /// `rule_webhooks`
    pub webhooks: Rows<WebhookRow>,
    /// `rule_webhook_links`
    pub links: Rows<LinkRow>,
    /// `rule_nats_config`
    pub configs: Rows<ConfigRow>,
    /// `rule_nats_streams`
    pub streams: Rows<StreamRow>,
    /// The configuration whose server or user the process's own settings say, whatever its row says.
    pub overridden: Option<String>,
    /// Servers that events go to in place of those that the rows name, in the order in which walhook found them out.
    pub aliases: Vec<ServerAlias>,
    /// The rows are for a replay, which publishes elsewhere: events go into lanes of core NATS, in whose messages nothing names
    /// a place in a stream; there is no history; and nothing stops at an event that cannot be published.
    pub is_for_replay: bool,
    /// The key of the hashes in masks, of the process's own settings.
    pub mask_key: MaskKey,
    /// The keys with which bodies are sealed, likewise.
    pub seal_keys: SealKeys,
    /// The shard that the process publishes, of its own settings; `None`: the main one.
    pub shard: Option<String>,
}

impl Tables {
    /// The servers of a configuration, as far as its row decides that.
    pub fn servers_of(&self, row: &ConfigRow) -> String {
        if self.overridden.as_ref() == Some(&row.config_name) {
            return String::new();
        }
        resolve(&self.aliases, row.config_id, row.servers())
    }

    /// Inserts or replaces a row that was kept as text.
    ///
    /// # Errors
    /// As [`Tables::put`].
    pub fn put_text(&mut self, table: Table, row: &RowText) -> Result<()> {
        self.put(table, row.iter().map(|(column, value)| (column, value.map_or(Cell::Null, Cell::Text))))
    }

    /// Takes a row over from other tables, which both share from then on; whether they have it.
    pub fn share(&mut self, table: Table, id: i32, other: &Tables) -> bool {
        fn share<R>(rows: &mut Rows<R>, id: i32, other: &Rows<R>) -> bool {
            let row = other.get(&id);
            row.is_some_and(|row| {
                rows.0.insert(id, Arc::clone(row));
                true
            })
        }
        match table {
            Table::Webhooks => share(&mut self.webhooks, id, &other.webhooks),
            Table::Links => share(&mut self.links, id, &other.links),
            Table::Configs => share(&mut self.configs, id, &other.configs),
            Table::Streams => share(&mut self.streams, id, &other.streams),
        }
    }

    /// The keys of a table's rows.
    pub fn ids(&self, table: Table) -> Vec<i32> {
        match table {
            Table::Webhooks => self.webhooks.keys().copied().collect(),
            Table::Links => self.links.keys().copied().collect(),
            Table::Configs => self.configs.keys().copied().collect(),
            Table::Streams => self.streams.keys().copied().collect(),
        }
    }

    /// Whether both say the same, however often their rows were written.
    pub fn say_the_same(&self, other: &Tables) -> bool {
        self.webhooks.agree(&other.webhooks, WebhookRow::eq)
            && self.links.agree(&other.links, LinkRow::eq)
            && self.streams.agree(&other.streams, StreamRow::eq)
            && self.configs.agree(&other.configs, ConfigRow::says_the_same)
    }

    /// Inserts or updates a row.
    ///
    /// # Errors
    /// A value that is not of the column's type, or a row without its key.
    pub fn put<'a>(&mut self, table: Table, row: impl Iterator<Item = (&'a str, Cell<'a>)> + Clone) -> Result<()> {
        let key = row
            .clone()
            .find_map(|(column, cell)| match cell {
                Cell::Text(text) if column == table.key() => Some(text),
                _ => None,
            })
            .ok_or_else(|| Error::protocol(format!("read a row of {}: no {}", table.name(), table.key())))?;
        let key = number(table.key(), key)?;
        match table {
            Table::Webhooks => fill(&mut self.webhooks, key, row),
            Table::Links => fill(&mut self.links, key, row),
            Table::Configs => fill(&mut self.configs, key, row).map(|()| {
                if let Some(row) = self.configs.get_mut(&key) {
                    row.revision += 1;
                }
            }),
            Table::Streams => fill(&mut self.streams, key, row),
        }
        .map_err(|error| error.context(format!("read row {key} of {}", table.name())))?;
        if self.is_for_replay {
            match table {
                Table::Webhooks => self.webhooks.get_mut(&key).into_iter().for_each(WebhookRow::adapt_to_replay),
                Table::Configs => self.configs.get_mut(&key).into_iter().for_each(ConfigRow::adapt_to_replay),
                Table::Links | Table::Streams => {}
            }
        }
        Ok(())
    }

    /// Makes the rows fit for a replay, and those that come later too ([`Tables::is_for_replay`]).
    pub fn adapt_to_replay(&mut self) {
        self.is_for_replay = true;
        self.configs.iter_mut().for_each(|(_, row)| row.adapt_to_replay());
        self.webhooks.iter_mut().for_each(|(_, row)| row.adapt_to_replay());
    }

    /// Removes a row; `key` is the text of its primary key.
    ///
    /// # Errors
    /// A key that is no number.
    pub fn remove(&mut self, table: Table, key: &str) -> Result<()> {
        let key: i32 = number(table.key(), key)?;
        match table {
            Table::Webhooks => drop(self.webhooks.0.remove(&key)),
            Table::Links => drop(self.links.0.remove(&key)),
            Table::Configs => drop(self.configs.0.remove(&key)),
            Table::Streams => drop(self.streams.0.remove(&key)),
        }
        Ok(())
    }

    /// Removes all rows of a table.
    pub fn clear(&mut self, table: Table) {
        match table {
            Table::Webhooks => self.webhooks.clear(),
            Table::Links => self.links.clear(),
            Table::Configs => self.configs.clear(),
            Table::Streams => self.streams.clear(),
        }
    }
}

fn fill<'a, R: Row>(rows: &mut Rows<R>, key: i32, columns: impl Iterator<Item = (&'a str, Cell<'a>)>) -> Result<()> {
    // A copy is filled, so that an error leaves the row as it was.
    let mut row = rows.get(&key).map(|row| R::clone(row)).unwrap_or_default();
    for (column, cell) in columns {
        match cell {
            Cell::Null => row.set(column, None)?,
            Cell::Text(text) => row.set(column, Some(text))?,
            Cell::Unchanged => {}
        }
    }
    rows.insert(key, row);
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_update_keeps_what_it_did_not_touch() {
        let mut tables = Tables::default();
        let row = [
            ("webhook_id", Cell::Text("7")),
            ("webhook_name", Cell::Text("slack")),
            ("headers", Cell::Text("{}")),
            ("enabled", Cell::Text("t")),
            ("nats_config_id", Cell::Null),
            ("tags", Cell::Text("{}")),
        ];
        tables.put(Table::Webhooks, row.into_iter()).unwrap();
        let update = [
            ("webhook_id", Cell::Text("7")),
            ("webhook_name", Cell::Text("mail")),
            ("headers", Cell::Unchanged),
            ("enabled", Cell::Text("f")),
        ];
        tables.put(Table::Webhooks, update.into_iter()).unwrap();
        let webhook = &tables.webhooks[&7];
        assert_eq!((webhook.name.as_str(), webhook.headers.as_deref(), webhook.enabled), ("mail", Some("{}"), false));
        tables.remove(Table::Webhooks, "7").unwrap();
        assert!(tables.webhooks.is_empty());
    }

    #[test]
    fn a_value_of_the_wrong_type_is_an_error_and_leaves_the_row_alone() {
        let mut tables = Tables::default();
        let row = [("webhook_id", Cell::Text("1")), ("enabled", Cell::Text("perhaps"))];
        let error = tables.put(Table::Webhooks, row.into_iter()).unwrap_err().to_string();
        assert!(error.contains("rule_webhooks") && error.contains("perhaps"), "{error}");
        assert!(tables.webhooks.is_empty());
        assert!(tables.put(Table::Links, [("enabled", Cell::Text("t"))].into_iter()).is_err());
    }
}
