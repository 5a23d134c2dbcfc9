//! What a chart shows: its kind, its names, its values. All values of a chart differ, so extremes are unique.
//! Train and id: upright bars, solid lines, full pies; 3 to 6 entries; values 1 to 20; bright colours on white.
//! Ood: lying bars, dashed lines with square marks, rings; 4 to 7 entries; values 8 to 30; muted colours on pale
//! blue-gray. Names and questions stay the same, since reading unseen words is not what this world asks.
//! Cost: a few dozen draws.

use crate::draws::Draws;
use crate::world::Split;

/// How the values are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChartKind {
    /// Bars, upright or (ood) lying.
    Bar,
    /// Points joined by a line.
    Line,
    /// A pie or (ood) a ring.
    Pie,
}

impl ChartKind {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Bar => "bar",
            Self::Line => "line",
            Self::Pie => "pie",
        }
    }
}

/// One chart.
#[derive(Clone, Debug)]
pub struct Chart {
    /// How the values are shown.
    pub kind: ChartKind,
    /// Names of the entries, from left to right, top to bottom or clockwise from the top.
    pub names: Vec<&'static str>,
    /// Their values.
    pub values: Vec<i64>,
    /// Values are read from an axis with grid lines instead of printed labels; level 3 only.
    pub axis_only: bool,
    /// Drawn in the ood style.
    pub shifted: bool,
}

// Letters that no digit resembles at nine pixels (G looks like 6, S like 5, Z like 2) and that are no option letters.
const LETTERS: [&str; 10] = ["E", "F", "H", "K", "L", "M", "P", "R", "T", "X"];
const WORDS: [&str; 10] = ["cat", "dog", "fox", "hen", "cow", "bee", "fig", "nut", "oak", "pea"];
const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

impl Chart {
    /// A chart of the given difficulty.
    pub fn new(split: Split, level: u8, draws: &mut Draws) -> Self {
        let shifted = split == Split::Ood;
        let kind = draws.pick(&[ChartKind::Bar, ChartKind::Line, ChartKind::Pie]);
        let (fewest, most) = match (shifted, level) {
            // The primer's first glimpse.
            (false, 0) => (2, 2),
            (false, 1) => (3, 4),
            (false, 2) => (4, 5),
            (false, _) => (4, 6),
            (true, 1) => (4, 5),
            (true, 2) => (5, 6),
            (true, _) => (5, 7),
        };
        let count = draws.between(fewest, most) as usize;
        let axis_only = level == 3 && kind != ChartKind::Pie && draws.percent(50);
        let (low, high) = match (shifted, axis_only, level) {
            (false, true, _) => (1, 10),
            (false, _, 0 | 1) => (1, 9),
            (false, _, 2) => (1, 15),
            (false, _, _) => (2, 20),
            // Ticks of 2 as in train, but a taller axis.
            (true, true, _) => (1, 14),
            (true, _, 1) => (8, 20),
            (true, _, 2) => (8, 25),
            (true, _, _) => (8, 30),
        };
        let values = loop {
            let values = draws.sample(&(low..=high).collect::<Vec<_>>(), count);
            if kind != ChartKind::Pie || fits_a_pie(&values) {
                break values;
            }
        };
        Self { kind, names: names(kind, count, shifted, axis_only, draws), values, axis_only, shifted }
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Always false: a chart has entries.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// `bar chart: A 5, B 12, C 9.`
    pub fn facts(&self) -> String {
        let entries: Vec<String> = self.names.iter().zip(&self.values).map(|(n, v)| format!("{n} {v}")).collect();
        format!("{} chart: {}.", self.kind.word(), entries.join(", "))
    }

    /// Indices from the highest to the lowest value.
    pub fn ranking(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.len()).collect();
        order.sort_by_key(|&i| -self.values[i]);
        order
    }
}

/// Each slice must be wide enough for a two-digit label.
fn fits_a_pie(values: &[i64]) -> bool {
    let total: i64 = values.iter().sum();
    values.iter().all(|&value| value * 100 >= total * 9)
}

/// All names of the kind that `name` belongs to.
pub fn family(name: &str) -> &'static [&'static str] {
    [&LETTERS[..], &WORDS, &MONTHS].into_iter().find(|all| all.contains(&name)).unwrap_or(&LETTERS)
}

fn names(kind: ChartKind, count: usize, shifted: bool, axis_only: bool, draws: &mut Draws) -> Vec<&'static str> {
    // Three letters need 19 pixels and a gap: lying bars have the room, the others only while entries are few.
    let room = (kind == ChartKind::Bar && shifted) || count <= if axis_only { 4 } else { 5 };
    match (kind, room && draws.percent(50)) {
        (ChartKind::Line, true) => {
            let first = draws.below(MONTHS.len() - count + 1);
            MONTHS[first..first + count].to_vec()
        }
        (_, true) => draws.sample(&WORDS, count),
        (_, false) => {
            let mut indices = draws.sample(&(0..LETTERS.len()).collect::<Vec<_>>(), count);
            indices.sort_unstable();
            indices.into_iter().map(|i| LETTERS[i]).collect()
        }
    }
}
