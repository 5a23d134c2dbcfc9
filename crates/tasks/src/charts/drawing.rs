//! Draws a chart on a canvas of 128 x 128 units, each label where no line or slice edge crosses it.
//! Knows only the chart; the questions never look at pixels. Cost: 20 to 60 shapes of SVG.

use std::f64::consts::TAU;

use super::scene::{Chart, ChartKind};
use crate::canvas::{Anchor, Canvas};

/// Colours of one style.
struct Style {
    background: &'static str,
    ink: &'static str,
    grid: &'static str,
    line: &'static str,
    fills: [&'static str; 7],
}

const PLAIN: Style = Style {
    background: "#ffffff",
    ink: "#101010",
    grid: "#d4d4d4",
    line: "#2f5ff0",
    fills: ["#ff8a80", "#82b1ff", "#a5e08a", "#ffd54f", "#d7a8f0", "#7fdfe0", "#ffb46b"],
};

const SHIFTED: Style = Style {
    background: "#e4eaf0",
    ink: "#1b2a5c",
    grid: "#bcc6d2",
    line: "#a0522d",
    fills: ["#c9a9a6", "#9fb8ad", "#d4c59a", "#a8a4ce", "#b5c7d9", "#d9b48f", "#b8d08d"],
};

/// The picture of a chart.
pub fn canvas(chart: &Chart) -> Canvas {
    let style = if chart.shifted { &SHIFTED } else { &PLAIN };
    let mut canvas = Canvas::new(128, 128, style.background);
    match (chart.kind, chart.shifted) {
        (ChartKind::Bar, false) => upright_bars(&mut canvas, chart, style),
        (ChartKind::Bar, true) => lying_bars(&mut canvas, chart, style),
        (ChartKind::Line, _) => line(&mut canvas, chart, style),
        (ChartKind::Pie, _) => pie(&mut canvas, chart, style),
    }
    canvas
}

/// Height of an axis without printed values: even, because its ticks go in steps of two.
fn axis_end(chart: &Chart) -> i64 {
    if chart.shifted { 14 } else { 10 }
}

/// Where upright values lie: names below `bottom`, value 0 at `bottom`.
struct Plot {
    left: f64,
    slot: f64,
    bottom: f64,
    unit: f64,
}

impl Plot {
    /// Leaves room for tick labels or for printed values; draws grid and base line.
    fn new(canvas: &mut Canvas, chart: &Chart, style: &Style) -> Self {
        let bottom = 110.0;
        let highest = chart.values.iter().copied().max().unwrap_or(1).max(1) as f64;
        let (left, unit) = if chart.axis_only {
            let end = axis_end(chart);
            let unit = (104.0 / end as f64).floor();
            for tick in (0..=end).step_by(2) {
                let y = bottom - tick as f64 * unit;
                canvas.line(&[(17.0, y + 0.5), (126.0, y + 0.5)], style.grid, 1.0, false);
                canvas.text(14.0, (y - 4.0).max(0.0), Anchor::End, 1.0, style.ink, &tick.to_string());
            }
            (18.0, unit)
        } else {
            (4.0, 91.0 / highest)
        };
        let slot = ((126.0 - left) / chart.len() as f64).floor();
        canvas.line(&[(left - 1.0, bottom + 0.5), (126.0, bottom + 0.5)], style.ink, 1.0, false);
        for (i, name) in chart.names.iter().enumerate() {
            let middle = left + slot * (i as f64 + 0.5);
            canvas.text(middle.round(), bottom + 5.0, Anchor::Middle, 1.0, style.ink, name);
        }
        Self { left, slot, bottom, unit }
    }

    fn middle(&self, i: usize) -> f64 {
        (self.left + self.slot * (i as f64 + 0.5)).round()
    }

    fn y(&self, value: i64) -> f64 {
        (self.bottom - value as f64 * self.unit).round()
    }

