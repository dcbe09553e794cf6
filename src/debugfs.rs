// SPDX-License-Identifier: GPL-2.0

//! The module's files in debugfs, below `/sys/kernel/debug/rust_buddy/`.
//!
//! Files of a pool are in `poolN/`. No file shows a physical address.

use crate::buddy::{
    Order,
    PMD_ORDER, //
};
use crate::debug_file::{
    Act,
    File,
    Folder, //
};
use crate::device::{
    self,
    DeviceContext, //
};
use crate::memtype::MemType;
use crate::mm;
use crate::pool::Pool;
use crate::quota::UserAccounts;
use crate::sums::fragmentation;
use kernel::{
    fmt,
    prelude::*,
    str::CString,
    sync::Arc, //
};

/// Characters in a line of `map` and of `pageblocks`.
const COLUMNS: u64 = 64;
/// The largest number of lines of `map`.
const LINES: u64 = 16;

/// All files of the module. Dropping this removes them.
pub(crate) struct Files {
    pool: KVec<File<Pool>>,
    reserved: File<DeviceContext>,
    users: File<UserAccounts>,
}

impl Files {
    /// Makes the files, which debugfs does not show yet.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new(
        pool: Arc<Pool>,
        context: Arc<DeviceContext>,
        users: Arc<UserAccounts>,
    ) -> Result<Self> {
        let root = Folder::new(c"rust_buddy", None)?;
        let name = CString::try_from_fmt(fmt!("pool{}", pool.id()))?;
        let folder = Folder::new(&name, Some(root.clone()))?;
        let acts = [
            (c"status", Act::Show(status)),
            (c"free_blocks", Act::Show(free_blocks)),
            (c"map", Act::Show(map)),
            (c"pageblocks", Act::Show(pageblocks)),
            (c"memtype", Act::Show(memtype)),
            (c"memtype_mapped", Act::Show(memtype_mapped)),
            #[cfg(rust_buddy_audit)]
            (c"audit", Act::Show(crate::audit::show)),
            (
                c"release_quarantine",
                Act::Trigger(Pool::release_quarantine),
            ),
        ];
        let mut files = KVec::with_capacity(acts.len(), GFP_KERNEL)?;
        for (name, act) in acts {
            files.push(File::new(&folder, name, pool.clone(), act)?, GFP_KERNEL)?;
        }
        Ok(Self {
            pool: files,
            // The ranges of RESERVE_PERSIST, which outlive the file that reserved them.
            reserved: File::new(
                &root,
                c"reserved",
                context,
                Act::Show(DeviceContext::show_reserved),
            )?,
            // All users with clients or memory.
            users: File::new(&root, c"users", users, Act::Show(UserAccounts::show))?,
        })
    }

    /// Shows all files. No later step of the module's init may fail.
    pub(crate) fn shown(mut self) -> Self {
        self.pool.iter_mut().for_each(File::show);
        self.reserved.show();
        self.users.show();
        self
    }
}

/// Prints lines of `key: value`.
fn status(pool: &Pool, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let now = pool.snapshot();
    writeln!(f, "source: {}", pool.region().source_name())?;
    writeln!(f, "node: {}", pool.region().node().unwrap_or(-1))?;
    writeln!(f, "size: {}", pool.size())?;
    writeln!(f, "free: {}", now.free)?;
    writeln!(f, "requested: {}", now.requested)?;
    writeln!(f, "granted: {}", now.granted)?;
    let lost = fragmentation(now.requested, now.granted);
    writeln!(
        f,
        "internal_frag: {} {}.{:02} %",
        now.granted.saturating_sub(now.requested),
        lost / 100,
        lost % 100
    )?;
    writeln!(f, "unusable_index: {}", now.unusable)?;
    writeln!(f, "largest_free: {}", now.largest_free)?;
    writeln!(f, "buffers: {}", now.blocks)?;
    writeln!(f, "quarantined: {}", now.quarantined)?;
    writeln!(f, "deferred: {}", now.deferred)?;
    writeln!(f, "reserved: {}", now.reserved)?;
    writeln!(f, "hwpoisoned: {}", pool.bad())?;
    let [min, low, high] = pool.watermarks();
    writeln!(f, "watermarks: {min} {low} {high}")?;
    writeln!(f, "pressure: {}", u32::from(now.pressure))?;
    let [migrations, migrated, ..] = pool.counts().all();
    writeln!(f, "migrations: {migrations} {migrated}")?;
    let [direct, background, copied, unmovable, no_space, copy_limit, contended] =
        pool.counts().all_reclaims();
    writeln!(f, "compact_direct: {direct}")?;
    writeln!(f, "compact_background: {background}")?;
    writeln!(f, "compact_copied: {copied}")?;
    writeln!(
        f,
        "compact_fail: {unmovable} {no_space} {copy_limit} {contended}"
    )?;
    let [no_space, watermark, last_large_block] = pool.counts().all_refused();
    writeln!(f, "alloc_fail: {no_space} {watermark} {last_large_block}")?;
    writeln!(f, "splits: {}", now.counters.splits)?;
    writeln!(f, "merges: {}", now.counters.joins)
}

