use std::{os::unix::fs::PermissionsExt as _, sync::mpsc, thread};

use serde_json::json;
use tempfile::TempDir;

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

fn of(key: u8) -> Of {
    Of {
        node_key: NodePublic::from_bytes([key; 32]),
        server: "https://control.example".to_owned(),
    }
}

fn map() -> NetMap {
    let message = json!({
        "Node": {"ID": 1, "Key": format!("nodekey:{:064x}", 1), "Addresses": ["100.64.0.1/32"]},
        "Peers": [{"ID": 2, "Key": format!("nodekey:{:064x}", 2), "KeyExpiry": "1970-01-01T00:01:00Z"}],
        "PacketFilter": [{"SrcIPs": ["*"], "DstPorts": [{"IP": "*", "Ports": {"First": 22, "Last": 22}}]}],
    });
    let (response, _) = MapResponse::parse(message.to_string().as_bytes()).unwrap();
    let mut map = NetMap::default();
    map.apply(response, NOW);
    map
}

async fn keep(cache: &mut NetmapCache, now: Instant) {
    cache.replaced(now).await;
    assert_eq!(cache.due(), Some(now));
    write(cache, now, &map()).run(NOW);
    assert!(cache.is_kept() && cache.due().is_none());
}

fn write(cache: &mut NetmapCache, now: Instant, map: &NetMap) -> NetmapWrite {
    cache.begin(now, of(1), map).expect("nothing else goes on")
}

/// By the next agent.
async fn found_in(dir: &TempDir) -> Option<NetMap> {
    let found = NetmapCache::new(dir.path()).load(&of(1), NOW).await;
    found.map(|found| found.map)
}

#[tokio::test]
async fn what_was_kept_is_found_again_by_the_same_node_at_the_same_server_only() {
    let dir = tempfile::tempdir().unwrap();
    let mut cache = NetmapCache::new(dir.path());
    assert!(cache.load(&of(1), NOW).await.is_none(), "nothing is there");
    keep(&mut cache, Instant::now()).await;
    let mode = fs::metadata(dir.path().join(FILE)).unwrap().permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    let found = cache.load(&of(1), NOW).await.unwrap();
    assert_eq!((found.map, found.saved), (map(), NOW));

    assert!(cache.load(&of(2), NOW).await.is_none(), "another node key");
    assert!(
        cache.load(&of(1), NOW).await.is_none(),
        "it is gone after that"
    );
    keep(&mut NetmapCache::new(dir.path()), Instant::now()).await;
    let elsewhere = Of {
        server: "https://other.example".to_owned(),
        ..of(1)
    };
    assert!(cache.load(&elsewhere, NOW).await.is_none());
    let left = fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(left, 0, "no temporary file is left either");
}

#[tokio::test]
async fn a_damaged_file_is_thrown_away_wherever_the_damage_is() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(FILE);
    keep(&mut NetmapCache::new(dir.path()), Instant::now()).await;
    let whole = fs::read(&file).unwrap();
    let mut cache = NetmapCache::new(dir.path());
    for length in 0..whole.len() {
        fs::write(&file, &whole[..length]).unwrap();
        assert!(
            cache.load(&of(1), NOW).await.is_none(),
            "{length} bytes of it"
        );
        assert!(!file.exists());
    }
    for at in 0..whole.len() {
        let mut bad = whole.clone();
        bad[at] ^= 1;
        fs::write(&file, &bad).unwrap();
        // The name of a field that is empty may be another one: that says the same.
        if let Some(found) = cache.load(&of(1), NOW).await {
            assert_eq!((found.map, found.saved), (map(), NOW), "byte {at}");
        }
    }
    fs::create_dir(&file).unwrap();
    assert!(cache.load(&of(1), NOW).await.is_none(), "not even a file");
}

/// A message that gives the peer a name; the netmap with it.
fn named(name: &str) -> (Vec<u8>, NetMap) {
    let text =
        json!({"PeersChanged": [{"ID": 2, "Key": format!("nodekey:{:064x}", 2), "Name": name}]})
            .to_string();
    let (response, _) = MapResponse::parse(text.as_bytes()).unwrap();
    let mut map = map();
    map.apply(response, NOW);
    (text.into_bytes(), map)
}

