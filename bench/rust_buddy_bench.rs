// SPDX-License-Identifier: GPL-2.0

//! Measures an allocation and its free in the kernel: the allocator's core under a spinlock, and
//! the kernel's own allocators. Loading the module runs the benchmark, which logs a line of JSON
//! for each result.
//!
//! The clock is the CPU's time stamp counter. Under QEMU's instruction clock (`-icount shift=0`) it
//! counts instructions, the same number in every boot. On a real machine it counts time, which
//! varies.
//!
//! Each result is the minimum and the median of many pairs, without the cost of reading the clock.
//! The allocators that manage a range of their own (`core`, `gen_pool`, `gpu_buddy`) have 64 MiB
//! each. They are measured once empty, where a small block is the longest chain of splits and
//! joins. A second row has every second block of the size allocated. `gpu_buddy` leaves locking to
//! its caller, and gets none here.

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
/// Size and nominal address of the ranges. The memory is never accessed.
const RANGE: usize = 64 << 20;
const BASE: usize = 256 << 20;
const SIZES: [usize; 3] = [PAGE, 64 << 10, 2 << 20];
const SAMPLES: usize = 201;

type Core = Buddy<KVVec<u64>>;
type Slots = KVVec<Option<Packed>>;

/// The core and the depot behind the magazines.
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

/// Reads the time stamp counter after all previous instructions have completed.
fn clock() -> u64 {
    // SAFETY: Every x86-64 CPU has the instructions LFENCE and RDTSC, which access no memory.
    unsafe {
        core::arch::x86_64::_mm_lfence();
        core::arch::x86_64::_rdtsc()
    }
}

