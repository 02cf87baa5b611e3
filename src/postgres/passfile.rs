//! `.pgpass`: which password is for which server.
//!
//! In: the file's text, and where and as whom we log in. Out: the password of the first line that fits.

use super::Secret;

/// The password that a `.pgpass` text holds for this server, if any (manual, section 34.16).
///
/// Lines are `host:port:dbname:user:password`; `*` matches anything, a backslash escapes, the first match wins.
pub fn lookup(text: &str, host: &str, port: u16, dbname: &str, user: &str) -> Option<Secret> {
    let wanted = [host, &port.to_string(), dbname, user];
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let mut fields = self::fields(line);
        let password = (fields.len() == 5).then(|| fields.pop())??;
        let matches = fields.iter().zip(wanted).all(|((raw, field), wanted)| raw == "*" || field == wanted);
        matches.then_some(Secret::new(password.1))
    })
}

/// Up to five fields, each as written and unescaped. The last may hold colons.
fn fields(line: &str) -> Vec<(String, String)> {
    let mut fields = vec![(String::new(), String::new())];
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        if c == ':' && fields.len() < 5 {
            fields.push(Default::default());
            continue;
        }
        let (raw, field) = fields.last_mut().expect("never empty");
        raw.push(c);
        match c {
            '\\' => {
                let escaped = chars.next();
                raw.extend(escaped);
                field.extend(escaped);
            }
            c => field.push(c),
        }
    }
    fields
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_passfile_answers_with_its_first_match() {
        let text = "# h:1:d:u:comment\nshort:line\nh:1:d:other:no\nh:1:d:u:a\\:b\\\\:c\n*:*:*:u:any\n\\*:1:d:star:s\n";
        let check = |host, port, dbname, user, wanted: Option<&str>| {
            let found = lookup(text, host, port, dbname, user);
            assert_eq!(found.as_ref().map(Secret::reveal), wanted, "{host} {port} {dbname} {user}");
        };
        check("h", 1, "d", "u", Some("a:b\\:c"));
        check("h", 2, "d", "u", Some("any"));
        check("h", 1, "d", "nobody", None);
        check("h", 1, "d", "star", None);
        check("*", 1, "d", "star", Some("s"));
    }
}
