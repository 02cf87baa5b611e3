//! Several events in one request: which of them go together, what the request says, and what a failure means for each.
//!
//! In: events, their attempts, the outcome of a call. Out: a body and an id for the call; whether it is made again in halves. Always holds:
//! the same events in the same order have the same id; a failing call never costs an event its last attempt that it was not alone in.

use ring::digest;

use super::schedule::Outcome;

/// Which events go into the same call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Their first attempt, of several that they have.
    First,
    /// Those that were in a call that failed, or have one attempt only.
    Again,
}

impl Class {
    /// That of an event.
    pub fn of(attempt: u64, is_last: bool) -> Class {
        if attempt <= 1 && !is_last { Class::First } else { Class::Again }
    }
}

/// The id of a call with these events.
pub fn id<'a>(ids: impl Iterator<Item = &'a str>) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    for id in ids {
        context.update(id.as_bytes());
        context.update(b"\n");
    }
    let hex: String = context.finish().as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("batch-{hex}")
}

/// A JSON array of these.
pub fn body<'a>(bodies: impl Iterator<Item = &'a str>) -> String {
    let mut array = String::from("[");
    for (index, body) in bodies.enumerate() {
        if index > 0 {
            array.push(',');
        }
        array.push_str(body);
    }
    array.push(']');
    array
}

/// Whether a call with these events, each with its attempt and whether it is its last one, is made again at once in two halves, so that the
/// events are found that fail by themselves.
pub fn splits(outcome: &Outcome, mut events: impl ExactSizeIterator<Item = (u64, bool)> + Clone) -> bool {
    let is_over = matches!(outcome, Outcome::Answered { status: 200..=299 | 410, .. } | Outcome::NotSent(_));
    if is_over || events.len() < 2 {
        return false;
    }
    if events.clone().any(|(_, is_last)| is_last) {
        return true;
    }
    // Those say something of the receiver, not of an event.
    let is_receivers = matches!(outcome.status(), None | Some(401 | 403 | 404 | 407 | 408 | 429 | 502 | 503 | 504));
    !is_receivers && events.all(|(attempt, _)| attempt > 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(status: u16) -> Outcome {
        Outcome::Answered { status, retry_after: None }
    }

    #[test]
    fn a_batch_is_retried_whole_once_and_then_in_halves_until_the_failing_event_is_alone() {
        let check = |outcome: &Outcome, events: &[(u64, bool)], expected| {
            assert_eq!(splits(outcome, events.iter().copied()), expected, "{outcome:?} {events:?}");
        };
        check(&answered(500), &[(1, false), (1, false)], false);
        check(&answered(500), &[(2, false), (3, false)], true);
        check(&answered(422), &[(2, false), (3, false)], true);
        check(&answered(500), &[(2, false)], false);
        check(&answered(200), &[(2, false), (2, false)], false);
        // A receiver that is away says nothing of an event, until it is one's last attempt.
        for outcome in [answered(503), answered(429), Outcome::Unanswered(String::new())] {
            check(&outcome, &[(2, false), (2, false)], false);
            check(&outcome, &[(2, false), (4, true)], true);
        }
        check(&answered(500), &[(1, true), (1, true)], true);
        check(&answered(410), &[(4, true), (4, true)], false);
        check(&Outcome::NotSent(String::new()), &[(4, true), (4, true)], false);
    }

    #[test]
    fn events_whose_call_has_failed_are_not_mixed_with_new_ones() {
        assert_eq!([Class::of(1, false), Class::of(2, false)], [Class::First, Class::Again]);
        assert_eq!(Class::of(1, true), Class::Again, "one attempt only: it is called in halves at once");
    }

    #[test]
    fn the_same_events_have_the_same_id_and_a_body_is_an_array() {
        assert_eq!(id(["a", "b"].into_iter()), id(["a", "b"].into_iter()));
        assert_ne!(id(["a", "b"].into_iter()), id(["ab"].into_iter()));
        assert_eq!(body(["1", "{}"].into_iter()), "[1,{}]");
        assert_eq!(body(std::iter::empty()), "[]");
    }
}
