//! How sessions begin and end, and what the control server says meanwhile.

use std::time::Instant;

use lowroad_core::intent::Choices;
use lowroad_wire::key::{DiscoPublic, NodePrivate};
use time::OffsetDateTime;
use tracing::{error, info};

use super::{
    Engine, RETRY_INTERVAL, Sources,
    cached::Ended,
    links::Links,
    node::Node,
    session::{Plane, Session, Trouble},
    whole,
};
use crate::{
    control::{Control, ControlEvent, ControlOptions, Facts, hostinfo::hostinfo},
    kernel::{KernelError, KernelOptions},
    prefs::{AuthKey, Prefs},
    process::{give_memory_back, without_stalling},
    state::LeftKey,
    tls::Verification,
};

/// Of a map of more peers, packets that this worker would carry don't wait for the end.
pub(super) const LONG_MAP: usize = 256;

/// How a session's login differs from a restart with what is saved.
#[derive(Clone, Debug, Default)]
pub struct Login {
    pub auth_key: Option<AuthKey>,
    pub force_reauth: bool,
    pub accept_server_key: bool,
    /// Go on with the netmap that was kept, until the server sends one.
    pub resume: bool,
}

impl Engine {
    /// Starts the session with what is saved, and what is left of its login; if that fails, tries again later.
    pub(super) async fn start_or_retry(&mut self) {
        let login = Login {
            resume: true,
            ..self.login.clone()
        };
        if let Err(why) = self.start_session(login).await {
            self.cannot_start(&why);
        }
    }

    /// Keeps why the session could not be started, for `status`, and sees that it is tried again.
    pub(super) fn cannot_start(&mut self, why: &KernelError) -> String {
        let why = whole(why);
        if self.failure.as_ref() != Some(&why) {
            error!(error = %why, "cannot start; trying again");
        }
        self.failure = Some(why.clone());
        self.restart_at = Some(Instant::now() + RETRY_INTERVAL);
        why
    }

    /// Starts kernel side and control client in place of those that run.
    pub(super) async fn start_session(&mut self, login: Login) -> Result<(), KernelError> {
        let kept = self.end_control();
        self.restart_at = None;
        self.login = login.clone();
        let plane = match kept {
            Some(kept) => kept,
            None => self.start_plane().await?,
        };
        if !login.force_reauth {
            self.use_key_of_server();
        }
        let facts = Facts {
            generation: 1,
            hostinfo: hostinfo(&self.prefs, &self.state.id),
            endpoints: Vec::new(),
        };
        let mut session = Session::new(plane, facts.clone(), login.force_reauth);
        let known = self.state.node_key.clone();
        if let Some(key) = known.clone().filter(|_| !login.force_reauth) {
            session.set_key(self, key).await?;
            if login.resume {
                self.resume(&mut session, Instant::now()).await;
            }
        }
        let (control, events) = Control::start(self.control_options(login, known), facts);
        session.control = Some(control);
        self.sources.control = Some(events);
        self.session = Some(session);
        self.failure = None;
        Ok(())
    }

    async fn start_plane(&mut self) -> Result<Plane, KernelError> {
        self.links = Links::read(&self.options.kernel).await;
        let started = (self.options.start_kernel)(self.options.kernel.clone()).await?;
        info!(dataplane = %started.dataplane, why = started.why_userspace.as_deref(), "data plane");
        self.sources.changes = Some(started.changes);
        self.sources.datagrams = Some(started.datagrams);
        self.sources.filter = Some(started.filter_events);
        Ok(Plane {
            kernel: started.kernel,
            port: started.port,
            dataplane: started.dataplane,
            why_userspace: started.why_userspace,
        })
    }

    fn control_options(&self, login: Login, node: Option<NodePrivate>) -> ControlOptions {
        let known_server = self.state.server_keys.get(&self.prefs.control_url).copied();
        ControlOptions {
            url: self.prefs.control_url.clone(),
            machine: self.state.machine_key.clone(),
            node,
            old_node: self.state.old_node_key.clone(),
            accepted: self.state.is_accepted_by(&self.prefs.control_url),
            left: match login.force_reauth {
                true => Vec::new(),
                false => self.state.left_keys_of(&self.prefs.control_url),
            },
            disco: self.state.disco_key.public(),
            auth_key: login.auth_key,
            force_reauth: login.force_reauth,
            known_server: known_server.filter(|_| !login.accept_server_key),
            fwmark: self.options.kernel.mark.value,
            tls: self
                .options
                .tls
                .client(&Verification::Roots)
                .expect("the configuration for the roots was made with them"),
        }
    }

    /// For the logout of a key at the server that knows it, which need not be the preferred one.
    pub(super) fn logout_options(&self, key: LeftKey) -> ControlOptions {
        ControlOptions {
            known_server: self.state.server_keys.get(&key.server).copied(),
            url: key.server,
            ..self.control_options(Login::default(), Some(key.key))
        }
    }

