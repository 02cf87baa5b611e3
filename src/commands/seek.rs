//! `walhook seek`: a durable consumer set to where an LSN or a time begins in its stream. Nothing is published again.
//!
//! In: a stream of the feed, a consumer's name, a point. Out: the consumer, made anew with all its settings but for where it begins; or
//! made, where there was none. JetStream cannot move a consumer, so it is deleted in between: what is delivered and not
//! acknowledged at that moment is delivered again as far as it lies behind the point, and workers' pulls end with an error
//! that their libraries try again after. One that is at work is refused unless forced.

use clap::Args;
use serde_json::{Value, json};

use super::replay::{Bounds, Feed, Point, Source};
use crate::{
    config::Config,
    error::{Error, Result},
    nats::{
        control::ApiError,
        owner::{self, Use},
    },
};

/// Which consumer, and where to.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The stream
    #[arg(long, value_name = "NAME")]
    stream: String,
    /// The durable consumer; it is made where there is none
    #[arg(long, value_name = "NAME")]
    consumer: String,
    /// From here on: an LSN (0/16B3748), a commit time (2026-11-25 10:00+00) or an age (90s, 15m, 2h, 7d)
    #[arg(long, value_name = "LSN|TIME")]
    from: String,
    /// Also while workers are waiting for its messages or hold some that are not acknowledged
    #[arg(long)]
    force: bool,
}

const NO_CONSUMER: u64 = 10014;

/// Sets it.
///
/// # Errors
/// The stream is none of the feed's or does not reach back so far; workers are at it; JetStream refuses.
pub async fn seek(config: &Config, arguments: &Arguments) -> Result<()> {
    let Arguments { stream, consumer, from, force } = arguments;
    if consumer.is_empty() || consumer.contains(|c: char| c.is_whitespace() || ".*>/\\".contains(c)) {
        return Err(Error::config(format!("--consumer {consumer:?} is no name of a consumer")));
    }
    let (feed, client) = Feed::read(config).await?;
    let bounds = Bounds { from: Point::parse(&client, "--from", from).await?, to: None };
    let Some(source) = feed.sources(&client, config, |_, name| name == stream).await?.into_iter().next() else {
        return Err(Error::config(format!("--stream {stream:?}: no configuration of this feed publishes into it"))
            .hint("SELECT * FROM rule_nats_streams, and `walhook status`, name them"));
    };
    let state = source.state().await?;
    let begin = source.begin(&config.source, &bounds, &state).await?;
    // Nothing of it yet: the next one will be.
    let sequence = begin.as_ref().map_or(state.last_sequence + 1, |begin| begin.sequence);
    let before = info(&source, consumer).await?;
    let settings = match &before {
        None => json!({ "durable_name": consumer, "ack_policy": "explicit" }),
        Some(info) => {
            let hint = "Run `walhook seek` with the settings of that database";
            let what = format!("consumer {consumer:?} of stream {stream:?}");
            feed.owner().check(&what, &owner::metadata(&info["config"]), Use::Alone, hint)?;
            check_idle(stream, consumer, info, *force)?;
            info["config"].clone()
        }
    };
    let attempted = format!("set consumer {consumer:?} of stream {stream:?} to message {sequence}");
    if before.is_some() {
        match source.control.api(&format!("CONSUMER.DELETE.{stream}.{consumer}"), &Value::Null).await? {
            Err(error) if error.err_code != NO_CONSUMER => return Err(refused(attempted, error)),
            Ok(_) | Err(_) => {}
        }
    }
    let moved = beginning_at(settings.clone(), sequence);
    let request = json!({ "stream_name": stream, "config": moved });
    if let Err(error) = source.control.api(&format!("CONSUMER.DURABLE.CREATE.{stream}.{consumer}"), &request).await? {
        return Err(refused(attempted, error).hint(format!(
            "the consumer has been deleted and could not be made again; make it with these settings: {settings}"
        )));
    }
    let at = begin.map_or_else(
        || "behind the last event there is".to_owned(),
        |begin| format!("the event of {}", begin.position.commit_lsn),
    );
    let verb = if before.is_some() { "set" } else { "made and set" };
    super::say(&format!("consumer {consumer} of stream {stream} is {verb} to message {sequence}, {at}\n"))
}

/// The consumer as it is; `None` where there is none.
async fn info(source: &Source, consumer: &str) -> Result<Option<Value>> {
    let stream = source.stream();
    match source.control.api(&format!("CONSUMER.INFO.{stream}.{consumer}"), &Value::Null).await? {
        Ok(info) => Ok(Some(info)),
        Err(error) if error.err_code == NO_CONSUMER => Ok(None),
        Err(error) => Err(refused(format!("read consumer {consumer:?} of stream {stream:?}"), error)),
    }
}

/// Nobody is surprised by a consumer that nobody uses.
fn check_idle(stream: &str, consumer: &str, info: &Value, force: bool) -> Result<()> {
    let count = |key: &str| info[key].as_u64().unwrap_or(0);
    let (waiting, unacknowledged) = (count("num_waiting"), count("num_ack_pending"));
    let is_pushed = info["push_bound"].as_bool().unwrap_or(false);
    if force || (waiting == 0 && unacknowledged == 0 && !is_pushed) {
        return Ok(());
    }
    let what = match (is_pushed, waiting, unacknowledged) {
        (true, ..) => "a subscriber is bound to it".to_owned(),
        (false, 0, held) => format!("{held} messages are delivered and not acknowledged"),
        (false, pulls, held) => {
            format!("{pulls} pulls wait for its messages, and {held} are delivered and not acknowledged")
        }
    };
    Err(Error::config(format!("move consumer {consumer:?} of stream {stream:?}: {what}"))
        .hint("stop its workers first, or --force: they get an error, and messages that they hold once more"))
}

/// The same settings with another beginning.
fn beginning_at(mut settings: Value, sequence: u64) -> Value {
    if let Some(settings) = settings.as_object_mut() {
        settings.remove("opt_start_time");
        settings.insert("deliver_policy".to_owned(), "by_start_sequence".into());
        settings.insert("opt_start_seq".to_owned(), sequence.into());
    }
    settings
}

fn refused(attempted: String, error: ApiError) -> Error {
    Error::config(attempted).caused_by(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_settings_but_the_beginning_are_kept() {
        let settings = json!({
            "durable_name": "w", "ack_policy": "explicit", "max_deliver": 5, "filter_subject": "a.>",
            "deliver_policy": "by_start_time", "opt_start_time": "2026-01-01T00:00:00Z", "a_field_of_tomorrow": 1,
        });
        let moved = json!({
            "durable_name": "w", "ack_policy": "explicit", "max_deliver": 5, "filter_subject": "a.>",
            "deliver_policy": "by_start_sequence", "opt_start_seq": 7, "a_field_of_tomorrow": 1,
        });
        assert_eq!(beginning_at(settings, 7), moved);
    }
}
