// SPDX-License-Identifier: GPL-2.0

//! Tests magazines alone, and with two threads in every order in which their locks can interleave
//! (loom).

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
        BlockSource,
        End,
        Lock,
        Magazine,
        StatsDelta,
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

/// The allocator and the depot that two CPUs share, and the pool's counters.
struct State {
    core: Buddy<Vec<u64>>,
    depot: Mine,
    /// Blocks and bytes that are allocated, according to the updates from magazines so far.
    blocks: u64,
    bytes: u64,
    uses: u64,
    waiting: bool,
}

impl State {
    fn new(units: u64, depot: u64) -> Self {
        let words = vec![0; storage_len(0, units).unwrap()];
        Self {
            core: Buddy::new(words, Default::default(), 0, units).unwrap(),
            depot: magazine(depot),
            blocks: 0,
            bytes: 0,
            uses: 0,
            waiting: false,
        }
    }

    /// Allocates a block without a magazine, and counts it.
    fn take_counted(&mut self, order: Order) -> Option<Run> {
        let run = self.alloc(End::Low, order)?;
        self.blocks = self.blocks.wrapping_add(1);
        self.bytes = self.bytes.wrapping_add(run.units());
        Some(run)
    }

    fn check(&self) {
        self.core.validate().unwrap();
    }
}

impl BlockSource for State {
    type Slots = Vec<Option<Packed>>;

    fn depot(&mut self) -> &mut Mine {
        &mut self.depot
    }

    fn alloc(&mut self, end: End, order: Order) -> Option<Run> {
        let place = match end {
            End::Low => Place::BottomUp,
            End::High => Place::TopDown,
        };
        let request = Request {
            place,
            ..Request::new(order.units())
        };
        self.core.alloc(&request).ok()
    }

    fn free(&mut self, run: Run) {
        self.core.free(run);
    }

    fn add_stats(&mut self, delta: StatsDelta) {
        self.blocks = self.blocks.wrapping_add(delta.blocks);
        self.bytes = self.bytes.wrapping_add(delta.bytes);
        self.uses = self.uses.wrapping_add(delta.uses);
    }
}

/// State behind a lock that loom controls.
struct Locked<T>(Mutex<T>);

impl<T> Lock<T> for Locked<T> {
    fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        f(&mut self.0.lock().unwrap())
    }
}

/// A pool that does the same steps as the module's, in the same order.
struct Pool {
    state: Locked<State>,
    magazines: Vec<Locked<Mine>>,
}

impl Pool {
    fn new(units: u64, cpus: usize, limit: u64) -> Arc<Self> {
        Arc::new(Self {
            state: Locked(Mutex::new(State::new(units, limit))),
            magazines: (0..cpus)
                .map(|_| Locked(Mutex::new(magazine(limit))))
                .collect(),
        })
    }

    fn alloc(&self, cpu: usize, order: Order) -> Option<Run> {
        let bytes = order.units();
        let mine = &self.magazines[cpu];
        if let Some(run) = mine.with(|magazine| magazine.alloc(End::Low, order, bytes)) {
            return Some(run);
        }
        let run = self.state.with(|state| {
            let ready = magazine::refill(mine, state, End::Low, order, bytes);
            ready.or_else(|| state.take_counted(order))
        });
        if run.is_some() {
            return run;
        }
        self.gathered(|state| state.take_counted(order))
    }

    fn free(&self, cpu: usize, run: Run) {
        let bytes = run.units();
        let mine = &self.magazines[cpu];
        if let Err(run) = mine.with(|magazine| magazine.put(End::Low, run, bytes)) {
            self.state.with(|state| {
                if let Err(run) = magazine::flush_and_put(mine, state, End::Low, run, bytes) {
                    state.free(run);
                    state.blocks = state.blocks.wrapping_sub(1);
                    state.bytes = state.bytes.wrapping_sub(bytes);
                }
            });
        }
    }

    /// Calls `look` with all magazines disabled, so that all free units are in the allocator.
    fn gathered<R>(&self, look: impl FnOnce(&mut State) -> R) -> R {
        magazine::disable_all(&self.magazines, &self.state);
        let result = self.state.with(look);
        magazine::enable_all(&self.magazines);
        result
    }

