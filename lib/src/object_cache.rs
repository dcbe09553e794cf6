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

/// What a cache holds. All sizes are bytes.
#[derive(Clone, Copy, Debug)]
pub struct Config<'a> {
    /// Of an object, at least 1.
    pub size: u32,
    /// A power of two that objects lie on multiples of, in memory and for devices.
    pub align: u32,
    /// A power of two that no object crosses a multiple of; 0 for none.
    pub boundary: u32,
    /// Of a slab, a power of two of at least a page; 0 for 64 KiB.
    pub slab: u32,
    /// Are devices to be told of objects? For `/dev/rust_buddy_phys`.
    pub pinned: bool,
    /// What its buffers are called.
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

/// What a cache has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Objects that somebody has.
    pub objects: u64,
    /// Slabs, each of which is a buffer.
    pub slabs: u64,
    /// Bytes of these.
    pub bytes: u64,
}

#[derive(Debug)]
struct Backed {
    slab: Slab<Vec<u64>>,
    buffer: Buffer,
}

/// A cache of objects of one size. What it knows of them is in memory of its own and never in
/// theirs, so whatever is written there, it stays right.
#[derive(Debug)]
pub struct ObjectCache {
    device: Arc<Device>,
    layout: Layout,
    pinned: bool,
    name: String,
    /// Where there was one that went, another may come.
    slabs: Vec<Option<Backed>>,
    /// The slab that objects are taken from as long as it has some.
    current: usize,
    objects: u64,
}

impl ObjectCache {
    /// An empty one: it takes memory with the first object.
    ///
    /// # Errors
    ///
    /// `EINVAL` if objects can't be laid out like that.
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

    /// An object. What is in it is what was there before: zeroes, or what the last who had it left.
    ///
    /// # Errors
    ///
    /// As the module says when a slab more is needed; nothing has changed then.
    pub fn alloc(&mut self) -> Result<Object, Error> {
        loop {
            if let Some(Some(backed)) = self.slabs.get_mut(self.current) {
                if let Some(index) = backed.slab.alloc() {
                    self.objects += 1;
                    return Ok(Object {
                        // CAST: There is no room for 2^32 slabs.
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

    /// Takes an object back. A slab that nobody has anything of is given back, if there is another.
    ///
    /// # Errors
    ///
    /// `EINVAL` if nobody has it: that is another cache's.
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
            // The last object takes the spare one along.
            if self.objects == 0 {
                self.slabs.clear();
            }
        }
        Ok(())
    }

    fn place(&self, object: &Object) -> Option<(&Buffer, usize)> {
        let backed = self.slabs.get(object.slab as usize)?.as_ref()?;
        Some((&backed.buffer, self.layout.offset(object.index) as usize))
    }

    /// Where this process sees it.
    pub fn memory(&self, object: &Object) -> Option<NonNull<u8>> {
        let (buffer, at) = self.place(object)?;
        // SAFETY: The layout keeps objects in their buffer.
        Some(unsafe { buffer.memory().add(at) })
    }

    /// Where mmap of the same client finds it: the offset of its slab and the bytes from there on.
    pub fn offset(&self, object: &Object) -> Option<(u64, u64)> {
        let (buffer, at) = self.place(object)?;
        Some((buffer.offset(), at as u64))
    }

    /// What a device has to be told, if the cache is pinned.
    pub fn address(&self, object: &Object) -> Option<u64> {
        let (buffer, at) = self.place(object)?;
        Some(buffer.address()? + at as u64)
    }

    /// What there is of it.
    pub fn counts(&self) -> Counts {
        let slabs = self.slabs.iter().flatten().count() as u64;
        Counts {
            objects: self.objects,
            slabs,
            bytes: slabs * u64::from(self.layout.slab()),
        }
    }
}
