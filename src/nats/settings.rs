//! How to reach one NATS: a row of `rule_nats_config`, overridden by the process's own settings.
//!
//! In: the row and the [`Overrides`]. Out: [`Settings`] that both kinds of connection take as they are, and warnings to
//! log. What always holds: a secret is never shown, the process's settings win over the row, and a row reaches only the
//! hosts and folders that the process's settings allow. Files are named here and read when a connection is opened; only
//! where a folder must be checked are paths looked up.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;

use super::auth::Auth;
use crate::error::{Error, Result};

/// The port where a URL names none.
pub const PORT: u16 = 4222;

const CONNECT_TIMEOUT: Duration = Duration::from_millis(5000);
const RECONNECT_DELAY: Duration = Duration::from_millis(2000);
const MAX_CONNECTIONS: usize = 10;
const CLIENT_NAME: &str = "walhook";
const INBOX_PREFIX: &str = "_INBOX";

/// One row of `rule_nats_config`, column by column. NULL is `None` and means the column's default.
#[derive(Clone, Default, PartialEq, Eq)]
#[allow(missing_docs)] // the columns of RFC-0007
pub struct ConfigRow {
    pub config_id: i32,
    pub config_name: String,
    pub nats_url: Option<String>,
    pub nats_cluster_urls: Vec<String>,
    pub auth_type: Option<String>,
    pub auth_token: Option<String>,
    pub auth_credentials_file: Option<String>,
    pub auth_nkey_seed: Option<String>,
    pub tls_enabled: Option<bool>,
    pub tls_cert_file: Option<String>,
    pub tls_key_file: Option<String>,
    pub tls_ca_file: Option<String>,
    pub max_connections: Option<i32>,
    pub connection_timeout_ms: Option<i32>,
    pub reconnect_delay_ms: Option<i32>,
    pub max_reconnect_attempts: Option<i32>,
    pub jetstream_enabled: Option<bool>,
    pub stream_name: Option<String>,
    pub subject_prefix: Option<String>,
    pub enabled: Option<bool>,
}

/// Without secrets: the URL may hold one too.
impl fmt::Debug for ConfigRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfigRow")
            .field("config_id", &self.config_id)
            .field("config_name", &self.config_name)
            .field("auth_type", &self.auth_type)
            .field("stream_name", &self.stream_name)
            .field("enabled", &self.enabled)
            .finish_non_exhaustive()
    }
}

/// What the process's own settings say of NATS: `NATS_*`, flags, or `[nats]` in the configuration file.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Overrides {
    /// NATS_URL: in place of the row's URLs. Each may hold several, separated by commas.
    pub url: Option<Vec<String>>,
    /// NATS_USER: a user, or a token where no password is given (as the nats command line has it).
    pub user: Option<String>,
    /// NATS_PASSWORD.
    pub password: Option<String>,
    /// NATS_TOKEN.
    pub token: Option<String>,
    /// NATS_CREDS: path of a credentials file.
    pub creds: Option<PathBuf>,
    /// NATS_NKEY: the *seed* of a user nkey.
    pub nkey: Option<String>,
    /// NATS_CA: path of the certificates to trust, in PEM, in place of the system's.
    pub ca: Option<PathBuf>,
    /// NATS_CERT: path of our certificate, in PEM.
    pub cert: Option<PathBuf>,
    /// NATS_KEY: path of its key, in PEM.
    pub key: Option<PathBuf>,
    /// Refuse a server without TLS. Default: as the URL (`tls://`) and the row say; true where `ca` or `cert` is given.
    pub tls_required: Option<bool>,
    /// Speak TLS from the first byte, for servers with `handshake_first: true`.
    pub tls_first: bool,
    /// First tokens of the subjects on which replies come, for accounts that may subscribe to nothing else.
    pub inbox_prefix: Option<String>,
    /// The hosts a row may name: `nats.example.org`, `*.example.org`, `10.0.0.7:4222`. Empty: any.
    pub allowed_hosts: Vec<String>,
    /// The folders in which a row may name files. Empty: any.
    pub allowed_dirs: Vec<PathBuf>,
}

