//! The rules laid over one table: computed once per table and change of rules, so that a row costs no look-ups.
//!
//! Comes in: a relation, the rules, the type catalog. Goes out: a [`Plan`] with column indexes where the rules had
//! names. A link that does not fit its table (a column that was dropped) is set aside with the reason.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    chunk_row::RowColumns,
    emitted::KeyColumns,
    filter::{Filter, Seen},
    mask::{self, Fitted, Shape},
    message_columns::MessageColumns,
    row_schema::RowSchema,
    rules::{IdAndLink, Rules, Webhook},
    subject::{self, Template},
    tables::{LinkRow, Table},
    types::{Class, JSONB, TypeCatalog},
    value::write_json_str,
};
use crate::wal::{
    change::{Change, Op, Relation},
    pgoutput::{Column, OldTuple, Tuple},
};

/// What walhook does with the changes of a table.
#[derive(Debug)]
pub enum Plan {
    /// In the publication, but no link names it.
    Unlinked,
    /// One of the tables that configure us.
    Configuration(Table),
    /// `rule_webhook_events`.
    Events(EventColumns),
    /// `rule_cdc_backfill_rows`.
    Backfill(RowColumns),
    /// `rule_cdc_emit_keys`.
    EmitKeys(KeyColumns),
    /// A table that webhooks are linked to.
    Linked(Linked),
}

/// Where the columns of `rule_webhook_events` are.
#[derive(Debug)]
#[allow(missing_docs, reason = "the columns' names; sql/ explains them")]
pub struct EventColumns {
    pub event_id: usize,
    pub webhook_id: usize,
    pub payload: usize,
    pub payload_class: Class,
    pub subject: Option<usize>,
    pub message_id: Option<usize>,
    pub headers: Option<usize>,
    pub body: Option<usize>,
    pub triggered_by: Option<usize>,
    pub rule_execution_id: Option<usize>,
}

/// A linked table.
#[derive(Debug)]
pub struct Linked {
    /// `schema.table`, escaped for the inside of a JSON string.
    pub qualified: Vec<u8>,
    /// Of the format `webhook`, what is between the event's id and its operation: `","type":"schema.table.`
    pub type_member: Vec<u8>,
    /// Of that format, what is between the operation and the commit time: `","table":"schema.table`
    pub table_member: Vec<u8>,
    /// `schema.table` as it is.
    pub unescaped: String,
    /// The schema as a JSON string.
    pub schema: Vec<u8>,
    /// The table's name as a JSON string.
    pub table: Vec<u8>,
    /// How to write each column.
    pub columns: Vec<ColumnPlan>,
    /// Who wants its changes, in the order of the webhooks' ids.
    pub targets: Vec<Target>,
}

/// How to write a column.
#[derive(Debug)]
pub struct ColumnPlan {
    /// `"name":`
    pub key: Vec<u8>,
    /// Which JSON it becomes.
    pub class: Class,
    /// Whether it is part of the replica identity.
    pub is_key: bool,
}

/// A link, fitted to its table.
#[derive(Debug)]
pub struct Target {
    /// The link's id.
    pub link: i32,
    /// An index into [`Rules::webhooks`].
    pub webhook: usize,
    /// Which columns go into the payload; all, where there is no list.
    pub selected: Option<Vec<bool>>,
    /// How they are written, where some are masked or have another name.
    pub shape: Option<Shape>,
    /// Nothing of a row may leave, for the mask cannot be applied.
    pub is_withheld: bool,
    /// The schema of the rows, if the configuration publishes schemas.
    pub schema: Option<Arc<RowSchema>>,
    /// Whether the row before goes into the payload.
    pub include_old: bool,
    /// The column whose `traceparent` goes into the headers.
    pub trace: Option<usize>,
    /// The columns that are the message, where its body is not made of the row.
    pub message: Option<MessageColumns>,
    /// The subject.
    pub subject: Template,
    /// The lane, where the subject is the same for every row.
    pub lane: Option<usize>,
    /// Why events of this link cannot be published.
    pub problem: Option<String>,
    operations: [bool; 4],
    filter: Option<Filter>,
    when_changed: Vec<usize>,
}

