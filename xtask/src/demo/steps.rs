//! The demo's steps.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use super::report::{Show, shown};
use crate::{
    tailnet::{Client as _, Coordinator, Node, PathKind, seconds},
    topology::{Nat, Net},
    traffic::{self, Pinger, Server},
    wait,
};

/// Longer than any step needs on an emulated CPU.
const PATIENCE: Duration = Duration::from_secs(60);
const WEB: u16 = 80;
const CLOSED: u16 = 8080;
/// How long the killed agent stays dead.
const DEAD: Duration = Duration::from_secs(10);
/// WireGuard gives up a session that the other side has forgotten after 15 s without an answer (KEEPALIVE_TIMEOUT plus
/// REKEY_TIMEOUT), then makes a new one.
const NEW_SESSION: Duration = Duration::from_secs(17);

pub struct World {
    office: Node,
    home: Node,
    server: Node,
    vault: Node,
    _web: [Server; 3],
    coordinator: Coordinator,
    emulated: bool,
}

impl World {
    pub fn start(net: &Net, show: &mut Show, policy: &str) -> Result<Self> {
        let mut world = None;
        show.step("coordinator and four agents start", || {
            let coordinator = Coordinator::start(net, policy)?;
            let office_router = net.router("office-router", 21, Nat::Easy)?;
            let home_router = net.router("home-router", 22, Nat::Easy)?;
            let office = net.behind("office", &office_router, 2)?;
            let home = net.behind("home", &home_router, 2)?;
            let server = net.public("server", 30)?;
            let vault = net.public("vault", 40)?;
            let web = [
                Server::start(&home, WEB)?,
                Server::start(&server, WEB)?,
                Server::start(&vault, CLOSED)?,
            ];
            world = Some(Self {
                office: Node::start(net, "office", office)?,
                home: Node::start(net, "home", home)?,
                server: Node::start(net, "server", server)?,
                vault: Node::start(net, "vault", vault)?,
                _web: web,
                coordinator,
                emulated: std::env::var_os("LOWROAD_EMULATED").is_some(),
            });
            Ok("all up".to_owned())
        })?;
        world.context("the step has made it")
    }

    fn nodes(&self) -> [&Node; 4] {
        [&self.office, &self.home, &self.server, &self.vault]
    }

    /// Bounds hold on real hardware; an emulated CPU is only measured.
    fn within(&self, what: &str, time: Duration, bound: Duration) -> Result<String> {
        let within = time <= bound;
        ensure!(within || self.emulated, "{what} took {}", seconds(time));
        Ok(format!("{what} {}", seconds(time)))
    }

    pub fn join(&self, show: &mut Show) -> Result<()> {
        show.step("machines join with auth keys", || {
            let keys = [
                self.coordinator.auth_key("ann", "")?,
                self.coordinator.auth_key("ann", "tag:web")?,
                self.coordinator.auth_key("ann", "tag:vault")?,
            ];
            let mut times = Vec::new();
            for (node, key) in self.nodes().into_iter().zip([0, 0, 1, 2]) {
                let time = node.up_with(&keys[key], &["--accept-dns=false"])?;
                shown(&node.name, "lowroad up --login-server=… --auth-key=…", "");
                println!(
                    "   {} is {} after {}",
                    node.name,
                    node.ip(4)?,
                    seconds(time)
                );
                times.push(time);
            }
            let slowest = times.into_iter().max().unwrap_or_default();
            Ok(format!("4 nodes, slowest `up` {}", seconds(slowest)))
        })
    }

    pub fn status(&self, show: &mut Show) -> Result<()> {
        show.step("status", || {
            shown("office", "lowroad status", &self.office.cli(&["status"])?);
            let plane = self.office.dataplane()?;
            ensure!(
                self.office.peer("home")?.is_some(),
                "office doesn't see home"
            );
            ensure!(
                self.office.peer("vault")?.is_none(),
                "office sees the vault"
            );
            Ok(format!(
                "data plane: {}; the vault isn't even visible to office",
                match plane.as_str() {
                    "kernel" => "kernel WireGuard",
                    _ => "userspace (this kernel has no WireGuard; eBPF filters all the same)",
                }
            ))
        })
    }

    pub fn first_ping(&self, show: &mut Show) -> Result<()> {
        let mut ping = None;
        show.step("first ping, over the relay", || {
            let pongs = self.office.cli(&["ping", "server"])?;
            shown("office", "lowroad ping server", &pongs);
            let before = self.office.relayed_packets()?.all();
            let running = Pinger::start(&self.office.namespace, self.home.ip(4)?, ms(20))?;
            let first = running.first_answer(PATIENCE)?;
            let relayed = self.office.relayed_packets()?.all() - before;
            ping = Some(running);
            ensure!(relayed > 0, "nothing went over the relay");
            let what = "ping office → home answered after";
            let text = self.within(what, first, Duration::from_secs(1))?;
            Ok(format!(
                "{text}; {relayed} packets through the relay by then"
            ))
        })?;
        show.step("upgrade to a direct path", || {
            let (path, time) = self.office.wait_for_direct("home", PATIENCE)?;
            let text = self.within("direct after", time, Duration::from_secs(1))?;
            let ping = ping.take().context("the ping is running")?;
            let before = ping.answered();
            wait::wait_for("pings on the direct path", PATIENCE, || {
                Ok((ping.answered() > before + 25).then_some(()))
            })?;
            let report = ping.stop();
            shown("office", "lowroad status", &self.office.cli(&["status"])?);
            ensure!(
                report.lost() == 0,
                "{} of {} pings lost",
                report.lost(),
                report.sent
            );
            Ok(format!(
                "{text}, through both NATs to {path}; {} pings, none lost",
                report.sent
            ))
        })
    }

