//! STUN probes of the relay map's regions, sent from WireGuard's port.

use std::{
    io,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use lowroad_core::netcheck::{Command, Config, Endpoint, LocalAddress, Netcheck, Report};
use lowroad_wire::control::{DerpMap, RegionId};
use tokio::{
    sync::{Notify, Semaphore, mpsc, watch},
    task::AbortHandle,
    time,
};

use super::{
    endpoints::local_addresses,
    port::{Datagram, Port},
};

/// How many STUN responses wait before new ones are dropped, and how much else.
const QUEUE: usize = 64;
/// A name server that hasn't answered by then has not.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// Threads that look names up at once. The system's resolver gives up later than we do, and until then keeps the thread.
const LOOKUPS: usize = 8;

/// What was found; comes after every round, and at once when this host's own addresses have changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probed {
    pub report: Report,
    /// What to announce, best first.
    pub endpoints: Vec<Endpoint>,
    /// A round of probes has ended; otherwise only local addresses are new.
    pub complete: bool,
}

/// Asks STUN servers on demand; stops when dropped.
#[derive(Debug)]
pub struct Prober {
    /// The latest: maps that come faster than they are taken leave nothing behind.
    map: watch::Sender<Arc<DerpMap>>,
    refresh: Arc<Notify>,
    inputs: mpsc::Sender<Input>,
    datagrams: mpsc::Sender<Datagram>,
    task: AbortHandle,
}

enum Input {
    Frame(RegionId),
    Resolved(String, Vec<IpAddr>),
}

