// SPDX-License-Identifier: GPL-2.0

//! An oracle for "free memory can be reached by no process", in builds for tests only.
//!
//! The module in `selftests/audit/` walks the page tables of all processes. Memory is looked for in
//! them when it is granted and when it goes back to its pool, and so are references to its pages. A
//! reader of debugfs has every entry compared with the buffer that its VMA shows. Findings are
//! logged as bugs and counted.
//!
//! The walk takes no lock, so the caller may hold any, its own `mmap_lock` included. Not looked at
//! are address spaces that no thread uses any more, and those that only a kernel thread does.

use crate::mm::Pfn;
use crate::pool::Pool;

/// When memory is looked for.
#[derive(Clone, Copy)]
pub(crate) enum When {
    /// It goes back to its pool.
    Freed,
    /// It was taken out of it.
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
    /// Where the walker's functions are; 0 while there is none.
    static WALKER: [Atomic<usize>; 3] = [const { Atomic::new(0) }; 3];

    /// The walker's functions.
    #[derive(Clone, Copy)]
    struct Walker {
        pfns: Pfns,
        range: Range,
        vmas: Vmas,
    }

    fn walker() -> Option<Walker> {
        let [pfns, range, vmas] = WALKER.each_ref().map(|at| at.load(Acquire));
        if pfns == 0 || range == 0 || vmas == 0 {
            return None;
        }
        // SAFETY: Functions of these types, as `selftests/audit/rust_buddy_audit.c` has them, which
        // `Oracle` keeps from going.
        unsafe {
            Some(Walker {
                pfns: core::mem::transmute::<usize, Pfns>(pfns),
                range: core::mem::transmute::<usize, Range>(range),
                vmas: core::mem::transmute::<usize, Vmas>(vmas),
            })
        }
    }

    /// The use of the walker's module, if that was loaded before this one.
    pub(crate) struct Oracle;

