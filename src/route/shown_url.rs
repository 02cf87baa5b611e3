//! A webhook's URL as others may see it: without its login, and without the values of query parameters that look like
//! credentials.
//!
//! In: the URL as its row has it. Out: what messages, the bucket and records show. `rule_webhook_shown_url` in `sql/` does the same;
//! a test holds both to one table. What is part of the path is not recognized as a secret.

use std::borrow::Cow;

/// What stands for a value that is left out.
const LEFT_OUT: &str = "***";

/// The URL without credentials; as it is where it has none.
pub fn shown_url(url: &str) -> Cow<'_, str> {
    // Whoever parses a URL as browsers do passes over these.
    let plain: Cow<'_, str> = match url.contains(['\t', '\n', '\r']) {
        true => url.replace(['\t', '\n', '\r'], "").into(),
        false => url.into(),
    };
    let shown = without_values(&without_login(&plain));
    if shown == *plain { Cow::Borrowed(url) } else { Cow::Owned(shown) }
}

/// `https://user:password@host/` → `https://host/`; also with fewer or more slashes, or without a scheme.
fn without_login(url: &str) -> String {
    let begin = url.find(|c: char| c > ' ').unwrap_or(url.len());
    let scheme_end = url[begin..].find(|c: char| !(c.is_ascii_alphanumeric() || "+.-".contains(c)));
    let begin = match scheme_end.map(|end| begin + end) {
        Some(end) if end > begin && url[end..].starts_with(':') => end + 1,
        _ => begin,
    };
    let rest = &url[begin..];
    let authority = begin + (rest.len() - rest.trim_start_matches(['/', '\\']).len());
    let end = url[authority..].find(['/', '\\', '?', '#']).map_or(url.len(), |end| authority + end);
    match url[authority..end].rfind('@') {
        Some(at) => format!("{}{}", &url[..authority], &url[authority + at + 1..]),
        None => url.to_owned(),
    }
}

/// `?token=x&n=1` → `?token=***&n=1`
fn without_values(url: &str) -> String {
    let mut shown = String::with_capacity(url.len());
    for (number, part) in url.split_inclusive(['?', '&', ';', '#']).enumerate() {
        match part.split_once('=') {
            Some((name, value)) if number > 0 && is_credential(name) => {
                shown.push_str(name);
                shown.push('=');
                shown.push_str(LEFT_OUT);
                shown.extend(value.chars().next_back().filter(|end| "?&;#".contains(*end)));
            }
            _ => shown.push_str(part),
        }
    }
    shown
}

/// Whether a query parameter of this name looks like a credential.
fn is_credential(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let plain = name.replace(['-', '_', '.'], "");
    let holds = ["token", "secret", "password", "passwd", "signature", "credential", "session", "jwt"];
    // An author is none.
    let is_auth = name.match_indices("auth").any(|(at, _)| {
        let rest = &name[at + 4..];
        !rest.starts_with("or") || rest.starts_with("ori")
    });
    is_auth
        || holds.iter().any(|word| name.contains(word))
        || ["apikey", "accesskey", "privatekey"].iter().any(|word| plain.contains(word))
        || ["key", "sig", "pass", "pwd", "pw", "code"].contains(&&*name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_shown_without_its_login_and_its_credentials_as_sql_shows_it() {
        // The table of tests/sql/shown_url.sql: `('what the row has', 'what is shown'),` on each line.
        let table = include_str!("../../tests/sql/shown_url.sql");
        let mut count = 0;
        for line in table.lines().filter_map(|line| line.trim().strip_prefix("(E'")) {
            let (url, shown) = line.split_once("', E'").expect("two columns");
            let plain = |text: &str| text.replace("\\n", "\n").replace("\\t", "\t").replace("\\\\", "\\");
            let shown = plain(shown.trim_end_matches(['\'', ')', ',', ';']));
            assert_eq!(shown_url(&plain(url)), shown, "{url}");
            count += 1;
        }
        assert!(count > 20, "{count} rows");
    }
}
