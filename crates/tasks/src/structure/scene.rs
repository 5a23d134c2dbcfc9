//! Figures of the world `structure`, drawn to scale, each with the labels that its questions need.
//! Train and id: upright or mirrored, sides of 2 to 12 (an L: 5 to 18), black lines on white. Ood: turned by any
//! angle, sides of 8 to 20 (12 to 24), Pythagorean triples that train never shows, brown lines and a filled ground on
//! pale green.
//! A figure whose labels would touch each other or a line is drawn anew. Cost: a few tries of some 50 comparisons.

use std::f64::consts::PI;

use super::drawing;
use crate::draws::Draws;
use crate::world::Split;

/// What a figure is and what is labelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A triangle with all sides.
    Sides,
    /// A triangle with two sides.
    TwoSides,
    /// A triangle with all angles.
    Angles,
    /// A triangle with two angles.
    TwoAngles,
    /// A right triangle with both legs.
    Legs,
    /// A right triangle with one leg and the side across.
    LegAcross,
    /// A triangle with two equal sides and one angle.
    Isosceles,
    /// A square with one side.
    Square,
    /// A rectangle with two sides.
    Rectangle,
    /// A quadrilateral with three angles.
    Quadrilateral,
    /// A line, a ray from its middle, one of the two angles.
    Line,
    /// A right angle, a ray inside, one of the two angles.
    Corner,
    /// An L with four sides.
    Ell,
}

/// A labelled side.
#[derive(Clone, Debug, PartialEq)]
pub struct Side {
    /// Indices of its ends.
    pub ends: (usize, usize),
    /// What questions call it: its ends, or its place in an L.
    pub name: String,
    /// Its length.
    pub length: i64,
}

/// A labelled angle.
#[derive(Clone, Debug, PartialEq)]
pub struct Angle {
    /// Indices of its arms' ends.
    pub arms: (usize, usize),
    /// Index of its corner.
    pub corner: usize,
    /// What questions call it: its corner, or three letters where a corner has two angles.
    pub name: String,
    /// Degrees.
    pub degrees: i64,
}

/// One figure.
#[derive(Clone, Debug)]
pub struct Figure {
    /// What it is.
    pub kind: Kind,
    /// Letters of its points; empty for an L.
    pub names: Vec<&'static str>,
    /// Its points on a canvas of 128 x 128 units.
    pub points: Vec<(f64, f64)>,
    /// Lines between points.
    pub lines: Vec<(usize, usize)>,
    /// Labelled sides.
    pub sides: Vec<Side>,
    /// Labelled angles.
    pub angles: Vec<Angle>,
    /// The corner of a marked right angle, between the ends of its arms.
    pub right: Option<(usize, usize, usize)>,
    /// Sides marked as equal.
    pub equal: Vec<(usize, usize)>,
    /// Length of the third side of a triangle with two labelled ones.
    pub unlabelled: Option<i64>,
    /// Drawn in the ood style.
    pub shifted: bool,
}

// As in charts: letters that no digit resembles and that are no option letters.
pub(crate) const LETTERS: [&str; 10] = ["E", "F", "H", "K", "L", "M", "P", "R", "T", "X"];

/// Triples that are not too thin to carry labels.
const TRIPLES: [(i64, i64, i64); 4] = [(3, 4, 5), (6, 8, 10), (5, 12, 13), (9, 12, 15)];
const OOD_TRIPLES: [(i64, i64, i64); 4] = [(8, 15, 17), (12, 16, 20), (15, 20, 25), (10, 24, 26)];

/// The figures of each level; the first line is the primer's first glimpse.
const LEVELS: [&[Kind]; 4] = [
    &[Kind::Square, Kind::Rectangle, Kind::Line],
    &[Kind::Sides, Kind::Sides, Kind::Angles, Kind::Legs, Kind::Rectangle, Kind::Line],
    &[Kind::Sides, Kind::Rectangle, Kind::Rectangle, Kind::Square, Kind::Line, Kind::Corner],
    &[
        Kind::Sides,
        Kind::TwoSides,
        Kind::TwoAngles,
        Kind::Legs,
        Kind::LegAcross,
        Kind::Isosceles,
        Kind::Rectangle,
        Kind::Quadrilateral,
        Kind::Ell,
    ],
];

fn sine(degrees: i64) -> f64 {
    (degrees as f64 * PI / 180.0).sin()
}

fn cosine(degrees: i64) -> f64 {
    (degrees as f64 * PI / 180.0).cos()
}

