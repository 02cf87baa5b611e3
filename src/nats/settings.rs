//! How to reach one NATS: a row of `rule_nats_config`, overridden by the process's own settings.
//!
//! In: the row and the [`Overrides`]. Out: [`Settings`] that both kinds of connection take as they are, and warnings to
//! log. What always holds: a secret is never shown, the process's settings win over the row, and a row reaches only the
//! hosts and folders that the process's settings allow. Files are named here and read when a connection is opened; only
//! where a folder must be checked are paths looked up.
//!
//! The process's own settings are in `own`, servers and their URLs in `address`, who we are in `login`, what a row may
//! reach in `reach`, which JetStream is asked in `api`.

mod address;
mod api;
mod login;
mod own;
mod reach;

use std::{path::PathBuf, time::Duration};

use super::auth::Auth;
use crate::{
    error::{Error, Result},
    route::tables::ConfigRow,
};

pub use address::ServerAddr;
pub use api::Api;
pub use own::Overrides;

const CONNECT_TIMEOUT: Duration = Duration::from_millis(5000);
const RECONNECT_DELAY: Duration = Duration::from_millis(2000);
const MAX_CONNECTIONS: usize = 10;
const CLIENT_NAME: &str = "walhook";
const INBOX_PREFIX: &str = "_INBOX";

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
    let (servers, in_url) = address::servers(row, overrides)?;
    if from_row {
        for server in &servers {
            reach::check_host(server, &overrides.allowed_hosts)?;
        }
    }
    let own_auth = login::own_auth(overrides)?;
    if own_auth.is_some() && from_row && overrides.allowed_hosts.is_empty() {
        warnings.push(
            "the environment's NATS secret is sent to every server that rule_nats_config names; set nats.allowed_hosts or NATS_URL"
                .to_owned(),
        );
    }
    let auth = match own_auth {
        Some(auth) => auth,
        None if !from_row && in_url != Auth::None => in_url,
        None => login::row_auth(row, in_url, overrides, &mut warnings)?,
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
            .hint("an inbox prefix consists of tokens separated by dots, for example _INBOX_walhook")),
    }
}

fn tls(row: &ConfigRow, overrides: &Overrides) -> Result<Tls> {
    let file = |own: &Option<PathBuf>, column: &str, value: &Option<String>| match (own, value.as_deref()) {
        (Some(own), _) => Ok(Some(own.clone())),
        (None, Some(value)) if !value.is_empty() => reach::row_file(column, value, &overrides.allowed_dirs).map(Some),
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    pub(super) fn row(url: &str) -> ConfigRow {
        ConfigRow { config_name: "default".into(), nats_url: Some(url.into()), ..ConfigRow::default() }
    }

    pub(super) fn resolve(row: &ConfigRow) -> Result<Settings> {
        Settings::resolve(row, &Overrides::default())
    }

    /// The error holds these words and nothing secret.
    pub(super) fn refuses(row: &ConfigRow, overrides: &Overrides, words: &str) {
        let error = Settings::resolve(row, overrides).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
        assert!(!error.contains("s3cr3t"), "{error}");
        assert!(error.contains("\"default\""), "{error}");
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
