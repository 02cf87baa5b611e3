//! Terminals as they are: narrow, in a locale that does not exist, or without the means to write a line over; and what the command
//! line says of itself.

#![allow(clippy::unwrap_used)]

use std::process::{Command, Stdio};

use crate::{
    support::{Walhook, feed::Feed},
    terminal::{all_on_terminal, bare, command, on_terminal},
};

const LETTERS: usize = 40;

/// A feed with dead letters.
async fn with_letters() -> Feed {
    let feed = Feed::start().await;
    feed.webhook("w");
    feed.pg.psql(&format!(
        "INSERT INTO rule_nats_dead_letters (event_id, webhook_id, webhook_name, subject, headers, payload, reason, commit_lsn) \
         SELECT 'walhook-' || n, 1, 'w', 'webhooks.x', '{{}}', '{{}}', 'too large', '0/1' FROM generate_series(1, {LETTERS}) n"
    ));
    feed
}

/// What stands on the terminal in the end: each line as it was written over last.
fn screen(shown: &str) -> Vec<String> {
    let last = |line: &str| line.rsplit("\r\x1b[K").next().unwrap_or_default().trim_end_matches('\r').to_owned();
    shown.split('\n').map(last).filter(|line| !line.is_empty()).collect()
}

#[tokio::test]
async fn progress_is_shown_on_a_terminal_only_below_all_other_lines_and_never_within_one() {
    let feed = with_letters().await;
    let drop_all = |settings: &[(&str, &str)]| {
        let mut all = command(&feed, &["dead-letters", "drop", "--all"]);
        all.env("TERM", "xterm").envs(settings.iter().copied());
        all
    };
    let again = || {
        feed.pg.psql("UPDATE rule_nats_dead_letters SET status = 'dead'");
    };
    for settings in [&[][..], &[("NO_COLOR", "1")], &[("LC_ALL", "nonsense")]] {
        let shown = all_on_terminal(drop_all(settings), 80);
        let lines = screen(&shown);
        assert_eq!(lines.len(), LETTERS + 1, "{lines:#?}");
        for line in &lines[..LETTERS] {
            assert!(line.starts_with("dead letter ") && line.ends_with("is dropped"), "{line:?}");
        }
        assert_eq!(
            lines[LETTERS], "[##############################] 100 %  40 of 40 dead letters, 0 s left",
            "{settings:?}"
        );
        again();
    }
    let narrow = all_on_terminal(drop_all(&[]), 40);
    assert!(screen(&narrow)[LETTERS].chars().count() < 40, "{narrow:?}");
    again();
    // A terminal that cannot write a line over, the log as JSON, and none at all.
    for setting in [("TERM", "dumb"), ("WALHOOK_LOG_FORMAT", "json")] {
        let quiet = all_on_terminal(drop_all(&[setting]), 80);
        assert!(!quiet.contains('%') && !quiet.contains('\x1b'), "{quiet:?}");
        assert_eq!(quiet.lines().count(), LETTERS, "{quiet:?}");
        again();
    }
    let piped = drop_all(&[]).output().unwrap();
    assert!(piped.status.success() && piped.stderr.is_empty(), "{piped:?}");

    // The log's lines stand above it.
    let setup = all_on_terminal(
        {
            let mut setup = command(&feed, &["setup", "--color", "never"]);
            setup.env("TERM", "xterm");
            setup
        },
        200,
    );
    assert!(setup.contains("% ") && setup.contains("steps of setup"), "{setup:?}");
    for line in screen(&setup) {
        let is_bar = line.starts_with('[') && line.contains("steps of setup");
        assert!(is_bar || line.starts_with("20"), "{line:?} in {setup:?}");
    }
}

#[tokio::test]
async fn a_broken_locale_and_forty_columns_cut_no_word_and_break_no_character() {
    let feed = Feed::start().await;
    let webhook = feed.webhook("gr\u{fc}n");
    feed.pg.psql("CREATE TABLE \"stra\u{df}e\" (id int PRIMARY KEY, note text)");
    feed.pg.psql(&format!(
        "SELECT rule_webhook_link_table({webhook}, '\"stra\u{df}e\"', p_subject_template => 'webhooks.{{op}}')"
    ));
    feed.pg.psql("INSERT INTO \"stra\u{df}e\" VALUES (1, '\u{4f60}\u{597d} \u{fc}ber \u{1f600}')");
    let mut walhook = feed.run();
    feed.pg.psql("INSERT INTO \"stra\u{df}e\" VALUES (2, '\u{4f60}\u{597d} \u{fc}ber \u{1f600}')");
    feed.confirmed().await;
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
    for locale in [&[("LC_ALL", "nonsense")][..], &[("LANG", "C")], &[("LC_ALL", "C"), ("LC_CTYPE", "xx_XX.broken")]] {
        let run = |words: &[&str]| {
            let mut verb = command(&feed, words);
            verb.env("TERM", "xterm").envs(locale.iter().copied());
            verb
        };
        // The bytes of the data are those of UTF-8 in any locale; reading them as such would fail otherwise.
        let explained = on_terminal(run(&["explain", "\"stra\u{df}e\""]), 40);
        let tailed = on_terminal(run(&["tail", "--since", "1h", "--limit", "1"]), 40);
        for shown in [&explained, &tailed] {
            assert!(bare(shown).contains("\u{4f60}\u{597d} \u{fc}ber \u{1f600}"), "{locale:?}: {shown}");
        }
        for words in [&["status"][..], &["check"]] {
            let shown = bare(&on_terminal(run(words), 40));
            for line in shown.lines() {
                let has_spaces = line.split_whitespace().count() > 2;
                assert!(
                    line.chars().count() <= 40 || !has_spaces || line.contains(['"', '\'']),
                    "{line:?} in\n{shown}"
                );
            }
        }
        let json = run(&["check", "--json"]).stderr(Stdio::null()).output().unwrap();
        assert!(serde_json::from_slice::<serde_json::Value>(&json.stdout).is_ok(), "{json:?}");
    }
}

