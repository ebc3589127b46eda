//! One client's connection: greeting, reading, writing.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::StreamExt;
use lowroad_wire::derp::{
    Codec, Frame, GoneReason, PROTOCOL_VERSION, ServerInfo, open_client_info, server_info,
};
use lowroad_wire::key::NodePublic;
use lowroad_wire::{Kind, classify};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::codec::{Encoder, FramedRead};

use super::DerpServer;
use super::peers::Peer;
use super::queue::{Queue, Taken};

/// How long a client may take to prove its key.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a client may take nothing of what is written to it.
const WRITE_STALL: Duration = Duration::from_secs(2);

/// Keep-alives come this often, each later by a random part of the jitter.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
const KEEP_ALIVE_JITTER: Duration = Duration::from_secs(5);

/// One read takes up to this much, which is many packets; queued packets keep it in memory.
const READ_BUFFER: usize = 32 << 10;

/// After so many frames the writing half of the same task gets its turn, also when more are there
/// to be read: fewer than a queue holds.
const FRAMES_IN_A_ROW: u32 = 16;

/// A connection that has nothing to write keeps no larger buffer than this.
const IDLE_BUFFER: usize = 8 << 10;

/// From so many receivers on, those that have left are looked for whenever their number has doubled.
const PRUNE_FROM: usize = 64;

/// A client is told of receivers that aren't here this often, and this many times in a row.
const NOT_HERE_INTERVAL: Duration = Duration::from_secs(1);
const NOT_HERE_BURST: u32 = 3;

/// What clients are told when the relay stops: come back after, and try for.
const RESTART_RECONNECT_IN: Duration = Duration::from_millis(500);
const RESTART_TRY_FOR: Duration = Duration::from_secs(10);

/// Why a connection ended, other than by the client closing it.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    #[error("greeting took longer than 10 s")]
    GreetingTimeout,
    #[error("greeting made way for others")]
    MadeWay,
    #[error("client closed the connection while greeting")]
    NoGreeting,
    #[error("client began with something else than its greeting")]
    NotAGreeting,
    #[error("greeting: {0}")]
    BadGreeting(lowroad_wire::Error),
    #[error("client speaks version {0} of the protocol, which is too old")]
    Version(i32),
    #[error("key {0} belongs to no node that may use this relay")]
    NotAdmitted(NodePublic),
    #[error("reading: {0}")]
    Read(#[from] lowroad_wire::Error),
    #[error("writing: {0}")]
    Write(#[from] std::io::Error),
    #[error("client took nothing for 2 s")]
    Stalled,
    #[error("client asked for what only relays of the same region may")]
    NotPermitted,
}

type Reader<S> = FramedRead<ReadHalf<S>, Codec>;

/// Serves a connection until it ends.
pub(super) async fn run<S: AsyncRead + AsyncWrite + Send>(
    server: &DerpServer,
    stream: S,
    remote: SocketAddr,
    stop: &mut watch::Receiver<bool>,
) -> Result<(), End> {
    let (reader, mut writer) = tokio::io::split(stream);
    let mut reader = FramedRead::with_capacity(reader, Codec::server(), READ_BUFFER);
    let greeting = async {
        let place = server.greeting.take(remote.ip());
        let greeting = greet(server, &mut reader, &mut writer);
        tokio::select! {
            () = place.lost.cancelled() => Err(End::MadeWay),
            greeted = timeout(GREETING_TIMEOUT, greeting) => greeted.unwrap_or(Err(End::GreetingTimeout)),
        }
    };
    let key = tokio::select! {
        key = greeting => key.inspect_err(|_| {
            server.counters.refused.fetch_add(1, Ordering::Relaxed);
        })?,
        () = stopped(stop) => return Ok(()),
    };
    server.counters.accepted.fetch_add(1, Ordering::Relaxed);
    tracing::debug!(%remote, %key, "relay client connected");
    let mut client = Client::new(server, key);
    // Who was shut out since the greeting was asked about has missed that: there was nothing to close yet.
    if !(server.admission)(&key) {
        return Err(End::NotAdmitted(key));
    }
    let queue = client.queue.clone();
    tokio::select! {
        read = client.read(&mut reader) => read,
        written = write(server, &queue, &mut writer, stop) => written,
    }
}

/// ServerKey, ClientInfo, ServerInfo: the client proves its key by a box that opens.
async fn greet<S: AsyncRead + AsyncWrite + Send>(
    server: &DerpServer,
    reader: &mut Reader<S>,
    writer: &mut WriteHalf<S>,
) -> Result<NodePublic, End> {
    send(writer, Frame::ServerKey(server.key.public())).await?;
    let frame = match reader.next().await {
        Some(frame) => frame.map_err(End::BadGreeting)?,
        None => return Err(End::NoGreeting),
    };
    let Frame::ClientInfo { key, sealed } = frame else {
        return Err(End::NotAGreeting);
    };
    let info = open_client_info(&server.key, &key, &sealed).map_err(End::BadGreeting)?;
    if info.version < PROTOCOL_VERSION {
        return Err(End::Version(info.version));
    }
    if !(server.admission)(&key) {
        return Err(End::NotAdmitted(key));
    }
    let mut nonce = [0; 24];
    getrandom::fill(&mut nonce).map_err(std::io::Error::from)?;
    let info = server_info(&server.key, &key, nonce, &ServerInfo::default());
    send(writer, info).await?;
    Ok(key)
}

async fn send(writer: &mut (impl AsyncWrite + Unpin), frame: Frame) -> Result<(), End> {
    let mut bytes = BytesMut::new();
    Codec::server().encode(frame, &mut bytes)?;
    writer.write_all(&bytes).await?;
    Ok(writer.flush().await?)
}

/// The reading side of an admitted client. Dropping it takes the client out of the relay.
struct Client<'a> {
    server: &'a DerpServer,
    key: NodePublic,
    queue: Arc<Queue>,
    own: Arc<Peer>,
    /// Receivers of its packets, also to tell them when it leaves.
    routes: HashMap<NodePublic, Arc<Peer>>,
    not_here: Allowance,
}

