// SPDX-License-Identifier: GPL-2.0

//! References to this module, which keep it from being unloaded.
//!
//! An object that outlives the file or mapping of its creator holds a [`ModuleRef`], for example
//! memory in quarantine.

use kernel::{
    bindings,
    module::this_module, //
};

/// A reference to this module. The module is not unloaded while there is one.
pub(crate) struct ModuleRef;

impl ModuleRef {
    /// Takes one more reference. A file, a mapping or an object for which the caller runs holds one
    /// already.
    pub(crate) fn another() -> Self {
        // SAFETY: The pointer is that of this module. `__module_get()` requires that another
        // reference exists, and the file, mapping or object for which the caller runs holds one.
        unsafe { bindings::__module_get(this_module::<crate::LocalModule>().as_ptr()) };
        Self
    }
}

impl Drop for ModuleRef {
    fn drop(&mut self) {
        // SAFETY: `another` took the reference. If this is the last one, the module's exit may
        // start before this function returns. It flushes the work queue on which this may run, so
        // the code stays loaded.
        unsafe { bindings::module_put(this_module::<crate::LocalModule>().as_ptr()) };
    }
}