    /// Disables the magazines for as long as a request waits.
    fn wait(&self) {
        self.state.with(|state| {
            state.waiting = true;
            magazine::disable_all_locked(&self.magazines, state);
        });
    }
}

/// Checks that each unit is counted once, as free or as allocated.
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
fn block_freed_by_another_cpu_is_not_lost() {
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
fn cached_blocks_refuse_no_request() {
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
fn waiter_gets_the_freed_block() {
    loom::model(|| {
        let pool = Pool::new(2, 2, 2);
        let run = pool.alloc(0, order(0)).unwrap();
        let other = pool.clone();
        let worker = thread::spawn(move || other.free(1, run));
        pool.wait();
        worker.join().unwrap();
        // No magazine has to be disabled again.
        pool.state.with(|state| {
            assert!(state.waiting);
            exact(state, 2);
            assert_eq!(state.core.free_units(), 2);
        });
    });
}

#[test]
fn two_counters_do_not_open_for_each_other() {
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

const MANY: u64 = 1 << 10;

/// Returns a pool with one block of order 4 allocated. CPU 1's magazine is full for that order, so
/// freeing the block moves half of it to the depot.
fn about_to_spill() -> (Arc<Pool>, Run) {
    let pool = Pool::new(MANY, 2, MANY);
    let mut out: Vec<Run> = (0..33).map(|_| pool.alloc(0, order(4)).unwrap()).collect();
    let last = out.pop().unwrap();
    out.into_iter().for_each(|run| pool.free(1, run));
    (pool, last)
}

#[test]
fn blocks_in_the_depot_are_counted() {
    loom::model(|| {
        let (pool, last) = about_to_spill();
        let other = pool.clone();
        let worker = thread::spawn(move || other.free(1, last));
        pool.gathered(|state| {
            state.check();
            assert_eq!(state.core.free_units() + state.bytes, MANY);
        });
        worker.join().unwrap();
        assert!(pool.alloc(0, order(10)).is_some());
    });
}

#[test]
fn waiter_gets_blocks_of_the_depot() {
    loom::model(|| {
        let (pool, last) = about_to_spill();
        let other = pool.clone();
        let worker = thread::spawn(move || {
            other.free(1, last);
            other.alloc(0, order(4)).unwrap()
        });
        pool.wait();
        let run = worker.join().unwrap();
        pool.free(1, run);
        pool.state
            .with(|state| assert_eq!(state.core.free_units(), MANY));
    });
}

/// State without a lock, for one thread. loom's locks work only within a model.
struct Unlocked<T>(RefCell<T>);

impl<T> Lock<T> for Unlocked<T> {
    fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        f(&mut self.0.borrow_mut())
    }
}

fn alone(test: impl Fn(&mut State, &mut Mine)) {
    test(&mut State::new(1 << 12, 0), &mut magazine(1 << 10));
}

#[test]
fn the_last_one_comes_first() {
    alone(|state, mine| {
        let runs: Vec<Run> = (0..3)
            .map(|_| state.alloc(End::Low, order(0)).unwrap())
            .collect();
        let starts: Vec<u64> = runs.iter().map(Run::start).collect();
        for run in runs {
            mine.put(End::Low, run, 1).unwrap();
        }
        assert_eq!(mine.units(), 3);
        for start in starts.iter().rev() {
            let run = mine.alloc(End::Low, order(0), 1).unwrap();
            assert_eq!(run.start(), *start);
            state.free(run);
        }
        assert!(mine.alloc(End::Low, order(0), 1).is_none());
    });
}

#[test]
fn the_ends_are_kept_apart() {
    alone(|state, mine| {
        let run = state.alloc(End::High, order(2)).unwrap();
        mine.put(End::High, run, 4).unwrap();
        assert!(mine.alloc(End::Low, order(2), 4).is_none());
        let run = mine.alloc(End::High, order(2), 4).unwrap();
        state.free(run);
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
            state.free(run);
        }
        for (kept, order) in [(true, 0), (true, 4), (false, 5), (false, 8), (true, 9)] {
            assert_eq!(
                magazine::is_cached(self::order(order)),
                kept,
                "order {order}"
            );
        }
        assert_eq!(mine.units(), 0);
    });
}

#[test]
fn no_more_than_its_limit() {
    alone(|state, _| {
        let mut mine = magazine(3);
        for kept in [true, true, true, false] {
            let run = state.alloc(End::Low, order(0)).unwrap();
            match mine.put(End::Low, run, 1) {
                Ok(()) => assert!(kept),
                Err(run) => {
                    assert!(!kept);
                    state.free(run);
                }
            }
        }
        assert_eq!(mine.units(), 3);
        mine.disable(state);
        assert_eq!(state.core.free_units(), 1 << 12);
    });
}

/// One CPU's magazine, used for the low end.
struct Cpu(Unlocked<Mine>);

impl Cpu {
    fn new(limit: u64) -> Self {
        Self(Unlocked(RefCell::new(magazine(limit))))
    }

    fn units(&self) -> u64 {
        self.0.with(|mine| mine.units())
    }

    fn take(&self) -> Option<Run> {
        self.0.with(|mine| mine.alloc(End::Low, order(0), 1))
    }

    fn put(&self, run: Run) -> Result<(), Run> {
        self.0.with(|mine| mine.put(End::Low, run, 1))
    }

    fn refill(&self, state: &mut State) -> Option<Run> {
        magazine::refill(&self.0, state, End::Low, order(0), 1)
    }

    fn flush_and_put(&self, state: &mut State, run: Run) {
        magazine::flush_and_put(&self.0, state, End::Low, run, 1).unwrap();
    }

    /// Puts blocks in until the magazine is full.
    fn fill_up(&self, state: &mut State) {
        for _ in self.units()..128 {
            let run = state.alloc(End::Low, order(0)).unwrap();
            self.put(run).unwrap();
        }
    }
}

#[test]
fn an_empty_one_is_filled_and_a_full_one_emptied_a_little() {
    let mut state = State::new(1 << 12, 0);
    let mine = Cpu::new(1 << 10);
    // The blocks are the lowest ones, in the order in which the allocator returned them.
    let run = mine.refill(&mut state).unwrap();
    assert_eq!((run.start(), mine.units()), (0, 7));
    assert!(!state.core.could_alloc_at(7, 1) && state.core.could_alloc_at(8, 8));
    let next = mine.take().unwrap();
    assert_eq!(next.start(), 1);
    mine.put(next).unwrap();
    mine.put(run).unwrap();
    mine.fill_up(&mut state);
    let run = state.alloc(End::Low, order(0)).unwrap();
    let run = mine.put(run).unwrap_err();
    mine.flush_and_put(&mut state, run);
    assert_eq!(mine.units(), 128 - 8 + 1);
    // The oldest blocks were given back: 7 to 2, and the two that were put in after them.
    assert!(state.core.could_alloc_at(0, 8) && !state.core.could_alloc_at(8, 1));
    assert_eq!(mine.take().unwrap().start(), 128);
    mine.0.with(|mine| mine.disable(&mut state));
    assert!(mine.refill(&mut state).is_none());
    assert_eq!(state.core.free_units(), (1 << 12) - 1);
}

#[test]
fn depot_passes_blocks_between_cpus() {
    let mut state = State::new(1 << 12, 1 << 10);
    let (frees, allocates) = (Cpu::new(1 << 10), Cpu::new(1 << 10));
    let mut out: Vec<Run> = (0..1024)
        .map(|_| state.alloc(End::Low, order(0)).unwrap())
        .collect();
    let mut free = Vec::new();
    for _ in 0..16 {
        for run in out.drain(..64) {
            if let Err(run) = frees.put(run) {
                frees.flush_and_put(&mut state, run);
            }
        }
        for _ in 0..64 {
            let run = allocates.take().or_else(|| allocates.refill(&mut state));
            out.push(run.unwrap());
        }
        free.push(state.core.free_units());
    }
    // A full magazine keeps its blocks. From then on, each half of them passes through the depot.
    assert!(free[0] > free[2]);
    assert_eq!(free[2..], [free[2]; 14]);
    let mut starts: Vec<u64> = out.iter().map(Run::start).collect();
    starts.sort_unstable();
    starts.dedup();
    assert_eq!(starts.len(), 1024);
}

#[test]
fn depot_is_drained_with_the_magazines() {
    let mut state = State::new(1 << 12, 1 << 10);
    let mine = Cpu::new(1 << 10);
    for _ in 0..2 {
        mine.fill_up(&mut state);
        let run = state.alloc(End::Low, order(0)).unwrap();
        mine.flush_and_put(&mut state, run);
        assert_eq!((mine.units(), state.depot.units()), (65, 64));
        magazine::disable_all_locked([&mine.0], &mut state);
        assert_eq!((mine.units(), state.depot.units()), (0, 0));
        assert_eq!(state.core.free_units(), 1 << 12);
        magazine::enable_all([&mine.0]);
    }
}

#[test]
fn the_depot_holds_no_more_than_its_limit() {
    let mut state = State::new(1 << 12, 70);
    let mine = Cpu::new(1 << 10);
    for units in [64, 70, 70] {
        mine.fill_up(&mut state);
        let run = state.alloc(End::Low, order(0)).unwrap();
        mine.flush_and_put(&mut state, run);
        assert_eq!(state.depot.units(), units);
    }
    assert_eq!(mine.units(), 121);
}

#[test]
fn it_is_not_filled_beyond_its_limit() {
    let mut state = State::new(1 << 12, 0);
    let mine = Unlocked(RefCell::new(magazine(600)));
    let units = || mine.with(|mine| mine.units());
    let mut refill = |at| magazine::refill(&mine, &mut state, End::High, order(at), 1);
    let small = refill(4).unwrap();
    assert!(refill(0).is_some());
    assert_eq!(units(), 7 * 16 + 7);
    // A block that does not fit replaces smaller ones, the largest first, and no more than
    // necessary.
    let large = refill(9).unwrap();
    assert_eq!(units(), 5 * 16 + 7);
    mine.with(|mine| mine.put(End::High, large, 1)).unwrap();
    assert!(mine.with(|mine| mine.put(End::High, small, 1)).is_err());
    assert_eq!(units(), 512 + 5 * 16 + 7);
    assert!(refill(7).is_none());
    // A block that can never fit replaces nothing.
    let few = Unlocked(RefCell::new(magazine(500)));
    let mut refill = |at| magazine::refill(&few, &mut state, End::High, order(at), 1);
    assert!(refill(0).is_some() && refill(9).is_none());
    assert_eq!(few.with(|few| few.units()), 7);
    // A small block does not replace a large one.
    let one = Unlocked(RefCell::new(magazine(512)));
    let large = state.alloc(End::High, order(9)).unwrap();
    one.with(|one| one.put(End::High, large, 1)).unwrap();
    assert!(magazine::refill(&one, &mut state, End::High, order(0), 1).is_none());
    assert_eq!(one.with(|one| one.units()), 512);
}

#[test]
fn shut_as_often_as_opened() {
    alone(|state, mine| {
        let put = |state: &mut State, mine: &mut Mine| {
            let run = state.alloc(End::Low, order(0)).unwrap();
            match mine.put(End::Low, run, 1) {
                Ok(()) => true,
                Err(run) => {
                    state.free(run);
                    false
                }
            }
        };
        assert!(put(state, mine));
        mine.disable(state);
        assert_eq!(mine.units(), 0);
        mine.disable(state);
        mine.enable();
        assert!(!put(state, mine));
        mine.enable();
        assert!(put(state, mine));
        // A surplus call to open() has no effect.
        mine.enable();
        assert!(put(state, mine));
        mine.disable(state);
        assert!(!put(state, mine));
        state.check();
        assert_eq!(state.core.free_units(), 1 << 12);
        // Three blocks were put in, and none was taken out.
        assert_eq!((state.blocks, state.uses), (3u64.wrapping_neg(), 3));
    });
}
