//! What a stream's duplicate window costs, and whether somebody needs it.
//!
//! In: the window, the rate of the stream's messages, the last calls in `rule_webhook_events`. Out: what is to be said, and the window
//! that fits. Always holds: a stream in `shared` ordering keeps a minute; in `strict` ordering the window serves callers that send
//! message ids of their own, and nobody else; a statement ends after a second.

use std::collections::BTreeSet;

use tokio::sync::OnceCell;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::{
    amounts::{bytes, duration},
    finding::Severity,
};
use crate::{error::Result, postgres::sql, route::subject};

/// Memory of the server for each message id in the window, in bytes: measured, 185 MiB for a million.
const ID_BYTES: f64 = 190.0;
/// From so much of it on the window is reported …
const NOTED: f64 = 32e6;
/// … and from so much on as a warning.
const TOO_MUCH: f64 = 256e6;
/// In a shared stream: how long a restart with all its retries may take, in seconds.
const LEAST: f64 = 60.0;

/// A stream's window, and what is known of its use.
pub struct Window<'a> {
    /// The stream, as a sentence names it.
    pub stream: &'a str,
    /// Whether its ordering is `shared`.
    pub is_shared: bool,
    /// How long it remembers message ids, in seconds.
    pub seconds: f64,
    /// Its messages a second, where they are known.
    pub rate: Option<f64>,
    /// Whether calls for it came with message ids of their callers, where the calls could be read.
    pub has_own_ids: Option<bool>,
}

impl Window<'_> {
    /// Whether it costs enough to be reported; only then the calls need to be read.
    pub fn is_noted(&self) -> bool {
        self.memory().is_some_and(|memory| memory >= NOTED)
    }

    fn memory(&self) -> Option<f64> {
        Some(self.rate? * self.seconds * ID_BYTES)
    }

    /// What is to be said, and which window fits, if one does.
    pub fn check(&self) -> Option<(Severity, String, Option<u64>)> {
        let Window { stream, is_shared, seconds, .. } = *self;
        if is_shared && seconds < LEAST {
            let text = format!(
                "{stream} is shared and remembers message ids for {}: an event that is sent again after a longer outage is stored twice",
                duration(seconds)
            );
            return Some((Severity::Warning, text, Some(120)));
        }
        let (rate, memory) = (self.rate?, self.memory()?);
        if memory < NOTED {
            return None;
        }
        let severity = if memory >= TOO_MUCH { Severity::Warning } else { Severity::Note };
        let needs = match (is_shared, self.has_own_ids) {
            (true, _) => "a shared stream needs a minute of it",
            (false, None) => "strict ordering does not need it, only callers that send message ids of their own do",
            (false, Some(true)) => {
                "strict ordering does not need it, but callers send message ids of their own: a repeated one is dropped only within it"
            }
            (false, Some(false)) => {
                "strict ordering does not need it, and no recent call came with a message id of its caller's"
            }
        };
        let text = format!(
            "{stream} remembers message ids for {}, which takes {} of the server's memory at the present rate of {} messages a second \
             (some {ID_BYTES} bytes each); {needs}",
            duration(seconds),
            bytes(memory),
            rate.round()
        );
        let least = if is_shared { LEAST } else { 1.0 };
        let fits = (least..seconds).contains(&least).then(|| match self.has_own_ids {
            Some(false) if !is_shared => least,
            // The longest that is not reported.
            _ => (NOTED / rate / ID_BYTES).trunc().clamp(least, seconds),
        });
        Some((severity, text, fits.and_then(|fits| format!("{fits:.0}").parse().ok())))
    }
}

/// The subjects of the last calls that came with message ids of their callers. They are read once, when a stream needs them.
pub struct OwnIds<'c> {
    client: &'c Client,
    subjects: OnceCell<Option<BTreeSet<String>>>,
}

