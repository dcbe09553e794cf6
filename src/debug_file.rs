// SPDX-License-Identifier: GPL-2.0

//! Folders and files in debugfs.
//!
//! An open file holds a reference to the module, as an open device node does. Files of
//! `kernel::debugfs` hold none, because their operations have no owner. If the
//! module is unloaded while one of them is open, the kernel later releases it through freed
//! operations.
//!
//! Init creates a [`File`] early and shows it last. A reference to a module whose init fails does
//! not keep it loaded, so no step that can fail may follow [`File::show`].

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

/// The operation of a file, which is read-only or write-only.
pub(crate) enum Act<T> {
    /// The function prints the contents of the file.
    Show(fn(&T, &mut fmt::Formatter<'_>) -> fmt::Result),
    /// The function is called for each write. The written bytes are ignored.
    Trigger(fn(&T)),
}

/// The private data of a file's inode.
#[cfg_attr(not(CONFIG_DEBUG_FS), expect(dead_code))]
struct Target<T> {
    data: Arc<T>,
    act: Act<T>,
}

/// An entry in debugfs. Dropping it removes the entry.
///
/// # Invariants
///
/// The pointer is null, an error, or that of an entry that only this value removes.
struct Dentry(*mut bindings::dentry);

// SAFETY: Any thread may remove a debugfs entry.
unsafe impl Send for Dentry {}
// SAFETY: A shared entry is only used as the parent of new entries, which the kernel adds under its
// own lock.
unsafe impl Sync for Dentry {}

impl Dentry {
    /// Returns a value without an entry.
    const fn none() -> Self {
        // INVARIANT: The pointer is null.
        Self(ptr::null_mut())
    }
}

#[cfg(CONFIG_DEBUG_FS)]
impl Drop for Dentry {
    /// Removes the entry, and waits until no operation of the file runs, except the release.
    fn drop(&mut self) {
        // SAFETY: By the type invariants the pointer is null or an error, which the kernel ignores,
        // or that of an entry that is removed only here.
        unsafe { bindings::debugfs_remove(self.0) };
    }
}

/// A folder in debugfs. It exists until all its files and folders are dropped.
pub(crate) struct Folder {
    #[cfg_attr(not(CONFIG_DEBUG_FS), expect(dead_code))]
    entry: Dentry,
    /// The parent, whose removal would remove this folder too. So it is dropped after `entry`.
    _parent: Option<Arc<Folder>>,
}

impl Folder {
    /// Creates a folder in `parent`, or in the root of debugfs.
    ///
    /// It succeeds without a folder if the kernel can't create one, because the module works
    /// without debugfs.
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

    /// Creates the folder's entry.
    #[cfg(CONFIG_DEBUG_FS)]
    fn entry(name: &CStr, parent: Option<&Self>) -> Dentry {
        let parent = parent.map_or(ptr::null_mut(), |parent| parent.entry.0);
        // INVARIANT: The pointer is that of a new entry or an error.
        // SAFETY: The name ends with a NUL, and the kernel copies it. The parent is null, an error,
        // which the call then returns, or a folder that the reference keeps alive.
        Dentry(unsafe { bindings::debugfs_create_dir(name.as_char_ptr(), parent) })
    }

    /// Creates no entry in a kernel without debugfs.
    #[cfg(not(CONFIG_DEBUG_FS))]
    fn entry(_name: &CStr, _parent: Option<&Self>) -> Dentry {
        Dentry::none()
    }
}

/// A file in debugfs. Dropping it removes the file.
///
/// # Invariants
///
/// The entry's inode points to `target`, which neither moves nor is freed until the entry is
/// removed. The entry's operations are those for `T` and for the target's `act`.
pub(crate) struct File<T: Send + Sync + 'static> {
    /// The entry, which is dropped before the target and the folder.
    entry: Dentry,
    #[cfg_attr(not(CONFIG_DEBUG_FS), expect(dead_code))]
    target: KBox<Target<T>>,
    #[cfg_attr(not(CONFIG_DEBUG_FS), expect(dead_code))]
    folder: Arc<Folder>,
    #[cfg_attr(not(CONFIG_DEBUG_FS), expect(dead_code))]
    name: &'static CStr,
}

impl<T: Send + Sync + 'static> File<T> {
    /// Makes a file for `data`, which debugfs does not show yet.
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
        // INVARIANT: There is no entry whose inode could point to the target.
        Ok(Self {
            entry: Dentry::none(),
            target: KBox::new(Target { data, act }, GFP_KERNEL)?,
            folder: folder.clone(),
            name,
        })
    }

    /// Shows the file in debugfs. No later step of the module's init may fail.
    #[cfg(CONFIG_DEBUG_FS)]
    pub(crate) fn show(&mut self) {
        let (mode, operations) = match self.target.act {
            Act::Show(_) => (0o400, &Self::READ),
            Act::Trigger(_) => (0o200, &Self::WRITE),
        };
        // Remove the old entry first, if the file is shown already.
        self.entry = Dentry::none();
        // SAFETY: The name ends with a NUL, and the kernel copies it. `self` keeps the folder
        // alive. The operations are statics of the module, which an open file holds. They expect a
        // `Target<T>` as private data, and `target` lives until the entry is removed.
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
        // INVARIANT: The entry is new, with this target and the operations for it, or an error.
        self.entry = Dentry(entry);
    }

    /// Does nothing in a kernel without debugfs.
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
/// `inode` must be that of a [`File`] of `T`, and `file` must be an open file of it that is being
/// set up.
#[cfg(CONFIG_DEBUG_FS)]
unsafe extern "C" fn open_to_read<T: Send + Sync + 'static>(
    inode: *mut bindings::inode,
    file: *mut bindings::file,
) -> c_int {
    // SAFETY: The file is being opened, and its inode lives. `print::<T>` expects the private data
    // of this inode. The removal of the file waits for running reads and prevents later ones, so
    // the target lives whenever `print` runs.
    unsafe { bindings::single_open(file, Some(print::<T>), (*inode).i_private) }
}

/// Prints the contents of a file.
///
/// # Safety
///
/// Only this thread may use `seq`. Its private data must be a [`Target`] of `T` that lives during
/// the call.
#[cfg(CONFIG_DEBUG_FS)]
unsafe extern "C" fn print<T: Send + Sync + 'static>(
    seq: *mut bindings::seq_file,
    _data: *mut c_void,
) -> c_int {
    // SAFETY: By this function's requirements the private data is a `Target<T>` that lives. There
    // are only shared references to targets.
    let target = unsafe { &*(*seq).private.cast::<Target<T>>() };
    // SAFETY: By this function's requirements `seq` is valid, and no other thread accesses it.
    let seq = unsafe { SeqFile::from_raw(seq) };
    seq_print!(seq, "{}", Text(target));
    0
}

/// Calls the function of a file that is written to.
///
/// # Safety
///
/// The file's private data must be a [`Target`] of `T` that lives during the call.
#[cfg(CONFIG_DEBUG_FS)]
unsafe extern "C" fn write<T: Send + Sync + 'static>(
    file: *mut bindings::file,
    _from: *const c_char,
    count: usize,
    _at: *mut bindings::loff_t,
) -> isize {
    // SAFETY: By this function's requirements the private data is a `Target<T>` that lives. There
    // are only shared references to targets.
    let target = unsafe { &*(*file).private_data.cast::<Target<T>>() };
    if let Act::Trigger(act) = target.act {
        act(&target.data);
    }
    // CAST: The kernel passes at most `MAX_RW_COUNT` bytes.
    count as isize
}

/// Formats a target as the contents of its file.
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
