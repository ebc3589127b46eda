//! Node keys: kept before a server sees them, left when nobody finishes their login, and logged out.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use lowroad_wire::key::NodePrivate;
use tokio::{sync::oneshot, time::timeout};
use tracing::info;

use super::{Engine, RETRY_INTERVAL, session::Trouble};
use crate::control::ControlOptions;

/// The server is told of a logout for this long at most.
const LOGOUT_TIMEOUT: Duration = Duration::from_secs(10);

impl Engine {
    /// The control client goes on with another key, once it is kept.
    pub(super) async fn on_node_key(
        &mut self,
        node: NodePrivate,
        old: Option<NodePrivate>,
        kept: oneshot::Sender<()>,
    ) {
        // The server has something against the key that it is of.
        self.forget_kept().await;
        let before = self.state.clone();
        self.state
            .begin_key(node.clone(), old, &self.prefs.control_url);
        if let Err(why) = self.save() {
            self.state = before;
            return self.cannot_keep_key(&why.to_string()).await;
        }
        self.login.force_reauth = false;
        let _ = kept.send(());
        let Some(mut session) = self.session.take() else {
            return;
        };
        let set = session.set_key(self, node).await;
        self.session = Some(session);
        if let Err(why) = set {
            let why = self.cannot_start(&why);
            self.fail_ups(&why).await;
        }
    }

    /// The control client has ended by it: a new one is tried later.
    async fn cannot_keep_key(&mut self, why: &str) {
        let why = format!(
            "a node key that cannot be saved is not sent to the login server ({why}); it is tried again"
        );
        let goes_back = self.fails_back_to_a_session();
        self.fail_ups(&why).await;
        if let Some(session) = self.session.as_mut().filter(|_| !goes_back) {
            session.control = None;
            session.trouble = Some(Trouble {
                message: why,
                ends_up: false,
            });
            self.restart_at = Some(Instant::now() + RETRY_INTERVAL);
        }
    }

    /// Nobody finishes a login any more that was to replace the node key: the node is again who it was before.
    pub(super) fn leave_login(&mut self) {
        if self.state.leave_pending_key() {
            let _ = self.save();
        }
    }

    /// The same, where the login may have been with another server, or the first: the node is again who it was at the preferred one.
    pub(super) fn go_back_to_key(&mut self) {
        if self.state.leave_unaccepted_keys() {
            let _ = self.save();
        }
        self.use_accepted_key();
    }

    /// The node key is the preferred server's.
    pub(super) fn use_accepted_key(&mut self) {
        if self.state.use_accepted_key_of(&self.prefs.control_url) {
            let _ = self.save();
        }
    }

    /// Logs in at the preferred server with a key that it knows or may know, if there is one.
    pub(super) fn use_key_of_server(&mut self) {
        if self.state.use_key_of(&self.prefs.control_url) {
            let _ = self.save();
        }
    }

    /// Logs out here at once; the servers are told meanwhile, for as long as that takes them, and then comes the answer.
    pub(super) async fn on_logout(&mut self, reply: oneshot::Sender<Result<(), String>>) {
        self.take_back_up();
        let mut logouts = Vec::new();
        for key in self.state.forget_keys() {
            let is_reported = key.accepted;
            logouts.push(logout(self.logout_options(key), is_reported));
        }
        self.prefs.logged_out = true;
        let down = self.stop().await;
        tokio::spawn(async move {
            let mut logouts = logouts.into_iter();
            // First the one in use, which is the one that matters.
            let mut told: Vec<_> = join_all(logouts.next()).await;
            told.extend(join_all(logouts).await);
            let told: Result<(), String> = told.into_iter().collect();
            // Whoever asked may have gone.
            let _ = reply.send(down.and(told));
        });
    }
}

/// A key that no server is known to have accepted may be known to nobody: that it can't be logged out is no failure.
async fn logout(options: ControlOptions, is_reported: bool) -> Result<(), String> {
    let server = options.url.clone();
    let why = match timeout(LOGOUT_TIMEOUT, crate::control::logout(&options)).await {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(why)) => format!("was not told: {why}"),
        Err(_) => "did not answer".to_owned(),
    };
    if !is_reported {
        info!(server, why, "cannot log out an earlier key");
        return Ok(());
    }
    Err(format!(
        "logged out here, but the login server {server} {why}"
    ))
}
