//! Sealed payloads: the body of a message, encrypted with AES-256-GCM.
//!
//! In: a key, an event's id and its body. Out: the sealed body and the header that names the key; and from these two the body
//! again, or why it cannot be opened. Always holds: the same event with the same body is sealed to the same bytes, so that what a
//! restart makes again is what was there; and no nonce is used for two bodies. Salt and nonce are a keyed hash (HMAC-SHA256) of id and
//! body, and a key of its own is derived for each salt. No key is shown anywhere. The format is described in docs/sealed-payloads.md.

use std::{cmp::Ordering, collections::BTreeMap, fmt, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD};
use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hkdf, hmac,
};

use super::headers::{self, push_line};

/// The header that says that the body is sealed, and how: `v1 <key>.<key id> <event id>`.
pub const HEADER: &str = headers::SEALED;
/// In place of `Walhook-Old-Key`: the same, sealed, in base64.
pub const OLD_KEY_HEADER: &str = headers::SEALED_OLD_KEY;
/// How much longer a sealed body is.
pub const OVERHEAD: usize = PREFIX + TAG;

/// The version of the format, with which the header begins.
const VERSION: &str = "v1";
/// What the derivation of keys is for.
const INFO: &[u8] = b"walhook sealed v1";
const KEY: usize = 32;
const SALT: usize = 16;
/// Salt and nonce.
const PREFIX: usize = SALT + NONCE_LEN;
const TAG: usize = 16;
/// The same for the key of the hash that gives salt and nonce.
const NONCE_INFO: &[u8] = b"walhook sealed v1 nonce";
/// Behind the header's value, in what is authenticated with a sealed old key.
const OLD_KEY: &[u8] = b" old-key";

/// A key of a file `<name>.<id>`.
pub struct SealKey {
    name: String,
    id: String,
    /// The header's value up to the id of the event.
    prefix: Vec<u8>,
    secret: [u8; KEY],
    /// Of the hash that gives salt and nonce.
    nonces: hmac::Key,
}

/// Without the key itself.
impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealKey({}.{})", self.name, self.id)
    }
}

/// The key by which messages with this salt are encrypted: HKDF-SHA256 (RFC 5869).
fn derive(secret: &[u8; KEY], salt: &[u8]) -> LessSafeKey {
    let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(secret);
    let key = prk.expand(&[INFO], &AES_256_GCM).map(UnboundKey::from);
    LessSafeKey::new(key.expect("32 bytes are within what HKDF gives"))
}

impl SealKey {
    fn new(name: &str, id: &str, secret: [u8; KEY]) -> SealKey {
        let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(&secret);
        let nonces = prk.expand(&[NONCE_INFO], hmac::HMAC_SHA256).map(hmac::Key::from);
        let nonces = nonces.expect("32 bytes are within what HKDF gives");
        let prefix = format!("{VERSION} {name}.{id} ").into_bytes();
        SealKey { name: name.to_owned(), id: id.to_owned(), prefix, secret, nonces }
    }

    /// `<name>.<id>`
    pub fn label(&self) -> String {
        format!("{}.{}", self.name, self.id)
    }

    /// Appends the header for an event, a line break before it.
    pub fn write_header(&self, event_id: &[u8], out: &mut Vec<u8>) {
        push_line(HEADER.as_bytes(), &self.prefix, out);
        out.extend_from_slice(event_id);
    }

    /// Makes room for what stands before the sealed bytes. Behind it the body is to be written.
    pub fn begin(out: &mut Vec<u8>) {
        out.resize(out.len() + PREFIX, 0);
    }

    /// Seals, where it lies, what was written since [`SealKey::begin`] was called at `start`.
    pub fn seal(&self, event_id: &[u8], start: usize, out: &mut Vec<u8>) {
        self.seal_as(event_id, b"", start, out);
    }

    fn seal_as(&self, event_id: &[u8], what: &[u8], start: usize, out: &mut Vec<u8>) {
        let (prefix, body) = out[start..].split_at_mut(PREFIX);
        let authenticated = [&self.prefix, event_id, what];
        let mut hash = hmac::Context::with_key(&self.nonces);
        authenticated.iter().for_each(|part| hash.update(part));
        // No header has it, so that nothing of one can pass for a part of the other.
        hash.update(b"\0");
        hash.update(body);
        prefix.copy_from_slice(&hash.sign().as_ref()[..PREFIX]);
        let (salt, nonce) = prefix.split_at(SALT);
        let nonce = Nonce::try_assume_unique_for_key(nonce).expect("it has its length");
        let key = derive(&self.secret, salt);
        let tag = joined(&authenticated, |authenticated| {
            key.seal_in_place_separate_tag(nonce, Aad::from(authenticated), body).expect("no message has 64 GiB")
        });
        out.extend_from_slice(tag.as_ref());
    }

