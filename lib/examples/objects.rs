// SPDX-License-Identifier: GPL-2.0

//! A cache of descriptors in Rust, on the device: a test (KTAP) to run where rust_buddy is loaded.

use rust_buddy_client::{
    Config,
    Device,
    Error,
    ObjectCache, //
};
use std::process::ExitCode;

const MANY: usize = 10_000;
const SIZE: u32 = 96;

/// Allocates many objects, marks each, checks the marks, and frees them.
fn run() -> Result<u64, Error> {
    let device = Device::open("/dev/rust_buddy")?;
    let before = device.pool()?.granted;
    let config = Config {
        size: SIZE,
        align: 32,
        boundary: 4096,
        slab: 0,
        pinned: false,
        name: "objects",
    };
    let mut cache = ObjectCache::new(&device, &config)?;
    let mut objects = Vec::new();
    for i in 0..MANY {
        let object = cache.alloc()?;
        if let Some(memory) = cache.memory(&object) {
            // SAFETY: An object has at least 8 bytes, is aligned to 32, and belongs to this
            // function until it is freed.
            unsafe { memory.cast::<u64>().write_volatile(i as u64) };
        }
        objects.push(object);
    }
    let most = device.pool()?.granted - before;
    for (i, object) in objects.into_iter().enumerate() {
        let memory = cache.memory(&object).map(|memory| memory.cast::<u64>());
        // SAFETY: The object is allocated, has at least 8 bytes and is aligned to 32.
        let mark = memory.map(|memory| unsafe { memory.read_volatile() });
        assert_eq!(mark, Some(i as u64), "object {i} is somebody else's, too");
        cache.free(object)?;
    }
    assert_eq!(
        device.pool()?.granted,
        before,
        "something was not given back"
    );
    Ok(most)
}

fn main() -> ExitCode {
    println!("TAP version 13\n1..1");
    match run() {
        Ok(bytes) => {
            println!("# {MANY} objects of {SIZE} bytes in {bytes} bytes");
            println!("ok 1 a cache from Rust");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("# {error}");
            println!("not ok 1 a cache from Rust");
            ExitCode::FAILURE
        }
    }
}
