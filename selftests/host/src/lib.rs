// SPDX-License-Identifier: GPL-2.0

//! The parts of the module that do not depend on the kernel, compiled for the host. They are the
//! same files that the kernel build uses.

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

/// Counts the words of the core that this thread reads and writes.
#[cfg(feature = "count")]
pub mod touched {
    extern crate std;

    use core::cell::Cell;

    std::thread_local! {
        static WORDS: Cell<u64> = const { Cell::new(0) };
    }

    /// Adds to the count.
    #[inline]
    pub fn add(words: u32) {
        WORDS.with(|sum| sum.set(sum.get() + u64::from(words)));
    }

    /// Returns the count, and resets it.
    pub fn take() -> u64 {
        WORDS.with(|sum| sum.replace(0))
    }
}
