//! Announcements in NATS: a webhook that walhook has disabled, dead letters that pile up, and the end of either.

#![allow(clippy::unwrap_used)]

use futures_util::StreamExt;
use serde_json::Value;

use super::support::{
    DEADLINE,
    http::{Http, Reply},
    last_mile::LastMile,
};

const SUBJECT: &str = "_WALHOOK.notices";

struct Notices(async_nats::Subscriber);

impl Notices {
    async fn on(mile: &LastMile) -> Notices {
        let client = mile.feed.nats.client().await;
        let subscriber = client.subscribe(format!("{SUBJECT}.>")).await.unwrap();
        client.flush().await.unwrap();
        Notices(subscriber)
    }

    /// The next one: its subject's last token, and what it says.
    async fn next(&mut self) -> (String, Value) {
        let message = tokio::time::timeout(DEADLINE, self.0.next()).await.expect("an announcement").unwrap();
        assert!(message.headers.unwrap().get("Nats-Msg-Id").is_some());
        let notice: Value = serde_json::from_slice(&message.payload).unwrap();
        let event = message.subject.strip_prefix("_WALHOOK.notices.walhook.").unwrap().to_owned();
        assert_eq!(notice["event"], event.as_str());
        (event, notice)
    }

    /// Those that come until one says this, which is not among them.
    async fn until(&mut self, event: &str, webhook: &str) -> Vec<(String, Value)> {
        let mut before = Vec::new();
        loop {
            let (next, notice) = self.next().await;
            if next == event && notice["webhook"] == webhook {
                return before;
            }
            before.push((next, notice));
        }
    }
}

/// The error of a statement, and its hint.
fn refused(mile: &LastMile, statement: &str) -> String {
    let error = mile.feed.pg.try_psql(statement).unwrap_err();
    let error = error.as_db_error().unwrap();
    format!("{} {}", error.message(), error.hint().unwrap_or_default())
}

fn switch_on(mile: &LastMile) {
    mile.sql(&format!("UPDATE rule_nats_config SET notice_subject = '{SUBJECT}', notice_interval_seconds = 1"));
}

