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
use crate::{
    error::{Error, Result},
    files, percent,
    route::tables::ConfigRow,
};

/// The port where a URL names none.
pub const PORT: u16 = 4222;

const CONNECT_TIMEOUT: Duration = Duration::from_millis(5000);
const RECONNECT_DELAY: Duration = Duration::from_millis(2000);
const MAX_CONNECTIONS: usize = 10;
const CLIENT_NAME: &str = "walhook";
const INBOX_PREFIX: &str = "_INBOX";

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
    /// NATS_JETSTREAM_DOMAIN: the JetStream domain, in place of what the row says of domain and API prefix; empty: none.
    pub jetstream_domain: Option<String>,
    /// NATS_API_PREFIX: before the requests of JetStream's API, in place of what the row says of both; empty: `$JS.API`.
    pub api_prefix: Option<String>,
    /// The hosts a row may name: `nats.example.org`, `*.example.org`, `10.0.0.7:4222`. Empty: any.
    pub allowed_hosts: Vec<String>,
    /// The folders in which a row may name files. Empty: any.
    pub allowed_dirs: Vec<PathBuf>,
}

impl Overrides {
    /// What of it holds for the configurations that it does not override: what rows may reach, and where replies come.
    #[must_use]
    pub fn for_others(&self) -> Overrides {
        let Overrides { allowed_hosts, allowed_dirs, inbox_prefix, .. } = self.clone();
        Overrides { allowed_hosts, allowed_dirs, inbox_prefix, ..Overrides::default() }
    }

    /// Below which subject the answers to one run's publishes come.
    pub fn publish_inbox(&self) -> String {
        let prefix = self.inbox_prefix.as_deref().unwrap_or(INBOX_PREFIX);
        format!("{prefix}.walhook.{:016x}", fastrand::u64(..))
    }

    /// Whether it is another server, user or JetStream than a row says.
    pub fn reaches_another(&self) -> bool {
        self.url.is_some()
            || self.user.is_some()
            || self.token.is_some()
            || self.creds.is_some()
            || self.nkey.is_some()
            || self.jetstream_domain.is_some()
            || self.api_prefix.is_some()
    }
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
    /// How many TCP connections there may be: one for JetStream's API, the rest for publishing, one at least.
    pub max_connections: usize,
    /// What the server shows in its list of connections.
    pub name: String,
    /// First tokens of the subjects on which replies come.
    pub inbox_prefix: String,
    /// Which JetStream is asked.
    pub api: Api,
    /// Where the addresses come from, for who has to correct them.
    pub address_source: &'static str,
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

/// Which JetStream is asked: that of the server, of a domain behind a leaf node, or of another account.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Api {
    /// `$JS.API`
    #[default]
    Own,
    /// `$JS.<domain>.API`
    Domain(String),
    /// Any other prefix: what an account imports from another one.
    Prefix(String),
}

/// What requests of JetStream's API begin with.
const API_PREFIX: &str = "$JS.API";

impl Api {
    /// What requests begin with, without the last dot.
    pub fn prefix(&self) -> String {
        match self {
            Api::Own => API_PREFIX.to_owned(),
            Api::Domain(domain) => format!("$JS.{domain}.API"),
            Api::Prefix(prefix) => prefix.clone(),
        }
    }

    /// The domain, where one is named.
    pub fn domain(&self) -> Option<&str> {
        match self {
            Api::Domain(domain) => Some(domain),
            Api::Own | Api::Prefix(_) => None,
        }
    }

    /// Before the subject of a key: a leaf node lets `$KV.>` of another domain pass by this way only.
    pub fn entry_prefix(&self) -> String {
        match self {
            Api::Domain(_) => format!("{}.", self.prefix()),
            Api::Own | Api::Prefix(_) => String::new(),
        }
    }

    /// Whether it is the server's own.
    pub fn is_default(&self) -> bool {
        *self == Api::Own
    }

