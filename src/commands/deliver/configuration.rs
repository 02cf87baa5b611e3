//! Which webhooks there are, and what changes of them.
//!
//! In: the bucket that the streamer keeps, and the database where there is one. Out: all webhooks with what signs their
//! requests, anew whenever something has changed. With a database the rows there count, and the bucket only says when to
//! read them; where there is no bucket they are read every [`REFRESH`]. Without a database the bucket is all there is.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use async_nats::jetstream::kv;
use futures_util::StreamExt;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until},
};

use super::consumer;
use crate::{
    commands::{bucket, identity::Identity, log_once::LogOnce, rows},
    deliver::{
        sign::{self, Key},
        webhook::{self, Credentials, Webhook},
    },
    error::Result,
    files,
    nats::{control::Control, owner::Owner},
    postgres::{Settings as Postgres, settings::Secret, sql},
};

/// How often the rows are read where nothing says that they have changed.
const REFRESH: Duration = Duration::from_secs(15);
/// How long changes may gather before they are acted on.
const GATHER: Duration = Duration::from_millis(50);
/// How often a bucket that is not there is looked for.
const LOOK: Duration = Duration::from_secs(2);

/// A webhook and what signs its requests.
#[derive(Debug, Clone)]
pub struct Known {
    /// The webhook.
    pub webhook: Webhook,
    /// Empty where it is not signed; otherwise why it cannot be signed.
    pub keys: std::result::Result<Vec<Key>, String>,
    /// What else its receiver wants to see.
    pub access: Access,
    /// Which version of its row this is, where it was read from the database.
    pub version: String,
    /// Its row was there and is there no more.
    pub is_gone: bool,
}

impl Known {
    /// One without anything secret.
    pub fn open(webhook: Webhook, keys: std::result::Result<Vec<Key>, String>) -> Known {
        Known { webhook, keys, access: Access::default(), version: String::new(), is_gone: false }
    }
}

/// Secrets by which a receiver knows the worker.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// `tls_certificate`, PEM.
    pub certificate: Option<Secret>,
    /// `tls_key`, PEM.
    pub key: Option<Secret>,
    /// `oauth2_client_secret`
    pub client_secret: Option<Secret>,
}

/// All webhooks.
#[derive(Debug, Clone, Default)]
pub struct All {
    /// Those to be called, by id.
    pub webhooks: BTreeMap<i32, Arc<Known>>,
    /// Those whose rows are gone, as far as that is certain: one that has moved to another configuration is not.
    pub is_deleted: BTreeSet<i32>,
    /// The configuration has a `notice_subject`.
    pub has_notices: bool,
}

/// Follows the configuration `config_name` for ever. `None` in the channel: nothing is known yet.
pub async fn follow(
    control: Control,
    whose: Whose,
    config_name: String,
    postgres: Option<Postgres>,
    secrets_dir: Option<PathBuf>,
    sender: watch::Sender<Option<All>>,
) {
    let (changed, mut changes) = mpsc::channel(16);
    let shard = whose.shard.clone();
    tokio::spawn(watch_bucket(control, whose, changed));
    match postgres {
        Some(postgres) => {
            let rows = Rows { postgres, config_name: Some(config_name), secrets_dir, shard };
            follow_rows(&rows, &mut changes, &sender).await;
        }
        None => follow_bucket(&mut changes, &sender).await,
    }
}

/// Whose webhooks these are.
#[derive(Clone)]
pub struct Whose {
    /// The name of the feed.
    pub source: String,
    /// The shard of the process.
    pub shard: Option<String>,
    /// The identity of the database, where there is a connection to it.
    pub identity: Option<Identity>,
    /// The same by the settings, where there is none.
    pub database_id: Option<String>,
    /// To whom streams and consumers have to belong, once that is known.
    pub owner: Arc<OnceLock<Owner>>,
}

impl Whose {
    /// The bucket of this database; `None` while there is none.
    async fn bucket(&self, control: &Control) -> Result<Option<String>> {
        if let Some(identity) = &self.identity {
            let place = bucket::find(control, &self.source, identity).await?;
            return Ok(place.info.map(|_| place.name));
        }
        let database_id = self.owner.get().map(|owner| &owner.database_id).or(self.database_id.as_ref());
        let names = consumer::all_streams(control).await?;
        let found = bucket::find_by_name(control, &self.source, &names, database_id.map(String::as_str)).await?;
        Ok(found.map(|(bucket, owner)| {
            if let Some(owner) = owner {
                self.owner.get_or_init(|| owner);
            }
            bucket
        }))
    }
}

/// What the bucket says: a webhook is as it says now, or is not called by way of this NATS any more.
type Change = (i32, Option<Box<Webhook>>);

