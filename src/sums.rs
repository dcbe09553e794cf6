// SPDX-License-Identifier: GPL-2.0

//! The sums over a client's handles, and their internal fragmentation.
//!
//! All functions are pure, and have a result for every number. A client chooses the number of its
//! handles, and may have many for one large buffer. The sum of their bytes can therefore exceed 64
//! bits. Sums have 128 bits, which no number of handles can overflow. So each handle can be
//! subtracted again exactly.

#![warn(clippy::arithmetic_side_effects)]

/// The sums over all handles of a client. A buffer counts once for each handle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    buffers: u64,
    requested: u128,
    granted: u128,
}

impl Sums {
    /// Adds a handle with the given bytes requested and granted.
    pub fn add(&mut self, (requested, granted): (u64, u64)) {
        self.buffers = self.buffers.saturating_add(1);
        self.requested = self.requested.saturating_add(requested.into());
        self.granted = self.granted.saturating_add(granted.into());
    }

    /// Subtracts a handle that was added with the same numbers.
    pub fn sub(&mut self, (requested, granted): (u64, u64)) {
        self.buffers = self.buffers.saturating_sub(1);
        self.requested = self.requested.saturating_sub(requested.into());
        self.granted = self.granted.saturating_sub(granted.into());
    }

    /// Returns the number of handles.
    pub fn buffers(&self) -> u64 {
        self.buffers
    }

    /// Returns the bytes requested; `u64::MAX` for more.
    pub fn requested(&self) -> u64 {
        saturated(self.requested)
    }

    /// Returns the bytes granted; `u64::MAX` for more.
    pub fn granted(&self) -> u64 {
        saturated(self.granted)
    }

    /// Returns the bytes granted that were not requested; `u64::MAX` for more.
    pub fn lost(&self) -> u64 {
        saturated(self.granted.saturating_sub(self.requested))
    }

    /// Returns the internal fragmentation, in units of 1/10 000 of the bytes granted.
    pub fn fragmentation(&self) -> u32 {
        share(self.requested, self.granted)
    }
}

/// Returns the internal fragmentation: how many of 10 000 bytes granted were not requested.
pub fn fragmentation(requested: u64, granted: u64) -> u32 {
    share(requested.into(), granted.into())
}

fn saturated(sum: u128) -> u64 {
    u64::try_from(sum).unwrap_or(u64::MAX)
}

/// Returns how many of 10 000 bytes granted were not requested. Divides in 64 bits, since kernels
/// have no division of 128. From 2^50 bytes on, both numbers first lose low bits, so that the
/// product fits.
fn share(requested: u128, granted: u128) -> u32 {
    const ROOM: u32 = 128 - 50;

    let lost = granted.saturating_sub(requested);
    let excess = ROOM.saturating_sub(granted.leading_zeros());
    let (lost, granted) = (saturated(lost >> excess), saturated(granted >> excess));
    lost.saturating_mul(10_000)
        .checked_div(granted)
        // CAST: The quotient is at most 10 000.
        .map_or(0, |parts| parts as u32)
}
