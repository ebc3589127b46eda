//! The command line of `cargo xtask interop`.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

/// Of churn, for each tailnet of eight.
const MINUTES: u64 = 30;

pub const USAGE: &str = "\
usage: cargo xtask interop --bin DIR [--old DIR] [--minutes N] [--out DIR] [--vm] [name]…

Runs lowroad beside the stock programs in DIR and prints what works: all parts, or those that are called so, or whose name contains it.

  --bin DIR   folder with tailscaled, tailscale, derper and headscale
  --old DIR   folder with older ones: stock nodes of that version on our coordinator, and a Headscale that is upgraded
  --minutes N how long each tailnet of eight is changed (30)
  --out DIR   also write interop.md and interop.json there
  --vm        in a VM with Debian 13's kernel, so that lowroad uses the kernel's WireGuard; it wants names of parts, as it lives for 20 minutes, and prints the table only
  --list      the names of the parts
";

#[derive(Debug, PartialEq, Eq)]
pub struct Options {
    pub programs: Option<PathBuf>,
    pub old: Option<PathBuf>,
    pub out: Option<PathBuf>,
    pub list: bool,
    pub vm: bool,
    pub minutes: u64,
    pub names: Vec<String>,
}

impl Options {
    pub fn parse(arguments: &[&str]) -> Result<Self> {
        let mut options = Self {
            programs: None,
            old: None,
            out: None,
            list: false,
            vm: false,
            minutes: MINUTES,
            names: Vec::new(),
        };
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            let (name, joined) = match argument.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (*argument, None),
            };
            let mut value = |what: &str| {
                let value = joined.or_else(|| rest.next().copied());
                value.with_context(|| format!("{name} wants {what}\n\n{USAGE}"))
            };
            match name {
                "--bin" => options.programs = Some(value("a folder")?.into()),
                "--old" => options.old = Some(value("a folder")?.into()),
                "--out" => options.out = Some(value("a folder")?.into()),
                "--list" => options.list = true,
                "--vm" => options.vm = true,
                "--minutes" => {
                    let number = value("a number")?;
                    options.minutes = number
                        .parse()
                        .ok()
                        .filter(|minutes| *minutes > 0)
                        .with_context(|| {
                            format!("--minutes wants a number from 1, not {number:?}\n\n{USAGE}")
                        })?;
                }
                _ if name.starts_with('-') => bail!("no option {argument}\n\n{USAGE}"),
                _ => options.names.push((*argument).to_owned()),
            }
        }
        if options.vm && (options.out.is_some() || options.old.is_some()) {
            bail!("--vm goes with neither --out nor --old\n\n{USAGE}");
        }
        if options.vm && options.names.is_empty() {
            bail!(
                "--vm wants the names of parts: all of them take longer than a guest lives\n\n{USAGE}"
            );
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_taken_in_either_form_and_names_are_the_rest() {
        let options = Options::parse(&[
            "--bin",
            "a",
            "--out=b",
            "peers",
            "--minutes=5",
            "--old",
            "c",
        ])
        .unwrap();
        let wanted = Options {
            programs: Some("a".into()),
            old: Some("c".into()),
            out: Some("b".into()),
            list: false,
            vm: false,
            minutes: 5,
            names: vec!["peers".to_owned()],
        };
        assert_eq!(options, wanted);
        assert_eq!(Options::parse(&[]).unwrap().minutes, MINUTES);
    }

    #[test]
    fn what_is_wrong_with_an_option_is_said() {
        for (arguments, said) in [
            (&["--bin"][..], "--bin wants a folder"),
            (&["--minutes", "x"], "not \"x\""),
            (&["--minutes=0"], "from 1"),
            (&["--nope"], "no option --nope"),
            (&["--vm", "--out", "d"], "neither --out nor --old"),
            (&["--vm"], "the names of parts"),
        ] {
            let why = Options::parse(arguments).unwrap_err().to_string();
            assert!(why.contains(said) && why.contains("usage:"), "{why}");
        }
    }
}