    /// Appends the header with an old key, JSON, a line break before it.
    pub fn write_old_key(&self, event_id: &[u8], json: &[u8], out: &mut Vec<u8>) {
        let mut sealed = Vec::with_capacity(json.len() + OVERHEAD);
        SealKey::begin(&mut sealed);
        sealed.extend_from_slice(json);
        self.seal_as(event_id, OLD_KEY, 0, &mut sealed);
        push_line(OLD_KEY_HEADER.as_bytes(), STANDARD.encode(&sealed).as_bytes(), out);
    }

    fn open(&self, authenticated: &[u8], sealed: &[u8]) -> Result<Vec<u8>, String> {
        let Some((prefix, body)) = sealed.split_at_checked(PREFIX).filter(|(_, body)| body.len() >= TAG) else {
            return Err(format!(
                "it has {} bytes, fewer than {OVERHEAD}: it was cut off, or is not sealed",
                sealed.len()
            ));
        };
        let (salt, nonce) = prefix.split_at(SALT);
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| "its nonce cannot be read".to_owned())?;
        let mut opened = body.to_vec();
        let key = derive(&self.secret, salt);
        let length = key.open_in_place(nonce, Aad::from(authenticated), &mut opened).map(|plain| plain.len());
        let length = length.map_err(|_| {
            format!(
                "the key {} does not open it: the file has another key, or body or header were changed",
                self.label()
            )
        })?;
        opened.truncate(length);
        Ok(opened)
    }
}

/// What `use_it` makes of the parts in one piece; such as are short need no memory but the stack's.
fn joined<T>(parts: &[&[u8]], use_it: impl FnOnce(&[u8]) -> T) -> T {
    let mut short = [0; 512];
    let length = parts.iter().map(|part| part.len()).sum();
    let Some(whole) = short.get_mut(..length) else { return use_it(&parts.concat()) };
    let mut left = &mut *whole;
    for part in parts {
        let (place, rest) = std::mem::take(&mut left).split_at_mut(part.len());
        place.copy_from_slice(part);
        left = rest;
    }
    use_it(whole)
}

/// `<name>.<id>`: both of letters, digits, `_` and `-`.
fn parts_of(file_name: &str) -> Option<(&str, &str)> {
    let is_word = |text: &str, most: usize| {
        (1..=most).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
    };
    file_name.split_once('.').filter(|(name, id)| is_word(name, NAME_MAX) && is_word(id, NAME_MAX))
}

/// Longest name of a key, and longest id, in bytes.
const NAME_MAX: usize = 63;

/// 64 hexadecimal digits, and a line end perhaps.
fn secret(content: &[u8]) -> Result<[u8; KEY], String> {
    let content = content.strip_suffix(b"\n").unwrap_or(content);
    let content = content.strip_suffix(b"\r").unwrap_or(content);
    let wrong = || format!("it has to hold {} hexadecimal digits, as openssl rand -hex {KEY} writes them", 2 * KEY);
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let bytes = content.chunks(2).map(|pair| match *pair {
        [high, low] => Some(digit(high)? << 4 | digit(low)?),
        _ => None,
    });
    bytes.collect::<Option<Vec<u8>>>().and_then(|bytes| bytes.try_into().ok()).ok_or_else(wrong)
}

/// The order of ids: numbers within them count as numbers, so that `k10` comes behind `k9`.
fn by_id(a: &str, b: &str) -> Ordering {
    fn number(text: &str) -> (&str, &str) {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, rest) = text.split_at(digits);
        (number.trim_start_matches('0'), rest)
    }
    let (mut a_left, mut b_left) = (a, b);
    loop {
        let is_number = |text: &str| text.bytes().next().is_some_and(|byte| byte.is_ascii_digit());
        let order = if is_number(a_left) && is_number(b_left) {
            let ((a_number, a_rest), (b_number, b_rest)) = (number(a_left), number(b_left));
            (a_left, b_left) = (a_rest, b_rest);
            a_number.len().cmp(&b_number.len()).then(a_number.cmp(b_number))
        } else {
            let (mut a_chars, mut b_chars) = (a_left.chars(), b_left.chars());
            let (Some(one), Some(other)) = (a_chars.next(), b_chars.next()) else {
                return a_left.len().cmp(&b_left.len()).then(a.cmp(b));
            };
            (a_left, b_left) = (a_chars.as_str(), b_chars.as_str());
            one.cmp(&other)
        };
        if order.is_ne() {
            return order;
        }
    }
}

