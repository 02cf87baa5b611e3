//! Messages of the SQL functions: what they quote reaches every client, whatever bytes a database in `SQL_ASCII` has.

#![allow(clippy::unwrap_used)]

use crate::support;

use std::fs;

use support::{Postgres, Walhook};

/// The end of the first place in `text` where `is_end` holds outside literals and parentheses.
fn until(text: &str, is_end: impl Fn(&str) -> bool) -> usize {
    let (mut depth, mut is_literal) = (0, false);
    for (at, c) in text.char_indices() {
        match c {
            '\'' => is_literal = !is_literal,
            '(' if !is_literal => depth += 1,
            ')' if !is_literal => depth -= 1,
            _ if !is_literal && depth == 0 && is_end(&text[at..]) => return at,
            _ => {}
        }
    }
    text.len()
}

/// Expressions that can have no byte outside ASCII: numbers, times, words of our own.
const ASCII: &[&str] = &[
    "p_webhook_id",
    "p_link_id",
    "NEW.webhook_id",
    "NEW.config_id",
    "v_column",
    "v_hint",
    "p_dead_letter_id",
    "p_backfill_id",
    "p_event_id",
    "p_rate",
    "p_event",
    "v_to",
    "v_from",
    "v_end",
    "v_status",
    "v_letter.status",
    "v_slot.slot_type",
    "v_slot.active_pid",
    "clock_timestamp()",
    "pg_current_wal_insert_lsn()",
    "p_name",
    "v_count",
    "v_run",
    "p_lock_timeout",
    "lower(o.name)",
];

fn is_safe(argument: &str) -> bool {
    let is_ours =
        |text: &str| text.starts_with("walhook.rule_cdc_sayable(") || text.starts_with("walhook.rule_cdc_quoted(");
    let bare = argument.strip_prefix("coalesce(").unwrap_or(argument);
    is_ours(bare)
        || ASCII.contains(&argument)
        || argument.starts_with("current_setting('")
        || argument.starts_with("CASE ")
        // A number or an id.
        || argument.ends_with("::text, 'NULL')")
        || argument.starts_with('\'')
        || argument.starts_with("format('") && argument.contains("_id)") && !argument.contains("name")
}

#[test]
fn every_value_in_a_message_is_made_fit_for_every_client() {
    let mut unfit = Vec::new();
    let mut count = 0;
    for file in [
        "005_webhooks",
        "007_nats_integration",
        "008_walhook",
        "011_replay",
        "013_rules",
        "016_row_checks",
        "018_outbox",
        "019_last_mile",
        "020_history",
        "021_emit",
        "022_masks_and_schemas",
        "023_delivery",
        "024_rule_versions",
        "025_consumer_schemas",
        "026_sealed_payloads",
        "027_shards",
        "028_schema",
        "029_column_changes",
        "030_receivers_gone",
        "031_older_runs",
        "032_shard_left",
    ] {
        let text = fs::read_to_string(format!("{}/sql/{file}.sql", env!("CARGO_MANIFEST_DIR"))).unwrap();
        for kind in ["RAISE EXCEPTION ", "RAISE WARNING ", "RAISE NOTICE "] {
            for (at, _) in text.match_indices(kind) {
                let rest = &text[at + kind.len()..];
                let mut rest = &rest[..until(rest, |rest| rest.starts_with(';'))];
                let mut is_message = true;
                while !rest.is_empty() {
                    let end = until(rest, |rest| rest.starts_with(',') || rest.starts_with("USING "));
                    let words = rest[..end].split_whitespace().collect::<Vec<_>>().join(" ");
                    let (option, argument) = words
                        .split_once(" = ")
                        .filter(|(name, _)| name.chars().all(|c| c.is_ascii_uppercase()))
                        .unwrap_or(("", &words));
                    let is_shown = matches!(option, "" | "HINT" | "DETAIL");
                    // SQLERRM of a statement without names; the setup's own blocks come before the functions.
                    if !is_message
                        && is_shown
                        && !is_safe(argument)
                        && !argument.is_empty()
                        && argument != "SQLERRM"
                        && argument != "p.advice"
                        && !argument.starts_with("coalesce(f.remedy")
                    {
                        unfit.push(format!("{file}: {kind}{argument}"));
                    }
                    count += 1;
                    is_message = false;
                    rest = rest[end..].trim_start_matches(',').trim_start_matches("USING ");
                }
            }
        }
    }
    assert!(unfit.is_empty() && count > 400, "{count}: {unfit:#?}");
}

#[tokio::test]
async fn a_mistake_is_named_in_a_database_whose_names_are_no_utf_8() {
    let pg = Postgres::builder().initdb(&["--encoding=SQL_ASCII", "--locale=C"]).start().await;
    let done = Walhook::command("setup").env("DATABASE_URL", pg.conninfo()).finish();
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    pg.psql(
        r"CREATE FUNCTION e9() RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT convert_from('\xe9', 'SQL_ASCII') $$;
          DO $$ BEGIN EXECUTE format('CREATE TABLE %I (a int)', e9()); END $$;
          SELECT rule_webhook_register(e9(), 'https://example.com')",
    );
    let mut wrong = Vec::new();
    for (statement, code, word) in [
        ("rule_webhook_register(e9(), 'https://example.com')", "23505", "'?'"),
        ("rule_webhook_register(e9(), e9())", "22023", "'?'"),
        ("rule_webhook_enqueue(99, '{}')", "P0002", "99"),
        ("rule_nats_configure(e9(), e9())", "23514", "?"),
        ("rule_nats_stream_create('S', ARRAY[e9()])", "22023", "'?'"),
        ("rule_nats_stream_create('S', ARRAY['a.>'], e9())", "P0002", "?"),
        ("rule_webhook_enable_nats(1, e9())", "22023", "'?'"),
        ("rule_webhook_enable_nats(1, 'a.b', e9())", "22023", "'?'"),
        ("rule_webhook_enable_nats(1, 'a.b', 'nats', e9())", "P0002", "?"),
        ("rule_webhook_publish_nats(1, '{}')", "55000", "?"),
        ("rule_webhook_link_table(1, to_regclass(quote_ident(e9())))", "22023", "?"),
        ("rule_cdc_backfill_start('none' || e9())", "42P01", "'none?'"),
        ("rule_cdc_backfill_start(e9())", "55000", "?"),
        ("rule_cdc_replay(e9())", "22023", "'?'"),
        ("rule_cdc_replay('0/1', p_webhook => 'no' || e9())", "P0002", "'no?'"),
        ("rule_cdc_rules_amend(e9())", "22023", "'?'"),
        ("rule_cdc_anchor_create(p_slot => e9())", "42704", "'?'"),
    ] {
        match pg.try_psql(&format!("SELECT {statement}")) {
            Err(error)
                if error
                    .as_db_error()
                    .is_some_and(|error| error.code().code() == code && error.message().contains(word)) => {}
            outcome => wrong.push(format!("{statement}: {outcome:?}")),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
