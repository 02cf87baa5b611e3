//! `walhook explain`: what each operation on a table would publish now, where, and with which payload.
//!
//! In: a table, a row of it, and the configuration as it is. Out: for each link and operation the subject, the stream, the headers
//! and the payload, made by the same code of [`crate::route`] that `walhook run` uses; or why nothing would be published. Changes
//! nothing and publishes nothing.

use std::{collections::BTreeMap, fmt::Write as _};

use clap::Args;
use serde_json::{Value, json};
use tokio_postgres::{Client, SimpleQueryMessage};

use super::{
    identity, masks, names,
    paint::{Paint, paint},
    rows,
    run::{rules, state_store},
    schema, seal_keys,
};
use crate::{
    config::Config,
    error::{Error, Kind, Result},
    flow::{event_id::EventPosition, lane::Head},
    postgres::{self, sql},
    route::{
        headers,
        payload::{self, Body, TransactionText},
        plan::{Linked, Plan, Target, no_stream},
        rules::{LaneKey, Rules},
        shown_url::shown_url,
        tables::{LinkRow, Tables},
        value::write_bytes,
    },
    text,
    wal::{
        change::{Change, Op, Position, Relation, RelationColumn},
        lsn::Lsn,
        pgoutput::{OldTuple, ReplicaIdentity, Tuple},
    },
};

/// Which table.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The table, as SQL names it: orders, shop.orders, "Orders"
    #[arg(value_name = "TABLE")]
    table: String,
    /// Only for this webhook; may be repeated
    #[arg(long, value_name = "NAME")]
    webhook: Vec<String>,
    /// Without a row: neither the right to read the table is needed, nor is a payload shown
    #[arg(long)]
    no_row: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Rows that are looked at for one that a link's filter lets pass.
const ROWS_MAX: u32 = 20;
/// How much of a payload a person sees.
const PAYLOAD_SHOWN: usize = 2000;

const FIND: &str = "SELECT c.oid, n.nspname::text, c.relname::text, c.relreplident::text, \
        (SELECT pg_catalog.format('%I.%I', rn.nspname, r.relname) \
         FROM pg_catalog.pg_partition_ancestors(c.oid) a \
         JOIN pg_catalog.pg_class r ON r.oid = a.relid JOIN pg_catalog.pg_namespace rn ON rn.oid = r.relnamespace \
         JOIN public.rule_webhook_links l ON l.table_schema = rn.nspname AND l.table_name = r.relname \
         WHERE a.relid <> c.oid LIMIT 1), \
        c.relkind::text, pg_catalog.pg_current_wal_insert_lsn()::text, pg_catalog.current_database()::text, \
        (extract(epoch FROM pg_catalog.now()) * 1000000)::bigint - 946684800000000 \
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
    WHERE c.oid = coalesce(pg_catalog.to_regclass($1), pg_catalog.to_regclass('public.' || $1))";
const TABLES: &str = "SELECT pg_catalog.format('%s.%s', n.nspname, c.relname) \
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
    WHERE c.relkind IN ('r', 'p') AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_toast' \
    LIMIT 20000";
/// Columns as pgoutput sends them, whether each is part of the replica identity, and which it is of those that the table has.
const COLUMNS: &str = "SELECT {name}, a.atttypid, \
        c.relreplident = 'f' OR EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid \
            AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident ELSE false END \
            AND a.attnum = ANY (i.indkey::int2[])), \
        (SELECT count(*) FROM pg_catalog.pg_attribute b \
         WHERE b.attrelid = a.attrelid AND b.attnum BETWEEN 1 AND a.attnum AND NOT b.attisdropped), \
        pg_catalog.getdatabaseencoding() = 'UTF8' \
    FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid \
    WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' ORDER BY a.attnum";
/// Which operations the publications send.
const PUBLISHED: &str = "SELECT coalesce(bool_or(p.pubinsert), false), coalesce(bool_or(p.pubupdate), false), \
        coalesce(bool_or(p.pubdelete), false), coalesce(bool_or(p.pubtruncate), false) \
    FROM pg_catalog.pg_publication p JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid \
    WHERE r.prrelid = $1 AND p.pubname IN ($2 || '_inserts', $2 || '_changes')";

