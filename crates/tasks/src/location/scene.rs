//! Scenes of the world `location`: shapes in the cells of a 3 x 3 grid, each with the box that its pixels fill.
//! Train and id scenes: filled shapes on white. Ood scenes: the same shapes as bright outlines on a dark ground.
//! Cost: a few dozen draws and about 10 shapes of SVG.

use crate::canvas::Canvas;
use crate::counting::scene::{Color, Object, Shape, Size, corners, draw};
use crate::draws::Draws;
use crate::row::Answer;
use crate::world::Split;

/// Shapes in their places.
#[derive(Clone, Debug)]
pub struct LocationScene {
    /// The objects, in reading order of their cells.
    pub objects: Vec<Object>,
    /// Drawn as outlines on a dark ground.
    pub shifted: bool,
}

impl LocationScene {
    /// A scene of the given difficulty.
    pub fn new(split: Split, level: u8, draws: &mut Draws) -> Self {
        let (fewest, most) = match level {
            // The primer's first glimpse.
            0 => (1, 2),
            1 => (4, 5),
            2 => (4, 6),
            _ => (5, 7),
        };
        let count = draws.between(fewest, most) as usize;
        // Few colours and shapes per scene: an expression needs both words, and "the leftmost circle" a choice.
        let num_colors = draws.between(2, 3) as usize;
        let colors = draws.sample(Color::ALL, num_colors);
        let num_shapes = if level == 0 { Shape::ALL.len() } else { draws.between(2, 3) as usize };
        let shapes = draws.sample(Shape::ALL, num_shapes);
        let mut cells = draws.sample(&(0..9).collect::<Vec<i64>>(), count);
        cells.sort_unstable();
        let place = |cell: i64| {
            let size = draws.pick(Size::ALL);
            let radius = if size == Size::Small { 10 } else { 16 };
            let jitter = (42 - 2 * radius - 3) / 2;
            let mut middle = |place: i64| 22 + place * 42 + draws.between(-jitter, jitter);
            let (x, y) = (middle(cell % 3), middle(cell / 3));
            Object { shape: draws.pick(&shapes), color: draws.pick(&colors), size, x, y, radius }
        };
        Self { objects: cells.into_iter().map(place).collect(), shifted: split == Split::Ood }
    }

    /// `filled: large red circle [6, 5, 38, 37], small blue star [..].`
    pub fn facts(&self) -> String {
        let facts: Vec<String> = self
            .objects
            .iter()
            .map(|object| format!("{} {}", object.phrase(), Answer::Box(extent(object)).text()))
            .collect();
        format!("{}: {}.", if self.shifted { "outlined" } else { "filled" }, facts.join(", "))
    }

    /// The picture.
    pub fn canvas(&self) -> Canvas {
        let mut canvas = Canvas::new(128, 128, if self.shifted { "#20242c" } else { "#ffffff" });
        for object in &self.objects {
            if self.shifted {
                outline(&mut canvas, object);
            } else {
                draw(&mut canvas, object);
            }
        }
        canvas
    }
}

/// The box that the object's pixels fill, in whole units.
pub fn extent(object: &Object) -> [f64; 4] {
    let (x, y, r) = (object.x as f64, object.y as f64, object.radius as f64);
    let corners = corners(object.shape);
    if corners.is_empty() {
        return [x - r, y - r, x + r, y + r];
    }
    // As drawn: corners half a unit inside the radius, and an outline of half a unit around them.
    let reach = |values: &mut dyn Iterator<Item = f64>| {
        let (low, high) = values.fold((0.0_f64, 0.0_f64), |(low, high), value| (low.min(value), high.max(value)));
        (low * (r - 0.5) - 0.5, high * (r - 0.5) + 0.5)
    };
    let (left, right) = reach(&mut corners.iter().map(|corner| corner.0));
    let (top, bottom) = reach(&mut corners.iter().map(|corner| corner.1));
    [x + left, y + top, x + right, y + bottom].map(f64::round)
}

/// The same extent as when filled, three units thick and empty inside.
fn outline(canvas: &mut Canvas, object: &Object) {
    let color = match object.color {
        Color::Red => "#ff6b6b",
        Color::Green => "#5ee07a",
        Color::Blue => "#6aa5ff",
        Color::Yellow => "#ffe14d",
        Color::Purple => "#d98cff",
        Color::Gray => "#b9b9b9",
    };
    let (x, y, r) = (object.x as f64, object.y as f64, object.radius as f64 - 1.5);
    let mut points: Vec<(f64, f64)> =
        corners(object.shape).iter().map(|&(right, down)| (x + right * r, y + down * r)).collect();
    if points.is_empty() {
        let at = |i: u32| f64::from(i) * std::f64::consts::PI / 16.0;
        points = (0..32).map(at).map(|angle| (x + r * angle.cos(), y + r * angle.sin())).collect();
    }
    // Once around and along the first side again, so that the last corner is as sharp as the others.
    points.extend([points[0], points[1]]);
    canvas.line(&points, color, 3.0, false);
}
