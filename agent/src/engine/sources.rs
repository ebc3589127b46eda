//! The channels on which events come while a session runs.

use lowroad_core::filter::FilterEvent;
use tokio::sync::mpsc;

use super::Event;
use crate::{
    control::ControlEvent,
    derp::DerpEvent,
    kernel::KernelChange,
    traversal::{port::Datagram, relay::RelayEvent, stun::Probed},
};

/// Where events come from while a session runs.
#[derive(Debug, Default)]
pub(super) struct Sources {
    pub control: Option<mpsc::Receiver<ControlEvent>>,
    pub changes: Option<mpsc::Receiver<KernelChange>>,
    pub derp: Option<mpsc::Receiver<DerpEvent>>,
    pub probed: Option<mpsc::Receiver<Probed>>,
    pub relay: Option<mpsc::Receiver<RelayEvent>>,
    pub datagrams: Option<mpsc::Receiver<Datagram>>,
    pub filter: Option<mpsc::Receiver<FilterEvent>>,
}

impl Sources {
    /// The first event that waits already, in their order of priority. The control server's wait while a policy is being compiled.
    pub fn waiting(&mut self, compiling: bool) -> Option<Event> {
        let control = match compiling {
            true => None,
            false => waiting(&mut self.control).map(Event::Control),
        };
        control
            .or_else(|| waiting(&mut self.changes).map(Event::Kernel))
            .or_else(|| waiting(&mut self.derp).map(Event::Derp))
            .or_else(|| waiting(&mut self.probed).map(Event::Probed))
            .or_else(|| waiting(&mut self.relay).map(Event::Relay))
            .or_else(|| waiting(&mut self.datagrams).map(Event::Datagram))
            .or_else(|| waiting(&mut self.filter).map(Event::Filter))
    }
}

/// The next item of a source; never, while there is no source or once it has ended.
pub(super) async fn receive<T>(source: &mut Option<mpsc::Receiver<T>>) -> T {
    if let Some(receiver) = source {
        if let Some(item) = receiver.recv().await {
            return item;
        }
        *source = None;
    }
    std::future::pending().await
}

/// What a source has already.
fn waiting<T>(source: &mut Option<mpsc::Receiver<T>>) -> Option<T> {
    source.as_mut()?.try_recv().ok()
}
