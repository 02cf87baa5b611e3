//! The table `rule_cdc_backfill_rows`: which columns matter, and what one of its rows is. Comes in: the table as the server
//! describes it, and a row. Goes out: a chunk's head, or a row of the table that is backfilled, as bytes for [`super::chunk`].

use crate::wal::{
    change::Relation,
    pgoutput::{Column, Tuple},
};

/// Where the columns of `rule_cdc_backfill_rows` are.
#[derive(Debug, Clone, Copy)]
pub struct RowColumns {
    chunk: usize,
    row_data: usize,
}

/// What a row of it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part<'a> {
    /// The head of a chunk, as JSON.
    Head(&'a [u8]),
    /// A row, as PostgreSQL writes bytes.
    Row(&'a [u8]),
}

impl RowColumns {
    /// `None` where it is another table.
    pub fn find(relation: &Relation) -> Option<RowColumns> {
        let index = |name: &str| relation.columns.iter().position(|column| column.name == name);
        let is_it = relation.schema == "public" && relation.name == "rule_cdc_backfill_rows";
        is_it.then(|| Some(RowColumns { chunk: index("chunk")?, row_data: index("row_data")? }))?
    }

    /// What a row is; `None` for one that is neither.
    pub fn of(self, row: Tuple<'_>) -> Option<Part<'_>> {
        let text = |index| match row.iter().nth(index) {
            Some(Column::Text(text)) => Some(text),
            _ => None,
        };
        text(self.chunk).map(Part::Head).or_else(|| text(self.row_data).map(Part::Row))
    }
}
