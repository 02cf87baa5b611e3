//! Whose a stream is: checked before anything is asked of it, and noted in its metadata where nothing is noted yet.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{StreamState, api_error, info, parse_state, unreadable};
use crate::{
    error::{Error, Kind, Result},
    nats::{
        control::Control,
        owner::{self, Owner, Use},
    },
    route::tables::StreamRow,
};

/// Who may use the stream of this row besides its owner.
pub fn usage(row: &StreamRow) -> Use {
    if row.is_shared() { Use::Shared } else { Use::Alone }
}

/// An error where the stream is another database's; without an owner nobody asks.
pub(super) fn refuse_anothers(row: &StreamRow, info: &Value, owner: Option<&Owner>) -> Result<()> {
    let Some(owner) = owner else { return Ok(()) };
    check_owner(row, &owner::metadata(&info["config"]), owner).map(drop)
}

/// Whose the stream of this row is. [`Kind::Untrusted`] where it is another database's.
pub fn check_owner(row: &StreamRow, metadata: &BTreeMap<String, String>, owner: &Owner) -> Result<owner::Claim> {
    let hint = owner::stream_hint(&row.stream_name, usage(row), metadata, owner);
    owner.check(&format!("stream {:?}", row.stream_name), metadata, usage(row), &hint)
}

/// Notes in the stream's metadata that it is `owner`'s. `None`: we may not.
pub async fn claim(control: &Control, stream: &str, owner: &Owner) -> Result<Option<StreamState>> {
    let attempted = || format!("note in the metadata of stream {stream:?} which database it belongs to");
    let Some(mut info) = info(control, stream).await? else {
        return Err(Error::unavailable(format!("{}: it is not there any more", attempted())));
    };
    let mut config = info["config"].take();
    owner.sign(config.as_object_mut().ok_or_else(|| unreadable("config"))?);
    match control.api(&format!("STREAM.UPDATE.{stream}"), &config).await {
        Ok(Ok(answer)) => parse_state(&answer).map(Some),
        Ok(Err(error)) => Err(api_error(attempted(), stream, error)),
        Err(error) if error.kind() == Kind::Permission => Ok(None),
        Err(error) => Err(error.context(attempted())),
    }
}
