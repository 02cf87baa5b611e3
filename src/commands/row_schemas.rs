//! `walhook schema`: the JSON Schema of a table's rows as consumers get it, now or at some version.
//!
//! In: a table, its links, and the buckets that have versions. Out: a schema, the list of versions, or what differs between two. Made by
//! the same code of [`crate::route`] that `walhook run` uses. Changes nothing.

use std::{collections::BTreeSet, fmt::Write as _};

use clap::Args;
use serde_json::{Map, Value, json};

use super::{explain::Table, identity, masks, names, replay, rows, run::rules, run::state_store};
use crate::{
    config::Config,
    error::{Error, Kind, Result},
    nats::schemas::{self, Bucket, Entry},
    route::{
        plan::Plan,
        row_schema::{RowSchema, table_key},
        rules::Rules,
        tables::Tables,
    },
    text,
};

/// Which table, and what of it.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The table, as SQL names it: orders, shop.orders, "Orders"
    #[arg(value_name = "TABLE")]
    table: String,
    /// As this webhook's events have the rows, where links select, rename or mask different columns
    #[arg(long, value_name = "NAME")]
    webhook: Option<String>,
    /// List the versions that are in the bucket
    #[arg(long, conflicts_with_all = ["version", "diff"])]
    versions: bool,
    /// This version from the bucket, in place of the one of now: what the header has behind the last dot
    #[arg(long, value_name = "VERSION")]
    version: Option<String>,
    /// What has changed since this version of the bucket
    #[arg(long, value_name = "VERSION")]
    diff: Option<String>,
    /// List and differences as JSON
    #[arg(long)]
    json: bool,
}

/// The schema that a link's events name now.
struct Current {
    webhook: String,
    config_id: Option<i32>,
    schema: RowSchema,
}

/// An entry, and where it is.
struct Stored {
    config: String,
    bucket: String,
    entry: Entry,
}

/// Shows it.
///
/// # Errors
/// There is no such table, webhook or version; PostgreSQL or NATS cannot be asked.
pub async fn show(config: &Config, arguments: &Arguments) -> Result<()> {
    let client = super::connect(config).await?;
    let identity = identity::read(&client).await?;
    let mut tables = rules::newest(&client).await?.tables;
    rows::apply_settings(&mut tables, config);
    tables.mask_key = masks::key(config);
    let table = Table::find(&client, config, &arguments.table).await?;
    if let Some(root) = &table.linked_root {
        return Err(Error::config(format!(
            "show the schema of {}: it is a partition, and its changes arrive as those of {root}",
            arguments.table
        ))
        .hint(format!("walhook schema {root}")));
    }
    let types = state_store::read_types(&client).await?;
    let mut rules = Rules::compile(&tables, &mut Vec::new());
    // Also if the configuration does not publish schemas yet.
    rules.webhooks.iter_mut().for_each(|webhook| webhook.publishes_schemas = true);
    let mut all = Vec::new();
    let partitions: Vec<_> = table.partitions.iter().map(|(schema, name)| (schema.as_str(), name.as_str())).collect();
    if let Plan::Linked(linked) = Plan::new(&table.relation, &partitions, &rules, &types, &mut Vec::new()) {
        for target in &linked.targets {
            let Some(schema) = &target.schema else { continue };
            let webhook = &rules.webhooks[target.webhook];
            let config_id = tables.webhooks.get(&webhook.id).and_then(|row| row.nats_config_id);
            all.push(Current { webhook: webhook.name.clone(), config_id, schema: RowSchema::clone(schema) });
        }
    }
    if let Some(wanted) = &arguments.webhook {
        let near = names::nearest(wanted, all.iter().map(|current| current.webhook.as_str()));
        all.retain(|current| current.webhook == *wanted);
        if all.is_empty() {
            return Err(Error::config(format!(
                "--webhook {wanted:?}: no link of that webhook makes events of the rows of {}",
                arguments.table
            ))
            .hint(format!("{near}walhook explain {} shows its links", text::one_line(&arguments.table))));
        }
    } else if all.is_empty() {
        let schema = RowSchema::new(&table.relation, &types, None, None);
        all.push(Current { webhook: String::new(), config_id: None, schema });
    }
    if !arguments.versions && arguments.version.is_none() && arguments.diff.is_none() {
        return say(&only(&all, &arguments.table)?.schema.text);
    }
    let key = table_key(&table.relation.schema, &table.relation.name);
    let stored = read(config, &tables, &identity, &all, &key).await?;
    if arguments.versions {
        return list(&stored, &all, arguments.json);
    }
    let find = |version: &str| {
        let wanted = format!("{key}.{version}");
        let found = stored.iter().find(|stored| stored.entry.key == wanted || stored.entry.key == version);
        found.map(|stored| &stored.entry).ok_or_else(|| {
            Error::config(format!("there is no version {version:?} of {} in the bucket", arguments.table))
                .hint(format!("walhook schema {} --versions lists them", text::one_line(&arguments.table)))
        })
    };
    let newer = match &arguments.version {
        Some(version) => find(version)?.text.clone(),
        None => only(&all, &arguments.table)?.schema.text.clone(),
    };
    match &arguments.diff {
        None => say(&newer),
        Some(older) => tell(&differences(&find(older)?.text, &newer)?, arguments.json),
    }
}