impl Kind {
    /// The word for the figure.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Sides | Kind::TwoSides | Kind::Angles | Kind::TwoAngles => "triangle",
            Kind::Legs | Kind::LegAcross => "right triangle",
            Kind::Isosceles => "isosceles triangle",
            Kind::Square => "square",
            Kind::Rectangle => "rectangle",
            Kind::Quadrilateral => "quadrilateral",
            Kind::Line => "line",
            Kind::Corner => "right angle",
            Kind::Ell => "L shape",
        }
    }
}

impl Figure {
    /// A figure of the given difficulty.
    pub fn new(split: Split, level: u8, draws: &mut Draws) -> Self {
        let shifted = split == Split::Ood;
        let kind = draws.pick(LEVELS[usize::from(level)]);
        loop {
            let figure = Self::of(kind, shifted, draws);
            if let Some(mut figure) = figure {
                figure.place(draws);
                if drawing::is_legible(&figure) {
                    return figure;
                }
            }
        }
    }

    /// Letters of all points in order; those of a line or corner name its two ends around the middle.
    fn of(kind: Kind, shifted: bool, draws: &mut Draws) -> Option<Self> {
        let (low, high) = if shifted { (8, 20) } else { (2, 12) };
        let triple = draws.pick(if shifted { &OOD_TRIPLES } else { &TRIPLES });
        let (leg, other) = if draws.percent(50) { (triple.0, triple.1) } else { (triple.1, triple.0) };
        let side = |draws: &mut Draws| draws.between(low, high);
        let figure = match kind {
            Kind::Sides | Kind::TwoSides => {
                let (a, b, c) = (side(draws), side(draws), side(draws));
                let mut figure = Self::triangle(kind, [a, b, c], shifted, draws)?;
                figure.unlabelled = (kind == Kind::TwoSides).then_some(c);
                let labels: &[(usize, usize, i64)] = &[(0, 1, a), (1, 2, b), (2, 0, c)];
                figure.with_sides(if kind == Kind::Sides { labels } else { &labels[..2] })
            }
            Kind::Angles | Kind::TwoAngles => {
                let (a, b) = (draws.between(30, 110), draws.between(30, 110));
                let c = 180 - a - b;
                if c < 30 {
                    return None;
                }
                let points = vec![(0.0, 0.0), (sine(c), 0.0), (sine(b) * cosine(a), sine(b) * sine(a))];
                let figure = Self::polygon(kind, points, shifted, draws);
                let labels: &[(usize, i64)] = &[(0, a), (1, b), (2, c)];
                figure.with_angles(if kind == Kind::Angles { labels } else { &labels[..2] })
            }
            Kind::Legs => {
                // Half of them triples, so that the side across can be asked for as well.
                let (a, b) = if draws.percent(50) { (leg, other) } else { (side(draws), side(draws)) };
                if a * b % 2 != 0 || a == b {
                    return None;
                }
                let points = vec![(0.0, b as f64), (0.0, 0.0), (a as f64, 0.0)];
                Self::polygon(kind, points, shifted, draws).with_sides(&[(0, 1, b), (1, 2, a)]).with_right(0, 1, 2)
            }
            Kind::LegAcross => {
                let points = vec![(0.0, other as f64), (0.0, 0.0), (leg as f64, 0.0)];
                let figure = Self::polygon(kind, points, shifted, draws);
                figure.with_sides(&[(1, 2, leg), (2, 0, triple.2)]).with_right(0, 1, 2)
            }
            Kind::Isosceles => {
                // Half of them show the angle between the equal sides, which is even then.
                let base = draws.between(35, 70);
                let points = vec![(-cosine(base), 0.0), (cosine(base), 0.0), (0.0, sine(base))];
                let mut figure = Self::polygon(kind, points, shifted, draws);
                figure.equal = vec![(0, 2), (1, 2)];
                figure.with_angles(&[if draws.percent(50) { (2, 180 - 2 * base) } else { (0, base) }])
            }
            Kind::Square => {
                let a = side(draws);
                Self::polygon(kind, rectangle(1.0, 1.0), shifted, draws).with_sides(&[(0, 1, a)])
            }
            Kind::Rectangle => {
                let (a, b) = (side(draws), side(draws));
                if a == b {
                    return None;
                }
                let points = rectangle(a as f64, b as f64);
                Self::polygon(kind, points, shifted, draws).with_sides(&[(0, 1, a), (1, 2, b)])
            }
            Kind::Quadrilateral => Self::quadrilateral(shifted, draws)?,
            Kind::Line | Kind::Corner => Self::ray(kind, shifted, draws),
            Kind::Ell => {
                // Without letters, only the numbers tell one L from another: a wider range keeps repetitions rare.
                let (low, high) = if shifted { (12, 24) } else { (5, 18) };
                Self::ell(draws.between(low, high), draws.between(low, high), shifted, draws)?
            }
        };
        Some(figure)
    }

