// SPDX-License-Identifier: GPL-2.0

//! Memory from the default CMA area, which was set aside at boot (`cma=`): there even when the rest
//! is fragmented, shared with other drivers, and its pages can't be pinned for long.

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

/// # Invariants
///
/// `pages` pages from `first` on came from `area` in one piece and were not given back.
pub(super) struct CmaPages {
    area: NonNull<CmaArea>,
    first: Pfn,
    pages: u64,
}

pub(super) fn alloc(spec: &RegionSpec) -> Result<Region> {
    let Some(area) = mm::default_cma_area() else {
        pr_err!(
            "the kernel has no CMA area: boot with cma={}M (twice the pool), or load with \
             source=contig\n",
            2 * spec.mib(),
        );
        return Err(ENODEV);
    };
    // The better aligned, the larger the blocks; better a badly aligned pool than none,
    // but it should start on a boundary of 2 MiB at least.
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
    // INVARIANT: Just allocated, and not given to anybody.
    let backing = CmaPages {
        area,
        first,
        pages: spec.pages,
    };
    // SAFETY: CMA areas consist of RAM with a memory map.
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
    // INVARIANT: The pages are RAM of ours; all of RAM is in the direct map, cached.
    Ok(Region {
        base: first,
        pages: spec.pages,
        node: Some(node),
        memtype: MemType::WriteBack,
        // SAFETY: As above.
        mapping: unsafe { first.direct_map() }?,
        backing: SpanOwner::Cma(backing),
    })
}

impl Drop for CmaPages {
    fn drop(&mut self) {
        // SAFETY: By the type invariants; whoever drops a region has no users of its pages left.
        unsafe { mm::cma_release_pages(self.area, self.first, self.pages) };
    }
}
