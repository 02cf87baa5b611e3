//! How to reach PostgreSQL, as libpq's users write it.
//!
//! In comes a conninfo string or a URL and a lookup for the `PG*` variables; out goes a [`Settings`] that cannot be
//! wrong in itself: known keywords, parsed numbers, modes that fit together. No file is read and nothing is dialled
//! here. What libpq knows and walhook does not do is refused by name where ignoring it would make the connection less
//! safe than its owner thinks. No secret appears in an error, in `Debug` or in [`Settings::target`].
//!
//! The keywords are described in PostgreSQL's manual, section 34.1.2, the variables in 34.15.

use std::{
    collections::BTreeMap,
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    error::{Error, Result},
    percent,
};

/// A text that stays out of logs and errors.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Secret(text.into())
    }

    /// The text itself, for the one place that sends it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

/// One place where a server may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Where to dial.
    pub address: Address,
    /// The TCP port, or the number in the unix socket's name.
    pub port: u16,
}

/// Where to dial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A host by name or number. The name is what a certificate must carry; `ip`, where set (`hostaddr`), is what is
    /// dialled, without asking the resolver.
    Tcp {
        /// Name or address as written; the address again where only `hostaddr` is given.
        name: String,
        /// `hostaddr`.
        ip: Option<IpAddr>,
    },
    /// The folder of the unix socket `.s.PGSQL.<port>`.
    Unix(PathBuf),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            Address::Tcp { name, .. } if name.contains(':') => write!(f, "[{name}]:{}", self.port),
            Address::Tcp { name, .. } => write!(f, "{name}:{}", self.port),
            Address::Unix(folder) => write!(f, "{}:{}", folder.display(), self.port),
        }
    }
}

/// How much the connection must be protected (manual, section 34.19, table 34.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SslMode {
    /// Never TLS.
    Disable,
    /// TLS only where the server insists.
    Allow,
    /// TLS where the server has it.
    Prefer,
    /// TLS or nothing; the certificate is looked at only if a root certificate file exists.
    Require,
    /// TLS with a certificate from an authority we trust.
    VerifyCa,
    /// The same, and the certificate is for the host we dialled.
    VerifyFull,
}

/// Whether the authentication must be bound to the TLS channel (`SCRAM-SHA-256-PLUS`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelBinding {
    /// Never.
    Disable,
    /// Where the server can.
    Prefer,
    /// Or no connection.
    Require,
}

/// Where the trusted authorities come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootCert {
    /// `~/.postgresql/root.crt`, if there is such a file.
    Default(Option<PathBuf>),
    /// This file, which must be there.
    File(PathBuf),
    /// The operating system's.
    System,
}

/// How TLS begins (`sslnegotiation`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SslNegotiation {
    /// By asking the server first (`SSLRequest`).
    Postgres,
    /// At once; PostgreSQL 17 and later.
    Direct,
}

/// What kind of server will do, where several are named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetSessionAttrs {
    /// The first that answers.
    Any,
    /// One whose sessions may write.
    ReadWrite,
    /// One whose sessions may not.
    ReadOnly,
    /// One that is not in recovery.
    Primary,
    /// One that is.
    Standby,
    /// A standby if there is one, else the first that answers.
    PreferStandby,
}

impl TargetSessionAttrs {
    /// As it is written.
    pub fn keyword(self) -> &'static str {
        match self {
            TargetSessionAttrs::Any => "any",
            TargetSessionAttrs::ReadWrite => "read-write",
            TargetSessionAttrs::ReadOnly => "read-only",
            TargetSessionAttrs::Primary => "primary",
            TargetSessionAttrs::Standby => "standby",
            TargetSessionAttrs::PreferStandby => "prefer-standby",
        }
    }
}

