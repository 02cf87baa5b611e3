//! Runs the examples of pages from top to bottom, as a reader would: SQL statement by statement, shell by bash.
//!
//! In: pages, and servers on which `walhook setup` has run. Out: nothing, or a panic that names page and statement. A comment
//! `-- → VALUE` behind a statement is its answer. `walhook run` and `walhook deliver` stay in the background until the end
//! of the pages, and then have to end well. Addresses that the pages name are replaced by those of the servers.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use rustix::process::Signal;
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::{
    guide::page::{Example, Page, root},
    support::{
        eventually,
        feed::Feed,
        folder::Folder,
        process::{Process, User},
        services, skip,
    },
};

/// How long a process may take to end after SIGTERM, by its promise and some for a busy machine.
const DRAINED: Duration = Duration::from_secs(40);

/// The `nats` command line, as tests/delivery/workers.rs has it.
const NATS_CLI: &str = "github.com/nats-io/natscli/nats@v0.5.0";

/// The position that pages name as an example; it is replaced by the last one that was asked for.
const EXAMPLE_LSN: &str = "0/16B3748";

/// Servers, and what the pages have started.
pub struct Story {
    /// The servers.
    pub feed: Feed,
    client: Client,
    background: Vec<Process>, // before the folder: fields go in this order
    lsn: String,
    has_nats_cli: bool,
    folder: Folder,
}

impl Story {
    /// On servers that are set up.
    pub async fn on(feed: Feed) -> Story {
        let client = feed.pg.client().await;
        let folder = Folder::new("guide", User::Ourselves);
        // The real binary, first in PATH, and a password that nobody asks for.
        let bin = folder.path().join("bin");
        fs::create_dir(&bin).unwrap();
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_walhook"), bin.join("walhook")).unwrap();
        User::Ourselves.write(&folder.path().join("password"), "secret\n");
        let cli = nats_cli();
        if let Err(why) = &cli {
            skip("the examples with the nats command line", why);
        }
        let story = Story {
            feed,
            client,
            background: Vec::new(),
            lsn: EXAMPLE_LSN.to_owned(),
            has_nats_cli: cli.is_ok(),
            folder,
        };
        if let Ok(cli) = cli {
            std::os::unix::fs::symlink(cli, bin.join("nats")).unwrap();
        }
        story
    }

    /// Runs all examples of a page.
    pub async fn run(&mut self, page: &Page) {
        for example in page.examples() {
            if example.not_run.is_some() {
                continue;
            }
            match example.language.as_str() {
                "sql" => self.sql(page, &example).await,
                "sh" => self.shell(page, &example).await,
                _ => {}
            }
        }
    }

    async fn sql(&mut self, page: &Page, example: &Example) {
        for (statement, expected) in statements(&self.here(&example.code)) {
            let answer = self.client.simple_query(&statement).await.unwrap_or_else(|error| {
                let error = error.as_db_error().map_or_else(|| error.to_string(), ToString::to_string);
                panic!("{}: {error}\nby the statement: {statement}", page.name)
            });
            let row = answer.iter().find_map(|message| match message {
                SimpleQueryMessage::Row(row) => {
                    let columns: Vec<_> = (0..row.len()).map(|at| row.get(at).unwrap_or_default()).collect();
                    Some(columns.join("|"))
                }
                _ => None,
            });
            if statement.trim_end() == "SELECT pg_current_wal_insert_lsn()" {
                self.lsn = row.clone().unwrap();
            }
            if let Some(expected) = expected {
                assert_eq!(row.as_deref(), Some(expected.as_str()), "{}: the answer of {statement}", page.name);
            }
        }
    }

    async fn shell(&mut self, page: &Page, example: &Example) {
        let (background, foreground): (Vec<_>, Vec<_>) =
            commands(&self.here(&example.code)).into_iter().partition(|line| {
                ["walhook run", "walhook deliver"].iter().any(|verb| line.split('#').next().unwrap().contains(verb))
            });
        let foreground = foreground.join("\n");
        let needs_cli = foreground.lines().any(|line| line.starts_with("nats "));
        if needs_cli {
            self.streams_exist().await;
        }
        if foreground.lines().any(|line| line.trim() == "walhook status") && !self.background.is_empty() {
            // What was started before streams by the time that a reader has typed this.
            eventually("walhook to stream", async || {
                self.bash("walhook status").stdin(Stdio::null()).output().unwrap().status.success().then_some(())
            })
            .await;
        }
        if !foreground.trim().is_empty() && (self.has_nats_cli || !needs_cli) {
            let mut command = self.bash(&format!("set -euo pipefail\n{foreground}"));
            let output =
                tokio::task::spawn_blocking(move || command.stdin(Stdio::null()).output()).await.unwrap().unwrap();
            let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            assert!(output.status.success(), "{}: {}\n{foreground}\n{said}", page.name, output.status);
        }
        for line in background {
            let log = self.folder.path().join(format!("log{}", self.background.len()));
            let mut process = Process::start("an example", self.bash(&format!("exec env {line}")), &log);
            eventually(&format!("the first words of {line:?} of {}", page.name), async || {
                let ended = process.exited();
                assert!(ended.is_none(), "{}: {line} ended ({ended:?}):\n{}", page.name, process.log());
                process.log().contains("INFO").then_some(())
            })
            .await;
            self.background.push(process);
        }
    }

