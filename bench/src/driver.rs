//! Drivers: what brings a tunnel up between a hub and its peers.
//!
//! Those of other WireGuards are programs in `bench/drivers/` (the contract: `bench/README.md`); lowroad's needs a whole tailnet and is
//! in `driver/lowroad.rs`.

mod lowroad;

use std::{
    any::Any,
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use lowroad_wire::key::NodePrivate;
use xtask::{
    process::{self, Daemon},
    topology::{Namespace, Net},
    wait,
};

use crate::{
    Plan,
    scenario::{Topology, Tunnel},
};

pub use lowroad::Flavour;

/// Of a program that has only a device to bring up.
const READY_LIMIT: Duration = Duration::from_secs(60);
const CHECK_LIMIT: Duration = Duration::from_secs(10);
/// First host number on the public segment.
const FIRST_HOST: u8 = 20;
const PORT: u16 = 51820;

/// One end of the tunnels: where its traffic comes from and goes to.
#[derive(Debug)]
pub struct End {
    pub namespace: Namespace,
    pub address: IpAddr,
}

/// Tunnels that are up, from the first end, the hub, to each of the others.
#[derive(Debug)]
pub struct World {
    pub ends: Vec<End>,
    /// Process groups whose CPU time is the tunnels'.
    pub groups: BTreeSet<u32>,
    /// The one of them that only relays, if everything goes through it.
    pub relay: Option<u32>,
    /// What holds it up; dropped before the network.
    _inside: Box<dyn Any>,
    _net: Box<Net>,
}

impl World {
    /// CPU time of the relay and of the nodes, if everything goes through a relay.
    pub fn shares(&self) -> Result<Option<(Duration, Duration)>> {
        let Some(relay) = self.relay else {
            return Ok(None);
        };
        let nodes = self.groups.iter().filter(|group| **group != relay);
        let nodes: Vec<Duration> = nodes
            .map(|group| process::cpu_time(*group))
            .collect::<Result<_>>()?;
        Ok(Some((process::cpu_time(relay)?, nodes.iter().sum())))
    }
}

#[derive(Debug)]
pub enum Driver {
    Program(PathBuf),
    Lowroad(Flavour),
}

/// Why a driver is left out.
#[derive(Debug)]
pub struct Unusable(pub String);

impl Driver {
    /// Finds it, and asks it whether it can work here.
    pub fn find(name: &str, plan: &Plan) -> Result<Self, Unusable> {
        if let Some(flavour) = Flavour::of_name(name) {
            return flavour.check().map(|()| Self::Lowroad(flavour));
        }
        let path = plan.driver(name).ok_or_else(|| {
            Unusable(format!(
                "there is no driver {name} in {}",
                plan.folder.display()
            ))
        })?;
        let checked = process::run(Command::new(&path).arg("check"), "", CHECK_LIMIT)
            .map_err(|error| Unusable(format!("{error:#}")))?;
        if checked.status.success() {
            return Ok(Self::Program(path));
        }
        let why = format!("{} {}", checked.stdout.trim(), checked.stderr.trim());
        Err(Unusable(why.trim().to_owned()))
    }

    /// Brings tunnels up between a hub and `peers` others.
    pub fn up(&self, tunnel: &Tunnel, peers: usize) -> Result<World> {
        match self {
            Self::Lowroad(flavour) => lowroad::up(*flavour, tunnel.topology, peers),
            Self::Program(path) if tunnel.topology == Topology::Segment => {
                programs(path, tunnel, peers)
            }
            Self::Program(_) => bail!("only lowroad's drivers know relays"),
        }
    }
}

/// What a driver's program is told of one end.
struct Place {
    number: usize,
    namespace: Namespace,
    underlay: Ipv4Addr,
    key: NodePrivate,
    folder: PathBuf,
}

impl Place {
    fn new(net: &Net, number: usize) -> Result<Self> {
        let last = FIRST_HOST + u8::try_from(number).context("too many ends")?;
        let folder = net.folder().join(format!("end{number}"));
        fs::create_dir_all(&folder)?;
        let mut random = [0; 32];
        getrandom::fill(&mut random).context("draw a key")?;
        Ok(Self {
            number,
            namespace: net.public(&format!("end{number}"), last)?,
            underlay: Ipv4Addr::new(203, 0, 113, last),
            key: NodePrivate::from_random(random),
            folder,
        })
    }

    fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, 1 + self.number as u8)
    }

    /// A line of `BENCH_PEERS`.
    fn as_peer(&self) -> String {
        format!(
            "{} {}:{PORT} {}/32\n",
            STANDARD.encode(self.key.public().as_bytes()),
            self.underlay,
            self.address()
        )
    }

    fn start(&self, program: &Path, mtu: u32, peers: &[&Self]) -> Result<Daemon> {
        let key = self.folder.join("key");
        let list = self.folder.join("peers");
        fs::write(&key, STANDARD.encode(self.key.to_bytes()))?;
        let lines: String = peers.iter().map(|peer| peer.as_peer()).collect();
        fs::write(&list, lines)?;
        let mut command = self.namespace.command(program);
        command
            .arg("up")
            .env("BENCH_DEVICE", device_name())
            .env("BENCH_ADDRESS", format!("{}/24", self.address()))
            .env("BENCH_UNDERLAY", self.underlay.to_string())
            .env("BENCH_PORT", PORT.to_string())
            .env("BENCH_MTU", mtu.to_string())
            .env("BENCH_KEY", &key)
            .env("BENCH_PEERS", &list)
            .env("BENCH_FOLDER", &self.folder);
        Daemon::spawn(&mut command, &self.folder.join("log"))
    }
}

