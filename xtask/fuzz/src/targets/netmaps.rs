//! What a control server says, and what the agent makes of it.

use std::net::SocketAddr;

use lowroad_agent::state::{CachedNetmap, Of, netmap as cache};
use lowroad_core::{
    desired::{DEFAULT_MARK, Desired, Observed},
    filter,
    intent::{self, Choices},
    plan::{apply_to_model, plan},
};
use lowroad_wire::{
    control::{DerpMap, MapResponse},
    key::{NodePrivate, NodePublic},
    netmap::NetMap,
};
use time::OffsetDateTime;

use super::control::parse_map_response;

const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

pub const DERP_MAP: &str = r#"{"Regions":{"1":{"RegionID":1,"RegionCode":"a","Nodes":[{"Name":"1a","RegionID":1,"HostName":"derp.example","IPv4":"198.51.100.1","IPv6":"2001:db8::1","STUNPort":40000}]},
    "2":{"RegionID":2,"Nodes":[{"Name":"2a","RegionID":2,"HostName":"derp.example","STUNPort":40001}]}},"OmitDefaultRegions":true}"#;

pub fn derp_map() -> DerpMap {
    serde_json::from_str(DERP_MAP).expect("it is right")
}

/// Messages of a map stream, one a line: applied in turn, then made into what the kernel shall hold.
pub fn netmap(input: &[u8]) {
    let mut map = NetMap::default();
    for line in input.split(|byte| *byte == b'\n') {
        let Some(response) = parse_map_response(line) else {
            continue;
        };
        written_as_read(&response);
        map.apply(response.clone(), NOW);
        let before = map.clone();
        // Only a list of changes may differ when it comes twice: it can name a node more than once.
        if response.peers_changed.is_empty()
            && response.peers_changed_patch.is_empty()
            && response.peers.is_empty()
        {
            map.apply(response, NOW);
            assert_eq!(map, before, "the same again changes nothing");
        }
    }
    for (id, node) in &map.peers {
        assert!(*id == node.id && id.0 > 0 && !node.key.is_zero());
    }
    follow(&map);
}

fn written_as_read(response: &MapResponse) {
    let text = serde_json::to_vec(response).expect("what was read can be written");
    let (again, malformed) = MapResponse::parse(&text).expect("what we write, we read");
    assert_eq!(malformed, []);
    assert_eq!(&again, response);
}

fn choices() -> Choices {
    Choices {
        device: "lowroad0".to_owned(),
        listen_port: 41641,
        mark: DEFAULT_MARK,
        private_key: NodePrivate::from_random([1; 32]),
        accept_routes: true,
        shields_up: false,
        disco: [2; 32],
    }
}

/// Any netmap can be planned; the plan reaches what is wanted, and then there is nothing left to do.
fn follow(map: &NetMap) {
    let choices = choices();
    let now = map.control_time(NOW);
    let endpoint = |key: &NodePublic| {
        (key.as_bytes()[0] & 1 == 0).then(|| SocketAddr::from(([127, 128, 0, 1], 41642)))
    };
    let desired = intent::desired(map, &choices, endpoint, now);
    no_prefix_twice(&desired);
    let mut kernel = Observed::default();
    for step in plan(&desired, &kernel) {
        apply_to_model(&mut kernel, &step);
    }
    let left = plan(&desired, &kernel);
    assert!(
        left.is_empty(),
        "a plan that was carried out leaves this to do: {left:?}"
    );
    filter::compile(&intent::filter_input(map, &choices, now));
}

fn no_prefix_twice(desired: &Desired) {
    let mut seen = std::collections::BTreeSet::new();
    for peer in desired.wireguard.peers.values() {
        for prefix in &peer.allowed_ips {
            assert!(seen.insert(*prefix), "{prefix} has two owners");
        }
    }
}

/// A peer in JSON.
pub fn node(id: u8) -> String {
    let key = format!("{id:02x}").repeat(32);
    format!(
        r#"{{"ID":{id},"StableID":"n{id}","Name":"n{id}.example.","User":1,"Key":"nodekey:{key}","KeyExpiry":"0001-01-01T00:00:00Z","Machine":"mkey:{key}","DiscoKey":"discokey:{key}","Addresses":["100.64.0.{id}/32","fd7a:115c:a1e0::{id}/128"],"AllowedIPs":["100.64.0.{id}/32","fd7a:115c:a1e0::{id}/128","10.{id}.0.0/16"],"Endpoints":["198.51.100.{id}:41641"],"DERP":"127.3.3.40:1","HomeDERP":1,"Hostinfo":{{"OS":"linux","Hostname":"n{id}"}},"Created":"2026-01-01T00:00:00Z","Tags":["tag:a"],"PrimaryRoutes":["10.{id}.0.0/16"],"Online":true,"MachineAuthorized":true,"Cap":130,"CapMap":{{"a":null,"b":[1,"x"]}}}}"#
    )
}

