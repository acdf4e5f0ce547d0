//! Buffer pools: memory reserved at start, handed out as unique owned handles.
//!
//! **If safe code holds a [`DataBuf`], no device can see it.** Submitting an I/O moves the handle out of
//! reach; its completion moves it back. That is the safety argument for `Deref`, the reason an abort
//! cannot free memory under DMA, and the zero-copy rule.

use std::alloc::Layout;
use std::cell::Cell;
use std::ops::{Deref, DerefMut};
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::rc::Rc;

/// Memory that a pool is cut from: hugepages, or plain memory.
///
/// # Safety
/// `base()..base() + length()` must be valid for reads and writes, initialised, aligned to 4,096 bytes, owned by
/// the implementor alone, at the same address for the whole life of the value.
pub unsafe trait PoolMemory {
    /// The first byte.
    fn base(&self) -> NonNull<u8>;
    /// Bytes.
    fn length(&self) -> usize;
    /// What the memory is, for reports: `"2 MiB hugepages"`, `"plain"`.
    fn kind(&self) -> &'static str;
    /// The file whose first `length()` bytes this memory is, so that another process can map it too; `None` for
    /// memory of this process alone.
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// Ordinary zeroed heap memory, touched once so that no page fault happens later.
#[derive(Debug)]
pub struct PlainMemory {
    base: NonNull<u8>,
    layout: Layout,
}

impl PlainMemory {
    /// `length` bytes (at least one page), or `None` when there is not so much memory.
    #[must_use]
    pub fn new(length: usize) -> Option<PlainMemory> {
        let layout = Layout::from_size_align(length.max(PAGE).next_multiple_of(PAGE), PAGE).ok()?;
        // SAFETY: the layout has a size that is not zero.
        let base = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) })?;
        for offset in (0..layout.size()).step_by(PAGE) {
            // SAFETY: the offset is inside the allocation just made; the write faults the page in.
            unsafe { base.as_ptr().add(offset).write_volatile(0) };
        }
        Some(PlainMemory { base, layout })
    }
}

impl Drop for PlainMemory {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, and freed only here.
        unsafe { std::alloc::dealloc(self.base.as_ptr(), self.layout) };
    }
}

// SAFETY: the allocation is zeroed, page-aligned, owned by this value and never moved.
unsafe impl PoolMemory for PlainMemory {
    fn base(&self) -> NonNull<u8> {
        self.base
    }
    fn length(&self) -> usize {
        self.layout.size()
    }
    fn kind(&self) -> &'static str {
        "plain"
    }
}

const PAGE: usize = 4096;
const NONE: u32 = u32::MAX;

/// One size class of a pool: `count` slots of `size` bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolClass {
    /// Bytes of a slot; rounded up to whole pages.
    pub size: u32,
    /// Slots.
    pub count: u32,
}

/// What a pool has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolStatistics {
    /// Slots that are out now.
    pub outstanding: u32,
    /// The most slots that were ever out at once.
    pub outstanding_peak: u32,
    /// Slots in all.
    pub slots: u32,
    /// Calls of `acquire` that found nothing.
    pub refused: u64,
}

struct Slot {
    data: NonNull<u8>,
    capacity: u32,
    class: u32,
    /// Live handles to parts of this slot.
    handles: Cell<u32>,
    next_free: Cell<u32>,
    index: u32,
    pool: Cell<*const Inner>,
}

struct Class {
    size: u32,
    free: Cell<u32>,
}

struct Inner {
    slots: Box<[Slot]>,
    classes: Box<[Class]>,
    outstanding: Cell<u32>,
    outstanding_peak: Cell<u32>,
    refused: Cell<u64>,
    memory: Box<dyn PoolMemory>,
}

/// One core's pool of data buffers. Cheap to clone: every clone is the same pool.
#[derive(Clone)]
pub struct BufferPool {
    inner: Rc<Inner>,
}

impl std::fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BufferPool").field("statistics", &self.statistics()).finish()
    }
}

impl BufferPool {
    /// Bytes that [`BufferPool::new`] needs for `classes`.
    #[must_use]
    pub fn memory_length(classes: &[PoolClass]) -> usize {
        classes.iter().map(|class| (class.size as usize).next_multiple_of(PAGE) * class.count as usize).sum()
    }

