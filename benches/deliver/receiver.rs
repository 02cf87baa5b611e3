//! A receiver that answers at once and notes when each event has arrived, and nothing else.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// A running receiver, on a thread of its own.
pub struct Receiver {
    port: u16,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    /// Every so many-th request is refused; 0: none.
    every: usize,
    attempts: AtomicUsize,
    /// When each event was accepted, in that order, with its number.
    accepted: Mutex<Vec<(usize, Instant)>>,
}

impl Receiver {
    /// One that refuses every so many-th request with 503.
    pub fn start(every: usize) -> Receiver {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Seen { every, ..Seen::default() });
        let receiving = Arc::clone(&seen);
        std::thread::spawn(move || {
            crate::support::runtime().block_on(async move {
                let listener = TcpListener::from_std(listener).unwrap();
                while let Ok((stream, _)) = listener.accept().await {
                    let _ = stream.set_nodelay(true);
                    tokio::spawn(converse(stream, Arc::clone(&receiving)));
                }
            });
        });
        Receiver { port, seen }
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/", self.port)
    }

    /// All requests, refused ones too.
    pub fn attempts(&self) -> usize {
        self.seen.attempts.load(Ordering::Relaxed)
    }

    /// Waits until so many events were accepted; returns when the last of them was.
    pub async fn arrived(&self, count: usize) -> Instant {
        loop {
            if let Some((_, at)) = self.seen.accepted.lock().unwrap().get(count - 1) {
                return *at;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// When the event with this number was first accepted.
    pub fn first(&self, number: usize) -> Instant {
        let accepted = self.seen.accepted.lock().unwrap();
        // They come nearly in order, so it is near.
        let from = number.saturating_sub(200);
        accepted[from..].iter().find(|(n, _)| *n == number).expect("it has arrived").1
    }
}

async fn converse(mut stream: TcpStream, seen: Arc<Seen>) {
    let mut buffer = Vec::new();
    loop {
        let end = loop {
            if let Some(head) = memchr::memmem::find(&buffer, b"\r\n\r\n") {
                let length = memchr::memmem::find(&buffer, b"content-length: ").expect("a length") + 16;
                let digits = buffer[length..].iter().take_while(|byte| byte.is_ascii_digit());
                let length = digits.fold(0, |sum, digit| sum * 10 + usize::from(digit - b'0'));
                if buffer.len() >= head + 4 + length {
                    break head + 4 + length;
                }
            }
            if stream.read_buf(&mut buffer).await.unwrap_or(0) == 0 {
                return;
            }
        };
        let at = Instant::now();
        let attempt = seen.attempts.fetch_add(1, Ordering::Relaxed) + 1;
        let refused = seen.every > 0 && attempt.is_multiple_of(seen.every);
        if !refused {
            let number = memchr::memmem::find(&buffer, b"{\"n\":").expect("a number") + 5;
            let digits = buffer[number..].iter().take_while(|byte| byte.is_ascii_digit());
            let number = digits.fold(0, |sum, digit| sum * 10 + usize::from(digit - b'0'));
            seen.accepted.lock().unwrap().push((number, at));
        }
        buffer.drain(..end);
        let answer: &[u8] = match refused {
            true => b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n",
            false => b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        };
        if stream.write_all(answer).await.is_err() {
            return;
        }
    }
}
