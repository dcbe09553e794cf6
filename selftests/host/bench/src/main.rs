// SPDX-License-Identifier: GPL-2.0

//! Compares the allocator core with published crates, on one thread, in one run.
//!
//! `rust-buddy-bench [quick] [--plots FOLDER]` prints tables and lines of JSON, one for each cell.
//! It lists the cells in which the core is slower or misses its target, and draws plots.

mod holds;
mod loads;
mod peers;
mod plots;
mod threads;

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
    Magazines,
    Nothing,
    Peer,
    RustBuddy, //
};
use plots::Plots;
use std::{
    hint::black_box,
    path::PathBuf,
    time::Instant, //
};
use threads::{
    throughput,
    SHARINGS, //
};

/// 1 GiB of 4 KiB pages, and more.
const SIZES: [u64; 3] = [1 << 18, 1 << 20, 1 << 24];

/// The kind of a measurement.
#[derive(Clone, Copy)]
enum Kind {
    Churn(Orders, u64),
    RandomFree,
    Ping,
}

/// Column, kind, and the target: the largest share of `buddy_system_allocator`'s time.
const COLUMNS: [(&str, Kind, f64); 7] = [
    ("churn 50", Kind::Churn(Orders::Only(0), 50), 0.45),
    ("churn 90", Kind::Churn(Orders::Only(0), 90), 0.45),
    ("order 9", Kind::Churn(Orders::Only(loads::BIG), 50), 0.45),
    ("mix", Kind::Churn(Orders::Uniform, 50), 0.45),
    ("geometric", Kind::Churn(Orders::Geometric, 80), 0.45),
    ("random free", Kind::RandomFree, 0.1),
    ("ping", Kind::Ping, 0.3),
];

