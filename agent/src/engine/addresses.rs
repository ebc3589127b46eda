//! A loopback address for every peer, in 127.128.0.0/9, by which the relay door tells them apart.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    net::{Ipv4Addr, SocketAddr},
};

use lowroad_wire::key::NodePublic;

use crate::traversal::relay::{ADDRESSES, FIRST_ADDRESS, relay_address};

/// Which peer has which address. A peer's address follows from its key, unless another one has it or the kernel says otherwise, so that endpoints
/// survive a restart.
#[derive(Debug, Default)]
pub struct RelayAddresses {
    by_peer: BTreeMap<NodePublic, Ipv4Addr>,
    taken: BTreeSet<Ipv4Addr>,
}

impl RelayAddresses {
    /// Takes over an endpoint found in the kernel, if it is a relay address.
    pub fn adopt(&mut self, peer: NodePublic, endpoint: SocketAddr) {
        if let Some(address) = relay_address(endpoint)
            && !self.by_peer.contains_key(&peer)
            && self.taken.insert(address)
        {
            self.by_peer.insert(peer, address);
        }
    }

    /// The peer's address, given to it now if it has none.
    pub fn of(&mut self, peer: NodePublic) -> Ipv4Addr {
        if let Some(address) = self.by_peer.get(&peer) {
            return *address;
        }
        let mut attempts = (0..).map(|attempt: u64| attempted(&peer, attempt));
        let address = attempts
            .find(|address| !self.taken.contains(address))
            .expect("a netmap cannot hold eight million peers, so most addresses are free");
        self.taken.insert(address);
        self.by_peer.insert(peer, address);
        address
    }

    pub fn forget(&mut self, peer: &NodePublic) {
        if let Some(address) = self.by_peer.remove(peer) {
            self.taken.remove(&address);
        }
    }
}

/// Where to look for a free address at the n-th time. Each time is as good as random, so that no choice of keys makes many peers meet again and again, as
/// looking at the next address would.
fn attempted(peer: &NodePublic, attempt: u64) -> Ipv4Addr {
    let mut hasher = DefaultHasher::new();
    (peer.as_bytes(), attempt).hash(&mut hasher);
    Ipv4Addr::from(FIRST_ADDRESS + (hasher.finish() % u64::from(ADDRESSES)) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(bytes: [u8; 5]) -> NodePublic {
        let mut whole = [0; 32];
        whole[..5].copy_from_slice(&bytes);
        NodePublic::from_bytes(whole)
    }

    #[test]
    fn peers_get_distinct_addresses_inside_the_range_after_few_attempts() {
        const PEERS: usize = 20_000;
        let mut addresses = RelayAddresses::default();
        let peer = |n: usize| {
            let [.., a, b, c] = n.to_be_bytes();
            key([0, 0, a, b, c])
        };
        let given: BTreeSet<_> = (0..PEERS).map(|n| addresses.of(peer(n))).collect();
        assert_eq!(given.len(), PEERS);
        let again = (0..PEERS).filter(|n| attempted(&peer(*n), 0) != addresses.of(peer(*n)));
        assert!(again.count() < PEERS / 100);
        assert!(
            given
                .iter()
                .all(|address| relay_address(SocketAddr::new((*address).into(), 1)).is_some())
        );
        assert!(!given.contains(&Ipv4Addr::new(127, 255, 255, 255)));
    }

    #[test]
    fn an_adopted_address_stays_and_a_forgotten_one_is_free_again() {
        let mut addresses = RelayAddresses::default();
        let (a, b) = (key([1, 0, 0, 0, 0]), key([1, 0, 0, 0, 1]));
        let found = Ipv4Addr::new(127, 200, 1, 2);
        addresses.adopt(a, SocketAddr::new(found.into(), 41642));
        addresses.adopt(b, "192.0.2.1:41641".parse().unwrap());
        assert_eq!(addresses.of(a), found);
        addresses.forget(&a);
        addresses.adopt(b, SocketAddr::new(found.into(), 41642));
        assert_eq!(addresses.of(b), found);
    }
}
