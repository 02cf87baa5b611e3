//! `walhook status`: what the database knows of slot, streams, webhooks and dead letters, for a person, as JSON, again and again
//! (`--watch`), or as one line and an exit code for monitoring (`--check`). With `--alive` no database is asked, but the process itself.

use std::{
    io::{self, IsTerminal as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use clap::Args;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::watch,
    time::{sleep, timeout},
};
use tokio_postgres::Client;

use super::{
    breaks,
    check::codes,
    paint::{Paint, paint, width, wrap},
    plain,
    setup_check::{self, Finding, Severity},
};
use crate::{
    config::Config,
    error::{Error, Result},
    http,
    postgres::sql,
    text,
};

/// How it is shown, and what monitoring minds.
#[derive(Debug, Args)]
pub struct Arguments {
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Again every so many seconds, until Ctrl-C
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", conflicts_with = "check",
          value_parser = clap::value_parser!(u32).range(1..=3600))]
    watch: Option<u32>,
    /// One line and an exit code for monitoring, with the names of `walhook check`: 0 well, 10 nobody streams, 11 NATS is away, 12 not all is published that should be,
    /// 13 the slot lags, 14 dead letters; 1 to 4 as of any command
    #[arg(long)]
    check: bool,
    /// With --check: the slot may have so much to confirm, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 1024, requires = "check")]
    max_lag: u32,
    /// With --check: so many dead letters are not minded
    #[arg(long, value_name = "COUNT", default_value_t = 0, requires = "check")]
    max_dead_letters: u32,
    /// Whether the `walhook run` or `walhook deliver` with these settings is alive, by its /healthz (--http), as a healthcheck inside a
    /// container: 0 alive, 1 not
    #[arg(long, conflicts_with_all = ["json", "watch", "check"])]
    alive: bool,
}

/// How long /healthz has for its answer.
const ALIVE_WITHIN: Duration = Duration::from_secs(5);

/// One statement each, whose answer is one JSON value.
const SLOT: &str = "SELECT row_to_json(s)::text FROM public.rule_cdc_slots s WHERE s.slot_name::text = $1";
const ANCHOR: &str = "SELECT row_to_json(a)::text FROM public.rule_cdc_anchors a WHERE a.slot_name = $1";
const STREAMS: &str = "SELECT COALESCE(json_agg(json_build_object( \
        'config', config_name, 'stream', stream_name, 'epoch', epoch, 'sequence', sequence, 'commit_lsn', commit_lsn, \
        'updated_at', updated_at) ORDER BY config_name, stream_name), '[]')::text \
    FROM public.rule_nats_checkpoints WHERE source = $1 AND stream_name <> ''";
const WEBHOOKS: &str = "SELECT json_build_object( \
        'total', count(*), \
        'queued', count(*) FILTER (WHERE enabled AND COALESCE(publish_mode, 'queue') IN ('queue', 'both')), \
        'publishing', count(*) FILTER (WHERE enabled AND nats_enabled AND publish_mode IN ('nats', 'both')), \
        'linked_tables', (SELECT count(DISTINCT (table_schema, table_name)) FROM public.rule_webhook_links WHERE enabled) \
    )::text FROM public.rule_webhooks";
const NATS: &str = "SELECT nats::text FROM public.rule_cdc_status \
    WHERE source = $1 AND heartbeat_at > clock_timestamp() - make_interval(secs => 3 * heartbeat_seconds)";
const LOG: &str = "SELECT json_build_object('lines_lost', log_lines_lost)::text FROM public.rule_cdc_status \
    WHERE source = $1 AND heartbeat_at > clock_timestamp() - make_interval(secs => 3 * heartbeat_seconds)";
const IDENTITY: &str = "SELECT json_build_object('database_id', database_id, 'created_at', created_at)::text \
    FROM public.rule_cdc_identity";
const DEAD_LETTERS: &str = "SELECT json_build_object('dead', count(*), 'newest', max(created_at), \
        'newest_reason', (array_agg(reason ORDER BY dead_letter_id DESC))[1])::text \
    FROM public.rule_nats_dead_letters WHERE status = 'dead'";

