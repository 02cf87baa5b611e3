//! How large a function, a struct and a type may be: a reader can hold so much in mind at once.
//!
//! The code is read line by line, not as a syntax tree. That is enough because `make check` lets only code pass that rustfmt has
//! formatted: there a function ends with the first line that begins with a closing brace at the indentation of its `fn`, and all
//! between is indented deeper. Only a text over several lines could have a brace there, and `src/` has no such text.

use std::collections::BTreeMap;

use crate::tidy::{collect, root};

/// A function is shorter, from the line with `fn` to its closing brace, both included.
const FUNCTION_LINES: usize = 80;
/// Most fields of a struct.
const FIELDS_MAX: usize = 30;
/// Most public methods (`pub fn`) of a type, over all its `impl` blocks.
const METHODS_MAX: usize = 50;

/// What is larger (`file: name`), each with the reason: only what nothing but a redesign would make smaller.
const LARGER: [(&str, &str); 0] = [];

/// A function, struct or `impl` block: its name and all its lines.
struct Item<'c> {
    name: &'c str,
    lines: &'c [&'c str],
}

fn indentation(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// What follows `pub`, `pub(crate)` and the like.
fn without_visibility(line: &str) -> &str {
    let line = line.trim_start();
    let Some(rest) = line.strip_prefix("pub") else { return line };
    match rest.strip_prefix('(').and_then(|rest| rest.split_once(") ")) {
        Some((_, rest)) => rest,
        None => rest.strip_prefix(' ').unwrap_or(line),
    }
}

fn first_word(text: &str) -> &str {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default()
}

/// The name of the function that the line begins.
fn function(line: &str) -> Option<&str> {
    let mut rest = without_visibility(line);
    for modifier in ["const ", "async ", "unsafe ", "extern \"C\" "] {
        rest = rest.strip_prefix(modifier).unwrap_or(rest);
    }
    Some(first_word(rest.strip_prefix("fn ")?)).filter(|name| !name.is_empty())
}

/// The name of the struct that the line begins, if its fields have names.
fn structure(line: &str) -> Option<&str> {
    let rest = without_visibility(line).strip_prefix("struct ")?;
    (!rest.ends_with([';', '(', '}'])).then(|| first_word(rest))
}

/// The name of the type whose own `impl` block the line begins, not that of a trait.
fn implementation(line: &str) -> Option<&str> {
    let mut rest = line.trim_start().strip_prefix("impl")?;
    if rest.starts_with('<') {
        let (mut depth, mut before) = (0, ' ');
        let end = rest.find(|c| {
            match c {
                '<' => depth += 1,
                '>' if before != '-' => depth -= 1,
                _ => {}
            }
            before = c;
            depth == 0
        })?;
        rest = &rest[end + 1..];
    }
    let path = rest.strip_prefix(' ')?;
    let path = path.split(['<', ' ']).next()?;
    let name = path.rsplit("::").next()?;
    (!line.contains(" for ") || line.contains(" for<")).then_some(name)
}

/// Those that `begins` finds. One without a body, in a trait, ends with its semicolon.
fn items<'c>(lines: &'c [&'c str], begins: fn(&str) -> Option<&str>) -> Vec<Item<'c>> {
    let is_end = |line: &str, depth: usize| {
        indentation(line) == depth && (line.trim_start().starts_with('}') || line.ends_with(';'))
    };
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let Some(name) = begins(line) else { continue };
        let (depth, is_whole) = (indentation(line), line.ends_with([';', '}']));
        let more = lines[at + 1..].iter().position(|line| is_end(line, depth));
        let length = if is_whole { 1 } else { more.map_or(lines.len() - at, |more| more + 2) };
        found.push(Item { name, lines: &lines[at..at + length] });
    }
    found
}

impl Item<'_> {
    /// The lines directly inside it.
    fn members(&self) -> impl Iterator<Item = &str> {
        let depth = indentation(self.lines[0]) + 4;
        self.lines[1..].iter().copied().filter(move |line| indentation(line) == depth)
    }

    fn fields(&self) -> usize {
        let is_field = |line: &&str| {
            let rest = without_visibility(line);
            let name = first_word(rest);
            !name.is_empty() && rest[name.len()..].starts_with(": ")
        };
        self.members().filter(is_field).count()
    }

    fn public_methods(&self) -> usize {
        self.members().filter(|line| line.trim_start().starts_with("pub ") && function(line).is_some()).count()
    }
}

