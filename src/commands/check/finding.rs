//! One finding of `walhook check`: what was found, why it matters, and what to do.
//!
//! In: a code of [`super::codes`] and what a check saw. Out: a value that a person, a monitor and the status page read alike.
//! Always holds: no secret is in it, and control characters of servers' texts are escaped.

use serde::Serialize;

use super::codes;
use crate::{
    commands::setup_check,
    error::{Error, Kind},
    text,
};

pub use crate::commands::setup_check::Severity;

/// The most bytes of a server's text in one finding.
const TEXT_MAX: usize = 2000;
/// Findings of one code and severity beyond this number are one finding.
const ALONE_MAX: usize = 5;
/// Statements of a grouped finding's remedy.
const STATEMENTS_MAX: usize = 20;

/// Where the remedy is run or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// Statements for the database, as they stand.
    Sql,
    /// A command line.
    Shell,
    /// Lines of walhook's settings file.
    Settings,
    /// Lines of nats-server's configuration.
    NatsServer,
    /// What a person has to decide or do.
    Advice,
}

/// What is wrong, or worth knowing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its kind; the same in later versions.
    pub code: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What it is about.
    pub subject: String,
    /// What was found.
    pub text: String,
    /// Why it matters.
    pub why: &'static str,
    /// What to do.
    pub remedy: Option<String>,
    /// Where the remedy is run.
    pub how: Option<How>,
    /// How many findings of this code are told as one; 1 for a single one.
    pub count: usize,
    /// The exit code of `walhook run` where this ends it, or of `walhook check` where a server is away.
    pub exit_code: Option<u8>,
}

impl Finding {
    /// A finding of a code in the table.
    pub fn new(code: &'static str, severity: Severity, subject: impl Into<String>, text: impl Into<String>) -> Finding {
        let shown = |text: String| text::one_line_of(&text, TEXT_MAX).into_owned();
        Finding {
            code,
            severity,
            subject: shown(subject.into()),
            text: sentence(&shown(text.into())),
            why: codes::of(code).map_or("", |code| code.why),
            remedy: None,
            how: None,
            count: 1,
            exit_code: None,
        }
    }

    /// The same with its remedy.
    #[must_use]
    pub fn remedy(mut self, how: How, remedy: impl Into<String>) -> Finding {
        let remedy = remedy.into();
        // Statements are run as they stand, so they are not cut.
        self.remedy = Some(text::one_line_of(&remedy, usize::MAX).into_owned()).filter(|remedy| !remedy.is_empty());
        self.how = self.remedy.is_some().then_some(how);
        self
    }

    /// The same where `walhook run` ends with this code.
    #[must_use]
    pub fn exits(mut self, code: u8) -> Finding {
        self.exit_code = Some(code);
        self
    }

    /// An error of something that `run` does as well: it ends `run` unless it passes by itself.
    pub fn of_error(code: &'static str, subject: impl Into<String>, error: &Error) -> Finding {
        let severity = if error.is_retryable() { Severity::Error } else { Severity::Fatal };
        Finding::with_severity(code, severity, subject, error).exits(error.exit_code())
    }

    /// An error that ends nothing.
    pub fn with_severity(code: &'static str, severity: Severity, subject: impl Into<String>, error: &Error) -> Finding {
        let finding = Finding::new(code, severity, subject, error.reason());
        match error.remedy() {
            Some(hint) => finding.remedy(How::Advice, sentence(hint)),
            None => finding,
        }
    }

