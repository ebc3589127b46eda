//! Routes in our table and the policy rules that lead there. Ours carry our protocol number; nothing else is ever read into an
//! observation or deleted.

use std::collections::BTreeSet;
use std::net::IpAddr;

use futures_util::TryStreamExt;
use ipnet::IpNet;
use lowroad_core::desired::{
    Family, Mark, PROTOCOL, RULE_PRIORITIES, Route, RouteKind, Rule, RuleAction, TABLE,
};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{self, RuleAttribute, RuleMessage};
use rtnetlink::{Handle, IpVersion};

use super::KernelError;
use super::netlink::{described, family_of, io_error, unless};

const OURS: RouteProtocol = RouteProtocol::Other(PROTOCOL);

/// Errors of a dump that mean that there is nothing: no such table, no such family.
const NOTHING: [i32; 4] = [
    libc::ENOENT,
    libc::EAFNOSUPPORT,
    libc::EOPNOTSUPP,
    libc::ENODEV,
];

/// Our routes: through the device with this index, or dropping and throwing ones.
pub(super) async fn routes(
    handle: &Handle,
    index: Option<u32>,
) -> Result<BTreeSet<Route>, KernelError> {
    let mut routes = BTreeSet::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut filter = RouteMessage::default();
        filter.header.address_family = family;
        filter.header.protocol = OURS;
        filter.attributes.push(RouteAttribute::Table(TABLE));
        let found: Result<Vec<RouteMessage>, _> =
            handle.route().get(filter).execute().try_collect().await;
        match found.map_err(io_error) {
            Ok(found) => routes.extend(found.iter().filter_map(|message| parse(message, index))),
            Err(error) if is_nothing(&error) => {}
            Err(error) => return Err(described(format!("reading routing table {TABLE}"), error)),
        }
    }
    Ok(routes)
}

fn is_nothing(error: &std::io::Error) -> bool {
    error
        .raw_os_error()
        .is_some_and(|code| NOTHING.contains(&code))
}

fn parse(message: &RouteMessage, index: Option<u32>) -> Option<Route> {
    let mut table = u32::from(message.header.table);
    let mut output = None;
    let mut destination = match message.header.address_family {
        AddressFamily::Inet => IpAddr::from([0; 4]),
        AddressFamily::Inet6 => IpAddr::from([0; 16]),
        _ => return None,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Oif(number) => output = Some(*number),
            RouteAttribute::Destination(RouteAddress::Inet(address)) => {
                destination = (*address).into();
            }
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => {
                destination = (*address).into();
            }
            _ => {}
        }
    }
    let kind = match message.header.kind {
        RouteType::Unicast if output.is_some() && output == index => RouteKind::Device,
        RouteType::Throw => RouteKind::Throw,
        RouteType::BlackHole => RouteKind::Blackhole,
        _ => return None,
    };
    let prefix = IpNet::new(destination, message.header.destination_prefix_length).ok()?;
    (table == TABLE && message.header.protocol == OURS).then_some(Route { prefix, kind })
}

fn message(route: &Route, index: Option<u32>) -> RouteMessage {
    let mut message = RouteMessage::default();
    let address = route.prefix.network();
    message.header.address_family = family_of(address);
    message.header.destination_prefix_length = route.prefix.prefix_len();
    message.header.protocol = OURS;
    message.header.scope = RouteScope::Universe;
    message.attributes.push(RouteAttribute::Table(TABLE));
    message
        .attributes
        .push(RouteAttribute::Destination(match address {
            IpAddr::V4(address) => RouteAddress::Inet(address),
            IpAddr::V6(address) => RouteAddress::Inet6(address),
        }));
    message.header.kind = match route.kind {
        RouteKind::Device => {
            message.attributes.extend(index.map(RouteAttribute::Oif));
            if address.is_ipv4() {
                message.header.scope = RouteScope::Link;
            }
            RouteType::Unicast
        }
        RouteKind::Throw => RouteType::Throw,
        RouteKind::Blackhole => RouteType::BlackHole,
    };
    message
}

pub(super) async fn add_route(
    handle: &Handle,
    route: &Route,
    index: u32,
) -> Result<(), rtnetlink::Error> {
    handle
        .route()
        .add(message(route, Some(index)))
        .replace()
        .execute()
        .await
}

pub(super) async fn remove_route(
    handle: &Handle,
    route: &Route,
    index: Option<u32>,
) -> Result<(), KernelError> {
    let result = handle.route().del(message(route, index)).execute().await;
    unless(result, &[libc::ESRCH, libc::ENODEV], || {
        format!("removing the route to {}", route.prefix)
    })
}

