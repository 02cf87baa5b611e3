//! TLS towards NATS: rustls with ring, for both kinds of connection.
//!
//! In: which files to trust and to show. Out: a rustls configuration, and errors sorted by who must act. The files are
//! read for every new connection, so that rotated certificates are taken up without a restart.

use std::{error::Error as StdError, io, path::Path, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use super::settings::{ServerAddr, Tls};
use crate::{
    error::{Error, Kind, Result},
    files,
};

/// The configuration that `tls` describes, its files read now, away from the one thread that runs everything else.
pub async fn client_config(tls: &Tls) -> Result<ClientConfig> {
    let tls = tls.clone();
    tokio::task::spawn_blocking(move || build(&tls)).await.map_err(|_| Error::protocol("prepare TLS towards NATS"))?
}

fn build(tls: &Tls) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    match &tls.ca {
        Some(file) => {
            for certificate in certificates("tls_ca_file or NATS_CA", file)? {
                roots.add(certificate).map_err(|error| unusable(file, "a certificate to trust").caused_by(error))?;
            }
        }
        None => {
            // One unreadable file among the system's must not lose the others.
            roots.add_parsable_certificates(files::system_certificates()?.0);
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::protocol("prepare TLS towards NATS").caused_by(error))?
        .with_root_certificates(roots);
    let (Some(cert), Some(key)) = (&tls.cert, &tls.key) else { return Ok(builder.with_no_client_auth()) };
    let chain = certificates("tls_cert_file or NATS_CERT", cert)?;
    // The cause could quote the key: it is left out.
    let private = PrivateKeyDer::from_pem_slice(&files::read("tls_key_file or NATS_KEY", key)?)
        .map_err(|_| unusable(key, "a private key"))?;
    builder
        .with_client_auth_cert(chain, private)
        .map_err(|error| unusable(cert, &format!("a certificate for the key {}", files::shown(key))).caused_by(error))
}

fn certificates(setting: &str, file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let all: Vec<_> = CertificateDer::pem_slice_iter(&files::read(setting, file)?)
        .collect::<Result<_, _>>()
        .map_err(|_| unusable(file, "certificates in PEM"))?;
    if all.is_empty() { Err(unusable(file, "a certificate in PEM")) } else { Ok(all) }
}

fn unusable(file: &Path, wanted: &str) -> Error {
    Error::config(format!("the file {} does not hold {wanted}", files::shown(file)))
}

/// An error of rustls, wherever in the chain of causes it hides.
fn rustls_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(this) = next {
        if let Some(found) = this.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        // io::Error::source skips the error it wraps.
        let wrapped = this.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = wrapped.map(|wrapped| wrapped as &(dyn StdError + 'static)).or_else(|| this.source());
    }
    None
}

/// Who must act on a failed handshake; `None` where TLS is not the reason.
pub fn refusal(server: &ServerAddr, error: &(dyn StdError + 'static)) -> Option<Error> {
    use rustls::{AlertDescription as Alert, CertificateError as Bad, Error as Tls};
    let found = rustls_error(error)?;
    let (kind, hint) = match found {
        Tls::InvalidCertificate(Bad::UnknownIssuer) => {
            (Kind::Config, "Name the authority's certificate: tls_ca_file, or NATS_CA")
        }
        Tls::InvalidCertificate(Bad::NotValidForName | Bad::NotValidForNameContext { .. }) => {
            (Kind::Config, "Connect by a name that the server's certificate carries")
        }
        Tls::InvalidCertificate(_) => (Kind::Config, "The server's certificate must be replaced"),
        Tls::AlertReceived(
            Alert::CertificateRequired
            | Alert::BadCertificate
            | Alert::UnknownCA
            | Alert::CertificateUnknown
            | Alert::CertificateExpired
            | Alert::CertificateRevoked
            | Alert::AccessDenied,
        ) => (
            Kind::Permission,
            "The server asks for a client certificate that it trusts: tls_cert_file and tls_key_file, or NATS_CERT and NATS_KEY",
        ),
        Tls::InvalidMessage(_) => (
            Kind::Config,
            "The server does not speak TLS from the first byte; leave tls_first off, or use another port",
        ),
        _ => (Kind::Unavailable, "See the server's log"),
    };
    Some(Error::new(kind, format!("TLS with {server}")).caused_by(found.clone()).hint(hint))
}
