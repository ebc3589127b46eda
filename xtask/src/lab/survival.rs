//! What users see while agents are killed, stopped, replaced and crash: nothing.
//!
//! One node, `hub`, whose agent lives, talks to several others whose agents don't. All of it at the same time, under a ping every
//! 10 ms, a TCP stream in both directions and a flood of packets that the policy refuses.

mod table;

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{Lab, kernel::device_index, ms, secs, traces::kinds};
use crate::{
    faults::{self, DeviceSet, Fault, Watched},
    tailnet::{Coordinator, Node, WgPeer, binaries},
    topology::Events,
    traffic::{Flood, Pinger, Stalls, Stream, unmade_answers},
    wait,
};
use table::Row;

/// Port 80 for the stream; pings are admitted with it. Nobody may send to [`REFUSED`].
const POLICY: &str = r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:80"]}]}"#;
const STREAM: u16 = 80;
const REFUSED: u16 = 81;
const PING: Duration = ms(10);
const FLOOD: Duration = ms(20);
const LIMIT: Duration = secs(120);
/// From the start of the process until it has adopted what it found.
const ADOPTED: Duration = ms(300);
/// For how long an agent stays dead: always longer than a path of stock's lives without an answer (6.5 s) and than a session that
/// gets none (15 s), and with `LOWROAD_LONG` a minute.
const DEAD: [Duration; 2] = [secs(20), secs(60)];
/// How much traffic counts as "it goes on".
const MORE_ANSWERS: usize = 100;

/// One node whose agent is in trouble, and the traffic between it and the hub.
struct Case {
    what: &'static str,
    node: Node,
    device: u32,
    ping: Pinger,
    stream: Stream,
    flood: Flood,
    /// The hub in this node's WireGuard, before the trouble.
    before: WgPeer,
    refused_before: u64,
    unmade_before: usize,
    hub_prefix: String,
    events: Events,
    adopted: Vec<Duration>,
    crashed_at: Vec<String>,
    /// Whether the filter's counters go on.
    counter_kept: bool,
}

pub fn nothing_is_lost_while_agents_die_and_others_take_over(lab: &Lab) -> Result<()> {
    let coordinator = lab.coordinator(POLICY)?;
    let key = coordinator.auth_key("ann", "")?;
    let hub = lab.single_path_node("hub", 30)?;
    hub.up(&key)?;
    let whats = [
        "kill -9",
        "SIGTERM",
        "upgrade",
        "upgrade, other maps",
        "kill -9 in mid-reconcile",
    ];
    let stalls = Stalls::watch();
    let mut cases = Vec::new();
    // All join and find their paths before any traffic: on a busy machine an emulated CPU has no room for both.
    let mut nodes = Vec::new();
    for number in (0..).take(whats.len()) {
        let node = lab.single_path_node(&format!("node{number}"), 40 + number)?;
        node.up(&key)?;
        find_direct_path(&hub, &node)?;
        nodes.push(node);
    }
    for (node, what) in nodes.into_iter().zip(whats) {
        cases.push(Case::start(lab, &hub, node, what)?);
    }
    let [killed, stopped, upgraded, remapped, crashed] = &mut cases[..] else {
        unreachable!("as many as there are names")
    };
    let start = Instant::now();
    killed.node.kill_9();
    stopped.node.stop_agent();
    let other = another_version(lab)?;
    upgrade(lab, upgraded, &other)?;
    upgrade_with_other_maps(remapped, &other)?;
    crash(lab, &coordinator, crashed)?;
    wait::pass(DEAD[usize::from(lab.long)].saturating_sub(start.elapsed()))?;
    let dead = start.elapsed();
    for case in [&mut *killed, &mut *stopped] {
        case.start_agent()?;
    }
    lab.note(&format!("agents dead for {} s", dead.as_secs()));
    for case in &cases {
        case.goes_on()?;
    }
    let mut nodes = Vec::new();
    let mut rows = Vec::new();
    for case in cases {
        let (row, node) = case.finish(&hub)?;
        rows.push(row);
        nodes.push(node);
    }
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    table::print(kernel.trim(), &rows);
    for time in rows.iter().flat_map(|row| &row.adopted) {
        lab.within("adopted after the agent's start", *time, ADOPTED)?;
    }
    rows.iter().try_for_each(Row::check_kept)?;
    what_was_refused_would_have_been_seen(&coordinator, &hub, &nodes[0])?;
    let pings: Vec<_> = rows.iter().map(|row| (&row.ping, row.unmade)).collect();
    lab.lost(&pings, rows.iter().try_for_each(Row::check_lost), &stalls)
}