/// Its partitions that have links of their own.
const PARTITIONS: &str = "SELECT DISTINCT l.table_schema, l.table_name \
    FROM public.rule_webhook_links l \
    JOIN pg_catalog.pg_namespace n ON n.nspname = l.table_schema \
    JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = l.table_name AND c.relispartition \
    WHERE c.oid <> $1 AND EXISTS (SELECT FROM pg_catalog.pg_partition_ancestors(c.oid) a WHERE a.relid = $1)";

/// The operations, in the order in which they are shown.
const OPERATIONS: [Op; 4] = [Op::Insert, Op::Update, Op::Delete, Op::Truncate];

/// What the catalog knows of a table.
pub(super) struct Table {
    pub relation: Relation,
    /// Which of [`OPERATIONS`] the publications send.
    published: [bool; 4],
    lsn: Lsn,
    now: i64,
    database: String,
    /// A table above it that is linked: its changes arrive as those of that one.
    pub linked_root: Option<String>,
    /// Partitions with links of their own, by schema and name.
    pub partitions: Vec<(String, String)>,
    /// Where the columns are among those of the table, in a database that is not in UTF-8: a name or value may have no UTF-8.
    positions: Option<Vec<i64>>,
}

/// A row as pgoutput sends it.
struct Row {
    whole: Vec<u8>,
    /// Only the replica identity's columns; all else is NULL, as pgoutput has it.
    key: Vec<u8>,
}

/// Tells it.
///
/// # Errors
/// There is no such table or webhook; the table may not be read; PostgreSQL cannot be asked.
pub async fn explain(config: &Config, arguments: &Arguments) -> Result<()> {
    let client = super::connect(config).await?;
    schema::check(&client, &config.postgres.target()).await?;
    identity::read(&client).await?;
    let mut tables = rules::newest(&client).await?.tables;
    rows::apply_settings(&mut tables, config);
    tables.mask_key = masks::key(config);
    let keys = seal_keys::keys(config);
    let sealed = tables.webhooks.iter_mut().filter_map(|(&id, row)| {
        // An example is shown as it is before it is sealed.
        let name = row.seal_key.take()?;
        let problem = keys.newest(&name).err();
        Some((id, (name, problem)))
    });
    let sealed: BTreeMap<i32, (String, Option<String>)> = sealed.collect();
    for name in &arguments.webhook {
        if !tables.webhooks.values().any(|row| row.name == *name) {
            let near = names::nearest(name, tables.webhooks.values().map(|row| row.name.as_str()));
            return Err(Error::config(format!("--webhook {name:?}: there is no webhook of that name"))
                .hint(format!("{near}SELECT webhook_name FROM rule_webhooks; names all")));
        }
    }
    let table = Table::find(&client, config, &arguments.table).await?;
    let types = state_store::read_types(&client).await?;
    let mut lanes = Vec::new();
    let rules = Rules::compile(&tables, &mut lanes);
    let mut notes = Vec::new();
    let partitions: Vec<_> = table.partitions.iter().map(|(schema, name)| (schema.as_str(), name.as_str())).collect();
    let plan = Plan::new(&table.relation, &partitions, &rules, &types, &mut notes);
    let (schema_name, name) = (&table.relation.schema, &table.relation.name);
    let qualified = format!("{schema_name}.{name}");
    if let Some(root) = &table.linked_root {
        notes.push(format!(
            "it is a partition: its changes arrive as those of {root}, and by the links of that: walhook explain {root}"
        ));
    }
    let mut links = Vec::new();
    match &plan {
        Plan::Linked(linked) => {
            let rows = if arguments.no_row {
                Vec::new()
            } else {
                // Rows can be large: more than one is read only where a filter may refuse the first.
                let has_filter = rules.links(schema_name, name).iter().any(|(_, link)| link.filter.is_some());
                table.rows(&client, if has_filter { ROWS_MAX } else { 1 }).await?
            };
            if rows.is_empty() && !arguments.no_row {
                notes.push("the table has no row, so the example has no values".to_owned());
            }
            let made = Making {
                config,
                tables: &tables,
                rules: &rules,
                lanes: &lanes,
                table: &table,
                rows: &rows,
                sealed: &sealed,
            };
            for (id, link) in rules.links(schema_name, name) {
                let webhook = tables.webhooks.get(&link.webhook_id);
                let webhook_name = webhook.map_or("?", |row| row.name.as_str());
                if !arguments.webhook.is_empty() && !arguments.webhook.iter().any(|wanted| wanted == webhook_name) {
                    continue;
                }
                links.push(made.link(*id, link, linked));
            }
        }
        Plan::Unlinked => {}
        Plan::Configuration(_) | Plan::Events(_) | Plan::Backfill(_) | Plan::EmitKeys(_) => {
            notes.push("it is one of walhook's own tables, which no webhook can be linked to".to_owned());
        }
    }
    let answer = json!({ "table": qualified, "links": links, "notes": notes });
    if arguments.json {
        return super::say_json([&answer]);
    }
    super::say_bytes(pretty(&answer, &qualified).as_bytes())
}

