//! STUN probes of the relay map's regions, sent from WireGuard's port.

use std::{
    io,
    net::IpAddr,
    time::{Duration, Instant},
};

use lowroad_core::netcheck::{Command, Config, Endpoint, LocalAddress, Netcheck, Report};
use lowroad_wire::control::{DerpMap, RegionId};
use tokio::{sync::mpsc, task::AbortHandle, time};

use super::{
    endpoints::local_addresses,
    port::{Datagram, Port},
};

/// How many STUN responses wait before new ones are dropped.
const QUEUE: usize = 64;
/// A name server that hasn't answered by then has not.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

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
    inputs: mpsc::UnboundedSender<Input>,
    datagrams: mpsc::Sender<Datagram>,
    task: AbortHandle,
}

enum Input {
    Map(Box<DerpMap>),
    Refresh,
    Frame(RegionId),
    Resolved(String, Vec<IpAddr>),
}

impl Prober {
    /// `device` is the tunnel device, whose addresses are no endpoints.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(port: Port, config: Config, device: String) -> (Self, mpsc::Receiver<Probed>) {
        let (inputs, input) = mpsc::unbounded_channel();
        let (datagrams, datagram) = mpsc::channel(QUEUE);
        let (results, result) = mpsc::channel(QUEUE);
        let task = Task {
            netcheck: Netcheck::new(config),
            port,
            device,
            told: Vec::new(),
            inputs: inputs.downgrade(),
            results,
        };
        let task = tokio::spawn(task.run(input, datagram)).abort_handle();
        let prober = Self {
            inputs,
            datagrams,
            task,
        };
        (prober, result)
    }

    /// The regions to measure; a changed map starts a round.
    pub fn set_map(&self, map: DerpMap) {
        self.tell(Input::Map(Box::new(map)));
    }

    /// Starts a round, for [`lowroad_core::path::Command::RefreshEndpoints`] and after changes of links.
    pub fn refresh(&self) {
        self.tell(Input::Refresh);
    }

    /// A frame came from this region's relay; once in a few seconds is enough.
    pub fn on_frame(&self, region: RegionId) {
        self.tell(Input::Frame(region));
    }

    /// A STUN response that came to the port.
    pub fn on_datagram(&self, datagram: Datagram) {
        // Beyond the queue it is a flood: a round asks for a few dozen.
        let _ = self.datagrams.try_send(datagram);
    }

    fn tell(&self, input: Input) {
        // The task ends with this handle only.
        let _ = self.inputs.send(input);
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
    inputs: mpsc::WeakUnboundedSender<Input>,
    results: mpsc::Sender<Probed>,
}

impl Task {
    async fn run(
        mut self,
        mut inputs: mpsc::UnboundedReceiver<Input>,
        mut datagrams: mpsc::Receiver<Datagram>,
    ) {
        loop {
            let deadline = self.netcheck.next_deadline();
            tokio::select! {
                biased;
                input = inputs.recv() => match input {
                    Some(input) => self.on_input(input).await,
                    None => return,
                },
                Some(datagram) = datagrams.recv() => {
                    self.netcheck.on_datagram(Instant::now(), datagram.from, &datagram.bytes);
                }
                () = sleep_until(deadline) => self.netcheck.on_timer(Instant::now()),
            }
            self.obey().await;
        }
    }

    async fn on_input(&mut self, input: Input) {
        let now = Instant::now();
        match input {
            Input::Map(map) => self.netcheck.set_map(now, &map),
            Input::Refresh => {
                let endpoints = self.endpoints(now);
                if endpoints != self.told {
                    let report = self.netcheck.report().clone();
                    self.report(report, endpoints, false).await;
                }
                self.netcheck.start(now);
            }
            Input::Frame(region) => self.netcheck.on_frame(now, region),
            Input::Resolved(host, addresses) => self.netcheck.on_resolved(now, &host, addresses),
        }
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
        tokio::spawn(async move {
            let lookup = tokio::net::lookup_host((host.clone(), 0));
            let addresses = match time::timeout(LOOKUP_TIMEOUT, lookup).await {
                Ok(Ok(found)) => found.map(|address| address.ip()).collect(),
                Ok(Err(error)) => {
                    tracing::debug!(host, %error, "cannot look up a relay");
                    Vec::new()
                }
                Err(_) => Vec::new(),
            };
            let _ = inputs.send(Input::Resolved(host, addresses));
        });
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
