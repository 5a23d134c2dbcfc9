//! Lays out and draws a figure on a canvas of 128 x 128 units: letters outside the corners, lengths outside the sides,
//! degrees inside the angles. Knows only the figure. Cost: 10 to 20 shapes of SVG.

use super::scene::{Figure, Kind};
use crate::canvas::{Anchor, Canvas};
use crate::glyphs;

type Point = (f64, f64);

/// A text and the middle of its box.
struct Label {
    text: String,
    middle: Point,
    /// Half its width and height.
    half: Point,
}

/// Radius of the arc that marks an angle.
const ARC: f64 = 8.0;

impl Label {
    /// At least `gap` away from `from`, in `direction` (of length 1).
    fn beside(text: String, from: Point, direction: Point, gap: f64) -> Self {
        let half = (glyphs::width(&text, 1.0) / 2.0, glyphs::HEIGHT / 2.0);
        let away = gap + half.0 * direction.0.abs() + half.1 * direction.1.abs();
        Self { text, middle: (from.0 + direction.0 * away, from.1 + direction.1 * away), half }
    }

    /// Whether its box comes within `gap` of the other's.
    fn meets(&self, other: &Label, gap: f64) -> bool {
        let (dx, dy) = ((self.middle.0 - other.middle.0).abs(), (self.middle.1 - other.middle.1).abs());
        dx < self.half.0 + other.half.0 + gap && dy < self.half.1 + other.half.1 + gap
    }

    /// Whether its box comes within `gap` of the line between two points.
    fn touches(&self, (a, b): (Point, Point), gap: f64) -> bool {
        let steps = 64;
        (0..=steps).any(|step| {
            let share = f64::from(step) / f64::from(steps);
            let (x, y) = (a.0 + (b.0 - a.0) * share, a.1 + (b.1 - a.1) * share);
            (x - self.middle.0).abs() < self.half.0 + gap && (y - self.middle.1).abs() < self.half.1 + gap
        })
    }

    fn is_inside(&self) -> bool {
        let inside = |middle: f64, half: f64| middle - half >= 2.0 && middle + half <= 126.0;
        inside(self.middle.0, self.half.0) && inside(self.middle.1, self.half.1)
    }
}

fn unit((x, y): Point) -> Point {
    let length = x.hypot(y).max(f64::MIN_POSITIVE);
    (x / length, y / length)
}

fn towards(from: Point, to: Point) -> Point {
    unit((to.0 - from.0, to.1 - from.1))
}

/// Twice the signed area: positive if the points run clockwise on the canvas.
fn area(points: &[Point]) -> f64 {
    let pairs = points.iter().zip(points.iter().cycle().skip(1));
    pairs.map(|(a, b)| a.0 * b.1 - b.0 * a.1).sum()
}

fn labels(figure: &Figure) -> Vec<Label> {
    let points = &figure.points;
    let mut labels = Vec::new();
    for (i, name) in figure.names.iter().enumerate() {
        let neighbours = figure.lines.iter().filter_map(|&(a, b)| match (a == i, b == i) {
            (true, _) => Some(b),
            (_, true) => Some(a),
            _ => None,
        });
        let inwards = neighbours.map(|j| towards(points[i], points[j])).fold((0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1));
        labels.push(Label::beside(name.to_string(), points[i], unit((-inwards.0, -inwards.1)), 3.0));
    }
    let sign = area(points).signum();
    for side in &figure.sides {
        let (a, b) = (points[side.ends.0], points[side.ends.1]);
        let (x, y) = towards(a, b);
        let middle = ((a.0 + b.0) / 2.0, (a.1 + b.1) / 2.0);
        labels.push(Label::beside(side.length.to_string(), middle, (y * sign, -x * sign), 4.0));
    }
    for angle in &figure.angles {
        let corner = points[angle.corner];
        let (a, b) = (towards(corner, points[angle.arms.0]), towards(corner, points[angle.arms.1]));
        let middle = unit((a.0 + b.0, a.1 + b.1));
        // Half the angle decides how far in the label has to go to clear both arms.
        let half = (angle.degrees as f64).to_radians() / 2.0;
        let label = Label::beside(angle.degrees.to_string(), corner, middle, ARC + 2.0);
        let needed = [a, b].map(|arm| (label.half.0 * arm.1.abs() + label.half.1 * arm.0.abs() + 2.0) / half.sin());
        let have = ARC + 2.0 + label.half.0 * middle.0.abs() + label.half.1 * middle.1.abs();
        let away = have.max(needed[0]).max(needed[1]);
        let place = (corner.0 + middle.0 * away, corner.1 + middle.1 * away);
        labels.push(Label { middle: place, ..label });
    }
    labels
}

