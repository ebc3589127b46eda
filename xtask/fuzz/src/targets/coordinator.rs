//! What clients and administrators ask of the coordinator, and its files.

pub mod admin;

use std::{
    fs,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use lowroad_coordinator::{
    args::Serve,
    config::Config,
    delta::Sent,
    model::AuthKeyText,
    policy::{CompiledTailnet, Policy, recompile},
    relay_map,
    state::{NewAuthKey, NewPolicy, NodeRef, Settings, State, Stranger},
    store::Store,
    view::{Common, Snapshot},
};
use lowroad_wire::{
    control::{Hostinfo, MapRequest, MapResponse, Node, NodeId, UserId},
    key::MachinePublic,
    netmap::NetMap,
};
use tempfile::TempDir;
use time::OffsetDateTime;

/// A folder of this thread, on a file system without a disk; it goes when the thread does.
pub fn folder(name: &str) -> PathBuf {
    thread_local!(static OWN: TempDir = tempfile::Builder::new()
        .prefix("lowroad-fuzz-")
        .tempdir_in("/dev/shm")
        .expect("/dev/shm can be written to"));
    let folder = OWN.with(|own| own.path().join(name));
    fs::create_dir_all(&folder).expect("the folder is ours");
    folder
}

/// `--config` and the relay map it names: a text, a zero byte, another text.
pub fn coordinator_config(input: &[u8]) {
    let folder = folder("config");
    let (config, map) = input.split_at(
        input
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(input.len()),
    );
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        fs::write(&path, bytes).expect("the folder is ours");
        Some(path)
    };
    let flags = Serve {
        config: write("config", config),
        derp_map: write("map", map.get(1..).unwrap_or_default()).filter(|_| !map.is_empty()),
        // What the text names could be any file of this machine.
        policy: write("policy", b"{}"),
        ..Serve::default()
    };
    let without_map = Serve {
        derp_map: write("empty", b"{}"),
        config: flags.config.clone(),
        policy: flags.policy.clone(),
        ..Serve::default()
    };
    for flags in [flags, without_map] {
        if flags.derp_map.is_some()
            && let Ok(config) = Config::load(&folder, &flags)
        {
            let _ = relay_map::build(&config, None, Some(3478));
        }
    }
}

pub fn coordinator_config_seeds() -> Vec<Vec<u8>> {
    let config = r#"{"listen": "127.0.0.1:8080", "url": "https://hs.example:8443/", "stun": "off", "base_domain": "tail.internal", "relay_ipv4": "198.51.100.1",
        "nameservers": ["1.1.1.1"], "override_local_dns": true, "extra_records": [{"Name": "a.tail.internal", "Type": "A", "Value": "100.64.0.1"}], "ephemeral_timeout": "1h30m", // comment
        }"#;
    let map = super::netmaps::DERP_MAP;
    [config.to_owned(), format!("{config}\0{map}"), r#"{"url": "http://[::1]:1"}"#.to_owned(), format!("{{\"url\":\"http://a\"}}\0{map}"), r#"{"url": "http://192.0.2.1", "stun": "0.0.0.0:3478", "ephemeral_timeout": "99999999999h"}"#.to_owned(), "[".repeat(3000)]
        .map(String::into_bytes)
        .to_vec()
}

