//! `cargo xtask tidy`: the rules of ARCHITECTURE.md and the style that a script can check.

use std::{collections::BTreeSet, fs, process::Command};

use anyhow::{Context, Result, bail};

use crate::{shell::output, workspace::root};

/// "About 500": a file that has outgrown this holds two things.
const MAX_LINES: usize = 600;

/// Types of these crates stay in `agent/src/kernel/` and in the tests that look at the kernel themselves.
const KERNEL_CRATES: &[&str] = &[
    "aya::",
    "aya_log::",
    "aya_obj::",
    "rtnetlink::",
    "netlink_packet_route::",
    "wireguard_control::",
    "gotatun::",
];

/// Written in two halves, so that this file passes its own check.
const HOSTS: &[(&str, &str)] = &[
    ("deb.debian", ".org"),
    ("archive.ubuntu", ".com"),
    ("static.crates", ".io"),
    ("index.crates", ".io"),
    ("static.rust-lang", ".org"),
    ("registry.npmjs", ".org"),
];

/// Each of its lines names its tests.
const SECURITY: &str = "docs/security.md";

const MACROS: &[(&str, &str)] = &[("todo", "!("), ("unimplemented", "!("), ("dbg", "!(")];

pub fn main() -> Result<()> {
    let mut findings = Vec::new();
    for path in files()? {
        let Ok(text) = fs::read_to_string(root().join(&path)) else {
            continue; // deleted, or not text
        };
        look(&path, &text, &mut findings);
    }
    dependencies(&mut findings)?;
    profiles(&mut findings)?;
    named_tests(&mut findings)?;
    for finding in &findings {
        eprintln!("   {finding}");
    }
    if !findings.is_empty() {
        bail!("tidy: {} findings", findings.len());
    }
    eprintln!("=> tidy: nothing to say");
    Ok(())
}

fn files() -> Result<Vec<String>> {
    let list = output(Command::new("git").current_dir(root()).args([
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
    ]))?;
    Ok(list.lines().map(str::to_owned).collect())
}

fn look(path: &str, text: &str, findings: &mut Vec<String>) {
    let mut find = |what: String| findings.push(format!("{path}: {what}"));
    if path != "Cargo.lock" {
        for (left, right) in HOSTS {
            if text.contains(&format!("{left}{right}")) {
                find(format!(
                    "names the registry host {left}{right}; use the machine's own setup"
                ));
            }
        }
    }
    if ["core/src/lib.rs", "wire/src/lib.rs"].contains(&path)
        && !text.contains("#![forbid(unsafe_code)]")
    {
        find("lacks #![forbid(unsafe_code)]".to_owned());
    }
    if !path.ends_with(".rs") {
        return;
    }
    if path.ends_with("/mod.rs") {
        find("use foo.rs beside foo/ instead of foo/mod.rs".to_owned());
    }
    let lines = text.lines().count();
    if lines > MAX_LINES {
        find(format!("{lines} lines; split it below {MAX_LINES}"));
    }
    for (left, right) in MACROS {
        if text.contains(&format!("{left}{right}")) {
            find(format!("contains {left}!"));
        }
    }
    let may_name_kernel_crates = path.starts_with("agent/src/kernel")
        || path.starts_with("agent/tests/root_")
        || path.starts_with("ebpf/")
        // Its marker trait must be implemented where the types are.
        || path.starts_with("abi/src/")
        || path == "xtask/src/tidy.rs";
    if !may_name_kernel_crates {
        for name in KERNEL_CRATES.iter().filter(|name| names(text, name)) {
            find(format!(
                "names {name}, which belongs into agent/src/kernel/"
            ));
        }
    }
}

/// Whether code (not a comment) names `path::` as a whole word.
fn names(text: &str, path: &str) -> bool {
    text.lines().any(|line| {
        let code = line.split("//").next().unwrap_or(line);
        code.match_indices(path).any(|(at, _)| {
            let before = code[..at].chars().next_back();
            !before.is_some_and(|char| char.is_alphanumeric() || char == '_' || char == ':')
        })
    })
}

/// Every dependency is declared once, in the workspace, and used by somebody.
fn dependencies(findings: &mut Vec<String>) -> Result<()> {
    let mut declared = BTreeSet::new();
    let mut used = BTreeSet::new();
    for path in files()?.iter().filter(|path| path.ends_with("Cargo.toml")) {
        let text = fs::read_to_string(root().join(path)).with_context(|| format!("read {path}"))?;
        let mut section = "";
        for line in text.lines().map(str::trim) {
            if line.starts_with('[') {
                section = line.trim_matches(['[', ']']);
                continue;
            }
            let Some((key, value)) = line.split_once('=') else {
                continue;
            };
            let name = key
                .trim()
                .trim_matches('"')
                .split('.')
                .next()
                .unwrap_or(key);
            if section == "workspace.dependencies" {
                declared.insert(name.to_owned());
            } else if section.ends_with("dependencies") {
                used.insert(name.to_owned());
                let inherited =
                    key.trim().ends_with(".workspace") || value.contains("workspace = true");
                if !inherited {
                    findings.push(format!(
                        "{path}: {name} isn't taken from the workspace's table"
                    ));
                }
            }
        }
    }
    for name in declared.difference(&used) {
        findings.push(format!(
            "Cargo.toml: nobody uses the workspace dependency {name}"
        ));
    }
    Ok(())
}

