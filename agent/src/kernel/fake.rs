//! A kernel in memory: does what the model says, remembers every step, fails on request. For tests of the engine.

use std::sync::{Arc, Mutex, MutexGuard};

use futures_util::FutureExt;
use lowroad_core::desired::{Observed, PeerStats};
use lowroad_core::filter::{Compiled, FilterCounters, FilterEvent};
use lowroad_core::plan::{Model, Step};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;

use super::{Dataplane, Kernel, KernelChange, KernelError, KernelFuture, Started};
use crate::traversal::port::{Datagram, Port};

/// Implements [`Kernel`]; what it holds is seen and changed through its [`FakeHandle`].
#[derive(Debug)]
pub struct FakeKernel {
    state: Arc<Mutex<State>>,
}

/// The test's end of a [`FakeKernel`].
#[derive(Clone, Debug)]
pub struct FakeHandle {
    state: Arc<Mutex<State>>,
    /// Datagrams that come to the WireGuard port.
    pub datagrams: mpsc::Sender<Datagram>,
    pub filter_events: mpsc::Sender<FilterEvent>,
    pub changes: mpsc::Sender<KernelChange>,
}

/// Decides whether a step fails.
type Failure = Box<dyn FnMut(&Step) -> bool + Send>;

#[derive(Default)]
struct State {
    model: Model,
    steps: Vec<Step>,
    installed: Vec<Compiled>,
    /// Installations that are to fail.
    fail_installs: usize,
    closed: bool,
    counters: FilterCounters,
    stats: Vec<PeerStats>,
    fail_steps: Option<Failure>,
    fail_observe: bool,
    torn_down: bool,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("observed", self.model.observed())
            .field("steps", &self.steps)
            .finish_non_exhaustive()
    }
}

/// As [`super::start`], on an empty fake kernel. The port is a socket on loopback with a free number.
pub async fn start(dataplane: Dataplane) -> std::io::Result<(Started, FakeHandle)> {
    const WAITING: usize = 64;
    let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await?);
    let (datagram_sender, datagrams) = mpsc::channel(WAITING);
    let (event_sender, filter_events) = mpsc::channel(WAITING);
    let (change_sender, changes) = mpsc::channel(WAITING);
    let state = Arc::new(Mutex::new(State::default()));
    let handle = FakeHandle {
        state: state.clone(),
        datagrams: datagram_sender,
        filter_events: event_sender,
        changes: change_sender,
    };
    let started = Started {
        kernel: Box::new(FakeKernel { state }),
        port: Port::shared(socket, None, None),
        datagrams,
        filter_events,
        changes,
        dataplane,
        why_userspace: None,
        adopted: false,
    };
    Ok((started, handle))
}

impl FakeHandle {
    pub fn observed(&self) -> Observed {
        self.lock().model.observed().clone()
    }

    /// Changes what is there behind the agent's back.
    pub fn change(&self, change: impl FnOnce(&mut Observed)) {
        let mut state = self.lock();
        let mut observed = std::mem::take(&mut state.model).into_observed();
        change(&mut observed);
        state.model = observed.into();
    }

    /// Steps since the last call.
    pub fn take_steps(&self) -> Vec<Step> {
        std::mem::take(&mut self.lock().steps)
    }

    /// Every policy that was put in force, in order.
    pub fn installed(&self) -> Vec<Compiled> {
        self.lock().installed.clone()
    }

    /// The next ones fail.
    pub fn fail_installs(&self, count: usize) {
        self.lock().fail_installs = count;
    }

    /// Whether nothing passes because the filter was closed.
    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }

    pub fn set_stats(&self, stats: Vec<PeerStats>) {
        self.lock().stats = stats;
    }

    pub fn set_counters(&self, counters: FilterCounters) {
        self.lock().counters = counters;
    }

    /// Steps for which `failure` says so fail from now on, and change nothing.
    pub fn fail_steps(&self, failure: impl FnMut(&Step) -> bool + Send + 'static) {
        self.lock().fail_steps = Some(Box::new(failure));
    }

    pub fn fail_observe(&self, fail: bool) {
        self.lock().fail_observe = fail;
    }

    pub fn heal(&self) {
        let mut state = self.lock();
        state.fail_steps = None;
        state.fail_observe = false;
    }

    /// Whether `teardown` was called since the last step.
    pub fn is_torn_down(&self) -> bool {
        self.lock().torn_down
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state
        .lock()
        .expect("no test panics while it holds the lock")
}

impl Kernel for FakeKernel {
    fn observe(&mut self) -> KernelFuture<'_, Observed> {
        let state = lock(&self.state);
        let result = match state.fail_observe {
            true => Err(KernelError::Injected("observe".into())),
            false => Ok(state.model.observed().clone()),
        };
        async move { result }.boxed()
    }

    fn apply<'a>(&'a mut self, step: &'a Step) -> KernelFuture<'a, ()> {
        let mut state = lock(&self.state);
        state.steps.push(step.clone());
        state.torn_down = false;
        let fails = state.fail_steps.as_mut().is_some_and(|fails| fails(step));
        let result = if fails {
            Err(KernelError::Injected(format!("{step:?}")))
        } else {
            state.model.apply(step);
            Ok(())
        };
        async move { result }.boxed()
    }

    fn apply_all<'a>(&'a mut self, steps: &'a [Step]) -> KernelFuture<'a, ()> {
        async move {
            for step in steps {
                self.apply(step).await?;
            }
            Ok(())
        }
        .boxed()
    }

    fn install_filter<'a>(&'a mut self, compiled: &'a Compiled) -> KernelFuture<'a, ()> {
        let mut state = lock(&self.state);
        let attached = state
            .model
            .observed()
            .device
            .as_ref()
            .is_some_and(|device| device.filter_attached);
        let result = if state.fail_installs > 0 {
            state.fail_installs -= 1;
            Err(KernelError::Injected("install".into()))
        } else if attached {
            state.installed.push(compiled.clone());
            state.closed = false;
            Ok(())
        } else {
            Err(KernelError::NoFilter {
                what: "installing the packet filter",
            })
        };
        async move { result }.boxed()
    }

    fn close_filter(&mut self) -> KernelFuture<'_, ()> {
        lock(&self.state).closed = true;
        async move { Ok(()) }.boxed()
    }

    fn filter_is_lost(&mut self) -> bool {
        let state = lock(&self.state);
        let device = state.model.observed().device.as_ref();
        device.is_some_and(|device| !device.filter_attached)
    }

    fn filter_counters(&mut self) -> Result<FilterCounters, KernelError> {
        Ok(lock(&self.state).counters.clone())
    }

    fn peer_stats(&mut self) -> KernelFuture<'_, Vec<PeerStats>> {
        let stats = lock(&self.state).stats.clone();
        async move { Ok(stats) }.boxed()
    }

    fn teardown(&mut self) -> KernelFuture<'_, ()> {
        let mut state = lock(&self.state);
        state.model = Model::default();
        state.torn_down = true;
        async move { Ok(()) }.boxed()
    }
}
