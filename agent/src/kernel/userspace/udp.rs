//! gotatun's UDP side: two plain sockets on the WireGuard port, out of which disco and STUN are taken before WireGuard sees them.
//!
//! The sockets live as long as the agent and are shared with `traversal::port`. While no WireGuard runs, an idle reader takes its
//! place, so that STUN and disco work before the first netmap. No UDP GRO: a disco datagram would arrive glued to others.

pub mod arrivals;
mod slots;
mod sockets;

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use gotatun::packet::{Packet, PacketBufPool};
use gotatun::udp::{UdpRecv, UdpSend, UdpTransportFactory, UdpTransportFactoryParams};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::{Mutex, mpsc, watch};

pub(super) use self::slots::Slots;
pub(super) use self::sockets::Sockets;
use super::mmsg::{self, BATCH};
use crate::traversal::port::Datagram;
use crate::traversal::relay::relay_address;
use crate::traversal::shortcut::{Inward, Shortcut};

/// Disco and STUN that wait for the engine; more is dropped, as a full socket would.
pub(super) const DATAGRAMS: usize = 1024;

/// Pause after an error that isn't "nothing there", so that a lasting one can't spin.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

/// Reads the sockets and takes out what isn't WireGuard's.
#[derive(Clone, Debug)]
struct Reader {
    sockets: Sockets,
    datagrams: mpsc::Sender<Datagram>,
    /// What relays brought. One reader at a time reads at all.
    injected: Arc<Mutex<mpsc::Receiver<Inward>>>,
}

impl Reader {
    /// Waits for datagrams and hands those for WireGuard to `keep`, at least one.
    async fn read(
        &self,
        slots: &mut Slots,
        pool: &PacketBufPool,
        keep: &mut Vec<(Packet, SocketAddr)>,
    ) {
        let before = keep.len();
        let mut injected = self.injected.lock().await;
        while keep.len() == before {
            tokio::select! {
                () = self.sockets.readable() => {}
                _ = injected.recv_many(&mut slots.injected, BATCH) => {
                    slots.take_injected(pool, keep);
                    continue;
                }
            }
            for socket in self.sockets.each() {
                if !self.read_ready(socket, slots, pool, keep) {
                    tokio::time::sleep(ERROR_PAUSE).await;
                }
            }
        }
    }

    fn read_ready(
        &self,
        socket: &UdpSocket,
        slots: &mut Slots,
        pool: &PacketBufPool,
        keep: &mut Vec<(Packet, SocketAddr)>,
    ) -> bool {
        slots.fill(pool);
        let result = socket.try_io(Interest::READABLE, || {
            mmsg::receive(socket.as_fd(), &mut slots.buffers, &mut slots.received)
        });
        match result {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
            Err(error) => {
                tracing::debug!(%error, "reading the WireGuard port");
                return false;
            }
        }
        slots.sort(keep, |from, bytes| self.take(from, bytes));
        true
    }

    fn take(&self, from: SocketAddr, bytes: &[u8]) {
        let bytes = Bytes::copy_from_slice(bytes);
        if self.datagrams.try_send(Datagram { from, bytes }).is_err() {
            tracing::debug!(%from, "a disco or STUN datagram too many is dropped");
        }
    }
}

/// Gives every gotatun device the same sockets.
pub(super) struct Factory {
    reader: Reader,
    shortcut: Shortcut,
    /// How many receivers WireGuard holds; the idle reader reads while it is none.
    users: watch::Sender<usize>,
}

impl Factory {
    /// Starts the idle reader, which ends with the factory.
    pub fn new(
        sockets: Sockets,
        datagrams: mpsc::Sender<Datagram>,
        shortcut: Shortcut,
        injected: mpsc::Receiver<Inward>,
    ) -> Self {
        let reader = Reader {
            sockets,
            datagrams,
            injected: Arc::new(Mutex::new(injected)),
        };
        let (users, watched) = watch::channel(0);
        tokio::spawn(read_while_idle(reader.clone(), watched));
        Self {
            reader,
            shortcut,
            users,
        }
    }

    /// Another handle on the same sockets.
    pub fn share(&self) -> Self {
        Self {
            reader: self.reader.clone(),
            shortcut: self.shortcut.clone(),
            users: self.users.clone(),
        }
    }
}

async fn read_while_idle(reader: Reader, mut users: watch::Receiver<usize>) {
    let pool = PacketBufPool::new(0);
    let mut slots = Slots::default();
    let mut unwanted = Vec::new();
    while users.wait_for(|users| *users == 0).await.is_ok() {
        tokio::select! {
            result = users.wait_for(|users| *users > 0) => if result.is_err() {
                return;
            },
            () = reader.read(&mut slots, &pool, &mut unwanted) => unwanted.clear(),
        }
    }
}

impl UdpTransportFactory for Factory {
    type Send = Sender;
    type Recv = Receiver;

    async fn bind(&mut self, params: &UdpTransportFactoryParams) -> io::Result<(Sender, Receiver)> {
        if let Some(mark) = params.fwmark {
            self.reader.sockets.set_mark(mark)?;
        }
        let sender = Sender::new(self.reader.sockets.clone(), self.shortcut.clone());
        self.users.send_modify(|users| *users += 1);
        let receiver = Receiver {
            reader: self.reader.clone(),
            waiting: Vec::new(),
            users: self.users.clone(),
        };
        Ok((sender, receiver))
    }
}

