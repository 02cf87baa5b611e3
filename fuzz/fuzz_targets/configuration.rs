//! Any rows of the configuration tables give rules, each webhook and link set aside or not. A line is a row: a letter for its
//! table, then `column=value` parted by tabs; `column` alone is NULL, `column?` a large value that did not change.

#![no_main]

use libfuzzer_sys::fuzz_target;
use walhook::route::{
    rules::Rules,
    tables::{Cell, Table, Tables},
};

fuzz_target!(|input: &str| {
    let (mut tables, mut lanes) = (Tables::default(), Vec::new());
    for line in input.lines() {
        let Some(kind) = line.chars().next() else { continue };
        let rest = &line[kind.len_utf8()..];
        let table = match kind {
            'w' => Table::Webhooks,
            'l' => Table::Links,
            'c' => Table::Configs,
            's' => Table::Streams,
            '-' => {
                let _ = tables.remove(Table::Webhooks, rest);
                continue;
            }
            _ => continue,
        };
        let cells = rest.split('\t').map(|cell| match (cell.split_once('='), cell.strip_suffix('?')) {
            (Some((column, value)), _) => (column, Cell::Text(value)),
            (None, Some(column)) => (column, Cell::Unchanged),
            (None, None) => (cell, Cell::Null),
        });
        if let Err(error) = tables.put(table, cells) {
            assert!(!error.to_string().is_empty());
        }
    }
    let rules = Rules::compile(&tables, &mut lanes);
    let known = lanes.len();
    for key in &lanes {
        let _ = rules.rows_of(key, &tables);
    }
    for (_, problem) in rules.problems() {
        assert!(!problem.is_empty());
    }
    assert!(rules.stream_problems().all(|problem| !problem.is_empty()));
    // The same rows again are the same rules: no lane is new.
    Rules::compile(&tables, &mut lanes);
    assert_eq!(lanes.len(), known);
});
