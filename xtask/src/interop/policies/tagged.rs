//! Policies for nodes that have a tag instead of a user.

use anyhow::Result;

use super::{Case, Tailnet};
use crate::interop::{Lab, table::Table};

/// Both nodes have `tag:web`, and the third source has `tag:other`.
pub(super) const CASES: &[Case] = &[
    Case {
        name: "a tag as destination",
        policy: r#"{"tagOwners": {"tag:web": ["ann@"]},
            "acls": [{"action": "accept", "src": ["bob@"], "dst": ["tag:web:80"]}]}"#,
        ann: "",
        bob: "80 ping",
        tagged: "",
    },
    Case {
        name: "from tag to tag",
        policy: r#"{"tagOwners": {"tag:web": ["ann@"], "tag:other": ["ann@"]},
            "acls": [{"action": "accept", "src": ["tag:other"], "dst": ["tag:web:81"]}]}"#,
        ann: "",
        bob: "",
        tagged: "81 ping",
    },
    Case {
        name: "another tag as destination",
        policy: r#"{"tagOwners": {"tag:other": ["ann@"]},
            "acls": [{"action": "accept", "src": ["*"], "dst": ["tag:other:*"]}]}"#,
        ann: "",
        bob: "",
        tagged: "",
    },
    Case {
        name: "the user by whose key they joined as destination",
        policy: r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["ann@:*"]}]}"#,
        ann: "",
        bob: "",
        tagged: "",
    },
    Case {
        name: "autogroup:tagged as destination",
        policy: r#"{"acls": [{"action": "accept", "src": ["bob@"], "dst": ["autogroup:tagged:80"]}]}"#,
        ann: "",
        bob: "80 ping",
        tagged: "",
    },
    Case {
        name: "autogroup:member and autogroup:self as destinations",
        policy: r#"{"acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:member:*", "autogroup:self:*"]}]}"#,
        ann: "",
        bob: "",
        tagged: "",
    },
    Case {
        name: "a grant to a tag, of two protocols",
        policy: r#"{"tagOwners": {"tag:web": ["ann@"]},
            "grants": [{"src": ["autogroup:member"], "dst": ["tag:web"], "ip": ["tcp:81", "udp:9000"]}]}"#,
        ann: "81 udp ping",
        bob: "81 udp ping",
        tagged: "",
    },
];

pub fn on_headscale(lab: &Lab, table: &mut Table) -> Result<()> {
    table.area("Headscale's policies for tagged nodes, on lowroad and on stock");
    let tailnet = Tailnet::start(lab, "tag:web", "tag:other")?;
    tailnet.try_all(table, CASES);
    Ok(())
}
