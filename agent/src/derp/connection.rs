//! One greeted connection, until it ends.

use std::{
    io,
    net::IpAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::BytesMut;
use lowroad_wire::{
    control::{DerpNode, RegionId},
    derp::{Codec, Frame},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::{Notify, watch},
    time::{Instant, interval_at, sleep, sleep_until, timeout},
};
use tokio_util::codec::Decoder as _;
use tracing::debug;

use super::{
    DerpEvent, FromRelay, HEALTH_PAUSE, Shared,
    dial::Greeted,
    queue::{Queue, TokenBucket},
    region::Wanted,
};

/// What one read may bring, and one write send: four TLS records.
const CHUNK: usize = 64 << 10;

#[derive(Debug, thiserror::Error)]
pub enum End {
    /// Not wanted any more; the region's task ends too.
    #[error("not wanted any more")]
    Unwanted,
    #[error("idle")]
    Idle,
    #[error("the relay map changed")]
    Moved,
    #[error("the relay said nothing for {0:?}")]
    Silent(Duration),
    #[error("the relay takes nothing")]
    Stuck,
    #[error("this host no longer has {0}, by which the relay was reached")]
    AddressGone(IpAddr),
    #[error("the relay does not answer after a change of links")]
    NoPong,
    #[error("the relay closed the connection")]
    Closed,
    #[error("the relay restarts")]
    Restarting {
        /// When to come back.
        after: Duration,
    },
    #[error("the connection to the relay broke: {0}")]
    Broke(#[from] lowroad_wire::Error),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Broke(error.into())
    }
}

/// What the two directions and the supervisor have in common.
pub struct Connection<'a> {
    pub id: RegionId,
    pub shared: &'a Shared,
    pub queue: &'a Queue,
    /// What the connection was made by.
    pub nodes: &'a [DerpNode],
    pong: AtomicU64,
    pong_arrived: Notify,
    restart: Mutex<Option<Duration>>,
    /// What the relay has to say to people, the latest of it.
    health: watch::Sender<String>,
}

impl<'a> Connection<'a> {
    pub fn new(id: RegionId, shared: &'a Shared, queue: &'a Queue, nodes: &'a [DerpNode]) -> Self {
        Self {
            id,
            shared,
            queue,
            nodes,
            pong: AtomicU64::new(0),
            pong_arrived: Notify::new(),
            restart: Mutex::new(None),
            health: watch::Sender::default(),
        }
    }

