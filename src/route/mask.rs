//! What leaves the database of a row: columns under another name, and values that are masked.
//!
//! Comes in: a link's `mask`, `mask_columns` and `rename`, its table, and the key for hashes. Goes out: which columns leave at all, and
//! how each of them is written. Always holds: where a mask cannot be applied as it was set (a masked column is not there, the
//! columns are in another order, there is no key), nothing of the rows leaves, and the link has the reason; a column that was not
//! there when the mask was set does not leave. Knows nothing of files: the key is given.

use std::collections::{BTreeMap, HashSet};

use ring::hmac;

use super::{
    digits::push_bytes,
    mask_key::MaskKey,
    tables::LinkRow,
    types::{Class, Scalar},
    value::write_json_str,
};
use crate::wal::{change::Relation, pgoutput::Column};

/// What stands for the hidden part of a value of which the last characters are shown.
const HIDDEN: &[u8] = b"****";
/// So many characters are shown.
const SHOWN: usize = 4;
/// A value has to be so long for that: at least half of it stays hidden.
const SHOWN_FROM: usize = 8;

/// What becomes of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mask {
    /// It leaves as it is.
    Plain,
    /// HMAC-SHA256 of its text, in hexadecimal.
    Hash,
    /// Its last four characters.
    Last4,
    /// NULL.
    Null,
}

/// Whether a link's mask needs the key.
pub fn needs_key(link: &LinkRow) -> bool {
    let mask = link.mask.as_deref().and_then(|mask| serde_json::from_str::<BTreeMap<String, String>>(mask).ok());
    mask.is_some_and(|mask| mask.values().any(|word| word == "hash"))
}

/// The columns of `relation` that the mask of a link to one of its partitions keeps back; all of them, where the mask cannot be read.
pub fn columns_of(link: &LinkRow, relation: &Relation) -> Vec<usize> {
    let Some(mask) = &link.mask else { return Vec::new() };
    let columns = relation.columns.iter().enumerate();
    match serde_json::from_str::<BTreeMap<String, serde_json::Value>>(mask) {
        Ok(mask) => columns.filter(|(_, column)| mask.contains_key(&column.name)).map(|(index, _)| index).collect(),
        Err(_) => columns.map(|(index, _)| index).collect(),
    }
}

/// How the columns of a table leave, where not all of them leave as they are.
#[derive(Debug)]
pub struct Shape {
    columns: Vec<Shown>,
    key: Option<hmac::Key>,
}

#[derive(Debug)]
struct Shown {
    /// `"name":`, where the message has another name than the table.
    key: Option<Vec<u8>>,
    mask: Mask,
}

/// A link's mask and names, fitted to its table.
#[derive(Debug, Default)]
pub struct Fitted {
    /// Which columns leave; all, where there is no list.
    pub selected: Option<Vec<bool>>,
    /// How; as they are, where there is none.
    pub shape: Option<Shape>,
    /// Why events of the link cannot be published.
    pub problems: Vec<String>,
    /// Nothing of a row may leave, for the mask cannot be applied.
    pub is_withheld: bool,
    /// Of each column, whether its value may stand nowhere but in the payload, as the mask has it.
    hidden: Vec<bool>,
}