/// How to reach PostgreSQL and who we are there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// In the order in which they are tried; never empty.
    pub hosts: Vec<Host>,
    /// The role.
    pub user: String,
    /// Its password, unless the passfile is to be asked.
    pub password: Option<Secret>,
    /// `.pgpass`: asked, if it exists, where no password is given.
    pub passfile: Option<PathBuf>,
    /// The database.
    pub dbname: String,
    /// `sslmode`.
    pub sslmode: SslMode,
    /// `sslnegotiation`.
    pub sslnegotiation: SslNegotiation,
    /// `sslrootcert`.
    pub sslrootcert: RootCert,
    /// The client's certificate chain (PEM); `sslcert_named` tells whether the file must exist.
    pub sslcert: Option<PathBuf>,
    /// The certificate's key (PEM).
    pub sslkey: Option<PathBuf>,
    /// Whether the operator named the certificate; otherwise it is libpq's default place and may be empty.
    pub sslcert_named: bool,
    /// `channel_binding`.
    pub channel_binding: ChannelBinding,
    /// What `pg_stat_activity` and `pg_stat_replication` call us.
    pub application_name: String,
    /// The bound on one attempt at one address, from dialling to the server's first "ready"; `None`: wait for ever.
    pub connect_timeout: Option<Duration>,
    /// TCP keepalive; `None` is off.
    pub keepalive: Option<Keepalive>,
    /// How long sent bytes may stay unacknowledged before the connection counts as lost; `None`: the system's default,
    /// which is a quarter of an hour.
    pub tcp_user_timeout: Option<Duration>,
    /// Command-line options for the session: `-c name=value …`.
    pub options: Option<String>,
    /// `target_session_attrs`.
    pub target_session_attrs: TargetSessionAttrs,
}

/// TCP keepalive probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keepalive {
    /// Silence before the first probe.
    pub idle: Duration,
    /// Between probes.
    pub interval: Duration,
    /// Unanswered probes that end the connection.
    pub count: u32,
}

/// libpq has no bound by default; a sidecar that hangs in a dial helps nobody.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A peer that vanished is noticed after a minute in both directions, not after the system's two hours.
const KEEPALIVE: Keepalive = Keepalive { idle: Duration::from_secs(30), interval: Duration::from_secs(10), count: 3 };
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(60);
/// Where Debian's server and where everybody else's has its socket; tried in this order when no host is given.
const SOCKET_FOLDERS: [&str; 2] = ["/var/run/postgresql", "/tmp"];
const PORT: u16 = 5432;

/// Whether `.pgpass` calls this folder "localhost".
pub(super) fn is_default_socket_folder(folder: &Path) -> bool {
    SOCKET_FOLDERS.iter().any(|default| folder == Path::new(default))
}

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

type Given = BTreeMap<&'static str, String>;

impl Settings {
    /// Settings from a conninfo string or URL (may be empty), over the `PG*` variables, over libpq's defaults.
    ///
    /// `env` looks up one variable. `HOME`, `USER` and `LOGNAME` are asked too.
    ///
    /// # Errors
    /// [`Kind::Config`](crate::error::Kind::Config), naming the keyword; never showing the text around it, which may
    /// hold a password.
    pub fn parse(conninfo: &str, env: impl Fn(&str) -> Option<String>) -> Result<Settings> {
        let env = |name: &str| env(name).filter(|value| !value.is_empty());
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
        Self::interpret(&given, env)
    }

