//! The client of the coordination server (protocol.md 1): registers, polls the netmap, reports what changes here, and comes back after failures.
//!
//! One task; it tells the engine what happens by [`ControlEvent`]s and takes the newest [`Facts`] to report. It ends only by being dropped, or after
//! [`ControlEvent::Failed`], when going on needs the user.

mod channel;
mod dial;
mod error;
pub mod hostinfo;
mod login;
mod ping;
mod poll;
mod register;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use lowroad_wire::{
    control::{EndpointType, Hostinfo, Malformed, MapResponse, PingRequest, RegisterResponse},
    key::{DiscoPublic, MachinePrivate, MachinePublic, NodePrivate},
};
use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    task::AbortHandle,
    time::{sleep, timeout},
};
use tracing::{debug, info, warn};

use self::{channel::Channel, dial::Server};
pub use self::{error::ControlError, ping::c2n, register::retry_after};
use crate::{
    backoff::Backoff,
    prefs::AuthKey,
    process::{give_memory_back, without_stalling},
};

/// Events waiting for the engine; when it is behind, the poll stops reading.
const EVENT_QUEUE: usize = 64;

/// Answers to the server's pings that may be under way.
const MAX_PINGS: usize = 4;
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Wait after the first failure.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// Longest wait, as the stock client's (protocol.md 1.7).
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// What a control client is started with.
#[derive(Clone)]
pub struct ControlOptions {
    pub url: String,
    pub machine: MachinePrivate,
    /// None: make one.
    pub node: Option<NodePrivate>,
    /// The key before a rotation that isn't finished.
    pub old_node: Option<NodePrivate>,
    /// The server has accepted `node`. An auth key, which may be good for one login only, is kept then until the server wants a login, and comes with a new node key.
    pub accepted: bool,
    /// Keys of earlier logins that the server may know instead, if it doesn't know `node`: they are tried in this order before a person is asked.
    pub left: Vec<NodePrivate>,
    pub disco: DiscoPublic,
    pub auth_key: Option<AuthKey>,
    /// Log in with a new key although there is one.
    pub force_reauth: bool,
    /// The server's key as known; none trusts the first.
    pub known_server: Option<MachinePublic>,
    /// Mark of the sockets.
    pub fwmark: u32,
    pub tls: Arc<rustls::ClientConfig>,
}

impl std::fmt::Debug for ControlOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ControlOptions")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

/// What the server shall know of this node; the newest wins.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// Counts changes; [`ControlEvent::Acknowledged`] names the one that arrived.
    pub generation: u64,
    pub hostinfo: Hostinfo,
    pub endpoints: Vec<(SocketAddr, EndpointType)>,
}

#[derive(Debug)]
pub enum ControlEvent {
    /// The server's key, seen for the first time (or accepted by the user): to be kept.
    ServerKey(MachinePublic),
    /// Another node key, about to be registered, in place of `old`. It is sent to the server once it is `kept`; if that is dropped, the client ends.
    NodeKey {
        node: NodePrivate,
        old: Option<NodePrivate>,
        kept: oneshot::Sender<()>,
    },
    /// A person has to visit this page.
    Visit(String),
    /// The server accepts the node key.
    Registered(Box<RegisterResponse>),
    /// A new poll begins: its first message is complete, so what earlier ones said is void.
    PollStarted,
    Map {
        response: Box<MapResponse>,
        malformed: Vec<Malformed>,
    },
    /// The server answered the report of this generation of facts.
    Acknowledged(u64),
    /// Trying again after `retry_in`.
    Lost {
        why: ControlError,
        retry_in: Duration,
    },
    /// Given up: going on needs the user.
    Failed(ControlError),
}

/// A running client. Dropping it ends it and closes its connection.
#[derive(Debug)]
pub struct Control {
    facts: watch::Sender<Facts>,
    task: AbortHandle,
}

impl Drop for Control {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Control {
    pub fn start(options: ControlOptions, facts: Facts) -> (Self, mpsc::Receiver<ControlEvent>) {
        let (events, receiver) = mpsc::channel(EVENT_QUEUE);
        let (sender, facts) = watch::channel(facts);
        let client = Client {
            registered: false,
            server_key: options.known_server,
            last_ping: String::new(),
            pings: Arc::new(Semaphore::new(MAX_PINGS)),
            options,
            events,
            facts,
        };
        let task = tokio::spawn(client.run());
        (
            Self {
                facts: sender,
                task: task.abort_handle(),
            },
            receiver,
        )
    }

