//! What `*` and `autogroup:internet` stand for.

use ipnet::IpNet;

use super::super::addresses::{AddressSet, Collector};

/// `*` as a source: the addresses that nodes can have, and every approved subnet route.
pub(crate) fn tailnet(routes: &[IpNet]) -> AddressSet {
    let mut set = Collector::default();
    // ChromeOS uses 100.115.92.0/23 for its virtual machines.
    set.v4_range([100, 64, 0, 0].into(), [100, 115, 91, 255].into());
    set.v4_range([100, 115, 94, 0].into(), [100, 127, 255, 255].into());
    set.net(&ipnet::Ipv6Net::new_assert(V6_PREFIX.into(), 48).into());
    for route in routes {
        set.net(route);
    }
    set.finish()
}

const V6_PREFIX: [u16; 8] = [0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 0];

/// `autogroup:internet`: all but private, link-local, multicast and tailnet addresses.
pub(crate) fn internet() -> AddressSet {
    const NOT_V4: [([u8; 4], u8); 9] = [
        ([0, 0, 0, 0], 8),
        ([10, 0, 0, 0], 8),
        ([100, 64, 0, 0], 10),
        ([127, 0, 0, 0], 8),
        ([169, 254, 0, 0], 16),
        ([172, 16, 0, 0], 12),
        ([192, 168, 0, 0], 16),
        ([224, 0, 0, 0], 4),
        ([240, 0, 0, 0], 4),
    ];
    let mut excluded = Collector::default();
    for (address, length) in NOT_V4 {
        excluded.net(&ipnet::Ipv4Net::new_assert(address.into(), length).into());
    }
    // Of IPv6, only global unicast (2000::/3) is the internet.
    let mut set = Collector::default();
    set.v4_gaps(&excluded.finish());
    set.net(&ipnet::Ipv6Net::new_assert([0x2000, 0, 0, 0, 0, 0, 0, 0].into(), 3).into());
    set.finish()
}
