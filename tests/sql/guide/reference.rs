//! The reference, made of code and database.
//!
//! In: a database after `walhook setup`, the binary, the sources. Out: the text of each page of docs/reference. What code does
//! not say (what a header is for) stands here, and a name that has no words here, or words without a name, is a failure.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    fs,
};

use walhook::{
    error::{Error, Kind},
    nats::codes::{self, Publish},
    postgres::sqlstate::{self, Class},
};

use crate::{
    guide::page::root,
    support::{Postgres, Walhook},
};

/// Every page: its file and its text.
pub fn pages(pg: &Postgres) -> Vec<(&'static str, String)> {
    vec![
        ("sql-functions.md", functions(pg)),
        ("sql-tables.md", tables(pg)),
        ("sql-views.md", views(pg)),
        ("cli.md", command_line()),
        ("settings.md", settings()),
        ("headers.md", headers()),
        ("exit-codes.md", exit_codes()),
        ("sqlstates.md", sqlstates()),
        ("jetstream-codes.md", jetstream_codes()),
    ]
}

/// The beginning of a page.
fn page(title: &str, words: &str) -> String {
    format!(
        "# {title}\n\n<!-- Made by `make reference` (tests/sql/guide/reference.rs): do not edit. -->\n\n{}",
        wrapped(words)
    )
}

/// Paragraphs with lines of at most 100 columns.
fn wrapped(text: &str) -> String {
    let mut out = String::new();
    for paragraph in text.split("\n\n") {
        let mut column = 0;
        for word in paragraph.split_whitespace() {
            let width = word.chars().count();
            if column > 0 && column + 1 + width > 100 {
                out.push('\n');
                column = 0;
            } else if column > 0 {
                out.push(' ');
                column += 1;
            }
            out.push_str(word);
            column += width;
        }
        out.push_str("\n\n");
    }
    out.trim_end().to_owned() + "\n"
}

/// Plain text as Markdown: nothing in it is a tag or emphasis.
fn plain(text: &str) -> String {
    let parts = text.split('`').enumerate().map(|(at, part)| match at % 2 {
        0 => part.replace('<', "\\<").replace('*', "\\*"),
        _ => part.to_owned(),
    });
    parts.collect::<Vec<_>>().join("`")
}

/// Plain text that stands in a cell of a table.
fn cell(text: &str) -> String {
    plain(text).replace('|', "\\|").replace('\n', " ")
}

