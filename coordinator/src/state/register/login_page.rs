//! Login pages: machines that wait for a person's word.

use std::{net::IpAddr, time::Instant};

use lowroad_wire::{control::Hostinfo, key::MachinePublic};
use tokio::sync::watch;

use super::{Join, Stranger};
use crate::{
    Error, fair,
    state::{State, poll},
};

/// Login pages that may be open at once: each holds a host info. Beyond it whoever has most of them loses the oldest.
const MAX_PENDING: usize = 2000;

/// Requests that may wait for one page: stock clients have one, and may leave some behind on channels that are dead.
const MAX_WAITING: usize = 8;

/// A machine that waits for a person.
#[derive(Debug)]
pub(in crate::state) struct Pending {
    pub(super) request: Join,
    since: Instant,
    remote: IpAddr,
    /// Dropped, and so told, when it has been decided.
    decided: watch::Sender<()>,
}

/// Who asks to be let in.
#[derive(Debug)]
pub struct Waiting {
    pub hostname: String,
    pub os: String,
    pub remote: IpAddr,
}

impl State {
    /// Fires when the login page has been decided, or is no longer there. `None`: there is nothing to wait for.
    pub fn decision(
        &self,
        id: &str,
        machine: MachinePublic,
    ) -> Result<Option<watch::Receiver<()>>, Error> {
        let Some(pending) = self
            .pending
            .get(id)
            .filter(|pending| pending.request.machine == machine)
        else {
            return Ok(None);
        };
        if pending.decided.receiver_count() >= MAX_WAITING {
            return Err(Error::refused(
                hyper::StatusCode::TOO_MANY_REQUESTS,
                "too many requests wait for this login page already",
            ));
        }
        Ok(Some(pending.decided.subscribe()))
    }

    /// Who waits at a login page, by its own account but for the address.
    pub fn who_waits(&self, id: &str) -> Option<Waiting> {
        let pending = self.pending.get(id)?;
        let Hostinfo { hostname, os, .. } = &pending.request.hostinfo;
        Some(Waiting {
            hostname: hostname.clone(),
            os: os.clone(),
            remote: pending.remote,
        })
    }

    pub fn check_pending(&self, id: &str) -> Result<(), Error> {
        self.waiting(id).map(|_| ())
    }

    pub(super) fn waiting(&self, id: &str) -> Result<&Pending, Error> {
        self.pending.get(id).ok_or_else(|| {
            Error::not_found("no machine waits at this login page; it may have expired: run `up` on the machine again for a new one")
        })
    }

    pub(in crate::state) fn drop_old_registrations(&mut self, instant: Instant) {
        let lifetime = self.settings.timing.registration_lifetime;
        self.pending
            .retain(|_, pending| instant.saturating_duration_since(pending.since) < lifetime);
    }

    pub(super) fn open_login_page(
        &mut self,
        join: Join,
        who: &Stranger<'_>,
    ) -> Result<String, Error> {
        // Before anything else: what replaces an earlier request of the page is kept as long as that one.
        poll::check_size(&join.hostinfo)?;
        let same = |pending: &Pending| {
            pending.request.machine == join.machine && pending.request.key == join.key
        };
        if let Some((id, pending)) = self.pending.iter_mut().find(|(_, pending)| same(pending)) {
            pending.request = join;
            return Ok(id.clone());
        }
        if self.pending.len() >= MAX_PENDING {
            let crowd = self.pending.iter();
            let since =
                |(id, pending): (&String, &Pending)| (pending.remote, (pending.since, id.clone()));
            for (_, id) in fair::who_goes(crowd.map(since), 1) {
                tracing::debug!(%id, "too many login pages: one made way");
                self.pending.remove(&id);
            }
        }
        let id = hex::encode(who.random);
        let pending = Pending {
            request: join,
            since: who.instant,
            remote: who.remote,
            decided: watch::Sender::new(()),
        };
        self.pending.insert(id.clone(), pending);
        Ok(id)
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use lowroad_wire::{control::RegisterRequest, key::NodePublic};
    use time::OffsetDateTime;

    use super::*;
    use crate::{
        state::{Settings, register::Registered},
        store::Store,
    };

    fn ask(state: &mut State, number: u32, remote: IpAddr, began: Instant) -> String {
        let mut bytes = [1; 32];
        bytes[..4].copy_from_slice(&number.to_le_bytes());
        let mut random = [0; 16];
        random[..4].copy_from_slice(&number.to_le_bytes());
        let who = Stranger {
            machine: MachinePublic::from_bytes(bytes),
            remote,
            random,
            now: OffsetDateTime::UNIX_EPOCH,
            instant: began + Duration::from_millis(number.into()),
            may_tag: &|_, _| false,
        };
        let request = RegisterRequest {
            node_key: Some(NodePublic::from_bytes(bytes)),
            ..RegisterRequest::default()
        };
        match state.register(request, &who) {
            Ok(Registered::Visit(id)) => id,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_flood_of_login_pages_pushes_out_itself_and_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let began = Instant::now();
        let settings = Arc::new(Settings::default());
        let mut state = State::load(&store, settings, OffsetDateTime::UNIX_EPOCH, began).unwrap();
        let home = "2001:db8:1::5".parse().unwrap();
        let waiting = ask(&mut state, 0, home, began);
        // One host with all addresses of a /48.
        let flood = |number: u32| IpAddr::from([0x2001, 0xdb8, 2, number as u16, 0, 0, 0, 1]);
        let pages: Vec<_> = (1..=MAX_PENDING as u32 + 100)
            .map(|number| ask(&mut state, number, flood(number), began))
            .collect();
        assert_eq!(state.pending.len(), MAX_PENDING);
        assert!(
            state.who_waits(&waiting).is_some(),
            "the flood pushed it out"
        );
        assert!(state.who_waits(&pages[0]).is_none());
        let late = ask(&mut state, u32::MAX, "192.0.2.1".parse().unwrap(), began);
        assert!(state.who_waits(&late).is_some(), "who comes late is let in");
        assert_eq!(state.pending.len(), MAX_PENDING);
    }
}
