//! The agent's loop: one closed [`Event`] enum, taken in a stated order of priority, and everything that follows from it.
//!
//! Priority: the order to stop, timers, the local API, a policy that has been compiled, the control server, kernel changes, the relays, datagrams, filter events. Timers
//! come early so that no flood of packets can hold them up; what strangers can send in quantity comes last. Anybody on this host may ask the local API, so that each ask
//! is followed by something else that waits. While a policy is being compiled the control server waits.

mod addresses;
mod answer;
mod bus;
mod cached;
mod direct;
mod flows;
mod keys;
mod lifecycle;
mod links;
mod measures;
mod metrics;
mod net;
pub mod node;
mod pings;
pub mod probe;
mod revive;
mod session;
mod sources;
mod up;
mod view;

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use arc_swap::ArcSwapOption;
use futures_util::future::BoxFuture;
use lowroad_core::filter::{FilterEvent, Punt};
use tokio::{
    sync::{mpsc, watch},
    time::sleep_until,
};
use tracing::{debug, error, info, warn};

use self::{
    bus::Bus,
    cached::Ended,
    flows::Flows,
    lifecycle::Login,
    links::Links,
    session::Session,
    sources::{Sources, receive},
    up::{BegunLogin, PendingUp},
};
use crate::{
    control::ControlEvent,
    derp::DerpEvent,
    kernel::{KernelChange, KernelError, KernelOptions, Started},
    localapi::{Ask, user_id},
    prefs::Prefs,
    state::{NetmapCache, State, StateDir, StateError},
    tls::TlsConfig,
    traversal::{port::Datagram, relay::RelayEvent, stun::Probed},
};

/// All that the kernel holds is compared with what it should hold at least this often.
const RECONCILE_INTERVAL: Duration = Duration::from_secs(30);
/// Changes that come together are done together.
const COALESCE: Duration = Duration::from_millis(5);
/// Between two looks at the ways out of this host: routes can change by the thousand a second, and a look takes a millisecond.
const LINKS_REST: Duration = Duration::from_millis(100);
/// After the kernel refused something, or could not be started.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// How soon it is noticed that nobody waits for an `up` any more.
const WATCH_UPS: Duration = Duration::from_millis(500);

/// Everything that can happen to the agent.
#[derive(Debug)]
enum Event {
    Stop,
    Timer,
    Ask(Ask),
    /// The policy.
    Compiled,
    Control(ControlEvent),
    Kernel(KernelChange),
    /// Of the relays' connections.
    Derp(DerpEvent),
    Probed(Probed),
    /// Of peers that are relayed.
    Relay(RelayEvent),
    Datagram(Datagram),
    Filter(FilterEvent),
}

/// How the kernel side is started: really, or as a fake.
pub type StartKernel =
    Box<dyn Fn(KernelOptions) -> BoxFuture<'static, Result<Started, KernelError>> + Send>;

pub struct EngineOptions {
    pub kernel: KernelOptions,
    pub start_kernel: StartKernel,
    pub tls: TlsConfig,
    /// False leaves out relays and STUN, for tests without privileges.
    pub traversal: bool,
    /// Of the monotonic clock, when the engine starts.
    pub uptime: Duration,
    /// Since the process began, when the engine starts.
    pub age: Duration,
    pub operator: Arc<ArcSwapOption<u32>>,
}

impl std::fmt::Debug for EngineOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EngineOptions")
            .field("kernel", &self.kernel)
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
pub struct Engine {
    options: EngineOptions,
    dir: StateDir,
    state: State,
    /// In force; the state's are those last saved.
    prefs: Prefs,
    asks: mpsc::Receiver<Ask>,
    stop: watch::Receiver<bool>,
    sources: Sources,
    session: Option<Session>,
    ups: Vec<PendingUp>,
    flows: Flows,
    cache: NetmapCache,
    ended: Ended,
    /// When the process began.
    began: Instant,
    /// How long after that the kernel held what a netmap wanted.
    adopted_after: Option<Duration>,
    bus: Bus,
    /// What the session's login has still to do: a session that is started again goes on with it.
    login: Login,
    /// A login that somebody began on the local API and may go on with.
    begun: Option<BegunLogin>,
    /// Whether the last event was an ask: the next is something else that waits, if there is such.
    asked: bool,
    /// The ways out of this host, as of the last look.
    links: Links,
    /// When to look at them, after a change.
    links_at: Option<Instant>,
    /// Not before.
    links_rest: Instant,
    reconcile_at: Instant,
    /// When what has changed of the netmap is programmed.
    changes_at: Option<Instant>,
    /// When to try again to start a session that could not be.
    restart_at: Option<Instant>,
    /// Why the node isn't running although it should: for `status`.
    failure: Option<String>,
}

