//! STUN server: tells nodes the address that they are seen with (`protocol.md` 2.5).
//!
//! It answers only requests formed as nodes form them, never with more than the family's
//! response, and keeps nothing, so it is of no use for reflecting floods.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use lowroad_wire::stun;
use socket2::{Domain, Socket, Type};
use tokio::net::UdpSocket;

/// A request has 40 bytes; longer datagrams are cut off and then don't parse.
const LONGEST_REQUEST: usize = 512;

/// Failures in a row after which the socket counts as lost.
const MAX_FAILURES: u32 = 100;

/// What the server did since it started.
#[derive(Debug, Default)]
pub struct Counters {
    /// Requests answered.
    pub answered: AtomicU64,
    /// Datagrams that were no request, or whose answer could not be sent at once.
    pub ignored: AtomicU64,
}

/// Opens the socket to serve on. The unspecified IPv6 address takes IPv4 too.
///
/// # Errors
/// Those of the system: the port is taken, or the address isn't ours.
pub fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}

/// Answers requests for as long as the socket works.
///
/// # Errors
/// The system's last error, when receiving fails again and again.
pub async fn serve(socket: UdpSocket, counters: &Counters) -> io::Result<()> {
    let mut buffer = [0; LONGEST_REQUEST];
    let mut failures = 0;
    loop {
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) if failures < MAX_FAILURES => {
                failures += 1;
                tracing::debug!(%error, "receiving a STUN request failed");
                continue;
            }
            Err(error) => return Err(error),
        };
        failures = 0;
        let answer = stun::parse_request(&buffer[..length]).map(|tx| stun::response(tx, from));
        // Whoever asks repeats; waiting for room would let one sender delay the others.
        let sent = answer.is_ok_and(|answer| socket.try_send_to(&answer, from).is_ok());
        let counter = match sent {
            true => &counters.answered,
            false => &counters.ignored,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use lowroad_wire::disco::TxId;

    use super::*;

    async fn start(address: &str) -> (SocketAddr, Arc<Counters>) {
        let socket = bind(address.parse().unwrap()).unwrap();
        let address = socket.local_addr().unwrap();
        let counters = Arc::new(Counters::default());
        let served = counters.clone();
        tokio::spawn(async move { serve(socket, &served).await });
        (address, counters)
    }

    async fn ask(socket: &UdpSocket, server: SocketAddr, tx: TxId) -> SocketAddr {
        socket.send_to(&stun::request(tx), server).await.unwrap();
        let mut buffer = [0; 1500];
        let receive = socket.recv_from(&mut buffer);
        let (length, from) = tokio::time::timeout(Duration::from_secs(10), receive)
            .await
            .expect("an answer comes")
            .unwrap();
        assert_eq!(from.port(), server.port());
        let (answered, seen) = stun::parse_response(&buffer[..length]).unwrap();
        assert_eq!(answered, tx);
        seen
    }

    #[tokio::test]
    async fn a_node_learns_the_address_that_it_is_seen_with_in_both_families() {
        let (server, _) = start("[::]:0").await;
        for (own, server) in [
            (
                "127.0.0.1:0",
                SocketAddr::from(([127, 0, 0, 1], server.port())),
            ),
            (
                "[::1]:0",
                SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], server.port())),
            ),
        ] {
            let socket = UdpSocket::bind(own).await.unwrap();
            let seen = ask(&socket, server, TxId([7; 12])).await;
            assert_eq!(seen, socket.local_addr().unwrap());
        }
    }

    #[tokio::test]
    async fn garbage_gets_no_answer_and_does_no_harm() {
        let (server, counters) = start("127.0.0.1:0").await;
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let good = stun::request(TxId([1; 12]));
        let mut bad: Vec<Vec<u8>> = (0..good.len())
            .map(|length| good[..length].to_vec())
            .collect();
        bad.extend((0..good.len()).map(|at| {
            let mut broken = good.clone();
            broken[at] ^= 0x81;
            broken
        }));
        bad.extend([
            vec![],
            vec![0xff; 9000],
            stun::response(TxId([1; 12]), server),
        ]);
        for datagram in &bad {
            socket.send_to(datagram, server).await.unwrap();
        }
        assert_eq!(
            ask(&socket, server, TxId([2; 12])).await,
            socket.local_addr().unwrap()
        );
        assert_eq!(counters.answered.load(Ordering::Relaxed), 1);
        assert_eq!(counters.ignored.load(Ordering::Relaxed), bad.len() as u64);
    }
}
