//! Whether there is the key that masks need.
//!
//! In: the settings and the configuration rows. Out: the finding `mask_key`, if a link needs a key and there is none.

use super::finding::{Finding, How, Severity};
use crate::{commands::masks, config::Config, route::tables::Tables};

/// `mask_key`.
pub fn check(config: &Config, tables: &Tables) -> Option<Finding> {
    let problem = masks::problem(tables, &masks::key(config))?;
    let finding = Finding::new("mask_key", Severity::Error, "mask_key_file", problem);
    Some(finding.remedy(
        How::Shell,
        "(umask 077; openssl rand -hex 32 > walhook-mask-key) && export WALHOOK_MASK_KEY_FILE=$PWD/walhook-mask-key",
    ))
}
