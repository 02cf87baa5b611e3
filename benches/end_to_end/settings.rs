//! What the environment asks for, read and judged before anything is started: a run takes long, and a slip of the pen
//! should not show at its end.

use std::{env, fmt::Display, str::FromStr};

use crate::backlog::Shape;

/// See the table in `main.rs`.
pub struct Settings {
    /// The lines by name; empty for all.
    pub only: Vec<String>,
    /// A tenth of the rows, and shorter runs.
    pub is_quick: bool,
    /// Of a backlog.
    pub rows: u64,
    /// Drains of each backlog.
    pub rounds: usize,
    /// Which backlogs.
    pub shapes: Vec<Shape>,
    /// Rows/s of the latency runs.
    pub rates: Vec<u64>,
    /// Modes of the calls.
    pub modes: Vec<String>,
    /// Calls of each mode.
    pub calls: u32,
    /// Rows of the backlogs whose cost is compared.
    pub growth: Vec<u64>,
    /// What was set, as it is typed.
    pub typed: String,
}

impl Settings {
    /// The error names the variable.
    pub fn read() -> Result<Settings, String> {
        let mut typed = Vec::new();
        let mut var = |name: &str| {
            let value = env::var(name).ok().filter(|value| !value.is_empty());
            typed.extend(value.iter().map(|value| format!("{name}={value}")));
            value
        };
        let is_quick = var("QUICK").is_some_and(|value| value != "0");
        let or_quick = |quick: &'static str, whole: &'static str| if is_quick { quick } else { whole };
        let settings = Settings {
            only: list("ONLY", var("ONLY"), "")?,
            is_quick,
            rows: positive("ROWS", var("ROWS"), if is_quick { 100_000 } else { 1_000_000 })?,
            rounds: positive("ROUNDS", var("ROUNDS"), 1)?,
            shapes: list("SHAPES", var("SHAPES"), "1,1000,all")?,
            rates: list("RATES", var("RATES"), "100,1000")?,
            modes: list("MODES", var("MODES"), "queue,nats,both")?,
            calls: positive("CALLS", var("CALLS"), if is_quick { 2_000 } else { 10_000 })?,
            growth: list("GROWTH", var("GROWTH"), or_quick("10000,100000,300000", "100000,1000000,10000000"))?,
            typed: String::new(),
        };
        if settings.rates.contains(&0) || settings.growth.contains(&0) {
            return Err("RATES and GROWTH take numbers above zero".to_owned());
        }
        if let Some(mode) = settings.modes.iter().find(|mode| !["queue", "nats", "both"].contains(&mode.as_str())) {
            return Err(format!("MODES={mode}: there are the modes queue, nats and both"));
        }
        Ok(Settings { typed: typed.join(" "), ..settings })
    }

    /// One of two, by `QUICK`.
    pub fn quick<T>(&self, quick: T, whole: T) -> T {
        if self.is_quick { quick } else { whole }
    }
}

fn positive<T: FromStr + PartialOrd + From<u8>>(name: &str, text: Option<String>, default: T) -> Result<T, String> {
    let Some(text) = text else { return Ok(default) };
    let number = text.parse().ok().filter(|number| *number >= T::from(1));
    number.ok_or_else(|| format!("{name}={text}: it takes a whole number above zero"))
}

fn list<T: FromStr<Err: Display>>(name: &str, text: Option<String>, default: &str) -> Result<Vec<T>, String> {
    let text = text.as_deref().unwrap_or(default);
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts.map(|part| part.parse().map_err(|error| format!("{name}={text}: {part:?}: {error}"))).collect()
}
