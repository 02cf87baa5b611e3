//! A list of words that no new name and no new text may use (`words.txt`): each has a count that may only fall.

#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use crate::tidy::{collect, root};

/// Where the words are looked for; the list itself is not there.
const FOLDERS: [&str; 8] = ["src", "sql", "tests", "benches", "examples", "docs", "config", "scripts"];
const FILES: [&str; 4] = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "Makefile"];
/// Others' texts: what servers sent, and the tables of the standards' subjects; and the reference, which is made of texts counted here.
const NOT_OURS: [&str; 4] = ["tests/golden", "tests/tidy/words", "docs/rfc", "docs/reference"];

/// How often one word stands in the repository.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Count {
    names: usize,
    text: usize,
}

/// The words of a name: `acksHeard_by` → acks, heard, by.
fn humps(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut was_lower = false;
    for letter in name.chars() {
        if letter == '_' || (letter.is_uppercase() && was_lower) {
            words.push(String::new());
        }
        was_lower = letter.is_lowercase();
        if letter != '_' {
            words.last_mut().unwrap().extend(letter.to_lowercase());
        }
    }
    words
}

/// A line's code and its text: comments and what is between quotation marks.
fn parts(line: &str, comment: Option<&str>) -> (String, String) {
    let Some(comment) = comment else { return (String::new(), line.to_owned()) };
    let (mut code, mut text, mut is_quoted) = (String::new(), String::new(), false);
    let mut rest = line;
    while let Some(letter) = rest.chars().next() {
        if !is_quoted && rest.starts_with(comment) {
            text.push_str(rest);
            break;
        }
        if letter == '"' {
            is_quoted = !is_quoted;
        }
        if is_quoted {
            text.push(letter)
        } else {
            code.push(letter)
        }
        rest = &rest[letter.len_utf8()..];
    }
    (code, text)
}

fn names(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|name| !name.is_empty())
}

/// All words of a file: distinct names by word, and how often each word stands in text.
fn count(
    file: &str,
    content: &str,
    found: &mut BTreeMap<String, BTreeSet<String>>,
    text: &mut BTreeMap<String, usize>,
) {
    let comment = match file.rsplit_once('.').map(|(_, ending)| ending) {
        Some("rs") => Some("//"),
        Some("sql") => Some("--"),
        _ => None,
    };
    for line in content.lines() {
        let (code, prose) = parts(line, comment);
        for name in names(&code) {
            for word in humps(name) {
                found.entry(word).or_default().insert(name.to_owned());
            }
        }
        // Names and paths in backquotes are counted where they are defined.
        for word in prose.split('`').step_by(2).flat_map(names).flat_map(humps) {
            *text.entry(word).or_default() += 1;
        }
    }
}

#[test]
fn words_are_found_in_names_comments_and_strings() {
    let (mut found, mut text) = (BTreeMap::new(), BTreeMap::new());
    let content = "/// Is told.\nlet told_once = Told::by(\"they were told\"); // Told\nlet told_once = retold;";
    count("a.rs", content, &mut found, &mut text);
    count("a.md", "What is told_once, not `told_twice`", &mut found, &mut text);
    assert_eq!(found["told"], BTreeSet::from(["Told".to_owned(), "told_once".to_owned()]));
    assert_eq!(text["told"], 4);
}

#[test]
fn private_words_only_become_fewer() {
    let mut files = Vec::new();
    for folder in FOLDERS {
        collect(&root().join(folder), &["rs", "sql", "md", "toml", "html", "sh", "py", "txt"], &mut files);
    }
    let named = files.into_iter().map(|file| (file.name(), file.text));
    let alone = FILES.iter().map(|name| ((*name).to_owned(), fs::read_to_string(root().join(name)).unwrap()));
    let (mut found, mut text) = (BTreeMap::new(), BTreeMap::new());
    for (name, content) in named.chain(alone) {
        if !NOT_OURS.iter().any(|folder| name.starts_with(folder)) {
            count(&name, &content, &mut found, &mut text);
        }
    }

    let path = root().join("tests/tidy/words.txt");
    let list = fs::read_to_string(&path).unwrap();
    let (mut wrong, mut lines) = (Vec::new(), Vec::new());
    for line in list.lines() {
        let fields: Vec<&str> = line.split('|').collect();
        let (false, [word, plain, names, texts]) = (line.starts_with('#'), &fields[..]) else {
            lines.push(line.to_owned());
            continue;
        };
        let now = Count {
            names: found.get(*word).map_or(0, BTreeSet::len),
            text: text.get(*word).copied().unwrap_or_default(),
        };
        let mut compare = |what: &str, listed: &str, now: usize, examples: String| {
            if listed == "-" {
                return listed.to_owned();
            }
            let listed: usize = listed.parse().unwrap();
            if now > listed {
                wrong.push(format!("{what} with {word:?}: {now}, at most {listed}. Write {plain:?} instead{examples}"));
            } else if now < listed {
                wrong.push(format!(
                    "{what} with {word:?}: only {now} of {listed} are left. Lower the number in words.txt"
                ));
            }
            now.to_string()
        };
        let examples = found.get(*word).map(|names| format!(" {names:?}")).unwrap_or_default();
        let names = compare("names", names, now.names, examples);
        let texts = compare("text", texts, now.text, String::new());
        lines.push(format!("{word}|{plain}|{names}|{texts}"));
    }
    if std::env::var_os("WALHOOK_WORDS").is_some_and(|value| value == "write") {
        fs::write(path, lines.join("\n") + "\n").unwrap();
        return;
    }
    assert!(
        wrong.is_empty(),
        "WALHOOK_WORDS=write writes today's numbers into tests/tidy/words.txt.\n{}",
        wrong.join("\n")
    );
}