    fn polygon(kind: Kind, points: Vec<(f64, f64)>, shifted: bool, draws: &mut Draws) -> Self {
        let count = points.len();
        Self {
            kind,
            names: draws.sample(&LETTERS, count),
            points,
            lines: (0..count).map(|i| (i, (i + 1) % count)).collect(),
            sides: vec![],
            angles: vec![],
            right: None,
            equal: vec![],
            unlabelled: None,
            shifted,
        }
    }

    fn with_sides(mut self, sides: &[(usize, usize, i64)]) -> Self {
        self.sides =
            sides.iter().map(|&(i, j, length)| Side { ends: (i, j), name: self.side_name(i, j), length }).collect();
        self
    }

    fn with_angles(mut self, angles: &[(usize, i64)]) -> Self {
        let count = self.points.len();
        let angle = |&(corner, degrees): &(usize, i64)| Angle {
            arms: ((corner + count - 1) % count, (corner + 1) % count),
            corner,
            name: self.names[corner].to_string(),
            degrees,
        };
        self.angles = angles.iter().map(angle).collect();
        self
    }

    fn with_right(mut self, from: usize, corner: usize, to: usize) -> Self {
        self.right = Some((from, corner, to));
        self
    }

    fn triangle(kind: Kind, [a, b, c]: [i64; 3], shifted: bool, draws: &mut Draws) -> Option<Self> {
        let longest = a.max(b).max(c);
        // All different, so that the longest is one; flat triangles leave no room for labels.
        if a == b || b == c || c == a || (a + b + c - longest) * 4 < longest * 5 {
            return None;
        }
        let (a, b, c) = (a as f64, b as f64, c as f64);
        let x = (a * a + c * c - b * b) / (2.0 * a);
        let y = (c * c - x * x).sqrt();
        Some(Self::polygon(kind, vec![(0.0, 0.0), (a, 0.0), (x, y)], shifted, draws))
    }

    /// Two corners at the ends of a base of length 1, the third side's length drawn, the rest follows.
    fn quadrilateral(shifted: bool, draws: &mut Draws) -> Option<Self> {
        let degrees = [(); 3].map(|()| draws.between(60, 125));
        let last = 360 - degrees.iter().sum::<i64>();
        let length = draws.between(60, 110) as f64 / 100.0;
        let (a, b, c) = (degrees[0], degrees[1], degrees[2]);
        let third = (1.0 - length * cosine(b), length * sine(b));
        // The fourth corner lies on the first one's other arm and on the line that leaves the third at its angle.
        let direction = (-cosine(b + c), sine(b + c));
        let (x, y) = (cosine(a), sine(a));
        let across = x * direction.1 - y * direction.0;
        let along = (third.0 * direction.1 - third.1 * direction.0) / across;
        let back = (third.0 * y - third.1 * x) / across;
        let sensible = (60..=125).contains(&last) && across.abs() > 0.1 && along > 0.4 && back.abs() > 0.4;
        let points = vec![(0.0, 0.0), (1.0, 0.0), third, (along * x, along * y)];
        // Names are drawn even where nothing comes of it: fewer branches, same cost.
        let figure = Self::polygon(Kind::Quadrilateral, points, shifted, draws);
        sensible.then(|| figure.with_angles(&[(0, a), (1, b), (2, c)]))
    }

    /// Points: left end, middle, right (or upper) end, end of the ray.
    fn ray(kind: Kind, shifted: bool, draws: &mut Draws) -> Self {
        let line = kind == Kind::Line;
        let degrees = if line { draws.between(35, 145) } else { draws.between(28, 62) };
        // Measured from the first arm.
        let end = if line { (-cosine(degrees), sine(degrees)) } else { (cosine(degrees), sine(degrees)) };
        let arms = if line { [(-1.0, 0.0), (1.0, 0.0)] } else { [(1.1, 0.0), (0.0, 1.1)] };
        let points = vec![arms[0], (0.0, 0.0), arms[1], (end.0 * 1.1, end.1 * 1.1)];
        let mut figure = Self::polygon(kind, points, shifted, draws);
        figure.lines = vec![(0, 1), (1, 2), (1, 3)];
        let name = figure.angle_name(0, 1, 3);
        figure.angles = vec![Angle { arms: (0, 3), corner: 1, name, degrees }];
        if line { figure } else { figure.with_right(0, 1, 2) }
    }