    /// Cuts `memory` into the slots of `classes`.
    ///
    /// # Panics
    /// When `memory` is shorter than [`BufferPool::memory_length`] says: a start-up mistake.
    #[must_use]
    pub fn new(memory: Box<dyn PoolMemory>, classes: &[PoolClass]) -> BufferPool {
        assert!(
            memory.length() >= Self::memory_length(classes),
            "the pool's memory is too short for its classes"
        );
        let mut sorted = classes.to_vec();
        sorted.sort_by_key(|class| class.size);
        let mut slots = Vec::new();
        let mut offset = 0usize;
        let mut heads = Vec::new();
        for (number, class) in sorted.iter().enumerate() {
            let size = (class.size as usize).next_multiple_of(PAGE);
            let first = slots.len() as u32;
            for i in 0..class.count {
                // SAFETY: the sum of all slots is at most the memory's length, asserted above.
                let data = unsafe { memory.base().add(offset) };
                offset += size;
                let next = if i + 1 < class.count { first + i + 1 } else { NONE };
                slots.push(Slot {
                    data,
                    capacity: size as u32,
                    class: number as u32,
                    handles: Cell::new(0),
                    next_free: Cell::new(next),
                    index: first + i,
                    pool: Cell::new(std::ptr::null()),
                });
            }
            let head = if class.count > 0 { first } else { NONE };
            heads.push(Class { size: size as u32, free: Cell::new(head) });
        }
        let inner = Rc::new(Inner {
            slots: slots.into_boxed_slice(),
            classes: heads.into_boxed_slice(),
            outstanding: Cell::new(0),
            outstanding_peak: Cell::new(0),
            refused: Cell::new(0),
            memory,
        });
        for slot in &inner.slots {
            slot.pool.set(Rc::as_ptr(&inner));
        }
        BufferPool { inner }
    }

    /// A pool in plain memory.
    ///
    /// # Panics
    /// When there is not so much memory.
    #[must_use]
    pub fn plain(classes: &[PoolClass]) -> BufferPool {
        let memory =
            PlainMemory::new(Self::memory_length(classes)).expect("enough memory for the buffer pool");
        BufferPool::new(Box::new(memory), classes)
    }

    /// A buffer of exactly `length` bytes from the smallest class that has one free. `None` is back-pressure.
    /// The content is whatever the last user left: never show it to anyone before it is overwritten.
    #[must_use]
    pub fn acquire(&self, length: u32) -> Option<DataBuf> {
        for class in &self.inner.classes {
            if class.size < length {
                continue;
            }
            let index = class.free.get();
            if index == NONE {
                continue;
            }
            let slot = &self.inner.slots[index as usize];
            class.free.set(slot.next_free.get());
            debug_assert_eq!(slot.handles.get(), 0);
            slot.handles.set(1);
            let outstanding = self.inner.outstanding.get() + 1;
            self.inner.outstanding.set(outstanding);
            self.inner.outstanding_peak.set(self.inner.outstanding_peak.get().max(outstanding));
            // SAFETY: `self.inner` is alive, so the strong count is at least one. The count taken here is given
            // back in `Slot::release`, so the pool outlives every buffer.
            unsafe { Rc::increment_strong_count(Rc::as_ptr(&self.inner)) };
            return Some(DataBuf { slot: NonNull::from(slot), offset: 0, length });
        }
        self.inner.refused.set(self.inner.refused.get() + 1);
        None
    }

    /// Counters since start.
    #[must_use]
    pub fn statistics(&self) -> PoolStatistics {
        PoolStatistics {
            outstanding: self.inner.outstanding.get(),
            outstanding_peak: self.inner.outstanding_peak.get(),
            slots: self.inner.slots.len() as u32,
            refused: self.inner.refused.get(),
        }
    }

    /// The whole region, for registration with a device: address and bytes.
    #[must_use]
    pub fn region(&self) -> (NonNull<u8>, usize) {
        (self.inner.memory.base(), self.inner.memory.length())
    }

    /// The file behind the region, when another process can map it (see [`PoolMemory::descriptor`]).
    #[must_use]
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.inner.memory.descriptor()
    }

    /// What the memory is, for reports.
    #[must_use]
    pub fn memory_kind(&self) -> &'static str {
        self.inner.memory.kind()
    }
}

/// A unique owned handle to a range of a pool's slot: not `Clone`, not `Send`, 16 bytes. Handles to the same slot
/// come only from [`DataBuf::split_to`] and never overlap; the slot goes home when the last one is dropped.
pub struct DataBuf {
    slot: NonNull<Slot>,
    offset: u32,
    length: u32,
}

impl DataBuf {
    fn slot(&self) -> &Slot {
        // SAFETY: the handle holds a strong count of the pool that owns the slot.
        unsafe { self.slot.as_ref() }
    }

