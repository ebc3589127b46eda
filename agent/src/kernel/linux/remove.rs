//! Removing what is ours. What fails keeps nothing else from being removed, and every error is told.

use std::sync::atomic::Ordering;

use lowroad_core::desired::Observed;

use super::{Backend, LinuxKernel, filter_failed, filter_options};
use crate::kernel::{KernelError, KernelOptions, bpf::Filter, link, netlink::Netlink, route, sole};

/// Removes what an agent of this state directory left, without one running: `lowroad agent --cleanup`.
pub async fn cleanup(options: &KernelOptions) -> Result<(), KernelError> {
    let netlink = Netlink::connect()?;
    let mut results = match sole::claim().await {
        Ok(_sole) => remove_routes_and_rules(&netlink, None).await,
        Err(other) => {
            tracing::warn!(%other, "routes and rules of this network namespace are that agent's, and stay");
            Vec::new()
        }
    };
    results.push(remove_device(&netlink, options).await);
    let pins = Filter::cleanup(&filter_options(options));
    results.push(pins.map_err(filter_failed("removing the filter's pins")));
    all_of(results)
}

impl LinuxKernel {
    /// First what leads to the device, then the device, and the filter last: it is never up without.
    pub(super) async fn remove_everything(&mut self) -> Result<(), KernelError> {
        let found = link::find(&self.netlink.handle, &self.options.device).await;
        let own = found.ok().flatten().filter(|link| link.alias == self.alias);
        let mut results = remove_routes_and_rules(&self.netlink, own.map(|link| link.index)).await;
        if let Backend::Userspace(userspace) = &mut self.wireguard {
            userspace.stop().await;
        }
        let device = remove_device(&self.netlink, &self.options).await;
        let device_is_gone = device.is_ok();
        results.push(device);
        self.pretended = Observed::default();
        if device_is_gone {
            self.own.store(0, Ordering::Relaxed);
            let filter = match self.filter.take() {
                Some(filter) => filter.detach(),
                None => Filter::cleanup(&filter_options(&self.options)),
            };
            results.push(filter.map_err(filter_failed("removing the filter")));
        }
        all_of(results)
    }
}

/// Every result, each object of its own.
async fn remove_routes_and_rules(
    netlink: &Netlink,
    index: Option<u32>,
) -> Vec<Result<(), KernelError>> {
    let handle = &netlink.handle;
    let mut results = Vec::new();
    match route::rules(handle).await {
        Err(error) => results.push(Err(error)),
        Ok(rules) => {
            for rule in rules {
                results.push(route::remove_rule(handle, &rule).await);
            }
        }
    }
    match route::routes(handle, index).await {
        Err(error) => results.push(Err(error)),
        Ok(routes) => {
            for gone in routes {
                results.push(route::remove_route(handle, &gone, index).await);
            }
        }
    }
    results
}

/// The device, if it is ours, and one that was never finished.
async fn remove_device(netlink: &Netlink, options: &KernelOptions) -> Result<(), KernelError> {
    let handle = &netlink.handle;
    link::remove_unfinished(handle, &options.state_id).await?;
    match link::find(handle, &options.device).await? {
        Some(link) if link.alias == link::alias(&options.state_id) => {
            link::delete(handle, link.index).await?;
            tracing::info!(device = options.device, "device removed");
            Ok(())
        }
        _ => Ok(()),
    }
}

/// The one error, or what all of them say.
fn all_of(results: Vec<Result<(), KernelError>>) -> Result<(), KernelError> {
    let mut errors: Vec<_> = results.into_iter().filter_map(Result::err).collect();
    match errors.len() {
        0 => Ok(()),
        1 => Err(errors.remove(0)),
        _ => {
            let texts: Vec<_> = errors.iter().map(ToString::to_string).collect();
            Err(KernelError::Remains {
                what: texts.join("; "),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_of_a_removal_is_told() {
        let failed = |what: &str| Err(KernelError::Injected(what.into()));
        assert!(all_of(vec![Ok(()), Ok(())]).is_ok());
        let one = all_of(vec![Ok(()), failed("a")]).unwrap_err();
        assert_eq!(one.to_string(), "injected failure: a");
        let both = all_of(vec![failed("a"), Ok(()), failed("b")]).unwrap_err();
        assert_eq!(
            both.to_string(),
            "not everything could be removed: injected failure: a; injected failure: b"
        );
    }
}
