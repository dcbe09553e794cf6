// SPDX-License-Identifier: GPL-2.0

//! Waiting for a pool's mutexes so that a killed task can end.

use kernel::{
    bindings,
    prelude::*,
    sync::{
        Mutex,
        MutexGuard, //
    }, //
};

/// Locks `mutex` as `mutex_lock_killable()` does, which keeps the order of the waiters as
/// `mutex_lock()` does. Returns none if the task is killed while it waits.
pub(super) fn lock_killable(mutex: &Mutex<()>) -> Option<MutexGuard<'_, ()>> {
    // A lock over `()` has the layout of its backend's state, as `Lock::from_raw` promises.
    let raw = core::ptr::from_ref(mutex)
        .cast_mut()
        .cast::<bindings::mutex>();
    // SAFETY: By the layout, `raw` points to the C mutex, which was initialized before there was a
    // reference to `mutex`. The caller can sleep, as for `Mutex::lock`.
    let locked = unsafe { lock_raw(raw) } == 0;
    // SAFETY: This task has just locked it, and gives the ownership to the guard.
    locked.then(|| unsafe { MutexGuard::new(mutex, ()) })
}

/// Calls `mutex_lock_killable()`.
///
/// # Safety
///
/// `mutex` must be initialized, and the caller must be able to sleep.
#[cfg(not(CONFIG_DEBUG_LOCK_ALLOC))]
unsafe fn lock_raw(mutex: *mut bindings::mutex) -> c_int {
    // SAFETY: By this function's requirements.
    unsafe { bindings::mutex_lock_killable(mutex) }
}

/// Calls what `mutex_lock_killable()` is a macro for with lockdep.
///
/// # Safety
///
/// As above.
#[cfg(CONFIG_DEBUG_LOCK_ALLOC)]
unsafe fn lock_raw(mutex: *mut bindings::mutex) -> c_int {
    extern "C" {
        fn _mutex_lock_killable(
            lock: *mut bindings::mutex,
            subclass: c_uint,
            nest_lock: *mut bindings::lockdep_map,
        ) -> c_int;
    }

    // SAFETY: By this function's requirements; the mutex nests in no other of its class.
    unsafe { _mutex_lock_killable(mutex, 0, core::ptr::null_mut()) }
}
