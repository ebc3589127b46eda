//! What the units forbid is refused, and what they leave is not: tried by a shell script in the place of each daemon, with all that the installed unit says of its confinement.

use std::{fs, process::Command};

use anyhow::{Context, Result, ensure};

use super::{AGENT, CAPABILITIES, is_confined, systemd};
use crate::{
    lab::{Lab, secs},
    process,
};

const UNIT: &str = "lowroad-probe.service";
const UNITS: &str = "/run/systemd/system";
const SCRIPT: &str = "/run/lowroad-probe.sh";
const OUTPUT: &str = "/run/lowroad-probe.out";
/// How lines of a unit begin that say what it runs and keeps.
const LEFT_OUT: &[&str] = &[
    "Type=",
    "ExecStart=",
    "Restart",
    "KillMode=",
    "StateDirectory",
    "RuntimeDirectory",
];

/// A command, and by what it says that the unit refuses it; `None`: it does not.
struct Probe {
    command: &'static str,
    agent: Option<&'static str>,
    server: Option<&'static str>,
}

const PERMISSION: Option<&str> = Some("Operation not permitted");
const READ_ONLY: Option<&str> = Some("Read-only file system");
/// The first two want no capability: only a filter of system calls refuses them.
const PROBES: &[Probe] = &[
    Probe {
        command: "unshare -U true",
        agent: PERMISSION,
        server: PERMISSION,
    },
    Probe {
        command: "ionice -c 2 -n 5 true",
        agent: PERMISSION,
        server: PERMISSION,
    },
    Probe {
        command: "touch /etc/probe && rm /etc/probe",
        agent: READ_ONLY,
        server: READ_ONLY,
    },
    // `ip` has no word for a socket that it may not have.
    Probe {
        command: "/usr/bin/ip link add probe0 type dummy && /usr/bin/ip link del probe0",
        agent: None,
        server: Some(""),
    },
    // What it says is for `is_confined`.
    Probe {
        command: "cat /proc/self/status",
        agent: None,
        server: None,
    },
];

/// What a unit has a probe say, if it refuses it.
type Refusal = fn(&Probe) -> Option<&'static str>;

pub(super) fn what_the_units_forbid_is_refused(lab: &Lab) -> Result<()> {
    fs::write(SCRIPT, script())?;
    // Or what is refused below would be refused by something else.
    let free = process::run(Command::new("/usr/bin/sh").arg(SCRIPT), "", secs(60))?;
    let free = free.ok("the probe")?.stdout;
    judge("without a unit", &free, |_| None)?;
    fs::create_dir_all(UNITS)?;
    for (unit, capabilities) in CAPABILITIES {
        ensure!(
            is_confined(&free, capabilities).is_err(),
            "without a unit the probe is as confined as {unit}"
        );
        let refusal: Refusal = match unit {
            AGENT => |probe| probe.agent,
            _ => |probe| probe.server,
        };
        fs::write(format!("{UNITS}/{UNIT}"), in_the_place_of(unit)?)?;
        systemd("systemctl", &["daemon-reload"])?;
        systemd("systemctl", &["start", UNIT])?;
        let said = fs::read_to_string(OUTPUT).with_context(|| format!("read {OUTPUT}"))?;
        judge(unit, &said, refusal)?;
        is_confined(&said, capabilities).with_context(|| format!("{unit}: {said}"))?;
        let refused = PROBES.iter().filter(|probe| refusal(probe).is_some());
        lab.note(&format!(
            "{unit}: {} of {} probes refused",
            refused.count(),
            PROBES.len()
        ));
    }
    fs::remove_file(format!("{UNITS}/{UNIT}"))?;
    systemd("systemctl", &["daemon-reload"]).map(drop)
}

/// Says of each command what it said, and how it ended.
fn script() -> String {
    let one = |probe: &Probe| format!("echo PROBE\n({}) 2>&1\necho ENDED $?\n", probe.command);
    PROBES.iter().map(one).collect()
}

/// The installed unit, with the script for its daemon.
fn in_the_place_of(unit: &str) -> Result<String> {
    let path = format!("/etc/systemd/system/{unit}");
    let installed = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let kept: String = installed
        .lines()
        .filter(|line| !LEFT_OUT.iter().any(|begin| line.starts_with(begin)))
        .map(|line| format!("{line}\n"))
        .collect();
    let ours = format!(
        "[Service]\nType=oneshot\nExecStart=/usr/bin/sh {SCRIPT}\n\
         StandardOutput=truncate:{OUTPUT}\nStandardError=inherit\n"
    );
    Ok(kept.replace("[Service]\n", &ours))
}

fn judge(by: &str, said: &str, refusal: impl Fn(&Probe) -> Option<&'static str>) -> Result<()> {
    let parts: Vec<&str> = said.split("PROBE\n").skip(1).collect();
    ensure!(
        parts.len() == PROBES.len(),
        "{by}: the probes said {said:?}"
    );
    for (probe, part) in PROBES.iter().zip(parts) {
        let ended = part.rsplit_once("ENDED ");
        let (text, code) = ended.with_context(|| format!("{by}: a probe said {part:?}"))?;
        let (text, code) = (text.trim(), code.trim());
        let as_wanted = match refusal(probe) {
            None => code == "0",
            Some("") => code != "0" && text.is_empty(),
            Some(why) => code != "0" && text.contains(why),
        };
        ensure!(
            as_wanted,
            "{by}: `{}` ended with {code}: {text}",
            probe.command
        );
    }
    Ok(())
}
