//! By which paths the eight reach each other in the end.

use anyhow::{Result, ensure};

use super::{Node, PACE, UPGRADE};
use crate::{
    interop::{
        Lab,
        member::{Kind, Member},
        table::Table,
    },
    tailnet::{Client, PathKind},
    topology::Nat,
    traffic::Pinger,
    wait,
};

/// Where a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// On the public segment itself.
    Public,
    /// Behind a router of its own.
    Behind(Nat),
}

impl Place {
    pub fn start(self, lab: &Lab, kind: Kind, name: &str, last: u8) -> Result<Member> {
        match self {
            Self::Public => Member::public(lab, kind, name, last),
            Self::Behind(nat) => Member::behind(lab, kind, name, last, nat),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Public => "on the public segment",
            Self::Behind(Nat::Easy) => "behind an easy NAT",
            Self::Behind(Nat::Hard) => "behind a hard NAT",
            Self::Behind(Nat::UdpBlocked) => "without UDP",
        }
    }

    /// Whether two nodes at these places find a direct path.
    fn meets(self, other: Self) -> bool {
        match (self, other) {
            (Self::Behind(Nat::UdpBlocked), _) | (_, Self::Behind(Nat::UdpBlocked)) => false,
            (Self::Public, _) | (_, Self::Public) => true,
            // Nobody knows a hard one's mapping in advance, and no router lets in what it does not know.
            (Self::Behind(one), Self::Behind(two)) => [one, two] == [Nat::Easy; 2],
        }
    }
}

/// While every pair talks: a direct path where their places have one, and elsewhere the relay.
pub fn of_all(nodes: &[Node], table: &mut Table) -> Result<()> {
    let _pings = between_all(nodes)?;
    for node in nodes {
        let (name, place) = (node.member.name(), node.place.name());
        table.try_it(&format!("{name}, {place}: paths in the end"), || {
            let (paths, _) = wait::wait_for("the paths of these places", UPGRADE, || {
                of(node, nodes).map(Some)
            })?;
            Ok(paths)
        });
    }
    Ok(())
}

fn between_all(nodes: &[Node]) -> Result<Vec<Pinger>> {
    let mut pings = Vec::new();
    for (number, from) in nodes.iter().enumerate() {
        for to in &nodes[number + 1..] {
            let address = to.member.ip(4)?;
            pings.push(Pinger::start(from.member.namespace(), address, PACE)?);
        }
    }
    Ok(pings)
}

/// An error if one of them is not as it should be.
fn of(node: &Node, nodes: &[Node]) -> Result<String> {
    let mut paths = Vec::new();
    let mut all_right = true;
    for other in nodes {
        let name = other.member.name();
        if name == node.member.name() {
            continue;
        }
        let path = node.member.path_to(name)?;
        all_right &= match &path {
            PathKind::Direct(_) => node.place.meets(other.place),
            PathKind::Relay(_) => !node.place.meets(other.place),
            PathKind::None => false,
        };
        paths.push(format!("{name} {path:?}"));
    }
    let paths = paths.join(", ");
    ensure!(all_right, "{paths}");
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_udp_and_a_hard_nat_before_another_keep_two_from_each_other() {
        let [easy, hard, none] = [Nat::Easy, Nat::Hard, Nat::UdpBlocked].map(Place::Behind);
        for (one, two, meet) in [
            (Place::Public, Place::Public, true),
            (Place::Public, easy, true),
            (Place::Public, hard, true),
            (Place::Public, none, false),
            (easy, easy, true),
            (easy, hard, false),
            (easy, none, false),
            (hard, hard, false),
            (hard, none, false),
        ] {
            assert_eq!(one.meets(two), meet, "{one:?} and {two:?}");
            assert_eq!(two.meets(one), meet, "{two:?} and {one:?}");
        }
    }
}