#[tokio::test]
async fn explain_shows_columns_left_out_old_values_and_a_trace_as_run_publishes_them() {
    let feed = Feed::start().await;
    let webhook = feed.webhook("w");
    feed.pg.psql("CREATE TABLE t (id int PRIMARY KEY, note text, secret text, trace text)");
    feed.pg.psql("ALTER TABLE t REPLICA IDENTITY FULL");
    feed.pg.psql(&format!(
        "SELECT rule_webhook_link_table({webhook}, 't', p_columns => '{{id,note}}', p_include_old => true, p_trace_column => 'trace', \
         p_filter => '{{\"note\": \"shown\"}}')"
    ));
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    // The first row does not pass the filter.
    let rows = format!("(0, 'kept back', 'hunter2', NULL), (1, 'shown', 'hunter2', '{trace}')");
    feed.pg.psql(&format!("INSERT INTO t VALUES {rows}"));
    let done = feed.command("explain").args(["t", "--json"]).finish();
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(!done.stdout.contains("hunter2") && !done.stdout.contains("kept back"), "{done:?}");
    let shown: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    let messages = feed.after(&["UPDATE t SET note = note", "DELETE FROM t"]).await;
    assert_eq!(messages.len(), 3, "{messages:#?}");
    for (message, shown) in messages.iter().zip(shown["links"][0]["operations"].as_array().unwrap()) {
        assert_eq!(shown["headers"]["traceparent"], message.header("traceparent"), "{shown:#}");
        assert_eq!(message.header("traceparent"), trace);
        let keys = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&shown["payload"]), keys(&message.payload), "{shown:#}");
        for key in ["data", "old", "old_key", "changed", "op", "type"] {
            assert_eq!(shown["payload"][key], message.payload[key], "{key}: {shown:#}");
        }
    }
}

/// The verbs of the command line, as its help lists them.
fn verbs() -> Vec<String> {
    let help = Walhook::command("--help").finish().stdout;
    let (_, listed) = help.split_once("Commands:\n").unwrap();
    let verbs = listed.lines().take_while(|line| line.starts_with("  "));
    let is_verb = |line: &&str| !line.starts_with("   ");
    verbs.filter(is_verb).map(|line| line.split_whitespace().next().unwrap().to_owned()).collect()
}

#[test]
fn every_command_has_its_help_completions_and_page_and_its_own_options_come_first() {
    let version = Walhook::command("--version").finish();
    assert_eq!((version.code, version.stderr.as_str()), (Some(0), ""));
    assert!(version.stdout.starts_with(concat!("walhook ", env!("CARGO_PKG_VERSION"))), "{version:?}");
    let verbs = verbs();
    assert!(verbs.len() > 10 && verbs.contains(&"check".to_owned()), "{verbs:?}");
    let folder = tempfile::tempdir().unwrap();
    let pages = Walhook::command("man").args(["--folder", folder.path().to_str().unwrap()]).finish();
    assert_eq!(pages.code, Some(0), "{pages:?}");
    let bash = Walhook::command("completions").arg("bash").finish().stdout;
    for verb in verbs.iter().filter(|verb| *verb != "help") {
        let help = Walhook::command(verb).arg("--help").finish();
        assert_eq!(help.code, Some(0), "{help:?}");
        let (own, global) = help.stdout.split_once("Settings of every command:").unwrap_or((&help.stdout, ""));
        assert!(!own.contains("--database-url") && global.contains("--database-url"), "{verb}: {}", help.stdout);
        let page = std::fs::read_to_string(folder.path().join(format!("walhook-{verb}.1"))).unwrap();
        assert!(bash.contains(&format!("walhook__{}", verb.replace('-', "__"))) || bash.contains(verb), "{verb}");
        // Each option of the help is in the page and in the completions.
        for option in help.stdout.split_whitespace().filter(|word| word.starts_with("--") && word.len() > 3) {
            let name = option.trim_end_matches([',', '.', ')', ':', ';', ']']);
            let name = name.split(['=', '[', '<']).next().unwrap();
            let escaped = name.replace('-', "\\-");
            assert!(page.contains(&escaped) || page.contains(name), "{verb}: {name} is not in its page");
            assert!(bash.contains(name), "{verb}: {name} is not in the completions");
        }
    }
}

#[test]
fn completions_are_scripts_that_their_shell_can_read() {
    let script = Walhook::command("completions").arg("bash").finish().stdout;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("walhook.bash");
    std::fs::write(&file, script).unwrap();
    let read = Command::new("bash").arg("-n").arg(&file).output().unwrap();
    assert!(read.status.success() && read.stderr.is_empty(), "{read:?}");
}
