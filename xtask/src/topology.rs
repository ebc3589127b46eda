//! Machines, routers and networks made of network namespaces.
//!
//! A [`Net`] holds one public segment, 203.0.113.0/24 and 2001:db8::/64, with hosts on it and routers that have a LAN
//! behind them. Names carry this process's id, so that runs don't meet. Dropping it removes everything.

mod bpffs;
mod events;
mod namespace;
pub mod tcx;

use std::{
    fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{shell::output, wait};

pub use bpffs::Bpffs;
pub use events::Events;
pub use namespace::Namespace;

/// Far above what an emulated machine takes for it.
const SETTLED: Duration = Duration::from_secs(20);

static RUNS: AtomicU32 = AtomicU32::new(0);

/// What a router does to its LAN's traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nat {
    /// One mapping for all destinations: hole punching works.
    Easy,
    /// A mapping of its own, with a random port, for every destination.
    Hard,
    /// Easy, but no UDP gets through.
    UdpBlocked,
}

/// A network of namespaces, and a folder for its files.
#[derive(Debug)]
pub struct Net {
    prefix: String,
    folder: PathBuf,
    segment: Namespace,
    /// Kept as long as the network: hosts behind them come and go.
    routers: Mutex<Vec<Namespace>>,
    _bpffs: Bpffs,
}

