//! Two regions (docs/regions.md): a mirror over a leaf node, a region that fails and comes back, and consumers that go on in the other one
//! by the sequences of the stream, as the page says.

#![allow(clippy::unwrap_used)]

use std::{collections::HashSet, time::Duration};

use crate::support;

use async_nats::jetstream::{
    self,
    consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull},
};
use futures_util::StreamExt;
use serde_json::Value;
use support::{
    Nats, Postgres, eventually,
    feed::last_sequence,
    port::Port,
    rows::{ended_well, exactly, insert, linked_on, taken},
};

/// The mirror's configuration, as the page has it.
fn mirror() -> String {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/regions.md")).unwrap();
    page.split("```json\n").nth(1).unwrap().split("```").next().unwrap().to_owned()
}

/// A consumer of somebody's own: it keeps its place beside its work.
#[derive(Default)]
struct Worker {
    name: &'static str,
    /// The stream sequence of the last message that it has processed.
    last: u64,
    ids: HashSet<String>,
    /// The rows that it has processed, in order.
    rows: Vec<i64>,
    /// Messages that came again and were skipped.
    skipped: usize,
}

impl Worker {
    /// Steps 1 and 2 of the page: its durable consumer, made again from that sequence on.
    async fn begin(&self, region: &Nats, from: u64) -> PullConsumer {
        let stream = region.jetstream().await.get_stream("WEBHOOKS").await.unwrap();
        let _ = stream.delete_consumer(self.name).await;
        let config = pull::Config {
            durable_name: Some(self.name.to_owned()),
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: from },
            ack_policy: AckPolicy::Explicit,
            ..Default::default()
        };
        stream.create_consumer(config).await.unwrap()
    }

    /// Step 3: reads until it has processed the message of that sequence.
    async fn read(&mut self, consumer: &PullConsumer, upto: u64) {
        while self.last < upto {
            let most = usize::try_from(upto - self.last).unwrap();
            let mut batch =
                consumer.batch().max_messages(most).expires(Duration::from_secs(2)).messages().await.unwrap();
            while let Some(message) = batch.next().await {
                let message = message.unwrap();
                let sequence = message.info().unwrap().stream_sequence;
                let id = message.headers.as_ref().unwrap().get("Nats-Msg-Id").unwrap().to_string();
                if sequence <= self.last {
                    assert!(!self.ids.insert(id), "what comes again has the id that it had");
                    self.skipped += 1;
                } else {
                    assert_eq!(sequence, self.last + 1, "{}: no gap", self.name);
                    assert!(self.ids.insert(id), "{}: no event under another sequence", self.name);
                    let payload: Value = serde_json::from_slice(&message.payload).unwrap();
                    self.rows.push(payload["data"]["id"].as_i64().unwrap());
                    self.last = sequence;
                }
                message.double_ack().await.unwrap();
            }
        }
    }
}

/// All messages: sequence, subject, id and body.
async fn messages(region: &Nats) -> Vec<(u64, String, String, Vec<u8>)> {
    let stream = region.jetstream().await.get_stream("WEBHOOKS").await.unwrap();
    let mut all = Vec::new();
    for sequence in 1..=last_sequence(&region.jetstream().await, "WEBHOOKS").await {
        let message = stream.get_raw_message(sequence).await.unwrap();
        let id = message.headers.get("Nats-Msg-Id").unwrap().to_string();
        all.push((message.sequence, message.subject.to_string(), id, message.payload.to_vec()));
    }
    all
}

#[tokio::test]
async fn consumers_go_on_in_the_mirror_of_a_region_that_fails_and_back_without_a_gap() {
    let leafnodes = Port::take();
    let one = Nats::builder()
        .jetstream("domain: one")
        .config(&format!("leafnodes {{ listen: \"127.0.0.1:{}\" }}", leafnodes.number()))
        .start()
        .await;
    let two = Nats::builder()
        .jetstream("domain: two")
        .config(&format!("leafnodes {{ remotes: [ {{ url: \"nats://127.0.0.1:{}\" }} ] }}", leafnodes.number()))
        .start()
        .await;
    let seen = jetstream::with_domain(two.client().await, "one");
    eventually("region two to see region one", async || seen.query_account().await.ok()).await;
    let feed = linked_on(Postgres::set_up().await, one);
    let one = &feed.nats;
    let mut walhook = feed.run();
    insert(&feed.pg, 0, 100);
    taken(&feed, 100).await;
    let answer = two.client().await.request("$JS.API.STREAM.CREATE.WEBHOOKS", mirror().into()).await.unwrap();
    let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
    assert!(answer["error"].is_null(), "{answer}");
    eventually("the mirror", async || (last_sequence(&two.jetstream().await, "WEBHOOKS").await == 100).then_some(()))
        .await;

    // One that is slow, and one that is ahead of the mirror: region two was away while more came.
    let mut slow = Worker { name: "slow", ..Worker::default() };
    let mut fast = Worker { name: "fast", ..Worker::default() };
    let (of_slow, of_fast) = (slow.begin(one, 1).await, fast.begin(one, 1).await);
    slow.read(&of_slow, 60).await;
    two.stop();
    insert(&feed.pg, 100, 150);
    taken(&feed, 150).await;
    fast.read(&of_fast, 120).await;

    // Region one fails; what is committed meanwhile waits in PostgreSQL.
    one.kill9();
    two.restart().await;
    insert(&feed.pg, 150, 200);
    eventually("the mirror after its restart", async || {
        (last_sequence(&two.jetstream().await, "WEBHOOKS").await == 100).then_some(())
    })
    .await;
    // The slow one does not know its place exactly: it begins earlier and skips what it has.
    let of_slow = slow.begin(&two, 41).await;
    slow.read(&of_slow, 100).await;
    assert_eq!(slow.skipped, 20);
    // For the fast one there is nothing yet.
    let mut of_fast = fast.begin(&two, fast.last + 1).await;
    assert_eq!(of_fast.info().await.unwrap().num_pending, 0);

    // It is back: walhook publishes what has waited, the mirror catches up, and both go on where they are.
    one.restart().await;
    exactly(&feed, 200).await;
    fast.read(&of_fast, 200).await;
    slow.read(&of_slow, 200).await;
    for worker in [&slow, &fast] {
        assert_eq!(worker.rows, (0..200).collect::<Vec<_>>(), "{}", worker.name);
    }
    let mirrored = messages(&two).await;
    assert_eq!(mirrored, messages(one).await);
    assert_eq!(mirrored.iter().map(|message| &message.2).collect::<HashSet<_>>().len(), 200);

    // Back to region one: the consumers that are there are at their old position, and are made again.
    let stream = one.jetstream().await.get_stream("WEBHOOKS").await.unwrap();
    let stood = stream.consumer_info("fast").await.unwrap().ack_floor.stream_sequence;
    // nats-server writes acks to disk late: after kill -9 the consumer may stand earlier still.
    assert!(stood <= 120, "{stood}");
    let of_fast = fast.begin(one, fast.last + 1).await;
    insert(&feed.pg, 200, 220);
    fast.read(&of_fast, 220).await;
    assert_eq!((fast.rows, fast.skipped), ((0..220).collect::<Vec<_>>(), 0));
    eventually("the mirror", async || (last_sequence(&two.jetstream().await, "WEBHOOKS").await == 220).then_some(()))
        .await;
    ended_well(&mut walhook);
}