    /// Waits until walhook has made the streams of `default` and has published everything so far: a reader types more slowly.
    async fn streams_exist(&self) {
        let jetstream = async_nats::jetstream::new(self.feed.nats.client().await);
        let streams = "SELECT s.stream_name FROM rule_nats_streams s JOIN rule_nats_config USING (config_id) \
                       WHERE config_name = 'default' AND s.enabled";
        for stream in self.feed.pg.psql(streams).lines() {
            eventually(&format!("stream {stream}"), async || jetstream.get_stream(stream).await.ok()).await;
        }
        self.feed.confirmed().await;
    }

    /// Ends what the pages have started.
    pub fn end(mut self) -> Feed {
        for mut process in self.background.drain(..) {
            process.signal(Signal::TERM);
            let status = process.wait(DRAINED);
            assert_eq!(status.and_then(|status| status.code()), Some(0), "{}", process.log());
        }
        self.feed
    }

    /// Bash with an environment of its own: the servers, and these binaries before all others.
    fn bash(&self, script: &str) -> Command {
        let path = format!(
            "{}:{}:{}",
            self.folder.path().join("bin").display(),
            services::postgres("default").display(),
            std::env::var("PATH").unwrap()
        );
        let mut command = User::Ourselves.command("bash");
        command.args(["-c", script]).current_dir(root()).env_clear().env("PATH", path);
        command.env("HOME", self.folder.path()).env("DATABASE_URL", self.feed.pg.conninfo());
        command.env("NATS_URL", self.feed.nats.url()).env("PGOPTIONS", "-c client_min_messages=warning");
        command
    }

    /// The text with the addresses of these servers for those that pages name.
    fn here(&self, text: &str) -> String {
        let server = format!("127.0.0.1:{}/postgres", self.feed.pg.port());
        let password = self.folder.path().join("password").display().to_string();
        let mut text = text.to_owned();
        for (shown, here) in [
            ("nats://localhost:4222", self.feed.nats.url()),
            ("nats://nats:4222", self.feed.nats.url()),
            ("nats://nats2.internal:4222", self.feed.nats.url()),
            ("postgres://admin@db/app", format!("postgres://postgres@{server}")),
            ("postgres://walhook_streamer@db/app", format!("postgres://walhook_streamer@{server}")),
            ("postgres://walhook_worker@db/app", format!("postgres://walhook_worker@{server}")),
            ("/run/secrets/pg", password),
            (EXAMPLE_LSN, self.lsn.clone()),
        ] {
            text = text.replace(shown, &here);
        }
        text
    }
}

/// Where the `nats` command line is, fetched as tests/delivery/workers.rs does.
fn nats_cli() -> Result<PathBuf, String> {
    let folder = services::cache().join(format!("workers/{}", NATS_CLI.replace('/', "_")));
    let binary = folder.join("nats");
    if !binary.exists() {
        fs::create_dir_all(&folder).unwrap();
        let output = Command::new("go").args(["install", NATS_CLI]).env("GOBIN", &folder).output();
        let output = output.map_err(|error| format!("go: {error}"))?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
    }
    Ok(binary)
}

/// The lines of a script, with those that a backslash goes on in one.
fn commands(script: &str) -> Vec<String> {
    let mut commands: Vec<String> = Vec::new();
    let mut goes_on = false;
    for line in script.lines() {
        match commands.last_mut() {
            Some(last) if goes_on => *last = format!("{last}\n{line}"),
            _ => commands.push(line.to_owned()),
        }
        goes_on = line.ends_with('\\');
    }
    commands
}

/// The statements of a script, each with the answer that `-- → ANSWER` behind it says.
fn statements(script: &str) -> Vec<(String, Option<String>)> {
    let mut found: Vec<(String, Option<String>)> = Vec::new();
    let (mut begin, mut at) = (0, 0);
    while at < script.len() {
        let rest = &script[at..];
        let to = |end: &str, from: usize| rest[from..].find(end).map_or(rest.len(), |length| from + length + end.len());
        at += match rest.as_bytes()[0] {
            b'\'' => to("'", 1),
            b'"' => to("\"", 1),
            b'-' if rest.starts_with("--") => {
                let end = rest.find('\n').unwrap_or(rest.len());
                let answer = rest[2..end].trim().strip_prefix("→ ");
                if let (Some(answer), Some(last)) = (answer, found.last_mut())
                    && script[begin..at].trim().is_empty()
                    && !script[begin..at].contains('\n')
                {
                    last.1 = Some(answer.trim().to_owned());
                }
                if script[begin..at].trim().is_empty() {
                    begin = at + end;
                }
                end
            }
            b'$' => match rest[1..].find('$') {
                // $$ or $tag$
                Some(length) if rest[1..=length].bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') => {
                    to(&rest[..length + 2], length + 2)
                }
                _ => 1,
            },
            b';' => {
                found.push((script[begin..at].trim().to_owned(), None));
                begin = at + 1;
                1
            }
            _ => rest.chars().next().map_or(1, char::len_utf8),
        };
    }
    let rest = script.get(begin..).unwrap_or_default().trim();
    assert!(rest.is_empty() || rest.starts_with("--"), "a statement without its semicolon: {rest}");
    found
}

#[test]
fn a_script_falls_into_its_statements() {
    let script = "SELECT 'a;b' -- c;d\n  , 2;   -- → a;b|2\nDO $$ BEGIN x; END $$;\n-- → no answer\nSELECT 1; -- other\nBEGIN;\n";
    let found = statements(script);
    let found: Vec<_> = found.iter().map(|(statement, answer)| (statement.as_str(), answer.as_deref())).collect();
    let expected = [
        ("SELECT 'a;b' -- c;d\n  , 2", Some("a;b|2")),
        ("DO $$ BEGIN x; END $$", None),
        ("SELECT 1", None),
        ("BEGIN", None),
    ];
    assert_eq!(found, expected);
}
