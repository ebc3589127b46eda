//! The device as a network link: found, created, recognised as ours, addressed, brought up, deleted.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use futures_util::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoKind, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage,
};
use rtnetlink::{Handle, LinkUnspec, LinkWireguard};

use super::netlink::{described, failed, family_of, io_error, unless};
use super::{Dataplane, KernelError};

/// Why a TUN that carries our alias is taken: it lives only as long as its agent.
pub(super) const OTHER_AGENT: &str = "a lowroad with the same state directory is running on it";

/// Longest name of a device, without the final zero.
const NAME_LENGTH: usize = 15;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub index: u32,
    pub name: String,
    pub kind: Kind,
    pub alias: String,
    pub mtu: u32,
    pub up: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    WireGuard,
    Tun,
    Other(String),
}

/// What the alias of our device says.
pub(super) fn alias(state_id: &str) -> String {
    format!("lowroad:{state_id}")
}

pub(super) fn check_name(device: &str) -> Result<(), KernelError> {
    let fine = (1..=NAME_LENGTH).contains(&device.len())
        && device != "."
        && device != ".."
        && !device
            .bytes()
            .any(|byte| byte.is_ascii_whitespace() || matches!(byte, b'/' | b':' | b'%' | 0));
    if fine {
        return Ok(());
    }
    Err(KernelError::BadName {
        device: device.into(),
    })
}

pub(super) async fn find(handle: &Handle, device: &str) -> Result<Option<Link>, KernelError> {
    let answer = handle
        .link()
        .get()
        .match_name(device)
        .execute()
        .try_next()
        .await;
    match answer.map_err(io_error) {
        Ok(message) => Ok(message.map(|message| parse(&message))),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(described(format!("looking for the device {device}"), error)),
    }
}

/// All devices with this alias, whatever their names: anybody may rename one, and an agent may have been given another name since.
pub(super) async fn ours(handle: &Handle, alias: &str) -> Result<Vec<Link>, KernelError> {
    let mut links = handle.link().get().execute();
    let mut ours = Vec::new();
    loop {
        let message = links.try_next().await;
        let Some(message) = message.map_err(failed("listing the network devices"))? else {
            return Ok(ours);
        };
        let link = parse(&message);
        if link.alias == alias {
            ours.push(link);
        }
    }
}

/// Our device, under whatever name it has, if it is of this data plane.
///
/// # Errors
/// [`KernelError::NameTaken`] if somebody else has the name.
pub(super) async fn find_own(
    handle: &Handle,
    device: &str,
    alias: &str,
    dataplane: Dataplane,
) -> Result<Option<Link>, KernelError> {
    let link = match find(handle, device).await? {
        Some(named) => named,
        None => match ours(handle, alias).await?.into_iter().next() {
            Some(renamed) => renamed,
            None => return Ok(None),
        },
    };
    let ours = link.alias == alias;
    let expected = match dataplane {
        Dataplane::Kernel => Kind::WireGuard,
        Dataplane::Userspace => Kind::Tun,
    };
    let what = match (&link.kind, ours) {
        (kind, true) if *kind == expected => return Ok(Some(link)),
        (Kind::Tun, true) => OTHER_AGENT.into(),
        (Kind::WireGuard, true) => "it is the kernel WireGuard device of an earlier lowroad; `lowroad agent --cleanup` removes it".into(),
        (Kind::WireGuard, false) => "a WireGuard device".into(),
        (Kind::Tun, false) => "a TUN or TAP device of another program".into(),
        (Kind::Other(kind), _) => format!("a {kind} device"),
    };
    Err(KernelError::NameTaken {
        device: link.name,
        what,
    })
}

/// Gives our device its name back. Linux before 6.2 renames only what is down: there it is taken down for it, and the next plan brings it up.
pub(super) async fn rename(
    handle: &Handle,
    link: &mut Link,
    name: &str,
) -> Result<(), KernelError> {
    let set = || {
        let message = LinkUnspec::new_with_index(link.index).name(name).build();
        handle.link().set(message).execute()
    };
    let mut result = set().await.map_err(io_error);
    if matches!(&result, Err(error) if link.up && error.raw_os_error() == Some(libc::EBUSY)) {
        set_down(handle, link.index).await?;
        link.up = false;
        result = set().await.map_err(io_error);
    }
    result.map_err(|error| described(format!("renaming {} to {name}", link.name), error))?;
    tracing::warn!(
        was = link.name,
        device = name,
        "our device had another name, and has its own again"
    );
    name.clone_into(&mut link.name);
    Ok(())
}

fn parse(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: Kind::Other("plain".into()),
        alias: String::new(),
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::IfAlias(alias) => link.alias.clone_from(alias),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(InfoKind::Wireguard) => link.kind = Kind::WireGuard,
                        LinkInfo::Kind(InfoKind::Tun) => link.kind = Kind::Tun,
                        LinkInfo::Kind(kind) => link.kind = Kind::Other(kind.to_string()),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    link
}

/// A WireGuard link, down, without alias.
pub(super) async fn create_wireguard(
    handle: &Handle,
    device: &str,
) -> Result<(), rtnetlink::Error> {
    handle
        .link()
        .add(LinkWireguard::new(device).build())
        .execute()
        .await
}

/// Under which name a kernel device comes into being. The kernel takes no alias with the creation: one whose agent was killed before it had the alias is known by
/// this name.
pub(super) fn unfinished_name(state_id: &str) -> String {
    const PREFIX: &str = "lr";
    let letters = state_id.chars().filter(char::is_ascii_alphanumeric);
    let rest = letters.take(NAME_LENGTH - PREFIX.len() - 1);
    format!("{PREFIX}{}", rest.collect::<String>())
}

