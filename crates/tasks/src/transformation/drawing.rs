//! Draws a table with solids on a canvas of 128 x 128 units: parallel projection from above, turned for the views from
//! the side. The dark edge of the table is its front. Cost: 30 to 60 shapes of SVG.

use std::f64::consts::{PI, TAU};

use super::scene::{Color, Material, Shape, Size, Solid, View};
use crate::canvas::Canvas;

type Point = (f64, f64);

/// Foreshortening of the ground and of heights: a camera 58 degrees above the table, so that little hides behind a
/// large solid.
const GROUND: f64 = 0.85;
const HEIGHT: f64 = 0.53;
/// Half the table, in cells.
const HALF: f64 = 1.5;

/// Where ground coordinates (cells from the middle, to the right and to the back) land on the canvas.
struct Camera {
    sin: f64,
    cos: f64,
    /// Units per cell.
    scale: f64,
}

impl Camera {
    fn new(view: View) -> Self {
        // 28 degrees: far enough to shift everything, and still clear which edge is the front.
        let (turn, scale) = match view {
            View::Front => (0.0, 37.0),
            View::Left => (-28.0 * PI / 180.0, 29.0),
            View::Right => (28.0 * PI / 180.0, 29.0),
        };
        Self { sin: f64::sin(turn), cos: f64::cos(turn), scale }
    }

    fn turned(&self, (right, back): Point) -> Point {
        (right * self.cos + back * self.sin, back * self.cos - right * self.sin)
    }

    fn point(&self, ground: Point, height: f64) -> Point {
        let (right, back) = self.turned(ground);
        (64.0 + self.scale * right, 70.0 - self.scale * (GROUND * back + HEIGHT * height))
    }
}

/// The picture of one state.
pub fn canvas(solids: &[Solid], view: View) -> Canvas {
    let camera = Camera::new(view);
    let mut canvas = Canvas::new(128, 128, "#ffffff");
    table(&mut canvas, &camera);
    let ground = |solid: &Solid| ((solid.cell.0 - 1) as f64, (solid.cell.1 - 1) as f64);
    let mut order: Vec<&Solid> = solids.iter().collect();
    order.sort_by(|a, b| camera.turned(ground(b)).1.total_cmp(&camera.turned(ground(a)).1));
    for solid in order {
        draw(&mut canvas, &camera, solid, ground(solid));
    }
    canvas
}

fn table(canvas: &mut Canvas, camera: &Camera) {
    let corners = [(-HALF, -HALF), (HALF, -HALF), (HALF, HALF), (-HALF, HALF)];
    let below = |ground| camera.point(ground, -0.22);
    for (i, &from) in corners.iter().enumerate() {
        let to = corners[(i + 1) % 4];
        // Only sides that face the camera; the front is dark, so that every view tells where it is.
        let outwards = camera.turned(((from.0 + to.0) / 2.0, (from.1 + to.1) / 2.0));
        if outwards.1 < -0.1 {
            let fill = if i == 0 { "#4a4038" } else { "#c9bfae" };
            let side = [camera.point(from, 0.0), camera.point(to, 0.0), below(to), below(from)];
            canvas.polygon(&side, fill, fill);
        }
    }
    canvas.polygon(&corners.map(|corner| camera.point(corner, 0.0)), "#f3f0ea", "#b8b0a2");
    for line in [-0.5, 0.5] {
        let lines = [[(-HALF, line), (HALF, line)], [(line, -HALF), (line, HALF)]];
        for ends in lines {
            canvas.line(&ends.map(|end| camera.point(end, 0.0)), "#c9c2b5", 1.0, false);
        }
    }
}

/// Colours of one solid, from its colour and material.
struct Paint {
    /// Faces that look up, to the front, and to the side.
    top: String,
    front: String,
    side: String,
    outline: String,
    /// Bands of light on metal.
    shine: Option<&'static str>,
    /// Glass shows its far edges.
    hollow: bool,
}

