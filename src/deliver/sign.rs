//! Signatures by Standard Webhooks 1.0 (<https://www.standardwebhooks.com>), symmetric, or as a receiver of another kind wants them.
//!
//! In: secrets as they stand in `rule_webhook_secrets`, id, time and body. Out: a header and its value, a signature for each
//! secret. Always holds: no secret is shown; a scheme that cannot be read signs nothing, and says so.

use base64::{Engine, engine::general_purpose::STANDARD};
use ring::hmac;
use serde::{Deserialize, Serialize};

/// How a webhook's requests are signed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// Standard Webhooks.
    #[default]
    Standard,
    /// HMAC-SHA-256 in another form.
    Template(Template),
    /// The row says something that cannot be read.
    Unreadable(String),
}

/// What is signed, and how the signature is written. Keys are the secrets' bytes as they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Template {
    /// The header's name.
    header: String,
    /// What is signed: `{id}`, `{timestamp}` and `{body}` in their places.
    #[serde(default = "body")]
    content: String,
    /// The header's value: `{id}`, `{timestamp}` and `{signatures}`.
    #[serde(default = "signatures")]
    value: String,
    /// One signature: `{hex}` or `{base64}`.
    #[serde(default = "hex")]
    signature: String,
    /// What stands between several; without it the newest secret alone signs.
    #[serde(default)]
    separator: Option<String>,
}

fn body() -> String {
    "{body}".to_owned()
}

fn signatures() -> String {
    "{signatures}".to_owned()
}

fn hex() -> String {
    "{hex}".to_owned()
}

impl Scheme {
    /// As a webhook's row names it.
    pub fn read(scheme: Option<&str>, template: Option<&str>) -> Scheme {
        let ready = |header: &str, content: &str, value: &str, signature: &str, separator: Option<&str>| {
            Scheme::Template(Template {
                header: header.to_owned(),
                content: content.to_owned(),
                value: value.to_owned(),
                signature: signature.to_owned(),
                separator: separator.map(str::to_owned),
            })
        };
        match scheme {
            None | Some("standard") => Scheme::Standard,
            // GitHub's: one signature of the body.
            Some("github") => ready("X-Hub-Signature-256", "{body}", "{signatures}", "sha256={hex}", None),
            // Stripe's: a signature for each secret of time and body.
            Some("stripe") => {
                ready("Stripe-Signature", "{timestamp}.{body}", "t={timestamp},{signatures}", "v1={hex}", Some(","))
            }
            Some("template") => match serde_json::from_str::<Template>(template.unwrap_or("null")) {
                Ok(template) if !template.content.contains("{body}") => {
                    Scheme::Unreadable("the content of its signature_template has no {body}".to_owned())
                }
                Ok(template) => Scheme::Template(template),
                Err(error) => Scheme::Unreadable(format!("its signature_template cannot be read: {error}")),
            },
            Some(other) => Scheme::Unreadable(format!("its signature_scheme {other:?} is none")),
        }
    }

    /// A secret ready to sign by this scheme.
    ///
    /// # Errors
    /// What is wrong with it, without showing it.
    pub fn key(&self, secret: &str) -> Result<Key, &'static str> {
        match self {
            Scheme::Standard | Scheme::Unreadable(_) => Key::parse(secret),
            Scheme::Template(_) => Key::of(secret.trim().as_bytes()),
        }
    }

    /// The header and its value: a signature by each key, the newest first. `timestamp` in seconds since 1970.
    ///
    /// # Errors
    /// Why nothing can be signed.
    pub fn sign(&self, keys: &[Key], id: &str, timestamp: u64, body: &[u8]) -> Result<(String, String), String> {
        match self {
            Scheme::Standard => Ok((HEADER.to_owned(), signature(keys, id, timestamp, body))),
            Scheme::Template(template) => Ok(template.sign(keys, id, timestamp, body)),
            Scheme::Unreadable(why) => Err(format!("the webhook cannot be signed: {why}")),
        }
    }
}