    /// Reports new facts. At most one report is on its way; the newest facts follow it.
    pub fn report(&self, facts: Facts) {
        self.facts.send_replace(facts);
    }
}

/// Tells the server that this node is logged out, on a connection of its own.
pub async fn logout(options: &ControlOptions) -> Result<(), ControlError> {
    let Some(node) = &options.node else {
        return Ok(());
    };
    let server = Server::new(&options.url, options.fwmark, options.tls.clone())?;
    let key = server.fetch_key().await?;
    let channel = Channel::open(&server, &options.machine, &key).await?;
    register::logout(&channel, node).await
}

struct Client {
    options: ControlOptions,
    events: mpsc::Sender<ControlEvent>,
    facts: watch::Receiver<Facts>,
    /// The key has been accepted since the start: a new connection polls at once.
    registered: bool,
    server_key: Option<MachinePublic>,
    /// URL of the last ping request acted on: the server repeats them.
    last_ping: String,
    /// Answers that may be under way.
    pings: Arc<Semaphore>,
}

/// The engine has dropped its end: nothing is left to do.
struct Gone;

pub(crate) const fn backoff() -> Backoff {
    Backoff::new(FIRST_WAIT, LONGEST_WAIT)
}

/// After a failure; a server that limits rates may have told many to wait equally long, and none comes back before that.
pub(crate) fn wait_of(backoff: &mut Backoff, asked: Option<Duration>, random: f64) -> Duration {
    match asked {
        Some(wait) => backoff.next_asked(wait, wait + wait.min(LONGEST_WAIT), random),
        None => backoff.next(random),
    }
}

impl Client {
    async fn run(mut self) {
        let mut backoff = backoff();
        loop {
            let why = match self.session(&mut backoff).await {
                Ok(Gone) => return,
                Err(why) => why,
            };
            if why.needs_user() {
                warn!(error = %why, "the control connection needs the user");
                let _ = self.events.send(ControlEvent::Failed(why)).await;
                return;
            }
            // By now nothing of the connection is left, a message that could not be read included.
            without_stalling(give_memory_back);
            let asked = match &why {
                ControlError::RateLimited(wait) => Some(*wait),
                _ => None,
            };
            let retry_in = wait_of(&mut backoff, asked, rand::random());
            info!(error = %why, retry_ms = retry_in.as_millis() as u64, "no control connection");
            if self
                .tell(ControlEvent::Lost { why, retry_in })
                .await
                .is_err()
            {
                return;
            }
            sleep(retry_in).await;
        }
    }

    async fn tell(&self, event: ControlEvent) -> Result<(), Gone> {
        self.events.send(event).await.map_err(|_| Gone)
    }

    /// One connection, from its key to its end.
    async fn session(&mut self, backoff: &mut Backoff) -> Result<Gone, ControlError> {
        let server = Server::new(
            &self.options.url,
            self.options.fwmark,
            self.options.tls.clone(),
        )?;
        let key = server.fetch_key().await?;
        match self.server_key {
            Some(known) if known == key => {}
            Some(known) => {
                return Err(ControlError::KeyChanged {
                    server: server.url(),
                    known,
                    found: key,
                });
            }
            None => {
                self.server_key = Some(key);
                if self.tell(ControlEvent::ServerKey(key)).await.is_err() {
                    return Ok(Gone);
                }
            }
        }
        let channel = Channel::open(&server, &self.options.machine, &key).await?;
        if !self.registered && self.register(&channel).await?.is_err() {
            return Ok(Gone);
        }
        debug!(server = %server.url(), "connected to the control server");
        let ended = self.follow(&server, &channel, backoff).await;
        if let Err(ControlError::Status { status, .. }) = &ended
            && status.is_client_error()
        {
            // The server no longer knows this key, or says so: registering tells what it wants.
            self.registered = false;
        }
        ended
    }

    /// Polls and reports until one of them fails.
    async fn follow(
        &mut self,
        server: &Server,
        channel: &Channel,
        backoff: &mut Backoff,
    ) -> Result<Gone, ControlError> {
        let Some(node) = self.options.node.as_ref().map(NodePrivate::public) else {
            return Err(ControlError::KeyExpired);
        };
        let identity = poll::Identity {
            node,
            disco: self.options.disco,
        };
        let hostinfo = self.facts.borrow().hostinfo.clone();
        let mut poll = poll::Poll::start(channel, &identity, &hostinfo).await?;
        if self.tell(ControlEvent::PollStarted).await.is_err() {
            return Ok(Gone);
        }
        let reports =
            poll::report_changes(channel, &identity, self.facts.clone(), self.events.clone());
        tokio::pin!(reports);
        let mut first = true;
        loop {
            let (response, malformed) = tokio::select! {
                ended = &mut reports => return ended.map(|()| Gone),
                next = poll.next() => next?,
            };
            backoff.reset();
            if let Some(request) = &response.ping_request {
                self.answer_once(server, channel, request);
            }
            // One may tell the time, and nothing else that is looked at.
            if response.keep_alive && (first || response.control_time.is_none()) {
                continue;
            }
            if first && response.node.is_none() {
                return Err(ControlError::Broken(
                    "its first message does not say who we are".to_owned(),
                ));
            }
            first = false;
            if self
                .tell(ControlEvent::Map {
                    response: Box::new(response),
                    malformed,
                })
                .await
                .is_err()
            {
                return Ok(Gone);
            }
        }
    }

    /// Pings are answered beside the poll, once for each URL. Those beyond what may be under way are not: a server that works repeats them.
    fn answer_once(&mut self, server: &Server, channel: &Channel, request: &PingRequest) {
        if self.last_ping == request.url {
            return;
        }
        let Ok(permit) = self.pings.clone().try_acquire_owned() else {
            return;
        };
        self.last_ping.clone_from(&request.url);
        let (server, requests, request) =
            (server.clone(), channel.clone_requests(), request.clone());
        tokio::spawn(async move {
            let answer = timeout(PING_TIMEOUT, ping::answer(&server, &requests, &request));
            match answer.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => debug!(%error, "cannot answer the control server's ping"),
                Err(_) => debug!("the control server's ping could not be answered in time"),
            }
            drop(permit);
        });
    }
}

#[cfg(test)]
pub(crate) mod tests;
