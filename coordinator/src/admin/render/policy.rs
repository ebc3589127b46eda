//! What the policy means, as text for people.

use super::{
    super::insight::{
        ChangeInfo, ClauseInfo, DiffInfo, EndsInfo, ExplanationInfo, OutcomeInfo, RuleInfo,
        UsersInfo, WhyInfo,
    },
    or_dash,
};

/// How much is shown without `--all`.
const SHOWN_CHANGES: usize = 20;
const SHOWN_NAMES: usize = 6;
const SHOWN_PAIRS: usize = 10;
const SHOWN_RULES: usize = 5;
/// Characters of a rule's text.
const SHOWN_TEXT: usize = 160;

/// How much of long lists to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    Some,
    All,
}

impl Extent {
    fn of(self, most: usize) -> usize {
        match self {
            Self::Some => most,
            Self::All => usize::MAX,
        }
    }
}

/// The first of many names, and how many more there are.
fn names(names: &[String], extent: Extent) -> String {
    let most = extent.of(SHOWN_NAMES);
    // One name more takes no more room than saying that it is missing.
    let shown = if names.len() <= most.saturating_add(1) {
        names.len()
    } else {
        most
    };
    let mut text = names[..shown].join(", ");
    if shown < names.len() {
        text += &format!(", and {} more", names.len() - shown);
    }
    or_dash(&text)
}

pub fn diff(diff: &DiffInfo, extent: Extent) -> String {
    let against = match diff.against {
        Some(version) => format!("version {version}, which is in force"),
        None => "no policy, with which everything is allowed".to_owned(),
    };
    if !diff.differs {
        return format!(
            "Who reaches whom, and logs in where, stays the same for the {} nodes, compared with {against}.\n",
            diff.nodes
        );
    }
    let mut out = String::new();
    for (list, opens, title) in [
        (&diff.changes, true, "Opens:"),
        (&diff.changes, false, "Closes:"),
        (&diff.logins, true, "Opens to logins:"),
        (&diff.logins, false, "Closes to logins:"),
    ] {
        let changes = list.iter().filter(|change| change.opens == opens);
        let changes: Vec<&ChangeInfo> = changes.collect();
        if changes.is_empty() {
            continue;
        }
        out += &format!("{title}\n");
        let shown = extent.of(SHOWN_CHANGES).min(changes.len());
        for change in &changes[..shown] {
            out += &format!("  {}\n", one_change(change, extent));
        }
        if shown < changes.len() {
            out += &format!("  … and {} more; --all shows all\n", changes.len() - shown);
        }
        out.push('\n');
    }
    out + &format!(
        "Something opens between {} pairs of nodes and closes between {}, each direction by itself; {} nodes, compared with {against}.\n",
        diff.opened_pairs, diff.closed_pairs, diff.nodes
    )
}

fn one_change(change: &ChangeInfo, extent: Extent) -> String {
    let users = match change.users {
        UsersInfo::Any => "",
        UsersInfo::Same => ", between devices of the same user",
        UsersInfo::Different => ", but between devices of the same user",
    };
    let family = match &change.family {
        Some(family) => format!(", by {family} only"),
        None => String::new(),
    };
    format!(
        "{} → {}: {}{users}{family}",
        ends(&change.from, extent),
        ends(&change.to, extent),
        or_dash(&joined(&change.access))
    )
}

/// Logins are phrases.
fn joined(access: &[String]) -> String {
    let is_login = access.iter().any(|access| access.starts_with("ssh as "));
    access.join(if is_login { ", " } else { " " })
}

fn ends(ends: &EndsInfo, extent: Extent) -> String {
    let mut parts = Vec::new();
    match &ends.label {
        Some(label) => parts.push(format!("{} ({} nodes)", or_dash(label), ends.nodes.len())),
        None if ends.nodes.is_empty() => {}
        None => parts.push(names(&ends.nodes, extent)),
    }
    for subnet in &ends.subnets {
        let ranges = names(&subnet.ranges, extent);
        parts.push(match &subnet.router {
            Some(router) => format!("{ranges} through {}", or_dash(router)),
            None => ranges,
        });
    }
    if !ends.exit_nodes.is_empty() {
        parts.push(format!(
            "the internet through {}",
            names(&ends.exit_nodes, extent)
        ));
    }
    parts.join(", ")
}

