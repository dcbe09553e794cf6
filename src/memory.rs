// SPDX-License-Identifier: GPL-2.0

//! The memory of a buffer: a block, the account that is charged for it, and the work before it can
//! go back to its pool.

#![warn(clippy::arithmetic_side_effects)]

use crate::linger::Slot;
use crate::deferred_free::DeferredReservation;
use crate::pool::Block;
use crate::quota::{
    Charge,
    QuotaExceeded, //
};
use crate::region::Stopped;
use kernel::prelude::*;

/// Owned: dropping it frees the block, as soon as no page of it has another reference.
///
/// # Invariants
///
/// `inner` is there until `drop` takes it.
pub(crate) struct Memory {
    inner: Option<(Block, Charge)>,
    /// For blocks that are mapped by struct page.
    deferred: Option<DeferredReservation>,
}

impl Memory {
    /// Makes it of a block, which is cleared first. With `deferred`, references to its pages can be
    /// taken. May sleep.
    ///
    /// # Errors
    ///
    /// As [`Block::clear`]; the block is back in its pool then.
    pub(crate) fn new(
        mut block: Block,
        charge: Charge,
        deferred: Option<DeferredReservation>,
    ) -> Result<Self, Stopped> {
        if let Err(stopped) = block.clear() {
            // In this order: the pages are charged until the pool has them back.
            drop(block);
            drop(charge);
            return Err(stopped);
        }
        // INVARIANT: It is there.
        Ok(Self {
            inner: Some((block, charge)),
            deferred,
        })
    }

    /// The block.
    pub(crate) fn block(&self) -> Option<&Block> {
        self.inner.as_ref().map(|(block, _)| block)
    }

    /// Gives it a memory type, until it is back in its pool. That it was cleared cached is faster,
    /// and the change flushes the caches. May sleep.
    ///
    /// # Errors
    ///
    /// As [`Block::set_memtype`]; it is to be dropped then.
    pub(crate) fn set_memtype(&mut self, memtype: MemType) -> Result {
        match &mut self.inner {
            Some((block, _)) => block.set_memtype(memtype),
            None => Ok(()),
        }
    }

    /// The block, to be changed.
    pub(crate) fn block_mut(&mut self) -> Option<&mut Block> {
        self.inner.as_mut().map(|(block, _)| block)
    }

    /// Replaces the block, and returns the old one.
    pub(crate) fn replace(&mut self, block: Block) -> Option<Block> {
        self.block_mut().map(|old| core::mem::replace(old, block))
    }

    /// Charges its account for `bytes` more.
    ///
    /// # Errors
    ///
    /// As the quotas say.
    pub(crate) fn try_charge(&mut self, bytes: u64) -> Result<(), QuotaExceeded> {
        match &mut self.inner {
            Some((_, charge)) => charge.try_charge(bytes),
            None => Ok(()),
        }
    }

    /// Uncharges `bytes`.
    pub(crate) fn uncharge(&mut self, bytes: u64) {
        if let Some((_, charge)) = &mut self.inner {
            charge.uncharge(bytes);
        }
    }

    /// Returns whether references to its pages can be taken.
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
