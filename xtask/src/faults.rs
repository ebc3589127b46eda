//! Faults in a program from outside, with no hook in it: a seccomp filter hands us its system calls that may change the kernel's state, one by one and
//! before they happen (seccomp_unotify(2)). Each is counted, and the n-th can be refused or the program killed at it.
//!
//! Unlike with `strace -e inject`, calls are counted for all threads together and by what they do: a netlink message that only asks is none of them.

mod calls;
mod seccomp;
mod wireguard;

use std::{
    os::{fd::OwnedFd, unix::process::CommandExt},
    process::Command,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};

use self::calls::{Call, Program};
use crate::wait;

pub use self::wireguard::{DeviceSet, PeerSet};

const QUIET: Duration = Duration::from_secs(2);

/// What to do at the n-th change (from 1) after [`Watched::arm`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    None,
    /// The kernel refuses it: netlink messages are made invalid, other calls get EPERM, and unmounting ENOMEM.
    Refused(usize),
    /// It is a netlink message, and the kernel has no memory to take it: ENOBUFS. Anything else goes on.
    Unsent(usize),
    /// SIGKILL in place of the call.
    Killed(usize),
}

/// The changes that a program made.
#[derive(Debug, Clone, Default)]
pub struct Account {
    /// In order, as `RTM_NEWLINK`, `bpf PROG_LOAD` or `write /proc/sys/…`; the last is the one with the fault.
    pub changes: Vec<String>,
    /// What each `WG_CMD_SET_DEVICE` among them says; `None` for one that cannot be read.
    pub wireguard: Vec<Option<DeviceSet>>,
    /// Whether the fault happened.
    pub hit: bool,
}

impl Account {
    /// If the fault did not happen: the last step, up to the one that was meant, at which it could have.
    pub fn instead_of(&self, fault: Fault) -> Option<usize> {
        let (meant, only_messages) = match fault {
            Fault::None => return None,
            Fault::Refused(at) | Fault::Killed(at) => (at, false),
            Fault::Unsent(at) => (at, true),
        };
        let until = &self.changes[..meant.min(self.changes.len())];
        let last = until
            .iter()
            .rposition(|change| !only_messages || is_message(change))?;
        (!self.hit).then_some(last + 1)
    }
}

/// Whether a change is a netlink message, by its name.
pub fn is_message(change: &str) -> bool {
    change.starts_with("RTM_") || change.starts_with("WG_")
}

/// Called before each change, while the program waits.
pub type Observer = Box<dyn FnMut(&str) + Send>;

struct State {
    fault: Fault,
    armed: bool,
    /// Of changes since the watch began, armed or not.
    total: usize,
    account: Account,
    observer: Option<Observer>,
}

/// A program under watch. It ends its watch when the program ends.
pub struct Watched {
    state: Arc<Mutex<State>>,
    worker: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Watched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watched").finish_non_exhaustive()
    }
}

/// Makes the program that `command` starts watchable: [`Watched::attach`] must follow at once, or its first change waits for ever.
pub fn prepare(command: &mut Command) {
    // SAFETY: `seccomp::install` makes system calls only, which are async-signal-safe, on memory of its own stack.
    unsafe { command.pre_exec(seccomp::install) };
}

impl Watched {
    pub fn attach(pid: u32) -> Result<Self> {
        let program = Program::open(pid).context("watch a program's system calls")?;
        let listener = program
            .descriptor(seccomp::LISTENER)
            .context("take over the listener of the seccomp filter")?;
        let state = Arc::new(Mutex::new(State {
            fault: Fault::None,
            armed: false,
            total: 0,
            account: Account::default(),
            observer: None,
        }));
        let worker = {
            let state = Arc::clone(&state);
            thread::spawn(move || serve(&program, &listener, &state))
        };
        Ok(Self {
            state,
            worker: Some(worker),
        })
    }

    /// Begins to count from zero.
    pub fn arm(&self, fault: Fault) {
        let mut state = lock(&self.state);
        state.fault = fault;
        state.armed = true;
        state.account = Account::default();
    }

    /// Ends counting and says what was seen.
    pub fn disarm(&self) -> Account {
        let mut state = lock(&self.state);
        state.armed = false;
        state.fault = Fault::None;
        std::mem::take(&mut state.account)
    }

    /// Waits until the program has had nothing to change for two seconds.
    pub fn quiet(&self, limit: Duration) -> Result<()> {
        let changes = || lock(&self.state).total;
        wait::wait_for("a program with nothing to change", limit, || {
            let before = changes();
            wait::pass(QUIET)?;
            Ok((changes() == before).then_some(()))
        })
        .map(drop)
    }

    pub fn observe(&self, observer: Observer) {
        lock(&self.state).observer = Some(observer);
    }
}

impl Drop for Watched {
    /// The program must have ended: its calls would wait for ever.
    fn drop(&mut self) {
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(program: &Program, listener: &OwnedFd, state: &Mutex<State>) {
    while let Some(notice) = seccomp::receive(listener) {
        let call = Call::of(program, &notice);
        let answer = match call {
            Some(call) => decide(program, &call, &mut lock(state)),
            None => Answer::GoOn,
        };
        match answer {
            Answer::GoOn => seccomp::go_on(listener, &notice),
            Answer::Fail(errno) => seccomp::fail(listener, &notice, errno),
            // No answer: it never gets one.
            Answer::Kill => program.kill(),
        }
    }
}

enum Answer {
    GoOn,
    Fail(i32),
    Kill,
}

fn decide(program: &Program, call: &Call, state: &mut State) -> Answer {
    state.total += 1;
    if !state.armed {
        return Answer::GoOn;
    }
    state.account.changes.push(call.name.clone());
    if call.is_wireguards() {
        state.account.wireguard.push(call.wireguard.clone());
    }
    if let Some(observer) = &mut state.observer {
        observer(&call.name);
    }
    let number = state.account.changes.len();
    match state.fault {
        Fault::Refused(at) if at == number => {
            state.account.hit = true;
            // Whatever follows is the program's way back.
            state.armed = false;
            if call.spoil(program) {
                Answer::GoOn
            } else {
                Answer::Fail(call.refusal())
            }
        }
        Fault::Unsent(at) if at == number && call.is_message() => {
            state.account.hit = true;
            state.armed = false;
            Answer::Fail(libc::ENOBUFS)
        }
        Fault::Killed(at) if at == number => {
            state.account.hit = true;
            state.armed = false;
            Answer::Kill
        }
        _ => Answer::GoOn,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_that_did_not_happen_could_have_at_an_earlier_step_of_its_kind() {
        let changes = ["RTM_NEWLINK", "mkdir /a", "WG_CMD_SET_DEVICE", "mkdir /b"];
        let mut account = Account {
            changes: changes.map(str::to_owned).to_vec(),
            ..Account::default()
        };
        assert_eq!(account.instead_of(Fault::Refused(6)), Some(4));
        assert_eq!(account.instead_of(Fault::Killed(5)), Some(4));
        assert_eq!(account.instead_of(Fault::Unsent(6)), Some(3));
        assert_eq!(account.instead_of(Fault::Unsent(2)), Some(1));
        assert_eq!(account.instead_of(Fault::None), None);
        account.hit = true;
        assert_eq!(account.instead_of(Fault::Refused(4)), None);
        account = Account::default();
        assert_eq!(account.instead_of(Fault::Refused(1)), None);
        account.changes.push("mkdir /a".to_owned());
        assert_eq!(account.instead_of(Fault::Unsent(1)), None);
    }
}
