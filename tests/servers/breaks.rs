//! A flow that is broken in many ways on real servers. Each break shows under one name in the metrics, on the status page, in the log,
//! in `walhook status --check` and in `walhook check`, with a remedy, and is gone after the repair.
//!
//! What ends `walhook run` ends its page as well: such a break shows in the log, the status and the check.

#![allow(clippy::unwrap_used)]

use crate::support;

use std::net::SocketAddr;

use super::http::{address_of, get, with_http};
use serde_json::Value;
use support::{
    DEADLINE, Nats, Postgres, eventually,
    feed::Feed,
    http::{Http, Reply},
    last_mile::LastMile,
    walhook::Walhook,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use walhook::commands::check::codes;

/// What the page shows: the first event of its stream.
async fn page(address: SocketAddr) -> Option<Value> {
    let mut socket = TcpStream::connect(address).await.ok()?;
    let request = format!("GET /events HTTP/1.1\r\nHost: {address}\r\n\r\n");
    socket.write_all(request.as_bytes()).await.ok()?;
    let mut read = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&read);
        if let Some((event, _)) = text.split_once("data: ").and_then(|(_, rest)| rest.split_once("\n\n")) {
            return serde_json::from_str(event).ok();
        }
        if socket.read_buf(&mut read).await.ok()? == 0 {
            return None;
        }
    }
}

/// A problem of the page by its name, with what to do.
async fn on_page(address: SocketAddr, code: &str) -> bool {
    let Some(state) = page(address).await else { return false };
    let problems = state["problems"].as_array().cloned().unwrap_or_default();
    problems.iter().any(|problem| {
        problem["code"] == code
            && ["text", "remedy"].iter().all(|part| problem[part].as_str().is_some_and(|text| !text.is_empty()))
    })
}

async fn in_metrics(address: SocketAddr, code: &str) -> bool {
    let metrics = get(address, "/metrics").await.body;
    metrics.lines().any(|line| line.starts_with(&format!("walhook_problems{{code=\"{code}\"}} ")))
}

/// By the role of `walhook run`.
fn in_status(feed: &Feed, code: &str) -> bool {
    let done =
        feed.command("status").env("DATABASE_URL", feed.streamer_conninfo()).args(["--check", "--json"]).finish();
    let answer: Value = serde_json::from_str(&done.stdout).unwrap_or_else(|_| panic!("{done:?}"));
    let is_there = answer["problems"].as_array().unwrap().iter().any(|problem| problem["name"] == code);
    assert_eq!(answer["code"].as_i64(), done.code.map(i64::from), "{done:?}");
    is_there
}

/// By the role of `walhook run`: whether a finding that is worse than a note has the name, and a remedy.
fn in_check(feed: &Feed, code: &str) -> bool {
    let done = feed.command("check").env("DATABASE_URL", feed.streamer_conninfo()).arg("--json").finish();
    let answer: Value = serde_json::from_str(&done.stdout).unwrap_or_else(|_| panic!("{done:?}"));
    answer["findings"].as_array().unwrap().iter().any(|finding| {
        finding["code"] == code
            && finding["severity"] != "note"
            && finding["remedy"].as_str().is_some_and(|text| !text.is_empty())
    })
}

fn in_log(walhook: &Walhook, code: &str) -> bool {
    walhook.log().contains(&format!("finding=\"{code}\""))
}

/// A flow with its page.
struct Flow {
    feed: Feed,
    walhook: Walhook,
    address: SocketAddr,
}

impl Flow {
    async fn start() -> Flow {
        Flow::on(Nats::start().await).await
    }

    async fn on(nats: Nats) -> Flow {
        Flow::of(Flow::linked(Feed::on(Postgres::set_up().await, nats))).await
    }

    fn linked(feed: Feed) -> Feed {
        assert_eq!(feed.webhook("w"), 1);
        feed.pg.psql("CREATE TABLE t (id serial PRIMARY KEY, note text)");
        feed.pg.psql("SELECT rule_webhook_link_table(1, 't')");
        feed
    }

