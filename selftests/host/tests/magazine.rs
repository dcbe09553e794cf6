// SPDX-License-Identifier: GPL-2.0

//! Magazines: alone, by what they promise, and in every order in which two threads and their locks
//! can get in each other's way (loom).

use loom::{
    sync::{
        Arc,
        Mutex, //
    },
    thread, //
};
use rust_buddy_host::{
    buddy::{
        storage_len,
        Buddy,
        Order,
        Packed,
        Place,
        Request,
        Run, //
    },
    magazine::{
        self,
        End,
        Lock,
        Magazine,
        Source,
        Tally,
        SLOTS, //
    }, //
};
use std::cell::RefCell;

type Mine = Magazine<Vec<Option<Packed>>>;

fn order(order: u32) -> Order {
    Order::saturating(order)
}

fn magazine(limit: u64) -> Mine {
    Magazine::new((0..SLOTS).map(|_| None).collect(), 0, limit)
}

/// An allocator, and what it was told.
struct State {
    core: Buddy<Vec<u64>>,
    /// Blocks and bytes that are out, but for what magazines know of.
    blocks: u64,
    bytes: u64,
    uses: u64,
    waiting: bool,
}

impl State {
    fn new(units: u64) -> Self {
        let words = vec![0; storage_len(0, units).unwrap()];
        Self {
            core: Buddy::new(words, Default::default(), 0, units).unwrap(),
            blocks: 0,
            bytes: 0,
            uses: 0,
            waiting: false,
        }
    }

    fn check(&self) {
        self.core.validate().unwrap();
    }
}

impl Source for State {
    fn take(&mut self, end: End, order: Order) -> Option<Run> {
        let place = match end {
            End::Low => Place::Lowest,
            End::High => Place::Highest,
        };
        let request = Request {
            place,
            ..Request::new(order.units())
        };
        self.core.alloc(&request).ok()
    }

    fn give(&mut self, run: Run) {
        self.core.free(run);
    }

    fn note(&mut self, tally: Tally) {
        self.blocks = self.blocks.wrapping_add(tally.blocks);
        self.bytes = self.bytes.wrapping_add(tally.bytes);
        self.uses = self.uses.wrapping_add(tally.uses);
    }
}

/// What is behind a lock that loom knows.
struct Locked<T>(Mutex<T>);

impl<T> Lock<T> for Locked<T> {
    fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        f(&mut self.0.lock().unwrap())
    }
}

/// A pool as the module has it: the same steps, in the same order.
struct Pool {
    state: Locked<State>,
    magazines: Vec<Locked<Mine>>,
}

impl Pool {
    fn new(units: u64, cpus: usize, limit: u64) -> Arc<Self> {
        Arc::new(Self {
            state: Locked(Mutex::new(State::new(units))),
            magazines: (0..cpus)
                .map(|_| Locked(Mutex::new(magazine(limit))))
                .collect(),
        })
    }

    fn alloc(&self, cpu: usize, order: Order) -> Option<Run> {
        let bytes = order.units();
        let mine = &self.magazines[cpu];
        if let Some(run) = mine.with(|magazine| magazine.take(End::Low, order, bytes)) {
            return Some(run);
        }
        let run = self.state.with(|state| {
            let run = state.take(End::Low, order)?;
            state.blocks = state.blocks.wrapping_add(1);
            state.bytes = state.bytes.wrapping_add(bytes);
            magazine::refill(mine, state, End::Low, order);
            Some(run)
        });
        if run.is_some() {
            return run;
        }
        self.gathered(|state| {
            let run = state.take(End::Low, order)?;
            state.blocks = state.blocks.wrapping_add(1);
            state.bytes = state.bytes.wrapping_add(bytes);
            Some(run)
        })
    }

    fn free(&self, cpu: usize, run: Run) {
        let (order, bytes) = (run.order(), run.units());
        let mine = &self.magazines[cpu];
        if let Err(run) = mine.with(|magazine| magazine.put(End::Low, run, bytes)) {
            self.state.with(|state| {
                state.give(run);
                state.blocks = state.blocks.wrapping_sub(1);
                state.bytes = state.bytes.wrapping_sub(bytes);
                magazine::make_room(mine, state, End::Low, order);
            });
        }
    }

    /// With all that is free in one place.
    fn gathered<R>(&self, look: impl FnOnce(&mut State) -> R) -> R {
        magazine::shut(&self.magazines, &self.state);
        let result = self.state.with(look);
        magazine::open(&self.magazines);
        result
    }

