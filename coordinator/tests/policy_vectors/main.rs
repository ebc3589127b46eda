//! The policy compiler against what the hosted service made of recorded policies
//! (`samples/vectors/policy`): rules by meaning, visibility, routes, logins, attributes, refusals. Policies go the way that
//! they go in the server.

mod case;
mod filter;
mod ssh;

use std::path::PathBuf;

use lowroad_coordinator::policy::{CompiledTailnet, Diagnostic, PolicyErrorKind};

use case::{Case, Compared};

/// How many cases of each category come with the project.
const SHARED: [(&str, usize); 7] = [
    ("acl", 141),
    ("policytest", 37),
    ("routes", 92),
    ("grant", 186),
    ("ssh", 83),
    ("sshtest", 23),
    ("nodeattrs", 40),
];

/// What of them is compared, over all nodes.
const SHARED_PARTS: Compared = Compared {
    filters: 6_030,
    peers: 32_764,
    own: 6_030,
    logins: 915,
    attributes: 3_105,
};

#[test]
fn every_recorded_policy_comes_out_as_the_service_made_it() {
    let is_named = std::env::var_os("LOWROAD_SAMPLES").is_some();
    if !folder().is_dir() {
        let folder = folder();
        assert!(!is_named, "no samples at {}", folder.display());
        println!(
            "SKIPPED: no samples at {}; set LOWROAD_SAMPLES",
            folder.display()
        );
        println!("skipped 1");
        return;
    }
    let mut all = Totals::default();
    for (category, expected) in SHARED {
        let cases = load(category);
        let mut totals = Totals::default();
        for case in &cases {
            totals.judge(case);
        }
        totals.report(category);
        assert!(!cases.is_empty(), "no cases of {category}");
        if !is_named {
            assert_eq!(cases.len(), expected, "cases of {category}");
        }
        all.add(totals);
    }
    all.report("policies");
    assert_eq!(all.differ, Vec::<String>::new());
    if !is_named {
        assert_eq!(all.compared, SHARED_PARTS);
    }
}

#[derive(Default)]
struct Totals {
    taken: usize,
    refused: usize,
    compared: Compared,
    differ: Vec<String>,
}

impl Totals {
    fn judge(&mut self, case: &Case) {
        let difference = match (case.status, case.check()) {
            (200, Ok(tailnet)) => {
                self.taken += 1;
                self.compare(case, &tailnet)
            }
            (200, Err(refused)) => Some(format!("refused: {refused}")),
            (_, Err(refused)) if refused.report().errors.iter().all(is_unsupported) => {
                Some(format!("refused as not supported: {refused}"))
            }
            (_, Ok(_)) => Some("taken, but the service refused it".to_owned()),
            (_, Err(_)) => {
                self.refused += 1;
                None
            }
        };
        if let Some(difference) = difference {
            println!("{}: {difference}", case.id);
            self.differ.push(case.id.clone());
        }
    }

    fn compare(&mut self, case: &Case, tailnet: &CompiledTailnet) -> Option<String> {
        let differences = case.compare(tailnet, &mut self.compared);
        (!differences.is_empty()).then(|| differences.join("\n    "))
    }

    fn add(&mut self, other: Self) {
        self.taken += other.taken;
        self.refused += other.refused;
        self.compared.add(&other.compared);
        self.differ.extend(other.differ);
    }

    fn report(&self, what: &str) {
        println!(
            "{what}: {} taken, {} refused as by the service, {} differ; {:?}",
            self.taken,
            self.refused,
            self.differ.len(),
            self.compared
        );
    }
}

fn is_unsupported(error: &Diagnostic) -> bool {
    error.kind == PolicyErrorKind::Unsupported.name()
}

fn samples() -> PathBuf {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/samples");
    std::env::var_os("LOWROAD_SAMPLES").map_or_else(|| default.into(), PathBuf::from)
}

fn folder() -> PathBuf {
    samples().join("vectors/policy")
}

/// All cases of a category. Samples that are there lack none.
fn load(category: &str) -> Vec<Case> {
    let path = folder().join(format!("{category}.jsonl"));
    let text = std::fs::read_to_string(&path);
    let text = text.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let cases = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("a case parses"));
    cases.collect()
}