#[tokio::test]
async fn what_changes_is_appended_and_found_again_with_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(FILE);
    let mut cache = NetmapCache::new(dir.path());
    let (start, later) = (Instant::now(), NOW + time::Duration::HOUR);
    keep(&mut cache, start).await;
    let minute = Some(time::Duration::MINUTE);
    for name in ["a.", "b."] {
        cache.append(start, &named(name).0, minute, later);
    }
    cache.settle().await;
    assert!(cache.is_kept() && cache.due().is_none());
    let found = NetmapCache::new(dir.path())
        .load(&of(1), later)
        .await
        .unwrap();
    let expected = NetMap {
        clock_offset: minute,
        ..named("b.").1
    };
    assert_eq!((found.map, found.saved), (expected, later));

    // Of damage in what was appended nothing is loaded, or what was there.
    let whole = fs::read(&file).unwrap();
    for at in 0..whole.len() {
        let mut bad = whole.clone();
        bad[at] ^= 1;
        fs::write(&file, &bad).unwrap();
        if let Some(found) = cache.load(&of(1), later).await {
            assert_eq!(found.map.peers, named("b.").1.peers, "byte {at}");
        }
    }
    let text = String::from_utf8(whole).unwrap();
    let without_the_first: Vec<&str> = text
        .lines()
        .enumerate()
        .filter(|(n, _)| *n != 3)
        .map(|(_, line)| line)
        .collect();
    fs::write(&file, without_the_first.join("\n") + "\n").unwrap();
    assert!(
        cache.load(&of(1), later).await.is_none(),
        "one of them is missing"
    );
}

#[tokio::test]
async fn what_changes_during_a_write_is_in_what_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let mut cache = NetmapCache::new(dir.path());
    let now = Instant::now();
    cache.replaced(now).await;
    let write = write(&mut cache, now, &map());
    cache.append(now, &named("a.").0, None, NOW);
    assert!(!cache.is_kept() && cache.due().is_none());
    write.run(NOW);
    cache.append(now, &named("b.").0, None, NOW);
    cache.settle().await;
    assert_eq!(found_in(&dir).await, Some(named("b.").1));
}

#[tokio::test]
async fn more_changes_than_netmap_are_written_anew_and_until_then_appended() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(FILE);
    let mut cache = NetmapCache::new(dir.path());
    let now = Instant::now();
    keep(&mut cache, now).await;
    let (message, long) = named(&"x".repeat(1000));
    let mut appended = 0;
    while cache.due().is_none() {
        cache.append(now, &message, None, NOW);
        cache.settle().await;
        appended += message.len() as u64;
        assert!(appended <= MIN_JOURNAL);
    }
    assert_eq!(cache.due(), Some(now + WRITE_PAUSE));
    assert!(fs::metadata(&file).unwrap().len() > MIN_JOURNAL);
    write(&mut cache, now, &long).run(NOW);
    assert!(fs::metadata(&file).unwrap().len() < 3000);
    cache.append(now, &named("b.").0, None, NOW);
    cache.settle().await;
    assert_eq!(found_in(&dir).await, Some(named("b.").1));
}

#[tokio::test]
async fn a_new_netmap_removes_the_old_one_at_once_and_writes_of_the_new_one_keep_a_pause() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(FILE);
    let mut cache = NetmapCache::new(dir.path());
    let start = Instant::now();
    keep(&mut cache, start).await;
    assert!(file.exists());
    cache.replaced(start + WRITE_PAUSE / 2).await;
    assert!(!file.exists(), "an older policy must not come back");
    assert_eq!(cache.due(), Some(start + WRITE_PAUSE));

    let late = write(&mut cache, start + WRITE_PAUSE, &map());
    cache.replaced(start + WRITE_PAUSE).await;
    late.run(NOW);
    assert!(
        !file.exists(),
        "a write begun before a change comes to nothing"
    );
    cache.forget().await;
    assert_eq!(cache.due(), None);

    let mut large = map();
    let peer = large.peers.values().next().unwrap().clone();
    large.peers = (0..10_000)
        .map(|n| (lowroad_wire::control::NodeId(n), peer.clone()))
        .collect();
    drop(write(&mut cache, start, &large));
    cache.replaced(start).await;
    assert_eq!(cache.due(), Some(start + 10 * WRITE_PAUSE));
}

/// A disk that does nothing until this is dropped.
struct Stopped(Option<(mpsc::Sender<()>, thread::JoinHandle<()>)>);

