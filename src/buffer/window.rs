// SPDX-License-Identifier: GPL-2.0

//! Windows of mmap offsets, and the one address space that all mappings are found in by them.

use core::ptr::NonNull;
use kernel::{
    bindings,
    error::from_err_ptr,
    maple_tree::{
        AllocErrorKind,
        MapleTreeAlloc, //
    },
    page::PAGE_SHIFT,
    prelude::*,
    sync::Arc, //
};

#[expect(improper_ctypes, reason = "struct file is what it is in C")]
extern "C" {
    fn anon_inode_create_getfile(
        name: *const c_char,
        operations: *const bindings::file_operations,
        private: *mut c_void,
        flags: c_int,
        context: *const bindings::inode,
    ) -> *mut bindings::file;
}

#[repr(transparent)]
struct Operations(bindings::file_operations);

// SAFETY: Never written.
unsafe impl Sync for Operations {}

/// Of a file that nobody opens. Without an owner, or the module would hold itself.
static OPERATIONS: Operations = Operations(pin_init::zeroed());

/// What the mappings of all nodes and dma-bufs are linked to, instead of each file's own inode: so
/// that whoever knows a window finds all that show it.
///
/// # Invariants
///
/// Points to a file of an inode that is nobody else's, of which this is the only reference.
struct Space(NonNull<bindings::file>);

// SAFETY: Files may be used from anywhere.
unsafe impl Send for Space {}
// SAFETY: As above.
unsafe impl Sync for Space {}

impl Space {
    fn new() -> Result<Self> {
        // SAFETY: The name is copied, the operations are a static; no inode is needed beside.
        let file = from_err_ptr(unsafe {
            anon_inode_create_getfile(
                c"rust_buddy".as_char_ptr(),
                &raw const OPERATIONS.0,
                core::ptr::null_mut(),
                0,
                core::ptr::null(),
            )
        })?;
        // INVARIANT: Just made, with an inode of its own.
        NonNull::new(file).map(Self).ok_or(ENOMEM)
    }

    fn mapping(&self) -> *mut bindings::address_space {
        // SAFETY: By the type invariants; set when the file was made, and never changed.
        unsafe { (*self.0.as_ptr()).f_mapping }
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        // SAFETY: By the type invariants. At once, and not when this task returns to user space:
        // the operations would be gone by then.
        unsafe { bindings::__fput_sync(self.0.as_ptr()) };
    }
}

/// The offsets of mmap: every buffer has its own, in pages, for as long as it lives.
#[pin_data]
pub(crate) struct Offsets {
    space: Space,
    #[pin]
    tree: MapleTreeAlloc<()>,
}

// SAFETY: The tree holds nothing that belongs to a thread.
unsafe impl Send for Offsets {}
// SAFETY: The tree has a lock of its own, which allocating and erasing take.
unsafe impl Sync for Offsets {}

impl Offsets {
    /// Windows end below 2^44 bytes: what 32-bit callers can say in pages.
    const LAST_PAGE: usize = (1 << (44 - kernel::page::PAGE_SHIFT)) - 1;

    /// No offset is taken.
    pub(crate) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            try_pin_init!(Self {
                space: Space::new()?,
                tree <- MapleTreeAlloc::new(),
            }? Error),
            GFP_KERNEL,
        )
    }

    /// Has the mappings of a file found by their offsets, whatever inode it is of.
    ///
    /// # Safety
    ///
    /// Nobody may have mapped the file yet, and it must be closed before the module goes.
    pub(crate) unsafe fn adopt(&self, file: *mut bindings::file) {
        // SAFETY: By this function's requirements.
        unsafe { (*file).f_mapping = self.space.mapping() };
    }

    /// A window of `pages`. Never at 0, which is what a caller passes who forgot the offset.
    ///
    /// # Errors
    ///
    /// `ENOMEM` without kernel memory, `ENOSPC` if no gap is large enough.
    pub(crate) fn take(self: &Arc<Self>, pages: u64) -> Result<Window> {
        let first = self
            .tree
            .alloc_range(pages as usize, (), 1..=Self::LAST_PAGE, GFP_KERNEL)
            .map_err(|error| match error.cause {
                AllocErrorKind::AllocError(_) => ENOMEM,
                _ => ENOSPC,
            })?;
        Ok(Window {
            offsets: self.clone(),
            first: first as u64,
            pages,
        })
    }
}

/// A window of mmap offsets, in pages; dropping it gives it back.
pub(crate) struct Window {
    offsets: Arc<Offsets>,
    first: u64,
    pages: u64,
}

impl Window {
    /// The first offset.
    pub(crate) fn first(&self) -> u64 {
        self.first
    }

    /// How many there are.
    pub(crate) fn pages(&self) -> u64 {
        self.pages
    }

    /// Takes `pages` of it, from the `from`th on, out of every page table. May sleep.
    ///
    /// What is touched afterwards faults again.
    pub(crate) fn zap(&self, from: u64, pages: u64) {
        const EVEN_COPIES: c_int = 1;

        // To the kernel that would be all that follows.
        if pages == 0 {
            return;
        }
        // SAFETY: The address space lives as long as `offsets`. Of others' windows nothing is in
        // that range.
        unsafe {
            bindings::unmap_mapping_range(
                self.offsets.space.mapping(),
                (self.first.saturating_add(from) << PAGE_SHIFT) as bindings::loff_t,
                (pages << PAGE_SHIFT) as bindings::loff_t,
                EVEN_COPIES,
            )
        };
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.offsets.tree.erase(self.first as usize);
    }
}