/// The amount of work.
struct Effort {
    /// Repetitions of each cell, in turns. The fastest one counts, since it was disturbed least.
    rounds: usize,
    operations: usize,
    /// For an allocator that takes microseconds.
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
                // A bitmap without orders takes long to find larger blocks.
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

/// Prints the times of all columns. Returns the rows of the core and of the other allocators.
fn table(units: u64, effort: &Effort, plots: &mut Plots) -> [Row; 4] {
    let mut rows = [row(), row(), row(), row()];
    for _ in 0..effort.rounds {
        run::<RustBuddy>(units, effort, &mut rows[0]);
        run::<Magazines>(units, effort, &mut rows[1]);
        run::<FrameAllocator>(units, effort, &mut rows[2]);
        run::<Bitmap>(units, effort, &mut rows[3]);
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
    let [core, magazines, theirs, _] = &rows;
    for (name, ours) in [
        ("core / buddy_system", core),
        ("magazines / buddy_system", magazines),
    ] {
        let ratios = ours.cells.iter().zip(&theirs.cells);
        line(name, ratios.map(|(a, b)| format!("{:.2}", a.ns / b.ns)));
    }
    line(
        "at most",
        COLUMNS.iter().map(|column| format!("{:.2}", column.2)),
    );
    for row in &rows {
        for (i, (cell, column)) in row.cells.iter().zip(COLUMNS).enumerate() {
            if cell.ns.is_nan() {
                continue;
            }
            plots.time((i, column.0), row.name, units, cell.ns);
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
    lost(&rows);
    rows
}

/// Prints where the core is slower than another allocator, and where it misses its target.
fn lost([core, magazines, frames, bits]: &[Row; 4]) {
    println!();
    for ours in [core, magazines] {
        for (i, (name, _, most)) in COLUMNS.iter().enumerate() {
            let ns = ours.cells[i].ns;
            for theirs in [frames, bits] {
                let other = theirs.cells[i].ns;
                if ns > other {
                    println!(
                        "loses: {name}, {} {ns:.1} ns, {} {other:.1}",
                        ours.name, theirs.name
                    );
                }
            }
            let ratio = ns / frames.cells[i].ns;
            if ratio > *most {
                println!(
                    "misses: {name}, {} {ratio:.2} of {}'s time, {most:.2} aimed at",
                    ours.name, frames.name
                );
            }
        }
    }
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

/// Prints the blocks of order 9 after turnover, and those left in the geometric mix.
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

/// Prints percentiles of single operations: 99 % and 99.99 %.
fn tail<P: Peer>(units: u64, effort: &Effort, plots: &mut Plots) {
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
        if matches!(orders, Orders::Only(0) | Orders::Uniform) && percent == 50 {
            plots.latency(name, P::NAME, &times);
        }
        let at = |part: usize| times[times.len() - 1 - times.len() / part];
        let (p50, p99, p9999) = (at(2), at(100), at(10_000));
        cells.push(format!("{p50} {p99} {p9999}"));
        let values = format!(r#""p50": {p50}, "p99": {p99}, "p9999": {p9999}"#);
        json(&format!("latency {name}"), P::NAME, units, &values);
    }
    line(P::NAME, cells.into_iter());
}

/// Prints the throughput of one thread and of two threads with one allocator, the best of a few
/// runs.
fn scaling<P>(units: u64, effort: &Effort)
where
    P: Peer + Sync,
    P::Block: Send,
{
    let mut cells = Vec::new();
    for (name, sharing) in SHARINGS {
        let [one, two] = [1, 2].map(|threads| {
            (0..2 * effort.rounds)
                .map(|_| throughput::<P>(units, threads, sharing, effort.operations))
                .fold(0.0, f64::max)
        });
        cells.push(format!("{one:.0} {two:.0} {:.2}", two / one));
        let values = format!(r#""one": {one:.2}, "two": {two:.2}"#);
        json(&format!("threads {name}"), P::NAME, units, &values);
    }
    line(P::NAME, cells.into_iter());
}

/// Rounds of turnover in the plot.
const ROUNDS: [usize; 8] = [0, 5, 10, 25, 50, 100, 150, 200];

/// Plots the blocks of order 9 after more and more turnover.
fn turnover<P: Peer>(units: u64, plots: &mut Plots) {
    for rounds in ROUNDS {
        let blocks = regained::<P>(units, rounds).big;
        plots.regained(P::NAME, rounds, blocks);
        let values = format!(r#""rounds": {rounds}, "blocks": {blocks}"#);
        json("turnover", P::NAME, units, &values);
    }
}

fn main() {
    let mut effort = &FULL;
    let mut folder = None;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match (arg.as_str(), &folder) {
            ("quick", _) => effort = &QUICK,
            ("--plots", None) => folder = args.next().map(PathBuf::from),
            _ => panic!("usage: rust-buddy-bench [quick] [--plots FOLDER]"),
        }
    }
    let mut plots = Plots::default();
    let mut first: Option<Row> = None;
    for &units in effort.sizes {
        let [ours, magazines, frames, bits] = table(units, effort, &mut plots);
        println!();
        heading(["regained", "left: geometric"].into_iter());
        whole::<RustBuddy>(units, effort, &ours);
        whole::<Magazines>(units, effort, &magazines);
        // Where the other allocators take minutes, only the core runs.
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
    tail::<RustBuddy>(SIZES[0], effort, &mut plots);
    tail::<Magazines>(SIZES[0], effort, &mut plots);
    tail::<FrameAllocator>(SIZES[0], effort, &mut plots);
    tail::<Bitmap>(SIZES[0], effort, &mut plots);
    println!("\nthe clock alone: {} {} {}", at(2), at(100), at(10_000));
    println!("\nany operation where its search is longest, ns with the clock's own\n");
    heading(["operations", "p50", "p99", "p99.99"].into_iter());
    for row in holds::rows() {
        let numbers = [row.operations as u64, row.p50, row.p99, row.p9999];
        line(
            &format!("{} units", row.units),
            numbers.iter().map(u64::to_string),
        );
        let values = format!(
            r#""p50": {}, "p99": {}, "p9999": {}"#,
            row.p50, row.p99, row.p9999
        );
        json("longest searches", RustBuddy::NAME, row.units, &values);
    }
    println!(
        "\ntwo threads, {} units: millions of operations a second by one, by two, the ratio\n",
        SIZES[0]
    );
    heading(SHARINGS.iter().map(|sharing| sharing.0));
    scaling::<RustBuddy>(SIZES[0], effort);
    scaling::<Magazines>(SIZES[0], effort);
    scaling::<FrameAllocator>(SIZES[0], effort);
    scaling::<Nothing>(SIZES[0], effort);
    if let Some(folder) = folder {
        turnover::<RustBuddy>(SIZES[0], &mut plots);
        turnover::<Magazines>(SIZES[0], &mut plots);
        turnover::<FrameAllocator>(SIZES[0], &mut plots);
        turnover::<Bitmap>(SIZES[0], &mut plots);
        plots.draw(&folder).expect("a folder to write plots to");
        println!("\nplots: {}", folder.display());
    }
}
