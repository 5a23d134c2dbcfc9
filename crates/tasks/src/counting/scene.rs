//! Scenes of the world `counting`: coloured shapes on a white ground, each in its own cell of a grid.
//! Train and id scenes: 3 to 9 objects in a grid of 3 x 3, never one of the colour-shape pairs of `HELD_OUT`.
//! Ood scenes: 6 to 12 smaller objects in a grid of 4 x 4, at least two of the held-out pairs.
//! Cost: a few dozen draws and about 20 shapes of SVG.

use crate::canvas::Canvas;
use crate::draws::Draws;
use crate::words::words;
use crate::world::Split;

words!(
    /// Outline of an object.
    Shape { Circle = "circle", Square = "square", Triangle = "triangle", Star = "star", Cross = "cross" }
);
words!(
    /// Fill of an object.
    Color { Red = "red", Green = "green", Blue = "blue", Yellow = "yellow", Purple = "purple", Gray = "gray" }
);
words!(
    /// Extent of an object: 20 or 32 pixels of 128, 16 or 28 in ood scenes.
    Size { Small = "small", Large = "large" }
);

/// Colour-shape pairs that only `ood` scenes show.
pub const HELD_OUT: [(Color, Shape); 6] = [
    (Color::Red, Shape::Star),
    (Color::Green, Shape::Circle),
    (Color::Blue, Shape::Triangle),
    (Color::Yellow, Shape::Cross),
    (Color::Purple, Shape::Square),
    (Color::Gray, Shape::Star),
];

/// Words for the thirds of a picture, by line and column.
pub(crate) const POSITIONS: [[&str; 3]; 3] =
    [["top left", "top", "top right"], ["left", "center", "right"], ["bottom left", "bottom", "bottom right"]];

/// One object; the centre is in units of a 128-unit canvas.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Object {
    /// Its outline.
    pub shape: Shape,
    /// Its fill.
    pub color: Color,
    /// Its extent.
    pub size: Size,
    /// Centre, from the left.
    pub x: i64,
    /// Centre, from the top.
    pub y: i64,
    /// Half the extent.
    pub radius: i64,
}

/// All objects, in reading order of their cells.
#[derive(Clone, Debug)]
pub struct CountingScene {
    /// The objects.
    pub objects: Vec<Object>,
}

impl Object {
    /// `top left` to `bottom right`, by the third of the picture that holds the centre.
    pub fn position(&self) -> &'static str {
        POSITIONS[(self.y * 3 / 128) as usize][(self.x * 3 / 128) as usize]
    }

    /// `large red circle`.
    pub fn phrase(&self) -> String {
        format!("{} {} {}", self.size.word(), self.color.word(), self.shape.word())
    }
}

