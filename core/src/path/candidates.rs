//! The endpoints at which a peer may be reached, bounded and free of addresses that nobody may make us send to.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Instant,
};

use super::timing::{
    LEARNED_VALID, MAX_CALLED_ENDPOINTS, MAX_LEARNED_ENDPOINTS, MAX_NETMAP_ENDPOINTS,
};

#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub address: SocketAddr,
    netmap: bool,
    called: bool,
    learned_until: Option<Instant>,
    pub pinged: Option<Instant>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Candidates(Vec<Candidate>);

impl Candidates {
    /// Replaces the netmap's endpoints; true if one is new.
    pub fn set_netmap(&mut self, endpoints: &[SocketAddr]) -> bool {
        for candidate in &mut self.0 {
            candidate.netmap = false;
        }
        let new = self.mark(endpoints, MAX_NETMAP_ENDPOINTS, |candidate| {
            candidate.netmap = true;
        });
        self.sweep(None);
        // Most peers never get more, and there may be ten thousand.
        self.0.shrink_to_fit();
        new
    }

    /// Replaces what the peer's last CallMeMaybe said; true if one is new.
    pub fn set_called(&mut self, endpoints: &[SocketAddr]) -> bool {
        for candidate in &mut self.0 {
            candidate.called = false;
        }
        let new = self.mark(endpoints, MAX_CALLED_ENDPOINTS, |candidate| {
            candidate.called = true;
        });
        self.sweep(None);
        new
    }

    /// The source of an authenticated ping or packet; `None` if it cannot be an endpoint, else whether it is new.
    pub fn learn(&mut self, address: SocketAddr, now: Instant) -> Option<bool> {
        let address = usable(address)?;
        let until = Some(now + LEARNED_VALID);
        if let Some(candidate) = self.get_mut(&address) {
            candidate.learned_until = until;
            return Some(false);
        }
        self.sweep(Some(now));
        let learned = |candidate: &&Candidate| !candidate.netmap && !candidate.called;
        if self.0.iter().filter(learned).count() >= MAX_LEARNED_ENDPOINTS {
            let oldest = self
                .0
                .iter()
                .filter(learned)
                .min_by_key(|c| c.learned_until);
            let oldest = oldest.map(|candidate| candidate.address);
            self.0.retain(|candidate| Some(candidate.address) != oldest);
        }
        self.0.push(Candidate {
            learned_until: until,
            ..Candidate::new(address)
        });
        Some(true)
    }

    pub fn forget_learned(&mut self) {
        for candidate in &mut self.0 {
            candidate.learned_until = None;
        }
        self.sweep(None);
    }

    /// Lets every endpoint be pinged at once.
    pub fn reset_timers(&mut self) {
        for candidate in &mut self.0 {
            candidate.pinged = None;
        }
    }

    pub fn sweep(&mut self, now: Option<Instant>) {
        self.0.retain(|candidate| {
            let learned = match (candidate.learned_until, now) {
                (Some(until), Some(now)) => until > now,
                (until, _) => until.is_some(),
            };
            candidate.netmap || candidate.called || learned
        });
    }

    pub fn iter(&self) -> impl Iterator<Item = &Candidate> {
        self.0.iter()
    }

    pub fn get_mut(&mut self, address: &SocketAddr) -> Option<&mut Candidate> {
        self.0.iter_mut().find(|c| c.address == *address)
    }

    fn mark(
        &mut self,
        endpoints: &[SocketAddr],
        limit: usize,
        mark: impl Fn(&mut Candidate),
    ) -> bool {
        let mut new = false;
        for address in endpoints.iter().filter_map(|e| usable(*e)).take(limit) {
            if let Some(candidate) = self.get_mut(&address) {
                mark(candidate);
            } else {
                let mut candidate = Candidate::new(address);
                mark(&mut candidate);
                self.0.push(candidate);
                new = true;
            }
        }
        new
    }
}

impl Candidate {
    fn new(address: SocketAddr) -> Self {
        Self {
            address,
            netmap: false,
            called: false,
            learned_until: None,
            pinged: None,
        }
    }
}

/// The address in its canonical form, if packets to a peer may go there at all.
///
/// Loopback is refused as a whole: 127.128.0.0/9 holds the relay addresses of all peers, and what listens on
/// the rest is no peer but a local service that somebody else wants us to talk to.
pub(super) fn usable(address: SocketAddr) -> Option<SocketAddr> {
    let ip = address.ip().to_canonical();
    let refused = match ip {
        IpAddr::V4(v4) => {
            v4.is_unspecified() || v4.is_loopback() || v4.is_multicast() || v4.octets()[0] >= 240
        }
        IpAddr::V6(v6) => {
            v6.is_unspecified() || v6.is_loopback() || v6.is_multicast() || link_local(&v6)
        }
    };
    (!refused && address.port() != 0).then(|| SocketAddr::new(ip, address.port()))
}

fn link_local(address: &Ipv6Addr) -> bool {
    address.segments()[0] & 0xffc0 == 0xfe80
}