/// Prints a line `order bytes count` for each order.
fn free_blocks(pool: &Pool, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let now = pool.snapshot();
    let orders = Order::default().to(pool.max_order());
    for (order, count) in orders.zip(now.counters.free_blocks) {
        writeln!(
            f,
            "{} {} {}",
            order.get(),
            order.units() * mm::PAGE_SIZE,
            count
        )?;
    }
    Ok(())
}

/// Prints the effective memory types in the kernel's page table.
///
/// There is a line `place bytes memtype pat_index` for each range of pages that are not write-back.
/// The place counts from the pool's start.
fn memtype(pool: &Pool, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let region = pool.region();
    let mut run = None;
    let mut at = 0;
    while at < region.pages() {
        let page = region.base().plus(at);
        let entry = region.entry_of(page);
        if let Some((start, pat_index, name)) = run {
            if entry.map(|entry| entry.pat_index) != Some(pat_index) {
                show_run(f, start, at, name, pat_index)?;
                run = None;
            }
        }
        let uncached = entry.filter(|entry| entry.memtype() != Some(MemType::WriteBack));
        run = run.or(uncached.map(|entry| (at, entry.pat_index, entry.memtype_name())));
        // Continue at the end of the entry: `page` may be in the middle of a large one.
        let left = entry.map_or(1, |entry| entry.pages - page.0 % entry.pages);
        at += left.min(region.pages() - at);
    }
    if let Some((start, pat_index, name)) = run {
        show_run(f, start, at, name, pat_index)?;
    }
    Ok(())
}

/// Prints a line of `memtype` for the pages `[from, to)` of the pool.
fn show_run(
    f: &mut fmt::Formatter<'_>,
    from: u64,
    to: u64,
    name: &str,
    pat_index: u8,
) -> fmt::Result {
    writeln!(
        f,
        "{} {} {} {}",
        from * mm::PAGE_SIZE,
        (to - from) * mm::PAGE_SIZE,
        name,
        pat_index
    )
}

/// Prints the memory types of the reader's own mappings: `address bytes memtype pat_index`.
fn memtype_mapped(_pool: &Pool, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    device::show_memtypes(f)
}

/// Prints a picture of the pool, in which each character is an equal share of it.
///
/// A character is `.` for free, `#` for used, or the number of tenths that are used. The pool's
/// lock is held for a part of a share at a time, so the characters are not of one moment.
fn map(pool: &Pool, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let units = pool.size() / mm::PAGE_SIZE;
    let cell = units.div_ceil(COLUMNS * LINES);
    let mut at = 0;
    while at < units {
        let end = (at + cell).min(units);
        let used = (end - at) - pool.free_units_in(at, end).min(end - at);
        let mark = match used {
            0 => '.',
            _ if used == end - at => '#',
            // `.` and `#` are reserved for none and all, so the tenths are 1 to 9.
            _ => char::from_digit((used * 10 / (end - at)).clamp(1, 9) as u32, 10).unwrap_or('?'),
        };
        write!(f, "{mark}")?;
        at = end;
        if at == units || at / cell % COLUMNS == 0 {
            writeln!(f)?;
        }
    }
    Ok(())
}

/// Prints a picture of the pool, in which each character is a pageblock.
///
/// A free pageblock is `.`. One with movable pages is the number of tenths that they use, or `#` if
/// they use all of it. One with unmovable pages is `p`, and one that is being evacuated is `*`.
/// `watch -n 0.1 cat` shows a compaction at work.
fn pageblocks(pool: &Pool, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    const PAGES: u32 = 1 << PMD_ORDER.get();

    let base = pool.region().base().0;
    let isolated = pool.isolated_range().map(|(lo, hi)| (base + lo, base + hi));
    let (first, end) = pool.pageblocks();
    for number in first..end {
        let (unmovable, movable) = pool.pageblock_usage(number);
        let start = number * u64::from(PAGES);
        let is_isolated =
            isolated.is_some_and(|(lo, hi)| lo < start + u64::from(PAGES) && hi > start);
        let mark = match (unmovable, movable) {
            _ if is_isolated => '*',
            (0, 0) => '.',
            (0, PAGES) => '#',
            (0, _) => char::from_digit((movable * 10 / PAGES).clamp(1, 9), 10).unwrap_or('?'),
            _ => 'p',
        };
        write!(f, "{mark}")?;
        if (number - first + 1) % COLUMNS == 0 || number + 1 == end {
            writeln!(f)?;
        }
    }
    Ok(())
}