    async fn of(feed: Feed) -> Flow {
        let mut walhook = with_http(feed.streamer()).start();
        let address = address_of(&mut walhook).await;
        let flow = Flow { feed, walhook, address };
        flow.insert("begins");
        flow.feed.stored(1).await;
        flow
    }

    fn insert(&self, note: &str) {
        self.feed.pg.psql(&format!("INSERT INTO t (note) VALUES ('{note}')"));
    }

    /// Whether it is in all places, and in no place where it is over.
    async fn shows(&self, code: &str) {
        assert!(codes::of(code).is_some(), "{code} is in the one table");
        eventually(&format!("{code} in the metrics"), async || in_metrics(self.address, code).await.then_some(()))
            .await;
        eventually(&format!("{code} on the page"), async || on_page(self.address, code).await.then_some(())).await;
        eventually(&format!("{code} in the log"), async || in_log(&self.walhook, code).then_some(())).await;
        eventually(&format!("{code} in the status"), async || in_status(&self.feed, code).then_some(())).await;
        eventually(&format!("{code} in the check"), async || in_check(&self.feed, code).then_some(())).await;
    }

    async fn is_over(&self, code: &str) {
        let is_over = async || {
            let shows = in_metrics(self.address, code).await
                || on_page(self.address, code).await
                || in_status(&self.feed, code)
                || in_check(&self.feed, code);
            (!shows).then_some(())
        };
        eventually(&format!("the end of {code}"), is_over).await;
    }

    /// It has ended by that.
    async fn ended(&mut self, code: &str, exit: i32) {
        assert!(codes::of(code).is_some(), "{code} is in the one table");
        assert_eq!(self.walhook.wait(DEADLINE), exit, "{}", self.walhook.log());
        assert!(in_log(&self.walhook, code), "{code} in the log: {}", self.walhook.log());
        eventually(&format!("{code} in the status"), async || in_status(&self.feed, code).then_some(())).await;
        eventually(&format!("{code} in the check"), async || in_check(&self.feed, code).then_some(())).await;
    }

    /// It runs again, and the break is over.
    async fn runs_again(self, code: &str) {
        let before = self.feed.last_sequence("WEBHOOKS").await;
        let mut walhook = with_http(self.feed.streamer()).start();
        let address = address_of(&mut walhook).await;
        let flow = Flow { walhook, address, ..self };
        flow.insert("again");
        flow.feed.stored(before + 1).await;
        flow.is_over(code).await;
    }
}

#[tokio::test]
async fn a_server_that_is_away_has_one_name_everywhere() {
    let flow = Flow::start().await;
    flow.feed.nats.stop();
    flow.insert("waits for NATS");
    flow.shows("nats_connection").await;
    flow.feed.nats.restart().await;
    flow.is_over("nats_connection").await;
    flow.feed.pg.stop();
    flow.shows("postgres_connection").await;
    flow.feed.pg.restart().await;
    flow.is_over("postgres_connection").await;
    flow.feed.stored(2).await;
}

#[tokio::test]
async fn a_slot_that_another_process_holds_and_one_that_is_gone_have_one_name_everywhere() {
    let Flow { feed, mut walhook, .. } = Flow::start().await;
    assert_eq!(walhook.terminate(), 0);
    // Nobody has said for a while that it streams.
    feed.pg.psql("UPDATE rule_cdc_status SET heartbeat_at = 'epoch'");
    let settings = walhook::postgres::Settings::parse(&feed.streamer_conninfo(), |_| None).unwrap();
    let mut other = walhook::postgres::replication::Connection::connect(&settings).await.unwrap();
    other.identify_system().await.unwrap();
    let options = [("proto_version", "1"), ("publication_names", "walhook_inserts,walhook_changes")];
    let held = other.start_replication("walhook", walhook::wal::lsn::Lsn::ZERO, &options).await.unwrap();
    let mut walhook = with_http(feed.streamer()).start();
    let address = address_of(&mut walhook).await;
    let mut flow = Flow { feed, walhook, address };
    flow.shows("slot_held").await;
    drop(held);
    flow.is_over("slot_held").await;

    let drop_slot = async || {
        flow.feed.pg.psql("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active");
        flow.feed.pg.try_psql("SELECT pg_drop_replication_slot('walhook')").ok()
    };
    eventually("the slot to be dropped", drop_slot).await;
    flow.ended("slot_missing", 2).await;
    flow.feed.pg.psql("SELECT rule_cdc_slot_create()");
    flow.runs_again("slot_missing").await;
}