impl Plan {
    /// Lays the rules over `relation`. `partitions`: by schema and name those whose rows come as rows of it; what the mask of a link of
    /// theirs keeps back does not leave as a column of `relation` either. Complaints that are nobody's failure (a listed column that is
    /// gone) are appended to `warnings`. A type that the catalog does not know is taken for text.
    pub fn new(
        relation: &Relation,
        partitions: &[(&str, &str)],
        rules: &Rules,
        types: &TypeCatalog,
        warnings: &mut Vec<String>,
    ) -> Plan {
        if let Some(table) = Table::named(&relation.schema, &relation.name) {
            return Plan::Configuration(table);
        }
        if relation.schema == "public"
            && relation.name == "rule_webhook_events"
            && let Some(columns) = EventColumns::find(relation)
        {
            return Plan::Events(columns);
        }
        if let Some(columns) = RowColumns::find(relation) {
            return Plan::Backfill(columns);
        }
        if let Some(columns) = KeyColumns::find(relation) {
            return Plan::EmitKeys(columns);
        }
        let links = rules.links(&relation.schema, &relation.name);
        if links.is_empty() {
            return Plan::Unlinked;
        }
        let columns = columns_of(relation, types, warnings);
        let masked_below = masked_below(relation, partitions, rules, warnings);
        let target = |(id, link): &IdAndLink| Target::new(*id, link, relation, &masked_below, rules, types, warnings);
        let targets = links.iter().filter_map(target).collect();
        Plan::Linked(Linked::new(relation, columns, targets))
    }
}

/// How the values of each column are written.
fn columns_of(relation: &Relation, types: &TypeCatalog, warnings: &mut Vec<String>) -> Vec<ColumnPlan> {
    let columns = relation.columns.iter().map(|column| {
        let mut key = Vec::new();
        write_json_str(&column.name, &mut key);
        key.push(b':');
        let class = types.class(column.type_oid).unwrap_or_else(|| {
            let class = types.declared(column.type_oid);
            let like = if matches!(class, Class::Array { .. }) { "arrays of texts" } else { "texts" };
            warnings.push(format!(
                "table {}.{}: the type of column {:?} has been dropped since; its values are written as {like}",
                relation.schema, relation.name, column.name
            ));
            class
        });
        ColumnPlan { key, class, is_key: column.is_key }
    });
    columns.collect()
}

/// The columns that masks of links of partitions keep back, each with the partition and the link. That these links get no events is
/// appended to `warnings`.
fn masked_below(
    relation: &Relation,
    partitions: &[(&str, &str)],
    rules: &Rules,
    warnings: &mut Vec<String>,
) -> BTreeMap<usize, String> {
    let mut masked_below = BTreeMap::new();
    for (schema, name) in partitions {
        for (id, link) in rules.links(schema, name) {
            warnings.push(format!(
                "link {id}: {schema}.{name} is a partition of {}.{}, which is linked too: its changes come as those of that table, \
                 and this link gets no events. ALTER TABLE … DETACH PARTITION, or unlink it",
                relation.schema, relation.name
            ));
            for column in mask::columns_of(link, relation) {
                masked_below.entry(column).or_insert_with(|| format!("{schema}.{name} (link {id})"));
            }
        }
    }
    masked_below
}

impl Linked {
    /// Renders the table's name in all its forms.
    fn new(relation: &Relation, columns: Vec<ColumnPlan>, targets: Vec<Target>) -> Linked {
        let mut qualified = Vec::new();
        let unescaped = format!("{}.{}", relation.schema, relation.name);
        write_json_str(&unescaped, &mut qualified);
        qualified.pop();
        qualified.remove(0);
        let json = |text: &str| {
            let mut out = Vec::new();
            write_json_str(text, &mut out);
            out
        };
        let (schema, table) = (json(&relation.schema), json(&relation.name));
        let type_member = [b"\",\"type\":\"", &qualified[..], b"."].concat();
        let table_member = [b"\",\"table\":\"", &qualified[..]].concat();
        Linked { qualified, type_member, table_member, unescaped, schema, table, columns, targets }
    }
}

impl EventColumns {
    fn find(relation: &Relation) -> Option<EventColumns> {
        let index = |name: &str| relation.columns.iter().position(|column| column.name == name);
        let payload = index("payload")?;
        Some(EventColumns {
            event_id: index("event_id")?,
            webhook_id: index("webhook_id")?,
            payload,
            payload_class: if relation.columns[payload].type_oid == JSONB { Class::JSONB } else { Class::JSON },
            subject: index("subject"),
            message_id: index("message_id"),
            headers: index("headers"),
            body: index("body"),
            triggered_by: index("triggered_by"),
            rule_execution_id: index("rule_execution_id"),
        })
    }
}

