//! Scenes of the world `transformation`: solids on a table of 3 x 3 cells, before and after one to four changes.
//! Train and id scenes: both pictures are taken from the front. Ood scenes: the camera of the second picture stands to
//! the left or to the right; directions keep their meaning of the first picture.
//! No other program of as few calls leads from the first state to the second (all assignments are tried), so the
//! answer is unique. Cost: a few dozen draws and at most 120 assignments per try.

use crate::draws::Draws;
use crate::words::words;
use crate::world::Split;

words!(
    /// Extent of a solid.
    Size { Small = "small", Medium = "medium", Large = "large" }
);
words!(
    /// Colour of a solid.
    Color {
        Yellow = "yellow", Gray = "gray", Cyan = "cyan", Blue = "blue", Brown = "brown", Green = "green",
        Red = "red", Purple = "purple",
    }
);
words!(
    /// What a solid is made of: hollow and pale, striped with light, or plain.
    Material { Glass = "glass", Metal = "metal", Rubber = "rubber" }
);
words!(
    /// Form of a solid.
    Shape { Cube = "cube", Sphere = "sphere", Cylinder = "cylinder" }
);
words!(
    /// Where a solid is moved, by one cell, as seen in the first picture.
    Direction {
        Front = "front", Behind = "behind", Left = "left", Right = "right", FrontLeft = "front_left",
        FrontRight = "front_right", BehindLeft = "behind_left", BehindRight = "behind_right",
    }
);

/// A cell of the table: column from the left, then line from the front, both 0 to 2.
pub type Cell = (i64, i64);

/// One solid.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Solid {
    /// Its extent.
    pub size: Size,
    /// Its colour.
    pub color: Color,
    /// What it is made of.
    pub material: Material,
    /// Its form.
    pub shape: Shape,
    /// Where it stands.
    pub cell: Cell,
}

/// One change of one solid.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Change {
    /// To another extent.
    Size(Size),
    /// To another colour.
    Color(Color),
    /// To another material.
    Material(Material),
    /// To another form.
    Shape(Shape),
    /// To a neighbouring cell.
    Position(Direction),
}

/// Where the camera of the second picture stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// Where that of the first picture stands.
    Front,
    /// Further left.
    Left,
    /// Further right.
    Right,
}

/// Two states of a table and the calls between them.
#[derive(Clone, Debug)]
pub struct Transformation {
    /// The first state; a solid's id is its place in this list.
    pub before: Vec<Solid>,
    /// The second state, in the same order.
    pub after: Vec<Solid>,
    /// Solid and change, by solid, then by function.
    pub changes: Vec<(usize, Change)>,
    /// Camera of the second picture.
    pub view: View,
}

impl Direction {
    /// Columns to the right, lines to the back.
    pub fn step(self) -> Cell {
        match self {
            Self::Front => (0, -1),
            Self::Behind => (0, 1),
            Self::Left => (-1, 0),
            Self::Right => (1, 0),
            Self::FrontLeft => (-1, -1),
            Self::FrontRight => (1, -1),
            Self::BehindLeft => (-1, 1),
            Self::BehindRight => (1, 1),
        }
    }
}

/// Words for a cell, as in `back left`.
pub fn place(cell: Cell) -> &'static str {
    const WORDS: [[&str; 3]; 3] =
        [["front left", "front", "front right"], ["left", "center", "right"], ["back left", "back", "back right"]];
    WORDS[cell.1 as usize][cell.0 as usize]
}

impl Solid {
    /// `small red glass cube`.
    pub fn phrase(&self) -> String {
        format!("{} {} {} {}", self.size.word(), self.color.word(), self.material.word(), self.shape.word())
    }

    fn random(cell: Cell, draws: &mut Draws) -> Self {
        Self {
            size: draws.pick(Size::ALL),
            color: draws.pick(Color::ALL),
            material: draws.pick(Material::ALL),
            shape: draws.pick(Shape::ALL),
            cell,
        }
    }

    fn looks_like(&self, other: &Solid) -> bool {
        Solid { cell: other.cell, ..*self } == *other
    }
}

impl Change {
    /// Name of the function.
    pub fn function(self) -> &'static str {
        ["change_size", "change_color", "change_material", "change_shape", "change_position"][self.order()]
    }

    /// Its value.
    pub fn value(self) -> &'static str {
        match self {
            Self::Size(value) => value.word(),
            Self::Color(value) => value.word(),
            Self::Material(value) => value.word(),
            Self::Shape(value) => value.word(),
            Self::Position(value) => value.word(),
        }
    }

    /// Place of its function among the five.
    pub fn order(self) -> usize {
        match self {
            Self::Size(_) => 0,
            Self::Color(_) => 1,
            Self::Material(_) => 2,
            Self::Shape(_) => 3,
            Self::Position(_) => 4,
        }
    }

    /// The solid after the change.
    pub fn applied(self, solid: Solid) -> Solid {
        match self {
            Self::Size(size) => Solid { size, ..solid },
            Self::Color(color) => Solid { color, ..solid },
            Self::Material(material) => Solid { material, ..solid },
            Self::Shape(shape) => Solid { shape, ..solid },
            Self::Position(direction) => {
                let (right, back) = direction.step();
                Solid { cell: (solid.cell.0 + right, solid.cell.1 + back), ..solid }
            }
        }
    }

    /// A change of the given function that alters `solid` and leaves it on the table.
    pub fn of(solid: Solid, function: usize, draws: &mut Draws) -> Self {
        loop {
            let change = match function {
                0 => Self::Size(draws.pick(Size::ALL)),
                1 => Self::Color(draws.pick(Color::ALL)),
                2 => Self::Material(draws.pick(Material::ALL)),
                3 => Self::Shape(draws.pick(Shape::ALL)),
                _ => Self::Position(draws.pick(Direction::ALL)),
            };
            let (after, on) = (change.applied(solid), 0..3);
            if after != solid && on.contains(&after.cell.0) && on.contains(&after.cell.1) {
                return change;
            }
        }
    }
}