/// Whether every label stands alone, off all lines and inside the picture.
pub fn is_legible(figure: &Figure) -> bool {
    let labels = labels(figure);
    let lines = || figure.lines.iter().map(|&(a, b)| (figure.points[a], figure.points[b]));
    let long = lines().all(|(a, b)| (a.0 - b.0).hypot(a.1 - b.1) >= 24.0);
    long && labels.iter().enumerate().all(|(i, label)| {
        label.is_inside()
            && labels[i + 1..].iter().all(|other| !label.meets(other, 3.0))
            && lines().all(|line| !label.touches(line, 1.5))
    })
}

/// The picture of a figure.
pub fn canvas(figure: &Figure) -> Canvas {
    let (background, ground, line, ink) = if figure.shifted {
        ("#eaf2e2", "#ffe2b0", "#8a3b12", "#1b2a5c")
    } else {
        ("#ffffff", "#ffffff", "#101010", "#1a3fd0")
    };
    let mut canvas = Canvas::new(128, 128, background);
    let points = &figure.points;
    if figure.shifted && !matches!(figure.kind, Kind::Line | Kind::Corner) {
        canvas.polygon(points, ground, ground);
    }
    for angle in &figure.angles {
        arc(&mut canvas, points[angle.corner], points[angle.arms.0], points[angle.arms.1], line);
    }
    if let Some((from, corner, to)) = figure.right {
        let (corner, size) = (points[corner], 7.0);
        let (a, b) = (towards(corner, points[from]), towards(corner, points[to]));
        let at = |x: f64, y: f64| (corner.0 + (a.0 * x + b.0 * y) * size, corner.1 + (a.1 * x + b.1 * y) * size);
        canvas.line(&[at(1.0, 0.0), at(1.0, 1.0), at(0.0, 1.0)], line, 1.0, false);
    }
    for &(i, j) in &figure.equal {
        let (a, b) = (points[i], points[j]);
        let ((x, y), middle) = (towards(a, b), ((a.0 + b.0) / 2.0, (a.1 + b.1) / 2.0));
        let tick = [(middle.0 - y * 4.0, middle.1 + x * 4.0), (middle.0 + y * 4.0, middle.1 - x * 4.0)];
        canvas.line(&tick, line, 2.0, false);
    }
    for &(i, j) in &figure.lines {
        canvas.line(&[points[i], points[j]], line, 2.0, false);
    }
    for label in labels(figure) {
        let top = (label.middle.1 - label.half.1).round();
        canvas.text(label.middle.0.round(), top, Anchor::Middle, 1.0, ink, &label.text);
    }
    canvas
}

/// The mark between two arms.
fn arc(canvas: &mut Canvas, corner: Point, from: Point, to: Point, color: &str) {
    let (a, b) = (towards(corner, from), towards(corner, to));
    let at = |step: i32| {
        let share = f64::from(step) / 8.0;
        // Corners between two directions; exact enough for a mark, and no angle arithmetic.
        let (x, y) = unit((a.0 + (b.0 - a.0) * share, a.1 + (b.1 - a.1) * share));
        (corner.0 + x * ARC, corner.1 + y * ARC)
    };
    canvas.line(&(0..=8).map(at).collect::<Vec<_>>(), color, 1.0, false);
}
