//! `up`: waits until the node is connected, and puts everything back if that fails.

mod begun;

use std::time::{Duration, Instant};

use lowroad_wire::key::{NodePrivate, NodePublic};
use tokio::sync::mpsc;
use tracing::{info, warn};

pub use begun::BegunLogin;

use super::{Engine, bus::Bus, cached::Ended, lifecycle::Login, session::Session, whole};
use crate::{
    localapi::UpRequest,
    prefs::{AuthKey, Change, Prefs},
    status::Progress,
};

/// How long an unreachable server may stay unreachable before `up` gives up: a server that starts beside us gets its chance, a wrong address an answer.
const UNREACHABLE_AFTER: Duration = Duration::from_secs(10);

/// An `up` that somebody waits for.
#[derive(Debug)]
pub struct PendingUp {
    progress: Listener,
    /// From `--timeout`.
    timeout: Option<(Instant, Duration)>,
    /// Since when there has been nothing but trouble with the server.
    trouble_since: Option<Instant>,
    said: String,
    visited: String,
    before: Before,
}

/// Who waits for it.
#[derive(Debug)]
enum Listener {
    /// A command; if it goes, the attempt is given up.
    Command(mpsc::Sender<Progress>),
    /// Whoever watches the bus.
    Bus,
}

/// What a failed `up` goes back to.
#[derive(Clone, Debug)]
struct Before {
    prefs: Prefs,
    /// What was left of a login for which nobody waits.
    login: Login,
    /// There was a session, or attempts to start one.
    running: bool,
    /// The session was replaced for this `up`.
    restarted: bool,
}

impl PendingUp {
    pub fn deadline(&self) -> Option<Instant> {
        let trouble = self.trouble_since.map(|since| since + UNREACHABLE_AFTER);
        [self.timeout.map(|(at, _)| at), trouble]
            .into_iter()
            .flatten()
            .min()
    }

    fn new(progress: Listener, timeout: Duration, before: Before) -> Self {
        Self {
            progress,
            timeout: (!timeout.is_zero()).then(|| (Instant::now() + timeout, timeout)),
            trouble_since: None,
            said: String::new(),
            visited: String::new(),
            before,
        }
    }

    fn tell(&self, step: Progress) {
        match &self.progress {
            // A reader that doesn't keep up misses a line; one that has gone is noticed elsewhere.
            Listener::Command(progress) => drop(progress.try_send(step)),
            // The state tells it.
            Listener::Bus => {}
        }
    }

    fn fail(&self, why: &str, bus: &mut Bus) {
        match &self.progress {
            Listener::Command(_) => self.tell(Progress::Failed(why.to_owned())),
            Listener::Bus => bus.tell_failure(why),
        }
    }

    pub fn can_be_interrupted(&self) -> bool {
        matches!(self.progress, Listener::Command(_))
    }

    fn is_interrupted(&self) -> bool {
        matches!(&self.progress, Listener::Command(progress) if progress.is_closed())
    }
}

impl Engine {
    pub(super) async fn on_up(&mut self, request: UpRequest, progress: mpsc::Sender<Progress>) {
        let timeout = Duration::from_millis(request.timeout_ms);
        match self.begin_up(request).await {
            Ok(before) => {
                let progress = Listener::Command(progress);
                self.ups.push(PendingUp::new(progress, timeout, before));
            }
            Err(why) => {
                let _ = progress.try_send(Progress::Failed(why));
            }
        }
    }

    async fn begin_up(&mut self, request: UpRequest) -> Result<Before, String> {
        let mut change = request.change;
        change.validate().map_err(|error| error.to_string())?;
        if !request.reset {
            change
                .require_complete(&self.prefs)
                .map_err(|error| error.to_string())?;
        }
        let mut prefs = if request.reset {
            Prefs::default()
        } else {
            self.prefs.clone()
        };
        change.apply(&mut prefs);
        prefs.want_running = true;
        prefs.logged_out = false;
        if !request.force_reauth {
            self.check_server(&prefs)?;
        }
        let mut before = Before {
            prefs: self.prefs.clone(),
            login: self.login_without_waiting(),
            running: self.session.is_some() || self.restart_at.is_some(),
            restarted: false,
        };
        if request.force_reauth {
            self.leave_login();
        }
        let restart = request.force_reauth
            || request.accept_server_key
            || self.needs_session(&prefs, request.auth_key.as_ref());
        self.prefs = prefs;
        self.apply_preferences();
        if restart {
            let login = Login {
                auth_key: request.auth_key,
                force_reauth: request.force_reauth,
                accept_server_key: request.accept_server_key,
                resume: false,
            };
            before.restarted = before.running;
            self.note_restart();
            if let Err(why) = self.start_session(login).await {
                self.go_back(&before).await;
                return Err(whole(&why));
            }
        }
        Ok(before)
    }