impl fmt::Debug for Overrides {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Overrides")
            .field("creds", &self.creds)
            .field("ca", &self.ca)
            .field("cert", &self.cert)
            .field("key", &self.key)
            .field("tls_required", &self.tls_required)
            .field("tls_first", &self.tls_first)
            .field("allowed_hosts", &self.allowed_hosts)
            .field("allowed_dirs", &self.allowed_dirs)
            .finish_non_exhaustive()
    }
}

/// Everything that opening a connection takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The name of the configuration, for errors and logs.
    pub config_name: String,
    /// Where to connect, tried in this order. Never empty.
    pub servers: Vec<ServerAddr>,
    /// Who we are.
    pub auth: Auth,
    /// How to encrypt.
    pub tls: Tls,
    /// For one server: TCP, TLS and the exchange of greetings together.
    pub connect_timeout: Duration,
    /// Between two attempts.
    pub reconnect_delay: Duration,
    /// How many attempts in a row; `None`: for ever.
    pub max_reconnects: Option<u32>,
    /// How many publishing connections there may be. At least one.
    pub max_connections: usize,
    /// What the server shows in its list of connections.
    pub name: String,
    /// First tokens of the subjects on which replies come.
    pub inbox_prefix: String,
    /// What is allowed but unwise, for the log.
    pub warnings: Vec<String>,
}

/// One server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServerAddr {
    /// Name or address, without brackets. Certificates are checked against it.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Named by `tls://`: never without TLS.
    pub tls: bool,
}

impl fmt::Display for ServerAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "tls" } else { "nats" };
        match self.host.contains(':') {
            true => write!(f, "{scheme}://[{}]:{}", self.host, self.port),
            false => write!(f, "{scheme}://{}:{}", self.host, self.port),
        }
    }
}

/// How to encrypt. Without `required` and `first`, TLS is used when the server asks for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// Refuse a server without TLS.
    pub required: bool,
    /// TLS from the first byte, before the server's greeting.
    pub first: bool,
    /// Certificates to trust in place of the system's.
    pub ca: Option<PathBuf>,
    /// Our certificate.
    pub cert: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
}

impl Settings {
    /// The settings of one configuration; [`crate::error::Kind::Config`] with the column or variable that is wrong.
    pub fn resolve(row: &ConfigRow, overrides: &Overrides) -> Result<Settings> {
        build(row, overrides).map_err(|error| error.context(format!("NATS configuration {:?}", row.config_name)))
    }
}

fn build(row: &ConfigRow, overrides: &Overrides) -> Result<Settings> {
    let mut warnings = Vec::new();
    let from_row = overrides.url.is_none();
    let (servers, in_url) = servers(row, overrides)?;
    if from_row {
        for server in &servers {
            check_host(server, &overrides.allowed_hosts)?;
        }
    }
    let own_auth = own_auth(overrides)?;
    if own_auth.is_some() && from_row && overrides.allowed_hosts.is_empty() {
        warnings.push(
            "the environment's NATS secret goes to whatever server rule_nats_config names; set nats.allowed_hosts or NATS_URL"
                .to_owned(),
        );
    }
    let auth = match own_auth {
        Some(auth) => auth,
        None if !from_row && in_url != Auth::None => in_url,
        None => row_auth(row, in_url, overrides, &mut warnings)?,
    };
    let tls = tls(row, overrides)?;
    Ok(Settings {
        config_name: row.config_name.clone(),
        servers,
        auth,
        tls,
        connect_timeout: millis("connection_timeout_ms", row.connection_timeout_ms, 1)?.unwrap_or(CONNECT_TIMEOUT),
        reconnect_delay: millis("reconnect_delay_ms", row.reconnect_delay_ms, 0)?.unwrap_or(RECONNECT_DELAY),
        max_reconnects: row.max_reconnect_attempts.and_then(|attempts| u32::try_from(attempts).ok()),
        max_connections: match row.max_connections {
            None => MAX_CONNECTIONS,
            Some(count) => usize::try_from(count)
                .ok()
                .filter(|count| *count > 0)
                .ok_or_else(|| Error::config(format!("max_connections is {count}, less than 1")))?,
        },
        name: CLIENT_NAME.to_owned(),
        inbox_prefix: inbox_prefix(overrides)?,
        warnings,
    })
}

