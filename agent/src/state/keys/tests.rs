use super::*;
use crate::state::StateDir;

const A: &str = "http://a.lab";
const B: &str = "http://b.lab";

fn key(n: u8) -> NodePrivate {
    NodePrivate::from_random([n; 32])
}

fn state() -> State {
    let mut state = State::new(&mut |bytes| bytes.fill(1));
    state.prefs.control_url = A.to_owned();
    state
}

/// Registered with A by the first key.
fn registered() -> State {
    let mut state = state();
    state.begin_key(key(1), None, A);
    state.accept_key(A);
    state
}

fn left(state: &State) -> Vec<(&str, NodePrivate, bool)> {
    let left = state.left_node_keys.iter();
    left.map(|left| (&*left.server, left.key.clone(), left.accepted))
        .collect()
}

fn in_use(state: &State) -> (Option<NodePrivate>, Option<&str>) {
    (state.node_key.clone(), state.registered_at.as_deref())
}

#[test]
fn a_login_that_is_left_leaves_its_key() {
    let mut state = registered();
    state.begin_key(key(2), Some(key(1)), A);
    assert_eq!(in_use(&state), (Some(key(2)), Some(A)));
    assert!(state.leave_pending_key());
    assert_eq!(in_use(&state), (Some(key(1)), Some(A)));
    assert_eq!(left(&state), [(A, key(2), false)]);
    assert!(!state.leave_pending_key() && !state.leave_unaccepted_keys());
    assert!(!state.use_key_of(A));
}

#[test]
fn a_key_that_replaced_another_is_all_that_its_server_knows() {
    let mut state = registered();
    state.begin_key(key(2), Some(key(1)), A);
    state.accept_key(A);
    assert_eq!(in_use(&state), (Some(key(2)), Some(A)));
    assert!(left(&state).is_empty());
}

#[test]
fn a_login_elsewhere_is_left_for_the_first_server_and_its_key_before_and_after_it_was_accepted() {
    for accepted in [false, true] {
        let mut state = registered();
        state.begin_key(key(2), Some(key(1)), B);
        if accepted {
            state.accept_key(B);
            assert_eq!(in_use(&state), (Some(key(2)), Some(B)));
        }
        state.leave_unaccepted_keys();
        state.use_accepted_key_of(A);
        assert_eq!(in_use(&state), (Some(key(1)), Some(A)));
        assert_eq!(left(&state), [(B, key(2), accepted)]);
        // And back.
        assert!(state.use_key_of(B));
        assert_eq!(in_use(&state), (Some(key(2)), accepted.then_some(B)));
        assert_eq!(left(&state), [(A, key(1), true)]);
    }
}

#[test]
fn a_login_under_way_at_the_server_goes_on() {
    let mut state = registered();
    state.begin_key(key(2), Some(key(1)), B);
    assert!(!state.use_key_of(B));
    assert_eq!(state.node_key, Some(key(2)));
}

#[test]
fn a_first_login_that_is_left_goes_on_with_its_key() {
    let mut state = state();
    state.begin_key(key(1), None, A);
    assert!(state.leave_unaccepted_keys());
    assert!(state.node_key.is_none());
    assert!(!state.use_accepted_key_of(A) && !state.use_key_of(B));
    assert!(state.use_key_of(A));
    assert_eq!(in_use(&state), (Some(key(1)), None));
    assert!(left(&state).is_empty());
}

#[test]
fn a_key_that_was_left_and_turns_out_to_be_known_is_in_use_and_the_other_left() {
    let mut state = registered();
    state.begin_key(key(2), Some(key(1)), A);
    state.leave_pending_key();
    assert_eq!(state.left_keys_of(A), [key(2)]);
    assert!(state.left_keys_of(B).is_empty());
    state.begin_key(key(2), None, A);
    state.accept_key(A);
    assert_eq!(in_use(&state), (Some(key(2)), Some(A)));
    assert_eq!(left(&state), [(A, key(1), true)]);
}

#[test]
fn four_keys_are_left_at_most_and_the_newest_is_the_first_to_be_tried() {
    let mut state = registered();
    for n in 2..8 {
        state.begin_key(key(n), Some(key(1)), A);
        state.leave_pending_key();
    }
    assert_eq!(state.left_keys_of(A), [key(7), key(6), key(5), key(4)]);
}

#[test]
fn a_key_that_a_server_has_accepted_outlives_logins_that_come_to_nothing() {
    let mut state = registered();
    state.begin_key(key(2), Some(key(1)), B);
    state.accept_key(B);
    for n in 3..9 {
        state.begin_key(key(n), Some(key(2)), B);
        state.leave_pending_key();
    }
    assert_eq!(state.left_node_keys.len(), MAX_LEFT);
    assert!(state.is_of(A) && state.is_of(B));
    assert!(state.use_accepted_key_of(A));
    assert_eq!(in_use(&state), (Some(key(1)), Some(A)));
}

#[test]
fn a_first_login_that_gives_way_to_one_elsewhere_leaves_its_key_for_its_own_server() {
    for server in [A, B] {
        for accepted in [false, true] {
            let mut state = state();
            state.begin_key(key(1), None, A);
            state.begin_key(key(2), Some(key(1)), server);
            assert!(state.old_node_key.is_none());
            if accepted {
                state.accept_key(server);
            }
            assert_eq!(state.node_key, Some(key(2)));
            assert_eq!(left(&state), [(A, key(1), false)]);
        }
    }
}

#[test]
fn all_keys_are_forgotten_by_a_logout_which_tells_the_one_in_use_first() {
    let mut state = registered();
    state.begin_key(key(2), Some(key(1)), B);
    let keys = state.forget_keys();
    let keys: Vec<_> = keys.iter().map(|left| (&*left.server, &left.key)).collect();
    assert_eq!(keys, [(A, &key(1)), (B, &key(2))]);
    assert_eq!(in_use(&state), (None, None));
    assert!(state.old_node_key.is_none() && left(&state).is_empty());
}

#[test]
fn a_file_of_an_earlier_version_says_for_whom_its_keys_are_as_far_as_it_can() {
    let mut state = registered();
    (state.node_key, state.old_node_key) = (Some(key(2)), Some(key(1)));
    assert!(state.leave_pending_key());
    assert_eq!(left(&state), [(A, key(2), false)]);
}

#[test]
fn left_keys_are_saved_and_never_shown() {
    let dir = tempfile::tempdir().unwrap();
    let open = || StateDir::open(dir.path(), |bytes| bytes.fill(9)).unwrap();
    let (opened, mut state) = open();
    for n in 1..4 {
        state.begin_key(key(n), None, A);
    }
    assert_eq!(left(&state), [(A, key(1), false), (A, key(2), false)]);
    opened.save(&state).unwrap();
    drop(opened);
    let (opened, again) = open();
    assert_eq!(left(&again), left(&state));
    assert_eq!(again.made_for.as_deref(), Some(A));
    let shown = format!("{again:?}");
    let secret = key(2).to_text();
    let digits = secret.trim_start_matches("privkey:");
    assert!(!shown.contains(digits), "{shown}");
    drop(opened);
    let file = dir.path().join("state.json");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace(&*secret, "privkey:zz")).unwrap();
    let why = StateDir::open(dir.path(), |bytes| bytes.fill(9)).unwrap_err();
    let why = why.to_string();
    assert!(
        why.contains("left_node_keys") && !why.contains("zz"),
        "{why}"
    );
}
