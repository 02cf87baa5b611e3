//! Every remedy that an error prints, a statement or a command, is run here or by the test that is named beside it.

#![allow(clippy::unwrap_used)]

use crate::support;

use std::{fs, path::Path};

use support::feed::Feed;

/// How a remedy is run.
enum Run {
    /// These statements succeed, in this order.
    Sql(&'static [&'static str]),
    /// `walhook` with these words exits with 0.
    Walhook(&'static [&'static str]),
    /// A test has the failure, does what is printed, and sees that it helped.
    Test(&'static str),
}

/// A part of the printed text, as it stands in the source, and how it is run.
const REMEDIES: &[(&str, Run)] = &[
    ("SELECT * FROM rule_webhook_links lists", Run::Sql(&["SELECT * FROM rule_webhook_links"])),
    ("SELECT * FROM rule_webhook_list(); lists the webhooks", Run::Sql(&["SELECT * FROM rule_webhook_list()"])),
    ("walhook check --deliver looks at every webhook's address", Run::Walhook(&["check", "--help"])),
    ("walhook check --deliver says at which step a connection fails", Run::Walhook(&["check", "--help"])),
    ("run `walhook setup`, which applies the migrations", Run::Walhook(&["setup"])),
    (
        "start `walhook run`: it compares them",
        Run::Test("failover::a_standby_with_a_synced_slot_goes_on_where_the_primary_ended"),
    ),
    (
        "set http.listen (--http, WALHOOK_HTTP)",
        Run::Test("compose::the_services_of_compose_do_together_what_its_page_says"),
    ),
    ("use `walhook status --check`", Run::Test("terminal::check_has_a_code_for_each_thing_that_monitoring_minds")),
    ("walhook dead-letters list --status all", Run::Walhook(&["dead-letters", "list", "--status", "all"])),
    ("`walhook help` shows every command and flag", Run::Walhook(&["help"])),
    (
        "in the database makes it, or give --nats-url",
        Run::Sql(&["SELECT rule_nats_configure('second', 'nats://127.0.0.1:4222')"]),
    ),
    (
        "go on: walhook replay --resume {id}",
        Run::Test("replay::one_replay_runs_at_a_time_and_a_killed_one_goes_on_where_it_was"),
    ),
    (
        "--create-stream REPLAY makes one",
        Run::Test("replay::what_was_published_since_an_lsn_or_a_time_comes_again_in_its_order_under_the_prefix"),
    ),
    ("choose another --subject-prefix", Run::Test("replay::what_cannot_be_replayed_is_refused_with_what_could_be")),
    (
        "choose subjects of another stream by --subject-prefix",
        Run::Test("replay::what_cannot_be_replayed_is_refused_with_what_could_be"),
    ),
    ("SELECT * FROM rule_cdc_replays", Run::Sql(&["SELECT * FROM rule_cdc_replays"])),
    (
        "or begin a replay --from a later point",
        Run::Test("replay::what_was_published_since_an_lsn_or_a_time_comes_again_in_its_order_under_the_prefix"),
    ),
    (
        "SELECT rule_cdc_anchor_create(p_slot => '{slot}') keeps",
        Run::Sql(&["SELECT rule_cdc_anchor_create(p_slot => 'walhook')"]),
    ),
    (
        "SELECT rule_cdc_anchor_drop('{slot}'); SELECT",
        Run::Sql(&["SELECT rule_cdc_anchor_drop('walhook')", "SELECT rule_cdc_anchor_create(p_slot => 'walhook')"]),
    ),
    (
        "SELECT rule_cdc_anchor_create(p_slot => '{slot}') makes another one",
        Run::Sql(&[
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name LIKE '%anchor%'",
            "SELECT rule_cdc_anchor_create(p_slot => 'walhook')",
        ]),
    ),
    (
        "--from {reached} is the earliest",
        Run::Test("replay_wal::an_anchor_that_postgresql_has_left_behind_says_so_and_so_does_one_that_is_gone"),
    ),
    (
        "choose by --webhook or --table",
        Run::Test("replay::events_are_chosen_by_webhook_and_by_table_and_a_dry_run_only_counts_them"),
    ),
    (
        "name one, or say --via table for all that are linked",
        Run::Test("replay::what_cannot_be_replayed_is_refused_with_what_could_be"),
    ),
    (
        "has `walhook run` published anything yet?",
        Run::Test("commands::status_tells_slot_streams_webhooks_and_dead_letters"),
    ),
    (
        "UPDATE rule_nats_streams SET consumers = ARRAY['worker']",
        Run::Sql(&["UPDATE rule_nats_streams SET consumers = ARRAY['worker'] WHERE stream_name = 'WEBHOOKS'"]),
    ),
    (
        "DELETE FROM rule_nats_checkpoints WHERE source = {} AND config_name = {}",
        Run::Test(
            "recovery::a_stream_that_was_deleted_ends_walhook_with_the_code_for_distrust_until_somebody_accepts_it",
        ),
    ),
    (
        "which puts those checkpoints aside and keeps the count of runs",
        Run::Test("identity::checkpoints_of_another_postgresql_are_put_aside_by_the_command_that_is_printed"),
    ),
    ("walhook adopt --stream {stream}", Run::Test("identity::a_shared_stream_takes_one_database_for_each_source")),
    (
        "walhook adopt --stream {name}",
        Run::Test("identity::a_database_that_has_forgotten_its_stream_takes_it_back_by_the_command_that_is_printed"),
    ),
    (
        "walhook adopt --stream … --nats-url",
        Run::Test("identity::a_user_who_may_not_update_streams_publishes_as_before_and_gets_a_warning"),
    ),
    ("name the streams of this database", Run::Sql(&["SELECT * FROM rule_nats_streams"])),
    (
        "a trigger or a rule on rule_nats_dead_letters drops rows",
        Run::Sql(&[
            "SELECT tgname FROM pg_trigger WHERE tgrelid = 'public.rule_nats_dead_letters'::regclass AND NOT tgisinternal",
            "SELECT rulename FROM pg_rules WHERE tablename = 'rule_nats_dead_letters'",
        ]),
    ),
    (
        "ALTER DATABASE … ALLOW_CONNECTIONS true",
        Run::Test("hostile::a_database_that_allows_no_connections_for_a_while_is_waited_for_and_named"),
    ),
    ("ALTER ROLE … REPLICATION", Run::Sql(&["ALTER ROLE walhook_streamer REPLICATION"])),
    (
        "SELECT rule_cdc_rules_amend('{event_id}')",
        Run::Test("bad_input::a_webhook_that_halts_stops_walhook_at_its_event_and_goes_on_there_when_mended"),
    ),
    (
        "To give them up, run SELECT rule_cdc_rules_amend('{}')",
        Run::Test("moves::events_for_servers_that_never_come_back_become_dead_letters_by_an_amendment"),
    ),
    ("SELECT rule_cdc_rules_forget('{}')", Run::Sql(&["SELECT rule_cdc_rules_forget('walhook')"])),
    ("--rules now (in SQL p_rules => 'now') replays", Run::Walhook(&["replay", "--help"])),
    (
        "UPDATE rule_nats_config SET enabled = false WHERE config_name = {}",
        Run::Test("identity::a_copy_of_a_database_uninstalls_itself_and_touches_nothing_in_nats"),
    ),
    (
        "stop `walhook deliver` of this database first",
        Run::Test("identity::uninstall_with_nats_removes_what_this_database_made_there_and_nothing_of_others"),
    ),
    (
        "SET ordering = 'shared' WHERE stream_name = '{}'",
        Run::Sql(&["UPDATE rule_nats_streams SET ordering = 'shared' WHERE stream_name = 'WEBHOOKS'"]),
    ),
    ("`walhook dead-letters list` tells why", Run::Walhook(&["dead-letters", "list"])),
    (
        "RESET default_transaction_read_only",
        Run::Sql(&["ALTER ROLE walhook_streamer RESET default_transaction_read_only"]),
    ),
    (
        "DISABLE ROW LEVEL SECURITY, or ALTER ROLE … BYPASSRLS",
        Run::Sql(&[
            "ALTER TABLE rule_webhooks DISABLE ROW LEVEL SECURITY",
            "ALTER ROLE walhook_streamer BYPASSRLS",
            "ALTER ROLE walhook_streamer NOBYPASSRLS",
        ]),
    ),
    (
        "SELECT pid, mode, relation::regclass FROM pg_locks WHERE relation::regclass::text",
        Run::Sql(&["SELECT pid, mode, relation::regclass FROM pg_locks \
             WHERE relation::regclass::text LIKE '%rule_nats_publish_history%'"]),
    ),
    ("UPDATE rule_nats_config SET history = 'off'", Run::Sql(&["UPDATE rule_nats_config SET history = 'off'"])),
    ("SELECT * FROM rule_nats_streams, and `walhook status`", Run::Sql(&["SELECT * FROM rule_nats_streams"])),
    ("start `walhook run`, or see its log", Run::Test("commands::status_tells_slot_streams_webhooks_and_dead_letters")),
    ("run `walhook setup`, or: {remedy}", Run::Walhook(&["setup"])),
    ("run `walhook setup`, which gives the database an identity", Run::Walhook(&["setup"])),
    (
        "say which: --database-id",
        Run::Test("identity::two_databases_with_all_defaults_but_their_streams_work_side_by_side"),
    ),
    (
        "as a superuser: SELECT pg_terminate_backend({process})",
        Run::Test("locks::a_session_of_a_role_that_walhook_may_not_end_is_named_and_the_statement_ends_it"),
    ),
    ("--yes agrees without being asked", Run::Test("identity::a_database_made_from_a_template_is_known_as_a_copy")),
    (
        "stop `walhook run` of this database first",
        Run::Test("identity::a_database_made_from_a_template_is_known_as_a_copy"),
    ),
    (
        "--yes goes on without asking; --print shows what would be done",
        Run::Test("setup::uninstall_leaves_a_database_as_it_was_before_setup"),
    ),
    (
        "stop its workers first, or --force",
        Run::Test("replay::a_durable_consumer_is_set_to_a_point_with_all_its_settings"),
    ),
    ("`walhook status` names them", Run::Test("terminal::tail_shows_what_passes_and_nobody_else_notices")),
    (
        "SELECT DISTINCT table_schema, table_name FROM rule_webhook_links; names",
        Run::Sql(&["SELECT DISTINCT table_schema, table_name FROM rule_webhook_links"]),
    ),
    ("SELECT webhook_name FROM rule_webhooks; names", Run::Sql(&["SELECT webhook_name FROM rule_webhooks"])),
    ("or --no-row, which shows no payload", Run::Test("terminal::explain_says_why_nothing_would_come")),
    (
        "A strict stream must have no other writer",
        Run::Test(
            "streams_in_trouble::thousands_of_messages_of_others_are_gone_on_behind_with_and_without_a_checkpoint",
        ),
    ),
    (
        "UPDATE rule_nats_config SET object_bucket = …",
        Run::Sql(&["UPDATE rule_nats_config SET object_bucket = 'other_objects'"]),
    ),
    (
        "SELECT rule_nats_stream_create(…) makes its row",
        Run::Sql(&["SELECT rule_nats_stream_create('OTHER', ARRAY['other.>'])"]),
    ),
    (
        "seal_key is wrong, correct it in rule_webhooks, then run SELECT rule_cdc_rules_amend('{id}')",
        Run::Test("sealed::a_wrong_name_of_a_key_is_corrected_by_an_amendment_at_the_event_that_waits"),
    ),
    (
        "run walhook with another --source",
        Run::Test("json_schemas::a_bucket_that_cannot_be_used_holds_its_events_back_and_the_log_says_what_to_do"),
    ),
    (
        "walhook schema {} --versions lists them",
        Run::Test("json_schemas::the_verb_shows_what_consumers_get_now_and_got_before"),
    ),
    ("choose one by --webhook, of {}", Run::Test("json_schemas::the_verb_shows_what_consumers_get_now_and_got_before")),
    (
        "chmod 0600 {}",
        Run::Test("postgres_connection::a_client_certificate_opens_where_the_server_knows_its_authority"),
    ),
];

