//! Certificates made on the spot.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

use super::process::User;

/// A certificate authority.
pub struct Authority {
    /// Its own certificate, PEM.
    pub certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, both PEM.
#[derive(Clone)]
pub struct Identity {
    /// The certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
}

impl Authority {
    /// A new one; two of them know nothing of each other, whatever their names.
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        Authority { certificate, issuer: Issuer::new(params, key) }
    }

    /// A server known as `localhost` and 127.0.0.1.
    pub fn server(&self) -> Identity {
        self.server_named(&["localhost", "127.0.0.1"])
    }

    /// A server of other names (or addresses).
    pub fn server_named(&self, names: &[&str]) -> Identity {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        self.sign(&names[0].clone(), names, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// A server whose time is over.
    pub fn expired_server(&self) -> Identity {
        let mut params = CertificateParams::new(["localhost", "127.0.0.1"].map(str::to_owned)).unwrap();
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        self.sign_these(params, "localhost", ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// A client: PostgreSQL compares the common name with the role.
    pub fn client(&self, common_name: &str) -> Identity {
        self.sign(common_name, Vec::new(), ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn sign(&self, common_name: &str, names: Vec<String>, usage: ExtendedKeyUsagePurpose) -> Identity {
        let params = CertificateParams::new(names).unwrap();
        self.sign_these(params, common_name, usage)
    }

    fn sign_these(&self, mut params: CertificateParams, common_name: &str, usage: ExtendedKeyUsagePurpose) -> Identity {
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().unwrap();
        Identity { certificate: params.signed_by(&key, &self.issuer).unwrap().pem(), key: key.serialize_pem() }
    }
}

impl Identity {
    /// Writes `NAME.crt` and `NAME.key` into `folder`.
    pub fn write(&self, folder: &Path, name: &str) -> (PathBuf, PathBuf) {
        let (certificate, key) = (folder.join(format!("{name}.crt")), folder.join(format!("{name}.key")));
        User::Ourselves.write(&certificate, &self.certificate);
        User::Ourselves.write(&key, &self.key);
        (certificate, key)
    }
}
