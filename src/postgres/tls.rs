//! TLS towards PostgreSQL, with libpq's rules about whom to trust.
//!
//! In come the settings' modes and files; out goes a rustls configuration, and from a finished handshake the hash
//! that binds SCRAM to this channel. The crypto provider is ring, named here: no process-wide default is asked for.
//! Names, chains and signatures are checked by webpki; what is libpq's own are three leniences that its users rely
//! on, as the PostgreSQL manual's recipes (section 19.9.5) make such certificates: one that is itself listed as
//! trusted needs no authority, one without alternative names may carry the host in its common name, and one of
//! version 1 will do.

use std::{io, net::IpAddr, path::Path, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature, verify_tls13_signature_with_raw_key},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::ParsedCertificate,
};
use x509_parser::{
    certificate::X509Certificate, extensions::GeneralName, prelude::FromDer, signature_algorithm::SignatureAlgorithm,
    time::ASN1Time, x509::X509Version,
};

use super::settings::{RootCert, Settings, SslMode, SslNegotiation};
use crate::{
    error::{Error, Result},
    files,
};

/// What of the server's certificate is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Check {
    Nothing,
    Chain,
    ChainAndName,
}

/// The client's TLS configuration for these settings; reads the certificate files.
///
/// # Errors
/// A file that is named and cannot be read or holds no certificate or key; no root certificate where one is needed.
pub(super) fn client_config(settings: &Settings) -> Result<Arc<ClientConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let roots = roots(settings)?;
    // libpq: a root certificate that exists is checked in every mode, so "require" then means "verify-ca".
    let check = match (settings.sslmode, &roots) {
        (SslMode::VerifyFull, _) => Check::ChainAndName,
        (SslMode::VerifyCa, _) | (_, Some(_)) => Check::Chain,
        (_, None) => Check::Nothing,
    };
    let verifier = Verifier::new(roots.unwrap_or_default(), check, provider.clone());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::config("set up TLS for PostgreSQL").caused_by(e))?
        .dangerous() // Says rustls of any verifier but its own; ours is below.
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match client_certificate(settings)? {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(|e| {
            Error::config("use the client certificate of sslcert with the key of sslkey")
                .caused_by(e)
                .hint("check that the key belongs to the certificate")
        })?,
    };
    if settings.sslnegotiation == SslNegotiation::Direct {
        config.alpn_protocols = vec![b"postgresql".to_vec()]; // asked for by the server, manual section 55.2.11
    }
    Ok(Arc::new(config))
}

fn roots(settings: &Settings) -> Result<Option<Vec<CertificateDer<'static>>>> {
    let file = match &settings.sslrootcert {
        RootCert::System => {
            let (found, wrong) = files::system_certificates()?;
            if found.is_empty() {
                let error = Error::config("find the operating system's root certificates (sslrootcert=system)")
                    .hint("install them (Debian: the package ca-certificates), or name a file in sslrootcert");
                return Err(match wrong {
                    Some(cause) => error.caused_by(cause),
                    None => error,
                });
            }
            return Ok(Some(found));
        }
        RootCert::File(file) => Some(file),
        RootCert::Default(file) => file.as_ref().filter(|file| file.exists()),
    };
    match file {
        Some(file) => Ok(Some(certificates(file, "sslrootcert")?)),
        None if settings.sslmode >= SslMode::VerifyCa => {
            Err(Error::config("verify PostgreSQL's certificate: there is no root certificate to verify it with").hint(
                "set sslrootcert (PGSSLROOTCERT) to the file of the authority that signed it, or to \"system\", or put \
                 the file at ~/.postgresql/root.crt",
            ))
        }
        None => Ok(None),
    }
}

fn certificates(file: &Path, keyword: &str) -> Result<Vec<CertificateDer<'static>>> {
    let doing = || format!("read the certificates of {keyword}={}", files::shown(file));
    let hint = "the file must hold PEM certificates";
    let found = CertificateDer::pem_slice_iter(&files::read(keyword, file)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| Error::config(doing()).hint(hint))?; // the cause could quote a key
    if found.is_empty() {
        return Err(Error::config(format!("{}: there is none in it", doing())).hint(hint));
    }
    Ok(found)
}

