//! The server put together: listeners, tasks, shutdown.

use std::{convert::Infallible, fs::File, net::SocketAddr, sync::Arc, time::Duration};

use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream, UdpSocket},
    task::JoinSet,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Error, admin,
    config::{Config, DRAIN, Stun},
    control::{Channels, Site, body::Readers},
    derp::DerpServer,
    fair::Places,
    hub::{Hub, now},
    relay_map, stun,
    tls::Front,
    view::Common,
};

/// Connections at once that speak HTTP; relay connections and channels have bounds of their own once they are upgraded.
/// Each costs some 20 KiB while its request's head arrives.
const MAX_CONNECTIONS: usize = 8_192;
/// A client that has not sent a request's head by then is closed.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Heads of requests are below 1 KiB.
const HEAD_BUFFER: usize = 16 << 10;

/// A server that runs. Dropping it without [`Server::stop`] ends it at once.
#[derive(Debug)]
pub struct Server {
    /// Where it listens, with the port that the system chose if port 0 was asked for.
    pub address: SocketAddr,
    pub stun_port: Option<u16>,
    pub hub: Arc<Hub>,
    derp: Arc<DerpServer>,
    stop: CancellationToken,
    connections: TaskTracker,
    tasks: JoinSet<()>,
    /// Keeps other servers off the state directory.
    _lock: File,
}

impl Server {
    /// Binds everything and begins to serve. What is wrong with the configuration shows here.
    pub async fn start(config: Config) -> Result<Self, Error> {
        crate::store::private_dir(&config.state_dir)?;
        let lock = admin::socket::lock(&config.state_dir)?;
        let seed = config.policy.as_ref();
        let hub = Hub::open(&config.state_dir, config.settings.clone(), seed)
            .map_err(|error| name_policy_file(error, &config))?;
        let listener = TcpListener::bind(config.listen)
            .await
            .map_err(Error::io(format!("listen on {}", config.listen)))?;
        let address = listener
            .local_addr()
            .map_err(Error::io("ask for the listening address"))?;
        let socket = admin::socket::listen(&config.state_dir)?;
        let front = Arc::new(front(&config)?);
        let stun = stun(&config)?;
        let stun_port = stun
            .as_ref()
            .and_then(|socket| socket.local_addr().ok())
            .map(|address| address.port());
        let derp_map = relay_map::build(&config, pin(&config, &front), stun_port)?;
        hub.set_common(Common {
            domain: config.settings.base_domain.clone(),
            derp_map,
            dns: config.dns.clone(),
        });
        let derp = relay(&hub);
        hub.set_relay(derp.clone());
        let (stop, connections) = (CancellationToken::new(), TaskTracker::new());
        let site = Arc::new(Site {
            hub: hub.clone(),
            url: config.url.text.clone(),
            derp: derp.clone(),
            readers: Readers::default(),
            channels: Channels::default(),
            stop: stop.clone(),
            upgraded: connections.clone(),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(hub.clone().publish());
        tasks.spawn(hub.clone().tick());
        tasks.spawn(admin::server::serve(socket, hub.clone()));
        tasks.spawn(accept(listener, front, site));
        if let Some(socket) = stun {
            tasks.spawn(serve_stun(socket));
        }
        tracing::info!(listen = %address, url = %config.url.text, state = %config.state_dir.display(), "serving");
        Ok(Self {
            address,
            stun_port,
            hub,
            derp,
            stop,
            connections,
            tasks,
            _lock: lock,
        })
    }

    /// Ends polls and connections, and writes what is left.
    pub async fn stop(mut self) {
        self.stop.cancel();
        self.connections.close();
        // Relay clients are told to come back.
        self.derp.shutdown().await;
        if tokio::time::timeout(DRAIN, self.connections.wait())
            .await
            .is_err()
        {
            tracing::debug!(left = self.connections.len(), "connections cut");
        }
        self.tasks.shutdown().await;
        let hub = self.hub.clone();
        // Waits for the disk.
        let _ = tokio::task::spawn_blocking(move || hub.close()).await;
        tracing::info!("stopped");
    }
}

fn name_policy_file(error: Error, config: &Config) -> Error {
    match (error, &config.policy) {
        (Error::Policy(refused), Some((path, _))) => refused.in_file(path).into(),
        (error, _) => error,
    }
}

/// The certificate given, or one of our own whose pin goes into the relay map.
fn front(config: &Config) -> Result<Front, Error> {
    Ok(match &config.tls {
        Some(files) => Front::with_files(&files.cert, &files.key)?,
        None => Front::self_signed(&config.state_dir, &[config.url.host.text()])?,
    })
}

/// What clients have to expect instead of a certificate that they can verify.
fn pin(config: &Config, front: &Front) -> Option<String> {
    let pin = front.pin().map(str::to_owned);
    if pin.is_some() && config.url.is_https {
        tracing::warn!(
            "the URL is https and no --tls-cert is given: a proxy with a certificate has to stand in front, and pass upgrades on"
        );
        return None;
    }
    pin
}

fn stun(config: &Config) -> Result<Option<UdpSocket>, Error> {
    match config.stun {
        Stun::Off => Ok(None),
        Stun::At(address) => stun::bind(address).map(Some).map_err(Error::io(format!("listen for STUN on {address}"))),
        Stun::Try(address) => Ok(stun::bind(address)
            .inspect_err(|error| tracing::warn!(%address, %error, "no STUN server: nodes behind NAT will not find their addresses; `--stun` names another port"))
            .ok()),
    }
}

async fn serve_stun(socket: UdpSocket) {
    if let Err(error) = stun::serve(socket, &stun::Counters::default()).await {
        tracing::error!(%error, "the STUN server has ended");
    }
}

/// The relay, for nodes of this tailnet.
fn relay(hub: &Arc<Hub>) -> Arc<DerpServer> {
    // Weak: the hub would otherwise keep itself alive through the relay's connections.
    let known = Arc::downgrade(hub);
    Arc::new(DerpServer::new(hub.keys.relay.clone(), move |key| {
        known
            .upgrade()
            .is_some_and(|hub| hub.read(|state| state.may_relay(*key, now())))
    }))
}

async fn accept(listener: TcpListener, front: Arc<Front>, site: Arc<Site>) {
    let places = Places::new(MAX_CONNECTIONS);
    loop {
        match listener.accept().await {
            Ok((stream, remote)) => {
                let (site, front) = (site.clone(), front.clone());
                let place = places.take(remote.ip());
                site.upgraded.clone().spawn(async move {
                    let _ = stream.set_nodelay(true);
                    tokio::select! {
                        () = site.stop.cancelled() => {}
                        () = place.lost.cancelled() => tracing::debug!(%remote, "connection made way for others"),
                        () = connection(stream, remote, &front, site.clone()) => {}
                    }
                });
            }
            Err(error) => {
                // Out of file descriptors, most likely: others have to go first.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, remote: SocketAddr, front: &Front, site: Arc<Site>) {
    let stream = match front.accept(stream).await {
        Ok(stream) => stream,
        Err(error) => {
            tracing::debug!(%remote, %error, "connection ended before it began");
            return;
        }
    };
    let service = service_fn(move |request| {
        let site = site.clone();
        async move { Ok::<_, Infallible>(site.answer(remote, request).await) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BUFFER);
    if let Err(error) = http
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await
    {
        tracing::debug!(%remote, %error, "connection");
    }
}
