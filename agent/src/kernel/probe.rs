//! Which data plane this machine can run, and what is missing for the others.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};

use rtnetlink::Handle;

use super::link::{self, Kind};
use super::netlink::io_error;
use super::{Dataplane, DataplaneChoice, KernelError, KernelOptions};

/// Oldest kernel that has what we use everywhere.
const OLDEST: (u32, u32) = (5, 15);

/// `CAP_NET_ADMIN` in the masks of /proc/self/status.
const NET_ADMIN: u32 = 12;

/// What was found.
#[derive(Debug)]
pub(super) struct Probed {
    pub dataplane: Dataplane,
    /// Why it isn't kernel WireGuard, when nobody asked for userspace.
    pub why_userspace: Option<String>,
    /// Our device of an earlier run is there.
    pub adopted: bool,
}

pub(super) async fn probe(
    handle: &Handle,
    options: &KernelOptions,
    alias: &str,
) -> Result<Probed, KernelError> {
    link::check_name(&options.device)?;
    check_release()?;
    check_privileges(format!("creating the network device {}", &options.device))?;
    let ours = link::ours(handle, alias).await?;
    let own = ours.iter().any(|link| link.kind == Kind::WireGuard);
    let chosen = |dataplane| Probed {
        dataplane,
        why_userspace: None,
        adopted: own,
    };
    let probed = match options.dataplane {
        DataplaneChoice::Userspace => chosen(Dataplane::Userspace),
        _ if own => chosen(Dataplane::Kernel),
        DataplaneChoice::Kernel => {
            try_wireguard(handle, &options.state_id).await?;
            chosen(Dataplane::Kernel)
        }
        DataplaneChoice::Auto => match try_wireguard(handle, &options.state_id).await {
            Ok(()) => chosen(Dataplane::Kernel),
            Err(KernelError::NoWireGuard { source }) => Probed {
                why_userspace: Some(format!("this kernel has no WireGuard ({source})")),
                ..chosen(Dataplane::Userspace)
            },
            Err(other) => return Err(other),
        },
    };
    let there = link::find_own(handle, &options.device, alias, probed.dataplane).await?;
    if there.is_some() && probed.dataplane == Dataplane::Userspace {
        return Err(KernelError::NameTaken {
            device: options.device.clone(),
            what: link::OTHER_AGENT.into(),
        });
    }
    match probed.dataplane {
        Dataplane::Kernel if !probed.adopted => check_port(options.port)?,
        Dataplane::Kernel => {}
        Dataplane::Userspace => check_tun()?,
    }
    Ok(probed)
}

/// Creates a WireGuard link as an unfinished device, and removes it. The kernel loads the module meanwhile, if it may.
async fn try_wireguard(handle: &Handle, state_id: &str) -> Result<(), KernelError> {
    let name = link::unfinished_name(state_id);
    link::remove_unfinished(handle, state_id).await?;
    if let Err(error) = link::create_wireguard(handle, &name).await {
        let source = io_error(error);
        return Err(match source.raw_os_error() {
            Some(libc::EPERM) => KernelError::NotPermitted {
                what: "creating a WireGuard device".into(),
            },
            _ => KernelError::NoWireGuard { source },
        });
    }
    link::remove_unfinished(handle, state_id).await.map(drop)
}

/// The kernel's WireGuard binds its port only when the link goes up: better to know before.
fn check_port(port: u16) -> Result<(), KernelError> {
    let taken = |error: io::Error| error.kind() == io::ErrorKind::AddrInUse;
    let v4 = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).is_err_and(taken);
    let v6 = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).is_err_and(taken);
    if v4 || v6 {
        Err(KernelError::PortTaken { port })
    } else {
        Ok(())
    }
}

fn check_tun() -> Result<(), KernelError> {
    std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .map(drop)
        .map_err(|source| KernelError::NoTun { source })
}

/// Whether we have CAP_NET_ADMIN, without which nothing of ours works; if the kernel's word can't be read, the first
/// attempt will tell.
pub fn check_privileges(what: impl Into<String>) -> Result<(), KernelError> {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else {
        return Ok(());
    };
    match effective_capabilities(&status) {
        Some(mask) if mask & (1 << NET_ADMIN) == 0 => {
            Err(KernelError::NotPermitted { what: what.into() })
        }
        _ => Ok(()),
    }
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn check_release() -> Result<(), KernelError> {
    let Ok(release) = std::fs::read_to_string("/proc/sys/kernel/osrelease") else {
        return Ok(());
    };
    match version(&release) {
        Some(version) if version < OLDEST => Err(KernelError::TooOld {
            release: release.trim().into(),
        }),
        _ => Ok(()),
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_releases_are_compared_by_number() {
        assert_eq!(version("6.12.107+deb13-cloud-amd64\n"), Some((6, 12)));
        assert!(version("5.4.0-42-generic").unwrap() < OLDEST);
        assert!(version("5.15.0").unwrap() >= OLDEST);
        assert_eq!(version("unknown"), None);
    }

    #[test]
    fn capabilities_are_read_from_the_effective_set() {
        let status = "Name:\tx\nCapPrm:\t0000000000000000\nCapEff:\t0000000000001000\n";
        assert_eq!(effective_capabilities(status), Some(1 << NET_ADMIN));
    }
}