/// The header of the standard.
pub const HEADER: &str = "webhook-signature";

impl Template {
    fn sign(&self, keys: &[Key], id: &str, timestamp: u64, body: &[u8]) -> (String, String) {
        let filled = |text: &str| text.replace("{id}", id).replace("{timestamp}", &timestamp.to_string());
        let count = if self.separator.is_some() { keys.len() } else { 1 };
        let signed = |Key(key): &Key| {
            let mut context = hmac::Context::with_key(key);
            for (index, part) in self.content.split("{body}").enumerate() {
                if index > 0 {
                    context.update(body);
                }
                context.update(filled(part).as_bytes());
            }
            let tag = context.sign();
            let hex: String = tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
            self.signature.replace("{hex}", &hex).replace("{base64}", &STANDARD.encode(tag))
        };
        let signatures: Vec<String> = keys.iter().take(count).map(signed).collect();
        let signatures = signatures.join(self.separator.as_deref().unwrap_or_default());
        (self.header.clone(), filled(&self.value).replace("{signatures}", &signatures))
    }
}

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
        Key::of(&bytes)
    }

    fn of(bytes: &[u8]) -> Result<Key, &'static str> {
        if bytes.is_empty() {
            return Err("it is empty");
        }
        Ok(Key(hmac::Key::new(hmac::HMAC_SHA256, bytes)))
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
    fn github_and_stripe_verify_what_is_signed_for_them() {
        // The example of GitHub's documentation of X-Hub-Signature-256.
        let github = Scheme::read(Some("github"), None);
        let key = github.key("It's a Secret to Everybody").unwrap();
        let (header, value) = github.sign(&[key], "a", 1, b"Hello, World!").unwrap();
        let expected = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        assert_eq!((header.as_str(), value.as_str()), ("X-Hub-Signature-256", expected));
        // Stripe's secrets are used as they are, whsec_ and all; each of several signs.
        let stripe = Scheme::read(Some("stripe"), None);
        let keys = ["whsec_new!", "whsec_old!"].map(|secret| stripe.key(secret).unwrap());
        let (header, value) = stripe.sign(&keys, "a", 1_700_000_000, b"{}").unwrap();
        let mac = |secret: &str| {
            let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()), b"1700000000.{}");
            tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>()
        };
        let expected = format!("t=1700000000,v1={},v1={}", mac("whsec_new!"), mac("whsec_old!"));
        assert_eq!((header.as_str(), value), ("Stripe-Signature", expected));
    }

    #[test]
    fn a_template_says_what_is_signed_and_how_it_is_written() {
        let template =
            r#"{"header": "X-Slack-Signature", "content": "v0:{timestamp}:{body}", "signature": "v0={base64}"}"#;
        let scheme = Scheme::read(Some("template"), Some(template));
        let keys = ["new", "old"].map(|secret| scheme.key(secret).unwrap());
        let (header, value) = scheme.sign(&keys, "a", 7, b"{timestamp}").unwrap();
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, b"new"), b"v0:7:{timestamp}");
        assert_eq!((header.as_str(), value), ("X-Slack-Signature", format!("v0={}", STANDARD.encode(tag))));
        for bad in [None, Some("{}"), Some(r#"{"header": "X", "content": "{id}"}"#)] {
            let scheme = Scheme::read(Some("template"), bad);
            assert!(matches!(scheme, Scheme::Unreadable(_)) && scheme.sign(&keys, "a", 1, b"").is_err(), "{bad:?}");
        }
        assert!(matches!(Scheme::read(Some("pgp"), None), Scheme::Unreadable(_)));
    }

    #[test]
    fn names_of_signing_secrets_are_distinguished_from_other_secrets() {
        for name in ["signing", "signing_old", "signing-2", "signing.2026-11"] {
            assert!(is_signing(name), "{name}");
        }
        for name in ["", "api_key", "Signing", "signings", "old_signing"] {
            assert!(!is_signing(name), "{name}");
        }
    }
}
