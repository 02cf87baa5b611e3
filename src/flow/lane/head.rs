//! The head of a message: what is known of an event besides its payload, and the headers that tell it.

/// The parts of a message's head.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// The subject; valid.
    pub subject: &'a [u8],
    /// The event's id.
    pub id: &'a [u8],
    /// The caller's own message id, which takes its place in deduplication; has no control characters.
    pub message_id: Option<&'a [u8]>,
    /// The word for the operation.
    pub op: &'static str,
    /// The run that publishes it.
    pub epoch: u64,
}

impl Head<'_> {
    /// Appends the headers by which the event is known.
    pub fn write_ids(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"\r\nNats-Msg-Id: ");
        out.extend_from_slice(self.message_id.unwrap_or(self.id));
        if self.message_id.is_some() {
            out.extend_from_slice(b"\r\nWalhook-Id: ");
            out.extend_from_slice(self.id);
        }
    }

    /// Appends the headers that tell where it comes from.
    pub fn write_origin(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"\r\nWalhook-Op: ");
        out.extend_from_slice(self.op.as_bytes());
        out.extend_from_slice(b"\r\nWalhook-Epoch: ");
        out.extend_from_slice(itoa::Buffer::new().format(self.epoch).as_bytes());
    }
}
