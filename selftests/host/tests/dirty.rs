// SPDX-License-Identifier: GPL-2.0

//! Compares the record of dirty pages with a plain list, and tests two threads that own adjacent
//! pages.

#[path = "../../../src/pool/dirty.rs"]
mod dirty;

mod mm {
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    pub(crate) struct Pfn(pub(crate) u64);
}

use dirty::Dirty;
use mm::Pfn;
use proptest::prelude::*;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Page {
    Clean,
    Dirty,
    DeviceDirty,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Dirty,
    DeviceDirty,
    Clear,
    ClearStable,
}

fn apply(dirty: &Dirty, what: What, first: u64, pages: u64) {
    match what {
        What::Dirty => dirty.mark_dirty(Pfn(first), pages),
        What::DeviceDirty => dirty.mark_device_dirty(Pfn(first), pages),
        What::Clear => dirty.mark_clear(Pfn(first), pages),
        // Clears piece by piece, like the worker.
        What::ClearStable => {
            let (mut at, end) = (Pfn(first), Pfn(first + pages));
            while let Some((first, pages)) = dirty.next_stable_dirty(at, end) {
                dirty.mark_clear(first, pages);
                at = Pfn(first.0 + pages);
            }
        }
    }
}

fn after(what: What, page: Page) -> Page {
    match (what, page) {
        (What::Clear, _) | (What::ClearStable, Page::Clean | Page::Dirty) => Page::Clean,
        (What::ClearStable, Page::DeviceDirty) => Page::DeviceDirty,
        (What::DeviceDirty, _) | (What::Dirty, Page::DeviceDirty) => Page::DeviceDirty,
        (What::Dirty, _) => Page::Dirty,
    }
}

/// Returns the first run of pages from `from` on for which `is` holds.
fn run(
    pages: &[Page],
    from: usize,
    to: usize,
    is: impl Fn(Page) -> bool,
) -> Option<(usize, usize)> {
    let start = (from..to).find(|&i| is(pages[i]))?;
    let end = (start..to).find(|&i| !is(pages[i])).unwrap_or(to);
    Some((start, end - start))
}

fn what() -> impl Strategy<Value = What> {
    prop_oneof![
        4 => Just(What::Dirty),
        1 => Just(What::DeviceDirty),
        4 => Just(What::Clear),
        2 => Just(What::ClearStable),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn knows_every_page(
        base in 0u64..1000,
        len in 1usize..9000,
        steps in proptest::collection::vec((what(), 0.0..1.0f64, 0.0..1.0f64), 0..60),
        looks in proptest::collection::vec((0.0..1.0f64, 0.0..1.0f64), 1..20),
    ) {
        let part = |of: f64, most: usize| ((most as f64 * of) as usize).min(most);
        let dirty = Dirty::all(base, len as u64).unwrap();
        let mut pages = vec![Page::Dirty; len];
        for (what, at, size) in steps {
            let first = part(at, len - 1);
            // Mostly small sizes, sometimes all pages.
            let size = part(size * size * size, len - first);
            apply(&dirty, what, base + first as u64, size as u64);
            for page in &mut pages[first..first + size] {
                *page = after(what, *page);
            }
        }
        let count = pages.iter().filter(|&&page| page != Page::Clean).count();
        prop_assert_eq!(dirty.count(), count as u64);
        for (at, size) in looks {
            let from = part(at, len);
            let to = from + part(size, len - from);
            let pfn = |i: usize| Pfn(base + i as u64);
            let seen = |found: Option<(Pfn, u64)>| {
                found.map(|(first, pages)| ((first.0 - base) as usize, pages as usize))
            };
            prop_assert_eq!(
                seen(dirty.next(pfn(from), pfn(to))),
                run(&pages, from, to, |page| page != Page::Clean)
            );
            prop_assert_eq!(
                seen(dirty.next_stable_dirty(pfn(from), pfn(to))),
                run(&pages, from, to, |page| page == Page::Dirty)
            );
        }
    }
}

/// The pages of both threads share words, and some words belong to one thread.
#[test]
fn neighbours_do_not_disturb_each_other() {
    const LEN: u64 = 640;
    const OWNERS: u64 = 2;
    let owner = |page: u64| if page / 64 == 3 { 0 } else { page / 5 % OWNERS };
    let dirty = Dirty::all(0, LEN).unwrap();
    let known: Vec<Vec<Page>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..OWNERS)
            .map(|me| {
                let dirty = &dirty;
                scope.spawn(move || {
                    let mut pages = vec![Page::Dirty; LEN as usize];
                    let mut seed = me + 1;
                    for _ in 0..300_000 {
                        seed = seed
                            .wrapping_mul(6364136223846793005)
                            .wrapping_add(1442695040888963407);
                        let first = (seed >> 33) % LEN;
                        let what = match (seed >> 20) % 8 {
                            0 => What::DeviceDirty,
                            1..=3 => What::Dirty,
                            _ => What::Clear,
                        };
                        let mine =
                            (first..LEN).take_while(|&page| owner(page) == me).count() as u64;
                        apply(dirty, what, first, mine);
                        for page in first..first + mine {
                            let page = &mut pages[page as usize];
                            *page = after(what, *page);
                        }
                        // A thread's own pages are in the state that it set, independent of the
                        // other thread.
                        if mine > 0 {
                            let found = dirty.next(Pfn(first), Pfn(first + mine));
                            assert_eq!(found.is_some(), !matches!(what, What::Clear));
                        }
                    }
                    pages
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    for page in 0..LEN {
        let is = known[owner(page) as usize][page as usize];
        let (at, next) = (Pfn(page), Pfn(page + 1));
        assert_eq!(
            dirty.next(at, next).is_some(),
            is != Page::Clean,
            "page {page}"
        );
        assert_eq!(
            dirty.next_stable_dirty(at, next).is_some(),
            is == Page::Dirty,
            "page {page}"
        );
    }
}
