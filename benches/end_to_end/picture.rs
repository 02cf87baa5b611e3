//! Panels of steps, bars and lines as SVG, written by hand: two pictures need no library.
//!
//! A picture paints its own ground and follows the reader's dark or light setting, so it can be read on any page. Words
//! stand in a legend above a panel, never among the marks, where they would meet.

use std::fmt::Write;

const WIDTH: f64 = 960.0;
/// Around the whole.
const MARGIN: f64 = 20.0;
/// The picture's title above all panels.
const TITLE: f64 = 34.0;
/// A line of a legend.
const LINE: f64 = 18.0;
/// Of a panel: left for the numbers of its y axis, below for those of x and its label.
const LEFT: f64 = 48.0;
const BELOW: f64 = 40.0;
/// The plotted area itself.
const HEIGHT: f64 = 170.0;
const GAP: f64 = 24.0;

const STYLE: &str = "\
text { font: 12px system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif; fill: #1f2328 }
.title { font-size: 16px; font-weight: 600 } .head { font-weight: 600 } .dim { fill: #59636e }
.card { fill: #ffffff; stroke: #d1d9e0 } .grid { stroke: #e4e8ec } .axis { stroke: #818b98 }
.area { fill: #0969da; fill-opacity: .22 } .bar { fill: #0969da; fill-opacity: .75 }
.line { fill: none; stroke-width: 1.8 } .dash { stroke-dasharray: 5 4 }
.a { stroke: #0969da } .b { stroke: #bc4c00 } .c { stroke: #1a7f37 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .dim { fill: #9198a1 } .card { fill: #0d1117; stroke: #3d444d }
.grid { stroke: #262c36 } .axis { stroke: #656c76 } .area, .bar { fill: #4493f8 }
.a { stroke: #4493f8 } .b { stroke: #f0883e } .c { stroke: #3fb950 }
}";

/// Which of the colours.
#[derive(Clone, Copy)]
pub enum Tone {
    /// What it is about.
    Main,
    /// Beside it.
    Second,
    /// And another.
    Third,
}

impl Tone {
    fn class(self) -> &'static str {
        match self {
            Tone::Main => "a",
            Tone::Second => "b",
            Tone::Third => "c",
        }
    }
}

/// One plot.
pub struct Panel {
    /// Above it.
    pub title: String,
    /// Below the title: what each colour is; dashed where it is a line.
    pub legend: Vec<(Tone, bool, String)>,
    /// To the right.
    pub x: Axis,
    /// Upwards, from zero.
    pub y: Axis,
    /// What is drawn, in this order.
    pub marks: Vec<Mark>,
}

/// From where to where.
pub struct Axis {
    /// With its unit.
    pub label: &'static str,
    /// Above zero where it is logarithmic.
    pub from: f64,
    /// Above `from`.
    pub upto: f64,
    /// Decades of equal length.
    pub is_log: bool,
}

/// What is drawn.
pub enum Mark {
    /// Each value holds from its x to the next one's; filled to the axis.
    Steps(Vec<(f64, f64)>),
    /// A bar from x to x.
    Bar(f64, f64, f64),
    /// A dashed line at a height, from the left to x.
    Level(Tone, f64, f64),
    /// A dashed line at x, over the whole height.
    Rule(Tone, f64),
}

impl Axis {
    /// Between 0 and 1.
    fn place(&self, value: f64) -> f64 {
        let value = value.clamp(self.from, self.upto);
        if self.is_log {
            (value / self.from).ln() / (self.upto / self.from).ln()
        } else {
            (value - self.from) / (self.upto - self.from)
        }
    }

    fn ticks(&self) -> Vec<f64> {
        if self.is_log {
            return (-6..9).map(|power| 10_f64.powi(power)).filter(|tick| self.holds(*tick)).collect();
        }
        let rough = (self.upto - self.from) / 4.0;
        let power = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|digit| digit * power).into_iter().find(|step| *step >= rough);
        let step = step.unwrap_or(rough);
        (0..20).map(|index| self.from + f64::from(index) * step).filter(|tick| self.holds(*tick)).collect()
    }

    fn holds(&self, tick: f64) -> bool {
        tick >= self.from * 0.999 && tick <= self.upto * 1.001
    }
}

/// The panels side by side, four of them two by two.
pub fn draw(title: &str, panels: &[Panel]) -> String {
    let columns = if panels.len() == 4 { 2 } else { panels.len().clamp(1, 3) };
    let legend = panels.iter().map(|panel| panel.legend.len()).max().unwrap_or(0);
    let above = LINE * (1.0 + legend as f64) + 8.0;
    let width = (WIDTH - 2.0 * MARGIN - GAP * (columns - 1) as f64) / columns as f64;
    let tall = above + HEIGHT + BELOW;
    let rows = panels.len().div_ceil(columns);
    let height = 2.0 * MARGIN + TITLE + tall * rows as f64 + GAP * rows.saturating_sub(1) as f64 - 8.0;
    let mut svg = String::new();
    let _ = write!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\" \
         aria-label=\"{title}\">\n<title>{title}</title>\n<style>\n{STYLE}\n</style>\n\
         <rect class=\"card\" x=\".5\" y=\".5\" width=\"{:.0}\" height=\"{:.0}\" rx=\"8\"/>\n",
        WIDTH - 1.0,
        height - 1.0,
        title = escaped(title),
    );
    text(&mut svg, "title", MARGIN, MARGIN + 12.0, title);
    for (index, panel) in panels.iter().enumerate() {
        let left = MARGIN + (width + GAP) * (index % columns) as f64;
        let top = MARGIN + TITLE + (tall + GAP) * (index / columns) as f64;
        panel.draw(&mut svg, left, top, width, above);
    }
    svg.push_str("</svg>\n");
    svg
}

impl Panel {
    fn draw(&self, svg: &mut String, left: f64, top: f64, width: f64, above: f64) {
        text(svg, "head", left, top + 12.0, &self.title);
        for (index, (tone, is_dashed, words)) in self.legend.iter().enumerate() {
            let y = top + 12.0 + LINE * (1.0 + index as f64);
            let dash = if *is_dashed { " dash" } else { "" };
            line(svg, &format!("line {}{dash}", tone.class()), [left, y - 4.0], [left + 22.0, y - 4.0]);
            text(svg, "dim", left + 29.0, y, words);
        }
        let (x0, y0) = (left + LEFT, top + above + HEIGHT);
        let wide = width - LEFT;
        let at = |x: f64, y: f64| [x0 + wide * self.x.place(x), y0 - HEIGHT * self.y.place(y)];

        for tick in self.y.ticks() {
            let [_, y] = at(self.x.from, tick);
            line(svg, "grid", [x0, y], [x0 + wide, y]);
            let _ = writeln!(
                svg,
                "<text class=\"dim\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                x0 - 7.0,
                y + 4.0,
                short(tick)
            );
        }
        for mark in &self.marks {
            self.mark(svg, mark, at, y0);
        }
        line(svg, "axis", [x0, y0], [x0 + wide, y0]);
        for tick in self.x.ticks() {
            let [x, _] = at(tick, 0.0);
            line(svg, "axis", [x, y0], [x, y0 + 4.0]);
            let _ = writeln!(
                svg,
                "<text class=\"dim\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                y0 + 17.0,
                short(tick)
            );
        }
        let _ = writeln!(
            svg,
            "<text class=\"dim\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}; up: {}</text>",
            x0 + wide,
            y0 + 33.0,
            self.x.label,
            self.y.label
        );
    }

    fn mark(&self, svg: &mut String, mark: &Mark, at: impl Fn(f64, f64) -> [f64; 2], ground: f64) {
        match mark {
            Mark::Steps(steps) => {
                let (Some(first), Some(last)) = (steps.first(), steps.last()) else { return };
                let mut path = String::new();
                for (index, (x, y)) in steps.iter().enumerate() {
                    let [x, y] = at(*x, *y);
                    let _ = if index == 0 { write!(path, "M{x:.1},{y:.1}") } else { write!(path, "H{x:.1}V{y:.1}") };
                }
                let ([start, _], [end, _]) = (at(first.0, 0.0), at(last.0, 0.0));
                let _ = writeln!(svg, "<path class=\"area\" d=\"{path}H{end:.1}V{ground:.1}H{start:.1}Z\"/>");
                let _ = writeln!(svg, "<path class=\"line a\" d=\"{path}\"/>");
            }
            Mark::Bar(from, upto, height) => {
                let ([left, top], [right, _]) = (at(*from, *height), at(*upto, 0.0));
                let (width, height) = ((right - left - 0.6).max(0.6), ground - top);
                let _ = writeln!(
                    svg,
                    "<rect class=\"bar\" x=\"{left:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"/>"
                );
            }
            Mark::Level(tone, upto, height) => {
                line(svg, &format!("line dash {}", tone.class()), at(self.x.from, *height), at(*upto, *height));
            }
            Mark::Rule(tone, x) => {
                line(svg, &format!("line dash {}", tone.class()), at(*x, 0.0), at(*x, self.y.upto));
            }
        }
    }
}

fn line(svg: &mut String, class: &str, from: [f64; 2], upto: [f64; 2]) {
    let ([x1, y1], [x2, y2]) = (from, upto);
    let _ = writeln!(svg, "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>");
}

fn text(svg: &mut String, class: &str, x: f64, y: f64, words: &str) {
    let _ = writeln!(svg, "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{}</text>", escaped(words));
}

fn escaped(words: &str) -> String {
    words.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}

/// `50k`, `0.1`.
fn short(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{}M", trimmed(value / 1e6)),
        value if value >= 1e3 => format!("{}k", trimmed(value / 1e3)),
        value => trimmed(value),
    }
}

fn trimmed(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}