/// Rows of JSON that a query makes.
fn rows(pg: &Postgres, query: &str) -> Vec<serde_json::Value> {
    let answer = pg.psql(&format!("SELECT row_to_json(q)::text FROM ({query}) q"));
    answer.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn text(row: &serde_json::Value, name: &str) -> String {
    row[name].as_str().unwrap_or_default().to_owned()
}

fn functions(pg: &Postgres) -> String {
    let query = "SELECT n.nspname AS schema, p.proname AS name, pg_get_function_arguments(p.oid) AS arguments,
            coalesce(pg_get_function_result(p.oid), '') AS result, p.prokind::text AS kind, p.prosecdef AS definer,
            substr(obj_description(p.oid, 'pg_proc'), length('walhook: ') + 1) AS comment,
            coalesce((SELECT string_agg(r.rolname, ', ' ORDER BY r.rolname) FROM pg_roles r
             WHERE r.rolname LIKE 'walhook\\_%' AND has_function_privilege(r.oid, p.oid, 'EXECUTE')), '') AS roles
        FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
        WHERE obj_description(p.oid, 'pg_proc') LIKE 'walhook:%' ORDER BY p.proname, p.oid::regprocedure::text";
    let mut out = page(
        "Functions",
        "Every function of walhook, with its comment in the database. *Called by* names walhook's roles that may call it; the owner \
         and superusers may call all. A function that runs with its owner's rights says so. Those that only the owner may call are \
         parts of others, and may change. [SQL by task](../sql.md) explains how to use them.",
    );
    for row in rows(pg, query) {
        let name = text(&row, "name");
        let schema = text(&row, "schema");
        let shown = if schema == "public" { name.clone() } else { format!("{schema}.{name}") };
        write!(out, "\n## {shown}\n\n").unwrap();
        let arguments: Vec<_> = arguments(&text(&row, "arguments"));
        let (call, result) = match text(&row, "kind").as_str() {
            "p" => ("CALL ", String::new()),
            _ => ("", format!(" → {}", text(&row, "result"))),
        };
        let signature = match arguments.iter().map(String::len).sum::<usize>() {
            0..=70 => format!("{call}{shown}({}){result}", arguments.join(", ")),
            _ => format!("{call}{shown}(\n    {}\n){result}", arguments.join(",\n    ")),
        };
        write!(out, "```text\n{signature}\n```\n\n").unwrap();
        let mut comment = text(&row, "comment");
        comment = format!("{}{}", comment[..1].to_uppercase(), &comment[1..]);
        if !comment.ends_with('.') {
            comment.push('.');
        }
        let roles = text(&row, "roles");
        let roles =
            if roles.is_empty() { "the owner".to_owned() } else { format!("`{}`", roles.replace(", ", "`, `")) };
        let rights = if row["definer"] == true { ", with the rights of its owner" } else { "" };
        out.push_str(&wrapped(&format!("{}\n\nCalled by: {roles}{rights}.", plain(&comment))));
    }
    out
}

/// The parameters of a function, apart; a comma within brackets or quotes parts none.
fn arguments(all: &str) -> Vec<String> {
    let (mut depth, mut is_quoted, mut found) = (0, false, vec![String::new()]);
    for letter in all.chars() {
        match letter {
            '\'' => is_quoted = !is_quoted,
            '(' | '[' if !is_quoted => depth += 1,
            ')' | ']' if !is_quoted => depth -= 1,
            ',' if depth == 0 && !is_quoted => {
                found.push(String::new());
                continue;
            }
            _ => {}
        }
        found.last_mut().unwrap().push(letter);
    }
    found.iter().map(|argument| argument.trim().to_owned()).filter(|argument| !argument.is_empty()).collect()
}

/// Tables or views, with their columns.
fn relations(pg: &Postgres, kinds: &str) -> Vec<serde_json::Value> {
    let query = format!(
        "SELECT c.relname AS name, n.nspname AS schema, coalesce(obj_description(c.oid, 'pg_class'), '') AS comment,
            (SELECT json_agg(json_build_object('name', a.attname, 'type', format_type(a.atttypid, a.atttypmod),
                'required', a.attnotnull, 'default', pg_get_expr(d.adbin, d.adrelid), 'comment', col_description(c.oid, a.attnum))
                ORDER BY a.attnum)
             FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) AS columns,
            (SELECT json_agg(pg_get_constraintdef(o.oid) ORDER BY o.contype DESC, o.conname) FROM pg_constraint o
             WHERE o.conrelid = c.oid AND o.contype IN ('p', 'u', 'f', 'c')) AS constraints,
            EXISTS (SELECT FROM pg_publication_tables t WHERE t.schemaname = n.nspname AND t.tablename = c.relname) AS published
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind IN ({kinds}) AND c.relpersistence = 'p' AND n.nspname NOT IN ('pg_catalog', 'information_schema')
        ORDER BY c.relname"
    );
    rows(pg, &query)
}

fn columns(out: &mut String, relation: &serde_json::Value, has_defaults: bool) {
    let head = if has_defaults {
        "| column | type | default | |\n|---|---|---|---|"
    } else {
        "| column | type | |\n|---|---|---|"
    };
    writeln!(out, "{head}").unwrap();
    for column in relation["columns"].as_array().unwrap() {
        let mut kind = text(column, "type");
        if has_defaults && column["required"] == true {
            kind.push_str(" NOT NULL");
        }
        let default = match text(column, "default") {
            default if default.starts_with("nextval(") => "the next number".to_owned(),
            default if default.is_empty() => String::new(),
            default => format!("`{}`", default.replace('|', "\\|")),
        };
        let comment = cell(&text(column, "comment"));
        match has_defaults {
            true => writeln!(out, "| `{}` | {kind} | {default} | {comment} |", text(column, "name")).unwrap(),
            false => writeln!(out, "| `{}` | {kind} | {comment} |", text(column, "name")).unwrap(),
        }
    }
}

fn title(out: &mut String, relation: &serde_json::Value) {
    let (name, schema) = (text(relation, "name"), text(relation, "schema"));
    let shown = if schema == "public" { name } else { format!("{schema}.{name}") };
    let comment = text(relation, "comment");
    let comment = if comment.is_empty() || comment.ends_with('.') { comment } else { format!("{comment}.") };
    write!(out, "\n## {shown}\n\n{}\n", wrapped(&plain(&comment))).unwrap();
}

fn tables(pg: &Postgres) -> String {
    let mut out = page(
        "Tables",
        "Every table of walhook and of the RFCs, as `walhook setup` makes it in an empty database, with the comments in the \
         database. *Published* tables are in walhook's publications: changes of them take effect at their own commit.",
    );
    for table in relations(pg, "'r', 'p'") {
        title(&mut out, &table);
        if table["published"] == true {
            out.push_str("Published.\n\n");
        }
        columns(&mut out, &table, true);
        let constraints: Vec<_> = table["constraints"].as_array().into_iter().flatten().collect();
        if !constraints.is_empty() {
            out.push_str("\n```text\n");
            for constraint in constraints {
                writeln!(out, "{}", constraint.as_str().unwrap()).unwrap();
            }
            out.push_str("```\n");
        }
    }
    out
}

fn views(pg: &Postgres) -> String {
    let mut out = page("Views", "Every view of walhook and of the RFCs, with the comments in the database.");
    for view in relations(pg, "'v'") {
        title(&mut out, &view);
        columns(&mut out, &view, false);
    }
    out
}

/// The help of a command, and of the commands below it.
fn help(out: &mut String, path: &[&str], global: &str) {
    let mut arguments: Vec<_> = path.to_vec();
    arguments.push("--help");
    let done = Walhook::command(arguments[0]).args(&arguments[1..]).finish();
    assert_eq!(done.code, Some(0), "{path:?}: {}", done.stderr);
    let title = [&["walhook"], path].concat().join(" ");
    let shown = if path.is_empty() { done.stdout.clone() } else { own_flags(&done.stdout, global) };
    let shown: Vec<_> = shown.trim_end().lines().map(str::trim_end).collect();
    write!(out, "\n## {title}\n\n```text\n{}\n```\n", shown.join("\n")).unwrap();
    let global = if path.is_empty() { &done.stdout } else { global };
    for below in commands(&done.stdout).filter(|name| *name != "help") {
        help(out, &[path, &[below]].concat(), global);
    }
}

/// A command's help without the flags that all commands have.
fn own_flags(help: &str, global: &str) -> String {
    let is_flag = |line: &str| line.trim_start().starts_with('-') && line.len() - line.trim_start().len() <= 6;
    let name = |line: &str| line.split_whitespace().find(|word| word.starts_with("--")).map(str::to_owned);
    let known: BTreeSet<_> = global.lines().filter(|line| is_flag(line)).filter_map(name).collect();
    let mut is_kept = true;
    let mut kept = Vec::new();
    for line in help.lines() {
        if is_flag(line) {
            is_kept = !name(line).is_some_and(|name| known.contains(&name));
        } else if !line.starts_with(' ') && !line.is_empty() {
            is_kept = true;
        }
        if is_kept {
            kept.push(line);
        }
    }
    let text = kept.join("\n");
    text.trim_end().trim_end_matches("Options:").trim_end().to_owned()
}

/// The names that a help lists as commands.
fn commands(help: &str) -> impl Iterator<Item = &str> {
    let listed = help.split("Commands:\n").nth(1).unwrap_or_default();
    let listed = listed.lines().take_while(|line| !line.is_empty());
    listed
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
}

fn command_line() -> String {
    let mut out = page(
        "Command line",
        "What `walhook help` says, and `walhook COMMAND --help`. The flags of the first section can be used with every command and are shown only there. \
         [Exit codes](exit-codes.md) and [Settings](settings.md) have pages of their own.",
    );
    help(&mut out, &[], "");
    out
}

/// What the binary takes in a section of its file: it names all in the error about one that it does not know.
fn known_settings(section: &str) -> BTreeSet<String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    let head = if section.is_empty() { String::new() } else { format!("[{section}]\n") };
    fs::write(file.path(), format!("{head}no_such_setting = 1\n")).unwrap();
    let done = Walhook::command("status").arg("--config").arg(file.path()).finish();
    let list = done.stderr.split("expected").nth(1).unwrap_or_else(|| panic!("{}", done.stderr));
    let list = list.split(". Hint").next().unwrap();
    list.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The sections of a settings file.
fn named_sections(file: &str) -> BTreeSet<String> {
    file.lines().filter_map(|line| line.strip_prefix('[')?.strip_suffix(']')).map(str::to_owned).collect()
}

/// Variables of the environment, and what they are for.
const VARIABLES: &[(&str, &str)] = &[
    ("WALHOOK_CONFIG", "the settings file, as `--config`"),
    ("WALHOOK_DATABASE_URL", "PostgreSQL: a URL or a libpq connection string; wins over `DATABASE_URL`"),
    ("DATABASE_URL", "the same"),
    ("WALHOOK_SOURCE", "`source`"),
    ("WALHOOK_SLOT", "`slot`"),
    ("WALHOOK_PUBLICATION", "`publication`"),
    ("WALHOOK_SHARD", "`shard`"),
    ("WALHOOK_CONFIRM_DELAY_SECONDS", "`confirm_delay_seconds`"),
    ("WALHOOK_MASK_KEY_FILE", "`mask_key_file`"),
    ("WALHOOK_SEAL_KEYS_DIR", "`seal_keys_dir`"),
    ("WALHOOK_NATS_URL", "NATS servers in place of those in `rule_nats_config`; wins over `NATS_URL`"),
    ("NATS_URL", "the same"),
    ("WALHOOK_LOG", "`log.level`"),
    ("WALHOOK_LOG_FORMAT", "`log.format`"),
    ("WALHOOK_DELIVER_GROUP", "`deliver.group`"),
    ("WALHOOK_ALLOW_NETWORK", "`deliver.allowed_networks`, separated by commas"),
    ("WALHOOK_DATABASE_ID", "`--database-id` of a worker without a database"),
    ("PGPASSWORD", "PostgreSQL's password"),
    ("NATS_USER", "`nats.user`"),
    ("NATS_PASSWORD", "`nats.password`"),
    ("NATS_TOKEN", "`nats.token`"),
    ("NATS_CREDS", "`nats.creds`"),
    ("NATS_NKEY", "`nats.nkey`"),
    ("NATS_CA", "`nats.ca`"),
    ("NATS_CERT", "`nats.cert`"),
    ("NATS_KEY", "`nats.key`"),
    ("NATS_JETSTREAM_DOMAIN", "`nats.jetstream_domain`"),
    ("NATS_API_PREFIX", "`nats.api_prefix`"),
    ("WALHOOK_HTTP", "`http.listen`"),
    ("WALHOOK_LOG_SUMMARY", "`log.summary_seconds`"),
    ("SSL_CERT_FILE", "the file of certificate authorities in place of the system's"),
    ("NO_COLOR", "no colours in the log"),
];

/// The names of variables in a source file.
fn variables_of(file: &str) -> BTreeSet<String> {
    let source = fs::read_to_string(root().join(file)).unwrap();
    let code = source.split("#[cfg(test)]").next().unwrap();
    let words = code.split('"').skip(1).step_by(2);
    let is_variable = |word: &&str| {
        ["WALHOOK_", "NATS_", "PG", "DATABASE_"].iter().any(|start| word.starts_with(start))
            && word.len() > 3
            && word.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')
    };
    words.filter(is_variable).map(str::to_owned).collect()
}

fn settings() -> String {
    let mut out = page(
        "Settings",
        "walhook's own settings: flags win over environment variables, those over the file (`--config FILE`), the file over the \
         defaults. What is published where is not here but in the database. The text is that of `config/walhook.toml`, which shows \
         every setting and can be used as it is.",
    );
    let file = fs::read_to_string(root().join("config/walhook.toml")).unwrap();
    let mut section = String::new();
    let mut named: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut words: Vec<&str> = Vec::new();
    out.push_str("\n## The process\n");
    for line in file.lines() {
        let setting = line.strip_prefix('#').filter(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase()));
        if let Some(rest) = line.strip_prefix('[') {
            section = rest.trim_end_matches(']').to_owned();
            write!(out, "\n## The section {section}\n\n{}", wrapped(&plain(&words.join(" ")))).unwrap();
            words.clear();
        } else if let Some((name, default)) = setting.and_then(|setting| setting.split_once(" = ")) {
            named.entry(section.clone()).or_default().insert(name.to_owned());
            let full = if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") };
            write!(out, "\n### {full}\n\n{}\n```toml\n{name} = {default}\n```\n", wrapped(&plain(&words.join(" "))))
                .unwrap();
            words.clear();
        } else if line.is_empty() {
            words.clear();
        } else {
            words.push(line.trim_start_matches('#').trim());
        }
    }
    for (section, named) in &named {
        let sections: BTreeSet<String> = named_sections(&file);
        let known: BTreeSet<_> = known_settings(section).difference(&sections).cloned().collect();
        assert_eq!(*named, known, "config/walhook.toml and what the binary takes in [{section}]");
    }
    let used: BTreeSet<_> =
        ["src/config.rs", "src/commands/deliver/settings.rs"].iter().flat_map(|file| variables_of(file)).collect();
    let described: BTreeSet<_> = VARIABLES.iter().map(|(name, _)| (*name).to_owned()).collect();
    let missing: Vec<_> = used.difference(&described).filter(|name| *name != "PGUSER").collect();
    assert!(missing.is_empty(), "environment variables without words in tests/sql/guide/reference.rs: {missing:?}");
    out.push_str("\n## Environment variables\n\n");
    out.push_str(&wrapped(
        "`PGPASSWORD`, `DATABASE_URL`, `WALHOOK_DATABASE_URL`, `NATS_PASSWORD`, `NATS_TOKEN` and `NATS_NKEY` can come from a file: \
         set the variable with `_FILE` behind its name to the file's path. An empty variable counts as unset.",
    ));
    out.push_str("\n| variable | sets |\n|---|---|\n");
    for (name, words) in VARIABLES {
        writeln!(out, "| `{name}` | {words} |").unwrap();
    }
    let libpq = variables_of("src/postgres/settings/conninfo.rs");
    let libpq: Vec<_> = libpq.iter().filter(|name| name.starts_with("PG")).map(|name| format!("`{name}`")).collect();
    write!(out, "\n{}", wrapped(&format!("Of libpq's variables walhook reads {}.", libpq.join(", ")))).unwrap();
    out
}

