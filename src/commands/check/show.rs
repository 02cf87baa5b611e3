//! Findings as a person reads them: a table of two columns, the severity on the left and sentences on the right.
//!
//! In: findings, whose texts are escaped already, and the width of the terminal. Out: lines that are no wider where words allow it.
//! Statements are broken only between words outside of quotes, so that they can be run as they are copied. ASCII frames only: a broken
//! locale shows them as well.

use std::fmt::Write as _;

use super::finding::{Finding, How, Severity};

/// Below this the table has one column.
const NARROW: usize = 72;
/// The left column.
const LEFT: usize = 10;
/// Lines longer than this are hard to read, however wide the terminal is.
const WIDEST: usize = 120;

/// The severity as one word.
fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Fatal => "fatal",
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Note => "note",
    }
}

fn colour(severity: Severity) -> &'static str {
    match severity {
        Severity::Fatal | Severity::Error => "\x1b[31m",
        Severity::Warning => "\x1b[33m",
        Severity::Note => "\x1b[36m",
    }
}

/// The whole answer. `exit_code`: whether `walhook run` would start.
pub fn table(findings: &[Finding], exit_code: u8, width: usize, has_colour: bool) -> String {
    let width = width.clamp(20, WIDEST);
    let is_narrow = width < NARROW;
    let indent = if is_narrow { 2 } else { LEFT };
    let mut out = String::new();
    for finding in findings {
        let word = word(finding.severity);
        let padding = if is_narrow { 1 } else { LEFT - word.len() };
        let shown = match has_colour {
            true => format!("{}{word}\x1b[0m", colour(finding.severity)),
            false => word.to_owned(),
        };
        let head = format!("{}: {}", finding.code, finding.subject);
        // The first line begins behind the severity.
        let mut lines = wrap(&head, width.saturating_sub(indent), 0).into_iter();
        if is_narrow {
            let _ = writeln!(out, "{shown}{}{}", " ".repeat(padding), finding.code);
            push(&mut out, &finding.subject, width, indent);
        } else {
            let _ = writeln!(out, "{shown}{}{}", " ".repeat(padding), lines.next().unwrap_or_default());
            for line in lines {
                let _ = writeln!(out, "{}{line}", " ".repeat(indent));
            }
        }
        push(&mut out, &finding.text, width, indent);
        push(&mut out, finding.why, width, indent);
        if let (Some(remedy), Some(how)) = (&finding.remedy, finding.how) {
            let label = match how {
                How::Sql => "Remedy, in the database:",
                How::Shell => "Remedy, on the command line:",
                How::Settings => "Remedy, in walhook's settings file:",
                How::NatsServer => "Remedy, in nats-server's configuration:",
                How::Advice => "Remedy:",
            };
            match how {
                How::Advice => push(&mut out, &format!("{label} {remedy}"), width, indent),
                How::Sql => {
                    push(&mut out, label, width, indent);
                    for statement in statements(remedy) {
                        for line in wrap_statement(&statement, width.saturating_sub(indent + 2)) {
                            let _ = writeln!(out, "{}{line}", " ".repeat(indent + 2));
                        }
                    }
                }
                _ => {
                    push(&mut out, label, width, indent);
                    let _ = writeln!(out, "{}{remedy}", " ".repeat(indent + 2));
                }
            }
        }
        out.push('\n');
    }
    push(&mut out, &summary(findings, exit_code), width, 0);
    out
}

/// How many of each severity, and whether `run` would start.
fn summary(findings: &[Finding], exit_code: u8) -> String {
    let count = |severity| {
        findings.iter().filter(|finding| finding.severity == severity).map(|finding| finding.count).sum::<usize>()
    };
    let parts: Vec<String> = [
        (count(Severity::Fatal), "fatal finding", "fatal findings"),
        (count(Severity::Error), "error", "errors"),
        (count(Severity::Warning), "warning", "warnings"),
        (count(Severity::Note), "note", "notes"),
    ]
    .into_iter()
    .filter(|(count, ..)| *count > 0)
    .map(|(count, one, many)| format!("{count} {}", if count == 1 { one } else { many }))
    .collect();
    let found = if parts.is_empty() { "Nothing is wrong".to_owned() } else { format!("Found: {}", parts.join(", ")) };
    let starts = match exit_code {
        0 => "walhook run would start.",
        1 => "walhook run would start and wait for a server that is away (exit code 1).",
        2 => "walhook run would not start: configuration (exit code 2).",
        3 => "walhook run would not start: a slot, a stream or an identity cannot be trusted (exit code 3).",
        4 => "walhook run would not start: a privilege is missing (exit code 4).",
        5 => "walhook run would not start: another run has taken over (exit code 5).",
        _ => "walhook run would not start.",
    };
    format!("{found}. {starts}")
}

