//! What a person sees of the demo.

use std::{
    fmt::Display,
    time::{SystemTime, UNIX_EPOCH},
};

use super::count::{Count, Event};
use crate::commands::{
    offer,
    paint::{Paint, paint},
};

/// A reader who has gone away (`| head`) is no reason to stop.
pub fn line(text: impl Display) {
    let _ = offer(format!("{text}\n").as_bytes());
}

/// What has been done.
pub fn step(text: impl Display) {
    line(format!("{} {text}", paint("[done]", Paint::Good)));
}

/// The command or the SQL by which it was done, as a user would do it.
pub fn by(text: impl Display) {
    line(paint(&format!("       {text}"), Paint::Faint));
}

/// What is wrong.
pub fn problem(text: impl Display) {
    line(format!("{} {text}", paint("[wrong]", Paint::Bad)));
}

/// A line of emphasis.
pub fn strong(text: impl Display) {
    line(paint(&text.to_string(), Paint::Strong));
}

/// Above the events.
pub fn head() {
    line(paint(&format!("{:>9}  {:<6}  {:<24}  {}", "after", "op", "subject", "what"), Paint::Faint));
}

/// What is committed next, in words.
pub fn statement(words: &str) {
    line(paint(&format!("> {words}"), Paint::Faint));
}

/// A message as the subscriber has received it.
pub fn event(message: &async_nats::Message) {
    let event = Event::of(message);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros());
    let after = match event.committed_at() {
        Some(then) => {
            let micros = i64::try_from(now).unwrap_or(i64::MAX).saturating_sub(then);
            format!("{}.{} ms", micros / 1000, (micros % 1000).abs() / 100)
        }
        None => String::new(),
    };
    let colour = match event.op() {
        "insert" => Paint::Good,
        "update" => Paint::Doubtful,
        "delete" => Paint::Bad,
        _ => Paint::Strong,
    };
    let op = paint(&format!("{:<6}", event.op()), colour);
    line(format!("{after:>9}  {op}  {:<24}  {}", event.subject, event.words()));
}

/// What was counted.
pub fn summary(count: &Count) {
    if count.others > 0 {
        line(format!("events of other tables, not counted: {}", count.others));
    }
    if count.phantoms() > 0 {
        problem(format!("events that nobody committed: {}", count.phantoms()));
    }
    if count.disorder > 0 {
        problem(format!("events out of commit order: {}", count.disorder));
    }
    strong(format!(
        "rows committed: {}, events stored: {}, lost: {}, duplicated: {}",
        count.rows(),
        count.events(),
        count.lost(),
        count.duplicated()
    ));
}