    fn ell(width: i64, height: i64, shifted: bool, draws: &mut Draws) -> Option<Self> {
        if width.max(height) > 2 * width.min(height) {
            return None;
        }
        let (top, right) = (draws.between(2, width - 2), draws.between(2, height - 2));
        // Arms of a third to two thirds: room for every label.
        let broad = |part: i64, whole: i64| 3 * part >= whole && 3 * part <= 2 * whole;
        if !broad(top, width) || !broad(right, height) {
            return None;
        }
        let [w, h, t, r] = [width, height, top, right].map(|value| value as f64);
        let points = vec![(0.0, 0.0), (w, 0.0), (w, r), (t, r), (t, h), (0.0, h)];
        let mut figure = Self::polygon(Kind::Ell, points, shifted, draws);
        figure.names.clear();
        let labels = [("width", 0, 1, width), ("height", 5, 0, height), ("top", 4, 5, top), ("right", 1, 2, right)];
        figure.sides = labels.map(|(name, i, j, length)| Side { ends: (i, j), name: name.into(), length }).to_vec();
        Some(figure)
    }

    /// Turns or mirrors the figure and fits it into the middle of the canvas.
    fn place(&mut self, draws: &mut Draws) {
        // An L keeps its sides where their names say.
        let free = self.kind != Kind::Ell;
        let turn = if self.shifted {
            let quarter = if free { 90 * draws.between(0, 3) } else { 0 };
            quarter + draws.between(18, if free { 72 } else { 30 })
        } else {
            0
        };
        let mirror = |flip: bool| if flip && free { -1.0 } else { 1.0 };
        let (across, down) = (mirror(draws.percent(50)), mirror(draws.percent(50)));
        let turned = |&(x, y): &(f64, f64)| {
            let (x, y) = (x * across, -y * down);
            (x * cosine(turn) - y * sine(turn), x * sine(turn) + y * cosine(turn))
        };
        let points: Vec<(f64, f64)> = self.points.iter().map(turned).collect();
        let reach = |values: &mut dyn Iterator<Item = f64>| {
            values.fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)))
        };
        let (left, right) = reach(&mut points.iter().map(|point| point.0));
        let (top, bottom) = reach(&mut points.iter().map(|point| point.1));
        // Labels of sides stand outside and need the room.
        let extent = if self.sides.is_empty() { 98.0 } else { 84.0 };
        let scale = extent / (right - left).max(bottom - top);
        let fitted = |&(x, y): &(f64, f64)| {
            (64.0 + (x - (left + right) / 2.0) * scale, 64.0 + (y - (top + bottom) / 2.0) * scale)
        };
        self.points = points.iter().map(fitted).collect();
    }

    /// `EF`.
    pub fn side_name(&self, i: usize, j: usize) -> String {
        format!("{}{}", self.names[i], self.names[j])
    }

    /// `EFH`, the corner in the middle.
    pub fn angle_name(&self, from: usize, corner: usize, to: usize) -> String {
        format!("{}{}{}", self.names[from], self.names[corner], self.names[to])
    }

    /// `triangle EFH: EF 5, FH 7, HE 9.`
    pub fn facts(&self) -> String {
        let mut given = Vec::new();
        if let Some((_, corner, _)) = self.right
            && self.kind != Kind::Corner
        {
            given.push(format!("right angle {}", self.names[corner]));
        }
        if let [(a, apex), (b, _)] = self.equal[..] {
            given.push(format!("{} and {} equal", self.side_name(apex, a), self.side_name(apex, b)));
        }
        given.extend(self.sides.iter().map(|side| format!("{} {}", side.name, side.length)));
        given.extend(self.angles.iter().map(|angle| format!("angle {} {}", angle.name, angle.degrees)));
        let name = match self.kind {
            Kind::Ell => String::new(),
            Kind::Line | Kind::Corner => {
                format!(" {} with ray {}", self.angle_name(0, 1, 2), self.side_name(1, 3))
            }
            _ => format!(" {}", self.names.concat()),
        };
        let turned = if self.shifted { "turned " } else { "" };
        format!("{turned}{}{name}: {}.", self.kind.word(), given.join(", "))
    }
}

fn rectangle(width: f64, height: f64) -> Vec<(f64, f64)> {
    vec![(0.0, 0.0), (width, 0.0), (width, height), (0.0, height)]
}