impl Fitted {
    /// Fits `link` to its table. `selected` is what its list of columns says. What is nobody's failure goes to `warnings`.
    pub fn new(
        (id, link): (i32, &LinkRow),
        relation: &Relation,
        key: &MaskKey,
        selected: Option<Vec<bool>>,
        warnings: &mut Vec<String>,
    ) -> Fitted {
        let mut fitted = Fitted { selected, ..Fitted::default() };
        if link.mask.is_none() && link.rename.is_none() {
            return fitted;
        }
        let table = format!("{}.{}", relation.schema, relation.name);
        let mut shown: Vec<_> = relation.columns.iter().map(|_| Shown { key: None, mask: Mask::Plain }).collect();
        let mut hash = None;
        if link.mask.is_some() && link.payload_column.is_some() {
            fitted.withhold(relation, "its message is a column, to which no mask applies".to_owned());
        } else if let Some(mask) = &link.mask {
            match fitted.mask(id, mask, link, relation, &mut shown, warnings) {
                Ok(()) if shown.iter().any(|shown| shown.mask == Mask::Hash) => match key.get() {
                    Ok(key) => hash = Some(key.clone()),
                    Err(why) => fitted.withhold(relation, format!("its mask has hash, which needs a key: {why}")),
                },
                Ok(()) => {}
                Err(why) => fitted.withhold(relation, why),
            }
        }
        if let Some(rename) = &link.rename {
            fitted.rename(rename, &table, relation, &mut shown, warnings);
        }
        fitted.shape = Some(Shape { columns: shown, key: hash });
        fitted
    }

    /// Whether the value of a column may stand nowhere but in the payload.
    pub fn hides(&self, index: usize) -> bool {
        self.hidden.get(index).copied().unwrap_or(false)
    }

    /// Leaves out the columns that the mask of a partition's link keeps back, where this link does not mask them itself: nothing in
    /// a row says whether it is the partition's.
    pub fn keep_back(
        &mut self,
        (id, has_own_message): (i32, bool),
        masked_below: &BTreeMap<usize, String>,
        relation: &Relation,
        warnings: &mut Vec<String>,
    ) {
        for (&index, partition) in masked_below {
            if self.hides(index) {
                continue;
            }
            if has_own_message {
                let column = &relation.columns[index].name;
                let why =
                    format!("its message is a column, and the mask of the partition {partition} keeps back {column:?}");
                return self.withhold(relation, why);
            }
            self.hidden.resize(relation.columns.len(), false);
            self.leave_out(index);
            self.hidden[index] = true;
            warnings.push(format!(
                "link {id}: column {:?} of {}.{} is left out, for the mask of its partition {partition} keeps it back",
                relation.columns[index].name, relation.schema, relation.name
            ));
        }
    }

    fn withhold(&mut self, relation: &Relation, why: String) {
        self.problems.push(format!("{why}; nothing of the row is sent or kept"));
        self.is_withheld = true;
        self.selected = Some(vec![false; relation.columns.len()]);
        self.hidden = vec![true; relation.columns.len()];
    }

    fn leave_out(&mut self, index: usize) {
        let count = self.hidden.len();
        self.selected.get_or_insert_with(|| vec![true; count])[index] = false;
    }

    /// Applies the mask.
    ///
    /// # Errors
    /// Why nothing may leave.
    fn mask(
        &mut self,
        id: i32,
        mask: &str,
        link: &LinkRow,
        relation: &Relation,
        shown: &mut [Shown],
        warnings: &mut Vec<String>,
    ) -> Result<(), String> {
        let table = format!("{}.{}", relation.schema, relation.name);
        let mask: BTreeMap<String, String> =
            serde_json::from_str(mask).map_err(|_| "its mask is not a JSON object of columns and words".to_owned())?;
        // A renamed column has its old place, and a new one comes last: so what was masked is either found under its name and
        // in its order, or it is missed.
        let known = link.mask_columns.as_deref().unwrap_or_default();
        let places: Vec<_> =
            relation.columns.iter().map(|column| known.iter().position(|name| *name == column.name)).collect();
        let found: Vec<usize> = places.iter().copied().flatten().collect();
        if let Some(gone) = mask
            .keys()
            .find(|name| known.contains(name) && !relation.columns.iter().any(|column| column.name == **name))
        {
            return Err(format!("its mask names {gone:?}, which is not a column of {table} any more"));
        }
        if known.is_empty() || !found.is_sorted() {
            return Err(format!("the columns of {table} are not those, in their order, for which its mask was set"));
        }
        self.hidden = vec![false; relation.columns.len()];
        for (index, column) in relation.columns.iter().enumerate() {
            match mask.get(&column.name).map(String::as_str) {
                Some("drop") => self.leave_out(index),
                Some("hash") => shown[index].mask = Mask::Hash,
                Some("last4") => shown[index].mask = Mask::Last4,
                Some("null") => shown[index].mask = Mask::Null,
                Some(other) => return Err(format!("its mask has {other:?}, which is none of hash, drop, last4, null")),
                None if places[index].is_some() => continue,
                None => {
                    self.leave_out(index);
                    warnings.push(format!(
                        "link {id}: column {:?} of {table} was added, renamed or published after the mask was set: it is left \
                         out. UPDATE public.rule_webhook_links SET mask = mask WHERE link_id = {id}; lets it leave from then on",
                        column.name
                    ));
                }
            }
            self.hidden[index] = true;
        }
        Ok(())
    }

