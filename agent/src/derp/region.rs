//! One region: asleep, connecting, connected, or waiting to try again.

use std::{sync::Arc, time::Duration};

use lowroad_wire::control::{DerpNode, RegionId};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tracing::{debug, info};

use super::{
    DerpEvent, Shared, Why, backoff,
    connection::{Connection, End},
    dial, pause_of,
    queue::Queue,
};

/// A connection that held for so long makes the pauses begin anew.
const GOOD: Duration = Duration::from_secs(10);

/// What the pool wants of a region.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    pub nodes: Vec<DerpNode>,
    pub home: bool,
    /// Counts the changes of the host's links.
    pub link_changes: u64,
}

pub struct Task {
    pub id: RegionId,
    pub shared: Arc<Shared>,
    pub queue: Arc<Queue>,
    pub wanted: watch::Receiver<Wanted>,
}

impl Task {
    /// Until the pool drops the region.
    pub async fn run(mut self) {
        let mut backoff = backoff(self.shared.timings.backoff);
        while self.until_needed().await {
            let nodes = self.wanted.borrow_and_update().nodes.clone();
            let end = match self.connect(&nodes).await {
                Some(Ok(greeted)) => {
                    let started = Instant::now();
                    let end = self.carry(greeted, &nodes).await;
                    if started.elapsed() >= GOOD {
                        backoff.reset();
                    }
                    end
                }
                Some(Err(error)) => {
                    let why = error.to_string();
                    debug!(region = %self.id, %why, "no connection to the relay");
                    self.report(Why::Failed(why)).await;
                    None
                }
                // What was wanted changed meanwhile: look again.
                None => {
                    backoff.reset();
                    continue;
                }
            };
            let asked = match end {
                Some(End::Unwanted) => return,
                Some(End::Idle | End::Moved | End::AddressGone(_)) => {
                    backoff.reset();
                    continue;
                }
                Some(End::Restarting { after }) => Some(after),
                _ => None,
            };
            let pause = pause_of(&mut backoff, asked, rand::random());
            self.queue.expire();
            if !self.pause(pause).await {
                backoff.reset();
            }
        }
    }

    /// Until the region is home or has something to send; false: the pool is gone.
    async fn until_needed(&mut self) -> bool {
        loop {
            if self.wanted.borrow_and_update().home || !self.queue.is_empty() {
                return self.wanted.has_changed().is_ok();
            }
            tokio::select! {
                changed = self.wanted.changed() => if changed.is_err() {
                    return false;
                },
                () = self.queue.ready() => {}
            }
        }
    }

    /// `None`: what is wanted changed before there was a connection.
    async fn connect(
        &mut self,
        nodes: &[DerpNode],
    ) -> Option<Result<dial::Greeted, dial::DialError>> {
        let link_changes = self.wanted.borrow().link_changes;
        let connecting = dial::connect(&self.shared, nodes);
        tokio::pin!(connecting);
        loop {
            tokio::select! {
                result = &mut connecting => return Some(result),
                changed = self.wanted.changed() => {
                    changed.ok()?;
                    let wanted = self.wanted.borrow_and_update();
                    // After a change of links the attempt may lead nowhere.
                    if wanted.nodes != nodes || wanted.link_changes != link_changes {
                        return None;
                    }
                }
            }
        }
    }

    async fn carry(&mut self, greeted: dial::Greeted, nodes: &[DerpNode]) -> Option<End> {
        info!(region = %self.id, "connected to the relay");
        self.queue.set_connected(true);
        let _ = self
            .shared
            .events
            .send(DerpEvent::Connected { region: self.id })
            .await;
        let connection = Connection::new(self.id, &self.shared, &self.queue, nodes);
        let end = connection.run(greeted, &mut self.wanted).await;
        self.queue.set_connected(false);
        info!(region = %self.id, why = %end, "disconnected from the relay");
        let why = match &end {
            End::Unwanted | End::Moved | End::AddressGone(_) => Why::Moved,
            End::Idle => Why::Idle,
            other => Why::Failed(other.to_string()),
        };
        self.report(why).await;
        Some(end)
    }

    async fn report(&self, why: Why) {
        let _ = self
            .shared
            .events
            .send(DerpEvent::Disconnected {
                region: self.id,
                why,
            })
            .await;
    }

    /// Waits before the next attempt; false: a change cut it short, so begin afresh.
    async fn pause(&mut self, pause: Duration) -> bool {
        tokio::select! {
            () = sleep(pause) => true,
            _ = self.wanted.changed() => false,
        }
    }
}