    /// `Ok` if both columns, or both settings, can be so.
    fn parse(domain: Option<&str>, prefix: Option<&str>) -> Result<Api> {
        let given = |text: Option<&str>| text.filter(|text| !text.is_empty()).map(str::to_owned);
        let is_token = |text: &str| {
            !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'*' | b'>' | b'.'))
        };
        match (given(domain), given(prefix)) {
            (None, None) => Ok(Api::Own),
            (Some(_), Some(_)) => Err(Error::config("both jetstream_domain and api_prefix are set")
                .hint("Set one: the domain D is the prefix $JS.D.API")),
            (Some(domain), None) if is_token(&domain) && domain.len() <= 64 => Ok(Api::Domain(domain)),
            (Some(_), None) => Err(Error::config("jetstream_domain cannot be the name of a JetStream domain")
                .hint("It has 1 to 64 characters, without spaces, dots, * and >, as in: hub")),
            (None, Some(prefix)) if prefix == API_PREFIX => Ok(Api::Own),
            (None, Some(prefix)) if prefix.len() <= 200 && prefix.split('.').all(is_token) => {
                let mut tokens = prefix.split('.');
                Ok(match (tokens.next(), tokens.next(), tokens.next(), tokens.next()) {
                    (Some("$JS"), Some(domain), Some("API"), None) => Api::Domain(domain.to_owned()),
                    _ => Api::Prefix(prefix),
                })
            }
            (None, Some(_)) => Err(Error::config("api_prefix cannot be the beginning of a subject")
                .hint("It is tokens with a dot between them and none at its end, as in: js.from.acme")),
        }
    }
}

