// SPDX-License-Identifier: GPL-2.0

//! What an allocation with its free costs in the kernel: the allocator's core, under a spinlock,
//! beside what the kernel has. Loading it measures, a line of JSON each in the log.
//!
//! The clock is the CPU's time stamp. Under QEMU's instruction clock (`-icount shift=0`) that
//! counts instructions and nothing else, the same in every boot. Elsewhere it is time, and says
//! little.
//!
//! Each number is the least and the median of many pairs, less what reading the clock takes. The
//! allocators that manage a range of their own (`core`, `gen_pool`, `gpu_buddy`) have 64 MiB each,
//! once empty, where a small block is the longest chain of splits and joins, and once with every
//! second block of the size taken. `gpu_buddy` leaves locking to its caller, and gets none here.

#[path = "../src/buddy/mod.rs"]
pub mod buddy;
#[path = "../src/magazine/mod.rs"]
pub mod magazine;

use buddy::{
    storage_len,
    Buddy,
    Order,
    Packed,
    Place,
    Request,
    Run, //
};
use core::ptr::{
    null,
    null_mut,
    NonNull, //
};
use kernel::{
    bindings,
    cpu::{
        nr_cpu_ids,
        CpuId, //
    },
    new_spinlock,
    prelude::*,
    sync::SpinLock,
    time::{
        delay::fsleep,
        Delta,
        Instant,
        Monotonic, //
    },
    types::Opaque, //
};
use magazine::{
    BlockSource,
    End,
    Lock,
    Magazine,
    StatsDelta, //
};

module! {
    type: Bench,
    name: "rust_buddy_bench",
    authors: ["The rust_buddy maintainers"],
    description: "Instructions of rust_buddy's allocator and of the kernel's",
    license: "GPL",
    params: {
        contig: u32 {
            default: 1,
            description: "Measure alloc_contig_pages, which takes long (default 1)",
        },
        tail_seconds: u32 {
            default: 0,
            description: "Instead, how long single requests take: for so long a row (default 0)",
        },
    },
}

const PAGE: usize = 4096;
/// What the ranges are, and where they pretend to be.
const RANGE: usize = 64 << 20;
const BASE: usize = 256 << 20;
const SIZES: [usize; 3] = [PAGE, 64 << 10, 2 << 20];
const SAMPLES: usize = 201;

type Core = Buddy<KVVec<u64>>;
type Slots = KVVec<Option<Packed>>;

/// What is behind the magazines.
struct Stock {
    core: Core,
    depot: Magazine<Slots>,
}

impl BlockSource for Stock {
    type Slots = Slots;

    fn depot(&mut self) -> &mut Magazine<Slots> {
        &mut self.depot
    }

    fn alloc(&mut self, _end: End, order: Order) -> Option<Run> {
        self.core.alloc(&Request::new(order.units())).ok()
    }

    fn free(&mut self, run: Run) {
        self.core.free(run);
    }

    fn add_stats(&mut self, _delta: StatsDelta) {}
}

/// The magazine of one CPU.
struct CpuMagazine(Pin<KBox<SpinLock<Magazine<Slots>>>>);

impl Lock<Magazine<Slots>> for CpuMagazine {
    fn with<R>(&self, f: impl FnOnce(&mut Magazine<Slots>) -> R) -> R {
        f(&mut self.0.lock())
    }
}

extern "C" {
    fn gen_pool_create(min_alloc_order: c_int, nid: c_int) -> *mut c_void;
    fn gen_pool_add_owner(
        pool: *mut c_void,
        address: c_ulong,
        phys: u64,
        size: usize,
        nid: c_int,
        owner: *mut c_void,
    ) -> c_int;
    fn gen_pool_alloc_algo_owner(
        pool: *mut c_void,
        size: usize,
        algorithm: *const c_void,
        data: *mut c_void,
        owner: *mut *mut c_void,
    ) -> c_ulong;
    fn gen_pool_free_owner(
        pool: *mut c_void,
        address: c_ulong,
        size: usize,
        owner: *mut *mut c_void,
    );
    fn gen_pool_destroy(pool: *mut c_void);
    fn gen_pool_first_fit();
    fn dev_get_cma_area(device: *mut c_void) -> *mut c_void;
    fn cma_alloc(area: *mut c_void, count: c_ulong, align: c_uint, no_warn: bool) -> *mut c_void;
    fn cma_release(area: *mut c_void, pages: *const c_void, count: c_ulong) -> bool;
}