/// The flood again, with a policy that admits it.
fn what_was_refused_would_have_been_seen(
    coordinator: &Coordinator,
    hub: &Node,
    node: &Node,
) -> Result<()> {
    coordinator.set_policy(&POLICY.replace("*:80", "*:80-81"))?;
    let to = SocketAddr::new(node.ip(4)?, REFUSED);
    let flood = Flood::start(&hub.namespace, &node.namespace, to, FLOOD)?;
    wait::wait_for("packets that are admitted", LIMIT, || {
        Ok((flood.received() > 0).then_some(()))
    })
    .map(drop)
}

/// Both ways.
pub fn find_direct_path(hub: &Node, node: &Node) -> Result<()> {
    let _ping = Pinger::start(&hub.namespace, node.ip(4)?, ms(100))?;
    hub.wait_for_direct(&node.name, LIMIT)?;
    node.wait_for_direct(&hub.name, LIMIT).map(drop)
}

impl Case {
    fn start(lab: &Lab, hub: &Node, node: Node, what: &'static str) -> Result<Self> {
        let address = node.ip(4)?;
        let stream = Stream::start(
            &hub.namespace,
            &node.namespace,
            SocketAddr::new(address, STREAM),
        )?;
        let hub_prefix = format!("{}/32", hub.ip(4)?);
        let refused_before = node.refused_packets()?;
        let flood = Flood::start(
            &hub.namespace,
            &node.namespace,
            SocketAddr::new(address, REFUSED),
            FLOOD,
        )?;
        let case = Self {
            what,
            device: device_index(&node)?,
            ping: Pinger::start(&hub.namespace, address, PING)?,
            stream,
            flood,
            before: node.wireguard_peer_with(&hub_prefix)?,
            refused_before,
            unmade_before: unmade_answers(&node.namespace)?,
            hub_prefix,
            events: Events::watch(
                &node.namespace,
                &lab.net.folder().join(format!("{}.events", node.name)),
            )?,
            node,
            adopted: Vec::new(),
            crashed_at: Vec::new(),
            counter_kept: true,
        };
        case.goes_on()?;
        Ok(case)
    }

    /// Pings, stream and flood all make progress.
    fn goes_on(&self) -> Result<()> {
        let (answered, bytes, sent) = (
            self.ping.answered(),
            self.stream.progress(),
            self.flood.sent(),
        );
        let what = format!("traffic of {}", self.node.name);
        wait::wait_for(&what, LIMIT, || {
            let more = self.ping.answered() > answered + MORE_ANSWERS
                && self.stream.progress() > bytes
                && self.flood.sent() > sent;
            Ok(more.then_some(()))
        })
        .map(drop)
    }

    /// Starts the agent, and notes how long it says that it took until the kernel held what it should.
    fn start_agent(&mut self) -> Result<()> {
        let known = adoptions(&self.node.log())?;
        self.node.start_agent()?;
        self.adopts(known)?;
        let status = self.node.status()?;
        let adopted = status["Lowroad"]["AdoptedMs"].as_u64();
        self.adopted.push(ms(adopted.context("not adopted")?));
        Ok(())
    }

    /// Waits for one more adoption.
    fn adopts(&self, known: usize) -> Result<()> {
        wait::wait_for("the adoption", LIMIT, || {
            Ok((adoptions(&self.node.log())? > known).then_some(()))
        })
        .map(drop)
    }

    /// Ends the traffic, and says what was lost and what has changed.
    fn finish(mut self, hub: &Node) -> Result<(Row, Node)> {
        ensure!(
            device_index(&self.node)? == self.device,
            "{}: another device",
            self.what
        );
        ensure!(
            hub.path_to(&self.node.name)?.is_direct(),
            "{}: the path is no longer direct",
            self.what
        );
        let ping = self.ping.stop();
        let stream = self.stream.stop()?;
        self.flood.end_sending();
        let sent = self.flood.sent();
        let before = if self.counter_kept {
            self.refused_before
        } else {
            0
        };
        let counted = || {
            let now = self.node.refused_packets()?;
            now.checked_sub(before)
                .context("the filter's counter went back")
        };
        if self.counter_kept {
            let _ = wait::wait_for("the last refused packets", secs(10), || {
                Ok((counted()? >= sent).then_some(()))
            });
        }
        let after = self.node.wireguard_peer_with(&self.hub_prefix)?;
        let row = Row {
            what: self.what,
            ping,
            stream,
            refused_sent: sent,
            refused_passed: self.flood.received(),
            refused_counted: counted()?,
            counter_kept: self.counter_kept,
            session: self.before.has_become(&after),
            events: self.events.seen()?,
            unmade: unmade_answers(&self.node.namespace)?.saturating_sub(self.unmade_before),
            adopted: self.adopted,
        };
        Ok((row, self.node))
    }
}

