//! Snapshots for sessions. A compiler that panics leaves nobody under a policy that no longer holds: what cannot be followed is compiled
//! anew, and while that fails nodes are told to refuse everything.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Hub, lock, snapshot_of};
use crate::{
    policy::{CompiledTailnet, Policy, World, recompile},
    state::{Compile, Compiled, Taken},
};

/// How long changes are gathered before sessions hear of them: a join alone makes three.
const GATHER: Duration = Duration::from_millis(3);
/// After how long what failed is tried again, unless something changes before. Twice as long each time.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(60);

impl Hub {
    /// Makes snapshots until dropped.
    pub async fn publish(self: Arc<Self>) {
        let mut retry: Option<Duration> = None;
        loop {
            let stirred = self.stir.notified();
            match retry {
                Some(delay) => {
                    let _ = tokio::time::timeout(delay, stirred).await;
                }
                None => stirred.await,
            }
            tokio::time::sleep(GATHER).await;
            let (hub, is_anew) = (self.clone(), retry.is_some());
            let began = Instant::now();
            // Compiling a large policy takes a while.
            let published = tokio::task::spawn_blocking(move || hub.publish_once(is_anew)).await;
            let is_in_force = published.unwrap_or_else(|error| {
                // What was taken out of the state is lost.
                tracing::error!(%error, "publishing a change failed");
                false
            });
            retry = (!is_in_force).then(|| match retry {
                Some(delay) => (delay * 2).min(LONGEST_RETRY),
                None => FIRST_RETRY,
            });
            // However fast changes come, at least half of the time is for others.
            tokio::time::sleep(began.elapsed()).await;
        }
    }

    /// Whether the policy is in force: else nodes are told to refuse everything.
    fn publish_once(&self, is_anew: bool) -> bool {
        let last = self.snapshot();
        let mut taken = self.take(is_anew);
        let mut compiled = self.try_to_compile(&taken.compile, &last.compiled);
        if compiled.is_none() && matches!(taken.compile, Compile::Changes(..)) {
            tracing::error!("following a change failed; the whole policy is compiled instead");
            let mut all = self.take(true);
            all.changed.append(&mut taken.changed);
            taken = all;
            compiled = self.try_to_compile(&taken.compile, &last.compiled);
        }
        let is_in_force = compiled.is_some();
        let compiled = compiled.unwrap_or_else(|| closed(&taken.compile));
        let mut snapshot = snapshot_of(taken, last.generation, compiled);
        snapshot.is_closed = !is_in_force;
        self.snapshot.send_replace(Arc::new(snapshot));
        is_in_force
    }

    fn take(&self, is_anew: bool) -> Taken {
        let mut state = lock(&self.state);
        if is_anew {
            state.compile_anew();
        }
        let taken = state.take_changes();
        drop(state);
        if let Some(relay) = self.relay.get() {
            taken.revoked.iter().for_each(|key| relay.disconnect(key));
        }
        taken
    }

    fn try_to_compile(&self, compile: &Compile, last: &Arc<CompiledTailnet>) -> Option<Compiled> {
        attempt(|| (self.compile)(compile, last))
    }
}

/// `None` after a panic, which has been reported by then. Nothing that compiling changes outlives one, but for answers that are kept
/// once they are whole.
fn attempt<R>(work: impl FnOnce() -> R) -> Option<R> {
    catch_unwind(AssertUnwindSafe(work)).ok()
}