async fn watch_bucket(control: Control, whose: Whose, changed: mpsc::Sender<Change>) {
    let mut logged = LogOnce::default();
    while !changed.is_closed() {
        let why = match whose.bucket(&control).await {
            Ok(Some(bucket)) => match read_bucket(&control, &bucket, &changed).await {
                Ok(()) => None,
                Err(error) => Some(format!("the bucket {bucket:?} cannot be followed yet: {error}")),
            },
            Ok(None) => Some(format!("there is no bucket of source {:?} yet; `walhook run` makes it", whose.source)),
            Err(error) => Some(format!("the bucket of source {:?} cannot be followed: {error}", whose.source)),
        };
        match why {
            Some(text) if logged.is_news(&text) => tracing::info!("{text}"),
            Some(_) => {}
            None => {
                logged.forget();
            }
        }
        sleep(LOOK).await;
    }
}

/// Ends when the bucket cannot be followed any more.
async fn read_bucket(
    control: &Control,
    bucket: &str,
    changed: &mpsc::Sender<Change>,
) -> std::result::Result<(), async_nats::Error> {
    let store = control.jetstream().get_key_value(bucket).await?;
    let mut entries = store.watch_with_history(format!("{}*", bucket::KEY_PREFIX)).await?;
    while let Some(entry) = entries.next().await {
        let entry = entry?;
        let Some(id) = entry.key.strip_prefix(bucket::KEY_PREFIX).and_then(|id| id.parse().ok()) else { continue };
        let webhook = match entry.operation {
            kv::Operation::Put => match serde_json::from_slice::<Webhook>(&entry.value) {
                Ok(webhook) => Some(Box::new(webhook)),
                Err(error) => {
                    tracing::warn!(bucket, key = entry.key, "a webhook in the bucket cannot be read: {error}");
                    continue;
                }
            },
            kv::Operation::Delete | kv::Operation::Purge => None,
        };
        changed.send((id, webhook)).await?;
    }
    Ok(())
}

/// Without a database. What leaves the bucket is called no more, and its events wait: it may have been deleted, or have
/// moved, or the bucket may be on its way to be made anew.
async fn follow_bucket(changes: &mut mpsc::Receiver<Change>, sender: &watch::Sender<Option<All>>) {
    let mut all = All::default();
    while let Some(change) = changes.recv().await {
        let mut next = Some(change);
        let until = Instant::now() + GATHER;
        while let Some((id, webhook)) = next {
            match (webhook, all.webhooks.get_mut(&id)) {
                (Some(webhook), _) => {
                    let keys = match webhook.signed {
                        false => Ok(Vec::new()),
                        true => Err("it is signed, and this worker has no database to read secrets from".to_owned()),
                    };
                    all.webhooks.insert(id, Arc::new(Known::open(*webhook, keys)));
                }
                (None, Some(known)) => Arc::make_mut(known).webhook.enabled = false,
                (None, None) => {}
            }
            next = tokio::select! {
                change = changes.recv() => change,
                () = sleep_until(until) => None,
            };
        }
        tracing::debug!(webhooks = all.webhooks.len(), "configuration read");
        sender.send_replace(Some(all.clone()));
    }
}

/// Where the rows are, and which.
pub struct Rows {
    /// The database.
    pub postgres: Postgres,
    /// Of this NATS configuration; otherwise all.
    pub config_name: Option<String>,
    /// A folder with secrets.
    pub secrets_dir: Option<PathBuf>,
    /// The shard of the process.
    pub shard: Option<String>,
}

/// With a database.
async fn follow_rows(rows: &Rows, changes: &mut mpsc::Receiver<Change>, sender: &watch::Sender<Option<All>>) {
    let mut client = None;
    let mut logged = LogOnce::default();
    let mut seen = BTreeSet::new();
    loop {
        match read_rows(rows, &mut client).await {
            Ok(Read { webhooks, ids: rows, has_notices }) => {
                logged.forget();
                let is_deleted = seen.difference(&rows).copied().collect();
                seen.extend(rows);
                sender.send_replace(Some(All { webhooks, is_deleted, has_notices }));
            }
            Err(error) => {
                client = None;
                let text = error.to_string();
                if logged.is_news(&text) {
                    let meanwhile = match *sender.borrow() {
                        Some(_) => "calls go on with those that were read before",
                        None => "nothing is called until they can be read",
                    };
                    tracing::warn!("the webhooks cannot be read; {meanwhile}: {text}");
                }
            }
        }
        let wait = if client.is_none() { LOOK } else { REFRESH };
        tokio::select! {
            _ = changes.recv() => {
                let until = Instant::now() + GATHER;
                while let Some(Some(_)) = tokio::select! {
                    change = changes.recv() => Some(change),
                    () = sleep_until(until) => None,
                } {}
            }
            () = sleep(wait) => {}
        }
    }
}

/// What the rows say.
pub struct Read {
    /// The webhooks to be called, by id.
    pub webhooks: BTreeMap<i32, Arc<Known>>,
    /// The ids of all that there are.
    pub ids: BTreeSet<i32>,
    /// The configuration has a `notice_subject`.
    pub has_notices: bool,
}

