//! Rules become tables whose lookups cost the same however many rules there are.
//!
//! A destination has a class; class, protocol and port select a *service*, the list of rules that admit somebody there; a source has a class; source class and service
//! select the rule. Splitting the lookup at the service keeps the tables from growing with the product of sources, destinations and ports.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use lowroad_abi::{Address, Class, Side};
use lowroad_wire::control::PortRange;

use super::{
    Family, Input, Prefix,
    answer::TSMP,
    classify::{Interner, merged, nest},
    compiled::{Compiled, CompiledRule, PairKey, PortKey, Service, Tables, key},
    layout,
    packet::{SCTP, TCP, UDP, icmp_of},
    ports::{blocks, sweep},
    rules::{Rule, Rules, describe},
};

/// Prefixes other than hosts, and list items touched while building: bounds for rule sets sent to do harm, as is the room in the kernel's largest table.
/// A rule set of 10,000 rules uses a hundredth.
const MAX_PREFIXES: usize = 3 << 18;
const MAX_WORK: usize = 1 << 22;

/// Compiles; the same input gives the same tables.
pub fn compile(input: &Input) -> Compiled {
    let Rules {
        mut rules,
        mut notes,
    } = Rules::of(input);
    let tables = match Builder::new(input, &rules).and_then(|b| b.tables(input)) {
        Ok(tables) => tables,
        Err(TooMuch) => {
            notes.push(format!(
                "{} rules need tables larger than any this filter builds: none is in force",
                rules.len()
            ));
            rules.clear();
            let none = Builder::new(input, &[]).and_then(|b| b.tables(input));
            none.unwrap_or_else(|TooMuch| Tables::default())
        }
    };
    let mut seen = HashSet::new();
    let rules = rules
        .iter()
        .map(|rule| (key(rule), rule))
        .filter(|(key, _)| seen.insert(*key));
    let rules = rules.map(|(key, rule)| CompiledRule {
        id: rule.id,
        key,
        text: describe(rule),
    });
    Compiled {
        rules: rules.collect(),
        notes,
        tables,
        shields_up: input.shields_up,
        peer_api_port: input.peer_api_port,
        disco: input.disco,
    }
}

/// The bounds were met.
struct TooMuch;

/// A set of sources of one family, as rules name them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum SourceSet {
    Prefixes(Vec<Prefix>),
    Cap(String),
}

/// Whom a rule's addresses of one family are.
#[derive(Clone, Copy, Debug)]
enum Senders {
    Everyone,
    /// A number in `sets`; none where the rule names nobody of the family.
    Set(Option<u32>),
}

/// Numbers of a rule's sources. They are looked up for every piece of its ports, and the lists can be long.
#[derive(Clone, Debug, Default)]
struct Numbered {
    senders: [Option<Senders>; 2],
    caps: Option<Vec<u32>>,
}

/// Who may use a destination, protocol and port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Admitted {
    /// Everybody, by this rule.
    Everyone(usize),
    /// Those in one of the sets, by its rule; in order of precedence.
    Sets(Vec<(u32, usize)>),
}

/// One destination of a rule.
type Target = (usize, PortRange);

struct Builder<'a> {
    rules: &'a [Rule],
    keys: Vec<u64>,
    sets: Interner<SourceSet>,
    /// Of each rule, as far as it was asked for.
    numbered: Vec<Numbered>,
    services: Interner<Vec<(u32, usize)>>,
    work: usize,
    /// That what is in `out` takes in the kernel's table.
    room: usize,
    out: Tables,
}

impl<'a> Builder<'a> {
    fn new(input: &Input, rules: &'a [Rule]) -> Result<Self, TooMuch> {
        let mut out = Self {
            rules,
            keys: rules.iter().map(key).collect(),
            sets: Interner::new(),
            numbered: vec![Numbered::default(); rules.len()],
            services: Interner::new(),
            work: 0,
            room: 0,
            out: Tables::default(),
        };
        out.destinations(input)?;
        Ok(out)
    }

    fn tables(mut self, input: &Input) -> Result<Tables, TooMuch> {
        self.sources(input)?;
        self.out.hosts.sort();
        self.out.prefixes.sort();
        self.out.ports.sort();
        self.out.pairs.sort();
        Ok(self.out)
    }