impl Stopped {
    fn of(cache: &NetmapCache) -> Self {
        let disk = cache.disk.clone();
        let ((stopped, is_stopped), (go_on, wait)) = (mpsc::channel(), mpsc::channel());
        let thread = thread::spawn(move || {
            let _still = disk.stand_still();
            stopped.send(()).unwrap();
            // Until the other end is dropped.
            let _ = wait.recv();
        });
        is_stopped.recv().unwrap();
        Self(Some((go_on, thread)))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let (go_on, thread) = self.0.take().unwrap();
        drop(go_on);
        thread.join().unwrap();
    }
}

#[tokio::test]
async fn a_disk_that_does_not_answer_holds_a_change_up_for_a_second_and_the_old_netmap_is_gone_then()
 {
    let dir = tempfile::tempdir().unwrap();
    let mut cache = NetmapCache::new(dir.path());
    let start = Instant::now();
    keep(&mut cache, start).await;
    let stopped = Stopped::of(&cache);
    cache.append(start, &named("revoked.").0, None, NOW);
    let asked = Instant::now();
    cache.settle().await;
    let took = asked.elapsed();
    // A machine that compiles beside it is slower; without a bound it would take for ever.
    assert!(took < 5 * SETTLE_PATIENCE, "{took:?}");
    assert!(!cache.is_kept());
    assert_eq!(found_in(&dir).await, None, "it came back");
    assert!(
        cache.due().unwrap() > start + SLOW_PAUSE,
        "it is left alone"
    );
    drop(stopped);
    cache.idle(PATIENCE).await;
    assert_eq!(found_in(&dir).await, None, "it came back");
    keep(&mut cache, start + SLOW_PAUSE * 2).await;
    assert_eq!(found_in(&dir).await, Some(map()));
}

#[tokio::test]
async fn a_file_that_gets_its_name_after_it_was_void_is_empty() {
    let dir = tempfile::tempdir().unwrap();
    let mut cache = NetmapCache::new(dir.path());
    let now = Instant::now();
    cache.replaced(now).await;
    let stopped = Stopped::of(&cache);
    let write = write(&mut cache, now, &map());
    let writing = thread::spawn(move || write.run(NOW));
    let temporary = dir.path().join(TEMPORARY);
    let whole = async {
        while !fs::read(&temporary).is_ok_and(|text| parse(&text, &of(1), NOW).is_ok()) {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, whole)
        .await
        .expect("all is written but the name");
    cache.replaced(now).await;
    // A rename that was under way, of an agent that is killed then.
    let file = dir.path().join(FILE);
    fs::rename(&temporary, &file).unwrap();
    assert_eq!(fs::metadata(&file).unwrap().len(), 0);
    drop(stopped);
    writing.join().unwrap();
    assert!(!cache.is_kept());
}

#[tokio::test]
async fn what_changes_just_before_a_first_file_gets_its_name_is_in_it_or_there_is_none() {
    for (slow, kept) in [(false, 1), (true, 0)] {
        let dir = tempfile::tempdir().unwrap();
        let mut cache = NetmapCache::new(dir.path());
        let now = Instant::now();
        cache.replaced(now).await;
        let write = write(&mut cache, now, &map());
        let ((reached, is_there), (go_on, wait)) = (mpsc::channel(), mpsc::channel());
        *cache.disk.held.lock().unwrap() = Some((reached, wait));
        let writing = thread::spawn(move || write.run(NOW));
        is_there.recv().unwrap();
        let (message, changed) = named("revoked.");
        cache.append(now, &message, None, NOW);
        if slow {
            cache.settle().await;
            drop(go_on);
        } else {
            drop(go_on);
            cache.settle().await;
        }
        // What was programmed by now must hold for whoever finds the file.
        let found = found_in(&dir).await;
        assert!(found.is_none() || found == Some(changed), "{found:?}");
        writing.join().unwrap();
        cache.idle(PATIENCE).await;
        assert_eq!(usize::from(found_in(&dir).await.is_some()), kept);
    }
}

#[tokio::test]
async fn what_holds_no_more_is_emptied_and_what_cannot_be_removed_is_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let (file, other) = (dir.path().join(FILE), dir.path().join("other name"));
    let mut cache = NetmapCache::new(dir.path());
    let now = Instant::now();
    keep(&mut cache, now).await;
    fs::hard_link(&file, &other).unwrap();
    cache.replaced(now).await;
    assert_eq!(fs::metadata(&other).unwrap().len(), 0);
    fs::create_dir(&file).unwrap();
    cache.forget().await;
    assert!(file.exists(), "a folder is no file to remove");
    fs::remove_dir(&file).unwrap();
    fs::write(&file, "old").unwrap();
    cache.settle().await;
    assert!(!file.exists());
}