type ClientCertificate = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn client_certificate(settings: &Settings) -> Result<Option<ClientCertificate>> {
    let Some(cert) = settings.sslcert.as_ref().filter(|cert| settings.sslcert_named || cert.exists()) else {
        return Ok(None);
    };
    let chain = certificates(cert, "sslcert")?;
    let Some(key) = &settings.sslkey else {
        return Err(Error::config(format!("use the client certificate {}: there is no key", files::shown(cert)))
            .hint("set sslkey (PGSSLKEY)"));
    };
    // The cause could quote the key: it is left out.
    let key = PrivateKeyDer::from_pem_slice(&files::read_private("sslkey", key)?).map_err(|_| {
        Error::config(format!("read the key of sslkey={}", files::shown(key)))
            .hint("the file must hold an unencrypted PEM key (PKCS#8, PKCS#1 or SEC1)")
    })?;
    Ok(Some((chain, key)))
}

/// The name to ask for and to check: what the operator wrote, or, where that cannot be a name, the address dialled.
pub(super) fn server_name(host: &str, dialled: IpAddr) -> ServerName<'static> {
    ServerName::try_from(host.to_owned()).unwrap_or_else(|_| ServerName::IpAddress(dialled.into()))
}

#[derive(Debug)]
struct Verifier {
    check: Check,
    /// As configured; a server certificate found among them is trusted as it stands.
    listed: Vec<CertificateDer<'static>>,
    roots: RootCertStore,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn new(listed: Vec<CertificateDer<'static>>, check: Check, provider: Arc<CryptoProvider>) -> Self {
        let mut roots = RootCertStore::empty();
        // One that cannot be parsed can vouch for nobody; the operating system's set has such.
        let _ = roots.add_parsable_certificates(listed.iter().cloned());
        Verifier { check, listed, roots, provider }
    }

    fn check_chain(&self, cert: &CertificateDer<'_>, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<(), Tls> {
        let parsed = parse(cert)?;
        let vouched_for_here = self.listed.contains(cert)
            || parsed.version() != X509Version::V3 && self.listed.iter().any(|root| self.has_signed(root, &parsed));
        let algorithms = self.provider.signature_verification_algorithms.all;
        if !vouched_for_here {
            let cert = ParsedCertificate::try_from(cert)?;
            return verify_server_cert_signed_by_trust_anchor(&cert, &self.roots, chain, now, algorithms);
        }
        let now = i64::try_from(now.as_secs()).ok().and_then(|now| ASN1Time::from_timestamp(now).ok());
        match now {
            Some(now) if now < parsed.validity.not_before => Err(CertificateError::NotValidYet.into()),
            Some(now) if now <= parsed.validity.not_after => Ok(()),
            _ => Err(CertificateError::Expired.into()),
        }
    }

    /// Whether `root` itself has signed `cert`. webpki reads version 3 only; version 1 has no place for the rules
    /// about who may sign for whom, so nothing between the two is believed.
    fn has_signed(&self, root: &CertificateDer<'_>, cert: &X509Certificate<'_>) -> bool {
        let Ok(root) = parse(root) else { return false };
        let (key, signature) = (&root.public_key().subject_public_key.data, &cert.signature_value.data);
        let algorithms = self.provider.signature_verification_algorithms.all;
        let signed = |key: &[u8]| {
            algorithms
                .iter()
                .any(|algorithm| algorithm.verify_signature(key, cert.tbs_certificate.as_ref(), signature).is_ok())
        };
        root.subject() == cert.issuer() && signed(key)
    }

    fn check_name(&self, cert: &CertificateDer<'_>, name: &ServerName<'_>) -> Result<(), Tls> {
        let parsed = parse(cert)?;
        if common_name_is(&parsed, name) {
            return Ok(());
        }
        match parsed.version() {
            X509Version::V3 => verify_server_name(&ParsedCertificate::try_from(cert)?, name),
            _ => Err(CertificateError::NotValidForNameContext {
                expected: name.to_owned(),
                presented: vec![parsed.subject().to_string()],
            }
            .into()),
        }
    }
}

fn parse<'a>(cert: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Tls> {
    X509Certificate::from_der(cert).map(|(_, cert)| cert).map_err(|_| CertificateError::BadEncoding.into())
}

