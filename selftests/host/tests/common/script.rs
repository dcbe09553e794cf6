// SPDX-License-Identifier: GPL-2.0

//! Decodes bytes into a region and operations on it, and plays them on a bench. A fuzzer varies the
//! bytes.
//!
//! Every string of bytes is valid. Zeroes follow its end. Changing, inserting or removing a byte
//! changes one operation, or the following ones. The files of the corpus are strings of this kind,
//! so a change to their meaning requires a new corpus (docs/testing.md).

use super::{
    policy,
    Bench,
    Care,
    Op,
    Outcome,
    Random,
    Region,
    Tally,
    To, //
};
use rust_buddy_host::buddy::{
    storage_len,
    AlwaysJoin,
    Buddy,
    ConfigError,
    Extent,
    GrowDirection,
    Order,
    Place,
    Request, //
};
use std::fmt;

/// The model stores each unit and is compared at each step, so larger regions cost time and find no
/// more.
const LARGEST: u64 = 5000;
/// The limit with a policy, which is slower.
const LARGEST_WITH_POLICY: u64 = 300;

/// Reads bytes from the left, and zeroes after the last one.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        first
    }

    fn short(&mut self) -> u64 {
        u64::from(u16::from_le_bytes([self.byte(), self.byte()]))
    }

    fn long(&mut self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|_| self.byte()))
    }

    /// Reads a first unit and a length, valid as a region in most cases.
    fn geometry(&mut self) -> (u64, u64) {
        let shape = self.byte();
        let len = match shape & 7 {
            0 => 1 + u64::from(self.byte() % 32),
            1..=4 => 1 + u64::from(self.byte()),
            5 => 1 + self.short() % 1024,
            6 => 1 + self.short() % LARGEST,
            _ => self.long(),
        };
        let near = u64::from(self.byte());
        let base = match (shape >> 3) & 7 {
            0 | 1 => near,
            2 => near + (self.short() << 6),
            3 => (1_u64 << (self.byte() % 64)).saturating_sub(near),
            4 => (1_u64 << (self.byte() % 64)).saturating_add(near),
            5 => (1_u64 << 63).saturating_sub(len),
            6 => (1_u64 << 63).saturating_sub(len).saturating_add(near),
            _ => self.long(),
        };
        (base, len)
    }

    /// Reads a number of units: small, close to a power of two, or any.
    fn units(&mut self) -> u64 {
        match self.byte() {
            tiny @ 0..=63 => 1 + u64::from(tiny % 8),
            small @ 64..=159 => u64::from(small - 55),
            power @ 160..=191 => 1 << (power - 160),
            above @ 192..=223 => (1 << (above - 192)) + 1,
            224..=251 => self.short(),
            252 => 0,
            _ => self.long(),
        }
    }

    /// Reads a unit in the region, next to it, or far away.
    fn unit(&mut self, region: Region) -> u64 {
        match self.short() {
            near @ 0..=0xfeff => match near % (region.len + 8) {
                up if up < region.len + 4 => region.base + up,
                up => region.base.saturating_sub(region.len + 8 - up),
            },
            0xff00..=0xff7f => 0,
            0xff80..=0xffef => u64::MAX,
            _ => self.long(),
        }
    }

    /// Reads an order, a small one half of the time.
    fn order(&mut self) -> Order {
        let byte = u32::from(self.byte());
        Order::saturating(byte % if byte < 128 { 8 } else { 32 })
    }

    /// Reads a request. Its first byte tells which fields follow.
    fn request(&mut self, region: Region) -> Request {
        let has = self.byte();
        let request = Request {
            extent: [Extent::Block, Extent::Exact][usize::from(has & 1)],
            place: [Place::Any, Place::BottomUp, Place::TopDown, Place::Any]
                [usize::from((has >> 1) & 3)],
            ..Request::new(self.units())
        };
        let window = match (has >> 3) & 7 {
            0..=2 => request.window,
            3 => (self.unit(region), u64::MAX),
            4 => (0, self.unit(region)),
            5 => (self.unit(region), self.unit(region)),
            _ => {
                let from = self.unit(region);
                (from, from.saturating_add(self.units()))
            }
        };
        let align = if has & 64 != 0 {
            self.order()
        } else {
            request.align
        };
        let split_limit = if has & 128 != 0 {
            self.order()
        } else {
            request.split_limit
        };
        Request {
            window,
            align,
            split_limit,
            ..request
        }
    }

    fn act(&mut self, region: Region) -> Act {
        Act::Op(match self.byte() % 32 {
            0..=9 => Op::Alloc(self.request(region)),
            10..=12 => Op::AllocAt(self.unit(region), 1 + u64::from(self.byte() % 16)),
            13 => Op::AllocAt(self.unit(region), self.units()),
            14..=18 => {
                let (live, how) = (self.byte(), self.byte());
                let to = match (how >> 1) & 7 {
                    0 | 1 => To::Double,
                    2 => To::Units(self.units()),
                    3 => To::More(self.units()),
                    _ => To::More(1 + u64::from(how >> 4)),
                };
                let direction = [GrowDirection::Up, GrowDirection::Down][usize::from(how & 1)];
                Op::Grow(u32::from(live), direction, to)
            }
            19..=24 => Op::Free(u32::from(self.byte())),
            25 => {
                let orders = u32::from(self.byte());
                let tooth = Order::saturating(orders % 4);
                let step = Order::saturating(3 + (orders >> 2) % 8);
                return Act::Comb(tooth, step, self.byte());
            }
            26 => Op::Count(self.unit(region), self.unit(region)),
            27 => return Act::FreeForeign(self.unit(region), 1 + self.short() % (region.len + 8)),
            28 => return Act::Rejoin,
            29 | 30 => return Act::Tag(self.unit(region), self.units(), self.byte() % 4),
            _ => return Act::Moods(self.byte()),
        })
    }
}

