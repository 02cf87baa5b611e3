//! What an answer means: delivered, again later, or given up; and how fast to go on.
//!
//! In: the webhook, which attempt it was, what came of it. Out: a [`Verdict`], and a [`ConcurrencyLimit`] that knows how many calls may
//! run side by side. Chance and time are passed in.

use std::time::{Duration, UNIX_EPOCH};

use super::webhook::Webhook;

/// The longest wait before a retry, whatever the row or a server asks for.
pub const WAIT_MAX: Duration = Duration::from_secs(3600);
/// How much later than planned a retry may come, so that many do not come at once. Never sooner.
const JITTER: f64 = 0.25;

/// What came of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The server answered with this status.
    Answered {
        /// The status.
        status: u16,
        /// How long the server wants to be left alone.
        retry_after: Option<Duration>,
    },
    /// There was no answer: not connected, not in time, or no HTTP.
    Unanswered(String),
    /// Nothing was sent: the URL, a header, a secret or the address is not what it must be.
    NotSent(String),
}

impl Outcome {
    /// The status that the server answered with, if it did.
    pub fn status(&self) -> Option<u16> {
        match self {
            Outcome::Answered { status, .. } => Some(*status),
            Outcome::Unanswered(_) | Outcome::NotSent(_) => None,
        }
    }
}

/// What is done with the event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// It has arrived.
    Delivered,
    /// Again after this wait.
    Retry(Duration),
    /// Never again: a dead letter.
    GivenUp,
}

/// What is done about an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// With the event.
    pub disposition: Disposition,
    /// Why it failed.
    pub error: Option<String>,
    /// With the pace of the webhook.
    pub load: ReceiverLoad,
    /// The receiver wants no more calls at all: 410.
    pub disables: bool,
}

/// How the receiver bears the calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReceiverLoad {
    /// Well.
    None,
    /// Nothing to be learned.
    Unknown,
    /// Too much: fewer at a time.
    Heavy,
    /// Too much: none for this long, then fewer at a time.
    Pause(Duration),
}

/// Judges the attempt with this number (from 1). `chance` is in 0..1.
pub fn judge(webhook: &Webhook, attempt: u64, outcome: &Outcome, chance: f64) -> Verdict {
    let (error, load) = match outcome {
        Outcome::Answered { status: 200..=299, .. } => {
            return Verdict {
                disposition: Disposition::Delivered,
                error: None,
                load: ReceiverLoad::None,
                disables: false,
            };
        }
        Outcome::Answered { status: 410, .. } => {
            let error = "HTTP status 410: the receiver wants no more calls".to_owned();
            return Verdict {
                disposition: Disposition::GivenUp,
                error: Some(error),
                load: ReceiverLoad::Unknown,
                disables: true,
            };
        }
        Outcome::Answered { status, retry_after } => {
            let load = match (status, retry_after) {
                (429 | 500..=599, Some(wait)) => ReceiverLoad::Pause(*wait),
                (429 | 500..=599, None) => ReceiverLoad::Heavy,
                _ => ReceiverLoad::Unknown,
            };
            let error = match status {
                300..=399 => {
                    format!("HTTP status {status}: redirects are not followed; set the webhook's url to its target")
                }
                _ => format!("HTTP status {status}"),
            };
            (error, load)
        }
        Outcome::Unanswered(error) => (error.clone(), ReceiverLoad::Heavy),
        Outcome::NotSent(error) => (error.clone(), ReceiverLoad::Unknown),
    };
    let disposition = if webhook.is_last(attempt) {
        Disposition::GivenUp
    } else {
        let planned = delay(webhook, attempt).mul_f64(1.0 + JITTER * chance.clamp(0.0, 1.0));
        let asked = match outcome {
            Outcome::Answered { retry_after: Some(wait), .. } => *wait,
            _ => Duration::ZERO,
        };
        Disposition::Retry(planned.max(asked).min(WAIT_MAX))
    };
    Verdict { disposition, error: Some(error), load, disables: false }
}

/// Why there is a dead letter of an event whose last attempt has failed so.
pub fn gave_up(attempt: u64, error: &str) -> String {
    let attempts = if attempt == 1 { "attempt" } else { "attempts" };
    format!("{attempt} {attempts}, then: {error}")
}

