// SPDX-License-Identifier: GPL-2.0

//! A check that no process can reach free memory. Only builds for tests have it.
//!
//! The module in `selftests/audit/` walks the page tables of all processes. [`unreachable`] runs
//! when memory is allocated and when it is freed. It searches the page tables for that memory, and
//! checks that its pages have no references but the pool's. A read of the debugfs file `audit`
//! compares every entry with the buffer that its VMA maps. Errors are logged as bugs and counted.
//!
//! The search takes no lock, so the caller may hold any lock, including its own `mmap_lock`. It
//! does not cover address spaces that no thread uses any more, or that only a kernel thread uses.

use crate::mm::Pfn;
use crate::pool::Pool;

/// The event at which memory is checked.
#[derive(Clone, Copy)]
pub(crate) enum When {
    /// The memory is being freed.
    Freed,
    /// The memory was just allocated.
    Granted,
}

#[cfg(not(rust_buddy_audit))]
mod walk {
    use super::*;

    pub(crate) struct Oracle;

    impl Oracle {
        pub(crate) fn find() -> Self {
            Self
        }
    }

    pub(crate) fn unreachable(_: &Pool, _: Pfn, _: u64, _: When) {}
}

#[cfg(rust_buddy_audit)]
mod walk {
    use super::*;
    use crate::buffer::{
        BackingGuard, //
        Buffer,
    };
    use crate::device;
    use crate::mm;
    use crate::uapi;
    use kernel::{
        bindings,
        fmt,
        mm::virt::VmaRef,
        prelude::*,
        sync::{
            atomic::{
                Acquire,
                Atomic,
                Full,
                Relaxed,
                Release, //
            },
            Arc, //
        },
        time::{
            delay::fsleep,
            Delta, //
        }, //
    };

    type Entry =
        unsafe extern "C" fn(*mut c_void, *mut bindings::mm_struct, c_ulong, c_ulong, c_ulong);

    type Pfns = unsafe extern "C" fn(c_ulong, c_ulong, Option<Entry>, *mut c_void) -> c_ulong;
    type Range = unsafe extern "C" fn(
        *mut bindings::mm_struct,
        c_ulong,
        c_ulong,
        c_ulong,
        c_ulong,
        Option<Entry>,
        *mut c_void,
    ) -> c_ulong;
    type Area = unsafe extern "C" fn(*mut c_void, *mut bindings::vm_area_struct);
    type Vmas = unsafe extern "C" fn(Area, *mut c_void) -> c_long;

    const NAMES: [&CStr; 3] = [
        c"rust_buddy_audit_pfns",
        c"rust_buddy_audit_range",
        c"rust_buddy_audit_vmas",
    ];
    /// The addresses of the walker's functions, or 0 if its module is not loaded.
    static WALKER: [Atomic<usize>; 3] = [const { Atomic::new(0) }; 3];

    /// The walker's functions.
    #[derive(Clone, Copy)]
    struct Walker {
        pfns: Pfns,
        range: Range,
        vmas: Vmas,
    }

    /// Returns the walker's functions, if its module is loaded.
    fn walker() -> Option<Walker> {
        let [pfns, range, vmas] = WALKER.each_ref().map(|at| at.load(Acquire));
        if pfns == 0 || range == 0 || vmas == 0 {
            return None;
        }
        // SAFETY: The addresses are those of functions in `selftests/audit/rust_buddy_audit.c`,
        // which have these types. `Oracle` holds a reference to their module, so it is not
        // unloaded.
        unsafe {
            Some(Walker {
                pfns: core::mem::transmute::<usize, Pfns>(pfns),
                range: core::mem::transmute::<usize, Range>(range),
                vmas: core::mem::transmute::<usize, Vmas>(vmas),
            })
        }
    }

    /// The references to the walker's module, if that was loaded before this one.
    pub(crate) struct Oracle;

