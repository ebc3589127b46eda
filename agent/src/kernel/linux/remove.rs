//! Removing what is ours. What fails keeps nothing else from being removed, and every error is told.

use std::sync::atomic::Ordering;

use super::{Backend, LinuxKernel, Pretended, filter_failed, filter_options};
use crate::kernel::{
    KernelError, KernelOptions, bpf::Filter, link, netlink::Netlink, redirects::Redirects, route,
    sole,
};

/// Removes what an agent of this state directory left, without one running: `lowroad agent --cleanup`. Says what that was.
pub async fn cleanup(options: &KernelOptions) -> Result<Vec<String>, KernelError> {
    let netlink = Netlink::connect()?;
    let mut removal = Removal::default();
    match sole::claim().await {
        Ok(_sole) => removal.routes_and_rules(&netlink, None).await,
        Err(other) => {
            tracing::warn!(%other, "routes and rules of this network namespace are that agent's, and stay");
        }
    }
    removal.device_and_filter(&netlink, options, None).await;
    removal.setting(options);
    removal.end()
}

impl LinuxKernel {
    /// First what leads to the device, then the device, and the filter last: it is never up without.
    pub(super) async fn remove_everything(&mut self) -> Result<(), KernelError> {
        let mut removal = Removal::default();
        let ours = link::ours(&self.netlink.handle, &self.alias).await;
        let index = ours.ok().and_then(|ours| Some(ours.first()?.index));
        removal.routes_and_rules(&self.netlink, index).await;
        if let Backend::Userspace(userspace) = &mut self.wireguard {
            userspace.stop().await;
        }
        let filter = &mut self.filter;
        let device_is_gone = removal
            .device_and_filter(&self.netlink, &self.options, Some(filter))
            .await;
        if device_is_gone {
            self.own.store(0, Ordering::Relaxed);
        }
        removal.setting(&self.options);
        self.pretended = Pretended::default();
        removal.end().map(drop)
    }
}

/// What was removed, and what could not be.
#[derive(Default)]
struct Removal {
    removed: Vec<String>,
    errors: Vec<KernelError>,
}

impl Removal {
    /// True if there was something, and it is gone.
    fn note(&mut self, result: Result<bool, KernelError>, what: impl FnOnce() -> String) {
        match result {
            Ok(true) => self.removed.push(what()),
            Ok(false) => {}
            Err(error) => self.errors.push(error),
        }
    }

    /// Each object of its own.
    async fn routes_and_rules(&mut self, netlink: &Netlink, index: Option<u32>) {
        let handle = &netlink.handle;
        match route::rules(handle).await {
            Err(error) => self.errors.push(error),
            Ok(rules) => {
                for rule in rules {
                    let gone = route::remove_rule(handle, &rule).await;
                    self.note(gone.map(|()| true), || format!("rule {}", rule.priority));
                }
            }
        }
        match route::routes(handle, index).await {
            Err(error) => self.errors.push(error),
            Ok(routes) => {
                for route in routes {
                    let gone = route::remove_route(handle, &route, index).await;
                    self.note(gone.map(|()| true), || format!("route to {}", route.prefix));
                }
            }
        }
    }

    /// The device, whatever its name, and the filter once that is gone: true if the device is.
    async fn device_and_filter(
        &mut self,
        netlink: &Netlink,
        options: &KernelOptions,
        filter: Option<&mut Option<Filter>>,
    ) -> bool {
        let handle = &netlink.handle;
        let unfinished = link::remove_unfinished(handle, &options.state_id).await;
        self.note(unfinished, || "a device that was never finished".into());
        let before = self.errors.len();
        match link::ours(handle, &link::alias(&options.state_id)).await {
            Err(error) => self.errors.push(error),
            Ok(links) => {
                for link in links {
                    let gone = link::delete(handle, link.index).await;
                    self.note(gone.map(|()| true), || format!("device {}", link.name));
                }
            }
        }
        if self.errors.len() > before {
            return false;
        }
        let pins = match filter.and_then(Option::take) {
            Some(filter) => filter.detach(),
            None => Filter::cleanup(&filter_options(options)),
        };
        let pins = pins.map_err(filter_failed("removing the filter"));
        self.note(pins, || "the filter's pins".into());
        true
    }

    fn setting(&mut self, options: &KernelOptions) {
        let restored = Redirects::here(&options.state_dir).restore();
        self.note(Ok(restored), || {
            "WireGuard's change of net.ipv4.conf.all.send_redirects".into()
        });
    }

    fn end(mut self) -> Result<Vec<String>, KernelError> {
        match self.errors.len() {
            0 => Ok(self.removed),
            1 => Err(self.errors.remove(0)),
            _ => Err(remains(&self.errors)),
        }
    }
}

/// What all of them say.
pub(super) fn remains(errors: &[KernelError]) -> KernelError {
    let texts: Vec<_> = errors.iter().map(ToString::to_string).collect();
    KernelError::Remains {
        what: texts.join("; "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_of_a_removal_is_told() {
        let end = |results: Vec<Result<bool, &str>>| {
            let mut removal = Removal::default();
            for result in results {
                let result = result.map_err(|what| KernelError::Injected(what.into()));
                removal.note(result, || "x".into());
            }
            removal.end()
        };
        assert_eq!(end(vec![Ok(true), Ok(false)]).unwrap(), ["x"]);
        let one = end(vec![Ok(true), Err("a")]).unwrap_err();
        assert_eq!(one.to_string(), "injected failure: a");
        let both = end(vec![Err("a"), Ok(true), Err("b")]).unwrap_err();
        assert_eq!(
            both.to_string(),
            "not everything could be removed: injected failure: a; injected failure: b"
        );
    }
}
