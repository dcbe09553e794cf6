// SPDX-License-Identifier: GPL-2.0

//! Windows of mmap offsets, and the one `address_space` that links all mappings by their offsets.

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

// SAFETY: Never written.
unsafe impl Sync for FileOperations {}

/// Of a file that is never opened. Without an owner, or the module would hold itself.
static OPERATIONS: FileOperations = FileOperations(pin_init::zeroed());

/// The `address_space` that the mappings of all nodes and dma-bufs are linked to, instead of that
/// of each file's own inode: so all mappings of a window are found by its offsets.
///
/// # Invariants
///
/// Points to a file with an inode of its own, of which this is the only reference.
struct SharedMapping(NonNull<bindings::file>);

// SAFETY: Files may be used from anywhere.
unsafe impl Send for SharedMapping {}
// SAFETY: As above.
unsafe impl Sync for SharedMapping {}

impl SharedMapping {
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

    fn as_raw(&self) -> *mut bindings::address_space {
        // SAFETY: By the type invariants; set when the file was made, and never changed.
        unsafe { (*self.0.as_ptr()).f_mapping }
    }
}

impl Drop for SharedMapping {
    fn drop(&mut self) {
        // SAFETY: By the type invariants. At once, and not when this task returns to user space:
        // the operations would be gone by then.
        unsafe { bindings::__fput_sync(self.0.as_ptr()) };
    }
}

/// A part of the mmap offsets, by the callers that can pass them to mmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Area {
    /// Below 2^44 bytes: mmap2 of a 32-bit caller passes an offset as 32 bits of pages.
    Low,
    /// From there up to the largest `loff_t`: for 64-bit callers.
    High,
}

impl Area {
    /// How many areas there are.
    pub(crate) const COUNT: usize = 2;

    /// The first page of the high area.
    const BORDER: u64 = 1 << 32;

    /// `unmap_mapping_range` adds a page to the end of its range, in a `loff_t`: the last page of
    /// all stays free, so that this does not overflow.
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

    /// Returns the number of pages in it.
    pub(crate) const fn pages(self) -> u64 {
        match self {
            // Offset 0 is what a caller passes that forgot the offset.
            Self::Low => Self::BORDER.saturating_sub(1),
            Self::High => Self::END.saturating_sub(Self::BORDER),
        }
    }

    /// CAST: A page number fits in a `usize` of 64 bits, which `mm` asserts.
    fn range(self) -> RangeInclusive<usize> {
        match self {
            Self::Low => 1..=Self::pages(self) as usize,
            Self::High => Self::BORDER as usize..=Self::END.saturating_sub(1) as usize,
        }
    }
}

/// Why a window can't be allocated.
pub(crate) enum WindowError {
    /// The kernel has no memory for it.
    Memory,
    /// No gap is large enough.
    Gap,
    /// The client would leave too few offsets to others.
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

/// The offsets of mmap: every buffer has its own, in pages, for as long as it lives.
#[pin_data]
pub(crate) struct Offsets {
    mapping: SharedMapping,
    #[pin]
    tree: MapleTreeAlloc<()>,
}

// SAFETY: The tree holds nothing that belongs to a thread.
unsafe impl Send for Offsets {}
// SAFETY: The tree has a lock of its own, which allocating and erasing take.
unsafe impl Sync for Offsets {}

impl Offsets {
    /// No offset is taken.
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
    /// The file must not be mapped yet, and it must be closed before the module goes.
    pub(crate) unsafe fn attach_file(&self, file: *mut bindings::file) {
        // SAFETY: By this function's requirements.
        unsafe { (*file).f_mapping = self.mapping.as_raw() };
    }

    /// Allocates a window of `pages` in `area`, charged to `account`. Never at 0.
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
        // First, so that it is given back if there is no gap.
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

/// A window of mmap offsets, in pages; dropping it gives it back.
pub(crate) struct Window {
    offsets: Arc<Offsets>,
    first: u64,
    charge: WindowCharge,
}

impl Window {
    /// The first offset.
    pub(crate) fn first(&self) -> u64 {
        self.first
    }

    /// How many there are.
    pub(crate) fn pages(&self) -> u64 {
        self.charge.pages()
    }

    /// The area it is in.
    pub(crate) fn area(&self) -> Area {
        self.charge.area()
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