#[tokio::test]
async fn a_disabled_webhook_and_its_dead_letters_are_announced_once_by_however_many_processes() {
    let mile = LastMile::start().await;
    let http = Http::start(|_, _| Reply::status(410));
    switch_on(&mile);
    let mut subscribed = Notices::on(&mile).await;
    let id = mile.webhook("w", &http.url("/"));
    let mut workers = [mile.worker().start(), mile.worker().start()];
    mile.publish(id, r#"{"n": 1}"#);
    let mut notices = vec![subscribed.next().await, subscribed.next().await];
    notices.sort_by(|a, b| a.0.cmp(&b.0));
    let [(letters, letter), (disabled, notice)] = &notices[..] else { panic!("{notices:?}") };
    assert_eq!((letters.as_str(), disabled.as_str()), ("dead_letters", "webhook_disabled"));
    assert_eq!(
        (&notice["webhook"], &notice["webhook_id"], &notice["source"]),
        (&"w".into(), &id.into(), &"walhook".into())
    );
    assert_eq!(notice["reason"], "its receiver answered 410: it wants no more calls");
    assert_eq!((&letter["dead_letters"], &letter["webhook"]), (&1.into(), &"w".into()));
    assert!(letter["reason"].as_str().unwrap().starts_with("1 attempt, then: HTTP status 410"), "{letter}");
    assert!(letter["at"].as_str().unwrap().ends_with('Z') && letter["newest_dead_letter"] == 1, "{letter}");
    // Either is over.
    mile.sql("UPDATE rule_webhooks SET enabled = true; SELECT rule_nats_dead_letter_drop(1)");
    let mut over = [subscribed.next().await.0, subscribed.next().await.0];
    over.sort();
    assert_eq!(over, ["dead_letters_cleared", "webhook_enabled"]);
    // Again, by a call of the queue: its worker has no NATS, so `walhook run` and the others announce it.
    mile.sql("UPDATE rule_webhooks SET disabled_at = now(), disabled_reason = 'by hand' WHERE webhook_name = 'w'");
    let queue = mile.webhook("q", &http.url("/"));
    let mut of_queue = mile.worker().arg("--queue").start();
    mile.sql(&format!("SELECT rule_webhook_enqueue({queue}, '{{}}')"));
    let before = subscribed.until("webhook_disabled", "q").await;
    assert!(before.iter().all(|(event, notice)| event == "dead_letters" && notice["webhook"] == "q"), "{before:?}");
    assert!(before.len() <= 1, "{before:?}");
    assert_eq!(mile.sql("SELECT count(*) FROM rule_webhooks WHERE disabled_at IS NOT NULL AND enabled"), "2");
    for worker in workers.iter_mut().chain([&mut of_queue]) {
        assert_eq!(worker.terminate(), 0, "{}", worker.log());
    }
}

#[tokio::test]
async fn dead_letters_are_announced_from_the_number_of_the_setting_on_and_then_when_they_double() {
    let mile = LastMile::start().await;
    mile.sql("UPDATE rule_nats_config SET notice_dead_letters = 3");
    switch_on(&mile);
    let mut subscribed = Notices::on(&mile).await;
    let id = mile.webhook("w", "http://127.0.0.1:9/");
    let letters = |from: u32, to: u32| {
        mile.sql(&format!(
            "INSERT INTO rule_nats_dead_letters (event_id, webhook_id, webhook_name, reason) \
             SELECT 'e' || n, {id}, 'w', 'reason ' || n FROM generate_series({from}, {to}) n"
        ));
    };
    letters(1, 2);
    // No worker runs: `walhook run` announces. It has looked at two of them, or not at all, when the third comes.
    letters(3, 3);
    let (event, notice) = subscribed.next().await;
    assert_eq!(
        (event.as_str(), &notice["dead_letters"], &notice["reason"]),
        ("dead_letters", &3.into(), &"reason 3".into())
    );
    letters(4, 5);
    letters(6, 6);
    let (event, notice) = subscribed.next().await;
    assert_eq!((event.as_str(), &notice["dead_letters"]), ("dead_letters", &6.into()));
    // Those of no webhook, and the setting that ends it all.
    mile.sql(
        "INSERT INTO rule_nats_dead_letters (event_id, reason) SELECT 'none' || n, 'r' FROM generate_series(1, 3) n",
    );
    let (event, notice) = subscribed.next().await;
    assert_eq!((event.as_str(), notice.get("webhook_id"), &notice["dead_letters"]), ("dead_letters", None, &3.into()));
    mile.sql("UPDATE rule_nats_config SET notice_subject = NULL");
    mile.eventually("SELECT count(*) FROM walhook.rule_nats_notices_take('default', 'walhook')", "0").await;
}

#[tokio::test]
async fn a_notice_subject_that_a_strict_stream_takes_is_refused_before_and_after() {
    let mile = LastMile::start().await;
    for (subject, problem) in [
        ("webhooks.notices", "stream 'WEBHOOKS' takes it"),
        ("a b", "it is not a subject"),
        ("a.*", "it is not a subject"),
    ] {
        let refused = refused(&mile, &format!("UPDATE rule_nats_config SET notice_subject = '{subject}'"));
        assert!(
            refused.contains(problem)
                && refused.contains("SET notice_subject = '_WALHOOK.notices' WHERE config_id = 1"),
            "{refused}"
        );
    }
    mile.sql("UPDATE rule_nats_config SET notice_subject = 'alerts'");
    mile.sql("SELECT rule_nats_stream_create('ALERTS', ARRAY['alerts.>'])");
    let refused = refused(&mile, "SELECT * FROM walhook.rule_nats_notices_take('default', 'walhook')");
    assert!(refused.contains("stream 'ALERTS' takes it") && refused.contains("UPDATE rule_nats_config"), "{refused}");
}
