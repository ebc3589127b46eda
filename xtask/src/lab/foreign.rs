//! What others put on our device and into the tables.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};

use super::{ALLOW_ALL, Lab, host::FILTER, kernel::device_index, ms, policy, secs};
use crate::{
    process,
    shell::find_program,
    tailnet::{Client as _, Coordinator, Node},
    topology::{
        Namespace,
        tcx::{Counter, Place, Way},
    },
    traffic::{Flood, Pinger},
    wait,
};

const LIMIT: std::time::Duration = secs(60);
/// Sides of the device.
const SIDES: [&str; 2] = ["ingress", "egress"];
/// Others' filters, each of which lets the next one decide.
const FILTERS: [&str; 3] = [
    "prio 7 handle 7 matchall action continue",
    "prio 8 handle 8 bpf bytecode PROGRAM action continue",
    // Beside ours on kernels without TCX, and asked before it: of one priority the newest is. It counts nothing: `theirs_is_asked_first`.
    "prio 1 handle 9 bpf bytecode PROGRAM direct-action",
];
/// One of a single instruction, in classic BPF, whose answer is -1: of a classifier that it matches, of a verdict that the next filter has it (tc-bpf(8)).
const PROGRAM: &str = "1,6 0 0 4294967295,";
/// Of those that count, the priorities.
const COUNTING: [u16; 2] = [7, 8];

fn two_nodes(lab: &Lab) -> Result<(Coordinator, Node, Node)> {
    let coordinator = lab.coordinator(ALLOW_ALL)?;
    let key = coordinator.auth_key("ann", "")?;
    let alpha = lab.public_node("alpha", 30)?;
    let bravo = lab.public_node("bravo", 31)?;
    alpha.up(&key)?;
    bravo.up(&key)?;
    Ok((coordinator, alpha, bravo))
}

/// Others' filters, queues, routes and rules on our device and with our numbers, while agents die, adopt and change the policy.
pub fn what_others_put_on_the_device_and_into_the_tables_stays(lab: &Lab) -> Result<()> {
    let (coordinator, mut alpha, bravo) = two_nodes(lab)?;
    let host = alpha.namespace.clone();
    // On kernels without TCX our own filters hang on a clsact already.
    let ours_is_a_filter = tc(&host, "qdisc show dev lowroad0")?.contains("clsact");
    if !ours_is_a_filter {
        tc(&host, "qdisc add dev lowroad0 clsact")?;
    }
    tc(
        &host,
        "qdisc add dev lowroad0 root handle 77: pfifo limit 500",
    )?;
    for side in SIDES {
        for filter in FILTERS {
            add_filter(&host, side, filter)?;
        }
    }
    if ours_is_a_filter {
        theirs_is_asked_first(&host).context("before")?;
    }
    host.ip("route add 198.51.100.0/24 dev lowroad0 proto 99\n\
         route add 198.51.100.0/24 dev lowroad0 table 7052 proto 99\n\
         route add throw 198.51.101.0/24 table 52\n\
         rule add pref 5310 fwmark 0x77 lookup 7052 protocol 99\n\
         rule add pref 5210 fwmark 0x78 lookup 52 protocol 99")?;
    let before = theirs(&host)?;
    let ping = Pinger::start(&bravo.namespace, alpha.ip(4)?, ms(50))?;
    they_see_more(&host, 20)?;
    alpha.kill_9();
    alpha.start_agent()?;
    alpha.wait_until_running(LIMIT)?;
    coordinator.set_policy(&ALLOW_ALL.replace("*:*", "*:80"))?;
    let answered = ping.answered();
    wait::wait_for("answers", LIMIT, || {
        Ok((ping.answered() > answered + 40).then_some(()))
    })?;
    let after = theirs(&host)?;
    ensure!(before == after, "before:\n{before}\nafter:\n{after}");
    if ours_is_a_filter {
        // A filter that is replaced keeps its place.
        theirs_is_asked_first(&host).context("with a new agent")?;
    }
    they_see_more(&host, 1)?;
    // What they let pass ours still judges.
    let closed = SocketAddr::new(alpha.ip(4)?, 81);
    wait::wait_for("a refusal behind their filters", LIMIT, || {
        policy::refused_by(&alpha, &bravo, closed).map(Some)
    })?;
    let report = ping.stop();
    lab.note(&report.to_string());
    ensure!(report.lost() == 0, "{report}");
    alpha.cli(&["down"])?;
    // Their routes by our device have gone with it.
    let left = marked(&host, &ELSEWHERE)?;
    for stays in ["throw 198.51.101.0/24", "5310:", "5210:"] {
        ensure!(left.contains(stays), "`down` took {stays} with it:\n{left}");
    }
    Ok(())
}