    /// From now on somebody waits.
    fn wait(&self) {
        self.state.with(|state| {
            state.waiting = true;
            magazine::shut_at_once(&self.magazines, state);
        });
    }
}

/// Who counts sees each unit once: free, or with somebody.
fn exact(state: &mut State, units: u64) {
    state.check();
    assert_eq!(state.core.free_units() + state.bytes, units);
    assert_eq!(state.blocks, state.bytes);
}

#[test]
fn each_unit_is_counted_once() {
    loom::model(|| {
        let pool = Pool::new(4, 2, 2);
        let other = pool.clone();
        let worker = thread::spawn(move || {
            let run = other.alloc(1, order(0)).unwrap();
            other.free(1, run);
        });
        pool.gathered(|state| exact(state, 4));
        worker.join().unwrap();
        pool.gathered(|state| {
            exact(state, 4);
            assert_eq!(state.core.free_units(), 4);
        });
    });
}

#[test]
fn what_another_frees_is_not_lost() {
    loom::model(|| {
        let pool = Pool::new(4, 2, 1);
        let run = pool.alloc(0, order(0)).unwrap();
        let other = pool.clone();
        let worker = thread::spawn(move || {
            other.free(1, run);
            other.alloc(1, order(0)).unwrap()
        });
        let mine = pool.alloc(0, order(0)).unwrap();
        let theirs = worker.join().unwrap();
        assert_ne!(mine.start(), theirs.start());
        pool.free(0, mine);
        pool.free(0, theirs);
        pool.gathered(|state| assert_eq!(state.core.largest_free(), Some(order(2))));
    });
}

#[test]
fn nobody_is_refused_for_what_is_at_hand() {
    loom::model(|| {
        let pool = Pool::new(2, 2, 2);
        let run = pool.alloc(0, order(0)).unwrap();
        let freed = Arc::new(Mutex::new(false));
        let (other, told) = (pool.clone(), freed.clone());
        let worker = thread::spawn(move || {
            other.free(1, run);
            *told.lock().unwrap() = true;
        });
        let was_free = *freed.lock().unwrap();
        let all = pool.alloc(0, order(1));
        assert!(all.is_some() || !was_free);
        worker.join().unwrap();
        if let Some(run) = all {
            pool.free(0, run);
        }
        assert!(pool.alloc(0, order(1)).is_some());
    });
}

#[test]
fn who_waits_gets_what_is_freed() {
    loom::model(|| {
        let pool = Pool::new(2, 2, 2);
        let run = pool.alloc(0, order(0)).unwrap();
        let other = pool.clone();
        let worker = thread::spawn(move || other.free(1, run));
        pool.wait();
        worker.join().unwrap();
        // Without shutting anything once more.
        pool.state.with(|state| {
            assert!(state.waiting);
            exact(state, 2);
            assert_eq!(state.core.free_units(), 2);
        });
    });
}

#[test]
fn two_who_count_do_not_open_for_each_other() {
    loom::model(|| {
        let pool = Pool::new(2, 1, 2);
        let run = pool.alloc(0, order(0)).unwrap();
        let other = pool.clone();
        let worker = thread::spawn(move || other.gathered(|state| exact(state, 2)));
        pool.gathered(|state| {
            exact(state, 2);
            state.check();
        });
        pool.free(0, run);
        worker.join().unwrap();
        pool.gathered(|state| assert_eq!(state.core.free_units(), 2));
    });
}

/// What nobody else wants: loom's locks need a model around them.
struct Unlocked<T>(RefCell<T>);

impl<T> Lock<T> for Unlocked<T> {
    fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        f(&mut self.0.borrow_mut())
    }
}

fn alone(test: impl Fn(&mut State, &mut Mine)) {
    test(&mut State::new(1 << 12), &mut magazine(1 << 10));
}

#[test]
fn the_last_one_comes_first() {
    alone(|state, mine| {
        let runs: Vec<Run> = (0..3)
            .map(|_| state.take(End::Low, order(0)).unwrap())
            .collect();
        let starts: Vec<u64> = runs.iter().map(Run::start).collect();
        for run in runs {
            mine.put(End::Low, run, 1).unwrap();
        }
        assert_eq!(mine.units(), 3);
        for start in starts.iter().rev() {
            let run = mine.take(End::Low, order(0), 1).unwrap();
            assert_eq!(run.start(), *start);
            state.give(run);
        }
        assert!(mine.take(End::Low, order(0), 1).is_none());
    });
}

