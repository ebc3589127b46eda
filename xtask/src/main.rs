//! `cargo xtask …`: the command line.

use std::process::ExitCode;

use xtask::{bench, ci, demo, ebpf, fuzz, interop, lab, setup, test, tidy, vm};

const USAGE: &str = "\
usage: cargo xtask <task>

  setup                      find or fetch all that the other tasks need (idempotent)
  ebpf                       build the eBPF programs into target/bpf/lowroad.o
  demo [--keep] [--vm]       a whole tailnet on this machine (or on Debian 13's kernel), shown and checked
  test [unit|ebpf|lab|vm]…   run the tests: all suites, or those named
  lab [name]…                run scenarios in network namespaces: all, or those whose name contains one of these
  vm [--kernel NAME] [command]
                             run a shell command, or a shell, in QEMU on the kernel of Debian 13 (trixie) or 12 (bookworm):
                             for 20 minutes at most, with LOWROAD_LONG=1 (before all this, or in the command) for 3 hours;
                             `xtask vm-suite NAME [scenario|tests]…`: there, some of what `test vm` runs
  vm-units                   the service units under Debian 13's systemd, there
  bench [--vm] [name]…       measure: all scenarios, or those named (bench/README.md; --list, --quick, --rounds N)
  fuzz [--list] [target]… [--minutes N]
                             libFuzzer on all targets, or those named, N minutes in all (10); fuzz TARGET FILE: one input;
                             fuzz --seeds: write the seeds into the corpus
  interop --bin DIR [name]…  lowroad beside the stock programs in DIR (docs/interop.md; --list, --out DIR)
  tidy                       check the rules that a script can check
  ci                         formatting, clippy, tidy, and test, which is what continuous integration runs
";

fn main() -> ExitCode {
    if vm::is_init() {
        vm::init();
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[&str]) -> anyhow::Result<ExitCode> {
    match arguments {
        [] | ["help" | "--help" | "-h", ..] => print!("{USAGE}"),
        // The harness tells its own options.
        ["bench", options @ ..] => return bench::main(options),
        [_, "--help" | "-h", ..] => print!("{USAGE}"),
        ["setup"] => setup::everything()?,
        ["ebpf"] => ebpf::build().map(drop)?,
        ["demo", options @ ..] => return demo::main(options),
        ["test", suites @ ..] => return test::main(suites),
        ["lab", scenarios @ ..] => return lab::main(scenarios),
        ["vm", command @ ..] => return vm::main(command),
        ["vm-suite", kernel, names @ ..] => return vm::suite_inside(kernel, names),
        ["vm-command"] => vm::command_of_systemd(),
        ["vm-units"] if std::env::var_os("LOWROAD_EMULATED").is_some() => {
            return vm::units_inside();
        }
        ["vm-units"] => return vm::units(),
        ["fuzz", options @ ..] => return fuzz::main(options),
        ["interop", options @ ..] => return interop::main(options),
        ["tidy"] => tidy::main()?,
        ["ci"] => return ci::main(),
        [unknown, ..] => {
            eprint!("xtask: no task `{unknown}` of this form\n\n{USAGE}");
            return Ok(ExitCode::from(2));
        }
    }
    Ok(ExitCode::SUCCESS)
}
