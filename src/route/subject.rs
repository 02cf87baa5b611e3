//! Subjects: what NATS allows in one, templates that make one of a row, patterns that a stream takes.
//!
//! Pure. Knows nothing of webhooks or connections.

use crate::wal::change::{Op, Relation};
use crate::wal::pgoutput::{Column, Tuple};

/// Longest subject we publish to, in bytes. NATS has no fixed limit but advises against long ones; its default
/// control line is 4096 bytes and holds the reply subject and lengths too.
pub const MAX_LEN: usize = 1024;

/// Why NATS would not take this as a literal subject, or would keep it for itself; `None` if it is fine.
pub fn invalid(subject: &[u8]) -> Option<&'static str> {
    if subject.is_empty() {
        return Some("it is empty");
    }
    if subject.len() > MAX_LEN {
        return Some("it is longer than 1024 bytes");
    }
    if std::str::from_utf8(subject).is_err() {
        return Some("it is not UTF-8");
    }
    if subject[0] == b'$' {
        return Some("subjects that begin with $ are the server's own");
    }
    if subject.starts_with(b"_INBOX.") {
        return Some("_INBOX subjects are for replies");
    }
    // Of all Unicode: nats-server takes a no-break space in a message's subject, and we refuse it in a stream's.
    let has_space = match std::str::from_utf8(subject) {
        Ok(_) if subject.is_ascii() => subject.iter().any(|&byte| byte <= b' ' || byte == 0x7F),
        Ok(text) => text.contains(|c: char| c.is_whitespace() || c.is_control()),
        Err(_) => return Some("it is not UTF-8"),
    };
    if has_space {
        return Some("it has white space or a control character");
    }
    for token in subject.split(|&byte| byte == b'.') {
        if token.is_empty() {
            return Some("it has an empty token (a dot at an end, or two dots in a row)");
        }
        // NATS would store a publish to `webhooks.*` under that very name, and no filter could single it out.
        if token.contains(&b'*') || token.contains(&b'>') {
            return Some("it has a wildcard (* or >); a subject to publish to is literal");
        }
    }
    None
}

/// Why no stream can take this pattern; `None` if one can.
pub fn invalid_pattern(pattern: &str) -> Option<&'static str> {
    let mut tokens: Vec<_> = pattern.split('.').collect();
    if let Some(last) = tokens.last_mut().filter(|last| **last == ">") {
        *last = "x";
    }
    match pattern {
        ">" => Some("it takes everything, the answers of NATS itself too"),
        _ if tokens.contains(&">") => Some("it has > before its end"),
        _ => {
            let literal: Vec<_> = tokens.into_iter().map(|token| if token == "*" { "x" } else { token }).collect();
            match invalid(literal.join(".").as_bytes())? {
                // What is left of them is inside a token.
                why if why.contains("wildcard") => Some("it has * or > as a part of a token"),
                why => Some(why),
            }
        }
    }
}

/// Whether `pattern` (with `*` and `>`) takes the literal `subject`.
pub fn matches(pattern: &[u8], subject: &[u8]) -> bool {
    let mut tokens = subject.split(|&byte| byte == b'.');
    for part in pattern.split(|&byte| byte == b'.') {
        match (part, tokens.next()) {
            (b">", Some(_)) => return true,
            (b"*", Some(_)) => {}
            (part, Some(token)) if part == token => {}
            _ => return false,
        }
    }
    tokens.next().is_none()
}

/// Whether `wide` takes all that `narrow` takes.
pub fn covers(wide: &str, narrow: &str) -> bool {
    let (mut wide, mut narrow) = (wide.split('.'), narrow.split('.'));
    loop {
        match (wide.next(), narrow.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some(x), Some(y)) if y != ">" && (x == "*" || x == y) => {}
            _ => return false,
        }
    }
}

/// Whether two patterns take a common subject.
pub fn overlaps(a: &str, b: &str) -> bool {
    let (mut a, mut b) = (a.split('.'), b.split('.'));
    loop {
        match (a.next(), b.next()) {
            (Some(">"), Some(_)) | (Some(_), Some(">")) => return true,
            (Some(x), Some(y)) if x == y || x == "*" || y == "*" => {}
            (None, None) => return true,
            _ => return false,
        }
    }
}

/// Appends `text` as one token: all outside `[A-Za-z0-9_-]` percent-encoded.
pub fn push_token(text: &[u8], out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for &byte in text {
        if byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-' {
            out.push(byte);
        } else {
            out.extend([b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        }
    }
}

/// Appends a name, in which `readable` may have written bytes that are no UTF-8 by their digits: those are bytes again, as for SQL.
pub fn push_name(name: &str, out: &mut Vec<u8>) {
    let mut rest = name.as_bytes();
    while let Some((&first, following)) = rest.split_first() {
        match rest {
            [0xEF, 0xBF, 0xBD, high @ (b'0'..=b'9' | b'A'..=b'F'), low @ (b'0'..=b'9' | b'A'..=b'F'), after @ ..] => {
                out.extend([b'%', *high, *low]);
                rest = after;
            }
            _ => {
                push_token(&[first], out);
                rest = following;
            }
        }
    }
}

/// A subject with `{schema} {table} {op} {column}` in it, fitted to one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(Vec<u8>),
    Op,
    /// An index into the row.
    Column(usize, String),
}