/// Policies that lines put into force.
const POLICIES: [&str; 4] = [
    r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}"#,
    r#"{"tagOwners": {"tag:a": []}, "groups": {"group:a": ["ann@"]},
        "acls": [{"action": "accept", "src": ["ann@"], "dst": ["autogroup:self:22"]},
            {"action": "accept", "src": ["group:a"], "dst": ["autogroup:self:80", "tag:a:443"]}],
        "ssh": [{"action": "accept", "src": ["ann@"], "dst": ["tag:a", "autogroup:self"], "users": ["root"]}],
        "nodeAttrs": [{"target": ["tag:a"], "attr": ["disable-ipv4"]}]}"#,
    r#"{"tagOwners": {"tag:a": []},
        "grants": [{"src": ["autogroup:member"], "dst": ["10.0.0.0/8"], "via": ["tag:a"], "ip": ["*"]},
            {"src": ["tag:a"], "dst": ["autogroup:internet"], "ip": ["*"]}],
        "autoApprovers": {"routes": {"10.0.0.0/8": ["tag:a"]}, "exitNode": ["ann@"]}}"#,
    r#"{"tagOwners": {"tag:a": ["bob@"]}, "groups": {"group:b": ["bob@", "eve@example.com"]},
        "acls": [{"action": "accept", "src": ["group:b"], "dst": ["ann@:22", "tag:a:80", "autogroup:self:*"]}],
        "ssh": [{"action": "accept", "src": ["group:b"], "dst": ["tag:a", "autogroup:self"], "users": ["autogroup:nonroot"]}],
        "nodeAttrs": [{"target": ["bob@"], "attr": ["disable-ipv4"]}]}"#,
];

struct Tailnet {
    state: State,
    compiled: Arc<CompiledTailnet>,
    /// What the first node was told, and what it makes of it.
    told: Option<(Sent, NetMap)>,
    generation: u64,
    now: OffsetDateTime,
    instant: Instant,
    /// Of the user who came last.
    new_key: String,
}

pub fn key_of(user: UserId) -> NewAuthKey {
    NewAuthKey {
        user,
        reusable: true,
        ephemeral: false,
        lifetime: Duration::from_secs(1 << 20),
        tags: Vec::new(),
    }
}

/// Machines that register, report and poll, in lines: a letter for what, a digit for the machine, then the JSON.
///
/// Whatever they say of themselves, what others are sent of it can be read, and differences add up to the whole.
pub fn coordinator_requests(input: &[u8]) {
    let settings = Arc::new(Settings {
        base_domain: "tail.internal".to_owned(),
        ..Settings::default()
    });
    let (now, instant) = (
        OffsetDateTime::UNIX_EPOCH + Duration::from_secs(1 << 30),
        Instant::now(),
    );
    // Nothing is ever written to it, so that one is enough.
    thread_local!(static EMPTY: Store = Store::open(&folder("state")).expect("the folder is ours"));
    let mut state = EMPTY
        .with(|store| State::load(store, settings, now, instant))
        .expect("an empty store");
    let user = state.create_user("ann", "", now).expect("a good name").id;
    let text = AuthKeyText::from_random([5; 30]);
    state.create_auth_key(key_of(user), &text, now);
    let compiled = Arc::new(recompile(state.policy(), &state.world()));
    let mut tailnet = Tailnet {
        state,
        compiled,
        told: None,
        generation: 0,
        now,
        instant,
        new_key: String::new(),
    };
    for line in input.split(|byte| *byte == b'\n').take(40) {
        if let [what, machine, json @ ..] = line {
            let json = String::from_utf8_lossy(json).replace("AUTHKEY", &text.reveal());
            let json = json.replace("NEWKEY", &tailnet.new_key);
            tailnet.act(*what, machine & 3, &json);
            tailnet.publish();
        }
    }
}

