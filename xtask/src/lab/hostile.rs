//! Peers, relays, control servers and clients that mean harm. What they throw is `xtask/hostile`'s; here is what must hold meanwhile:
//! memory bounded, an innocent pair's pings answered, no panic and no error in the log, and all well again afterwards.

pub mod client;
pub mod control;
pub mod peer;
pub mod relay;

use std::{
    fs,
    net::IpAddr,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use super::{Lab, NotJudged, ms, secs};
use crate::{
    process::{self, Daemon, memory},
    tailnet::{Client as _, Node, binaries},
    topology::Namespace,
    traffic::{Pinger, Report, Stalls},
    wait,
};

/// Where the attacker is on the public segment.
const EVIL: u8 = 66;
const EVIL_ADDRESS: &str = "203.0.113.66";
const PROGRAM: &str = "lowroad-hostile";
/// Between two pings.
const PACE: Duration = ms(20);
/// On the host, and on an emulated CPU.
const CALM: [Duration; 2] = [secs(1), secs(3)];
/// How long one attack lasts.
const ATTACK: Duration = ms(1000);
/// For the longest attack, on a busy machine.
const LIMIT: Duration = secs(60);
/// How long a victim may take to give back what it took.
const DIGESTION: Duration = secs(5);
/// What a victim may keep of a second dose of an attack, in MB: what it fills once, it has filled in the first. One is the
/// most that was seen; of 2000 packets less than 2 KB each may stay.
const MAX_GROWTH: u64 = 3;
/// Of a hundred pings, so many may be lost under attack; a machine of two cores does other things as well.
const MAX_LOST: usize = 5;
/// The median of the pings may grow by this factor and this much: little where the machine is free, more where it is busy anyway.
const MAX_FACTOR: u32 = 10;
const MAX_DELAY: Duration = ms(50);
const MAX_DELAY_EMULATED: Duration = ms(250);
/// On the host 99 of 100 pings take no longer, however busy it is: 7 to 35 ms where it has little else to do, up to 320 ms
/// where it has four times as much to do as it can.
const MAX_P99: Duration = secs(1);

/// How much memory a victim may take, in MB: at the worst moment, and when the attack is over.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    pub peak: u64,
    pub after: u64,
}

#[derive(Debug)]
struct Victim {
    name: String,
    pid: u32,
    /// MB before any attack.
    calm: u64,
}

impl Victim {
    /// MB that it holds, once they are no more than `allowed`, or when it has had its time. The caller tells a failure, with numbers.
    fn settled(&self, allowed: u64) -> Result<u64> {
        let mut now = memory(self.pid, "VmRSS")?;
        let _ = wait::wait_for("memory given back", DIGESTION, || {
            now = memory(self.pid, "VmRSS")?;
            Ok((now <= allowed).then_some(()))
        });
        Ok(now)
    }
}

/// A pair whose pings go on, and the processes that are attacked.
#[derive(Debug)]
pub struct Siege<'a> {
    lab: &'a Lab<'a>,
    from: &'a Namespace,
    to: IpAddr,
    victims: Vec<Victim>,
    calm: Report,
    allowed: Memory,
    stalls: Stalls,
}