/// Others' programs before and behind ours on the same TCX hooks: all see their packets, whatever becomes of the agent.
pub fn other_programs_on_the_same_hooks_go_on(lab: &Lab) -> Result<()> {
    let (coordinator, mut alpha, bravo) = two_nodes(lab)?;
    let device = device_index(&alpha)?;
    let mut theirs = Vec::new();
    for way in [Way::In, Way::Out] {
        for place in [Place::First, Place::Last] {
            let counter = Counter::attach(&alpha.namespace, "lowroad0", way, place)?;
            theirs.push((format!("{way:?} {place:?}"), counter));
        }
    }
    let all_count = |when: &str| {
        for (which, counter) in &theirs {
            let before = counter.packets()?;
            let what = format!("packets at their program ({which}) {when}");
            wait::wait_for(&what, LIMIT, || {
                Ok((counter.packets()? > before + 10).then_some(()))
            })?;
            ensure!(
                counter.device()? == device,
                "{which} hangs elsewhere {when}"
            );
        }
        Ok(())
    };
    let ping = Pinger::start(&bravo.namespace, alpha.ip(4)?, ms(20))?;
    all_count("at first")?;
    alpha.kill_9();
    all_count("without an agent")?;
    alpha.start_agent()?;
    alpha.wait_until_running(LIMIT)?;
    all_count("with a new agent")?;
    alpha.stop_agent();
    alpha.start_agent()?;
    alpha.wait_until_running(LIMIT)?;
    // Refused packets end at our program: what is behind it doesn't see them.
    drop(ping);
    coordinator.set_policy(&ALLOW_ALL.replace("*:*", "*:80"))?;
    let to = SocketAddr::new(alpha.ip(4)?, 81);
    let flood = Flood::start(&bravo.namespace, &alpha.namespace, to, ms(20))?;
    let [(_, first), (_, last), ..] = &theirs[..] else {
        bail!("not four programs");
    };
    wait::wait_for("refused packets before our program only", LIMIT, || {
        let before = (first.packets()?, last.packets()?);
        wait::pass(ms(500))?;
        Ok((first.packets()? > before.0 + 10 && last.packets()? == before.1).then_some(()))
    })?;
    drop(flood);
    coordinator.set_policy(ALLOW_ALL)?;
    let ping = Pinger::start(&bravo.namespace, alpha.ip(4)?, ms(20))?;
    ping.first_answer(LIMIT)?;
    all_count("with the policy open again")?;
    let counts: Vec<String> = theirs
        .iter()
        .map(|(which, counter)| Ok(format!("{which} {}", counter.packets()?)))
        .collect::<Result<_>>()?;
    lab.note(&format!("packets counted by others: {}", counts.join(", ")));
    alpha.cli(&["down"])?;
    for (which, counter) in &theirs {
        ensure!(counter.device()? == 0, "{which} outlived its device");
    }
    Ok(())
}

const ELSEWHERE: [(&str, &str, &str); 2] = [
    ("ip", "route show table 52", ""),
    ("ip", "-N rule", "proto 99"),
];

