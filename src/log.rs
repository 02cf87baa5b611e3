//! The log: one line an event on standard error, by a thread that the streamer never waits for.
//!
//! In: tracing's events, and whatever else is for standard error. Out: lines. What always holds: [`push`] returns at once;
//! at most [`ROOM`] bytes of lines wait for the writer; a line that does not fit, or that standard error does not take (a
//! full disk, a closed pipe), is lost and counted, and the next line that gets through is preceded by how many. Text of
//! others is escaped and cut. A line leaves in one piece.
//!
//! Not tracing-appender: its guard prints to standard error when the queue is full at the end, which is just where
//! standard error blocks, its bound counts lines and not bytes, and it does not count what could not be written.

use std::{
    collections::VecDeque,
    fmt::{self, Write as _},
    io::{self, IsTerminal as _, Write as _},
    panic::PanicHookInfo,
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
};
use tracing_subscriber::{
    Layer,
    filter::{Targets, filter_fn},
    fmt::{
        format::Writer,
        time::{FormatTime as _, SystemTime},
    },
    layer::{Context, SubscriberExt as _},
    util::SubscriberInitExt as _,
};

use crate::{
    commands::paint,
    config::LogFormat,
    error::{Error, Result},
    text,
};

/// The exit code of a process that broke a promise of its own: `EX_SOFTWARE` of sysexits.h.
pub const BUG: i32 = 70;

/// How many bytes of lines may wait …
const ROOM: usize = 1 << 20;
/// … and how many more of errors, so that the one that ends the process finds a place.
const ROOM_FOR_ERRORS: usize = 256 << 10;
/// How long the end of the process waits for lines to be written.
const AT_THE_END: Duration = Duration::from_secs(1);
/// How long the writer waits where standard error is non-blocking and full.
const FULL: Duration = Duration::from_millis(20);
/// The most bytes of a message; a field has [`text::SHOWN`].
const MESSAGE: usize = 8192;

/// Back to the beginning of the line, and all of it away.
const ERASE: &str = "\r\x1b[K";

/// Lines that could not be written, since the process began.
static LOST: AtomicU64 = AtomicU64::new(0);
static QUEUE: Mutex<Queue> =
    Mutex::new(Queue { entries: VecDeque::new(), bytes: 0, is_writing: false, has_writer: false });
/// There is something to write.
static FILLED: Condvar = Condvar::new();
/// All is written.
static EMPTIED: Condvar = Condvar::new();
/// How lines look, once that is known.
static LOOK: Mutex<Look> = Mutex::new(Look { format: LogFormat::Text, in_colour: false });

struct Queue {
    entries: VecDeque<Entry>,
    bytes: usize,
    is_writing: bool,
    has_writer: bool,
}

enum Entry {
    Text(String),
    /// A line that is written over: the one there is now, and whether the next line begins behind it.
    Progress(String, bool),
    /// Here so many lines did not fit.
    Gap(u64),
}

