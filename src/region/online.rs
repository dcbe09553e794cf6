// SPDX-License-Identifier: GPL-2.0

//! A guard that keeps memory online while the kernel's memory map is read.
//!
//! To take a block of memory offline, the kernel isolates its pageblocks, then calls the memory
//! notifiers, and only then takes the memory away. It stops if a notifier refuses.
//!
//! The guard registers a notifier that refuses. A pageblock that is online and not isolated after
//! that stays online until the guard is dropped. If the kernel had called the notifiers before, the
//! pageblock would be isolated.

use crate::mm;
use kernel::{
    bindings,
    error::to_result,
    prelude::*,
    types::Opaque, //
};

/// Keeps all memory of the machine online until it is dropped.
///
/// # Invariants
///
/// The block is registered as a memory notifier, and the box keeps its address stable.
pub(super) struct Online(KBox<Opaque<bindings::notifier_block>>);

impl Online {
    /// Registers the notifier. Sleeps while the kernel calls memory notifiers.
    ///
    /// # Errors
    ///
    /// `ENOMEM` if the kernel is out of memory.
    pub(super) fn hold() -> Result<Self> {
        let block = bindings::notifier_block {
            notifier_call: Some(notify),
            // The highest priority: no other notifier prepares for an offlining that is refused.
            priority: c_int::MAX,
            ..Default::default()
        };
        let block = KBox::new(Opaque::new(block), GFP_KERNEL)?;
        // SAFETY: The block is initialised and new, so it is in no list. The box keeps it valid
        // until `drop()` unregisters it.
        to_result(unsafe { mm::register_memory_notifier(block.get()) })?;
        // INVARIANT: The block was registered above, and moving the box does not move the block.
        Ok(Self(block))
    }
}

impl Drop for Online {
    fn drop(&mut self) {
        // SAFETY: The block is registered, by the type invariants. It is freed after this call,
        // which waits until the kernel calls `notify` no more.
        unsafe { mm::unregister_memory_notifier(self.0.get()) };
    }
}

/// Refuses to let memory go offline. Called by the kernel.
///
/// # Safety
///
/// There are no requirements, since the function uses none of the pointers.
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