impl Tailnet {
    fn act(&mut self, what: u8, machine: u8, json: &str) {
        let machine = MachinePublic::from_bytes([machine + 1; 32]);
        match what {
            b'R' => {
                let Ok(request) = serde_json::from_str(json) else {
                    return;
                };
                let may_tag = |_, tag: &str| tag == "tag:a";
                let who = Stranger {
                    machine,
                    remote: [198, 51, 100, 1].into(),
                    random: [machine.as_bytes()[0]; 16],
                    now: self.now,
                    instant: self.instant,
                    may_tag: &may_tag,
                };
                let _ = self.state.register(request, &who);
            }
            b'M' => {
                let Ok(request) = serde_json::from_str::<MapRequest>(json) else {
                    return;
                };
                let stream = request.stream;
                if let Ok(node) = self.state.update(machine, request, self.now)
                    && stream
                {
                    self.state.attach(node, self.now);
                }
            }
            b'T' => {
                let later = Duration::from_secs(u64::from(machine.as_bytes()[0]) * 700);
                self.now += later;
                self.instant += later;
                self.state.tick(self.now, self.instant);
            }
            b'A' => {
                let routes = serde_json::from_str(json).unwrap_or_default();
                self.state
                    .approve_routes(NodeId(machine.as_bytes()[0].into()), routes, self.now);
            }
            b'N' => {
                if let Ok(node) = self
                    .state
                    .find_node(&NodeRef(json.to_owned()))
                    .map(|node| node.id)
                {
                    self.state.expire_node(node, self.now);
                }
            }
            b'P' => {
                let text = POLICIES[usize::from(machine.as_bytes()[0] - 1) % POLICIES.len()];
                let policy = Policy::parse(text).expect("a constant");
                let new = NewPolicy {
                    text: text.to_owned(),
                    author: String::new(),
                    account: String::new(),
                    note: String::new(),
                };
                let _ = self.state.set_policy(new, policy, self.now);
            }
            b'U' => {
                if let Ok(user) = self.state.create_user(json, "", self.now) {
                    let text = AuthKeyText::from_random([user.id.0 as u8 ^ 0x80; 30]);
                    self.state.create_auth_key(key_of(user.id), &text, self.now);
                    self.new_key = text.reveal();
                }
            }
            b'V' => {
                let _ = self.state.delete_user(json);
            }
            b'D' => self.state.delete_node(NodeId(machine.as_bytes()[0].into())),
            _ => {}
        }
    }

    fn publish(&mut self) {
        let mut taken = self.state.take_changes();
        let mut compiled = taken.compile.apply(&self.compiled);
        let last = std::mem::replace(&mut self.compiled, compiled.tailnet);
        taken.changed.append(&mut compiled.others);
        let snapshot = Snapshot {
            generation: taken.generation,
            previous: std::mem::replace(&mut self.generation, taken.generation),
            changed: taken.changed,
            nodes: taken.nodes,
            users: taken.users,
            compiled: self.compiled.clone(),
            is_whole: compiled.is_whole,
            is_closed: false,
        };
        // A session that is behind asks the version before.
        for node in self.state.nodes() {
            last.peers_of(node.id);
        }
        self.tell(&snapshot);
        // Whoever asks everything hides what is followed without having been asked for.
        if self.generation.is_multiple_of(3) {
            self.assert_compiled();
        }
        self.state.take_rows();
    }

    /// What is followed is what compiling everything makes.
    fn assert_compiled(&self) {
        let fresh = recompile(self.state.policy(), &self.state.world());
        for node in self.state.nodes() {
            let (id, ours) = (node.id, &self.compiled);
            let why = "what is followed is what compiling everything makes";
            assert_eq!(ours.rules_for(id), fresh.rules_for(id), "{why}");
            assert_eq!(ours.peers_of(id), fresh.peers_of(id), "{why}");
            assert_eq!(ours.ssh_for(id), fresh.ssh_for(id), "{why}");
            assert_eq!(ours.attributes_of(id), fresh.attributes_of(id), "{why}");
            let routes = |of: &CompiledTailnet| [of.own_allowed_ips(id), of.carried_routes(id)];
            assert_eq!(routes(ours), routes(&fresh), "{why}");
        }
    }