fn say(schema: &str) -> Result<()> {
    super::say_bytes(format!("{}\n", text::json(schema)).as_bytes())
}

/// The one that all links have.
fn only<'c>(all: &'c [Current], table: &str) -> Result<&'c Current> {
    let keys: BTreeSet<_> = all.iter().map(|current| &current.schema.key).collect();
    match all {
        [first, ..] if keys.len() == 1 => Ok(first),
        _ => {
            let names: Vec<_> = all.iter().map(|current| format!("{:?}", current.webhook)).collect();
            Err(Error::config(format!(
                "show the schema of {table}: its links select, rename or mask different columns, so there are {}",
                keys.len()
            ))
            .hint(format!("choose one by --webhook, of {}", names.join(", "))))
        }
    }
}

/// The entries of the table, of each configuration that these links publish by.
async fn read(
    config: &Config,
    tables: &Tables,
    identity: &identity::Identity,
    all: &[Current],
    key: &str,
) -> Result<Vec<Stored>> {
    let is_default = |name: &str| name == "default";
    let is_wanted = |id: i32, name: &str| {
        all.iter().any(|current| current.config_id.map_or(is_default(name), |config_id| config_id == id))
    };
    let mut stored = Vec::new();
    for row in tables.configs.values() {
        let is_reached = row.enabled != Some(false) && row.jetstream_enabled != Some(false);
        if !is_reached || !is_wanted(row.config_id, &row.config_name) {
            continue;
        }
        let attempted = || format!("read schemas by NATS configuration {:?}", row.config_name);
        let control = replay::control(config, row).await.map_err(|error| error.context(attempted()))?;
        let owner = identity.owner(&config.source);
        let Bucket { name, exists, .. } =
            schemas::find(&control, &owner).await.map_err(|error| error.context(attempted()))?;
        if !exists {
            continue;
        }
        let entries = schemas::versions(&control, &name, key).await.map_err(|error| error.context(attempted()))?;
        let of = |entry| Stored { config: row.config_name.clone(), bucket: name.clone(), entry };
        stored.extend(entries.into_iter().map(of));
    }
    Ok(stored)
}

