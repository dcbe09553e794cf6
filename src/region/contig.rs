// SPDX-License-Identifier: GPL-2.0

//! Memory from the page allocator, which moves others out of the way for it: needs no preparation
//! at boot, and succeeds the surer the earlier it is asked.
//!
//! The kernel's own search (`alloc_contig_pages()`) tries only places that are aligned to the whole
//! size, from the lowest on, and takes each in one go. One page that can't be moved in each such
//! place fails it on an empty machine, and a try that fails late has cleared all before. So this
//! looks at each pageblock, picks the stretch with the fewest pages in use, and takes that in
//! chunks, the fullest first, since these are the ones that fail. A chunk that fails is halved
//! until the pageblock is found that fails; the next stretch does without it.
//!
//! `alloc_contig_range()` reads the memory map of the first and of the last pageblock before it
//! checks anything. So no memory may go offline from the look at a pageblock to the call.

use super::{
    online::Online,
    Region,
    RegionSpec, //
    SpanOwner,
};
use crate::memtype::MemType;
use crate::mm::{
    self,
    Content,
    KernelZone, //
    Pfn,
};
use kernel::{
    bindings,
    page::Page,
    prelude::*,
    time::{
        delay::fsleep,
        Delta, //
    }, //
};

/// ContigPages in a pageblock, the unit in which the kernel isolates memory.
const BLOCK: u64 = mm::PAGEBLOCK;
/// Pageblocks in the largest chunk: 64 MiB.
const CHUNK: usize = 32;
/// Pageblocks between two chances for others to run: some milliseconds.
const BREATH: usize = 4096;

/// # Invariants
///
/// `pages` pages from `first` on came from `alloc_contig_range()`, with one reference each, and
/// were not given back.
pub(super) struct ContigPages {
    first: Pfn,
    pages: u64,
}

pub(super) fn alloc(spec: &RegionSpec) -> Result<Region> {
    let mut stats = SearchStats::default();
    let pages = search(spec, &mut stats).inspect_err(|&error| {
        if error == EINTR {
            pr_err!("killed while looking for memory\n");
        } else {
            pr_err!(
                "no {} MiB of contiguous free memory ({} places tried, {} chunks failed): load \
                 earlier, boot with cma={}M (twice the pool) and source=cma, or take a smaller \
                 size_mb=\n",
                spec.mib(),
                stats.places,
                stats.failed,
                2 * spec.mib(),
            );
        }
    })?;
    pr_info!(
        "about {} pages moved or reclaimed, {} places tried, {} chunks failed\n",
        stats.moved,
        stats.places,
        stats.failed,
    );
    let first = pages.first;
    // INVARIANT: The pages are RAM of ours; all of RAM is in the direct map, cached.
    Ok(Region {
        base: first,
        pages: spec.pages,
        // SAFETY: The pages came from the page allocator, so the memory map covers them.
        node: Some(unsafe { mm::node_of(first) }),
        memtype: MemType::WriteBack,
        // SAFETY: The pages came from the page allocator, so they are RAM that it manages.
        mapping: unsafe { first.direct_map() }?,
        backing: SpanOwner::Contig(pages),
    })
}

/// What it took to get the memory, for the log.
#[derive(Default)]
struct SearchStats {
    /// ContigPages in use in the stretch that was taken.
    moved: u64,
    /// Stretches that were tried.
    places: u64,
    /// Calls of the kernel that failed.
    failed: u64,
}