/// The time stamp, with nothing before it left to do.
fn clock() -> u64 {
    // SAFETY: Every x86-64 CPU has both.
    unsafe {
        core::arch::x86_64::_mm_lfence();
        core::arch::x86_64::_rdtsc()
    }
}

/// Least and median of what `pair` takes; none if it once fails.
fn measure(mut pair: impl FnMut() -> bool) -> Option<(u64, u64)> {
    let mut samples = [0; SAMPLES];
    // Once for what is only slow at first.
    for round in 0..2 {
        for sample in &mut samples {
            let start = clock();
            let done = pair();
            *sample = clock() - start;
            if !done && round > 0 {
                return None;
            }
        }
    }
    samples.sort_unstable();
    Some((samples[0], samples[SAMPLES / 2]))
}

struct Report {
    /// What the clock takes by itself.
    idle: u64,
}

impl Report {
    fn show(&self, what: &str, state: &str, bytes: usize, pair: impl FnMut() -> bool) {
        match measure(pair) {
            Some((least, median)) => pr_info!(
                "{{\"bench\": \"instructions\", \"bytes\": {}, \"state\": \"{}\", \
                 \"what\": \"{}\", \"least\": {}, \"median\": {}}}\n",
                bytes,
                state,
                what,
                least.saturating_sub(self.idle),
                median.saturating_sub(self.idle),
            ),
            None => pr_info!("{} had no {} bytes\n", what, bytes),
        }
    }
}

/// The core, as a pool uses it: a lock around each call.
fn ours(report: &Report, bytes: usize, half: bool) -> Result {
    let (base, units) = ((BASE / PAGE) as u64, (RANGE / PAGE) as u64);
    let words = storage_len(base, units).map_err(|_| EINVAL)?;
    let words = KVVec::from_elem(0, words, GFP_KERNEL)?;
    let mut core: Core = Buddy::new(words, Default::default(), base, units).map_err(|_| EINVAL)?;
    let request = Request::new((bytes / PAGE) as u64);
    let mut kept = KVVec::new();
    if half {
        let mut odd = KVVec::new();
        while let Ok(run) = core.alloc(&request) {
            kept.push(run, GFP_KERNEL)?;
            if let Ok(run) = core.alloc(&request) {
                odd.push(run, GFP_KERNEL)?;
            }
        }
        while let Some(run) = odd.pop() {
            core.free(run);
        }
    }
    let depot = empty_magazine()?;
    let stock = Stock { core, depot };
    let core = KBox::pin_init(new_spinlock!(stock, "rust_buddy_bench"), GFP_KERNEL)?;
    let core: &SpinLock<Stock> = &core;
    let state = if half { "half" } else { "empty" };
    // What of the below is the lock's.
    report.show("two locks", state, bytes, || {
        drop(core.lock());
        drop(core.lock());
        true
    });
    let places = [("core", Place::Any), ("core, lowest", Place::BottomUp)];
    for (what, place) in places {
        let request = Request { place, ..request };
        report.show(what, state, bytes, || {
            let run = core.lock().core.alloc(&request);
            run.map(|run| core.lock().free(run)).is_ok()
        });
    }
    through_magazines(report, bytes, state, core)?;
    while let Some(run) = kept.pop() {
        core.lock().free(run);
    }
    Ok(())
}

fn empty_magazine() -> Result<Magazine<Slots>> {
    let mut slots = Slots::with_capacity(magazine::SLOTS, GFP_KERNEL)?;
    for _ in 0..magazine::SLOTS {
        slots.push(None, GFP_KERNEL)?;
    }
    Ok(Magazine::new(slots, (BASE / PAGE) as u64, 1 << 11))
}