fn push(out: &mut String, text: &str, width: usize, indent: usize) {
    for line in wrap(text, width.saturating_sub(indent), 0) {
        let _ = writeln!(out, "{}{line}", " ".repeat(indent));
    }
}

/// Lines of at most `width` characters; a word that is longer stays whole, so that it can be copied.
fn wrap(text: &str, width: usize, hanging: usize) -> Vec<String> {
    fill(text.split(' ').map(str::to_owned), width, hanging)
}

fn fill(words: impl Iterator<Item = String>, width: usize, hanging: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut line = String::new();
    for word in words.filter(|word| !word.is_empty()) {
        if !line.trim_start().is_empty() && line.chars().count() + 1 + word.chars().count() > width {
            lines.push(std::mem::replace(&mut line, " ".repeat(hanging)));
        }
        if !line.trim_start().is_empty() {
            line.push(' ');
        }
        line.push_str(&word);
    }
    if !line.trim_start().is_empty() {
        lines.push(line);
    }
    lines
}

/// Where a text of SQL may be cut.
struct Scanner {
    quote: Option<char>,
    is_comment: bool,
    before: char,
}

impl Scanner {
    fn new() -> Scanner {
        Scanner { quote: None, is_comment: false, before: ' ' }
    }

    /// Takes a character in; whether it stands outside of quotes and comments.
    fn is_outside(&mut self, c: char) -> bool {
        match (self.quote, c) {
            (Some(quote), c) if c == quote => self.quote = None,
            (None, '\'' | '"') if !self.is_comment => self.quote = Some(c),
            (None, '-') if self.before == '-' => self.is_comment = true,
            _ => {}
        }
        self.before = c;
        self.quote.is_none() && !self.is_comment
    }
}

/// The statements of a remedy, each with the comment behind it.
pub fn statements(sql: &str) -> Vec<String> {
    let mut statements: Vec<String> = vec![String::new()];
    let mut scanner = Scanner::new();
    for c in sql.chars() {
        let is_outside = scanner.is_outside(c);
        let last = statements.last_mut().expect("one at least");
        last.push(c);
        if is_outside && c == ';' {
            statements.push(String::new());
        }
    }
    let mut whole: Vec<String> = Vec::new();
    for statement in
        statements.into_iter().map(|statement| statement.trim().to_owned()).filter(|statement| !statement.is_empty())
    {
        match whole.last_mut() {
            Some(last) if statement.starts_with("--") => {
                last.push(' ');
                last.push_str(&statement);
            }
            _ => whole.push(statement),
        }
    }
    whole
}

/// A statement in lines that can be copied together.
fn wrap_statement(statement: &str, width: usize) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut scanner = Scanner::new();
    for c in statement.chars() {
        let is_outside = scanner.is_outside(c);
        match (is_outside, c) {
            (true, ' ') => words.push(String::new()),
            _ => words.last_mut().expect("one at least").push(c),
        }
    }
    fill(words.into_iter(), width, 2)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn finding() -> Finding {
        Finding::new(
            "slot_wal_limit",
            Severity::Warning,
            "max_slot_wal_keep_size",
            "max_slot_wal_keep_size is unlimited: a slot that nobody reads keeps WAL until the disk is full",
        )
        .remedy(How::Sql, "ALTER SYSTEM SET max_slot_wal_keep_size = 'a; b -- c'; SELECT pg_reload_conf(); -- now")
    }

    #[test]
    fn no_line_is_wider_than_the_terminal_and_every_word_is_there() {
        for width in [40, 71, 72, 100, 400] {
            let shown = table(&[finding()], 0, width, false);
            for line in shown.lines() {
                let longest = line.split(' ').map(|word| word.chars().count()).max().unwrap_or(0);
                assert!(line.chars().count() <= width.max(longest + 12), "{width}: {line:?}");
            }
            let words: Vec<&str> = shown.split_whitespace().collect();
            for word in finding().text.split(' ').chain(finding().why.split(' ')) {
                assert!(words.contains(&word), "{word} in {shown}");
            }
            assert!(words.ends_with(&["would", "start."]), "{shown}");
        }
        assert!(table(&[], 0, 80, false).starts_with("Nothing is wrong."));
        assert!(!table(&[finding()], 0, 80, false).contains('\x1b'));
        assert!(table(&[finding()], 0, 80, true).contains("\x1b[33mwarning\x1b[0m"));
    }

    #[test]
    fn statements_are_cut_neither_in_quotes_nor_in_comments() {
        let cut = statements(finding().remedy.as_deref().unwrap());
        assert_eq!(cut, ["ALTER SYSTEM SET max_slot_wal_keep_size = 'a; b -- c';", "SELECT pg_reload_conf(); -- now"]);
        assert_eq!(wrap_statement(&cut[0], 20).join("\n").replace("\n  ", " "), cut[0]);
        assert_eq!(wrap_statement("SELECT 1; -- then restart it", 10), ["SELECT 1;", "  -- then restart it"]);
    }
}
