//! What the lines found, as one table of goals, as a table for each line, as JSON, and as pictures.
//!
//! In `target/bench/`: `goals.md`, `end_to_end.md` (all of it; `make results` puts both into the documents),
//! `end_to_end.json`, and an `.svg` for each picture. Written anew after every line, so a run that is cut short leaves
//! what it had.

use std::{
    fmt::{self, Write},
    fs,
    path::PathBuf,
    time::Instant,
};

use serde_json::{Map, Value, json};

use crate::{goals::Goal, machine, machine::Machine};

/// What one line found.
pub struct Part {
    /// Its heading.
    pub title: String,
    /// How it was measured, and what to know to read it.
    pub text: String,
    /// The figures; none where the goals say it all.
    pub table: Option<Table>,
    /// Rows of the table of goals.
    pub goals: Vec<Goal>,
    /// All figures, for machines.
    pub json: Value,
    /// File name and SVG.
    pub pictures: Vec<(&'static str, String)>,
}

/// Of markdown.
pub struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Without rows yet.
    pub fn new<const N: usize>(head: [&str; N]) -> Table {
        Table { head: head.map(str::to_owned).to_vec(), rows: Vec::new() }
    }

    /// One cell for each head.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        assert_eq!(cells.len(), self.head.len(), "a cell for each head");
        self.rows.push(cells.to_vec());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| {} |", self.head.join(" | "))?;
        writeln!(f, "|{}", "---|".repeat(self.head.len()))?;
        self.rows.iter().try_for_each(|row| writeln!(f, "| {} |", row.join(" | ")))
    }
}

/// All that was found so far.
pub struct Report {
    machine: Machine,
    typed: String,
    begin: Instant,
    parts: Vec<(&'static str, Part)>,
    /// Lines that broke.
    broken: Vec<&'static str>,
}

impl Report {
    /// Nothing measured yet; `typed` is what was set in the environment.
    pub fn new(typed: &str) -> Report {
        let (machine, begin) = (Machine::here(), Instant::now());
        Report { machine, typed: typed.to_owned(), begin, parts: Vec::new(), broken: Vec::new() }
    }

    /// Takes what a line found; `None`: it broke, and has said why.
    pub fn add(&mut self, line: &'static str, part: Option<Part>) {
        match part {
            Some(part) => self.parts.push((line, part)),
            None => self.broken.push(line),
        }
    }

    /// Whether some line broke.
    pub fn is_incomplete(&self) -> bool {
        !self.broken.is_empty()
    }

    /// Writes all files and says where they are.
    pub fn write(&self) -> PathBuf {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).with_file_name("bench");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("end_to_end.json"), format!("{:#}\n", self.json())).unwrap();
        fs::write(folder.join("end_to_end.md"), self.to_string()).unwrap();
        fs::write(folder.join("goals.md"), format!("{}\n{}", self.taken_on(), self.goals())).unwrap();
        for (name, svg) in self.parts.iter().flat_map(|(_, part)| &part.pictures) {
            fs::write(folder.join(name), svg).unwrap();
        }
        folder
    }

    fn goals(&self) -> Table {
        let mut table = Table::new(["line", "what", "goal", "figure", "reached"]);
        for (line, part) in &self.parts {
            for goal in &part.goals {
                let [what, bound, figure, reached] = goal.cells();
                table.row([format!("`{line}`"), what, bound, figure, reached]);
            }
        }
        table
    }

    /// When, where, by which command.
    fn taken_on(&self) -> String {
        let Machine { processors, load, postgres, nats, commit, date } = &self.machine;
        let mut text = format!("{date}, {processors}, {postgres}, {nats}");
        if !commit.is_empty() {
            let _ = write!(text, ", commit {commit}");
        }
        let command = format!("{} make bench", self.typed);
        let minutes = self.begin.elapsed().as_secs_f64() / 60.0;
        let _ = writeln!(
            text,
            "; `{}` in {minutes:.1} min.\nThe machine's load (average of a minute) was {load} before and {} at the end.",
            command.trim_start(),
            machine::load()
        );
        for line in &self.broken {
            let _ = writeln!(text, "\n**`{line}` broke and has no figures.**");
        }
        text
    }

    fn json(&self) -> Value {
        let Machine { processors, load, postgres, nats, commit, date } = &self.machine;
        let lines: Map<String, Value> =
            self.parts.iter().map(|(line, part)| ((*line).to_owned(), part.json.clone())).collect();
        let goals: Vec<Value> =
            self.parts.iter().flat_map(|(line, part)| part.goals.iter().map(|goal| goal.json(line))).collect();
        json!({
            "machine": {"processors": processors, "load_before": load, "load_after": machine::load()},
            "postgres": postgres,
            "nats_server": nats,
            "commit": commit,
            "date": date,
            "settings": self.typed,
            "seconds": self.begin.elapsed().as_secs(),
            "goals": goals,
            "lines": lines,
            "broken": self.broken,
        })
    }
}

/// Markdown.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n{}", self.taken_on(), self.goals())?;
        for (line, part) in &self.parts {
            writeln!(f, "### {} (`{line}`)\n\n{}\n", part.title, part.text)?;
            if let Some(table) = &part.table {
                writeln!(f, "{table}")?;
            }
        }
        Ok(())
    }
}