/// Headers of messages, and what they say.
const HEADERS: &[(&str, &str)] = &[
    (
        "Nats-Msg-Id",
        "the event's id; for a call with a `message_id` `<source>:<webhook id>:<message_id>`; `replay.<number>:<id>` in a replay",
    ),
    ("Walhook-Id", "the event's id, where `Nats-Msg-Id` is another"),
    ("Walhook-Message-Id", "the `message_id` of a call, or the [message id of a row](../outbox.md), unchanged"),
    (
        "Walhook-Headers",
        "names of the headers that come from [columns of the row](../outbox.md), with spaces between them",
    ),
    (
        "Walhook-Type",
        "`public.orders.delete`, in the formats `data` and `debezium`, whose payloads do not say it in one place",
    ),
    (
        "Walhook-Op",
        "`insert`, `update`, `delete`, `truncate`, `snapshot`, [`columns`](../json-schemas.md#an-event-when-columns-change); `insert` for a call",
    ),
    ("Walhook-Epoch", "the number of the run that published the message"),
    (
        "Walhook-Sealed",
        "the body, or the object of a claim check, is [sealed](../sealed-payloads.md): `v1`, the key's `<name>.<id>`, and the event's id",
    ),
    ("Walhook-Sealed-Old-Key", "in place of `Walhook-Old-Key` in a sealed message: the same, sealed, in base64"),
    ("Walhook-Old-Key", "for an update that changed the key: the key before, as JSON; at most 4 KiB"),
    (
        "Walhook-Withheld",
        "`row`, only in dead letters: [its link's mask](../masks.md) could not be applied, so nothing of the row was kept",
    ),
    ("Walhook-Schema", "the [JSON Schema](../json-schemas.md) of the row: its key in the bucket `schemas_<source>`"),
    ("Walhook-Retry-Of", "in a retried dead letter: the id of the first event"),
    ("Walhook-Transaction", "`begin` and `end` of a transaction that does not fit into one atomic batch"),
    ("Walhook-Object", "`<bucket>/<name>` of the payload of a [claim check](../large-events.md)"),
    ("Walhook-Object-SHA256", "the SHA-256 of that payload, in hexadecimal"),
    ("Walhook-Replay", "in a replay: its number"),
    ("Walhook-Replay-Of", "in a replay: the event's id"),
    ("Walhook-Reason", "on `dlq.<subject>`: why the calls failed"),
    ("Nats-Expected-Stream", "the stream that has to store the message"),
    ("Nats-Expected-Last-Sequence", "in strict ordering: the sequence before it"),
    (
        "Nats-Expected-Last-Subject-Sequence",
        "for entries of the object store and of schemas: the entry that is replaced",
    ),
    ("Nats-Rollup", "for entries of the object store and of the bucket"),
    ("Nats-Batch-Id", "in an atomic batch: the same in all its messages"),
    ("Nats-Batch-Sequence", "in an atomic batch: the number of the message"),
    ("Nats-Batch-Commit", "in an atomic batch: the last message"),
    ("Content-Type", "in CloudEvents formats, and where the body is [a column](../outbox.md)"),
    ("ce-…", "in the format `cloudevents_binary`: the attributes of the event"),
];

