// SPDX-License-Identifier: GPL-2.0

//! Folders and files in debugfs.
//!
//! An open file holds the module, as an open node does. The files of `kernel::debugfs` do not:
//! their operations have no owner, so that a file which is still open when the module goes is later
//! released through operations that were freed with it.
//!
//! A file is made first and shown later. A reference to a module whose init fails holds nothing, so
//! a file may be shown only when nothing that can fail is left.

use core::ptr;
use kernel::{
    bindings,
    fmt,
    module::this_module,
    prelude::*,
    seq_file::SeqFile,
    seq_print,
    sync::Arc, //
};

/// Does what a file is for.
pub(crate) enum Act<T> {
    /// Prints the file.
    Show(fn(&T, &mut fmt::Formatter<'_>) -> fmt::Result),
    /// Acts on a write, whatever is written.
    Trigger(fn(&T)),
}

/// What the kernel's inode of a file points to.
#[cfg_attr(not(CONFIG_DEBUG_FS), expect(dead_code))]
struct Target<T> {
    data: Arc<T>,
    act: Act<T>,
}

/// An entry in debugfs; it goes when this is dropped.
///
/// # Invariants
///
/// The pointer is null, an error, or that of an entry which is this one's to remove.
struct Dentry(*mut bindings::dentry);

// SAFETY: The kernel's functions on an entry may be called in any thread.
unsafe impl Send for Dentry {}
// SAFETY: A shared entry is only a folder to put others in, under the kernel's lock.
unsafe impl Sync for Dentry {}

impl Dentry {
    /// Makes no entry.
    const fn none() -> Self {
        // INVARIANT: Null.
        Self(ptr::null_mut())
    }
}

#[cfg(CONFIG_DEBUG_FS)]
impl Drop for Dentry {
    /// Waits until no call of the file's operations runs any more, but for the release.
    fn drop(&mut self) {
        // SAFETY: By the type invariants; the kernel ignores null and errors.
        unsafe { bindings::debugfs_remove(self.0) };
    }
}

/// A folder. It is there until all that is in it is dropped.
pub(crate) struct Folder {
    #[cfg_attr(not(CONFIG_DEBUG_FS), expect(dead_code))]
    entry: Dentry,
    /// Removed after this one, since a folder takes along all that is in it.
    _parent: Option<Arc<Folder>>,
}

impl Folder {
    /// Makes a folder, in debugfs itself without a parent.
    ///
    /// It does without the folder if the kernel can't make it: debugfs is an aid.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new(name: &CStr, parent: Option<Arc<Self>>) -> Result<Arc<Self>> {
        let entry = Self::entry(name, parent.as_deref());
        Ok(Arc::new(
            Self {
                entry,
                _parent: parent,
            },
            GFP_KERNEL,
        )?)
    }

    #[cfg(CONFIG_DEBUG_FS)]
    fn entry(name: &CStr, parent: Option<&Self>) -> Dentry {
        let parent = parent.map_or(ptr::null_mut(), |parent| parent.entry.0);
        // INVARIANT: Just made, or an error.
        // SAFETY: The name ends with a NUL, and is copied. The parent is null, an error, which the
        // kernel gives back, or a folder, which lives as long as the reference.
        Dentry(unsafe { bindings::debugfs_create_dir(name.as_char_ptr(), parent) })
    }

    #[cfg(not(CONFIG_DEBUG_FS))]
    fn entry(_name: &CStr, _parent: Option<&Self>) -> Dentry {
        Dentry::none()
    }
}

/// A file; it goes when this is dropped.
///
/// # Invariants
///
/// The entry's inode points to `target`, which stays where it is until the entry is removed. The
/// entry's operations are those of `T` and of the target's `act`.
pub(crate) struct File<T: Send + Sync + 'static> {
    /// Dropped before the target, and before the folder.
    entry: Dentry,
    #[cfg_attr(not(CONFIG_DEBUG_FS), expect(dead_code))]
    target: KBox<Target<T>>,
    #[cfg_attr(not(CONFIG_DEBUG_FS), expect(dead_code))]
    folder: Arc<Folder>,
    #[cfg_attr(not(CONFIG_DEBUG_FS), expect(dead_code))]
    name: &'static CStr,
}