    fn spend(&mut self, items: usize) -> Result<(), TooMuch> {
        self.work += items;
        if self.work > MAX_WORK
            || self.room > layout::LARGEST
            || self.out.prefixes.len() > MAX_PREFIXES
        {
            Err(TooMuch)
        } else {
            Ok(())
        }
    }

    /// Classes of destinations inside the local set, and the services of each.
    fn destinations(&mut self, input: &Input) -> Result<(), TooMuch> {
        #[derive(Default)]
        struct Mark {
            local: bool,
            own: bool,
            targets: Vec<Target>,
        }
        let mut marks: BTreeMap<Prefix, Mark> = BTreeMap::new();
        for net in &input.local {
            marks.entry(Prefix::from(*net)).or_default().local = true;
        }
        for address in &input.own_addresses {
            marks.entry(Prefix::host(*address)).or_default().own = true;
        }
        for (number, rule) in self.rules.iter().enumerate() {
            for (prefix, ports) in &rule.destinations {
                marks
                    .entry(*prefix)
                    .or_default()
                    .targets
                    .push((number, *ports));
            }
        }
        for mark in marks.values_mut() {
            mark.targets.sort_unstable();
            mark.targets.dedup();
        }
        let mut lists: Interner<(Family, Vec<Target>)> = Interner::new();
        // Class number, local, own. The number counts only where it is local.
        let mut result = Ok(());
        let classes = nest(
            &marks,
            &(0, false, false),
            |prefix, (outer, local, _), mark| {
                let inherited = lists.value(*outer).map_or(&[][..], |(_, targets)| targets);
                let targets = merged(inherited, &mark.targets);
                if result.is_ok() {
                    result = self.spend(targets.len() + 1);
                }
                let number = if result.is_ok() {
                    lists.number((prefix.family(), targets))
                } else {
                    0
                };
                (number, *local || mark.local, mark.own)
            },
        );
        result?;
        let mut used = BTreeSet::new();
        for (prefix, (number, local, own)) in &classes {
            if !local && !own {
                continue;
            }
            let flag = |on: bool, flag: u32| if on { flag } else { 0 };
            let number = if *local { *number } else { 0 };
            used.insert(number);
            self.emit(
                Side::Destination,
                prefix,
                Class::new(number, flag(*local, Class::LOCAL) | flag(*own, Class::OWN)),
            );
        }
        let cap_everywhere = [Family::V4, Family::V6].map(|family| self.caps_everywhere(family));
        for number in used {
            if let Some((family, targets)) = lists.value(number) {
                let [v4, v6] = &cap_everywhere;
                self.services_of(
                    number,
                    *family,
                    targets,
                    if *family == Family::V4 { v4 } else { v6 },
                )?;
            }
        }
        Ok(())
    }

    /// `cap:` sources admit pings whatever the destination, if their rule has any destination of the family.
    fn caps_everywhere(&mut self, family: Family) -> Vec<(u32, usize)> {
        let mut out = Vec::new();
        let rules = self.rules;
        for (number, rule) in rules.iter().enumerate() {
            if rule.destinations.iter().any(|(p, _)| p.family() == family) {
                out.extend(self.caps(number).iter().map(|set| (*set, number)));
            }
        }
        out
    }

    fn services_of(
        &mut self,
        class: u32,
        family: Family,
        targets: &[Target],
        caps_everywhere: &[(u32, usize)],
    ) -> Result<(), TooMuch> {
        for protocol in [TCP, UDP, SCTP] {
            self.port_services(class, family, protocol, targets)?;
        }
        let by_address: BTreeSet<usize> = targets.iter().map(|(rule, _)| *rule).collect();
        let icmp = self.admitted(family, by_address.into_iter(), false, caps_everywhere)?;
        self.emit_service(class, icmp_of(family), PortRange::ANY, &icmp);
        let mut others: BTreeMap<u8, BTreeSet<usize>> = BTreeMap::new();
        for (rule, _) in targets.iter().filter(|(_, ports)| *ports == PortRange::ANY) {
            for protocol in &self.rules[*rule].protocols {
                if ![TCP, UDP, SCTP, TSMP, icmp_of(family)].contains(protocol) {
                    others.entry(*protocol).or_default().insert(*rule);
                }
            }
        }
        for (protocol, rules) in others {
            let admitted = self.admitted(family, rules.into_iter(), false, &[])?;
            self.emit_service(class, protocol, PortRange::ANY, &admitted);
        }
        Ok(())
    }

