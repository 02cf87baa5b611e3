//! Which JetStream requests go to: that of the server, of a domain behind a leaf node, or what an account imports from another one.
//!
//! In: the two columns of a row, or the two settings of the process. Out: [`Api`]. Always holds: at most one of the two is given, and
//! the prefix is the beginning of a subject.

use std::fmt;

use crate::error::{Error, Result};

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
    pub(super) fn parse(domain: Option<&str>, prefix: Option<&str>) -> Result<Api> {
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{
        nats::settings::{Overrides, Settings, tests::row},
        route::tables::ConfigRow,
    };

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
}
