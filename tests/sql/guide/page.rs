//! Pages of the book as the tests read them: examples, links, headings, prose.
//!
//! In: Markdown files. Out: their code blocks, with what an HTML comment before a block says about it, their links and the
//! anchors of their headings. Nothing here runs anything.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The repository's folder.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A Markdown file.
pub struct Page {
    /// Its path from the repository's folder: `docs/tables.md`.
    pub name: String,
    /// Its text.
    pub text: String,
}

/// A code block, or the code of a comment that sets up what the reader has already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// `sql`, `sh`, `json`, …
    pub language: String,
    /// The code, without its indentation.
    pub code: String,
    /// Why it is not run, as `<!-- not run: … -->` before it says.
    pub not_run: Option<String>,
}

impl Page {
    /// Reads one by its path from the repository's folder.
    pub fn read(name: &str) -> Page {
        let text = fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        Page { name: name.to_owned(), text }
    }

    /// Its code blocks and `<!-- before: LANGUAGE … -->` comments, in their order.
    pub fn examples(&self) -> Vec<Example> {
        let mut examples = Vec::new();
        let mut not_run = None;
        let mut lines = self.text.lines();
        while let Some(line) = lines.next() {
            let trimmed = line.trim();
            if let Some(language) = trimmed.strip_prefix("<!-- before: ") {
                let code: Vec<_> =
                    lines.by_ref().take_while(|line| line.trim() != "-->").map(str::trim_start).collect();
                examples.push(Example { language: language.to_owned(), code: code.join("\n"), not_run: None });
            } else if let Some(reason) = trimmed.strip_prefix("<!-- not run: ") {
                not_run = Some(reason.trim_end_matches("-->").trim().to_owned());
            } else if let Some(language) = trimmed.strip_prefix("```") {
                let indentation = line.len() - line.trim_start().len();
                let code = lines.by_ref().take_while(|line| line.trim() != "```");
                let code: Vec<_> = code.map(|line| line.get(indentation..).unwrap_or_default()).collect();
                let language = language.to_owned();
                examples.push(Example { language, code: code.join("\n"), not_run: not_run.take() });
            } else if !trimmed.is_empty() {
                not_run = None;
            }
        }
        examples
    }

    /// The page without its code blocks, comments and code spans: what a person reads as text. Lines stay.
    pub fn prose(&self) -> Vec<String> {
        let (mut is_code, mut is_comment) = (false, false);
        let mut lines = Vec::new();
        for line in self.text.lines() {
            let trimmed = line.trim();
            if trimmed.starts_with("```") {
                is_code = !is_code;
                lines.push(String::new());
                continue;
            }
            is_comment |= trimmed.starts_with("<!--");
            lines.push(if is_code || is_comment { String::new() } else { line.to_owned() });
            is_comment &= !trimmed.ends_with("-->");
        }
        lines
    }

    /// Targets of its links: `tables.md#anchor`, `https://…`.
    pub fn links(&self) -> Vec<String> {
        // A link's text may go over two lines; a code span has none.
        let text = without_code(&self.prose().join("\n"));
        let targets =
            text.match_indices("](").map(|(at, _)| text[at + 2..].split(')').next().unwrap_or_default().trim());
        targets.map(str::to_owned).collect()
    }

    /// The anchors of its headings, as GitHub and mdBook make them.
    pub fn anchors(&self) -> Vec<String> {
        let headings = self.prose();
        let mut anchors: Vec<String> = Vec::new();
        for heading in headings.iter().filter(|line| line.starts_with('#')) {
            let anchor = anchor(heading.trim_start_matches('#').trim());
            let before = anchors.iter().filter(|other| **other == anchor).count();
            anchors.push(if before == 0 { anchor } else { format!("{anchor}-{before}") });
        }
        anchors
    }
}

/// The text with the content of its code spans gone.
fn without_code(text: &str) -> String {
    text.split('`').step_by(2).collect::<Vec<_>>().join("``")
}

fn anchor(heading: &str) -> String {
    let lower = heading.to_lowercase();
    let kept = lower.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// All pages below a folder, by their names.
pub fn below(folder: &str) -> Vec<Page> {
    let mut pages = Vec::new();
    collect(&root().join(folder), &mut pages);
    pages.sort_by(|one, other| one.name.cmp(&other.name));
    pages
}

fn collect(folder: &Path, pages: &mut Vec<Page>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, pages);
        } else if path.extension().is_some_and(|ending| ending == "md") {
            pages.push(Page::read(path.strip_prefix(root()).unwrap().to_str().unwrap()));
        }
    }
}

#[test]
fn examples_are_found_with_their_language_and_what_a_comment_says_about_them() {
    let text = "# A\n\n```sql\nSELECT 1;\n```\n\n- x:\n\n  <!-- not run: no server -->\n  ```sh\n  a\n    b\n  ```\n\n\
                <!-- before: sql\nSELECT 2;\n-->\n```json\n{}\n```\n";
    let page = Page { name: "a.md".to_owned(), text: text.to_owned() };
    let example = |language: &str, code: &str, not_run: Option<&str>| Example {
        language: language.to_owned(),
        code: code.to_owned(),
        not_run: not_run.map(str::to_owned),
    };
    let expected = [
        example("sql", "SELECT 1;", None),
        example("sh", "a\n  b", Some("no server")),
        example("sql", "SELECT 2;", None),
        example("json", "{}", None),
    ];
    assert_eq!(page.examples(), expected);
}

#[test]
fn links_and_anchors_are_found() {
    let text =
        "# `walhook deliver`: a_b, c\n[x](y.md#z) `[no](code)` [over\ntwo](https://a)\n```\n[no](b)\n```\n# A\n# A\n";
    let page = Page { name: "a.md".to_owned(), text: text.to_owned() };
    assert_eq!(page.links(), ["y.md#z", "https://a"]);
    assert_eq!(page.anchors(), ["walhook-deliver-a_b-c", "a", "a-1"]);
}