pub fn netmap_seeds() -> Vec<Vec<u8>> {
    let key = "07".repeat(32);
    let rules = r#"[{"SrcIPs":["*","100.64.0.2","10.0.0.0/8","1.2.3.4-1.2.3.9","cap:a"],"DstPorts":[{"IP":"*","Ports":{"First":0,"Last":65535}}],"IPProto":[6,17]},{"SrcIPs":["*"],"CapGrant":[{"Dsts":["100.64.0.1/32"],"CapMap":{"x":[{}]}}]}]"#;
    let first = format!(
        r#"{{"MapSessionHandle":"h","Seq":1,"Node":{},"DERPMap":{DERP_MAP},"Peers":[{},{}],"DNSConfig":{{"Proxied":true,"Domains":["example"]}},"Domain":"example","CollectServices":false,"PacketFilters":{{"base":{rules}}},"UserProfiles":[{{"ID":1,"LoginName":"a"}}],"Health":[],"ControlTime":"2026-01-01T00:00:00Z","Debug":{{"DisableLogTail":true}}}}"#,
        node(1),
        node(2),
        node(3)
    )
    .replace('\n', " ");
    let lines: Vec<String> = vec![
        first,
        r#"{"KeepAlive":true}"#.to_owned(),
        format!(r#"{{"PeersChanged":[{}],"PeersRemoved":[2]}}"#, node(4)),
        format!(
            r#"{{"PeersChangedPatch":[{{"NodeID":3,"DERPRegion":2,"Endpoints":["[2001:db8::9]:1"],"Key":"nodekey:{key}","DiscoKey":"discokey:{key}","Online":false,"LastSeen":"2026-01-01T00:00:00Z","KeyExpiry":"2025-01-01T00:00:00Z","Cap":131,"CapMap":{{}}}}]}}"#
        ),
        r#"{"PeerSeenChange":{"3":true},"OnlineChange":{"3":true,"4":false}}"#.to_owned(),
        format!(r#"{{"PacketFilter":{rules},"PacketFilters":{{"*":null,"x":{rules},"base":null}}}}"#),
        r#"{"PingRequest":{"URL":"https://x/","Types":"TSMP"},"PopBrowserURL":"https://y/","DisplayMessages":{"a":{"Title":"t","Text":"x","Severity":"high"},"*":null},"SSHPolicy":{"rules":[]},"TKAInfo":{"Head":"x"},"ClientVersion":{"RunningLatest":true},"ControlDialPlan":{"Candidates":[{"IP":"1.2.3.4","DialTimeoutSec":2.5}]}}"#.to_owned(),
        format!(r#"{{"Peers":[{}]}}"#, node(3)),
    ];
    let mut seeds: Vec<Vec<u8>> = lines.iter().map(|line| line.clone().into_bytes()).collect();
    seeds.push(lines.join("\n").into_bytes());
    let many = |text: &str| vec![text; 400].join(",");
    seeds.push(
        format!(
            r#"{{"Peers":[{}],"PacketFilter":[{}]}}"#,
            many("{}"),
            many("{}")
        )
        .into_bytes(),
    );
    seeds.push(
        format!(
            r#"{{"SSHPolicy":{{"a":[{}]}},"Health":[{}]}}"#,
            many("[]"),
            many("\"\"")
        )
        .into_bytes(),
    );
    seeds
}

/// A kept netmap, as a file on the disk: its lines as they are; and those after the first under a first line that is right,
/// with the checksums that belong to them.
pub fn netmap_cache(input: &[u8]) {
    let of = Of {
        node_key: NodePublic::from_bytes([3; 32]),
        server: "https://hs.example".to_owned(),
    };
    let mut lines = input.split(|byte| *byte == b'\n').skip(1);
    let mut right = written(&of, NOW, None, lines.next().unwrap_or(input));
    for (number, line) in lines.filter(|line| !line.is_empty()).enumerate() {
        right.extend(cache::record(1 + number as u64, line, None, NOW));
    }
    for text in [input.to_vec(), right] {
        match cache::parse(&text, &of, NOW) {
            Ok(kept) => kept_again(&of, &kept),
            Err(why) => assert!(why.len() < 100 && !why.contains("privkey:"), "{why}"),
        }
    }
}

fn written(
    of: &Of,
    saved: OffsetDateTime,
    clock_offset: Option<time::Duration>,
    body: &[u8],
) -> Vec<u8> {
    let header = cache::header(of, saved, clock_offset, 0);
    let (text, size) =
        cache::whole(Vec::new(), &header, |to| to.write_all(body)).expect("memory takes it");
    assert_eq!(text.len() as u64, size);
    text
}

/// What was understood is kept whole the next time.
fn kept_again(of: &Of, kept: &CachedNetmap) {
    let body = serde_json::to_vec(&kept.map.to_response()).expect("what was read can be written");
    let text = written(of, kept.saved, kept.map.clock_offset, &body);
    let again = cache::parse(&text, of, NOW).expect("what we keep, we find");
    assert_eq!(again.map, kept.map);
    assert_eq!(again.saved, kept.saved);
}

pub fn netmap_cache_seeds() -> Vec<Vec<u8>> {
    netmap_seeds()
        .into_iter()
        .flat_map(|messages| {
            let first = r#"{"version":2,"node_key":"nodekey:0303030303030303030303030303030303030303030303030303030303030303","server":"https://hs.example","saved":-9223372036854775808,"clock_offset":9223372036854775807,"generation":0}"#;
            [messages.clone(), [first.as_bytes(), b"\n", &messages].concat()]
        })
        .collect()
}
