//! The last mile: whether each webhook could be called.
//!
//! In: the webhooks that `walhook deliver` would call. Out: findings about URL, network, DNS, TCP, TLS and certificate, found by the very
//! connector that `walhook deliver` uses; nothing is sent. With `--ping` one signed request for each webhook, which says that it is a test.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::{StreamExt, stream};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::finding::{Finding, How, Severity};
use crate::{
    commands::deliver::{
        call::{Caller, Step},
        configuration::{self, Known},
        limits::Limits,
        receivers::{Away, Receivers},
        settings::{Options, Settings},
        test_event::TestEvent,
    },
    config::Config,
    deliver::schedule::Outcome,
    error::{Error, Result},
    route::shown_url::shown_url,
    text,
};

/// Connections side by side.
const SIDE_BY_SIDE: usize = 64;
/// How long one may take.
const WITHIN: Duration = Duration::from_secs(5);
/// A certificate that expires within so many days is told.
const CERTIFICATE_DAYS: i64 = 14;

/// The checks of `--deliver`, or of `--ping` as well.
///
/// # Errors
/// Settings that cannot be; the webhooks cannot be read.
pub async fn check(config: &Config, options: &Options, ping: bool) -> Result<Vec<Finding>> {
    let settings = Settings::resolve(options, &config.deliver, &config.source)?;
    let caller = Caller::new(&settings.allowed_networks, settings.ca.as_deref())?;
    let mut client = None;
    let configuration::Read { webhooks: known, .. } = {
        let rows = configuration::Rows {
            postgres: config.postgres.clone(),
            config_name: Some(config.nats_config.clone()),
            secrets_dir: settings.secrets_dir.clone(),
            shard: config.shard_name(),
        };
        configuration::read_rows(&rows, &mut client).await?
    };
    let is_called = |known: &&Arc<Known>| {
        let webhook = &known.webhook;
        webhook.enabled
            && webhook.publishes
            && (settings.webhooks.is_empty() || settings.webhooks.contains(&webhook.name))
    };
    let known: Vec<&Arc<Known>> = known.values().filter(is_called).collect();
    if let Some(missing) = settings.webhooks.iter().find(|name| !known.iter().any(|known| known.webhook.name == **name))
    {
        return Err(Error::config(format!(
            "check webhook {missing:?}: there is none that is enabled and publishes to NATS"
        ))
        .hint("walhook status counts the webhooks"));
    }
    let mut findings: Vec<Finding> = known.iter().filter_map(|known| signing(known)).collect();
    findings.extend(reach(&caller, &known).await);
    if ping {
        let reached: Vec<_> = known.iter().filter(|known| known.keys.is_ok()).collect();
        let receivers = Receivers::new(caller);
        let pings =
            stream::iter(reached.into_iter().map(|known| self::ping(&receivers, known))).buffer_unordered(SIDE_BY_SIDE);
        findings.extend(pings.collect::<Vec<_>>().await.into_iter().flatten());
    }
    Ok(findings)
}

/// Who is meant, with no secret of its URL.
fn named(known: &Known) -> String {
    format!("webhook {:?}", known.webhook.name)
}

/// `webhook_signing`.
fn signing(known: &Known) -> Option<Finding> {
    let why = known.keys.as_ref().err()?;
    let finding = Finding::new("webhook_signing", Severity::Error, named(known), format!("{}: {why}", named(known)));
    Some(finding.remedy(
        How::Sql,
        format!(
            "SELECT public.rule_webhook_secret_set({}, 'signing', 'whsec_' || encode(sha256(gen_random_uuid()::text::bytea), 'base64'));",
            known.webhook.webhook_id
        ),
    ))
}

