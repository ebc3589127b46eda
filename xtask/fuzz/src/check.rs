//! One input through one target, judged.

use std::{
    cell::{Cell, RefCell},
    fmt, panic,
    panic::AssertUnwindSafe,
    sync::Once,
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

thread_local! {
    static CHECKING: Cell<bool> = const { Cell::new(false) };
    /// The first panic of this thread, also of one that somebody caught on its way (as tokio's tasks do).
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs `target` on `input`.
///
/// # Errors
/// It panicked, or took more than its limits allow.
pub fn check(target: &Target, input: &[u8]) -> Result<Spent, Failure> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if CHECKING.get() {
                let text = info.to_string();
                PANIC.with_borrow_mut(|panic| _ = panic.get_or_insert(text));
            } else {
                before(info);
            }
        }));
    });
    CHECKING.set(true);
    PANIC.take();
    let meter = Meter::start();
    let result = panic::catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    let (memory, time) = meter.spent();
    CHECKING.set(false);
    if let Some(what) = PANIC.take() {
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
                memory: 1000,
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
    fn an_input_may_take_only_so_much_heap_for_its_length() {
        let planted = target(|input| drop(Vec::<u8>::with_capacity(1200 * input.len())));
        assert!(check(&planted, b"").is_ok());
        assert!(matches!(
            check(&planted, b"1"),
            Err(Failure::Memory {
                spent: 1200..,
                limit: 1010
            })
        ));
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