/// Our rules, of both families.
pub(super) async fn rules(handle: &Handle) -> Result<BTreeSet<Rule>, KernelError> {
    let mut rules = BTreeSet::new();
    for (version, family) in [(IpVersion::V4, Family::V4), (IpVersion::V6, Family::V6)] {
        let found: Result<Vec<RuleMessage>, _> =
            handle.rule().get(version).execute().try_collect().await;
        match found.map_err(io_error) {
            Ok(found) => rules.extend(
                found
                    .iter()
                    .filter_map(|message| parse_rule(message, family)),
            ),
            Err(error) if is_nothing(&error) => {}
            Err(error) => return Err(described("reading the policy rules", error)),
        }
    }
    Ok(rules)
}

fn parse_rule(message: &RuleMessage, family: Family) -> Option<Rule> {
    let (mut priority, mut value, mut mask) = (0, None, u32::MAX);
    let mut table = u32::from(message.header.table);
    let mut ours = false;
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(number) => priority = *number,
            RuleAttribute::FwMark(mark) => value = Some(*mark),
            RuleAttribute::FwMask(number) => mask = *number,
            RuleAttribute::Table(number) => table = *number,
            RuleAttribute::Protocol(protocol) => ours = *protocol == OURS,
            _ => {}
        }
    }
    let action = match message.header.action {
        rule::RuleAction::ToTable => RuleAction::Table(table),
        rule::RuleAction::Unreachable => RuleAction::Unreachable,
        _ => return None,
    };
    (ours && RULE_PRIORITIES.contains(&priority)).then_some(Rule {
        family,
        priority,
        mark: value.map(|value| Mark { value, mask }),
        action,
    })
}

fn rule_message(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = match rule.family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    };
    message
        .attributes
        .push(RuleAttribute::Priority(rule.priority));
    message.attributes.push(RuleAttribute::Protocol(OURS));
    if let Some(mark) = rule.mark {
        message.attributes.push(RuleAttribute::FwMark(mark.value));
        message.attributes.push(RuleAttribute::FwMask(mark.mask));
    }
    message.header.action = match rule.action {
        RuleAction::Table(table) => {
            message.attributes.push(RuleAttribute::Table(table));
            rule::RuleAction::ToTable
        }
        RuleAction::Unreachable => rule::RuleAction::Unreachable,
    };
    message
}

pub(super) async fn add_rule(handle: &Handle, rule: &Rule) -> Result<(), rtnetlink::Error> {
    let mut request = handle.rule().add();
    *request.message_mut() = rule_message(rule);
    request.execute().await
}

pub(super) async fn remove_rule(handle: &Handle, rule: &Rule) -> Result<(), KernelError> {
    let result = handle.rule().del(rule_message(rule)).execute().await;
    unless(result, &[libc::ENOENT, libc::EAFNOSUPPORT], || {
        format!("removing the rule {}", rule.priority)
    })
}

#[cfg(test)]
mod tests {
    use lowroad_core::desired::{DEFAULT_MARK, policy_rules};

    use super::*;

    #[test]
    fn a_rule_reads_back_as_it_was_written() {
        for rule in policy_rules(DEFAULT_MARK) {
            assert_eq!(parse_rule(&rule_message(&rule), rule.family), Some(rule));
        }
    }

    #[test]
    fn a_rule_with_another_protocol_or_priority_is_not_ours() {
        let rule = *policy_rules(DEFAULT_MARK).first().unwrap();
        let mut foreign = rule_message(&rule);
        foreign
            .attributes
            .retain(|attribute| !matches!(attribute, RuleAttribute::Protocol(_)));
        assert_eq!(parse_rule(&foreign, rule.family), None);
        let elsewhere = Rule {
            priority: 5210,
            ..rule
        };
        assert_eq!(parse_rule(&rule_message(&elsewhere), rule.family), None);
    }

    #[test]
    fn a_route_reads_back_as_it_was_written() {
        for (prefix, kind) in [
            ("100.64.0.9/32", RouteKind::Device),
            ("0.0.0.0/0", RouteKind::Device),
            ("10.0.0.0/8", RouteKind::Throw),
            ("::/0", RouteKind::Blackhole),
        ] {
            let route = Route {
                prefix: prefix.parse().unwrap(),
                kind,
            };
            assert_eq!(parse(&message(&route, Some(7)), Some(7)), Some(route));
        }
    }

    #[test]
    fn a_route_through_another_device_is_not_ours() {
        let route = Route {
            prefix: "10.0.0.0/8".parse().unwrap(),
            kind: RouteKind::Device,
        };
        assert_eq!(parse(&message(&route, Some(7)), Some(8)), None);
    }
}
