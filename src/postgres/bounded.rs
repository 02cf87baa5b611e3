//! A socket that takes a bounded number of bytes until the login is over, for tokio-postgres, which takes any number: before the server
//! has proved who it is, nobody knows whether it is hostile.
//!
//! In: what the server sends. Out: the same, or an error where there is too much of it before the first ReadyForQuery. It changes
//! nothing, and behind that message it does not look at the bytes any more. (Manual, section 54.7, "Message Formats".)

use std::{
    fmt, io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Greeting, authentication and the server's parameters have some KiB.
const LOGIN_BYTES_MAX: usize = 256 * 1024;

/// The tag of ReadyForQuery.
const READY: u8 = b'Z';

/// The cause of the error.
#[derive(Debug)]
pub(super) struct Endless;

impl fmt::Display for Endless {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the server sends more than {LOGIN_BYTES_MAX} bytes before the login is over")
    }
}

impl std::error::Error for Endless {}

/// See the module.
pub(super) struct Bounded<S> {
    pub(super) socket: S,
    /// `None` once the login is over.
    login: Option<Login>,
}

/// How far the login is.
#[derive(Default)]
struct Login {
    taken: usize,
    /// The beginning of a message: its tag and length, as far as they are there.
    header: [u8; 5],
    header_length: usize,
    /// So many bytes of its body are to come.
    body_left: usize,
}

impl<S> Bounded<S> {
    pub(super) fn new(socket: S) -> Bounded<S> {
        Bounded { socket, login: Some(Login::default()) }
    }
}

impl Login {
    /// Whether the login is over with these bytes.
    ///
    /// # Errors
    /// There were too many.
    fn take(&mut self, mut bytes: &[u8]) -> io::Result<bool> {
        self.taken = self.taken.saturating_add(bytes.len());
        while !bytes.is_empty() {
            let skipped = self.body_left.min(bytes.len());
            self.body_left -= skipped;
            bytes = &bytes[skipped..];
            let Some((first, rest)) = bytes.split_first() else { break };
            self.header[self.header_length] = *first;
            self.header_length += 1;
            bytes = rest;
            if self.header_length < self.header.len() {
                continue;
            }
            let [tag, length @ ..] = self.header;
            self.header_length = 0;
            // The length counts itself. What is too short tokio-postgres refuses.
            self.body_left = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX).saturating_sub(4);
            if tag == READY {
                return Ok(true);
            }
        }
        if self.taken > LOGIN_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, Endless));
        }
        Ok(false)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.socket).poll_read(cx, buf))?;
        if let Some(login) = &mut this.login
            && login.take(&buf.filled()[before..])?
        {
            this.login = None;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap();
        [&[tag][..], &length.to_be_bytes(), body].concat()
    }

    #[test]
    fn a_login_is_over_at_the_first_ready_for_query_however_its_bytes_come() {
        let login = [message(b'R', &[0; 4]), message(b'S', b"TimeZone\0Z\0"), message(READY, b"I")].concat();
        for size in 1..=login.len() {
            let mut state = Login::default();
            let over: Vec<bool> = login.chunks(size).map(|piece| state.take(piece).unwrap()).collect();
            assert!(over.contains(&true), "{size}");
        }
        let mut state = Login::default();
        assert!(!state.take(&login[..login.len() - 6]).unwrap());
    }

    #[test]
    fn endless_messages_and_one_without_an_end_are_refused() {
        for endless in [message(b'S', &[b'x'; 100]), message(b'N', &[b'x'; 65_536])] {
            let mut state = Login::default();
            let mut taken = 0;
            while state.take(&endless).is_ok() {
                taken += endless.len();
                assert!(taken <= LOGIN_BYTES_MAX);
            }
        }
        let mut state = Login::default();
        assert!(!state.take(&[b'R', 0x7f, 0xff, 0xff, 0xff]).unwrap());
        assert!(state.take(&vec![READY; LOGIN_BYTES_MAX]).is_err());
    }
}