/// The operations that a link has, by [`Op`], and what is wrong with them.
fn operations(link: &LinkRow) -> ([bool; 4], impl Iterator<Item = String> + use<>) {
    let (mut operations, mut problems) = ([false; 4], Vec::new());
    for operation in &link.operations {
        match operation.as_str() {
            "insert" => operations[Op::Insert as usize] = true,
            "update" => operations[Op::Update as usize] = true,
            "delete" => operations[Op::Delete as usize] = true,
            "truncate" => operations[Op::Truncate as usize] = true,
            other => problems.push(format!("{other:?} is none of insert, update, delete, truncate")),
        }
    }
    (operations, problems.into_iter())
}

/// The subject of a link's events, or why it can have none.
fn subject(link: &LinkRow, relation: &Relation, webhook: &Webhook, fitted: &Fitted) -> Result<Template, String> {
    let Some(template) = link.subject_template.as_deref() else { return Ok(Template::literal(&webhook.subject)) };
    let subject = Template::parse(&format!("{}{template}", webhook.subject_prefix), relation)?;
    let hidden = subject.columns().find(|&index| fitted.hides(index));
    match hidden {
        None => Ok(subject),
        Some(hidden) => {
            let column = &relation.columns[hidden].name;
            Err(format!("its subject has the column {column:?}, which its mask keeps back"))
        }
    }
}

/// The columns of which one must change for an update to make an event, and what is wrong with their names.
fn when_changed(link: &LinkRow, relation: &Relation) -> (Vec<usize>, impl Iterator<Item = String> + use<>) {
    let (mut columns, mut problems) = (Vec::new(), Vec::new());
    for name in link.when_changed.iter().flatten() {
        match relation.columns.iter().position(|column| column.name == *name) {
            Some(index) => columns.push(index),
            None => problems
                .push(format!("when_changed: {name:?} is not a column of {}.{}", relation.schema, relation.name)),
        }
    }
    (columns, problems.into_iter())
}

impl Target {
    /// `None` for a link that is switched off, or of another shard, or whose webhook does not publish.
    fn new(
        id: i32,
        link: &LinkRow,
        relation: &Relation,
        masked_below: &BTreeMap<usize, String>,
        rules: &Rules,
        types: &TypeCatalog,
        warnings: &mut Vec<String>,
    ) -> Option<Target> {
        let webhook = rules.webhook(link.webhook_id)?;
        if !link.enabled || !rules.webhooks[webhook].publishes || !rules.is_ours(Some(webhook), Some(link)) {
            return None;
        }
        let table = format!("{}.{}", relation.schema, relation.name);
        let mut problems: Vec<String> = rules.webhooks[webhook].problem.iter().cloned().collect();
        let named = format!("link {id} of webhook {:?} to {table}", rules.webhooks[webhook].name);
        let (operations, unknown) = operations(link);
        problems.extend(unknown.map(|problem| format!("{named}: {problem}")));
        let index = |name: &String| relation.columns.iter().position(|column| column.name == *name);
        let selected = link.columns.as_ref().map(|names| {
            for name in names.iter().filter(|name| index(name).is_none()) {
                warnings.push(format!("{named}: column {name:?} is not in {table}; its events go on without it"));
            }
            relation.columns.iter().map(|column| names.contains(&column.name)).collect()
        });
        let mut fitted = Fitted::new((id, link), relation, &rules.mask_key, selected, warnings);
        fitted.keep_back((id, link.payload_column.is_some()), masked_below, relation, warnings);
        problems.extend(fitted.problems.drain(..).map(|problem| format!("{named}: {problem}")));
        let trace = link.trace_column.as_ref().and_then(|name| {
            let found = index(name).filter(|&index| !fitted.hides(index));
            if found.is_none() {
                warnings.push(format!(
                    "link {id}: trace column {name:?} is not in {table}, or is masked; its events go on without a trace"
                ));
            }
            found
        });
        let (when_changed, unknown) = when_changed(link, relation);
        problems.extend(unknown.map(|problem| format!("{named}: {problem}")));
        let filter = match link.filter.as_deref().map(|filter| Filter::parse(filter, relation)).transpose() {
            Ok(filter) => filter,
            Err(problem) => {
                problems.push(format!("{named}: {problem}"));
                None
            }
        };
        let subject = subject(link, relation, &rules.webhooks[webhook], &fitted).unwrap_or_else(|problem| {
            problems.push(format!("{named}: {problem}"));
            Template::literal("")
        });
        let mut of_message = Vec::new();
        let message = MessageColumns::new(link, relation, types, &rules.webhooks[webhook], &mut of_message)
            .filter(|_| !fitted.is_withheld);
        problems.extend(of_message.into_iter().map(|problem| format!("{named}: {problem}")));
        let tells_schema = rules.webhooks[webhook].publishes_schemas && message.is_none() && problems.is_empty();
        let schema = tells_schema
            .then(|| Arc::new(RowSchema::new(relation, types, fitted.selected.as_deref(), fitted.shape.as_ref())));
        let lane = subject.as_literal().and_then(|subject| rules.lane(webhook, subject));
        Some(Target {
            link: id,
            webhook,
            selected: fitted.selected,
            shape: fitted.shape,
            is_withheld: fitted.is_withheld,
            schema,
            include_old: link.include_old,
            trace,
            message,
            subject,
            lane,
            problem: (!problems.is_empty()).then(|| problems.join("; ")),
            operations,
            filter,
            when_changed,
        })
    }

