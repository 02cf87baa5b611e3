//! Signatures by Standard Webhooks 1.0 (<https://www.standardwebhooks.com>), symmetric.
//!
//! In: secrets as they stand in `rule_webhook_secrets`, id, time and body. Out: the header's value, a signature for each
//! secret. Always holds: no secret is shown.

use base64::{Engine, engine::general_purpose::STANDARD};
use ring::hmac;

/// The names of the secrets that sign: this one, and with an ending (`signing_2026`) while one is rotated.
pub const SECRET_NAME: &str = "signing";

/// Whether a secret of this name signs.
pub fn is_signing(name: &str) -> bool {
    name.strip_prefix(SECRET_NAME).is_some_and(|rest| rest.is_empty() || rest.starts_with(['_', '-', '.']))
}

/// A secret ready to sign.
#[derive(Clone)]
pub struct Key(hmac::Key);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key")
    }
}

impl Key {
    /// `whsec_` and base64, or the very bytes of the text.
    ///
    /// # Errors
    /// What is wrong with it, without showing it.
    pub fn parse(secret: &str) -> Result<Key, &'static str> {
        let secret = secret.trim();
        let bytes = match secret.strip_prefix("whsec_") {
            Some(encoded) => STANDARD.decode(encoded).map_err(|_| "what follows whsec_ is not base64")?,
            None => secret.as_bytes().to_vec(),
        };
        if bytes.is_empty() {
            return Err("it is empty");
        }
        Ok(Key(hmac::Key::new(hmac::HMAC_SHA256, &bytes)))
    }
}

/// The value of `webhook-signature`: `v1,<base64>` for each key, separated by spaces. `timestamp` in seconds since 1970.
pub fn signature(keys: &[Key], id: &str, timestamp: u64, body: &[u8]) -> String {
    let signed = |Key(key): &Key| {
        let mut context = hmac::Context::with_key(key);
        context.update(id.as_bytes());
        context.update(format!(".{timestamp}.").as_bytes());
        context.update(body);
        format!("v1,{}", STANDARD.encode(context.sign()))
    };
    keys.iter().map(signed).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_specifications_own_example_is_signed_as_it_says() {
        let key = Key::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let body = br#"{"test": 2432232314}"#;
        let signed = signature(&[key], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn each_of_several_keys_signs_and_another_verifies_by_any() {
        let (old, new) = ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX");
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
        let keys = [Key::parse(new).unwrap(), Key::parse(old).unwrap()];
        let mut headers = hyper::HeaderMap::new();
        headers.insert("webhook-id", "a-1".parse().unwrap());
        headers.insert("webhook-timestamp", now.to_string().parse().unwrap());
        headers.insert("webhook-signature", signature(&keys, "a-1", now, b"{}").parse().unwrap());
        for secret in [old, new] {
            standardwebhooks::Webhook::new(secret).unwrap().verify(b"{}", &headers).unwrap();
        }
        assert!(standardwebhooks::Webhook::new(new).unwrap().verify(b"{ }", &headers).is_err());
    }

    #[test]
    fn a_secret_that_cannot_sign_says_why_and_shows_nothing() {
        for bad in ["", "  ", "whsec_", "whsec_hunter2!"] {
            let error = Key::parse(bad).unwrap_err();
            assert!(!error.contains("hunter2"), "{error}");
        }
        assert!(!format!("{:?}", Key::parse("hunter2").unwrap()).contains("hunter2"));
    }

    #[test]
    fn names_that_sign_are_told_from_other_secrets() {
        for name in ["signing", "signing_old", "signing-2", "signing.2026-11"] {
            assert!(is_signing(name), "{name}");
        }
        for name in ["", "api_key", "Signing", "signings", "old_signing"] {
            assert!(!is_signing(name), "{name}");
        }
    }
}
