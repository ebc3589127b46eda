//! Logins on the local API that no command waits for.

use std::time::{Duration, Instant};

use lowroad_wire::key::NodePublic;

use super::{Engine, Listener, Login, PendingUp, Session};
use crate::{
    localapi::UpRequest,
    prefs::{AuthKey, Change},
};

/// A login that was begun on the local API: the stock client sends the key, and then that it wants to log in.
#[derive(Debug)]
pub struct BegunLogin {
    at: Instant,
    /// It is under way already, with the key if there is one.
    goes_on: bool,
    /// It goes with this node key, which the server has accepted before.
    keeps: Option<NodePublic>,
    auth_key: Option<AuthKey>,
}

impl BegunLogin {
    /// When nobody goes on with it any more.
    pub fn ends(&self) -> Instant {
        self.at + GOES_ON_WITHIN
    }
}

/// How long the second request may come after the first.
const GOES_ON_WITHIN: Duration = Duration::from_secs(30);

impl Engine {
    /// `start` and `WantRunning: true`: connects, and doesn't wait for it.
    pub(in crate::engine) async fn start_without_waiting(
        &mut self,
        auth_key: Option<AuthKey>,
        mut change: Change,
    ) -> Result<(), String> {
        change.want_running = Some(true);
        change.validate().map_err(|error| error.to_string())?;
        let mut prefs = self.prefs.clone();
        change.apply(&mut prefs);
        prefs.logged_out = false;
        self.check_server(&prefs)?;
        let restart = self.needs_session(&prefs, auth_key.as_ref());
        // The stock client waits for another key then, as its own daemon makes one.
        let force_reauth =
            auth_key.is_some() && self.session.as_ref().is_some_and(Session::is_expired);
        self.state.prefs.logged_out = false;
        self.keep(&change)?;
        self.prefs = prefs;
        self.apply_preferences();
        self.bus.tell_again();
        let goes_on = restart && (auth_key.is_some() || self.state.registered_at.is_none());
        let keeps_key = !force_reauth && self.state.is_accepted_by(&self.prefs.control_url);
        self.begun = Some(BegunLogin {
            at: Instant::now(),
            goes_on,
            keeps: self.own_key().filter(|_| keeps_key),
            auth_key: auth_key.clone(),
        });
        if !restart {
            return Ok(());
        }
        self.note_restart();
        if force_reauth {
            self.leave_login();
        }
        let login = Login {
            auth_key,
            force_reauth,
            ..Login::default()
        };
        let started = self.start_session(login).await;
        started.map_err(|why| self.cannot_start(&why))
    }

    /// `login-interactive`: goes on with the login that was begun just before. Without one the page is shown again, if there is one; else somebody logs
    /// in anew, and if that fails the login that there was is in force again. What comes of it is told on the bus.
    pub(in crate::engine) async fn on_login(&mut self) -> Result<(), String> {
        self.bus.tell_again();
        let begun = self.begun.take();
        let begun = begun.filter(|begun| begun.at.elapsed() <= GOES_ON_WITHIN);
        let is_begun = begun.is_some();
        let session = self.session.as_ref();
        let shows_page = session.is_some_and(|session| !session.auth_url.is_empty());
        let auth_key = match begun {
            // Of a node that has a key the stock client comes to this only if it waits for another, which the server may have wanted meanwhile.
            Some(begun)
                if begun.goes_on
                    && begun.auth_key.is_some()
                    && begun.keeps.is_some()
                    && begun.keeps == self.own_key() =>
            {
                begun.auth_key
            }
            Some(begun) if begun.goes_on => {
                let failure = self.failure.clone().filter(|_| session.is_none());
                return failure.map_or(Ok(()), Err);
            }
            // The stock client doesn't show a page a second time, and so waits for another.
            Some(begun) => begun.auth_key,
            None if shows_page => return Ok(()),
            None => None,
        };
        if self.state.registered_at.is_none() && !shows_page {
            return self
                .start_without_waiting(auth_key, Change::default())
                .await;
        }
        let request = UpRequest {
            auth_key,
            force_reauth: true,
            ..UpRequest::default()
        };
        let mut before = self.begin_up(request).await?;
        if is_begun {
            // That login is this one.
            before.login = Login::default();
        }
        // Those that it replaces.
        self.ups.retain(PendingUp::can_be_interrupted);
        self.ups
            .push(PendingUp::new(Listener::Bus, Duration::ZERO, before));
        Ok(())
    }
}