impl Paint {
    fn new(solid: &Solid) -> Self {
        let color = match solid.color {
            Color::Yellow => [250, 205, 0],
            Color::Gray => [138, 138, 138],
            Color::Cyan => [20, 200, 220],
            Color::Blue => [40, 70, 225],
            Color::Brown => [140, 78, 30],
            Color::Green => [25, 150, 50],
            Color::Red => [226, 32, 32],
            Color::Purple => [155, 45, 200],
        };
        let (white, black) = ([255; 3], [0; 3]);
        let light = |share| mix(color, white, share);
        let dark = |share| mix(color, black, share);
        match solid.material {
            Material::Rubber => {
                Self { top: light(18), front: light(0), side: dark(16), outline: dark(45), shine: None, hollow: false }
            }
            Material::Metal => Self {
                top: light(30),
                front: dark(8),
                side: dark(32),
                outline: "#101010".into(),
                shine: Some("#ffffff"),
                hollow: false,
            },
            Material::Glass => {
                Self { top: light(86), front: light(78), side: light(72), outline: light(0), shine: None, hollow: true }
            }
        }
    }

    /// A closed outline; that of glass is thick, because little else shows its colour.
    fn face(&self, canvas: &mut Canvas, points: &[Point], fill: &str) {
        canvas.polygon(points, fill, &self.outline);
        if self.hollow {
            let closed: Vec<Point> = points.iter().chain(&points[..2]).copied().collect();
            canvas.line(&closed, &self.outline, 1.8, false);
        }
    }
}

/// `share` per cent of the way from one colour to the other.
fn mix(from: [i32; 3], to: [i32; 3], share: i32) -> String {
    let [r, g, b] = [0, 1, 2].map(|i| from[i] + (to[i] - from[i]) * share / 100);
    format!("#{r:02x}{g:02x}{b:02x}")
}

fn draw(canvas: &mut Canvas, camera: &Camera, solid: &Solid, ground: Point) {
    let radius = match solid.size {
        Size::Small => 0.17,
        Size::Medium => 0.27,
        Size::Large => 0.38,
    };
    let paint = Paint::new(solid);
    match solid.shape {
        Shape::Cube => cube(canvas, camera, &paint, ground, radius * 0.92),
        Shape::Sphere => sphere(canvas, camera, &paint, ground, radius),
        Shape::Cylinder => cylinder(canvas, camera, &paint, ground, radius * 0.92),
    }
}

fn cube(canvas: &mut Canvas, camera: &Camera, paint: &Paint, (x, y): Point, r: f64) {
    let corners = [(x - r, y - r), (x + r, y - r), (x + r, y + r), (x - r, y + r)];
    let at = |i: usize, height: f64| camera.point(corners[i % 4], height);
    let top = 2.0 * r;
    for i in 0..4 {
        let middle =
            ((corners[i].0 + corners[(i + 1) % 4].0) / 2.0 - x, (corners[i].1 + corners[(i + 1) % 4].1) / 2.0 - y);
        if camera.turned(middle).1 > -0.05 * r {
            continue;
        }
        let fill = if i == 0 { &paint.front } else { &paint.side };
        paint.face(canvas, &[at(i, 0.0), at(i + 1, 0.0), at(i + 1, top), at(i, top)], fill);
        if let Some(shine) = paint.shine {
            // A slanted band of light across the face.
            let along = |share: f64, height: f64| {
                let ((ax, ay), (bx, by)) = (corners[i], corners[(i + 1) % 4]);
                camera.point((ax + (bx - ax) * share, ay + (by - ay) * share), height * top)
            };
            let band = [along(0.2, 0.1), along(0.42, 0.1), along(0.78, 0.9), along(0.56, 0.9)];
            canvas.polygon(&band, shine, shine);
        }
    }
    paint.face(canvas, &[at(0, top), at(1, top), at(2, top), at(3, top)], &paint.top);
    if paint.hollow {
        // The far corner of the ground, seen through the glass.
        let far = (0..4).max_by(|&a, &b| {
            let back = |i: usize| camera.turned((corners[i].0 - x, corners[i].1 - y)).1;
            back(a).total_cmp(&back(b))
        });
        let far = far.expect("four corners");
        for end in [at(far, top), at(far + 1, 0.0), at(far + 3, 0.0)] {
            canvas.line(&[at(far, 0.0), end], &paint.outline, 0.8, false);
        }
    }
}

