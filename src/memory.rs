// SPDX-License-Identifier: GPL-2.0

//! The memory of a buffer: a block, and the charge for it.
//!
//! Pages that still have other references can't be allocated again. So a block that is mapped by
//! struct page is freed through [`DeferredReservation`].

#![warn(clippy::arithmetic_side_effects)]

use crate::deferred_free::DeferredReservation;
use crate::memtype::MemType;
use crate::pool::Block;
use crate::quota::{
    Charge,
    QuotaExceeded, //
};
use crate::region::Stopped;
use kernel::prelude::*;

/// The block that a buffer owns. Dropping it frees the block once no page of it has another
/// reference.
///
/// # Invariants
///
/// `inner` is `Some` until `drop` takes it.
pub(crate) struct Memory {
    inner: Option<(Block, Charge)>,
    /// Reserved for the deferred free of a block that is mapped by struct page. None for other
    /// blocks.
    deferred: Option<DeferredReservation>,
}

impl Memory {
    /// Makes the memory of a buffer from a block, and zeroes the block. With `deferred`, references
    /// to its pages can be taken. May sleep.
    ///
    /// # Errors
    ///
    /// The errors of [`Block::clear`]. The block is back in its pool then.
    pub(crate) fn new(
        mut block: Block,
        charge: Charge,
        deferred: Option<DeferredReservation>,
    ) -> Result<Self, Stopped> {
        if let Err(stopped) = block.clear() {
            // The block first: its pages stay charged until the pool has them back.
            drop(block);
            drop(charge);
            return Err(stopped);
        }
        // INVARIANT: `inner` is `Some`.
        Ok(Self {
            inner: Some((block, charge)),
            deferred,
        })
    }

    /// Returns the block.
    pub(crate) fn block(&self) -> Option<&Block> {
        self.inner.as_ref().map(|(block, _)| block)
    }

    /// Gives the block a memory type, until it is back in its pool. May sleep.
    ///
    /// The block is zeroed before this, because that is faster while it is cached. The change of
    /// the type flushes the caches.
    ///
    /// # Errors
    ///
    /// The errors of [`Block::set_memtype`]. The caller drops the memory then.
    pub(crate) fn set_memtype(&mut self, memtype: MemType) -> Result {
        match &mut self.inner {
            Some((block, _)) => block.set_memtype(memtype),
            None => Ok(()),
        }
    }

    /// Returns the block for changes.
    pub(crate) fn block_mut(&mut self) -> Option<&mut Block> {
        self.inner.as_mut().map(|(block, _)| block)
    }

    /// Replaces the block, and returns the old one.
    pub(crate) fn replace(&mut self, block: Block) -> Option<Block> {
        self.block_mut().map(|old| core::mem::replace(old, block))
    }

    /// Charges the account for `bytes` more bytes.
    ///
    /// # Errors
    ///
    /// The quota that would be exceeded.
    pub(crate) fn try_charge(&mut self, bytes: u64) -> Result<(), QuotaExceeded> {
        match &mut self.inner {
            Some((_, charge)) => charge.try_charge(bytes),
            None => Ok(()),
        }
    }

    /// Uncharges `bytes` bytes from the account.
    pub(crate) fn uncharge(&mut self, bytes: u64) {
        if let Some((_, charge)) = &mut self.inner {
            charge.uncharge(bytes);
        }
    }

    /// Returns whether references to the pages can be taken.
    pub(crate) fn by_page(&self) -> bool {
        self.deferred.is_some()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Some(block) = self.block() {
            block.pool().record_free();
        }
        if let (Some(deferred), Some((block, charge))) = (self.deferred.take(), self.inner.take()) {
            deferred.free(block, charge);
        }
    }
}