type Tls = rustls::Error;

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        cert: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Tls> {
        if self.check != Check::Nothing {
            self.check_chain(cert, chain, now)?;
        }
        if self.check == Check::ChainAndName {
            self.check_name(cert, name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Tls> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Tls> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms).or_else(|e| match parse(cert) {
            Ok(cert) if cert.version() != X509Version::V3 => {
                verify_tls13_signature_with_raw_key(message, &cert.public_key().raw.into(), dss, algorithms)
            }
            _ => Err(e),
        })
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Whether a certificate without any alternative name carries this host as its only common name. libpq accepts that,
/// and many a PostgreSQL certificate has nothing else (the manual's own example, section 19.9.5).
fn common_name_is(cert: &X509Certificate<'_>, name: &ServerName<'_>) -> bool {
    match cert.subject_alternative_name() {
        Err(_) => return false,
        Ok(Some(names)) => {
            let names_a_host =
                |name: &GeneralName<'_>| matches!(name, GeneralName::DNSName(_) | GeneralName::IPAddress(_));
            if names.value.general_names.iter().any(names_a_host) {
                return false;
            }
        }
        Ok(None) => {}
    }
    let mut common_names = cert.subject().iter_common_name();
    let (Some(Ok(common_name)), None) = (common_names.next().map(|cn| cn.as_str()), common_names.next()) else {
        return false;
    };
    let host = name.to_str();
    match common_name.strip_prefix("*.") {
        // One label, and only for names: libpq's rule.
        Some(domain) => {
            matches!(name, ServerName::DnsName(_))
                && host.split_once('.').is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(domain))
        }
        None => common_name.eq_ignore_ascii_case(&host),
    }
}

/// The hash of the server's certificate that `tls-server-end-point` means (RFC 5929, section 4.1): by the
/// certificate's own signature algorithm, SHA-256 in place of MD5 and SHA-1. `None` where no hash is defined
/// (Ed25519).
pub(super) fn end_point_hash(cert: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let (_, parsed) = X509Certificate::from_der(cert).ok()?;
    let algorithm = &parsed.signature_algorithm;
    let oid = match SignatureAlgorithm::try_from(algorithm).ok()? {
        SignatureAlgorithm::RSASSA_PSS(params) => params.hash_algorithm_oid().to_id_string(),
        _ => algorithm.algorithm.to_id_string(),
    };
    let hash = match oid.as_str() {
        // md5, sha1 and sha256, each with RSA; sha1 and sha256 with ECDSA; the plain hashes of RSASSA-PSS.
        "1.2.840.113549.1.1.4" | "1.2.840.113549.1.1.5" | "1.2.840.113549.1.1.11" => &ring::digest::SHA256,
        "1.2.840.10045.4.1" | "1.2.840.10045.4.3.2" => &ring::digest::SHA256,
        "1.3.14.3.2.26" | "2.16.840.1.101.3.4.2.1" => &ring::digest::SHA256,
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" | "2.16.840.1.101.3.4.2.2" => &ring::digest::SHA384,
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" | "2.16.840.1.101.3.4.2.3" => &ring::digest::SHA512,
        _ => return None,
    };
    Some(ring::digest::digest(hash, cert).as_ref().to_vec())
}

/// What a failed read, write or handshake means. TLS's own refusals need somebody to act; all else passes.
pub(super) fn io_error(attempted: impl Into<String>, e: io::Error) -> Error {
    match e.get_ref().and_then(|inner| inner.downcast_ref::<Tls>()) {
        Some(Tls::InvalidCertificate(_)) => {
            Error::config(format!("{}: cannot verify the server's certificate", attempted.into())).caused_by(e).hint(
                "check that sslrootcert holds the authority that signed it, and that host is the name it was made for",
            )
        }
        Some(Tls::AlertReceived(_)) => Error::permission(format!("{}: the server broke off TLS", attempted.into()))
            .caused_by(e)
            .hint("if it asks for a client certificate, set sslcert and sslkey to one its ssl_ca_file has signed"),
        Some(_) => Error::config(format!("{}: TLS failed", attempted.into())).caused_by(e),
        None => Error::unavailable(attempted).caused_by(e),
    }
}