/// One step of a script.
#[derive(Clone, Copy, Debug)]
enum Act {
    Op(Op),
    /// Allocates everything except blocks of one order on boundaries of the other, as the bits say.
    /// Random operations would take long to reach this state. Not with a policy.
    Comb(Order, Order, u8),
    /// Frees the units of a run of another allocator. Not with a policy.
    FreeForeign(u64, u64),
    Rejoin,
    /// Changes the tags of units, which the policy uses from now on. Does nothing without a policy.
    Tag(u64, u64, u8),
    /// Makes the policy answer at random, or by tags again if this is 0.
    Moods(u8),
}

/// A decoded script.
pub struct Script {
    base: u64,
    len: u64,
    /// The permitted difference of tags, and the initial tags, repeated. `None` if buddies always
    /// join.
    policy: Option<(u8, [u8; 4])>,
    acts: Vec<Act>,
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            base, len, policy, ..
        } = self;
        writeln!(f, "[{base}, +{len}), policy {policy:?}")?;
        for (i, act) in self.acts.iter().enumerate() {
            writeln!(f, "{i}: {act:?}")?;
        }
        Ok(())
    }
}

impl Script {
    pub fn new(bytes: &[u8]) -> Self {
        let mut bytes = Bytes(bytes);
        let (base, mut len) = bytes.geometry();
        let mode = bytes.byte();
        let policy = (mode % 4 == 3).then(|| {
            let tags = bytes.byte();
            (
                (mode >> 2) & 3,
                [0, 2, 4, 6].map(|shift| (tags >> shift) & 3),
            )
        });
        if policy.is_some() {
            len = len.min(LARGEST_WITH_POLICY);
        }
        let mut acts = Vec::new();
        // A region that is too large to play on needs no operations.
        if len <= LARGEST && storage_len(base, len).is_ok() {
            while !bytes.0.is_empty() {
                acts.push(bytes.act(Region::new(base, len)));
            }
        }
        Self {
            base,
            len,
            policy,
            acts,
        }
    }

