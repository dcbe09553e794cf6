// SPDX-License-Identifier: GPL-2.0

//! Two threads with one allocator: how much more do they get done than one?
//!
//! Single units at 50 %. *apart*: each frees and allocates its own, 64 at random at a time.
//! *crossed*: the same, but what one allocated the other frees. *one way*: one only allocates and
//! the other only frees; for one thread it is the same in turns.

use crate::{
    loads::{
        Random,
        BATCH, //
    },
    peers::{
        Peer,
        THREAD,
        THREADS, //
    }, //
};
use std::{
    hint,
    sync::{
        atomic::{
            AtomicUsize,
            Ordering::{
                Acquire,
                Relaxed,
                Release, //
            }, //
        },
        Mutex, //
    },
    thread,
    time::Instant, //
};

/// Who frees what.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    Apart,
    Crossed,
    OneWay,
}

pub const SHARINGS: [(&str, Sharing); 3] = [
    ("apart", Sharing::Apart),
    ("crossed", Sharing::Crossed),
    ("one way", Sharing::OneWay),
];

/// Batches that may wait for a thread.
const AHEAD: usize = 8;

/// On lines of its own.
#[repr(align(128))]
struct Alone<T>(T);

/// What one thread left for another: a ring of batches. Each is swapped for the one that is there,
/// so that nothing is allocated on the way.
struct Lane<B> {
    batches: [Alone<Mutex<Vec<B>>>; AHEAD],
    left: Alone<AtomicUsize>,
    taken: Alone<AtomicUsize>,
}

impl<B> Lane<B> {
    fn new() -> Self {
        Self {
            batches: std::array::from_fn(|_| Alone(Mutex::new(Vec::with_capacity(BATCH)))),
            left: Alone(AtomicUsize::new(0)),
            taken: Alone(AtomicUsize::new(0)),
        }
    }

    /// Leaves a batch, and gets an empty one for it.
    fn leave(&self, batch: &mut Vec<B>) {
        let left = self.left.0.load(Relaxed);
        while left - self.taken.0.load(Acquire) >= AHEAD {
            hint::spin_loop();
        }
        self.swap(left, batch);
        self.left.0.store(left + 1, Release);
    }

    /// Takes a batch, and leaves an empty one for it.
    fn take(&self, batch: &mut Vec<B>) {
        let taken = self.taken.0.load(Relaxed);
        while self.left.0.load(Acquire) == taken {
            hint::spin_loop();
        }
        self.swap(taken, batch);
        self.taken.0.store(taken + 1, Release);
    }

    fn swap(&self, at: usize, batch: &mut Vec<B>) {
        let mut there = self.batches[at % AHEAD].0.lock().expect("nobody panics");
        std::mem::swap(&mut *there, batch);
    }
}

fn fill<P: Peer>(peer: &P, batch: &mut Vec<P::Block>) {
    batch.extend((0..BATCH).filter_map(|_| peer.alloc(0)));
}

/// Blocks that are out, of which any may be the next to go.
struct Own<B> {
    live: Vec<B>,
    random: Random,
}

impl<B> Own<B> {
    /// Takes a batch out at random, and `other` in its place.
    fn exchange(&mut self, other: &mut [B]) {
        for block in other {
            let at = self.random.below(self.live.len());
            std::mem::swap(&mut self.live[at], block);
        }
    }
}

/// Operations a second, in millions, of so many threads together.
pub fn throughput<P>(units: u64, threads: usize, sharing: Sharing, operations: usize) -> f64
where
    P: Peer + Sync,
    P::Block: Send,
{
    let peer = P::new(units);
    let lanes: [Lane<P::Block>; THREADS] = std::array::from_fn(|_| Lane::new());
    let batches = operations / BATCH / 2;
    let owned: Vec<Own<P::Block>> = (0..threads)
        .map(|i| Own {
            live: (0..units as usize / 2 / threads)
                .filter_map(|_| peer.alloc(0))
                .collect(),
            random: Random(i as u64),
        })
        .collect();
    let begun = AtomicUsize::new(0);
    let slowest = Mutex::new(0f64);
    thread::scope(|scope| {
        for (me, mut own) in owned.into_iter().enumerate() {
            let (peer, lanes, begun, slowest) = (&peer, &lanes, &begun, &slowest);
            scope.spawn(move || {
                THREAD.set(me);
                begun.fetch_add(1, Release);
                while begun.load(Acquire) < threads {
                    hint::spin_loop();
                }
                let other = (me + 1) % threads;
                let clock = Instant::now();
                let mut mine = Vec::with_capacity(BATCH);
                // In a run with one thread that is both.
                let (gives, frees) = match (sharing, threads) {
                    (Sharing::OneWay, 2) => (me == 0, me == 1),
                    _ => (true, true),
                };
                let rounds = match (sharing, threads) {
                    // All that two did, by one.
                    (Sharing::OneWay, 2) => 2 * batches,
                    _ => batches,
                };
                for _ in 0..rounds {
                    if gives {
                        fill(peer, &mut mine);
                    }
                    match sharing {
                        Sharing::Apart => own.exchange(&mut mine),
                        Sharing::Crossed => {
                            own.exchange(&mut mine);
                            lanes[other].leave(&mut mine);
                            lanes[me].take(&mut mine);
                        }
                        Sharing::OneWay if threads == 1 => own.exchange(&mut mine),
                        Sharing::OneWay if gives => lanes[other].leave(&mut mine),
                        Sharing::OneWay => {
                            lanes[me].take(&mut mine);
                            own.exchange(&mut mine);
                        }
                    }
                    if frees {
                        mine.drain(..).for_each(|block| peer.free(block));
                    }
                }
                let took = clock.elapsed().as_secs_f64();
                let mut slowest = slowest.lock().expect("nobody panics");
                *slowest = slowest.max(took);
                drop(slowest);
                own.live.drain(..).for_each(|block| peer.free(block));
            });
        }
    });
    let took = slowest.into_inner().expect("nobody panics");
    (threads * batches * BATCH * 2) as f64 / took / 1e6
}
