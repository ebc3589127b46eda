//! The real kernel: netlink, one of two WireGuards, and the filter, behind [`Kernel`].

mod objects;
mod remove;

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use futures_util::FutureExt;
use lowroad_core::desired::{Observed, ObservedDevice, PeerStats};
use lowroad_core::filter::{Compiled, FilterCounters, FilterEvent};
use lowroad_core::plan::Step;
use tokio::sync::mpsc;

use self::objects::Pretended;
pub use self::remove::cleanup;
use super::bpf::{Filter, FilterError, FilterOptions};
use super::link::{self, Link};
use super::monitor::{self, OwnIndex};
use super::netlink::{Netlink, described, io_error};
use super::probe::{self, Probed};
use super::redirects::{Before, Redirects};
use super::sole::{self, Sole};
use super::userspace::Userspace;
use super::wireguard::{Snapshot, WireGuard, is_wireguards};
use super::{Dataplane, Kernel, KernelError, KernelFuture, KernelOptions, Started, route};
use crate::process::without_stalling;
use crate::traversal::port::Port;

/// Filter events that wait for the engine; the newest are lost beyond that.
const FILTER_EVENTS: usize = 1024;

/// Probes, binds the port and starts watching. The device is created by the first plan's steps.
pub async fn start(options: KernelOptions) -> Result<Started, KernelError> {
    let sole = sole::claim().await?;
    Redirects::here(&options.state_dir).restore();
    let netlink = Netlink::connect()?;
    let alias = link::alias(&options.state_id);
    let Probed {
        dataplane,
        why_userspace,
        adopted,
    } = probe::probe(&netlink.handle, &options, &alias).await?;
    let adopted = adopted && !give_up(&netlink, &options, &alias).await?;
    let own = OwnIndex::new(AtomicU32::new(0));
    let changes = monitor::watch(options.device.clone(), own.clone())?;
    let (wireguard, port, datagrams) = match dataplane {
        Dataplane::Userspace => {
            let (userspace, port, datagrams) =
                Userspace::bind(options.port, options.mark.value).await?;
            (Backend::Userspace(Box::new(userspace)), port, datagrams)
        }
        Dataplane::Kernel => {
            let (port, datagrams) = Port::raw(options.port, options.mark.value)
                .map_err(|source| described("opening raw sockets for disco and STUN", source))?;
            (
                Backend::Kernel(WireGuard::new(&options.device, own.clone())),
                port,
                datagrams,
            )
        }
    };
    let (events, filter_events) = mpsc::channel(FILTER_EVENTS);
    let kernel = LinuxKernel {
        _sole: sole,
        netlink,
        options,
        alias,
        own,
        wireguard,
        filter: None,
        events,
        new: 0,
        pretended: Pretended::default(),
    };
    Ok(Started {
        kernel: Box::new(kernel),
        port,
        datagrams,
        filter_events,
        changes,
        dataplane,
        why_userspace,
        adopted,
    })
}

/// Kernel state of this machine.
pub struct LinuxKernel {
    _sole: Sole,
    netlink: Netlink,
    options: KernelOptions,
    alias: String,
    own: OwnIndex,
    wireguard: Backend,
    filter: Option<Filter>,
    events: mpsc::Sender<FilterEvent>,
    /// Index of a device that we have made, until it has our filter.
    new: u32,
    pretended: Pretended,
}

impl std::fmt::Debug for LinuxKernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LinuxKernel")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

enum Backend {
    Kernel(WireGuard),
    Userspace(Box<Userspace>),
}

impl Backend {
    fn dataplane(&self) -> Dataplane {
        match self {
            Self::Kernel(_) => Dataplane::Kernel,
            Self::Userspace(_) => Dataplane::Userspace,
        }
    }

    async fn read(&self) -> Result<Snapshot, KernelError> {
        match self {
            Self::Kernel(wireguard) => wireguard.read().await,
            Self::Userspace(userspace) => userspace.read().await,
        }
    }

    /// Steps that are WireGuard's.
    async fn apply(&mut self, steps: &[Step]) -> Result<(), KernelError> {
        match self {
            Self::Kernel(wireguard) => wireguard.apply(steps).await,
            Self::Userspace(userspace) => {
                for step in steps {
                    userspace.apply(step).await?;
                }
                Ok(())
            }
        }
    }
}

