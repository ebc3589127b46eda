//! The client of the relays: one connection per region in use, the home region's always open (protocol.md 2).
//!
//! Every region of the DERPMap has one task, asleep until its region is home or has something to send. Sending puts a
//! packet into the region's queue and wakes the task if it has to; what a slow relay does not take pushes the oldest out.

mod connection;
mod dial;
mod inbox;
mod queue;
mod region;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use lowroad_wire::{
    control::{DerpMap, RegionId},
    key::{NodePrivate, NodePublic},
};
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
};

pub use self::inbox::{FromRelay, Packets};
use self::{
    inbox::Inbox,
    queue::Queue,
    region::{Task, Wanted},
};
use crate::{backoff::Backoff, tls::TlsConfig};

/// Events that may wait for their reader. What makes one waits for its place, and no region makes more than a few a second.
const EVENTS: usize = 256;
/// Between two events of what a relay has to say to people.
const HEALTH_PAUSE: Duration = Duration::from_secs(1);
/// The first pause after a failure; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause between attempts, unless the relay asks for more.
pub(crate) const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A restarting relay can't keep us away for longer.
pub(crate) const MAX_RESTART: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DerpEvent {
    Connected {
        region: RegionId,
    },
    Disconnected {
        region: RegionId,
        why: Why,
    },
    /// What the relay has to say to people, the latest of it; empty: healthy again.
    Health {
        region: RegionId,
        text: String,
    },
}

/// Why there is no connection to a region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// Nothing to send for a while, and not home.
    Idle,
    /// The DERPMap changed.
    Moved,
    /// It broke, or could not be made; it is tried again.
    Failed(String),
}

/// When things are given up or done again.
#[derive(Clone, Copy, Debug)]
struct Timings {
    /// A dial to one relay, with name resolution.
    dial: Duration,
    /// A connection, from the first dial to the end of the greeting.
    connect: Duration,
    /// Without a byte from the server, whose keep-alives come each minute.
    silence: Duration,
    /// A write that the relay does not take.
    write: Duration,
    /// Without a packet of ours, unless home.
    idle: Duration,
    /// How often idleness is looked at.
    sweep: Duration,
    /// Answer to the ping after a change of links.
    ping: Duration,
    /// Longest pause between attempts.
    backoff: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            dial: Duration::from_millis(1500),
            connect: Duration::from_secs(10),
            silence: Duration::from_secs(120),
            write: Duration::from_secs(30),
            idle: Duration::from_secs(60),
            sweep: Duration::from_secs(15),
            ping: Duration::from_secs(3),
            backoff: LONGEST_PAUSE,
        }
    }
}

pub(crate) const fn backoff(longest: Duration) -> Backoff {
    Backoff::new(FIRST_PAUSE, longest)
}

/// After a failure. One that restarts says how long all its clients are to wait; it may say 0, and again.
pub(crate) fn pause_of(backoff: &mut Backoff, asked: Option<Duration>, random: f64) -> Duration {
    match asked.map(|after| after.min(MAX_RESTART)) {
        Some(after) => backoff.next_asked(after / 2, after, random),
        None => backoff.next(random),
    }
}

/// What every region's task needs.
#[derive(Debug)]
struct Shared {
    node: NodePrivate,
    tls: TlsConfig,
    fwmark: u32,
    timings: Timings,
    events: mpsc::Sender<DerpEvent>,
    inbox: Arc<Inbox>,
}

/// The handle; when its last clone is dropped, all connections close.
#[derive(Clone, Debug)]
pub struct DerpPool(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    runtime: Handle,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    regions: HashMap<RegionId, Region>,
    home: Option<RegionId>,
}

#[derive(Debug)]
struct Region {
    queue: Arc<Queue>,
    /// Dropping it ends the task.
    wanted: watch::Sender<Wanted>,
}

impl DerpPool {
    /// Connects to nothing until there is a map. Packets come apart from events: who reads the one need not keep up with the other. `fwmark` marks the sockets, if we may.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(
        node: NodePrivate,
        tls: TlsConfig,
        fwmark: u32,
    ) -> (Self, Packets, mpsc::Receiver<DerpEvent>) {
        Self::start_with(node, tls, fwmark, Timings::default())
    }

    fn start_with(
        node: NodePrivate,
        tls: TlsConfig,
        fwmark: u32,
        timings: Timings,
    ) -> (Self, Packets, mpsc::Receiver<DerpEvent>) {
        let (events, receiver) = mpsc::channel(EVENTS);
        let inbox = Arc::new(Inbox::default());
        let shared = Arc::new(Shared {
            node,
            tls,
            fwmark,
            timings,
            events,
            inbox: inbox.clone(),
        });
        let inner = Inner {
            shared,
            runtime: Handle::current(),
            state: Mutex::default(),
        };
        (Self(Arc::new(inner)), Packets(inbox), receiver)
    }

    /// Regions that are gone close, those whose nodes changed connect anew, the others notice nothing.
    pub fn set_map(&self, map: &DerpMap) {
        let mut state = self.state();
        let home = state.home;
        state.regions.retain(|id, _| map.regions.contains_key(id));
        for (id, region) in &map.regions {
            let wanted = Wanted {
                nodes: region.nodes.clone(),
                home: home == Some(*id),
                link_changes: 0,
            };
            match state.regions.get(id) {
                Some(known) => {
                    known.wanted.send_if_modified(|old| {
                        let changed = old.nodes != wanted.nodes;
                        old.nodes = wanted.nodes;
                        changed
                    });
                }
                None => {
                    state.regions.insert(*id, self.spawn(*id, wanted));
                }
            }
        }
    }

    /// The region where others find us; it may be unknown to the map yet.
    pub fn set_home(&self, home: Option<RegionId>) {
        let mut state = self.state();
        state.home = home;
        for (id, region) in &state.regions {
            let is_home = home == Some(*id);
            region
                .wanted
                .send_if_modified(|wanted| std::mem::replace(&mut wanted.home, is_home) != is_home);
        }
    }

    /// Sends a packet by a region, connecting to it if need be. Never blocks; a region that the map does not have, or that
    /// is not reached, loses the packet.
    pub fn send(&self, region: RegionId, to: NodePublic, packet: Bytes) {
        let queue = self
            .state()
            .regions
            .get(&region)
            .map(|region| region.queue.clone());
        if let Some(queue) = queue {
            queue.push(to, packet);
        }
    }

    /// Addresses or routes of the host changed: connections that don't answer within seconds are made anew, and pauses
    /// between attempts end.
    pub fn link_changed(&self) {
        for region in self.state().regions.values() {
            region.wanted.send_modify(|wanted| wanted.link_changes += 1);
        }
    }

    pub fn is_connected(&self, region: RegionId) -> bool {
        self.state()
            .regions
            .get(&region)
            .is_some_and(|region| region.queue.is_connected())
    }

    /// How many packets were dropped: a region did not take them, or they came faster than they were read.
    pub fn dropped(&self) -> u64 {
        let unsent: u64 = self
            .state()
            .regions
            .values()
            .map(|region| region.queue.dropped())
            .sum();
        unsent + self.0.shared.inbox.dropped()
    }

    fn spawn(&self, id: RegionId, wanted: Wanted) -> Region {
        let queue = Arc::new(Queue::default());
        let (wanted, receiver) = watch::channel(wanted);
        let task = Task {
            id,
            shared: self.0.shared.clone(),
            queue: queue.clone(),
            wanted: receiver,
        };
        self.0.runtime.spawn(task.run());
        Region { queue, wanted }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