/// The wait after this attempt, as the row plans it.
pub fn delay(webhook: &Webhook, attempt: u64) -> Duration {
    let first = Duration::from_millis(webhook.retry_delay_ms).min(WAIT_MAX).as_secs_f64();
    let exponent = i32::try_from(attempt.saturating_sub(1)).unwrap_or(i32::MAX);
    // NaN and what is less than 1 are no multipliers; the database has a check, the bucket has none.
    let factor = webhook.retry_backoff_multiplier.max(1.0).powi(exponent);
    let seconds = first * factor;
    if seconds < WAIT_MAX.as_secs_f64() { Duration::from_secs_f64(seconds.max(0.0)) } else { WAIT_MAX }
}

/// `Retry-After`: seconds, or a date (RFC 9110, section 10.2.3); bounded. `now` in seconds since 1970.
pub fn retry_after(value: &str, now: u64) -> Option<Duration> {
    let value = value.trim();
    let seconds = match value.parse::<u64>() {
        Ok(seconds) => seconds,
        Err(_) if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) => u64::MAX,
        Err(_) => date(value)?.saturating_sub(now),
    };
    Some(Duration::from_secs(seconds).min(WAIT_MAX))
}

/// An HTTP date in any of its three forms, in seconds since 1970.
fn date(text: &str) -> Option<u64> {
    Some(httpdate::parse_http_date(text).ok()?.duration_since(UNIX_EPOCH).ok()?.as_secs())
}

/// Which failed calls are logged: a few in each period, and then how many more there were.
#[derive(Debug, Clone, Copy, Default)]
pub struct FailureLog {
    period: u64,
    logged: u32,
    left_out: u64,
}

impl FailureLog {
    /// How many are logged in each period.
    pub const MAX: u32 = 5;
    /// How long a period is.
    pub const PERIOD: Duration = Duration::from_secs(10);

    /// Takes a failure at `now`, a time since any beginning. Returns how many were left out in the period before, where this one
    /// begins another, and whether this one is logged.
    pub fn take(&mut self, now: Duration) -> (u64, bool) {
        let period = now.as_secs() / Self::PERIOD.as_secs() + 1;
        let mut left_out = 0;
        if period != self.period {
            left_out = self.left_out;
            *self = FailureLog { period, logged: 0, left_out: 0 };
        }
        let is_logged = self.logged < Self::MAX;
        if is_logged {
            self.logged += 1;
        } else {
            self.left_out += 1;
        }
        (left_out, is_logged)
    }
}

/// How many calls to one webhook may run side by side: halved when its server is overloaded, one more for every round
/// that goes well.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ConcurrencyLimit {
    limit: f64,
    max: u32,
}

impl ConcurrencyLimit {
    /// As many as allowed, to begin with.
    pub fn new(max: u32) -> ConcurrencyLimit {
        ConcurrencyLimit { limit: f64::from(max.max(1)), max: max.max(1) }
    }

    /// The bound has changed.
    pub fn bound(&mut self, max: u32) {
        if self.max != max.max(1) {
            *self = ConcurrencyLimit::new(max);
        }
    }

    /// How many may run now; at least one.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 1 and a u32")]
    pub fn limit(&self) -> usize {
        self.limit as usize
    }