fn headers() -> String {
    let mut out = page(
        "Headers",
        "Headers of the messages that walhook publishes. `nats_headers` of the webhook and the `headers` of a call add others; names \
         that begin with `Nats-` and `Walhook-` are reserved. Those of the HTTP requests are in \
         [Delivery](../deliver.md#what-is-sent).",
    );
    out.push_str("\n| header | |\n|---|---|\n");
    for (name, words) in HEADERS {
        writeln!(out, "| `{name}` | {words} |").unwrap();
    }
    let mut used = BTreeSet::new();
    collect_headers(&root().join("src"), &mut used);
    let described: BTreeSet<_> = HEADERS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let missing: Vec<_> = used.difference(&described).collect();
    assert!(missing.is_empty(), "headers in src/ without words in tests/sql/guide/reference.rs: {missing:?}");
    out
}

/// The names of headers in the code of all files below a folder.
fn collect_headers(folder: &std::path::Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect_headers(&path, found);
            continue;
        }
        if path.file_name().is_some_and(|name| name == "tests.rs")
            || path.components().any(|part| part.as_os_str() == "tests")
        {
            continue;
        }
        let source = fs::read_to_string(&path).unwrap();
        let code = source.split("#[cfg(test)]").next().unwrap();
        for start in ["Walhook-", "Nats-"] {
            for (at, _) in code.match_indices(start) {
                let name: String = code[at..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
                // A prefix of several names ends in a dash, and text is not code.
                let quoted = code[..at].chars().next_back().is_some_and(|before| before == '"' || before == 'n');
                if quoted && !name.ends_with('-') {
                    found.insert(name);
                }
            }
        }
    }
}

