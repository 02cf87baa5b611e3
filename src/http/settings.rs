//! Where HTTP is served, and who may ask.
//!
//! In: `--http`, `WALHOOK_HTTP`, `[http]`. Out: an address with tokens and TLS. Always holds: beyond the loopback interface nobody is
//! answered without a token or a client certificate. Off where no address is set: then nothing listens.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use serde::Deserialize;

use crate::{
    error::{Error, Result},
    files,
};

/// The fewest bytes of a token: less could be guessed.
const TOKEN_MIN: usize = 16;

/// `[http]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct File {
    listen: Option<String>,
    token_file: Option<PathBuf>,
    operator_token_file: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    client_ca: Option<PathBuf>,
}

impl File {
    /// The same with the address that a flag or a variable names, if one does.
    #[must_use]
    pub fn or_listen(self, listen: Option<&String>) -> File {
        File { listen: listen.cloned().or(self.listen), ..self }
    }
}

/// All settings, checked.
#[derive(Clone)]
pub struct Settings {
    /// Where to listen.
    pub address: SocketAddr,
    /// Who has this one may ask.
    pub token: Option<String>,
    /// A client with this one may ask, and may retry and drop dead letters.
    pub operator_token: Option<String>,
    /// TLS, with or without client certificates.
    pub tls: Option<Arc<ServerConfig>>,
    /// Only clients with a certificate are let in.
    pub wants_client_certificate: bool,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Settings { address, wants_client_certificate, .. } = self;
        f.debug_struct("Settings")
            .field("address", address)
            .field("wants_client_certificate", wants_client_certificate)
            .finish_non_exhaustive()
    }
}

impl Settings {
    /// Checks them, and reads the files that they name; `None` where no address is set.
    ///
    /// # Errors
    /// An address that cannot be, a file that cannot be read, an address outside the loopback interface that anybody could ask.
    pub fn resolve(file: &File) -> Result<Option<Settings>> {
        let Some(listen) = file.listen.as_deref().filter(|listen| !listen.is_empty()) else { return Ok(None) };
        let address = address(listen)?;
        let token = token_of("http.token_file", file.token_file.as_deref())?;
        let operator_token = token_of("http.operator_token_file", file.operator_token_file.as_deref())?;
        if operator_token.is_some() && operator_token == token {
            return Err(Error::config("serve HTTP with one token for reading and for changing").hint(
                "write another token into the file of http.operator_token_file (openssl rand -hex 16), or leave that setting out",
            ));
        }
        let wants_client_certificate = file.client_ca.is_some();
        let tls = tls(file)?;
        let is_guarded = token.is_some() || wants_client_certificate;
        if !address.ip().is_loopback() && !is_guarded {
            return Err(Error::config(format!("serve HTTP on {address}, beyond the loopback interface, to anybody")).hint(
                "set http.token_file (a file with a token of 16 characters or more, for example by `openssl rand -hex 16`), or \
                 http.cert, http.key and http.client_ca for client certificates; or listen on 127.0.0.1",
            ));
        }
        Ok(Some(Settings { address, token, operator_token, tls, wants_client_certificate }))
    }
}

/// `PORT`, `localhost:PORT` or `IP:PORT`.
fn address(listen: &str) -> Result<SocketAddr> {
    let loopback = |port: &str| Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port.parse().ok()?));
    let parsed = match listen.strip_prefix("localhost:") {
        Some(port) => loopback(port),
        None => loopback(listen).or_else(|| listen.parse().ok()),
    };
    // What stands there may be another setting's, a password's: it is not quoted.
    parsed.ok_or_else(|| {
        Error::config("the HTTP address (--http, WALHOOK_HTTP, http.listen) cannot be one")
            .hint("give a port (9187: on 127.0.0.1) or an IP address with a port (0.0.0.0:9187, [::1]:9187)")
    })
}

fn token_of(setting: &str, file: Option<&Path>) -> Result<Option<String>> {
    let Some(file) = file else { return Ok(None) };
    let text = files::read_text(setting, file)?;
    let token = text.trim();
    if token.len() < TOKEN_MIN || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Error::config(format!("the file of {setting}, {}, does not hold a token", files::shown(file)))
            .hint("a token has 16 or more visible ASCII characters, for example those of `openssl rand -hex 16`"));
    }
    Ok(Some(token.to_owned()))
}

