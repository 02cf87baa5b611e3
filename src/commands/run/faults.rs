//! Fault points: places of a run where a test makes the process end, fail or stand still.
//!
//! In: `WALHOOK_FAULTS`, such as `Acked=abort@3`: where, what, and at which time of coming by. Out: that, once. They stand at
//! the edges that feed and drain the core, never inside it. They are there with the feature `fault-points` alone, which tests
//! are built with: without it every function here is empty, and the variable means nothing. What follows from a fault is not
//! known here; it is what `tests/faults/fault_points.rs` looks at.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use crate::error::{Error, Result};

/// The variable that names a fault.
const VARIABLE: &str = "WALHOOK_FAULTS";
/// Longer than an answer may take by the settings of the test.
const DELAY: Duration = Duration::from_millis(600);

/// Where a fault may strike, along the way of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// The slot is ours, the epoch is the last one's.
    SlotTaken,
    /// The epoch is raised, and nothing else read or written.
    EpochRaised,
    /// The configuration is there, or has changed; the lanes are about to follow.
    Reload,
    /// The stream is what its row says, and its tail is not read.
    TailUnread,
    /// The tail is read, and the lane closed.
    TailRead,
    /// A frame of PostgreSQL's is read, and not taken.
    Read,
    /// A transaction has begun.
    Begun,
    /// A transaction is received whole.
    Received,
    /// A message is about to be written.
    Publish,
    /// A whole message is written: the next of its transaction or batch may be, or not.
    Published,
    /// An answer is read, and its lane does not know.
    Acked,
    /// Status is about to be reported.
    Report,
    /// PostgreSQL has the report.
    Reported,
    /// Rows of the history are about to be written.
    HistoryUnwritten,
    /// They are durable, and the streamer does not know.
    HistoryWritten,
    /// Dead letters are about to be written.
    Unburied,
    /// They are durable, and the streamer does not know.
    Buried,
    /// Checkpoints are about to be written.
    Checkpoint,
    /// They are durable.
    Checkpointed,
    /// Versions of the rules are about to be written.
    RulesUnwritten,
    /// They are durable, and the streamer does not know.
    RulesWritten,
    /// Told to stop; all that is in flight still is.
    Shutdown,
    /// All is drained; last words are not said.
    Drained,
    /// They are said, and the slot is still ours.
    LastWords,
    /// A schema for consumers is about to be stored.
    SchemaUnstored,
    /// It is durable, and the lane does not know.
    SchemaStored,
    /// `walhook deliver --queue`: calls are taken in PostgreSQL, and the worker does not know.
    QueueTaken,
    /// A call is about to be made.
    QueueUncalled,
    /// Its receiver has answered, and nobody knows.
    QueueCalled,
    /// What came of calls is about to be written.
    QueueUnwritten,
    /// It is durable, and the worker does not know.
    QueueWritten,
}

impl Point {
    /// Those of a worker of the queue.
    pub const QUEUE: [Point; 5] =
        [Point::QueueTaken, Point::QueueUncalled, Point::QueueCalled, Point::QueueUnwritten, Point::QueueWritten];
    /// Those of a run that publishes schemas.
    pub const SCHEMAS: [Point; 2] = [Point::SchemaUnstored, Point::SchemaStored];
    /// Those of a run.
    pub const ALL: [Point; 24] = [
        Point::SlotTaken,
        Point::EpochRaised,
        Point::Reload,
        Point::TailUnread,
        Point::TailRead,
        Point::Read,
        Point::Begun,
        Point::Received,
        Point::Publish,
        Point::Published,
        Point::Acked,
        Point::Report,
        Point::Reported,
        Point::HistoryUnwritten,
        Point::HistoryWritten,
        Point::Unburied,
        Point::Buried,
        Point::Checkpoint,
        Point::Checkpointed,
        Point::RulesUnwritten,
        Point::RulesWritten,
        Point::Shutdown,
        Point::Drained,
        Point::LastWords,
    ];
}

/// What a fault is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    /// The process is gone, without a last word.
    Abort,
    /// A bug of ours shows.
    Panic,
    /// What was attempted has failed, as where a connection is lost.
    Error,
    /// For a while nothing goes on: in the loop nothing at all, in a statement that one.
    Delay,
    /// For ever nothing goes on, as in a loop that hangs.
    Hang,
}

/// The one that this process was told.
struct Fault {
    point: Point,
    action: Action,
    hit: u32,
}

static FAULT: OnceLock<Fault> = OnceLock::new();
static HITS: AtomicU32 = AtomicU32::new(0);
static HAS_REPORTED: AtomicBool = AtomicBool::new(false);