impl Prober {
    /// `device` is the tunnel device, whose addresses are no endpoints.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(port: Port, config: Config, device: String) -> (Self, mpsc::Receiver<Probed>) {
        let (map, maps) = watch::channel(Arc::default());
        let refresh = Arc::new(Notify::new());
        let (inputs, input) = mpsc::channel(QUEUE);
        let (datagrams, datagram) = mpsc::channel(QUEUE);
        let (results, result) = mpsc::channel(QUEUE);
        let task = Task {
            netcheck: Netcheck::new(config),
            port,
            device,
            told: Vec::new(),
            inputs: inputs.downgrade(),
            lookups: Arc::new(Semaphore::new(LOOKUPS)),
            results,
        };
        let sources = Sources {
            maps,
            refresh: refresh.clone(),
            inputs: input,
            datagrams: datagram,
        };
        let task = tokio::spawn(task.run(sources)).abort_handle();
        let prober = Self {
            map,
            refresh,
            inputs,
            datagrams,
            task,
        };
        (prober, result)
    }

    /// The regions to measure; a changed map starts a round.
    pub fn set_map(&self, map: DerpMap) {
        self.map.send_replace(Arc::new(map));
    }

    /// Starts a round, for [`lowroad_core::path::Command::RefreshEndpoints`] and after changes of links.
    pub fn refresh(&self) {
        self.refresh.notify_one();
    }

    /// A frame came from this region's relay; once in a few seconds is enough.
    pub fn on_frame(&self, region: RegionId) {
        // Lost while the task is behind, it comes again.
        let _ = self.inputs.try_send(Input::Frame(region));
    }

    /// A STUN response that came to the port.
    pub fn on_datagram(&self, datagram: Datagram) {
        // Beyond the queue it is a flood: a round asks for a few dozen.
        let _ = self.datagrams.try_send(datagram);
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Task {
    netcheck: Netcheck,
    port: Port,
    device: String,
    /// The endpoints last told.
    told: Vec<Endpoint>,
    inputs: mpsc::WeakSender<Input>,
    lookups: Arc<Semaphore>,
    results: mpsc::Sender<Probed>,
}

struct Sources {
    maps: watch::Receiver<Arc<DerpMap>>,
    refresh: Arc<Notify>,
    inputs: mpsc::Receiver<Input>,
    datagrams: mpsc::Receiver<Datagram>,
}

impl Task {
    async fn run(mut self, mut sources: Sources) {
        loop {
            let deadline = self.netcheck.next_deadline();
            tokio::select! {
                changed = sources.maps.changed() => match changed {
                    Ok(()) => {
                        let map = sources.maps.borrow_and_update().clone();
                        self.netcheck.set_map(Instant::now(), &map);
                    }
                    Err(_) => return,
                },
                () = sources.refresh.notified() => self.refresh().await,
                Some(input) = sources.inputs.recv() => self.on_input(input),
                Some(datagram) = sources.datagrams.recv() => {
                    self.netcheck.on_datagram(Instant::now(), datagram.from, &datagram.bytes);
                }
                () = sleep_until(deadline) => self.netcheck.on_timer(Instant::now()),
            }
            self.obey().await;
        }
    }

    fn on_input(&mut self, input: Input) {
        let now = Instant::now();
        match input {
            Input::Frame(region) => self.netcheck.on_frame(now, region),
            Input::Resolved(host, addresses) => self.netcheck.on_resolved(now, &host, addresses),
        }
    }

    async fn refresh(&mut self) {
        let now = Instant::now();
        let endpoints = self.endpoints(now);
        if endpoints != self.told {
            let report = self.netcheck.report().clone();
            self.report(report, endpoints, false).await;
        }
        self.netcheck.start(now);
    }

    async fn obey(&mut self) {
        while let Some(command) = self.netcheck.poll_command() {
            match command {
                Command::Send { to, bytes } => {
                    if let Err(error) = self.port.send(to, &bytes) {
                        tracing::trace!(%to, %error, "cannot ask a STUN server");
                    }
                }
                Command::Resolve { host } => self.resolve(host),
                Command::Done(report) => {
                    let endpoints = self.endpoints(Instant::now());
                    self.report(report, endpoints, true).await;
                }
            }
        }
    }

    async fn report(&mut self, report: Report, endpoints: Vec<Endpoint>, complete: bool) {
        self.told.clone_from(&endpoints);
        let probed = Probed {
            report,
            endpoints,
            complete,
        };
        // The receiver is gone only when the agent stops.
        let _ = self.results.send(probed).await;
    }

    fn endpoints(&mut self, now: Instant) -> Vec<Endpoint> {
        let local = local_addresses(&self.device).unwrap_or_else(|error: io::Error| {
            tracing::warn!(%error, "cannot list the addresses of this host's interfaces");
            Vec::<LocalAddress>::new()
        });
        self.netcheck.endpoints(now, &local)
    }

    fn resolve(&self, host: String) {
        let Some(inputs) = self.inputs.upgrade() else {
            return;
        };
        let lookups = self.lookups.clone();
        tokio::spawn(async move {
            let lookup = look_up(host.clone(), lookups);
            let addresses = time::timeout(LOOKUP_TIMEOUT, lookup).await;
            let found = Input::Resolved(host, addresses.unwrap_or_default());
            let _ = inputs.send(found).await;
        });
    }
}

/// Takes its place among others until the resolver has done, whether or not somebody still waits for that.
async fn look_up(host: String, lookups: Arc<Semaphore>) -> Vec<IpAddr> {
    let Ok(place) = lookups.acquire_owned().await else {
        return Vec::new();
    };
    let lookup = tokio::spawn(async move {
        let found = tokio::net::lookup_host((host.as_str(), 0)).await;
        drop(place);
        match found {
            Ok(found) => found.map(|address| address.ip()).collect(),
            Err(error) => {
                tracing::debug!(host, %error, "cannot look up a relay");
                Vec::new()
            }
        }
    });
    lookup.await.unwrap_or_default()
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use super::*;

    #[tokio::test]
    async fn a_name_is_looked_up_when_another_lookup_has_made_room() {
        let lookups = Arc::new(Semaphore::new(1));
        let other = lookups.clone().acquire_owned().await.unwrap();
        let mut lookup = Box::pin(look_up("127.0.0.9".to_owned(), lookups.clone()));
        let mut context = Context::from_waker(Waker::noop());
        assert!(lookup.as_mut().poll(&mut context).is_pending());
        drop(other);
        assert_eq!(lookup.await, ["127.0.0.9".parse::<IpAddr>().unwrap()]);
        let place = time::timeout(LOOKUP_TIMEOUT, lookups.acquire()).await;
        assert!(place.is_ok(), "it gives its place back");
    }
}