impl Net {
    pub fn new() -> Result<Self> {
        namespace::remove_those_of_dead_processes();
        let run = RUNS.fetch_add(1, Ordering::Relaxed);
        let pid = std::process::id();
        let prefix = format!("lr{pid}-{run}");
        let folder = std::env::temp_dir().join(format!("lowroad-{pid}-{run}"));
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&folder)
            .with_context(|| format!("make {}", folder.display()))?;
        let segment = match Namespace::create(&format!("{prefix}-net")) {
            Ok(segment) => segment,
            Err(error) => {
                let _ = fs::remove_dir_all(&folder);
                return Err(error);
            }
        };
        let net = Self {
            prefix,
            folder,
            segment,
            routers: Mutex::default(),
            _bpffs: Bpffs::mount()?,
        };
        net.segment
            .ip("link add br0 type bridge\nlink set br0 up")?;
        Ok(net)
    }

    /// A private folder that goes away with the network.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn namespace(&self, name: &str) -> Result<Namespace> {
        Namespace::create(&format!("{}-{name}", self.prefix))
    }

    /// A host on the public segment: 203.0.113.`last` and 2001:db8::`last` on `wan0`.
    pub fn public(&self, name: &str, last: u8) -> Result<Namespace> {
        let host = self.namespace(name)?;
        self.connect(&host, last)?;
        Ok(host)
    }

    /// Puts this machine itself on the public segment, in a VM of its own: 203.0.113.`last` on `wan0`.
    pub fn connect_ourselves(&self, last: u8) -> Result<Namespace> {
        let port = port(last);
        self.segment.ip(&format!(
            "link add {port} type veth peer name wan0 netns {}\n\
             link set {port} up master br0",
            std::process::id()
        ))?;
        output(Command::new("sh").arg("-c").arg(format!(
            "ip link set wan0 up && ip addr add 203.0.113.{last}/24 dev wan0"
        )))?;
        // What the kernel adds by itself comes a moment later, and is nobody's trace.
        let own = || output(Command::new("ip").args("-6 -o addr show dev wan0".split(' ')));
        wait::wait_for("wan0's link-local address", SETTLED, || {
            let own = own()?;
            Ok((own.contains("fe80") && !own.contains("tentative")).then_some(()))
        })?;
        Namespace::ours()
    }

    fn connect(&self, host: &Namespace, last: u8) -> Result<()> {
        let port = port(last);
        veth(&self.segment, &port, host, "wan0")?;
        self.segment.ip(&format!("link set {port} master br0"))?;
        host.ip(&format!(
            "addr add 203.0.113.{last}/24 dev wan0\n\
             addr add 2001:db8::{last}/64 dev wan0 nodad"
        ))
    }

    /// A router on the public segment with the LAN 192.168.`last`.0/24 behind it.
    pub fn router(&self, name: &str, last: u8, nat: Nat) -> Result<Router> {
        let namespace = self.public(name, last)?;
        namespace.sysctl("net/ipv4/ip_forward", "1")?;
        namespace.ip(&format!(
            "link add lan0 type bridge\n\
             link set lan0 up\n\
             addr add 192.168.{last}.1/24 dev lan0"
        ))?;
        namespace.nft(&nat.rules())?;
        self.routers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(namespace.clone());
        Ok(Router { namespace, last })
    }

    /// A router without any IPv4, at 2001:db8::`last`, with the LAN 2001:db8:0:`last`::/64 behind it. It translates
    /// nothing, and lets in only answers.
    pub fn router_v6(&self, name: &str, last: u8) -> Result<Router> {
        let namespace = self.namespace(name)?;
        let port = port(last);
        veth(&self.segment, &port, &namespace, "wan0")?;
        self.segment.ip(&format!("link set {port} master br0"))?;
        namespace.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        namespace.ip(&format!(
            "addr add 2001:db8::{last}/64 dev wan0 nodad\n\
             route add default via 2001:db8::1\n\
             link add lan0 type bridge\n\
             link set lan0 up\n\
             addr add 2001:db8:0:{last}::1/64 dev lan0 nodad"
        ))?;
        namespace.nft(&Nat::Easy.rules())?;
        // The segment's own namespace routes between the LANs.
        self.segment.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        self.segment.ip(&format!(
            "addr replace 2001:db8::1/64 dev br0 nodad\n\
             route add 2001:db8:0:{last}::/64 via 2001:db8::{last}"
        ))?;
        self.routers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(namespace.clone());
        Ok(Router { namespace, last })
    }

    /// A host with `eth0` on the router's LAN, and no address yet.
    fn on_lan(&self, name: &str, router: &Router, host: u8) -> Result<Namespace> {
        let namespace = self.namespace(name)?;
        let port = format!("h{host}");
        veth(&router.namespace, &port, &namespace, "eth0")?;
        router
            .namespace
            .ip(&format!("link set {port} master lan0"))?;
        Ok(namespace)
    }

    /// A host behind `router` that has IPv6 alone: 2001:db8:0:x::`host` on `eth0`.
    pub fn behind_v6(&self, name: &str, router: &Router, host: u8) -> Result<Namespace> {
        let lan = router.last;
        let namespace = self.on_lan(name, router, host)?;
        namespace.ip(&format!(
            "addr add 2001:db8:0:{lan}::{host}/64 dev eth0 nodad\n\
             route add default via 2001:db8:0:{lan}::1"
        ))?;
        Ok(namespace)
    }

    /// Lets a host of the public segment answer those behind IPv6 routers.
    pub fn route_to_v6_lans(&self, host: &Namespace) -> Result<()> {
        host.ip("route add 2001:db8::/32 via 2001:db8::1")
    }

    /// A host behind `router`: 192.168.x.`host` on `eth0`.
    pub fn behind(&self, name: &str, router: &Router, host: u8) -> Result<Namespace> {
        let lan = router.last;
        let namespace = self.on_lan(name, router, host)?;
        namespace.ip(&format!(
            "addr add 192.168.{lan}.{host}/24 dev eth0\n\
             route add default via 192.168.{lan}.1"
        ))?;
        Ok(namespace)
    }

    /// Cuts the host or router `last` off the public segment; its own device sees no change, as with a cut far away.
    pub fn cut(&self, last: u8) -> Result<()> {
        self.segment
            .ip(&format!("link set {} nomaster", port(last)))
    }

    pub fn heal(&self, last: u8) -> Result<()> {
        self.segment
            .ip(&format!("link set {} master br0", port(last)))
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        if std::env::var_os("LOWROAD_KEEP_FILES").is_some() {
            eprintln!("   kept {}", self.folder.display());
        } else {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

/// A router, and the third number of its LAN.
#[derive(Debug)]
pub struct Router {
    pub namespace: Namespace,
    last: u8,
}

impl Nat {
    fn rules(self) -> String {
        let masquerade = match self {
            Self::Easy | Self::UdpBlocked => "masquerade",
            Self::Hard => "masquerade fully-random",
        };
        let udp = match self {
            Self::UdpBlocked => "meta l4proto udp drop",
            Self::Easy | Self::Hard => "",
        };
        // What arrives unasked is dropped at the outer side, too: if INPUT took it, its conntrack entry would hold the
        // port that masquerade wants to give to the inside host's flow, and hole punching would fail.
        format!(
            "table ip nat {{
                chain out {{ type nat hook postrouting priority 100; oifname wan0 {masquerade}; }}
            }}
            table inet filter {{
                chain forwarded {{ type filter hook forward priority 0; policy accept;
                    {udp}
                    iifname wan0 ct state new drop
                }}
                chain to_self {{ type filter hook input priority 0; policy accept;
                    iifname wan0 meta l4proto {{ tcp, udp, icmp }} ct state new drop
                }}
            }}
            "
        )
    }
}

fn port(last: u8) -> String {
    format!("p{last}")
}

fn veth(a: &Namespace, at_a: &str, b: &Namespace, at_b: &str) -> Result<()> {
    a.ip(&format!(
        "link add {at_a} type veth peer name {at_b} netns {}",
        b.name()
    ))?;
    a.ip(&format!("link set {at_a} up"))?;
    b.ip(&format!("link set {at_b} up"))
}
