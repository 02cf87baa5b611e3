//! What a nats-server may ask of who connects: an operator's accounts and their credentials files, TLS.

use std::path::Path;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use nkeys::KeyPair;
use serde_json::{Value, json};

use super::{Nats, tls::Authority};

/// An operator with an account that has JetStream, and a user of it.
pub struct Operator {
    operator: KeyPair,
    account: KeyPair,
    system: KeyPair,
    user: KeyPair,
}

impl Operator {
    /// A new one; two of them know nothing of each other.
    pub fn new() -> Self {
        let (account, system) = (KeyPair::new_account(), KeyPair::new_account());
        Operator { operator: KeyPair::new_operator(), account, system, user: KeyPair::new_user() }
    }

    /// The configuration of a server in operator mode.
    pub fn config(&self) -> String {
        let Operator { operator, account, system, .. } = self;
        let limits = json!({ "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true,
            "conn": -1, "leaf": -1, "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1 });
        let system_limits = json!({ "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1,
            "wildcards": true, "conn": -1, "leaf": -1 });
        let claims = |limits: Value| json!({ "limits": limits, "type": "account", "version": 2 });
        format!(
            "operator: {}\nsystem_account: {}\nresolver: MEMORY\nresolver_preload: {{ {}: {}, {}: {} }}",
            jwt(operator, operator, "op", json!({ "type": "operator", "version": 2 })),
            system.public_key(),
            account.public_key(),
            jwt(operator, account, "app", claims(limits)),
            system.public_key(),
            jwt(operator, system, "sys", claims(system_limits)),
        )
    }

    /// The user's credentials file, as nsc writes it.
    pub fn write_credentials(&self, file: &Path) {
        self.write_limited(file, -1, None);
    }

    /// The same of a user whose messages have at most so many bytes, and who is believed until `expires`, in seconds since 1970.
    pub fn write_limited(&self, file: &Path, payload: i64, expires: Option<u64>) {
        let claims =
            json!({ "pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": payload, "type": "user", "version": 2 });
        write_credentials(file, &expiring_jwt(&self.account, &self.user, "walhook", claims, expires), &self.user);
    }
}

/// A credentials file: a user's claims and its seed.
pub fn write_credentials(file: &Path, jwt: &str, user: &KeyPair) {
    let seed = user.seed().unwrap();
    let text = format!(
        "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n************************* IMPORTANT\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    );
    std::fs::write(file, text).unwrap();
}

/// A JWT as nsc makes it: claims about `subject`, signed by `issuer`.
pub fn jwt(issuer: &KeyPair, subject: &KeyPair, name: &str, nats: Value) -> String {
    expiring_jwt(issuer, subject, name, nats, None)
}

fn expiring_jwt(issuer: &KeyPair, subject: &KeyPair, name: &str, nats: Value, expires: Option<u64>) -> String {
    let mut claims = json!({ "jti": name, "iat": 1_700_000_000, "iss": issuer.public_key(), "name": name,
        "sub": subject.public_key(), "nats": nats });
    if let Some(expires) = expires {
        claims["exp"] = json!(expires);
    }
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(&json!({ "typ": "JWT", "alg": "ed25519-nkey" })), part(&claims));
    let signature = URL_SAFE_NO_PAD.encode(issuer.sign(signed.as_bytes()).unwrap());
    format!("{signed}.{signature}")
}

/// A server with TLS: its certificate for `localhost` and 127.0.0.1 and the authority's are in `folder`.
pub async fn tls_server(folder: &Path, authority: &Authority, version: &str, more: &str) -> Nats {
    let (cert, key) = authority.server().write(folder, "server");
    let ca = folder.join("ca.crt");
    std::fs::write(&ca, &authority.certificate).unwrap();
    let config = format!(
        "tls {{ cert_file: \"{}\", key_file: \"{}\", ca_file: \"{}\", timeout: 10, {more} }}",
        cert.display(),
        key.display(),
        ca.display()
    );
    Nats::builder().version(version).config(&config).start().await
}