    fn port_services(
        &mut self,
        class: u32,
        family: Family,
        protocol: u8,
        targets: &[Target],
    ) -> Result<(), TooMuch> {
        let rules = self.rules;
        let listed = targets
            .iter()
            .filter(|(rule, _)| rules[*rule].protocols.contains(&protocol));
        let ranges: Vec<(PortRange, usize)> = listed.map(|(rule, ports)| (*ports, *rule)).collect();
        let mut run: Option<(PortRange, Admitted)> = None;
        sweep(&ranges, |piece, active| {
            let admitted = self.admitted(family, active.keys().copied(), true, &[])?;
            match &mut run {
                Some((range, same))
                    if *same == admitted && u32::from(range.last) + 1 == u32::from(piece.first) =>
                {
                    range.last = piece.last
                }
                _ => {
                    if let Some((range, before)) = run.replace((piece, admitted)) {
                        self.emit_service(class, protocol, range, &before);
                    }
                }
            }
            Ok(())
        })?;
        if let Some((range, admitted)) = run {
            self.emit_service(class, protocol, range, &admitted);
        }
        Ok(())
    }

    /// Who is admitted by these rules: by their addresses, by their capabilities too if `caps`, and by `more`.
    fn admitted(
        &mut self,
        family: Family,
        rules: impl Iterator<Item = usize>,
        caps: bool,
        more: &[(u32, usize)],
    ) -> Result<Admitted, TooMuch> {
        let mut sets: Vec<(u32, usize)> = more.to_vec();
        for number in rules {
            self.spend(1)?;
            match self.senders(number, family)? {
                Senders::Everyone => return Ok(Admitted::Everyone(number)),
                Senders::Set(set) => sets.extend(set.map(|set| (set, number))),
            }
            if caps {
                sets.extend(self.caps(number).iter().map(|set| (*set, number)));
            }
        }
        self.spend(sets.len() + 1)?;
        sets.sort_by_key(|(set, rule)| (*rule, *set));
        let mut seen = HashSet::new();
        sets.retain(|(set, _)| seen.insert(*set));
        Ok(Admitted::Sets(sets))
    }

    /// A rule's addresses of a family as one set.
    fn senders(&mut self, number: usize, family: Family) -> Result<Senders, TooMuch> {
        let at = usize::from(family == Family::V6);
        if let Some(known) = self.numbered[number].senders[at] {
            return Ok(known);
        }
        let rules = self.rules;
        let rule = &rules[number];
        self.spend(rule.sources.len())?;
        let senders = if rule.admits_everyone(family) {
            Senders::Everyone
        } else {
            let listed = rule.sources.iter().filter(|p| p.family() == family);
            let prefixes: Vec<Prefix> = listed.copied().collect();
            let set = (!prefixes.is_empty()).then_some(SourceSet::Prefixes(prefixes));
            Senders::Set(set.map(|set| self.sets.number(set)))
        };
        self.numbered[number].senders[at] = Some(senders);
        Ok(senders)
    }

    /// A rule's capabilities, each as a set.
    fn caps(&mut self, number: usize) -> &[u32] {
        let (rules, sets) = (self.rules, &mut self.sets);
        self.numbered[number].caps.get_or_insert_with(|| {
            let caps = rules[number].caps.iter();
            caps.map(|cap| sets.number(SourceSet::Cap(cap.clone())))
                .collect()
        })
    }

