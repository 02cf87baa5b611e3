//! How to reach PostgreSQL, as libpq's users write it.
//!
//! In comes a conninfo string or a URL and a lookup for the `PG*` variables; out goes a [`Settings`] that cannot be
//! wrong in itself: known keywords, parsed numbers, modes that fit together. No file is read and nothing is dialled
//! here. What libpq knows and walhook does not do is refused by name where ignoring it would make the connection less
//! safe than its owner thinks. No secret appears in an error, in `Debug` or in [`Settings::target`].
//!
//! The keywords are described in PostgreSQL's manual, section 34.1.2, the variables in 34.15.

use std::{
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

mod conninfo;

use conninfo::{AT_SIGN, Given};

use crate::error::{Error, Result};

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
        Self::interpret(&conninfo::read(conninfo, env)?, env)
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
        let (sslmode, sslnegotiation, sslrootcert) = tls(&get, in_home(".postgresql/root.crt"))?;
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

fn bad(what: impl Into<String>) -> Error {
    Error::config(what).context("read PostgreSQL's connection settings")
}

/// How to encrypt: what must be so together.
fn tls<'s>(
    get: &impl Fn(&str) -> Option<&'s str>,
    default_roots: Option<PathBuf>,
) -> Result<(SslMode, SslNegotiation, RootCert)> {
    let sslrootcert = match get("sslrootcert") {
        Some("system") => RootCert::System,
        Some(file) => RootCert::File(file.into()),
        None => RootCert::Default(default_roots),
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
    Ok((sslmode, sslnegotiation, sslrootcert))
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
        return Err(bad(format!("{} ports for {count} hosts", ports.len()))
            .hint("give one port for all hosts, or one port for each host"));
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

#[cfg(test)]
mod tests;