impl fmt::Display for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Api::Own => write!(f, "the API prefix {API_PREFIX}"),
            Api::Domain(domain) => write!(f, "the JetStream domain {domain:?}"),
            Api::Prefix(prefix) => write!(f, "the API prefix {prefix:?}"),
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
            "the environment's NATS secret is sent to every server that rule_nats_config names; set nats.allowed_hosts or NATS_URL"
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
        api: match (overrides.jetstream_domain.as_deref(), overrides.api_prefix.as_deref()) {
            (None, None) => Api::parse(row.jetstream_domain.as_deref(), row.api_prefix.as_deref())?,
            (domain, prefix) => Api::parse(domain, prefix)?,
        },
        address_source: match from_row {
            true => "the address: nats_url and nats_cluster_urls of its row in rule_nats_config",
            false => "the address, which is not the row's: --nats-url, NATS_URL, or nats.url in the configuration file",
        },
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
        false => Err(Error::config("nats.inbox_prefix is not the beginning of a subject")
            .hint("it is tokens with a dot between them, such as _INBOX_walhook")),
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
            return Err(Error::config("a NATS URL over WebSocket (ws://, wss://) is not supported").hint(
                "Name the server's port for clients instead (4222 by default): nats:// or tls://. Where only a WebSocket port can be \
                 reached, run a nats-server beside walhook that connects to it as a leaf node, and set jetstream_domain",
            ));
        }
        _ => return Err(Error::config("a NATS URL has an unknown scheme").hint("Use nats:// or tls://")),
    };
    let (user, place) = rest.rsplit_once('@').map_or((None, rest), |(user, place)| (Some(user), place));
    let place = place.strip_suffix('/').unwrap_or(place);
    let wrong = || {
        Error::config("the server of a NATS URL is not host or host:port")
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
    percent::decode(text).ok_or_else(|| {
        Error::config("user or password of a NATS URL: not percent-encoded UTF-8")
            .hint("two hexadecimal digits follow each %; write %25 for a percent sign")
    })
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
            .hint("Set only the one that the server requires")),
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
        _ => Err(Error::config("auth_type is unknown").hint(
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
        return Err(Error::config(format!("{column} is not an absolute path")).hint("write the path from / on"));
    }
    if folders.is_empty() {
        return Ok(path.to_owned());
    }
    // Before looking the path up: a row must not tell which files exist elsewhere.
    let outside = || {
        Error::config(format!("{column} lies outside nats.allowed_dirs"))
            .hint("Move the file, or allow its folder in the process's own settings")
    };
    let climbs = path.components().any(|part| matches!(part, std::path::Component::ParentDir));
    if climbs || !folders.iter().any(|folder| path.starts_with(folder)) {
        return Err(outside());
    }
    let real = std::fs::canonicalize(path).map_err(|error| {
        Error::config(format!("look up the file of {column}, {}", files::shown(path))).caused_by(error)
    })?;
    let inside = |folder: &PathBuf| std::fs::canonicalize(folder).is_ok_and(|folder| real.starts_with(folder));
    // The name is kept, not what it leads to today: mounted secrets are rotated by turning a link.
    if folders.iter().any(inside) { Ok(path.to_owned()) } else { Err(outside()) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn jetstream_is_the_servers_own_or_of_one_domain_or_under_one_prefix() {
        let api = |domain: Option<&str>, prefix: Option<&str>| Api::parse(domain, prefix);
        let prefix = |domain, prefix| api(domain, prefix).unwrap().prefix();
        assert_eq!(api(None, None).unwrap(), Api::Own);
        assert_eq!(api(Some(""), Some("$JS.API")).unwrap(), Api::Own);
        assert_eq!(prefix(Some("hub"), None), "$JS.hub.API");
        assert_eq!(api(None, Some("$JS.hub.API")).unwrap(), Api::Domain("hub".into()));
        assert_eq!(prefix(None, Some("js.from.acme")), "js.from.acme");
        for (domain, prefix) in
            [("a.b", ""), ("a b", ""), ("*", ""), ("hub", "x"), ("", "x."), ("", "a..b"), ("", "a.>")]
        {
            assert_eq!(
                api(Some(domain), Some(prefix)).unwrap_err().kind(),
                crate::error::Kind::Config,
                "{domain} {prefix}"
            );
        }
        // One of the two in the process's own settings stands for both columns.
        let row = ConfigRow { jetstream_domain: Some("row".into()), ..row("a") };
        let own = |domain: Option<&str>, prefix: Option<&str>| Overrides {
            jetstream_domain: domain.map(str::to_owned),
            api_prefix: prefix.map(str::to_owned),
            ..Overrides::default()
        };
        let resolved = |own: &Overrides| Settings::resolve(&row, own).unwrap().api.prefix();
        assert_eq!(resolved(&own(None, None)), "$JS.row.API");
        assert_eq!(resolved(&own(Some(""), None)), "$JS.API");
        assert_eq!(resolved(&own(None, Some("js"))), "js");
        assert!(own(Some(""), None).reaches_another());
    }

    fn row(url: &str) -> ConfigRow {
        ConfigRow { config_name: "default".into(), nats_url: Some(url.into()), ..ConfigRow::default() }
    }

    fn resolve(row: &ConfigRow) -> Result<Settings> {
        Settings::resolve(row, &Overrides::default())
    }

    /// Servers as text, and who we are.
    fn check(url: &str, servers: &[&str], auth: Auth) {
        let settings = resolve(&row(url)).unwrap_or_else(|error| panic!("{url}: {error}"));
        let got: Vec<_> = settings.servers.iter().map(ToString::to_string).collect();
        assert_eq!(got, servers, "{url}");
        assert_eq!(settings.auth, auth, "{url}");
    }

    /// The error holds these words and nothing secret.
    fn refuses(row: &ConfigRow, overrides: &Overrides, words: &str) {
        let error = Settings::resolve(row, overrides).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
        assert!(!error.contains("s3cr3t"), "{error}");
        assert!(error.contains("\"default\""), "{error}");
    }

    #[test]
    fn urls_of_all_forms_are_read() {
        check("nats://localhost:4222", &["nats://localhost:4222"], Auth::None);
        check("NATS.example.org", &["nats://nats.example.org:4222"], Auth::None);
        check("tls://a:443/", &["tls://a:443"], Auth::None);
        check("nats://[::1]", &["nats://[::1]:4222"], Auth::None);
        check("[fe80::1]:5222", &["nats://[fe80::1]:5222"], Auth::None);
        check(" a, nats://b:1 ,,a:4222", &["nats://a:4222", "nats://b:1"], Auth::None);
        check("nats://t%2Fk@a", &["nats://a:4222"], Auth::Token("t/k".into()));
        check("nats://u:p%40@a,b", &["nats://a:4222", "nats://b:4222"], Auth::UserPassword("u".into(), "p@".into()));
        check(
            "nats://u:p@a,nats://u:p@b",
            &["nats://a:4222", "nats://b:4222"],
            Auth::UserPassword("u".into(), "p".into()),
        );
    }

    #[test]
    fn what_is_no_url_is_refused_without_quoting_its_secret() {
        for (url, words) in [
            ("", "no NATS URL"),
            (" , ", "no NATS URL"),
            ("ws://u:s3cr3t@a", "WebSocket"),
            ("wss://a", "WebSocket"),
            ("http://u:s3cr3t@a", "unknown scheme"),
            ("nats://u:s3cr3t@a:0", "host:port"),
            ("nats://u:s3cr3t@a:65536", "host:port"),
            ("nats://a:b:c", "host:port"),
            ("nats://u:s3cr3t", "host:port"),
            ("nats://", "host:port"),
            ("nats://[::1", "host:port"),
            ("nats://[nonsense]:1", "host:port"),
            ("nats://a b", "host:port"),
            ("nats://a/path", "host:port"),
            ("nats://u:s3cr3t%4@a", "hexadecimal"),
            ("nats://u:s3cr3t%é@a", "hexadecimal"),
            ("nats://u:%ff@a", "UTF-8"),
            ("nats://u:s3cr3t@a,nats://v:s3cr3t@b", "different users"),
        ] {
            refuses(&row(url), &Overrides::default(), words);
        }
    }

    #[test]
    fn null_columns_mean_their_defaults_and_impossible_ones_are_refused() {
        let settings = resolve(&row("a")).unwrap();
        assert_eq!(settings.connect_timeout, Duration::from_secs(5));
        assert_eq!(settings.reconnect_delay, Duration::from_secs(2));
        assert_eq!((settings.max_reconnects, settings.max_connections), (None, 10));
        let given = ConfigRow {
            connection_timeout_ms: Some(1),
            reconnect_delay_ms: Some(0),
            max_reconnect_attempts: Some(0),
            max_connections: Some(1),
            ..row("a")
        };
        let settings = resolve(&given).unwrap();
        assert_eq!((settings.max_reconnects, settings.max_connections), (Some(0), 1));
        assert_eq!(resolve(&ConfigRow { max_reconnect_attempts: Some(-1), ..row("a") }).unwrap().max_reconnects, None);

        let none = Overrides::default();
        refuses(&ConfigRow { connection_timeout_ms: Some(0), ..row("a") }, &none, "connection_timeout_ms is 0");
        refuses(&ConfigRow { reconnect_delay_ms: Some(-1), ..row("a") }, &none, "reconnect_delay_ms is -1");
        refuses(&ConfigRow { max_connections: Some(0), ..row("a") }, &none, "max_connections is 0");
        refuses(&ConfigRow { nats_url: None, ..row("a") }, &none, "no NATS URL");
        refuses(&row("wss://a"), &none, "over WebSocket");
    }

    #[test]
    fn the_rows_authentication_must_be_complete_and_warns_where_it_is_plain() {
        let with = |kind: &str| ConfigRow { auth_type: Some(kind.into()), ..row("a") };
        let none = Overrides::default();
        refuses(&with("token"), &none, "auth_token is empty");
        refuses(&with("nkey"), &none, "auth_nkey_seed is empty");
        refuses(&with("credentials"), &none, "auth_credentials_file is empty");
        refuses(&with("kerberos"), &none, "auth_type is unknown");
        refuses(&ConfigRow { auth_nkey_seed: Some("SUs3cr3t".into()), ..with("nkey") }, &none, "auth_nkey_seed");
        refuses(&ConfigRow { auth_credentials_file: Some("a.creds".into()), ..with("credentials") }, &none, "absolute");

        let settings = resolve(&ConfigRow { auth_token: Some("s3cr3t".into()), ..with("token") }).unwrap();
        assert_eq!(settings.auth, Auth::Token("s3cr3t".into()));
        let [warning] = &settings.warnings[..] else { panic!("{:?}", settings.warnings) };
        assert!(warning.contains("auth_token") && !warning.contains("s3cr3t"), "{warning}");
        assert!(!format!("{settings:?}").contains("s3cr3t"));
        assert_eq!(resolve(&row("nats://s3cr3t@a")).unwrap().warnings.len(), 1);
        // auth_type none: what else the row holds is not used.
        assert_eq!(resolve(&ConfigRow { auth_token: Some("s3cr3t".into()), ..with("none") }).unwrap().auth, Auth::None);
    }

    #[test]
    fn the_environment_wins_over_the_row() {
        let row = ConfigRow { auth_type: Some("token".into()), auth_token: Some("row".into()), ..row("tls://row") };
        let url = Some(vec!["env1,env2".to_owned(), "nats://u:p@env3".to_owned()]);
        let own = Overrides { url: url.clone(), ..Overrides::default() };
        let settings = Settings::resolve(&row, &own).unwrap();
        assert_eq!(settings.servers.len(), 3);
        assert_eq!(settings.auth, Auth::UserPassword("u".into(), "p".into()));
        assert_eq!(settings.warnings, [""; 0]);

        let own = Overrides { creds: Some("/run/env.creds".into()), url, ..Overrides::default() };
        assert_eq!(Settings::resolve(&row, &own).unwrap().auth, Auth::Credentials("/run/env.creds".into()));
        // As the nats command line has it.
        let own = Overrides { user: Some("t".into()), ..Overrides::default() };
        assert_eq!(Settings::resolve(&row, &own).unwrap().auth, Auth::Token("t".into()));
    }

    #[test]
    fn an_ambiguous_environment_is_refused() {
        let text = |text: &str| Some(text.to_owned());
        let none = Overrides::default();
        refuses(&row("a"), &Overrides { password: text("s3cr3t"), ..none.clone() }, "NATS_USER is not");
        let own = Overrides { token: text("s3cr3t"), user: text("u"), password: text("s3cr3t"), ..none.clone() };
        refuses(&row("a"), &own, "more than one");
        refuses(&row("a"), &Overrides { cert: Some("/c".into()), ..none.clone() }, "without its key");
        refuses(&row("a"), &Overrides { inbox_prefix: text("a..b"), ..none }, "inbox_prefix");
    }

    #[test]
    fn a_secret_of_the_environment_for_a_rows_server_warns_until_hosts_are_named() {
        let own = Overrides { token: Some("t".into()), ..Overrides::default() };
        assert!(Settings::resolve(&row("a"), &own).unwrap().warnings[0].contains("allowed_hosts"));
        let own = Overrides { allowed_hosts: vec!["a".into()], ..own };
        assert_eq!(Settings::resolve(&row("a"), &own).unwrap().warnings, [""; 0]);
    }

    #[test]
    fn tls_is_wanted_by_the_row_or_by_files_of_the_environment() {
        let tls = |row: &ConfigRow, own: &Overrides| Settings::resolve(row, own).unwrap().tls;
        let none = Overrides::default();
        assert_eq!(tls(&row("a"), &none), Tls::default());
        assert!(tls(&ConfigRow { tls_enabled: Some(true), ..row("a") }, &none).required);
        assert!(tls(&row("a"), &Overrides { ca: Some("/ca".into()), ..none.clone() }).required);
        assert!(tls(&row("a"), &Overrides { tls_first: true, ..none.clone() }).required);
        let own = Overrides { ca: Some("/ca".into()), tls_required: Some(false), ..none.clone() };
        assert!(!tls(&row("a"), &own).required);

        let paired =
            ConfigRow { tls_cert_file: Some("/row.crt".into()), tls_key_file: Some("/row.key".into()), ..row("a") };
        assert_eq!(tls(&paired, &none).cert, Some("/row.crt".into()));
        let own = Overrides { cert: Some("/env.crt".into()), key: Some("/env.key".into()), ..none.clone() };
        assert_eq!(tls(&paired, &own).key, Some("/env.key".into()));
        refuses(&ConfigRow { tls_key_file: None, ..paired }, &none, "tls_key_file");
    }

    #[test]
    fn a_row_reaches_allowed_hosts_only() {
        let allows = |pattern: &str, url: &str| {
            let own = Overrides { allowed_hosts: vec!["nowhere".into(), pattern.into()], ..Overrides::default() };
            Settings::resolve(&row(url), &own).is_ok()
        };
        for (pattern, url) in [
            ("nats.example.org", "nats://NATS.example.org:9"),
            ("NATS.example.org:4222", "nats.example.org"),
            ("*.example.org", "a.b.example.org"),
            ("*", "anywhere"),
            ("10.0.0.7:*", "10.0.0.7:1"),
            ("[::1]:4222", "[::1]"),
            ("::1", "[::1]:9"),
        ] {
            assert!(allows(pattern, url), "{pattern} {url}");
        }
        for (pattern, url) in [
            ("nats.example.org", "evil-nats.example.org"),
            ("nats.example.org", "nats.example.org.evil"),
            ("nats.example.org:4222", "nats.example.org:4223"),
            ("*.example.org", "example.org"),
            ("*.example.org", "evilexample.org"),
            ("*.example.org", "a.example.org,evil"),
            ("[::1]:4222", "[::1]:1"),
            ("", "a"),
        ] {
            assert!(!allows(pattern, url), "{pattern} {url}");
        }
        // The environment names whom it likes.
        let own = Overrides { url: Some(vec!["b".into()]), allowed_hosts: vec!["a".into()], ..Overrides::default() };
        assert!(Settings::resolve(&row("c"), &own).is_ok());
    }

    #[test]
    fn a_row_reaches_files_of_allowed_folders_only_and_links_do_not_help() {
        let folder = tempfile::tempdir().unwrap();
        let (allowed, other) = (folder.path().join("allowed"), folder.path().join("allowed-not"));
        for folder in [&allowed, &other] {
            std::fs::create_dir(folder).unwrap();
            std::fs::write(folder.join("ca.crt"), "").unwrap();
        }
        std::os::unix::fs::symlink(other.join("ca.crt"), allowed.join("link.crt")).unwrap();
        std::os::unix::fs::symlink(allowed.join("ca.crt"), allowed.join("inside.crt")).unwrap();
        let own = Overrides { allowed_dirs: vec![allowed.clone()], ..Overrides::default() };
        let with = |path: PathBuf| ConfigRow { tls_ca_file: Some(path.display().to_string()), ..row("a") };
        for good in ["ca.crt", "inside.crt"] {
            assert_eq!(Settings::resolve(&with(allowed.join(good)), &own).unwrap().tls.ca, Some(allowed.join(good)));
        }
        refuses(&with(other.join("ca.crt")), &own, "outside nats.allowed_dirs");
        refuses(&with(allowed.join("link.crt")), &own, "outside nats.allowed_dirs");
        refuses(&with(allowed.join("../allowed-not/ca.crt")), &own, "outside nats.allowed_dirs");
        refuses(&with(allowed.join("absent.crt")), &own, "look up the file of tls_ca_file");
        refuses(&with("ca.crt".into()), &own, "absolute");
        let creds = ConfigRow {
            auth_type: Some("credentials".into()),
            auth_credentials_file: Some(other.join("ca.crt").display().to_string()),
            ..row("a")
        };
        refuses(&creds, &own, "auth_credentials_file");
    }

    #[test]
    fn debug_shows_no_secret() {
        let row = ConfigRow { auth_token: Some("s3cr3t".into()), ..row("nats://u:s3cr3t@a") };
        let own = Overrides {
            password: Some("s3cr3t".into()),
            url: Some(vec!["nats://s3cr3t@a".into()]),
            ..Overrides::default()
        };
        let shown = format!("{row:?} {own:?} {:?}", resolve(&row).unwrap());
        assert!(!shown.contains("s3cr3t"), "{shown}");
    }
}