impl CountingScene {
    /// A scene of the given difficulty.
    pub fn new(split: Split, level: u8, draws: &mut Draws) -> Self {
        let ood = split == Split::Ood;
        let (low, high) = match (ood, level) {
            // The primer's first glimpse.
            (false, 0) => (1, 2),
            (false, 1) => (3, 5),
            (false, 2) => (4, 7),
            (false, _) => (6, 9),
            (true, 1) => (6, 8),
            (true, 2) => (8, 10),
            (true, _) => (10, 12),
        };
        let count = draws.between(low, high) as usize;
        // Few colours and shapes per scene: counts above one become common.
        let num_colors = if level == 0 { Color::ALL.len() } else { draws.between(2, 4) as usize };
        let colors = draws.sample(Color::ALL, num_colors);
        let num_shapes = if level == 0 { Shape::ALL.len() } else { draws.between(2, 3) as usize };
        let shapes = draws.sample(Shape::ALL, num_shapes);
        let side = if ood { 4 } else { 3 };
        let mut cells = draws.sample(&(0..side * side).collect::<Vec<i64>>(), count);
        cells.sort_unstable();

        // The held-out pairs go to random places, not to the first ones in reading order.
        let mut novel: Vec<bool> = (0..count).map(|i| ood && i < 2 + count / 3).collect();
        draws.shuffle(&mut novel);
        let place = |(cell, novel): (i64, bool)| {
            let (color, shape) = if novel {
                draws.pick(&HELD_OUT)
            } else {
                // Two shapes and at most one held-out pair per colour: a free pair always exists.
                loop {
                    let pair = (draws.pick(&colors), draws.pick(&shapes));
                    if !HELD_OUT.contains(&pair) {
                        break pair;
                    }
                }
            };
            let size = draws.pick(Size::ALL);
            let radius = match (size, ood) {
                (Size::Small, false) => 10,
                (Size::Large, false) => 16,
                (Size::Small, true) => 8,
                (Size::Large, true) => 14,
            };
            let mut object = Object { shape, color, size, x: 0, y: 0, radius };
            let (pitch, margin) = if ood { (32, 0) } else { (42, 1) };
            // Some space stays free at each side of a cell, so objects touch neither each other nor the edge.
            let jitter = (pitch - 2 * object.radius - 3) / 2;
            object.x = margin + (cell % side) * pitch + pitch / 2 + draws.between(-jitter, jitter);
            object.y = margin + (cell / side) * pitch + pitch / 2 + draws.between(-jitter, jitter);
            object
        };
        Self { objects: cells.into_iter().zip(novel).map(place).collect() }
    }

    /// `top left: large red circle. center: small blue star.`
    pub fn facts(&self) -> String {
        let facts: Vec<String> =
            self.objects.iter().map(|object| format!("{}: {}.", object.position(), object.phrase())).collect();
        facts.join(" ")
    }

    /// The picture.
    pub fn canvas(&self) -> Canvas {
        let mut canvas = Canvas::new(128, 128, "#ffffff");
        for object in &self.objects {
            draw(&mut canvas, object);
        }
        canvas
    }
}

/// Draws one object, filled and outlined.
pub(crate) fn draw(canvas: &mut Canvas, object: &Object) {
    let (fill, outline) = match object.color {
        Color::Red => ("#e32626", "#8f1010"),
        Color::Green => ("#22a83f", "#0d5c1e"),
        Color::Blue => ("#2f5ff0", "#142f8a"),
        Color::Yellow => ("#fccf10", "#8f7400"),
        Color::Purple => ("#a238d0", "#581a75"),
        Color::Gray => ("#8c8c8c", "#4a4a4a"),
    };
    let (x, y, r) = (object.x as f64, object.y as f64, object.radius as f64 - 0.5);
    match corners(object.shape) {
        corners if corners.is_empty() => canvas.circle(x, y, r, fill, outline),
        corners => {
            let around = |&(px, py): &(f64, f64)| (x + px * r, y + py * r);
            canvas.polygon(&corners.iter().map(around).collect::<Vec<_>>(), fill, outline);
        }
    }
}

/// The corners of a shape around its centre, in radii; none for a circle.
pub(crate) fn corners(shape: Shape) -> Vec<(f64, f64)> {
    match shape {
        Shape::Circle => vec![],
        // A little inside the radius, so that squares do not look larger than circles of the same size.
        Shape::Square => vec![(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)],
        Shape::Triangle => vec![(0.0, -1.0), (1.0, 0.86), (-1.0, 0.86)],
        Shape::Star => {
            let point = |i: u32| {
                let angle = f64::from(i) * std::f64::consts::PI / 5.0;
                let radius = if i.is_multiple_of(2) { 1.08 } else { 0.46 };
                (radius * angle.sin(), -radius * angle.cos() + 0.06)
            };
            (0..10).map(point).collect()
        }
        Shape::Cross => {
            let (a, b) = (0.36, 1.0);
            vec![
                (-a, -b),
                (a, -b),
                (a, -a),
                (b, -a),
                (b, a),
                (a, a),
                (a, b),
                (-a, b),
                (-a, a),
                (-b, a),
                (-b, -a),
                (-a, -a),
            ]
        }
    }
}
