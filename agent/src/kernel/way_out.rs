//! By which way packets leave this host for the internet, as the kernel would route one. One question for each family, whatever the size of the routing table.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::Handle;

use super::netlink::{Netlink, family_of, io_error};

/// Addresses of the internet's, as any others: nothing is ever sent to them.
const ANYWHERE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(1, 1, 1, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2606, 0x4700, 0x4700, 0, 0, 0, 0, 0x1111)),
];

/// A way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WayOut {
    /// Index of the device.
    device: u32,
    gateway: Option<IpAddr>,
    source: Option<IpAddr>,
}

/// The ways that what carries `mark` takes; none of a family that has none.
pub async fn ways_out(mark: u32) -> BTreeSet<WayOut> {
    let netlink = match Netlink::connect() {
        Ok(netlink) => netlink,
        Err(error) => {
            tracing::debug!(%error, "cannot ask for the ways out of this host");
            return BTreeSet::new();
        }
    };
    let mut ways = BTreeSet::new();
    for address in ANYWHERE {
        ways.extend(way_to(&netlink.handle, address, mark).await);
    }
    ways
}

async fn way_to(handle: &Handle, address: IpAddr, mark: u32) -> Option<WayOut> {
    let mut question = RouteMessage::default();
    question.header.address_family = family_of(address);
    question.header.destination_prefix_length = if address.is_ipv4() { 32 } else { 128 };
    question.attributes = vec![
        RouteAttribute::Destination(match address {
            IpAddr::V4(address) => RouteAddress::Inet(address),
            IpAddr::V6(address) => RouteAddress::Inet6(address),
        }),
        RouteAttribute::Mark(mark),
    ];
    match handle.route().get(question).execute().try_next().await {
        Ok(answer) => parse(&answer?),
        Err(error) => {
            tracing::trace!(error = %io_error(error), %address, "no way out");
            None
        }
    }
}

fn parse(answer: &RouteMessage) -> Option<WayOut> {
    // The kernel's own unreachable default is no way.
    if answer.header.kind != RouteType::Unicast {
        return None;
    }
    let ip = |address: &RouteAddress| match address {
        RouteAddress::Inet(address) => Some(IpAddr::from(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::from(*address)),
        _ => None,
    };
    let mut way = WayOut {
        device: 0,
        gateway: None,
        source: None,
    };
    for attribute in &answer.attributes {
        match attribute {
            RouteAttribute::Oif(index) => way.device = *index,
            RouteAttribute::Gateway(address) => way.gateway = ip(address),
            RouteAttribute::PrefSource(address) => way.source = ip(address),
            _ => {}
        }
    }
    (way.device != 0).then_some(way)
}