    impl Oracle {
        /// Takes a reference to each of the walker's functions, if its module is loaded.
        pub(crate) fn find() -> Self {
            for (at, name) in WALKER.iter().zip(NAMES) {
                // SAFETY: The name is a string that ends with a NUL, as the function requires.
                let found = unsafe { bindings::__symbol_get(name.as_char_ptr()) };
                at.store(found as usize, Release);
            }
            Self
        }
    }

    impl Drop for Oracle {
        fn drop(&mut self) {
            for (at, name) in WALKER.iter().zip(NAMES) {
                if at.xchg(0, Full) != 0 {
                    // SAFETY: `find` took one reference by this name. The module has freed all
                    // memory by now, so no check follows.
                    unsafe { bindings::__symbol_put(name.as_char_ptr()) };
                }
            }
        }
    }

    /// How often a check waits one millisecond for a reference to go. GUP-fast, compaction and
    /// memory failure take references for a short time.
    const PATIENCE: u32 = 100;
    /// The number of errors that are logged. Later ones are only counted.
    const LOGGED: u64 = 20;

    /// The number of pages from which on every block is searched for in page tables.
    const ALWAYS: u64 = 512;
    /// After a search, smaller blocks are skipped for this many times its duration, because tests
    /// would otherwise exceed their time limit.
    const REST: i64 = 3;

    /// The number of searches of all page tables.
    static CHECKS: Atomic<u64> = Atomic::new(0);
    /// The number of blocks for which the search was skipped.
    static SKIPPED: Atomic<u64> = Atomic::new(0);
    /// The time until which small blocks are skipped, in nanoseconds of the monotonic clock.
    static REST_UNTIL: Atomic<i64> = Atomic::new(0);
    /// The number of errors found by all checks.
    static FAULTS: Atomic<u64> = Atomic::new(0);

    /// Returns the monotonic time in nanoseconds.
    fn now() -> i64 {
        // SAFETY: The function has no arguments and may be called in any context.
        unsafe { bindings::ktime_get() }
    }

    /// Counts an error and returns whether the caller should log it.
    fn found() -> bool {
        FAULTS.fetch_add(1, Relaxed) < LOGGED
    }

    /// One page-table entry, as the walker reports it: its first address, and its frames.
    #[derive(Clone, Copy, Default)]
    struct Shown {
        address: u64,
        frame: u64,
        pages: u64,
    }

    /// Stores the entry, so that the last one that the walker reports is kept.
    ///
    /// # Safety
    ///
    /// `data` must point to a [`Shown`] to which there is no other access during this call.
    unsafe extern "C" fn keep_last(
        data: *mut c_void,
        _mm: *mut bindings::mm_struct,
        address: c_ulong,
        frame: c_ulong,
        pages: c_ulong,
    ) {
        // SAFETY: By this function's requirements the pointer is valid for writes.
        unsafe {
            data.cast::<Shown>().write(Shown {
                address: address as u64,
                frame: frame as u64,
                pages: pages as u64,
            })
        };
    }

    /// Logs an error if a page table maps any of the frames, or if any of the pages has a reference
    /// other than the pool's. May sleep. Must be called while the frames belong to no buffer.
    pub(crate) fn unreachable(pool: &Pool, first: Pfn, pages: u64, when: When) {
        if pages == 0 {
            return;
        }
        let Some(walker) = walker() else {
            return;
        };
        let base = pool.region().base();
        let verb = match when {
            When::Freed => "freed",
            When::Granted => "granted",
        };
        let mut last = Shown::default();
        let start = now();
        let entries = if pages < ALWAYS && start < REST_UNTIL.load(Relaxed) {
            SKIPPED.fetch_add(1, Relaxed);
            0
        } else {
            CHECKS.fetch_add(1, Relaxed);
            // SAFETY: `walker()` returned the function. It calls `keep_last()` with the pointer to
            // `last`, which outlives the call and is not accessed until it returns.
            let entries = unsafe {
                (walker.pfns)(
                    first.raw(),
                    Pfn(pages).raw(),
                    Some(keep_last),
                    (&raw mut last).cast(),
                )
            };
            let end = now();
            REST_UNTIL.store(end + (end - start).saturating_mul(REST), Relaxed);
            entries
        };
        if entries > 0 && found() {
            pr_err!(
                "BUG: pages {}+{} of pool {} are {}, and {} page table entries map them, one of \
                 {} pages at {:#x}\n",
                first.0 - base.0,
                pages,
                pool.id(),
                verb,
                entries,
                last.pages,
                last.address,
            );
        }
        if pool.region().caps() & uapi::CAP_STRUCT_PAGE == 0 {
            return;
        }
        for page in 0..pages {
            let references = settled(first.plus(page));
            if references > 1 && found() {
                pr_err!(
                    "BUG: page {} of pool {} is {} with {} references\n",
                    first.0 - base.0 + page,
                    pool.id(),
                    verb,
                    references,
                );
            }
        }
    }

