//! A word that stands in every value that must not leave the database, and searches for it.

use std::{fs, path::Path};

use super::Postgres;

/// It is in no other value.
pub const CANARY: &str = "kanari";

/// Panics where a file below a folder has the canary; returns how many files there were.
pub fn search(folder: &Path) -> usize {
    let mut files = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files += search(&path);
        } else if let Ok(content) = fs::read(&path) {
            files += 1;
            if let Some(at) = memchr::memmem::find(&content, CANARY.as_bytes()) {
                let around = &content[at.saturating_sub(200)..content.len().min(at + 80)];
                panic!("{}: {}", path.display(), String::from_utf8_lossy(around));
            }
        }
    }
    files
}

/// Panics where walhook's own tables have the canary, but for those in `except`. Of a backfill they have the keys up to which it has come.
pub fn search_tables(pg: &Postgres, except: &[&str]) {
    let tables = pg.psql(&format!(
        "SELECT oid::regclass FROM pg_class WHERE relnamespace IN ('public'::regnamespace, to_regnamespace('walhook')) AND relkind = 'r' \
         AND relname ~ '^rule_' AND relname <> 'rule_cdc_backfill_ranges' AND relname <> ALL ('{{{}}}')",
        except.join(",")
    ));
    assert!(tables.lines().count() > 20, "{tables}");
    for table in tables.lines() {
        let found = pg.psql(&format!(
            "SELECT left(t::text, 500) FROM {table} t WHERE to_jsonb(t)::text LIKE '%{CANARY}%' \
             OR to_jsonb(t)::text LIKE '%' || encode('{CANARY}', 'hex') || '%' LIMIT 1"
        ));
        assert_eq!(found, "", "{table}");
    }
}

/// Panics where the text has the canary.
pub fn quiet(what: &str, text: &str) {
    assert!(!text.contains(CANARY), "{what}: {text}");
}