/// Whether a walhook has said lately that it holds the slot.
const HEARTBEAT: &str = "SELECT to_json(heartbeat_at > clock_timestamp() - make_interval(secs => 3 * heartbeat_seconds))::text \
    FROM public.rule_cdc_status WHERE source = $1";

/// What the running walhook, or the last one, has noted of itself.
const RUN: &str = "SELECT (j.row || pg_catalog.jsonb_build_object('has_ended', \
        coalesce((j.row ->> 'last_exit_at')::timestamptz >= coalesce(s.connected_since, '-infinity'), false)))::text \
    FROM public.rule_cdc_status s, pg_catalog.to_jsonb(s) AS whole, LATERAL (SELECT whole - 'nats' AS row) AS j \
    WHERE s.source = $1";

/// What monitoring learns: the worst first.
struct Problem {
    code: u8,
    /// As `walhook check` calls it.
    name: String,
    text: String,
}

/// All that is known.
struct Seen {
    status: Value,
    findings: Vec<Finding>,
}

/// Asks the process that has the same settings, on this machine, for its /healthz.
async fn alive(config: &Config) -> Result<()> {
    let Some(settings) = http::settings::Settings::resolve(&config.http)? else {
        return Err(Error::config("ask whether walhook is alive: it serves no HTTP by these settings")
            .hint("set http.listen (--http, WALHOOK_HTTP) for the process that is asked and for this command"));
    };
    let mut address = settings.address;
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    let attempted = format!("ask whether walhook is alive: GET http://{address}/healthz");
    if settings.tls.is_some() {
        return Err(Error::config(format!("{attempted}: it is served by TLS"))
            .hint("ask it from outside by a client of HTTPS, or use `walhook status --check`"));
    }
    let asking = async {
        let mut socket = TcpStream::connect(address).await?;
        let request = format!("GET /healthz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        socket.take(4096).read_to_end(&mut answer).await?;
        Ok::<_, io::Error>(String::from_utf8_lossy(&answer).into_owned())
    };
    let Ok(answer) = timeout(ALIVE_WITHIN, asking).await else {
        return Err(Error::unavailable(format!("{attempted}: no answer within {} s", ALIVE_WITHIN.as_secs())));
    };
    let answer = answer.map_err(|error| Error::unavailable(attempted.as_str()).caused_by(error))?;
    if answer.starts_with("HTTP/1.1 200 ") {
        return super::say("alive\n");
    }
    let body = answer.split_once("\r\n\r\n").map_or(answer.as_str(), |(_, body)| body);
    Err(Error::unavailable(format!("{attempted}: {}", text::one_line(body.trim()))))
}

/// Prints the status, and ends with an error where not all is well: so a monitor needs the exit code alone. With `--check` the code
/// is the outcome.
///
/// # Errors
/// PostgreSQL cannot be asked; what `walhook run` would not start with, by its code; nobody streams (1); something that should
/// be published is not (2).
pub async fn status(config: &Config, arguments: &Arguments, shutdown: watch::Receiver<bool>) -> Result<u8> {
    if arguments.alive {
        return alive(config).await.map(|()| 0);
    }
    if let Some(seconds) = arguments.watch {
        return again(config, arguments.json, Duration::from_secs(seconds.into()), shutdown).await.map(|()| 0);
    }
    let asked = async {
        let client = super::connect(config).await?;
        Seen::read(&client, config).await
    };
    let seen = match asked.await {
        Ok(seen) => seen,
        // The name of what is wrong, also where nothing can be asked.
        Err(error) if arguments.check => {
            let name = breaks::of_postgres(&error);
            let problem = Problem { code: error.exit_code(), name: name.to_owned(), text: error.to_string() };
            return conclude(arguments, &[problem], &Value::Null);
        }
        Err(error) => return Err(error),
    };
    if arguments.check {
        let problems = problems(config, arguments, &seen);
        return conclude(arguments, &problems, &seen.status);
    }
    let Seen { status, findings } = &seen;
    if arguments.json {
        super::say_json([status])?;
    } else {
        super::say_bytes(shown(&render(config, &seen), width()).as_bytes())?;
    }
    setup_check::refuse(config, findings)?;
    if status["streaming"] != true {
        return Err(Error::unavailable(not_streaming(config, status)).hint("start `walhook run`, or see its log"));
    }
    match findings.iter().filter(|finding| finding.severity == Severity::Error).count() {
        0 => Ok(0),
        count => Err(Error::config(format!("the set-up has {count} problems: see above"))),
    }
}

/// Shows it again and again. What cannot be asked for a while is shown as such.
async fn again(config: &Config, as_json: bool, every: Duration, mut shutdown: watch::Receiver<bool>) -> Result<()> {
    let mut client: Option<Client> = None;
    let is_terminal = io::stdout().is_terminal();
    loop {
        let asked = async {
            let open = match client.take().filter(|client| !client.is_closed()) {
                Some(open) => open,
                None => super::connect(config).await?,
            };
            Seen::read(&open, config).await.map(|seen| (open, seen))
        };
        let seen = tokio::select! {
            seen = asked => seen,
            _ = shutdown.wait_for(|stop| *stop) => return Ok(()),
        };
        let answer = match seen {
            Ok((open, seen)) => {
                client = Some(open);
                if as_json { format!("{}\n", seen.status) } else { shown(&render(config, &seen), width()) }
            }
            Err(error) if !error.is_retryable() => return Err(error),
            Err(error) if as_json => format!("{}\n", json!({ "error": error.to_string() })),
            Err(error) => shown(&[(Paint::Bad, format!("{:<14}{error}", "no answer"))], width()),
        };
        let answer = match (as_json, is_terminal) {
            (true, _) => text::json(&answer).into_owned(),
            // Written over what was there, without a blank screen in between.
            (false, true) => format!("\x1b[H{}\x1b[J", answer.replace('\n', "\x1b[K\n")),
            (false, false) => format!("{answer}\n"),
        };
        if !super::offer(answer.as_bytes())? {
            return Ok(());
        }
        tokio::select! {
            () = sleep(every) => {}
            () = super::tail::reader_gone() => return Ok(()),
            _ = shutdown.wait_for(|stop| *stop) => return Ok(()),
        }
    }
}

/// One line, and the code of what is worst.
fn conclude(arguments: &Arguments, problems: &[Problem], status: &Value) -> Result<u8> {
    let code = problems.first().map_or(0, |problem| problem.code);
    let number = |value: &Value| value.as_i64().unwrap_or(0);
    let (lag, dead) = (number(&status["slot"]["lag_bytes"]), number(&status["dead_letters"]["dead"]));
    if arguments.json {
        let problems: Vec<_> = problems
            .iter()
            .map(|problem| json!({ "code": problem.code, "name": problem.name, "problem": problem.text }))
            .collect();
        super::say_json([&json!({
            "code": code, "ok": code == 0, "problems": problems, "lag_bytes": lag, "dead_letters": dead,
            "run": status["run"],
        })])?;
        return Ok(code);
    }
    let what = match code {
        0 => format!("streaming, {} behind, {dead} dead letters", human(lag)),
        _ => {
            problems.iter().map(|problem| format!("{}: {}", problem.name, problem.text)).collect::<Vec<_>>().join("; ")
        }
    };
    let word = match code {
        0 => paint("OK", Paint::Good),
        _ => paint("WRONG", Paint::Bad),
    };
    let line = format!("walhook {word}: {} | lag_bytes={lag}B dead_letters={dead}\n", text::one_line(&what));
    super::say_bytes(line.as_bytes())?;
    Ok(code)
}

fn problems(config: &Config, arguments: &Arguments, seen: &Seen) -> Vec<Problem> {
    let Seen { status, findings } = seen;
    let mut problems = Vec::new();
    if let Err(error) = setup_check::refuse(config, findings) {
        let name = error.name().unwrap_or("setup").to_owned();
        problems.push(Problem { code: error.exit_code(), name, text: error.to_string() });
    }
    if status["streaming"] != true {
        let text = match last_exit(status) {
            Some(exit) => format!("{}; {exit}", not_streaming(config, status)),
            None => not_streaming(config, status),
        };
        // What has ended the last run names itself at the beginning of its reason.
        let reason = Some(&status["run"])
            .filter(|run| run["has_ended"] == true)
            .and_then(|run| run["last_exit_reason"].as_str());
        let of_end = reason.and_then(|reason| reason.split_once(": ")).and_then(|(name, _)| codes::of(name));
        let name = match of_end {
            Some(code) => code.code,
            None if status["slot"]["active_pid"].is_number() => "slot_held",
            None => "not_streaming",
        };
        problems.push(Problem { code: 10, name: name.to_owned(), text });
    }
    for (name, connection) in status["nats"].as_object().into_iter().flatten() {
        if connection["connected"] != true || connection["holds_slot"] == true || connection["refuses"] == true {
            let finding = connection["finding"].as_str().unwrap_or("nats_connection").to_owned();
            problems.push(Problem { code: 11, name: finding, text: format!("NATS {name}: {}", nats(connection)) });
        }
    }
    for finding in findings.iter().filter(|finding| finding.severity == Severity::Error) {
        problems.push(Problem { code: 12, name: finding.name.clone(), text: finding.to_string() });
    }
    if let Some(blocked) = status["history_blocked"].as_str() {
        problems.push(Problem { code: 12, name: "history_blocked".to_owned(), text: blocked.to_owned() });
    }
    let lag = status["slot"]["lag_bytes"].as_i64().unwrap_or(0);
    if lag > i64::from(arguments.max_lag) << 20 {
        let text = format!("the slot is {} behind, more than {} MiB", human(lag), arguments.max_lag);
        problems.push(Problem { code: 13, name: "slot_lag".to_owned(), text });
    }
    let dead = status["dead_letters"]["dead"].as_i64().unwrap_or(0);
    if dead > i64::from(arguments.max_dead_letters) {
        problems.push(Problem { code: 14, name: "dead_letters".to_owned(), text: format!("{dead} dead letters") });
    }
    problems
}

fn not_streaming(config: &Config, status: &Value) -> String {
    let slot = &config.slot;
    match status["slot"]["active_pid"].is_number() {
        true => format!("slot {slot:?} is held, and walhook has said nothing for a while in rule_cdc_status"),
        false => format!("nobody streams from slot {slot:?}"),
    }
}

/// How the last run ended, if one has, and none has begun since.
fn last_exit(status: &Value) -> Option<String> {
    let run = Some(&status["run"]).filter(|run| run["has_ended"] == true)?;
    let code = run["last_exit_code"].as_i64()?;
    let at = plain(&run["last_exit_at"]);
    Some(match run["last_exit_reason"].as_str() {
        Some(reason) => format!("the last run ended with exit code {code} at {at}: {}", text::one_line(reason)),
        None => format!("the last run ended with exit code {code} at {at}"),
    })
}

impl Seen {
    async fn read(client: &Client, config: &Config) -> Result<Seen> {
        let slot = ask(client, SLOT, Some(&config.slot)).await?;
        let findings = setup_check::read(client, config).await?;
        let heartbeat = ask(client, HEARTBEAT, Some(&config.source)).await?;
        let holder = slot["active_pid"].is_number();
        let status = json!({
            "source": config.source,
            "identity": identity(client).await?,
            "slot": slot,
            "streaming": holder && heartbeat == true,
            "findings": findings,
            "anchor": ask(client, ANCHOR, Some(&config.slot)).await?,
            "streams": ask(client, STREAMS, Some(&config.source)).await?,
            "nats": ask(client, NATS, Some(&config.source)).await?,
            "log": ask(client, LOG, Some(&config.source)).await?,
            "run": ask(client, RUN, Some(&config.source)).await?,
            "webhooks": ask(client, WEBHOOKS, None).await?,
            "dead_letters": ask(client, DEAD_LETTERS, None).await?,
            "history_blocked": breaks::history_blocked(client).await?.as_ref().map(breaks::history_blocked_text),
        });
        Ok(Seen { status, findings })
    }
}

/// The identity, with what is wrong with it.
async fn identity(client: &Client) -> Result<Value> {
    let mut identity = ask(client, IDENTITY, None).await?;
    if !identity.is_null() {
        let compared = super::identity::compare(client).await?;
        identity["problem"] =
            compared.difference().map(|(difference, hint)| format!("{difference}. Hint: {hint}")).into();
    }
    Ok(identity)
}

/// `Null` where there is no row.
async fn ask(client: &Client, statement: &str, name: Option<&String>) -> Result<Value> {
    let attempted = "read the status";
    let statement = format!("SELECT {} FROM ({statement}) status (answer)", super::bytes_of("status.answer"));
    let row = match name {
        Some(name) => client.query_opt(&statement, &[name]).await,
        None => client.query_opt(&statement, &[]).await,
    };
    let row = row.map_err(|error| sql::error(attempted, error))?;
    let Some(text) = row.and_then(|row| super::text_of(&row, 0)) else { return Ok(Value::Null) };
    serde_json::from_str(&text).map_err(|error| Error::protocol(attempted).caused_by(error))
}

/// What a person reads, a line each, with the colour of its first word.
fn render(config: &Config, Seen { status, findings }: &Seen) -> Vec<(Paint, String)> {
    let mut lines = Lines(Vec::new());
    lines.push(headline(config, status));
    lines.push(format!("source        {}", config.source));
    lines.push(format!("database      {}", plain(&status["identity"]["database_id"])));
    if let Some(problem) = status["identity"]["problem"].as_str() {
        lines.push((Paint::Bad, format!("identity      {problem}")));
    }
    say_slot(config, &status["slot"], &mut lines);
    let anchor = &status["anchor"];
    if !anchor.is_null() {
        lines.push(format!(
            "anchor        {}: keeps WAL from {} on, seen at {}; {} retained, WAL {}",
            plain(&anchor["anchor_name"]),
            plain(&anchor["reaches_lsn"]),
            plain(&anchor["reaches_time"]),
            anchor["retained_bytes"].as_i64().map_or_else(|| "?".to_owned(), human),
            plain(&anchor["wal_status"])
        ));
    }
    for (name, connection) in status["nats"].as_object().into_iter().flatten() {
        let is_well = connection["connected"] == true && connection["holds_slot"] != true;
        let colour = if is_well { Paint::Strong } else { Paint::Bad };
        lines.push((colour, format!("nats          {}: {}", text::one_line(name), nats(connection))));
    }
    for stream in status["streams"].as_array().into_iter().flatten() {
        lines.push(format!(
            "stream        {} ({}): sequence {} at {}, noted {}",
            plain(&stream["stream"]),
            plain(&stream["config"]),
            plain(&stream["sequence"]),
            plain(&stream["commit_lsn"]),
            plain(&stream["updated_at"])
        ));
    }
    let webhooks = &status["webhooks"];
    lines.push(format!(
        "webhooks      {} ({} publish to NATS), {} linked tables",
        plain(&webhooks["total"]),
        plain(&webhooks["publishing"]),
        plain(&webhooks["linked_tables"])
    ));
    if let Some(queued @ 1..) = webhooks["queued"].as_i64() {
        lines.push(format!(
            "queue         {queued} webhooks have calls in rule_webhook_calls, for workers of your own: walhook does not make them"
        ));
    }
    let dead = &status["dead_letters"];
    let newest = match dead["newest_reason"].as_str() {
        Some(reason) => format!(", the newest of {}: {}", plain(&dead["newest"]), text::one_line(reason)),
        None => String::new(),
    };
    if let Some(lost @ 1..) = status["log"]["lines_lost"].as_i64() {
        lines.push(format!(
            "log           {lost} lines lost: standard error of the running walhook is a full disk, or a closed or stalled pipe"
        ));
    }
    let colour = if dead["dead"].as_i64().unwrap_or(0) > 0 { Paint::Bad } else { Paint::Strong };
    lines.push((colour, format!("dead letters  {}{newest}", plain(&dead["dead"]))));
    for finding in findings {
        let (colour, severity) = match finding.severity {
            Severity::Fatal | Severity::Error => (Paint::Bad, "wrong"),
            Severity::Warning => (Paint::Doubtful, "warning"),
            Severity::Note => (Paint::Strong, "note"),
        };
        lines.push((colour, format!("{severity:<13} {}", text::one_line(&finding.to_string()))));
    }
    lines.0
}

/// Where the slot stands and who reads it.
fn say_slot(config: &Config, slot: &Value, lines: &mut Lines) {
    if slot.is_null() {
        lines.push((Paint::Bad, format!("slot          {} does not exist", config.slot)));
    } else {
        let held = match slot["active_pid"].as_i64() {
            Some(pid) => format!("held by walsender {pid}"),
            None => "held by nobody: no walhook is streaming".to_owned(),
        };
        let bytes = |key: &str| slot[key].as_i64().map_or_else(|| "?".to_owned(), human);
        lines.push(format!("slot          {} ({held}), WAL {}", config.slot, plain(&slot["wal_status"])));
        lines.push(format!(
            "confirmed     {}, {} behind; {} of WAL retained",
            plain(&slot["confirmed_flush_lsn"]),
            bytes("lag_bytes"),
            bytes("retained_bytes")
        ));
    }
}

/// Lines in the making.
struct Lines(Vec<(Paint, String)>);

impl Lines {
    fn push(&mut self, line: impl Into<Line>) {
        let Line(colour, line) = line.into();
        self.0.push((colour, line));
    }
}

struct Line(Paint, String);

impl From<String> for Line {
    fn from(line: String) -> Line {
        Line(Paint::Strong, line)
    }
}

impl From<(Paint, String)> for Line {
    fn from((colour, line): (Paint, String)) -> Line {
        Line(colour, line)
    }
}

/// The answer to the first question: does it stream?
fn headline(config: &Config, status: &Value) -> (Paint, String) {
    if status["streaming"] != true {
        let exit = last_exit(status).map(|exit| format!("; {exit}")).unwrap_or_default();
        return (Paint::Bad, format!("walhook       {}{exit}", not_streaming(config, status)));
    }
    let run = &status["run"];
    let behind = status["slot"]["lag_bytes"].as_i64().map_or_else(|| "?".to_owned(), human);
    let waits = status["nats"].as_object().into_iter().flatten().any(|(_, nats)| nats["connected"] != true);
    let colour = if waits { Paint::Doubtful } else { Paint::Good };
    (
        colour,
        format!(
            "walhook       streams, {behind} behind; {} events published since {}, version {}",
            plain(&run["events_published"]),
            plain(&run["connected_since"]),
            plain(&run["version"])
        ),
    )
}

/// Columns of the first word and the space behind it.
const LABEL: usize = 14;

/// The lines as they are written: what acts on a terminal is escaped, what is too wide is broken, the first word is coloured.
fn shown(lines: &[(Paint, String)], width: Option<usize>) -> String {
    let mut all = String::new();
    for (colour, line) in lines {
        let line = wrap(&text::one_line_of(line, 4 * text::SHOWN), LABEL, width);
        match line.split_at_checked(LABEL) {
            Some((label, rest)) => all.push_str(&format!("{}{rest}\n", paint(label, *colour))),
            None => all.push_str(&format!("{line}\n")),
        }
    }
    all
}

/// One NATS configuration, as the running streamer last reported it.
fn nats(connection: &Value) -> String {
    let mut text = match connection["server"].as_str() {
        Some(_) => {
            format!("connected to {} since {}", plain(&connection["server"]), plain(&connection["connected_since"]))
        }
        None if connection["given_up"] == true => "given up".to_owned(),
        None => "not connected".to_owned(),
    };
    if connection["holds_slot"] == true {
        text = format!("{text}; the slot waits for its {} unsettled events", plain(&connection["unsettled"]));
    }
    for what in connection["falls_back"].as_array().into_iter().flatten() {
        text = format!("{text}; {}", plain(what));
    }
    match connection["last_error"].as_str() {
        Some(error) if connection["connected"] != true => format!("{text}: {}", text::one_line(error)),
        _ => text,
    }
}

fn human(bytes: i64) -> String {
    let mut scaled = bytes.max(0);
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if scaled < 10_240 {
            return format!("{scaled} {unit}");
        }
        scaled /= 1024;
    }
    format!("{scaled} TiB")
}
