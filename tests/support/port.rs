//! Ports that no other test takes, not even while their server is down.

use std::{
    net::TcpListener,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener},
    },
};

/// A port on 127.0.0.1, ours until this value goes: a server may leave it and come back.
pub struct Port {
    number: u16,
    /// An abstract unix socket named after the port is the lock: the kernel frees it with the process, and it leaves no file.
    _lock: UnixListener,
}

impl Port {
    /// Takes a free one, below the range from which the kernel takes the ports of outgoing connections.
    pub fn take() -> Self {
        for _ in 0..1_000 {
            let number = fastrand::u16(15_000..32_000);
            let name = SocketAddr::from_abstract_name(format!("walhook-test-port-{number}")).unwrap();
            let Ok(lock) = UnixListener::bind_addr(&name) else { continue };
            if TcpListener::bind(("127.0.0.1", number)).is_ok() {
                return Port { number, _lock: lock };
            }
        }
        panic!("no free port between 15000 and 32000 after 1000 attempts");
    }

    /// Its number.
    pub fn number(&self) -> u16 {
        self.number
    }
}