    /// Carries packets both ways until something ends it.
    pub async fn run(&self, greeted: Greeted, wanted: &mut watch::Receiver<Wanted>) -> End {
        let bucket = TokenBucket::new(&greeted.info);
        let own = greeted.stream.get_ref().0.local_addr();
        let own = own.ok().map(|address| address.ip());
        let (reader, writer) = tokio::io::split(greeted.stream);
        let health = self.health.subscribe();
        let end = tokio::select! {
            end = self.receive(reader, greeted.leftover) => end,
            end = self.transmit(writer, bucket) => end,
            end = self.supervise(own, wanted) => end,
            end = self.tell(health) => end,
        };
        let end = match end {
            Ok(never) => match never {},
            Err(end) => end,
        };
        match *self.restart.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(after) if !matches!(end, End::Unwanted | End::Moved) => End::Restarting { after },
            _ => end,
        }
    }

    async fn receive(
        &self,
        mut reader: impl AsyncRead + Unpin,
        mut buffer: BytesMut,
    ) -> Result<Never, End> {
        let mut codec = Codec::client();
        let silence = self.shared.timings.silence;
        loop {
            while let Some(frame) = codec.decode(&mut buffer)? {
                self.take(frame);
            }
            buffer.reserve(CHUNK);
            let read = timeout(silence, reader.read_buf(&mut buffer)).await;
            if read.map_err(|_| End::Silent(silence))?? == 0 {
                return Err(End::Closed);
            }
        }
    }

    /// Waits for nobody: a relay that floods us must not make us late for its packets, nor others for theirs.
    fn take(&self, frame: Frame) {
        let region = self.id;
        match frame {
            Frame::RecvPacket { from, packet } => self.shared.inbox.push(FromRelay {
                region,
                from,
                bytes: packet,
            }),
            Frame::PeerGone { key, reason } => {
                debug!(%region, peer = %key.short(), ?reason, "a relay does not reach a peer");
            }
            Frame::Health(text) => drop(self.health.send_replace(text)),
            Frame::Ping(data) => self.queue.push_frame(Frame::Pong(data)),
            Frame::Pong(data) => {
                self.pong.store(u64::from_be_bytes(data), Ordering::Relaxed);
                self.pong_arrived.notify_one();
            }
            Frame::Restarting { reconnect_in, .. } => {
                *self.restart.lock().unwrap_or_else(PoisonError::into_inner) = Some(reconnect_in);
            }
            _ => {}
        }
    }

    /// Passes on the latest that the relay has to say to people.
    async fn tell(&self, mut health: watch::Receiver<String>) -> Result<Never, End> {
        loop {
            health.changed().await.map_err(|_| End::Unwanted)?;
            let text = health.borrow_and_update().clone();
            let region = self.id;
            let event = DerpEvent::Health { region, text };
            let told = self.shared.events.send(event).await;
            told.map_err(|_| End::Unwanted)?;
            sleep(HEALTH_PAUSE).await;
        }
    }

    async fn transmit(
        &self,
        mut writer: impl AsyncWrite + Unpin,
        mut bucket: TokenBucket,
    ) -> Result<Never, End> {
        let mut out = BytesMut::with_capacity(2 * CHUNK);
        loop {
            self.queue.ready().await;
            self.queue.drain(&mut out, CHUNK, &mut bucket);
            let write = async {
                writer.write_all(&out).await?;
                writer.flush().await
            };
            timeout(self.shared.timings.write, write)
                .await
                .map_err(|_| End::Stuck)??;
            out.clear();
        }
    }

    /// Follows what is wanted of the region, and ends the connection when it is idle or dead.
    async fn supervise(
        &self,
        own: Option<IpAddr>,
        wanted: &mut watch::Receiver<Wanted>,
    ) -> Result<Never, End> {
        let timings = &self.shared.timings;
        let mut sweep = interval_at(Instant::now() + timings.sweep, timings.sweep);
        let (mut sent, mut used) = (self.queue.sent(), Instant::now());
        let mut known = wanted.borrow_and_update().clone();
        // What a pong has to say, and until when.
        let mut asked: Option<(u64, Instant)> = None;
        if known.home {
            self.queue.push_frame(Frame::NotePreferred(true));
        }
        loop {
            tokio::select! {
                changed = wanted.changed() => {
                    changed.map_err(|_| End::Unwanted)?;
                    let now = wanted.borrow_and_update().clone();
                    if now.nodes != self.nodes {
                        return Err(End::Moved);
                    }
                    if now.home != known.home {
                        self.queue.push_frame(Frame::NotePreferred(now.home));
                        used = Instant::now();
                    }
                    let links = now.link_changes != known.link_changes;
                    known = now;
                    if links {
                        if let Some(own) = own.filter(|own| is_gone(*own)) {
                            return Err(End::AddressGone(own));
                        }
                        asked = Some(self.ping());
                    }
                }
                () = self.pong_arrived.notified() => {
                    let pong = self.pong.load(Ordering::Relaxed);
                    asked = asked.filter(|(data, _)| *data != pong);
                }
                () = overdue(asked) => {
                    return Err(End::NoPong);
                }
                _ = sweep.tick() => {
                    if std::mem::replace(&mut sent, self.queue.sent()) != sent || known.home {
                        used = Instant::now();
                    } else if used.elapsed() >= timings.idle {
                        return Err(End::Idle);
                    }
                }
            }
        }
    }

    /// Asks whether the relay still answers: what its pong will say, and when it must have come. Links may change again before.
    fn ping(&self) -> (u64, Instant) {
        let data: u64 = rand::random();
        self.queue.push_frame(Frame::Ping(data.to_be_bytes()));
        (data, Instant::now() + self.shared.timings.ping)
    }
}

