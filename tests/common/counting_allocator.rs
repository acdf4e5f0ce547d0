//! A global allocator that counts the allocations of each thread, and says where a watched thread allocated.

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};

/// Threads that can be told apart. Slots are not used again, so that a thread's number is never another's.
const THREADS_MAX: usize = 512;
/// Allocations of watched threads whose backtraces are printed.
const BACKTRACES_MAX: u64 = 4;

struct Slot {
    /// The kernel's number of the thread; 0 is a free slot.
    thread: AtomicI32,
    allocations: AtomicU64,
    watched: AtomicBool,
}

static SLOTS: [Slot; THREADS_MAX] = [const {
    Slot { thread: AtomicI32::new(0), allocations: AtomicU64::new(0), watched: AtomicBool::new(false) }
}; THREADS_MAX];
static SLOTS_USED: AtomicU64 = AtomicU64::new(0);
static BACKTRACES: AtomicU64 = AtomicU64::new(0);

thread_local! {
    // Constant and without a destructor: reaching them allocates nothing.
    static SLOT: Cell<usize> = const { Cell::new(usize::MAX) };
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// The allocator.
pub struct Counting;

fn count(bytes: usize) {
    // While a backtrace is taken, the thread allocates for us.
    if INSIDE.get() {
        return;
    }
    let mut at = SLOT.get();
    if at == usize::MAX {
        at = usize::try_from(SLOTS_USED.fetch_add(1, Ordering::Relaxed)).unwrap_or(THREADS_MAX);
        SLOT.set(at);
        if let Some(slot) = SLOTS.get(at) {
            // SAFETY: gettid takes nothing and cannot fail.
            slot.thread.store(unsafe { libc::gettid() }, Ordering::Release);
        }
    }
    let Some(slot) = SLOTS.get(at) else { return };
    slot.allocations.fetch_add(1, Ordering::Relaxed);
    if slot.watched.load(Ordering::Relaxed) && BACKTRACES.fetch_add(1, Ordering::Relaxed) < BACKTRACES_MAX {
        INSIDE.set(true);
        eprintln!("{bytes} bytes allocated on the data path:\n{}", Backtrace::force_capture());
        INSIDE.set(false);
    }
}

// SAFETY: everything is passed on to the system's allocator as it came; counting touches atomics and thread-local
// cells only, and what it allocates itself (backtraces) comes from the same allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promises are those `System` asks for.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promises are those `System` asks for.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: the caller's promises are those `System` asks for.
        unsafe { System.realloc(memory, layout, size) }
    }
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are those `System` asks for.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// The living threads of this process whose name begins with `prefix`: their numbers.
pub fn threads_named(prefix: &str) -> Vec<i32> {
    let tasks = std::fs::read_dir("/proc/self/task").expect("the threads of this process");
    let mut found: Vec<i32> = tasks
        .flatten()
        .filter(|task| {
            std::fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.starts_with(prefix))
        })
        .filter_map(|task| task.file_name().to_str()?.parse().ok())
        .collect();
    found.sort_unstable();
    found
}

fn slot_of(thread: i32) -> &'static Slot {
    // The last: the kernel may give a number again.
    let found = SLOTS.iter().rev().find(|slot| slot.thread.load(Ordering::Acquire) == thread);
    found.expect("the thread has allocated before, so it has a slot")
}

/// Allocations of `thread` since it began.
pub fn allocations_of(thread: i32) -> u64 {
    slot_of(thread).allocations.load(Ordering::Relaxed)
}

/// Whether allocations of `thread` print where they are made.
pub fn watch(thread: i32, on: bool) {
    slot_of(thread).watched.store(on, Ordering::Relaxed);
}