fn exit_codes() -> String {
    let mut out = page(
        "Exit codes",
        "The code says who has to act. The last line of the log says what happened and what to try.",
    );
    let code = |kind: Kind| Error::new(kind, "").exit_code();
    out.push_str("\n| code | meaning | trying again |\n|---|---|---|\n");
    let rows: [(u8, &str, &str); 7] = [
        (0, "done; after SIGTERM: everything was acknowledged and confirmed", ""),
        (
            code(Kind::Unavailable),
            "anything else: a server cannot be reached where walhook does not wait for it, an answer that is not \
         understood, a second signal",
            "can help",
        ),
        (
            code(Kind::Config),
            "a setting, a row, or the set-up in the database is wrong",
            "does not help until it is corrected",
        ),
        (
            code(Kind::Untrusted),
            "a slot or a stream is not what it must be; going on could lose or duplicate events",
            "does not help; see [Restarts and recovery](../recovery.md)",
        ),
        (
            code(Kind::Permission),
            "a server refuses a privilege or the login",
            "does not help until the right is granted",
        ),
        (code(Kind::Fenced), "a newer run has taken over the slot", "is not needed"),
        (70, "a bug of walhook (a panic)", "can help; please report it"),
    ];
    assert_eq!(code(Kind::Unavailable), code(Kind::Protocol));
    for (code, meaning, again) in rows {
        writeln!(out, "| {code} | {meaning} | {again} |").unwrap();
    }
    out.push_str(
        "\nwalhook waits for servers that cannot be reached; it does not exit.\n\n\
         ## walhook status\n\n\
         | code | meaning |\n|---|---|\n\
         | 0 | a walhook streams and nothing is wrong |\n\
         | 1 | no walhook streams, or PostgreSQL cannot be reached |\n\
         | 2 | the slot, a publication or a link is wrong |\n\
         | 3 | the slot is lost |\n\
         | 4 | a privilege is missing |\n\n\
         ## walhook backfill\n\n\
         Code 2 also means that events of the backfill became dead letters; the message has their number.\n",
    );
    out
}

