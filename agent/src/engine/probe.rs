//! Pings that go through the tunnel: TSMP, which the peer's node answers, and ICMP, which its operating system does.

use std::{
    io,
    mem::MaybeUninit,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use lowroad_wire::{
    checksum,
    tsmp::{self, Message, Packet},
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{io::unix::AsyncFd, time::timeout};

use super::answer;
use crate::status::{PingKind, PingResult, TIMED_OUT};

/// As long as a disco ping waits.
const PATIENCE: Duration = Duration::from_secs(5);
/// More than any answer has.
const LONGEST: usize = 512;
/// Echo request and reply of ICMP (RFC 792) and ICMPv6 (RFC 4443).
const ECHO_V4: (u8, u8) = (8, 0);
const ECHO_V6: (u8, u8) = (128, 129);

/// One ping: from where to whom, and what comes back.
#[derive(Debug)]
pub struct Probe {
    pub device: String,
    /// By which the filter knows the agent's own packets.
    pub mark: u32,
    pub from: IpAddr,
    pub to: IpAddr,
    pub data: [u8; 8],
}

#[derive(Debug)]
struct Answer {
    latency: Duration,
    peer_api_port: Option<u16>,
}

impl Probe {
    /// Ends by itself. `name` is the peer's.
    pub async fn result(self, kind: PingKind, name: String) -> PingResult {
        let mut result = PingResult {
            ip: self.to.to_string(),
            node_ip: self.to.to_string(),
            node_name: name,
            ..PingResult::default()
        };
        match timeout(PATIENCE, self.ping(kind)).await {
            Ok(Ok(answer)) => {
                result.latency_seconds = answer.latency.as_secs_f64();
                result.peer_api_port = answer.peer_api_port.filter(|port| *port != 0);
            }
            Ok(Err(error)) => result.err = format!("cannot ping through the tunnel: {error}"),
            Err(_elapsed) => result.err = TIMED_OUT.to_owned(),
        }
        result
    }

    async fn ping(&self, kind: PingKind) -> io::Result<Answer> {
        // SAFETY: a `Socket` stays open, and is the same descriptor, until the `AsyncFd` drops it.
        let socket = unsafe { AsyncFd::register(self.socket(kind)?) }?;
        let start = Instant::now();
        match kind {
            PingKind::Icmp => drop(socket.get_ref().send(&self.echo())?),
            _ => self.send_tsmp()?,
        }
        loop {
            let mut ready = socket.readable().await?;
            let received = ready.try_io(|socket| {
                let mut bytes = [MaybeUninit::uninit(); LONGEST];
                let length = socket.get_ref().recv(&mut bytes)?;
                // SAFETY: `recv` has filled this many of them.
                Ok(bytes[..length]
                    .iter()
                    .map(|byte| unsafe { byte.assume_init() })
                    .collect::<Vec<u8>>())
            });
            let Ok(packet) = received else { continue };
            if let Some(peer_api_port) = self.answered(kind, &packet?) {
                return Ok(Answer {
                    latency: start.elapsed(),
                    peer_api_port,
                });
            }
        }
    }

    /// Sees the peer's packets of this protocol only.
    fn socket(&self, kind: PingKind) -> io::Result<Socket> {
        let to = SocketAddr::new(self.to, 0);
        let protocol = match (kind, self.to) {
            (PingKind::Icmp, IpAddr::V4(_)) => Protocol::ICMPV4,
            (PingKind::Icmp, IpAddr::V6(_)) => Protocol::ICMPV6,
            _ => Protocol::from(i32::from(tsmp::PROTOCOL)),
        };
        let socket = Socket::new(
            Domain::for_address(to),
            Type::RAW.nonblocking().cloexec(),
            Some(protocol),
        )?;
        socket.bind_device(Some(self.device.as_bytes()))?;
        socket.bind(&SocketAddr::new(self.from, 0).into())?;
        socket.connect(&to.into())?;
        Ok(socket)
    }

    fn send_tsmp(&self) -> io::Result<()> {
        let packet = Packet {
            source: self.from,
            destination: self.to,
            message: Message::Ping(self.data),
        };
        let bytes = packet.encode().map_err(io::Error::other)?;
        answer::try_send(&self.device, self.mark, &bytes)
    }

    /// The kernel fills in ICMPv6's checksum, not ICMP's.
    fn echo(&self) -> Vec<u8> {
        let (request, _) = self.echo_types();
        let mut message = vec![request, 0, 0, 0, self.data[0], self.data[1], 0, 1];
        message.extend(self.data);
        if self.to.is_ipv4() {
            let sum = checksum::of(&[&message]);
            message[2..4].copy_from_slice(&sum);
        }
        message
    }

    fn echo_types(&self) -> (u8, u8) {
        match self.to {
            IpAddr::V4(_) => ECHO_V4,
            IpAddr::V6(_) => ECHO_V6,
        }
    }

    /// What the answer says of the peer's API, if this is the answer. Of IPv4 a raw socket sees the header, too.
    #[must_use]
    pub fn answered(&self, kind: PingKind, packet: &[u8]) -> Option<Option<u16>> {
        let header = match self.to {
            IpAddr::V4(_) => usize::from(packet.first()? & 15) * 4,
            IpAddr::V6(_) => 0,
        };
        let message = packet.get(header..)?;
        if kind == PingKind::Icmp {
            let (_, reply) = self.echo_types();
            let head = [reply, 0, self.data[0], self.data[1], 0, 1];
            let is_ours = message.len() == 16
                && message[..2] == head[..2]
                && message[4..8] == head[2..]
                && message[8..] == self.data;
            return is_ours.then_some(None);
        }
        match Message::parse(message) {
            Ok(Message::Pong {
                data,
                peer_api_port,
            }) if data == self.data => Some(Some(peer_api_port)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(from: &str, to: &str) -> Probe {
        Probe {
            device: "lowroad0".to_owned(),
            mark: 1,
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            data: *b"abcdefgh",
        }
    }

    #[test]
    fn only_the_answer_to_this_ping_counts() {
        let v4 = probe("100.64.0.1", "100.64.0.2");
        let ip = |message: &[u8]| [&[0x45; 20][..], message].concat();
        assert_eq!(
            v4.answered(PingKind::Tsmp, &ip(b"oabcdefgh\x12\x34")),
            Some(Some(0x1234))
        );
        assert_eq!(v4.answered(PingKind::Tsmp, &ip(b"oabcdefgi\0\0")), None);
        assert_eq!(v4.answered(PingKind::Tsmp, &ip(b"pabcdefgh")), None);
        assert_eq!(v4.answered(PingKind::Tsmp, &[]), None);
        let mut echo = v4.echo();
        assert!(checksum::is_right(&[&echo]));
        assert_eq!(v4.answered(PingKind::Icmp, &ip(&echo)), None, "a request");
        echo[0] = 0;
        assert_eq!(v4.answered(PingKind::Icmp, &ip(&echo)), Some(None));
        let v6 = probe("fd7a::1", "fd7a::2");
        let mut echo = v6.echo();
        echo[0] = 129;
        assert_eq!(v6.answered(PingKind::Icmp, &echo), Some(None));
        echo[15] ^= 1;
        assert_eq!(v6.answered(PingKind::Icmp, &echo), None, "another's");
    }
}