    fn login_without_waiting(&self) -> Login {
        match self.ups[..] {
            [] => self.login.clone(),
            // That login is theirs.
            _ => Login::default(),
        }
    }

    fn own_key(&self) -> Option<NodePublic> {
        self.state.node_key.as_ref().map(NodePrivate::public)
    }

    /// Those that wait already go back to another session than there is then.
    fn note_restart(&mut self) {
        for up in &mut self.ups {
            up.before.restarted |= up.before.running;
        }
    }

    /// Whether the session that there is can't do what these preferences and this key ask for.
    fn needs_session(&self, prefs: &Prefs, auth_key: Option<&AuthKey>) -> bool {
        let Some(session) = self
            .session
            .as_ref()
            .filter(|session| session.control.is_some())
        else {
            return true;
        };
        prefs.control_url != self.prefs.control_url
            || session.is_expired()
            || (auth_key.is_some() && session.registered.is_none())
    }

    /// A node key is registered with one server; another one is a new login.
    pub(super) fn check_server(&self, prefs: &Prefs) -> Result<(), String> {
        if prefs.control_url == self.prefs.control_url {
            // Also while a login elsewhere is under way.
            return Ok(());
        }
        let registered = self
            .state
            .node_key
            .as_ref()
            .and(self.state.registered_at.as_ref());
        match registered.filter(|url| **url != prefs.control_url) {
            None => Ok(()),
            Some(_) => Err("can't change --login-server without --force-reauth: this node is registered with another server; `lowroad up --login-server=URL --force-reauth` does it".to_owned()),
        }
    }

    /// Tells those who wait how far it is, and ends what has succeeded or failed.
    pub(super) async fn advance_ups(&mut self, now: Instant) {
        if self.ups.is_empty() {
            return;
        }
        self.forget_interrupted();
        let Some(session) = &self.session else {
            let why = self
                .failure
                .clone()
                .unwrap_or_else(|| "the node was stopped".to_owned());
            return self.fail_ups(&why).await;
        };
        let Some(waiting) = session.waiting_for() else {
            return self.finish_ups().await;
        };
        let (trouble, auth_url) = (session.trouble.clone(), session.auth_url.clone());
        if let Some(trouble) = trouble.as_ref().filter(|trouble| trouble.ends_up) {
            return self.fail_ups(&trouble.message).await;
        }
        let mut failed = None;
        for up in &mut self.ups {
            match &trouble {
                None => up.trouble_since = None,
                Some(trouble)
                    if up.trouble_since.get_or_insert(now).elapsed() >= UNREACHABLE_AFTER =>
                {
                    failed = Some(trouble.message.clone())
                }
                Some(_) => {}
            }
            if let Some((_, timeout)) = up.timeout.filter(|(at, _)| *at <= now) {
                failed = Some(format!(
                    "not connected within {} s: it waits for {waiting}",
                    timeout.as_secs_f64()
                ));
            }
            if up.is_interrupted() {
                failed = Some("the command was interrupted".to_owned());
            }
            if !auth_url.is_empty() && up.visited != auth_url {
                up.visited.clone_from(&auth_url);
                up.tell(Progress::AuthUrl(auth_url.clone()));
            } else if auth_url.is_empty() && up.said != waiting {
                up.said.clone_from(&waiting);
                up.tell(Progress::Waiting(waiting.clone()));
            }
        }
        if let Some(why) = failed {
            self.fail_ups(&why).await;
        }
    }

