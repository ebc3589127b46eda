//! What an input may cost: heap, counted by the allocator, and time on a processor, both of the whole process: a decoder may hand
//! its work to other threads.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicIsize, Ordering},
    time::Duration,
};

/// Bounds for one input.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of heap that any input may take.
    pub memory: usize,
    /// And so many more for each of its own bytes.
    pub memory_per_byte: usize,
    /// Processor time that any input may take.
    pub time: Duration,
    /// And so much more for each KiB of it.
    pub time_per_kib: Duration,
}

impl Limits {
    pub fn memory_for(&self, length: usize) -> usize {
        self.memory + self.memory_per_byte * length
    }

    pub fn time_for(&self, length: usize) -> Duration {
        self.time + self.time_per_kib * u32::try_from(length.div_ceil(1024)).unwrap_or(u32::MAX)
    }
}

static HELD: AtomicIsize = AtomicIsize::new(0);
static PEAK: AtomicIsize = AtomicIsize::new(0);

/// The system's allocator, counting what the process holds.
#[derive(Debug)]
pub struct Counting;

fn count(change: isize) {
    let held = HELD.fetch_add(change, Ordering::Relaxed) + change;
    if change > 0 {
        PEAK.fetch_max(held, Ordering::Relaxed);
    }
}

// SAFETY: every call goes to `System` unchanged; counting neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as above; `pointer` came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        // SAFETY: as above; `pointer` came from `System`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Measures from its making on; one at a time.
#[derive(Debug)]
pub struct Meter {
    held: isize,
    cpu: Duration,
}

impl Meter {
    pub fn start() -> Self {
        let held = HELD.load(Ordering::Relaxed);
        PEAK.store(held, Ordering::Relaxed);
        Self {
            held,
            cpu: process_time(),
        }
    }

    /// Most heap held at once beyond what was held at the start, and processor time.
    pub fn spent(&self) -> (usize, Duration) {
        let memory = usize::try_from(PEAK.load(Ordering::Relaxed) - self.held).unwrap_or(0);
        (memory, process_time().saturating_sub(self.cpu))
    }
}

/// Time that our threads were on a processor: what others do on the machine doesn't count.
fn process_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the clock exists on Linux, and `time` is ours to write to.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