pub fn explanation(explained: &ExplanationInfo, extent: Extent) -> String {
    let node = or_dash(&explained.node);
    let mut out = String::new();
    if explained.without_ipv4 {
        out += &format!(
            "{node} has the attribute \"disable-ipv4\": nobody knows of its IPv4, and it knows of nobody's.\n\n"
        );
    }
    out += &format!("What others may do at {node}:\n");
    if explained.receives.is_empty() {
        out += "  nothing\n";
    }
    clauses(&explained.receives, extent, &mut out, |clause| {
        let from = with_nodes(&clause.from, &clause.from_nodes, extent);
        format!("{from} → {}", names(&clause.to, extent))
    });
    out += &format!("\nWhat {node} may do elsewhere:\n");
    if explained.reaches.is_empty() {
        out += "  nothing\n";
    }
    clauses(&explained.reaches, extent, &mut out, |clause| {
        format!("→ {}", with_nodes(&clause.to, &clause.to_nodes, extent))
    });
    if !explained.logins_here.is_empty() {
        out += &format!(
            "\nWho may log in at {node} over SSH, where it runs a server; the first rule that knows the login decides:\n"
        );
        clauses(&explained.logins_here, extent, &mut out, |clause| {
            names(&clause.from_nodes, extent)
        });
    }
    if !explained.logins_elsewhere.is_empty() {
        out += &format!("\nWhere {node} may log in over SSH:\n");
        clauses(&explained.logins_elsewhere, extent, &mut out, |clause| {
            format!("→ {}", names(&clause.to_nodes, extent))
        });
    }
    out
}

/// Each rule once, with what it means below it.
fn clauses(
    clauses: &[ClauseInfo],
    extent: Extent,
    out: &mut String,
    ends: impl Fn(&ClauseInfo) -> String,
) {
    let mut last = None;
    for clause in clauses {
        if last != Some(&clause.rule) {
            *out += &match &clause.rule {
                Some(rule) => format!("  {}\n", rule_text(rule, extent)),
                None => {
                    "  there is no policy: everything inside the tailnet is allowed\n".to_owned()
                }
            };
            last = Some(&clause.rule);
        }
        let follows = if clause.follows {
            " (follows from it)"
        } else {
            ""
        };
        let access = or_dash(&joined(&clause.access));
        *out += &format!("    {}: {access}{follows}\n", ends(clause));
    }
}

/// Addresses, and whose they are.
fn with_nodes(addresses: &[String], nodes: &[String], extent: Extent) -> String {
    match (addresses.is_empty(), nodes.is_empty()) {
        (true, _) => names(nodes, extent),
        (_, true) => names(addresses, extent),
        _ => format!("{} ({})", names(addresses, extent), names(nodes, extent)),
    }
}

/// `policy.hujson:12: {…}`
fn rule_text(rule: &RuleInfo, extent: Extent) -> String {
    let lines = match rule.last_line {
        last if last > rule.line => format!("{}-{last}", rule.line),
        _ => rule.line.to_string(),
    };
    let most = extent.of(SHOWN_TEXT);
    let text = if rule.text.chars().count() > most {
        let beginning: String = rule.text.chars().take(most).collect();
        beginning + " …"
    } else {
        rule.text.clone()
    };
    format!("line {lines}: {}", or_dash(&text))
}

pub fn why(why: &WhyInfo, probe: &str, extent: Extent) -> String {
    let mut out = String::new();
    if why.pairs > 1 {
        out += &format!(
            "{probe} is allowed for {} of {} pairs.\n\n",
            why.allowed_pairs, why.pairs
        );
    }
    let outcomes: Vec<String> = why
        .outcomes
        .iter()
        .map(|outcome| one_outcome(outcome, probe, extent))
        .collect();
    out + &outcomes.join("\n")
}

