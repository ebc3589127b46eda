//! Lists the targets, runs single inputs, writes the seeds; `cargo xtask fuzz` calls it.

use std::{fs, path::Path, process::ExitCode};

use anyhow::{Context, Result, bail};
use lowroad_fuzz::{Corpus, TARGETS, Target, check, folder, is_seed, seeds};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lowroad-fuzz: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[&str]) -> Result<ExitCode> {
    match arguments {
        ["--list"] => list(),
        ["--seeds", folder] => write_seeds(Path::new(folder))?,
        [name, files @ ..] if !files.is_empty() && !name.starts_with('-') => {
            return replay(name, files);
        }
        _ => {
            eprintln!("usage: lowroad-fuzz --list | --seeds FOLDER | TARGET FILE…");
            return Ok(ExitCode::from(2));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Name, longest input, whether it needs root, inputs in the corpus, what it feeds.
fn list() {
    for target in TARGETS {
        let inputs = Corpus::read(target).map_or(0, |corpus| corpus.inputs.len());
        let root = if target.needs_root { "root" } else { "-" };
        println!(
            "{:22} {:6} {root:5} {inputs:5}  {}",
            target.name, target.max_len, target.about
        );
    }
    eprintln!("corpus: {}", folder().display());
}

/// `FOLDER/TARGET/seed-N`; what is called so and is no seed any more goes.
fn write_seeds(into: &Path) -> Result<()> {
    for target in TARGETS {
        let folder = into.join(target.name);
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            if is_seed(&entry.file_name().to_string_lossy()) {
                fs::remove_file(entry.path())?;
            }
        }
        for (name, seed) in seeds(target) {
            fs::write(folder.join(name), seed)?;
        }
    }
    Ok(())
}

fn replay(name: &str, files: &[&str]) -> Result<ExitCode> {
    let Some(target) = Target::find(name) else {
        bail!("no target `{name}`; --list lists them");
    };
    let mut code = ExitCode::SUCCESS;
    for file in files {
        let input = fs::read(file).with_context(|| format!("read {file}"))?;
        match check(target, &input) {
            Ok(spent) => println!(
                "{file}: {} bytes, {} bytes of heap, {:?}",
                input.len(),
                spent.memory,
                spent.time
            ),
            Err(failure) => {
                println!("{file}: {failure}");
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}