/// An ellipse with a corner every twelfth of pi: below a tenth of a unit off.
fn ellipse(middle: Point, wide: f64, high: f64) -> Vec<Point> {
    let at = |i: u32| {
        let angle = f64::from(i) * PI / 12.0;
        (middle.0 + wide * angle.cos(), middle.1 + high * angle.sin())
    };
    (0..24).map(at).collect()
}

fn sphere(canvas: &mut Canvas, camera: &Camera, paint: &Paint, ground: Point, r: f64) {
    let (x, y) = camera.point(ground, 0.0);
    let r = r * camera.scale;
    // It stands on the ground where its shadow is.
    canvas.polygon(&ellipse((x, y + 0.5), r * 0.9, r * 0.62), "#d9d3c8", "#d9d3c8");
    let y = y - r * 0.72;
    paint.face(canvas, &ellipse((x, y), r, r), &paint.front);
    if paint.shine.is_some() {
        // The lower half mirrors the dark ground, the upper one the light.
        let lower: Vec<Point> =
            (0..=12).map(|i| TAU * f64::from(i) / 24.0).map(|a| (x + r * a.cos(), y + r * a.sin())).collect();
        canvas.polygon(&lower, &paint.side, &paint.side);
        canvas.polygon(&ellipse((x, y), r, r * 0.22), "#ffffff", "#ffffff");
        canvas.line(
            &ellipse((x, y), r, r).iter().chain(&[(x + r, y)]).copied().collect::<Vec<_>>(),
            "#101010",
            1.0,
            false,
        );
        canvas.polygon(&ellipse((x - r * 0.3, y - r * 0.55), r * 0.26, r * 0.16), "#ffffff", "#ffffff");
    } else if paint.hollow {
        canvas.line(&ellipse((x, y), r * 0.98, r * 0.34), &paint.outline, 0.8, false);
    } else {
        canvas.polygon(&ellipse((x - r * 0.32, y - r * 0.36), r * 0.22, r * 0.18), &paint.top, &paint.top);
    }
}

fn cylinder(canvas: &mut Canvas, camera: &Camera, paint: &Paint, ground: Point, r: f64) {
    let (x, y) = camera.point(ground, 0.0);
    let (wide, high) = (r * camera.scale, r * camera.scale * GROUND);
    let top = y - 2.1 * r * camera.scale * HEIGHT;
    // The lower edge from right to left, then up and along the upper one.
    let mut body: Vec<Point> = (0..=12)
        .map(|i| PI * f64::from(i) / 12.0)
        .map(|angle| (x + wide * angle.cos(), y + high * angle.sin()))
        .collect();
    body.extend([(x - wide, top), (x + wide, top)]);
    paint.face(canvas, &body, &paint.front);
    if let Some(shine) = paint.shine {
        let edge = |share: f64| high * (1.0 - share * share).sqrt();
        for (left, right) in [(-0.6, -0.25), (0.55, 0.7)] {
            let band = [
                (x + left * wide, top + edge(left)),
                (x + right * wide, top + edge(right)),
                (x + right * wide, y + edge(right) - 1.0),
                (x + left * wide, y + edge(left) - 1.0),
            ];
            canvas.polygon(&band, shine, shine);
        }
    }
    paint.face(canvas, &ellipse((x, top), wide, high), &paint.top);
    if paint.hollow {
        let far: Vec<Point> = (12..=24)
            .map(|i| PI * f64::from(i) / 12.0)
            .map(|angle| (x + wide * angle.cos(), y + high * angle.sin()))
            .collect();
        canvas.line(&far, &paint.outline, 0.8, false);
    }
}
