//! The status page at `/`, and what it is told.
//!
//! In: a [`Snapshot`]. Out: one page that needs nothing from elsewhere, the JSON of its events, and the webhooks that a search finds. Always
//! holds: of any number of webhooks only so many are sent; the page runs no script and no style but its own, by their digests.

use std::sync::LazyLock;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Serialize;
use serde_json::{Value, json};

use super::snapshot::{Published, PublishedWebhook, Snapshot, Webhook};

/// How many webhooks an event or an answer holds.
const WEBHOOKS_SHOWN: usize = 50;

/// The page.
pub const PAGE: &str = include_str!("page.html");

/// What a browser may load and run for the page.
pub fn content_security_policy() -> &'static str {
    static POLICY: LazyLock<String> = LazyLock::new(|| {
        let digest = |tag: &str| {
            let rest = PAGE.split_once(&format!("<{tag}>")).map_or("", |(_, rest)| rest);
            let text = rest.split_once(&format!("</{tag}>")).map_or("", |(text, _)| text);
            STANDARD.encode(ring::digest::digest(&ring::digest::SHA256, text.as_bytes()))
        };
        format!(
            "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; img-src data:; base-uri 'none'; \
             form-action 'none'; frame-ancestors 'none'",
            digest("script"),
            digest("style")
        )
    });
    &POLICY
}

/// Those that fail first, then those that were called last.
fn by_interest(webhooks: &mut [Webhook]) {
    webhooks.sort_by(|one, other| {
        let last = |webhook: &Webhook| webhook.last_at.unwrap_or_default();
        let fails = |webhook: &Webhook| webhook.last_error.is_some();
        fails(other).cmp(&fails(one)).then(last(other).total_cmp(&last(one))).then(one.id.cmp(&other.id))
    });
}

/// Those that publish nothing although they should, then those with the last event.
fn shown_of(published: &Published, is_wanted: impl Fn(&PublishedWebhook<'_>) -> bool) -> Value {
    let mut found: Vec<_> = published.iter().filter(is_wanted).collect();
    let by_interest = |one: &PublishedWebhook<'_>, other: &PublishedWebhook<'_>| {
        let fails = |webhook: &PublishedWebhook<'_>| webhook.publishes && webhook.problem.is_some();
        let last = |webhook: &PublishedWebhook<'_>| webhook.last_at.unwrap_or_default();
        fails(other).cmp(&fails(one)).then(last(other).total_cmp(&last(one))).then(one.id.cmp(&other.id))
    };
    // Of ten thousand only the first few have to be in order.
    if found.len() > WEBHOOKS_SHOWN {
        found.select_nth_unstable_by(WEBHOOKS_SHOWN, by_interest);
        found.truncate(WEBHOOKS_SHOWN);
    }
    found.sort_by(by_interest);
    json!(found)
}

/// Who may retry and drop dead letters on the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Operator {
    /// Nobody: no token is set for it, or there is no database.
    Nobody,
    /// A reader who enters the operator's token.
    WithToken,
    /// The reader of this: its token is the operator's.
    Reader,
}

/// What an event of `/events` says.
pub fn state(mut snapshot: Snapshot, operator: Operator) -> Value {
    let (readiness, problems) = (snapshot.readiness(), snapshot.problems());
    let published = snapshot.run.as_mut().map(|run| std::mem::take(&mut run.webhooks));
    let total = snapshot.deliver.as_mut().map(|deliver| {
        let webhooks = &mut deliver.webhooks;
        let sum = |of: fn(&Webhook) -> u64| webhooks.iter().map(of).sum::<u64>();
        let total = json!({
            "webhooks": webhooks.len(),
            "delivered": sum(|webhook| webhook.delivered),
            "in_flight": sum(|webhook| webhook.in_flight),
        });
        by_interest(webhooks);
        webhooks.truncate(WEBHOOKS_SHOWN);
        total
    });
    let mut state = json!(snapshot);
    state["readiness"] = json!(readiness);
    state["version"] = env!("CARGO_PKG_VERSION").into();
    state["operator"] = json!(operator);
    state["problems"] = json!(problems);
    if let Some(published) = published {
        state["run"]["webhooks"] = shown_of(&published, |_| true);
        state["run"]["webhook_count"] = published.names.len().into();
    }
    if let Some(total) = total {
        state["deliver"]["total"] = total;
    }
    state
}