fn millis(column: &str, value: Option<i32>, least: u64) -> Result<Option<Duration>> {
    let Some(value) = value else { return Ok(None) };
    match u64::try_from(value) {
        Ok(value) if value >= least => Ok(Some(Duration::from_millis(value))),
        _ => Err(Error::config(format!("{column} is {value}, less than {least}"))),
    }
}

fn inbox_prefix(overrides: &Overrides) -> Result<String> {
    let Some(prefix) = &overrides.inbox_prefix else { return Ok(INBOX_PREFIX.to_owned()) };
    let valid = prefix.split('.').all(|token| !token.is_empty())
        && prefix.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'*' | b'>'));
    match valid {
        true => Ok(prefix.clone()),
        false => Err(Error::config(format!("nats.inbox_prefix {prefix:?} is not the beginning of a subject"))),
    }
}

/// The servers and who their URLs say we are.
fn servers(row: &ConfigRow, overrides: &Overrides) -> Result<(Vec<ServerAddr>, Auth)> {
    let urls = match &overrides.url {
        Some(urls) => urls.iter().collect::<Vec<_>>(),
        None => row.nats_url.iter().chain(&row.nats_cluster_urls).collect(),
    };
    let mut servers: Vec<ServerAddr> = Vec::new();
    let mut auth = Auth::None;
    for url in urls.into_iter().flat_map(|urls| urls.split(',')).map(str::trim).filter(|url| !url.is_empty()) {
        let (server, here) = parse_url(url)?;
        if here != Auth::None {
            if auth != Auth::None && auth != here {
                return Err(Error::config("two NATS URLs name different users")
                    .hint("All servers of one configuration take the same user; use a configuration for each"));
            }
            auth = here;
        }
        if !servers.contains(&server) {
            servers.push(server);
        }
    }
    match servers.is_empty() {
        true => Err(Error::config("no NATS URL").hint("Set nats_url, as in nats://nats.example.org:4222")),
        false => Ok((servers, auth)),
    }
}

/// `[nats://|tls://][user:password@|token@]host[:port]`. The URL itself is never quoted: it may hold a secret.
fn parse_url(url: &str) -> Result<(ServerAddr, Auth)> {
    let (scheme, rest) = url.split_once("://").unwrap_or(("nats", url));
    let tls = match scheme.to_ascii_lowercase().as_str() {
        "nats" => false,
        "tls" => true,
        "ws" | "wss" => {
            return Err(Error::config("a NATS URL over WebSocket is not supported").hint("Use nats:// or tls://"));
        }
        _ => return Err(Error::config("a NATS URL has an unknown scheme").hint("Use nats:// or tls://")),
    };
    let (user, place) = rest.rsplit_once('@').map_or((None, rest), |(user, place)| (Some(user), place));
    let place = place.strip_suffix('/').unwrap_or(place);
    let wrong = || {
        Error::config(format!("the server {place:?} of a NATS URL is not host or host:port"))
            .hint("An IPv6 address stands in brackets; characters such as / or @ in a password are percent-encoded")
    };
    let (host, port) = match place.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or_else(wrong)?;
            host.parse::<std::net::Ipv6Addr>().map_err(|_| wrong())?;
            (host, if port.is_empty() { None } else { Some(port.strip_prefix(':').ok_or_else(wrong)?) })
        }
        None => match place.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (place, None),
        },
    };
    let host_is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':');
    if host.is_empty() || !host.bytes().all(host_is_plain) {
        return Err(wrong());
    }
    let port = match port {
        None => PORT,
        Some(port) => port.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?,
    };
    let auth = match user.map(|user| user.split_once(':').map_or((user, None), |(user, pass)| (user, Some(pass)))) {
        None => Auth::None,
        Some((user, Some(password))) => Auth::UserPassword(percent_decode(user)?, percent_decode(password)?),
        Some((token, None)) => Auth::Token(percent_decode(token)?),
    };
    Ok((ServerAddr { host: host.to_ascii_lowercase(), port, tls }, auth))
}