/// The webhooks to be called, and what else workers need to know.
///
/// # Errors
/// The rows cannot be read.
pub async fn read_rows(
    Rows { postgres, config_name, secrets_dir, shard }: &Rows,
    client: &mut Option<tokio_postgres::Client>,
) -> Result<Read> {
    let client = sql::reconnect(client, postgres).await?;
    let attempted = "read the webhooks";
    let transaction = rows::snapshot(client, attempted).await?;
    let mut tables = rows::read(&transaction).await?;
    tables.shard.clone_from(shard);
    let failed = |error| rows::missing_table(sql::error(attempted, error));
    let versions = transaction.query("SELECT webhook_id, xmin::text FROM public.rule_webhooks", &[]).await;
    let versions = versions.map_err(failed)?;
    let mut versions: BTreeMap<i32, String> = versions.iter().map(|row| (row.get(0), row.get(1))).collect();
    // The newest first: the one that receivers know longest comes last.
    let secrets = transaction
        .query(
            "SELECT webhook_id, secret_name, secret_value FROM public.rule_webhook_secrets \
             WHERE webhook_id IS NOT NULL AND (secret_name LIKE $1 || '%' OR secret_name = ANY ($2)) \
             ORDER BY webhook_id, secret_id DESC",
            &[&sign::SECRET_NAME, &ACCESS.as_slice()],
        )
        .await
        .map_err(|error| rows::missing_table(sql::error("read rule_webhook_secrets", error)))?;
    transaction.commit().await.map_err(|error| sql::error(attempted, error))?;
    let mut by_webhook: BTreeMap<i32, Vec<(String, String)>> = BTreeMap::new();
    for row in &secrets {
        let (id, name, value): (i32, String, String) = (row.get(0), row.get(1), row.get(2));
        by_webhook.entry(id).or_default().push((name, value));
    }
    let webhooks = webhook::webhooks_of(&tables, config_name.as_deref(), Credentials::Included);
    let known = webhooks.into_iter().map(|webhook| {
        let id = webhook.webhook_id;
        let mut secrets = by_webhook.remove(&id).unwrap_or_default();
        let problem =
            secrets_dir.as_deref().map(|folder| in_files(folder, &webhook.name, &mut secrets)).and_then(Result::err);
        let keys = match (webhook.signed, problem) {
            (false, _) => Ok(Vec::new()),
            (true, Some(problem)) => Err(problem),
            (true, None) => keys(&webhook, &secrets),
        };
        let secret = |wanted: &str| {
            secrets.iter().find(|(name, _)| name == wanted).map(|(_, value)| Secret::new(value.as_str()))
        };
        let [certificate, key, client_secret] = ACCESS.map(secret);
        let access = Access { certificate, key, client_secret };
        let version = versions.remove(&id).unwrap_or_default();
        (id, Arc::new(Known { webhook, keys, access, version, is_gone: false }))
    });
    let config = tables.configs.values().find(|row| Some(&row.config_name) == config_name.as_ref());
    Ok(Read {
        webhooks: known.collect(),
        ids: tables.webhooks.keys().copied().collect(),
        has_notices: config.is_some_and(|row| row.notice_subject.is_some()),
    })
}

/// The names of the secrets of [`Access`].
const ACCESS: [&str; 3] = ["tls_certificate", "tls_key", "oauth2_client_secret"];

/// Secrets in files `<secrets_dir>/<webhook>/<secret>`, which come before those in the table. A webhook whose name is no name of a
/// folder has none there: no name leads out of the folder.
fn in_files(folder: &Path, webhook: &str, secrets: &mut Vec<(String, String)>) -> std::result::Result<(), String> {
    if webhook.is_empty() || webhook.starts_with('.') || webhook.contains(['/', '\0']) {
        return Ok(());
    }
    let Ok(entries) = std::fs::read_dir(folder.join(webhook)) else { return Ok(()) };
    let mut names: Vec<String> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.retain(|name| sign::is_signing(name) || ACCESS.contains(&name.as_str()));
    // `signing_2027` before `signing_2026` before `signing`: the newest first.
    names.sort();
    for name in names {
        let content = files::read_text("deliver.secrets_dir", &folder.join(webhook).join(&name));
        let content = content.map_err(|error| error.to_string())?;
        secrets.retain(|(other, _)| *other != name);
        secrets.insert(0, (name, content));
    }
    Ok(())
}

fn keys(webhook: &Webhook, secrets: &[(String, String)]) -> std::result::Result<Vec<Key>, String> {
    let secrets: Vec<_> = secrets.iter().filter(|(name, _)| sign::is_signing(name)).collect();
    if secrets.is_empty() {
        return Err(format!(
            "it is signed and has no secret: SELECT rule_webhook_secret_set(<webhook_id>, '{}', 'whsec_…')",
            sign::SECRET_NAME
        ));
    }
    let key = |(name, value): &&(String, String)| {
        webhook.signature.key(value).map_err(|why| format!("secret {name:?} cannot sign: {why}"))
    };
    secrets.iter().map(key).collect()
}