    /// What could not be looked at, and why: never passed over in silence.
    pub fn not_checked(codes: &[&'static str], error: &Error) -> Finding {
        let finding = Finding::new(
            "not_checked",
            Severity::Warning,
            codes.join(", "),
            format!("walhook could not check {}: {}", codes.join(", "), error.reason()),
        );
        let hint = match (error.kind(), error.remedy()) {
            (Kind::Permission, _) => {
                "Grant what the text names, or run the check as a member of pg_monitor.".to_owned()
            }
            (_, Some(hint)) => sentence(hint),
            _ => return finding,
        };
        finding.remedy(How::Advice, hint)
    }

    /// The same where no error says why.
    pub fn unknown(code: &'static str, why: &str, how: How, remedy: &str) -> Finding {
        let text = format!("walhook could not check {code}: {why}");
        Finding::new("not_checked", Severity::Warning, code, text).remedy(how, remedy)
    }
}

impl From<setup_check::Finding> for Finding {
    fn from(found: setup_check::Finding) -> Finding {
        let exit_code = match (found.severity, found.name.as_str()) {
            (Severity::Fatal, "slot_lost") => Some(3),
            (Severity::Fatal, "row_security") => Some(4),
            (Severity::Fatal, _) => Some(2),
            _ => None,
        };
        // A name of a newer schema is no reason to hide what it found.
        let code = codes::of_name(&found.name).map_or("setup", |code| code.code);
        let text = if code == "setup" { format!("{}: {}", found.name, found.problem) } else { found.problem };
        let mut finding = Finding::new(code, found.severity, found.object, text);
        finding.exit_code = exit_code;
        match found.remedy {
            Some(remedy) => finding.remedy(How::Sql, remedy),
            None => finding,
        }
    }
}

/// With a capital at its beginning and a full stop at its end, so that it can be read aloud. A name at the beginning stays as it is.
fn sentence(text: &str) -> String {
    let text = text.trim();
    let first = text.split([' ', ':']).next().unwrap_or_default();
    let is_word = first.chars().all(|c| c.is_ascii_lowercase());
    let mut sentence = match text.chars().next() {
        Some(c) if is_word => c.to_uppercase().chain(text.chars().skip(1)).collect(),
        _ => text.to_owned(),
    };
    if !sentence.is_empty() && !sentence.ends_with(['.', '!', '?', ';']) {
        sentence.push('.');
    }
    sentence
}

/// Many findings of one code as one, the worst first. `listing`: a query that lists the remedies of a finding of the set-up.
pub fn group(mut findings: Vec<Finding>, listing: impl Fn(&str) -> Option<String>) -> Vec<Finding> {
    // Stable: within a severity they stay in the order of the checks.
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    let mut grouped: Vec<Finding> = Vec::new();
    let mut rest = findings.into_iter().peekable();
    let mut pending: Vec<Finding> = Vec::new();
    while let Some(finding) = rest.next() {
        let severity = finding.severity;
        pending.push(finding);
        if rest.peek().is_none_or(|next| next.severity != severity) {
            grouped.extend(group_of_one_severity(std::mem::take(&mut pending), &listing));
        }
    }
    grouped
}

fn group_of_one_severity(findings: Vec<Finding>, listing: &impl Fn(&str) -> Option<String>) -> Vec<Finding> {
    let mut codes: Vec<&'static str> = Vec::new();
    let mut by_code: std::collections::HashMap<&'static str, Vec<Finding>> = std::collections::HashMap::new();
    for finding in findings {
        let code = finding.code;
        by_code
            .entry(code)
            .or_insert_with(|| {
                codes.push(code);
                Vec::new()
            })
            .push(finding);
    }
    let mut grouped = Vec::new();
    for code in codes {
        let mut same = by_code.remove(code).unwrap_or_default();
        if same.len() <= ALONE_MAX {
            grouped.append(&mut same);
            continue;
        }
        let count = same.len();
        let listed: Option<String> = if count <= STATEMENTS_MAX { None } else { listing(code) };
        let is_listed = listed.is_some();
        let remedy = listed.or_else(|| all_remedies(&same[..count.min(STATEMENTS_MAX)]));
        let exit_code = same.iter().find_map(|finding| finding.exit_code);
        let mut first = same.swap_remove(0);
        first.text = format!("{} The same holds for {} more.", first.text, count - 1);
        first.subject = format!("{} and {} more", first.subject, count - 1);
        first.exit_code = exit_code;
        first.count = count;
        if is_listed {
            first.how = Some(How::Sql);
        }
        first.how = first.how.filter(|_| remedy.is_some());
        first.remedy = remedy;
        grouped.push(first);
    }
    grouped
}

fn all_remedies(findings: &[Finding]) -> Option<String> {
    let mut remedies: Vec<&str> = Vec::new();
    for remedy in findings.iter().filter_map(|finding| finding.remedy.as_deref()) {
        if !remedies.contains(&remedy) {
            remedies.push(remedy);
        }
    }
    (!remedies.is_empty()).then(|| remedies.join(" "))
}

/// The exit code of the check: the first finding that ends `walhook run` decides; then a server that is away; 0 where `run` would start.
pub fn exit_code(findings: &[Finding]) -> u8 {
    let fatal = findings.iter().filter(|finding| finding.severity == Severity::Fatal);
    let away = findings.iter().filter(|finding| finding.severity != Severity::Fatal);
    fatal.chain(away).find_map(|finding| finding.exit_code).unwrap_or(0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn many_findings_of_one_code_are_shown_as_one_with_all_their_remedies() {
        let link = |number: usize| {
            let severity = if number == 3 { Severity::Error } else { Severity::Warning };
            Finding::new("link_disabled", severity, format!("link {number}"), "the link is disabled")
                .remedy(How::Sql, format!("UPDATE {number};"))
        };
        let few = group((0..5).map(link).collect(), |_| None);
        assert_eq!(few.len(), 5);
        assert_eq!(few[0].severity, Severity::Error, "the worst comes first");
        let some = group((0..10).map(link).collect(), |_| None);
        assert_eq!((some.len(), some[1].count), (2, 9));
        assert_eq!(some[1].remedy.as_ref().unwrap().matches("UPDATE").count(), 9);
        let many = group((0..10_000).map(link).collect(), |code| Some(format!("SELECT {code}")));
        assert_eq!((many.len(), many[1].remedy.as_deref()), (2, Some("SELECT link_disabled")));
        assert!(many[1].subject.ends_with("and 9998 more"), "{}", many[1].subject);
    }

    #[test]
    fn what_ends_run_decides_the_exit_code_before_what_is_away() {
        let away = Finding::new("nats_connection", Severity::Error, "", "").exits(1);
        let fatal = Finding::new("slot_missing", Severity::Fatal, "", "").exits(2);
        assert_eq!(exit_code(&[]), 0);
        assert_eq!(exit_code(&[Finding::new("slot_wal_limit", Severity::Warning, "", "")]), 0);
        assert_eq!(exit_code(std::slice::from_ref(&away)), 1);
        assert_eq!(exit_code(&[away, fatal]), 2);
    }

    #[test]
    fn a_text_is_a_sentence_and_a_name_stays_a_name() {
        assert_eq!(sentence("the link is disabled"), "The link is disabled.");
        assert_eq!(sentence("wal_level is replica"), "wal_level is replica.");
        assert_eq!(sentence("Done."), "Done.");
        assert_eq!(Finding::new("setup", Severity::Note, "a\nb", "x\x1b[2J").subject, "a\\nb");
    }
}