/// All that is not ours among queues, filters, routes and rules.
fn theirs(host: &Namespace) -> Result<String> {
    let on_the_device = [
        ("tc", "qdisc show", "77:"),
        ("tc", "filter show dev lowroad0 ingress pref 7", ""),
        ("tc", "filter show dev lowroad0 egress pref 7", ""),
        ("tc", "filter show dev lowroad0 ingress pref 8", ""),
        ("tc", "filter show dev lowroad0 egress pref 8", ""),
        (
            "tc",
            "filter show dev lowroad0 ingress pref 1",
            "handle 0x9",
        ),
        ("tc", "filter show dev lowroad0 egress pref 1", "handle 0x9"),
        ("ip", "-N route show table all", "proto 99"),
    ];
    Ok(marked(host, &on_the_device)? + &marked(host, &ELSEWHERE)?)
}

/// What these commands say in lines with these marks: each something.
fn marked(host: &Namespace, commands: &[(&str, &str, &str)]) -> Result<String> {
    let mut all = String::new();
    for (program, arguments, mark) in commands {
        let text = run(host, program, arguments)?;
        let known = all.len();
        for line in text.lines().filter(|line| line.contains(mark)) {
            all.push_str(line);
            all.push('\n');
        }
        ensure!(
            all.len() > known,
            "{program} {arguments} shows none: {text}"
        );
    }
    Ok(all)
}

/// Of the filters of our priority, which are listed as the kernel asks them.
fn theirs_is_asked_first(host: &Namespace) -> Result<()> {
    for (_, side, ours) in FILTER {
        let list = tc(host, &format!("filter show dev lowroad0 {side} pref 1"))?;
        let place = |word: &str| {
            let mut lines = list.lines();
            lines.position(|line| line.split_whitespace().any(|one| one == word))
        };
        let (theirs, ours) = (place("0x9"), place(ours));
        ensure!(
            theirs.is_some() && ours.is_some() && theirs < ours,
            "their filter is not asked before ours:\n{list}"
        );
    }
    Ok(())
}

/// Waits until each of their filters that counts has counted so many more packets.
fn they_see_more(host: &Namespace, more: u64) -> Result<()> {
    for side in SIDES {
        for priority in COUNTING {
            let seen = seen_by_them(host, side, priority)?;
            let what = format!("packets at their {side} filter of priority {priority}");
            wait::wait_for(&what, LIMIT, || {
                Ok((seen_by_them(host, side, priority)? >= seen + more).then_some(()))
            })?;
        }
    }
    Ok(())
}

/// How many packets their filter of this priority has counted.
fn seen_by_them(host: &Namespace, side: &str, priority: u16) -> Result<u64> {
    let list = format!("-s filter show dev lowroad0 {side} pref {priority}");
    let text = tc(host, &list)?;
    let words: Vec<&str> = text.split_whitespace().collect();
    let Some(at) = words.iter().position(|word| *word == "pkt") else {
        bail!("no counter in {text}");
    };
    Ok(words[at - 1].parse()?)
}

fn add_filter(host: &Namespace, side: &str, filter: &str) -> Result<()> {
    let command = format!("filter add dev lowroad0 {side} {filter}");
    let words = command.split(' ').map(|word| match word {
        "PROGRAM" => PROGRAM,
        other => other,
    });
    run_words(host, "tc", &words.collect::<Vec<_>>()).map(drop)
}

fn tc(host: &Namespace, arguments: &str) -> Result<String> {
    run(host, "tc", arguments)
}

pub fn run(host: &Namespace, program: &str, arguments: &str) -> Result<String> {
    let words: Vec<&str> = arguments.split_whitespace().collect();
    run_words(host, program, &words)
}

fn run_words(host: &Namespace, program: &str, words: &[&str]) -> Result<String> {
    let path = find_program(program).with_context(|| format!("there is no {program}"))?;
    let mut command = host.command(path);
    let finished = process::run(command.args(words), "", secs(30))?;
    let what = format!("{program} {}", words.join(" "));
    Ok(finished.ok(&what)?.stdout)
}
