//! Whether there are the keys with which webhooks seal.
//!
//! In: the settings and the configuration rows. Out: the finding `seal_key`, if a webhook names a key that is not there.

use super::finding::{Finding, How, Severity};
use crate::{commands::seal_keys, config::Config, route::tables::Tables};

/// `seal_key`.
pub fn check(config: &Config, tables: &Tables) -> Option<Finding> {
    let keys = seal_keys::keys(config);
    let problem = seal_keys::problem(tables, &keys)?;
    let finding = Finding::new("seal_key", Severity::Error, "seal_keys_dir", problem);
    let mut names = tables.webhooks.values().filter_map(|row| row.seal_key.as_deref());
    // A row from before the check of its column may have any name.
    let is_plain = |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-./".contains(&byte));
    let wanted = names.find(|name| is_plain(name) && keys.newest(name).is_err()).unwrap_or("NAME");
    let folder = config.seal_keys_dir.as_ref().and_then(|folder| folder.to_str()).filter(|folder| is_plain(folder));
    let remedy = match folder {
        Some(folder) => format!("(umask 077; openssl rand -hex 32 > {folder}/{wanted}.1)"),
        None => format!(
            "mkdir -p -m 700 walhook-seal-keys && (umask 077; openssl rand -hex 32 > walhook-seal-keys/{wanted}.1) && \
             export WALHOOK_SEAL_KEYS_DIR=$PWD/walhook-seal-keys"
        ),
    };
    Some(finding.remedy(How::Shell, remedy))
}
