//! Map messages that are as wide as may be: what it takes to read them.

use std::{fmt::Write as _, time::Duration};

use lowroad_fuzz::{Limits, Target, check};
use lowroad_wire::control::MapResponse;

const MIB: usize = 1 << 20;
/// What a message may take beside its own text, if one thing in it is as wide as may be, and if all are.
const ONE: usize = 128 * MIB;
const ALL_TOGETHER: usize = 256 * MIB;
/// As many members as are read of a message, as short as they can be while each is another one.
const MEMBERS: usize = 3 * MIB - 64;
/// Elements of lists, likewise.
const ELEMENTS: usize = MIB - 64;

/// A message with as many of `piece` as may be, in pieces of so many between `before` and `after`.
struct Wide {
    what: &'static str,
    before: &'static str,
    piece: fn(usize, &mut String),
    after: &'static str,
    count: usize,
}

impl Wide {
    fn text(&self) -> String {
        let mut text = self.before.to_owned();
        joined(self.count, self.piece, &mut text);
        text.push_str(self.after);
        text
    }
}

const fn wide(
    what: &'static str,
    before: &'static str,
    piece: fn(usize, &mut String),
    after: &'static str,
    count: usize,
) -> Wide {
    Wide {
        what,
        before,
        piece,
        after,
        count,
    }
}

fn member(number: usize, to: &mut String) {
    let _ = write!(to, "\"{number:x}\":0");
}

fn null(number: usize, to: &mut String) {
    let _ = write!(to, "\"{number:x}\":null");
}

fn number(number: usize, to: &mut String) {
    let _ = write!(to, "\"{number}\":true");
}

fn empty(_: usize, to: &mut String) {
    to.push_str("{}");
}

/// A node with as many capabilities as the bytes of one take.
fn capable(number: usize, to: &mut String) {
    begin_node(number, to);
    to.push_str(",\"CapMap\":{");
    joined(5_000, null, to);
    to.push_str("}}");
}

fn measured(number: usize, to: &mut String) {
    begin_node(number, to);
    to.push_str(",\"Hostinfo\":{\"NetInfo\":{\"DERPLatency\":{");
    joined(7_000, member, to);
    to.push_str("}}}}");
}

fn begin_node(number: usize, to: &mut String) {
    let _ = write!(
        to,
        "{{\"ID\":{},\"Key\":\"nodekey:{number:064x}\"",
        number + 1
    );
}

fn granting(_: usize, to: &mut String) {
    to.push_str("{\"CapGrant\":[{\"CapMap\":{");
    joined(100_000, null, to);
    to.push_str("}}]}");
}

fn joined(count: usize, piece: fn(usize, &mut String), to: &mut String) {
    for number in 0..count {
        if number > 0 {
            to.push(',');
        }
        piece(number, to);
    }
}

const ALL: &[Wide] = &[
    wide("unknown fields", "{", member, "}", MEMBERS),
    wide("an unknown object", "{\"a\":{", member, "}}", MEMBERS),
    wide("OnlineChange", "{\"OnlineChange\":{", number, "}}", MEMBERS),
    wide(
        "OnlineChange, just short enough",
        "{\"OnlineChange\":{",
        number,
        "}}",
        300_000,
    ),
    wide(
        "DisplayMessages",
        "{\"DisplayMessages\":{",
        null,
        "}}",
        20_000,
    ),
    wide("filters", "{\"PacketFilters\":{", null, "}}", MEMBERS),
    wide(
        "regions",
        "{\"DERPMap\":{\"Regions\":{",
        |n, to| {
            let _ = write!(to, "\"{n}\":{{}}");
        },
        "}}}",
        23_000,
    ),
    wide(
        "nodes of a region",
        "{\"DERPMap\":{\"Regions\":{\"1\":{\"Nodes\":[",
        empty,
        "]}}}}",
        87_000,
    ),
    wide("SSHPolicy", "{\"SSHPolicy\":{", member, "}}", 380_000),
    wide(
        "DNS routes",
        "{\"DNSConfig\":{\"Routes\":{",
        null,
        "}}}",
        320_000,
    ),
    wide("capabilities of peers", "{\"Peers\":[", capable, "]}", 500),
    wide("latencies of peers", "{\"Peers\":[", measured, "]}", 440),
    wide(
        "capabilities in rules",
        "{\"PacketFilter\":[",
        granting,
        "]}",
        10,
    ),
    wide(
        "more capabilities in rules than may be",
        "{\"PacketFilter\":[",
        granting,
        "]}",
        30,
    ),
    wide(
        "as many rules as are left",
        "{\"PacketFilters\":{\"a\":[",
        empty,
        "]}}",
        ELEMENTS - 90_000,
    ),
    wide("empty rules", "{\"PacketFilter\":[", empty, "]}", ELEMENTS),
    wide(
        "empty patches",
        "{\"PeersChangedPatch\":[",
        empty,
        "]}",
        ELEMENTS,
    ),
    wide("empty users", "{\"UserProfiles\":[", empty, "]}", ELEMENTS),
    wide(
        "empty texts",
        "{\"Health\":[",
        |_, to| to.push_str("\"\""),
        "]}",
        ELEMENTS,
    ),
];

const TARGET: Target = Target {
    name: "wide messages",
    about: "",
    run: |message| drop(MapResponse::parse(message)),
    seeds: Vec::new,
    limits: Limits {
        memory: ALL_TOGETHER,
        memory_per_byte: 0,
        time: Duration::from_secs(60),
        time_per_kib: Duration::ZERO,
    },
    max_len: 0,
    mutations: 0,
    needs_root: false,
};

/// Fields of one message.
const TOGETHER: &[&str] = &[
    "OnlineChange, just short enough",
    "DisplayMessages",
    "nodes of a region",
    "SSHPolicy",
    "DNS routes",
    "capabilities in rules",
    "as many rules as are left",
];

#[test]
fn the_widest_message_takes_a_bounded_amount_of_memory() {
    let mut failed = Vec::new();
    let mut judge = |what: &str, text: &str, most: usize| match check(&TARGET, text.as_bytes()) {
        Ok(spent) if spent.memory <= most => println!(
            "REPORT: {what}: {} MB of text, {} MB of memory",
            text.len() / MIB,
            spent.memory / MIB
        ),
        Ok(spent) => failed.push(format!("{what}: {} bytes of heap", spent.memory)),
        Err(failure) => failed.push(format!("{what}: {failure}")),
    };
    for wide in ALL {
        judge(wide.what, &wide.text(), ONE);
    }
    let fields = ALL.iter().filter(|wide| TOGETHER.contains(&wide.what));
    let fields: Vec<_> = fields
        .map(|wide| {
            let text = wide.text();
            text[1..text.len() - 1].to_owned()
        })
        .collect();
    assert_eq!(fields.len(), TOGETHER.len());
    let together = format!("{{{}}}", fields.join(","));
    let (_, malformed) = MapResponse::parse(together.as_bytes()).expect("no more than may be");
    assert_eq!(malformed, [], "all of it is read");
    judge("all together", &together, ALL_TOGETHER);
    assert!(failed.is_empty(), "{failed:#?}");
}