    fn emit_service(&mut self, class: u32, protocol: u8, range: PortRange, admitted: &Admitted) {
        let service = match admitted {
            Admitted::Everyone(rule) => Service::Everybody(self.keys[*rule]),
            Admitted::Sets(sets) if sets.is_empty() => return,
            Admitted::Sets(sets) => Service::Number(self.services.number(sets.clone())),
        };
        for block in blocks(range) {
            self.room += layout::block_room(block.bits);
            let key = PortKey {
                bits: block.bits,
                class,
                protocol,
                port: block.first,
            };
            self.out.ports.push((key, service));
        }
    }

    /// Classes of sources, and the rule for each class and service.
    fn sources(&mut self, input: &Input) -> Result<(), TooMuch> {
        #[derive(Default)]
        struct Mark {
            sets: Vec<u32>,
            jailed: Option<bool>,
        }
        let mut marks: BTreeMap<Prefix, Mark> = BTreeMap::new();
        let no_members = Vec::new();
        let holders = cap_holders(input);
        for (number, set) in self.sets.iter() {
            let members = match set {
                SourceSet::Prefixes(prefixes) => prefixes,
                SourceSet::Cap(cap) => holders.get(cap.as_str()).unwrap_or(&no_members),
            };
            for prefix in members {
                marks.entry(*prefix).or_default().sets.push(number);
            }
        }
        self.out.jail = input.peers.iter().any(|p| p.jailed);
        for peer in input.peers.iter().filter(|_| self.out.jail) {
            let own = peer.addresses.iter().map(|a| Prefix::host(*a));
            for prefix in own.chain(peer.allowed_ips.iter().map(|n| Prefix::from(*n))) {
                let jailed = &mut marks.entry(prefix).or_default().jailed;
                *jailed = Some(jailed.unwrap_or(false) || peer.jailed);
            }
        }
        for mark in marks.values_mut() {
            mark.sets.sort_unstable();
            mark.sets.dedup();
        }
        let mut lists: Interner<Vec<u32>> = Interner::new();
        let mut result = Ok(());
        let classes = nest(&marks, &(0, false), |_, (outer, jailed), mark| {
            let sets = merged(lists.value(*outer).map_or(&[][..], |s| s), &mark.sets);
            if result.is_ok() {
                result = self.spend(sets.len() + 1);
            }
            let number = if sets.is_empty() || result.is_err() {
                0
            } else {
                lists.number(sets)
            };
            (number, mark.jailed.unwrap_or(*jailed))
        });
        result?;
        for (prefix, (number, jailed)) in &classes {
            self.emit(
                Side::Source,
                prefix,
                Class::new(*number, if *jailed { Class::JAILED } else { 0 }),
            );
        }
        self.pairs(&lists)
    }

    fn pairs(&mut self, classes: &Interner<Vec<u32>>) -> Result<(), TooMuch> {
        let mut holders: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for (class, sets) in classes.iter() {
            for set in sets {
                holders.entry(*set).or_default().push(class);
            }
        }
        let services = std::mem::replace(&mut self.services, Interner::new());
        for (service, sets) in services.iter() {
            let mut taken = HashSet::new();
            for (set, rule) in sets {
                let classes = holders.get(set).map_or(&[][..], |c| c);
                self.spend(classes.len())?;
                for class in classes.iter().filter(|c| taken.insert(**c)) {
                    self.room += 1;
                    let pair = PairKey {
                        source: *class,
                        service,
                    };
                    self.out.pairs.push((pair, self.keys[*rule]));
                }
            }
        }
        self.spend(0)
    }

    fn emit(&mut self, side: Side, prefix: &Prefix, class: Class) {
        let address = Address::new(side, prefix.family().number(), prefix.bytes());
        if prefix.is_host() {
            self.room += layout::host_room(&address);
            self.out.hosts.push((address, class));
        } else {
            self.out.prefixes.push((
                Address::TAG_BITS + u32::from(prefix.length()),
                address,
                class,
            ));
        }
    }
}

/// Addresses of the peers that have each capability.
fn cap_holders(input: &Input) -> HashMap<&str, Vec<Prefix>> {
    let mut out: HashMap<&str, Vec<Prefix>> = HashMap::new();
    for peer in &input.peers {
        for cap in &peer.caps {
            let addresses = peer.addresses.iter().map(|a| Prefix::host(*a));
            out.entry(cap).or_default().extend(addresses);
        }
    }
    out
}