/// The same through magazines, as a pool has them.
fn through_magazines(report: &Report, bytes: usize, state: &str, core: &SpinLock<Stock>) -> Result {
    let mut magazines = KVec::new();
    for _ in 0..nr_cpu_ids() {
        let magazine = new_spinlock!(empty_magazine()?, "rust_buddy_magazine");
        magazines.push(
            CpuMagazine(KBox::pin_init(magazine, GFP_KERNEL)?),
            GFP_KERNEL,
        )?;
    }
    let mine = || magazines.get(CpuId::current().as_u32() as usize);
    let order = Order::covering((bytes / PAGE) as u64).ok_or(EINVAL)?;
    let take = || {
        let mine = mine()?;
        let bytes = bytes as u64;
        if let Some(run) = mine.with(|magazine| magazine.alloc(End::Low, order, bytes)) {
            return Some(run);
        }
        magazine::refill(mine, &mut *core.lock(), End::Low, order, bytes)
    };
    report.show("magazine", state, bytes, || {
        let (Some(run), Some(mine)) = (take(), mine()) else {
            return false;
        };
        if let Err(run) = mine.with(|magazine| magazine.put(End::Low, run, bytes as u64)) {
            core.lock().free(run);
        }
        true
    });
    magazine::disable_all_locked(&magazines, &mut *core.lock());
    Ok(())
}

/// The general purpose allocator of special memory.
fn gen_pool(report: &Report, bytes: usize, half: bool) -> Result {
    let algorithm = gen_pool_first_fit as *const c_void;
    // SAFETY: A pool of its own, over addresses that nobody looks at.
    let pool = unsafe { gen_pool_create(12, -1) };
    if pool.is_null() {
        return Err(ENOMEM);
    }
    // SAFETY: As above.
    let added = unsafe { gen_pool_add_owner(pool, BASE as c_ulong, 0, RANGE, -1, null_mut()) };
    // SAFETY: The pool lives until the end of this function.
    let take =
        || unsafe { gen_pool_alloc_algo_owner(pool, bytes, algorithm, null_mut(), null_mut()) };
    // SAFETY: What `take` gave.
    let give = |at| unsafe { gen_pool_free_owner(pool, at, bytes, null_mut()) };
    if added == 0 {
        let mut at = BASE as c_ulong;
        let end = (BASE + RANGE) as c_ulong;
        while half && take() != 0 {}
        while half && at < end {
            give(at);
            at += 2 * bytes as c_ulong;
        }
        let state = if half { "half" } else { "empty" };
        report.show("gen_pool", state, bytes, || {
            let at = take();
            if at != 0 {
                give(at);
            }
            at != 0
        });
        let mut at = BASE as c_ulong + bytes as c_ulong;
        while half && at < end {
            give(at);
            at += 2 * bytes as c_ulong;
        }
    }
    // SAFETY: Nothing of it is in use.
    unsafe { gen_pool_destroy(pool) };
    Ok(())
}

/// Makes an empty list, which points to itself.
///
/// # Safety
///
/// `list` must be writable, and not be moved while it is used as a list.
unsafe fn empty_list(list: *mut bindings::list_head) {
    // SAFETY: By this function's requirements.
    unsafe {
        list.write(bindings::list_head {
            next: list,
            prev: list,
        })
    };
}

/// The buddy allocator of graphics memory.
fn gpu_buddy(report: &Report, bytes: usize, half: bool) -> Result {
    let buddy = KBox::new(Opaque::<bindings::gpu_buddy>::zeroed(), GFP_KERNEL)?;
    let lists = KBox::new(
        [const { Opaque::<bindings::list_head>::uninit() }; 2],
        GFP_KERNEL,
    )?;
    // SAFETY: Zeroed, and not moved until the end of this function.
    if unsafe { bindings::gpu_buddy_init(buddy.get(), RANGE as u64, PAGE as u64) } != 0 {
        return Err(ENOMEM);
    }
    let [list, kept] = [lists[0].get(), lists[1].get()];
    for list in [list, kept] {
        // SAFETY: Not moved until the end of this function.
        unsafe { empty_list(list) };
    }
    // SAFETY: Both live until the end of this function, and nobody else uses them.
    let take = |list| unsafe {
        bindings::gpu_buddy_alloc_blocks(
            buddy.get(),
            0,
            RANGE as u64,
            bytes as u64,
            bytes as u64,
            list,
            0,
        ) == 0
    };
    // SAFETY: As above.
    let give = |list| unsafe { bindings::gpu_buddy_free_list(buddy.get(), list, 0) };
    if half {
        while take(kept) && take(list) {}
        give(list);
    }
    let state = if half { "half" } else { "empty" };
    report.show("gpu_buddy", state, bytes, || {
        let done = take(list);
        give(list);
        done
    });
    give(kept);
    // SAFETY: Nothing of it is in use.
    unsafe { bindings::gpu_buddy_fini(buddy.get()) };
    Ok(())
}

