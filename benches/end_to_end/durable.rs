//! The line `durable`: what it costs to be safe against power cuts: a server that syncs its disk before each ack, once with single messages and once
//! with `durability = 'fsync'`; and a stream of three copies on three servers.

use serde_json::json;

use crate::{
    backlog::{self, Shape},
    drain::{self, Drained},
    goals::{Goal, grouped},
    machine::POSTGRES,
    report::{Part, Table},
    settings::Settings,
    support::{Nats, Postgres, eventually, feed::Feed, port::Port},
};

/// Single messages are so much slower that a part of the rows says as much.
const SINGLE_PART: u64 = 20;

/// The three.
pub async fn measure(settings: &Settings) -> Part {
    // A sync each is not what the other lines measure: fewer rows do.
    let rows = (settings.rows / 4).max(2_000);
    let always = "jetstream { store_dir: \"store\", sync_interval: always }";
    let feed = feed(Nats::builder().config(always).start().await, "durability = 'default'").await;
    let single = drain(&feed, (rows / SINGLE_PART).max(1000)).await;
    feed.pg.psql("UPDATE rule_nats_streams SET durability = 'fsync'");
    let shared = drain(&feed, rows).await;
    drop(feed);
    let mut servers = cluster().await;
    let urls = servers.iter().map(Nats::url).collect::<Vec<_>>().join(",");
    let feed = self::feed(servers.remove(0), "replicas = 3").await;
    feed.pg.psql(&format!("UPDATE rule_nats_config SET nats_url = '{urls}'"));
    let copied = drain(&feed, rows).await;

    let mut table = Table::new(["stream", "rows", "events/s", "walhook's CPU, µs per event"]);
    let lines = [
        ("`sync_interval: always`, single messages", &single),
        ("the same with `durability = 'fsync'`", &shared),
        ("three copies on three servers", &copied),
    ];
    for (what, drained) in lines {
        let own = format!("{:.1}", drained.us_each(drained.own));
        table.row([what.to_owned(), grouped(drained.count as f64), grouped(drained.rate()), own]);
    }
    Part {
        title: "Safe against power cuts".to_owned(),
        text: "Backlogs of 1-row transactions. What a sync takes decides, and the disk that all share.".to_owned(),
        table: Some(table),
        goals: vec![
            Goal::at_least("durability = 'fsync', of single messages", 10.0, shared.faster_than(&single), "×"),
            Goal::at_least("durability = 'fsync'", 50_000.0, shared.rate(), "events/s"),
            Goal::stated("stream of three copies", copied.rate(), "events/s"),
        ],
        json: json!({ "single": single.json(), "fsync": shared.json(), "three_copies": copied.json() }),
        pictures: Vec::new(),
    }
}

async fn feed(nats: Nats, settings: &str) -> Feed {
    let feed = Feed::on(Postgres::builder().conf(POSTGRES).start().await, nats);
    backlog::prepare(&feed, "bench");
    feed.pg.psql("SELECT rule_nats_stream_create('WEBHOOKS', ARRAY['webhooks.>'])");
    feed.pg.psql(&format!("UPDATE rule_nats_streams SET {settings}"));
    feed
}

async fn drain(feed: &Feed, rows: u64) -> Drained {
    backlog::fill(feed, Shape::Of(1), rows).await;
    let drained = drain::by_walhook(feed, rows, "off").await;
    backlog::forget(feed);
    drained
}

/// Three servers that know their leader.
async fn cluster() -> Vec<Nats> {
    let routes = [(); 3].map(|()| Port::take());
    let urls = routes.each_ref().map(|port| format!("nats://127.0.0.1:{}", port.number())).join(", ");
    let mut servers = Vec::new();
    for (number, port) in routes.iter().enumerate() {
        let listen = format!("127.0.0.1:{}", port.number());
        let config = format!("server_name: n{number}\ncluster {{ name: C, listen: \"{listen}\", routes: [ {urls} ] }}");
        servers.push(Nats::builder().config(&config).start().await);
    }
    eventually("every server to know the cluster's leader", async || {
        servers.iter().all(|server| server.log().contains("metadata leader")).then_some(())
    })
    .await;
    servers
}