impl Drop for Client<'_> {
    fn drop(&mut self) {
        // When the relay stops, everybody learns that from the relay itself.
        let stopping = *self.server.stop.borrow();
        let sent_to = self.routes.drain().map(|(key, _)| key);
        self.server
            .peers
            .remove(&self.key, &self.queue, sent_to, !stopping);
    }
}

impl<'a> Client<'a> {
    fn new(server: &'a DerpServer, key: NodePublic) -> Self {
        let queue = Arc::new(Queue::default());
        Self {
            own: server.peers.add(key, &queue),
            server,
            key,
            queue,
            routes: HashMap::new(),
            not_here: Allowance::new(),
        }
    }

    async fn read<S: AsyncRead + AsyncWrite + Send>(
        &mut self,
        reader: &mut Reader<S>,
    ) -> Result<(), End> {
        let mut in_a_row = 0;
        while let Some(frame) = reader.next().await {
            in_a_row += 1;
            if in_a_row == FRAMES_IN_A_ROW {
                in_a_row = 0;
                tokio::task::yield_now().await;
            }
            match frame? {
                Frame::SendPacket { to, packet } => self.relay(to, packet),
                Frame::Ping(data) => self.queue.frame(Frame::Pong(data)),
                Frame::WatchConns | Frame::ClosePeer(_) | Frame::ForwardPacket { .. } => {
                    return Err(End::NotPermitted);
                }
                // NotePreferred is for statistics; the rest is for clients, or from the future.
                _ => {}
            }
        }
        Ok(())
    }

    fn relay(&mut self, to: NodePublic, packet: Bytes) {
        let counters = &self.server.counters;
        counters.packets_received.fetch_add(1, Ordering::Relaxed);
        counters
            .bytes_received
            .fetch_add(packet.len() as u64, Ordering::Relaxed);
        self.own.wrote(&self.queue);
        let is_disco = classify(&packet) == Kind::Disco;
        if let Some(active) = self.routes.get(&to).and_then(|peer| peer.active()) {
            return deliver(self.server, active.as_ref(), self.key, packet, is_disco);
        }
        match self.server.peers.get(&to) {
            Some(peer) => {
                if let Some(active) = peer.active() {
                    deliver(self.server, active.as_ref(), self.key, packet, is_disco);
                }
                // Receivers that have left would pile up here otherwise.
                if self.routes.len() >= PRUNE_FROM && self.routes.len().is_power_of_two() {
                    self.routes.retain(|_, peer| peer.active().is_some());
                }
                self.routes.insert(to, peer);
            }
            None => {
                counters.dropped_not_here.fetch_add(1, Ordering::Relaxed);
                if is_disco && self.not_here.take(Instant::now()) {
                    self.queue.frame(Frame::PeerGone {
                        key: to,
                        reason: GoneReason::NotHere,
                    });
                }
            }
        }
    }
}

