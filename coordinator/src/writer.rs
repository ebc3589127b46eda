//! The thread that writes what changed to the database.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use tokio::sync::watch;

use crate::{Error, state::State, store::Store};

/// How long to wait after a failed write.
const RETRY: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Writer {
    /// Holds one wake-up at most; dropped to end the thread.
    wake: Mutex<Option<SyncSender<()>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    written: watch::Receiver<u64>,
    healthy: Arc<AtomicBool>,
}

impl Writer {
    pub fn start(store: Store, state: Arc<Mutex<State>>) -> Result<Self, Error> {
        let (wake, woken) = sync_channel(1);
        let (written, receiver) = watch::channel(0);
        let healthy = Arc::new(AtomicBool::new(true));
        let health = healthy.clone();
        let thread = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || run(store, &state, &woken, &written, &health))
            .map_err(Error::io("start the thread that writes the database"))?;
        Ok(Self {
            wake: Mutex::new(Some(wake)),
            thread: Mutex::new(Some(thread)),
            written: receiver,
            healthy,
        })
    }

    pub fn wake(&self) {
        if let Some(wake) = &*self.wake.lock().unwrap_or_else(PoisonError::into_inner) {
            // Full: it is about to look anyway. Disconnected: it has ended.
            let _ = wake.try_send(());
        }
    }

    pub fn written(&self) -> watch::Receiver<u64> {
        self.written.clone()
    }

    pub fn is_healthy(&self) -> bool {
        self.healthy.load(Ordering::Relaxed)
    }

    /// Waits until everything is written that can be.
    pub fn close(&self) {
        self.wake
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that writes the database has panicked");
        }
    }
}

fn run(
    mut store: Store,
    state: &Mutex<State>,
    woken: &Receiver<()>,
    written: &watch::Sender<u64>,
    healthy: &AtomicBool,
) {
    let mut failed = false;
    loop {
        let ended = if failed {
            woken.recv_timeout(RETRY) == Err(RecvTimeoutError::Disconnected)
        } else {
            woken.recv().is_err()
        };
        let (rows, marks) = state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take_rows();
        match store.save(&rows) {
            Ok(()) => {
                if failed {
                    tracing::info!("the database takes writes again");
                }
                failed = false;
                written.send_replace(marks);
            }
            Err(error) => {
                if !failed {
                    tracing::error!(%error, "cannot write; is the disk full?");
                }
                failed = true;
                state
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .give_back(&rows);
            }
        }
        healthy.store(!failed, Ordering::Relaxed);
        if ended {
            return;
        }
    }
}
