// SPDX-License-Identifier: GPL-2.0

//! The pure parts of the module, compiled for the host. Nothing is written again here: these are
//! the files that the kernel builds.

#![no_std]

#[path = "../../../src/buddy/mod.rs"]
pub mod buddy;

#[path = "../../../src/magazine/mod.rs"]
pub mod magazine;

#[path = "../../../src/slab/mod.rs"]
pub mod slab;

#[path = "../../../src/sums.rs"]
pub mod sums;

#[path = "../../../src/compact_target.rs"]
pub mod compact_target;

#[path = "../../../src/uapi/mod.rs"]
pub mod uapi;

/// How many of the core's words this thread has read and written.
#[cfg(feature = "count")]
pub mod touched {
    extern crate std;

    use core::cell::Cell;

    std::thread_local! {
        static WORDS: Cell<u64> = const { Cell::new(0) };
    }

    /// So many more.
    #[inline]
    pub fn add(words: u32) {
        WORDS.with(|sum| sum.set(sum.get() + u64::from(words)));
    }

    /// So many since this was last called.
    pub fn take() -> u64 {
        WORDS.with(|sum| sum.replace(0))
    }
}