/// Finds and takes the stretch with the fewest pages in use.
///
/// Prefers the node that the kernel would choose for one page, unless it would have to move more
/// than an eighth of the pages there.
///
/// # Errors
///
/// `ENOMEM` if there is none, `EINTR` if the caller is killed. Nothing is taken then.
fn search(spec: &RegionSpec, stats: &mut SearchStats) -> Result<ContigPages> {
    // A place that is as good as any is not worth looking further for.
    let good = spec.pages / 8;
    let home = match spec.node {
        Some(node) => node,
        None => Page::alloc_page(GFP_KERNEL)?.nid(),
    };
    let others = (0..mm::MAX_NODES)
        .filter(|&node| spec.node.is_none() && node != home && mm::is_memory_node(node));
    // Before the first look: see `Map`.
    let online = Online::hold()?;
    let mut maps = KVec::new();
    for node in Iterator::chain(core::iter::once(home), others) {
        for zone in KernelZone::of_node(node) {
            let mut map = Map::new(zone, spec.pages, &online)?;
            while let Some(range) = map.best.filter(|range| range.used <= good) {
                if let Some(pages) = map.try_alloc(range, stats)? {
                    return Ok(pages);
                }
            }
            if map.best.is_some() {
                maps.push(map, GFP_KERNEL)?;
            }
        }
    }
    // None was good: the best of all of them, as often as there is one.
    loop {
        let best = maps
            .iter_mut()
            .filter(|map| map.best.is_some())
            .min_by_key(|map| map.best.map_or(u64::MAX, |range| range.used))
            .ok_or(ENOMEM)?;
        let range = best.best.ok_or(ENOMEM)?;
        if let Some(pages) = best.try_alloc(range, stats)? {
            return Ok(pages);
        }
    }
}

/// A pageblock that can't be part of any stretch.
const UNFIT: u16 = u16::MAX;

/// What is in a zone, pageblock by pageblock.
///
/// # Invariants
///
/// Each pageblock in `blocks` that is not [`UNFIT`] was online and not isolated when it was looked
/// at, which was after `_online` was taken. So it is online.
struct Map<'a> {
    _online: &'a Online,
    zone: KernelZone,
    /// Index of the first pageblock that lies wholly in the zone: its first frame by [`BLOCK`].
    first: u64,
    /// ContigPages in use of each that was looked at, from the first on, or [`UNFIT`].
    blocks: KVVec<u16>,
    /// Pageblocks that there are to look at.
    count: usize,
    /// The frame up to which free blocks of the kernel reach that were seen.
    known_free: Pfn,
    /// ContigPages of the region.
    pages: u64,
    /// The stretch to try next.
    best: Option<BlockRange>,
}

/// A stretch of pageblocks.
#[derive(Clone, Copy)]
struct BlockRange {
    /// Index in the map.
    at: usize,
    /// ContigPages in use.
    used: u64,
}

/// A part of a stretch: pageblocks by their index in the map.
#[derive(Clone, Copy)]
struct Chunk {
    at: usize,
    blocks: usize,
    used: u64,
}

impl<'a> Map<'a> {
    /// Looks at a zone.
    fn new(zone: KernelZone, pages: u64, online: &'a Online) -> Result<Self> {
        let span = zone.span();
        // A pageblock that begins before its zone is left alone, and one that ends after it.
        let first = span.start.0.div_ceil(BLOCK);
        let count = (span.end.0 / BLOCK).saturating_sub(first) as usize;
        // INVARIANT: No pageblock was looked at yet.
        let mut map = Self {
            _online: online,
            zone,
            first,
            blocks: KVVec::with_capacity(count, GFP_KERNEL)?,
            count,
            known_free: Pfn(0),
            pages,
            best: None,
        };
        if count >= map.wanted_blocks() {
            map.look_on()?;
        }
        Ok(map)
    }

    /// Looks at the rest of the zone, or until a stretch is found that is free and aligned, and
    /// chooses a stretch to try.
    ///
    /// What it finds is a hint, since the zone is in use: the kernel checks when it takes.
    ///
    /// # Errors
    ///
    /// `EINTR` if the caller is killed.
    fn look_on(&mut self) -> Result {
        let wanted = self.wanted_blocks();
        let alignment = self.natural_alignment();
        let mut free = 0;
        for index in self.blocks.len()..self.count {
            // INVARIANT: `look()` finds unfit all that is not online, or is isolated.
            let used = self.look(index);
            self.blocks.push(used, GFP_KERNEL)?;
            free = if used == 0 { free + 1 } else { 0 };
            if free >= wanted && self.alignment_of(index + 1 - wanted) >= alignment {
                break;
            }
            if index % BREATH == BREATH - 1 {
                if mm::being_killed() {
                    return Err(EINTR);
                }
                fsleep(Delta::from_micros(1));
            }
        }
        self.choose();
        Ok(())
    }

