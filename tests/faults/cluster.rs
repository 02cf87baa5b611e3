//! A NATS cluster of three that keeps three copies: what its members' deaths and changes of leader do to a stream.

#![allow(clippy::unwrap_used)]

use crate::support;

use std::time::Duration;

use support::{
    Nats, Postgres, Walhook, eventually,
    feed::Feed,
    port::Port,
    rows::{ended_well, insert, whole},
};

/// Longer than a cluster takes to find its leaders on a busy machine.
const ELECTED: Duration = Duration::from_secs(120);

/// Two more servers; the feed's own is the first.
struct Cluster {
    feed: Feed,
    others: Vec<Nats>,
    settings: tempfile::TempDir,
}

impl Cluster {
    /// Three servers that know their leader, and a stream of three copies.
    async fn start() -> Cluster {
        let routes = [(); 3].map(|()| Port::take());
        let urls = routes.each_ref().map(|port| format!("nats://127.0.0.1:{}", port.number())).join(", ");
        let mut servers = Vec::new();
        for (number, port) in routes.iter().enumerate() {
            let config = format!(
                "server_name: n{number}\ncluster {{ name: C, listen: \"127.0.0.1:{}\", routes: [ {urls} ] }}",
                port.number()
            );
            servers.push(Nats::builder().config(&config).start().await);
        }
        eventually("every server to know the cluster's leader", async || {
            servers.iter().all(|server| server.log().contains("metadata leader")).then_some(())
        })
        .await;
        let urls = servers.iter().map(Nats::url).collect::<Vec<_>>().join(",");
        let feed = Feed::on(Postgres::set_up().await, servers.remove(0));
        feed.pg.psql(&format!("UPDATE rule_nats_config SET nats_url = '{urls}'"));
        support::rows::link(&feed);
        feed.pg.psql("SELECT rule_nats_stream_create('WEBHOOKS', ARRAY['webhooks.>'])");
        feed.pg.psql("UPDATE rule_nats_streams SET replicas = 3");
        let settings = tempfile::tempdir().unwrap();
        std::fs::write(settings.path().join("walhook.toml"), "ack_timeout_ms = 3000\n").unwrap();
        Cluster { feed, others: servers, settings }
    }

    fn run(&self) -> Walhook {
        self.feed.streamer().arg("--config").arg(self.settings.path().join("walhook.toml")).start()
    }

    /// The stream's state as any living server tells it: its last sequence and its leader.
    async fn state(&self) -> Option<(u64, String)> {
        for server in std::iter::once(&self.feed.nats).chain(&self.others) {
            let asking = async {
                let client = async_nats::connect(server.url()).await.ok()?;
                let stream = async_nats::jetstream::new(client).get_stream("WEBHOOKS").await.ok()?;
                let info = stream.cached_info();
                Some((info.state.last_sequence, info.cluster.as_ref()?.leader.clone()?))
            };
            if let Ok(Some(state)) = tokio::time::timeout(Duration::from_secs(2), asking).await {
                return Some(state);
            }
        }
        None
    }

    async fn taken(&self, count: u64) -> String {
        let waiting = async {
            loop {
                if let Some((last, leader)) = self.state().await
                    && last >= count
                {
                    return leader;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(ELECTED, waiting).await.unwrap_or_else(|_| panic!("waited in vain for {count} messages"))
    }

    fn server(&self, name: &str) -> &Nats {
        match name {
            "n0" => &self.feed.nats,
            "n1" => &self.others[0],
            "n2" => &self.others[1],
            _ => panic!("no server is called {name}"),
        }
    }

    /// Rows `0..count` are stored: each once, in order, and nothing else.
    async fn exactly(&self, count: u64) {
        self.taken(count).await;
        self.feed.confirmed().await;
        let ids: Vec<u64> =
            self.feed.messages().await.iter().map(|message| message.data()["id"].as_u64().unwrap()).collect();
        assert_eq!(ids, (0..count).collect::<Vec<_>>());
        assert_eq!(self.state().await.map(|(last, _)| last), Some(count), "nothing was stored and removed");
    }
}

#[tokio::test]
async fn a_cluster_that_loses_one_goes_on_and_one_that_loses_two_is_waited_for() {
    let cluster = Cluster::start().await;
    let mut walhook = cluster.run();
    insert(&cluster.feed.pg, 0, 200);
    let leader = cluster.taken(200).await;
    // The leader itself: whatever it had not told the others of is lost with it.
    insert(&cluster.feed.pg, 200, 300);
    cluster.server(&leader).kill9();
    insert(&cluster.feed.pg, 300, 400);
    let second = cluster.taken(400).await;
    assert_ne!(second, leader);
    // No majority: nothing is stored, and nothing is confirmed.
    cluster.feed.confirmed().await;
    cluster.server(&second).kill9();
    insert(&cluster.feed.pg, 400, 500);
    let ahead =
        "SELECT confirmed_flush_lsn >= pg_current_wal_lsn() FROM pg_replication_slots WHERE slot_name = 'walhook'";
    tokio::time::sleep(Duration::from_secs(2)).await; // nothing tells that nothing happens
    assert_eq!(cluster.feed.pg.psql(ahead), "f");
    assert!(walhook.exited().is_none(), "{}", walhook.log());
    for name in [&leader, &second] {
        cluster.server(name).restart().await;
    }
    cluster.exactly(500).await;
    ended_well(&mut walhook);
}

#[tokio::test]
async fn a_leader_that_changes_every_few_seconds_loses_and_doubles_nothing() {
    let cluster = Cluster::start().await;
    let mut walhook = cluster.run();
    let rounds = if whole() { 12 } else { 3 };
    for round in 0..rounds {
        if round == 1 {
            cluster.feed.pg.psql("UPDATE rule_nats_streams SET transactions = 'atomic'");
        }
        insert(&cluster.feed.pg, round * 200, round * 200 + 100);
        let client = cluster.feed.nats.client().await;
        // No answer, where it has just changed: then it has changed.
        let _ = client.request("$JS.API.STREAM.LEADER.STEPDOWN.WEBHOOKS", "".into()).await;
        insert(&cluster.feed.pg, round * 200 + 100, (round + 1) * 200);
        cluster.taken(u64::try_from((round + 1) * 200).unwrap()).await;
    }
    cluster.exactly(u64::try_from(rounds * 200).unwrap()).await;
    ended_well(&mut walhook);
    // From the second round on in whole batches.
    let (mut batches, mut within) = (0, 0);
    for message in &cluster.feed.messages().await[200..] {
        let nth: u64 = message.header("Nats-Batch-Sequence").parse().unwrap_or(0);
        assert!(nth == 0 && within == 0 || nth == within + 1, "{message:?} behind {within} of its batch");
        within = if message.header("Nats-Batch-Commit").is_empty() { nth } else { 0 };
        batches += u64::from(nth == 1);
    }
    assert!(batches > 4 && within == 0, "{batches} {within}");
}