    pub fn fetch(&self, show: &mut Show) -> Result<()> {
        show.step("a file over HTTP, through both NATs", || {
            let bytes = if self.emulated { 1_000_000 } else { 10_000_000 };
            let from = SocketAddr::new(self.home.ip(4)?, WEB);
            let fetched = traffic::get(&self.office.namespace, from, bytes, PATIENCE)?;
            Ok(format!(
                "office ← home: {:.0} MB in {}, every byte checked",
                bytes as f64 / 1e6,
                seconds(fetched.total)
            ))
        })
    }

    fn vault_at(&self) -> Result<SocketAddr> {
        Ok(SocketAddr::new(self.vault.ip(4)?, CLOSED))
    }

    pub fn refused(&self, show: &mut Show) -> Result<()> {
        show.step("a connection that the policy refuses", || {
            let web = SocketAddr::new(self.server.ip(4)?, WEB);
            traffic::get(&self.vault.namespace, web, 1000, PATIENCE)
                .context("the vault may fetch from server")?;
            println!("   vault → server:80 works; the other way nothing does:");
            let answer = traffic::get(&self.server.namespace, self.vault_at()?, 1000, ms(1500));
            ensure!(answer.is_err(), "the vault answered");
            let (event, _) =
                wait::wait_for("the drop event", PATIENCE, || self.vault.drop_event(CLOSED))?;
            shown("vault", "lowroad flows --port 8080", &event);
            Ok(format!(
                "server → vault:8080 refused by eBPF: {}",
                reason(&event)
            ))
        })
    }

    pub fn open(&self, show: &mut Show, policy: &str) -> Result<()> {
        show.step("a policy change opens it", || {
            println!("   coordinator$ lowroad-coordinator policy set opened.hujson");
            self.coordinator.set_policy(policy)?;
            let (_, time) = wait::wait_for("the vault's answer", PATIENCE, || {
                traffic::get(&self.server.namespace, self.vault_at()?, 1000, ms(300)).map(Some)
            })?;
            self.within(
                "server → vault:8080 answered after",
                time,
                Duration::from_secs(1),
            )
        })
    }

    pub fn throughput(&self, show: &mut Show) -> Result<()> {
        show.step("throughput, office ← home, one TCP connection", || {
            let bytes = if self.emulated {
                10_000_000
            } else {
                200_000_000
            };
            let from = SocketAddr::new(self.home.ip(4)?, WEB);
            let fetched = traffic::get(&self.office.namespace, from, bytes, PATIENCE * 2)?;
            let path = self.office.path_to("home")?;
            ensure!(matches!(path, PathKind::Direct(_)), "the path is {path:?}");
            let cpu = if self.emulated {
                ", on an emulated CPU"
            } else {
                ""
            };
            Ok(format!(
                "{:.0} Mbit/s ({:.0} MB, direct, {}{cpu})",
                fetched.megabits_per_second(),
                bytes as f64 / 1e6,
                self.office.dataplane()?
            ))
        })
    }

    pub fn kill(&mut self, show: &mut Show) -> Result<()> {
        let emulated = self.emulated;
        let (office, home) = (&self.office, &mut self.home);
        show.step("kill -9 of an agent under a running ping", || {
            let kernel = home.dataplane()? == "kernel";
            let address: IpAddr = home.ip(4)?;
            let ping = Pinger::start(&office.namespace, address, ms(50))?;
            ping.first_answer(PATIENCE)?;
            println!("   home# kill -9 {}", home.agent_pid().unwrap_or_default());
            home.kill_9();
            wait::pass(DEAD)?;
            let dead = ping.report();
            println!("   {} s later, {} pings unanswered", DEAD.as_secs(), dead.lost());
            println!("   home# systemctl start lowroad      (a new agent, no `up`)");
            home.start_agent()?;
            let before = ping.answered();
            let (_, back) = wait::wait_for("answers after the restart", PATIENCE, || {
                Ok((ping.answered() > before + 10).then_some(()))
            })?;
            home.wait_until_running(PATIENCE)?;
            ensure!(home.ip(4)? == address, "the new agent has another address");
            let report = ping.stop();
            ensure!(back <= NEW_SESSION || emulated, "recovery took {}", seconds(back));
            if kernel {
                ensure!(report.lost() == 0, "pings lost: {report}");
                return Ok(format!(
                    "{} pings while it was dead and adopted: none lost",
                    report.sent
                ));
            }
            Ok(format!(
                "userspace data plane: the tunnel died with it ({} of {} pings lost), back {} after the restart",
                report.lost(),
                report.sent,
                seconds(back)
            ))
        })
    }

    pub fn how_to_enter(&self) {
        println!("Everything is still running. A shell on a machine, as root:\n");
        for node in self.nodes() {
            println!("  nsenter --net=/run/netns/{}", node.namespace.name());
            println!("    lowroad --socket {} status", node.socket().display());
        }
    }
}

/// What stands in the brackets of a line of `lowroad flows`.
fn reason(event: &str) -> &str {
    event
        .rsplit_once('(')
        .and_then(|(_, rest)| rest.split(')').next())
        .unwrap_or(event)
}

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}
