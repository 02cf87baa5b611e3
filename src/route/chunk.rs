//! Rows of a backfill on their way through the WAL: inserted into `rule_cdc_backfill_rows`, a chunk in a transaction.
//!
//! Comes in: rows of that table, first the head of a chunk, which describes a linked table, then the table's rows in pgoutput's own
//! format. Goes out: the same rows, and how the rules lie over their table, as if it had sent them itself. How they come to be the
//! newest at this place in the WAL is the matter of `rule_cdc_backfill_chunk` in `sql/011_replay.sql`; by it they need
//! nothing here but their place.

use serde::Deserialize;

use super::{
    plan::{Linked, Plan},
    rules::Rules,
    types::TypeCatalog,
    value::write_bytes,
};
use crate::wal::{
    change::{Relation, RelationColumn},
    cursor::DecodeError,
    name::readable,
    pgoutput::{ReplicaIdentity, Tuple},
};

/// A chunk whose rows are arriving.
#[derive(Debug)]
pub struct Chunk {
    relation: Relation,
    /// The linked partitions of it, whose rows may be among these.
    partitions: Vec<(String, String)>,
    links: Vec<i32>,
    plan: Option<Plan>,
    /// The row at hand; kept from row to row.
    bytes: Vec<u8>,
    /// Some row of it could not be read, or its head.
    has_misfits: bool,
}

#[derive(Deserialize)]
struct Head {
    schema: String,
    table: String,
    links: Vec<i32>,
    columns: Vec<HeadColumn>,
    #[serde(default)]
    partitions: Vec<(String, String)>,
}

#[derive(Deserialize)]
struct HeadColumn {
    name: String,
    #[serde(rename = "type")]
    type_oid: u32,
    key: bool,
}

impl Chunk {
    /// Reads a head.
    ///
    /// # Errors
    /// It is not what our SQL writes.
    pub fn parse(head: &[u8]) -> Result<Chunk, serde_json::Error> {
        let Head { schema, table, links, columns, partitions } = serde_json::from_str(&readable(head))?;
        if columns.is_empty() {
            return Err(serde::de::Error::custom("it has no columns"));
        }
        let columns = columns.into_iter().map(|HeadColumn { name, type_oid, key }| RelationColumn {
            name,
            type_oid,
            is_key: key,
        });
        let identity = ReplicaIdentity::Default;
        let relation = Relation { id: 0, schema, name: table, identity, columns: columns.collect() };
        Ok(Chunk { relation, partitions, links, plan: None, bytes: Vec::new(), has_misfits: false })
    }

    /// In place of one whose head cannot be read: its rows are passed over.
    pub fn unreadable() -> Chunk {
        let (schema, name, columns) = (String::new(), String::new(), Vec::new());
        let relation = Relation { id: 0, schema, name, identity: ReplicaIdentity::Default, columns };
        Chunk {
            relation,
            partitions: Vec::new(),
            links: Vec::new(),
            plan: Some(Plan::Unlinked),
            bytes: Vec::new(),
            has_misfits: true,
        }
    }

    /// Whether no row before was one that cannot be read; from now on one was.
    pub fn is_first_misfit(&mut self) -> bool {
        !std::mem::replace(&mut self.has_misfits, true)
    }

    /// Whether the catalog knows all its types.
    pub fn is_known(&self, types: &TypeCatalog) -> bool {
        self.relation.columns.iter().all(|column| types.class(column.type_oid).is_some())
    }

    /// The rules or the catalog have changed.
    pub fn forget_plan(&mut self) {
        if !self.relation.columns.is_empty() {
            self.plan = None;
        }
    }

    /// Takes the next row.
    ///
    /// # Errors
    /// The bytes are no row, or one with another number of columns than the head's.
    pub fn take(&mut self, text: &[u8]) -> Result<(), Misfit> {
        self.bytes.clear();
        write_bytes(text, &mut self.bytes);
        let row = Tuple::parse(&self.bytes).map_err(Misfit::Bytes)?;
        if row.len() != self.relation.columns.len() {
            return Err(Misfit::Columns(row.len(), self.relation.columns.len()));
        }
        Ok(())
    }

    /// The row taken last, its table with the rules laid over it, and the links it is for. `None` where no link names the
    /// table any more.
    pub fn row(
        &mut self,
        rules: &Rules,
        types: &TypeCatalog,
        notices: &mut Vec<String>,
    ) -> Option<(&Linked, &[i32], Tuple<'_>)> {
        let Chunk { relation, partitions, links, plan, bytes, .. } = self;
        let plan = plan.get_or_insert_with(|| {
            let partitions: Vec<_> = partitions.iter().map(|(schema, name)| (schema.as_str(), name.as_str())).collect();
            let plan = Plan::new(relation, &partitions, rules, types, notices);
            if !matches!(plan, Plan::Linked(_)) {
                let table = format!("{}.{}", relation.schema, relation.name);
                notices.push(format!("a backfill of {table} goes nowhere: no link names the table any more"));
            }
            plan
        });
        match plan {
            Plan::Linked(table) => Some((table, links, Tuple::parse(bytes).ok()?)),
            _ => None,
        }
    }
}

/// Why a row cannot be read.
#[derive(Debug)]
pub enum Misfit {
    /// Its bytes are no row.
    Bytes(DecodeError),
    /// It has so many columns, where the head has so many.
    Columns(usize, usize),
}

impl std::fmt::Display for Misfit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Misfit::Bytes(error) => error.fmt(f),
            Misfit::Columns(has, wanted) => write!(f, "it has {has} columns, its chunk {wanted}"),
        }
    }
}

impl std::error::Error for Misfit {}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::wal::pgoutput::Column;

    const HEAD: &[u8] = br#"{"backfill": 1, "schema": "public", "table": "t", "links": [3],
        "columns": [{"name": "id", "type": 23, "key": true}, {"name": "note", "type": 25, "key": false}]}"#;

    #[test]
    fn a_row_is_taken_as_pgoutput_writes_one() {
        let mut chunk = Chunk::parse(HEAD).unwrap();
        // Two columns: the text "7", and NULL.
        chunk.take(br"\x00027400000001376e").unwrap();
        let row = Tuple::parse(&chunk.bytes).unwrap();
        assert!(row.iter().eq([Column::Text(b"7"), Column::Null]));
    }

    #[test]
    fn a_row_that_does_not_fit_its_head_is_refused() {
        let mut chunk = Chunk::parse(HEAD).unwrap();
        for bad in
            [&br"\x00016e"[..], br"\x00026e", br"\x00026e6e00", br"\x", b"", b"no bytes", br"\x0002740000ffff376e"]
        {
            assert!(chunk.take(bad).is_err(), "{}", bad.escape_ascii());
        }
        for bad in [&b"{}"[..], b"[]", b"", br#"{"schema": "s", "table": "t", "links": "x", "columns": []}"#] {
            assert!(Chunk::parse(bad).is_err(), "{}", bad.escape_ascii());
        }
    }
}
