//! The commands' side of administration.

use std::path::Path;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;

use super::{
    api::{Ask, Failure, PATH},
    socket,
};
use crate::{Error, refused::RefusedPolicy};

/// Asks the server that runs with this state directory.
pub async fn ask(state_dir: &Path, ask: &Ask) -> Result<Value, Error> {
    let stream = socket::connect(state_dir).await?;
    let broke = |error: hyper::Error| Error::Answer(format!("the connection broke off: {error}"));
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(broke)?;
    tokio::spawn(connection);
    let body = serde_json::to_vec(ask).map_err(|error| Error::Setting(error.to_string()))?;
    let request = Request::post(PATH)
        .header(header::HOST, "lowroad-coordinator")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))
        .expect("all parts are valid");
    let response = sender.send_request(request).await.map_err(broke)?;
    let status = response.status();
    let bytes = response
        .into_body()
        .collect()
        .await
        .map_err(broke)?
        .to_bytes();
    if status.is_success() {
        return serde_json::from_slice(&bytes).map_err(|error| Error::Answer(error.to_string()));
    }
    match serde_json::from_slice::<Failure>(&bytes) {
        Ok(Failure {
            report: Some(report),
            ..
        }) => Err(RefusedPolicy::new("", report).into()),
        Ok(Failure { error, .. }) => Err(Error::refused(status, error)),
        Err(_) => Err(Error::Answer(format!("status {status}"))),
    }
}