    /// Applies the names.
    fn rename(
        &mut self,
        rename: &str,
        table: &str,
        relation: &Relation,
        shown: &mut [Shown],
        warnings: &mut Vec<String>,
    ) {
        let Ok(rename) = serde_json::from_str::<BTreeMap<String, String>>(rename) else {
            self.problems.push("its rename is not a JSON object of columns and names".to_owned());
            return;
        };
        for name in rename.keys().filter(|name| !relation.columns.iter().any(|column| column.name == **name)) {
            warnings.push(format!("rename: column {name:?} is not in {table}; its events go on without it"));
        }
        let is_sent = |index: usize| self.selected.as_ref().is_none_or(|selected| selected[index]);
        let mut names = HashSet::new();
        for (index, column) in relation.columns.iter().enumerate().filter(|(index, _)| is_sent(*index)) {
            let name = rename.get(&column.name).unwrap_or(&column.name);
            if !names.insert(name) {
                self.problems.push(format!("rename: two columns of {table} would be {name:?} in the message"));
            }
            if *name != column.name {
                let mut key = Vec::new();
                write_json_str(name, &mut key);
                key.push(b':');
                shown[index].key = Some(key);
            }
        }
    }
}

impl Shape {
    /// `"name":` as the message has it, where that is not the column's name.
    pub fn key(&self, index: usize) -> Option<&[u8]> {
        self.columns[index].key.as_deref()
    }

    /// What becomes of its values.
    pub fn mask(&self, index: usize) -> Mask {
        self.columns[index].mask
    }

    /// Appends the value of a column that is in the WAL, where it may not leave as it is. Returns whether it did.
    pub fn write_masked(&self, index: usize, class: Class, value: Column<'_>, out: &mut Vec<u8>) -> bool {
        let mask = self.columns[index].mask;
        let text = match (mask, value) {
            (Mask::Plain, _) => return false,
            (Mask::Null, _) | (_, Column::Null | Column::Unchanged) => {
                out.extend_from_slice(b"null");
                return true;
            }
            (Mask::Hash | Mask::Last4, Column::Text(text) | Column::Binary(text)) => text,
        };
        out.push(b'"');
        match &self.key {
            Some(key) if mask == Mask::Hash => push_bytes(hmac::sign(key, text).as_ref(), out),
            // Without the key the link is set aside, and its rows are not written.
            _ if mask == Mask::Hash => out.extend_from_slice(HIDDEN),
            _ => {
                out.extend_from_slice(HIDDEN);
                out.extend_from_slice(last(class, text));
            }
        }
        out.push(b'"');
        true
    }
}