fn percent_decode(text: &str) -> Result<String> {
    let wrong = || Error::config("user or password of a NATS URL: a % without two hexadecimal digits after it");
    let mut bytes = Vec::with_capacity(text.len());
    let mut parts = text.split('%');
    bytes.extend(parts.next().unwrap_or_default().bytes());
    for part in parts {
        let digits = part.get(..2).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        bytes.push(u8::from_str_radix(digits.ok_or_else(wrong)?, 16).map_err(|_| wrong())?);
        bytes.extend(part[2..].bytes());
    }
    String::from_utf8(bytes).map_err(|_| Error::config("user or password of a NATS URL is not UTF-8"))
}

/// Who the process's own settings say we are. Two answers are one too many: which was meant, we cannot know.
fn own_auth(overrides: &Overrides) -> Result<Option<Auth>> {
    let user = match (&overrides.user, &overrides.password) {
        (Some(user), Some(password)) => Some(Auth::UserPassword(user.clone(), password.clone())),
        (Some(token), None) => Some(Auth::Token(token.clone())),
        (None, Some(_)) => return Err(Error::config("NATS_PASSWORD is set, NATS_USER is not")),
        (None, None) => None,
    };
    let mut given = [
        overrides.creds.clone().map(Auth::Credentials),
        overrides.nkey.clone().map(Auth::Nkey),
        overrides.token.clone().map(Auth::Token),
        user,
    ]
    .into_iter()
    .flatten();
    match (given.next(), given.next()) {
        (_, Some(_)) => Err(Error::config("more than one of NATS_CREDS, NATS_NKEY, NATS_TOKEN and NATS_USER is set")
            .hint("Keep the one that the server asks for")),
        (only, None) => Ok(only),
    }
}

/// Who the row says we are, by its columns or else by its URL.
fn row_auth(row: &ConfigRow, in_url: Auth, overrides: &Overrides, warnings: &mut Vec<String>) -> Result<Auth> {
    let plain = |what: &str| {
        format!(
            "{what} of NATS configuration {:?} stands in plain text in rule_nats_config; prefer a credentials file or the \
             environment (NATS_TOKEN_FILE, NATS_NKEY_FILE, NATS_CREDS)",
            row.config_name
        )
    };
    let filled = |column: &str, value: &Option<String>| {
        value.as_deref().map(str::trim).filter(|value| !value.is_empty()).map(str::to_owned).ok_or_else(|| {
            Error::config(format!(
                "auth_type is {:?}, and {column} is empty",
                row.auth_type.as_deref().unwrap_or_default()
            ))
        })
    };
    match row.auth_type.as_deref().unwrap_or("none") {
        "none" => {
            if overrides.url.is_none() && in_url != Auth::None {
                warnings.push(plain("the URL's secret"));
            }
            Ok(in_url)
        }
        "token" => {
            let token = filled("auth_token", &row.auth_token)?;
            warnings.push(plain("auth_token"));
            Ok(Auth::Token(token))
        }
        "nkey" => {
            let seed = filled("auth_nkey_seed", &row.auth_nkey_seed)?;
            super::auth::key_pair(&seed).map_err(|error| error.context("auth_nkey_seed"))?;
            warnings.push(plain("auth_nkey_seed"));
            Ok(Auth::Nkey(seed))
        }
        "credentials" => {
            let file = filled("auth_credentials_file", &row.auth_credentials_file)?;
            Ok(Auth::Credentials(row_file("auth_credentials_file", &file, &overrides.allowed_dirs)?))
        }
        other => Err(Error::config(format!("auth_type {other:?} is unknown")).hint(
            "It is none, token, credentials or nkey; a user and password go into the URL or NATS_USER, NATS_PASSWORD",
        )),
    }
}

