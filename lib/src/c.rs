// SPDX-License-Identifier: GPL-2.0

//! The library as C sees it; `include/rust_buddy_client.h` says what each function does.

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

/// `struct rb_cache_config`.
#[repr(C)]
pub struct CacheConfig {
    size: u32,
    align: u32,
    boundary: u32,
    slab: u32,
    pinned: u32,
    name: *const c_char,
}

/// `struct rb_object`.
#[repr(C)]
pub struct CObject {
    memory: *mut c_void,
    offset: u64,
    within: u64,
    address: u64,
    slab: u32,
    index: u32,
}

/// `struct rb_cache_stats`.
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
    // SAFETY: Not negative; if it is not open, duplicating it says so.
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

/// # Safety
///
/// `config` must point to one, and its name to a string or nowhere.
#[no_mangle]
pub unsafe extern "C" fn rb_cache_create(
    fd: c_int,
    config: *const CacheConfig,
) -> *mut ObjectCache {
    // SAFETY: By this function's requirements.
    let config = unsafe { &*config };
    let name = if config.name.is_null() {
        c""
    } else {
        // SAFETY: By this function's requirements.
        unsafe { CStr::from_ptr(config.name) }
    };
    match create(fd, config, &name.to_string_lossy()) {
        Ok(cache) => Box::into_raw(cache),
        Err(error) => {
            // SAFETY: This thread's own.
            unsafe { *libc::__errno_location() = error.errno };
            null_mut()
        }
    }
}

/// # Safety
///
/// `cache` must come from [`rb_cache_create`], and no other thread may use it now. `object` must
/// have room for one.
#[no_mangle]
pub unsafe extern "C" fn rb_cache_alloc(cache: *mut ObjectCache, object: *mut CObject) -> c_int {
    // SAFETY: By this function's requirements.
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
    // SAFETY: By this function's requirements.
    unsafe { object.write(filled) };
    0
}

/// # Safety
///
/// As [`rb_cache_alloc`], but that `object` must be one.
#[no_mangle]
pub unsafe extern "C" fn rb_cache_free(cache: *mut ObjectCache, object: *const CObject) -> c_int {
    // SAFETY: By this function's requirements.
    let (cache, object) = unsafe { (&mut *cache, &*object) };
    match cache.free_at(object.slab, object.index) {
        Ok(()) => 0,
        Err(error) => -error.errno,
    }
}

/// # Safety
///
/// As [`rb_cache_alloc`]; `counts` must have room for them.
#[no_mangle]
pub unsafe extern "C" fn rb_cache_get_stats(cache: *const ObjectCache, counts: *mut CCounts) {
    // SAFETY: By this function's requirements.
    let now = unsafe { &*cache }.counts();
    // SAFETY: By this function's requirements.
    unsafe {
        counts.write(CCounts {
            objects: now.objects,
            slabs: now.slabs,
            bytes: now.bytes,
        })
    };
}

/// # Safety
///
/// `cache` must come from [`rb_cache_create`], or be null, and is gone afterwards.
#[no_mangle]
pub unsafe extern "C" fn rb_cache_destroy(cache: *mut ObjectCache) {
    if !cache.is_null() {
        // SAFETY: By this function's requirements.
        drop(unsafe { Box::from_raw(cache) });
    }
}