/// The last characters of a value, where they may be shown: of a text or a number that is long enough, and that needs no escape.
fn last(class: Class, text: &[u8]) -> &[u8] {
    let is_fit = matches!(class, Class::Scalar(Scalar::Text | Scalar::Integer | Scalar::Number));
    let Some(text) = std::str::from_utf8(text).ok().filter(|_| is_fit) else { return b"" };
    if text.chars().nth(SHOWN_FROM - 1).is_none() {
        return b"";
    }
    let tail = text.char_indices().rev().nth(SHOWN - 1).map_or("", |(at, _)| &text[at..]);
    if tail.chars().any(|c| c.is_control() || matches!(c, '"' | '\\')) { b"" } else { tail.as_bytes() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{
        route::types::TypeCatalog,
        wal::{change::RelationColumn, pgoutput::ReplicaIdentity},
    };

    fn relation(names: &[&str]) -> Relation {
        let column = |name: &&str| RelationColumn { name: (*name).to_owned(), type_oid: 25, is_key: false };
        Relation {
            id: 1,
            schema: "public".to_owned(),
            name: "t".to_owned(),
            identity: ReplicaIdentity::Default,
            columns: names.iter().map(column).collect(),
        }
    }

    fn link(mask: &str, known: &[&str], rename: Option<&str>) -> LinkRow {
        LinkRow {
            mask: Some(mask.to_owned()).filter(|mask| !mask.is_empty()),
            mask_columns: Some(known.iter().map(|name| (*name).to_owned()).collect()),
            rename: rename.map(str::to_owned),
            ..LinkRow::default()
        }
    }

    fn fit(link: &LinkRow, names: &[&str], key: &MaskKey) -> (Fitted, Vec<String>) {
        let mut warnings = Vec::new();
        let fitted = Fitted::new((7, link), &relation(names), key, None, &mut warnings);
        (fitted, warnings)
    }

    fn key() -> MaskKey {
        MaskKey::of(b"0123456789abcdef\n")
    }

    /// What leaves: `name=value` of each column, the value that its own name is.
    fn leaves(fitted: &Fitted, names: &[&str]) -> String {
        let class = TypeCatalog::default().class(25).unwrap();
        let mut out = Vec::new();
        for (index, name) in names.iter().enumerate() {
            if fitted.selected.as_ref().is_some_and(|selected| !selected[index]) {
                continue;
            }
            let shape = fitted.shape.as_ref().unwrap();
            let own = format!("{name:?}:").into_bytes();
            out.extend_from_slice(shape.key(index).unwrap_or(&own));
            if !shape.write_masked(index, class, Column::Text(name.as_bytes()), &mut out) {
                out.extend_from_slice(name.as_bytes());
            }
            out.push(b' ');
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn each_word_does_to_a_value_what_it_says() {
        let names = ["id", "mail", "gone", "a card 1234", "nothing"];
        let mask = r#"{"mail": "hash", "gone": "drop", "a card 1234": "last4", "nothing": "null"}"#;
        let (fitted, warnings) = fit(&link(mask, &names, Some(r#"{"mail": "m"}"#)), &names, &key());
        // printf mail | openssl dgst -sha256 -hmac 0123456789abcdef
        let hash = "6e5e3270cb686026bf26e44e7ab82e92c21a4f5942198d868d46767e721e419c";
        let left = leaves(&fitted, &names);
        let expected = format!("\"id\":id \"m\":\"{hash}\" \"a card 1234\":\"****1234\" \"nothing\":null ");
        assert_eq!(left, expected);
        assert_eq!((fitted.problems.len(), warnings.len(), fitted.is_withheld), (0, 0, false));
        assert_eq!([0, 1, 2, 3, 4].map(|index| fitted.hides(index)), [false, true, true, true, true]);
    }

    #[test]
    fn the_last_characters_are_shown_of_long_texts_and_numbers_only() {
        let text = Class::TEXT;
        for (value, shown) in [
            ("4111 1111 1111 1234", "1234"),
            ("12345678", "5678"),
            ("1234567", ""),
            ("ääääöüßé", "öüßé"),
            ("1234567\"", ""),
            ("", ""),
        ] {
            assert_eq!(last(text, value.as_bytes()), shown.as_bytes(), "{value}");
        }
        assert_eq!(last(Class::JSON, b"{\"a\": \"b\"}"), b"");
        assert_eq!(last(text, b"1234567\xff"), b"");
    }

    #[test]
    fn no_change_of_columns_lets_leave_what_was_masked() {
        let known = ["id", "email", "note"];
        let mask = r#"{"email": "null"}"#;
        let check = |now: &[&str], expected: Option<&str>| {
            let (fitted, _) = fit(&link(mask, &known, None), now, &key());
            match expected {
                Some(left) => assert_eq!(leaves(&fitted, now), left, "{now:?}"),
                None => {
                    assert!(fitted.is_withheld && !fitted.problems.is_empty(), "{now:?}");
                    assert_eq!(leaves(&fitted, now), "", "{now:?}");
                    assert!((0..now.len()).all(|index| fitted.hides(index)));
                }
            }
        };
        check(&known, Some("\"id\":id \"email\":null \"note\":note "));
        // Dropped, added, renamed columns that are not masked.
        check(&["id", "email"], Some("\"id\":id \"email\":null "));
        check(&["id", "email", "note", "new"], Some("\"id\":id \"email\":null \"note\":note "));
        check(&["id", "email", "remark"], Some("\"id\":id \"email\":null "));
        // The masked one renamed, and another one in its place; two that have changed their names; dropped.
        check(&["id", "mail", "note"], None);
        check(&["id", "mail", "note", "email"], None);
        check(&["id", "note", "email"], None);
        check(&["id", "note"], None);
        check(&["id"], None);
        // A name that was free is taken by a new column behind a renamed one.
        let (fitted, _) = fit(&link(r#"{"email": "null"}"#, &["id", "email"], None), &["id", "mail", "email"], &key());
        assert_eq!(leaves(&fitted, &["id", "mail", "email"]), "\"id\":id \"email\":null ");
    }

    #[test]
    fn a_mask_that_cannot_be_applied_lets_nothing_leave() {
        let names = ["id", "email"];
        let check = |link: &LinkRow, key: &MaskKey, reason: &str| {
            let (fitted, _) = fit(link, &names, key);
            assert!(fitted.is_withheld && fitted.problems[0].contains(reason), "{:?}", fitted.problems);
            assert_eq!(leaves(&fitted, &names), "");
        };
        let hash = r#"{"email": "hash"}"#;
        check(&link(hash, &names, None), &MaskKey::default(), "mask_key_file");
        check(&link(hash, &names, None), &MaskKey::of(b"short\n"), "5 bytes");
        check(&link(hash, &[], None), &key(), "in their order");
        check(&link(r#"{"email": "blur"}"#, &names, None), &key(), "none of hash");
        check(&link(r#"["email"]"#, &names, None), &key(), "not a JSON object");
        check(&LinkRow { mask_columns: None, ..link(hash, &names, None) }, &key(), "in their order");
        // Without hash no key is needed.
        assert!(!fit(&link(r#"{"email": "drop"}"#, &names, None), &names, &MaskKey::default()).0.is_withheld);
        assert!(needs_key(&link(hash, &names, None)) && !needs_key(&link(r#"{"email": "drop"}"#, &names, None)));
    }

    #[test]
    fn two_columns_never_have_one_name_in_a_message() {
        let names = ["id", "a", "b"];
        let (fitted, warnings) = fit(&link("", &[], Some(r#"{"a": "b", "c": "d"}"#)), &names, &key());
        assert!(fitted.problems[0].contains("\"b\"") && !fitted.is_withheld, "{:?}", fitted.problems);
        assert!(warnings[0].contains("\"c\""), "{warnings:?}");
        let (fitted, _) = fit(&link("", &[], Some(r#"{"a": "b", "b": "a"}"#)), &names, &key());
        assert_eq!((leaves(&fitted, &names).as_str(), fitted.problems.len()), ("\"id\":id \"b\":a \"a\":b ", 0));
    }
}
