// SPDX-License-Identifier: GPL-2.0

//! Replays the corpus (fuzz/corpus) without the fuzzer: inputs that the fuzzer found worth keeping,
//! and inputs kept for other reasons. `REPLAY=FILE` replays one file and prints its operations.

mod common;

use common::{
    script::Script,
    Tally, //
};
use std::{
    fs,
    panic::catch_unwind,
    path::Path, //
};

#[test]
fn corpus() {
    if let Ok(file) = std::env::var("REPLAY") {
        let script = Script::new(&fs::read(file).expect("REPLAY is a file"));
        print!("{script}");
        if let Err(why) = script.play() {
            panic!("{why}");
        }
        return;
    }
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let mut files: Vec<_> = ["core", "kept"]
        .iter()
        .flat_map(|folder| fs::read_dir(corpus.join(folder)).expect("a corpus"))
        .map(|entry| entry.expect("a file").path())
        .collect();
    files.sort();
    let mut sum = [Tally::default(); 4];
    for file in &files {
        let script = Script::new(&fs::read(file).expect("a file"));
        // Attributes a panic of the core to the file, too.
        let outcome = catch_unwind(|| script.play());
        match outcome.unwrap_or_else(|_| Err("a panic".into())) {
            Ok(tally) => {
                for (sum, one) in sum.iter_mut().zip(tally) {
                    sum.done += one.done;
                    sum.refused += one.refused;
                }
            }
            Err(why) => panic!("REPLAY={} does this again: {why}", file.display()),
        }
    }
    println!("{} scripts: {sum:?}", files.len());
    // If a change to the format altered the meaning of the bytes, the files might test little.
    for (i, kind) in ["alloc", "alloc_at", "free", "grow"].iter().enumerate() {
        let Tally { done, refused } = sum[i];
        assert!(
            done >= 20 && (refused >= 20 || i == 2),
            "{kind}: {done} done, {refused} refused"
        );
    }
}