fn who(kind: Kind) -> &'static str {
    match kind {
        Kind::Config => "ends (code 2)",
        Kind::Untrusted => "ends (code 3)",
        Kind::Permission => "ends (code 4)",
        Kind::Fenced => "ends (code 5)",
        Kind::Unavailable | Kind::Protocol => "ends (code 1)",
    }
}

/// PostgreSQL's classes of errors and the codes that walhook treats apart (manual, appendix A).
const SQLSTATES: &[(&str, &str)] = &[
    ("00", "successful completion"),
    ("01", "warning"),
    ("02", "no data"),
    ("03", "SQL statement not yet complete"),
    ("08", "connection exception"),
    ("09", "triggered action exception"),
    ("0A", "feature not supported"),
    ("0B", "invalid transaction initiation"),
    ("0F", "locator exception"),
    ("0L", "invalid grantor"),
    ("0P", "invalid role specification"),
    ("0Z", "diagnostics exception"),
    ("10", "XQuery error"),
    ("20", "case not found"),
    ("21", "cardinality violation"),
    ("22", "data exception"),
    ("23", "integrity constraint violation"),
    ("24", "invalid cursor state"),
    ("25", "invalid transaction state"),
    ("25006", "read-only transaction"),
    ("25P03", "idle-in-transaction timeout"),
    ("25P04", "transaction timeout"),
    ("26", "invalid SQL statement name"),
    ("27", "triggered data change violation"),
    ("28", "invalid authorization specification"),
    ("28P01", "invalid password"),
    ("2B", "dependent privilege descriptors still exist"),
    ("2D", "invalid transaction termination"),
    ("2F", "SQL routine exception"),
    ("34", "invalid cursor name"),
    ("38", "external routine exception"),
    ("39", "external routine invocation exception"),
    ("3B", "savepoint exception"),
    ("3D", "invalid catalog name"),
    ("3F", "invalid schema name"),
    ("40", "transaction rollback"),
    ("40002", "transaction integrity constraint violation"),
    ("42", "syntax error or access rule violation"),
    ("42501", "insufficient privilege"),
    ("42P01", "undefined table"),
    ("42703", "undefined column"),
    ("42883", "undefined function"),
    ("42P05", "duplicate prepared statement"),
    ("42704", "undefined object"),
    ("44", "WITH CHECK OPTION violation"),
    ("53", "insufficient resources"),
    ("53300", "too many connections"),
    ("53400", "configuration limit exceeded"),
    ("54", "program limit exceeded"),
    ("55", "object not in prerequisite state"),
    ("55000", "object not in prerequisite state"),
    ("55006", "object in use"),
    ("55P03", "lock not available"),
    ("57", "operator intervention"),
    ("57P04", "database dropped"),
    ("58", "system error"),
    ("58P01", "undefined file"),
    ("72", "snapshot failure"),
    ("F0", "configuration file error"),
    ("HV", "foreign data wrapper error"),
    ("P0", "PL/pgSQL error"),
    ("XX", "internal error"),
];