fn list(stored: &[Stored], all: &[Current], as_json: bool) -> Result<()> {
    let now = |key: &str| -> Vec<&str> {
        let of_it = all.iter().filter(|current| current.schema.key == key && !current.webhook.is_empty());
        of_it.map(|current| current.webhook.as_str()).collect()
    };
    let columns = |text: &str| {
        let schema: Value = serde_json::from_str(text).unwrap_or_default();
        schema["properties"].as_object().map_or(0, Map::len)
    };
    let version = |key: &str| key.rsplit_once('.').map_or(key, |(_, version)| version).to_owned();
    let mut values = Vec::new();
    for Stored { config, bucket, entry } in stored {
        values.push(json!({
            "version": version(&entry.key), "key": entry.key, "config": config, "bucket": bucket, "created": entry.created,
            "columns": columns(&entry.text), "webhooks": now(&entry.key),
        }));
    }
    let mut missing = BTreeSet::new();
    for current in all {
        let RowSchema { key, text, .. } = &current.schema;
        if stored.iter().all(|stored| stored.entry.key != *key) && missing.insert(key) {
            values.push(json!({
                "version": version(key), "key": key, "config": null, "bucket": null, "created": null,
                "columns": columns(text), "webhooks": now(key),
            }));
        }
    }
    if as_json {
        return super::say_json(&values);
    }
    let mut lines = String::new();
    for value in &values {
        let webhooks: Vec<_> = value["webhooks"].as_array().into_iter().flatten().map(super::plain).collect();
        let created = value["created"].as_str().unwrap_or("not in the bucket yet");
        let columns = value["columns"].as_u64().unwrap_or(0);
        let _ = write!(lines, "{}  {created}  {columns} columns", super::plain(&value["version"]));
        if !webhooks.is_empty() {
            let _ = write!(lines, "  now: {}", webhooks.join(", "));
        }
        lines.push('\n');
    }
    super::say(&lines)
}

/// Which properties were added, removed and changed.
fn differences(older: &str, newer: &str) -> Result<Value> {
    let properties = |text: &str| -> Result<Map<String, Value>> {
        let schema: Value = serde_json::from_str(text)
            .map_err(|error| Error::new(Kind::Protocol, "read the schema in the bucket").caused_by(error))?;
        Ok(schema["properties"].as_object().cloned().unwrap_or_default())
    };
    let (before, after) = (properties(older)?, properties(newer)?);
    let (mut added, mut removed, mut changed) = (Map::new(), Map::new(), Map::new());
    for (name, value) in &after {
        match before.get(name) {
            None => drop(added.insert(name.clone(), value.clone())),
            Some(was) if was != value => drop(changed.insert(name.clone(), json!({ "from": was, "to": value }))),
            Some(_) => {}
        }
    }
    for (name, value) in before.iter().filter(|(name, _)| !after.contains_key(*name)) {
        removed.insert(name.clone(), value.clone());
    }
    Ok(json!({ "added": added, "removed": removed, "changed": changed, "is_same_text": older == newer }))
}

fn tell(differences: &Value, as_json: bool) -> Result<()> {
    if as_json {
        return super::say_json([differences]);
    }
    let mut lines = String::new();
    let of = |which: &str| differences[which].as_object().into_iter().flatten();
    for (which, sign) in [("removed", '-'), ("added", '+')] {
        for (name, value) in of(which) {
            let _ = writeln!(lines, "{sign} {}: {value}", Value::from(name.as_str()));
        }
    }
    for (name, value) in of("changed") {
        let _ = writeln!(lines, "~ {}: {} -> {}", Value::from(name.as_str()), value["from"], value["to"]);
    }
    if lines.is_empty() {
        let is_same = differences["is_same_text"] == true;
        lines.push_str(if is_same { "no difference\n" } else { "the same columns in another order\n" });
    }
    super::say(&lines)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_columns_that_came_went_or_have_another_type() {
        let schema = |properties: &str| format!(r#"{{"properties":{{{properties}}}}}"#);
        let older = schema(r#""id":{"type":"integer"},"a":{},"b":{}"#);
        let newer = schema(r#""id":{"type":"string"},"b":{},"c":{}"#);
        let found = differences(&older, &newer).unwrap();
        let names = |which: &str| found[which].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!([names("added"), names("removed"), names("changed")], [["c"], ["a"], ["id"]]);
        assert_eq!(found["changed"]["id"], json!({ "from": { "type": "integer" }, "to": { "type": "string" } }));
        assert_eq!(differences(&older, &older).unwrap()["is_same_text"], true);
        assert!(differences("{", &older).is_err());
    }
}
