// SPDX-License-Identifier: GPL-2.0

//! References to this module.

use kernel::{
    bindings,
    module::this_module, //
};

/// A reference to this module.
pub(crate) struct ModuleRef;

impl ModuleRef {
    /// Takes one more, which needs that somebody holds one already.
    pub(crate) fn another() -> Self {
        // SAFETY: Whoever drops a buffer is a file or a mapping, and has a reference.
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