impl Table {
    pub async fn find(client: &Client, config: &Config, name: &str) -> Result<Table> {
        let attempted = || format!("look for the table {name:?}");
        let found = match client.query_opt(FIND, &[&name]).await {
            Ok(found) => found,
            Err(error) => {
                let error = sql::error(attempted(), error);
                return Err(match postgres::sqlstate(&error) {
                    // A name that is none, as in a.b.c.d or "half.
                    Some("42601" | "42602" | "0A000" | "22023") => {
                        error.of_kind(Kind::Config).hint("write it as SQL does: orders, shop.orders, \"Orders\"")
                    }
                    _ => error,
                });
            }
        };
        let failed = |error| sql::error(attempted(), error);
        let Some(found) = found else {
            let all = client.query(TABLES, &[]).await.map_err(failed)?;
            let near = names::nearest(name, all.iter().map(|row| row.get::<_, &str>(0)));
            return Err(Error::config(format!("table {name:?}: there is no such table"))
                .hint(format!("{near}a name with capitals has quotes of its own: '\"Orders\"'")));
        };
        let oid: u32 = found.get(0);
        let kind: &str = found.get(5);
        if !matches!(kind, "r" | "p") {
            return Err(Error::config(format!(
                "explain {name:?}: it is not a table, so its changes are not in the WAL"
            ))
            .hint("link the tables that it reads from"));
        }
        let statement = COLUMNS.replace("{name}", &super::bytes_of("a.attname::text"));
        let columns = client.query(&statement, &[&oid]).await.map_err(failed)?;
        let published = client.query_one(PUBLISHED, &[&oid, &config.publication]).await.map_err(failed)?;
        let partitions = client.query(PARTITIONS, &[&oid]).await.map_err(failed)?;
        let partitions = partitions.iter().map(|row| (row.get(0), row.get(1))).collect();
        let column = |row: &tokio_postgres::Row| RelationColumn {
            name: super::text_of(row, 0).unwrap_or_default(),
            type_oid: row.get(1),
            is_key: row.get(2),
        };
        let in_utf8 = columns.iter().all(|row| row.get(4));
        let positions = (!in_utf8).then(|| columns.iter().map(|row| row.get(3)).collect());
        let identity = match found.get(3) {
            "f" => ReplicaIdentity::Full,
            "i" => ReplicaIdentity::Index,
            "n" => ReplicaIdentity::Nothing,
            _ => ReplicaIdentity::Default,
        };
        let relation = Relation {
            id: oid,
            schema: found.get(1),
            name: found.get(2),
            identity,
            columns: columns.iter().map(column).collect(),
        };
        let lsn = found.get::<_, &str>(6).parse().map_err(|error| Error::protocol(attempted()).caused_by(error))?;
        let published = [0, 1, 2, 3].map(|at| published.get(at));
        let (linked_root, database, now) = (found.get(4), found.get(7), found.get(8));
        Ok(Table { relation, published, lsn, now, database, linked_root, partitions, positions })
    }

