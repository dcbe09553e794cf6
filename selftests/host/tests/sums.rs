// SPDX-License-Identifier: GPL-2.0

//! Tests the sums over a client's handles, with numbers that a client can reach and with larger
//! ones.

use rust_buddy_host::sums::{
    fragmentation,
    Sums, //
};

/// Divides exactly, in 128 bits.
fn exact(requested: u64, granted: u64) -> u32 {
    let lost = u128::from(granted.saturating_sub(requested));
    (lost * 10_000)
        .checked_div(granted.into())
        .map_or(0, |share| share as u32)
}

#[test]
fn fragmentation_of_every_size() {
    assert_eq!(fragmentation(0, 0), 0);
    assert_eq!(fragmentation(5, 0), 0);
    for shift in 0..64 {
        for near in [-1_i64, 0, 1] {
            let granted = (1_u64 << shift).wrapping_add_signed(near).max(1);
            for requested in [0, 1, granted / 3, granted / 2, granted - 1, granted] {
                let (is, want) = (fragmentation(requested, granted), exact(requested, granted));
                // Where low bits are dropped, the share may differ by one in its last digit.
                assert!(is.abs_diff(want) <= u32::from(granted >= 1 << 50));
            }
        }
    }
    assert_eq!(fragmentation(0, u64::MAX), 10_000);
    assert_eq!(fragmentation(u64::MAX, u64::MAX), 0);
}

#[test]
fn sums_beyond_64_bits() {
    // A pool of the largest size, half of it lost, with the maximum number of handles of a file.
    let (requested, granted) = (1 << 41, 1 << 42);
    let mut sums = Sums::default();
    sums.add((5000, 8192));
    let small = sums;
    let many = 1_u64 << 24;
    for _ in 0..many {
        sums.add((requested, granted));
    }
    assert_eq!(sums.buffers(), many + 1);
    assert_eq!(sums.requested(), u64::MAX);
    assert_eq!(sums.granted(), u64::MAX);
    assert_eq!(sums.lost(), u64::MAX);
    assert_eq!(sums.fragmentation(), 5000);
    for _ in 0..many {
        sums.sub((requested, granted));
    }
    assert_eq!(sums, small);
    assert_eq!(
        (sums.requested(), sums.granted(), sums.lost()),
        (5000, 8192, 3192)
    );
    assert_eq!(sums.fragmentation(), exact(5000, 8192));
}