    fn interpret(given: &Given, env: impl Fn(&str) -> Option<String>) -> Result<Settings> {
        // An empty value stands for the default, as in libpq.
        let get = |keyword: &str| given.get(keyword).map(String::as_str).filter(|value| !value.is_empty());
        let in_home = |file: &str| env("HOME").map(|home| PathBuf::from(home).join(file));

        let user = match get("user") {
            Some(user) => user.to_owned(),
            None => env("USER").or_else(|| env("LOGNAME")).ok_or_else(|| {
                bad("no user is given").hint("set user=… in the connection string, or the variable PGUSER")
            })?,
        };
        let sslrootcert = match get("sslrootcert") {
            Some("system") => RootCert::System,
            Some(file) => RootCert::File(file.into()),
            None => RootCert::Default(in_home(".postgresql/root.crt")),
        };
        let sslnegotiation = choice(
            get("sslnegotiation"),
            "sslnegotiation",
            SslNegotiation::Postgres,
            &[("postgres", SslNegotiation::Postgres), ("direct", SslNegotiation::Direct)],
        )?;
        let strictest = sslrootcert == RootCert::System;
        let default_mode = if strictest { SslMode::VerifyFull } else { SslMode::Prefer };
        let sslmode = choice(
            get("sslmode"),
            "sslmode",
            default_mode,
            &[
                ("disable", SslMode::Disable),
                ("allow", SslMode::Allow),
                ("prefer", SslMode::Prefer),
                ("require", SslMode::Require),
                ("verify-ca", SslMode::VerifyCa),
                ("verify-full", SslMode::VerifyFull),
            ],
        )?;
        if strictest && sslmode != SslMode::VerifyFull {
            return Err(bad("sslrootcert=system trusts every public authority, which says nothing without the name")
                .hint("use sslmode=verify-full with it"));
        }
        if sslnegotiation == SslNegotiation::Direct && sslmode < SslMode::Require {
            return Err(bad("sslnegotiation=direct cannot fall back to a plain connection")
                .hint("use sslmode=require or stricter with it"));
        }
        if get("gssencmode") == Some("require") {
            return Err(bad("gssencmode=require: walhook does not speak GSSAPI").hint("use TLS: sslmode=verify-full"));
        }
        let keepalive = Keepalive {
            idle: seconds(get("keepalives_idle"), "keepalives_idle")?.unwrap_or(KEEPALIVE.idle),
            interval: seconds(get("keepalives_interval"), "keepalives_interval")?.unwrap_or(KEEPALIVE.interval),
            count: match number(get("keepalives_count"), "keepalives_count")? {
                None | Some(0) => KEEPALIVE.count,
                Some(count) => count,
            },
        };
        Ok(Settings {
            hosts: hosts(get("host"), get("hostaddr"), get("port"))?,
            dbname: get("dbname").map_or_else(|| user.clone(), str::to_owned),
            user,
            password: get("password").map(Secret::new),
            passfile: get("passfile").map(PathBuf::from).or_else(|| in_home(".pgpass")),
            sslmode,
            sslnegotiation,
            sslrootcert,
            sslcert_named: get("sslcert").is_some(),
            sslcert: get("sslcert").map(PathBuf::from).or_else(|| in_home(".postgresql/postgresql.crt")),
            sslkey: get("sslkey").map(PathBuf::from).or_else(|| in_home(".postgresql/postgresql.key")),
            channel_binding: choice(
                get("channel_binding"),
                "channel_binding",
                ChannelBinding::Prefer,
                &[
                    ("disable", ChannelBinding::Disable),
                    ("prefer", ChannelBinding::Prefer),
                    ("require", ChannelBinding::Require),
                ],
            )?,
            application_name: get("application_name")
                .or(get("fallback_application_name"))
                .unwrap_or("walhook")
                .to_owned(),
            connect_timeout: match number(get("connect_timeout"), "connect_timeout")? {
                None => Some(CONNECT_TIMEOUT),
                Some(0) => None,
                Some(seconds) => Some(Duration::from_secs(seconds.into())),
            },
            keepalive: (number(get("keepalives"), "keepalives")? != Some(0)).then_some(keepalive),
            tcp_user_timeout: match number(get("tcp_user_timeout"), "tcp_user_timeout")? {
                None => Some(TCP_USER_TIMEOUT),
                Some(0) => None,
                Some(milliseconds) => Some(Duration::from_millis(milliseconds.into())),
            },
            options: get("options").map(str::to_owned),
            target_session_attrs: choice(
                get("target_session_attrs"),
                "target_session_attrs",
                TargetSessionAttrs::Any,
                &[
                    ("any", TargetSessionAttrs::Any),
                    ("read-write", TargetSessionAttrs::ReadWrite),
                    ("read-only", TargetSessionAttrs::ReadOnly),
                    ("primary", TargetSessionAttrs::Primary),
                    ("standby", TargetSessionAttrs::Standby),
                    ("prefer-standby", TargetSessionAttrs::PreferStandby),
                ],
            )?,
        })
    }

    /// Puts a password from elsewhere (a file) in place of the one given.
    pub fn set_password(&mut self, password: String) {
        self.password = Some(Secret(password));
    }

    /// `user@host:port/db`: for logs and errors, without a secret.
    pub fn target(&self) -> String {
        self.target_at(&self.hosts)
    }

    /// Settings that lead to one of the servers alone, whatever it is now: the one that a connection by these settings calls `target`.
    #[must_use]
    pub fn only(&self, target: &str) -> Settings {
        let mut only = self.clone();
        only.hosts.retain(|host| format!("{}@{host}/{}", self.user, self.dbname) == target);
        if only.hosts.is_empty() {
            only.hosts.clone_from(&self.hosts);
        }
        only.target_session_attrs = TargetSessionAttrs::Any;
        only
    }