/// What holds while the policy cannot be compiled: nobody reaches anybody.
fn closed(compile: &Compile) -> Compiled {
    tracing::error!("the policy cannot be compiled; until it can, nodes refuse everything");
    let none = Policy::allow_none();
    let of_nodes = match compile {
        Compile::All(_, world) => attempt(|| recompile(&none, world)),
        Compile::Nothing | Compile::Changes(..) => None,
    };
    // Who isn't in the world is sent an empty filter, too.
    Compiled::whole(of_nodes.unwrap_or_else(|| recompile(&none, &World::default())))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use lowroad_wire::{
        control::{NodeId, RegisterAuth, RegisterRequest, UserId},
        key::{MachinePublic, NodePublic},
    };

    use super::*;
    use crate::{
        Error,
        delta::Sent,
        hub::{Receipt, now},
        model::AuthKeyText,
        state::{NewAuthKey, Settings, State, Stranger},
        view::Common,
    };

    const ANN: UserId = UserId(1);
    const ONE: NodeId = NodeId(1);
    const OTHER: NodeId = NodeId(2);

    /// A hub with two nodes of one user.
    struct Running {
        hub: Arc<Hub>,
        _dir: tempfile::TempDir,
    }

    impl Running {
        async fn start(compile: fn(&Compile, &Arc<CompiledTailnet>) -> Compiled) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let mut hub = Hub::open(dir.path(), Settings::default(), None).unwrap();
            Arc::get_mut(&mut hub).unwrap().compile = compile;
            let running = Self { hub, _dir: dir };
            running.change(|state| state.create_user("ann", "", now()).map(|_| ()));
            for number in [1, 2] {
                running.change(|state| join(state, ANN, number));
            }
            tokio::spawn(running.hub.clone().publish());
            running
        }

        fn change<E: std::fmt::Debug>(
            &self,
            change: impl FnOnce(&mut State) -> Result<(), E>,
        ) -> Receipt {
            let (done, receipt) = self.hub.change(change);
            done.unwrap();
            receipt
        }
    }

    fn join(state: &mut State, user: UserId, number: u8) -> Result<(), Error> {
        let text = AuthKeyText::from_random([number; 30]);
        let new = NewAuthKey {
            user,
            reusable: false,
            ephemeral: false,
            lifetime: Duration::from_secs(60),
            tags: Vec::new(),
        };
        state.create_auth_key(new, &text, now());
        let machine = MachinePublic::from_bytes([number; 32]);
        let request = RegisterRequest {
            version: 130,
            node_key: Some(NodePublic::from_bytes([number; 32])),
            auth: Some(RegisterAuth {
                auth_key: text.reveal().to_string(),
            }),
            ..RegisterRequest::default()
        };
        let who = Stranger {
            machine,
            remote: [192, 0, 2, 1].into(),
            random: [number; 16],
            now: now(),
            instant: Instant::now(),
            may_tag: &|_, _| false,
        };
        state.register(request, &who).map(|_| ())
    }

    #[tokio::test]
    async fn what_cannot_be_followed_is_compiled_anew_at_once() {
        let running = Running::start(|compile, last| match compile {
            Compile::Changes(..) => panic!("following fails"),
            _ => compile.apply(last),
        })
        .await;
        let hub = &running.hub;
        let receipt = running.change(|_| Ok::<_, ()>(()));
        let before = hub.published(receipt).await.unwrap();
        assert!(before.compiled.sees(ONE, OTHER));
        let receipt = running.change(|state| {
            state.delete_node(OTHER);
            Ok::<_, ()>(())
        });
        let after = hub.published(receipt).await.unwrap();
        assert!(after.is_whole && after.changed.contains(&OTHER));
        assert!(after.generation > before.generation);
        assert_eq!(after.compiled.peers_of(ONE).len(), 0);
        assert!(
            !after.compiled.filter_for(ONE).is_empty(),
            "its policy holds"
        );
    }

    #[tokio::test]
    async fn while_nothing_compiles_nodes_refuse_everything_and_then_the_policy_is_back() {
        static FAILS: AtomicBool = AtomicBool::new(false);
        let running = Running::start(|compile, last| match FAILS.load(Ordering::Relaxed) {
            true => panic!("compiling fails"),
            false => compile.apply(last),
        })
        .await;
        let hub = &running.hub;
        let receipt = running.change(|_| Ok::<_, ()>(()));
        let open = hub.published(receipt).await.unwrap();
        let (mut sent, _) = Sent::first(ONE, &open, &Common::default(), now()).unwrap();
        FAILS.store(true, Ordering::Relaxed);
        let receipt = running.change(|state| join(state, ANN, 3));
        let shut = hub.published(receipt).await.unwrap();
        assert!(matches!(
            hub.in_force(receipt).await,
            Err(Error::PolicyFails)
        ));
        for id in [ONE, OTHER, NodeId(3)] {
            assert_eq!(shut.compiled.filter_for(id), [], "{id}");
            assert_eq!(shut.compiled.peers_of(id).len(), 0, "{id}");
            assert_eq!(shut.compiled.own_allowed_ips(id).len(), 2, "{id}");
        }
        let told = sent.difference(&shut, now()).unwrap().unwrap();
        assert_eq!(told.peers_removed, [OTHER]);
        FAILS.store(false, Ordering::Relaxed);
        let mut snapshots = hub.snapshots();
        let back = snapshots.wait_for(|snapshot| snapshot.generation > shut.generation);
        let back = tokio::time::timeout(FIRST_RETRY * 5, back).await.unwrap();
        let back = back.unwrap().clone();
        assert!(back.is_whole && !back.is_closed);
        assert_eq!(back.compiled.peers_of(ONE).len(), 2);
        let told = sent.difference(&back, now()).unwrap().unwrap();
        assert_eq!(told.peers_changed.len(), 2, "both are there again");
        assert!(!told.packet_filters.is_empty());
    }

    #[tokio::test]
    async fn a_user_who_comes_or_goes_is_followed() {
        let running = Running::start(Compile::apply).await;
        let hub = &running.hub;
        let receipt = running.change(|_| Ok::<_, ()>(()));
        assert!(
            !hub.published(receipt)
                .await
                .unwrap()
                .compiled
                .sees(ONE, NodeId(3))
        );
        // With a first node, as a login makes both.
        let receipt = running.change(|state| {
            let bob = state.create_user("bob", "", now())?.id;
            join(state, bob, 3)
        });
        let joined = hub.published(receipt).await.unwrap();
        assert!(!joined.is_whole && joined.compiled.sees(ONE, NodeId(3)));
        let receipt = running.change(|state| {
            state.delete_node(NodeId(3));
            Ok::<_, ()>(())
        });
        assert!(!hub.published(receipt).await.unwrap().is_whole);
        let receipt = running.change(|state| state.delete_user("bob").map(|_| ()));
        let gone = hub.published(receipt).await.unwrap();
        assert!(!gone.is_whole && gone.changed.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_a_snapshot_that_never_comes_is_told_so() {
        let dir = tempfile::tempdir().unwrap();
        // Nobody publishes.
        let hub = Hub::open(dir.path(), Settings::default(), None).unwrap();
        let (_, receipt) = hub.change(|state| state.create_user("ann", "", now()).map(|_| ()));
        let waited = hub.published(receipt).await;
        assert!(matches!(waited, Err(Error::NotPublished)));
    }
}
