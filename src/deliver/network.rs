//! Which addresses may be called.
//!
//! In: an address that a name resolved to, and the networks that the settings allow. Out: whether it may be dialled, or
//! why not. An IPv4 address inside an IPv6 one is judged as the IPv4 address. Knows no resolver: the caller asks about the very
//! address that it dials.

use core::net::{IpAddr, Ipv6Addr};
use std::{str::FromStr, sync::LazyLock};

use ipnet::IpNet;

/// A network in CIDR notation; a lone address is a network of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network(IpNet);

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Network, String> {
        let text = text.trim();
        let network = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
        network.map(Network).ok_or_else(|| "is not a network such as 10.0.0.0/8, fd00::/8 or 127.0.0.1".to_owned())
    }
}

/// Addresses that are not called: IANA's registries of special-purpose addresses, IPv4 and IPv6, whole, as of 2025-10-09; then
/// multicast, and what the registries once had. The first network that contains an address names it.
#[rustfmt::skip]
const SPECIAL: &[(&str, &str)] = &[
    ("0.0.0.0/8", "this host's own network"),
    ("10.0.0.0/8", "private"),
    ("100.64.0.0/10", "a carrier's shared network"),
    ("127.0.0.0/8", "loopback"),
    ("169.254.0.0/16", "link-local, where clouds keep their metadata"),
    ("172.16.0.0/12", "private"),
    ("192.0.0.0/24", "reserved for protocols"),
    ("192.0.2.0/24", "reserved for documentation"),
    ("192.31.196.0/24", "a DNS sink (AS112)"),
    ("192.52.193.0/24", "a multicast relay (AMT)"),
    ("192.88.99.0/24", "a relay of 6to4"),
    ("192.168.0.0/16", "private"),
    ("192.175.48.0/24", "a DNS sink (AS112)"),
    ("198.18.0.0/15", "reserved for benchmarks"),
    ("198.51.100.0/24", "reserved for documentation"),
    ("203.0.113.0/24", "reserved for documentation"),
    ("240.0.0.0/4", "reserved"),
    ("224.0.0.0/4", "multicast"),
    ("::1/128", "loopback"),
    ("::/128", "unspecified"),
    ("::ffff:0:0:0/96", "an IPv4 address translated"),
    ("::/96", "an IPv4 address in a form given up"),
    ("64:ff9b:1::/48", "a private translation to IPv4"),
    ("100::/64", "a black hole"),
    ("100:0:0:1::/64", "a dummy prefix"),
    ("2001::/32", "a tunnel (Teredo)"),
    ("2001:2::/48", "reserved for benchmarks"),
    ("2001:3::/32", "a multicast relay (AMT)"),
    ("2001:4:112::/48", "a DNS sink (AS112)"),
    ("2001:10::/28", "a hash, no place (ORCHID)"),
    ("2001:20::/28", "a hash, no place (ORCHIDv2)"),
    ("2001:30::/28", "a drone's tag"),
    ("2001::/23", "reserved for protocols"),
    ("2001:db8::/32", "reserved for documentation"),
    ("2002::/16", "a tunnel (6to4)"),
    ("2620:4f:8000::/48", "a DNS sink (AS112)"),
    ("3fff::/20", "reserved for documentation"),
    ("5f00::/16", "an instruction for routers (SRv6)"),
    ("fc00::/7", "private"),
    ("fe80::/10", "link-local"),
    ("fec0::/10", "site-local"),
    ("ff00::/8", "multicast"),
    // All that IANA has given to the Internet so far is 2000::/3.
    ("::/3", "no address of the Internet"),
    ("4000::/2", "no address of the Internet"),
    ("8000::/1", "no address of the Internet"),
];

static NETWORKS: LazyLock<Vec<(Network, &str)>> = LazyLock::new(|| {
    SPECIAL.iter().map(|(network, kind)| (network.parse().expect("the table has networks"), *kind)).collect()
});

/// Why `address` may not be called; `None` where it may.
pub fn refusal(address: IpAddr, allowed: &[Network]) -> Option<String> {
    let embedded = embedded_ipv4(address);
    let is_in = |Network(network): &Network| {
        network.contains(&address) || embedded.is_some_and(|(v4, _)| network.contains(&v4))
    };
    if allowed.iter().any(is_in) {
        return None;
    }
    let judged = match embedded {
        Some((v4, true)) => v4,
        _ => address,
    };
    let (_, kind) = NETWORKS.iter().find(|(Network(network), _)| network.contains(&judged))?;
    Some(format!("{address} is {kind}; --allow-network or deliver.allowed_networks allows it"))
}