    /// The same of some of the hosts.
    pub(super) fn target_at(&self, hosts: &[Host]) -> String {
        let hosts: Vec<String> = hosts.iter().map(Host::to_string).collect();
        // A whole URL, or a user with its password, may have been put where a name belongs.
        let name = |name: &str| match name.split_once([':', '?', '=', ' ']) {
            Some((name, _)) => format!("{name}…"),
            None => name.to_owned(),
        };
        format!("{}@{}/{}", name(&self.user), hosts.join(","), name(&self.dbname))
    }
}

/// What a URL needs whose user, password or database holds one of these.
const AT_SIGN: &str = "a URL is postgres://user:password@host:port/dbname; in its parts write %40 for @, %3A for :, %2F for /, \
                       %3F for ?, %25 for %";

fn bad(what: impl Into<String>) -> Error {
    Error::config(what).context("read PostgreSQL's connection settings")
}

fn choice<T: Copy>(value: Option<&str>, keyword: &str, default: T, choices: &[(&str, T)]) -> Result<T> {
    let Some(value) = value else { return Ok(default) };
    choices.iter().find(|(name, _)| *name == value).map(|(_, choice)| *choice).ok_or_else(|| {
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        bad(format!("the value of {keyword} is not a choice")).hint(format!("use one of {}", names.join(", ")))
    })
}

fn number(value: Option<&str>, keyword: &str) -> Result<Option<u32>> {
    let Some(value) = value else { return Ok(None) };
    match value.trim().parse::<i32>() {
        // libpq reads "not set" from a negative number.
        Ok(number) => Ok(u32::try_from(number).ok()),
        Err(_) => Err(bad(format!("the value of {keyword} is not a whole number"))),
    }
}

fn seconds(value: Option<&str>, keyword: &str) -> Result<Option<Duration>> {
    Ok(number(value, keyword)?.filter(|seconds| *seconds > 0).map(|seconds| Duration::from_secs(seconds.into())))
}