fn sources(folder: &Path, all: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, all);
        } else {
            let text = fs::read_to_string(&path).unwrap();
            // Without tests; and a literal that goes on in the next line is one.
            let text = text.split("#[cfg(test)]").next().unwrap().to_owned();
            let mut joined = String::new();
            for part in text.split("\\\n") {
                joined.push_str(if joined.is_empty() { part } else { part.trim_start() });
            }
            all.push((path.display().to_string(), joined));
        }
    }
}

/// The string literals within the parentheses that open at the end of `before`.
fn literals(after: &str) -> Vec<&str> {
    let (mut depth, mut start, mut is_escaped) = (1, None, false);
    let mut found = Vec::new();
    for (at, c) in after.char_indices() {
        match (start, c) {
            (Some(_), _) if is_escaped => is_escaped = false,
            (Some(_), '\\') => is_escaped = true,
            (Some(begin), '"') => {
                found.push(&after[begin..=at]);
                start = None;
            }
            (Some(_), _) => {}
            (None, '"') => start = Some(at + 1),
            (None, '(') => depth += 1,
            (None, ')') => depth -= 1,
            (None, _) => {}
        }
        if depth == 0 {
            break;
        }
    }
    found
}

#[test]
fn every_printed_statement_and_command_has_its_run() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut all = Vec::new();
    sources(&root.join("src"), &mut all);
    let is_to_be_run = |text: &str| {
        [
            "SELECT ",
            "ALTER ",
            "UPDATE rule",
            "DELETE FROM",
            "DROP ",
            "`walhook ",
            "walhook replay",
            "walhook dead",
            "chmod ",
            "--",
        ]
        .iter()
        .any(|mark| text.contains(mark))
    };
    let mut missing = Vec::new();
    for (file, text) in &all {
        for (at, mark) in text.match_indices("hint(") {
            for literal in literals(&text[at + mark.len()..]) {
                let is_known = REMEDIES.iter().any(|(part, _)| literal.contains(part));
                if is_to_be_run(literal) && !is_known {
                    missing.push(format!("{file}: {literal}"));
                }
            }
        }
    }
    assert!(missing.is_empty(), "remedies without a run: {missing:#?}");
    for (part, run) in REMEDIES {
        assert!(all.iter().any(|(_, text)| text.contains(part)), "no source prints {part:?} any more");
        if let Run::Test(name) = run {
            let (file, test) = name.split_once("::").unwrap();
            assert!(support::test_files::has_test(file, test), "{part}: there is no test {name}");
        }
    }
}

#[tokio::test]
async fn every_printed_statement_and_command_succeeds() {
    let feed = Feed::start().await;
    feed.webhook("orders");
    for (part, run) in REMEDIES {
        match run {
            Run::Sql(statements) => statements.iter().for_each(|statement| {
                feed.pg.psql(statement);
            }),
            Run::Walhook(words) => {
                let done = feed.command(words[0]).args(&words[1..]).finish();
                assert_eq!(done.code, Some(0), "{part}: {}", done.stderr);
            }
            Run::Test(_) => {}
        }
    }
}