fn queue() -> MutexGuard<'static, Queue> {
    QUEUE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn look() -> Look {
    *LOOK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many lines of the log were lost since the process began.
pub fn lost() -> u64 {
    LOST.load(Ordering::Relaxed)
}

/// Begins to write, and makes a panic end the process with [`BUG`] and one line. For `main`, before anything else.
///
/// # Errors
/// The system gives no thread.
pub fn start() -> Result<()> {
    thread::Builder::new()
        .name("log".to_owned())
        .spawn(write)
        .map_err(|error| Error::unavailable("start the thread that writes the log").caused_by(error))?;
    queue().has_writer = true;
    std::panic::set_hook(Box::new(panicked));
    Ok(())
}

/// Takes tracing's events in.
///
/// # Errors
/// A filter that cannot be.
pub fn init(filter: &str, format: LogFormat) -> Result<()> {
    let targets = targets(filter)?;
    let in_colour = format == LogFormat::Text && paint::is_coloured(io::stderr().is_terminal());
    *LOOK.lock().unwrap_or_else(PoisonError::into_inner) = Look { format, in_colour };
    tracing_subscriber::registry().with(targets).with(filter_fn(holds_no_payload)).with(Lines).init();
    Ok(())
}

/// tokio-postgres logs statements with their parameters at debug level: rows, payloads, secrets. Nobody may ask for that.
fn holds_no_payload(metadata: &Metadata<'_>) -> bool {
    let is_at_most = |level| *metadata.level() <= level;
    match metadata.target().split("::").next() {
        Some("walhook") => true,
        Some("tokio_postgres" | "postgres_protocol") => is_at_most(Level::INFO),
        _ => is_at_most(Level::DEBUG),
    }
}

/// The crates that may be named in a filter.
const CRATES: [&str; 6] = ["walhook", "async_nats", "hyper", "hyper_util", "rustls", "tokio_postgres"];

/// `LEVEL` or `CRATE[::MODULE]=LEVEL`, several with commas between them. What is not named is logged at info level.
///
/// # Errors
/// A word that is neither; it is not quoted.
pub fn targets(filter: &str) -> Result<Targets> {
    let wrong = |place: usize, what: &str| {
        Error::config(format!("the log level (--log, WALHOOK_LOG, log.level): part {place} {what}")).hint(format!(
            "the levels are off, error, warn, info, debug, trace; one crate has a level of its own by CRATE=LEVEL, as in \
             info,async_nats=debug, where CRATE is one of {}",
            CRATES.join(", ")
        ))
    };
    let level = |word: &str| match word.trim().to_ascii_lowercase().as_str() {
        "off" => Some(LevelFilter::OFF),
        "error" => Some(LevelFilter::ERROR),
        "warn" => Some(LevelFilter::WARN),
        "info" => Some(LevelFilter::INFO),
        "debug" => Some(LevelFilter::DEBUG),
        "trace" => Some(LevelFilter::TRACE),
        _ => None,
    };
    // async-nats tells of every connection of its own; ours are told where they are used.
    let mut targets = Targets::new().with_default(LevelFilter::INFO).with_target("async_nats", LevelFilter::WARN);
    for (index, part) in filter.split(',').enumerate().filter(|(_, part)| !part.trim().is_empty()) {
        targets = match part.split_once('=') {
            None => {
                let level = level(part).ok_or_else(|| wrong(index + 1, "is not a level"))?;
                let quieter = level.min(LevelFilter::WARN);
                targets.with_default(level).with_target("async_nats", quieter)
            }
            Some((target, word)) => {
                let target = target.trim();
                if !CRATES.contains(&target.split("::").next().unwrap_or_default()) {
                    return Err(wrong(index + 1, "names a crate that logs nothing"));
                }
                targets.with_target(target, level(word).ok_or_else(|| wrong(index + 1, "has no level after the ="))?)
            }
        };
    }
    Ok(targets)
}

/// Whether a line of progress may be on the terminal.
static HAS_PROGRESS: AtomicBool = AtomicBool::new(false);

/// Lines are for a person, and not JSON.
pub fn is_text() -> bool {
    matches!(look().format, LogFormat::Text)
}

/// Shows a line of progress below all others, in the place of the last one; behind the end the next line begins. It is left out where
/// the writer is behind.
pub fn progress(line: String, is_end: bool) {
    let mut queue = queue();
    if !queue.has_writer || queue.bytes + line.len() > ROOM {
        return;
    }
    HAS_PROGRESS.store(!is_end && !line.is_empty(), Ordering::Relaxed);
    queue.bytes += line.len();
    queue.entries.push_back(Entry::Progress(line, is_end));
    FILLED.notify_one();
}

/// Takes the line of progress away, so that standard output may have the place.
pub fn hide_progress() {
    if HAS_PROGRESS.load(Ordering::Relaxed) {
        progress(String::new(), false);
        flush();
    }
}

/// Gives text to the writer as it is, with its line's end; never waits.
pub fn push(text: String, is_error: bool) {
    let mut queue = queue();
    if !queue.has_writer {
        drop(queue);
        // A program that is not `walhook` uses the library.
        let _ = io::stderr().write_all(text.as_bytes());
        return;
    }
    let room = if is_error { ROOM + ROOM_FOR_ERRORS } else { ROOM };
    if queue.bytes + text.len() > room {
        LOST.fetch_add(1, Ordering::Relaxed);
        match queue.entries.back_mut() {
            Some(Entry::Gap(lines)) => *lines += 1,
            _ => queue.entries.push_back(Entry::Gap(1)),
        }
        return;
    }
    queue.bytes += text.len();
    queue.entries.push_back(Entry::Text(text));
    FILLED.notify_one();
}

/// A line for standard error that is no event: what is wrong with the command line, for example. It is escaped and cut.
pub fn line(text: &str) {
    push(format!("{}\n", text::one_line_of(text, MESSAGE)), true);
}

/// Waits until all is written, but not for long.
pub fn flush() {
    let until = Instant::now() + AT_THE_END;
    let mut queue = queue();
    while queue.has_writer && (queue.is_writing || !queue.entries.is_empty()) {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        queue = EMPTIED.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
    }
}

/// Ends the process, with what it had to say.
pub fn exit(code: i32) -> ! {
    hide_progress();
    flush();
    std::process::exit(code)
}

/// The writer's thread.
fn write() {
    let mut gap = 0; // lines lost since the last one that was written
    let mut progress = String::new(); // the line that stands on the terminal
    let mut queue = queue();
    loop {
        let Some(entry) = queue.entries.pop_front() else {
            queue.is_writing = false;
            EMPTIED.notify_all();
            queue = FILLED.wait(queue).unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        queue.is_writing = true;
        let text = match entry {
            Entry::Gap(lines) => {
                gap += lines;
                continue;
            }
            Entry::Text(text) if progress.is_empty() => {
                queue.bytes -= text.len();
                text
            }
            Entry::Text(text) => {
                queue.bytes -= text.len();
                format!("{ERASE}{text}{progress}")
            }
            Entry::Progress(line, is_end) => {
                queue.bytes -= line.len();
                let text = format!("{ERASE}{line}{}", if is_end { "\n" } else { "" });
                progress = if is_end { String::new() } else { line };
                text
            }
        };
        drop(queue);
        let is_written = (gap == 0 || write_all(gap_line(gap).as_bytes()).inspect(|()| gap = 0).is_ok())
            && write_all(text.as_bytes()).is_ok();
        if !is_written {
            LOST.fetch_add(1, Ordering::Relaxed);
            gap += 1;
        }
        queue = self::queue();
    }
}

fn gap_line(lines: u64) -> String {
    let fields = |visitor: &mut Parts| {
        visitor.message = "lines of the log were lost here: standard error did not take them".to_owned();
        visitor.fields.push(("lines", lines.into()));
    };
    look().line(Level::WARN, fields)
}

fn write_all(mut bytes: &[u8]) -> io::Result<()> {
    let mut stderr = io::stderr();
    while !bytes.is_empty() {
        match stderr.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(FULL),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A promise of our own is broken: one line, and one exit code, whatever thread or task it was in.
fn panicked(info: &PanicHookInfo<'_>) {
    let payload = info.payload();
    let what = payload.downcast_ref::<&str>().copied().or(payload.downcast_ref::<String>().map(String::as_str));
    // Slicing a text between characters quotes the text, which may be a payload.
    let what = what.unwrap_or("no reason given").split(" of `").next().unwrap_or_default();
    let place = info.location().map(|place| format!("{}:{}", place.file(), place.line()));
    let message = format!(
        "walhook has a bug and ends: {what} (at {}). Hint: please report this line with the version; after a restart \
         unconfirmed events are sent again",
        place.as_deref().unwrap_or("an unknown place")
    );
    let fields = |visitor: &mut Parts| {
        visitor.message = message;
        visitor.fields.push(("exit_code", BUG.into()));
        visitor.fields.push(("version", env!("CARGO_PKG_VERSION").into()));
    };
    push(look().line(Level::ERROR, fields), true);
    if std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0") {
        push(format!("{}\n", std::backtrace::Backtrace::force_capture()), true);
    }
    exit(BUG)
}

/// Takes each event and makes a line of it.
struct Lines;

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let level = *event.metadata().level();
        push(look().line(level, |visitor| event.record(visitor)), level == Level::ERROR);
    }
}

#[derive(Clone, Copy)]
struct Look {
    format: LogFormat,
    in_colour: bool,
}

impl Look {
    fn line(self, level: Level, record: impl FnOnce(&mut Parts)) -> String {
        let mut parts = Parts::default();
        record(&mut parts);
        let mut time = String::new();
        let _ = SystemTime.format_time(&mut Writer::new(&mut time));
        let message = text::one_line_of(&parts.message, MESSAGE);
        let mut line = String::with_capacity(time.len() + message.len() + 64);
        match self.format {
            LogFormat::Json => {
                let level = level.as_str();
                let _ = write!(line, "{{\"timestamp\":\"{time}\",\"level\":\"{level}\"");
                if !parts.message.is_empty() {
                    let _ = write!(line, ",\"message\":{}", serde_json::Value::from(message.as_ref()));
                }
                for (name, value) in parts.fields {
                    let value = match value {
                        serde_json::Value::String(text) => text::one_line(&text).into(),
                        other => other,
                    };
                    let _ = write!(line, ",{}:{value}", serde_json::Value::from(name));
                }
                line.push('}');
            }
            LogFormat::Text => {
                let (dim, colour, off) = match (self.in_colour, level) {
                    (false, _) => ("", "", ""),
                    (true, Level::ERROR) => ("\x1b[2m", "\x1b[31m", "\x1b[0m"),
                    (true, Level::WARN) => ("\x1b[2m", "\x1b[33m", "\x1b[0m"),
                    (true, Level::INFO) => ("\x1b[2m", "\x1b[32m", "\x1b[0m"),
                    (true, Level::DEBUG) => ("\x1b[2m", "\x1b[34m", "\x1b[0m"),
                    (true, _) => ("\x1b[2m", "\x1b[35m", "\x1b[0m"),
                };
                let _ = write!(line, "{dim}{time}{off} {colour}{:>5}{off}", level.as_str());
                if !message.is_empty() {
                    let _ = write!(line, " {message}");
                }
                for (name, value) in parts.fields {
                    let value = match value {
                        serde_json::Value::String(text) => text,
                        other => other.to_string(),
                    };
                    let _ = write!(line, " {dim}{name}={off}{}", text::one_line(&value));
                }
            }
        }
        line.push('\n');
        line
    }
}

/// An event's message and fields.
#[derive(Default)]
struct Parts {
    message: String,
    fields: Vec<(&'static str, serde_json::Value)>,
}

impl Parts {
    fn field(&mut self, field: &Field, value: serde_json::Value) {
        // Where a record of the crate `log` came from: the target has said whether it is wanted.
        if !field.name().starts_with("log.") {
            self.fields.push((field.name(), value));
        }
    }
}

impl Visit for Parts {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        match field.name() {
            "message" => self.message = text,
            _ => self.field(field, text.into()),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.message = value.to_owned(),
            // In text a word in quotes ends where it ends.
            _ if look().format == LogFormat::Text => self.field(field, format!("{value:?}").into()),
            _ => self.field(field, value.into()),
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.field(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.field(field, value.into());
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        self.field(field, u64::try_from(value).unwrap_or(u64::MAX).into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.field(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.field(field, value.into());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn line(format: LogFormat, record: impl FnOnce(&mut Parts)) -> String {
        Look { format, in_colour: false }.line(Level::WARN, record)
    }

    #[test]
    fn an_event_is_one_line_whatever_its_text_holds() {
        let record = |parts: &mut Parts| {
            parts.message = "refused: \x1b[31mred\r\n2026-01-01 ERROR forged".to_owned();
            parts.fields.push(("error", "x\u{202e}y\u{9b}".into()));
            parts.fields.push(("count", 7.into()));
        };
        let text = line(LogFormat::Text, record);
        assert!(
            text.ends_with(
                " WARN refused: \\u{1b}[31mred\\r\\n2026-01-01 ERROR forged error=x\\u{202e}y\\u{9b} count=7\n"
            ),
            "{text}"
        );
        let json: serde_json::Value = serde_json::from_str(&line(LogFormat::Json, record)).unwrap();
        assert_eq!((&json["level"], &json["count"]), (&"WARN".into(), &7.into()));
        assert_eq!(json["error"], "x\\u{202e}y\\u{9b}");
    }

    #[test]
    fn long_text_is_cut() {
        let record = |parts: &mut Parts| {
            parts.message = "x".repeat(1 << 20);
            parts.fields.push(("error", "y".repeat(1 << 20).into()));
        };
        for format in [LogFormat::Text, LogFormat::Json] {
            let line = line(format, record);
            assert!(line.len() < 13_000 && line.contains("more bytes"), "{}", line.len());
        }
    }

    #[test]
    fn a_filter_is_understood_or_refused_and_never_mutes_by_mistake() {
        let allows = |filter: &str, target, level| targets(filter).unwrap().would_enable(target, &level);
        assert!(allows("info", "walhook::flow", Level::INFO) && !allows("info", "walhook", Level::DEBUG));
        assert!(allows("", "walhook", Level::INFO) && !allows("info", "async_nats", Level::INFO));
        assert!(allows("WARN", "walhook", Level::WARN) && !allows("warn", "walhook", Level::INFO));
        assert!(!allows("error", "async_nats", Level::WARN) && !allows("debug", "async_nats", Level::INFO));
        assert!(allows("async_nats=debug", "async_nats", Level::DEBUG));
        assert!(allows("async_nats=debug", "walhook", Level::INFO), "the others stay at info");
        assert!(allows("error, walhook::nats=trace", "walhook::nats::tls", Level::TRACE));
        for wrong in ["warning", "inof", "walhok=debug", "walhook=loud", "walhook=", "=info", "info;debug", "2"] {
            let error = targets(wrong).unwrap_err();
            assert!(error.exit_code() == 2 && error.to_string().contains("error, warn, info, debug"), "{error}");
        }
    }
}
