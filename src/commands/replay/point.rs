//! A point to go back to, as a user names it: an LSN, or a commit time.
//!
//! In: text, and PostgreSQL, which reads times and knows where its WAL ends. Out: which events lie between two points. Both ends
//! are included.

use tokio_postgres::Client;

use crate::{
    commands::dead_letters::Since,
    error::{Error, Kind, Result},
    flow::event_id::EventPosition,
    postgres::{self, sql},
    route::payload::write_timestamp,
    wal::lsn::Lsn,
};

/// Commits that run side by side may take their times in another order than their places in the WAL, by as much as one of them
/// was held up in between. So much earlier a search by time begins, and so much later it ends, in µs.
const DISORDER: i64 = 5_000_000;

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// The place of a commit in the WAL.
    Lsn(Lsn),
    /// The time of a commit, in µs since 2000-01-01.
    Time(i64),
}

/// What lies between two points.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// The first one.
    pub from: Point,
    /// The last one; `None`: all there is.
    pub to: Option<Point>,
}

const TIME: &str = "SELECT (extract(epoch FROM CASE WHEN $1::text IS NULL THEN pg_catalog.now() - $2::text::interval \
                                                 ELSE $1::text::timestamptz END) * 1000000)::bigint - 946684800000000";
const NOW: &str = "SELECT (CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() \
                           ELSE pg_catalog.pg_current_wal_insert_lsn() END)::text, \
                          (extract(epoch FROM pg_catalog.clock_timestamp()) * 1000000)::bigint - 946684800000000";

impl Point {
    /// Reads an LSN (`0/16B3748`), a time as PostgreSQL does (`2026-11-25 10:00+00`), or an age (`90s`, `15m`, `2h`, `7d`). What
    /// lies ahead is refused.
    ///
    /// # Errors
    /// It is none of these, or lies in the future.
    pub async fn parse(client: &Client, flag: &str, text: &str) -> Result<Point> {
        let attempted = || format!("{flag} {text:?}");
        let row = client.query_one(NOW, &[]).await.map_err(|error| sql::error("ask where the WAL ends", error))?;
        let (end, now): (&str, i64) = (row.get(0), row.get(1));
        let end: Lsn = end.parse().map_err(|error| Error::protocol(attempted()).caused_by(error))?;
        if text.contains('/')
            && let Ok(lsn) = text.parse::<Lsn>()
        {
            if lsn > end {
                return Err(Error::config(format!("{}: it is in the future; the WAL ends at {end}", attempted()))
                    .hint("is it an LSN of another server, or of one that was restored to an earlier point?"));
            }
            return Ok(Point::Lsn(lsn));
        }
        let (time, age) = match Since::parse(text) {
            Since::Time(time) => (Some(time), None),
            Since::Age(age) => (None, Some(age)),
        };
        let row = client.query_one(TIME, &[&time, &age]).await.map_err(|error| {
            let error = sql::error(attempted(), error);
            match postgres::sqlstate(&error) {
                Some("22007" | "22008" | "22003" | "0A000" | "22009" | "22023") => error
                    .of_kind(Kind::Config)
                    .hint("give an LSN (0/16B3748), a time (2026-11-25 10:00+00) or an age (90s, 15m, 2h, 7d)"),
                _ => error,
            }
        })?;
        let time: i64 = row.get(0);
        if time > now {
            return Err(Error::config(format!("{}: it is in the future; the time is {}", attempted(), written(now))));
        }
        Ok(Point::Time(time))
    }

    /// Whether every event here and after it lies before this point, as far as order goes by it.
    fn is_surely_behind(self, position: &EventPosition) -> bool {
        match self {
            Point::Lsn(lsn) => position.commit_lsn < lsn,
            Point::Time(time) => position.commit_time < time.saturating_sub(DISORDER),
        }
    }
}