    impl Oracle {
        pub(crate) fn find() -> Self {
            for (at, name) in WALKER.iter().zip(NAMES) {
                // SAFETY: A string that ends with a NUL.
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
                    // SAFETY: Taken by `find`, and nothing is looked for any more.
                    unsafe { bindings::__symbol_put(name.as_char_ptr()) };
                }
            }
        }
    }

    /// How often GUP-fast, compaction and memory failure, which take references for a moment, are
    /// waited for, a millisecond each.
    const PATIENCE: u32 = 100;
    /// Findings that are logged; the rest is counted.
    const LOGGED: u64 = 20;

    /// Blocks of so many pages are always looked for in page tables. Smaller ones are not for so
    /// many times as long as the last look took, or tests would end by time-out.
    const ALWAYS: u64 = 512;
    const REST: i64 = 3;

    /// Times that memory was looked for in page tables and was not, and all that was found.
    static CHECKS: Atomic<u64> = Atomic::new(0);
    static SKIPPED: Atomic<u64> = Atomic::new(0);
    /// When the next small block is looked for, in nanoseconds since boot.
    static REST_UNTIL: Atomic<i64> = Atomic::new(0);
    static FAULTS: Atomic<u64> = Atomic::new(0);

    fn now() -> i64 {
        // SAFETY: Takes nothing, may be called anywhere.
        unsafe { bindings::ktime_get() }
    }

    /// Counts a finding. True if it is to be logged.
    fn found() -> bool {
        FAULTS.fetch_add(1, Relaxed) < LOGGED
    }

    /// One entry of a page table, as the walker gave it.
    #[derive(Clone, Copy, Default)]
    struct Shown {
        address: u64,
        frame: u64,
        pages: u64,
    }

    /// Keeps the entry.
    ///
    /// # Safety
    ///
    /// `data` must be a [`Shown`] that nothing else uses.
    unsafe extern "C" fn keep_last(
        data: *mut c_void,
        _mm: *mut bindings::mm_struct,
        address: c_ulong,
        frame: c_ulong,
        pages: c_ulong,
    ) {
        // SAFETY: By this function's requirements.
        unsafe {
            data.cast::<Shown>().write(Shown {
                address: address as u64,
                frame: frame as u64,
                pages: pages as u64,
            })
        };
    }

    /// Complains if a page table shows any of the frames, or a page has a reference that is not the
    /// pool's. To be called while no buffer has the frames, and where it may sleep.
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
            // SAFETY: The function only writes to `last`, which outlives the call.
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
                "BUG: pages {}+{} of pool {} are {}, and {} page table entries show them, one of \
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

    /// How many references a page has once those of a moment are gone.
    fn settled(page: Pfn) -> i32 {
        let mut tries = 0;
        loop {
            // SAFETY: Only pages of pools whose pages are the kernel's own come here.
            let references = unsafe { mm::page_references(page) };
            if references <= 1 || tries == PATIENCE {
                return references;
            }
            tries += 1;
            fsleep(Delta::from_millis(1));
        }
    }

    /// What the look at all VMAs has seen.
    struct Look<'a> {
        walker: Walker,
        pool: &'a Pool,
        vmas: u64,
        entries: u64,
        wrong: u64,
    }

    /// What one VMA has to show: the offset of its first page, and the buffer, if it shows one.
    struct Against<'a> {
        start: u64,
        end: u64,
        offset: u64,
        backing: Option<&'a BackingGuard<'a>>,
        entries: u64,
        wrong: u64,
        last: Shown,
    }

    /// Compares an entry with the buffer that the VMA shows.
    ///
    /// # Safety
    ///
    /// `data` must be an [`Against`] that nothing else uses.
    unsafe extern "C" fn compare(
        data: *mut c_void,
        _mm: *mut bindings::mm_struct,
        address: c_ulong,
        frame: c_ulong,
        pages: c_ulong,
    ) {
        // SAFETY: By this function's requirements.
        let against = unsafe { &mut *data.cast::<Against<'_>>() };
        let shown = Shown {
            address: address as u64,
            frame: frame as u64,
            pages: pages as u64,
        };
        against.entries += 1;
        // Of a large entry, what is in the VMA.
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

    /// Looks at one VMA, of any process.
    ///
    /// # Safety
    ///
    /// `data` must be a [`Look`] that nothing else uses, and the VMA's `mmap_lock` be held.
    unsafe extern "C" fn look_at(data: *mut c_void, vma: *mut bindings::vm_area_struct) {
        // SAFETY: By this function's requirements.
        let look = unsafe { &mut *data.cast::<Look<'_>>() };
        // SAFETY: By this function's requirements; the lock keeps the VMA.
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
        // What shows a buffer shows nothing else; what does not shows nothing of the pool.
        let (first, pages) = match &against.backing {
            Some(_) => (0, c_ulong::MAX),
            None => (
                look.pool.region().base().raw(),
                Pfn(look.pool.region().pages()).raw(),
            ),
        };
        // SAFETY: The walker holds the `mmap_lock`, and with it the address space. The function
        // only uses `against`, which outlives the call. Moves and faults wait for `backing`.
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
                "BUG: {} of {} page table entries at {:#x}-{:#x}{} show what they must not, one of \
                 {} pages at {:#x}\n",
                against.wrong,
                against.entries,
                against.start,
                against.end,
                if against.backing.is_some() { ", a buffer's," } else { "" },
                against.last.pages,
                against.last.address,
            );
        }
    }

    /// Free pages of the pool that have a reference which is not its own.
    fn referenced(pool: &Pool) -> u64 {
        let region = pool.region();
        if region.caps() & uapi::CAP_STRUCT_PAGE == 0 {
            return 0;
        }
        let mut wrong = 0;
        for page in 0..region.pages() {
            let frame = region.base().plus(page);
            // SAFETY: A page of the region, which is the kernel's own.
            let held = || unsafe { mm::page_references(frame) } > 1;
            // What is granted meanwhile may have some.
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
                        "BUG: page {} of pool {} is free and somebody has a reference\n",
                        page,
                        pool.id()
                    );
                }
            }
        }
        wrong
    }

    /// Looks at all VMAs and all free pages, and says what all looks found.
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
        // SAFETY: The function only uses `look`, which outlives the call. A reader of debugfs holds
        // no lock that comes after an `mmap_lock`.
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