/// What is too large in these files (name and code), each with what to do about it.
fn too_large(files: &[(String, String)]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut definitions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let files: Vec<(&str, Vec<&str>)> =
        files.iter().map(|(name, code)| (name.as_str(), code.lines().collect())).collect();
    for (file, lines) in &files {
        for item in items(lines, function).iter().filter(|item| item.lines.len() >= FUNCTION_LINES) {
            wrong.push(format!(
                "{file}: {} has {} lines, a function has fewer than {FUNCTION_LINES}: give each of its subjects a function of its own",
                item.name,
                item.lines.len()
            ));
        }
        for item in items(lines, structure) {
            definitions.entry(item.name).or_default().push(file);
            if item.fields() > FIELDS_MAX {
                wrong.push(format!(
                    "{file}: {} has {} fields, a struct has at most {FIELDS_MAX}: put those that belong together into a struct of \
                     their own",
                    item.name,
                    item.fields()
                ));
            }
        }
    }
    // Two parts may have types of one name: an `impl` is of the one whose file, or whose folder, it stands in.
    let mut methods: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for (file, lines) in &files {
        for item in items(lines, implementation) {
            let is_below =
                |home: &str| file.strip_prefix(home.trim_end_matches(".rs")).is_some_and(|rest| rest.starts_with('/'));
            let is_near = |home: &&&str| **home == *file || is_below(home);
            let homes = definitions.get(item.name).map_or(&[][..], Vec::as_slice);
            let home = homes.iter().filter(is_near).max_by_key(|home| home.len()).unwrap_or(file);
            *methods.entry((home, item.name)).or_default() += item.public_methods();
        }
    }
    for ((file, name), count) in methods.into_iter().filter(|(_, count)| *count > METHODS_MAX) {
        wrong.push(format!(
            "{file}: {name} has {count} public methods, a type has at most {METHODS_MAX}: give a part of its state, with the methods \
             that use nothing else, a type of its own"
        ));
    }
    wrong
}

#[test]
fn functions_structs_and_types_are_no_larger_than_one_can_hold_in_mind() {
    let mut files = Vec::new();
    collect(&root().join("src"), &["rs"], &mut files);
    let files: Vec<_> = files.into_iter().map(|file| (file.name(), file.text)).collect();
    let wrong = too_large(&files);
    let is_excused = |wrong: &&String| LARGER.iter().any(|(item, _reason)| wrong.starts_with(&format!("{item} has ")));
    let unexcused: Vec<_> = wrong.iter().filter(|wrong| !is_excused(wrong)).collect();
    assert!(unexcused.is_empty(), "{unexcused:#?}");
    for (item, reason) in LARGER {
        let is_needed = wrong.iter().any(|wrong| wrong.starts_with(&format!("{item} has ")));
        assert!(is_needed, "{item} needs no exception any more: {reason}");
    }
}

#[test]
fn what_is_too_large_is_found_in_every_form() {
    let found = |name: &str, code: String| too_large(&[(name.to_owned(), code)]);
    for head in [
        "fn f() {",
        "    pub(in crate::a) async fn f(\n        x: u8,\n    ) -> u8 {",
        "pub const fn f<T>()\nwhere\n    T: X,\n{",
    ] {
        let depth = indentation(head);
        let function = |lines: usize| {
            let body = " ".repeat(depth + 4) + "g();\n";
            format!("{head}\n{}{}}}\n", body.repeat(lines - head.lines().count() - 1), " ".repeat(depth))
        };
        assert!(found("a.rs", function(79)).is_empty(), "{head}");
        let wrong = found("a.rs", function(80));
        assert!(wrong.len() == 1 && wrong[0].starts_with("a.rs: f has 80 lines"), "{wrong:?}");
    }
    let declared = "trait T {\n    fn f();\n    fn g(\n        x: u8,\n    ) -> u8;\n}\n".to_owned() + &"\n".repeat(80);
    assert!(found("a.rs", declared).is_empty());

    let structure = |fields: usize| {
        format!(
            "pub struct S<'a> {{\n{}}}\n",
            "    /// It: so.\n    #[x(y: z)]\n    pub(super) a: &'a u8,\n".repeat(fields)
        )
    };
    assert!(found("a.rs", structure(30)).is_empty());
    assert!(found("a.rs", structure(31))[0].starts_with("a.rs: S has 31 fields"));

    let block =
        |head: &str, methods: usize| format!("{head} {{\n{}}}\n", "    pub fn f() {}\n    fn g() {}\n".repeat(methods));
    let home = || ("a/s.rs".to_owned(), structure(1) + &block("impl<F: Fn() -> u8> S<F>", 25));
    let of_a_folder = |methods| ("a/s/b.rs".to_owned(), block("impl S<'_>", methods));
    let another = ("b.rs".to_owned(), structure(1) + &block("impl S", 25) + &block("impl T for S", 25));
    assert!(too_large(&[home(), of_a_folder(25), another]).is_empty());
    let wrong = too_large(&[home(), of_a_folder(26)]);
    assert!(wrong.len() == 1 && wrong[0].starts_with("a/s.rs: S has 51 public methods"), "{wrong:?}");
}
