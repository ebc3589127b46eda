//! Watches netlink for changes of links, addresses, routes and rules.
//!
//! Changes are coalesced: what waits to be taken is a set, so a storm of notifications costs one look at a time, with a rest after each, and memory is bounded.
//! When the kernel drops notifications, or the watch had to be opened anew, [`KernelChange::Overflow`] says so.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use lowroad_core::desired::{PROTOCOL, RULE_PRIORITIES, TABLE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol};
use netlink_packet_route::rule::{RuleAttribute, RuleMessage};
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::NetlinkPayload;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::{KernelChange, KernelError};

const GROUPS: [MulticastGroup; 7] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
];

/// Pause before a broken watch is opened again.
const REOPEN: Duration = Duration::from_secs(1);

/// After all that waited has been told. Others may change routes by the thousand a second.
const REST: Duration = Duration::from_millis(5);

/// The set of kinds is small; more room would only hold duplicates.
const WAITING: usize = 8;

/// Index of our device, 0 while there is none; shared with who creates it.
pub(super) type OwnIndex = Arc<AtomicU32>;

/// Watches in the calling thread's network namespace until the receiver is dropped.
pub(super) fn watch(
    device: String,
    own: OwnIndex,
) -> Result<mpsc::Receiver<KernelChange>, KernelError> {
    let mut messages = open()?;
    let (changes, receiver) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        loop {
            forward(&mut messages, &changes, &device, &own).await;
            loop {
                tokio::select! {
                    () = changes.closed() => return,
                    () = tokio::time::sleep(REOPEN) => {}
                }
                match open() {
                    Ok(again) => {
                        messages = again;
                        break;
                    }
                    Err(error) => tracing::warn!(%error, "watching the kernel's network changes"),
                }
            }
            if changes.send(KernelChange::Overflow).await.is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}

/// Unbounded inside, but emptied at once into a set.
type Messages =
    std::pin::Pin<Box<dyn futures_util::Stream<Item = NetlinkPayload<RouteNetlinkMessage>> + Send>>;

fn open() -> Result<Messages, KernelError> {
    let (connection, _, messages) =
        rtnetlink::new_multicast_connection(&GROUPS).map_err(|source| KernelError::Netlink {
            what: "watching the kernel's network changes".into(),
            source,
        })?;
    tokio::spawn(connection);
    Ok(Box::pin(messages.map(|(message, _)| message.payload)))
}

/// Until the stream ends or nobody listens any more.
async fn forward(
    messages: &mut Messages,
    changes: &mpsc::Sender<KernelChange>,
    device: &str,
    own: &AtomicU32,
) {
    let mut waiting = BTreeSet::new();
    let mut rest = Instant::now();
    loop {
        let rested = rest <= Instant::now();
        tokio::select! {
            biased;
            message = messages.next() => match message {
                Some(payload) => waiting.extend(classify(&payload, device, own.load(Ordering::Relaxed))),
                None => return,
            },
            permit = changes.reserve(), if rested && !waiting.is_empty() => match permit {
                Ok(permit) => {
                    permit.send(waiting.pop_first().expect("checked by the branch's condition"));
                    if waiting.is_empty() {
                        rest = Instant::now() + REST;
                    }
                }
                Err(_) => return,
            },
            () = sleep_until(rest), if !rested && !waiting.is_empty() => {}
            () = changes.closed() => return,
        }
    }
}

fn classify(
    payload: &NetlinkPayload<RouteNetlinkMessage>,
    device: &str,
    own: u32,
) -> Option<KernelChange> {
    use RouteNetlinkMessage as Message;
    let message = match payload {
        NetlinkPayload::Overrun(_) => return Some(KernelChange::Overflow),
        NetlinkPayload::InnerMessage(message) => message,
        _ => return None,
    };
    Some(match message {
        // By its number, too: somebody may have renamed it.
        Message::NewLink(link) | Message::DelLink(link)
            if link.header.index == own || is_named(link, device) =>
        {
            KernelChange::Device
        }
        Message::NewLink(_) | Message::DelLink(_) => KernelChange::Links,
        Message::NewAddress(address) | Message::DelAddress(address)
            if address.header.index == own =>
        {
            KernelChange::Device
        }
        Message::NewAddress(_) | Message::DelAddress(_) => KernelChange::Addresses,
        Message::NewRoute(route) | Message::DelRoute(route) if is_ours(route) => {
            KernelChange::Table
        }
        Message::NewRoute(_) | Message::DelRoute(_) => KernelChange::Routes,
        Message::NewRule(rule) | Message::DelRule(rule) if is_our_rule(rule) => KernelChange::Rules,
        // Others' rules may lead packets another way out.
        Message::NewRule(_) | Message::DelRule(_) => KernelChange::Routes,
        _ => return None,
    })
}

fn is_named(link: &LinkMessage, device: &str) -> bool {
    link.attributes
        .iter()
        .any(|attribute| matches!(attribute, LinkAttribute::IfName(name) if name == device))
}

fn is_ours(route: &RouteMessage) -> bool {
    route
        .attributes
        .iter()
        .any(|attribute| matches!(attribute, RouteAttribute::Table(TABLE)))
}

fn is_our_rule(rule: &RuleMessage) -> bool {
    let has = |holds: &dyn Fn(&RuleAttribute) -> bool| rule.attributes.iter().any(holds);
    has(
        &|attribute| matches!(attribute, RuleAttribute::Protocol(RouteProtocol::Other(number)) if *number == PROTOCOL),
    ) && has(
        &|attribute| matches!(attribute, RuleAttribute::Priority(number) if RULE_PRIORITIES.contains(number)),
    )
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    fn route(table: Option<u32>) -> NetlinkPayload<RouteNetlinkMessage> {
        let mut route = RouteMessage::default();
        route.attributes.extend(table.map(RouteAttribute::Table));
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route))
    }

    #[test]
    fn lost_notifications_are_said_to_be_lost() {
        let overrun = NetlinkPayload::Overrun(Vec::new());
        assert_eq!(
            classify(&overrun, "lowroad0", 7),
            Some(KernelChange::Overflow)
        );
    }

    #[test]
    fn our_table_and_our_device_are_told_from_others() {
        let of = |payload| classify(&payload, "lowroad0", 7);
        assert_eq!(of(route(Some(TABLE))), Some(KernelChange::Table));
        assert_eq!(of(route(None)), Some(KernelChange::Routes));
        for (name, index, expected) in [
            ("lowroad0", 8, KernelChange::Device),
            ("renamed0", 7, KernelChange::Device),
            ("eth0", 9, KernelChange::Links),
        ] {
            let mut link = LinkMessage::default();
            link.header.index = index;
            link.attributes.push(LinkAttribute::IfName(name.into()));
            let message = RouteNetlinkMessage::NewLink(link);
            assert_eq!(of(NetlinkPayload::InnerMessage(message)), Some(expected));
        }
    }

    #[test]
    fn others_rules_are_no_change_of_ours() {
        let rule = |protocol, priority| {
            let mut rule = RuleMessage::default();
            let protocol = RuleAttribute::Protocol(RouteProtocol::Other(protocol));
            rule.attributes = vec![protocol, RuleAttribute::Priority(priority)];
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelRule(rule))
        };
        let of = |payload| classify(&payload, "lowroad0", 7);
        assert_eq!(of(rule(PROTOCOL, 5310)), Some(KernelChange::Rules));
        assert_eq!(of(rule(PROTOCOL, 100)), Some(KernelChange::Routes));
        assert_eq!(of(rule(PROTOCOL + 1, 5310)), Some(KernelChange::Routes));
    }

    /// A routing daemon that never stops must not keep the agent busy.
    #[tokio::test]
    async fn a_storm_without_end_is_told_of_at_a_bounded_rate() {
        let mut messages: Messages = Box::pin(stream::unfold((), |()| async {
            tokio::task::yield_now().await;
            Some((route(None), ()))
        }));
        let (changes, mut receiver) = mpsc::channel(1);
        let own = AtomicU32::new(7);
        let begun = Instant::now();
        let counting = async {
            let mut count = 0;
            while begun.elapsed() < 20 * REST {
                receiver.recv().await.expect("the storm goes on");
                count += 1;
            }
            count
        };
        let count = tokio::select! {
            () = forward(&mut messages, &changes, "lowroad0", &own) => panic!("the stream doesn't end"),
            count = counting => count,
        };
        let most = 2 + begun.elapsed().as_millis() / REST.as_millis();
        assert!((2..=most).contains(&count), "{count} of {most}");
    }

    #[tokio::test]
    async fn a_storm_that_nobody_takes_is_one_change_of_each_kind() {
        let storm = (0..10_000).map(|n| route((n % 2 == 0).then_some(TABLE)));
        let mut messages: Messages =
            Box::pin(stream::iter(storm.collect::<Vec<_>>()).chain(stream::pending()));
        let (changes, mut receiver) = mpsc::channel(1);
        let own = AtomicU32::new(7);
        let forwarding = forward(&mut messages, &changes, "lowroad0", &own);
        let taking = async {
            let mut taken = Vec::new();
            while taken.len() < 2 {
                // Takes only once everything has been read.
                tokio::task::yield_now().await;
                taken.extend(receiver.recv().await);
            }
            taken.sort();
            taken
        };
        let taken = tokio::select! {
            () = forwarding => panic!("the stream doesn't end"),
            taken = taking => taken,
        };
        assert_eq!(taken, [KernelChange::Routes, KernelChange::Table]);
        assert!(receiver.try_recv().is_err());
    }
}
