// SPDX-License-Identifier: GPL-2.0

//! Locks a pool's mutexes such that a kill ends the wait.
//!
//! The kernel crate's `Mutex::lock()` always waits until it has the mutex. A killed task could not
//! exit as long as the holder keeps it.

use kernel::{
    bindings,
    prelude::*,
    sync::{
        Mutex,
        MutexGuard, //
    }, //
};

/// Locks `mutex` as `mutex_lock_killable()` does, which keeps the order of the waiters as
/// `mutex_lock()` does. Returns `None` if the task is killed while it waits.
pub(super) fn lock_killable(mutex: &Mutex<()>) -> Option<MutexGuard<'_, ()>> {
    // `Lock<(), B>` has the layout of `B::State`, which `Lock::from_raw` relies on as well.
    let raw = core::ptr::from_ref(mutex)
        .cast_mut()
        .cast::<bindings::mutex>();
    // SAFETY: The mutex has to be initialized: `raw` points to the C mutex inside `mutex`, which
    // was initialized before `mutex` could be referenced. The caller can sleep, as it has to for
    // `Mutex::lock`.
    let locked = unsafe { lock_raw(raw) } == 0;
    // SAFETY: The caller has to own the lock: `lock_raw` returned 0, so this task has locked it.
    // Only the guard unlocks it.
    locked.then(|| unsafe { MutexGuard::new(mutex, ()) })
}

/// Calls `mutex_lock_killable()`.
///
/// # Safety
///
/// `mutex` must be initialized, and the caller must be able to sleep.
#[cfg(not(CONFIG_DEBUG_LOCK_ALLOC))]
unsafe fn lock_raw(mutex: *mut bindings::mutex) -> c_int {
    // SAFETY: The mutex is initialized and the caller can sleep, as this function requires.
    unsafe { bindings::mutex_lock_killable(mutex) }
}

/// Calls the function that `mutex_lock_killable()` expands to in kernels with lockdep.
///
/// # Safety
///
/// `mutex` must be initialized, and the caller must be able to sleep.
#[cfg(CONFIG_DEBUG_LOCK_ALLOC)]
unsafe fn lock_raw(mutex: *mut bindings::mutex) -> c_int {
    extern "C" {
        fn _mutex_lock_killable(
            lock: *mut bindings::mutex,
            subclass: c_uint,
            nest_lock: *mut bindings::lockdep_map,
        ) -> c_int;
    }

    // SAFETY: The mutex is initialized and the caller can sleep, as this function requires. No task
    // holds two mutexes of one class, so the subclass is 0 and there is no nest lock.
    unsafe { _mutex_lock_killable(mutex, 0, core::ptr::null_mut()) }
}
