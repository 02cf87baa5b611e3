//! A connection string or URL, and the `PG*` variables, as keywords with their values. What the values mean is decided in [`super`].

use std::collections::BTreeMap;

use super::bad;
use crate::{error::Result, percent};

/// What walhook understands, each with its variable.
const KEYWORDS: [(&str, Option<&str>); 27] = [
    ("host", Some("PGHOST")),
    ("hostaddr", Some("PGHOSTADDR")),
    ("port", Some("PGPORT")),
    ("user", Some("PGUSER")),
    ("password", Some("PGPASSWORD")),
    ("passfile", Some("PGPASSFILE")),
    ("dbname", Some("PGDATABASE")),
    ("sslmode", Some("PGSSLMODE")),
    ("sslnegotiation", Some("PGSSLNEGOTIATION")),
    ("sslrootcert", Some("PGSSLROOTCERT")),
    ("sslcert", Some("PGSSLCERT")),
    ("sslkey", Some("PGSSLKEY")),
    ("channel_binding", Some("PGCHANNELBINDING")),
    ("application_name", Some("PGAPPNAME")),
    ("fallback_application_name", None),
    ("connect_timeout", Some("PGCONNECT_TIMEOUT")),
    ("keepalives", None),
    ("keepalives_idle", None),
    ("keepalives_interval", None),
    ("keepalives_count", None),
    ("tcp_user_timeout", None),
    ("options", Some("PGOPTIONS")),
    ("target_session_attrs", Some("PGTARGETSESSIONATTRS")),
    // Two on which walhook has its own mind: text is UTF-8, and it knows which connection replicates.
    ("client_encoding", None),
    ("replication", None),
    // GSSAPI encryption is not spoken here; "require" is refused below.
    ("gssencmode", Some("PGGSSENCMODE")),
    // Compression is gone from TLS.
    ("sslcompression", None),
];

/// What libpq understands and walhook refuses: each narrows whom to trust, so it must not be ignored.
const REFUSED: [(&str, &str); 9] = [
    ("service", "PGSERVICE"),
    ("sslcrl", "PGSSLCRL"),
    ("sslcrldir", "PGSSLCRLDIR"),
    ("sslpassword", "PGSSLPASSWORD"),
    ("sslcertmode", "PGSSLCERTMODE"),
    ("requirepeer", "PGREQUIREPEER"),
    ("require_auth", "PGREQUIREAUTH"),
    ("ssl_min_protocol_version", "PGSSLMINPROTOCOLVERSION"),
    ("ssl_max_protocol_version", "PGSSLMAXPROTOCOLVERSION"),
];

/// Keywords and their values, none of them interpreted.
pub(super) type Given = BTreeMap<&'static str, String>;

/// What a URL needs whose user, password or database holds one of these.
pub(super) const AT_SIGN: &str = "a URL is postgres://user:password@host:port/dbname; in its parts write %40 for @, %3A for :, %2F for /, \
                       %3F for ?, %25 for %";

/// What `conninfo` says, over what the variables say. `env` looks up a variable that is not empty.
///
/// # Errors
/// Configuration, naming the keyword; never showing the text around it, which may hold a password.
pub(super) fn read(conninfo: &str, env: impl Fn(&str) -> Option<String>) -> Result<Given> {
    let mut given = Given::new();
    for (keyword, variable) in KEYWORDS {
        if let Some(value) = variable.and_then(&env) {
            given.insert(keyword, value);
        }
    }
    if let Some((_, variable)) = REFUSED.iter().find(|(_, variable)| env(variable).is_some()) {
        return Err(bad(format!("the variable {variable} is set, and walhook cannot do what it asks for"))
            .hint("unset it for walhook"));
    }
    let trimmed = conninfo.trim();
    let is_url = ["postgres://", "postgresql://"].iter().any(|scheme| trimmed.starts_with(scheme));
    if !is_url && trimmed.split(['=', ' ']).next().is_some_and(|word| word.contains("://")) {
        return Err(
            bad("the URL begins with neither postgres:// nor postgresql://").hint("write postgres://user@host/db")
        );
    }
    given.extend(if is_url { parse_url(trimmed)? } else { parse_pairs(trimmed)? });
    Ok(given)
}

/// The keyword as the table has it. `place` says where it stands; the word itself may be a password, or the rest of one
/// with a space in it.
fn keyword(name: &str, place: &str) -> Result<&'static str> {
    if let Some((keyword, _)) = KEYWORDS.iter().find(|(keyword, _)| *keyword == name) {
        return Ok(keyword);
    }
    if let Some((keyword, _)) = REFUSED.iter().find(|(keyword, _)| *keyword == name) {
        return Err(bad(format!("walhook cannot do what {keyword} asks for")).hint("leave it out"));
    }
    let near = KEYWORDS.iter().map(|(keyword, _)| (strsim::osa_distance(keyword, name), keyword)).min();
    Err(bad(format!("{place} is no keyword")).hint(match near {
        Some((..=2, keyword)) => format!("did you mean {keyword}?"),
        _ => "a value with a space in it needs quotes: password='a b'".to_owned(),
    }))
}

