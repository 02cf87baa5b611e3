//! The servers of a configuration, from its URLs.
//!
//! In: `nats://`, `tls://` or plain addresses, several in one text. Out: [`ServerAddr`]s, each once and in their order, and who the URLs
//! say we are. Always holds: the URL itself is in no error, for it may hold a secret.

use std::fmt;

use super::Overrides;
use crate::{
    error::{Error, Result},
    nats::auth::Auth,
    percent,
    route::tables::ConfigRow,
};

/// The port where a URL names none.
const PORT: u16 = 4222;

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

/// The servers and who their URLs say we are.
pub(super) fn servers(row: &ConfigRow, overrides: &Overrides) -> Result<(Vec<ServerAddr>, Auth)> {
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::nats::settings::tests::{refuses, resolve, row};

    /// Servers as text, and who we are.
    fn check(url: &str, servers: &[&str], auth: Auth) {
        let settings = resolve(&row(url)).unwrap_or_else(|error| panic!("{url}: {error}"));
        let got: Vec<_> = settings.servers.iter().map(ToString::to_string).collect();
        assert_eq!(got, servers, "{url}");
        assert_eq!(settings.auth, auth, "{url}");
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
}
