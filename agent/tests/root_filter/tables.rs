//! The hash tables of rule sets in the kernel: keys outside their first bucket, and what is freed.

use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

use aya::maps::{Array, ArrayOfMaps, Map, MapData};
use lowroad_abi::{Bucket, SLOTS, Side, VERSION, cell};
use lowroad_agent::kernel::bpf::Filter;
use lowroad_core::filter::{Compiled, Direction, Input, Layout, compile};
use lowroad_wire::control::{FilterRule, NetPortRange, PortRange};

use crate::{
    device::{attach, end, options},
    packets::{Ip, SYN, tcp},
    refusals::with_writes_refused,
    tun::{Tun, fresh_namespace},
};

const OWN: [&str; 2] = ["100.64.0.1", "fd7a:115c:a1e0::1"];

/// The addresses of a peer, in both families.
fn addresses(peer: u32) -> [IpAddr; 2] {
    let v6 = 0xfd7a_115c_a1e0_u128 << 80 | u128::from(peer) << 16;
    [
        Ipv4Addr::from(0x6440_0000 + peer).into(),
        Ipv6Addr::from(v6).into(),
    ]
}

/// One rule that admits these peers to a port.
fn rules(peers: std::ops::Range<u32>) -> Input {
    let ports = PortRange {
        first: 80,
        last: 80,
    };
    Input {
        rules: vec![FilterRule {
            src_ips: peers.flat_map(addresses).map(|a| a.to_string()).collect(),
            dst_ports: OWN
                .map(|own| NetPortRange {
                    ip: own.to_owned(),
                    ports,
                })
                .to_vec(),
            ..FilterRule::default()
        }],
        local: OWN
            .map(|own| own.parse::<IpAddr>().expect("address").into())
            .to_vec(),
        ..Input::default()
    }
}

fn is_admitted(filter: &mut Filter, source: IpAddr) -> bool {
    let own = if source.is_ipv4() { OWN[0] } else { OWN[1] };
    let own = own.parse().expect("address");
    let syn = Ip::between(source, own, 6, &tcp(4000, 80, SYN)).bytes();
    filter.run(Direction::In, &syn, 0, 1).expect("run").passed
}

/// Whether an address is outside its first bucket.
fn is_spilled(layout: &Layout, address: IpAddr) -> bool {
    let geometry = &layout.geometry;
    match address {
        IpAddr::V4(v4) => {
            let key = cell::host_key(Side::Source, v4.octets());
            let hash = cell::narrow_hash(key, geometry.seed);
            let bucket = layout.buckets[cell::first(hash, geometry.narrow) as usize];
            bucket
                .chunks(2)
                .all(|entry| cell::unmarked(entry[0]) != key)
        }
        IpAddr::V6(v6) => {
            let octets = v6.octets();
            let half =
                |at: usize| u64::from_ne_bytes(octets[at..at + 8].try_into().expect("eight bytes"));
            let halves = [half(0), half(8)];
            let hash = cell::wide_hash(halves, Side::Source, geometry.seed);
            let bucket = geometry.narrow + cell::first(hash, geometry.wide);
            let bucket = layout.buckets[bucket as usize];
            bucket.chunks(4).all(|entry| entry[..2] != halves)
        }
    }
}

/// As many peers as the smallest table holds half full.
#[test]
fn keys_in_their_second_bucket_are_found_and_strangers_are_not() {
    let peers = 10..340;
    let compiled = compile(&rules(peers.clone()));
    let layout = Layout::new(&compiled.tables, |_| 1).expect("room");
    let mut filter = Filter::detached(&options("spilled")).expect("load");
    filter.install(&compiled).expect("install");
    let mut spilled = [0, 0];
    for peer in peers {
        for (family, address) in addresses(peer).into_iter().enumerate() {
            spilled[family] += u32::from(is_spilled(&layout, address));
            assert!(is_admitted(&mut filter, address), "{address}");
        }
    }
    for stranger in 1_000..2_000 {
        for address in addresses(stranger) {
            assert!(!is_admitted(&mut filter, address), "{address}");
        }
    }
    println!("keys in their second bucket: {spilled:?} of IPv4 and IPv6");
    assert!(spilled[0] > 0 && spilled[1] > 0, "{spilled:?}");
}

/// Places that hold tables of this size.
fn held(pins: &Path, size: usize) -> Vec<u32> {
    let path = pins.join(format!("v{VERSION}/TABLE_{size}"));
    let map = Map::ArrayOfMaps(MapData::from_pin(path).expect("a pinned map"));
    let map: ArrayOfMaps<MapData, Array<MapData, Bucket>> = map.try_into().expect("tables");
    let is_held = |slot: &u32| map.get(slot, 0).is_ok();
    (0..SLOTS as u32).filter(is_held).collect()
}