fn tls(row: &ConfigRow, overrides: &Overrides) -> Result<Tls> {
    let file = |own: &Option<PathBuf>, column: &str, value: &Option<String>| match (own, value.as_deref()) {
        (Some(own), _) => Ok(Some(own.clone())),
        (None, Some(value)) if !value.is_empty() => row_file(column, value, &overrides.allowed_dirs).map(Some),
        _ => Ok(None),
    };
    let ca = file(&overrides.ca, "tls_ca_file", &row.tls_ca_file)?;
    // Certificate and key are a pair: one from here and one from there fit by accident only.
    let own_pair = overrides.cert.is_some() || overrides.key.is_some();
    let (cert, key) = match own_pair {
        true => (overrides.cert.clone(), overrides.key.clone()),
        false => (file(&None, "tls_cert_file", &row.tls_cert_file)?, file(&None, "tls_key_file", &row.tls_key_file)?),
    };
    if cert.is_some() != key.is_some() {
        let (what, lacking) = if cert.is_some() { ("certificate", "key") } else { ("key", "certificate") };
        return Err(Error::config(format!("a TLS {what} without its {lacking}")).hint(match own_pair {
            true => "NATS_CERT and NATS_KEY go together; one file may hold both, named twice",
            false => "tls_cert_file and tls_key_file go together; one file may hold both, named twice",
        }));
    }
    let wanted = overrides.ca.is_some() || overrides.cert.is_some() || row.tls_enabled == Some(true);
    let required = overrides.tls_required.unwrap_or(wanted) || overrides.tls_first;
    Ok(Tls { required, first: overrides.tls_first, ca, cert, key })
}

/// A row's host must match one of the patterns, where there are any.
fn check_host(server: &ServerAddr, patterns: &[String]) -> Result<()> {
    if patterns.is_empty() || patterns.iter().any(|pattern| host_matches(server, pattern)) {
        return Ok(());
    }
    Err(Error::config(format!("the server {server} is not among nats.allowed_hosts"))
        .hint("Correct nats_url or nats_cluster_urls, or allow the host in the process's own settings"))
}

fn host_matches(server: &ServerAddr, pattern: &str) -> bool {
    let pattern = pattern.trim().to_ascii_lowercase();
    let (host, port) = match pattern.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, port)) => (host, port.strip_prefix(':')),
        // An IPv6 address without brackets has no room for a port.
        None if pattern.matches(':').count() > 1 => (pattern.as_str(), None),
        None => pattern.split_once(':').map_or((pattern.as_str(), None), |(host, port)| (host, Some(port))),
    };
    let host_fits = match host.strip_prefix('*') {
        Some("") => true,
        Some(end) => end.starts_with('.') && server.host.len() > end.len() && server.host.ends_with(end),
        None => server.host == host,
    };
    host_fits && port.is_none_or(|port| port == "*" || port.parse() == Ok(server.port))
}

/// A row's file must lie in one of the folders, where there are any, with all links followed.
fn row_file(column: &str, file: &str, folders: &[PathBuf]) -> Result<PathBuf> {
    let path = Path::new(file);
    if !path.is_absolute() {
        return Err(Error::config(format!("{column} {file:?} is not an absolute path")));
    }
    if folders.is_empty() {
        return Ok(path.to_owned());
    }
    // Before looking the path up: a row must not tell which files exist elsewhere.
    let outside = || {
        Error::config(format!("{column} {file:?} lies outside nats.allowed_dirs"))
            .hint("Move the file, or allow its folder in the process's own settings")
    };
    let climbs = path.components().any(|part| matches!(part, std::path::Component::ParentDir));
    if climbs || !folders.iter().any(|folder| path.starts_with(folder)) {
        return Err(outside());
    }
    let real = std::fs::canonicalize(path)
        .map_err(|error| Error::config(format!("look up {column} {file:?}")).caused_by(error))?;
    let inside = |folder: &PathBuf| std::fs::canonicalize(folder).is_ok_and(|folder| real.starts_with(folder));
    // The name is kept, not what it leads to today: mounted secrets are rotated by turning a link.
    if folders.iter().any(inside) { Ok(path.to_owned()) } else { Err(outside()) }
}