/// When the pong should have come; never, if none was asked for.
async fn overdue(asked: Option<(u64, Instant)>) {
    match asked {
        Some((_, until)) => sleep_until(until).await,
        None => std::future::pending().await,
    }
}

/// Whether this host has lost the address: what was connected by it is dead, however long TCP repeats itself.
fn is_gone(address: IpAddr) -> bool {
    let bound = std::net::UdpSocket::bind((address, 0));
    bound.is_err_and(|error| error.kind() == io::ErrorKind::AddrNotAvailable)
}

/// What a direction returns other than its end: nothing, ever.
enum Never {}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use lowroad_wire::{
        derp::ServerInfo,
        key::{NodePrivate, NodePublic},
    };
    use tokio::{io::duplex, sync::mpsc};

    use super::*;
    use crate::{
        derp::{Timings, inbox::Inbox},
        tls::TlsConfig,
    };

    fn shared() -> Shared {
        Shared {
            node: NodePrivate::from_random([1; 32]),
            tls: TlsConfig::with_roots(rustls::RootCertStore::empty()).unwrap(),
            fwmark: 0,
            timings: Timings::default(),
            events: mpsc::channel(1).0,
            inbox: Arc::new(Inbox::default()),
        }
    }

    fn ended(end: Result<Never, End>) -> String {
        match end {
            Ok(never) => match never {},
            Err(end) => end.to_string(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_relay_that_takes_nothing_or_a_byte_a_second_is_stuck_after_thirty_seconds() {
        for pause in [Duration::MAX, Duration::from_secs(1)] {
            let (shared, queue) = (shared(), Queue::default());
            let connection = Connection::new(RegionId(1), &shared, &queue, &[]);
            for _ in 0..10 {
                let packet = Bytes::from_static(&[4; 1400]);
                queue.push(NodePublic::from_bytes([2; 32]), packet);
            }
            let (near, mut far) = duplex(4096);
            tokio::spawn(async move {
                let mut taken = Ok(0);
                while taken.is_ok() {
                    sleep(pause).await;
                    taken = far.read_u8().await;
                }
            });
            let begun = Instant::now();
            let bucket = TokenBucket::new(&ServerInfo::default());
            let end = connection.transmit(near, bucket).await;
            assert_eq!(ended(end), "the relay takes nothing");
            assert_eq!(begun.elapsed().as_secs(), 30);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_relay_is_silent_two_minutes_after_its_last_byte() {
        let (shared, queue) = (shared(), Queue::default());
        let connection = Connection::new(RegionId(1), &shared, &queue, &[]);
        let (near, mut far) = duplex(4096);
        tokio::spawn(async move {
            // A keep-alive in two pieces, and a whole one.
            for bytes in [&[6, 0][..], &[0, 0, 0], &[6, 0, 0, 0, 0]] {
                sleep(Duration::from_secs(119)).await;
                far.write_all(bytes).await.expect("it is read");
            }
            std::future::pending::<()>().await;
        });
        let begun = Instant::now();
        let end = connection.receive(near, BytesMut::new()).await;
        assert_eq!(ended(end), "the relay said nothing for 120s");
        assert_eq!(begun.elapsed().as_secs(), 3 * 119 + 120);
    }

    #[test]
    fn an_address_is_gone_when_nothing_can_be_bound_to_it() {
        for (address, gone) in [
            ("127.0.0.1", false),
            ("0.0.0.0", false),
            ("203.0.113.254", true),
        ] {
            assert_eq!(is_gone(address.parse().unwrap()), gone, "{address}");
        }
    }
}
