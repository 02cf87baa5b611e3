//! The values of a row as PostgreSQL writes them, read into the types of its columns.
//!
//! In: columns with their text. Out: a typed row. Always holds: a value that is not of its column's type is an error that names the
//! column, and the row stays as it was.

use crate::error::{Error, Result};

/// A column's value in a row that arrives.
#[derive(Debug, Clone, Copy)]
pub enum Cell<'a> {
    /// SQL NULL.
    Null,
    /// A large value that the update did not touch: what is known stays.
    Unchanged,
    /// PostgreSQL's text.
    Text(&'a str),
}

/// A typed row that takes its columns one by one; columns it does not know are none of its business.
pub(super) trait Row: Default + Clone {
    fn set(&mut self, column: &str, value: Option<&str>) -> Result<()>;
}

pub(super) fn text(value: Option<&str>) -> String {
    value.unwrap_or_default().to_owned()
}

pub(super) fn optional(value: Option<&str>) -> Option<String> {
    value.map(str::to_owned)
}

/// NULL counts as false: a switch that nobody set is off.
pub(super) fn boolean(column: &str, value: Option<&str>) -> Result<bool> {
    match value {
        None | Some("f" | "false") => Ok(false),
        Some("t" | "true") => Ok(true),
        Some(other) => Err(Error::protocol(format!("column {column}: {other:?} is not a boolean"))),
    }
}

/// NULL is left to the reader.
pub(super) fn switch(column: &str, value: Option<&str>) -> Result<Option<bool>> {
    value.map(|value| boolean(column, Some(value))).transpose()
}

pub(super) fn optional_number<N: std::str::FromStr>(column: &str, value: Option<&str>) -> Result<Option<N>> {
    value.map(|value| number(column, value)).transpose()
}

pub(super) fn number<N: std::str::FromStr>(column: &str, value: &str) -> Result<N> {
    value.parse().map_err(|_| Error::protocol(format!("column {column}: {value:?} is not a number that fits")))
}

pub(super) fn array(column: &str, value: Option<&str>) -> Result<Option<Vec<String>>> {
    value
        .map(|value| {
            parse_text_array(value)
                .ok_or_else(|| Error::protocol(format!("column {column}: {value:?} is not a one-dimensional array")))
        })
        .transpose()
}

/// PostgreSQL's text of a `text[]` (manual, section 8.15.6); NULL elements are left out.
fn parse_text_array(text: &str) -> Option<Vec<String>> {
    let mut rest = text.strip_prefix('{')?.strip_suffix('}')?;
    let mut elements = Vec::new();
    while !rest.is_empty() {
        let mut element = String::new();
        let after = if let Some(quoted) = rest.strip_prefix('"') {
            let mut chars = quoted.char_indices();
            loop {
                match chars.next()? {
                    (_, '\\') => element.push(chars.next()?.1),
                    (at, '"') => break &quoted[at + 1..],
                    (_, other) => element.push(other),
                }
            }
        } else {
            let end = rest.find(',').unwrap_or(rest.len());
            element.push_str(&rest[..end]);
            if element.contains(['{', '}', '"']) {
                return None;
            }
            &rest[end..]
        };
        if rest.starts_with('"') || !element.eq_ignore_ascii_case("null") {
            elements.push(element);
        }
        rest = match after.strip_prefix(',') {
            Some("") => return None,
            Some(next) => next,
            None if after.is_empty() => after,
            None => return None,
        };
    }
    Some(elements)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_array_is_read_as_postgresql_writes_it() {
        let check = |text: &str, expected: &[&str]| {
            let expected = expected.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
            assert_eq!(parse_text_array(text), Some(expected), "{text}");
        };
        check("{}", &[]);
        check("{insert,update}", &["insert", "update"]);
        check(r#"{"a b","c\"d\\e",""}"#, &["a b", r#"c"d\e"#, ""]);
        check(r#"{NULL,"NULL",x}"#, &["NULL", "x"]);
        for bad in ["", "{", "{a", "{\"a}", "{a,}", "{{a},{b}}", "{\"a\"b}"] {
            assert_eq!(parse_text_array(bad), None, "{bad}");
        }
    }
}