/// The IPv4 address that an IPv6 one leads to, and whether it is what is judged: of the forms that are in use, mapped and
/// NAT64's (RFC 6052). Others are refused whatever they embed, unless what they embed is allowed.
fn embedded_ipv4(address: IpAddr) -> Option<(IpAddr, bool)> {
    let IpAddr::V6(v6) = address else { return None };
    let v4 = |high: u16, low: u16| IpAddr::V4(((u32::from(high) << 16) | u32::from(low)).into());
    match v6.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some((v4(high, low), true)),
        [0, 0, 0, 0, 0xffff, 0, high, low] | [0x2002, high, low, ..] => Some((v4(high, low), false)),
        [0, 0, 0, 0, 0, 0, high, low] if v6 != Ipv6Addr::UNSPECIFIED && v6 != Ipv6Addr::LOCALHOST => {
            Some((v4(high, low), false))
        }
        _ => None,
    }
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

    /// The first and the last address of each network, and where the table's neighbours are the Internet's, those beside it.
    #[test]
    fn every_special_network_is_refused_from_its_first_address_to_its_last() {
        for (network, kind) in SPECIAL {
            let network: IpNet = network.parse().unwrap();
            for address in [network.network(), network.broadcast()] {
                let why = refusal(address, &[]);
                // A narrower network of the table may name it.
                assert!(
                    why.as_ref().is_some_and(|why| why.contains("--allow-network")),
                    "{network} ({kind}): {address}"
                );
                assert_eq!(refusal(address, &[Network(network)]), None, "{address} where it is allowed");
            }
        }
        for neighbour in [
            "1.0.0.0",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "169.253.255.255",
            "169.255.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "191.255.255.255",
            "192.0.1.0",
            "192.0.3.0",
            "192.31.195.255",
            "192.31.197.0",
            "192.52.192.255",
            "192.52.194.0",
            "192.88.98.255",
            "192.88.100.0",
            "192.167.255.255",
            "192.169.0.0",
            "192.175.47.255",
            "192.175.49.0",
            "198.17.255.255",
            "198.20.0.0",
            "198.51.99.255",
            "198.51.101.0",
            "203.0.112.255",
            "203.0.114.0",
            "223.255.255.255",
            "2000::",
            "2001:200::",
            "2001:db7:ffff::",
            "2001:db9::",
            "2003::",
            "2620:4f:7fff::",
            "2620:4f:8001::",
            "3ffe:ffff::",
            "3fff:1000::",
        ] {
            assert_eq!(refused(neighbour, &[]), None, "{neighbour}");
        }
    }

    #[test]
    fn an_address_inside_is_refused_in_every_form_it_can_be_written_in() {
        for (address, kind) in [
            ("::ffff:127.0.0.1", "loopback"),
            ("::ffff:169.254.169.254", "link-local"),
            ("64:ff9b::7f00:1", "loopback"),
            ("64:ff9b::a01:203", "private"),
            ("::ffff:0:127.0.0.1", "translated"),
            ("::ffff:0:1.1.1.1", "translated"),
            ("::127.0.0.1", "given up"),
            ("::1.1.1.1", "given up"),
            ("64:ff9b:1::1", "translation"),
            ("64:ff9b::1:0:0:1", "no address of the Internet"),
            ("2002:7f00:1::", "6to4"),
            ("2002:101:101::", "6to4"),
            ("2001:20::1", "ORCHIDv2"),
            ("2001:1::1", "reserved for protocols"),
            ("5f00::1", "SRv6"),
            ("::2", "given up"),
            ("4000::1", "no address of the Internet"),
            ("fb00::1", "no address of the Internet"),
        ] {
            let why = refused(address, &[]);
            assert!(why.as_ref().is_some_and(|why| why.contains(kind)), "{address}: {why:?}");
        }
        // What is allowed as IPv4 is allowed in these forms too.
        for address in ["::ffff:127.0.0.1", "::ffff:0:127.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::"] {
            assert_eq!(refused(address, &["127.0.0.0/8"]), None, "{address}");
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
