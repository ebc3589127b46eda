//! `GET /machine/ssh/action/SOURCE/to/DESTINATION`: where a node asks what is to become of an SSH connection that the policy
//! says is to be checked.

use hyper::{Response, StatusCode};
use lowroad_wire::control::SshAction;

use super::{Body, body::json};

/// What the paths begin with.
pub const CHECKS: &str = "/machine/ssh/action/";

/// A check sends users to a page where they prove who they are. We have none: nobody passes, and everybody is told why at once.
pub fn refuse() -> Response<Body> {
    let action = SshAction {
        message: "The policy has this login checked, which this coordination server cannot do. \
            An administrator can give the ssh rule the action \"accept\".\r\n"
            .to_owned(),
        reject: true,
        ..SshAction::default()
    };
    json(StatusCode::OK, &action)
}
