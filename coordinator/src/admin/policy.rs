//! The server's side of `policy`.

use serde_json::Value;

use super::{
    api::{PolicyInfo, PolicySetInfo, Proposal, Signature, VersionInfo},
    insight::{Moment, Named},
    server::{Peer, settle, value},
};
use crate::{
    Error,
    hub::{Hub, check_policy, now},
    model::{Basis, VersionNumber},
    policy::{self, Policy, Report, UnknownUsers, WhyProbe},
    state::{NewPolicy, NodeRef},
};

/// A policy that is good.
pub(super) struct Checked {
    text: String,
    policy: Policy,
    /// With warnings only.
    pub(super) report: Report,
}

/// Compiling and testing a large policy takes a while, in which neither the state nor the runtime waits.
pub(super) async fn check(hub: &Hub, text: String) -> Result<Checked, Error> {
    let (world, names) = hub.read(|state| (state.world(), state.node_names()));
    apart(move || {
        let (policy, compiled) = check_policy(&text, &world, UnknownUsers::Refuse)?;
        let warnings = policy::warnings(&policy, &compiled, &names);
        Ok(Checked {
            report: Report::default().with_warnings(&text, &warnings),
            text,
            policy,
        })
    })
    .await
}

/// On a thread that may take its time.
async fn apart<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Error::Setting(error.to_string()))?
}

pub(super) fn get(hub: &Hub, version: Option<VersionNumber>) -> Result<Value, Error> {
    hub.read(|state| {
        let history = state.policy_history();
        let version = match version {
            Some(number) => Some(history.find(number)?),
            None => history.in_force(),
        };
        value(&PolicyInfo {
            policy: version.map(|version| version.text.clone()),
            version: version.map(|version| VersionInfo::new(version, state)),
        })
    })
}

pub(super) fn log(hub: &Hub) -> Result<Value, Error> {
    hub.read(|state| {
        let versions = state.policy_history().iter();
        let versions = versions.map(|version| VersionInfo::new(version, state));
        value(&versions.collect::<Vec<_>>())
    })
}

pub(super) async fn set(
    hub: &Hub,
    text: String,
    signature: Signature,
    based_on: Option<Basis>,
    peer: Peer,
) -> Result<Value, Error> {
    let Checked {
        text,
        policy,
        report,
    } = check(hub, text).await?;
    let account = apart(move || Ok(peer.account())).await?;
    let new = NewPolicy {
        text,
        author: match signature.author.trim() {
            "" => account.clone(),
            author => author.to_owned(),
        },
        account,
        note: signature.message,
    };
    let author = new.author.clone();
    let changed = hub.change(|state| {
        if let Some(basis) = based_on {
            state.policy_history().check_basis(basis)?;
        }
        state.set_policy(new, policy, now())
    });
    let set = settle(hub, changed).await?;
    if set.is_new {
        tracing::info!(version = %set.number, %author, "policy set");
    }
    value(&PolicySetInfo {
        ok: true,
        version: set.number,
        changed: set.is_new,
        report,
    })
}

/// An old version becomes the newest, if it still fits users and nodes.
pub(super) async fn roll_back(
    hub: &Hub,
    version: VersionNumber,
    signature: Signature,
    peer: Peer,
) -> Result<Value, Error> {
    let text = hub.read(|state| {
        let version = state.policy_history().find(version)?;
        Ok::<_, Error>(version.text.clone())
    })?;
    let note = format!("rollback to version {version}");
    let signature = Signature {
        message: match signature.message.trim() {
            "" => note,
            message => format!("{note}: {message}"),
        },
        ..signature
    };
    set(hub, text, signature, None, peer).await
}

/// Refused like any policy that is set, if it doesn't fit users and nodes.
pub(super) async fn diff(hub: &Hub, proposal: Proposal) -> Result<Value, Error> {
    let (text, moment) = hub.read(|state| {
        let text = match proposal {
            Proposal::Text(text) => text,
            Proposal::Version(number) => state.policy_history().find(number)?.text.clone(),
        };
        Ok::<_, Error>((text, Moment::of(state)))
    })?;
    apart(move || {
        let (_, compiled) = check_policy(&text, moment.world(), UnknownUsers::Refuse)?;
        value(&moment.diff(&compiled))
    })
    .await
}

pub(super) async fn explain(hub: &Hub, node: NodeRef) -> Result<Value, Error> {
    let (node, moment) = hub.read(|state| {
        let node = state.find_node(&node)?.id;
        Ok::<_, Error>((node, Moment::of(state)))
    })?;
    apart(move || value(&moment.explain(node)?)).await
}

pub(super) async fn why(hub: &Hub, from: &str, to: &str, probe: WhyProbe) -> Result<Value, Error> {
    let (from, to, moment) = hub.read(|state| {
        let (from, to) = (Named::find(state, from)?, Named::find(state, to)?);
        Ok::<_, Error>((from, to, Moment::of(state)))
    })?;
    apart(move || value(&moment.why(&from, &to, probe)?)).await
}
