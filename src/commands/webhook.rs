//! `walhook webhook test`: sends one test event to a webhook's receiver, as `walhook deliver` would call it, and shows what it answers.
//!
//! In: the webhook's row and secrets. Out: one request, on standard output its status, its time and the beginning of the answer. Always
//! holds: nothing is recorded, no webhook is disabled, no event is touched; no secret of the webhook is shown, also where the
//! receiver sends it back.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use clap::{Args, Subcommand};
use serde_json::json;
use tokio::time::timeout;

use super::{
    deliver::{
        call::{Answer, Caller},
        configuration::{self, Known, Rows},
        limits::Limits,
        receivers::{Away, Receivers, Token},
        settings::{Options, Settings},
        test_event::TestEvent,
    },
    say, say_json,
};
use crate::{
    config::Config,
    deliver::schedule::Outcome,
    error::{Error, Result},
    percent,
    route::{headers::is_credential, shown_url::shown_url},
    text,
};

/// How long the webhook's limits over all workers may let the test wait.
const PATIENCE: Duration = Duration::from_secs(30);
/// How much of an answer is shown, in characters.
const SHOWN: usize = 500;
/// Shorter texts are no secrets, and hiding them would only confuse.
const SECRET_MIN: usize = 4;

/// What to do with a webhook.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// Send one test event to its URL, signed and with its certificate and token, and show the answer
    Test(Test),
}

/// A test of a webhook.
#[derive(Debug, Args)]
pub struct Test {
    /// Its name
    name: String,
    /// What stands in the place of a row, JSON [default: {"test":true}]
    #[arg(long, value_name = "JSON")]
    data: Option<String>,
    /// Allow calls into this network, which is private, loopback or otherwise inside; may be repeated
    #[arg(
        long = "allow-network",
        value_name = "CIDR",
        env = "WALHOOK_ALLOW_NETWORK",
        value_delimiter = ',',
        hide_env_values = true
    )]
    allowed_networks: Vec<String>,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// Does it.
///
/// # Errors
/// There is no such webhook; the test event did not arrive.
pub async fn webhook(config: &Config, action: &Action) -> Result<()> {
    match action {
        Action::Test(arguments) => test(config, arguments).await,
    }
}