/// Removes a device that was never finished; says whether there was one.
pub(super) async fn remove_unfinished(
    handle: &Handle,
    state_id: &str,
) -> Result<bool, KernelError> {
    match find(handle, &unfinished_name(state_id)).await? {
        Some(link) if is_unfinished(&link) => delete(handle, link.index).await.map(|()| true),
        _ => Ok(false),
    }
}

fn is_unfinished(link: &Link) -> bool {
    link.kind == Kind::WireGuard && link.alias.is_empty() && !link.up
}

/// Marks the new device as ours and gives it its name, in one message: under that name it is ours from the first moment. IPv6 link-local addresses are switched off: they would only send router solicitations into the tunnel.
pub(super) async fn make_own(
    handle: &Handle,
    index: u32,
    name: &str,
    alias: &str,
    mtu: u32,
) -> Result<(), KernelError> {
    let message = LinkUnspec::new_with_index(index)
        .name(name)
        .alias(alias)
        .mtu(mtu)
        .build();
    handle
        .link()
        .set(message)
        .execute()
        .await
        .map_err(failed("marking the new device as ours"))?;
    let no_link_local =
        LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(
            In6AddrGenMode::None,
        )])]);
    let message = LinkUnspec::new_with_index(index)
        .append_extra_attribute(no_link_local)
        .build();
    if let Err(error) = handle.link().set(message).execute().await {
        tracing::debug!(error = %io_error(error), "link-local addresses stay as the kernel makes them");
    }
    Ok(())
}

pub(super) async fn set_mtu(handle: &Handle, index: u32, mtu: u32) -> Result<(), KernelError> {
    let message = LinkUnspec::new_with_index(index).mtu(mtu).build();
    handle
        .link()
        .set(message)
        .execute()
        .await
        .map_err(failed(format!("setting the device's MTU to {mtu}")))
}

pub(super) async fn set_up(handle: &Handle, index: u32) -> Result<(), rtnetlink::Error> {
    let message = LinkUnspec::new_with_index(index).up().build();
    handle.link().set(message).execute().await
}

pub(super) async fn set_down(handle: &Handle, index: u32) -> Result<(), KernelError> {
    let message = LinkUnspec::new_with_index(index).down().build();
    handle
        .link()
        .set(message)
        .execute()
        .await
        .map_err(failed("taking the device down"))
}

pub(super) async fn delete(handle: &Handle, index: u32) -> Result<(), KernelError> {
    unless(
        handle.link().del(index).execute().await,
        &[libc::ENODEV],
        || "deleting the device".into(),
    )
}

/// Addresses of the device, without link-local ones.
pub(super) async fn addresses(handle: &Handle, index: u32) -> Result<BTreeSet<IpNet>, KernelError> {
    let mut request = handle.address().get().set_link_index_filter(index);
    request.message_mut().header.index = index;
    let messages: Vec<AddressMessage> = request
        .execute()
        .try_collect()
        .await
        .map_err(failed("reading the device's addresses"))?;
    Ok(messages
        .iter()
        .filter_map(address_of)
        .filter(|net| !is_link_local(net.addr()))
        .collect())
}

fn address_of(message: &AddressMessage) -> Option<IpNet> {
    let local = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            AddressAttribute::Local(address) => Some(*address),
            _ => None,
        });
    let address = local.or_else(|| {
        message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            })
    })?;
    IpNet::new(address, message.header.prefix_len).ok()
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => Ipv6Addr::is_unicast_link_local(&address),
    }
}

pub(super) async fn add_address(
    handle: &Handle,
    index: u32,
    address: IpNet,
) -> Result<(), rtnetlink::Error> {
    let mut request = handle
        .address()
        .add(index, address.addr(), address.prefix_len());
    if address.addr().is_ipv6() {
        // Without: nobody can bind to it for a moment, while the kernel asks a tunnel about duplicates.
        request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
    }
    request.execute().await
}

pub(super) async fn remove_address(
    handle: &Handle,
    index: u32,
    address: IpNet,
) -> Result<(), KernelError> {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.family = family_of(address.addr());
    message.header.prefix_len = address.prefix_len();
    message.attributes = vec![
        AddressAttribute::Local(address.addr()),
        AddressAttribute::Address(address.addr()),
    ];
    unless(
        handle.address().del(message).execute().await,
        &[libc::EADDRNOTAVAIL, libc::ENODEV],
        || format!("removing the address {address}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unfinished_device_is_known_by_name_kind_and_state() {
        let name = unfinished_name("00112233445566ff");
        assert_eq!(name, "lr001122334455");
        assert!(check_name(&name).is_ok());
        let link = Link {
            index: 1,
            name: name.clone(),
            kind: Kind::WireGuard,
            alias: String::new(),
            mtu: 1420,
            up: false,
        };
        assert!(is_unfinished(&link));
        let others = [
            Link {
                up: true,
                ..link.clone()
            },
            Link {
                kind: Kind::Tun,
                ..link.clone()
            },
            Link {
                alias: "x".into(),
                ..link
            },
        ];
        assert!(!others.iter().any(is_unfinished), "somebody else's stays");
    }

    #[test]
    fn names_that_the_kernel_refuses_are_refused_with_a_reason() {
        for bad in [
            "",
            "a/b",
            "with space",
            "sixteen-letters!",
            "..",
            "a:1",
            "x%d",
        ] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        for good in ["lowroad0", "fifteen-letters"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
    }
}