/// All keys that this process has.
#[derive(Debug, Clone, Default)]
pub struct SealKeys(Arc<Inner>);

#[derive(Debug, Clone, Default)]
struct Inner {
    /// By name, of each the oldest first.
    keys: BTreeMap<String, Vec<Arc<SealKey>>>,
    /// Keys without a name, which open whatever they can.
    unnamed: Vec<Arc<SealKey>>,
    /// Files that have no key though they are named as one, by their names, which stand in front of each problem.
    problems: BTreeMap<String, String>,
    /// Where the keys come from, for errors.
    place: String,
}

/// The same keys, wherever they come from.
impl PartialEq for SealKeys {
    fn eq(&self, other: &SealKeys) -> bool {
        let all = |keys: &SealKeys| -> Vec<_> {
            keys.0.keys.values().flatten().map(|key| (key.label(), key.secret)).collect()
        };
        all(self) == all(other) && self.0.problems == other.0.problems
    }
}

/// Why something sealed cannot be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unopened {
    /// There is no such key here, and what to do about it.
    NoKey(String),
    /// No key helps.
    Invalid(String),
}

impl fmt::Display for Unopened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Unopened::NoKey(why) | Unopened::Invalid(why)) = self;
        f.write_str(why)
    }
}

/// What the header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header<'h> {
    /// `<name>.<id>` of the key.
    pub key: &'h str,
    /// The id of the event that was sealed.
    pub event_id: &'h str,
}

impl<'h> Header<'h> {
    /// Reads its value.
    ///
    /// # Errors
    /// Another version, or no header of ours.
    pub fn parse(value: &'h str) -> Result<Header<'h>, String> {
        let shown = || value.chars().take(80).collect::<String>();
        let mut parts = value.split(' ');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(VERSION), Some(key), Some(event_id), None) if parts_of(key).is_some() && !event_id.is_empty() => {
                Ok(Header { key, event_id })
            }
            (Some(version), Some(_), ..) if version != VERSION => Err(format!(
                "{HEADER} is {:?}: this walhook reads {VERSION} only; a newer one may have sealed it",
                shown()
            )),
            _ => Err(format!("{HEADER} is {:?}, which is not \"{VERSION} <key>.<key id> <event id>\"", shown())),
        }
    }
}

