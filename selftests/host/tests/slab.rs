// SPDX-License-Identifier: GPL-2.0

//! Tests slabs: the placement of objects, and that no object is allocated twice.

use proptest::prelude::*;
use rust_buddy_host::slab::{
    fullest,
    Layout,
    Misfit,
    Slab, //
};
use std::collections::BTreeSet;

fn layouts() -> impl Strategy<Value = (u32, u32, u32, Layout)> {
    (1u32..5000, 0u32..8, 5u32..14, 12u32..17).prop_filter_map(
        "fits",
        |(size, align, boundary, slab)| {
            let (align, boundary) = (1 << align, 1 << boundary);
            let boundary = if boundary > 8192 { 0 } else { boundary };
            let layout = Layout::new(size, align, boundary, 1 << slab).ok()?;
            Some((size, align, boundary, layout))
        },
    )
}

proptest! {
    #[test]
    fn objects_are_apart((size, align, boundary, layout) in layouts()) {
        let boundary = if boundary == 0 { layout.slab() } else { boundary };
        let mut end = 0;
        for index in 0..layout.objects() {
            let start = layout.offset(index);
            prop_assert!(start >= end);
            prop_assert_eq!(start % align, 0);
            prop_assert_eq!(start / boundary, (start + size - 1) / boundary);
            end = start + size;
        }
        prop_assert!(end <= layout.slab());
        // One more object does not fit within a boundary.
        let stride = size.next_multiple_of(align);
        prop_assert_eq!(layout.objects(), layout.slab() / boundary * (boundary / stride));
    }

    #[test]
    fn as_a_set_does(
        (_, _, _, layout) in layouts(),
        steps in proptest::collection::vec((any::<bool>(), any::<u32>()), 1..400),
    ) {
        let mut slab = Slab::new(vec![0; layout.words()], &layout).unwrap();
        let mut taken = BTreeSet::new();
        for (take, number) in steps {
            if take {
                let first = (0..layout.objects()).find(|index| !taken.contains(index));
                prop_assert_eq!(slab.alloc(), first);
                taken.extend(first);
            } else {
                let index = number % (layout.objects() + 2);
                prop_assert_eq!(slab.free(index), taken.remove(&index));
            }
            prop_assert_eq!(slab.free_count(), layout.objects() - taken.len() as u32);
            prop_assert_eq!(slab.is_empty(), taken.is_empty());
        }
    }
}

#[test]
fn misfits() {
    for (size, align, boundary, slab, misfit) in [
        (1, 1, 0, 3000, Misfit::Slab),
        (1, 1, 0, 0, Misfit::Slab),
        (0, 1, 0, 4096, Misfit::Size),
        (4097, 1, 0, 4096, Misfit::Size),
        (u32::MAX, 1 << 12, 0, 4096, Misfit::Size),
        (1, 0, 0, 4096, Misfit::Align),
        (1, 3, 0, 4096, Misfit::Align),
        (1, 8192, 0, 4096, Misfit::Align),
        (100, 1, 64, 4096, Misfit::Boundary),
        (100, 1, 96, 4096, Misfit::Boundary),
        (100, 1, 8192, 4096, Misfit::Boundary),
    ] {
        assert_eq!(Layout::new(size, align, boundary, slab), Err(misfit));
    }
    // The largest possible values.
    let layout = Layout::new(1 << 31, 1 << 31, 1 << 31, 1 << 31).unwrap();
    assert_eq!(
        (layout.objects(), layout.words(), layout.offset(0)),
        (1, 1, 0)
    );
}

#[test]
fn too_few_words() {
    let layout = Layout::new(32, 32, 0, 4096).unwrap();
    assert_eq!(layout.words(), 2);
    assert!(Slab::new(vec![0; 1], &layout).is_none());
    assert!(Slab::new(vec![0; 3], &layout).is_some());
}

#[test]
fn the_fullest_comes_first() {
    let free = [3, 0, 1, 2, 1];
    assert_eq!(fullest(free.iter().copied().enumerate()), Some(2));
    assert_eq!(fullest([(0, 0)].into_iter()), None);
}