impl<'c> OwnIds<'c> {
    /// Nothing is read yet.
    pub fn of(client: &'c Client) -> OwnIds<'c> {
        OwnIds { client, subjects: OnceCell::new() }
    }

    /// Whether a call went to one of a stream's subjects with such an id; `None` where the calls cannot be read, or not within a second.
    pub async fn any_for(&self, patterns: &[String]) -> Option<bool> {
        let subjects = self.subjects.get_or_init(|| async { subjects_with_own_ids(self.client).await.ok() }).await;
        subjects.as_ref().map(|subjects| takes_one(patterns, subjects))
    }
}

/// These subjects. In one message to the server, which ends the transaction even where the check of a configuration is given up halfway.
///
/// # Errors
/// The calls cannot be read, or not within a second.
pub async fn subjects_with_own_ids(client: &Client) -> Result<BTreeSet<String>> {
    let query = "SET LOCAL statement_timeout = '1s'; \
                 SELECT DISTINCT e.subject FROM (SELECT c.subject, c.message_id FROM public.rule_webhook_events c \
                 ORDER BY c.event_id DESC LIMIT 100000) e WHERE e.message_id IS NOT NULL AND e.subject IS NOT NULL";
    let answer = client.simple_query(query).await;
    let answer = answer.map_err(|error| sql::error("read the last calls in rule_webhook_events", error))?;
    let subject = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    };
    Ok(answer.iter().filter_map(subject).collect())
}

/// Whether one of these subjects is one of the stream's.
fn takes_one(patterns: &[String], subjects: &BTreeSet<String>) -> bool {
    subjects.iter().any(|taken| patterns.iter().any(|pattern| subject::matches(pattern.as_bytes(), taken.as_bytes())))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_duplicate_window_is_noted_by_its_memory_and_the_one_proposed_fits() {
        let noted = |is_shared, seconds, rate, has_own_ids| {
            Window { stream: "S", is_shared, seconds, rate, has_own_ids }.check()
        };
        assert_eq!(noted(false, 120.0, None, None), None, "nothing is known of the rate");
        assert_eq!(noted(false, 120.0, Some(1000.0), None), None, "23 MB");
        let (severity, text, fits) = noted(false, 120.0, Some(5000.0), None).unwrap();
        assert_eq!((severity, fits), (Severity::Note, Some(33)), "{text}");
        assert!(text.contains("109 MB") && text.contains("strict ordering does not need it"), "{text}");
        assert_eq!(noted(false, 33.0, Some(5000.0), None), None);
        let (severity, _, fits) = noted(false, 120.0, Some(60_000.0), None).unwrap();
        assert_eq!((severity, fits), (Severity::Warning, Some(2)));
        let (severity, _, fits) = noted(true, 30.0, None, None).unwrap();
        assert_eq!((severity, fits), (Severity::Warning, Some(120)));
        // A shared stream keeps its minute, whatever it costs.
        let (_, text, fits) = noted(true, 120.0, Some(60_000.0), Some(false)).unwrap();
        assert_eq!(fits, Some(60), "{text}");
        assert_eq!(noted(true, 60.0, Some(60_000.0), None).unwrap().2, None);
    }

    #[test]
    fn a_strict_stream_without_callers_ids_needs_no_window_and_one_with_them_keeps_what_costs_little() {
        let window = |has_own_ids| Window {
            stream: "S",
            is_shared: false,
            seconds: 120.0,
            rate: Some(5000.0),
            has_own_ids: Some(has_own_ids),
        };
        let (_, text, fits) = window(false).check().unwrap();
        assert_eq!(fits, Some(1));
        assert!(text.contains("no recent call came with a message id"), "{text}");
        let (_, text, fits) = window(true).check().unwrap();
        assert_eq!(fits, Some(33));
        assert!(text.contains("callers send message ids of their own"), "{text}");
    }

    #[test]
    fn callers_ids_count_for_the_stream_that_takes_their_subject() {
        let subjects = BTreeSet::from(["webhooks.orders".to_owned(), "audit.a.b".to_owned()]);
        assert!(takes_one(&["webhooks.*".to_owned()], &subjects));
        assert!(takes_one(&["other".to_owned(), "audit.>".to_owned()], &subjects));
        assert!(!takes_one(&["audit.*".to_owned(), "events.>".to_owned()], &subjects));
    }
}
