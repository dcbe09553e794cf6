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

/// Where threads leave what they allocated for each other: a few batches at most.
struct Exchange<B> {
    /// For each thread, what others left for it.
    left: [Mutex<Vec<Vec<B>>>; THREADS],
    waiting: [AtomicUsize; THREADS],
}

/// Batches that may wait for a thread.
const AHEAD: usize = 8;

impl<B> Exchange<B> {
    fn new() -> Self {
        Self {
            left: Default::default(),
            waiting: Default::default(),
        }
    }

    fn leave(&self, to: usize, batch: Vec<B>) {
        while self.waiting[to].load(Acquire) >= AHEAD {
            hint::spin_loop();
        }
        let mut left = self.left[to].lock().expect("nobody panics");
        left.push(batch);
        self.waiting[to].store(left.len(), Release);
    }

    fn take(&self, at: usize) -> Vec<B> {
        loop {
            if self.waiting[at].load(Acquire) > 0 {
                let mut left = self.left[at].lock().expect("nobody panics");
                let batch = left.pop().expect("it was counted");
                self.waiting[at].store(left.len(), Release);
                return batch;
            }
            hint::spin_loop();
        }
    }
}

fn batch<P: Peer>(peer: &P, mut batch: Vec<P::Block>) -> Vec<P::Block> {
    batch.extend((0..BATCH).filter_map(|_| peer.alloc(0)));
    batch
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
    let exchange = Exchange::new();
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
            let (peer, exchange, begun, slowest) = (&peer, &exchange, &begun, &slowest);
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
                        mine = batch(peer, mine);
                    }
                    match sharing {
                        Sharing::Apart => own.exchange(&mut mine),
                        Sharing::Crossed => {
                            own.exchange(&mut mine);
                            exchange.leave(other, std::mem::take(&mut mine));
                            mine = exchange.take(me);
                        }
                        Sharing::OneWay if threads == 1 => own.exchange(&mut mine),
                        Sharing::OneWay if gives => {
                            exchange.leave(other, std::mem::take(&mut mine));
                        }
                        Sharing::OneWay => {
                            mine = exchange.take(me);
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
