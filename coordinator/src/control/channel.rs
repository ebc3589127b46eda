//! `POST /ts2021`: the Noise channel, and HTTP/2 inside it (protocol.md 1.3 to 1.5).

use std::{
    collections::{HashMap, HashSet, VecDeque},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper::{Request, Response, StatusCode, body::Incoming, header, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use lowroad_wire::{
    key::{ChallengePublic, MachinePublic},
    noise::{self, Channel, NoiseStream},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    sync::Notify,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    Body, Site,
    body::{OfChannel, text},
    machine::Peer,
};
use crate::{
    fair::{Place, Places},
    hub::random,
};

const PROTOCOL: &str = "tailscale-control-protocol";
const HANDSHAKE: &str = "X-Tailscale-Handshake";
/// For the upgrade and the client's first record; clients give up after 10 s themselves.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests at once on one channel: a poll, some updates, a registration that waits.
const MAX_STREAMS: u32 = 32;
/// Header lists of clients are a few hundred bytes.
const MAX_HEADERS: u32 = 16 << 10;
/// Channels of one machine; stock clients have one, and may leave a dead one behind when they move.
const MAX_OF_ONE: usize = 8;
/// Channels of machines that own no node, or that have not shown yet who they are; keys of machines cost nothing. Each may bring a body of 64 KiB.
const MAX_STRANGERS: usize = 1024;
/// How often a stranger's channel is looked at, and closed unless something runs on it.
const STRANGER_CHECK: Duration = Duration::from_secs(60);
/// How soon a peer that is gone without a word is noticed: a ping after so long a silence, …
const PING_AFTER: Duration = Duration::from_secs(20);
/// … and so long to answer it.
const PING_TIMEOUT: Duration = Duration::from_secs(15);

/// The channels that are open.
#[derive(Debug)]
pub struct Channels {
    by_machine: Mutex<HashMap<MachinePublic, VecDeque<CancellationToken>>>,
    strangers: Arc<Places>,
    /// Machines that read a whole netmap without polling.
    reading: Arc<Mutex<HashSet<MachinePublic>>>,
}

impl Default for Channels {
    fn default() -> Self {
        Self {
            by_machine: Mutex::default(),
            strangers: Places::new(MAX_STRANGERS),
            reading: Arc::default(),
        }
    }
}

impl Channels {
    /// The machine's turn to be sent a whole netmap, if it is not at one already.
    pub fn turn(&self, machine: MachinePublic) -> Option<Turn> {
        let reading = self.reading.clone();
        let is_free = lock(&reading).insert(machine);
        is_free.then_some(Turn { reading, machine })
    }

    /// Counts a new channel in; if its machine has too many, the oldest ends.
    fn enter(&self, machine: MachinePublic, token: &CancellationToken) {
        let mut by_machine = lock(&self.by_machine);
        let channels = by_machine.entry(machine).or_default();
        channels.retain(|channel| !channel.is_cancelled());
        if channels.len() >= MAX_OF_ONE
            && let Some(oldest) = channels.pop_front()
        {
            oldest.cancel();
        }
        channels.push_back(token.clone());
    }

    fn leave(&self, machine: MachinePublic, token: &CancellationToken) {
        // Cancelled is what marks it as over.
        token.cancel();
        let mut by_machine = lock(&self.by_machine);
        if let Some(channels) = by_machine.get_mut(&machine) {
            channels.retain(|channel| !channel.is_cancelled());
            if channels.is_empty() {
                by_machine.remove(&machine);
            }
        }
    }
}

/// Over when it is dropped: when the netmap has been read, or the channel has ended.
#[derive(Debug)]
pub struct Turn {
    reading: Arc<Mutex<HashSet<MachinePublic>>>,
    machine: MachinePublic,
}

impl Drop for Turn {
    fn drop(&mut self) {
        lock(&self.reading).remove(&self.machine);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub fn open(site: Arc<Site>, remote: SocketAddr, mut request: Request<Incoming>) -> Response<Body> {
    let wants = request
        .headers()
        .get(header::UPGRADE)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(PROTOCOL.as_bytes()));
    if !wants {
        return text(
            StatusCode::UPGRADE_REQUIRED,
            format!(
                "this takes `Upgrade: {PROTOCOL}`; does a proxy in front of the server drop it?"
            ),
        );
    }
    let initiation = request
        .headers()
        .get(HANDSHAKE)
        .and_then(|value| STANDARD.decode(value).ok());
    let Some(initiation) = initiation else {
        return text(
            StatusCode::BAD_REQUEST,
            format!("{HANDSHAKE} is missing or is no base64"),
        );
    };
    let (peer, response, channel) =
        match noise::respond(&initiation, &site.hub.keys.control, random()) {
            Ok(parts) => parts,
            Err(error) => {
                tracing::debug!(%remote, %error, "handshake refused");
                return text(
                    StatusCode::BAD_REQUEST,
                    format!("handshake refused: {error}; has the server's key changed?"),
                );
            }
        };
    // An initiation can be somebody else's, seen on the way and sent again: until a record opens, nobody is known.
    let place = site.channels.strangers.take(remote.ip());
    let upgrade = hyper::upgrade::on(&mut request);
    let tasks = site.upgraded.clone();
    let machine = peer.machine;
    tasks.spawn(async move {
        let stream = async {
            let transport = TokioIo::new(upgrade.await.map_err(std::io::Error::other)?);
            begin(transport, &response, channel).await
        };
        let begun = tokio::select! {
            () = site.stop.cancelled() => return,
            () = place.lost.cancelled() => {
                tracing::debug!(%remote, "channel made way for others before it began");
                return;
            }
            begun = timeout(HANDSHAKE_TIMEOUT, stream) => begun,
        };
        match begun {
            Ok(Ok(stream)) => serve(site, machine, remote, stream, place).await,
            Ok(Err(error)) => tracing::debug!(%remote, %error, "channel ended before it began"),
            Err(_) => tracing::debug!(%remote, "channel took too long to begin"),
        }
    });
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::UPGRADE, PROTOCOL)
        .header(header::CONNECTION, "upgrade")
        .body(Body::default())
        .expect("all parts are valid")
}

/// The early payload, which clients read and make no use of; then the client's first record, which shows that it has its
/// machine's key, and has it now.
async fn begin<S: AsyncRead + AsyncWrite + Unpin>(
    mut transport: S,
    response: &[u8],
    channel: Channel,
) -> std::io::Result<NoiseStream<S>> {
    transport.write_all(response).await?;
    let mut stream = NoiseStream::new(transport, channel, &[]);
    let challenge = ChallengePublic::from_bytes(random());
    stream.write_all(&noise::early_payload(&challenge)).await?;
    stream.flush().await?;
    stream.proven().await?;
    Ok(stream)
}

async fn serve(
    site: Arc<Site>,
    machine: MachinePublic,
    remote: SocketAddr,
    stream: NoiseStream<TokioIo<hyper::upgrade::Upgraded>>,
    place: Place,
) {
    // Also where the place of a stranger goes to somebody else.
    let end = place.lost.clone();
    let peer = Arc::new(Peer {
        site,
        machine,
        remote,
        reading: OfChannel::default(),
        end,
    });
    let is_known = || peer.site.hub.read(|state| state.owns_node(peer.machine));
    let mut stranger = Some(place).filter(|_| !is_known());
    peer.site.channels.enter(peer.machine, &peer.end);
    let answering = peer.clone();
    // Answers that are being made: what keeps a stranger's channel open.
    let busy = Arc::new(());
    let counted = busy.clone();
    let answered = Arc::new(Notify::new());
    let tell = answered.clone();
    let service = service_fn(move |request| {
        let (peer, counted, tell) = (answering.clone(), counted.clone(), tell.clone());
        async move {
            let answer = peer.answer(request).await;
            drop(counted);
            tell.notify_one();
            answer
        }
    });
    let mut http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    http.timer(TokioTimer::new())
        .keep_alive_interval(PING_AFTER)
        .keep_alive_timeout(PING_TIMEOUT)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADERS);
    let mut connection = std::pin::pin!(http.serve_connection(TokioIo::new(stream), service));
    let mut check =
        tokio::time::interval_at(tokio::time::Instant::now() + STRANGER_CHECK, STRANGER_CHECK);
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(remote = %peer.remote, %error, "channel ended");
                }
                break;
            }
            () = peer.site.stop.cancelled() => break,
            () = peer.end.cancelled() => {
                tracing::debug!(remote = %peer.remote, "channel ended: it made way for others, or does not read");
                break;
            }
            // It may have been let in.
            () = answered.notified(), if stranger.is_some() => {
                stranger = stranger.filter(|_| !is_known());
            }
            _ = check.tick(), if stranger.is_some() => {
                stranger = stranger.filter(|_| !is_known());
                if stranger.is_some() && Arc::strong_count(&busy) <= 2 {
                    // One is ours, one the service's.
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
    peer.site.channels.leave(peer.machine, &peer.end);
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use lowroad_wire::{
        key::MachinePrivate,
        noise::{Initiator, RESPONSE_LEN, respond},
    };
    use tokio::io::{AsyncReadExt as _, DuplexStream, duplex};

    use super::*;

    /// A channel that a client has asked for, the client's end, and its half of the handshake.
    fn asked() -> (DuplexStream, Vec<u8>, Channel, DuplexStream, Initiator) {
        let [control, client] = [1, 2].map(|seed| MachinePrivate::from_random([seed; 32]));
        let (initiator, initiation) =
            Initiator::new(130, &client, &control.public(), [3; 32]).unwrap();
        let (_, response, channel) = respond(&initiation, &control, [4; 32]).unwrap();
        let (near, far) = duplex(1 << 16);
        (far, response, channel, near, initiator)
    }

    #[tokio::test(start_paused = true)]
    async fn a_channel_begins_with_the_clients_first_record_and_not_before() {
        let (far, response, channel, near, initiator) = asked();
        let begun = tokio::spawn(async move { begin(far, &response, channel).await });
        let (mut client, _) = NoiseStream::connect(near, initiator, &[]).await.unwrap();
        tokio::time::sleep(HANDSHAKE_TIMEOUT).await;
        assert!(!begun.is_finished(), "nothing is proven yet");
        client.write_all(b"PRI * HTTP/2.0").await.unwrap();
        client.flush().await.unwrap();
        let mut first = [0; 14];
        let mut stream = begun.await.unwrap().unwrap();
        stream.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"PRI * HTTP/2.0", "what proves it is still there");
    }

    #[tokio::test]
    async fn whoever_repeats_an_initiation_and_has_no_key_begins_no_channel() {
        for (sent, kind) in [
            (&b""[..], ErrorKind::UnexpectedEof),
            (&[4, 0, 32], ErrorKind::UnexpectedEof),
            (
                &[4, 0, 16, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7],
                ErrorKind::InvalidData,
            ),
        ] {
            let (far, response, channel, mut near, _) = asked();
            near.write_all(sent).await.unwrap();
            near.shutdown().await.unwrap();
            let error = begin(far, &response, channel).await.unwrap_err();
            assert_eq!(error.kind(), kind, "{sent:?}: {error}");
            let mut answer = Vec::new();
            near.read_to_end(&mut answer).await.unwrap();
            assert!(answer.len() > RESPONSE_LEN, "it was answered as anybody is");
        }
    }
}
