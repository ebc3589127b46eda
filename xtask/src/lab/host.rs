//! What a host has that an agent could have left there, and whether a device of its is guarded.

use std::{
    collections::BTreeMap,
    ffi::{CStr, CString},
    fs, io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use super::bpf;
use crate::{
    shell,
    tailnet::Node,
    topology::{Namespace, tcx::Way},
    wait,
};

pub const DEVICE: &CStr = c"lowroad0";
/// The filter's programs, by the side of the device where each hangs.
pub const FILTER: [(Way, &str, &str); 2] = [
    (Way::In, "ingress", "overlay_ingress"),
    (Way::Out, "egress", "overlay_egress"),
];
const BPFFS: &str = "/sys/fs/bpf";

const SYSCTLS: &str = "/proc/sys/";
/// Of them, by how their paths begin, those that change by themselves: counters, random numbers, and what the kernel works out from the machine's state or
/// does while it has little time. And two whose reading does something: mounts a file system, and wakes all CPUs.
const RESTLESS: &[&str] = &[
    "fs/aio-nr",
    "fs/binfmt_misc",
    "fs/dentry-state",
    "fs/file-nr",
    "fs/inode-",
    "fs/quota",
    "kernel/hung_task_",
    "kernel/ns_last_pid",
    "kernel/perf_event_max_sample_rate",
    "kernel/pty/nr",
    "kernel/random/",
    "kernel/sched_",
    "kernel/tainted",
    "net/netfilter/nf_conntrack_count",
    "vm/stat_refresh",
];

/// Everything that [`of`] looks at, by name.
#[derive(Debug, PartialEq, Eq)]
pub struct Footprint(BTreeMap<String, String>);

/// What is there of devices, addresses, rules, routes, queueing, filters, nftables, sysctls, sockets, pins, mounts and eBPF objects. With `alone`, on a machine
/// that has no other user of eBPF, its objects are listed by the kernel and the bpffs from its root; else those that the agent holds, its pins and its device's
/// filters are all there can be.
pub fn of(node: &Node, alone: bool) -> Result<Footprint> {
    let pins = if alone {
        PathBuf::from(BPFFS)
    } else {
        own_pins(node)?
    };
    let mut found = look(&node.namespace, &pins)?;
    if let Some(pid) = node.agent_pid() {
        let held = descriptors(pid);
        found.0.insert("the agent's descriptors".into(), held);
    }
    if alone {
        found.0.insert("eBPF objects".into(), bpf::objects()?);
    }
    Ok(found)
}

/// As [`of`], of a machine where services run: its whole bpffs is listed, but others make eBPF objects too.
pub fn of_machine(namespace: &Namespace) -> Result<Footprint> {
    look(namespace, Path::new(BPFFS))
}

/// No folder where there has been no agent yet.
fn own_pins(node: &Node) -> Result<PathBuf> {
    if !node.state_folder().join("state.json").exists() {
        return Ok(PathBuf::new());
    }
    Ok(Path::new(BPFFS).join("lowroad").join(node.state_id()?))
}

fn look(namespace: &Namespace, pins: &Path) -> Result<Footprint> {
    let mut all = BTreeMap::new();
    for command in [
        "ip -d link",
        "ip -d addr",
        "ip -d -4 rule",
        "ip -d -6 rule",
        "ip -d -4 route show table all",
        "ip -d -6 route show table all",
        "tc -d qdisc show",
        "nft list ruleset",
    ] {
        all.insert(command.to_owned(), listing(namespace, command)?);
    }
    for (device, list) in qdiscs(&all["tc -d qdisc show"]) {
        for side in list {
            let command = format!("tc filter show dev {device} {side}");
            all.insert(command.clone(), listing(namespace, &command)?);
        }
    }
    all.insert("TCX".into(), namespace.enter(tcx)??);
    all.insert("sysctls".into(), namespace.enter(sysctls)?);
    all.insert("sockets".into(), namespace.enter(sockets)??);
    all.insert("pins".into(), tree(pins));
    all.insert("bpffs".into(), bpffs_mounts()?);
    Ok(Footprint(all))
}

/// Waits until the host is as it was: what ends in the background gets a moment.
pub fn is_as_before(node: &Node, before: &Footprint, alone: bool, limit: Duration) -> Result<()> {
    becomes(before, limit, || of(node, alone))
}

/// Waits until what `look` sees is what there was before.
pub fn becomes(
    before: &Footprint,
    limit: Duration,
    look: impl Fn() -> Result<Footprint>,
) -> Result<()> {
    let mut last = String::new();
    let waited = wait::wait_for("the host as it was before", limit, || {
        last = before.difference(&look()?);
        Ok(last.is_empty().then_some(()))
    });
    match waited {
        Ok(_) => Ok(()),
        Err(error) if last.is_empty() => Err(error),
        Err(_) => bail!("it left something:\n{last}"),
    }
}

impl Footprint {
    /// Lines that one has and the other hasn't.
    pub fn difference(&self, after: &Self) -> String {
        let mut out = String::new();
        let empty = String::new();
        let names = self
            .0
            .keys()
            .chain(after.0.keys().filter(|name| !self.0.contains_key(*name)));
        for name in names {
            // A dead one holds nothing.
            if name.starts_with("the agent's") && !after.0.contains_key(name) {
                continue;
            }
            let before = self.0.get(name).unwrap_or(&empty);
            let after = after.0.get(name).unwrap_or(&empty);
            if before == after {
                continue;
            }
            let lines = |text: &str, other: &str, sign: char| {
                text.lines()
                    .filter(|line| !other.lines().any(|known| known == *line))
                    .map(|line| format!("  {sign} {line}\n"))
                    .collect::<String>()
            };
            let (gone, new) = (lines(before, after, '-'), lines(after, before, '+'));
            out.push_str(&format!("{name}:\n{gone}{new}"));
        }
        out
    }

    pub fn sections(&self) -> usize {
        self.0.len()
    }
}

fn listing(namespace: &Namespace, command: &str) -> Result<String> {
    let mut words = command.split(' ');
    let program = words.next().unwrap_or_default();
    let path = shell::find_program(program).with_context(|| format!("there is no {program}"))?;
    let text = shell::output(namespace.command(path).args(words))?;
    // What the kernel makes by itself runs out, and says when.
    let lasting = text.lines().filter(|line| !line.contains("expires"));
    Ok(lasting.collect::<Vec<_>>().join("\n"))
}

/// Devices with hooks for filters, and which hooks those are.
fn qdiscs(listing: &str) -> Vec<(String, Vec<&'static str>)> {
    let named = |line: &str| {
        let mut words = line.split(' ').skip(1);
        let sides = match words.next()? {
            "clsact" => vec!["ingress", "egress"],
            "ingress" => vec!["ingress"],
            _ => return None,
        };
        let device = words.skip_while(|word| *word != "dev").nth(1)?;
        Some((device.to_owned(), sides))
    };
    listing.lines().filter_map(named).collect()
}

/// Programs that hang on devices by TCX: `tc` doesn't know of them.
fn tcx() -> Result<String> {
    let devices = fs::read_to_string("/proc/thread-self/net/dev")?;
    let mut lines = Vec::new();
    for (name, _) in devices
        .lines()
        .filter_map(|line| line.trim().split_once(':'))
    {
        let index = index_of(&CString::new(name)?);
        for (way, side, _) in FILTER {
            let programs = bpf::tcx_programs(index, way)?;
            if !programs.is_empty() {
                lines.push(format!("{name} {side}: {}", programs.join(", ")));
            }
        }
    }
    lines.sort();
    Ok(lines.join("\n"))
}

/// Those of this namespace and of the machine.
fn sysctls() -> String {
    let mut lines = Vec::new();
    read_all(Path::new(SYSCTLS), &mut lines);
    lines.sort();
    lines.join("\n")
}

fn read_all(folder: &Path, lines: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let text = path.to_string_lossy();
        let name = text.strip_prefix(SYSCTLS).unwrap_or(&text);
        if RESTLESS.iter().any(|restless| name.starts_with(restless)) {
            continue;
        }
        // Without a look at the file itself: each footprint has more than a thousand.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            read_all(&path, lines);
        } else {
            // Some can only be written, root's rights or not.
            let value = fs::read_to_string(&path).unwrap_or_default();
            lines.push(format!("{name} = {}", value.trim()));
        }
    }
}

