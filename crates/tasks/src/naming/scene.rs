//! Scenes of the world `naming`: things in the cells of a 3 x 3 grid, each in one of six colours.
//! Train and id scenes: animals, vehicles, buildings. Ood scenes: fruits and tools, 3 or more at a time.
//! The primer's first glimpse (level 0) shows single things of all five families: a model born here has to learn all
//! words somewhere, and post-training then shows which of them it keeps. Cost: a few dozen draws and 20 to 60 shapes.

use super::glyphs::{self, CLASSES, Class};
use crate::canvas::Canvas;
use crate::counting::scene::{Color, POSITIONS};
use crate::draws::Draws;
use crate::world::Split;

/// One thing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Thing {
    /// What it is.
    pub class: &'static Class,
    /// Its colour.
    pub color: Color,
    /// Its cell: column from the left, line from the top.
    pub cell: (usize, usize),
}

/// All things, in reading order.
#[derive(Clone, Debug)]
pub struct NamingScene {
    /// The things.
    pub things: Vec<Thing>,
    /// The classes that a question about this scene may name.
    pub known: Vec<&'static Class>,
}

impl Thing {
    /// `top left` to `bottom right`.
    pub fn position(&self) -> &'static str {
        POSITIONS[self.cell.1][self.cell.0]
    }

    /// `red cat`.
    pub fn phrase(&self) -> String {
        format!("{} {}", self.color.word(), self.class.name)
    }
}

impl NamingScene {
    /// A scene of the given difficulty.
    pub fn new(split: Split, level: u8, draws: &mut Draws) -> Self {
        let trained = split != Split::Ood;
        let (fewest, most) = match level {
            0 => (1, 1),
            1 => (3, 4),
            2 => (4, 6),
            _ => (6, 8),
        };
        let known: Vec<&'static Class> =
            CLASSES.iter().filter(|class| level == 0 || class.family.is_trained() == trained).collect();
        let count = draws.between(fewest, most) as usize;
        // Fewer classes than things: some are there twice.
        let classes = draws.sample(&known, if level < 2 { count } else { count - 1 });
        let num_colors = if level == 0 { 6 } else { draws.between(2, 4) as usize };
        let colors = draws.sample(Color::ALL, num_colors);
        let mut cells = draws.sample(&(0..9).collect::<Vec<usize>>(), count);
        cells.sort_unstable();
        let thing =
            |cell: usize| Thing { class: draws.pick(&classes), color: draws.pick(&colors), cell: (cell % 3, cell / 3) };
        Self { things: cells.into_iter().map(thing).collect(), known }
    }

    /// `top left: red cat. center: blue bus.`
    pub fn facts(&self) -> String {
        let facts: Vec<String> =
            self.things.iter().map(|thing| format!("{}: {}.", thing.position(), thing.phrase())).collect();
        facts.join(" ")
    }

    /// The picture.
    pub fn canvas(&self) -> Canvas {
        let mut canvas = Canvas::new(128, 128, "#ffffff");
        for thing in &self.things {
            let fill = match thing.color {
                Color::Red => "#ee3a3a",
                Color::Green => "#2fb84d",
                Color::Blue => "#4d78f5",
                Color::Yellow => "#fcd21c",
                Color::Purple => "#b04fdc",
                Color::Gray => "#a2a2a2",
            };
            let at = |place: usize| 4.0 + 42.0 * place as f64;
            glyphs::draw(&mut canvas, thing.class, at(thing.cell.0), at(thing.cell.1), fill);
        }
        canvas
    }
}
