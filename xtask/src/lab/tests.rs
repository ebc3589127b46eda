use super::*;

#[test]
fn a_scenario_that_a_busy_machine_kept_from_judging_is_run_once_more_and_no_oftener() {
    let busy = || Err(NotJudged::Busy("stood still".to_owned()).into());
    let never = || Err(NotJudged::Never("dumps no core".to_owned()).into());
    let lost = || Err(anyhow!("a packet was lost"));
    let runs_in = |time, results: &[&dyn Fn() -> Result<()>]| {
        let (mut results, mut count) = (results.iter(), 0);
        let last = again_if_busy(
            "scenario",
            || Ok(time),
            || {
                count += 1;
                Ok(results.next().expect("no more runs than wanted")())
            },
        );
        let last = last.unwrap();
        let last = last.map_err(|error| (error.is::<NotJudged>(), error.to_string()));
        (count, last)
    };
    let runs = |results: &[&dyn Fn() -> Result<()>]| runs_in(true, results);
    let fails = |skip, why: &str| Err((skip, why.to_owned()));
    assert_eq!(runs(&[&|| Ok(())]), (1, Ok(())));
    assert_eq!(runs(&[&lost]), (1, fails(false, "a packet was lost")));
    assert_eq!(runs(&[&never]), (1, fails(true, "dumps no core")));
    assert_eq!(runs(&[&busy, &|| Ok(())]), (2, Ok(())));
    let in_attack = || busy().context("garbage");
    assert_eq!(runs(&[&in_attack, &|| Ok(())]), (2, Ok(())));
    assert_eq!(
        runs(&[&busy, &lost]),
        (2, fails(false, "a packet was lost"))
    );
    assert_eq!(runs(&[&busy, &busy]), (2, fails(true, "stood still")));
    assert_eq!(runs_in(false, &[&busy]), (1, fails(true, "stood still")));
}

#[test]
fn a_scenario_runs_by_itself_on_its_own_kernels_and_by_its_name_on_any() {
    let in_vm = |name: &str, debian, names: &[&str], long| {
        let all = in_vm(debian, names, long);
        all.iter().any(|(one, _)| *one == name)
    };
    let runs = |name: &str, debian, names: &[&str]| in_vm(name, debian, names, false);
    for (name, trixie, bookworm, long) in [
        ("kernel", true, true, true),
        ("kernel-neighbour", true, false, true),
        ("kernel-survival", false, true, true),
        ("agents-die", true, false, true),
        ("hostile-peer", true, false, true),
        ("hostile-relay", false, false, false),
        ("outage", true, false, false),
    ] {
        assert_eq!(runs(name, Debian::Trixie, &[]), trixie, "{name}");
        assert_eq!(runs(name, Debian::Bookworm, &[]), bookworm, "{name}");
        assert_eq!(in_vm(name, Debian::Bookworm, &[], true), long, "{name}");
        for debian in [Debian::Trixie, Debian::Bookworm] {
            assert!(runs(name, debian, &[name]), "{name}");
        }
    }
    assert!(in_vm("hostile-relay", Debian::Trixie, &[], true));
    // A part of many names is none of theirs.
    assert!(!runs("kernel-tcx", Debian::Bookworm, &["kernel"]));
}
