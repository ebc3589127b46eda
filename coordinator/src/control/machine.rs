//! Requests inside the channel: `/machine/…`.

use std::{convert::Infallible, net::SocketAddr, sync::Arc};

use hyper::{Method, Request, Response, StatusCode, body::Incoming};
use lowroad_wire::{
    control::{MapRequest, RegisterRequest, check_request},
    key::MachinePublic,
};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use super::{
    Body, Site,
    body::{self, OfChannel, Sender, json, text},
    poll, register, ssh,
};
use crate::Error;

/// The oldest client that understands what we send; HomeDERP and null AllowedIPs came before it.
pub const OLDEST_VERSION: u16 = 113;

/// One channel: the machine at its other end is proven.
#[derive(Debug)]
pub struct Peer {
    pub site: Arc<Site>,
    pub machine: MachinePublic,
    pub remote: SocketAddr,
    pub reading: OfChannel,
    /// Ends the channel.
    pub end: CancellationToken,
}

impl Peer {
    pub async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Infallible> {
        let method = request.method().clone();
        let path = request.uri().path().to_owned();
        let answer = match path.as_str() {
            "/machine/register" if method == Method::POST => self.register(request).await,
            "/machine/map" if method == Method::POST => self.map(request).await,
            path if path.starts_with(ssh::CHECKS) && method == Method::GET => Ok(ssh::refuse()),
            _ => {
                return Ok(text(
                    StatusCode::NOT_IMPLEMENTED,
                    format!("{method} {path} is not implemented by this server"),
                ));
            }
        };
        Ok(answer.unwrap_or_else(|error| {
            tracing::debug!(machine = %self.machine.short(), remote = %self.remote, %path, %error, "refused");
            body::error(&error)
        }))
    }

    async fn register(&self, request: Request<Incoming>) -> Result<Response<Body>, Error> {
        let request: RegisterRequest = self.read(request).await?;
        check_version(request.version)?;
        let response = register::register(self, request).await?;
        if !response.error.is_empty() {
            tracing::debug!(machine = %self.machine.short(), remote = %self.remote, error = response.error, "refused to register");
        }
        Ok(json(StatusCode::OK, &response))
    }

    async fn map(&self, request: Request<Incoming>) -> Result<Response<Body>, Error> {
        let request: MapRequest = self.read(request).await?;
        check_version(request.version)?;
        poll::map(self, request).await
    }

    async fn read<T: DeserializeOwned>(&self, request: Request<Incoming>) -> Result<T, Error> {
        let known = self.site.hub.read(|state| state.owns_node(self.machine));
        let sender = if known {
            Sender::Node(&self.reading)
        } else {
            Sender::Stranger(&self.reading)
        };
        let bytes = self.site.readers.read(request.into_body(), sender).await?;
        let malformed = |why: &dyn std::fmt::Display| {
            Error::bad_request(format!("the request is malformed: {why}"))
        };
        check_request(&bytes).map_err(|error| malformed(&error))?;
        serde_json::from_slice(&bytes).map_err(|error| malformed(&error))
    }
}

fn check_version(version: u16) -> Result<(), Error> {
    if version < OLDEST_VERSION {
        return Err(Error::bad_request(format!(
            "this client is too old (capability version {version}); the server needs {OLDEST_VERSION}, Tailscale 1.80, or newer"
        )));
    }
    Ok(())
}
