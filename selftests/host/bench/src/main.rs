// SPDX-License-Identifier: GPL-2.0

//! The allocator core against published crates, on one thread, in one run.
//!
//! `rust-buddy-bench [quick]` prints tables, lines of JSON (one a cell), and how we compare with
//! what was aimed at.

mod loads;
mod peers;

use loads::{
    ping,
    random_free,
    regained,
    Load,
    Orders,
    Outcome, //
};
use peers::{
    Bitmap,
    FrameAllocator,
    Peer,
    RustBuddy, //
};
use std::{
    hint::black_box,
    time::Instant, //
};

/// 1 GiB of 4 KiB pages, and more.
const SIZES: [u64; 3] = [1 << 18, 1 << 20, 1 << 24];

/// What is timed.
#[derive(Clone, Copy)]
enum Kind {
    Churn(Orders, u64),
    RandomFree,
    Ping,
}

/// Column, what it is, and at most how much of `buddy_system_allocator`'s time it is to take.
const COLUMNS: [(&str, Kind, f64); 7] = [
    ("churn 50", Kind::Churn(Orders::Only(0), 50), 0.45),
    ("churn 90", Kind::Churn(Orders::Only(0), 90), 0.45),
    ("order 9", Kind::Churn(Orders::Only(loads::BIG), 50), 0.45),
    ("mix", Kind::Churn(Orders::Uniform, 50), 0.45),
    ("geometric", Kind::Churn(Orders::Geometric, 80), 0.45),
    ("random free", Kind::RandomFree, 0.1),
    ("ping", Kind::Ping, 0.3),
];

/// How much is done.
struct Effort {
    /// Each cell so often, in turns; the fastest counts: it was disturbed least.
    rounds: usize,
    operations: usize,
    /// With a peer that takes microseconds.
    slow_operations: usize,
    turnover: usize,
    sizes: &'static [u64],
}

const FULL: Effort = Effort {
    rounds: 3,
    operations: 1_000_000,
    slow_operations: 20_000,
    turnover: 200,
    sizes: &SIZES,
};

const QUICK: Effort = Effort {
    rounds: 2,
    operations: 500_000,
    slow_operations: 20_000,
    turnover: 200,
    sizes: &[SIZES[0]],
};

/// One allocator's row of a table.
struct Row {
    name: &'static str,
    cells: Vec<Outcome>,
}

/// Runs every column once.
fn run<P: Peer>(units: u64, effort: &Effort, row: &mut Row) {
    row.name = P::NAME;
    row.cells.resize(
        COLUMNS.len(),
        Outcome {
            ns: f64::MAX,
            ..Outcome::default()
        },
    );
    for ((_, kind, _), best) in COLUMNS.iter().zip(&mut row.cells) {
        let outcome = match *kind {
            Kind::Churn(orders, percent) => {
                // Of a bitmap without orders larger blocks take long to find.
                let slow = P::IS_SLOW_ABOVE_0 && !matches!(orders, Orders::Only(0));
                if slow && units > SIZES[0] {
                    *best = Outcome {
                        ns: f64::NAN,
                        ..Outcome::default()
                    };
                    continue;
                }
                let operations = if slow {
                    effort.slow_operations
                } else {
                    effort.operations
                };
                let mut load = Load::<P>::new(units, orders, percent, operations);
                let outcome = load.churn(operations);
                Outcome {
                    big: load.count_big(),
                    ..outcome
                }
            }
            Kind::RandomFree => random_free::<P>(units),
            Kind::Ping => ping::<P>(units, effort.operations),
        };
        if outcome.ns < best.ns {
            *best = outcome;
        }
    }
}

fn row() -> Row {
    Row {
        name: "",
        cells: Vec::new(),
    }
}

