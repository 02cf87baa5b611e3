//! Copies of a database whose configurations publish to core NATS, in which nothing tells whose a subject is: JetStream is asked first.

use futures_util::StreamExt;

use super::*;

/// A copy with rows of its own, once another run of the original has left its mark.
async fn copied(nats: &Nats, original: &Site) -> Site {
    let copy = Site::on(base_backup(&original.pg).await, nats, None);
    let mut run = original.run();
    marked_by(nats, original).await;
    original.confirmed().await;
    assert_eq!(run.terminate(), 0, "{}", run.log());
    copy.insert(2001, 2010);
    copy.sql("SELECT pg_switch_wal()");
    copy.insert(2011, 2020);
    copy
}

fn is_refused(copy: &Site) {
    let mut refused = copy.run();
    assert_eq!(refused.wait(ENDS), 3, "{}", refused.log());
    assert!(refused.log().lines().last().unwrap().contains("walhook adopt"), "{}", refused.log());
}

/// The bucket is from the time before: the original keeps its mark there.
#[tokio::test]
async fn a_copy_publishes_nothing_to_core_nats_where_jetstream_of_the_account_knows_the_original() {
    let nats = Nats::start().await;
    let original = Site::start(&nats, None).await;
    has_run(&original).await;
    original.sql("UPDATE rule_nats_config SET jetstream_enabled = false");
    let mut run = original.run();
    original.insert(31, 40);
    original.confirmed().await;
    assert_eq!(run.terminate(), 0, "{}", run.log());
    let copy = copied(&nats, &original).await;
    // The stream takes the subject, also from core NATS.
    assert_eq!(numbers(&rows(&nats, "WEBHOOKS").await), (1..=40).collect::<Vec<_>>());
    is_refused(&copy);
    let mut run = original.run();
    original.insert(41, 50);
    original.confirmed().await;
    assert_eq!(run.terminate(), 0, "{}", run.log());
    assert_eq!(numbers(&rows(&nats, "WEBHOOKS").await), (1..=50).collect::<Vec<_>>());
    // The webhooks of workers stay as they were in the bucket.
    let bucket = nats.jetstream().await.get_key_value("walhook_walhook").await.unwrap();
    assert!(bucket.get("webhook.1").await.unwrap().is_some());
}

/// The server of core NATS has no JetStream; another configuration has.
#[tokio::test]
async fn a_copy_publishes_nothing_to_core_nats_where_another_configuration_has_jetstream() {
    let nats = Nats::start().await;
    let core = Nats::builder().config("jetstream: disabled").start().await;
    let proxy = Proxy::before(nats.port());
    let mut original = Site::on(Postgres::set_up().await, &nats, None);
    original.nats_url = format!("nats://127.0.0.1:{}", proxy.port());
    original.set_up();
    has_run(&original).await;
    original.sql(&format!(
        "SELECT rule_nats_configure('core', '{}');
         UPDATE rule_nats_config SET jetstream_enabled = false WHERE config_name = 'core';
         SELECT rule_webhook_register('second', 'https://example.com/second');
         SELECT rule_webhook_enable_nats(2, 'core.second', 'nats', 'core');
         SELECT rule_webhook_link_table(2, 't')",
        core.url()
    ));
    let client = core.client().await;
    let mut heard = client.subscribe("core.>").await.unwrap();
    client.flush().await.unwrap();
    // A JetStream that cannot be reached is not waited for.
    nats.kill9();
    let mut run = original.run();
    original.insert(31, 40);
    let mut ids = Vec::new();
    while ids.len() < 10 {
        ids.push(id_of(&heard.next().await.unwrap()));
    }
    assert_eq!(ids, (31..=40).collect::<Vec<_>>());
    nats.restart().await;
    original.confirmed().await;
    assert_eq!(run.terminate(), 0, "{}", run.log());
    let copy = copied(&nats, &original).await;
    // JetStream says it much later than core NATS could have been published to.
    proxy.set(NetworkFault::Sliced(32, Duration::from_millis(20)));
    is_refused(&copy);
    proxy.set(NetworkFault::Fair);
    client.publish("core.end", Bytes::new()).await.unwrap();
    loop {
        let message = heard.next().await.unwrap();
        if message.subject.as_str() == "core.end" {
            break;
        }
        let id = id_of(&message);
        assert!(id < 2000, "row {id} of the copy");
    }
}

fn id_of(message: &async_nats::Message) -> i64 {
    let payload: Value = serde_json::from_slice(&message.payload).unwrap();
    payload["data"]["id"].as_i64().unwrap()
}