impl<'a> Siege<'a> {
    /// Measures while all is calm.
    pub fn begin(
        lab: &'a Lab<'a>,
        (from, to): (&'a Namespace, IpAddr),
        victims: &[(&str, Option<u32>)],
        allowed: Memory,
    ) -> Result<Self> {
        let victims = victims
            .iter()
            .map(|(name, pid)| {
                let pid = pid.context("a victim that does not run")?;
                Ok(Victim {
                    name: (*name).to_owned(),
                    pid,
                    calm: memory(pid, "VmRSS")?,
                })
            })
            .collect::<Result<_>>()?;
        let ping = Pinger::start(from, to, PACE)?;
        ping.first_answer(secs(20))?;
        drop(ping);
        let ping = Pinger::start(from, to, PACE)?;
        wait::pass(CALM[usize::from(lab.emulated)])?;
        let calm = ping.stop();
        lab.note(&format!("calm: {}", times(&calm)));
        Ok(Self {
            lab,
            from,
            to,
            victims,
            calm,
            allowed,
            stalls: Stalls::watch(),
        })
    }

    /// Attacks, and looks at the victims; what the attack did is part of the note. On an emulated CPU that stood still it says nothing.
    pub fn under(&self, what: &str, attack: impl FnOnce() -> Result<String>) -> Result<()> {
        for victim in &self.victims {
            // Begins the peak anew.
            fs::write(format!("/proc/{}/clear_refs", victim.pid), "5")?;
        }
        let start = Instant::now();
        let ping = Pinger::start(self.from, self.to, PACE)?;
        let done = attack();
        let ran = (start, Instant::now());
        let report = ping.stop();
        let done = done.or_else(|error| self.unless_it_stood(ran, error));
        let done = done.with_context(|| what.to_owned())?;
        self.lab
            .note(&format!("{what}: {done}; {}", times(&report)));
        let held = self.victims.iter().map(|victim| self.held(victim));
        let held = held.collect::<Result<Vec<_>>>();
        let held = held.with_context(|| what.to_owned())?;
        self.lab.note(&format!("   {}", held.join("; ")));
        let judged = if self.lab.emulated {
            let judged = self.judge_emulated(&report, ran);
            judged.or_else(|error| self.unless_it_stood(ran, error))
        } else {
            self.judge_on_the_host(&report)
        };
        judged.with_context(|| what.to_owned())
    }

    /// The same attack, and on the host once more: each lasts a second, and a victim that keeps something of every packet stays below
    /// what it may take in one.
    pub fn under_twice(&self, what: &str, attack: impl Fn() -> Result<String>) -> Result<()> {
        self.under(what, &attack)?;
        if self.lab.emulated {
            return Ok(());
        }
        let rss = |victim: &Victim| memory(victim.pid, "VmRSS");
        let before = self.victims.iter().map(rss).collect::<Result<Vec<_>>>()?;
        let again = format!("{what} again");
        self.under(&again, &attack)?;
        for (victim, before) in self.victims.iter().zip(before) {
            let now = victim.settled(before + MAX_GROWTH)?;
            ensure!(
                now <= before + MAX_GROWTH,
                "{again}: {} held {before} MB after the first dose, {now} after the second",
                victim.name
            );
            self.lab.note(&format!(
                "   {} {before} → {now} MB by the second",
                victim.name
            ));
        }
        Ok(())
    }

    fn unless_it_stood<T>(&self, ran: (Instant, Instant), error: anyhow::Error) -> Result<T> {
        match self.stalls.seen().during(ran) {
            Some(stood) if self.lab.emulated => bail!(NotJudged::Busy(format!(
                "the emulated CPU stood still for {:.1} s, this host's being wanted elsewhere: {error:#}",
                stood.as_secs_f32()
            ))),
            _ => Err(error),
        }
    }

    /// The victim's memory, once it has digested what it got.
    fn held(&self, victim: &Victim) -> Result<String> {
        let Victim { name, pid, calm } = victim;
        let allowed = calm + self.allowed.after;
        let now = victim.settled(allowed)?;
        let peak = memory(*pid, "VmHWM").with_context(|| format!("{name} is gone"))?;
        let held = format!("{name} {calm} → {now} MB, at most {peak}");
        ensure!(
            now <= allowed && peak <= calm + self.allowed.peak,
            "too much memory taken: {held}"
        );
        Ok(held)
    }

    fn judge(&self, report: &Report, delay: Duration) -> Result<()> {
        let lost = report.lost() * 100;
        ensure!(lost <= MAX_LOST * report.sent + 100, "{report}");
        let calm = self.calm.median.context("no ping was answered")?;
        let median = report.median.context("no ping was answered")?;
        ensure!(
            median <= calm * MAX_FACTOR + delay,
            "the innocent pair's pings took {median:?}, without attack {calm:?}"
        );
        Ok(())
    }

    fn judge_on_the_host(&self, report: &Report) -> Result<()> {
        self.judge(report, MAX_DELAY)?;
        let p99 = report.p99.context("no ping was answered")?;
        ensure!(
            p99 <= MAX_P99,
            "one in a hundred of the innocent pair's pings took {p99:?}, at most {MAX_P99:?} are allowed"
        );
        Ok(())
    }

    /// As on the host, where an emulated CPU's queues are longer; and answers go on half as densely as while all is calm, at least, with none lost but by queues.
    fn judge_emulated(&self, report: &Report, (start, end): (Instant, Instant)) -> Result<()> {
        self.judge(report, MAX_DELAY_EMULATED)?;
        let ours = report.lost_by_us(&self.stalls.seen());
        ensure!(ours == 0, "{report}; {ours} of them while the machine ran");
        let calm = self.calm.answered as f64 / CALM[1].as_secs_f64();
        let now = report.answered as f64 / (end - start).as_secs_f64();
        ensure!(
            now * 2.0 >= calm,
            "the innocent pair's pings got {now:.1} answers a second, without attack {calm:.1}"
        );
        Ok(())
    }

    /// Everybody is well: pings are answered as before, and no log has an error.
    pub fn end(self) -> Result<()> {
        let (report, time) = wait::wait_for("pings without loss", secs(20), || {
            let ping = Pinger::start(self.from, self.to, PACE)?;
            wait::pass(ms(500))?;
            let report = ping.stop();
            Ok((report.lost() == 0).then_some(report))
        })?;
        self.lab.note(&format!(
            "afterwards: {} after {:.1} s",
            times(&report),
            time.as_secs_f32()
        ));
        for victim in &self.victims {
            let exists = Path::new(&format!("/proc/{}/exe", victim.pid)).exists();
            ensure!(exists, "{} is gone", victim.name);
        }
        no_errors(self.lab.net.folder())
    }
}

fn times(report: &Report) -> String {
    let ms = |time: Option<Duration>| time.map_or(f64::NAN, |time| time.as_secs_f64() * 1000.0);
    format!(
        "ping median {:.2} ms, p99 {:.2} ms, {} of {} lost",
        ms(report.median),
        ms(report.p99),
        report.lost(),
        report.sent
    )
}

/// A panic or an error in any log of the scenario is a bug, whatever the attack was.
fn no_errors(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)?.flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|extension| extension != "log") {
            continue;
        }
        let log = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
        let bad = |line: &&str| line.contains("ERROR") || line.contains("panicked");
        if let Some(line) = log.lines().find(bad) {
            bail!("{}: {line}", path.display());
        }
    }
    Ok(())
}

