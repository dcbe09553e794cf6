// SPDX-License-Identifier: GPL-2.0

//! Safe interfaces to functions of the kernel for which the kernel crate has none. There is one
//! file for each subsystem.

#![warn(clippy::arithmetic_side_effects)]

pub(crate) mod module;
pub(crate) mod workqueue;
