//! The bucket of schemas for consumers.
//!
//! In: a connection, and whose bucket it is. Out: the finding `consumer_schemas`, if it cannot be used; and the names that it may have,
//! for the rights that `run` needs. Makes nothing.

use super::finding::{Finding, Severity};
use crate::{
    commands::identity::Identity,
    error::Kind,
    nats::{
        control::Control,
        schemas::{self, Bucket},
    },
    route::tables::ConfigRow,
};

/// The names that the bucket of a configuration may have; none where it publishes no schemas.
pub fn names(row: &ConfigRow, source: &str, identity: Option<&Identity>) -> Vec<String> {
    if row.publish_schemas != Some(true) {
        return Vec::new();
    }
    identity
        .map_or_else(|| vec![schemas::bucket_name(source)], |identity| schemas::names(&identity.owner(source)).into())
}

/// The name that it has, as far as that can be seen, and `consumer_schemas`.
pub async fn check(
    control: &Control,
    row: &ConfigRow,
    source: &str,
    identity: Option<&Identity>,
    subject: &str,
) -> (Vec<String>, Option<Finding>) {
    let mut names = names(row, source, identity);
    let Some(identity) = identity.filter(|_| !names.is_empty()) else { return (names, None) };
    match schemas::find(control, &identity.owner(source)).await {
        Ok(Bucket { name, .. }) => (vec![name], None),
        Err(error) => {
            names.truncate(1);
            let finding = || Finding::with_severity("consumer_schemas", Severity::Error, subject, &error);
            // What the rights say is found there.
            (names, (error.kind() != Kind::Permission).then(finding))
        }
    }
}
