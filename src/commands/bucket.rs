//! The bucket by which the streamer tells workers which webhooks there are: its name and its keys.

/// Before a webhook's id.
pub const KEY_PREFIX: &str = "webhook.";

/// The bucket of the feed `source`. A bucket's name has no dots.
pub fn name(source: &str) -> String {
    format!("walhook_{}", source.replace('.', "_"))
}