fn tls(file: &File) -> Result<Option<Arc<ServerConfig>>> {
    let (cert, key) = match (&file.cert, &file.key) {
        (Some(cert), Some(key)) => (cert, key),
        (None, None) if file.client_ca.is_none() => return Ok(None),
        _ => {
            return Err(Error::config("prepare TLS for HTTP").hint(
                "http.cert and http.key belong together, and http.client_ca needs both: set them or leave all out",
            ));
        }
    };
    let unusable =
        |path: &Path, wanted: &str| Error::config(format!("the file {} does not hold {wanted}", files::shown(path)));
    let certificates = |setting: &str, path: &Path| -> Result<Vec<CertificateDer<'static>>> {
        let all: std::result::Result<Vec<_>, _> =
            CertificateDer::pem_slice_iter(&files::read(setting, path)?).collect();
        all.ok().filter(|all| !all.is_empty()).ok_or_else(|| unusable(path, "a certificate in PEM"))
    };
    let chain = certificates("http.cert", cert)?;
    // The cause could quote the key: it is left out.
    let private =
        PrivateKeyDer::from_pem_slice(&files::read("http.key", key)?).map_err(|_| unusable(key, "a private key"))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::protocol("prepare TLS for HTTP").caused_by(error))?;
    let builder = match &file.client_ca {
        None => builder.with_no_client_auth(),
        Some(client_ca) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates("http.client_ca", client_ca)? {
                roots.add(certificate).map_err(|_| unusable(client_ca, "a certificate to trust"))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|_| unusable(client_ca, "certificates to trust"))?)
        }
    };
    let mut config = builder.with_single_cert(chain, private).map_err(|error| {
        unusable(cert, &format!("a certificate for the key {}", files::shown(key))).caused_by(error)
    })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Some(Arc::new(config)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_port_alone_is_on_the_loopback_interface_and_no_address_is_off() {
        let on = |listen: &str| Settings::resolve(&File { listen: Some(listen.to_owned()), ..File::default() });
        let at = |listen: &str| on(listen).unwrap().unwrap().address.to_string();
        assert_eq!([at("9187"), at("localhost:1"), at("[::1]:2")], ["127.0.0.1:9187", "127.0.0.1:1", "[::1]:2"]);
        assert!(Settings::resolve(&File::default()).unwrap().is_none() && on("").unwrap().is_none());
        let flag = File::default().or_listen(Some(&"1".to_owned()));
        assert_eq!(Settings::resolve(&flag).unwrap().unwrap().address.port(), 1);
        for wrong in ["secret", ":9188", "example.com:80", "99999"] {
            let error = on(wrong).unwrap_err().to_string();
            assert!(error.contains("--http") && !error.contains(wrong), "{error}");
        }
    }

    #[test]
    fn beyond_the_loopback_interface_a_token_is_needed_and_a_short_one_is_none() {
        let everywhere = File::default().or_listen(Some(&"0.0.0.0:1".to_owned()));
        let error = Settings::resolve(&everywhere).unwrap_err();
        assert!(error.exit_code() == 2 && error.to_string().contains("http.token_file"), "{error}");
        let with = |token: &str| {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            writeln!(file, "{token}").unwrap();
            Settings::resolve(&File { token_file: Some(file.path().to_owned()), ..everywhere.clone() })
        };
        let settings = with("0123456789abcdef").unwrap().unwrap();
        assert_eq!(settings.token.as_deref(), Some("0123456789abcdef"));
        assert!(!format!("{settings:?}").contains("0123456789abcdef"));
        let same = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(same.path(), "0123456789abcdef").unwrap();
        let path = Some(same.path().to_owned());
        let both = File { token_file: path.clone(), operator_token_file: path.clone(), ..everywhere.clone() };
        assert!(Settings::resolve(&both).unwrap_err().to_string().contains("http.operator_token_file"));
        // It lets its owner in, and nobody else: reading needs a guard of its own.
        let alone = File { operator_token_file: path, ..everywhere.clone() };
        assert!(Settings::resolve(&alone).unwrap_err().to_string().contains("http.token_file"));
        let error = with("short").unwrap_err().to_string();
        assert!(error.contains("16 or more") && !error.contains("short"), "{error}");
    }
}