impl SealKeys {
    /// The keys in files of these names, which `read` gets the content of, or why it cannot be read; other names than those of keys
    /// are passed over, for such files may be there which nobody may read. `place` says in errors where they are.
    pub fn of<'f>(
        place: &str,
        file_names: impl Iterator<Item = &'f str>,
        read: impl Fn(&str) -> Result<Vec<u8>, String>,
    ) -> SealKeys {
        let mut inner = Inner { place: place.to_owned(), ..Inner::default() };
        for file_name in file_names {
            let Some((name, id)) = parts_of(file_name) else { continue };
            match read(file_name).and_then(|content| secret(&content)) {
                Ok(secret) => {
                    inner.keys.entry(name.to_owned()).or_default().push(Arc::new(SealKey::new(name, id, secret)));
                }
                Err(why) => drop(inner.problems.insert(file_name.to_owned(), format!("{file_name}: {why}"))),
            }
        }
        for keys in inner.keys.values_mut() {
            keys.sort_by(|a, b| by_id(&a.id, &b.id));
        }
        SealKeys(Arc::new(inner))
    }

    /// These and one from a file outside of any folder, which opens whatever it can.
    ///
    /// # Errors
    /// The file has no key.
    pub fn with_file(self, content: &[u8]) -> Result<SealKeys, String> {
        let mut inner = Arc::unwrap_or_clone(self.0);
        inner.unnamed.push(Arc::new(SealKey::new("", "", secret(content)?)));
        Ok(SealKeys(Arc::new(inner)))
    }

    /// All that `other` has as well.
    #[must_use]
    pub fn and(self, other: &SealKeys) -> SealKeys {
        let Inner { mut keys, unnamed, mut problems, place } = Arc::unwrap_or_clone(self.0);
        for (name, more) in &other.0.keys {
            keys.entry(name.clone()).or_default().extend(more.iter().cloned());
        }
        problems.extend(other.0.problems.clone());
        SealKeys(Arc::new(Inner { keys, unnamed, problems, place }))
    }

    /// The key of this name that seals: the newest.
    ///
    /// # Errors
    /// Why there is none.
    pub fn newest(&self, name: &str) -> Result<Arc<SealKey>, String> {
        let newest = self.0.keys.get(name).and_then(|keys| keys.last());
        newest.cloned().ok_or_else(|| {
            let is_its = |file: &&String| parts_of(file).is_some_and(|(of, _)| of == name);
            let why = match self.0.problems.keys().rev().find(is_its).and_then(|file| self.0.problems.get(file)) {
                Some(problem) => problem.clone(),
                None => format!("{} has no file {name}.<id>", self.0.place()),
            };
            format!("walhook does not have the seal key {name:?}: {why}")
        })
    }

    /// The names of all keys, each with the id of the newest.
    pub fn labels(&self) -> Vec<String> {
        self.0.keys.values().filter_map(|keys| keys.last()).map(|key| key.label()).collect()
    }

    /// Files that have no key though they are named as one.
    pub fn problems(&self) -> impl Iterator<Item = &str> {
        self.0.problems.values().map(String::as_str)
    }

    /// Whether a key of this label, `<name>.<id>`, is here.
    pub fn has(&self, label: &str) -> bool {
        self.find(label).is_some() || !self.0.unnamed.is_empty()
    }

    fn find(&self, label: &str) -> Option<&SealKey> {
        let (name, id) = parts_of(label)?;
        self.0.keys.get(name)?.iter().find(|key| key.id == id).map(|key| &**key)
    }

    /// Opens a body by the value of its header.
    ///
    /// # Errors
    /// There is no such key; it is not what was sealed.
    pub fn open(&self, header: &str, sealed: &[u8]) -> Result<Vec<u8>, Unopened> {
        self.open_as(header, header.as_bytes(), sealed)
    }

    /// Opens an old key by the value of the header of its message, and of its own.
    ///
    /// # Errors
    /// As [`SealKeys::open`].
    pub fn open_old_key(&self, header: &str, value: &str) -> Result<Vec<u8>, Unopened> {
        let sealed =
            STANDARD.decode(value).map_err(|_| Unopened::Invalid(format!("{OLD_KEY_HEADER} is not base64")))?;
        self.open_as(header, &[header.as_bytes(), OLD_KEY].concat(), &sealed)
    }

    fn open_as(&self, header: &str, authenticated: &[u8], sealed: &[u8]) -> Result<Vec<u8>, Unopened> {
        let Header { key: label, .. } = Header::parse(header).map_err(Unopened::Invalid)?;
        if let Some(key) = self.find(label) {
            return key.open(authenticated, sealed).map_err(Unopened::Invalid);
        }
        let mut opened = self.0.unnamed.iter().filter_map(|key| key.open(authenticated, sealed).ok());
        opened.next().ok_or_else(|| self.missing(label))
    }

    /// That the key of this label is not here.
    pub fn missing(&self, label: &str) -> Unopened {
        let why = match self.0.problems.get(label) {
            Some(problem) => format!("which cannot be read: {problem}"),
            None => format!("which {} does not have: put the file {label} there", self.0.place()),
        };
        Unopened::NoKey(format!("it is sealed with the key {label}, {why}"))
    }
}