    /// Some rows of it.
    async fn rows(&self, client: &Client, most: u32) -> Result<Vec<Row>> {
        let Relation { schema, name, columns, .. } = &self.relation;
        let (list, alias): (Vec<String>, String) = match &self.positions {
            None => (columns.iter().map(|column| text::sql_name(&column.name)).collect(), String::new()),
            Some(positions) => {
                let value = |position: &i64| {
                    format!(
                        "CASE WHEN t.c{position} IS NOT DISTINCT FROM NULL THEN NULL \
                             ELSE walhook.rule_cdc_utf8(pg_catalog.format('%s', t.c{position})) END"
                    )
                };
                let names: Vec<_> =
                    (1..=positions.iter().copied().max().unwrap_or(0)).map(|n| format!("c{n}")).collect();
                (positions.iter().map(value).collect(), format!(" AS t ({})", names.join(", ")))
            }
        };
        let (list, schema_name, table_name) = (list.join(", "), text::sql_name(schema), text::sql_name(name));
        let statement = format!("SELECT {list} FROM {schema_name}.{table_name}{alias} LIMIT {most}");
        // By the simple protocol every value comes as text, as it does in the WAL.
        let answer = client.simple_query(&statement).await.map_err(|error| {
            let error = sql::error(format!("read a row of {schema}.{name}"), error);
            match postgres::sqlstate(&error) {
                Some("42501") => error.hint(format!(
                    "GRANT SELECT ON {}.{} TO the role that asks; where row-level security hides rows, ask as the table's owner or \
                     as a role with BYPASSRLS; or --no-row, which shows no payload",
                    text::sql_name(schema),
                    text::sql_name(name)
                )),
                _ => error,
            }
        })?;
        let mut rows = Vec::new();
        for message in &answer {
            let SimpleQueryMessage::Row(row) = message else { continue };
            let count = u16::try_from(columns.len()).unwrap_or(u16::MAX).to_be_bytes();
            let (mut whole, mut key) = (count.to_vec(), count.to_vec());
            for (index, column) in columns.iter().enumerate() {
                let decoded = |text: &str| {
                    let mut bytes = Vec::new();
                    match self.positions {
                        None => bytes.extend_from_slice(text.as_bytes()),
                        Some(_) => write_bytes(text.as_bytes(), &mut bytes),
                    }
                    bytes
                };
                let value = row.get(index).map(decoded);
                push(value.as_deref(), &mut whole);
                push(value.as_deref().filter(|_| column.is_key), &mut key);
            }
            rows.push(Row { whole, key });
        }
        Ok(rows)
    }
}

/// Appends a value as pgoutput writes it.
fn push(value: Option<&[u8]>, out: &mut Vec<u8>) {
    match value {
        None => out.push(b'n'),
        Some(text) => {
            out.push(b't');
            out.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
            out.extend_from_slice(text);
        }
    }
}

/// All that an event is made of.
struct Making<'m> {
    config: &'m Config,
    tables: &'m Tables,
    rules: &'m Rules,
    lanes: &'m [LaneKey],
    table: &'m Table,
    rows: &'m [Row],
    /// Of webhooks that seal: the name of the key, and why there is none.
    sealed: &'m BTreeMap<i32, (String, Option<String>)>,
}