fn sqlstates() -> String {
    let mut out = page(
        "SQLSTATE codes",
        "What walhook does about an error of PostgreSQL. Only the code decides, never the text, which is translated and changes. A row \
         of five characters wins over that of its class, the first two.\n\n\
         *Waits*: walhook tries again by itself. *This statement*: only the statement failed, for its values (a row of the history that a \
         constraint refuses); walhook goes on with others.",
    );
    out.push_str("\n| code | PostgreSQL's name | walhook | what to try |\n|---|---|---|---|\n");
    for (prefix, class, hint) in sqlstate::TABLE {
        let name = SQLSTATES.iter().find(|(code, _)| *code == prefix);
        let (_, name) = name.unwrap_or_else(|| panic!("{prefix} has no name in tests/sql/guide/reference.rs"));
        let does = match class {
            Class::Wait => "waits",
            Class::End(kind) => who(kind),
            Class::Statement => "this statement",
        };
        writeln!(out, "| `{prefix}` | {name} | {does} | {} |", cell(hint)).unwrap();
    }
    out
}

/// nats-server's words for its error codes (`server/errors.json`).
const JETSTREAM: &[(u64, &str)] = &[
    (10002, "resource limits exceeded for account"),
    (10003, "bad request"),
    (10004, "incomplete results"),
    (10005, "no suitable peers for placement"),
    (10006, "JetStream not in clustered mode"),
    (10007, "JetStream cluster not assigned to this server"),
    (10008, "JetStream system temporarily unavailable"),
    (10009, "JetStream cluster cannot handle request"),
    (10010, "JetStream clustering support required"),
    (10011, "tags placement not supported for operation"),
    (10014, "consumer not found"),
    (10023, "insufficient resources"),
    (10025, "invalid JSON"),
    (10026, "maximum consumers limit reached"),
    (10027, "maximum number of streams reached"),
    (10028, "insufficient memory resources available"),
    (10035, "account not found"),
    (10037, "no message found"),
    (10039, "JetStream not enabled for account"),
    (10047, "insufficient storage resources available"),
    (10049, "stream create failed"),
    (10050, "stream deletion failed"),
    (10052, "invalid stream configuration"),
    (10053, "stream limits error"),
    (10054, "message size exceeds maximum allowed"),
    (10055, "stream mirror configuration cannot be updated"),
    (10058, "stream name already in use with a different configuration"),
    (10059, "stream not found"),
    (10060, "expected stream does not match"),
    (10061, "replicas configuration cannot be updated"),
    (10065, "subjects overlap with an existing stream"),
    (10069, "stream update failed"),
    (10071, "wrong last sequence"),
    (10074, "replicas > 1 not supported in non-clustered mode"),
    (10076, "JetStream not enabled"),
    (10077, "stream store failed"),
    (10097, "header size exceeds maximum allowed of 64k"),
    (10109, "invalid operation on sealed stream"),
    (10110, "stream purge failed"),
    (10113, "account requires max_bytes in a stream's configuration"),
    (10118, "stream is offline"),
    (10120, "no JetStream default or applicable tiered limit present"),
    (10122, "max_bytes exceeds the account's limit for a stream"),
    (10123, "cannot move and scale a stream in a single update"),
    (10124, "stream move already in progress"),
    (10133, "replicas count cannot be negative"),
    (10157, "pedantic error"),
    (10158, "duplicate message id is in process"),
    (10163, "expected last sequence per subject temporarily unavailable"),
    (10164, "wrong last sequence"),
    (10167, "too many requests"),
    (10174, "atomic publish disabled"),
    (10175, "atomic publish sequence missing"),
    (10176, "atomic publish batch incomplete"),
    (10177, "atomic publish unsupported header"),
    (10179, "atomic publish batch id invalid"),
];

