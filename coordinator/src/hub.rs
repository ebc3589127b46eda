//! The state and everybody who waits for it: sessions for a new snapshot, answers for what they promise to be on disk.

mod publish;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use lowroad_wire::key::{MachinePrivate, NodePrivate};
use time::OffsetDateTime;
use tokio::sync::{Notify, watch};
use zeroize::Zeroizing;

use crate::{
    Error,
    derp::DerpServer,
    policy::{self, CompiledTailnet, Policy, UnknownUsers, World},
    refused::RefusedPolicy,
    state::{Compile, Compiled, LONGEST_AUTHOR, NewPolicy, Settings, State, Taken},
    store::{Rows, Setting, Store},
    view::{Common, Snapshot},
    writer::Writer,
};

/// How often time-driven changes are looked for.
const TICK: Duration = Duration::from_millis(250);
/// How long an answer waits for the disk before it says that the disk does not take it.
const SAVE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an answer waits for the snapshot with its change: longer than the costliest policy takes to compile.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(30);

/// The author of what a `--policy` file put into force.
const SEED_FLAG: &str = "--policy ";

/// What a change has to wait for, if its author cares.
#[derive(Debug, Clone, Copy)]
pub struct Receipt {
    generation: u64,
    marks: u64,
}

/// The server's own keys.
#[derive(Debug, Clone)]
pub struct ServerKeys {
    pub control: MachinePrivate,
    pub relay: NodePrivate,
}

#[derive(Debug)]
pub struct Hub {
    state: Arc<Mutex<State>>,
    pub settings: Arc<Settings>,
    pub keys: ServerKeys,
    common: ArcSwap<Common>,
    relay: OnceLock<Arc<DerpServer>>,
    stir: Notify,
    snapshot: watch::Sender<Arc<Snapshot>>,
    writer: Writer,
    /// [`Compile::apply`], unless a test has it fail.
    compile: fn(&Compile, &Arc<CompiledTailnet>) -> Compiled,
}

/// To the microsecond, which is what the database keeps.
pub fn now() -> OffsetDateTime {
    let now = OffsetDateTime::now_utc();
    now.replace_microsecond(now.microsecond()).unwrap_or(now)
}

pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("Linux has random bytes once it has booted");
    bytes
}

impl Hub {
    /// Loads the state directory. `seed` is a `--policy` file and its text.
    pub fn open(
        dir: &Path,
        settings: Settings,
        seed: Option<&(PathBuf, String)>,
    ) -> Result<Arc<Self>, Error> {
        let settings = Arc::new(settings);
        let mut store = Store::open(dir)?;
        let keys = server_keys(&mut store)?;
        let mut state = State::load(&store, settings.clone(), now(), Instant::now())?;
        let refused = state.refused_policy().cloned();
        let wanted =
            |(_, text): &&(PathBuf, String)| refused.is_some() || !state.is_seeded_with(text);
        if let Some((path, text)) = seed.filter(wanted) {
            let (policy, compiled) = check_policy(text, &state.world(), UnknownUsers::Accept)?;
            for error in policy.unknown_users(&state.world()) {
                tracing::warn!("{error}");
            }
            for warning in &policy::warnings(&policy, &compiled, &state.node_names()) {
                tracing::warn!("{warning}");
            }
            let new = NewPolicy {
                text: text.clone(),
                author: name_seed(path),
                account: String::new(),
                note: String::new(),
            };
            state.set_policy(new, policy, now())?;
            state.note_seed(text);
            tracing::info!("policy file loaded");
            if let Some(errors) = refused {
                let why = errors.first();
                tracing::warn!(%why, "the stored policy, which it replaces, is refused");
            }
        } else if let Some(errors) = refused {
            let text = state.policy_text().unwrap_or_default();
            let head = "the stored policy is refused, start with --policy FILE to replace it";
            let refused = RefusedPolicy::of_errors(text, &errors).with_head(head);
            return Err(refused.in_file(Path::new("(stored policy)")).into());
        }
        if state.policy_text().is_none() {
            tracing::warn!(
                "no policy: all nodes may reach each other; `policy set FILE` changes that"
            );
        }
        let compiled = Compiled::whole(policy::recompile(state.policy(), &state.world()));
        let snapshot = snapshot_of(state.take_changes(), 0, compiled);
        let state = Arc::new(Mutex::new(state));
        let hub = Self {
            writer: Writer::start(store, state.clone())?,
            state,
            settings,
            keys,
            common: ArcSwap::default(),
            relay: OnceLock::new(),
            stir: Notify::new(),
            snapshot: watch::Sender::new(Arc::new(snapshot)),
            compile: Compile::apply,
        };
        hub.writer.wake();
        Ok(Arc::new(hub))
    }

    pub fn set_common(&self, common: Common) {
        self.common.store(Arc::new(common));
    }

    /// The relay that is to let go of nodes whose keys are no longer good.
    pub fn set_relay(&self, relay: Arc<DerpServer>) {
        let _ = self.relay.set(relay);
    }

    pub fn common(&self) -> Arc<Common> {
        self.common.load_full()
    }