/// Sockets that hosts outside could notice, by their addresses.
fn sockets() -> Result<String> {
    let mut lines = Vec::new();
    for kind in ["udp", "udp6", "raw", "raw6", "packet"] {
        let table = fs::read_to_string(format!("/proc/thread-self/net/{kind}"))?;
        let address = if kind == "packet" { 3 } else { 1 };
        for line in table.lines().skip(1) {
            let local = line.split_whitespace().nth(address).unwrap_or_default();
            lines.push(format!("{kind} {local}"));
        }
    }
    lines.sort();
    Ok(lines.join("\n"))
}

fn tree(folder: &Path) -> String {
    let mut lines = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else {
            continue;
        };
        lines.push(format!("{}/", folder.display()));
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                folders.push(path);
            } else {
                lines.push(path.display().to_string());
            }
        }
    }
    lines.sort();
    lines.join("\n")
}

fn bpffs_mounts() -> Result<String> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let of_bpf = mounts
        .lines()
        .filter(|line| line.split(' ').nth(2) == Some("bpf"));
    Ok(of_bpf.collect::<Vec<_>>().join("\n"))
}

/// eBPF objects and devices that a process holds.
fn descriptors(pid: u32) -> String {
    let links = fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .flatten();
    let targets = links.flat_map(|entry| fs::read_link(entry.path()));
    let mut held: BTreeMap<String, usize> = BTreeMap::new();
    for target in targets {
        let target = target.to_string_lossy().into_owned();
        if target.contains("bpf") || target.contains("/net/tun") {
            *held.entry(target).or_default() += 1;
        }
    }
    let lines = held.iter().map(|(what, count)| format!("{count} {what}\n"));
    lines.collect()
}

