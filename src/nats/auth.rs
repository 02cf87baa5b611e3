//! Who we are to a NATS server.
//!
//! In: how to prove it ([`Auth`]) and the server's nonce. Out: what CONNECT carries. One way for both kinds of connection.
//! A credentials file is read again for every connection, so that a rotated one is taken up without a restart.
//! No secret is ever shown: `Debug` names the method only.

use std::{fmt, path::PathBuf};

use nkeys::KeyPair;

use crate::{
    error::{Error, Result},
    files,
};

/// How to prove who we are.
#[derive(Clone, PartialEq, Eq)]
pub enum Auth {
    /// The server asks nobody.
    None,
    /// One secret word.
    Token(String),
    /// A name and a password.
    UserPassword(String, String),
    /// A `.creds` file: a user JWT and the seed that signs the nonce.
    Credentials(PathBuf),
    /// The seed of an nkey (`SU…`) that signs the nonce.
    Nkey(String),
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Auth::None => f.write_str("None"),
            Auth::Token(_) => f.write_str("Token(…)"),
            Auth::UserPassword(..) => f.write_str("UserPassword(…)"),
            Auth::Credentials(file) => write!(f, "Credentials({})", file.display()),
            Auth::Nkey(_) => f.write_str("Nkey(…)"),
        }
    }
}

/// What CONNECT carries for one connection.
#[derive(Default)]
pub struct Proof {
    /// Name for a password.
    pub user: Option<String>,
    /// The password.
    pub password: Option<String>,
    /// The token.
    pub token: Option<String>,
    /// The user JWT.
    pub jwt: Option<String>,
    /// The public nkey.
    pub nkey: Option<String>,
    /// The nonce, signed.
    pub signature: Option<Vec<u8>>,
}

impl Auth {
    /// The answer to the server's `nonce`, which a server sends only when it knows nkeys or credentials.
    pub async fn prove(&self, nonce: Option<&str>) -> Result<Proof> {
        let nonce = || {
            nonce.ok_or_else(|| {
                Error::config("the NATS server sends no nonce to sign: it knows neither nkeys nor credentials")
                    .hint("Choose the authentication that the server is configured for")
            })
        };
        Ok(match self {
            Auth::None => Proof::default(),
            Auth::Token(token) => Proof { token: Some(token.clone()), ..Proof::default() },
            Auth::UserPassword(user, password) => {
                Proof { user: Some(user.clone()), password: Some(password.clone()), ..Proof::default() }
            }
            Auth::Nkey(seed) => {
                let pair = key_pair(seed)?;
                Proof { nkey: Some(pair.public_key()), signature: Some(sign(&pair, nonce()?)?), ..Proof::default() }
            }
            Auth::Credentials(file) => {
                let path = file.clone();
                // Away from the one thread that runs everything else: the file's disk may be far.
                let read = move || files::read_text("auth_credentials_file or NATS_CREDS", &path);
                let read = tokio::task::spawn_blocking(read).await;
                let text = read.map_err(|_| Error::protocol("read the NATS credentials file"))??;
                let (jwt, seed) = credentials(&text).ok_or_else(|| {
                    Error::config(format!(
                        "the NATS credentials file {} lacks a user JWT or a seed",
                        files::shown(file)
                    ))
                    .hint("It should hold a BEGIN NATS USER JWT and a BEGIN USER NKEY SEED block, as nsc writes it")
                })?;
                let pair = key_pair(seed).map_err(|error| error.context(files::shown(file)))?;
                Proof { jwt: Some(jwt.to_owned()), signature: Some(sign(&pair, nonce()?)?), ..Proof::default() }
            }
        })
    }
}

/// The key pair of a user's seed. The cause is left out: it could quote the seed.
pub(super) fn key_pair(seed: &str) -> Result<KeyPair> {
    let wrong = || {
        Error::config("the NATS nkey seed cannot be read")
            .hint("the seed of a NATS user has 58 characters and begins with SU")
    };
    let pair = KeyPair::from_seed(seed.trim()).map_err(|_| wrong())?;
    // An operator's or account's seed would sign as well, and be refused by the server without a reason.
    if pair.public_key().starts_with('U') { Ok(pair) } else { Err(wrong()) }
}

fn sign(pair: &KeyPair, nonce: &str) -> Result<Vec<u8>> {
    pair.sign(nonce.as_bytes()).map_err(|_| Error::config("the NATS nkey seed cannot sign"))
}

/// JWT and seed out of a `.creds` file: two blocks between lines of dashes.
fn credentials(text: &str) -> Option<(&str, &str)> {
    Some((block(text, "USER JWT")?, block(text, "USER NKEY SEED")?))
}

fn block<'a>(text: &'a str, label: &str) -> Option<&'a str> {
    let mut lines = text.lines().map(str::trim);
    lines.find(|line| line.starts_with("---") && line.contains("BEGIN") && line.contains(label))?;
    lines.find(|line| !line.is_empty()).filter(|line| !line.starts_with('-'))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const CREDS: &str = "-----BEGIN NATS USER JWT-----\r\neyJ0.eyJq.c2ln\r\n------END NATS USER JWT------\r\n\n***\n\n\
        -----BEGIN USER NKEY SEED-----\nSUAIO\n------END USER NKEY SEED------\n";

    #[test]
    fn a_credentials_file_yields_its_jwt_and_seed() {
        assert_eq!(credentials(CREDS), Some(("eyJ0.eyJq.c2ln", "SUAIO")));
    }

    #[test]
    fn a_credentials_file_without_either_block_is_refused() {
        assert_eq!(credentials(""), None);
        assert_eq!(credentials(&CREDS.replace("USER NKEY SEED", "x")), None);
        assert_eq!(credentials(&CREDS.replace("eyJ0.eyJq.c2ln\r\n", "")), None);
    }

    #[test]
    fn only_a_users_seed_is_taken_and_none_is_quoted() {
        assert!(key_pair(&KeyPair::new_user().seed().unwrap()).is_ok());
        let account = KeyPair::new_account().seed().unwrap();
        for seed in ["", "SUNSENSE", account.as_str()] {
            let error = key_pair(seed).err().unwrap().to_string();
            assert!(seed.is_empty() || !error.contains(seed), "{error}");
        }
    }

    #[test]
    fn debug_shows_the_method_and_no_secret() {
        let shown = format!("{:?}", [Auth::Token("s3cr3t".into()), Auth::UserPassword("u".into(), "s3cr3t".into())]);
        assert_eq!(shown, "[Token(…), UserPassword(…)]");
    }
}
