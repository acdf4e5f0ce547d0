//! Registers that go away under their mapping.
//!
//! The kernel takes a mapped BAR away when the device is removed, reset or powered down: the next access raises SIGBUS,
//! which by itself ends the process. The same happens when the server of a mapped region shortens its file. Asking
//! first does not help, because the device can go between the question and the access. So the mappings are listed
//! here, and a handler puts a page of ones in the place of the one that is gone: the access is made again, reads what
//! an empty bus reads, and the owner learns it from [`Guard::has_faulted`]. Any other SIGBUS goes where it went before.

use std::ffi::c_void;
use std::os::fd::{BorrowedFd, IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, ProtFlags};

/// Ranges that can be listed at once: a few for each device.
const RANGES_MAX: usize = 1024;
const PAGE: usize = 4096;

struct Range {
    start: AtomicUsize,
    /// Zero: the entry is free.
    end: AtomicUsize,
    faulted: AtomicBool,
}

static RANGES: [Range; RANGES_MAX] = [const {
    Range { start: AtomicUsize::new(0), end: AtomicUsize::new(0), faulted: AtomicBool::new(false) }
}; RANGES_MAX];

/// A memory file of one page of ones; open for the life of the process.
static ONES: AtomicI32 = AtomicI32::new(-1);
/// What the signal did before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();
/// Held while entries are taken and given back, and while the handler is installed. The handler never takes it.
static LIST: Mutex<()> = Mutex::new(());

/// One listed mapping; its entry is free again when this is dropped, which must be before the mapping goes.
#[derive(Debug)]
pub(super) struct Guard {
    entry: usize,
}

impl Guard {
    /// Lists the mapping of `length` bytes at `start`, whole pages both.
    ///
    /// # Errors
    /// A sentence, when the handler cannot be installed or too many mappings are listed.
    pub(super) fn new(start: usize, length: usize) -> Result<Guard, String> {
        let _list = LIST.lock().unwrap_or_else(PoisonError::into_inner);
        install()?;
        let entry = RANGES.iter().position(|range| range.end.load(Ordering::Relaxed) == 0);
        let entry = entry.ok_or_else(|| format!("more than {RANGES_MAX} register windows are mapped"))?;
        RANGES[entry].faulted.store(false, Ordering::SeqCst);
        RANGES[entry].start.store(start, Ordering::SeqCst);
        RANGES[entry].end.store(start + length, Ordering::SeqCst);
        Ok(Guard { entry })
    }

    /// Says that nothing is behind the mapping any more, as an access would.
    pub(super) fn mark(&self) {
        RANGES[self.entry].faulted.store(true, Ordering::SeqCst);
    }

    /// True once an access found nothing behind the mapping.
    #[inline]
    pub(super) fn has_faulted(&self) -> bool {
        RANGES[self.entry].faulted.load(Ordering::Acquire)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _list = LIST.lock().unwrap_or_else(PoisonError::into_inner);
        RANGES[self.entry].end.store(0, Ordering::SeqCst);
    }
}

fn ones() -> rustix::io::Result<OwnedFd> {
    let file = rustix::fs::memfd_create("pollux-gone", MemfdFlags::CLOEXEC)?;
    let mut written = 0;
    while written < PAGE {
        written += rustix::io::write(&file, &[0xFF; PAGE][written..])?;
    }
    Ok(file)
}

fn install() -> Result<(), String> {
    if BEFORE.get().is_some() {
        return Ok(());
    }
    let file = ones().map_err(|error| format!("a page of memory cannot be had: {error}"))?;
    ONES.store(file.into_raw_fd(), Ordering::Release);
    // SAFETY: all zeros is a valid `sigaction`: the default action, no flags, an empty mask.
    let (mut action, mut before): (libc::sigaction, libc::sigaction) = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handle as *const () as usize;
    // The standard library's alternate stack, where the thread has one; not blocked inside, so that a fault inside the
    // handler ends the process and does not hang it.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
    // SAFETY: both point to valid structures; `BEFORE` is filled in before the handler can need it, because nothing is
    // listed yet and another SIGBUS at this moment finds `BEFORE` empty and takes the default action.
    if unsafe { libc::sigaction(libc::SIGBUS, &raw const action, &raw mut before) } != 0 {
        return Err(format!("SIGBUS cannot be caught: {}", std::io::Error::last_os_error()));
    }
    let _ = BEFORE.set(before);
    Ok(())
}

/// Only atomics and system calls that touch no `errno` stand below: it may run at any instruction of any thread.
extern "C" fn handle(signal: libc::c_int, information: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel gives a valid structure to a handler with SA_SIGINFO.
    let (address, code) = unsafe { ((*information).si_addr() as usize, (*information).si_code) };
    // A code above zero is a fault of this thread; others were sent by somebody and carry no address.
    if code > 0 {
        for range in &RANGES {
            // An entry may change hands meanwhile. Its end is cleared first and set last, so an end that is the same
            // before and after belongs to the start between.
            let end = range.end.load(Ordering::SeqCst);
            let start = range.start.load(Ordering::SeqCst);
            let whole = end != 0 && end == range.end.load(Ordering::SeqCst);
            if whole && (start..end).contains(&address) && replace(address & !(PAGE - 1)) {
                range.faulted.store(true, Ordering::Release);
                return;
            }
        }
    }
    pass_on(signal, information, context, code);
}

/// Puts a private page of ones at `page`.
fn replace(page: usize) -> bool {
    let ones = ONES.load(Ordering::Acquire);
    if ones < 0 {
        return false;
    }
    // SAFETY: the file is open for the life of the process.
    let ones = unsafe { BorrowedFd::borrow_raw(ones) };
    // SAFETY: the page lies in a listed mapping, so it belongs to a `Mapping`, which reaches it by volatile accesses
    // only and whose other bytes are as dead as this one. A fixed mapping replaces the page in one step: no other
    // thread sees a hole.
    unsafe {
        rustix::mm::mmap(
            page as *mut c_void,
            PAGE,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE | MapFlags::FIXED,
            ones,
            0,
        )
    }
    .is_ok()
}

/// What the signal did before this file: another handler, or the end of the process.
fn pass_on(signal: libc::c_int, information: *mut libc::siginfo_t, context: *mut c_void, code: libc::c_int) {
    let before = BEFORE.get().copied();
    match before {
        Some(before) if before.sa_sigaction != libc::SIG_DFL && before.sa_sigaction != libc::SIG_IGN => {
            if before.sa_flags & libc::SA_SIGINFO != 0 {
                // SAFETY: it was registered as a handler of this form.
                let call: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut c_void) =
                    unsafe { std::mem::transmute(before.sa_sigaction) };
                call(signal, information, context);
            } else {
                // SAFETY: it was registered as a handler of this form.
                let call: extern "C" fn(libc::c_int) = unsafe { std::mem::transmute(before.sa_sigaction) };
                call(signal);
            }
        }
        _ => {
            // SAFETY: all zeros is the default action; the structure is valid. On return the access is made again,
            // and ends the process.
            unsafe {
                let default: libc::sigaction = std::mem::zeroed();
                libc::sigaction(libc::SIGBUS, &raw const default, std::ptr::null_mut());
                if code <= 0 {
                    libc::raise(signal);
                }
            }
        }
    }
}