/// What of a node stays the same whatever becomes of another agent on this machine.
#[derive(Debug, PartialEq, Eq)]
pub struct Standing {
    device: u32,
    pins: String,
    /// All rules of its namespace, and the routes of our table.
    rules: String,
    routes: String,
}

/// # Errors
/// It has no device that is up with its filter, no pins, no rule or no route.
pub fn standing(node: &Node) -> Result<Standing> {
    let look = || Ok::<_, anyhow::Error>((index_of(DEVICE), is_up(DEVICE)?));
    let (device, up) = node.namespace.enter(look)??;
    ensure!(up, "{} has no device that is up", node.name);
    is_guarded(&node.namespace).with_context(|| node.name.clone())?;
    let pins = tree(&own_pins(node)?);
    ensure!(
        pins.contains("/ACTIVE"),
        "{} has no pinned maps:\n{pins}",
        node.name
    );
    let lists = |what: &str| {
        let list = |family: &str| listing(&node.namespace, &format!("ip {family} {what}"));
        Ok::<_, anyhow::Error>(list("-4")? + "\n" + &list("-6")?)
    };
    let rules = lists("rule")?;
    let routes = lists("route show table all")?;
    let ours = routes.lines().filter(|line| line.contains("table 7052"));
    let routes = ours.collect::<Vec<_>>().join("\n");
    ensure!(
        rules.contains("7052") && !routes.is_empty(),
        "{} has no rule or no route of ours:\n{rules}\n{routes}",
        node.name
    );
    Ok(Standing {
        device,
        pins,
        rules,
        routes,
    })
}

/// No device is ever up without its filter.
///
/// # Errors
/// It is up, and our program is missing on one side, whatever else hangs there.
pub fn is_guarded(namespace: &Namespace) -> Result<()> {
    namespace.enter(|| {
        let index = index_of(DEVICE);
        if index == 0 || !is_up(DEVICE)? {
            return Ok(());
        }
        for (way, side, program) in FILTER {
            if bpf::tcx_programs(index, way)?
                .iter()
                .any(|name| name == program)
            {
                continue;
            }
            let mut tc = std::process::Command::new("tc");
            let filters = shell::output(tc.args(["filter", "show", "dev", "lowroad0", side]));
            // A TUN device vanishes when it likes.
            if index_of(DEVICE) != index || !is_up(DEVICE)? {
                return Ok(());
            }
            ensure!(
                filters?.split_whitespace().any(|word| word == program),
                "the device is up without {program} on its {side}"
            );
        }
        Ok(())
    })?
}

/// 0: there is none.
pub fn index_of(device: &CStr) -> u32 {
    // SAFETY: a terminated string that outlives the call.
    unsafe { libc::if_nametoindex(device.as_ptr()) }
}

fn is_up(device: &CStr) -> Result<bool> {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
    // SAFETY: all-zero bytes are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(device.to_bytes()) {
        *to = *from as libc::c_char;
    }
    // SAFETY: an open descriptor, and the structure that SIOCGIFFLAGS fills; it lives through the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) };
    if result != 0 {
        let error = io::Error::last_os_error();
        // It may have gone since.
        ensure!(
            error.raw_os_error() == Some(libc::ENODEV),
            "asking for the device's flags: {error}"
        );
        return Ok(false);
    }
    // SAFETY: SIOCGIFFLAGS has filled this member.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok(libc::c_int::from(flags) & libc::IFF_UP != 0)
}
