//! What decides: codes, never the words of a message; and no lock that a role without rights could hold.

#![allow(clippy::unwrap_used)]

use super::tidy::{File, collect, root};

/// Where code looks for words in a text, each with the reason why that is no decision by the words of a server's message.
const WORDS: [(&str, &str, &str); 19] = [
    ("route/headers.rs", "apikey", "names of headers that look like credentials"),
    ("route/headers.rs", "-key", "names of headers that look like credentials"),
    ("route/shown_url.rs", "or", "names of query parameters that look like credentials"),
    ("route/shown_url.rs", "ori", "names of query parameters that look like credentials"),
    ("route/subject.rs", "wildcard", "our own text, from the function above it"),
    ("http/metrics.rs", "# HELP ", "the text format of metrics, which we have just written"),
    ("http/metrics.rs", "# UNIT ", "the text format of metrics, which we have just written"),
    ("http/metrics.rs", " counter", "the text format of metrics, which we have just written"),
    ("log.rs", "log.", "names of the fields of a log record"),
    ("nats/auth.rs", "BEGIN", "the frame of a credentials file"),
    ("deliver/message.rs", "ce-", "names of headers"),
    ("commands/replay/publish.rs", "Nats-", "names of headers"),
    ("commands/deliver/event.rs", "nats-", "names of headers"),
    (
        "commands/deliver/lane.rs",
        "Leadership",
        "status 409 of a pull request has no code; the words only choose between asking again at once and after a warning",
    ),
    ("commands/demo/servers.rs", "address already in use", "the demo tries another port; PostgreSQL's log has no code"),
    ("commands/demo/servers.rs", "Server is ready", "the demo waits for its own nats-server's log"),
    ("commands/uninstall/nats.rs", "KV_walhook_", "names of buckets"),
    ("deliver/sign.rs", "{body}", "a template has to sign the body"),
    ("commands/status.rs", "HTTP/1.1 200 ", "the status line of an answer: 200 is its code"),
];

fn sources(folder: &str, ending: &str) -> Vec<File> {
    let mut files = Vec::new();
    collect(&root().join(folder), &[ending], &mut files);
    assert!(!files.is_empty());
    files
}

#[test]
fn no_decision_depends_on_the_words_of_a_message() {
    let mut found = Vec::new();
    for file in sources("src", "rs") {
        let name = file.name();
        let name = name.strip_prefix("src/").unwrap();
        if name.ends_with("tests.rs") || name.contains("/tests/") {
            continue;
        }
        for part in file.code().split(['\n', ';']) {
            for call in [".contains(\"", ".starts_with(\"", ".ends_with(\""] {
                for after in part.split(call).skip(1) {
                    let words = after.split('"').next().unwrap();
                    if words.contains(char::is_alphabetic) {
                        found.push((name.to_owned(), words.to_owned()));
                    }
                }
            }
        }
    }
    for (file, words) in &found {
        let is_allowed = WORDS.iter().any(|(place, known, _)| *place == *file && *known == *words);
        assert!(
            is_allowed,
            "src/{file} looks for {words:?} in a text: a decision needs a code (see src/postgres/sqlstate.rs and src/nats/codes.rs); \
             where this is none, say why in tests/tidy/decisions.rs"
        );
    }
    for (file, words, _) in WORDS {
        assert!(
            found.iter().any(|(place, known)| *place == *file && *known == *words),
            "{file} no longer looks for {words:?}"
        );
    }
    // In SQL: an error is known by its condition.
    for file in sources("sql", "sql") {
        for line in file.text.lines() {
            let lower = line.to_lowercase();
            let compares = ["sqlerrm like", "sqlerrm ~", "sqlerrm =", "sqlerrm <>", "message_text", "strpos(sqlerrm"];
            assert!(!compares.iter().any(|words| lower.contains(words)), "{}: {line}", file.name());
        }
    }
}

/// Anybody who may connect can take an advisory lock, and its number is no secret: pg_locks shows it.
#[test]
fn no_lock_is_taken_that_a_role_without_rights_could_hold() {
    for (folder, ending) in [("src", "rs"), ("sql", "sql")] {
        for file in sources(folder, ending) {
            for line in file.text.lines() {
                let is_taken = ["pg_advisory", "pg_try_advisory"].iter().any(|name| line.contains(name));
                assert!(!is_taken, "{}: {line}: see src/commands/marks.rs", file.name());
            }
        }
    }
}