/// One connection for all webhooks of one server.
async fn reach(caller: &Caller, known: &[&Arc<Known>]) -> Vec<Finding> {
    let mut servers: BTreeMap<String, Vec<&Arc<Known>>> = BTreeMap::new();
    for known in known {
        servers.entry(server(&known.webhook.url)).or_default().push(known);
    }
    let outcomes = stream::iter(servers.into_values().map(async |same| {
        let outcome = caller.reach(&same[0].webhook.url, WITHIN).await;
        (same, outcome)
    }))
    .buffer_unordered(SIDE_BY_SIDE)
    .collect::<Vec<_>>()
    .await;
    let mut findings: Vec<(i32, Finding)> = Vec::new();
    for (same, outcome) in outcomes {
        for known in same {
            let found = match &outcome {
                Ok(certificate) => certificate.as_deref().and_then(|der| certificate_of(known, der)),
                Err((step, why)) => Some(not_reached(known, *step, why)),
            };
            findings.extend(found.map(|finding| (known.webhook.webhook_id, finding)));
        }
    }
    findings.sort_by_key(|(id, _)| *id);
    findings.into_iter().map(|(_, finding)| finding).collect()
}

/// Scheme, host and port; the whole URL where it has none.
fn server(url: &str) -> String {
    url::Url::parse(url).map_or_else(
        |_| url.to_owned(),
        |parsed| {
            format!(
                "{}://{}:{:?}",
                parsed.scheme(),
                parsed.host_str().unwrap_or_default(),
                parsed.port_or_known_default()
            )
        },
    )
}

fn not_reached(known: &Known, step: Step, why: &str) -> Finding {
    let (code, advice) = match step {
        Step::Url => ("webhook_url", "Correct the webhook's URL with rule_webhook_update."),
        Step::Network => (
            "webhook_network",
            "If walhook deliver may call it, name its network in deliver.allowed_networks or with --allow-network.",
        ),
        Step::Resolve => ("webhook_dns", "Correct the host in the webhook's URL, or the resolver of this machine."),
        Step::Connect => ("webhook_connect", "Check that the server runs, and the firewalls between."),
        Step::Tls => (
            "webhook_tls",
            "Check the server's certificate: its names, its dates and its authority. deliver.ca names certificates to trust besides the \
             system's.",
        ),
    };
    let shown = shown_url(&known.webhook.url);
    let text = format!("{} at {shown} cannot be called: {why}", named(known));
    let finding = Finding::new(code, Severity::Error, named(known), text);
    finding.remedy(How::Advice, advice)
}

/// `webhook_certificate`.
fn certificate_of(known: &Known, der: &[u8]) -> Option<Finding> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs()).ok()?;
    let days = (certificate.validity().not_after.timestamp() - now) / 86_400;
    if days > CERTIFICATE_DAYS {
        return None;
    }
    let text = format!("the certificate of {} expires in {days} days", named(known));
    Some(
        Finding::new("webhook_certificate", Severity::Warning, named(known), text)
            .remedy(How::Advice, "Renew the certificate of the webhook's server."),
    )
}

/// `webhook_ping`: one request, signed as every call, whose type says that it is a test.
async fn ping(receivers: &Receivers, known: &Known) -> Option<Finding> {
    let webhook = &known.webhook;
    let id = format!("walhook-check-{:016x}", fastrand::u64(..));
    let event = TestEvent::new(webhook, id, "walhook.check", "check", r#"{"test":true}"#);
    let token = receivers.token(known).await.unwrap_or_else(|Away { why, .. }| Err(why));
    let answer = receivers.attempt(&Limits::new(None), None, known, &event.call(), token).await;
    let why = match answer.outcome {
        Outcome::Answered { status: 200..=299, .. } => return None,
        Outcome::Answered { status, .. } => format!("answers {status} to a test request"),
        // Told by its step already.
        Outcome::Unanswered(why) | Outcome::NotSent(why) => format!("does not answer a test request: {why}"),
    };
    let text = format!("{} {}", named(known), text::one_line(&why));
    Some(
        Finding::new("webhook_ping", Severity::Error, named(known), text)
            .remedy(How::Advice, "See the log of the webhook's server for the request with this time and the header walhook-type: walhook.check."),
    )
}
