//! The policy's way from the netmap into the kernel.

use std::time::Duration;

use lowroad_core::filter::{self, Compiled};
use tokio::{
    task::spawn_blocking,
    time::{Instant, timeout_at},
};
use tracing::{error, info, warn};

use super::{super::whole, Node};
use crate::kernel::KernelError;

/// Parts of a policy that are not in force and are told of.
const MAX_NOTES: usize = 16;
/// How long the engine waits for the compiler, which does thousands of rules in that time. A hundred thousand take seconds, which nobody's packets may wait.
pub(super) const COMPILE_PATIENCE: Duration = Duration::from_millis(20);

/// The compiler has not finished.
pub(super) struct Compiling;

impl Node {
    /// The netmap may have another policy than before.
    pub(super) fn policy_changed(&mut self) {
        self.policy += 1;
        self.filter_stale = true;
    }

    /// Sees that the filter of the netmap is compiled, unless it is the one in force.
    pub(super) async fn compile_filter(&mut self) -> Result<(), Compiling> {
        let until = Instant::now() + self.compile_patience;
        while self.filter_stale && !self.is_compiled() {
            self.begin_compiling();
            if Instant::now() >= until {
                return Err(Compiling);
            }
            let finished = timeout_at(until, self.finish_compiling()).await;
            finished.map_err(|_| Compiling)?;
        }
        // It stays stale until it is installed, whatever fails before.
        self.filter_stale &=
            self.compiled.as_ref().map(|(_, compiled)| compiled) != self.installed.as_ref();
        if !self.filter_stale {
            self.compiled = None;
        }
        Ok(())
    }

    fn is_compiled(&self) -> bool {
        let of = self.compiled.as_ref().map(|(of, _)| *of);
        of == Some(self.policy)
    }

    /// Elsewhere, one at a time: if the netmap's policy is another one by then, it comes after that.
    fn begin_compiling(&mut self) {
        if self.compiling.is_some() {
            return;
        }
        let Some(map) = &self.map else { return };
        let input = self.intent().filter_input(map, &self.choices);
        let task = spawn_blocking(move || filter::compile(&input));
        self.compiling = Some((self.policy, task));
    }

    /// Whether a policy is being compiled.
    pub fn is_compiling(&self) -> bool {
        self.compiling.is_some()
    }

    /// Returns when the policy that is being compiled is; never, if there is none. Nothing is lost if it is not waited for to the end.
    pub async fn finish_compiling(&mut self) {
        let Some((of, task)) = &mut self.compiling else {
            return std::future::pending().await;
        };
        let compiled = task
            .await
            .expect("the compiler panics on no input, and the runtime outlives its tasks");
        self.compiled = Some((*of, compiled));
        self.compiling = None;
    }

    /// Installs the filter of the netmap, if it isn't the one in force.
    pub(super) async fn install_new(&mut self) -> Result<(), KernelError> {
        match self.compiled.take() {
            Some((_, compiled)) if self.filter_stale => self.install(compiled).await,
            _ => Ok(()),
        }
    }

    /// The same, or else the one that was in force, on a device that has none.
    pub(super) async fn install_any(&mut self) -> Result<(), KernelError> {
        if self.filter_stale {
            return self.install_new().await;
        }
        match self.installed.take() {
            Some(compiled) => self.install(compiled).await,
            None => Ok(()),
        }
    }

    async fn install(&mut self, compiled: Compiled) -> Result<(), KernelError> {
        // If this fails it is not known what is in force.
        self.installed = None;
        self.filter_stale = true;
        if let Err(why) = self.kernel.install_filter(&compiled).await {
            // It is the netmap's: the next attempt must not wait for the compiler.
            self.compiled = Some((self.policy, compiled));
            return Err(why);
        }
        info!(
            rules = compiled.rules.len(),
            "the packet filter is in force"
        );
        for note in compiled.notes.iter().take(MAX_NOTES) {
            warn!(note, "part of the policy is not in force");
        }
        self.installed = Some(compiled);
        self.filter_stale = false;
        self.closed = None;
        Ok(())
    }

    /// The policy cannot be put in force, and the one before may accept what it refuses.
    pub(super) async fn close(&mut self, why: &KernelError) {
        let why = whole(why);
        if self.closed.as_ref() != Some(&why) {
            error!(
                why,
                "the policy cannot be put in force: nothing passes until it can"
            );
        }
        if let Err(error) = self.kernel.close_filter().await {
            error!(error = %whole(&error), "cannot even close the filter");
        }
        self.closed = Some(why);
        // Also the policy that was in force has to be installed to be in force again.
        self.installed = None;
    }

    /// Why nothing passes.
    pub fn closed(&self) -> Option<&str> {
        self.closed.as_deref()
    }

    /// Why the kernel does not hold what the netmap wants, if it was tried.
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// Parts of the policy that are left out of the filter in force.
    pub fn filter_notes(&self) -> &[String] {
        let notes = self.installed.as_ref().map(|compiled| &compiled.notes[..]);
        notes.unwrap_or_default()
    }
}
