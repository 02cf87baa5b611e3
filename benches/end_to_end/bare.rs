//! The upper bound: the same payloads, headers and order into a stream of the same kind, with no database behind.

use std::{
    future::poll_fn,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use async_nats::jetstream;
use walhook::{
    flow::{
        event_id::EventPosition,
        lane::{Head, Lane, Ordering, Tail},
    },
    nats::{
        ack::Ack,
        publish::{Inbox, Publisher},
        settings::{Overrides, Settings},
    },
    route::tables::ConfigRow,
    wal::lsn::Lsn,
};

use crate::{support::feed::Feed, usage};

/// As walhook's default window.
pub const WINDOW: usize = 4096;
const STREAM: &str = "BARE";
const SUBJECT: &str = "bare.bench";
const INBOX: &str = "_INBOX.bare";

/// What it took.
#[derive(Clone)]
pub struct Published {
    /// From the first message to the last ack.
    pub elapsed: Duration,
    /// CPU of the publisher.
    pub own: Duration,
    /// CPU of nats-server.
    pub nats: Duration,
}

/// What a publisher, which is this process, and its server use from here on.
pub struct Meter {
    server: u32,
    begin: Instant,
    own: Duration,
    nats: Duration,
}

impl Meter {
    /// From now on.
    pub fn start(feed: &Feed) -> Meter {
        let server = feed.nats.pid();
        let [own, nats] = [std::process::id(), server].map(|pid| usage::cpu(pid).unwrap());
        Meter { server, begin: Instant::now(), own, nats }
    }

    /// Until now.
    pub fn stop(self) -> Published {
        Published {
            elapsed: self.begin.elapsed(),
            own: usage::cpu_since(std::process::id(), self.own),
            nats: usage::cpu_since(self.server, self.nats),
        }
    }
}

/// Publishes `payload` so many times, pipelined, with ids and expected sequences.
pub async fn publish(feed: &Feed, payload: &[u8], messages: u64) -> Published {
    let jetstream = jetstream::new(feed.nats.client().await);
    jetstream.create_stream(stream_config(STREAM, "bare.>")).await.unwrap();
    let row = ConfigRow { config_name: "bare".into(), nats_url: Some(feed.nats.url()), ..ConfigRow::default() };
    let settings = Settings::resolve(&row, &Overrides::default()).unwrap();
    let mut publisher = Publisher::open(&settings, &[Inbox { id: 1, subject: INBOX.to_owned() }]).await.unwrap();
    let mut lane = Lane::new(STREAM, Ordering::Strict, INBOX);
    let max_payload = publisher.info().max_payload;
    let tail = Tail {
        last_sequence: 0,
        ours: None,
        in_stream: None,
        listing: None,
        listed: Vec::new(),
        subjects: vec!["bare.>".to_owned()],
        max_payload,
        batch_max: 1,
    };
    lane.open(&tail).unwrap();

    let meter = Meter::start(feed);
    let mut made = 0;
    poll_fn(|cx| {
        loop {
            while made < messages && lane.len() < WINDOW {
                write(&mut lane, made, payload);
                made += 1;
            }
            let before = lane.len();
            exchange(cx, &mut publisher, &mut lane);
            if lane.is_empty() && made == messages {
                return Poll::Ready(());
            }
            if lane.len() == before {
                return Poll::Pending;
            }
        }
    })
    .await;
    let published = meter.stop();
    jetstream.delete_stream(STREAM).await.unwrap();
    published
}

/// A stream of the kind that walhook makes.
pub fn stream_config(name: &str, subjects: &str) -> jetstream::stream::Config {
    jetstream::stream::Config {
        name: name.to_owned(),
        subjects: vec![subjects.to_owned()],
        duplicate_window: Duration::from_secs(120),
        ..Default::default()
    }
}

fn write(lane: &mut Lane, number: u64, payload: &[u8]) {
    let position = EventPosition { commit_lsn: Lsn(number), commit_time: 0, ordinal: 0, webhook_id: 1 };
    let id = position.id("bare");
    let head = Head { subject: SUBJECT.as_bytes(), id: id.as_bytes(), message_id: None, op: "insert", epoch: 1 };
    let draft = lane.draft(head, |_| ());
    lane.buffer().extend_from_slice(payload);
    lane.commit(draft, number, position).unwrap();
}

fn exchange(cx: &mut Context<'_>, publisher: &mut Publisher, lane: &mut Lane) {
    loop {
        let bytes = lane.unsent();
        if bytes.is_empty() {
            let _ = publisher.poll_flush(cx).map(Result::unwrap);
            break;
        }
        match publisher.poll_write(cx, bytes).map(Result::unwrap) {
            Poll::Ready(count) => {
                lane.mark_sent(count);
                publisher.set_between(lane.is_between_messages());
            }
            Poll::Pending => break,
        }
    }
    while publisher.poll_read(cx).map(Result::unwrap).is_ready() {
        let taken = publisher.answers(|answer| {
            let Ack::Stored { sequence, duplicate: false } = answer.ack else { panic!("{:?}", answer.ack) };
            lane.acked(answer.token, sequence, false).unwrap();
            Ok(())
        });
        taken.unwrap();
    }
}