impl Engine {
    pub fn new(
        options: EngineOptions,
        dir: StateDir,
        state: State,
        asks: mpsc::Receiver<Ask>,
        stop: watch::Receiver<bool>,
    ) -> Self {
        let flows = Flows::new(SystemTime::now(), options.uptime);
        let now = Instant::now();
        let engine = Self {
            prefs: state.prefs.clone(),
            cache: dir.netmap_cache(),
            began: now.checked_sub(options.age).unwrap_or(now),
            adopted_after: None,
            ended: Ended::default(),
            options,
            dir,
            state,
            asks,
            stop,
            sources: Sources::default(),
            session: None,
            ups: Vec::new(),
            flows,
            bus: Bus::default(),
            login: Login::default(),
            begun: None,
            asked: false,
            links: Links::default(),
            links_at: None,
            links_rest: now,
            reconcile_at: now + RECONCILE_INTERVAL,
            changes_at: None,
            restart_at: None,
            failure: None,
        };
        engine.set_operator();
        engine
    }

    /// Runs until told to stop. What the kernel holds stays.
    pub async fn run(mut self) {
        self.leave_login();
        self.use_accepted_key();
        if self.prefs.want_running {
            self.start_or_retry().await;
        }
        loop {
            match self.next_event().await {
                Event::Stop => break,
                event => self.on_event(event).await,
            }
            self.settle().await;
        }
        self.keep_netmap_now().await;
        info!("the agent ends; what it programmed into the kernel stays");
    }

    async fn next_event(&mut self) -> Event {
        let deadline = self.next_deadline();
        let compiling = self.session.as_ref().is_some_and(Session::is_compiling);
        if std::mem::take(&mut self.asked)
            && deadline > Instant::now()
            && !*self.stop.borrow()
            && let Some(event) = self.sources.waiting(compiling)
        {
            return event;
        }
        let sources = &mut self.sources;
        tokio::select! {
            biased;
            // The daemon dropping its end is an order to stop, too.
            _ = self.stop.wait_for(|stop| *stop) => Event::Stop,
            () = sleep_until(deadline.into()) => Event::Timer,
            Some(ask) = self.asks.recv() => {
                self.asked = true;
                Event::Ask(ask)
            }
            () = finish_compiling(&mut self.session), if compiling => Event::Compiled,
            event = receive(&mut sources.control), if !compiling => Event::Control(event),
            change = receive(&mut sources.changes) => Event::Kernel(change),
            event = receive(&mut sources.derp) => Event::Derp(event),
            probed = receive(&mut sources.probed) => Event::Probed(probed),
            event = receive(&mut sources.relay) => Event::Relay(event),
            datagram = receive(&mut sources.datagrams) => Event::Datagram(datagram),
            event = receive(&mut sources.filter) => Event::Filter(event),
        }
    }

    fn next_deadline(&self) -> Instant {
        let session = self.session.as_ref().and_then(Session::next_deadline);
        let ups = self.ups.iter().filter_map(PendingUp::deadline).min();
        // Somebody who interrupts `up` makes no event of his own.
        let watch = self.ups.iter().any(PendingUp::can_be_interrupted);
        let watch = watch.then(|| Instant::now() + WATCH_UPS);
        let others = [
            self.begun.as_ref().map(BegunLogin::ends),
            self.changes_at,
            self.restart_at,
            self.links_at,
            self.cache.due(),
        ];
        [session, ups, watch]
            .into_iter()
            .chain(others)
            .flatten()
            .fold(self.reconcile_at, Instant::min)
    }

    async fn on_event(&mut self, event: Event) {
        let now = Instant::now();
        match event {
            Event::Stop => {}
            Event::Timer => self.on_timer(now).await,
            Event::Ask(ask) => self.on_ask(ask).await,
            // Before any message: it is of the netmap as it is.
            Event::Compiled => self.reconcile(now).await,
            Event::Control(event) => self.on_control(event).await,
            Event::Kernel(change) => self.on_kernel_change(now, change),
            Event::Derp(event) => self.with_session(|session| session.on_derp(now, event)),
            Event::Probed(probed) => self.with_session(|session| session.on_probed(probed)),
            Event::Relay(event) => self.with_session(|session| session.on_relay(now, event)),
            Event::Datagram(datagram) => {
                self.with_session(|session| session.on_datagram(now, datagram))
            }
            Event::Filter(event) => self.on_filter(event),
        }
    }

    fn with_session(&mut self, act: impl FnOnce(&mut Session)) {
        if let Some(session) = &mut self.session {
            act(session);
        }
    }