#[test]
fn tables_that_are_not_in_force_are_freed() {
    fresh_namespace();
    let options = options("freed");
    let tun = Tun::new("lr0");
    let mut filter = attach(&tun, &options);
    let pins = options.bpffs.join("lowroad").join(&options.state_id);
    let (small, large) = (compile(&rules(10..20)), compile(&rules(10..11_500)));
    let mut install = |rules: &Compiled| {
        filter.install(rules).expect("install");
        let mut admits = |peer| addresses(peer).map(|a| is_admitted(&mut filter, a));
        assert_eq!(admits(10), [true; 2]);
        assert_eq!(admits(11_499), [std::ptr::eq(rules, &large); 2]);
        [0, 1, 2].map(|size| held(&pins, size))
    };
    assert_eq!(install(&small), [vec![0], vec![], vec![]]);
    assert_eq!(install(&large), [vec![0], vec![], vec![1]]);
    assert_eq!(install(&small), [vec![0, 2], vec![], vec![]]);
    assert_eq!(install(&large), [vec![2], vec![], vec![0]]);
    assert_eq!(install(&large), [vec![2], vec![], vec![1]]);
    filter.close().expect("close");
    filter.install(&small).expect("install");
    assert_eq!(held(&pins, 2), [0; 0], "freed after it was closed, too");
    end(filter, tun);
}

/// All file descriptors that this process may have, and the limit as it was, which holds again when this is dropped.
struct Descriptors {
    taken: Vec<File>,
    limit: libc::rlimit,
}

impl Descriptors {
    fn take_all() -> Self {
        let mut limit = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        // SAFETY: the structure is there for the time of the call.
        let read = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
        assert_eq!(read, 0, "getrlimit");
        set_limit(256, limit);
        let open = || File::open("/dev/null").ok();
        Self {
            taken: std::iter::from_fn(open).collect(),
            limit,
        }
    }
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        set_limit(self.limit.rlim_cur, self.limit);
    }
}

fn set_limit(soft: u64, limit: libc::rlimit) {
    let limit = libc::rlimit {
        rlim_cur: soft,
        ..limit
    };
    // SAFETY: as above.
    let set = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    assert_eq!(set, 0, "setrlimit");
}

/// Whether a peer of the rules before only, one of both, and one of those after only are admitted.
fn admits_of_both(filter: &mut Filter) -> [[bool; 2]; 3] {
    [10, 15, 24].map(|peer| addresses(peer).map(|a| is_admitted(filter, a)))
}

const BEFORE: [[bool; 2]; 3] = [[true; 2], [true; 2], [false; 2]];
const AFTER: [[bool; 2]; 3] = [[false; 2], [true; 2], [true; 2]];

/// A new map is a new file descriptor: with none, one, two left the kernel refuses another of a rule set's maps.
#[test]
fn a_rule_set_that_the_kernel_refuses_halfway_leaves_the_one_before_in_force() {
    let mut filter = Filter::detached(&options("halfway")).expect("load");
    let (before, after) = (compile(&rules(10..20)), compile(&rules(15..25)));
    filter.install(&before).expect("install");
    let mut refusals = Vec::new();
    for left in 0.. {
        let mut descriptors = Descriptors::take_all();
        let kept = descriptors.taken.len() - left;
        descriptors.taken.truncate(kept);
        let result = filter.install(&after);
        drop(descriptors);
        let Err(error) = result else { break };
        let line = error.to_string();
        assert!(line.contains("os error 24"), "the reason is told: {line}");
        refusals.push(line);
        assert_eq!(admits_of_both(&mut filter), BEFORE, "{refusals:?}");
        assert!(left < 100, "never installed: {refusals:?}");
    }
    assert_eq!(admits_of_both(&mut filter), AFTER);
    println!("{refusals:#?}");
    assert!(refusals.len() >= 2, "{refusals:?}");
}

/// Of a table's buckets, prefixes, settings and the switch itself, each in turn.
#[test]
fn a_rule_set_of_which_the_kernel_refuses_any_write_leaves_the_one_before_in_force() {
    let mut filter = Filter::detached(&options("writes")).expect("load");
    let (before, after) = (compile(&rules(10..20)), compile(&rules(15..25)));
    filter.install(&before).expect("install");
    let mut refusals = Vec::new();
    for refused in 1.. {
        let (result, writes) =
            with_writes_refused(|write| write == refused, || filter.install(&after));
        let Err(error) = result else {
            assert!(writes < refused, "a refused write is noticed");
            break;
        };
        let line = error.to_string();
        assert!(line.contains("os error 12"), "the reason is told: {line}");
        refusals.push(line);
        assert_eq!(admits_of_both(&mut filter), BEFORE, "{refusals:?}");
        assert!(refused < 1_000, "never installed: {refusals:?}");
    }
    assert_eq!(admits_of_both(&mut filter), AFTER);
    let count = refusals.len();
    refusals.dedup();
    println!("{count} refusals: {refusals:#?}");
    let last = refusals.last().expect("a refusal");
    assert!(last.starts_with("switching the rule set"), "{last}");

    // Then all is to be closed, and even that may be refused: the device has to go down.
    let (closed, _) = with_writes_refused(|_| true, || filter.close());
    let line = closed.expect_err("no memory").to_string();
    assert!(line.contains("os error 12"), "{line}");
    filter.close().expect("close");
    assert_eq!(admits_of_both(&mut filter), [[false; 2]; 3]);
}
