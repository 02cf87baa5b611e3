//! Keys in files, and payloads opened by code of our own: docs/sealed-payloads.md, and ring.

use std::path::{Path, PathBuf};

use ring::{aead, hmac};
use serde_json::Value;

use super::{eventually, feed::Feed, folder::Folder, process::User, walhook::Builder};

/// A folder with keys.
pub struct KeyFolder(Folder);

impl KeyFolder {
    /// With these keys, each `<name>.<id>`.
    pub fn new(labels: &[&str]) -> KeyFolder {
        let folder = KeyFolder(Folder::new("seal", User::Ourselves));
        labels.iter().for_each(|label| folder.add(label));
        folder
    }

    /// One more key.
    pub fn add(&self, label: &str) {
        let digits: String = secret_of(label).iter().map(|byte| format!("{byte:02x}")).collect();
        self.write(label, &format!("{digits}\n"));
    }

    /// A file with another content.
    pub fn write(&self, label: &str, content: &str) {
        User::Ourselves.write(&self.path().join(label), content);
    }

    /// One less.
    pub fn remove(&self, label: &str) {
        std::fs::remove_file(self.file(label)).unwrap();
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The file of a key.
    pub fn file(&self, label: &str) -> PathBuf {
        self.path().join(label)
    }

    /// The same command with these keys.
    pub fn with(&self, builder: Builder) -> Builder {
        builder.env("WALHOOK_SEAL_KEYS_DIR", self.path())
    }
}

/// Of each label another one.
fn secret_of(label: &str) -> [u8; 32] {
    let digest = ring::digest::digest(&ring::digest::SHA256, label.as_bytes());
    digest.as_ref().try_into().unwrap()
}

fn hmac(key: &[u8], data: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), data).as_ref().to_vec()
}

/// What was sealed with the key that the header names; panics where that does not open it.
pub fn open(header: &str, sealed: &[u8]) -> Vec<u8> {
    open_as(header, header.as_bytes(), sealed)
}

/// The same of an old key, by its own header.
pub fn open_old_key(header: &str, value: &str) -> Value {
    use base64::Engine;
    let sealed = base64::engine::general_purpose::STANDARD.decode(value).unwrap();
    serde_json::from_slice(&open_as(header, format!("{header} old-key").as_bytes(), &sealed)).unwrap()
}

fn open_as(header: &str, authenticated: &[u8], sealed: &[u8]) -> Vec<u8> {
    let [version, label, _id] = header.split(' ').collect::<Vec<_>>()[..] else { panic!("{header:?}") };
    assert_eq!(version, "v1");
    let (salt, rest) = sealed.split_at(16);
    let (nonce, rest) = rest.split_at(12);
    let derived = hmac(&hmac(salt, &secret_of(label)), b"walhook sealed v1\x01");
    let key = aead::LessSafeKey::new(aead::UnboundKey::new(&aead::AES_256_GCM, &derived).unwrap());
    let nonce = aead::Nonce::try_assume_unique_for_key(nonce).unwrap();
    let mut body = rest.to_vec();
    let length = key.open_in_place(nonce, aead::Aad::from(authenticated), &mut body).expect("it opens").len();
    body.truncate(length);
    body
}

/// A message of a stream, whatever its body is.
#[derive(Debug, Clone)]
pub struct Sealed {
    /// Its sequence in the stream.
    pub sequence: u64,
    /// Its subject.
    pub subject: String,
    headers: async_nats::HeaderMap,
    /// Its body as it is stored.
    pub body: Vec<u8>,
}

impl Sealed {
    /// A header, or nothing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", async_nats::HeaderValue::as_str)
    }

    /// What it says of its seal.
    pub fn seal(&self) -> &str {
        self.header("Walhook-Sealed")
    }

    /// The body, opened if it is sealed.
    pub fn open(&self) -> Value {
        let body = if self.seal().is_empty() { self.body.clone() } else { open(self.seal(), &self.body) };
        serde_json::from_slice(&body).unwrap()
    }
}

/// All that a stream holds, in its order.
pub async fn messages_of(feed: &Feed, stream: &str) -> Vec<Sealed> {
    let jetstream = async_nats::jetstream::new(feed.nats.client().await);
    let Ok(mut stream) = jetstream.get_stream(stream).await else { return Vec::new() };
    let state = stream.info().await.unwrap().state.clone();
    let mut messages = Vec::new();
    for sequence in state.first_sequence.max(1)..=state.last_sequence {
        let Ok(raw) = stream.get_raw_message(sequence).await else { continue };
        let (subject, headers, body) = (raw.subject.to_string(), raw.headers, raw.payload.to_vec());
        messages.push(Sealed { sequence, subject, headers, body });
    }
    messages
}

/// All that the default stream holds.
pub async fn messages(feed: &Feed) -> Vec<Sealed> {
    messages_of(feed, "WEBHOOKS").await
}
