// SPDX-License-Identifier: GPL-2.0

//! Memory that stays online while the kernel's memory map is read.
//!
//! The kernel offlines a block of memory in this order: it isolates the pageblocks, it calls the
//! notifiers, and only then it takes the memory away. A notifier that refuses ends that. So a
//! pageblock which is online, and not isolated, after the notifier was registered stays online
//! until it is unregistered: had the offlining passed the notifiers before, its isolation would be
//! seen.

use crate::mm;
use kernel::{
    bindings,
    error::to_result,
    prelude::*,
    types::Opaque, //
};

/// Refuses to let memory go offline, anywhere, until it is dropped.
///
/// # Invariants
///
/// The block is registered as a notifier of memory, and stays where it is.
pub(super) struct Online(KBox<Opaque<bindings::notifier_block>>);

impl Online {
    /// Begins to refuse. Sleeps while notifiers are being called.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(super) fn hold() -> Result<Self> {
        let block = bindings::notifier_block {
            notifier_call: Some(notify),
            // First of all, so that no other notifier prepares for nothing.
            priority: c_int::MAX,
            ..Default::default()
        };
        let block = KBox::new(Opaque::new(block), GFP_KERNEL)?;
        // SAFETY: The block is filled in, is in no list, and stays until `drop()` unregisters it.
        to_result(unsafe { mm::register_memory_notifier(block.get()) })?;
        // INVARIANT: Registered above. A box keeps it in place.
        Ok(Self(block))
    }
}

impl Drop for Online {
    fn drop(&mut self) {
        // SAFETY: Registered, by the type invariants. Waits until it runs nowhere any more.
        unsafe { mm::unregister_memory_notifier(self.0.get()) };
    }
}

/// Memory is about to come or go.
///
/// # Safety
///
/// None: it uses none of the pointers.
unsafe extern "C" fn notify(
    _block: *mut bindings::notifier_block,
    action: c_ulong,
    _data: *mut c_void,
) -> c_int {
    if action == mm::MEM_GOING_OFFLINE {
        mm::notifier_refusal(EBUSY)
    } else {
        bindings::NOTIFY_DONE as c_int
    }
}
