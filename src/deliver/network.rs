//! Which addresses may be called.
//!
//! In: an address that a name resolved to, and the networks that the settings allow. Out: whether it may be dialled, or
//! why not. Always holds: an IPv4 address is judged alike in every IPv6 dress it can come in. Knows no resolver: whoever
//! dials asks about the very address that it dials.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::{fmt, str::FromStr};

/// A network in CIDR notation; a lone address is a network of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Network, String> {
        let wrong = || "is not a network such as 10.0.0.0/8, fd00::/8 or 127.0.0.1".to_owned();
        let (address, prefix) = text.trim().split_once('/').map_or((text.trim(), None), |(a, p)| (a, Some(p)));
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let whole = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => whole,
            Some(prefix) => prefix.parse().ok().filter(|prefix| *prefix <= whole).ok_or_else(wrong)?,
        };
        Ok(Network { address, prefix })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl Network {
    fn contains(&self, address: IpAddr) -> bool {
        let shared = |a: u128, b: u128, width: u32| {
            let host = width - u32::from(self.prefix);
            a.checked_shr(host).unwrap_or(0) == b.checked_shr(host).unwrap_or(0)
        };
        match (self.address, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => shared(a.to_bits().into(), b.to_bits().into(), 32),
            (IpAddr::V6(a), IpAddr::V6(b)) => shared(a.to_bits(), b.to_bits(), 128),
            _ => false,
        }
    }
}

/// Why `address` may not be called; `None` where it may.
pub fn refusal(address: IpAddr, allowed: &[Network]) -> Option<String> {
    let plain = undressed(address);
    if allowed.iter().any(|network| network.contains(address) || network.contains(plain)) {
        return None;
    }
    let kind = match plain {
        IpAddr::V4(address) => kind_v4(address),
        IpAddr::V6(address) => kind_v6(address),
    }?;
    Some(format!("{address} is {kind}; --allow-network or deliver.allowed_networks allows it"))
}

/// The IPv4 address inside an IPv6 one that leads to it: mapped, compatible, NAT64, 6to4.
fn undressed(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    match v6.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low] => v4(high, low),
        // :: and ::1 are IPv6's own.
        [0, 0, 0, 0, 0, 0, high, low] if (high, low) != (0, 0) && (high, low) != (0, 1) => v4(high, low),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => v4(high, low),
        [0x2002, high, low, ..] => v4(high, low),
        _ => address,
    }
}

/// IANA's registry of special-purpose addresses, as far as nobody on the Internet is meant.
fn kind_v4(address: Ipv4Addr) -> Option<&'static str> {
    let [a, b, c, _] = address.octets();
    Some(match (a, b, c) {
        (0, ..) => "this host's own network",
        (10, ..) | (192, 168, _) => "private",
        (172, 16..=31, _) => "private",
        (100, 64..=127, _) => "a carrier's shared network",
        (127, ..) => "loopback",
        (169, 254, _) => "link-local, where clouds keep their metadata",
        (192, 0, 0) => "reserved for protocols",
        (192, 0, 2) | (198, 51, 100) | (203, 0, 113) => "reserved for documentation",
        (192, 88, 99) => "a relay of 6to4",
        (198, 18..=19, _) => "reserved for benchmarks",
        (224..=239, ..) => "multicast",
        (240.., ..) => "reserved",
        _ => return None,
    })
}

fn kind_v6(address: Ipv6Addr) -> Option<&'static str> {
    Some(match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => "unspecified",
        [0, 0, 0, 0, 0, 0, 0, 1] => "loopback",
        [0xfc00..=0xfdff, ..] => "private",
        [0xfe80..=0xfebf, ..] => "link-local",
        [0xfec0..=0xfeff, ..] => "site-local",
        [0xff00..=0xffff, ..] => "multicast",
        [0x64, 0xff9b, 1, ..] => "a private translation to IPv4",
        [0x100, 0, 0, 0, ..] => "a black hole",
        [0x2001, 0, ..] => "a tunnel (Teredo)",
        [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => "reserved for documentation",
        [0x2001, 2, 0, ..] => "reserved for benchmarks",
        _ => return None,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn refused(address: &str, allowed: &[&str]) -> Option<String> {
        let allowed: Vec<_> = allowed.iter().map(|network| network.parse().unwrap()).collect();
        refusal(address.parse().unwrap(), &allowed)
    }

    #[test]
    fn addresses_of_the_internet_may_be_called() {
        for address in [
            "93.184.215.14",
            "1.1.1.1",
            "172.15.0.1",
            "172.32.0.1",
            "100.128.0.1",
            "2606:4700::1111",
            "::ffff:1.1.1.1",
            "64:ff9b::101:101",
        ] {
            assert_eq!(refused(address, &[]), None, "{address}");
        }
    }

    #[test]
    fn what_lies_inside_is_refused_in_every_dress() {
        for address in [
            "127.0.0.1",
            "127.9.9.9",
            "10.1.2.3",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "0.0.0.0",
            "100.64.0.1",
            "255.255.255.255",
            "224.0.0.1",
            "198.18.0.1",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "fc00::1",
            "fd12::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "2001:db8::1",
        ] {
            assert!(refused(address, &[]).is_some_and(|why| why.contains("allow")), "{address}");
        }
    }

    #[test]
    fn a_network_that_is_allowed_allows_its_own_and_no_more() {
        assert_eq!(refused("127.0.0.1", &["127.0.0.0/8"]), None);
        assert_eq!(refused("::ffff:127.0.0.1", &["127.0.0.1"]), None);
        assert!(refused("127.0.0.2", &["127.0.0.1"]).is_some());
        assert_eq!(refused("fd12::1", &["fd00::/8"]), None);
        assert!(refused("fe80::1", &["fd00::/8", "10.0.0.0/8"]).is_some());
        assert_eq!(refused("10.0.0.1", &["0.0.0.0/0"]), None);
        assert_eq!(refused("::1", &["::/0"]), None);
        for bad in ["", "10.0.0.0/33", "10.0.0/8", "::/129", "example.com", "10.0.0.0/"] {
            assert!(bad.parse::<Network>().unwrap_err().contains("not a network"), "{bad}");
        }
    }
}