/// The webhooks whose names hold this text, in upper or lower case.
pub fn search(snapshot: Snapshot, text: &str) -> Value {
    let text = text.to_lowercase();
    if let Some(run) = &snapshot.run {
        return shown_of(&run.webhooks, |webhook| webhook.name.to_lowercase().contains(&text));
    }
    let mut found: Vec<Webhook> = snapshot.deliver.map(|deliver| deliver.webhooks).unwrap_or_default();
    found.retain(|webhook| webhook.name.to_lowercase().contains(&text));
    by_interest(&mut found);
    found.truncate(WEBHOOKS_SHOWN);
    json!(found)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{
        flow::streamer::WebhookCounts,
        http::snapshot::{Deliver, PublishedName},
    };

    #[test]
    fn the_page_is_small_and_needs_nothing_from_elsewhere() {
        assert!(PAGE.len() < 100_000, "{}", PAGE.len());
        for foreign in ["http://", "https://", "src=", "innerHTML", "style=", "onclick", "@import", "eval("] {
            assert!(!PAGE.contains(foreign), "{foreign}");
        }
        assert_eq!((PAGE.matches("<script>").count(), PAGE.matches("<style>").count()), (1, 1));
        let policy = content_security_policy();
        assert!(
            policy.starts_with("default-src 'none'; script-src 'sha256-") && !policy.contains("unsafe"),
            "{policy}"
        );
    }

    #[test]
    fn of_ten_thousand_webhooks_a_few_are_sent_those_that_fail_first_and_a_search_finds_the_others() {
        let webhook = |id: i32| Webhook {
            id,
            name: format!("Webhook {id}"),
            delivered: 1,
            last_error: (id == 9_999).then(|| "answered 500".to_owned()),
            ..Webhook::default()
        };
        let deliver = Deliver { webhooks: (0..10_000).map(webhook).collect(), ..Deliver::default() };
        let snapshot = Snapshot { verb: "deliver", deliver: Some(deliver), ..Snapshot::default() };
        let state = state(snapshot.clone(), Operator::Nobody);
        assert_eq!(state["deliver"]["webhooks"].as_array().unwrap().len(), WEBHOOKS_SHOWN);
        assert_eq!(
            (state["deliver"]["webhooks"][0]["id"].as_i64(), &state["deliver"]["total"]["webhooks"]),
            (Some(9_999), &json!(10_000))
        );
        assert!(state.to_string().len() < 50_000);
        let found = search(snapshot, "wEBHOOK 1234");
        assert_eq!(found.as_array().unwrap().len(), 1);
    }

    #[test]
    fn of_ten_thousand_webhooks_that_publish_those_come_first_that_cannot_and_then_the_latest() {
        let name = |id: i32| PublishedName {
            id,
            name: format!("Webhook {id}"),
            problem: (id == 5).then(|| "its configuration is disabled".to_owned()),
            publishes: true,
        };
        let counts = |id: i32| WebhookCounts { events: u64::from(id != 7), dead: 0, last: i64::from(id) };
        let webhooks = Published { names: (0..10_000).map(name).collect(), counts: (0..10_000).map(counts).collect() };
        let snapshot = Snapshot {
            verb: "run",
            run: Some(crate::http::snapshot::Run { webhooks, ..Default::default() }),
            ..Snapshot::default()
        };
        let state = state(snapshot.clone(), Operator::WithToken);
        let ids =
            |list: &Value| list.as_array().unwrap().iter().map(|one| one["id"].as_i64().unwrap()).collect::<Vec<_>>();
        let first = ids(&state["run"]["webhooks"]);
        assert_eq!(
            (first.len(), &first[..3], &state["operator"]),
            (WEBHOOKS_SHOWN, &[5, 9_999, 9_998][..], &json!("with_token"))
        );
        assert_eq!(state["run"]["webhook_count"], 10_000);
        assert!(state.to_string().len() < 50_000);
        let found = search(snapshot, "wEBHOOK 7");
        assert_eq!((found[WEBHOOKS_SHOWN - 1]["id"].is_number(), found[WEBHOOKS_SHOWN].is_null()), (true, true));
    }
}