impl<T: Send + Sync + 'static> File<T> {
    /// Makes a file of `data` that is not shown yet.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new(
        folder: &Arc<Folder>,
        name: &'static CStr,
        data: Arc<T>,
        act: Act<T>,
    ) -> Result<Self> {
        // INVARIANT: There is no entry yet.
        Ok(Self {
            entry: Dentry::none(),
            target: KBox::new(Target { data, act }, GFP_KERNEL)?,
            folder: folder.clone(),
            name,
        })
    }

    /// Shows the file. Nothing that follows in the module's init may fail.
    #[cfg(CONFIG_DEBUG_FS)]
    pub(crate) fn show(&mut self) {
        let (mode, operations) = match self.target.act {
            Act::Show(_) => (0o400, &Self::READ),
            Act::Trigger(_) => (0o200, &Self::WRITE),
        };
        // Removed first, should it be shown already.
        self.entry = Dentry::none();
        // SAFETY: The name ends with a NUL, and is copied. The folder lives as long as this. The
        // operations are never freed while the module is there. They take the data for a target of
        // this type, which it is, and which lives until the entry is removed.
        let entry = unsafe {
            bindings::debugfs_create_file_full(
                self.name.as_char_ptr(),
                mode,
                self.folder.entry.0,
                ptr::from_ref(&*self.target).cast_mut().cast(),
                ptr::null(),
                operations,
            )
        };
        // INVARIANT: Just made with this target and its operations, or an error.
        self.entry = Dentry(entry);
    }

    /// Shows the file: a kernel without debugfs has no place for it.
    #[cfg(not(CONFIG_DEBUG_FS))]
    pub(crate) fn show(&mut self) {
        self.entry = Dentry::none();
    }
}

#[cfg(CONFIG_DEBUG_FS)]
impl<T: Send + Sync + 'static> File<T> {
    /// The operations of a file that can be read.
    const READ: bindings::file_operations = bindings::file_operations {
        owner: this_module::<crate::LocalModule>().as_ptr(),
        open: Some(open_to_read::<T>),
        read: Some(bindings::seq_read),
        llseek: Some(bindings::seq_lseek),
        release: Some(bindings::single_release),
        ..pin_init::zeroed()
    };

    /// The operations of a file that can be written.
    const WRITE: bindings::file_operations = bindings::file_operations {
        owner: this_module::<crate::LocalModule>().as_ptr(),
        open: Some(bindings::simple_open),
        write: Some(write::<T>),
        llseek: Some(bindings::noop_llseek),
        ..pin_init::zeroed()
    };
}

/// Opens a file for reading.
///
/// # Safety
///
/// The inode must be that of a [`File`] of `T`, and `file` one of it that is being opened.
#[cfg(CONFIG_DEBUG_FS)]
unsafe extern "C" fn open_to_read<T: Send + Sync + 'static>(
    inode: *mut bindings::inode,
    file: *mut bindings::file,
) -> c_int {
    // SAFETY: The file is being opened, and the inode lives. `print` takes the inode's data for
    // the same type. debugfs lets only calls read that the file's removal waits for.
    unsafe { bindings::single_open(file, Some(print::<T>), (*inode).i_private) }
}

/// Prints a file.
///
/// # Safety
///
/// `seq` must be used by this thread only, and its private data be a target of `T` that lives.
#[cfg(CONFIG_DEBUG_FS)]
unsafe extern "C" fn print<T: Send + Sync + 'static>(
    seq: *mut bindings::seq_file,
    _data: *mut c_void,
) -> c_int {
    // SAFETY: By this function's requirements. Targets are only shared.
    let target = unsafe { &*(*seq).private.cast::<Target<T>>() };
    // SAFETY: By this function's requirements.
    let seq = unsafe { SeqFile::from_raw(seq) };
    seq_print!(seq, "{}", Text(target));
    0
}

/// Acts on a write to a file.
///
/// # Safety
///
/// The file's private data must be a target of `T` that lives.
#[cfg(CONFIG_DEBUG_FS)]
unsafe extern "C" fn write<T: Send + Sync + 'static>(
    file: *mut bindings::file,
    _from: *const c_char,
    count: usize,
    _at: *mut bindings::loff_t,
) -> isize {
    // SAFETY: By this function's requirements. Targets are only shared.
    let target = unsafe { &*(*file).private_data.cast::<Target<T>>() };
    if let Act::Trigger(act) = target.act {
        act(&target.data);
    }
    // CAST: The kernel passes at most `MAX_RW_COUNT` bytes.
    count as isize
}

/// A target as text.
#[cfg(CONFIG_DEBUG_FS)]
struct Text<'a, T>(&'a Target<T>);

#[cfg(CONFIG_DEBUG_FS)]
impl<T> fmt::Display for Text<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.act {
            Act::Show(act) => act(&self.0.data, f),
            Act::Trigger(_) => Ok(()),
        }
    }
}
