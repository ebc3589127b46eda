//! One input through one target, judged.

use std::{
    fmt, mem, panic,
    panic::AssertUnwindSafe,
    sync::{Mutex, MutexGuard, Once, PoisonError},
    time::Duration,
};

use crate::{Target, limits::Meter};

/// What an input cost.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    pub memory: usize,
    pub time: Duration,
}

/// What an input did that none may do.
#[derive(Clone, Debug)]
pub enum Failure {
    Panicked(String),
    Memory { spent: usize, limit: usize },
    Time { spent: Duration, limit: Duration },
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panicked(what) => write!(f, "panicked: {what}"),
            Self::Memory { spent, limit } => {
                write!(f, "took {spent} bytes of heap, {limit} are allowed")
            }
            Self::Time { spent, limit } => {
                write!(f, "took {spent:?} of processor time, {limit:?} are allowed")
            }
        }
    }
}

/// While a target runs: the first panic of any thread, also of one that somebody caught on its way, as tokio's tasks do.
static PANIC: Mutex<Watch> = Mutex::new(Watch::Off);

#[derive(Debug)]
enum Watch {
    Off,
    Calm,
    Panicked(String),
}

fn watch() -> MutexGuard<'static, Watch> {
    PANIC.lock().unwrap_or_else(PoisonError::into_inner)
}

fn hook() {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        let mut watch = watch();
        match *watch {
            Watch::Off => {
                drop(watch);
                before(info);
            }
            Watch::Calm => *watch = Watch::Panicked(info.to_string()),
            Watch::Panicked(_) => {}
        }
    }));
}

/// Nothing is measured by others while it is held.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `target` on `input`. One at a time: what other threads do meanwhile is counted as the target's.
///
/// # Errors
/// It panicked, or took more than its limits allow.
pub fn check(target: &Target, input: &[u8]) -> Result<Spent, Failure> {
    static HOOK: Once = Once::new();
    HOOK.call_once(hook);
    let _one = alone();
    *watch() = Watch::Calm;
    let meter = Meter::start();
    let result = panic::catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    let (memory, time) = meter.spent();
    if let Watch::Panicked(what) = mem::replace(&mut *watch(), Watch::Off) {
        return Err(Failure::Panicked(what));
    }
    if result.is_err() {
        return Err(Failure::Panicked("without a message".to_owned()));
    }
    let limit = target.limits.memory_for(input.len());
    if memory > limit {
        return Err(Failure::Memory {
            spent: memory,
            limit,
        });
    }
    let limit = target.limits.time_for(input.len());
    if time > limit {
        return Err(Failure::Time { spent: time, limit });
    }
    Ok(Spent { memory, time })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Limits;

    fn target(run: fn(&[u8])) -> Target {
        Target {
            name: "planted",
            about: "",
            run,
            seeds: Vec::new,
            limits: Limits {
                // The test's other threads are counted, too.
                memory: 1 << 20,
                memory_per_byte: 10,
                time: Duration::from_millis(50),
                time_per_kib: Duration::from_millis(50),
            },
            max_len: 100,
            mutations: 0,
            needs_root: false,
        }
    }

    #[test]
    fn a_target_that_panics_is_a_failure_that_says_what_it_said() {
        let planted = target(|input| assert!(input != b"bug", "planted"));
        assert!(check(&planted, b"fine").is_ok());
        let failure = check(&planted, b"bug").expect_err("it panics").to_string();
        assert!(failure.contains("planted"), "{failure}");
        assert!(
            check(&planted, b"fine").is_ok(),
            "the next input is judged anew"
        );
    }

    #[test]
    fn a_panic_that_a_task_swallowed_is_a_failure() {
        let planted = target(|_| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .build()
                .expect("a runtime");
            let _ = runtime.block_on(async { tokio::spawn(async { panic!("in a task") }).await });
        });
        assert!(
            matches!(check(&planted, b""), Err(Failure::Panicked(what)) if what.contains("in a task"))
        );
    }

    #[test]
    fn a_panic_of_another_thread_is_a_failure() {
        let planted = target(|_| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .build()
                .expect("a runtime");
            let work = || panic!("beside the loop");
            let _ = runtime.block_on(async { tokio::task::spawn_blocking(work).await });
        });
        assert!(
            matches!(check(&planted, b""), Err(Failure::Panicked(what)) if what.contains("beside the loop"))
        );
    }

    #[test]
    fn an_input_may_take_only_so_much_heap_for_its_length() {
        let take = |input: &[u8]| drop(Vec::<u8>::with_capacity(much(input)));
        assert!(check(&target(take), b"").is_ok());
        assert_eq!(over(check(&target(take), b"1")), (1 << 20) + 10);
        let elsewhere = target(|input| {
            let length = much(input);
            let taken = std::thread::spawn(move || drop(Vec::<u8>::with_capacity(length)));
            taken.join().expect("it only takes memory");
        });
        assert!(check(&elsewhere, b"").is_ok());
        assert_eq!(over(check(&elsewhere, b"1")), (1 << 20) + 10);
    }

    /// Two megabytes for each byte, and some more: libtest's own threads may give back a little meanwhile.
    fn much(input: &[u8]) -> usize {
        input.len() * ((2 << 20) + (64 << 10))
    }

    /// The limit, of two megabytes that were taken.
    fn over(result: Result<Spent, Failure>) -> usize {
        match result {
            Err(Failure::Memory { spent, limit }) if spent >= 2 << 20 => limit,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_input_may_take_only_so_much_time_on_a_processor() {
        let sleeps = target(|_| std::thread::sleep(Duration::from_millis(150)));
        assert!(check(&sleeps, b"").is_ok(), "waiting costs nothing");
        let works = target(|_| {
            let meter = Meter::start();
            while meter.spent().1 < Duration::from_millis(150) {}
        });
        assert!(matches!(check(&works, b"1"), Err(Failure::Time { .. })));
    }
}