impl Making<'_> {
    fn link(&self, id: i32, link: &LinkRow, linked: &Linked) -> Value {
        let webhook = self.tables.webhooks.get(&link.webhook_id);
        let mut report = json!({
            "link_id": id,
            "webhook_id": link.webhook_id,
            "webhook": webhook.map(|row| &row.name),
            "method": webhook.map(|row| &row.method),
            "url": webhook.map(|row| shown_url(&row.url)),
            "payload_format": webhook.map(|row| row.payload_format.as_deref().unwrap_or("webhook")),
            "on_error": webhook.map(|row| row.on_error.as_deref().unwrap_or("dead_letter")),
            "filter": link.filter,
            "when_changed": link.when_changed,
            "trace_column": link.trace_column,
            "payload_column": link.payload_column,
            "message_id_column": link.message_id_column,
            "headers_columns": link.headers_columns,
            "rename": link.rename,
            "mask": link.mask,
        });
        if let Some((key, problem)) = self.sealed.get(&link.webhook_id) {
            report["seal_key"] = key.as_str().into();
            if let Some(problem) = problem {
                report["problem"] = format!("its events wait: {problem}").into();
            }
        }
        let Some(target) = linked.targets.iter().find(|target| target.link == id) else {
            let mode = webhook.and_then(|row| row.publish_mode.as_deref()).unwrap_or("queue");
            report["problem"] = match webhook {
                None => "its webhook does not exist".to_owned(),
                Some(_) if !link.enabled => "the link is not enabled".to_owned(),
                Some(row) if !row.enabled => "the webhook is not enabled".to_owned(),
                Some(row) if !row.nats_enabled => "the webhook is not enabled for NATS".to_owned(),
                Some(_) => format!("the webhook has publish_mode {mode}"),
            }
            .into();
            return report;
        };
        let events: Vec<Value> = OPERATIONS.iter().map(|&op| self.operation(op, link, linked, target)).collect();
        report["operations"] = events.into();
        report
    }

    /// What an operation on a row would publish: the first row that the filter lets pass, or else the first.
    fn operation(&self, op: Op, link: &LinkRow, linked: &Linked, target: &Target) -> Value {
        let mut report = json!({ "op": op.as_str(), "published": false });
        let nothing = |mut report: Value, why: String| {
            report["why"] = why.into();
            report
        };
        if !target.takes(op) {
            return nothing(report, format!("the link has only {}", link.operations.join(", ")));
        }
        if !self.table.published[op as usize] {
            let publication = &self.config.publication;
            return nothing(
                report,
                format!(
                    "the publications {publication}_inserts and {publication}_changes do not send it; `walhook status` says more"
                ),
            );
        }
        if self.table.relation.identity == ReplicaIdentity::Nothing && matches!(op, Op::Update | Op::Delete) {
            return nothing(
                report,
                "the table has REPLICA IDENTITY NOTHING: PostgreSQL refuses the statement".to_owned(),
            );
        }
        let mut scratch = Vec::new();
        let mut chosen = None;
        for row in self.rows {
            let Some(change) = self.change(op, Some(row)) else { continue };
            if target.passes(&change, &linked.columns, &mut scratch) {
                chosen = Some(change);
                break;
            }
        }
        if op != Op::Truncate && !self.rows.is_empty() && chosen.is_none() {
            return nothing(report, format!("none of the {} rows looked at passes the filter", self.rows.len()));
        }
        let Some(change) = chosen.or_else(|| self.change(op, self.rows.first())) else {
            return nothing(report, "the row cannot be read".to_owned());
        };
        if op == Op::Update
            && let Some(columns) = &link.when_changed
        {
            report["only_when_changed"] = json!(columns);
        }
        if self.rows.is_empty() && op != Op::Truncate {
            report["published"] = true.into();
            report["subject_template"] =
                link.subject_template.as_deref().unwrap_or(&self.rules.webhooks[target.webhook].subject).into();
            let lane = target.lane;
            if let Some(lane) = lane {
                self.add_lane(lane, &mut report);
            }
            return report;
        }
        self.event(&change, linked, target, report)
    }

    fn change<'a>(&self, op: Op, row: Option<&'a Row>) -> Option<Change<'a>> {
        let position = Position { commit_lsn: self.table.lsn, commit_time: self.table.now, ordinal: 0 };
        let empty = Change { position, xid: 0, op, relation: 0, new: None, old: None };
        let Some(row) = row.filter(|_| op != Op::Truncate) else { return Some(empty) };
        let whole = Tuple::parse(&row.whole).ok()?;
        let key = Tuple::parse(&row.key).ok()?;
        let is_full = self.table.relation.identity == ReplicaIdentity::Full;
        let old = if is_full { OldTuple::Full(whole) } else { OldTuple::Key(key) };
        Some(match op {
            Op::Delete => Change { old: Some(old), ..empty },
            // With an identity that is a key the row before comes only where the key changes.
            Op::Update => Change { new: Some(whole), old: is_full.then_some(old), ..empty },
            Op::Insert | Op::Snapshot | Op::Truncate | Op::Columns => Change { new: Some(whole), ..empty },
        })
    }

    /// The event, as `walhook run` makes it.
    fn event(&self, change: &Change<'_>, linked: &Linked, target: &Target, mut report: Value) -> Value {
        let webhook = &self.rules.webhooks[target.webhook];
        let mut subject = Vec::new();
        let (lane, problem) = target.address(self.rules, change, &mut subject);
        let Position { commit_lsn, commit_time, ordinal } = change.position;
        let position = EventPosition { commit_lsn, commit_time, ordinal, webhook_id: webhook.id };
        let id = position.id(&self.config.source);
        let mut transaction = TransactionText::default();
        transaction.render(&self.config.source, commit_lsn, commit_time, change.xid);
        transaction.database.clone_from(&self.table.database);
        transaction.row_lsn = commit_lsn;
        let body = Body::Row { table: linked, target, change };
        let head = Head { subject: &subject, id: id.as_bytes(), message_id: None, op: change.op.as_str(), epoch: 0 };
        let mut block = Vec::new();
        head.write_ids(&mut block);
        head.write_origin(&mut block);
        payload::write_headers(body, webhook, &self.config.source, &transaction, id.as_bytes(), &mut block);
        if let Some(schema) = body.schema() {
            block.extend_from_slice(&schema.line);
        }
        let mut bytes = Vec::new();
        let _ = payload::write(body, webhook, &self.config.source, &transaction, id.as_bytes(), &mut bytes);
        report["subject"] = String::from_utf8_lossy(&subject).into();
        report["headers"] = serde_json::from_str(&headers::to_json(&block)).unwrap_or_default();
        report["payload_bytes"] = bytes.len().into();
        report["payload"] = serde_json::from_slice(&bytes).unwrap_or_else(|_| String::from_utf8_lossy(&bytes).into());
        match (problem, lane) {
            (None, Some(lane)) => {
                report["published"] = true.into();
                self.add_lane(lane, &mut report);
            }
            (problem, _) => {
                let why = problem.unwrap_or_else(|| no_stream(&subject));
                report["why"] =
                    format!("it cannot be published, and would be a dead letter or stop walhook (on_error): {why}")
                        .into();
            }
        }
        report
    }

    fn add_lane(&self, lane: usize, report: &mut Value) {
        let key = &self.lanes[lane];
        report["stream"] = key.stream.clone().into();
        report["nats_config"] = self.tables.configs.get(&key.config_id).map(|row| row.config_name.clone()).into();
    }
}