#[tokio::test]
async fn an_invalidated_slot_has_one_name_everywhere() {
    let pg = Postgres::builder()
        .conf("max_slot_wal_keep_size = '1MB'\nmin_wal_size = '32MB'\nmax_wal_size = '64MB'")
        .set_up()
        .start()
        .await;
    let mut flow = Flow::of(Flow::linked(Feed::on(pg, Nats::start().await))).await;
    // It reads nothing, so that the slot stays behind.
    flow.walhook.pause();
    flow.feed.pg.psql("CREATE TABLE filler (x text)");
    let lost = async || {
        flow.feed.pg.psql("INSERT INTO filler SELECT repeat(md5(n::text), 1000) FROM generate_series(1, 2000) n");
        flow.feed.pg.psql("SELECT pg_switch_wal()");
        flow.feed.pg.psql("CHECKPOINT");
        let status = flow.feed.pg.psql("SELECT wal_status FROM pg_replication_slots WHERE slot_name = 'walhook'");
        (status == "lost").then_some(())
    };
    eventually("the slot to be lost", lost).await;
    flow.walhook.resume();
    flow.ended("slot_lost", 3).await;
    flow.feed.pg.psql("SELECT rule_cdc_slot_drop()");
    flow.feed.pg.psql("SELECT rule_cdc_slot_create()");
    flow.runs_again("slot_lost").await;
}

#[tokio::test]
async fn a_deleted_stream_has_one_name_everywhere() {
    let mut flow = Flow::start().await;
    flow.feed.confirmed().await;
    eventually("a checkpoint", async || {
        let known = flow.feed.pg.psql("SELECT count(*) FROM rule_nats_checkpoints WHERE sequence IS NOT NULL");
        (known != "0").then_some(())
    })
    .await;
    flow.feed.nats.jetstream().await.delete_stream("WEBHOOKS").await.unwrap();
    flow.insert("into a stream that is gone");
    flow.ended("stream_lost", 3).await;
    flow.feed.pg.psql("DELETE FROM rule_nats_checkpoints WHERE stream_name = 'WEBHOOKS'");
    flow.runs_again("stream_lost").await;
}

#[tokio::test]
async fn a_full_stream_and_a_full_account_have_one_name_each_everywhere() {
    let flow = Flow::start().await;
    flow.feed.pg.psql("SELECT rule_nats_stream_create('WEBHOOKS', ARRAY['webhooks.>'])");
    flow.feed.pg.psql("UPDATE rule_nats_streams SET discard_policy = 'new', max_messages = 1");
    flow.insert("has no room");
    flow.shows("stream_full").await;
    flow.feed.pg.psql("UPDATE rule_nats_streams SET max_messages = 0");
    flow.feed.stored(2).await;
    flow.is_over("stream_full").await;
    drop(flow);

    let account = |limit: &str| {
        format!(
            "accounts {{ A: {{ users: [ {{ user: w, password: p }} ]\njetstream: {{ max_file: {limit} }} }} }}\nno_auth_user: w"
        )
    };
    let mut flow = Flow::on(Nats::builder().config(&account("300000")).start().await).await;
    flow.feed.pg.psql("INSERT INTO t (note) SELECT repeat('x', 10000) FROM generate_series(1, 60)");
    flow.shows("nats_storage").await;
    flow.feed.nats.set_config(&account("30000000"));
    flow.feed.nats.restart().await;
    flow.feed.stored(61).await;
    flow.is_over("nats_storage").await;
}