    /// Printed values leave no need for a base line at zero: lifted, so that labels fit below the lowest point.
    fn lifted(self) -> Self {
        Self { bottom: self.bottom - 16.0, unit: self.unit * 76.0 / 91.0, ..self }
    }
}

fn upright_bars(canvas: &mut Canvas, chart: &Chart, style: &Style) {
    let plot = Plot::new(canvas, chart, style);
    let half = (plot.slot * 0.36).floor();
    for (i, &value) in chart.values.iter().enumerate() {
        let (x, y) = (plot.middle(i), plot.y(value));
        canvas.rect(x - half, y, 2.0 * half, plot.bottom - y, style.fills[i]);
        if !chart.axis_only {
            canvas.text(x, y - 11.0, Anchor::Middle, 1.0, style.ink, &value.to_string());
        }
    }
}

fn line(canvas: &mut Canvas, chart: &Chart, style: &Style) {
    let plot = Plot::new(canvas, chart, style);
    let plot = if chart.axis_only { plot } else { plot.lifted() };
    let points: Vec<(f64, f64)> =
        chart.values.iter().enumerate().map(|(i, &value)| (plot.middle(i), plot.y(value))).collect();
    canvas.line(&points, style.line, 1.5, chart.shifted);
    for (i, (&(x, y), value)) in points.iter().zip(&chart.values).enumerate() {
        if chart.shifted {
            canvas.rect(x - 3.0, y - 3.0, 6.0, 6.0, style.line);
        } else {
            canvas.circle(x, y, 2.5, style.line, style.line);
        }
        if chart.axis_only {
            continue;
        }
        // A label goes to the side that the line leaves free: below a dip, above everything else.
        let lower = |j: Option<&(f64, f64)>| j.is_none_or(|&(_, other)| other < y);
        let dip = lower(points.get(i.wrapping_sub(1))) && lower(points.get(i + 1));
        let top = if dip { y + 5.0 } else { y - 14.0 };
        let text = value.to_string();
        let width = crate::glyphs::width(&text, 1.0);
        // Where the line is steep or the label stands close to an edge, a patch of background keeps it readable.
        let left = (x - width / 2.0).round().clamp(1.0, 127.0 - width);
        canvas.rect(left - 1.0, top - 1.0, width + 2.0, 11.0, style.background);
        canvas.text(left, top, Anchor::Start, 1.0, style.ink, &text);
    }
}

fn lying_bars(canvas: &mut Canvas, chart: &Chart, style: &Style) {
    let left = 28.0;
    let slot = (if chart.axis_only { 112.0 } else { 124.0 } / chart.len() as f64).floor();
    let end = if chart.axis_only { axis_end(chart) } else { chart.values.iter().copied().max().unwrap_or(1) };
    let unit = if chart.axis_only { 7.0 } else { 82.0 / end as f64 };
    if chart.axis_only {
        for tick in (0..=end).step_by(2) {
            let x = left + tick as f64 * unit;
            canvas.line(&[(x - 0.5, 2.0), (x - 0.5, 114.0)], style.grid, 1.0, false);
            // Two-digit labels would touch each other at every tick.
            if tick % 4 == 0 {
                canvas.text(x, 117.0, Anchor::Middle, 1.0, style.ink, &tick.to_string());
            }
        }
    }
    let half = (slot * 0.34).floor();
    for (i, (name, &value)) in chart.names.iter().zip(&chart.values).enumerate() {
        let y = (2.0 + slot * (i as f64 + 0.5)).round();
        let length = (value as f64 * unit).round();
        canvas.text(left - 4.0, y - 4.0, Anchor::End, 1.0, style.ink, name);
        canvas.rect(left, y - half, length, 2.0 * half, style.fills[i]);
        if !chart.axis_only {
            canvas.text(left + length + 3.0, y - 4.0, Anchor::Start, 1.0, style.ink, &value.to_string());
        }
    }
    let foot = 2.0 + slot * chart.len() as f64;
    canvas.line(&[(left - 0.5, 2.0), (left - 0.5, foot)], style.ink, 1.0, false);
}

fn pie(canvas: &mut Canvas, chart: &Chart, style: &Style) {
    let total: i64 = chart.values.iter().sum();
    let longest = chart.names.iter().map(|name| name.len()).max().unwrap_or(1);
    let radius = if longest > 1 { 38.0 } else { 48.0 };
    let hole = if chart.shifted { radius * 0.42 } else { 0.0 };
    let at = |turn: f64, distance: f64| {
        let angle = turn * TAU;
        (63.5 + distance * angle.sin(), 63.5 - distance * angle.cos())
    };
    let mut before = 0;
    for (i, (name, &value)) in chart.names.iter().zip(&chart.values).enumerate() {
        let (from, to) = (before as f64 / total as f64, (before + value) as f64 / total as f64);
        before += value;
        // Arcs as polygons with a corner every 1/90 turn: below a tenth of a pixel off, and no curve arithmetic.
        let steps = ((to - from) * 90.0).ceil().max(1.0) as usize;
        let turn = |step: usize| from + (to - from) * step as f64 / steps as f64;
        let mut outline: Vec<(f64, f64)> = (0..=steps).map(|step| at(turn(step), radius)).collect();
        outline.extend((0..=steps).rev().map(|step| at(turn(step), hole)));
        canvas.polygon(&outline, style.fills[i], style.background);
        let middle = (from + to) / 2.0;
        let inside = if chart.shifted { radius * 0.71 } else { radius * 0.66 };
        let (x, y) = at(middle, inside);
        canvas.text(x.round(), y.round() - 4.0, Anchor::Middle, 1.0, style.ink, &value.to_string());
        // The name stands outside, pushed out by its own half extent in that direction.
        let half = crate::glyphs::width(name, 1.0) / 2.0;
        let (sideways, upwards) = ((middle * TAU).sin().abs(), (middle * TAU).cos().abs());
        let (x, y) = at(middle, radius + 3.0 + half * sideways + 5.0 * upwards);
        canvas.text(x.round(), y.round() - 4.0, Anchor::Middle, 1.0, style.ink, name);
    }
}