async fn test(config: &Config, arguments: &Test) -> Result<()> {
    let data = arguments.data.as_deref().unwrap_or(r#"{"test":true}"#);
    if let Err(error) = serde_json::from_str::<&serde_json::value::RawValue>(data) {
        return Err(Error::config("read --data: it is not JSON").caused_by(error));
    }
    let options = Options { allowed_networks: arguments.allowed_networks.clone(), ..Options::default() };
    let settings = Settings::resolve(&options, &config.deliver, &config.source)?;
    let caller = Caller::new(&settings.allowed_networks, settings.ca.as_deref())?;
    // Refuses tables of another version before anything is read.
    drop(super::connect(config).await?);
    let rows = Rows {
        postgres: config.postgres.clone(),
        config_name: None,
        secrets_dir: settings.secrets_dir.clone(),
        shard: config.shard_name(),
    };
    let all = configuration::read_rows(&rows, &mut None).await?.webhooks;
    let name = &arguments.name;
    let known = all.into_values().find(|known| known.webhook.name == *name).ok_or_else(|| {
        Error::config(format!("test webhook {name:?}: there is no such webhook"))
            .hint("SELECT * FROM rule_webhook_list(); lists the webhooks")
    })?;
    let id = format!("walhook-test-{:016x}", fastrand::u64(..));
    let event = TestEvent::new(&known.webhook, id.clone(), "walhook.test", "test", data);
    let (receivers, limits) = (Receivers::new(caller), Limits::new(Some(config.postgres.clone())));
    let mut secrets = secrets_of(&known);
    let called = timeout(PATIENCE + Duration::from_millis(known.webhook.timeout_ms) * 2, async {
        let token = match receivers.token(&known).await {
            Ok(Ok(token)) => token,
            Ok(Err(why)) | Err(Away { why, .. }) => return Answer::not_sent(why),
        };
        let shown = |token: &Token| token.authorization().trim_start_matches("Bearer ").to_owned();
        secrets.extend(token.iter().map(shown));
        let slot = loop {
            // Other workers have them all: again.
            if let Ok(slot) = limits.slot(&known.webhook).await {
                break slot;
            }
        };
        limits.start(&known.webhook).await;
        let has_token = token.is_some();
        let answer = receivers.attempt(&limits, slot.as_ref(), &known, &event.call(), Ok(token)).await;
        // The receiver may have refused the first one.
        if has_token && let Ok(Ok(Some(token))) = receivers.token(&known).await {
            secrets.push(shown(&token));
        }
        answer
    });
    let answer = called.await.unwrap_or_else(|_| {
        Answer::not_sent("its max_in_flight or rate_limit_per_second left no room for the test".to_owned())
    });
    limits.release().await;
    report(&known, &id, &answer, &secrets, arguments.json)
}

/// Shows what came of it. Whatever the receiver says, none of `secrets` is shown.
fn report(known: &Known, id: &str, answer: &Answer, secrets: &[String], as_json: bool) -> Result<()> {
    let webhook = &known.webhook;
    let url = shown_url(&webhook.url).into_owned();
    let outcome = match &answer.outcome {
        Outcome::Unanswered(why) => Outcome::Unanswered(hidden(why, secrets)),
        Outcome::NotSent(why) => Outcome::NotSent(hidden(why, secrets)),
        answered @ Outcome::Answered { .. } => answered.clone(),
    };
    let body = answer.body.as_deref().map(|body| hidden(body, secrets));
    let shown: Option<String> = body.as_deref().map(|body| body.chars().take(SHOWN).collect());
    let is_cut = shown.as_ref().map(String::len) != body.as_ref().map(String::len);
    let took_ms = (answer.took.as_secs_f64() * 1e4).round() / 1e1;
    if as_json {
        let error = match &outcome {
            Outcome::Answered { .. } => None,
            Outcome::Unanswered(why) | Outcome::NotSent(why) => Some(why),
        };
        say_json([&json!({
            "webhook": webhook.name, "webhook_id": webhook.webhook_id, "enabled": webhook.enabled,
            "method": webhook.method, "url": url, "event": id, "status": outcome.status(), "took_ms": took_ms,
            "error": error, "response": shown,
        })])?;
    } else {
        let yes = |is: bool| if is { "yes" } else { "no" };
        let mut lines = vec![
            format!(
                "webhook   {} ({}){}",
                webhook.name,
                webhook.webhook_id,
                if webhook.enabled { "" } else { ", disabled" }
            ),
            format!("request   {} {url}", webhook.method),
            format!(
                "          signed: {}, client certificate: {}, access token: {}",
                yes(webhook.signed),
                yes(webhook.client_certificate),
                yes(webhook.oauth2.is_some())
            ),
            format!("event     {id}"),
        ];
        let came = match &outcome {
            Outcome::Answered { status, .. } => format!("status    {status}"),
            Outcome::Unanswered(why) => format!("no answer {}", text::one_line(why)),
            Outcome::NotSent(why) => format!("not sent  {}", text::one_line(why)),
        };
        lines.push(format!("{came} after {took_ms} ms"));
        if let Some(shown) = shown.as_deref().filter(|shown| !shown.is_empty()) {
            lines.push(format!("response  {}{}", text::one_line(shown), if is_cut { " …" } else { "" }));
        }
        say(&format!("{}\n", lines.join("\n")))?;
    }
    let attempted = format!("test webhook {:?}", webhook.name);
    match outcome {
        Outcome::Answered { status: 200..=299, .. } => Ok(()),
        Outcome::Answered { status, .. } => {
            Err(Error::unavailable(format!("{attempted}: its receiver answers {status}"))
                .hint(format!("look for the request with webhook-id {id} in the receiver's log")))
        }
        Outcome::NotSent(why) => Err(Error::config(format!("{attempted}: nothing was sent: {why}"))
            .hint("walhook check --deliver looks at every webhook's address and certificate")),
        Outcome::Unanswered(why) => Err(Error::unavailable(format!("{attempted}: {why}"))
            .hint("walhook check --deliver says at which step a connection fails")),
    }
}

/// What a receiver may send back and nobody else may see.
fn secrets_of(known: &Known) -> Vec<String> {
    let mut secrets = Vec::new();
    for (name, value) in &known.webhook.headers {
        if is_credential(name, &json!(value)) {
            secrets.push(value.clone());
            secrets.extend(value.split(' ').skip(1).map(str::to_owned));
        }
    }
    if let Ok(url) = url::Url::parse(&known.webhook.url) {
        let (user, password) = (url.username(), url.password().unwrap_or_default());
        let decoded = |text| percent::decode(text).unwrap_or_default();
        if !password.is_empty() || !user.is_empty() {
            secrets.push(STANDARD.encode(format!("{}:{}", decoded(user), decoded(password))));
            secrets.extend([password.to_owned(), decoded(password)]);
        }
        for (name, value) in url.query_pairs() {
            if is_credential(&name, &json!(value)) {
                secrets.push(value.into_owned());
            }
        }
    }
    let access = &known.access;
    let given = [&access.key, &access.client_secret].into_iter().flatten();
    secrets.extend(given.map(|secret| secret.reveal().trim().to_owned()));
    secrets
}

fn hidden(text: &str, secrets: &[String]) -> String {
    let mut secrets: Vec<&str> =
        secrets.iter().map(String::as_str).filter(|secret| secret.len() >= SECRET_MIN).collect();
    // The longest first, so that no rest of one is left.
    secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    secrets.into_iter().fold(text.to_owned(), |text, secret| text.replace(secret, "***"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_receiver_sends_back_of_secrets_is_hidden() {
        let secrets = ["hunter2".to_owned(), "Bearer hunter2".to_owned(), "a".to_owned()];
        assert_eq!(hidden("a Bearer hunter2, hunter2", &secrets), "a ***, ***");
    }
}
