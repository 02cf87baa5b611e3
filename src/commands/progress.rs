//! How far something is, for whoever watches: a line on a terminal that is written over, with an estimate of what is left.
//!
//! In: how much of how much is done, and since when. Out: nothing where standard error is no terminal, is one that cannot write a line
//! over (`TERM=dumb`), or gets the log as JSON; there the log and the database tell.
//!
//! Not indicatif: it writes to standard error from the thread that works, which would wait for a terminal that stands still, and knows
//! nothing of the log's lines there. This line goes through the log's writer, which puts each line of the log above it.

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use crate::{log, text};

/// Cells of the bar.
const WIDTH: u128 = 30;
/// How often a line is shown, where much is done one by one.
const EVERY: Duration = Duration::from_millis(100);

/// Whether somebody watches.
pub fn is_watched() -> bool {
    let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    std::io::stderr().is_terminal() && !is_dumb && log::is_text()
}

/// Writes a line over the last one; behind the end the next one begins.
pub fn show(line: &str, is_end: bool) {
    let line = text::one_line(line);
    // A line that goes on in the next row could not be written over.
    let width =
        terminal_size::terminal_size_of(std::io::stderr()).map_or(usize::MAX, |(width, _)| usize::from(width.0));
    log::progress(line.chars().take(width.saturating_sub(1).max(10)).collect(), is_end);
}

/// Things that are done one by one.
pub struct Steps {
    all: u64,
    began: Instant,
    shown: Option<Instant>,
}

impl Steps {
    /// So many; `None` where it is one, or nobody watches.
    pub fn of(all: usize) -> Option<Steps> {
        let all = u64::try_from(all).ok()?;
        (all > 1 && is_watched()).then(|| Steps { all, began: Instant::now(), shown: None })
    }

    /// So many are done, and this is what comes next or was done.
    pub fn done(&mut self, done: usize, what: &str) {
        let done = u64::try_from(done).unwrap_or(self.all);
        let is_end = done >= self.all;
        if !is_end && self.shown.is_some_and(|shown| shown.elapsed() < EVERY) {
            return;
        }
        self.shown = Some(Instant::now());
        let all = self.all;
        let left = left(done, self.began.elapsed(), all.saturating_sub(done));
        show(&format!("{}  {done} of {all} {what}{left}", bar(done, all)), is_end);
    }
}

/// `[###############...............]  50 %`
pub fn bar(done: u64, all: u64) -> String {
    let (done, all) = (u128::from(done.min(all)), u128::from(all.max(1)));
    let marks: String = (0..WIDTH).map(|at| if at < done * WIDTH / all { '#' } else { '.' }).collect();
    format!("[{marks}] {:3} %", done * 100 / all)
}

/// `, 10 s left`, as far as what was done in this time tells; nothing where it tells nothing.
pub fn left(done: u64, elapsed: Duration, rest: u64) -> String {
    match done {
        0 => String::new(),
        done => match (elapsed.mul_f64((rest as f64 / done as f64).min(1e6)) + Duration::from_millis(500)).as_secs() {
            seconds if seconds < 120 => format!(", {seconds} s left"),
            seconds if seconds < 7200 => format!(", {} min left", seconds / 60),
            seconds => format!(", {} h left", seconds / 3600),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_done_tells_what_is_left() {
        assert_eq!(bar(0, 0), "[..............................]   0 %");
        assert_eq!(bar(25, 100), "[#######.......................]  25 %");
        // An estimate of how much there is may be too low, and places in the WAL are large.
        assert_eq!(bar(120, 100), "[##############################] 100 %");
        assert_eq!(bar(u64::MAX / 2, u64::MAX), "[##############................]  49 %");
        assert_eq!(left(0, Duration::from_secs(9), 100), "");
        assert_eq!(left(25, Duration::from_secs(30), 75), ", 90 s left");
        assert_eq!(left(25, Duration::from_secs(300), 75), ", 15 min left");
        assert_eq!(left(1, Duration::from_secs(3600), 75), ", 75 h left");
        assert_eq!(left(1, Duration::from_secs(3600), 0), ", 0 s left");
    }
}
