//! Addresses, routes and rules. IPv6 ones are allowed to be impossible.

use std::fs;

use lowroad_core::desired::{Family, Observed};
use lowroad_core::plan::{Step, apply_to_model};

use super::LinuxKernel;
use crate::kernel::netlink::{described, io_error};
use crate::kernel::{KernelError, link, route};

/// Errors for an IPv6 object on a machine where IPv6 is switched off, altogether or for new devices (as Docker does).
const NO_IPV6: [i32; 4] = [
    libc::EAFNOSUPPORT,
    libc::EOPNOTSUPP,
    libc::EACCES,
    libc::EADDRNOTAVAIL,
];

/// IPv6 objects that this machine can't have: observed as if they were there, or each plan would try again. It does when IPv6 was switched since.
#[derive(Debug, Default)]
pub(super) struct Pretended {
    objects: Observed,
    /// How it was when the first of them was refused.
    switches: Switches,
}

/// `disable_ipv6` of loopback, where dropping routes are, and of our device; `None` on a kernel without IPv6.
type Switches = [Option<String>; 2];

fn switches(device: &str) -> Switches {
    let read = |of| fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{of}/disable_ipv6")).ok();
    ["lo", device].map(read)
}

impl Pretended {
    fn is_empty(&self) -> bool {
        self.objects == Observed::default()
    }

    fn add(&mut self, step: &Step, device: &str) {
        if self.is_empty() {
            self.switches = switches(device);
        }
        self.objects.device.get_or_insert_default();
        apply_to_model(&mut self.objects, step);
    }

    fn remove(&mut self, step: &Step) {
        apply_to_model(&mut self.objects, step);
    }

    /// Puts them beside what is there.
    pub fn show(&mut self, observed: &mut Observed, device: &str) {
        if !self.is_empty() && self.switches != switches(device) {
            tracing::info!(
                "IPv6 was switched on or off: what this machine couldn't have before is tried again"
            );
            *self = Self::default();
        }
        observed.rules.extend(&self.objects.rules);
        if let (Some(device), Some(pretended)) = (&mut observed.device, &self.objects.device) {
            device.addresses.extend(&pretended.addresses);
            observed.routes.extend(&self.objects.routes);
        }
    }
}

impl LinuxKernel {
    /// An address, route or rule; an IPv6 one is allowed to be impossible.
    pub(super) async fn add_object(&mut self, step: &Step) -> Result<(), KernelError> {
        let handle = &self.netlink.handle;
        let (result, what, is_v6) = match step {
            Step::AddAddress(address) => (
                link::add_address(handle, self.index()?, *address).await,
                format!("adding the address {address}"),
                address.addr().is_ipv6(),
            ),
            Step::AddRoute(new) => (
                route::add_route(handle, new, self.index()?).await,
                format!("adding the route to {}", new.prefix),
                new.prefix.addr().is_ipv6(),
            ),
            Step::AddRule(rule) => (
                route::add_rule(handle, rule).await,
                format!("adding the rule {}", rule.priority),
                rule.family == Family::V6,
            ),
            _ => return Ok(()),
        };
        let Err(error) = result.map_err(io_error) else {
            return Ok(());
        };
        match error.raw_os_error() {
            Some(libc::EEXIST) => Ok(()),
            Some(code) if is_v6 && NO_IPV6.contains(&code) => {
                tracing::debug!(what, %error, "IPv6 is switched off on this machine");
                self.pretended.add(step, &self.options.device);
                Ok(())
            }
            _ => Err(described(what, error)),
        }
    }

    pub(super) async fn remove_object(&mut self, step: &Step) -> Result<(), KernelError> {
        let handle = &self.netlink.handle;
        self.pretended.remove(step);
        match step {
            Step::RemoveAddress(address) => {
                link::remove_address(handle, self.index()?, *address).await
            }
            Step::RemoveRoute(gone) => route::remove_route(handle, gone, self.index().ok()).await,
            Step::RemoveRule(rule) => route::remove_rule(handle, rule).await,
            _ => Ok(()),
        }
    }
}
