// SPDX-License-Identifier: GPL-2.0

//! Plays libFuzzer's inputs on the allocator core and the tests' model.

#![no_main]

#[path = "../../tests/common/mod.rs"]
mod common;

use common::script::Script;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let script = Script::new(bytes);
    if let Err(why) = script.play() {
        panic!("{why}");
    }
});