/// The same of batches.
const JETSTREAM_BATCHES: &[(u64, &str)] =
    &[(10199, "atomic publish batch too large"), (10201, "atomic publish batch contains a duplicate message id")];

fn jetstream_codes() -> String {
    let mut out = page(
        "JetStream codes",
        "What walhook does if JetStream refuses a message, or a request, with an error code. A code that is not here: a message is sent \
         again after growing waits; for a request classes 408, 429 and 5xx pass by themselves, and somebody must act on others.",
    );
    out.push_str("\n| code | nats-server's words | a message | a request | what to try |\n|---|---|---|---|---|\n");
    for row in codes::CODES {
        let words = JETSTREAM.iter().chain(JETSTREAM_BATCHES).find(|(code, _)| *code == row.code);
        let (_, words) = words.unwrap_or_else(|| panic!("{} has no words in tests/sql/guide/reference.rs", row.code));
        let message = match row.publish {
            Publish::Place => "the stream's end is read, then it goes on from there",
            Publish::Wait => "sent again, after growing waits",
            Publish::Event => "`on_error` of the webhook",
            Publish::TooLarge => "`on_error` of the webhook; with `object_store` a claim check",
            Publish::OneByOne => "the batch is sent message by message",
            Publish::SmallerBatches => "smaller batches from then on",
        };
        let request = match row.asked {
            Kind::Unavailable => "passes by itself",
            _ => "somebody must act",
        };
        writeln!(out, "| {} | {words} | {message} | {request} | {} |", row.code, cell(row.hint)).unwrap();
    }
    out
}