/// Userspace devices have their sockets in a folder of the whole host, whatever namespace they are in: names must differ everywhere.
fn device_name() -> String {
    static DEVICES: AtomicU32 = AtomicU32::new(0);
    let device = DEVICES.fetch_add(1, Ordering::Relaxed);
    format!("b{}n{device}", std::process::id() % 1_000_000)
}

fn programs(program: &Path, tunnel: &Tunnel, peers: usize) -> Result<World> {
    let net = Box::new(Net::new()?);
    let places: Vec<Place> = (0..=peers)
        .map(|number| Place::new(&net, number))
        .collect::<Result<_>>()?;
    let (hub, spokes) = places.split_first().context("there is a hub")?;
    let mut daemons = vec![hub.start(program, tunnel.mtu, &spokes.iter().collect::<Vec<_>>())?];
    for spoke in spokes {
        daemons.push(spoke.start(program, tunnel.mtu, &[hub])?);
    }
    let mut ends = Vec::new();
    for (place, daemon) in places.iter().zip(&mut daemons) {
        ends.push(End {
            namespace: place.namespace.clone(),
            address: ready(daemon)?.unwrap_or(place.address().into()),
        });
    }
    Ok(World {
        ends,
        groups: daemons.iter().map(Daemon::pid).collect(),
        relay: None,
        _inside: Box::new(daemons),
        _net: net,
    })
}

/// Waits for the line `ready`, and returns the address that it may name.
fn ready(daemon: &mut Daemon) -> Result<Option<IpAddr>> {
    let (line, _) = wait::wait_for("the driver's `ready`", READY_LIMIT, || {
        let log = fs::read_to_string(&daemon.log)?;
        let line = log.lines().find_map(|line| line.strip_prefix("ready"));
        match (line, daemon.ended()) {
            (Some(rest), _) => Ok(Some(Ok(rest.trim().to_owned()))),
            (None, Some(status)) => Ok(Some(Err(status))),
            (None, None) => Ok(None),
        }
    })?;
    let log = || process::tail(&daemon.log, 5);
    match line {
        Ok(text) if text.is_empty() => Ok(None),
        Ok(text) => {
            Ok(Some(text.parse().with_context(|| {
                format!("`ready {text}` names no address")
            })?))
        }
        Err(status) => bail!("the driver ended with {status}: {}", log()),
    }
}