    /// Ends the control client and the relays; the kernel side is kept for the next session.
    fn end_control(&mut self) -> Option<Plane> {
        self.sources.control = None;
        self.sources.relay = None;
        self.session.take()?.into_plane()
    }

    /// Ends the session and removes all that it made on this host.
    pub(super) async fn stop_session(&mut self) -> Result<(), KernelError> {
        self.restart_at = None;
        self.login = Login::default();
        let kept = self.end_control();
        self.sources = Sources::default();
        match kept {
            Some(mut plane) => plane.kernel.teardown().await,
            None => crate::kernel::cleanup(&self.options.kernel).await.map(drop),
        }
    }

    pub(super) async fn on_control(&mut self, event: ControlEvent) {
        let now = Instant::now();
        match event {
            ControlEvent::ServerKey(key) => {
                self.state
                    .server_keys
                    .insert(self.prefs.control_url.clone(), key);
                self.login.accept_server_key = false;
                let _ = self.save();
            }
            ControlEvent::NodeKey { node, old, kept } => self.on_node_key(node, old, kept).await,
            ControlEvent::Visit(url) => {
                self.forget_kept().await;
                self.with_session(|session| session.needs_login(url));
                self.reconcile_soon(now);
            }
            ControlEvent::Registered(response) => {
                self.state.accept_key(&self.prefs.control_url);
                if self.ended == Ended::Done {
                    self.ended = Ended::No;
                }
                self.login = Login::default();
                let _ = self.save();
                self.with_session(|session| {
                    session.auth_url.clear();
                    session.trouble = None;
                    session.registered = Some(response);
                });
            }
            ControlEvent::PollStarted => self.with_session(|session| {
                session.trouble = None;
                session.node.iter_mut().for_each(Node::poll_started);
            }),
            ControlEvent::Map {
                response,
                malformed,
            } => {
                let Some(session) = &mut self.session else {
                    return;
                };
                let Some(node) = &mut session.node else {
                    return;
                };
                let clock = OffsetDateTime::now_utc();
                let is_long = response.peers.len() + response.peers_changed.len() > LONG_MAP;
                let take = || {
                    // For the kept netmap; one that begins it is kept as a whole.
                    let difference = (!node.begins() && !response.keep_alive).then(|| {
                        serde_json::to_vec(&response).expect("what was read can be written")
                    });
                    (difference, node.take_map(*response, &malformed, now, clock))
                };
                let (difference, consequences) = match is_long {
                    true => without_stalling(|| {
                        let taken = take();
                        give_memory_back();
                        taken
                    }),
                    false => take(),
                };
                let clock_offset = node.map.as_ref().and_then(|map| map.clock_offset);
                if consequences.derp_map {
                    session.set_derp_map();
                }
                if consequences.kernel || consequences.netmap {
                    self.program_soon(now);
                }
                // Before anything of it is programmed.
                match difference.filter(|_| !consequences.begins) {
                    // A keep-alive tells the time, and so which keys have expired.
                    _ if !consequences.netmap => {
                        if self.cache.note_clock(now, clock_offset, clock) {
                            self.program_soon(now);
                        }
                    }
                    Some(message) => self.cache.append(now, &message, clock_offset, clock),
                    None => {
                        self.ended = Ended::No;
                        self.cache.replaced(now).await;
                    }
                }
            }
            ControlEvent::Acknowledged(generation) => {
                self.with_session(|session| session.acknowledge(generation))
            }
            ControlEvent::Lost { why, .. } => {
                let trouble = Trouble {
                    message: why.to_string(),
                    ends_up: why.ends_up(),
                };
                self.with_session(|session| session.trouble = Some(trouble));
            }
            ControlEvent::Failed(why) => self.on_refused(&why.to_string()).await,
        }
    }

    /// The server does not want this node: nothing may pass on the word of a netmap that no longer holds.
    async fn on_refused(&mut self, why: &str) {
        self.failure = Some(why.to_owned());
        self.forget_kept().await;
        let goes_back = self.fails_back_to_a_session();
        self.fail_ups(why).await;
        // That of a login for which nobody waits, too.
        self.leave_login();
        if !goes_back && self.session.is_some() {
            match self.stop_session().await {
                Ok(()) => self.note_void().await,
                Err(error) => error!(%error, "cannot remove what was programmed"),
            }
        }
    }
}

impl Engine {
    /// What the preferences and options say about the data plane.
    pub(super) fn choices(&self, private_key: NodePrivate) -> Choices {
        let disco = self.state.disco_key.public();
        choices(&self.options.kernel, &self.prefs, disco, private_key)
    }
}

pub(super) fn choices(
    kernel: &KernelOptions,
    prefs: &Prefs,
    disco: DiscoPublic,
    private_key: NodePrivate,
) -> Choices {
    Choices {
        device: kernel.device.clone(),
        listen_port: kernel.port,
        mark: kernel.mark,
        private_key,
        accept_routes: prefs.route_all,
        shields_up: prefs.shields_up,
        disco: *disco.as_bytes(),
    }
}
