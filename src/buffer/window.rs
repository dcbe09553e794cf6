// SPDX-License-Identifier: GPL-2.0

//! Windows of mmap offsets, and the one `address_space` that links all mappings by their offsets.
//!
//! Each buffer has a window of its own. [`Window::zap`] unmaps it from all processes at once.

use crate::mm;
use crate::quota::{
    ClientAccount,
    QuotaExceeded,
    WindowCharge, //
};
use core::{
    ops::RangeInclusive,
    ptr::NonNull, //
};
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
struct FileOperations(bindings::file_operations);

// SAFETY: The only value is a static, which no code writes to.
unsafe impl Sync for FileOperations {}

/// The operations of a file that no process opens. They have no owner, since the file's reference
/// to it would keep the module from being unloaded.
static OPERATIONS: FileOperations = FileOperations(pin_init::zeroed());

/// The `address_space` that the mappings of all nodes and dma-bufs are linked to, instead of that
/// of each file's own inode. So all mappings of a window are found by its offsets.
///
/// # Invariants
///
/// Points to a file with an inode of its own, and holds the only reference to it.
struct SharedMapping(NonNull<bindings::file>);

// SAFETY: Any thread may use a `struct file` and drop the last reference to it.
unsafe impl Send for SharedMapping {}
// SAFETY: A shared reference only reads `f_mapping`, which never changes.
unsafe impl Sync for SharedMapping {}

impl SharedMapping {
    /// Makes the file and its inode.
    fn new() -> Result<Self> {
        // SAFETY: The name is a C string, which the function copies. The operations are a static,
        // so they outlive the file. The function accepts a null `private` and a null `context`.
        let file = from_err_ptr(unsafe {
            anon_inode_create_getfile(
                c"rust_buddy".as_char_ptr(),
                &raw const OPERATIONS.0,
                core::ptr::null_mut(),
                0,
                core::ptr::null(),
            )
        })?;
        // INVARIANT: The file was just made, with an inode of its own, and this takes its only
        // reference.
        NonNull::new(file).map(Self).ok_or(ENOMEM)
    }

    /// Returns the `address_space`.
    fn as_raw(&self) -> *mut bindings::address_space {
        // SAFETY: By the type invariants the file is alive. Its `f_mapping` was set when it was
        // made and never changes, so no write races with this read.
        unsafe { (*self.0.as_ptr()).f_mapping }
    }
}

impl Drop for SharedMapping {
    fn drop(&mut self) {
        // SAFETY: By the type invariants this is the only reference to the file, and it is not used
        // again. `fput()` would release the file when this task returns to user space. The
        // operations would be gone by then.
        unsafe { bindings::__fput_sync(self.0.as_ptr()) };
    }
}

/// A part of the mmap offsets, by the callers that can pass them to mmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Area {
    /// Offsets below 2^44 bytes. The mmap2 of a 32-bit caller passes an offset as a 32-bit page
    /// number.
    Low,
    /// Offsets from there up to the largest `loff_t`, for 64-bit callers.
    High,
}

impl Area {
    /// The number of areas.
    pub(crate) const COUNT: usize = 2;

    /// The first page of the high area.
    const BORDER: u64 = 1 << 32;

    /// The end of the high area, in pages. `unmap_mapping_range` adds a page to the end of its
    /// range, in a `loff_t`. The last page of all stays free, so that this does not overflow.
    const END: u64 = (1 << (63 - PAGE_SHIFT)) - 1;

    /// Returns the area whose windows the current system call's caller can map.
    pub(crate) fn of_caller() -> Self {
        if mm::is_32_bit_call() {
            Self::Low
        } else {
            Self::High
        }
    }

    /// Returns whether a caller with windows in this area can map one that ends at page `last`.
    pub(crate) fn reaches(self, last: u64) -> bool {
        self == Self::High || last < Self::BORDER
    }

    /// Returns the number of pages in the area.
    pub(crate) const fn pages(self) -> u64 {
        match self {
            // Offset 0 stays free: a caller that forgot the offset passes it.
            Self::Low => Self::BORDER.saturating_sub(1),
            Self::High => Self::END.saturating_sub(Self::BORDER),
        }
    }

