// SPDX-License-Identifier: GPL-2.0

//! Caches of small objects.

use crate::slab::{
    fullest,
    Layout,
    Misfit,
    Slab, //
};
use crate::{
    Buffer,
    Device,
    Error, //
};
use std::ptr::NonNull;
use std::sync::Arc;

/// The configuration of a cache. All sizes are bytes.
#[derive(Clone, Copy, Debug)]
pub struct Config<'a> {
    /// The size of an object, at least 1.
    pub size: u32,
    /// A power of two. Objects start at multiples of it, in memory and for devices.
    pub align: u32,
    /// A power of two. No object crosses a multiple of it. 0 for none.
    pub boundary: u32,
    /// The size of a slab, a power of two of at least a page. 0 for 64 KiB.
    pub slab: u32,
    /// Whether objects have an address for devices. Requires `/dev/rust_buddy_phys`.
    pub pinned: bool,
    /// The name of the buffers.
    pub name: &'a str,
}

/// An allocated object. Without [`ObjectCache::free`] it stays allocated until its cache is
/// dropped.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Object {
    pub(crate) slab: u32,
    pub(crate) index: u32,
}

/// The contents of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Allocated objects.
    pub objects: u64,
    /// Slabs, each of which is a buffer.
    pub slabs: u64,
    /// The bytes of all slabs.
    pub bytes: u64,
}

#[derive(Debug)]
struct Backed {
    slab: Slab<Vec<u64>>,
    buffer: Buffer,
}

/// A cache of objects of one size. Its state lies outside of the objects' memory, so writes to an
/// object can't corrupt it.
#[derive(Debug)]
pub struct ObjectCache {
    device: Arc<Device>,
    layout: Layout,
    pinned: bool,
    name: String,
    /// Slabs by number. `None` for a slab that was freed, whose number is used again.
    slabs: Vec<Option<Backed>>,
    /// The slab from which objects are allocated as long as it has free ones.
    current: usize,
    objects: u64,
}

impl ObjectCache {
    /// Creates an empty cache, which allocates a slab with the first object.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the sizes allow no layout.
    pub fn new(device: &Arc<Device>, config: &Config<'_>) -> Result<Self, Error> {
        const PAGE: u32 = 4096;
        const SLAB: u32 = 64 << 10;

        let slab = if config.slab == 0 { SLAB } else { config.slab };
        let layout = Layout::new(config.size, config.align, config.boundary, slab)
            .and_then(|layout| (slab >= PAGE).then_some(layout).ok_or(Misfit::Slab))
            .map_err(|_| Error {
                errno: libc::EINVAL,
                reason: 0,
            })?;
        Ok(Self {
            device: device.clone(),
            layout,
            pinned: config.pinned,
            name: config.name.to_owned(),
            slabs: Vec::new(),
            current: 0,
            objects: 0,
        })
    }

    /// Allocates an object. Its content is that of its last use, or zeroes if it is new.
    ///
    /// # Errors
    ///
    /// Those of [`Buffer::new`] if a new slab is needed. The cache is unchanged then.
    pub fn alloc(&mut self) -> Result<Object, Error> {
        loop {
            if let Some(Some(backed)) = self.slabs.get_mut(self.current) {
                if let Some(index) = backed.slab.alloc() {
                    self.objects += 1;
                    return Ok(Object {
                        // CAST: Memory does not suffice for 2^32 slabs.
                        slab: self.current as u32,
                        index,
                    });
                }
            }
            let slabs = self.slabs.iter().enumerate();
            let free = slabs.filter_map(|(i, slab)| Some((i, slab.as_ref()?.slab.free_count())));
            self.current = match fullest(free) {
                Some(slab) => slab,
                None => self.grow()?,
            };
        }
    }

    fn grow(&mut self) -> Result<usize, Error> {
        let bytes = self.layout.slab().into();
        let buffer = Buffer::new(&self.device, bytes, self.pinned, &self.name)?;
        let words = vec![0; self.layout.words()];
        let slab = Slab::new(words, &self.layout).ok_or(Error {
            errno: libc::EINVAL,
            reason: 0,
        })?;
        let backed = Some(Backed { slab, buffer });
        let at = match self.slabs.iter().position(Option::is_none) {
            Some(at) => at,
            None => {
                self.slabs.push(None);
                self.slabs.len() - 1
            }
        };
        self.slabs[at] = backed;
        Ok(at)
    }

    /// Frees an object. An empty slab is freed, too, if the cache has another empty one.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the object is not allocated in this cache.
    pub fn free(&mut self, object: Object) -> Result<(), Error> {
        self.free_at(object.slab, object.index)
    }

    pub(crate) fn free_at(&mut self, slab: u32, index: u32) -> Result<(), Error> {
        const NOT_TAKEN: Error = Error {
            errno: libc::EINVAL,
            reason: 0,
        };

        let backed = self.slabs.get_mut(slab as usize).and_then(Option::as_mut);
        let backed = backed.ok_or(NOT_TAKEN)?;
        if !backed.slab.free(index) {
            return Err(NOT_TAKEN);
        }
        self.objects -= 1;
        if backed.slab.is_empty() {
            let empty = |slab: &&Backed| slab.slab.is_empty();
            if self.slabs.iter().flatten().filter(empty).count() > 1 || self.objects == 0 {
                self.slabs[slab as usize] = None;
            }
            // With the last object the spare empty slab is freed, too.
            if self.objects == 0 {
                self.slabs.clear();
            }
        }
        Ok(())
    }

    fn place(&self, object: &Object) -> Option<(&Buffer, usize)> {
        let backed = self.slabs.get(object.slab as usize)?.as_ref()?;
        // An object of another cache can have an index that this layout does not have.
        if object.index >= self.layout.objects() {
            return None;
        }
        Some((&backed.buffer, self.layout.offset(object.index) as usize))
    }

    /// Returns the object's address in this process.
    pub fn memory(&self, object: &Object) -> Option<NonNull<u8>> {
        let (buffer, at) = self.place(object)?;
        // SAFETY: `place()` has checked that the layout has this index, and the layout keeps each
        // object inside its slab. The slab's buffer is mapped as long as the cache has it.
        Some(unsafe { buffer.memory().add(at) })
    }

    /// Returns the offset at which the same client can mmap the object's slab, and the object's
    /// position in the slab.
    pub fn offset(&self, object: &Object) -> Option<(u64, u64)> {
        let (buffer, at) = self.place(object)?;
        Some((buffer.offset(), at as u64))
    }

    /// Returns the object's address for a device, if the cache is pinned.
    pub fn address(&self, object: &Object) -> Option<u64> {
        let (buffer, at) = self.place(object)?;
        Some(buffer.address()? + at as u64)
    }

    /// Returns the numbers of objects, slabs and bytes.
    pub fn counts(&self) -> Counts {
        let slabs = self.slabs.iter().flatten().count() as u64;
        Counts {
            objects: self.objects,
            slabs,
            bytes: slabs * u64::from(self.layout.slab()),
        }
    }
}