impl Kernel for LinuxKernel {
    fn observe(&mut self) -> KernelFuture<'_, Observed> {
        async move {
            self.reconnect()?;
            self.read_back().await
        }
        .boxed()
    }

    fn apply<'a>(&'a mut self, step: &'a Step) -> KernelFuture<'a, ()> {
        self.take(step).boxed()
    }

    fn apply_all<'a>(&'a mut self, steps: &'a [Step]) -> KernelFuture<'a, ()> {
        async move {
            for run in steps.chunk_by(|a, b| is_wireguards(a) && is_wireguards(b)) {
                match run {
                    [step] => self.take(step).await?,
                    wireguards => self.wireguard.apply(wireguards).await?,
                }
            }
            Ok(())
        }
        .boxed()
    }

    fn install_filter<'a>(&'a mut self, compiled: &'a Compiled) -> KernelFuture<'a, ()> {
        async move {
            let what = "installing the packet filter";
            let filter = self.filter.as_mut().ok_or(KernelError::NoFilter { what })?;
            without_stalling(|| filter.install(compiled)).map_err(filter_failed(what))
        }
        .boxed()
    }

    fn close_filter(&mut self) -> KernelFuture<'_, ()> {
        async move {
            let what = "closing the packet filter";
            let closed = match &mut self.filter {
                Some(filter) => filter.close().map_err(filter_failed(what)),
                None => Err(KernelError::NoFilter { what }),
            };
            match (closed, self.find().await?) {
                (Ok(()), _) | (Err(_), None) => Ok(()),
                (Err(why), Some(link)) => {
                    tracing::error!(error = %why, "the device goes down instead");
                    link::set_down(&self.netlink.handle, link.index).await
                }
            }
        }
        .boxed()
    }

    fn filter_is_lost(&mut self) -> bool {
        self.filter.is_some() && !self.filter_is_attached()
    }

    fn filter_counters(&mut self) -> Result<FilterCounters, KernelError> {
        let what = "reading the filter's counters";
        let filter = self.filter.as_ref().ok_or(KernelError::NoFilter { what })?;
        filter.counters().map_err(filter_failed(what))
    }

    fn peer_stats(&mut self) -> KernelFuture<'_, Vec<PeerStats>> {
        async move { Ok(self.wireguard.read().await?.stats) }.boxed()
    }

    fn teardown(&mut self) -> KernelFuture<'_, ()> {
        async move {
            self.reconnect()?;
            self.remove_everything().await
        }
        .boxed()
    }
}

impl LinuxKernel {
    /// A netlink socket that was given up must not end what needs no more than another one.
    fn reconnect(&mut self) -> Result<(), KernelError> {
        if self.netlink.is_dead() {
            tracing::warn!("the netlink socket failed; opening another one");
            self.netlink = Netlink::connect()?;
        }
        Ok(())
    }

    async fn read_back(&mut self) -> Result<Observed, KernelError> {
        let found = self.find().await?;
        let index = found.as_ref().map(|link| link.index);
        let handle = &self.netlink.handle;
        let mut observed = Observed {
            device: None,
            routes: route::routes(handle, index).await?,
            rules: route::rules(handle).await?,
        };
        if let Some(link) = found {
            let addresses = link::addresses(handle, link.index).await?;
            let snapshot = self.wireguard.read().await?;
            observed.device = Some(ObservedDevice {
                mtu: link.mtu,
                up: link.up,
                filter_attached: self.filter_is_attached(),
                addresses,
                public_key: snapshot.public_key,
                listen_port: snapshot.listen_port,
                fwmark: snapshot.fwmark,
                peers: snapshot.peers,
            });
        }
        self.pretended.show(&mut observed, &self.options.device);
        Ok(observed)
    }

    /// Our device, if it is there and, with userspace, driven by us. One with another name gets its own: WireGuard is asked by name.
    async fn find(&self) -> Result<Option<Link>, KernelError> {
        let (handle, device) = (&self.netlink.handle, &self.options.device);
        let dataplane = self.wireguard.dataplane();
        let mut found = link::find_own(handle, device, &self.alias, dataplane).await?;
        self.own.store(
            found.as_ref().map_or(0, |link| link.index),
            Ordering::Relaxed,
        );
        match (&self.wireguard, &found) {
            (Backend::Userspace(userspace), Some(_)) if !userspace.is_running() => {
                return Err(KernelError::NameTaken {
                    device: device.clone(),
                    what: link::OTHER_AGENT.into(),
                });
            }
            _ => {}
        }
        if let Some(renamed) = found.as_mut().filter(|link| link.name != *device) {
            link::rename(handle, renamed, device).await?;
        }
        Ok(found)
    }

    /// As last found: an index isn't used again soon, so if the device went since, what is written to it fails.
    fn index(&self) -> Result<u32, KernelError> {
        match self.own.load(Ordering::Relaxed) {
            0 => Err(KernelError::NoDevice {
                device: self.options.device.clone(),
            }),
            index => Ok(index),
        }
    }

    fn filter_is_attached(&self) -> bool {
        let attached = self.filter.as_ref().map(Filter::is_attached);
        if let Some(Err(error)) = &attached {
            tracing::warn!(%error, "looking whether the filter is attached");
        }
        matches!(attached, Some(Ok(true)))
    }

    async fn take(&mut self, step: &Step) -> Result<(), KernelError> {
        match step {
            Step::CreateDevice { mtu } => self.create(*mtu).await,
            Step::AttachFilter => self.attach_filter().await,
            Step::LinkUp => self.link_up().await,
            Step::SetMtu(mtu) => {
                if let Backend::Userspace(userspace) = &self.wireguard {
                    userspace.set_mtu(*mtu);
                }
                link::set_mtu(&self.netlink.handle, self.index()?, *mtu).await
            }
            Step::AddAddress(_) | Step::AddRoute(_) | Step::AddRule(_) => {
                self.add_object(step).await
            }
            Step::RemoveAddress(_) | Step::RemoveRoute(_) | Step::RemoveRule(_) => {
                self.remove_object(step).await
            }
            wireguards => self.wireguard.apply(std::slice::from_ref(wireguards)).await,
        }
    }