    async fn on_timer(&mut self, now: Instant) {
        if self.restart_at.is_some_and(|at| at <= now) {
            self.restart_at = None;
            self.start_or_retry().await;
        }
        self.begun.take_if(|begun| begun.ends() <= now);
        if self.links_at.is_some_and(|at| at <= now) {
            self.look_at_links(now).await;
        }
        self.with_session(|session| session.on_timer(now));
        if self
            .session
            .as_mut()
            .is_some_and(|s| s.has_lost_filter(now))
        {
            warn!("somebody took the packet filter off the device: attaching it again");
            self.reconcile_at = now;
        }
        if self.cache.due().is_some_and(|at| at <= now) {
            self.keep_netmap(now).await;
        }
        if self.reconcile_at <= now {
            self.reconcile_at = now + RECONCILE_INTERVAL;
            self.with_session(Session::compare_whole);
            self.reconcile(now).await;
        } else if self.changes_at.is_some_and(|at| at <= now) {
            self.reconcile(now).await;
        }
    }

    fn on_kernel_change(&mut self, now: Instant, change: KernelChange) {
        debug!(?change, "kernel change");
        if change == KernelChange::Overflow {
            // They may have changed and changed back.
            self.links = Links::default();
        }
        if matches!(
            change,
            KernelChange::Links
                | KernelChange::Addresses
                | KernelChange::Routes
                | KernelChange::Overflow
        ) {
            self.links_at.get_or_insert(now.max(self.links_rest));
        }
        if matches!(
            change,
            KernelChange::Device
                | KernelChange::Rules
                | KernelChange::Table
                | KernelChange::Overflow
        ) {
            self.reconcile_soon(now);
        }
    }

    async fn look_at_links(&mut self, now: Instant) {
        self.links_at = None;
        let links = Links::read(&self.options.kernel).await;
        self.links_rest = Instant::now() + LINKS_REST;
        if links != self.links {
            info!("addresses or default routes of this host have changed");
            self.links = links;
            self.with_session(|session| session.on_link_change(now));
        }
    }

    fn on_filter(&mut self, event: FilterEvent) {
        match event {
            FilterEvent::Drop {
                time,
                direction,
                reason,
                tuple,
                length,
            } => {
                if let Some(tuple) = tuple {
                    self.flows.push(flows::Drop {
                        time,
                        direction,
                        reason,
                        tuple,
                        length,
                    });
                }
            }
            FilterEvent::Punt {
                punt: Punt::Answer(packet),
                ..
            } => answer::send(
                &self.options.kernel.device,
                self.options.kernel.mark.value,
                &packet,
            ),
            FilterEvent::Punt {
                punt: Punt::Rejected { flow, reason },
                ..
            } => {
                debug!(%reason, destination = %flow.destination, "a peer refused a connection of ours");
            }
        }
    }

    fn reconcile_soon(&mut self, now: Instant) {
        self.reconcile_at = self.reconcile_at.min(now + COALESCE);
    }

    /// What of the netmap has changed, and no more; the kept netmap is brought up to date with it.
    fn program_soon(&mut self, now: Instant) {
        self.changes_at.get_or_insert(now + COALESCE);
    }

    async fn reconcile(&mut self, now: Instant) {
        self.changes_at = None;
        self.cache.settle().await;
        self.drop_expired_cache();
        let Some(session) = &mut self.session else {
            return;
        };
        match session.reconcile(now).await {
            Ok(Some(steps)) => {
                if steps > 0 {
                    debug!(steps, "the kernel holds what it should");
                }
                self.note_adoption(steps);
                if self.session.as_ref().is_some_and(Session::is_void) {
                    self.note_void().await;
                }
            }
            Ok(None) => debug!("a policy is being compiled"),
            Err(why) => {
                let why = whole(&why);
                error!(error = %why, "cannot bring the kernel to what it should hold");
                self.reconcile_at = self.reconcile_at.min(now + RETRY_INTERVAL);
                self.fail_ups(&why).await;
            }
        }
    }

    /// What follows from any event: commands of the paths, reports to the server, progress of `up`.
    async fn settle(&mut self) {
        let now = Instant::now();
        if let Some(session) = &mut self.session {
            if let Err(why) = session.run_commands(now).await {
                warn!(error = %why, "cannot program a path");
                self.reconcile_at = self.reconcile_at.min(now + RETRY_INTERVAL);
            }
            session.report();
        }
        self.advance_ups(now).await;
        self.tell_watchers();
    }

    fn save(&mut self) -> Result<(), StateError> {
        self.dir
            .save(&self.state)
            .inspect_err(|why| error!(error = %why, "cannot save the state"))
    }

    fn set_operator(&self) {
        let operator = Some(&self.prefs.operator_user)
            .filter(|name| !name.is_empty())
            .and_then(|name| user_id(name));
        self.options.operator.store(operator.map(Arc::new));
    }
}

/// An error with its causes, as far as its own words don't repeat them.
fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = error.source();
    }
    text
}

async fn finish_compiling(session: &mut Option<Session>) {
    match session {
        Some(session) => session.finish_compiling().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
