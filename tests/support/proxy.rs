//! A TCP proxy of the harness's own: between walhook and a server stands a network that can be made to fail.
//!
//! In: the server's port, and orders while it runs. Out: a port of its own. Always: what is passed on is what came, in its
//! order; a connection of which something was swallowed is cut before anything else passes. It knows no protocol.

use std::{thread::JoinHandle, time::Duration};

use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
};

use super::port::Port;

/// What the network does with what is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkFault {
    /// It passes it on.
    Fair,
    /// Half-open: connections are accepted and stay, and nothing passes until the weather changes.
    Held,
    /// What clients send arrives, what the server answers does not. When this ends, connections that missed something are cut.
    Mute,
    /// Pieces of so many bytes at the most, and a pause after each.
    Sliced(usize, Duration),
}

/// What every connection goes by.
#[derive(Debug, Clone, Copy)]
struct Orders {
    network_fault: NetworkFault,
    server: u16,
    /// The connection, by its number from 0 on, through which nothing passes.
    stranded: Option<u64>,
    /// How often connections were cut; those that are older than the last time end.
    cuts: u64,
    /// With a reset, not an end.
    by_reset: bool,
}

/// A running proxy; dropping it ends it and its connections.
pub struct Proxy {
    port: Port,
    orders: watch::Sender<Orders>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Stands before the server at that port of 127.0.0.1.
    pub fn before(server: u16) -> Proxy {
        let port = Port::take();
        let (orders, followed) = watch::channel(Orders {
            network_fault: NetworkFault::Fair,
            server,
            stranded: None,
            cuts: 0,
            by_reset: false,
        });
        let (stop, stopped) = watch::channel(false);
        let listener = std::net::TcpListener::bind(("127.0.0.1", port.number())).unwrap();
        listener.set_nonblocking(true).unwrap();
        // A thread of its own: tests block theirs.
        let thread = std::thread::spawn(move || super::runtime().block_on(listen(listener, followed, stopped)));
        Proxy { port, orders, stop, thread: Some(thread) }
    }

    /// Where it listens, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Changes the weather, for connections that are there too.
    pub fn set(&self, network_fault: NetworkFault) {
        self.orders.send_modify(|orders| orders.network_fault = network_fault);
    }

    /// From now on nothing passes through the connection that was the `number`th to be made, from 0 on; the others go on.
    pub fn strand(&self, number: u64) {
        self.orders.send_modify(|orders| orders.stranded = Some(number));
    }

    /// Leads new connections to another server, and cuts the old ones.
    pub fn lead_to(&self, server: u16) {
        self.orders.send_modify(|orders| {
            orders.server = server;
            orders.cuts += 1;
            orders.by_reset = false;
        });
    }

    /// Ends every connection there is.
    pub fn cut(&self) {
        self.end_all(false);
    }

    /// The same with a reset: what is under way is lost on both sides.
    pub fn reset(&self) {
        self.end_all(true);
    }

    fn end_all(&self, by_reset: bool) {
        self.orders.send_modify(|orders| {
            orders.cuts += 1;
            orders.by_reset = by_reset;
        });
    }
}

impl Orders {
    fn hold(&self, number: u64) -> bool {
        self.network_fault == NetworkFault::Held || self.stranded == Some(number)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn listen(listener: std::net::TcpListener, orders: watch::Receiver<Orders>, mut stopped: watch::Receiver<bool>) {
    let listener = TcpListener::from_std(listener).unwrap();
    let mut number = 0;
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((client, _)) = accepted {
                    tokio::spawn(connection(client, number, orders.clone()));
                    number += 1;
                }
            }
            _ = stopped.wait_for(|stop| *stop) => return, // the runtime goes, and its tasks with it
        }
    }
}

/// One client's connection, until either side ends it or it is cut.
async fn connection(client: TcpStream, number: u64, mut orders: watch::Receiver<Orders>) {
    let born = orders.borrow().cuts;
    let mut held = orders.clone();
    let passing = async {
        let server = match held.wait_for(|orders| !orders.hold(number)).await {
            Ok(orders) => orders.server,
            Err(_) => return None,
        };
        let server = TcpStream::connect(("127.0.0.1", server)).await.ok()?;
        for socket in [&client, &server] {
            socket.set_nodelay(true).ok()?;
        }
        Some(server)
    };
    let server = tokio::select! {
        server = passing => server,
        _ = orders.wait_for(|orders| orders.cuts != born) => None,
    };
    let Some(server) = server else { return };
    let by_reset = |orders: &Orders| orders.by_reset;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let (mut up, mut down) = ((from_client, to_server), (from_server, to_client));
    let is_reset = tokio::select! {
        () = pump(&mut up.0, &mut up.1, number, orders.clone(), false) => false,
        () = pump(&mut down.0, &mut down.1, number, orders.clone(), true) => false,
        cut = async { orders.wait_for(|orders| orders.cuts != born).await.is_ok_and(|orders| by_reset(&orders)) } => cut,
    };
    if is_reset {
        for socket in [up.0.as_ref(), down.0.as_ref()] {
            let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
        }
    }
}

/// Passes on one direction to its end.
async fn pump(
    from: &mut OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    number: u64,
    mut orders: watch::Receiver<Orders>,
    is_answer: bool,
) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let Ok(length @ 1..) = from.read(&mut buffer).await else { return };
        let mut rest = &buffer[..length];
        while !rest.is_empty() {
            let network_fault = match orders.wait_for(|orders| !orders.hold(number)).await {
                Ok(orders) => orders.network_fault,
                Err(_) => return,
            };
            match network_fault {
                NetworkFault::Mute if is_answer => return swallow(from, &mut orders).await,
                NetworkFault::Fair | NetworkFault::Mute | NetworkFault::Held => {
                    if to.write_all(rest).await.is_err() {
                        return;
                    }
                    rest = &[];
                }
                NetworkFault::Sliced(most, pause) => {
                    let (piece, after) = rest.split_at(rest.len().min(most.max(1)));
                    if to.write_all(piece).await.is_err() {
                        return;
                    }
                    rest = after;
                    if pause.is_zero() {
                        tokio::task::yield_now().await;
                    } else {
                        tokio::time::sleep(pause).await;
                    }
                }
            }
        }
    }
}

/// Reads and forgets until the weather changes; then there is a hole, and the connection must end.
async fn swallow(from: &mut OwnedReadHalf, orders: &mut watch::Receiver<Orders>) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        tokio::select! {
            read = from.read(&mut buffer) => if !matches!(read, Ok(1..)) { return },
            _ = orders.wait_for(|orders| orders.network_fault != NetworkFault::Mute) => return,
        }
    }
}
