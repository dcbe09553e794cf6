// SPDX-License-Identifier: GPL-2.0

//! References to this module.

use kernel::{
    bindings,
    module::this_module, //
};

/// A reference to this module.
pub(crate) struct ModuleRef;

impl ModuleRef {
    /// Takes a reference. The caller's file, mapping or object has one already.
    pub(crate) fn another() -> Self {
        // SAFETY: The module is there: the caller runs on behalf of a reference.
        unsafe { bindings::__module_get(this_module::<crate::LocalModule>().as_ptr()) };
        Self
    }
}

impl Drop for ModuleRef {
    fn drop(&mut self) {
        // SAFETY: Taken in `another`. The module's exit flushes the queue whose item may run this.
        unsafe { bindings::module_put(this_module::<crate::LocalModule>().as_ptr()) };
    }
}