    /// Shortens the buffer to `length` bytes; does nothing when it is not longer.
    pub fn truncate(&mut self, length: usize) {
        self.length = self.length.min(u32::try_from(length).unwrap_or(u32::MAX));
    }

    /// Cuts off the first `at` bytes as a handle of their own; `self` keeps the rest.
    ///
    /// # Panics
    /// When `at` is more than the length.
    #[must_use]
    pub fn split_to(&mut self, at: usize) -> DataBuf {
        assert!(at <= self.len(), "split_to({at}) of a buffer of {} bytes", self.len());
        let at = at as u32;
        let slot = self.slot();
        slot.handles.set(slot.handles.get() + 1);
        // SAFETY: a strong count per handle; `self` holds one, so the pool is alive.
        unsafe { Rc::increment_strong_count(slot.pool.get()) };
        let front = DataBuf { slot: self.slot, offset: self.offset, length: at };
        self.offset += at;
        self.length -= at;
        front
    }

    /// Bytes from the start of this buffer to the end of its slot: what the buffer could still grow to is not
    /// offered, this is for reports and tests.
    #[must_use]
    pub fn slot_capacity(&self) -> u32 {
        self.slot().capacity
    }

    /// True when this handle is the only one of its slot.
    #[must_use]
    pub fn is_sole(&self) -> bool {
        self.slot().handles.get() == 1
    }
}

impl Deref for DataBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the range lies in the slot, is initialised memory, and belongs to this handle alone (module doc).
        unsafe {
            std::slice::from_raw_parts(
                self.slot().data.as_ptr().add(self.offset as usize),
                self.length as usize,
            )
        }
    }
}

impl DerefMut for DataBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `Deref`; `&mut self` makes this the only access.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.slot().data.as_ptr().add(self.offset as usize),
                self.length as usize,
            )
        }
    }
}

impl Drop for DataBuf {
    fn drop(&mut self) {
        let slot = self.slot();
        let pool = slot.pool.get();
        let handles = slot.handles.get() - 1;
        slot.handles.set(handles);
        // SAFETY: this handle's strong count keeps the pool alive until the decrement below.
        let inner = unsafe { &*pool };
        if handles == 0 {
            let class = &inner.classes[slot.class as usize];
            slot.next_free.set(class.free.get());
            class.free.set(slot.index);
            inner.outstanding.set(inner.outstanding.get() - 1);
        }
        // SAFETY: gives back the count that `acquire` or `split_to` took for this handle.
        unsafe { Rc::decrement_strong_count(pool) };
    }
}

impl std::fmt::Debug for DataBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DataBuf")
            .field("slot", &self.slot().index)
            .field("offset", &self.offset)
            .field("length", &self.length)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> BufferPool {
        BufferPool::plain(&[PoolClass { size: 4096, count: 2 }, PoolClass { size: 65536, count: 1 }])
    }

    #[test]
    fn a_buffer_handle_is_sixteen_bytes() {
        assert_eq!(std::mem::size_of::<DataBuf>(), 16);
        assert_eq!(std::mem::size_of::<Option<DataBuf>>(), 16);
    }

    #[test]
    fn smallest_class_first_then_larger_then_none() {
        let pool = pool();
        let a = pool.acquire(512).unwrap();
        let b = pool.acquire(4096).unwrap();
        let c = pool.acquire(1).unwrap();
        assert_eq!(c.slot_capacity(), 65536);
        assert!(pool.acquire(1).is_none());
        assert_eq!(pool.statistics().refused, 1);
        drop((a, b, c));
        assert_eq!(pool.statistics().outstanding, 0);
        assert!(pool.acquire(65537).is_none());
    }

    #[test]
    fn split_handles_are_disjoint_and_the_slot_waits_for_the_last() {
        let pool = pool();
        let mut rest = pool.acquire(1024).unwrap();
        rest.fill(7);
        let mut front = rest.split_to(100);
        front.fill(1);
        assert_eq!((front.len(), rest.len()), (100, 924));
        assert!(rest.iter().all(|&byte| byte == 7));
        drop(rest);
        assert_eq!(pool.statistics().outstanding, 1);
        assert!(front.is_sole());
        drop(front);
        assert_eq!(pool.statistics().outstanding, 0);
    }

    #[test]
    fn buffers_outlive_the_pool_handle() {
        let pool = pool();
        let mut data = pool.acquire(4096).unwrap();
        drop(pool);
        data.fill(9);
        assert_eq!(data[4095], 9);
    }
}