impl Template {
    /// A subject without tokens.
    pub fn literal(subject: &str) -> Template {
        Template { parts: vec![Part::Literal(subject.as_bytes().to_vec())] }
    }

    /// Reads a template and fits it to `relation`.
    ///
    /// # Errors
    /// A text that says what is wrong: braces that do not match, a token that is no column, a literal part that no
    /// subject may have.
    pub fn parse(template: &str, relation: &Relation) -> Result<Template, String> {
        let mut parts = Vec::new();
        let mut literal = Vec::new();
        let mut rest = template;
        while let Some(at) = rest.find(['{', '}']) {
            literal.extend_from_slice(&rest.as_bytes()[..at]);
            let inner = rest[at..].strip_prefix('{').and_then(|inner| inner.split_once('}'));
            let Some((token, after)) = inner else {
                return Err(format!("subject template {template:?}: braces do not match"));
            };
            match token {
                // A column of that name wins no quarrel: the words of the table come first.
                "schema" => push_name(&relation.schema, &mut literal),
                "table" => push_name(&relation.name, &mut literal),
                "op" => {
                    parts.push(Part::Literal(std::mem::take(&mut literal)));
                    parts.push(Part::Op);
                }
                column => {
                    let Some(index) = relation.columns.iter().position(|other| other.name == column) else {
                        return Err(format!(
                            "subject template {template:?}: {column:?} is neither schema, table, op nor a column of \
                             {}.{}",
                            relation.schema, relation.name
                        ));
                    };
                    parts.push(Part::Literal(std::mem::take(&mut literal)));
                    parts.push(Part::Column(index, column.to_owned()));
                }
            }
            rest = after;
        }
        literal.extend_from_slice(rest.as_bytes());
        parts.push(Part::Literal(literal));
        parts.retain(|part| !matches!(part, Part::Literal(literal) if literal.is_empty()));
        let template_value = Template { parts };
        // A stand-in for each token shows what is wrong with the literal parts.
        let mut sample = Vec::new();
        for part in &template_value.parts {
            match part {
                Part::Literal(literal) => sample.extend_from_slice(literal),
                Part::Op | Part::Column(..) => sample.push(b'x'),
            }
        }
        match invalid(&sample) {
            Some(why) => Err(format!("subject template {template:?}: {why}")),
            None => Ok(template_value),
        }
    }

    /// The subject, if it is the same for every row.
    pub fn as_literal(&self) -> Option<&[u8]> {
        match self.parts.as_slice() {
            [Part::Literal(literal)] => Some(literal),
            _ => None,
        }
    }

    /// The columns that it has, by their places.
    pub fn columns(&self) -> impl Iterator<Item = usize> {
        self.parts.iter().filter_map(|part| match part {
            Part::Column(index, _) => Some(*index),
            Part::Literal(_) | Part::Op => None,
        })
    }

    /// Appends the subject for a row.
    ///
    /// # Errors
    /// The name of a column that is NULL, empty or not in the WAL: there is no token to make of it.
    pub fn write(&self, op: Op, row: Option<Tuple<'_>>, out: &mut Vec<u8>) -> Result<(), &str> {
        for part in &self.parts {
            match part {
                Part::Literal(literal) => out.extend_from_slice(literal),
                Part::Op => out.extend_from_slice(op.as_str().as_bytes()),
                Part::Column(index, name) => match row.and_then(|row| row.iter().nth(*index)) {
                    Some(Column::Text(text)) if !text.is_empty() => push_token(text, out),
                    _ => return Err(name),
                },
            }
        }
        Ok(())
    }
}