#[derive(Clone)]
pub(super) struct Sender {
    sockets: Sockets,
    shortcut: Shortcut,
    /// Off for good once a device turned out to be unable.
    segmentation: Arc<AtomicBool>,
}

impl Sender {
    fn new(sockets: Sockets, shortcut: Shortcut) -> Self {
        Self {
            sockets,
            shortcut,
            segmentation: Arc::new(AtomicBool::new(true)),
        }
    }

    /// Takes out what goes to relayed peers. True if there was any.
    fn relay(&self, packets: &mut Vec<(Packet, SocketAddr)>) -> bool {
        let mut size = 0;
        for (packet, to) in packets.iter() {
            size += relay_address(*to).map_or(0, |_| packet.len());
        }
        if size == 0 {
            return false;
        }
        let mut arena = BytesMut::with_capacity(size);
        let mut relayed = Vec::with_capacity(packets.len());
        packets.retain(|(packet, to)| {
            let Some(address) = relay_address(*to) else {
                return true;
            };
            arena.extend_from_slice(packet);
            relayed.push((address, arena.split().freeze()));
            false
        });
        self.shortcut.send(&mut relayed);
        true
    }

    /// What to try next after an error: `true` if the same once more, one by one.
    fn give_up_segmentation(&self, error: &io::Error) -> bool {
        match error.raw_os_error() {
            // No checksum offload on the way out, or an older kernel.
            Some(libc::EIO | libc::EOPNOTSUPP | libc::ENOPROTOOPT) => {
                tracing::info!(%error, "sending without segmentation offload");
                self.segmentation.store(false, Ordering::Relaxed);
                true
            }
            // These would be larger than the path's MTU; others may not.
            Some(libc::EINVAL | libc::EMSGSIZE) => true,
            _ => false,
        }
    }
}

impl UdpSend for Sender {
    type SendManyBuf = ();

    async fn send_to(&self, packet: Packet, destination: SocketAddr) -> io::Result<()> {
        if let Some(address) = relay_address(destination) {
            let bytes = Bytes::copy_from_slice(&packet);
            self.shortcut.send(&mut vec![(address, bytes)]);
            return Ok(());
        }
        let socket = self.sockets.for_target(destination)?;
        socket.send_to(&packet, destination).await.map(drop)
    }

    fn max_number_of_packets_to_send(&self) -> usize {
        BATCH
    }

    /// All of one family, as gotatun promises. A packet that can't go out costs only itself.
    async fn send_many_to(
        &self,
        (): &mut (),
        packets: &mut Vec<(Packet, SocketAddr)>,
    ) -> io::Result<()> {
        if self.relay(packets) {
            // What has been handed over is sent by other tasks, and must not pile up before they get to run.
            tokio::task::yield_now().await;
        }
        let Some((_, first)) = packets.first() else {
            return Ok(());
        };
        let socket = self.sockets.for_target(*first)?;
        let mut done = 0;
        let mut segmentation = self.segmentation.load(Ordering::Relaxed);
        while done < packets.len() {
            let sent = socket
                .async_io(Interest::WRITABLE, || {
                    let rest = packets[done..]
                        .iter()
                        .map(|(packet, to)| (&packet[..], *to));
                    mmsg::send(socket.as_fd(), rest, segmentation)
                })
                .await;
            done += match sent {
                Ok(sent) => sent,
                Err(error) if segmentation && self.give_up_segmentation(&error) => {
                    segmentation = false;
                    0
                }
                Err(error) => {
                    tracing::trace!(%error, to = %packets[done].1, "sending from the WireGuard port");
                    1
                }
            };
        }
        packets.clear();
        Ok(())
    }

    fn local_addr(&self) -> io::Result<Option<SocketAddr>> {
        self.sockets.v4.local_addr().map(Some)
    }

    fn set_fwmark(&self, mark: u32) -> io::Result<()> {
        self.sockets.set_mark(mark)
    }
}

pub(super) struct Receiver {
    reader: Reader,
    /// What came with the datagram that [`UdpRecv::recv_from`] returned: one socket each may have had one.
    waiting: Vec<(Packet, SocketAddr)>,
    users: watch::Sender<usize>,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.users.send_modify(|users| *users -= 1);
    }
}

impl UdpRecv for Receiver {
    type RecvManyBuf = Slots;

    async fn recv_from(&mut self, pool: &mut PacketBufPool) -> io::Result<(Packet, SocketAddr)> {
        let mut packets = std::mem::take(&mut self.waiting);
        if packets.is_empty() {
            self.reader
                .read(&mut Slots::up_to(1), pool, &mut packets)
                .await;
        }
        let first = packets.remove(0);
        self.waiting = packets;
        Ok(first)
    }

    async fn recv_many_from(
        &mut self,
        slots: &mut Slots,
        pool: &mut PacketBufPool,
        packets: &mut Vec<(Packet, SocketAddr)>,
    ) -> io::Result<()> {
        self.reader.read(slots, pool, packets).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