fn deliver(
    server: &DerpServer,
    queue: Option<&Arc<Queue>>,
    from: NodePublic,
    packet: Bytes,
    is_disco: bool,
) {
    let dropped = queue.map_or(1, |queue| queue.packet(from, packet, is_disco));
    if dropped > 0 {
        let counter = &server.counters.dropped_queue_full;
        counter.fetch_add(dropped, Ordering::Relaxed);
    }
}

/// Some at once, then one per interval.
#[derive(Debug)]
struct Allowance {
    left: u32,
    refilled: Instant,
}

impl Allowance {
    fn new() -> Self {
        Self {
            left: NOT_HERE_BURST,
            refilled: Instant::now(),
        }
    }

    fn take(&mut self, now: Instant) -> bool {
        let intervals = (now - self.refilled).as_secs() / NOT_HERE_INTERVAL.as_secs();
        if intervals > 0 {
            let more = u32::try_from(intervals).unwrap_or(NOT_HERE_BURST);
            self.left = self.left.saturating_add(more).min(NOT_HERE_BURST);
            self.refilled = now;
        }
        let may = self.left > 0;
        self.left = self.left.saturating_sub(1);
        may
    }
}

/// Empties the queue in batches for as long as the connection lasts.
async fn write<S: AsyncWrite>(
    server: &DerpServer,
    queue: &Queue,
    writer: &mut WriteHalf<S>,
    stop: &mut watch::Receiver<bool>,
) -> Result<(), End> {
    let mut batch = BytesMut::new();
    let mut keep_alive = Instant::now() + keep_alive_after();
    loop {
        // Asked for each time, because under steady traffic nothing below ever waits.
        if queue.is_closed() {
            return Ok(());
        }
        let stopping = *stop.borrow();
        let taken = queue.take(&mut batch);
        if stopping {
            let restarting = Frame::Restarting {
                reconnect_in: RESTART_RECONNECT_IN,
                try_for: RESTART_TRY_FOR,
            };
            Codec::server().encode(restarting, &mut batch)?;
        }
        if !batch.is_empty() {
            write_batch(writer, &mut batch).await.inspect_err(|end| {
                if matches!(end, End::Stalled) {
                    server.counters.stalled.fetch_add(1, Ordering::Relaxed);
                }
            })?;
            server.counters.sent(taken);
        }
        if stopping {
            let closed = timeout(WRITE_STALL, writer.shutdown()).await;
            return Ok(closed.unwrap_or(Ok(()))?);
        }
        if taken != Taken::default() {
            continue;
        }
        if batch.capacity() > IDLE_BUFFER {
            batch = BytesMut::new();
        }
        tokio::select! {
            () = queue.ready() => {}
            () = tokio::time::sleep_until(keep_alive) => {
                queue.frame(Frame::KeepAlive);
                keep_alive = Instant::now() + keep_alive_after();
            }
            () = stopped(stop) => {}
        }
    }
}

/// Returns when the relay stops.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // The sender lives in the relay that this connection borrows, so this cannot fail.
    drop(stop.wait_for(|stop| *stop).await);
}

/// Writes all of a batch; a client may be slow, but not take nothing at all.
async fn write_batch(
    writer: &mut (impl AsyncWrite + Unpin),
    batch: &mut BytesMut,
) -> Result<(), End> {
    while batch.has_remaining() {
        match timeout(WRITE_STALL, writer.write_buf(batch)).await {
            Ok(Ok(0)) => return Err(std::io::Error::from(std::io::ErrorKind::WriteZero).into()),
            Ok(written) => written?,
            Err(_) => return Err(End::Stalled),
        };
    }
    match timeout(WRITE_STALL, writer.flush()).await {
        Ok(flushed) => flushed?,
        Err(_) => return Err(End::Stalled),
    }
    batch.clear();
    Ok(())
}

fn keep_alive_after() -> Duration {
    // A weak source is good enough to keep clients from being written to all at once.
    let random = getrandom::u32().unwrap_or(u32::MAX / 2);
    KEEP_ALIVE + KEEP_ALIVE_JITTER.mul_f64(f64::from(random) / f64::from(u32::MAX))
}
