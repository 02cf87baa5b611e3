//! `walhook status`: what the database knows of slot, streams, webhooks and dead letters, for a person or as JSON.

use serde_json::{Value, json};
use tokio_postgres::Client;

use super::{
    plain,
    setup_check::{self, Finding, Severity},
};
use crate::{
    config::Config,
    error::{Error, Result},
    postgres::sql,
    text,
};

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

/// Prints the status, and ends with an error where not all is well: so a monitor needs the exit code alone.
///
/// # Errors
/// PostgreSQL cannot be asked; what `walhook run` would not start with, by its code; nobody streams (1); something that should
/// be published is not (2).
pub async fn status(config: &Config, as_json: bool) -> Result<()> {
    let client = super::connect(config).await?;
    let slot = ask(&client, SLOT, Some(&config.slot)).await?;
    let findings = setup_check::read(&client, config).await?;
    let heartbeat = ask(&client, HEARTBEAT, Some(&config.source)).await?;
    let holder = slot["active_pid"].is_number();
    let status = json!({
        "source": config.source,
        "identity": identity(&client).await?,
        "slot": slot,
        "streaming": holder && heartbeat == true,
        "findings": findings,
        "anchor": ask(&client, ANCHOR, Some(&config.slot)).await?,
        "streams": ask(&client, STREAMS, Some(&config.source)).await?,
        "nats": ask(&client, NATS, Some(&config.source)).await?,
        "log": ask(&client, LOG, Some(&config.source)).await?,
        "webhooks": ask(&client, WEBHOOKS, None).await?,
        "dead_letters": ask(&client, DEAD_LETTERS, None).await?,
    });
    if as_json {
        super::say_json([&status])?;
    } else {
        super::say(&render(config, &status, &findings))?;
    }
    setup_check::refuse(config, &findings)?;
    if status["streaming"] != true {
        let slot = &config.slot;
        return Err(Error::unavailable(match holder {
            true => format!("slot {slot:?} is held, and walhook has said nothing for a while in rule_cdc_status"),
            false => format!("nobody streams from slot {slot:?}"),
        })
        .hint("start `walhook run`, or see its log"));
    }
    match findings.iter().filter(|finding| finding.severity == Severity::Error).count() {
        0 => Ok(()),
        count => Err(Error::config(format!("{count} things are wrong with the set-up: see above"))),
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

fn render(config: &Config, status: &Value, findings: &[Finding]) -> String {
    let slot = &status["slot"];
    let mut lines = vec![format!("source        {}", config.source)];
    lines.push(format!("database      {}", plain(&status["identity"]["database_id"])));
    if let Some(problem) = status["identity"]["problem"].as_str() {
        lines.push(format!("              {problem}"));
    }
    if slot.is_null() {
        lines.push(format!("slot          {} does not exist", config.slot));
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
        lines.push(format!("nats          {}: {}", text::one_line(name), nats(connection)));
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
    lines.push(format!("dead letters  {}{newest}", plain(&dead["dead"])));
    for finding in findings {
        let severity = match finding.severity {
            Severity::Fatal | Severity::Error => "wrong",
            Severity::Warning => "warning",
            Severity::Note => "note",
        };
        lines.push(format!("{severity:<13} {}", text::one_line(&finding.to_string())));
    }
    lines.push(String::new());
    lines.join("\n")
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