/// The range of [`in_pieces`], and how many requests it makes at a time: as many as there are
/// boundaries of 64 KiB.
const LARGE_RANGE: u64 = 4 << 30;
const IN_PIECES: usize = (LARGE_RANGE >> 16) as usize;

/// The contents that a block is said to have when it is given back. An allocator that knows the
/// difference does not join one with the other at once.
#[derive(Clone, Copy, PartialEq)]
enum Contents {
    Clear,
    Dirty,
}

/// An allocator, as [`in_pieces`] uses it. What it has given is in one of two lists.
trait Pieces {
    /// Takes `bytes` on a boundary of 64 KiB.
    fn take(&mut self, bytes: u64, list: usize) -> bool;
    /// Gives back all that is in a list, in the order in which it was taken.
    fn give(&mut self, list: usize, contents: Contents);
}

/// The requests of gpu_buddy's KUnit test `fragmentation_performance`, in the same order: 65 536
/// blocks of 8 KiB, each on a boundary of 64 KiB, two of four of which go back before the others;
/// then as many of 64 KiB. And again the small ones, of which every second goes back first.
/// Reports the instructions of all these, for each block that was taken.
fn in_pieces<P: Pieces>(what: &str, new: fn() -> Result<P>) -> Result {
    let show = |state: &str, taken: u64, blocks: usize| {
        pr_info!(
            "{{\"bench\": \"instructions\", \"bytes\": 8192, \"state\": \"{}\", \
             \"what\": \"{}\", \"least\": {}, \"median\": {}}}\n",
            state,
            what,
            taken / blocks as u64,
            taken / blocks as u64,
        );
    };
    let mut pieces = new()?;
    let start = clock();
    let mut done =
        (0..IN_PIECES).all(|i| pieces.take(8 << 10, usize::from(i % 4 == 1 || i % 4 == 2)));
    pieces.give(0, Contents::Clear);
    pieces.give(1, Contents::Dirty);
    done &= (0..IN_PIECES).all(|_| pieces.take(64 << 10, 0));
    pieces.give(0, Contents::Dirty);
    show("pieces", clock() - start, 2 * IN_PIECES);

    let mut pieces = new()?;
    let start = clock();
    done &= (0..IN_PIECES).all(|i| pieces.take(8 << 10, i % 2));
    pieces.give(0, Contents::Clear);
    pieces.give(1, Contents::Clear);
    show("halves", clock() - start, IN_PIECES);
    done.then_some(()).ok_or(ENOSPC)
}

/// The core, with no lock: the other has none.
struct OurPieces {
    core: Core,
    lists: [KVVec<Run>; 2],
}

impl OurPieces {
    fn new() -> Result<Self> {
        let units = LARGE_RANGE / PAGE as u64;
        let words = storage_len(0, units).map_err(|_| EINVAL)?;
        let words = KVVec::from_elem(0, words, GFP_KERNEL)?;
        Ok(Self {
            core: Buddy::new(words, Default::default(), 0, units).map_err(|_| EINVAL)?,
            lists: [
                KVVec::with_capacity(IN_PIECES, GFP_KERNEL)?,
                KVVec::with_capacity(IN_PIECES, GFP_KERNEL)?,
            ],
        })
    }
}

impl Pieces for OurPieces {
    fn take(&mut self, bytes: u64, list: usize) -> bool {
        let request = Request {
            align: Order::saturating(4),
            ..Request::new(bytes / PAGE as u64)
        };
        let run = self.core.alloc(&request);
        run.is_ok_and(|run| self.lists[list].push_within_capacity(run).is_ok())
    }

    fn give(&mut self, list: usize, _contents: Contents) {
        for run in self.lists[list].drain_all() {
            self.core.free(run);
        }
    }
}

/// Those of `gpu_buddy`.
struct GpuPieces {
    buddy: KBox<Opaque<bindings::gpu_buddy>>,
    lists: KBox<[Opaque<bindings::list_head>; 2]>,
}

