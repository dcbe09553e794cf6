// SPDX-License-Identifier: GPL-2.0

//! Tests properties with random values. The fuzzer shares the modules in `common` only, so this is
//! separate.

use crate::common::{
    Outcome,
    Random, //
};
use proptest::{
    strategy::Strategy,
    test_runner::{
        Config,
        RngAlgorithm,
        TestCaseError,
        TestRng,
        TestRunner, //
    }, //
};
use std::{
    collections::hash_map::RandomState,
    fmt::Debug,
    hash::{
        BuildHasher,
        Hasher, //
    }, //
};

/// Runs `test` on `cases` random values. On a failure it prints the smallest failing value and the
/// seed. With `SEED` in the environment the same values are used again.
pub fn property<S>(cases: u32, strategy: &S, test: impl Fn(S::Value) -> Outcome)
where
    S: Strategy,
    S::Value: Debug,
{
    let seed = match std::env::var("SEED") {
        Ok(text) => text.parse().expect("SEED is a number"),
        Err(_) => RandomState::new().build_hasher().finish(),
    };
    let mut random = Random(seed);
    let bytes: Vec<u8> = (0..4).flat_map(|_| random.next().to_le_bytes()).collect();
    let config = Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 50_000,
        ..Config::default()
    };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let result = TestRunner::new_with_rng(config, rng)
        .run(strategy, |value| test(value).map_err(TestCaseError::fail));
    if let Err(error) = result {
        panic!("SEED={seed} does this again: {error}");
    }
}