impl Transformation {
    /// A scene of the given difficulty: as many changes as the level says, three or four at level 3.
    pub fn new(split: Split, level: u8, draws: &mut Draws) -> Self {
        let view = if split == Split::Ood { draws.pick(&[View::Left, View::Right]) } else { View::Front };
        let (fewest, most, num_changes) = match level {
            // The primer's first glimpse.
            0 => (1, 2, draws.between(0, 1)),
            1 => (3, 3, 1),
            2 => (3, 4, 2),
            _ => (4, 5, draws.between(3, 4)),
        };
        loop {
            let count = draws.between(fewest, most) as usize;
            let cells: Vec<Cell> = (0..9).map(|cell| (cell % 3, cell / 3)).collect();
            let before: Vec<Solid> =
                draws.sample(&cells, count).into_iter().map(|cell| Solid::random(cell, draws)).collect();
            let mut changes: Vec<(usize, Change)> = Vec::new();
            while changes.len() < num_changes as usize {
                let (solid, function) = (draws.below(count), draws.below(5));
                if changes.iter().all(|&(other, change)| (other, change.order()) != (solid, function)) {
                    changes.push((solid, Change::of(before[solid], function, draws)));
                }
            }
            changes.sort_by_key(|&(solid, change)| (solid, change.order()));
            let mut after = before.clone();
            for &(solid, change) in &changes {
                after[solid] = change.applied(after[solid]);
            }
            let scene = Self { before, after, changes, view };
            if scene.is_clear() {
                return scene;
            }
        }
    }

    /// Each id names one solid, no cell is used twice or by two solids in turn, and no other program is as short.
    fn is_clear(&self) -> bool {
        let pairs = || (0..self.before.len()).flat_map(|i| (0..i).map(move |j| (i, j)));
        let named = pairs().all(|(i, j)| !self.before[i].looks_like(&self.before[j]));
        let free = pairs().all(|(i, j)| {
            let (a, b) = ([self.before[i].cell, self.after[i].cell], [self.before[j].cell, self.after[j].cell]);
            a.iter().all(|cell| !b.contains(cell))
        });
        let identity: Vec<usize> = (0..self.before.len()).collect();
        named && free && {
            let mut others = 0;
            permutations(&mut identity.clone(), 0, &mut |order| {
                let cost: Option<usize> = order.iter().enumerate().map(|(i, &j)| self.cost(i, j)).sum();
                others += usize::from(cost.is_some_and(|cost| cost <= self.changes.len()) && *order != *identity);
            });
            others == 0
        }
    }

    /// Number of calls that turn solid `i` of the first state into solid `j` of the second, if calls can do it.
    fn cost(&self, i: usize, j: usize) -> Option<usize> {
        let (a, b) = (&self.before[i], &self.after[j]);
        let differs = [a.size != b.size, a.color != b.color, a.material != b.material, a.shape != b.shape];
        let apart = (a.cell.0 - b.cell.0).abs().max((a.cell.1 - b.cell.1).abs());
        (apart <= 1).then(|| differs.iter().filter(|&&differs| differs).count() + apart as usize)
    }

    /// Both states, by cell from the front left to the back right; ids stand in the first one only.
    pub fn facts(&self) -> String {
        self.described(true)
    }

    /// Both pictures in words. The numbers of the objects are those of a question's list: no picture shows them.
    pub(super) fn described(&self, numbered: bool) -> String {
        let number = |id: usize| if numbered { format!("{id} ") } else { String::new() };
        let mut first: Vec<(Cell, String)> = (self.before.iter().enumerate())
            .map(|(id, solid)| (solid.cell, format!("{}: {}{}", place(solid.cell), number(id), solid.phrase())))
            .collect();
        let mut second: Vec<(Cell, String)> =
            self.after.iter().map(|solid| (solid.cell, format!("{}: {}", place(solid.cell), solid.phrase()))).collect();
        let listed = |all: &mut Vec<(Cell, String)>| {
            all.sort_by_key(|&((column, line), _)| (line, column));
            all.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>().join(", ")
        };
        let view = match self.view {
            View::Front => "",
            View::Left => " from the left",
            View::Right => " from the right",
        };
        format!("first picture: {}. second picture{view}: {}.", listed(&mut first), listed(&mut second))
    }
}

/// Calls `visit` with every order of `items`; those before `from` stay.
fn permutations(items: &mut [usize], from: usize, visit: &mut impl FnMut(&[usize])) {
    if from == items.len() {
        return visit(items);
    }
    for i in from..items.len() {
        items.swap(from, i);
        permutations(items, from + 1, visit);
        items.swap(from, i);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use foveate_kernels::rng::Purpose;

    #[test]
    fn every_order_is_visited_once() {
        let mut seen = Vec::new();
        permutations(&mut [0, 1, 2, 3], 0, &mut |order| seen.push(order.to_vec()));
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 24);
    }

    #[test]
    fn levels_say_how_many_changes_there_are() {
        for (level, counts) in [(0, 0..=1), (1, 1..=1), (2, 2..=2), (3, 3..=4)] {
            for index in 0..200 {
                let scene = Transformation::new(Split::Ood, level, &mut Draws::new(1, Purpose::Test, 0, index));
                assert!(counts.contains(&scene.changes.len()) && scene.view != View::Front);
            }
        }
    }
}