    /// Gives a zone up.
    fn give_up(&mut self) {
        self.count = 0;
        self.best = None;
    }

    /// Returns how many pageblocks hold what is wanted.
    fn wanted_blocks(&self) -> usize {
        self.pages.div_ceil(BLOCK) as usize
    }

    /// Returns the first frame of a pageblock.
    fn frame(&self, index: usize) -> Pfn {
        Pfn((self.first + index as u64) * BLOCK)
    }

    /// Returns the alignment of a pageblock's address, as a power of two of pageblocks.
    fn alignment_of(&self, index: usize) -> u32 {
        (self.first + index as u64).trailing_zeros()
    }

    /// Returns the alignment from which on the largest block fits.
    fn natural_alignment(&self) -> u32 {
        self.wanted_blocks().checked_ilog2().unwrap_or(0)
    }

    /// Counts the pages in use of a pageblock.
    fn look(&mut self, index: usize) -> u16 {
        let mut frame = self.frame(index);
        let end = frame.plus(BLOCK);
        if !self.zone.isolates(frame) {
            return UNFIT;
        }
        let mut used = 0;
        while frame < end {
            if frame < self.known_free {
                frame = self.known_free.min(end);
                continue;
            }
            match self.zone.content(frame) {
                Content::Free(pages) => self.known_free = frame.plus(pages),
                Content::Movable(pages) => {
                    let pages = pages.min(end.0 - frame.0);
                    // CAST: At most the pages of a pageblock.
                    used += pages as u16;
                    frame = frame.plus(pages);
                }
                Content::Unmovable => return UNFIT,
            }
        }
        used
    }

    /// Chooses the stretch to try next: the best aligned of those with about the fewest pages in
    /// use.
    fn choose(&mut self) {
        /// Larger alignments than this make no difference.
        const LEVELS: usize = 32;

        let wanted = self.wanted_blocks();
        let natural = self.natural_alignment() as usize;
        let mut best = [None::<BlockRange>; LEVELS];
        let (mut used, mut unfit) = (0u64, 0usize);
        for (index, &block) in self.blocks.iter().enumerate() {
            let mut count = |block: u16, sign: i64| {
                if block == UNFIT {
                    unfit = unfit.wrapping_add_signed(sign as isize);
                } else {
                    used = used.wrapping_add_signed(sign * i64::from(block));
                }
            };
            count(block, 1);
            if let Some(&gone) = index.checked_sub(wanted).and_then(|at| self.blocks.get(at)) {
                count(gone, -1);
            }
            let Some(at) = (index + 1).checked_sub(wanted).filter(|_| unfit == 0) else {
                continue;
            };
            let level = (self.alignment_of(at) as usize).min(natural);
            for best in best.iter_mut().take(level + 1) {
                if best.is_none_or(|best| used < best.used) {
                    *best = Some(BlockRange { at, used });
                }
            }
        }
        // Alignment is worth moving a few pages more.
        let slack = self.pages / 32;
        let least = best[0].map_or(0, |range| range.used);
        self.best = best
            .into_iter()
            .rev()
            .flatten()
            .find(|range| range.used <= least + slack);
    }