/// The product of `host`, `hostaddr` and `port`, each a list separated by commas; one port may serve all.
fn hosts(host: Option<&str>, hostaddr: Option<&str>, port: Option<&str>) -> Result<Vec<Host>> {
    let split = |list: Option<&str>| -> Vec<String> {
        list.map(|list| list.split(',').map(|part| part.trim().to_owned()).collect()).unwrap_or_default()
    };
    let (names, addresses, ports) = (split(host), split(hostaddr), split(port));
    if !names.is_empty() && !addresses.is_empty() && names.len() != addresses.len() {
        return Err(bad(format!("{} hosts and {} hostaddr values do not pair", names.len(), addresses.len())));
    }
    let count = names.len().max(addresses.len()).max(1);
    if ports.len() > 1 && ports.len() != count {
        return Err(bad(format!("{} ports for {count} hosts", ports.len())).hint("give one port, or one for each"));
    }
    let mut hosts = Vec::new();
    for i in 0..count {
        let port = match ports.get(if ports.len() == 1 { 0 } else { i }).map(String::as_str) {
            None | Some("") => PORT,
            Some(port) => match port.parse::<u16>() {
                Ok(port) if port > 0 => port,
                // After "user:password" without an "@" it is the password that stands where the port would.
                _ => return Err(bad("a port is not a number from 1 to 65535").hint(AT_SIGN)),
            },
        };
        let ip: Option<IpAddr> = match addresses.get(i).map(String::as_str) {
            None | Some("") => None,
            Some(ip) => {
                Some(ip.parse().map_err(|_| bad("hostaddr is not a numeric address").hint("use host for a name"))?)
            }
        };
        match (names.get(i).map_or("", String::as_str), ip) {
            ("", None) => {
                hosts.extend(SOCKET_FOLDERS.map(|folder| Host { address: Address::Unix(PathBuf::from(folder)), port }))
            }
            ("", Some(ip)) => {
                hosts.push(Host { address: Address::Tcp { name: ip.to_string(), ip: Some(ip) }, port });
            }
            (folder, None) if folder.starts_with('/') => {
                hosts.push(Host { address: Address::Unix(PathBuf::from(folder)), port });
            }
            (name, ip) => {
                let is_plain = |c: char| c.is_alphanumeric() || "-_.:%".contains(c);
                if !name.chars().all(is_plain)
                    || name.contains(':') && name.parse::<IpAddr>().is_err() && !name.contains('%')
                {
                    return Err(bad("a host is neither a name nor an address nor a folder").hint(AT_SIGN));
                }
                hosts.push(Host { address: Address::Tcp { name: name.to_owned(), ip }, port });
            }
        }
    }
    Ok(hosts)
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    type Env<'a> = &'a [(&'a str, &'a str)];

    fn parse(text: &str, env: Env<'_>) -> Result<Settings> {
        Settings::parse(text, |name| env.iter().find(|(variable, _)| *variable == name).map(|(_, v)| (*v).to_owned()))
    }

    fn tcp(name: &str, port: u16) -> Host {
        Host { address: Address::Tcp { name: name.to_owned(), ip: None }, port }
    }

    fn unix(folder: &str, port: u16) -> Host {
        Host { address: Address::Unix(folder.into()), port }
    }

    /// `text` over `env` is what `user=u host=h` is, but for what `expected` changes.
    fn check(text: &str, env: Env<'_>, expected: impl FnOnce(&mut Settings)) {
        let mut wanted = parse("user=u host=h", &[]).unwrap();
        expected(&mut wanted);
        match parse(text, env) {
            Ok(settings) => assert_eq!(settings, wanted, "{text}"),
            Err(e) => panic!("{text}: {e}"),
        }
    }

    /// `text` over `env` is refused with words that hold `words` and not the secret `hunter2`.
    fn refused(text: &str, env: Env<'_>, words: &str) {
        let error = parse(text, env).expect_err(text);
        assert_eq!(error.kind(), crate::error::Kind::Config);
        let said = error.to_string();
        assert!(said.contains(words), "{text}: {said}");
        assert!(!said.contains("hunter2"), "{text}: {said}");
    }

    #[test]
    fn pairs_are_read_as_libpq_reads_them() {
        check("user=u host=h", &[], |_| {});
        check("  host = h   user  =u ", &[], |_| {});
        check("host=h user='a b' dbname='it\\'s \\\\ '", &[], |s| {
            s.user = "a b".into();
            s.dbname = "it's \\ ".into();
        });
        check("host=h user=a\\ b dbname=d", &[], |s| {
            s.user = "a b".into();
            s.dbname = "d".into();
        });
        check("host=h user=u dbname='' port=", &[], |_| {});
        check("host=h host=i user=u", &[], |s| s.hosts = vec![tcp("i", 5432)]);
        check("user=u password='p q' host=h", &[], |s| s.password = Some(Secret::new("p q")));
        check("user=u host=/run/x port=6", &[], |s| s.hosts = vec![unix("/run/x", 6)]);
        check("user=u", &[], |s| s.hosts = vec![unix("/var/run/postgresql", 5432), unix("/tmp", 5432)]);
        check("user=u host=a,b,/s port=1,,3", &[], |s| {
            s.hosts = vec![tcp("a", 1), tcp("b", 5432), unix("/s", 3)];
        });
        check("user=u host=a,b port=7", &[], |s| s.hosts = vec![tcp("a", 7), tcp("b", 7)]);
        check("user=u host=a hostaddr=::1", &[], |s| {
            let ip = Some("::1".parse().unwrap());
            s.hosts = vec![Host { address: Address::Tcp { name: "a".into(), ip }, port: 5432 }];
        });
        check("user=u hostaddr=10.0.0.1", &[], |s| {
            let ip = Some("10.0.0.1".parse().unwrap());
            s.hosts = vec![Host { address: Address::Tcp { name: "10.0.0.1".into(), ip }, port: 5432 }];
        });
    }

    #[test]
    fn settings_of_one_server_leave_out_the_others_and_take_it_as_it_is() {
        let all = parse("user=u dbname=d host=a,/s,b port=1,2,3 target_session_attrs=primary", &[]).unwrap();
        for (target, host) in [("u@a:1/d", tcp("a", 1)), ("u@b:3/d", tcp("b", 3))] {
            let only = all.only(target);
            assert_eq!((only.hosts, only.target_session_attrs), (vec![host], TargetSessionAttrs::Any), "{target}");
        }
        let socket = unix("/s", 2);
        assert_eq!(all.only(&format!("u@{socket}/d")).hosts, [socket]);
        assert_eq!(all.only("another").hosts, all.hosts, "never without any");
    }

    #[test]
    fn urls_are_read_as_libpq_reads_them() {
        check("postgres://u@h", &[], |_| {});
        check("postgresql://u@h/", &[], |_| {});
        check("postgresql://u:p%40ss@h:99/d%2Fb?application_name=a%20b", &[], |s| {
            s.password = Some(Secret::new("p@ss"));
            s.hosts = vec![tcp("h", 99)];
            s.dbname = "d/b".into();
            s.application_name = "a b".into();
        });
        check("postgres://u:a@b:c@h/u", &[], |s| s.password = Some(Secret::new("a@b:c")));
        check("postgres://u@h1:1,h2,[::1]:3/", &[], |s| {
            s.hosts = vec![tcp("h1", 1), tcp("h2", 5432), tcp("::1", 3)];
        });
        check("postgres://u@%2Frun%2Fx:6", &[], |s| s.hosts = vec![unix("/run/x", 6)]);
        check("postgres:///?user=u&host=/run/x&port=6", &[], |s| s.hosts = vec![unix("/run/x", 6)]);
        check("postgres://u@h?ssl=true", &[], |s| s.sslmode = SslMode::Require);
        check("postgres://?host=h", &[("PGUSER", "u")], |_| {});
    }

    #[test]
    fn what_is_written_wins_over_the_environment_and_that_over_defaults() {
        let env =
            [("PGHOST", "h"), ("PGUSER", "u"), ("PGDATABASE", "d"), ("PGPASSWORD", "p"), ("PGSSLMODE", "require")];
        check("", &env, |s| {
            s.dbname = "d".into();
            s.password = Some(Secret::new("p"));
            s.sslmode = SslMode::Require;
        });
        check("dbname=e sslmode=disable password=q", &env, |s| {
            s.dbname = "e".into();
            s.password = Some(Secret::new("q"));
            s.sslmode = SslMode::Disable;
        });
        check("host=h", &[("USER", "u")], |_| {});
        check("host=h", &[("USER", ""), ("LOGNAME", "u")], |_| {});
        check("host=h user=u", &[("HOME", "/home/u")], |s| {
            s.passfile = Some("/home/u/.pgpass".into());
            s.sslrootcert = RootCert::Default(Some("/home/u/.postgresql/root.crt".into()));
            s.sslcert = Some("/home/u/.postgresql/postgresql.crt".into());
            s.sslkey = Some("/home/u/.postgresql/postgresql.key".into());
        });
    }

    #[test]
    fn each_keyword_has_its_meaning() {
        let text = "user=u host=h sslmode=verify-full sslrootcert=/r sslcert=/c sslkey=/k channel_binding=require \
            application_name=a connect_timeout=3 keepalives_idle=1 keepalives_interval=2 keepalives_count=4 \
            tcp_user_timeout=5 options='-c x=y' target_session_attrs=primary sslnegotiation=direct passfile=/p";
        check(text, &[], |s| {
            s.sslmode = SslMode::VerifyFull;
            s.sslrootcert = RootCert::File("/r".into());
            (s.sslcert, s.sslkey, s.sslcert_named) = (Some("/c".into()), Some("/k".into()), true);
            s.channel_binding = ChannelBinding::Require;
            s.application_name = "a".into();
            s.connect_timeout = Some(Duration::from_secs(3));
            s.keepalive = Some(Keepalive { idle: Duration::from_secs(1), interval: Duration::from_secs(2), count: 4 });
            s.tcp_user_timeout = Some(Duration::from_millis(5));
            s.options = Some("-c x=y".into());
            s.target_session_attrs = TargetSessionAttrs::Primary;
            s.sslnegotiation = SslNegotiation::Direct;
            s.passfile = Some("/p".into());
        });
        check("user=u host=h connect_timeout=0 keepalives=0 tcp_user_timeout=0", &[], |s| {
            (s.connect_timeout, s.keepalive, s.tcp_user_timeout) = (None, None, None);
        });
        check("user=u host=h sslrootcert=system", &[], |s| {
            (s.sslrootcert, s.sslmode) = (RootCert::System, SslMode::VerifyFull);
        });
        check("user=u host=h client_encoding=auto replication=1 gssencmode=prefer", &[], |_| {});
    }

    #[test]
    fn what_cannot_be_is_refused_without_showing_a_secret() {
        refused("host=h", &[], "no user is given");
        refused("hots=h", &[], "the word at character 1 is no keyword. Hint: did you mean host?");
        refused("user", &[], "no \"=\" after the word at character 1");
        refused("password=open hunter2 host=h", &[], "after the word at character 15");
        refused("password=open hunter2=x host=h", &[], "the word at character 15 is no keyword");
        refused("password='hunter2", &[], "no closing quote");
        refused(
            "user=u sslmode=verify_full",
            &[],
            "use one of disable, allow, prefer, require, verify-ca, verify-full",
        );
        refused("user=u", &[("PGSSLMODE", "hunter2")], "the value of sslmode is not a choice");
        refused("user=u sslrootcert=system sslmode=require", &[], "use sslmode=verify-full");
        refused("user=u sslnegotiation=direct", &[], "use sslmode=require or stricter");
        refused("user=u gssencmode=require", &[], "GSSAPI");
        refused("user=u sslcrl=/x", &[], "sslcrl");
        refused("user=u", &[("PGSERVICE", "x")], "PGSERVICE");
        refused("user=u port=0", &[], "from 1 to 65535");
        refused("user=u host=a,b port=1,2,3", &[], "3 ports for 2 hosts");
        refused("user=u host=a,b hostaddr=::1", &[], "do not pair");
        refused("user=u hostaddr=hunter2", &[], "use host for a name");
        refused("user=u connect_timeout=hunter2", &[], "whole number");
        refused("postgres://u:hunter2%@h", &[], "the URL's password is not percent-encoded");
        refused("postgres://u:hunter2%00@h", &[], "the URL's password is not percent-encoded");
        refused("postgres://u:hunter2@[::1", &[], "\"]\"");
        refused("postgres://u:hunter2@h?x", &[], "without a \"=\"");
        refused("postgres://u:hunter2@h?x=1", &[], "a parameter of the URL is no keyword");
        refused("postgres://u@h?prot=1", &[], "did you mean port?");
        // What is left of a URL or of a password that is written wrong.
        refused("mysql://u:hunter2@h/d", &[], "neither postgres:// nor postgresql://");
        refused("Postgres://u:hunter2@h/d?sslmode=require", &[], "neither postgres:// nor postgresql://");
        refused("jdbc:postgresql://h/d?user=u&password=hunter2", &[], "neither postgres:// nor postgresql://");
        refused("u:hunter2@h/d", &[], "no \"=\"");
        refused("u:hunter2@h/d?sslmode=require", &[], "is no keyword");
        refused("hunter2", &[], "no \"=\"");
        refused("hunter2==", &[], "is no keyword");
        refused("postgres://u:hunter2", &[("PGUSER", "u")], "a port is not");
        refused("postgres://u:hunter2/x@h/d", &[("PGUSER", "u")], "%2F for /");
        refused("postgres://u:1/hunter2@h/d", &[("PGUSER", "u")], "%2F for /");
        refused("postgres://u:1?hunter2@h/d", &[("PGUSER", "u")], "%3F for ?");
        refused("postgres://u:1?hunter2=x@h/d", &[("PGUSER", "u")], "is no keyword");
        refused("postgres://u@h/d?hunter2%", &[], "without a");
        refused("user=u host=u:hunter2@h", &[], "a host is neither");
        refused("user=u host=postgres://u:hunter2@h/d", &[], "a host is neither");
        refused("user=u port=hunter2", &[], "a port is not");
        refused("user=u", &[("PGPORT", "hunter2")], "a port is not");
    }

    #[test]
    fn no_secret_shows_in_debug_or_target() {
        let settings = parse("postgres://u:hunter2@h:1,[::1]/d", &[]).unwrap();
        assert_eq!(settings.target(), "u@h:1,[::1]:5432/d");
        assert!(!format!("{settings:?}").contains("hunter2"));
        for misplaced in ["user=u:hunter2 host=h", "user=u host=h dbname=postgres://u:hunter2@h/d"] {
            let shown = parse(misplaced, &[]).unwrap().target();
            assert!(!shown.contains("hunter2"), "{shown}");
        }
        assert_eq!(settings.password.unwrap().reveal(), "hunter2");
    }
}