impl std::fmt::Display for Point {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Point::Lsn(lsn) => lsn.fmt(f),
            Point::Time(time) => f.write_str(&written(*time)),
        }
    }
}

impl Bounds {
    /// Whether a search for the first event goes on behind this one.
    pub fn begin_behind(&self, position: &EventPosition) -> bool {
        self.from.is_surely_behind(position)
    }

    /// Whether an event lies between the points.
    pub fn contain(&self, position: &EventPosition) -> bool {
        let from = match self.from {
            Point::Lsn(lsn) => position.commit_lsn >= lsn,
            Point::Time(time) => position.commit_time >= time,
        };
        from && match self.to {
            None => true,
            Some(Point::Lsn(lsn)) => position.commit_lsn <= lsn,
            Some(Point::Time(time)) => position.commit_time <= time,
        }
    }

    /// Whether neither this event nor any behind it lies between the points.
    pub fn end_before(&self, position: &EventPosition) -> bool {
        match self.to {
            None => false,
            Some(Point::Lsn(lsn)) => position.commit_lsn > lsn,
            Some(Point::Time(time)) => position.commit_time > time.saturating_add(DISORDER),
        }
    }

    /// # Errors
    /// The end comes before the beginning.
    pub fn check(&self) -> Result<()> {
        let is_backwards = match (self.from, self.to) {
            (Point::Lsn(from), Some(Point::Lsn(to))) => to < from,
            (Point::Time(from), Some(Point::Time(to))) => to < from,
            _ => false,
        };
        match self.to {
            Some(to) if is_backwards => Err(Error::config(format!("--to {to} lies before --from {}", self.from))),
            _ => Ok(()),
        }
    }
}

/// A time as events write it.
pub fn written(micros: i64) -> String {
    let mut text = String::new();
    write_timestamp(micros, &mut text);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(lsn: u64, seconds: i64) -> EventPosition {
        EventPosition { commit_lsn: Lsn(lsn), commit_time: seconds * 1_000_000, ordinal: 0, webhook_id: 1 }
    }

    #[test]
    fn both_ends_belong_to_what_lies_between_them() {
        let by_lsn = Bounds { from: Point::Lsn(Lsn(5)), to: Some(Point::Lsn(Lsn(7))) };
        let inside = [4, 5, 6, 7, 8].map(|lsn| by_lsn.contain(&position(lsn, 0)));
        assert_eq!(inside, [false, true, true, true, false]);
        assert!(by_lsn.end_before(&position(8, 0)) && !by_lsn.end_before(&position(7, 0)));
        assert!(by_lsn.begin_behind(&position(4, 0)) && !by_lsn.begin_behind(&position(5, 0)));
    }

    #[test]
    fn commits_that_took_their_times_in_another_order_are_not_missed() {
        let by_time = Bounds { from: Point::Time(100_000_000), to: Some(Point::Time(200_000_000)) };
        assert!(by_time.contain(&position(1, 100)) && by_time.contain(&position(1, 200)));
        assert!(!by_time.contain(&position(1, 99)) && !by_time.contain(&position(1, 201)));
        // A little before the point there may be one behind it that is not; far before there is none.
        assert!(!by_time.begin_behind(&position(1, 99)) && by_time.begin_behind(&position(1, 90)));
        assert!(!by_time.end_before(&position(1, 201)) && by_time.end_before(&position(1, 210)));
    }

    #[test]
    fn an_end_before_the_beginning_is_refused() {
        let lsn = |lsn| Point::Lsn(Lsn(lsn));
        assert!(Bounds { from: lsn(5), to: Some(lsn(4)) }.check().is_err());
        assert!(Bounds { from: lsn(5), to: Some(lsn(5)) }.check().is_ok());
        assert!(Bounds { from: Point::Time(5), to: Some(Point::Time(4)) }.check().is_err());
        assert!(Bounds { from: Point::Time(5), to: Some(lsn(4)) }.check().is_ok());
    }
}