#[tokio::test]
async fn what_is_wrong_with_publications_and_tables_has_one_name_everywhere() {
    let flow = Flow::start().await;
    flow.feed.pg.psql("ALTER PUBLICATION walhook_changes DROP TABLE t");
    flow.shows("table_not_published").await;
    flow.feed.pg.psql("ALTER PUBLICATION walhook_changes ADD TABLE t");
    flow.is_over("table_not_published").await;

    flow.feed.pg.psql("ALTER TABLE t DROP CONSTRAINT t_pkey");
    flow.shows("identity_missing").await;
    flow.feed.pg.psql("ALTER TABLE t ADD PRIMARY KEY (id)");
    flow.is_over("identity_missing").await;

    flow.feed.pg.psql("DROP TABLE t");
    flow.shows("table_missing").await;
    flow.feed.pg.psql("DELETE FROM rule_webhook_links");
    flow.is_over("table_missing").await;
}

#[tokio::test]
async fn a_dead_letter_and_a_locked_history_have_one_name_each_everywhere() {
    let flow = Flow::start().await;
    flow.feed.pg.psql("INSERT INTO rule_webhook_events (webhook_id, payload, message_id) VALUES (1, '{}', E'\\t')");
    flow.shows("dead_letters").await;
    flow.feed.pg.psql("SELECT rule_nats_dead_letter_drop(dead_letter_id) FROM rule_nats_dead_letters");
    flow.is_over("dead_letters").await;

    let holder = flow.feed.pg.client().await;
    holder.batch_execute("BEGIN; LOCK TABLE rule_nats_publish_history IN ACCESS EXCLUSIVE MODE").await.unwrap();
    flow.insert("is published and not confirmed");
    flow.feed.stored(2).await;
    flow.shows("history_blocked").await;
    holder.batch_execute("ROLLBACK").await.unwrap();
    flow.is_over("history_blocked").await;
}

#[tokio::test]
async fn rights_that_are_taken_away_have_one_name_everywhere() {
    let mut flow = Flow::start().await;
    flow.feed.pg.psql("REVOKE INSERT, UPDATE ON rule_nats_checkpoints FROM walhook_streamer");
    flow.insert("moves the checkpoint");
    flow.ended("privileges", 4).await;
    flow.feed.pg.psql("GRANT INSERT, UPDATE ON rule_nats_checkpoints TO walhook_streamer");
    flow.runs_again("privileges").await;
}

#[tokio::test]
async fn a_webhook_that_is_not_called_any_more_has_one_name_everywhere() {
    let receiver = Http::start(|_, _| Reply::status(410));
    let mile = LastMile::start().await;
    mile.sql("CREATE TABLE t (id serial PRIMARY KEY, note text)");
    let webhook = mile.webhook("gone", &receiver.url("/"));
    mile.sql(&format!("SELECT rule_webhook_link_table({webhook}, 't')"));
    let mut worker = with_http(mile.worker()).start();
    let address = address_of(&mut worker).await;
    mile.publish(webhook, "{}");
    let code = "webhook_not_called";
    eventually("it in the metrics", async || in_metrics(address, code).await.then_some(())).await;
    eventually("it on the page", async || on_page(address, code).await.then_some(())).await;
    assert!(in_log(&worker, code), "{}", worker.log());
    eventually("it in the check", async || in_check(&mile.feed, code).then_some(())).await;
    // Who disables a webhook may want it so: the status lists it, and monitoring (`--check`) does not mind it.
    let in_findings = || {
        let done = mile.feed.command("status").arg("--json").finish();
        let status: Value = serde_json::from_str(&done.stdout).unwrap_or_else(|_| panic!("{done:?}"));
        status["findings"].as_array().unwrap().iter().any(|finding| finding["name"] == code)
    };
    eventually("it in the status", async || in_findings().then_some(())).await;
    receiver.script(|_, _| Reply::status(204));
    mile.sql("UPDATE rule_webhooks SET enabled = true");
    let is_over = async || {
        (!in_metrics(address, code).await && !in_check(&mile.feed, code) && !in_status(&mile.feed, code)).then_some(())
    };
    eventually("its end", is_over).await;
}
