// SPDX-License-Identifier: GPL-2.0

//! Replaces the kernel's crate on the host: the same names, implemented with the standard library.

/// The error of an allocation, which does not occur here.
#[derive(Debug)]
pub struct Error;

pub mod prelude {
    //! The names that every file of the module uses.

    pub use super::Error;

    pub type Result<T = ()> = core::result::Result<T, Error>;

    pub struct Flags;
    pub const GFP_KERNEL: Flags = Flags;

    /// Wraps a vector of the standard library.
    #[derive(Debug)]
    pub struct KVVec<T>(Vec<T>);

    impl<T> KVVec<T> {
        pub fn with_capacity(len: usize, _: Flags) -> Result<Self> {
            Ok(Self(Vec::with_capacity(len)))
        }

        pub fn push(&mut self, value: T, _: Flags) -> Result {
            self.0.push(value);
            Ok(())
        }
    }

    impl<T> core::ops::Deref for KVVec<T> {
        type Target = [T];

        fn deref(&self) -> &[T] {
            &self.0
        }
    }
}

pub mod sync {
    //! Replacements for `kernel::sync`.

    pub mod atomic {
        //! Atomic integers.

        use std::sync::atomic::{
            AtomicU64,
            Ordering, //
        };

        pub struct Relaxed;

        #[derive(Debug)]
        pub struct Atomic<T>(AtomicU64, core::marker::PhantomData<T>);

        impl Atomic<u64> {
            pub const fn new(value: u64) -> Self {
                Self(AtomicU64::new(value), core::marker::PhantomData)
            }

            pub fn load(&self, _: Relaxed) -> u64 {
                self.0.load(Ordering::Relaxed)
            }

            pub fn fetch_add(&self, value: u64, _: Relaxed) -> u64 {
                self.0.fetch_add(value, Ordering::Relaxed)
            }

            pub fn fetch_sub(&self, value: u64, _: Relaxed) -> u64 {
                self.0.fetch_sub(value, Ordering::Relaxed)
            }

            pub fn cmpxchg(&self, old: u64, new: u64, _: Relaxed) -> Result<u64, u64> {
                self.0
                    .compare_exchange(old, new, Ordering::Relaxed, Ordering::Relaxed)
            }
        }
    }
}