/// Returns minimum and median of the durations of `pair`, or `None` if it fails.
fn measure(mut pair: impl FnMut() -> bool) -> Option<(u64, u64)> {
    let mut samples = [0; SAMPLES];
    // The first round warms up, and is overwritten.
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
    /// The cost of reading the clock.
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

/// Measures the core as a pool uses it: with a lock around each call.
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
    // The share of the lock in the following results.
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

/// Measures the core behind magazines, as a pool has them.
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

/// Measures the kernel's general purpose allocator for special memory.
fn gen_pool(report: &Report, bytes: usize, half: bool) -> Result {
    let algorithm = gen_pool_first_fit as *const c_void;
    // SAFETY: The function has no requirements. Null is handled below.
    let pool = unsafe { gen_pool_create(12, -1) };
    if pool.is_null() {
        return Err(ENOMEM);
    }
    // SAFETY: `pool` is valid, since it is not null. The allocator does not access the addresses.
    let added = unsafe { gen_pool_add_owner(pool, BASE as c_ulong, 0, RANGE, -1, null_mut()) };
    // SAFETY: `pool` is valid until it is destroyed at the end of this function. `algorithm` is a
    // `genpool_algo_t`, and the two null pointers are optional arguments.
    let take =
        || unsafe { gen_pool_alloc_algo_owner(pool, bytes, algorithm, null_mut(), null_mut()) };
    // SAFETY: `pool` is valid until it is destroyed. Callers pass addresses of allocated blocks of
    // this size only, and each once.
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
    // SAFETY: `pool` is valid, all of its blocks were freed above, and it is not used afterwards.
    unsafe { gen_pool_destroy(pool) };
    Ok(())
}

/// Initialises an empty list, which points to itself.
///
/// # Safety
///
/// `list` must be writable, and must not move while it is used as a list.
unsafe fn empty_list(list: *mut bindings::list_head) {
    // SAFETY: The caller guarantees that `list` is writable.
    unsafe {
        list.write(bindings::list_head {
            next: list,
            prev: list,
        })
    };
}

/// Measures the buddy allocator of graphics memory.
fn gpu_buddy(report: &Report, bytes: usize, half: bool) -> Result {
    let buddy = KBox::new(Opaque::<bindings::gpu_buddy>::zeroed(), GFP_KERNEL)?;
    let lists = KBox::new(
        [const { Opaque::<bindings::list_head>::uninit() }; 2],
        GFP_KERNEL,
    )?;
    // SAFETY: `buddy` is zeroed and boxed, so it does not move. Size and chunk size are powers of
    // two.
    if unsafe { bindings::gpu_buddy_init(buddy.get(), RANGE as u64, PAGE as u64) } != 0 {
        return Err(ENOMEM);
    }
    let [list, kept] = [lists[0].get(), lists[1].get()];
    for list in [list, kept] {
        // SAFETY: `list` points into a box that lives until the end of this function, so it is
        // writable and does not move.
        unsafe { empty_list(list) };
    }
    // SAFETY: `buddy` is initialised, `list` is an initialised list, and both live until the end of
    // this function. No other thread uses them, so no lock is needed.
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
    // SAFETY: `buddy` and `list` are initialised and used by this thread only. The list has blocks
    // of this `buddy` only.
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
    // SAFETY: `buddy` is initialised, and all of its blocks were freed above.
    unsafe { bindings::gpu_buddy_fini(buddy.get()) };
    Ok(())
}

/// The range of [`in_pieces`], and the number of its requests at a time: one for each boundary of
/// 64 KiB.
const LARGE_RANGE: u64 = 4 << 30;
const IN_PIECES: usize = (LARGE_RANGE >> 16) as usize;

/// The state that a block is freed with. An allocator that keeps the two apart does not join them
/// at once.
#[derive(Clone, Copy, PartialEq)]
enum Contents {
    Clear,
    Dirty,
}

/// The interface of an allocator for [`in_pieces`]. It keeps allocated blocks in one of two lists.
trait Pieces {
    /// Allocates `bytes` on a boundary of 64 KiB.
    fn take(&mut self, bytes: u64, list: usize) -> bool;
    /// Frees all blocks in a list, in the order of their allocation.
    fn give(&mut self, list: usize, contents: Contents);
}

/// Repeats the requests of gpu_buddy's KUnit test `fragmentation_performance` in the same order.
/// First 65 536 blocks of 8 KiB, each on a boundary of 64 KiB, of which two of four are freed
/// before the rest. Then as many of 64 KiB. Then the small ones again, of which every second one is
/// freed first. Reports the instructions of all this for each allocated block.
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

/// The core without a lock, since gpu_buddy has none here.
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

/// `gpu_buddy`, with its two lists.
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
            // SAFETY: `list` lies in a box whose content is not moved, and it is writable.
            unsafe { empty_list(list.get()) };
        }
        // SAFETY: `buddy` is zeroed and boxed, so it does not move. Size and chunk size are powers
        // of two.
        if unsafe { bindings::gpu_buddy_init(buddy.get(), LARGE_RANGE, PAGE as u64) } != 0 {
            return Err(ENOMEM);
        }
        Ok(Self { buddy, lists })
    }
}

impl Pieces for GpuPieces {
    fn take(&mut self, bytes: u64, list: usize) -> bool {
        let list = self.lists[list].get();
        // SAFETY: `buddy` and `list` are initialised. `&mut self` keeps other threads from using
        // them.
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
        /// `GPU_BUDDY_CLEARED`, for which bindgen generates no constant.
        const CLEARED: c_uint = 1 << 4;
        let flags = match contents {
            Contents::Clear => CLEARED,
            Contents::Dirty => 0,
        };
        let list = self.lists[list].get();
        // SAFETY: `buddy` and `list` are initialised, and `&mut self` keeps other threads from
        // using them. The list has blocks of this `buddy` only.
        unsafe { bindings::gpu_buddy_free_list(self.buddy.get(), list, flags) };
    }
}

impl Drop for GpuPieces {
    fn drop(&mut self) {
        self.give(0, Contents::Clear);
        self.give(1, Contents::Clear);
        // SAFETY: `buddy` is initialised, and both lists were freed above, so no block is
        // allocated.
        unsafe { bindings::gpu_buddy_fini(self.buddy.get()) };
    }
}

/// Memory from `alloc_contig_pages()`, freed when dropped.
struct Contig(NonNull<bindings::page>, c_ulong);