/// Reads the variable, where there are fault points.
///
/// # Errors
/// It names no fault.
pub fn arm() -> Result<()> {
    if !cfg!(feature = "fault-points") {
        return Ok(());
    }
    let Ok(text) = std::env::var(VARIABLE) else { return Ok(()) };
    let fault = parse(&text).ok_or_else(|| {
        Error::config(format!("{VARIABLE}: {text:?} is no fault")).hint(format!(
            "POINT=abort|panic|error|delay|hang@HIT, where POINT is one of {:?}, {:?}, {:?}",
            Point::ALL,
            Point::SCHEMAS,
            Point::QUEUE
        ))
    })?;
    let _ = FAULT.set(fault);
    Ok(())
}

fn parse(text: &str) -> Option<Fault> {
    let (point, rest) = text.split_once('=')?;
    let (action, hit) = rest.split_once('@')?;
    let action = match action {
        "abort" => Action::Abort,
        "panic" => Action::Panic,
        "error" => Action::Error,
        "delay" => Action::Delay,
        "hang" => Action::Hang,
        _ => return None,
    };
    let point =
        Point::ALL.into_iter().chain(Point::SCHEMAS).chain(Point::QUEUE).find(|known| format!("{known:?}") == point)?;
    Some(Fault { point, action, hit: hit.parse().ok()? })
}

fn is_armed(at: &[Point]) -> bool {
    cfg!(feature = "fault-points") && FAULT.get().is_some_and(|fault| at.contains(&fault.point))
}

/// What happens here, if it happens now.
fn struck(point: Point) -> Option<Action> {
    if !is_armed(&[point]) {
        return None;
    }
    let Fault { action, hit, .. } = FAULT.get()?;
    if HITS.fetch_add(1, Ordering::Relaxed) + 1 != *hit {
        return None;
    }
    tracing::warn!("fault point {point:?}: {action:?} at hit {hit}");
    match *action {
        Action::Abort => {
            crate::log::flush();
            std::process::abort()
        }
        Action::Panic => panic!("fault point {point:?}"),
        other => Some(other),
    }
}

/// A place in the loop.
///
/// # Errors
/// Where a fault says so.
#[inline]
pub fn reach(point: Point) -> Result<()> {
    match struck(point) {
        Some(Action::Error) => Err(failed(point)),
        Some(Action::Hang) => loop {
            std::thread::sleep(DELAY);
        },
        Some(_) => {
            std::thread::sleep(DELAY);
            Ok(())
        }
        None => Ok(()),
    }
}

/// The same in what the loop does not wait for.
///
/// # Errors
/// Where a fault says so.
#[inline]
pub async fn pass(point: Point) -> Result<()> {
    match struck(point) {
        Some(Action::Error) => Err(failed(point)),
        Some(Action::Hang) => std::future::pending().await,
        Some(_) => {
            tokio::time::sleep(DELAY).await;
            Ok(())
        }
        None => Ok(()),
    }
}

fn failed(point: Point) -> Error {
    Error::unavailable(format!("fault point {point:?}"))
}

/// The streamer has taken this payload of CopyData.
///
/// # Errors
/// Where a fault says so.
#[inline]
pub fn taken(copy_data: &[u8]) -> Result<()> {
    if !is_armed(&[Point::Begun, Point::Received]) {
        return Ok(());
    }
    // A frame of WAL: its tag, three numbers, and the message.
    match (copy_data.first(), copy_data.get(25)) {
        (Some(b'w'), Some(b'B')) => reach(Point::Begun),
        (Some(b'w'), Some(b'C')) => reach(Point::Received),
        _ => Ok(()),
    }
}

/// How much of the messages is written at a time: one, where a fault waits between them.
#[inline]
pub fn at_a_time(messages: &[u8]) -> &[u8] {
    if !is_armed(&[Point::Publish, Point::Published]) {
        return messages;
    }
    // `HPUB subject reply headers total`, and so many bytes more.
    let line = memchr::memmem::find(messages, b"\r\n");
    let length = line.and_then(|end| {
        let total = messages[..end].rsplit(|&byte| byte == b' ').next()?;
        let total: usize = std::str::from_utf8(total).ok()?.parse().ok()?;
        Some(end + 2 + total + 2)
    });
    length.and_then(|length| messages.get(..length)).unwrap_or(messages)
}

/// A report is queued; it goes out with what is exchanged next.
#[inline]
pub fn reported() {
    if is_armed(&[Point::Reported]) {
        HAS_REPORTED.store(true, Ordering::Relaxed);
    }
}

/// Bytes were exchanged with PostgreSQL.
///
/// # Errors
/// Where a fault says so.
#[inline]
pub fn exchanged() -> Result<()> {
    if is_armed(&[Point::Reported]) && HAS_REPORTED.swap(false, Ordering::Relaxed) {
        return reach(Point::Reported);
    }
    Ok(())
}