/// Profiles name packages that are there: Cargo only warns of others, in the middle of a build.
fn profiles(findings: &mut Vec<String>) -> Result<()> {
    let read =
        |path: &str| fs::read_to_string(root().join(path)).with_context(|| format!("read {path}"));
    let (manifest, lock) = (read("Cargo.toml")?, read("Cargo.lock")?);
    let named = packages_of_profiles(&manifest);
    if named.is_empty() {
        findings.push("Cargo.toml: its profiles name no package".to_owned());
    }
    for name in named {
        if !lock.contains(&format!("\nname = \"{name}\"\n")) {
            findings.push(format!(
                "Cargo.toml: a profile names {name}, which is not in Cargo.lock"
            ));
        }
    }
    Ok(())
}

fn packages_of_profiles(manifest: &str) -> Vec<&str> {
    let mut names = Vec::new();
    let mut listed = false;
    for line in manifest.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[') {
            let (_, after) = section.split_once(".package").unwrap_or_default();
            listed = section.starts_with("profile.") && after == "]";
            names.extend(
                after
                    .strip_prefix('.')
                    .and_then(|name| name.strip_suffix(']')),
            );
        } else if listed && !line.starts_with('#') {
            names.extend(line.split_once(" = ").map(|(name, _)| name));
        }
    }
    names.retain(|name| *name != "\"*\"");
    names
}

/// Every test that the security document names is there.
fn named_tests(findings: &mut Vec<String>) -> Result<()> {
    let document = fs::read_to_string(root().join(SECURITY)).context(SECURITY)?;
    let mut sources = String::new();
    for path in files()?.iter().filter(|path| path.ends_with(".rs")) {
        sources.push_str(&fs::read_to_string(root().join(path)).unwrap_or_default());
    }
    let tests = tests_of(&sources);
    let scenarios = crate::lab::names();
    let named = names_of_tests(&document);
    if named.is_empty() {
        findings.push(format!("{SECURITY}: names no test"));
    }
    for name in named {
        let exists = match name.strip_prefix("lab/") {
            Some(scenario) => scenarios.contains(&scenario),
            None => tests.contains(name),
        };
        if !exists {
            findings.push(format!("{SECURITY}: there is no test {name}"));
        }
    }
    Ok(())
}

/// What stands between backquotes on lines that hold nothing else.
fn names_of_tests(document: &str) -> Vec<&str> {
    let lines = document.lines().map(str::trim);
    lines
        .filter(|line| line.starts_with('`') && line.ends_with('`'))
        .flat_map(|line| line.split_whitespace())
        .filter_map(|word| word.strip_prefix('`')?.strip_suffix('`'))
        .collect()
}

/// Functions that are marked as tests by an attribute, and those that `tests!` (of `agent/tests/root_kernel.rs`) makes tests of.
fn tests_of(source: &str) -> BTreeSet<&str> {
    let mut tests = BTreeSet::new();
    let (mut marked, mut listed) = (false, false);
    for line in source.lines().map(str::trim) {
        if ["both {", "kernel {"].contains(&line) || (listed && line == "}") {
            listed = !listed;
        } else if listed {
            tests.insert(line);
        }
        if line.starts_with("#[") {
            marked |= line.contains("test") && !line.contains("cfg");
            continue;
        }
        let line = line.strip_prefix("async ").unwrap_or(line);
        if let Some(rest) = line.strip_prefix("fn ")
            && marked
        {
            tests.extend(rest.split('(').next());
        }
        marked &= line.starts_with("//") || line.is_empty();
    }
    tests
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_found_by_their_mark_and_in_the_document() {
        let source = "#[test]\nfn a() {}\n\nfn b() {}\n#[tokio::test]\n#[ignore]\nasync fn c() {}\n#[cfg(test)]\nfn d() {}\ntests! {\n    both {\n    e\n}\nf";
        assert_eq!(tests_of(source), BTreeSet::from(["a", "c", "e"]));
        let document = "* It holds `x`.\n  `a` `lab/b`\n\n`in` a sentence\n";
        assert_eq!(names_of_tests(document), ["a", "lab/b"]);
    }

    #[test]
    fn packages_that_profiles_name_are_found() {
        let manifest = "[workspace.package]\na = 1\n[profile.dev.package]\n\"*\" = { debug = false }\n# b = 1\nc = { opt-level = 0 }\n\n[profile.x]\nd = 1\n[profile.x.package.e]\nf = 2\n";
        assert_eq!(packages_of_profiles(manifest), ["c", "e"]);
    }

    #[test]
    fn only_code_that_names_a_kernel_crate_is_found() {
        assert!(names("use aya::Ebpf;", "aya::"));
        assert!(!names("// aya::Ebpf", "aya::"));
        assert!(!names("use my_aya::Ebpf;", "aya::"));
    }
}
