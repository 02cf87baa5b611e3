//! The key of masks, and links that need one that this process does not have.
//!
//! In: the settings and the configuration rows. Out: the key, or why there is none; what is wrong, for the log and for
//! `walhook check`. The links themselves are set aside by [`crate::route::mask`].

use crate::{
    config::Config,
    files,
    route::{mask, mask_key::MaskKey, tables::Tables},
    text,
};

/// The key, read now, or why there is none: then the links that need it are set aside, and the others flow.
pub fn key(config: &Config) -> MaskKey {
    let Some(path) = &config.mask_key_file else { return MaskKey::default() };
    match files::read_private("mask_key_file (--mask-key-file, WALHOOK_MASK_KEY_FILE)", path) {
        Ok(content) => MaskKey::of(&content),
        Err(error) => MaskKey::missing(error.to_string()),
    }
}

/// What is wrong, if a link needs a key and there is none.
pub fn problem(tables: &Tables, key: &MaskKey) -> Option<String> {
    let why = key.problem()?;
    let links = tables.links.values().filter(|link| link.enabled && mask::needs_key(link));
    let named: Vec<_> = links.map(|link| format!("{}.{}", link.table_schema, link.table_name)).collect();
    let (first, rest) = named.split_first()?;
    let more = if rest.is_empty() { String::new() } else { format!(" and of {} more", rest.len()) };
    Some(format!(
        "the mask of the link of {}{more} has hash, which needs a key: {why}. Events of such links become dead letters without \
         their rows",
        text::one_line(first)
    ))
}
