//! The door between WireGuard and the relays: a loopback address for every peer.
//!
//! WireGuard sends to a relayed peer's own address in 127.128.0.0/9; one socket on `lo` receives for all of
//! them and tells peers apart by that address. What a relay brings is injected into WireGuard's port from a raw
//! socket with the endpoint that WireGuard has for the peer as its source, so that a late relayed packet never
//! makes WireGuard move the peer away from a direct path. Packets pass in batches and never through the engine.

use std::{
    collections::HashMap,
    fmt, io,
    net::{Ipv4Addr, SocketAddr},
    os::fd::AsFd,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use lowroad_core::first_contact::{FirstContact, INITIATION_LEN};
use lowroad_wire::{Kind, classify, control::RegionId, key::NodePublic};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{io::Interest, net::UdpSocket, sync::mpsc, task::AbortHandle};

use self::injector::Injector;
use super::{
    shortcut::Shortcut,
    sys::{self, ReceiveBatch},
};

mod injector;

pub use crate::derp::FromRelay;

/// How many events wait for the engine before new ones are dropped.
const QUEUE: usize = 1024;
/// Receive buffer of the door: WireGuard can send faster than a relay takes.
const RECEIVE_BUFFER: usize = 4 << 20;
/// [`RelayEvent::Outgoing`] and [`RelayEvent::Incoming`] of one peer come at most this often.
const EVENT_PAUSE: Duration = Duration::from_secs(1);

/// With what WireGuard's answer to an initiation begins.
const HANDSHAKE_RESPONSE: [u8; 4] = [2, 0, 0, 0];

/// Of the range of relay addresses, 127.128.0.0/9.
pub const FIRST_ADDRESS: u32 = u32::from_be_bytes([127, 128, 0, 0]);
/// The last address of the range is the loopback network's broadcast address.
pub const ADDRESSES: u32 = (1 << 23) - 1;

/// The address, if this endpoint is one of the relay door's.
pub fn relay_address(endpoint: SocketAddr) -> Option<Ipv4Addr> {
    match endpoint {
        SocketAddr::V4(v4)
            if (FIRST_ADDRESS..FIRST_ADDRESS + ADDRESSES).contains(&u32::from(*v4.ip())) =>
        {
            Some(*v4.ip())
        }
        _ => None,
    }
}

/// How one peer is relayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelayEntry {
    /// Its loopback address in 127.128.0.0/9.
    pub address: Ipv4Addr,
    /// The region to send by; without one nothing leaves, and the last handshake initiation waits for one.
    pub region: Option<RegionId>,
    /// The endpoint that WireGuard has for it, the source of what is injected.
    pub endpoint: SocketAddr,
}

pub type RelayTable = HashMap<NodePublic, RelayEntry>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RelayEvent {
    /// Data left for this peer by the relay; at once after a pause, then about once a second.
    Outgoing { peer: NodePublic },
    /// Data came from this peer by the relay; likewise. For [`lowroad_core::path::Paths::on_relayed_data`].
    Incoming { peer: NodePublic },
    /// A disco message, for [`lowroad_core::path::Paths::on_relayed`].
    Disco {
        region: RegionId,
        from: NodePublic,
        bytes: Bytes,
    },
}

/// The door; it closes when dropped.
#[derive(Debug)]
pub struct RelayDoor {
    inner: Arc<Inner>,
    reader: AbortHandle,
    send: Outlet,
}

/// What takes a packet for a peer, by a region.
#[derive(Clone)]
struct Outlet(Arc<dyn Fn(RegionId, NodePublic, Bytes) + Send + Sync>);

impl fmt::Debug for Outlet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Outlet")
    }
}

#[derive(Debug)]
struct Inner {
    table: RwLock<Table>,
    injector: Injector,
    /// Instead of the injector, where WireGuard is in this process.
    shortcut: OnceLock<Shortcut>,
    /// Of keys that the table has not.
    held: Mutex<FirstContact>,
    /// To peers that have no region yet.
    unsent: Mutex<FirstContact>,
    /// That went by a relay, which has brought no answer.
    unanswered: Mutex<FirstContact>,
    incoming: Mutex<Pauses>,
    events: mpsc::Sender<RelayEvent>,
    sent: Counter,
    received: Counter,
}