impl Case {
    fn start_watched<'a>(
        &mut self,
        fault: Fault,
        watches: &'a mut Vec<Watched>,
    ) -> Result<&'a Watched> {
        let mut command = self.node.agent_command();
        faults::prepare(&mut command);
        let known = watches.len();
        let started = self.node.start_agent_as(&mut command, |pid| {
            let watch = Watched::attach(pid)?;
            watch.arm(fault);
            watches.push(watch);
            Ok(())
        });
        // It may have been killed before its socket was there.
        if fault == Fault::None || !self.node.agent_has_ended() {
            started?;
        }
        watches.get(known).context("the agent was shown to us")
    }

    /// Waits until one more policy is in force.
    fn settles(&self, known: usize) -> Result<()> {
        wait::wait_for("the new policy", LIMIT, || {
            Ok((installs(&self.node.log())? > known).then_some(()))
        })
        .map(drop)
    }

    /// Waits until the fault has happened, or all is over; says how many changes there were if it has not.
    fn died(
        &mut self,
        watched: &Watched,
        over: impl Fn(&Node) -> Result<bool>,
    ) -> Result<Option<usize>> {
        wait::wait_for("the agent's end in mid-reconcile", LIMIT, || {
            Ok((self.node.agent_has_ended() || over(&self.node)?).then_some(()))
        })?;
        if !self.node.agent_has_ended() {
            watched.quiet(LIMIT)?;
        }
        let account = watched.disarm();
        if !account.hit {
            ensure!(
                !self.node.agent_has_ended(),
                "the agent ended without the fault"
            );
            return Ok(Some(account.changes.len()));
        }
        self.crashed_at.extend(account.changes.last().cloned());
        Ok(None)
    }
}

/// To another version and back, with SIGTERM as a service manager does it.
fn upgrade(lab: &Lab, case: &mut Case, other: &Path) -> Result<()> {
    let ours = case.node.program.clone();
    for program in [other, &ours, other] {
        case.node.stop_agent();
        case.node.program = program.to_owned();
        case.start_agent()?;
    }
    let versions = versions(&case.node.log())?;
    ensure!(
        versions.len() == 4 && versions[0] != versions[1] && versions[0] == versions[2],
        "the versions that ran: {versions:?}"
    );
    lab.note(&format!("upgrade: {}", versions.join(" → ")));
    Ok(())
}

/// To a version whose maps have another layout: it finds the programs on the device, and pins of maps that it doesn't know.
fn upgrade_with_other_maps(case: &mut Case, program: &Path) -> Result<()> {
    let pins = Path::new("/sys/fs/bpf/lowroad").join(case.node.state_id()?);
    let [ours] = &versions_of_maps(&pins)?[..] else {
        anyhow::bail!("not one folder of maps in {}", pins.display());
    };
    case.node.stop_agent();
    fs::rename(ours, pins.join("v0")).context("rename the folder of pinned maps")?;
    case.counter_kept = false;
    case.node.program = program.to_owned();
    let known = installs(&case.node.log())?;
    case.start_agent()?;
    case.settles(known)?;
    wait::wait_for("the end of the old maps", LIMIT, || {
        Ok((versions_of_maps(&pins)? == [ours.clone()]).then_some(()))
    })
    .map(drop)
}

fn versions_of_maps(pins: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(pins).with_context(|| format!("read {}", pins.display()))?;
    let paths = entries.flatten().map(|entry| entry.path());
    Ok(paths.filter(|path| path.is_dir()).collect())
}

/// By its log: asking the agent would take the emulated CPU away from it.
fn adoptions(log: &Path) -> Result<usize> {
    let log = fs::read_to_string(log)?;
    Ok(log
        .matches("adopted: the kernel holds what the netmap wants")
        .count())
}

fn installs(log: &Path) -> Result<usize> {
    let log = fs::read_to_string(log)?;
    Ok(log.matches("the packet filter is in force").count())
}

fn versions(log: &Path) -> Result<Vec<String>> {
    let log = fs::read_to_string(log)?;
    let version = |line: &str| {
        let (_, rest) = line.split_once(" lowroad agent version=")?;
        rest.split(' ').next().map(str::to_owned)
    };
    Ok(log.lines().filter_map(version).collect())
}

/// A copy of `lowroad` that says of itself that it is another version.
fn another_version(lab: &Lab) -> Result<PathBuf> {
    const MARK: &[u8] = b"lowroad version ";
    let mut program = fs::read(binaries().join("lowroad"))?;
    let places = places_of(MARK, &program);
    ensure!(!places.is_empty(), "the binary doesn't name its version");
    for at in places.into_iter().map(|at| at + MARK.len()) {
        program[at] = if program[at] == b'9' { b'8' } else { b'9' };
    }
    let folder = lab.net.folder().join("other-version");
    fs::create_dir_all(&folder)?;
    let path = folder.join("lowroad");
    fs::write(&path, program)?;
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    Ok(path)
}