/// The subject of the events of changed columns of a table, where `template` is that of its rows: `columns` stands for the operation, or
/// behind the subject, and `_` for what comes from a row. `walhook.rule_cdc_columns_subject` makes the same.
pub fn of_columns(template: &str, schema: &str, table: &str) -> Vec<u8> {
    let mut subject = Vec::new();
    let mut has_op = false;
    let mut rest = template;
    while let Some((before, (token, after))) =
        rest.split_once('{').and_then(|(before, inner)| Some((before, inner.split_once('}')?)))
    {
        subject.extend_from_slice(before.as_bytes());
        match token {
            "schema" => push_name(schema, &mut subject),
            "table" => push_name(table, &mut subject),
            "op" => {
                has_op = true;
                subject.extend_from_slice(Op::Columns.as_str().as_bytes());
            }
            _ => subject.push(b'_'),
        }
        rest = after;
    }
    subject.extend_from_slice(rest.as_bytes());
    if !has_op {
        subject.push(b'.');
        subject.extend_from_slice(Op::Columns.as_str().as_bytes());
    }
    subject
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::wal::{change::RelationColumn, pgoutput::ReplicaIdentity};

    fn orders() -> Relation {
        let column = |name: &str| RelationColumn { name: name.to_owned(), type_oid: 25, is_key: false };
        Relation {
            id: 1,
            schema: "public".to_owned(),
            name: "or.ders".to_owned(),
            identity: ReplicaIdentity::Default,
            columns: vec![column("id"), column("region")],
        }
    }

    #[test]
    fn a_pattern_has_wildcards_for_whole_tokens_only() {
        for pattern in ["a", "a.*", "a.>", "*.b", "a.*.c.>"] {
            assert_eq!(invalid_pattern(pattern), None, "{pattern}");
        }
        for (pattern, why) in [
            ("", "empty"),
            (">", "everything"),
            ("a..b", "empty token"),
            ("a.>.b", "before its end"),
            ("a.b*", "part of a token"),
            ("a b", "space"),
            ("$JS.>", "begin with $"),
        ] {
            assert!(invalid_pattern(pattern).is_some_and(|said| said.contains(why)), "{pattern}");
        }
    }

    #[test]
    fn subjects_that_nats_would_misunderstand_are_refused() {
        for good in ["webhooks.slack", "a", "events.order.created", "x.%2E-_Z"] {
            assert_eq!(invalid(good.as_bytes()), None, "{good}");
        }
        for bad in ["", ".a", "a.", "a..b", "a b", "a\tb", "webhooks.*", "a.>", "ab*", "$JS.API", "_INBOX.x", "a\0"] {
            assert!(invalid(bad.as_bytes()).is_some(), "{bad:?}");
        }
        assert!(invalid(&[b'a'; MAX_LEN + 1]).is_some());
    }

    /// The same table that tests/sql/sql.rs holds against rule_nats_subject_check and rule_nats_pattern_problem.
    #[test]
    fn the_grammar_of_subjects_is_that_of_the_table() {
        for line in include_str!("../../tests/subjects.txt").lines().filter(|line| !line.starts_with('#')) {
            let (what, text) = line.split_once(' ').unwrap();
            let text: String = serde_json::from_str(text).unwrap();
            let (kind, is_good) = what.split_once('-').unwrap();
            let problem = match kind {
                "subject" => invalid(text.as_bytes()),
                _ => invalid_pattern(&text),
            };
            assert_eq!(problem.is_none(), is_good == "good", "{line}: {problem:?}");
        }
    }

    #[test]
    fn patterns_take_subjects_as_the_server_does() {
        let check = |pattern: &str, subject: &str, expected: bool| {
            assert_eq!(matches(pattern.as_bytes(), subject.as_bytes()), expected, "{pattern} {subject}");
        };
        check("webhooks.*", "webhooks.slack", true);
        check("webhooks.*", "webhooks.public.orders", false);
        check("webhooks.>", "webhooks.public.orders", true);
        check("webhooks.>", "webhooks", false);
        check(">", "a.b", true);
        check("a.*.c", "a.b.c", true);
        check("a.*.c", "a.b.d", false);
        check("a.b", "a.b", true);
        check("a.b", "a", false);
        check("a", "a.b", false);
    }

    #[test]
    fn a_template_names_schema_table_op_and_columns() {
        let template = Template::parse("ev.{schema}.{table}.{op}", &orders()).unwrap();
        let mut out = Vec::new();
        template.write(Op::Insert, None, &mut out).unwrap();
        assert_eq!(out, b"ev.public.or%2Eders.insert");
        assert_eq!(template.as_literal(), None);
        assert_eq!(Template::parse("ev.{table}", &orders()).unwrap().as_literal(), Some(&b"ev.or%2Eders"[..]));
    }

    #[test]
    fn changed_columns_have_a_subject_that_no_row_has() {
        for (template, subject) in [
            ("webhooks.orders", "webhooks.orders.columns"),
            ("webhooks.{schema}.{table}", "webhooks.a%20b.or%2Eders.columns"),
            ("{table}.{op}", "or%2Eders.columns"),
            ("e.{customer}.x-{op}.{id}", "e._.x-columns._"),
            ("e.{customer}", "e._.columns"),
        ] {
            assert_eq!(of_columns(template, "a b", "or.ders"), subject.as_bytes(), "{template}");
        }
    }

    #[test]
    fn a_template_that_cannot_work_is_refused_with_the_reason() {
        let check = |template: &str, reason: &str| {
            let error = Template::parse(template, &orders()).unwrap_err();
            assert!(error.contains(reason), "{template}: {error}");
        };
        check("a.{nope}", "\"nope\" is neither");
        check("a.{id", "braces");
        check("a.id}", "braces");
        check("a..{id}", "empty token");
        check("a.*.{id}", "wildcard");
        check("", "empty");
    }
}