    /// Learns from an attempt.
    pub fn learn(&mut self, load: ReceiverLoad) {
        self.limit = match load {
            ReceiverLoad::None => self.limit + 1.0 / self.limit,
            ReceiverLoad::Unknown => self.limit,
            ReceiverLoad::Heavy | ReceiverLoad::Pause(_) => self.limit / 2.0,
        }
        .clamp(1.0, f64::from(self.max));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deliver::webhook::example as webhook;

    fn answered(status: u16) -> Outcome {
        Outcome::Answered { status, retry_after: None }
    }

    #[test]
    fn success_is_a_status_of_the_two_hundreds_and_nothing_else() {
        for status in [200, 201, 204, 299] {
            assert_eq!(judge(&webhook(), 9, &answered(status), 0.0).disposition, Disposition::Delivered, "{status}");
        }
        for status in [199, 300, 301, 302, 307, 308, 400, 404, 429, 500, 503] {
            let verdict = judge(&webhook(), 1, &answered(status), 0.0);
            assert_eq!(verdict.disposition, Disposition::Retry(Duration::from_secs(1)), "{status}");
            assert!(!verdict.disables);
        }
    }

    #[test]
    fn waits_grow_by_the_multiplier_with_a_bounded_jitter_and_end_with_the_attempts() {
        let wait = |attempt, chance| match judge(&webhook(), attempt, &answered(500), chance).disposition {
            Disposition::Retry(wait) => wait.as_millis(),
            other => panic!("{other:?}"),
        };
        assert_eq!((wait(1, 0.0), wait(2, 0.0), wait(3, 0.0)), (1000, 2000, 4000));
        assert_eq!((wait(1, 1.0), wait(3, 0.5)), (1250, 4500));
        assert_eq!(judge(&webhook(), 4, &answered(500), 0.0).disposition, Disposition::GivenUp);
        let once = Webhook { retry_enabled: false, ..webhook() };
        assert_eq!(judge(&once, 1, &answered(500), 0.0).disposition, Disposition::GivenUp);
    }

    #[test]
    fn no_row_makes_a_wait_longer_than_the_longest_or_panics() {
        for multiplier in [f64::NAN, f64::INFINITY, -1.0, 0.0, 1e308] {
            for retry_delay_ms in [0, 1, u64::MAX] {
                let webhook =
                    Webhook { retry_backoff_multiplier: multiplier, retry_delay_ms, max_retries: 10, ..webhook() };
                for attempt in [0, 1, 2, 10, u64::MAX] {
                    assert!(delay(&webhook, attempt) <= WAIT_MAX);
                    judge(&webhook, attempt, &answered(500), 1.0);
                }
            }
        }
    }

    #[test]
    fn retry_after_is_honoured_within_bounds() {
        let check = |value: &str, expected: Option<u64>| {
            assert_eq!(retry_after(value, 784_111_770), expected.map(Duration::from_secs), "{value}");
        };
        check("7", Some(7));
        check(" 0 ", Some(0));
        check("99999999999999999999999999", Some(3600));
        check("Sun, 06 Nov 1994 08:49:37 GMT", Some(7));
        check("Sun, 06 Nov 1994 08:49:00 GMT", Some(0));
        check("Wed, 29 Feb 2096 00:00:00 GMT", Some(3600));
        // RFC 9110, section 5.6.7: recipients accept the two obsolete forms too.
        check("Sunday, 06-Nov-94 08:49:37 GMT", Some(7));
        check("Sun Nov  6 08:49:37 1994", Some(7));
        for bad in [
            "",
            "soon",
            "-1",
            "Thu, 29 Feb 2096 00:00:00 GMT",
            "Sun, 06 Nov 1994",
            "Sun, 99 Nov 1994 08:49:37 GMT",
            "Sunday, 06 Nov 94 08:49:37",
        ] {
            check(bad, None);
        }
        let asked = Outcome::Answered { status: 429, retry_after: Some(Duration::from_secs(30)) };
        let verdict = judge(&webhook(), 1, &asked, 0.0);
        assert_eq!(verdict.disposition, Disposition::Retry(Duration::from_secs(30)));
        assert_eq!(verdict.load, ReceiverLoad::Pause(Duration::from_secs(30)));
    }

    #[test]
    fn of_many_failures_a_few_are_logged_in_each_period_and_the_others_counted() {
        let mut log = FailureLog::default();
        let mut take = |second| log.take(Duration::from_secs(second));
        assert_eq!((0..8).map(&mut take).filter(|(left_out, is_logged)| *left_out == 0 && *is_logged).count(), 5);
        assert_eq!([take(13), take(14)], [(3, true), (0, true)]);
        assert_eq!(take(60), (0, true));
    }

    #[test]
    fn gone_disables_and_is_not_tried_again() {
        let verdict = judge(&webhook(), 1, &answered(410), 0.0);
        assert!(verdict.disables);
        assert_eq!(verdict.disposition, Disposition::GivenUp);
    }

    #[test]
    fn the_pace_halves_under_strain_and_comes_back_a_step_for_every_round() {
        let mut concurrency = ConcurrencyLimit::new(64);
        concurrency.learn(ReceiverLoad::Heavy);
        assert_eq!(concurrency.limit(), 32);
        for _ in 0..20 {
            concurrency.learn(ReceiverLoad::Pause(Duration::ZERO));
        }
        assert_eq!(concurrency.limit(), 1);
        for _ in 0..10_000 {
            concurrency.learn(ReceiverLoad::None);
        }
        assert_eq!(concurrency.limit(), 64);
        concurrency.learn(ReceiverLoad::Unknown);
        assert_eq!(concurrency.limit(), 64);
    }
}
