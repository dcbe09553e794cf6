// SPDX-License-Identifier: GPL-2.0

//! Draws the tables: time against pool size, the distribution of single operations, and large
//! blocks regained against turnover. Each allocator has a line.

use plotters::{
    coord::{
        Shift, //
    },
    prelude::*, //
};
use std::{
    collections::BTreeMap,
    error::Error,
    path::Path, //
};

type Failed = Box<dyn Error>;
type Points = Vec<(f64, f64)>;

/// One allocator's points in one panel.
type Lines = Vec<(&'static str, Points)>;

/// The data to draw.
#[derive(Default)]
pub struct Plots {
    /// For each column, nanoseconds per operation by units.
    times: BTreeMap<usize, (&'static str, Lines)>,
    /// For each load, the share of operations that take longer than a time in nanoseconds.
    latencies: Vec<(&'static str, Lines)>,
    /// Blocks by rounds of turnover.
    regained: Lines,
}

/// The maximum number of points of a distribution. More can't be told apart.
const STEPS: usize = 120;

/// Returns, for sorted times, the share that is longer than each, from all times to one of them.
/// The points are thinned out evenly on a logarithmic scale. The last one of equal times counts.
pub fn longer_than(times: &[u64]) -> Points {
    let len = times.len() as f64;
    let mut points: Points = Vec::new();
    for step in 0..STEPS {
        let share = len.powf(-(step as f64) / STEPS as f64);
        let at = (len * (1.0 - share)) as usize;
        let Some(&time) = times.get(at) else {
            break;
        };
        match points.last_mut() {
            Some(last) if last.0 == time as f64 => last.1 = share,
            _ => points.push((time as f64, share)),
        }
    }
    points
}

fn line<'a>(lines: &'a mut Lines, name: &'static str) -> &'a mut Points {
    let at = match lines.iter().position(|line| line.0 == name) {
        Some(at) => at,
        None => {
            lines.push((name, Vec::new()));
            lines.len() - 1
        }
    };
    &mut lines[at].1
}

impl Plots {
    /// Adds a cell of a table, the `column`th of its row.
    pub fn time(&mut self, column: (usize, &'static str), name: &'static str, units: u64, ns: f64) {
        let panel = self.times.entry(column.0).or_default();
        panel.0 = column.1;
        line(&mut panel.1, name).push((units as f64, ns));
    }

    /// Adds the sorted times of all single operations of a load.
    pub fn latency(&mut self, load: &'static str, name: &'static str, times: &[u64]) {
        if !self.latencies.iter().any(|panel| panel.0 == load) {
            self.latencies.push((load, Vec::new()));
        }
        for panel in self.latencies.iter_mut().filter(|panel| panel.0 == load) {
            *line(&mut panel.1, name) = longer_than(times);
        }
    }

    /// Adds the number of blocks that could be allocated after `rounds` rounds.
    pub fn regained(&mut self, name: &'static str, rounds: usize, blocks: u64) {
        line(&mut self.regained, name).push((rounds as f64, blocks as f64));
    }

    /// Draws all plots: `time.svg`, `latency.svg` and `regained.svg`.
    pub fn draw(&self, folder: &Path) -> Result<(), Failed> {
        std::fs::create_dir_all(folder)?;
        let times = self.times.values().map(|(name, lines)| Panel {
            title: name,
            lines,
            x: Axis::new("units", Scale::Powers, lines, |point| point.0),
            y: Axis::new("ns an operation", Scale::Tens, lines, |point| point.1),
        });
        draw(&folder.join("time.svg"), &times.collect::<Vec<_>>())?;
        let latencies = self.latencies.iter().map(|(name, lines)| Panel {
            title: name,
            lines,
            x: Axis::new("ns", Scale::Tens, lines, |point| point.0),
            y: Axis::new("share that takes longer", Scale::Tens, lines, |point| {
                point.1
            }),
        });
        draw(&folder.join("latency.svg"), &latencies.collect::<Vec<_>>())?;
        let lines = &self.regained;
        let regained = Panel {
            title: "blocks of order 9 after turnover",
            lines,
            x: Axis::new("rounds of 10 %", Scale::Linear, lines, |point| point.0),
            y: Axis::new("blocks", Scale::Linear, lines, |point| point.1),
        };
        draw(&folder.join("regained.svg"), &[regained])
    }
}

#[derive(Clone, Copy)]
enum Scale {
    Linear,
    /// Logarithms to the base 10, and to the base 2.
    Tens,
    Powers,
}

impl Scale {
    fn at(self, value: f64) -> f64 {
        match self {
            Self::Linear => value,
            Self::Tens => value.max(f64::MIN_POSITIVE).log10(),
            Self::Powers => value.max(f64::MIN_POSITIVE).log2(),
        }
    }
}

/// A range of values, and its scale.
struct Axis {
    title: &'static str,
    scale: Scale,
    from: f64,
    to: f64,
}

impl Axis {
    fn new(
        title: &'static str,
        scale: Scale,
        lines: &Lines,
        of: impl Fn(&(f64, f64)) -> f64,
    ) -> Self {
        let all = lines.iter().flat_map(|line| &line.1);
        let (from, to) = all.fold((f64::MAX, f64::MIN), |(from, to), point| {
            let value = scale.at(of(point));
            (from.min(value), to.max(value))
        });
        let margin = ((to - from) / 20.0).max(0.05);
        Self {
            title,
            scale,
            from: from - margin,
            to: to + margin,
        }
    }

    fn label(&self, value: f64) -> String {
        let value = match self.scale {
            Scale::Linear => value,
            Scale::Tens => 10f64.powf(value),
            Scale::Powers => return format!("2^{value}"),
        };
        match value {
            _ if value >= 99_999.0 => format!("{value:.0e}"),
            _ if value >= 9.95 => format!("{value:.0}"),
            _ if value >= 0.095 => format!("{value:.1}"),
            0.0 => "0".into(),
            _ => format!("{value:.0e}"),
        }
    }
}

struct Panel<'a> {
    title: &'a str,
    lines: &'a Lines,
    x: Axis,
    y: Axis,
}

/// The size of a panel, in pixels.
const WIDTH: u32 = 460;
const HEIGHT: u32 = 300;
const COLOURS: [RGBColor; 5] = [
    RGBColor(0xd6, 0x27, 0x28),
    RGBColor(0xff, 0x7f, 0x0e),
    RGBColor(0x1f, 0x77, 0xb4),
    RGBColor(0x2c, 0xa0, 0x2c),
    RGBColor(0x94, 0x67, 0xbd),
];

fn draw(path: &Path, panels: &[Panel<'_>]) -> Result<(), Failed> {
    let columns = panels.len().clamp(1, 2);
    let rows = panels.len().div_ceil(columns);
    let size = (WIDTH * columns as u32, HEIGHT * rows as u32);
    let root = SVGBackend::new(path, size).into_drawing_area();
    root.fill(&WHITE)?;
    for (panel, area) in panels.iter().zip(root.split_evenly((rows, columns))) {
        panel.draw(&area)?;
    }
    root.present()?;
    Ok(())
}

impl Panel<'_> {
    fn draw<B>(&self, area: &DrawingArea<B, Shift>) -> Result<(), Failed>
    where
        B: DrawingBackend,
        B::ErrorType: 'static,
    {
        let (x, y) = (&self.x, &self.y);
        let mut chart = ChartBuilder::on(area)
            .caption(self.title, ("sans-serif", 15))
            .margin(8)
            .x_label_area_size(32)
            .y_label_area_size(48)
            .build_cartesian_2d(x.from..x.to, y.from..y.to)?;
        let (name_x, name_y) = (|v: &f64| x.label(*v), |v: &f64| y.label(*v));
        chart
            .configure_mesh()
            .x_desc(x.title)
            .y_desc(y.title)
            .x_labels(6)
            .y_labels(6)
            .max_light_lines(0)
            .x_label_formatter(&name_x)
            .y_label_formatter(&name_y)
            .label_style(("sans-serif", 11))
            .draw()?;
        for ((name, points), colour) in self.lines.iter().zip(COLOURS.iter().cycle()) {
            let at = |point: &(f64, f64)| (x.scale.at(point.0), y.scale.at(point.1));
            // Few points are drawn as measurements. With many, the line suffices.
            if points.len() < STEPS / 10 {
                let marks = points
                    .iter()
                    .map(|point| Circle::new(at(point), 3, colour.filled()));
                chart.draw_series(marks)?;
            }
            chart
                .draw_series(LineSeries::new(
                    points.iter().map(at),
                    colour.stroke_width(2),
                ))?
                .label(*name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 14, y)], *colour));
        }
        chart
            .configure_series_labels()
            .border_style(BLACK.mix(0.3))
            .background_style(WHITE.mix(0.8))
            .label_font(("sans-serif", 10))
            .draw()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distribution_goes_from_all_to_few() {
        let times: Vec<u64> = (1..=1000).collect();
        let points = longer_than(&times);
        assert_eq!(points.first(), Some(&(1.0, 1.0)));
        assert!(points.len() <= STEPS);
        for pair in points.windows(2) {
            assert!(pair[0].0 < pair[1].0 && pair[0].1 > pair[1].1);
        }
        // Of a thousand, a hundred take longer than 900.
        let (time, share) = points
            .iter()
            .min_by(|a, b| (a.0 - 900.0).abs().total_cmp(&(b.0 - 900.0).abs()))
            .unwrap();
        assert!((share - (1000.0 - time) / 1000.0).abs() < 0.01);
    }

    #[test]
    fn equal_times_are_one_point() {
        assert_eq!(longer_than(&[7; 100]).len(), 1);
        assert!(longer_than(&[]).is_empty());
    }
}
