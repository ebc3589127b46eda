//! `POST /machine/register`.

use std::time::Instant;

use hyper::StatusCode;
use lowroad_wire::control::{self as wire, RegisterRequest, RegisterResponse};

use super::machine::Peer;
use crate::{
    Error,
    hub::{Receipt, now, random},
    state::{Registered, Stranger, check_size},
    view::owner_of,
};

pub async fn register(peer: &Peer, request: RegisterRequest) -> Result<RegisterResponse, Error> {
    wait_for_decision(peer, &request).await?;
    let hub = &peer.site.hub;
    let (result, receipt) = decide(peer, request);
    let (registered, owner) = match result {
        // The stock client shows its user this field, and ends its `up`; of an HTTP error it says nothing (control/controlclient).
        Err(Error::Refused { status, message }) if needs_the_user(status) => {
            return Ok(RegisterResponse {
                error: message,
                ..RegisterResponse::default()
            });
        }
        decided => decided?,
    };
    let (user, login) = owner.unwrap_or_default();
    let response = RegisterResponse {
        user,
        login,
        ..RegisterResponse::default()
    };
    match registered {
        Registered::Accepted(_) => {
            hub.saved(receipt).await?;
            Ok(RegisterResponse {
                machine_authorized: true,
                ..response
            })
        }
        Registered::Expired => {
            hub.saved(receipt).await?;
            Ok(RegisterResponse {
                node_key_expired: true,
                ..response
            })
        }
        Registered::Visit(id) => Ok(RegisterResponse {
            auth_url: format!("{}/register/{id}", peer.site.url),
            ..response
        }),
    }
}

/// A key or a tag is refused, also when it is tried again.
fn needs_the_user(status: StatusCode) -> bool {
    status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN
}

type Decision = (Registered, Option<(wire::User, wire::Login)>);

fn decide(peer: &Peer, request: RegisterRequest) -> (Result<Decision, Error>, Receipt) {
    let hub = &peer.site.hub;
    let compiled = hub.snapshot().compiled.clone();
    let who = Stranger {
        machine: peer.machine,
        remote: peer.remote.ip(),
        random: random(),
        now: now(),
        instant: Instant::now(),
        may_tag: &|user, tag| compiled.may_tag(user, tag),
    };
    hub.change(|state| {
        let registered = state.register(request, &who)?;
        let owner = match &registered {
            Registered::Accepted(id) => state.node(*id).map(|node| owner_of(node, state.users())),
            _ => None,
        };
        Ok((registered, owner))
    })
}

/// Holds a follow-up until its login page has been decided or has expired. One that we don't know gets a new page at once.
async fn wait_for_decision(peer: &Peer, request: &RegisterRequest) -> Result<(), Error> {
    let Some((_, id)) = request.followup.rsplit_once('/') else {
        return Ok(());
    };
    let decision = peer
        .site
        .hub
        .read(|state| state.decision(id, peer.machine))?;
    if let Some(mut decision) = decision {
        // Before it is held for minutes.
        request.hostinfo.as_ref().map_or(Ok(()), check_size)?;
        // An error, too, means that the page is no longer there.
        let _ = decision.changed().await;
    }
    Ok(())
}
