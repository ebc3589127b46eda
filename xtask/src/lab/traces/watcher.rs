//! Nodes whose agents' changes of kernel state are seen one by one.

use std::{
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow};

use super::super::{ALLOW_ALL, Lab, host, secs};
use crate::{
    faults::{self, Account, Fault, Watched},
    process::{self, Finished},
    shell,
    tailnet::{Client as _, Coordinator, Node, URL},
    topology::Namespace,
};

/// More than the command's own.
const UP_LIMIT: Duration = secs(90);

/// A node whose agent is watched.
pub struct Watcher {
    pub node: Node,
    watched: Option<Watched>,
    key: String,
    /// The host before any agent ran there.
    pub before: Arc<host::Footprint>,
}

impl Drop for Watcher {
    /// The watch ends when the agent has ended.
    fn drop(&mut self) {
        self.node.kill_9();
    }
}

impl Watcher {
    pub fn new(lab: &Lab, name: &str, last: u8, key: &str) -> Result<Self> {
        let is_known = lab.net.folder().join(name).exists();
        let mut node = Node::not_started(lab.net, name, lab.net.public(name, last)?, &[])?;
        furnish(&node.namespace)?;
        node.all_capabilities = lab.emulated;
        let before = Arc::new(host::of(&node, lab.emulated)?);
        let mut watcher = Self {
            node,
            watched: None,
            key: key.to_owned(),
            before,
        };
        watcher.start()?;
        // The first one makes a key and registers: later ones are alike.
        if !is_known {
            watcher.up()?.ok("up")?;
            watcher.node.cli(&["down"])?;
        }
        Ok(watcher)
    }

    /// (Re)starts the agent under watch.
    pub fn start(&mut self) -> Result<()> {
        self.end();
        let mut command = self.node.agent_command();
        faults::prepare(&mut command);
        let watched = &mut self.watched;
        self.node.start_agent_as(&mut command, |pid| {
            *watched = Some(Watched::attach(pid)?);
            Ok(())
        })
    }

    pub fn end(&mut self) {
        self.node.kill_9();
        self.watched = None;
    }

    pub fn watched(&self) -> Result<&Watched> {
        self.watched.as_ref().context("the agent isn't watched")
    }

    pub fn up(&self) -> Result<Finished> {
        process::run(&mut self.up_command(), "", UP_LIMIT)
    }

    pub fn up_command(&self) -> Command {
        let server = format!("--login-server={URL}");
        let key = format!("--auth-key={}", self.key);
        let hostname = format!("--hostname={}", self.node.name);
        self.node
            .command(&["up", &server, &key, &hostname, "--timeout=30s"])
    }

    /// `up` with a fault in it.
    pub fn faulty_up(&self, fault: Fault) -> Result<(Finished, Account)> {
        self.watched()?.arm(fault);
        let finished = self.up()?;
        Ok((finished, self.watched()?.disarm()))
    }

    pub fn faulty_down(&self, fault: Fault) -> Result<(Finished, Account)> {
        self.watched()?.arm(fault);
        let finished = self.node.try_cli(&["down"])?;
        Ok((finished, self.watched()?.disarm()))
    }

    /// From now on, looks before each change whether a device is up without its filter; what it found is in the list.
    pub fn guard(&self) -> Result<Arc<Mutex<Vec<String>>>> {
        let found = Arc::new(Mutex::new(Vec::new()));
        let (list, namespace) = (Arc::clone(&found), self.node.namespace.clone());
        self.watched()?.observe(Box::new(move |change| {
            if let Err(error) = host::is_guarded(&namespace) {
                let mut list = list.lock().unwrap_or_else(PoisonError::into_inner);
                list.push(format!("before {change}: {error:#}"));
            }
        }));
        Ok(found)
    }
}

/// Things of others, where ours are: they must be there after each `down`, too.
fn furnish(host: &Namespace) -> Result<()> {
    for line in [
        "ip rule add priority 5325 from 192.0.2.7 lookup 7052",
        "ip -6 rule add priority 5325 from 2001:db8:7::7 lookup 7052",
        "ip route add 192.0.2.0/24 dev wan0 table 7052",
        "ip route add blackhole 198.18.0.0/15 table 7052",
        "ip -6 route add 2001:db8:7::/64 dev wan0 table 7052",
        "tc qdisc add dev wan0 clsact",
    ] {
        let mut words = line.split(' ');
        let name = words.next().unwrap_or_default();
        let program = shell::find_program(name).with_context(|| format!("there is no {name}"))?;
        shell::output(host.command(program).args(words))?;
    }
    host.nft(
        "table inet foreign {
            chain arriving { type filter hook input priority 10; policy accept; }
            chain leaving { type filter hook output priority 10; policy accept; }
        }",
    )
}

/// A server, and a node that is away: something to program for others.
pub fn tailnet(lab: &Lab) -> Result<(Coordinator, String)> {
    let coordinator = lab.coordinator(ALLOW_ALL)?;
    let key = coordinator.auth_key("ann", "")?;
    let peer = lab.public_node("peer", 39)?;
    peer.up(&key)?;
    peer.cli(&["down"])?;
    Ok((coordinator, key))
}

/// Two at a time: steps wait for timers and the kernel more than they work. In the emulated machine one, so that all its eBPF objects can be counted.
const fn workers(lab: &Lab) -> u8 {
    if lab.emulated { 1 } else { 2 }
}

/// Does something for each step with nodes of their own, and gathers what comes of it.
pub fn for_steps<T: Send>(
    lab: &Lab,
    key: &str,
    steps: &[usize],
    work: impl Fn(&mut Watcher, &[usize]) -> Result<Vec<T>> + Sync,
) -> Result<Vec<T>> {
    let workers = workers(lab);
    let results: Vec<Result<Vec<T>>> = thread::scope(|scope| {
        let workers: Vec<_> = (0..workers)
            .map(|worker| {
                let share = steps.iter().skip(worker.into()).step_by(workers.into());
                let share: Vec<usize> = share.copied().collect();
                let work = &work;
                scope.spawn(move || {
                    let mut watcher =
                        Watcher::new(lab, &format!("node{worker}"), 40 + worker, key)?;
                    work(&mut watcher, &share)
                })
            })
            .collect();
        let join = |worker: thread::ScopedJoinHandle<'_, Result<Vec<T>>>| {
            worker
                .join()
                .unwrap_or_else(|_| Err(anyhow!("a worker panicked")))
        };
        workers.into_iter().map(join).collect()
    });
    let mut all = Vec::new();
    for result in results {
        all.extend(result?);
    }
    Ok(all)
}
