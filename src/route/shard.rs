//! Shards: which events of a database a process publishes, by which streams and subjects.
//!
//! In: the name of the process's shard, and the columns `shard` of webhooks and links. Out: whether an event is its own, and the
//! names of its streams. Always holds: by one version of the rules an event belongs to exactly one shard. The process without a
//! shard is the shard [`MAIN`], whose streams and subjects are as their rows say.

use super::tables::StreamRow;

/// The shard of everything that no row gives to another one.
pub const MAIN: &str = "main";

/// The first token of the subjects of all shards but [`MAIN`]; JetStream lets one stream only take a subject.
const TOKEN: &str = "_shard";

/// The shard of a link's events: its own, or that of its webhook.
pub fn of_link<'r>(link: Option<&'r str>, webhook: Option<&'r str>) -> &'r str {
    link.or(webhook).unwrap_or(MAIN)
}

/// What the subjects of a shard begin with.
pub fn prefix(shard: Option<&str>) -> String {
    shard.map(|shard| format!("{TOKEN}.{shard}.")).unwrap_or_default()
}

/// The subject as it is in the shard [`MAIN`].
pub fn without_prefix(subject: &[u8]) -> &[u8] {
    let rest = subject.strip_prefix(TOKEN.as_bytes()).and_then(|rest| rest.strip_prefix(b"."));
    let name_end = rest.and_then(|rest| rest.iter().position(|&byte| byte == b'.'));
    match (rest, name_end) {
        (Some(rest), Some(end)) if end + 1 < rest.len() => &rest[end + 1..],
        _ => subject,
    }
}

/// The stream of a shard in place of one that a row describes.
pub fn adapt_stream(row: &mut StreamRow, shard: &str) {
    row.stream_name = format!("{}_{shard}", row.stream_name);
    let prefix = prefix(Some(shard));
    for subject in &mut row.subjects {
        subject.insert_str(0, &prefix);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_shards_subjects_lie_below_a_token_of_its_own_and_are_found_again_without_it() {
        assert_eq!(prefix(None), "");
        let subject = format!("{}webhooks.orders", prefix(Some("b")));
        assert_eq!(subject, "_shard.b.webhooks.orders");
        assert_eq!(without_prefix(subject.as_bytes()), b"webhooks.orders");
        for whole in ["webhooks.orders", "_shard", "_shard.", "_shard.b", "_shard.b.", "_shards.b.c"] {
            assert_eq!(without_prefix(whole.as_bytes()), whole.as_bytes(), "{whole}");
        }
    }

    #[test]
    fn a_link_without_a_shard_is_in_that_of_its_webhook() {
        assert_eq!(of_link(None, None), MAIN);
        assert_eq!(of_link(None, Some("b")), "b");
        assert_eq!(of_link(Some("main"), Some("b")), MAIN);
        assert_eq!(of_link(Some("c"), Some("b")), "c");
    }
}
