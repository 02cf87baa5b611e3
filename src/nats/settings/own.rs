//! What the process's own settings say of NATS: `NATS_*`, flags, or `[nats]` in the configuration file.
//!
//! In: what [`crate::config`] read. Out: [`Overrides`], which win over every row. Always holds: a secret is never shown.

use std::{fmt, path::PathBuf};

use serde::Deserialize;

use super::INBOX_PREFIX;

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
