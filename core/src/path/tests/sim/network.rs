//! What lies between the hosts: LANs, the internet, a relay, and how long each takes.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use super::{Event, Host, Nat, Payload, World};

const STUN_SERVER: ([u8; 4], u16) = ([198, 51, 100, 1], 3478);
const LAN_DELAY: Duration = Duration::from_millis(1);
pub const INTERNET_DELAY: Duration = Duration::from_millis(20);
const RELAY_DELAY: Duration = Duration::from_millis(30);

impl World {
    pub(super) fn own_endpoints(&mut self, host: usize) -> Vec<SocketAddr> {
        let (address, site) = (self.hosts[host].address, self.hosts[host].site);
        let stun = self.routers[site].outbound(address, SocketAddr::from(STUN_SERVER));
        let mut endpoints = vec![stun, address];
        endpoints.dedup();
        endpoints
    }

    pub(super) fn transmit(&mut self, from: usize, to: SocketAddr, payload: Payload) {
        let (source, site) = (self.hosts[from].address, self.hosts[from].site);
        let is_private = matches!(to.ip(), IpAddr::V4(ip) if ip.is_private());
        if is_private || self.routers[site].kind == Nat::None {
            let near = |host: &Host| host.address == to && (host.site == site || !is_private);
            if let Some(target) = self.hosts.iter().position(near) {
                return self.post_direct(from, target, source, LAN_DELAY, payload);
            }
        }
        if is_private {
            return;
        }
        let source = self.routers[site].outbound(source, to);
        if let Some(router) = self
            .routers
            .iter()
            .position(|router| IpAddr::V4(router.public) == to.ip())
        {
            // No hairpin.
            let inner = self.routers[router]
                .inbound(source, to.port())
                .filter(|_| router != site);
            let target =
                inner.and_then(|inner| self.hosts.iter().position(|host| host.address == inner));
            if let Some(target) = target {
                self.post_direct(from, target, source, INTERNET_DELAY, payload);
            }
        } else if let Some(target) = self.hosts.iter().position(|host| host.address == to) {
            self.post_direct(from, target, source, INTERNET_DELAY, payload);
        }
    }

    fn post_direct(
        &mut self,
        from: usize,
        to: usize,
        source: SocketAddr,
        delay: Duration,
        payload: Payload,
    ) {
        if !self.cut.contains(&(from, to)) {
            self.post(
                delay,
                Event::Datagram {
                    to,
                    from: source,
                    payload,
                },
            );
        }
    }

    pub(super) fn post_relayed(&mut self, from: usize, to: usize, payload: Payload) {
        self.post(RELAY_DELAY, Event::Relayed { to, from, payload });
    }

    pub(super) fn post(&mut self, delay: Duration, event: Event) {
        self.sequence += 1;
        self.queue.insert((self.now + delay, self.sequence), event);
    }
}