impl Inner {
    fn place(&self) -> &str {
        if self.place.is_empty() {
            "walhook has no seal_keys_dir (--seal-keys-dir, WALHOOK_SEAL_KEYS_DIR), which"
        } else {
            &self.place
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hex(byte: u8) -> Vec<u8> {
        format!("{byte:02x}").repeat(32).into_bytes()
    }

    fn keys(files: &[(&str, &[u8])]) -> SealKeys {
        let content = |name: &str| files.iter().find(|(of, _)| *of == name).unwrap().1.to_vec();
        SealKeys::of("the folder", files.iter().map(|(name, _)| *name), |name| Ok(content(name)))
    }

    const ID: &str = "src-0000000000000007-9-0-1";

    /// What is sealed, with the value of its header.
    fn sealed(key: &SealKey, body: &[u8]) -> (String, Vec<u8>) {
        sealed_as(ID, key, body)
    }

    fn sealed_as(id: &str, key: &SealKey, body: &[u8]) -> (String, Vec<u8>) {
        let mut header = Vec::new();
        key.write_header(id.as_bytes(), &mut header);
        let mut out = b"before".to_vec();
        let start = out.len();
        SealKey::begin(&mut out);
        out.extend_from_slice(body);
        key.seal(id.as_bytes(), start, &mut out);
        assert_eq!((&out[..start], out.len()), (&b"before"[..], start + body.len() + OVERHEAD));
        let header = String::from_utf8(header).unwrap();
        (header.strip_prefix("\r\nWalhook-Sealed: ").unwrap().to_owned(), out.split_off(start))
    }

    #[test]
    fn what_is_sealed_is_opened_by_its_key_and_nothing_of_it_depends_on_chance() {
        let keys =
            keys(&[("a.2026", &hex(7)), ("a.2025", &hex(8)), ("a.2024", b"short"), ("README", b"x"), ("..data", b"x")]);
        let key = keys.newest("a").unwrap();
        let (header, first) = sealed(&key, b"the body");
        assert_eq!(header, format!("v1 a.2026 {ID}"));
        assert_eq!(Header::parse(&header), Ok(Header { key: "a.2026", event_id: ID }));
        assert_eq!(keys.open(&header, &first).unwrap(), b"the body");
        assert_eq!(sealed(&key, b"the body").1, first, "a restart makes the same of it");
        // Another event, another body and another key have other salts and nonces.
        let others = [
            sealed_as("src-0000000000000007-9-1-1", &key, b"the body").1,
            sealed(&key, b"the bodY").1,
            sealed(&key, b"").1,
            sealed(keys.find("a.2025").unwrap(), b"the body").1,
        ];
        for other in &others {
            assert!(first[..SALT] != other[..SALT] && first[SALT..PREFIX] != other[SALT..PREFIX]);
        }
        let long = "x".repeat(2000);
        let (header_of_long, body) = sealed_as(&long, &key, b"y");
        assert_eq!(keys.open(&header_of_long, &body).unwrap(), b"y");
        assert_eq!(keys.open(&header, &sealed(&key, b"").1).unwrap(), b"");
        assert!(keys.problems().next().unwrap().starts_with("a.2024: it has to hold 64"));
        assert_eq!(format!("{key:?}"), "SealKey(a.2026)");
        assert!(!format!("{keys:?}").contains("0707"));
    }

    /// By somebody else's hand: the values of docs/sealed-payloads.md, which the workers of other languages are tested by too.
    #[test]
    fn the_format_is_the_documented_one() {
        let secret = [7; KEY];
        let salt = [1; SALT];
        let hmac = |key: &[u8], data: &[u8]| {
            ring::hmac::sign(&ring::hmac::Key::new(ring::hmac::HMAC_SHA256, key), data).as_ref().to_vec()
        };
        let derived = hmac(&hmac(&salt, &secret), b"walhook sealed v1\x01");
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &derived).unwrap());
        let header = format!("v1 a.1 {ID}");
        let mut body = b"{}".to_vec();
        let nonce = Nonce::assume_unique_for_key([2; NONCE_LEN]);
        key.seal_in_place_append_tag(nonce, Aad::from(header.as_bytes()), &mut body).unwrap();
        let whole = [&salt[..], &[2; NONCE_LEN], &body].concat();
        assert_eq!(keys(&[("a.1", &hex(7))]).open(&header, &whole).unwrap(), b"{}");
    }

    #[test]
    fn the_newest_key_seals_and_all_open() {
        let all = keys(&[("a.k9", &hex(9)), ("a.k10", &hex(10)), ("b.1", &hex(1))]);
        assert_eq!(all.newest("a").unwrap().label(), "a.k10");
        assert_eq!(all.labels(), ["a.k10", "b.1"]);
        let old = keys(&[("a.k9", &hex(9))]);
        let (header, body) = sealed(&old.newest("a").unwrap(), b"x");
        assert_eq!(all.open(&header, &body).unwrap(), b"x");
        let without = keys(&[("a.k10", &hex(10))]);
        let error = without.open(&header, &body).unwrap_err();
        assert_eq!(
            error,
            Unopened::NoKey(
                "it is sealed with the key a.k9, which the folder does not have: put the file a.k9 there".to_owned()
            )
        );
        assert!(all.has("a.k9") && !without.has("a.k9"));
        assert!(all != without && old == keys(&[("a.k9", &hex(9))]) && old != keys(&[("a.k9", &hex(8))]));
        for (older, newer) in
            [("1", "2"), ("9", "10"), ("2026-11-9", "2026-11-30"), ("a", "b"), ("a", "a1"), ("a1", "a1b"), ("01", "2")]
        {
            assert_eq!(
                (by_id(older, newer), by_id(newer, older)),
                (Ordering::Less, Ordering::Greater),
                "{older} {newer}"
            );
        }
        assert_eq!(by_id("01", "01"), Ordering::Equal);
        assert_ne!(by_id("01", "1"), Ordering::Equal);
    }