    /// Whether this link wants the change: its operation, its filter, its changed columns. A backfill was asked for, whichever
    /// operations it has.
    pub fn wants(&self, change: &Change<'_>, columns: &[ColumnPlan], scratch: &mut Vec<u8>) -> bool {
        self.takes(change.op)
            && self.passes(change, columns, scratch)
            && (self.when_changed.is_empty()
                || change.op != Op::Update
                || self.when_changed.iter().any(|&index| has_changed(change, columns, index)))
    }

    /// Whether this link has the operation.
    pub fn takes(&self, op: Op) -> bool {
        op == Op::Snapshot || self.operations[op as usize]
    }

    /// Whether the change passes this link's filter.
    pub fn passes(&self, change: &Change<'_>, columns: &[ColumnPlan], scratch: &mut Vec<u8>) -> bool {
        self.filter.as_ref().is_none_or(|filter| {
            change.op == Op::Truncate
                || filter.passes(|index| seen(change, columns, index), |index| columns[index].class, scratch)
        })
    }

    /// Where the event of a change goes: appends its subject, and returns the lane that takes it, and why it cannot be published.
    pub fn address(
        &self,
        rules: &Rules,
        change: &Change<'_>,
        subject: &mut Vec<u8>,
    ) -> (Option<usize>, Option<String>) {
        let row = change.new.or(change.old.map(|old| old.tuple()));
        let missing = self.subject.write(change.op, row, subject);
        let problem = match (&self.problem, missing) {
            (Some(problem), _) => Some(problem.clone()),
            (None, Err(column)) => {
                Some(format!("its subject needs column {column:?}, which is null, empty or not in the WAL"))
            }
            (None, Ok(())) if self.lane.is_some() => None,
            (None, Ok(())) => subject::invalid(subject).map(|why| format!("its subject is invalid: {why}")),
        };
        let problem = problem.or_else(|| self.message.as_ref()?.problem(row?));
        (self.lane.or_else(|| rules.lane(self.webhook, subject)), problem)
    }
}

/// Why an event has no lane.
pub fn no_stream(subject: &[u8]) -> String {
    let subject = String::from_utf8_lossy(subject);
    format!("no stream of its NATS configuration takes the subject {subject:?}")
}

/// What a change shows of a column: the row after; for a delete the row before.
fn seen<'a>(change: &Change<'a>, columns: &[ColumnPlan], index: usize) -> Seen<'a> {
    let value = match (change.new, change.old) {
        (Some(new), old) => match column(new, index) {
            Column::Unchanged => old_column(old, columns, index),
            value => Some(value),
        },
        (None, old) => old_column(old, columns, index),
    };
    match value {
        Some(Column::Null) => Seen::Null,
        Some(Column::Text(text)) => Seen::Text(text),
        _ => Seen::Unknown,
    }
}

/// Whether an update changed a column. Where the WAL does not tell (no old row), it may have: the change passes.
fn has_changed(change: &Change<'_>, columns: &[ColumnPlan], index: usize) -> bool {
    let Some(new) = change.new else { return true };
    match (column(new, index), old_column(change.old, columns, index)) {
        (Column::Unchanged, _) => false,
        (_, None | Some(Column::Unchanged)) => {
            // With the default identity the old key comes only when it changed; without it a key column is the same.
            !(columns[index].is_key && change.old.is_none())
        }
        (new, Some(old)) => new != old,
    }
}

fn column(tuple: Tuple<'_>, index: usize) -> Column<'_> {
    tuple.iter().nth(index).expect("the assembler checked the number of columns")
}

/// A column of the row before, as far as its replica identity shows it.
fn old_column<'a>(old: Option<OldTuple<'a>>, columns: &[ColumnPlan], index: usize) -> Option<Column<'a>> {
    match old? {
        OldTuple::Full(tuple) => Some(column(tuple, index)),
        OldTuple::Key(tuple) => columns[index].is_key.then(|| column(tuple, index)),
    }
}