    /// Returns the number of references to a page, after it has waited for those that last only a
    /// short time.
    fn settled(page: Pfn) -> i32 {
        let mut tries = 0;
        loop {
            // SAFETY: The caller has checked that the pool has `CAP_STRUCT_PAGE`, so the memory map
            // covers the page.
            let references = unsafe { mm::page_references(page) };
            if references <= 1 || tries == PATIENCE {
                return references;
            }
            tries += 1;
            fsleep(Delta::from_millis(1));
        }
    }

    /// The state of one comparison of all VMAs with their buffers.
    struct Look<'a> {
        walker: Walker,
        pool: &'a Pool,
        vmas: u64,
        entries: u64,
        wrong: u64,
    }

    /// The expected contents of one VMA, and the result of the comparison.
    struct Against<'a> {
        start: u64,
        end: u64,
        /// The mmap offset of the VMA's first page, in pages.
        offset: u64,
        /// The buffer that the VMA maps, if it maps one.
        backing: Option<&'a BackingGuard<'a>>,
        entries: u64,
        wrong: u64,
        /// The last wrong entry.
        last: Shown,
    }

    /// Compares an entry with the buffer that the VMA maps.
    ///
    /// # Safety
    ///
    /// `data` must point to an [`Against`] to which there is no other access during this call.
    unsafe extern "C" fn compare(
        data: *mut c_void,
        _mm: *mut bindings::mm_struct,
        address: c_ulong,
        frame: c_ulong,
        pages: c_ulong,
    ) {
        // SAFETY: By this function's requirements the pointer is valid and not aliased.
        let against = unsafe { &mut *data.cast::<Against<'_>>() };
        let shown = Shown {
            address: address as u64,
            frame: frame as u64,
            pages: pages as u64,
        };
        against.entries += 1;
        // A large entry may reach beyond the VMA: only the part within it is compared.
        let from = shown.address.max(against.start);
        let to = (shown.address + shown.pages * mm::PAGE_SIZE).min(against.end);
        let right = against.backing.is_some_and(|backing| {
            let page = against.offset + (from - against.start) / mm::PAGE_SIZE;
            let frame = shown.frame + (from - shown.address) / mm::PAGE_SIZE;
            backing.run_at(page).is_some_and(|(first, there)| {
                first.0 == frame && (to.saturating_sub(from)) / mm::PAGE_SIZE <= there
            })
        });
        if !right {
            against.wrong += 1;
            against.last = shown;
        }
    }

    /// Compares all entries of one VMA, of any process, with its buffer.
    ///
    /// # Safety
    ///
    /// `data` must point to a [`Look`] to which there is no other access during this call. The
    /// caller must hold the VMA's `mmap_lock`.
    unsafe extern "C" fn look_at(data: *mut c_void, vma: *mut bindings::vm_area_struct) {
        // SAFETY: By this function's requirements the pointer is valid and not aliased.
        let look = unsafe { &mut *data.cast::<Look<'_>>() };
        // SAFETY: By this function's requirements the VMA's `mmap_lock` is held, so the VMA is
        // valid and does not change.
        let (area, mm, offset) =
            unsafe { (VmaRef::from_raw(vma), (*vma).vm_mm, (*vma).vm_pgoff as u64) };
        let buffer: Option<Arc<Buffer>> = device::buffer_of(area);
        let backing = buffer.as_ref().map(|buffer| buffer.lock());
        let mut against = Against {
            start: area.start() as u64,
            end: area.end() as u64,
            offset,
            backing: backing.as_ref(),
            entries: 0,
            wrong: 0,
            last: Shown::default(),
        };
        // A VMA of a buffer must map nothing but the buffer, so each of its entries is compared.
        // Any other VMA must map no memory of the pool.
        let (first, pages) = match &against.backing {
            Some(_) => (0, c_ulong::MAX),
            None => (
                look.pool.region().base().raw(),
                Pfn(look.pool.region().pages()).raw(),
            ),
        };
        // Migrations and faults wait until `backing` is unlocked.
        // SAFETY: `walker()` returned the function. The caller holds the `mmap_lock`, and with it
        // the address space. The function calls `compare()` with the pointer to `against`, which
        // outlives the call and is not accessed until it returns.
        unsafe {
            (look.walker.range)(
                mm,
                area.start() as c_ulong,
                area.end() as c_ulong,
                first,
                pages,
                Some(compare),
                (&raw mut against).cast(),
            )
        };
        look.vmas += u64::from(against.backing.is_some());
        look.entries += against.entries;
        look.wrong += against.wrong;
        if against.wrong > 0 && found() {
            pr_err!(
                "BUG: {} of {} page table entries at {:#x}-{:#x}{} map the wrong memory, one of \
                 {} pages at {:#x}\n",
                against.wrong,
                against.entries,
                against.start,
                against.end,
                if against.backing.is_some() {
                    ", a buffer's,"
                } else {
                    ""
                },
                against.last.pages,
                against.last.address,
            );
        }
    }

    /// Returns how many free pages of the pool have a reference other than the pool's.
    fn referenced(pool: &Pool) -> u64 {
        let region = pool.region();
        if region.caps() & uapi::CAP_STRUCT_PAGE == 0 {
            return 0;
        }
        let mut wrong = 0;
        for page in 0..region.pages() {
            let frame = region.base().plus(page);
            // SAFETY: The frame is in a region with `CAP_STRUCT_PAGE`, so the memory map covers it.
            let held = || unsafe { mm::page_references(frame) } > 1;
            // A page that is allocated by now may have references.
            let free = || pool.free_units_in(page, page + 1) > 0;
            let mut tries = 0;
            while held() && free() && tries < PATIENCE {
                tries += 1;
                fsleep(Delta::from_millis(1));
            }
            if tries == PATIENCE {
                wrong += 1;
                if found() {
                    pr_err!(
                        "BUG: page {} of pool {} is free and has a foreign reference\n",
                        page,
                        pool.id()
                    );
                }
            }
        }
        wrong
    }

    /// Compares all VMAs with their buffers, checks all free pages, and prints the results and the
    /// counts of all checks.
    pub(crate) fn show(pool: &Pool, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(walker) = walker() else {
            return writeln!(f, "complete: 0");
        };
        let mut look = Look {
            walker,
            pool,
            vmas: 0,
            entries: 0,
            wrong: 0,
        };
        // SAFETY: `walker()` returned the function. It calls `look_at()` under the `mmap_lock` of
        // each VMA, with the pointer to `look`, which outlives the call and is not accessed until
        // it returns. A reader of debugfs holds no lock that is taken inside an `mmap_lock`.
        let ret = unsafe { (walker.vmas)(look_at, (&raw mut look).cast()) };
        let referenced = referenced(pool);
        writeln!(f, "complete: {}", u32::from(ret == 0))?;
        writeln!(f, "vmas: {}", look.vmas)?;
        writeln!(f, "entries: {}", look.entries)?;
        writeln!(f, "wrong: {}", look.wrong)?;
        writeln!(f, "referenced: {referenced}")?;
        writeln!(f, "checks: {}", CHECKS.load(Relaxed))?;
        writeln!(f, "skipped: {}", SKIPPED.load(Relaxed))?;
        writeln!(f, "faults: {}", FAULTS.load(Relaxed))
    }
}

pub(crate) use walk::*;
