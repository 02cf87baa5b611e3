//! `walhook adopt --stream`: notes in a stream's metadata that it belongs to this database.
//!
//! In: the name of a stream into which a configuration of this database publishes. Out: the key `walhook.source.<source>` in its
//! metadata names this database, whatever it named before. A strict stream that another source of another database has is refused:
//! only one of them may publish there. Nothing else in NATS or PostgreSQL is changed.

use crate::{
    commands::replay::Feed,
    config::Config,
    error::{Error, Result},
    nats::{owner, streams},
};

/// Does it.
///
/// # Errors
/// No configuration publishes into it; nobody has agreed; another source has it; NATS refuses.
pub async fn adopt(config: &Config, name: &str, agreed: bool) -> Result<()> {
    let (feed, client) = Feed::read(config).await?;
    let sources = feed.sources(&client, config, |_, stream| stream == name).await?;
    if sources.is_empty() {
        return Err(Error::config(format!(
            "adopt stream {name:?}: no configuration of this database publishes into it"
        ))
        .hint("SELECT * FROM rule_nats_streams, and `walhook status`, name the streams of this database"));
    }
    let owner = feed.owner();
    for source in &sources {
        let mut metadata = streams::state(&source.control, name).await?.metadata;
        let noted = owner::database_of(&metadata, &owner.source).map(str::to_owned);
        if noted.as_ref() == Some(&owner.database_id) {
            super::super::say(&format!("stream {} belongs to database {} already\n", source.name, owner.database_id))?;
            continue;
        }
        metadata.remove(&owner.key());
        streams::check_owner(&source.row, &metadata, &owner)?;
        let now = match &noted {
            Some(database) => {
                format!(
                    "belongs to database {database}, which must not publish into it with source {:?} any more",
                    owner.source
                )
            }
            None => "does not say to which database it belongs".to_owned(),
        };
        super::super::say(&format!(
            "Stream {} {now}.\nIts metadata will say that it belongs to this database, {} (source {:?}).\n",
            source.name, owner.database_id, owner.source
        ))?;
        if !agreed {
            super::ask()?;
        }
        if streams::claim(&source.control, name, &owner).await?.is_none() {
            return Err(Error::permission(format!(
                "adopt stream {name:?}: this NATS user may not publish to $JS.API.STREAM.UPDATE.{name}"
            ))
            .hint("allow it, or name a user who may: walhook adopt --stream … --nats-url nats://USER:PASSWORD@HOST"));
        }
        super::super::say(&format!("stream {} belongs to database {} from now on\n", source.name, owner.database_id))?;
    }
    Ok(())
}
