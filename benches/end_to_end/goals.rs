//! A goal, the figure beside it, and whether it was reached.

use serde_json::{Value, json};

/// One row of the table.
pub struct Goal {
    /// What was measured.
    what: String,
    bound: Bound,
    figure: f64,
    unit: &'static str,
}

#[derive(Clone, Copy)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
    /// To be known, not judged.
    Stated,
}

impl Goal {
    /// Reached from `bound` upwards.
    pub fn at_least(what: impl Into<String>, bound: f64, figure: f64, unit: &'static str) -> Goal {
        Goal { what: what.into(), bound: Bound::AtLeast(bound), figure, unit }
    }

    /// Reached up to `bound`.
    pub fn at_most(what: impl Into<String>, bound: f64, figure: f64, unit: &'static str) -> Goal {
        Goal { what: what.into(), bound: Bound::AtMost(bound), figure, unit }
    }

    /// A figure without a bound.
    pub fn stated(what: impl Into<String>, figure: f64, unit: &'static str) -> Goal {
        Goal { what: what.into(), bound: Bound::Stated, figure, unit }
    }

    /// `None` where nothing is asked.
    pub fn is_reached(&self) -> Option<bool> {
        match self.bound {
            Bound::AtLeast(bound) => Some(self.figure >= bound),
            Bound::AtMost(bound) => Some(self.figure <= bound),
            Bound::Stated => None,
        }
    }

    /// What, goal, figure, reached.
    pub fn cells(&self) -> [String; 4] {
        let Goal { unit, .. } = self;
        let bound = match self.bound {
            Bound::AtLeast(bound) => format!("≥ {} {unit}", round(bound)),
            Bound::AtMost(bound) => format!("≤ {} {unit}", round(bound)),
            Bound::Stated => "stated".to_owned(),
        };
        let figure = format!("{} {unit}", figure(self.figure));
        match self.is_reached() {
            Some(true) => [self.what.clone(), bound, figure, "yes".to_owned()],
            Some(false) => [self.what.clone(), bound, format!("**{figure}**"), "**no**".to_owned()],
            None => [self.what.clone(), bound, figure, String::new()],
        }
    }

    /// For machines.
    pub fn json(&self, line: &str) -> Value {
        let (kind, bound) = match self.bound {
            Bound::AtLeast(bound) => ("at_least", Some(bound)),
            Bound::AtMost(bound) => ("at_most", Some(bound)),
            Bound::Stated => ("stated", None),
        };
        json!({
            "line": line,
            "what": self.what,
            "kind": kind,
            "goal": bound,
            "figure": self.figure,
            "unit": self.unit,
            "reached": self.is_reached(),
        })
    }
}

/// As many digits as mean something.
pub fn figure(value: f64) -> String {
    match value.abs() {
        size if size >= 1000.0 => grouped(value),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 || size == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

/// A goal is a round number.
fn round(bound: f64) -> String {
    if bound >= 1000.0 { grouped(bound) } else { bound.to_string() }
}

/// A whole number with commas.
pub fn grouped(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let sign = if value < 0.0 { "-" } else { "" };
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).expect("digits")).collect();
    format!("{sign}{}", groups.join(","))
}
