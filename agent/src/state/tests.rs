use lowroad_wire::key::NodePrivate;

use super::*;

fn counting() -> impl FnMut(&mut [u8]) {
    let mut n = 0u8;
    move |bytes| {
        for byte in bytes {
            n = n.wrapping_add(1);
            *byte = n;
        }
    }
}

#[test]
fn a_new_directory_gets_an_identity_that_a_second_start_finds_again() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("a/b");
    let (dir, mut state) = StateDir::open(&path, counting()).unwrap();
    state.node_key = Some(NodePrivate::from_random([7; 32]));
    state.prefs.hostname = "gate".into();
    dir.save(&state).unwrap();
    drop(dir);
    let (_dir, again) = StateDir::open(&path, |_| panic!("a known node needs no new key")).unwrap();
    assert_eq!(again.id, state.id);
    assert_eq!(again.machine_key.public(), state.machine_key.public());
    assert_eq!(
        again.node_key.unwrap().public(),
        state.node_key.unwrap().public()
    );
    assert_eq!(again.prefs, state.prefs);
}

#[test]
fn directory_and_file_are_readable_by_their_owner_only() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("s");
    fs::create_dir(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(path.join(TEMPORARY), "left by a crash").unwrap();
    fs::set_permissions(path.join(TEMPORARY), fs::Permissions::from_mode(0o644)).unwrap();
    let _open = StateDir::open(&path, counting()).unwrap();
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o700
    );
    assert_eq!(
        fs::metadata(path.join(FILE)).unwrap().permissions().mode() & 0o777,
        0o600
    );
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn open_to_all(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// `--state-dir /var/lib`.
#[test]
fn a_directory_with_files_of_others_is_refused_and_left_as_it_is() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path();
    for theirs in ["theirs", "lock"] {
        fs::create_dir(path.join(theirs)).unwrap();
    }
    open_to_all(path);
    let error = StateDir::open(path, counting()).unwrap_err().to_string();
    assert!(
        error.contains("(mode 755)") && error.contains(&path.join("lowroad").display().to_string()),
        "{error}"
    );
    assert_eq!(mode(path), 0o755);
    assert_eq!(fs::read_dir(path).unwrap().count(), 2, "nothing was made");
    // Closed by its owner, it may be shared.
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).unwrap();
    fs::remove_dir(path.join("lock")).unwrap();
    drop(StateDir::open(path, counting()).unwrap());
    // And it is ours from then on.
    open_to_all(path);
    drop(StateDir::open(path, counting()).unwrap());
    assert_eq!(mode(path), 0o700);
}

#[test]
fn an_empty_directory_and_one_of_an_interrupted_start_are_closed_to_others() {
    for left in [&[][..], &[LOCK], &[LOCK, TEMPORARY]] {
        let parent = tempfile::tempdir().unwrap();
        for name in left {
            fs::write(parent.path().join(name), "").unwrap();
        }
        open_to_all(parent.path());
        drop(StateDir::open(parent.path(), counting()).unwrap());
        assert_eq!(mode(parent.path()), 0o700, "{left:?}");
    }
}

#[test]
fn opening_what_exists_makes_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("s");
    let open = || StateDir::open_existing(&path, |_| panic!("nothing is made")).unwrap();
    assert!(open().is_none());
    assert!(!path.exists());
    fs::create_dir(&path).unwrap();
    assert!(open().is_none());
    assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
    let (made, state) = StateDir::open(&path, counting()).unwrap();
    assert!(matches!(
        StateDir::open_existing(&path, counting()),
        Err(StateError::InUse(_))
    ));
    drop(made);
    let (_dir, again) = open().expect("it is there");
    assert_eq!(again.id, state.id);
}

#[test]
fn a_truncated_file_is_an_error_that_names_it_and_leaves_it_alone() {
    let parent = tempfile::tempdir().unwrap();
    drop(StateDir::open(parent.path(), counting()).unwrap());
    let file = parent.path().join(FILE);
    let whole = fs::read(&file).unwrap();
    for length in [0, 1, 20, whole.len() / 2, whole.len() - 2] {
        fs::write(&file, &whole[..length]).unwrap();
        let error = StateDir::open(parent.path(), counting())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(&file.display().to_string()) && error.contains("damaged"),
            "{error}"
        );
        assert!(!error.contains("privkey"), "{error}");
        assert_eq!(fs::read(&file).unwrap(), &whole[..length]);
    }
}

#[test]
fn a_file_of_another_version_is_refused_and_left_alone() {
    let parent = tempfile::tempdir().unwrap();
    let file = parent.path().join(FILE);
    fs::write(&file, r#"{"version": 2, "id": []}"#).unwrap();
    let error = StateDir::open(parent.path(), counting())
        .unwrap_err()
        .to_string();
    assert!(error.contains("has version 2"), "{error}");
    assert_eq!(fs::read(&file).unwrap(), br#"{"version": 2, "id": []}"#);
    fs::write(&file, r#"{"version": "privkey:00"}"#).unwrap();
    let error = StateDir::open(parent.path(), counting())
        .unwrap_err()
        .to_string();
    assert!(error.contains("has version unknown"), "{error}");
}

#[test]
fn a_second_agent_on_the_same_directory_is_refused() {
    let parent = tempfile::tempdir().unwrap();
    let _first = StateDir::open(parent.path(), counting()).unwrap();
    assert!(matches!(
        StateDir::open(parent.path(), counting()),
        Err(StateError::InUse(_))
    ));
}

#[test]
fn a_damaged_key_is_reported_without_showing_it() {
    let parent = tempfile::tempdir().unwrap();
    drop(StateDir::open(parent.path(), counting()).unwrap());
    let file = parent.path().join(FILE);
    let text = fs::read_to_string(&file)
        .unwrap()
        .replace("privkey:", "privkey:zz");
    fs::write(&file, &text).unwrap();
    let error = format!(
        "{:?}",
        StateDir::open(parent.path(), counting()).unwrap_err()
    );
    assert!(error.contains("machine_key"), "{error}");
    assert!(!error.contains("privkey:zz"), "{error}");
}