#[tokio::test]
async fn a_write_begins_when_the_one_before_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    let mut cache = NetmapCache::new(dir.path());
    let now = Instant::now();
    cache.replaced(now).await;
    let first = write(&mut cache, now, &map());
    cache.replaced(now).await;
    assert!(cache.begin(now, of(1), &map()).is_none());
    assert_eq!(cache.due(), Some(now + WRITE_PAUSE));
    first.run(NOW);
    assert!(!cache.is_kept());
    write(&mut cache, now, &map()).run(NOW);
    assert!(cache.is_kept());
}

#[tokio::test]
async fn what_changes_while_a_disk_has_stopped_does_not_fill_the_memory() {
    let dir = tempfile::tempdir().unwrap();
    let mut cache = NetmapCache::new(dir.path());
    let now = Instant::now();
    cache.replaced(now).await;
    let write = write(&mut cache, now, &map());
    let message = vec![b' '; 1 << 20];
    for _ in 0..5 {
        cache.append(now, &message, None, NOW);
    }
    assert!(cache.disk.now().since.is_none());
    assert!(cache.due().is_some(), "another write takes its place");
    write.run(NOW);
    assert!(!cache.is_kept());
}

#[tokio::test]
async fn the_servers_clock_is_kept_when_it_has_moved_and_not_at_every_message() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(FILE);
    let mut cache = NetmapCache::new(dir.path());
    let now = Instant::now();
    keep(&mut cache, now).await;
    let length = || fs::metadata(&file).unwrap().len();
    let before = length();
    let minute = time::Duration::MINUTE;
    for little in [None, Some(minute), Some(-minute)] {
        cache.note_clock(now, little, NOW);
        cache.settle().await;
        assert_eq!(length(), before);
    }
    for offset in [Some(10 * minute), None, Some(-10 * minute)] {
        cache.note_clock(now, offset, NOW);
        cache.settle().await;
        let after = length();
        cache.note_clock(now, offset, NOW);
        cache.settle().await;
        assert_eq!(length(), after, "once is enough");
        let expected = NetMap {
            clock_offset: offset,
            ..map()
        };
        assert_eq!(found_in(&dir).await, Some(expected));
    }
}

#[test]
fn a_clock_that_was_set_back_does_not_bring_an_expired_key_back_to_life() {
    let minute = time::Duration::MINUTE;
    let saved = NOW + 10 * minute;
    assert_eq!(clock_offset(None, saved, saved + minute), None);
    assert_eq!(
        clock_offset(Some(90), saved, saved),
        Some(90 * time::Duration::SECOND)
    );
    let back = clock_offset(Some(90), saved, NOW).unwrap();
    let map = NetMap {
        clock_offset: Some(back),
        ..map()
    };
    assert!(map.control_time(NOW) >= saved);
    let expiry = map.peers.values().next().unwrap().key_expiry.unwrap();
    assert!(
        expiry <= map.control_time(NOW),
        "it had expired when it was saved"
    );
}

#[tokio::test]
async fn a_netmap_too_large_to_keep_is_no_error_and_is_not_tried_again_until_there_is_another() {
    let dir = tempfile::tempdir().unwrap();
    let mut cache = NetmapCache::new(dir.path());
    let now = Instant::now();
    let mut large = map();
    large.health = vec!["x".repeat(MAX_NETMAP)];
    cache.replaced(now).await;
    write(&mut cache, now, &large).run(NOW);
    assert!(cache.load(&of(1), NOW).await.is_none());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    cache.append(now, &named("a.").0, None, NOW);
    assert_eq!(cache.due(), None, "a change makes it no smaller");
    cache.replaced(now).await;
    assert_eq!(cache.due(), Some(now + WRITE_PAUSE));
}

#[test]
fn no_more_is_written_of_a_netmap_than_may_be_kept() {
    let mut written = 0;
    let header = header(&of(1), NOW, None, 0);
    let piece = vec![b'x'; 1 << 20];
    let endless = |to: &mut dyn io::Write| {
        loop {
            to.write_all(&piece)?;
            written += piece.len();
        }
    };
    let error = whole(io::sink(), &header, endless).err().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    assert!((MAX_NETMAP - 2 * piece.len()..=MAX_NETMAP).contains(&written));
}