    /// Returns the pages of the area. CAST: A page number fits in a `usize` of 64 bits, which `mm`
    /// asserts.
    fn range(self) -> RangeInclusive<usize> {
        match self {
            Self::Low => 1..=Self::pages(self) as usize,
            Self::High => Self::BORDER as usize..=Self::END.saturating_sub(1) as usize,
        }
    }
}

/// Why a window can't be allocated.
pub(crate) enum WindowError {
    /// The kernel has no memory for the window.
    Memory,
    /// No gap is large enough.
    Gap,
    /// The window would leave too few offsets to the other clients.
    Quota(QuotaExceeded),
}

impl From<WindowError> for Error {
    fn from(error: WindowError) -> Self {
        match error {
            WindowError::Memory => ENOMEM,
            WindowError::Gap => ENOSPC,
            WindowError::Quota(_) => EDQUOT,
        }
    }
}

/// The mmap offsets, in pages. Each buffer has a window of them for as long as it lives.
#[pin_data]
pub(crate) struct Offsets {
    mapping: SharedMapping,
    #[pin]
    tree: MapleTreeAlloc<()>,
}

// SAFETY: The entries of the tree are `()`, so nothing in it belongs to a thread. The mapping is
// `Send`.
unsafe impl Send for Offsets {}
// SAFETY: Allocating and erasing take the lock of the tree. The mapping is `Sync`.
unsafe impl Sync for Offsets {}

impl Offsets {
    /// Makes a set of offsets, none of which is taken.
    pub(crate) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            try_pin_init!(Self {
                mapping: SharedMapping::new()?,
                tree <- MapleTreeAlloc::new(),
            }? Error),
            GFP_KERNEL,
        )
    }

    /// Links the future mappings of `file` to the shared `address_space`, so that they are found by
    /// their offsets.
    ///
    /// # Safety
    ///
    /// The file must not be mapped yet, and it must be closed before the module is unloaded.
    pub(crate) unsafe fn attach_file(&self, file: *mut bindings::file) {
        // SAFETY: By this function's requirements the file is not mapped yet, so no mapping is
        // linked to its old `address_space`. It is closed before the module, and the new one with
        // it, is gone.
        unsafe { (*file).f_mapping = self.mapping.as_raw() };
    }

    /// Allocates a window of `pages` pages in `area`, and charges it to `account`. No window has
    /// offset 0.
    ///
    /// # Errors
    ///
    /// As [`WindowError`] says.
    pub(crate) fn alloc(
        self: &Arc<Self>,
        account: &Arc<ClientAccount>,
        area: Area,
        pages: u64,
    ) -> Result<Window, WindowError> {
        // The charge comes first: its drop uncharges the account if there is no gap.
        let charge = account
            .charge_window(area, pages)
            .map_err(WindowError::Quota)?;
        let first = self
            .tree
            .alloc_range(pages as usize, (), area.range(), GFP_KERNEL_ACCOUNT)
            .map_err(|error| match error.cause {
                AllocErrorKind::AllocError(_) => WindowError::Memory,
                _ => WindowError::Gap,
            })?;
        Ok(Window {
            offsets: self.clone(),
            first: first as u64,
            charge,
        })
    }
}

/// A window of mmap offsets, in pages. Dropping it frees the offsets.
pub(crate) struct Window {
    offsets: Arc<Offsets>,
    first: u64,
    charge: WindowCharge,
}

impl Window {
    /// Returns the first offset, in pages.
    pub(crate) fn first(&self) -> u64 {
        self.first
    }

    /// Returns the number of pages.
    pub(crate) fn pages(&self) -> u64 {
        self.charge.pages()
    }

    /// Returns the area that the window is in.
    pub(crate) fn area(&self) -> Area {
        self.charge.area()
    }

    /// Takes `pages` pages of the window, from page `from` on, out of every page table. May sleep.
    ///
    /// A later access to one of the pages faults again.
    pub(crate) fn zap(&self, from: u64, pages: u64) {
        const EVEN_COPIES: c_int = 1;

        // The kernel takes a length of 0 as all pages that follow.
        if pages == 0 {
            return;
        }
        // SAFETY: `unmap_mapping_range()` requires a live `address_space`: it lives as long as
        // `offsets`. The range lies within this window, so that it unmaps no page of another
        // window.
        unsafe {
            bindings::unmap_mapping_range(
                self.offsets.mapping.as_raw(),
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
