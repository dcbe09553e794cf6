// SPDX-License-Identifier: GPL-2.0

//! The library's C interface. `include/rust_buddy_client.h` documents each function.

use crate::{
    Config,
    Device,
    Error,
    ObjectCache, //
};
use std::ffi::{
    c_char,
    c_int,
    c_void,
    CStr, //
};
use std::os::fd::BorrowedFd;
use std::ptr::null_mut;

/// Mirrors `struct rb_cache_config`.
#[repr(C)]
pub struct CacheConfig {
    size: u32,
    align: u32,
    boundary: u32,
    slab: u32,
    pinned: u32,
    name: *const c_char,
}

/// Mirrors `struct rb_object`.
#[repr(C)]
pub struct CObject {
    memory: *mut c_void,
    offset: u64,
    within: u64,
    address: u64,
    slab: u32,
    index: u32,
}

/// Mirrors `struct rb_cache_stats`.
#[repr(C)]
pub struct CCounts {
    objects: u64,
    slabs: u64,
    bytes: u64,
}

fn create(fd: c_int, config: &CacheConfig, name: &str) -> Result<Box<ObjectCache>, Error> {
    if fd < 0 {
        return Err(Error {
            errno: libc::EBADF,
            reason: 0,
        });
    }
    // SAFETY: `fd` is not negative, so it is not -1. It is only duplicated, by a system call that
    // fails with `EBADF` if it is not open.
    let device = Device::of(unsafe { BorrowedFd::borrow_raw(fd) })?;
    let config = Config {
        size: config.size,
        align: config.align,
        boundary: config.boundary,
        slab: config.slab,
        pinned: config.pinned != 0,
        name,
    };
    Ok(Box::new(ObjectCache::new(&device, &config)?))
}

/// Creates a cache. Returns null and sets errno on an error.
///
/// # Safety
///
/// `config` must point to a valid `struct rb_cache_config`. Its name must be null or point to a
/// string that ends with NUL.
#[no_mangle]
pub unsafe extern "C" fn rb_cache_create(
    fd: c_int,
    config: *const CacheConfig,
) -> *mut ObjectCache {
    // SAFETY: The caller guarantees that `config` points to a valid configuration, which no other
    // thread changes during this call.
    let config = unsafe { &*config };
    let name = if config.name.is_null() {
        c""
    } else {
        // SAFETY: The pointer is not null, and the caller guarantees that it points to a string
        // that ends with NUL.
        unsafe { CStr::from_ptr(config.name) }
    };
    match create(fd, config, &name.to_string_lossy()) {
        Ok(cache) => Box::into_raw(cache),
        Err(error) => {
            // SAFETY: `__errno_location()` returns a valid pointer to the errno of this thread,
            // which no other thread accesses.
            unsafe { *libc::__errno_location() = error.errno };
            null_mut()
        }
    }
}

/// Allocates an object. Returns 0 or a negative errno.
///
/// # Safety
///
/// `cache` must come from [`rb_cache_create`] and not be destroyed, and no other thread may use it
/// during the call. `object` must be valid for writing a `struct rb_object`.
#[no_mangle]
pub unsafe extern "C" fn rb_cache_alloc(cache: *mut ObjectCache, object: *mut CObject) -> c_int {
    // SAFETY: The caller guarantees that `cache` points to a live cache that no other thread uses.
    // So this is the only reference to it.
    let cache = unsafe { &mut *cache };
    let taken = match cache.alloc() {
        Ok(taken) => taken,
        Err(error) => return -error.errno,
    };
    let (offset, within) = cache.offset(&taken).unwrap_or((0, 0));
    let filled = CObject {
        memory: cache
            .memory(&taken)
            .map_or(null_mut(), |at| at.as_ptr().cast()),
        offset,
        within,
        address: cache.address(&taken).unwrap_or(u64::MAX),
        slab: taken.slab,
        index: taken.index,
    };
    // SAFETY: The caller guarantees that `object` is aligned and valid for writes.
    unsafe { object.write(filled) };
    0
}

/// Frees an object. Returns 0, or `-EINVAL` if it is not allocated.
///
/// # Safety
///
/// `cache` must come from [`rb_cache_create`] and not be destroyed, and no other thread may use it
/// during the call. `object` must point to a `struct rb_object`.
#[no_mangle]
pub unsafe extern "C" fn rb_cache_free(cache: *mut ObjectCache, object: *const CObject) -> c_int {
    // SAFETY: The caller guarantees that `cache` points to a live cache that no other thread uses,
    // and that `object` points to an initialised object.
    let (cache, object) = unsafe { (&mut *cache, &*object) };
    match cache.free_at(object.slab, object.index) {
        Ok(()) => 0,
        Err(error) => -error.errno,
    }
}

/// Writes the numbers of objects, slabs and bytes to `counts`.
///
/// # Safety
///
/// `cache` must come from [`rb_cache_create`] and not be destroyed, and no other thread may use it
/// during the call. `counts` must be valid for writing a `struct rb_cache_stats`.
#[no_mangle]
pub unsafe extern "C" fn rb_cache_get_stats(cache: *const ObjectCache, counts: *mut CCounts) {
    // SAFETY: The caller guarantees that `cache` points to a live cache that no other thread
    // changes.
    let now = unsafe { &*cache }.counts();
    // SAFETY: The caller guarantees that `counts` is aligned and valid for writes.
    unsafe {
        counts.write(CCounts {
            objects: now.objects,
            slabs: now.slabs,
            bytes: now.bytes,
        })
    };
}

/// Frees the cache with all of its objects. Does nothing for null.
///
/// # Safety
///
/// `cache` must be null, or come from [`rb_cache_create`] and not be destroyed. It must not be used
/// afterwards.
#[no_mangle]
pub unsafe extern "C" fn rb_cache_destroy(cache: *mut ObjectCache) {
    if !cache.is_null() {
        // SAFETY: `cache` is not null, so it comes from `Box::into_raw()` in `rb_cache_create()`.
        // The caller guarantees that it is not used again, so it is freed only once.
        drop(unsafe { Box::from_raw(cache) });
    }
}