    /// The newest snapshot; may be some milliseconds behind the state.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.borrow().clone()
    }

    pub fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshot.subscribe()
    }

    pub fn read<R>(&self, look: impl FnOnce(&State) -> R) -> R {
        look(&lock(&self.state))
    }

    /// Changes the state; what follows from it happens by itself, and can be waited for with the receipt.
    pub fn change<R>(&self, change: impl FnOnce(&mut State) -> R) -> (R, Receipt) {
        let mut state = lock(&self.state);
        let before = Receipt {
            generation: state.generation(),
            marks: state.marks(),
        };
        let result = change(&mut state);
        let after = Receipt {
            generation: state.generation(),
            marks: state.marks(),
        };
        drop(state);
        if after.generation != before.generation {
            self.stir.notify_one();
        }
        if after.marks != before.marks {
            self.writer.wake();
        }
        (result, after)
    }

    /// Waits until a change is on disk.
    pub async fn saved(&self, receipt: Receipt) -> Result<(), Error> {
        let mut written = self.writer.written();
        let wait = written.wait_for(|marks| *marks >= receipt.marks);
        match tokio::time::timeout(SAVE_TIMEOUT, wait).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(Error::NotSaved),
        }
    }

    /// Waits until a change is in the snapshot that sessions see.
    ///
    /// # Errors
    /// If that takes too long.
    pub async fn published(&self, receipt: Receipt) -> Result<Arc<Snapshot>, Error> {
        let mut snapshots = self.snapshots();
        let wait = snapshots.wait_for(|snapshot| snapshot.generation >= receipt.generation);
        match tokio::time::timeout(PUBLISH_TIMEOUT, wait).await {
            Ok(Ok(snapshot)) => Ok(snapshot.clone()),
            _ => Err(Error::NotPublished),
        }
    }

    /// As [`Self::published`], for who is told that a change is in force.
    ///
    /// # Errors
    /// Also if the policy can't be compiled.
    pub async fn in_force(&self, receipt: Receipt) -> Result<Arc<Snapshot>, Error> {
        let snapshot = self.published(receipt).await?;
        match snapshot.is_closed {
            true => Err(Error::PolicyFails),
            false => Ok(snapshot),
        }
    }

    /// Whether the database takes writes.
    pub fn is_healthy(&self) -> bool {
        self.writer.is_healthy()
    }

    /// Lets time pass in the state until dropped.
    pub async fn tick(self: Arc<Self>) {
        let mut interval = tokio::time::interval(TICK);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            self.change(|state| state.tick(now(), Instant::now()));
        }
    }

    /// Writes what is left and ends the writer.
    pub fn close(&self) {
        self.writer.close();
    }
}

/// Parses a policy and checks it against users and nodes.
pub fn check_policy(
    text: &str,
    world: &World,
    unknown: UnknownUsers,
) -> Result<(Policy, CompiledTailnet), Error> {
    let refuse =
        |errors: policy::PolicyErrors| Error::from(RefusedPolicy::of_errors(text, &errors));
    policy::check_length(text).map_err(Error::bad_request)?;
    let policy = Policy::parse(text).map_err(refuse)?;
    let compiled = policy::compile_with(&policy, world, unknown).map_err(refuse)?;
    Ok((policy, compiled))
}

/// What a `--policy` file is called as an author: by its end, if its path is longer than an author's name may be.
fn name_seed(path: &Path) -> String {
    let shown = path.display().to_string();
    let shown: Vec<char> = shown.chars().filter(|c| !c.is_control()).collect();
    let beginning = shown.len().saturating_sub(LONGEST_AUTHOR - SEED_FLAG.len());
    let end = shown[beginning..].iter();
    SEED_FLAG.chars().chain(end.copied()).collect()
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // A panic half way through a change would be a bug; serving on is better than stopping the tailnet's control.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn snapshot_of(taken: Taken, previous: u64, mut compiled: Compiled) -> Snapshot {
    let mut changed = taken.changed;
    changed.append(&mut compiled.others);
    Snapshot {
        generation: taken.generation,
        previous,
        changed,
        nodes: taken.nodes,
        users: taken.users,
        compiled: compiled.tailnet,
        is_whole: compiled.is_whole,
        is_closed: false,
    }
}

/// The keys that clients know this server by: made once, kept for good.
fn server_keys(store: &mut Store) -> Result<ServerKeys, Error> {
    let mut rows = Rows::default();
    let mut text =
        |setting, fresh: fn() -> Zeroizing<String>| -> Result<Zeroizing<String>, Error> {
            if let Some(text) = store.setting(setting)? {
                return Ok(Zeroizing::new(text));
            }
            let text = fresh();
            rows.settings.push((setting, Some(text.clone())));
            Ok(text)
        };
    let control = text(Setting::ControlKey, || {
        MachinePrivate::from_random(random()).to_text()
    })?;
    let relay = text(Setting::RelayKey, || {
        NodePrivate::from_random(random()).to_text()
    })?;
    let unreadable = |_| {
        Error::Setting(
            "a key of the server in its database is unreadable; restore the file from a backup"
                .to_owned(),
        )
    };
    let keys = ServerKeys {
        control: control.parse().map_err(unreadable)?,
        relay: relay.parse().map_err(unreadable)?,
    };
    if !rows.settings.is_empty() {
        store.save(&rows)?;
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_file_is_an_author_however_long_its_path_is() {
        assert_eq!(
            name_seed(Path::new("/etc/p.hujson")),
            "--policy /etc/p.hujson"
        );
        let long = format!("/{}/\n/ü.hujson", "x".repeat(500));
        let name = name_seed(Path::new(&long));
        assert_eq!(name.chars().count(), LONGEST_AUTHOR);
        assert!(
            name.starts_with("--policy xx") && name.ends_with("//ü.hujson"),
            "{name}"
        );
    }
}