impl GpuPieces {
    fn new() -> Result<Self> {
        let buddy = KBox::new(Opaque::<bindings::gpu_buddy>::zeroed(), GFP_KERNEL)?;
        let lists = KBox::new(
            [const { Opaque::<bindings::list_head>::uninit() }; 2],
            GFP_KERNEL,
        )?;
        for list in lists.iter() {
            // SAFETY: In a box of its own, which is not moved out of.
            unsafe { empty_list(list.get()) };
        }
        // SAFETY: Zeroed, and in a box of its own.
        if unsafe { bindings::gpu_buddy_init(buddy.get(), LARGE_RANGE, PAGE as u64) } != 0 {
            return Err(ENOMEM);
        }
        Ok(Self { buddy, lists })
    }
}

impl Pieces for GpuPieces {
    fn take(&mut self, bytes: u64, list: usize) -> bool {
        let list = self.lists[list].get();
        // SAFETY: Both are initialised, and used by no other task.
        unsafe {
            bindings::gpu_buddy_alloc_blocks(
                self.buddy.get(),
                0,
                LARGE_RANGE,
                bytes,
                64 << 10,
                list,
                0,
            ) == 0
        }
    }

    fn give(&mut self, list: usize, contents: Contents) {
        /// `GPU_BUDDY_CLEARED`, which is no constant for Rust.
        const CLEARED: c_uint = 1 << 4;
        let flags = match contents {
            Contents::Clear => CLEARED,
            Contents::Dirty => 0,
        };
        let list = self.lists[list].get();
        // SAFETY: As above; in the list are blocks that it has given.
        unsafe { bindings::gpu_buddy_free_list(self.buddy.get(), list, flags) };
    }
}

impl Drop for GpuPieces {
    fn drop(&mut self) {
        self.give(0, Contents::Clear);
        self.give(1, Contents::Clear);
        // SAFETY: Initialised, and nothing of it is in use.
        unsafe { bindings::gpu_buddy_fini(self.buddy.get()) };
    }
}

/// `alloc_contig_pages()` and back; none if there was none.
struct Contig(NonNull<bindings::page>, c_ulong);

impl Contig {
    fn new(pages: c_ulong) -> Option<Self> {
        let gfp = bindings::GFP_KERNEL | bindings::__GFP_NOWARN;
        // SAFETY: May be called anywhere that may sleep; node 0 is there.
        let page = unsafe { bindings::alloc_contig_pages_noprof(pages, gfp, 0, null_mut()) };
        Some(Self(NonNull::new(page)?, pages))
    }
}

impl Drop for Contig {
    fn drop(&mut self) {
        // SAFETY: Set at boot, and never changed: where the page structs are.
        let map = unsafe { bindings::vmemmap_base } as usize;
        let number = (self.0.as_ptr() as usize - map) / size_of::<bindings::page>();
        // SAFETY: Allocated in `new`.
        unsafe { bindings::free_contig_range(number as c_ulong, self.1) };
    }
}

/// The same with `cma_alloc()`, of the default area.
struct Cma(NonNull<c_void>, c_ulong);

impl Cma {
    fn new(pages: c_ulong) -> Option<Self> {
        // SAFETY: May be asked for no device.
        let area = unsafe { dev_get_cma_area(null_mut()) };
        if area.is_null() {
            return None;
        }
        // SAFETY: The default area, which is there for ever.
        let page = unsafe { cma_alloc(area, pages, pages.trailing_zeros().min(9), true) };
        Some(Self(NonNull::new(page)?, pages))
    }
}

impl Drop for Cma {
    fn drop(&mut self) {
        // SAFETY: Allocated in `new`, from that area.
        unsafe { cma_release(dev_get_cma_area(null_mut()), self.0.as_ptr(), self.1) };
    }
}

/// What takes memory from the whole system.
fn system(report: &Report, bytes: usize, device: NonNull<bindings::device>) {
    let pages = (bytes / PAGE) as c_ulong;
    let order = pages.trailing_zeros();
    report.show("alloc_pages", "system", bytes, || {
        // SAFETY: May be called anywhere that may sleep.
        let page = unsafe { bindings::alloc_pages(bindings::GFP_KERNEL, order) };
        if !page.is_null() {
            // SAFETY: Just allocated.
            unsafe { bindings::__free_pages(page, order) };
        }
        !page.is_null()
    });
    if module_parameters::contig.value() != 0 {
        report.show("alloc_contig_pages", "system", bytes, || {
            Contig::new(pages).is_some()
        });
    }
    report.show("cma_alloc", "system", bytes, || Cma::new(pages).is_some());
    report.show("dma_alloc_coherent", "system", bytes, || {
        let mut address = 0;
        let device = device.as_ptr();
        // SAFETY: The device is registered and has a mask.
        let memory = unsafe {
            bindings::dma_alloc_attrs(device, bytes, &mut address, bindings::GFP_KERNEL, 0)
        };
        if !memory.is_null() {
            // SAFETY: Just allocated.
            unsafe { bindings::dma_free_attrs(device, bytes, memory, address, 0) };
        }
        !memory.is_null()
    });
}

