//! A row of a link that masks columns or has other names for them.

use super::{cell, is_selected, write_column_value};
use crate::{
    route::{
        mask::Shape,
        plan::{Linked, Target},
    },
    wal::pgoutput::{Column, Tuple},
};

/// As [`super::write_row`].
pub fn write_row(
    shape: &Shape,
    (table, target): (&Linked, &Target),
    row: Tuple<'_>,
    before: Option<Tuple<'_>>,
    only_key: bool,
    out: &mut Vec<u8>,
) {
    let mut separator = b'{';
    for (index, (plan, value)) in table.columns.iter().zip(row.iter()).enumerate() {
        if !is_selected(target, index) || (only_key && !plan.is_key) {
            continue;
        }
        let value = match (value, before) {
            (Column::Unchanged, Some(before)) => cell(before, index),
            (value, _) => value,
        };
        if matches!(value, Column::Unchanged) {
            continue;
        }
        out.push(separator);
        separator = b',';
        out.extend_from_slice(shape.key(index).unwrap_or(&plan.key));
        if !shape.write_masked(index, plan.class, value, out) {
            write_column_value(plan, value, out);
        }
    }
    if separator == b'{' {
        out.push(b'{');
    }
    out.push(b'}');
}