    async fn create(&mut self, mtu: u32) -> Result<(), KernelError> {
        if self.find().await?.is_some() {
            return Ok(());
        }
        let handle = &self.netlink.handle;
        let device = &self.options.device;
        self.filter = None;
        self.pretended = Pretended::default();
        let born_as = match &mut self.wireguard {
            // Goes with its agent: a killed one leaves none without alias.
            Backend::Userspace(userspace) => {
                userspace.create(device, mtu).await?;
                device.clone()
            }
            Backend::Kernel(_) => {
                let name = link::unfinished_name(&self.options.state_id);
                link::remove_unfinished(handle, &self.options.state_id).await?;
                link::create_wireguard(handle, &name)
                    .await
                    .map_err(|error| {
                        described(
                            format!("creating the WireGuard device {device}"),
                            io_error(error),
                        )
                    })?;
                name
            }
        };
        let gone = || KernelError::NoDevice {
            device: device.clone(),
        };
        let created = link::find(handle, &born_as).await?.ok_or_else(gone)?;
        if let Err(error) = link::make_own(handle, created.index, device, &self.alias, mtu).await {
            return Err(match link::delete(handle, created.index).await {
                Ok(()) => error,
                Err(too) => remove::remains(&[error, too]),
            });
        }
        self.new = created.index;
        self.own.store(created.index, Ordering::Relaxed);
        tracing::info!(device, dataplane = %self.wireguard.dataplane(), "device created");
        Ok(())
    }

    async fn attach_filter(&mut self) -> Result<(), KernelError> {
        if self.filter_is_attached() {
            return Ok(());
        }
        let index = self.index()?;
        let options = FilterOptions {
            device_is_new: index == self.new,
            ..filter_options(&self.options)
        };
        let device = &self.options.device;
        self.filter = None;
        let what = "attaching the packet filter";
        let attached = without_stalling(|| Filter::attach_or_adopt(device, index, &options));
        let is_out_of_reach = matches!(&attached, Err(FilterError::OutOfReach { .. }));
        let attached = attached.map_err(filter_failed(what));
        if is_out_of_reach {
            // The next plan makes another one.
            link::delete(&self.netlink.handle, index).await?;
        }
        let mut filter = attached?;
        self.new = 0;
        forward(
            filter
                .events()
                .map_err(filter_failed("reading the filter's events"))?,
            self.events.clone(),
        );
        self.filter = Some(filter);
        Ok(())
    }

    /// A device is never up without its filter.
    async fn link_up(&mut self) -> Result<(), KernelError> {
        let index = self.index()?;
        if !self.filter_is_attached() {
            return Err(KernelError::NoFilter {
                what: "bringing the device up",
            });
        }
        let device = &self.options.device;
        let redirects = Redirects::here(&self.options.state_dir);
        let before = match &self.wireguard {
            Backend::Kernel(_) => redirects.remember(),
            Backend::Userspace(_) => Before::default(),
        };
        let result = link::set_up(&self.netlink.handle, index).await;
        redirects.keep(before);
        match result.map_err(io_error) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(KernelError::PortTaken {
                port: self.options.port,
            }),
            Err(error) => Err(described(format!("bringing the device {device} up"), error)),
        }
    }
}

/// Deletes a device that has an earlier agent's filter where we cannot get at it: its old policy would be in force beside ours. Says whether it was so.
async fn give_up(
    netlink: &Netlink,
    options: &KernelOptions,
    alias: &str,
) -> Result<bool, KernelError> {
    let filter = filter_options(options);
    for link in link::ours(&netlink.handle, alias).await? {
        let what = "looking for the filter of an earlier agent";
        if Filter::is_out_of_reach(link.index, &filter).map_err(filter_failed(what))? {
            tracing::warn!(
                device = link.name,
                "an earlier agent's filter is on the device, and its pins are out of reach: the device is made anew"
            );
            link::delete(&netlink.handle, link.index).await?;
            return Ok(true);
        }
    }
    Ok(false)
}

fn filter_options(options: &KernelOptions) -> FilterOptions {
    FilterOptions {
        traces: options.filter_traces,
        ..FilterOptions::new(options.state_id.clone(), options.mark.value)
    }
}

fn filter_failed(what: &'static str) -> impl FnOnce(FilterError) -> KernelError {
    move |source| KernelError::Filter { what, source }
}

/// Each attached filter has a channel of its own; the engine keeps one.
fn forward(mut from: mpsc::Receiver<FilterEvent>, to: mpsc::Sender<FilterEvent>) {
    tokio::spawn(async move {
        while let Some(event) = from.recv().await {
            if let Err(mpsc::error::TrySendError::Closed(_)) = to.try_send(event) {
                return;
            }
        }
    });
}
