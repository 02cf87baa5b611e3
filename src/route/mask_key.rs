//! The key of the hashes that masks write.
//!
//! Comes in: the content of a file. Goes out: a key, or why there is none. Always holds: it is shown nowhere.

use ring::hmac;

/// Shortest key, in bytes.
pub const KEY_MIN: usize = 16;

/// The key of the hashes, or why there is none. It comes from a file of the process's own settings, never from the database.
#[derive(Clone)]
pub struct MaskKey(Result<hmac::Key, String>);

impl Default for MaskKey {
    fn default() -> MaskKey {
        MaskKey(Err("walhook has no mask_key_file (--mask-key-file, WALHOOK_MASK_KEY_FILE)".to_owned()))
    }
}

/// Without the key.
impl std::fmt::Debug for MaskKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_ok() { "MaskKey(…)" } else { "MaskKey(none)" })
    }
}

impl MaskKey {
    /// Of the content of its file, without the line end behind it.
    pub fn of(content: &[u8]) -> MaskKey {
        let content = content.strip_suffix(b"\n").unwrap_or(content);
        let content = content.strip_suffix(b"\r").unwrap_or(content);
        if content.len() < KEY_MIN {
            return MaskKey::missing(format!(
                "the key in mask_key_file has {} bytes, fewer than {KEY_MIN}; openssl rand -hex 32 makes one",
                content.len()
            ));
        }
        MaskKey(Ok(hmac::Key::new(hmac::HMAC_SHA256, content)))
    }

    /// In place of one that cannot be had.
    pub fn missing(why: String) -> MaskKey {
        MaskKey(Err(why))
    }

    /// The key.
    ///
    /// # Errors
    /// Why there is none.
    pub fn get(&self) -> Result<&hmac::Key, &str> {
        self.0.as_ref().map_err(String::as_str)
    }

    /// Why there is none.
    pub fn problem(&self) -> Option<&str> {
        self.get().err()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_is_shown_and_a_short_one_is_none() {
        let key = MaskKey::of(b"0123456789abcdef\r\n");
        assert_eq!(format!("{key:?} {:?}", MaskKey::default()), "MaskKey(…) MaskKey(none)");
        assert!(key.problem().is_none() && MaskKey::of(b"0123456789abcde\n").problem().is_some());
    }
}