    /// As long as anybody waits it goes on, and should it fail then, back to what was before the first.
    fn forget_interrupted(&mut self) {
        if self.ups.iter().all(PendingUp::is_interrupted) {
            return;
        }
        let before = self.ups[0].before.clone();
        self.ups.retain(|up| !up.is_interrupted());
        self.ups[0].before = before;
    }

    async fn finish_ups(&mut self) {
        let before = std::mem::replace(&mut self.state.prefs, self.prefs.clone());
        if let Err(why) = self.save() {
            self.state.prefs = before;
            return self.fail_ups(&why.to_string()).await;
        }
        for up in self.ups.drain(..) {
            up.tell(Progress::Done);
        }
        info!("connected");
    }

    /// True if the failure of those that wait starts the session that there was before them.
    pub(super) fn fails_back_to_a_session(&self) -> bool {
        self.ups.first().is_some_and(|up| up.before.restarted)
    }

    /// Every waiting `up` fails, and the host is as it was before the first of them.
    pub(super) async fn fail_ups(&mut self, why: &str) {
        let mut ups = std::mem::take(&mut self.ups).into_iter();
        let Some(first) = ups.next() else { return };
        warn!(why, "up failed");
        self.go_back(&first.before).await;
        for up in std::iter::once(first).chain(ups) {
            up.fail(why, &mut self.bus);
        }
    }

    async fn go_back(&mut self, before: &Before) {
        self.prefs = before.prefs.clone();
        if self.state.prefs != self.prefs {
            self.state.prefs = self.prefs.clone();
            let _ = self.save();
        }
        if !before.running {
            if let Err(error) = self.stop_session().await {
                warn!(%error, "cannot remove everything that `up` made");
            }
            self.go_back_to_key();
        } else if before.restarted {
            self.go_back_to_key();
            self.login = before.login.clone();
            self.start_or_retry().await;
        }
        self.apply_preferences();
    }

    /// `down`: everything that lowroad made on this host is removed, and a restarted agent stays down.
    pub(super) async fn on_down(&mut self) -> Result<(), String> {
        self.take_back_up();
        self.stop().await
    }

    /// Of a login that nobody finishes neither preferences nor keys stay, if the node is another server's. One that is no server's yet goes on from there.
    pub(super) fn take_back_up(&mut self) {
        let before = self.ups.first().map(|up| &up.before.prefs);
        if let Some(before) = before.filter(|before| self.state.is_of(&before.control_url)) {
            self.prefs = before.clone();
            self.go_back_to_key();
        }
    }

    /// Saves this change alone, and not what an `up` changes that waits; it stays should that fail. The server is that `up`'s.
    pub(super) fn keep(&mut self, change: &Change) -> Result<(), String> {
        let mut change = change.clone();
        let before = self.state.prefs.clone();
        if !self.ups.is_empty() {
            change.control_url = None;
        }
        change.apply(&mut self.state.prefs);
        if let Err(error) = self.save() {
            self.state.prefs = before;
            return Err(error.to_string());
        }
        change.want_running = None;
        for up in &mut self.ups {
            change.apply(&mut up.before.prefs);
        }
        Ok(())
    }

    pub(super) async fn stop(&mut self) -> Result<(), String> {
        self.prefs.want_running = false;
        self.state.prefs = self.prefs.clone();
        self.failure = None;
        self.begun = None;
        self.leave_login();
        self.ended = Ended::No;
        self.cache.forget().await;
        let saved = self.save();
        let stopped = self.stop_session().await;
        for up in self.ups.drain(..) {
            up.fail("the node was stopped by `lowroad down`", &mut self.bus);
        }
        self.set_operator();
        saved.map_err(|error| error.to_string())?;
        stopped.map_err(|error| whole(&error))
    }

    /// Makes the preferences take effect on what runs.
    pub(super) fn apply_preferences(&mut self) {
        self.set_operator();
        let hostinfo = crate::control::hostinfo::hostinfo(&self.prefs, &self.state.id);
        let disco = self.state.disco_key.public();
        let (kernel, prefs) = (&self.options.kernel, &self.prefs);
        if let Some(session) = &mut self.session {
            session.set_preferences(
                |key| super::lifecycle::choices(kernel, prefs, disco, key),
                hostinfo,
            );
            self.reconcile_soon(Instant::now());
        }
    }
}