/// Requests in each row of [`tail`], if there is time for as many.
const REQUESTS: usize = 10_000;

/// One request after the other, for at most `seconds`: how many were served, and in what time.
fn tail<T>(what: &str, bytes: usize, seconds: u32, take: impl Fn(c_ulong) -> Option<T>) -> Result {
    let mut samples = KVVec::with_capacity(REQUESTS, GFP_KERNEL)?;
    let begin = Instant::<Monotonic>::now();
    let mut served = 0;
    while samples.len() < REQUESTS && begin.elapsed().as_millis() < i64::from(seconds) * 1000 {
        let start = Instant::<Monotonic>::now();
        let got = take((bytes / PAGE) as c_ulong);
        samples.push(start.elapsed().as_nanos(), GFP_KERNEL)?;
        served += usize::from(got.is_some());
        drop(got);
        // The others, whose memory this is, go on meanwhile.
        fsleep(Delta::from_micros(50));
    }
    samples.sort_unstable();
    let part = |of: usize| {
        let at = (samples.len() * of).div_ceil(10_000).saturating_sub(1);
        samples.get(at).copied().unwrap_or(0)
    };
    pr_info!(
        "{{\"bench\": \"tail\", \"what\": \"{}\", \"bytes\": {}, \"requests\": {}, \
         \"served\": {}, \"p50_ns\": {}, \"p99_ns\": {}, \"p99.99_ns\": {}, \"max_ns\": {}}}\n",
        what,
        bytes,
        samples.len(),
        served,
        part(5_000),
        part(9_900),
        part(9_999),
        part(10_000),
    );
    Ok(())
}

struct Bench;

impl kernel::Module for Bench {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        let seconds = module_parameters::tail_seconds.value();
        if seconds > 0 {
            for bytes in [64 << 10, 2 << 20, 16 << 20] {
                tail("cma_alloc", bytes, seconds, Cma::new)?;
                tail("alloc_contig_pages", bytes, seconds, Contig::new)?;
            }
            return Ok(Self);
        }
        // SAFETY: The name is a string, and no callbacks are wanted.
        let faux = unsafe {
            bindings::faux_device_create(c"rust_buddy_bench".as_char_ptr(), null_mut(), null())
        };
        let faux = NonNull::new(faux).ok_or(ENODEV)?;
        // SAFETY: Registered, and nobody else's.
        let device = unsafe { &raw mut (*faux.as_ptr()).dev };
        // SAFETY: As above; all that is looked at are the two masks.
        unsafe {
            (*device).coherent_dma_mask = u64::MAX;
            (*device).dma_mask = &raw mut (*device).coherent_dma_mask;
        }
        let idle = measure(|| true).map_or(0, |(least, _)| least);
        let report = Report { idle };
        // What the clock makes of a thousand instructions: a thousand, if it counts them.
        report.show("nop", "1000", 0, || {
            // SAFETY: Does nothing.
            unsafe { core::arch::asm!(".rept 1000", "nop", ".endr") };
            true
        });
        let result = SIZES.into_iter().try_for_each(|bytes| {
            for half in [false, true] {
                ours(&report, bytes, half)?;
                gen_pool(&report, bytes, half)?;
                gpu_buddy(&report, bytes, half)?;
            }
            system(&report, bytes, NonNull::new(device).ok_or(ENODEV)?);
            Ok(())
        });
        let result = result
            .and_then(|()| in_pieces("core", OurPieces::new))
            .and_then(|()| in_pieces("gpu_buddy", GpuPieces::new));
        // SAFETY: Created above.
        unsafe { bindings::faux_device_destroy(faux.as_ptr()) };
        result.map(|()| Self)
    }
}