/// Packets one way, and their bytes.
#[derive(Debug, Default)]
struct Counter {
    packets: AtomicU64,
    bytes: AtomicU64,
}

impl Counter {
    fn add(&self, packets: u64, bytes: usize) {
        self.packets.fetch_add(packets, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// How many of WireGuard's packets went through the door, and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Relayed {
    pub sent: u64,
    pub received: u64,
    pub sent_bytes: u64,
    pub received_bytes: u64,
}

#[derive(Debug, Default)]
struct Table {
    by_key: RelayTable,
    by_address: HashMap<Ipv4Addr, NodePublic>,
}

impl Table {
    fn change(&mut self, key: NodePublic, entry: Option<RelayEntry>) {
        let old = match entry {
            Some(entry) => self.by_key.insert(key, entry),
            None => self.by_key.remove(&key),
        };
        // By now another peer may have its address.
        if let Some(old) = old
            && self.by_address.get(&old.address) == Some(&key)
        {
            self.by_address.remove(&old.address);
        }
        if let Some(entry) = entry {
            self.by_address.insert(entry.address, key);
        }
    }
}

impl RelayDoor {
    /// Opens the socket on `lo` at `port` (WireGuard's port plus one) and starts to pass what WireGuard sends to
    /// `send`, which must not block: `DerpPool::send`. `mark` is that of WireGuard's packets.
    ///
    /// # Errors
    /// `AddrInUse` if the port is taken, `PermissionDenied` without CAP_NET_RAW.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(
        port: u16,
        wireguard_port: u16,
        mark: u32,
        send: impl Fn(RegionId, NodePublic, Bytes) + Send + Sync + 'static,
    ) -> io::Result<(Self, mpsc::Receiver<RelayEvent>)> {
        let socket = UdpSocket::from_std(open(port)?.into())?;
        let (events, receiver) = mpsc::channel(QUEUE);
        let inner = Arc::new(Inner {
            table: RwLock::default(),
            injector: Injector::open(wireguard_port, mark)?,
            shortcut: OnceLock::new(),
            held: Mutex::default(),
            unsent: Mutex::default(),
            unanswered: Mutex::default(),
            incoming: Mutex::default(),
            events,
            sent: Counter::default(),
            received: Counter::default(),
        });
        let send = Outlet(Arc::new(send));
        let reader = read(inner.clone(), socket, wireguard_port, send.clone());
        let door = Self {
            inner,
            reader: tokio::spawn(reader).abort_handle(),
            send,
        };
        Ok((door, receiver))
    }

    /// From here on packets go this way, and not over `lo`.
    pub fn take(&self, shortcut: &Shortcut) {
        let (inner, send) = (self.inner.clone(), self.send.clone());
        let outgoing = Mutex::<Pauses>::default();
        shortcut.open(Box::new(move |packets| {
            pass(&inner, packets.drain(..), &mut lock(&outgoing), &send);
        }));
        let _ = self.inner.shortcut.set(shortcut.clone());
    }

    /// Replaces the table. Call it after WireGuard has the peers: a handshake that waited for one of them is
    /// injected here, and one that waited for a region is sent.
    pub fn set_table(&self, table: RelayTable) {
        let by_address = table
            .iter()
            .map(|(key, entry)| (entry.address, *key))
            .collect();
        *self.inner.write() = Table {
            by_key: table,
            by_address,
        };
        self.release();
    }

    /// Adds, changes or removes (`None`) single peers, likewise after WireGuard has them.
    pub fn change(&self, changes: impl IntoIterator<Item = (NodePublic, Option<RelayEntry>)>) {
        let mut table = self.inner.write();
        for (key, entry) in changes {
            table.change(key, entry);
        }
        drop(table);
        self.release();
    }

    fn release(&self) {
        self.inner.release_held();
        self.inner.release_unsent(&self.send);
    }

    /// Takes a batch of packets that relays brought: WireGuard's are injected, disco becomes events, handshakes
    /// of unknown keys wait for [`Self::set_table`], the rest is dropped.
    pub fn deliver(&self, packets: &[FromRelay]) {
        self.inner.deliver(packets);
    }

    /// The last handshake initiation that went to this peer by a relay, unless an answer came by one: a relay brings nothing to whom it has lost, and WireGuard
    /// repeats an initiation after 5 s only.
    pub fn take_unanswered(&self, peer: &NodePublic) -> Option<Bytes> {
        let packet = lock(&self.inner.unanswered).take(Instant::now(), peer);
        packet.map(Bytes::from)
    }

    /// Since the door was opened, which each session does anew.
    pub fn relayed(&self) -> Relayed {
        let Inner { sent, received, .. } = &*self.inner;
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Relayed {
            sent: read(&sent.packets),
            received: read(&received.packets),
            sent_bytes: read(&sent.bytes),
            received_bytes: read(&received.bytes),
        }
    }

    /// A handle that only delivers, for the task that reads the relays' events.
    pub fn inlet(&self) -> Inlet {
        Inlet(self.inner.clone())
    }
}

impl Drop for RelayDoor {
    fn drop(&mut self) {
        self.reader.abort();
        if let Some(shortcut) = self.inner.shortcut.get() {
            shortcut.close();
        }
    }
}

/// Delivers to a [`RelayDoor`].
#[derive(Clone, Debug)]
pub struct Inlet(Arc<Inner>);

impl Inlet {
    /// As [`RelayDoor::deliver`].
    pub fn deliver(&self, packets: &[FromRelay]) {
        self.0.deliver(packets);
    }
}

impl Inner {
    fn deliver(&self, packets: &[FromRelay]) {
        let now = Instant::now();
        let table = self.read();
        let mut known = Vec::with_capacity(packets.len());
        let mut homeless = None;
        for packet in packets {
            match (classify(&packet.bytes), table.by_key.get(&packet.from)) {
                (Kind::Disco, _) => {
                    self.tell(RelayEvent::Disco {
                        region: packet.region,
                        from: packet.from,
                        bytes: packet.bytes.clone(),
                    });
                }
                (Kind::WireGuard, Some(entry)) => {
                    known.push((entry.endpoint, packet.bytes.clone()));
                    if packet.bytes.starts_with(&HANDSHAKE_RESPONSE) {
                        lock(&self.unanswered).take(now, &packet.from);
                    }
                    if entry.region.is_none() {
                        homeless = Some((packet.from, packet.region));
                    }
                    let mut incoming = lock(&self.incoming);
                    if incoming.is_over(packet.from, now)
                        && self.tell(RelayEvent::Incoming { peer: packet.from })
                    {
                        incoming.start(packet.from, now);
                    }
                }
                (Kind::WireGuard, None) => lock(&self.held).hold(now, packet.from, &packet.bytes),
                (Kind::Stun | Kind::Geneve | Kind::Other, _) => {}
            }
        }
        drop(table);
        if let Some((key, region)) = homeless {
            self.answer_by(key, region);
        }
        self.inject(known);
    }

