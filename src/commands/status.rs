//! `walhook status`: what the database knows of slot, streams, webhooks and dead letters, for a person or as JSON.

use serde_json::{Value, json};
use tokio_postgres::Client;

use super::plain;
use crate::{
    config::Config,
    error::{Error, Kind, Result},
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
const DEAD_LETTERS: &str = "SELECT json_build_object('dead', count(*), 'newest', max(created_at), \
        'newest_reason', (array_agg(reason ORDER BY dead_letter_id DESC))[1])::text \
    FROM public.rule_nats_dead_letters WHERE status = 'dead'";

/// Prints the status.
///
/// # Errors
/// PostgreSQL cannot be asked, or the slot is missing or lost.
pub async fn status(config: &Config, as_json: bool) -> Result<()> {
    let client = sql::connect(&config.postgres).await?;
    let slot = ask(&client, SLOT, Some(&config.slot)).await?;
    let status = json!({
        "source": config.source,
        "slot": slot,
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
        super::say(&render(config, &status))?;
    }
    if slot.is_null() {
        return Err(
            Error::config(format!("replication slot {:?} does not exist", config.slot)).hint("run `walhook setup`")
        );
    }
    if slot["wal_status"] == "lost" {
        return Err(Error::untrusted(format!("replication slot {:?} is lost", config.slot)));
    }
    Ok(())
}

/// `Null` where there is no row.
async fn ask(client: &Client, statement: &str, name: Option<&String>) -> Result<Value> {
    let attempted = "read the status";
    let row = match name {
        Some(name) => client.query_opt(statement, &[name]).await,
        None => client.query_opt(statement, &[]).await,
    };
    let row = row.map_err(|error| {
        let error = sql::error(attempted, error);
        match crate::postgres::sqlstate(&error) {
            Some("42P01") => error.of_kind(Kind::Config).hint("run `walhook setup`, which applies the migrations"),
            _ => error,
        }
    })?;
    let Some(row) = row else { return Ok(Value::Null) };
    let text: &str = row.get(0);
    serde_json::from_str(text).map_err(|error| Error::protocol(attempted).caused_by(error))
}

fn render(config: &Config, status: &Value) -> String {
    let slot = &status["slot"];
    let mut lines = vec![format!("source        {}", config.source)];
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