/// For a person.
fn pretty(answer: &Value, table: &str) -> String {
    let mut out = String::new();
    let line = |text: &Value| super::plain(text);
    let links = answer["links"].as_array().map(Vec::as_slice).unwrap_or_default();
    let _ = writeln!(out, "{}", paint(&text::one_line(table), Paint::Strong));
    if links.is_empty() {
        let _ = writeln!(
            out,
            "  nothing is published: no webhook is linked to it. SELECT rule_webhook_link_table('WEBHOOK', {}); links one",
            text::one_line(&text::sql_literal(table))
        );
    }
    for link in links {
        let _ = writeln!(
            out,
            "\nwebhook {} (link {}): {} {}, format {}",
            paint(&line(&link["webhook"]), Paint::Strong),
            line(&link["link_id"]),
            line(&link["method"]),
            line(&link["url"]),
            line(&link["payload_format"])
        );
        for key in [
            "filter",
            "when_changed",
            "trace_column",
            "payload_column",
            "message_id_column",
            "headers_columns",
            "rename",
            "mask",
            "seal_key",
        ] {
            if !link[key].is_null() {
                let _ = writeln!(out, "  {key}: {}", line(&link[key]));
            }
        }
        if let Some(problem) = link["problem"].as_str() {
            let _ =
                writeln!(out, "  {}", paint(&format!("nothing is published: {}", text::one_line(problem)), Paint::Bad));
        }
        for event in link["operations"].as_array().into_iter().flatten() {
            let op = line(&event["op"]).to_uppercase();
            if event["published"] != true {
                let _ = writeln!(out, "  {} {}", paint(&format!("{op:<8}"), Paint::Faint), line(&event["why"]));
            } else {
                let subject = if event["subject"].is_null() { &event["subject_template"] } else { &event["subject"] };
                let stream = if event["stream"].is_null() { "core NATS".to_owned() } else { line(&event["stream"]) };
                let _ = writeln!(
                    out,
                    "  {} {} into {stream} ({})",
                    paint(&format!("{op:<8}"), Paint::Good),
                    line(subject),
                    line(&event["nats_config"])
                );
            }
            if !event["only_when_changed"].is_null() {
                let _ = writeln!(out, "           only where one of {} changes", line(&event["only_when_changed"]));
            }
            for (name, value) in event["headers"].as_object().into_iter().flatten() {
                let _ = writeln!(out, "           {}: {}", text::one_line(name), line(value));
            }
            if !event["payload"].is_null() {
                let _ = writeln!(out, "           {}", text::one_line_of(&event["payload"].to_string(), PAYLOAD_SHOWN));
            }
        }
    }
    for note in answer["notes"].as_array().into_iter().flatten() {
        let _ = writeln!(out, "{} {}", paint("note:", Paint::Doubtful), line(note));
    }
    out
}