fn json(load: &str, name: &str, units: u64, values: &str) {
    println!(r#"{{"bench": "{load}", "allocator": "{name}", "units": {units}, {values}}}"#);
}

/// Times of all columns; returns our row and the one that ours is measured by.
fn table(units: u64, effort: &Effort) -> [Row; 3] {
    let mut rows = [row(), row(), row()];
    for _ in 0..effort.rounds {
        run::<RustBuddy>(units, effort, &mut rows[0]);
        run::<FrameAllocator>(units, effort, &mut rows[1]);
        run::<Bitmap>(units, effort, &mut rows[2]);
    }
    println!("\n{units} units, ns an operation (refused allocations in parentheses)\n");
    heading(COLUMNS.iter().map(|column| column.0));
    for row in &rows {
        line(
            row.name,
            row.cells.iter().map(|cell| match cell.failed {
                _ if cell.ns.is_nan() => "-".into(),
                0 => format!("{:.1}", cell.ns),
                failed => {
                    let percent = 100.0 * failed as f64 / cell.tried as f64;
                    format!("{:.1} ({percent:.1} %)", cell.ns)
                }
            }),
        );
    }
    let [ours, theirs, _] = &rows;
    line(
        "ours / buddy_system",
        ours.cells
            .iter()
            .zip(&theirs.cells)
            .map(|(a, b)| format!("{:.2}", a.ns / b.ns)),
    );
    line(
        "at most",
        COLUMNS.iter().map(|column| format!("{:.2}", column.2)),
    );
    for row in &rows {
        for (cell, column) in row.cells.iter().zip(COLUMNS) {
            if cell.ns.is_nan() {
                continue;
            }
            let Outcome {
                ns,
                tried,
                failed,
                big,
            } = cell;
            let mut values = format!(r#""ns": {ns:.2}"#);
            if let Kind::Churn(..) = column.1 {
                values +=
                    &format!(r#", "tried": {tried}, "failed": {failed}, "order_9_left": {big}"#);
            }
            json(column.0, row.name, units, &values);
        }
    }
    rows
}

fn heading(columns: impl Iterator<Item = &'static str>) {
    let columns: Vec<String> = columns.map(String::from).collect();
    line("", columns.iter().cloned());
    line("---", columns.iter().map(|_| "---".into()));
}

fn line(name: &str, cells: impl Iterator<Item = String>) {
    let cells: Vec<String> = cells.map(|cell| format!(" {cell:>14} |")).collect();
    println!("| {name:<24} |{}", cells.concat());
}

/// Blocks of order 9 after turnover, and those left in the geometric mix.
fn whole<P: Peer>(units: u64, effort: &Effort, row: &Row) {
    let half = units >> (loads::BIG + 1);
    let big = regained::<P>(units, effort.turnover).big;
    let (_, geometric) = row
        .cells
        .iter()
        .zip(COLUMNS)
        .map(|(cell, column)| (column.0, cell.big))
        .find(|cell| cell.0 == "geometric")
        .unwrap_or_default();
    line(
        P::NAME,
        [format!("{big} of {half}"), geometric.to_string()].into_iter(),
    );
    json(
        "regained",
        P::NAME,
        units,
        &format!(r#""blocks": {big}, "of": {half}"#),
    );
}

/// How long single operations take: all but the longest hundredth and ten-thousandth.
fn tail<P: Peer>(units: u64, effort: &Effort) {
    let operations = if P::IS_SLOW_ABOVE_0 {
        effort.slow_operations
    } else {
        effort.operations
    };
    let mut cells = Vec::new();
    for (name, kind, _) in COLUMNS {
        let Kind::Churn(orders, percent) = kind else {
            continue;
        };
        let times = Load::<P>::new(units, orders, percent, operations).latencies(operations);
        let at = |part: usize| times[times.len() - 1 - times.len() / part];
        let (p50, p99, p9999) = (at(2), at(100), at(10_000));
        cells.push(format!("{p50} {p99} {p9999}"));
        let values = format!(r#""p50": {p50}, "p99": {p99}, "p9999": {p9999}"#);
        json(&format!("latency {name}"), P::NAME, units, &values);
    }
    line(P::NAME, cells.into_iter());
}

fn main() {
    let effort = match std::env::args().nth(1).as_deref() {
        None => &FULL,
        Some("quick") => &QUICK,
        Some(_) => panic!("usage: rust-buddy-bench [quick]"),
    };
    let mut first: Option<Row> = None;
    for &units in effort.sizes {
        let [ours, frames, bits] = table(units, effort);
        println!();
        heading(["regained", "left: geometric"].into_iter());
        whole::<RustBuddy>(units, effort, &ours);
        // Where they take minutes, ours goes alone.
        if units <= SIZES[1] {
            whole::<FrameAllocator>(units, effort, &frames);
            whole::<Bitmap>(units, effort, &bits);
        }
        match &first {
            Some(first) => {
                println!("\nours, of its time at {} units\n", SIZES[0]);
                heading(COLUMNS.iter().map(|column| column.0));
                let growth = ours.cells.iter().zip(&first.cells);
                line("", growth.map(|(a, b)| format!("{:.2}", a.ns / b.ns)));
            }
            None => first = Some(ours),
        }
    }
    println!(
        "\nsingle operations at {} units, ns with the clock's own: p50 p99 p99.99\n",
        SIZES[0]
    );
    let clock = (0..100_000).map(|_| {
        let clock = Instant::now();
        black_box(clock.elapsed().as_nanos() as u64)
    });
    let mut clock: Vec<u64> = clock.collect();
    clock.sort_unstable();
    let at = |part: usize| clock[clock.len() - 1 - clock.len() / part];
    heading(
        COLUMNS
            .iter()
            .filter(|column| matches!(column.1, Kind::Churn(..)))
            .map(|column| column.0),
    );
    tail::<RustBuddy>(SIZES[0], effort);
    tail::<FrameAllocator>(SIZES[0], effort);
    tail::<Bitmap>(SIZES[0], effort);
    println!("\nthe clock alone: {} {} {}", at(2), at(100), at(10_000));
}
