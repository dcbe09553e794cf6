// SPDX-License-Identifier: GPL-2.0

//! Regions from the default CMA area (`source=cma`), which the kernel reserves at boot (`cma=`).
//!
//! The area can serve an allocation even when all other memory is fragmented. It is shared with
//! other drivers, and its pages refuse long-term pins.

use super::{
    Region,
    RegionSpec, //
    SpanOwner,
};
use crate::buddy::{
    Order,
    PMD_ORDER, //
};
use crate::memtype::MemType;
use crate::mm::{
    self,
    CmaArea,
    Pfn, //
};
use core::ptr::NonNull;
use kernel::prelude::*;

/// Contiguous pages of a CMA area, which are released when this is dropped.
///
/// # Invariants
///
/// One call of [`mm::cma_alloc_pages`] on `area` returned the `pages` pages from `first` on, and
/// they have not been released.
pub(super) struct CmaPages {
    area: NonNull<CmaArea>,
    first: Pfn,
    pages: u64,
}

/// Allocates a region from the default CMA area. Sleeps.
///
/// # Errors
///
/// `ENODEV` without a CMA area, or if it is not on the node of `spec`. `ENOMEM` if the area has no
/// contiguous memory of that size. The log holds the reason and the remedy.
pub(super) fn alloc(spec: &RegionSpec) -> Result<Region> {
    let Some(area) = mm::default_cma_area() else {
        pr_err!(
            "the kernel has no CMA area: boot with cma={}M (twice the pool), or load with \
             source=contig\n",
            2 * spec.mib(),
        );
        return Err(ENODEV);
    };
    // Better alignment allows larger blocks. So this tries the alignment of the whole size, then
    // 2 MiB, then one page.
    let whole = Order::covering(spec.pages).map_or(0, Order::get);
    let first = [whole, whole.min(PMD_ORDER.get()), 0]
        .into_iter()
        .find_map(|align| mm::cma_alloc_pages(area, spec.pages, align));
    let Some(first) = first else {
        pr_err!(
            "the CMA area has no {} MiB in one piece: boot with cma={}M (twice the pool), or take \
             a smaller size_mb=\n",
            spec.mib(),
            2 * spec.mib(),
        );
        return Err(ENOMEM);
    };
    // INVARIANT: `cma_alloc_pages` has just returned these pages, and nothing has released them.
    let backing = CmaPages {
        area,
        first,
        pages: spec.pages,
    };
    // SAFETY: CMA areas consist of RAM that the kernel manages, so the memory map covers `first`.
    let node = unsafe { mm::node_of(first) };
    if let Some(wanted) = spec.node.filter(|&wanted| wanted != node) {
        pr_err!(
            "the CMA area is on node {}, not on node {}: load with source=contig, or without \
             node=\n",
            node,
            wanted,
        );
        return Err(ENODEV);
    }
    // INVARIANT: `backing` owns the pages. They are RAM, which the direct map maps write-back.
    Ok(Region {
        base: first,
        pages: spec.pages,
        node: Some(node),
        memtype: MemType::WriteBack,
        // SAFETY: CMA areas consist of RAM that the kernel manages.
        mapping: unsafe { first.direct_map() }?,
        backing: SpanOwner::Cma(backing),
    })
}

impl Drop for CmaPages {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, one `cma_alloc_pages` on `area` returned these pages. The
        // owner of a region drops it only when its pages have no users.
        unsafe { mm::cma_release_pages(self.area, self.first, self.pages) };
    }
}
