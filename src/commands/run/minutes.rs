//! Once a minute: what events wait for and how far the slot is behind, and, where the user asks for it, what was done.
//!
//! In: streamer and lanes, at every report to PostgreSQL, and the slot's lag, asked for when there is something to tell. Out: lines
//! of the log. Nothing depends on it.

use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use super::lanes::Lanes;
use crate::{
    commands::away::{Away, News},
    flow::streamer::{Counts, Streamer},
    wal::lsn::Lsn,
};

/// How often it is looked at most, however often PostgreSQL gets a report.
const LOOK: Duration = Duration::from_millis(500);

/// See the module.
pub struct Minutes {
    away: Away,
    looked: Option<Instant>,
    news: Vec<News>,
    /// How often what was done is told; zero: never.
    every: Duration,
    last: Instant,
    counts: Counts,
    published: u64,
    received: Lsn,
}

impl Minutes {
    /// Nothing was done yet.
    pub fn new(every: Duration, streamer: &Streamer) -> Minutes {
        Minutes {
            away: Away::new(every),
            looked: None,
            news: Vec::new(),
            every,
            last: Instant::now(),
            counts: streamer.counts(),
            published: published(streamer),
            received: streamer.received(),
        }
    }

    /// Looks at what is away.
    pub fn look(&mut self, streamer: &Streamer, lanes: &Lanes) {
        if self.looked.is_some_and(|looked| looked.elapsed() < LOOK) {
            return;
        }
        self.looked = Some(Instant::now());
        let report = lanes.report(streamer);
        let is_away = |connection: &Value| connection["connected"] != true || connection["holds_slot"] == true;
        let away = report.as_object().into_iter().flatten().filter(|(_, connection)| is_away(connection));
        let news = self.away.look(away.map(|(name, _)| name.as_str()), Instant::now());
        // Of each the newest is told.
        self.news.retain(|old| !news.iter().any(|new| new.name() == old.name()));
        self.news.extend(news);
    }

    /// Whether there is something to tell, for which the slot's lag is needed.
    pub fn is_due(&self) -> bool {
        !self.news.is_empty() || (!self.every.is_zero() && self.last.elapsed() >= self.every)
    }

    /// Tells it.
    pub fn tell(&mut self, lag: Option<i64>, streamer: &Streamer, lanes: &Lanes) {
        let report = lanes.report(streamer);
        for news in std::mem::take(&mut self.news) {
            match news {
                News::Still(name, lasts) => {
                    let connection = &report[&name];
                    tracing::warn!(
                        nats_config = name,
                        away_s = lasts.as_secs(),
                        waiting_events = connection["unsettled"].as_u64(),
                        slot_behind_bytes = lag,
                        last_error = connection["last_error"].as_str(),
                        "NATS cannot be reached or takes no messages: events wait"
                    );
                }
                News::Back(name, lasted) => {
                    tracing::info!(
                        nats_config = name,
                        away_s = lasted.as_secs(),
                        slot_behind_bytes = lag,
                        "NATS is back"
                    );
                }
            }
        }
        if self.every.is_zero() || self.last.elapsed() < self.every {
            return;
        }
        let (counts, published, received) = (streamer.counts(), published(streamer), streamer.received());
        let unsettled: usize = (0..streamer.lane_count()).map(|index| streamer.lane(index).len()).sum();
        tracing::info!(
            seconds = self.last.elapsed().as_secs(),
            changes = sum(&counts.changes) - sum(&self.counts.changes),
            events = counts.events - self.counts.events,
            published = published - self.published,
            dead_letters = sum(&counts.dead_letters) - sum(&self.counts.dead_letters),
            wal_bytes = received.0.saturating_sub(self.received.0),
            unsettled,
            slot_behind_bytes = lag,
            "summary"
        );
        (self.counts, self.published, self.received, self.last) = (counts, published, received, Instant::now());
    }
}

/// Of all kinds together.
fn sum(counts: &[u64]) -> u64 {
    counts.iter().sum()
}

fn published(streamer: &Streamer) -> u64 {
    (0..streamer.lane_count()).map(|index| streamer.lane(index).counts().0).sum()
}