/// `keyword = value …`: values in single quotes where they hold spaces, a backslash before a quote or backslash.
fn parse_pairs(text: &str) -> Result<Given> {
    let mut given = Given::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let position = text.len() - rest.len() + 1;
        let end = rest.find(|c: char| c == '=' || c.is_ascii_whitespace()).unwrap_or(rest.len());
        let name = &rest[..end];
        let after = rest[end..].trim_start();
        let place = format!("the word at character {position}");
        let Some(after) = after.strip_prefix('=') else {
            return Err(bad(format!("no \"=\" after {place}")).hint(
                "write a URL (postgres://user@host/db) or keyword=value, with quotes where a value holds a space: password='a b'",
            ));
        };
        let keyword = keyword(name, &place)?;
        let (value, after) = value(after.trim_start())
            .ok_or_else(|| bad(format!("the quoted value of {keyword} has no closing quote")))?;
        given.insert(keyword, value);
        rest = after.trim_start();
    }
    Ok(given)
}

/// One value, and what follows it; `None` for a quote that is not closed.
fn value(text: &str) -> Option<(String, &str)> {
    let quoted = text.starts_with('\'');
    let mut value = String::new();
    let mut chars = text.char_indices().skip(usize::from(quoted));
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            '\'' if quoted => return Some((value, &text[at + 1..])),
            c if !quoted && c.is_ascii_whitespace() => return Some((value, &text[at..])),
            c => value.push(c),
        }
    }
    (!quoted).then_some((value, ""))
}

/// `postgresql://user:password@host:port,host:port/dbname?keyword=value&…`, every part percent-encoded.
fn parse_url(url: &str) -> Result<Given> {
    let mut given = Given::new();
    let (_, rest) = url.split_once("://").expect("the caller has seen the scheme");
    let (rest, query) = rest.split_once('?').map_or((rest, ""), |(rest, query)| (rest, query));
    // The user's part ends at the last "@" before the path: an unencoded "@" in a password is common.
    let authority_end = rest.find('/').unwrap_or(rest.len());
    let (authority, dbname) = (&rest[..authority_end], rest[authority_end..].trim_start_matches('/'));
    let hosts = match authority.rsplit_once('@') {
        None => authority,
        Some((who, hosts)) => {
            let (user, password) = who.split_once(':').map_or((who, None), |(user, password)| (user, Some(password)));
            put(&mut given, "user", decode(user, "user")?);
            if let Some(password) = password {
                put(&mut given, "password", decode(password, "password")?);
            }
            hosts
        }
    };
    let (mut names, mut ports) = (Vec::new(), Vec::new());
    for host in hosts.split(',') {
        let (name, port) = match host.strip_prefix('[') {
            Some(v6) => {
                let (name, port) = v6.split_once(']').ok_or_else(|| bad("the URL has a \"[\" without its \"]\""))?;
                (name, port.strip_prefix(':').unwrap_or(port))
            }
            None => host.split_once(':').map_or((host, ""), |(name, port)| (name, port)),
        };
        names.push(decode(name, "host")?);
        ports.push(decode(port, "port")?);
    }
    if names.iter().any(|name| !name.is_empty()) {
        put(&mut given, "host", names.join(","));
    }
    if ports.iter().any(|port| !port.is_empty()) {
        put(&mut given, "port", ports.join(","));
    }
    put(&mut given, "dbname", decode(dbname, "dbname")?);
    if dbname.contains(['@', '/']) {
        return Err(bad("the URL's dbname holds a \"@\" or a \"/\"").hint(AT_SIGN));
    }
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let Some((name, value)) = pair.split_once('=') else {
            return Err(bad("the URL's parameters have a keyword without a \"=\"").hint(AT_SIGN));
        };
        let name = decode(name, "a parameter's name")?;
        // What JDBC users write.
        if (&*name, value) == ("ssl", "true") {
            given.insert("sslmode", "require".to_owned());
            continue;
        }
        let keyword = keyword(&name, "a parameter of the URL")?;
        given.insert(keyword, decode(value, keyword)?);
    }
    Ok(given)
}

fn put(given: &mut Given, keyword: &'static str, value: String) {
    if !value.is_empty() {
        given.insert(keyword, value);
    }
}

fn decode(text: &str, what: &str) -> Result<String> {
    let wrong = || {
        bad(format!("the URL's {what} is not percent-encoded text"))
            .hint("write %25 for a percent sign, %40 for an at sign, %2F for a slash")
    };
    percent::decode(text).filter(|decoded| !decoded.contains('\0')).ok_or_else(wrong)
}