    /// Takes a stretch, or returns `None` and chooses the next one.
    ///
    /// # Errors
    ///
    /// `EINTR` if the caller is killed, `ENOMEM` without memory for lists. Nothing is taken then.
    fn try_alloc(
        &mut self,
        range: BlockRange,
        stats: &mut SearchStats,
    ) -> Result<Option<ContigPages>> {
        stats.places += 1;
        let first = self.frame(range.at);
        let end = first.plus(self.pages);
        let mut left = KVec::new();
        for at in (0..self.wanted_blocks()).step_by(CHUNK) {
            let blocks = CHUNK.min(self.wanted_blocks() - at);
            left.push(self.chunk(range.at + at, blocks), GFP_KERNEL)?;
        }
        let mut taken = TakenChunks(KVec::new());
        while let Some(chunk) = fullest(&mut left) {
            if mm::being_killed() {
                return Err(EINTR);
            }
            let start = self.frame(chunk.at);
            let pages = (chunk.blocks as u64 * BLOCK).min(end.0 - start.0);
            if !self.zone.can_spare(pages.saturating_sub(chunk.used)) {
                self.give_up();
                return Ok(None);
            }
            // SAFETY: `choose()` has put no unfit pageblock in the stretch. So all of the chunk is
            // in this zone, and stays online, by the type invariants.
            match unsafe { ContigPages::new(start, pages) } {
                Ok(pages) => taken.0.push(pages, GFP_KERNEL)?,
                Err(error) if error == EINTR => return Err(error),
                // There is no room to move anything to.
                Err(error) if error == ENOMEM => {
                    stats.failed += 1;
                    self.give_up();
                    return Ok(None);
                }
                Err(_) if chunk.blocks == 1 => {
                    stats.failed += 1;
                    if let Some(block) = self.blocks.get_mut(chunk.at) {
                        *block = UNFIT;
                    }
                    drop(taken);
                    self.look_on()?;
                    return Ok(None);
                }
                Err(_) => {
                    stats.failed += 1;
                    let half = chunk.blocks / 2;
                    left.push(self.chunk(chunk.at + half, chunk.blocks - half), GFP_KERNEL)?;
                    left.push(self.chunk(chunk.at, half), GFP_KERNEL)?;
                }
            }
        }
        stats.moved = range.used;
        Ok(Some(taken.join(first, self.pages)))
    }

    /// Makes a chunk of pageblocks of a stretch.
    fn chunk(&self, at: usize, blocks: usize) -> Chunk {
        let used = self.blocks.iter().skip(at).take(blocks);
        Chunk {
            at,
            blocks,
            used: used.map(|&block| u64::from(block)).sum(),
        }
    }
}

/// Takes the chunk with the most pages in use out of a list.
fn fullest(chunks: &mut KVec<Chunk>) -> Option<Chunk> {
    let (at, _) = (0..).zip(&*chunks).max_by_key(|(_, chunk)| chunk.used)?;
    let last = chunks.len().checked_sub(1)?;
    chunks.swap(at, last);
    chunks.pop()
}

/// The chunks of a stretch that were allocated; they are freed when this is dropped.
struct TakenChunks(KVec<ContigPages>);

impl TakenChunks {
    /// Makes one of them, which are all of the `pages` pages from `first` on.
    fn join(self, first: Pfn, pages: u64) -> ContigPages {
        for part in self.0 {
            core::mem::forget(part);
        }
        // INVARIANT: `try_alloc()` has allocated each chunk of the stretch, once, and none of them
        // is given back above.
        ContigPages { first, pages }
    }
}

impl ContigPages {
    /// Takes exactly these pages, after moving what is in them elsewhere.
    ///
    /// # Safety
    ///
    /// All pageblocks that the pages are in must be in one zone, be online, and stay so during the
    /// call.
    unsafe fn new(first: Pfn, pages: u64) -> Result<Self> {
        let gfp = bindings::GFP_KERNEL | bindings::__GFP_NOWARN | mm::GFP_RETRY_MAYFAIL;
        // SAFETY: By this function's requirements, the memory map covers the range, and its first
        // page has the zone of all of it.
        let error = unsafe {
            bindings::alloc_contig_range_noprof(
                first.raw(),
                first.plus(pages).raw(),
                mm::ACR_FLAGS_NONE,
                gfp,
            )
        };
        kernel::error::to_result(error)?;
        // INVARIANT: Just allocated, and not given to anybody.
        Ok(Self { first, pages })
    }
}

impl Drop for ContigPages {
    fn drop(&mut self) {
        // SAFETY: By the type invariants; whoever drops a region has no users of its pages left.
        unsafe { bindings::free_contig_range(self.first.raw(), Pfn(self.pages).raw()) };
    }
}