    fn inject(&self, packets: Vec<(SocketAddr, Bytes)>) {
        let bytes = packets.iter().map(|(_, packet)| packet.len()).sum();
        self.received.add(packets.len() as u64, bytes);
        match self.shortcut.get() {
            Some(shortcut) => shortcut.inject(packets.into_iter()),
            None => self.injector.inject(&packets),
        }
    }

    /// The netmap has no home of this peer: the region that it speaks by will do.
    fn answer_by(&self, key: NodePublic, region: RegionId) {
        if let Some(entry) = self.write().by_key.get_mut(&key) {
            entry.region.get_or_insert(region);
        }
    }

    /// Injects the handshakes whose peers the table has.
    fn release_held(&self) {
        let now = Instant::now();
        let table = self.read();
        let mut held = lock(&self.held);
        let keys = held
            .keys()
            .filter_map(|key| Some((*key, table.by_key.get(key)?.endpoint)));
        let keys: Vec<_> = keys.collect();
        let released: Vec<_> = keys
            .into_iter()
            .filter_map(|(key, endpoint)| Some((endpoint, held.take(now, &key)?.into())))
            .collect();
        drop((table, held));
        self.inject(released);
    }

    /// Sends the handshakes to peers whose region is known now.
    fn release_unsent(&self, send: &Outlet) {
        let now = Instant::now();
        let table = self.read();
        let mut unsent = lock(&self.unsent);
        let region = |key: &NodePublic| table.by_key.get(key)?.region;
        let ready = unsent.keys().filter_map(|key| Some((*key, region(key)?)));
        for (key, region) in ready.collect::<Vec<_>>() {
            if let Some(packet) = unsent.take(now, &key) {
                self.sent.add(1, packet.len());
                (send.0)(region, key, packet.into());
            }
        }
    }