    #[test]
    fn a_name_without_a_key_says_why() {
        let keys = keys(&[("a.1", b"0102")]);
        assert!(keys.newest("a").unwrap_err().contains("a.1: it has to hold 64 hexadecimal digits"));
        assert_eq!(
            keys.newest("b").unwrap_err(),
            "walhook does not have the seal key \"b\": the folder has no file b.<id>"
        );
        assert!(SealKeys::default().newest("b").unwrap_err().contains("no seal_keys_dir"));
        for bad in [&b""[..], b"x", &hex(1)[..63], &[hex(1), hex(1)].concat(), "ä".repeat(32).as_bytes(), &[b'z'; 64]]
        {
            assert!(secret(bad).is_err());
        }
        assert_eq!(secret(&[&hex(255)[..], b"\r\n"].concat()), Ok([255; KEY]));
    }

    #[test]
    fn an_old_key_is_sealed_for_itself() {
        let keys = keys(&[("a.1", &hex(7))]);
        let key = keys.newest("a").unwrap();
        let mut line = Vec::new();
        key.write_old_key(ID.as_bytes(), b"{\"id\":1}", &mut line);
        let line = String::from_utf8(line).unwrap();
        let value = line.strip_prefix("\r\nWalhook-Sealed-Old-Key: ").unwrap();
        let header = format!("v1 a.1 {ID}");
        assert_eq!(keys.open_old_key(&header, value).unwrap(), b"{\"id\":1}");
        // Nobody can put one in the place of the other.
        assert!(keys.open(&header, &STANDARD.decode(value).unwrap()).is_err());
        assert!(keys.open_old_key(&header, &STANDARD.encode(sealed(&key, b"{}").1)).is_err());
        assert!(keys.open_old_key(&header, "no base64!").is_err());
    }

    #[test]
    fn a_key_without_a_name_opens_what_it_can() {
        let (header, body) = sealed(&keys(&[("a.1", &hex(7))]).newest("a").unwrap(), b"x");
        let none = SealKeys::default().with_file(&hex(3)).unwrap();
        assert!(matches!(none.open(&header, &body), Err(Unopened::NoKey(_))));
        let both = none.clone().with_file(&hex(7)).unwrap();
        assert_eq!(both.open(&header, &body).unwrap(), b"x");
        let with_folder = none.and(&keys(&[("a.1", &hex(7))]));
        assert_eq!(with_folder.open(&header, &body).unwrap(), b"x");
        assert!(SealKeys::default().with_file(b"none").is_err());
    }

    proptest! {
        /// Whatever is changed, cut off or made up is an error, and nothing panics.
        #[test]
        fn nothing_but_what_was_sealed_is_opened(
            body in prop::collection::vec(any::<u8>(), 0..200),
            at in any::<prop::sample::Index>(),
            bit in 0..8u32,
            length in any::<prop::sample::Index>(),
            noise in prop::collection::vec(any::<u8>(), 0..300),
            text in "[ -~]{0,60}",
        ) {
            let keys = keys(&[("a.1", &hex(7)), ("b.1", &hex(8))]);
            let (header, whole) = sealed(&keys.newest("a").unwrap(), &body);
            prop_assert_eq!(keys.open(&header, &whole).unwrap(), body);
            let mut changed = whole.clone();
            changed[at.index(whole.len())] ^= 1 << bit;
            prop_assert!(keys.open(&header, &changed).is_err());
            prop_assert!(keys.open(&header, &whole[..length.index(whole.len())]).is_err());
            prop_assert!(keys.open(&header, &[&whole[..], b"x"].concat()).is_err());
            prop_assert!(keys.open(&header, &noise).is_err());
            prop_assert!(keys.open(&header.replace("a.1", "b.1"), &whole).is_err());
            prop_assert!(keys.open(&[&header[..], "0"].concat(), &whole).is_err());
            prop_assert!(keys.open(&text, &whole).is_err());
            let _ = keys.open_old_key(&header, &text);
        }
    }
}