#[test]
fn the_ends_are_kept_apart() {
    alone(|state, mine| {
        let run = state.take(End::High, order(2)).unwrap();
        mine.put(End::High, run, 4).unwrap();
        assert!(mine.take(End::Low, order(2), 4).is_none());
        let run = mine.take(End::High, order(2), 4).unwrap();
        state.give(run);
    });
}

#[test]
fn only_whole_blocks_that_were_asked_for_as_such() {
    alone(|state, mine| {
        let exact = Request {
            extent: rust_buddy_host::buddy::Extent::Exact,
            ..Request::new(3)
        };
        for request in [exact, Request::new(3), Request::new(32)] {
            let run = state.core.alloc(&request).unwrap();
            let run = mine.put(End::Low, run, 1).unwrap_err();
            state.give(run);
        }
        for (kept, order) in [(true, 0), (true, 4), (false, 5), (false, 8), (true, 9)] {
            assert_eq!(magazine::keeps(self::order(order)), kept, "order {order}");
        }
        assert_eq!(mine.units(), 0);
    });
}

#[test]
fn no_more_than_its_limit() {
    alone(|state, _| {
        let mut mine = magazine(3);
        for kept in [true, true, true, false] {
            let run = state.take(End::Low, order(0)).unwrap();
            match mine.put(End::Low, run, 1) {
                Ok(()) => assert!(kept),
                Err(run) => {
                    assert!(!kept);
                    state.give(run);
                }
            }
        }
        assert_eq!(mine.units(), 3);
        mine.shut(state);
        assert_eq!(state.core.free_units(), 1 << 12);
    });
}

#[test]
fn an_empty_one_is_filled_by_half_and_a_full_one_emptied_by_half() {
    let mut state = State::new(1 << 12);
    let mine = Unlocked(RefCell::new(magazine(1 << 10)));
    magazine::refill(&mine, &mut state, End::Low, order(0));
    assert_eq!(mine.with(|mine| mine.units()), 64);
    // They are the lowest, and what is low stays together.
    assert!(!state.core.could_alloc_at(63, 1) && state.core.could_alloc_at(64, 64));
    // And come in the order in which the allocator gave them.
    let run = mine.with(|mine| mine.take(End::Low, order(0), 1)).unwrap();
    assert_eq!(run.start(), 0);
    mine.with(|mine| mine.put(End::Low, run, 1)).unwrap();
    for _ in 0..64 {
        let run = state.take(End::Low, order(0)).unwrap();
        mine.with(|mine| mine.put(End::Low, run, 1)).unwrap();
    }
    let run = state.take(End::Low, order(0)).unwrap();
    let run = mine.with(|mine| mine.put(End::Low, run, 1)).unwrap_err();
    state.give(run);
    magazine::make_room(&mine, &mut state, End::Low, order(0));
    assert_eq!(mine.with(|mine| mine.units()), 64);
    // Those that came last stay.
    assert!(state.core.could_alloc_at(0, 64) && !state.core.could_alloc_at(64, 1));
    let run = mine.with(|mine| mine.take(End::Low, order(0), 1)).unwrap();
    assert_eq!(run.start(), 127);
    state.give(run);
    mine.with(|mine| mine.shut(&mut state));
    magazine::refill(&mine, &mut state, End::Low, order(0));
    assert_eq!(state.core.free_units(), 1 << 12);
}

#[test]
fn it_is_not_filled_beyond_its_limit() {
    let mut state = State::new(1 << 12);
    let mine = Unlocked(RefCell::new(magazine(600)));
    magazine::refill(&mine, &mut state, End::High, order(9));
    assert_eq!(mine.with(|mine| mine.units()), 512);
    magazine::refill(&mine, &mut state, End::High, order(4));
    assert_eq!(mine.with(|mine| mine.units()), 592);
}

#[test]
fn shut_as_often_as_opened() {
    alone(|state, mine| {
        let put = |state: &mut State, mine: &mut Mine| {
            let run = state.take(End::Low, order(0)).unwrap();
            match mine.put(End::Low, run, 1) {
                Ok(()) => true,
                Err(run) => {
                    state.give(run);
                    false
                }
            }
        };
        assert!(put(state, mine));
        mine.shut(state);
        assert_eq!(mine.units(), 0);
        mine.shut(state);
        mine.open();
        assert!(!put(state, mine));
        mine.open();
        assert!(put(state, mine));
        // What is opened too often is open.
        mine.open();
        assert!(put(state, mine));
        mine.shut(state);
        assert!(!put(state, mine));
        state.check();
        assert_eq!(state.core.free_units(), 1 << 12);
        // All three that went in, none that came out.
        assert_eq!((state.blocks, state.uses), (3u64.wrapping_neg(), 3));
    });
}