impl Contig {
    fn new(pages: c_ulong) -> Option<Self> {
        let gfp = bindings::GFP_KERNEL | bindings::__GFP_NOWARN;
        // SAFETY: Loading a module may sleep. Node 0 exists, and a null mask means all nodes.
        let page = unsafe { bindings::alloc_contig_pages_noprof(pages, gfp, 0, null_mut()) };
        Some(Self(NonNull::new(page)?, pages))
    }
}

impl Drop for Contig {
    fn drop(&mut self) {
        // SAFETY: `vmemmap_base`, the address of the page structs, is set at boot and never
        // changes.
        let map = unsafe { bindings::vmemmap_base } as usize;
        let number = (self.0.as_ptr() as usize - map) / size_of::<bindings::page>();
        // SAFETY: `new` allocated these pages, and they are freed only here.
        unsafe { bindings::free_contig_range(number as c_ulong, self.1) };
    }
}

/// Memory from `cma_alloc()` of the default area, freed when dropped.
struct Cma(NonNull<c_void>, c_ulong);

impl Cma {
    fn new(pages: c_ulong) -> Option<Self> {
        // SAFETY: A null device selects the default area.
        let area = unsafe { dev_get_cma_area(null_mut()) };
        if area.is_null() {
            return None;
        }
        // SAFETY: `area` is not null, and the default area is never freed. Loading a module may
        // sleep.
        let page = unsafe { cma_alloc(area, pages, pages.trailing_zeros().min(9), true) };
        Some(Self(NonNull::new(page)?, pages))
    }
}

impl Drop for Cma {
    fn drop(&mut self) {
        // SAFETY: `new` allocated these pages from the default area, and they are freed only here.
        unsafe { cma_release(dev_get_cma_area(null_mut()), self.0.as_ptr(), self.1) };
    }
}

/// Measures allocators that take memory from the whole system.
fn system(report: &Report, bytes: usize, device: NonNull<bindings::device>) {
    let pages = (bytes / PAGE) as c_ulong;
    let order = pages.trailing_zeros();
    report.show("alloc_pages", "system", bytes, || {
        // SAFETY: Loading a module may sleep, as `GFP_KERNEL` requires.
        let page = unsafe { bindings::alloc_pages(bindings::GFP_KERNEL, order) };
        if !page.is_null() {
            // SAFETY: The pages were just allocated with this order, and are not used.
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
        // SAFETY: The device is registered and has DMA masks. Loading a module may sleep.
        let memory = unsafe {
            bindings::dma_alloc_attrs(device, bytes, &mut address, bindings::GFP_KERNEL, 0)
        };
        if !memory.is_null() {
            // SAFETY: The memory was just allocated for this device with this size and address.
            unsafe { bindings::dma_free_attrs(device, bytes, memory, address, 0) };
        }
        !memory.is_null()
    });
}

/// Requests in each row of [`tail`], if time permits.
const REQUESTS: usize = 10_000;

/// Issues one request after the other, for at most `seconds`. Reports how many were served, and the
/// distribution of the durations.
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
        // The pause lets the processes run that keep memory full.
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
        // SAFETY: The name is a string that ends with NUL. A null parent and null operations are
        // allowed.
        let faux = unsafe {
            bindings::faux_device_create(c"rust_buddy_bench".as_char_ptr(), null_mut(), null())
        };
        let faux = NonNull::new(faux).ok_or(ENODEV)?;
        // SAFETY: `faux` is not null, so it points to a registered device. Only its address is
        // computed.
        let device = unsafe { &raw mut (*faux.as_ptr()).dev };
        // SAFETY: `device` is valid, and no driver is bound to it, so no other thread accesses its
        // two masks.
        unsafe {
            (*device).coherent_dma_mask = u64::MAX;
            (*device).dma_mask = &raw mut (*device).coherent_dma_mask;
        }
        let idle = measure(|| true).map_or(0, |(least, _)| least);
        let report = Report { idle };
        // Measures a thousand instructions, which shows whether the clock counts instructions.
        report.show("nop", "1000", 0, || {
            // SAFETY: The instructions have no effect.
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
        // SAFETY: `faux` was created above, and is not used afterwards.
        unsafe { bindings::faux_device_destroy(faux.as_ptr()) };
        result.map(|()| Self)
    }
}