    /// False if the engine is too far behind.
    fn tell(&self, event: RelayEvent) -> bool {
        self.events.try_send(event).is_ok()
    }

    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When events of a kind were last told, per peer.
#[derive(Debug, Default)]
struct Pauses(HashMap<NodePublic, Instant>);

impl Pauses {
    fn is_over(&self, peer: NodePublic, now: Instant) -> bool {
        let told = self.0.get(&peer);
        told.is_none_or(|at| now.duration_since(*at) >= EVENT_PAUSE)
    }

    fn start(&mut self, peer: NodePublic, now: Instant) {
        // Grows with the peers that were relayed in the last seconds only.
        if self.0.len() >= 128 && self.0.len().is_power_of_two() {
            self.0.retain(|_, at| now.duration_since(*at) < EVENT_PAUSE);
        }
        self.0.insert(peer, now);
    }
}

/// Passes what WireGuard sends to relayed peers.
async fn read(inner: Arc<Inner>, socket: UdpSocket, wireguard_port: u16, send: Outlet) {
    let mut batch = ReceiveBatch::new();
    let mut received = Vec::with_capacity(sys::BATCH);
    let mut outgoing = Pauses::default();
    loop {
        if socket.readable().await.is_err() {
            return;
        }
        let receive = || batch.receive(socket.as_fd(), &mut received);
        match socket.try_io(Interest::READABLE, receive) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => tracing::debug!(%error, "cannot read what WireGuard sends to relays"),
        }
        // Only WireGuard can hold this source port: nobody else on this host speaks for it.
        received.retain(|packet| packet.from.port() == wireguard_port);
        let packets = received.drain(..).map(|packet| (packet.to, packet.bytes));
        pass(&inner, packets, &mut outgoing, &send);
        tokio::task::yield_now().await;
    }
}

fn pass(
    inner: &Inner,
    packets: impl Iterator<Item = (Ipv4Addr, Bytes)>,
    outgoing: &mut Pauses,
    send: &Outlet,
) {
    let now = Instant::now();
    let table = inner.read();
    let (mut sent, mut sent_bytes) = (0, 0);
    for (address, bytes) in packets {
        let Some(key) = table.by_address.get(&address) else {
            continue;
        };
        if outgoing.is_over(*key, now) && inner.tell(RelayEvent::Outgoing { peer: *key }) {
            outgoing.start(*key, now);
        }
        match table.by_key.get(key).and_then(|entry| entry.region) {
            Some(region) => {
                if bytes.len() == INITIATION_LEN {
                    lock(&inner.unanswered).hold(now, *key, &bytes);
                }
                sent += 1;
                sent_bytes += bytes.len();
                (send.0)(region, *key, bytes);
            }
            None => lock(&inner.unsent).hold(now, *key, &bytes),
        }
    }
    inner.sent.add(sent, sent_bytes);
}

fn open(port: u16) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    // Before bind: nothing from outside of this host ever gets in.
    socket.bind_device(Some(b"lo"))?;
    sys::set_packet_info(socket.as_fd())?;
    socket.set_nonblocking(true)?;
    // Beyond net.core.rmem_max the kernel gives what it allows.
    let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
    Ok(socket)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