fn one_outcome(outcome: &OutcomeInfo, probe: &str, extent: Extent) -> String {
    let word = if outcome.allowed {
        "allowed"
    } else {
        "refused"
    };
    let through = match &outcome.through {
        Some(router) => format!(" through {}", or_dash(router)),
        None => String::new(),
    };
    let mut out = String::new();
    let shown = extent.of(SHOWN_PAIRS).min(outcome.pairs.len());
    for (from, to) in &outcome.pairs[..shown] {
        out += &format!(
            "{word}: {} → {} {probe}{through}\n",
            or_dash(from),
            or_dash(to)
        );
    }
    if shown < outcome.pairs.len() {
        out += &format!("{word}: {} more pairs\n", outcome.pairs.len() - shown);
    }
    out += &format!("  {}\n", outcome.reason);
    let shown = extent.of(SHOWN_RULES).min(outcome.rules.len());
    for rule in &outcome.rules[..shown] {
        out += &format!("  {}\n", rule_text(rule, extent));
    }
    if shown < outcome.rules.len() {
        out += &format!("  … and {} more rules\n", outcome.rules.len() - shown);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn many(count: usize) -> Vec<String> {
        (1..=count).map(|at| format!("n{at}")).collect()
    }

    #[test]
    fn long_lists_are_cut_where_that_saves_room_and_never_with_all() {
        for (count, extent, text) in [
            (0, Extent::Some, "-"),
            (2, Extent::Some, "n1, n2"),
            (7, Extent::Some, "n1, n2, n3, n4, n5, n6, n7"),
            (8, Extent::Some, "n1, n2, n3, n4, n5, n6, and 2 more"),
            (8, Extent::All, "n1, n2, n3, n4, n5, n6, n7, n8"),
        ] {
            assert_eq!(names(&many(count), extent), text);
        }
    }

    #[test]
    fn changes_beyond_a_screen_are_counted() {
        let ends = || EndsInfo {
            nodes: many(1),
            label: None,
            subnets: Vec::new(),
            exit_nodes: Vec::new(),
        };
        let change = |at: usize| ChangeInfo {
            opens: true,
            from: ends(),
            to: ends(),
            users: UsersInfo::Same,
            family: Some("IPv4".to_owned()),
            access: vec![format!("tcp:{at}")],
            pairs: 1,
        };
        let info = DiffInfo {
            differs: true,
            against: None,
            nodes: 2,
            opened_pairs: 1,
            closed_pairs: 0,
            changes: (0..SHOWN_CHANGES + 3).map(change).collect(),
            logins: vec![ChangeInfo {
                access: vec!["ssh as git".to_owned(), "ssh as root".to_owned()],
                family: None,
                ..change(0)
            }],
        };
        let some = diff(&info, Extent::Some);
        assert!(some.contains("  … and 3 more; --all shows all\n"), "{some}");
        let first = "  n1 → n1: tcp:0, between devices of the same user, by IPv4 only\n";
        assert!(some.contains(first), "{some}");
        let logins = "Opens to logins:\n  n1 → n1: ssh as git, ssh as root, between";
        assert!(some.contains(logins), "{some}");
        let all = diff(&info, Extent::All);
        assert!(all.contains("tcp:22,") && !all.contains("more"), "{all}");
    }

    #[test]
    fn a_long_rule_is_cut() {
        let rule = RuleInfo {
            line: 3,
            column: 1,
            last_line: 5,
            text: "é".repeat(SHOWN_TEXT + 1),
        };
        let cut = rule_text(&rule, Extent::Some);
        assert!(
            cut.starts_with("line 3-5: é") && cut.ends_with("é …"),
            "{cut}"
        );
        assert_eq!(
            cut.chars().count(),
            "line 3-5:  …".chars().count() + SHOWN_TEXT
        );
        assert!(!rule_text(&rule, Extent::All).contains('…'));
    }
}