/// Waits until packets between the pair go directly.
fn direct(from: &Node, to: &Node) -> Result<()> {
    let _ping = Pinger::start(&from.namespace, to.ip(4)?, PACE)?;
    from.wait_for_direct(&to.name, secs(20)).map(drop)
}

/// Runs the attacker to its end, which tells how many packets it has sent: none shows nothing, and few not much.
fn attacker(
    namespace: &Namespace,
    command: &str,
    arguments: &[String],
    least: u64,
) -> Result<String> {
    let mut program = namespace.command(binaries().join(PROGRAM));
    program.arg(command).args(arguments);
    let finished = process::run(&mut program, "", LIMIT)?.ok(PROGRAM)?;
    at_least(least, finished.stdout.trim()).map(|done| format!("{done} sent"))
}

/// What an attacker says that it has done, which begins with a number.
fn at_least(least: u64, done: &str) -> Result<&str> {
    let count = done
        .split_whitespace()
        .next()
        .and_then(|count| count.parse().ok());
    let count: u64 = count.with_context(|| format!("the attacker says {done:?}"))?;
    ensure!(count >= least, "an attack of {done}, and not {least}");
    Ok(done)
}

/// An attacker that stays, and is told by a file what to do.
#[derive(Debug)]
struct Standing {
    daemon: Daemon,
    folder: std::path::PathBuf,
}

impl Standing {
    fn start(
        lab: &Lab,
        namespace: &Namespace,
        command: &str,
        arguments: &[String],
    ) -> Result<Self> {
        // Not among the logs that are looked through.
        let folder = lab.net.folder().join(format!("evil-{command}"));
        // Another of the same kind may have been there before.
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("mode"), "good")?;
        let mut program = namespace.command(binaries().join(PROGRAM));
        program.arg(command).args(arguments);
        program.arg(format!("dir={}", folder.display()));
        let daemon = Daemon::spawn(&mut program, &folder.join("output"))?;
        Ok(Self { daemon, folder })
    }

    fn set(&self, mode: &str) -> Result<()> {
        // In one step: it reads at any time.
        let new = self.folder.join("new-mode");
        fs::write(&new, mode)?;
        Ok(fs::rename(new, self.folder.join("mode"))?)
    }

    fn read(&self, file: &str) -> Result<String> {
        Ok(fs::read_to_string(self.folder.join(file))?)
    }

    /// Waits for a file that it writes.
    fn wait_for(&mut self, file: &str, what: &str) -> Result<()> {
        let path = self.folder.join(file);
        let (ended, _) = wait::wait_for(what, LIMIT, || match path.exists() {
            true => Ok(Some(None)),
            false => Ok(self.daemon.ended().map(Some)),
        })?;
        match ended {
            None => Ok(()),
            Some(status) => bail!("it ended with {status}: {}", self.read("output")?.trim()),
        }
    }

    /// Ends an attacker that must have gone on until now, and returns what it says.
    fn finish(mut self) -> Result<String> {
        let went_on = self.daemon.ended().is_none();
        self.set("end")?;
        let ended = || Ok(self.daemon.ended());
        let (status, _) = wait::wait_for("the attacker's end", secs(10), ended)?;
        let said = self.read("output")?;
        ensure!(
            went_on && status.success(),
            "it went on: {went_on}; it ended with {status}: {}",
            said.trim()
        );
        Ok(said.trim().to_owned())
    }

    /// What it says when it is ready.
    fn pin(&mut self) -> Result<String> {
        self.wait_for("pin", "the hostile relay")?;
        self.read("pin")
    }
}

fn argument(name: &str, value: impl std::fmt::Display) -> String {
    format!("{name}={value}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attack_that_sent_too_little_or_does_not_say_how_much_shows_nothing() {
        assert_eq!(at_least(100, "100 packets").unwrap(), "100 packets");
        assert_eq!(at_least(1, "7").unwrap(), "7");
        for done in ["0", "99 packets", "", "many packets"] {
            assert!(at_least(100, done).is_err(), "{done}");
        }
    }
}
