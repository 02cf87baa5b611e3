//! Messages of `rule_webhook_emit`, as events at their own place in the WAL.
//!
//! In: logical messages of the open transaction, and the keys that sign those of ours. Out: events in the same lanes as all others.
//! Always holds: a message that the function did not make is no event and stops nothing, and no position depends on it; a session
//! that did not ask for messages confirms nothing behind the first key.

use super::Streamer;
use crate::{
    error::{Error, Result},
    route::emitted::{EmitKeys, PREFIX},
    wal::pgoutput::LogicalMessage,
};

impl Streamer {
    /// The keys as they are now, and whether the slot was asked for logical messages.
    ///
    /// # Errors
    /// There is a key, and it was not asked for them: another session has to read from what is confirmed.
    pub fn set_emit_keys(&mut self, keys: EmitKeys, reads_messages: bool) -> Result<()> {
        (self.emit_keys, self.reads_messages) = (keys, reads_messages);
        self.ask_for_messages()
    }

    /// # Errors
    /// There is a key, and the slot was not asked for messages: another session has to read from what is confirmed.
    pub(super) fn ask_for_messages(&self) -> Result<()> {
        if self.reads_messages || self.emit_keys.is_empty() {
            return Ok(());
        }
        Err(Error::unavailable(format!(
            "rule_webhook_emit was enabled: reading from {} again, with its messages",
            self.confirmed()
        )))
    }

    /// A logical message of the open transaction.
    pub(super) fn message_emitted(&mut self, message: &LogicalMessage<'_>) -> Result<()> {
        let Some(open) = self.assembler.transaction().filter(|_| message.prefix.is(PREFIX)) else { return Ok(()) };
        self.out.counts.emitted += 1;
        let emitted = match self.emit_keys.read(message.content, message.lsn, open.xid, open.commit_lsn) {
            Ok(emitted) => emitted,
            Err(why) => {
                if self.out.counts.emitted_refused == 0 {
                    self.out.notices.push(format!(
                        "a logical message at {} with the prefix {PREFIX:?} is ignored: {why}. Somebody has written it with \
                         pg_logical_emit_message in place of rule_webhook_emit; further ones are only counted",
                        message.lsn
                    ));
                }
                self.out.counts.emitted_refused += 1;
                return Ok(());
            }
        };
        let Some(position) = self.assembler.place() else { return Ok(()) };
        self.router.amend_at(position);
        self.refresh();
        self.out.emitted(&self.router.rules, &emitted, position)
    }
}