/// By the C library: a debug build of our own search takes minutes on an emulated CPU.
fn places_of(needle: &[u8], hay: &[u8]) -> Vec<usize> {
    let mut places = Vec::new();
    let mut from = 0;
    loop {
        let rest = &hay[from..];
        // SAFETY: both pointers come with the lengths of the slices that they are of, which outlive the call.
        let found = unsafe {
            libc::memmem(
                rest.as_ptr().cast(),
                rest.len(),
                needle.as_ptr().cast(),
                needle.len(),
            )
        };
        if found.is_null() {
            return places;
        }
        from += found as usize - rest.as_ptr() as usize;
        places.push(from);
        from += needle.len();
    }
}

/// Killed at one step after another of what an agent changes: while it adopts, and while it brings a new policy into force.
fn crash(lab: &Lab, coordinator: &Coordinator, case: &mut Case) -> Result<()> {
    let mut watches = Vec::new();
    let result = crash_at_steps(lab, coordinator, case, &mut watches);
    // A watch ends with its agent, and not before.
    case.node.kill_9();
    drop(watches);
    result?;
    case.start_agent()
}

fn crash_at_steps(
    lab: &Lab,
    coordinator: &Coordinator,
    case: &mut Case,
    watches: &mut Vec<Watched>,
) -> Result<()> {
    let mut policies = (1000..).map(|port| POLICY.replace("*:80", &format!("*:80,{port}")));
    let mut change_policy = || {
        let policy = policies.next().context("numbers don't run out")?;
        coordinator.set_policy(&policy)
    };
    // Once without a fault, to know the steps.
    case.node.kill_9();
    let known = adoptions(&case.node.log())?;
    let watched = case.start_watched(Fault::None, watches)?;
    case.adopts(known)?;
    let adopting = watched.disarm().changes;
    lab.note(&format!("adopting changes {}", kinds(&adopting)));
    let foreign = adopting.iter().find(|change| !is_of_filter(change));
    ensure!(foreign.is_none(), "adopting does {foreign:?}");
    watched.quiet(LIMIT)?;
    let known = installs(&case.node.log())?;
    watched.arm(Fault::None);
    change_policy()?;
    case.settles(known)?;
    let account = watched.disarm();
    let installing = account.changes;
    lab.note(&format!("a policy changes {}", kinds(&installing)));
    let mut sets = account.wireguard.iter();
    ensure!(
        sets.all(|set| set.as_ref().is_some_and(DeviceSet::moves_endpoints_only))
            && !installing.iter().any(|change| change.starts_with("RTM_")),
        "a policy does {:?} to WireGuard",
        account.wireguard
    );

    for step in spread(adopting.len()) {
        at_step(step, |step| {
            case.node.kill_9();
            let watched = case.start_watched(Fault::Killed(step), watches)?;
            case.died(watched, |node| {
                Ok(node.status()?["BackendState"] == "Running")
            })
        })?;
    }
    for step in spread(installing.len()) {
        at_step(step, |step| {
            case.node.kill_9();
            let known = adoptions(&case.node.log())?;
            let watched = case.start_watched(Fault::None, watches)?;
            case.adopts(known)?;
            let known = installs(&case.node.log())?;
            watched.arm(Fault::Killed(step));
            change_policy()?;
            case.died(watched, |node| Ok(installs(&node.log())? > known))
        })?;
    }
    lab.note(&format!("killed at: {}", case.crashed_at.join(", ")));
    Ok(())
}

/// Has the agent killed at this step. What it does is not always the same number of steps: where it was over before, the last of them is taken.
fn at_step(mut step: usize, mut kill_at: impl FnMut(usize) -> Result<Option<usize>>) -> Result<()> {
    const ATTEMPTS: usize = 4;
    for _ in 0..ATTEMPTS {
        match kill_at(step)? {
            None => return Ok(()),
            Some(count) => step = count.max(1),
        }
    }
    anyhow::bail!("the agent was not killed in {ATTEMPTS} attempts, the last at step {step}")
}

/// The filter's programs and maps, and the agent's own files: all that may change when one agent takes over from another.
fn is_of_filter(change: &str) -> bool {
    // Without TCX, a program is replaced by a message.
    ["bpf ", "RTM_NEWTFILTER", "unlink ", "rename ", "mkdir "]
        .iter()
        .any(|kind| change.starts_with(kind))
}

/// The first of `count` steps, the last, and one in the middle.
fn spread(count: usize) -> [usize; 3] {
    [1, count.div_ceil(2), count]
}