    /// Plays the script on core and model. Returns the numbers of successes and refusals.
    pub fn play(&self) -> Result<[Tally; 4], String> {
        if !self.is_region()? || self.len > LARGEST {
            return Ok(Default::default());
        }
        let region = Region::new(self.base, self.len);
        match self.policy {
            Some((spread, first)) => {
                let tags: Vec<u8> = first.into_iter().cycle().take(self.len as usize).collect();
                self.play_with_policy(policy::Tags::new(region, &tags, spread))?;
                Ok(Default::default())
            }
            None => self.play_without_policy(region),
        }
    }

    /// Returns whether this is a valid region. The core must agree, also on the size of the
    /// storage.
    fn is_region(&self) -> Result<bool, String> {
        let got = storage_len(self.base, self.len);
        let end = u128::from(self.base) + u128::from(self.len);
        if self.len == 0 || self.len > 1 << 30 || end > 1 << 63 {
            ensure!(got == Err(ConfigError::Region), "no region: {got:?}");
            let new = Buddy::new(vec![], AlwaysJoin, self.base, self.len).err();
            ensure!(new == Some(ConfigError::Region), "no region: {new:?}");
            return Ok(false);
        }
        let Ok(words) = got else {
            return Err(format!("a region: {got:?}"));
        };
        if self.len <= LARGEST {
            let few = Buddy::new(vec![0; words - 1], AlwaysJoin, self.base, self.len).err();
            ensure!(few == Some(ConfigError::Storage), "too few words: {few:?}");
        }
        Ok(true)
    }

    fn play_without_policy(&self, region: Region) -> Result<[Tally; 4], String> {
        let mut bench = Bench::new(region);
        bench.check(Care::Stretches)?;
        let (base, len, largest) = (bench.core.base(), bench.core.len(), bench.core.max_order());
        ensure!(
            Region::new(base, len) == region && Some(largest) == bench.core.largest_free(),
            "[{base}, +{len}), largest {largest:?}, is not as requested"
        );
        for (i, act) in self.acts.iter().enumerate() {
            // Compares everything now and then. A fault persists, so it is found later.
            let care = match i % 16 {
                15 if region.len <= 64 => Care::Units,
                7 | 15 => Care::Stretches,
                _ if region.len <= 256 => Care::Stretches,
                _ => Care::Counters,
            };
            let outcome = match *act {
                Act::Op(op) => bench.step(&op, care),
                Act::Comb(tooth, step, teeth) => bench.comb(tooth, step, teeth),
                Act::FreeForeign(start, units) => {
                    // The foreign run needs a valid region of its own.
                    bench.free_foreign(start.min((1 << 63) - units), units)
                }
                Act::Rejoin => bench.rejoin(),
                Act::Tag(..) | Act::Moods(_) => Ok(()),
            };
            outcome.map_err(|why| format!("step {i}, {act:?}: {why}"))?;
        }
        let tally = bench.tally;
        bench
            .finish(Care::Counters, Care::Stretches)
            .map_err(|why| format!("in the end: {why}"))?;
        Ok(tally)
    }

    fn play_with_policy(&self, tags: policy::Tags) -> Outcome {
        let mut bench = policy::Bench::new(tags);
        for (i, act) in self.acts.iter().enumerate() {
            let outcome = match *act {
                Act::Op(op) => bench.op(&op),
                Act::Comb(..) | Act::FreeForeign(..) => Ok(()),
                Act::Rejoin => bench.rejoin(),
                Act::Tag(start, units, value) => {
                    bench.tag(start, units, value);
                    Ok(())
                }
                Act::Moods(seed) => {
                    bench.moods((seed != 0).then(|| Random(u64::from(seed))));
                    Ok(())
                }
            };
            outcome
                .and_then(|()| bench.check())
                .map_err(|why| format!("step {i}, {act:?}: {why}"))?;
        }
        bench.finish().map_err(|why| format!("in the end: {why}"))
    }
}
