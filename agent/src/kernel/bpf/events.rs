//! The ring buffer, and the programs' debug traces.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use aya::{
    Ebpf,
    maps::{MapData, RingBuf},
};
use aya_log::EbpfLogger;
use lowroad_abi::EventRecord;
use lowroad_core::filter::{Compiled, FilterEvent};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{mpsc, oneshot},
};

use super::{FilterError, object};

/// Events waiting for the engine. A CPU makes 300 a second at most.
const QUEUE: usize = 1024;
/// How often traces are fetched, when they are on.
const TRACE_INTERVAL: Duration = Duration::from_millis(100);

/// Bit of the answers' settings: shields are up. Below it, the peer API's port.
const SHIELDS_UP: u32 = 1 << 16;

/// The reading ends, before reading begins.
pub(super) struct Source {
    ring: RingBuf<MapData>,
    traces: Option<EbpfLogger<&'static dyn log::Log>>,
}

impl Source {
    pub fn take(programs: &mut Ebpf, traces: bool) -> Result<Self, FilterError> {
        let ring = object::take(programs, "EVENTS")?;
        let traces = match traces {
            true => Some(
                EbpfLogger::init(programs)
                    .map_err(|e| FilterError::kernel("opening the filter's traces", e))?,
            ),
            false => None,
        };
        Ok(Self { ring, traces })
    }

    /// Begins to read, until the receiver or the other end of `filter` is dropped.
    pub fn start(
        self,
        answers: Arc<AtomicU32>,
        filter: oneshot::Receiver<()>,
    ) -> Result<mpsc::Receiver<FilterEvent>, FilterError> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        // SAFETY: the ring owns its map's descriptor, open and the same until it is dropped.
        let ring = unsafe { AsyncFd::register_with_interest(self.ring, Interest::READABLE) }
            .map_err(|e| FilterError::kernel("waiting for the filter's events", e))?;
        if let Some(mut traces) = self.traces {
            let reader = sender.downgrade();
            tokio::spawn(async move {
                while reader.upgrade().is_some_and(|reader| !reader.is_closed()) {
                    traces.flush();
                    tokio::time::sleep(TRACE_INTERVAL).await;
                }
            });
        }
        tokio::spawn(read(ring, sender, answers, filter));
        Ok(receiver)
    }
}

async fn read(
    mut ring: AsyncFd<RingBuf<MapData>>,
    sender: mpsc::Sender<FilterEvent>,
    answers: Arc<AtomicU32>,
    mut filter: oneshot::Receiver<()>,
) {
    loop {
        // What an earlier agent left unread wakes nobody: look before waiting.
        while let Some(item) = ring.get_mut().next() {
            let settings = answers.load(Ordering::Relaxed);
            let event = EventRecord::from_bytes(&item).and_then(|record| {
                FilterEvent::decode(&record, settings as u16, settings & SHIELDS_UP != 0)
            });
            if let Some(event) = event {
                // A full queue loses the event: counters know of all packets.
                if let Err(mpsc::error::TrySendError::Closed(_)) = sender.try_send(event) {
                    return;
                }
            }
        }
        tokio::select! {
            () = sender.closed() => return,
            _ = &mut filter => return,
            ready = ring.readable_mut() => match ready {
                Ok(mut guard) => guard.clear_ready(),
                Err(error) => {
                    tracing::warn!(%error, "the filter's events cannot be read any more");
                    return;
                }
            }
        }
    }
}

/// What answers to punts are made with from here on.
pub(super) fn set_answers(answers: &AtomicU32, compiled: &Compiled) {
    let shields = if compiled.shields_up { SHIELDS_UP } else { 0 };
    let port = u32::from(compiled.peer_api_port.unwrap_or(0));
    answers.store(shields | port, Ordering::Relaxed);
}
