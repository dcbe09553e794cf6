// SPDX-License-Identifier: GPL-2.0

//! Memory from the page allocator, which moves others out of the way for it: needs no preparation
//! at boot, and succeeds the surer the earlier it is asked.

use super::{
    Backing,
    Region,
    Wanted, //
};
use crate::cache::Mode;
use crate::mm::{
    self,
    Pfn, //
};
use core::ptr::NonNull;
use kernel::{
    bindings,
    page::Page,
    prelude::*, //
};

/// # Invariants
///
/// `pages` pages from `first` on came from `alloc_contig_pages()` and were not given back.
pub(super) struct Pages {
    first: Pfn,
    pages: u64,
}

pub(super) fn take(wanted: &Wanted) -> Result<Region> {
    let mut gfp = bindings::GFP_KERNEL | bindings::__GFP_NOWARN | mm::GFP_RETRY_MAYFAIL;
    let node = match wanted.node {
        Some(node) => {
            gfp |= mm::GFP_THISNODE;
            node
        }
        // Where the kernel would put a page of ours, and from there on as it sees fit.
        None => Page::alloc_page(GFP_KERNEL)?.nid(),
    };
    // SAFETY: `node` is online: the parameter was checked, or a page came from it.
    let page = unsafe {
        bindings::alloc_contig_pages_noprof(
            Pfn(wanted.pages).raw(),
            gfp,
            node,
            core::ptr::null_mut(),
        )
    };
    let Some(page) = NonNull::new(page) else {
        pr_err!(
            "no {} MiB of contiguous free memory: load earlier, boot with cma={}M (twice the \
             pool) and source=cma, or take a smaller size_mb=\n",
            wanted.mib(),
            2 * wanted.mib(),
        );
        return Err(ENOMEM);
    };
    // SAFETY: The page came from the page allocator.
    let first = unsafe { mm::page_to_pfn(page) };
    // INVARIANT: Just allocated, and not given to anybody.
    let backing = Pages {
        first,
        pages: wanted.pages,
    };
    // INVARIANT: The pages are RAM of ours; all of RAM is in the direct map, cached.
    Ok(Region {
        base: first,
        pages: wanted.pages,
        // SAFETY: As above.
        node: Some(unsafe { mm::node_of(first) }),
        mode: Mode::WriteBack,
        // SAFETY: As above.
        mapping: unsafe { first.direct_map() }?,
        backing: Backing::Contig(backing),
    })
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: By the type invariants; whoever drops a region has no users of its pages left.
        unsafe { bindings::free_contig_range(self.first.raw(), Pfn(self.pages).raw()) };
    }
}
