//! Debian packages: from the machine's own mirror, also of other suites, without touching its sources.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    shell::{find_program, output, step},
    workspace::is_root,
};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The release's name, if this is Debian with apt.
pub fn debian_codename() -> Option<String> {
    let release = fs::read_to_string("/etc/os-release").ok()?;
    let field = |name: &str| {
        release.lines().find_map(|line| {
            let value = line.strip_prefix(name)?.strip_prefix('=')?;
            Some(value.trim_matches('"').to_owned())
        })
    };
    (field("ID")? == "debian" && find_program("apt-get").is_some() && Path::new(KEYRING).exists())
        .then(|| field("VERSION_CODENAME"))
        .flatten()
}

/// Installs what provides `programs` (program, package) and isn't there yet.
pub fn install_programs(programs: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<&str> = programs
        .iter()
        .filter(|(program, _)| find_program(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if find_program("apt-get").is_none() {
        bail!("these programs' packages are missing, by Debian's names: {list}; install them");
    }
    if !is_root() {
        bail!("as root, run `apt-get install --no-install-recommends {list}`, then this again");
    }
    let install = || {
        let mut command = Command::new("apt-get");
        command
            .args(["-qq", "-o", "Dpkg::Use-Pty=0", "install", "-y"])
            .arg("--no-install-recommends")
            .args(&missing)
            .env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    let what = format!("installing Debian packages: {list}");
    if step(&what, &mut install()).is_ok() {
        return Ok(());
    }
    step(
        "updating apt's package lists",
        Command::new("apt-get").args(["-qq", "update"]),
    )?;
    step(&what, &mut install())
}

/// Suites of the machine's Debian mirror, with lists and cache of their own under `folder`.
#[derive(Debug)]
pub struct Suites {
    folder: PathBuf,
    options: Vec<String>,
}

impl Suites {
    /// Reads the suites' package lists: a few seconds.
    pub fn open(folder: &Path, suites: &[&str]) -> Result<Self> {
        let codename = debian_codename().context("this is not Debian with apt")?;
        let mirror = mirror(&codename)?;
        for sub in ["parts", "lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(sub))?;
        }
        let lines: Vec<String> = suites
            .iter()
            .map(|suite| format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n"))
            .collect();
        fs::write(folder.join("parts/suites.list"), lines.concat())?;
        let at = folder.display();
        let options = [
            "Dir::Etc::sourcelist=/dev/null".to_owned(),
            format!("Dir::Etc::sourceparts={at}/parts"),
            format!("Dir::State::lists={at}/lists"),
            format!("Dir::Cache={at}/cache"),
            "APT::Sandbox::User=root".to_owned(),
        ];
        let suites = Self {
            folder: folder.to_owned(),
            options: options.into(),
        };
        suites.apt("apt-get", &["-q", "update"])?;
        Ok(suites)
    }

    /// Name of the package that `package` depends on and whose name starts with `prefix`.
    pub fn dependency(&self, package: &str, prefix: &str) -> Result<String> {
        self.apt("apt-cache", &["depends", package])?
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .find(|name| name.starts_with(prefix))
            .map(str::to_owned)
            .with_context(|| format!("{package} depends on no package named {prefix}…"))
    }

    /// Downloads a package (`name` or `name=version`); apt checks its signature.
    pub fn download(&self, package: &str) -> Result<PathBuf> {
        let name = package.split('=').next().unwrap_or(package);
        let prefix = format!("{name}_");
        for old in self.packages(&prefix)? {
            fs::remove_file(old)?;
        }
        self.apt("apt-get", &["-q", "download", package])?;
        self.packages(&prefix)?
            .pop()
            .with_context(|| format!("apt downloaded no {package}"))
    }

    /// Unpacks packages with all that they depend on into `root`, as if nothing were installed.
    pub fn unpack(&self, packages: &[&str], root: &Path) -> Result<()> {
        fs::write(self.folder.join("status"), "")?;
        let status = format!("Dir::State::status={}/status", self.folder.display());
        let flags = ["-o", &status, "-q", "install", "-y", "--download-only"];
        let more = ["--no-install-recommends"];
        self.apt("apt-get", &[&flags[..], &more, packages].concat())?;
        for entry in fs::read_dir(self.folder.join("cache/archives"))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                output(Command::new("dpkg-deb").arg("-x").arg(&path).arg(root))?;
            }
        }
        Ok(())
    }

    /// Installs packages, preferring `release` for them and for what they newly need. (Naming it for the packages only
    /// fails when one of their dependencies must come from there, too.)
    pub fn install(&self, release: &str, packages: &[&str]) -> Result<()> {
        let flags = ["-q", "install", "-y", "--no-install-recommends"];
        let arguments = [&flags[..], &["-t", release], packages].concat();
        self.apt("apt-get", &arguments).map(drop)
    }

    fn apt(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(program);
        for option in &self.options {
            command.args(["-o", option]);
        }
        command
            .args(arguments)
            .current_dir(&self.folder)
            .env("DEBIAN_FRONTEND", "noninteractive");
        output(&mut command)
    }

    fn packages(&self, prefix: &str) -> Result<Vec<PathBuf>> {
        Ok(fs::read_dir(&self.folder)?
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                name.starts_with(prefix) && name.ends_with(".deb")
            })
            .collect())
    }
}

/// The mirror that apt is set up for.
fn mirror(codename: &str) -> Result<String> {
    let query = || {
        output(Command::new("apt-get").args([
            "indextargets",
            "--format",
            "$(REPO_URI) $(CODENAME)",
            "Created-By: Packages",
        ]))
    };
    let find = |targets: String| {
        targets.lines().find_map(|line| {
            let (uri, name) = line.split_once(' ')?;
            (name == codename).then(|| uri.to_owned())
        })
    };
    find(query()?).with_context(|| {
        format!("no mirror for {codename} in apt's sources (run `apt-get update` once as root)")
    })
}
