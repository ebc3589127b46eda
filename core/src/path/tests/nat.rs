//! Address translators in virtual time.

use std::{
    collections::{HashMap, HashSet},
    net::{Ipv4Addr, SocketAddr},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nat {
    /// A host with a public address.
    None,
    /// Endpoint-independent mapping, address- and port-dependent filtering.
    Easy,
    /// Another port for every destination.
    Hard,
}

pub struct Router {
    pub kind: Nat,
    pub public: Ipv4Addr,
    next_port: u16,
    mappings: HashMap<(SocketAddr, Option<SocketAddr>), u16>,
    inner: HashMap<u16, SocketAddr>,
    open: HashSet<(u16, SocketAddr)>,
}

impl Router {
    pub fn new(kind: Nat, public: Ipv4Addr) -> Self {
        Self {
            kind,
            public,
            next_port: 20_000,
            mappings: HashMap::new(),
            inner: HashMap::new(),
            open: HashSet::new(),
        }
    }

    pub fn outbound(&mut self, source: SocketAddr, to: SocketAddr) -> SocketAddr {
        let key = match self.kind {
            Nat::None => return source,
            Nat::Easy => (source, None),
            Nat::Hard => (source, Some(to)),
        };
        let next_port = &mut self.next_port;
        let port = *self.mappings.entry(key).or_insert_with(|| {
            *next_port += 1;
            *next_port
        });
        self.inner.insert(port, source);
        self.open.insert((port, to));
        (self.public, port).into()
    }

    pub fn inbound(&self, source: SocketAddr, port: u16) -> Option<SocketAddr> {
        let open = self.open.contains(&(port, source));
        open.then(|| self.inner.get(&port).copied()).flatten()
    }
}
