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

#[path = "../../../src/victim.rs"]
pub mod victim;

#[path = "../../../src/uapi/mod.rs"]
pub mod uapi;
