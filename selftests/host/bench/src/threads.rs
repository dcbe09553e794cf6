// SPDX-License-Identifier: GPL-2.0

//! Measures the throughput of two threads with one allocator, relative to one thread.
//!
//! The load is single units at 50 %. *apart*: each thread frees and allocates its own blocks, 64
//! random ones at a time. *crossed*: each thread frees the blocks that the other one has allocated.
//! *one way*: one thread only allocates and the other one only frees. A single thread does both in
//! turns.

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

/// The thread that frees a block.
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

/// Aligned to cache lines of its own.
#[repr(align(128))]
struct Alone<T>(T);

/// A ring of batches from one thread to another. A batch is swapped with the one in the ring, so
/// that nothing is allocated.
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

    /// Puts a batch in, and returns an empty one in its place.
    fn leave(&self, batch: &mut Vec<B>) {
        let left = self.left.0.load(Relaxed);
        while left - self.taken.0.load(Acquire) >= AHEAD {
            hint::spin_loop();
        }
        self.swap(left, batch);
        self.left.0.store(left + 1, Release);
    }

    /// Takes a batch out, and leaves an empty one in its place.
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

/// Allocated blocks, any of which may be freed next.
struct Own<B> {
    live: Vec<B>,
    random: Random,
}

impl<B> Own<B> {
    /// Takes a random batch out, and puts `other` in its place.
    fn exchange(&mut self, other: &mut [B]) {
        for block in other {
            let at = self.random.below(self.live.len());
            std::mem::swap(&mut self.live[at], block);
        }
    }
}

/// Returns the millions of operations per second of all threads together.
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
                // A single thread does both.
                let (gives, frees) = match (sharing, threads) {
                    (Sharing::OneWay, 2) => (me == 0, me == 1),
                    _ => (true, true),
                };
                let rounds = match (sharing, threads) {
                    // A single thread does the work of two.
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