    fn tell(&mut self, snapshot: &Snapshot) {
        let watcher = match &self.told {
            Some((_, map)) => map.self_node.as_ref().map(|node| node.id),
            None => snapshot.nodes.keys().next().copied(),
        };
        let Some((sent, message)) =
            watcher.and_then(|id| Sent::first(id, snapshot, &Common::default(), self.now))
        else {
            self.told = None;
            return;
        };
        let mut whole = NetMap::default();
        whole.apply(carried(&message), self.now);
        let (sent, map) = match self.told.take() {
            None => (sent, whole),
            Some((mut sent, mut map)) => {
                if let Ok(Some(difference)) = sent.difference(snapshot, self.now) {
                    map.apply(carried(&difference), self.now);
                }
                assert_eq!(map.peers, whole.peers, "differences add up to the whole");
                assert_eq!(
                    foreign(map.self_node.as_ref()),
                    foreign(whole.self_node.as_ref()),
                    "differences add up to the whole"
                );
                assert!(
                    map.filter_rules().eq(whole.filter_rules()),
                    "differences add up to the whole"
                );
                (sent, map)
            }
        };
        self.told = Some((sent, map));
    }
}

/// What a node doesn't tell itself: it isn't sent its own report back.
fn foreign(own: Option<&Node>) -> Option<Node> {
    own.map(|own| Node {
        hostinfo: Hostinfo::default(),
        endpoints: Vec::new(),
        cap: 0,
        ..own.clone()
    })
}

/// As it arrives at a client, which must understand all of it.
fn carried(message: &MapResponse) -> MapResponse {
    let text = serde_json::to_vec(message).expect("messages can be written");
    let (message, malformed) = MapResponse::parse(&text).expect("messages are JSON");
    assert_eq!(malformed, [], "a client cannot read what it is sent");
    message
}

pub fn coordinator_requests_seeds() -> Vec<Vec<u8>> {
    let register = |machine: u8, more: &str| {
        let key = format!("{:02x}", machine + 16).repeat(32);
        format!(
            r#"R{machine}{{"Version":130,"NodeKey":"nodekey:{key}","Auth":{{"AuthKey":"AUTHKEY"}},"Hostinfo":{{"Hostname":"n{machine}","OS":"linux","RoutableIPs":["10.0.0.0/8","0.0.0.0/0"]{more}}}}}"#
        )
    };
    let map = |machine: u8, more: &str| {
        let key = format!("{:02x}", machine + 16).repeat(32);
        format!(
            r#"M{machine}{{"Version":130,"NodeKey":"nodekey:{key}","DiscoKey":"discokey:{key}","Endpoints":["198.51.100.1:5"],"EndpointTypes":[2]{more}}}"#
        )
    };
    let script = [
        register(0, ""),
        "P1".to_owned(),
        register(1, r#","RequestTags":["tag:a"]"#),
        map(0, r#","Stream":true"#),
        "P2".to_owned(),
        map(
            1,
            r#","Hostinfo":{"Hostname":"other","NetInfo":{"PreferredDERP":2,"DERPLatency":{"2-v4":0.5}}}"#,
        ),
        r#"A1["10.0.0.0/8"]"#.to_owned(),
        "T1".to_owned(),
        register(
            2,
            r#","Location":{"City":"x"},"Services":[{"Proto":"tcp","Port":1}]"#,
        ),
        "N0n1".to_owned(),
        "D1".to_owned(),
        "T3".to_owned(),
    ];
    let mut seeds: Vec<Vec<u8>> = script
        .iter()
        .map(|line| line.clone().into_bytes())
        .collect();
    seeds.push(script.join("\n").into_bytes());
    seeds.push(
        [
            register(0, ""),
            register(1, ""),
            map(1, r#","Stream":true"#),
            "D0".to_owned(),
        ]
        .join("\n")
        .into_bytes(),
    );
    let of_user = |machine: u8| register(machine, "").replace("AUTHKEY", "NEWKEY");
    seeds.push(
        [
            "P3".to_owned(),
            register(0, ""),
            map(0, r#","Stream":true"#),
            "U0bob".to_owned(),
            of_user(1),
            "U0eve@example.com".to_owned(),
            of_user(2),
            "D2".to_owned(),
            "V0eve@example.com".to_owned(),
            "U0eve@example.com".to_owned(),
            of_user(3),
        ]
        .join("\n")
        .into_bytes(),
    );
    seeds
}
