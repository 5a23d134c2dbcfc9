//! Vector shapes as SVG text, and the one place where SVG becomes pixels.
//! Knows shapes and colours; knows nothing of worlds. All coordinates are written with at most two decimals and no
//! fonts are involved, so the same scene gives the same bytes on every machine.
//! Cost: about 0.3 ms for a picture of 128 x 128 pixels.

use std::fmt::Write;

use resvg::{tiny_skia, usvg};

use crate::glyphs;
use crate::row::Drawing;

/// Where a text's `x` lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anchor {
    /// At the left end.
    Start,
    /// In the middle.
    Middle,
    /// At the right end.
    End,
}

/// A picture under construction: a background and shapes, later ones in front.
#[derive(Clone, Debug)]
pub struct Canvas {
    width: u32,
    height: u32,
    body: String,
}

impl Canvas {
    /// An empty picture of `width` x `height` units, filled with `background` (`#rrggbb`).
    pub fn new(width: u32, height: u32, background: &str) -> Self {
        let mut canvas = Self { width, height, body: String::new() };
        canvas.rect(0.0, 0.0, f64::from(width), f64::from(height), background);
        canvas
    }

    /// A filled rectangle.
    pub fn rect(&mut self, x: f64, y: f64, width: f64, height: f64, fill: &str) {
        let (x, y, width, height) = (number(x), number(y), number(width), number(height));
        self.add(format_args!("<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" fill=\"{fill}\"/>"));
    }

    /// A filled circle with an outline one unit wide.
    pub fn circle(&mut self, x: f64, y: f64, radius: f64, fill: &str, outline: &str) {
        let (x, y, radius) = (number(x), number(y), number(radius));
        self.add(format_args!("<circle cx=\"{x}\" cy=\"{y}\" r=\"{radius}\" fill=\"{fill}\" stroke=\"{outline}\"/>"));
    }

    /// A filled polygon with an outline one unit wide.
    pub fn polygon(&mut self, points: &[(f64, f64)], fill: &str, outline: &str) {
        let path = path(points);
        self.add(format_args!("<path d=\"{path}Z\" fill=\"{fill}\" stroke=\"{outline}\" stroke-linejoin=\"round\"/>"));
    }

    /// An open line through `points`; `dashed` leaves gaps.
    pub fn line(&mut self, points: &[(f64, f64)], colour: &str, width: f64, dashed: bool) {
        let (path, width) = (path(points), number(width));
        let dash = if dashed { " stroke-dasharray=\"4 3\"" } else { "" };
        self.add(format_args!(
            "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\" \
             stroke-linejoin=\"round\"{dash}/>"
        ));
    }

    /// A line of text whose capitals reach from `y` to `y + 9 * scale`.
    pub fn text(&mut self, x: f64, y: f64, anchor: Anchor, scale: f64, colour: &str, text: &str) {
        let width = glyphs::width(text, scale);
        let left = match anchor {
            Anchor::Start => x,
            Anchor::Middle => (x - width / 2.0).round(),
            Anchor::End => x - width,
        };
        let mut all = String::new();
        for (i, character) in text.chars().enumerate() {
            // Half a unit: a stroke one unit wide then covers whole pixels.
            let origin = left + (i as f64 * glyphs::ADVANCE + 0.5) * scale;
            for stroke in glyphs::strokes(character) {
                let points: Vec<_> =
                    stroke.iter().map(|&(px, py)| (origin + px * scale, y + (py + 0.5) * scale)).collect();
                all.push_str(&path(&points));
            }
        }
        if !all.is_empty() {
            let width = number(1.25 * scale);
            self.add(format_args!(
                "<path d=\"{all}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\" \
                 stroke-linejoin=\"round\" stroke-linecap=\"round\"/>"
            ));
        }
    }

    /// The picture as an SVG document of `width` x `height` pixels.
    pub fn svg(&self, width: u32, height: u32) -> String {
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {} {}\">{}</svg>",
            self.width, self.height, self.body
        )
    }

    /// The picture as pixels, one unit per pixel.
    pub fn draw(&self) -> Drawing {
        self.draw_at(self.width, self.height)
    }

    /// The picture as `width` x `height` pixels; both must be at least 1.
    pub fn draw_at(&self, width: u32, height: u32) -> Drawing {
        let tree = usvg::Tree::from_str(&self.svg(width, height), &usvg::Options::default())
            .expect("this module writes only well-formed SVG");
        let mut pixmap = tiny_skia::Pixmap::new(width, height).expect("a picture has at least one pixel");
        resvg::render(&tree, tiny_skia::Transform::identity(), &mut pixmap.as_mut());
        // The background is opaque, so colours are not premultiplied by anything but 1.
        let rgb = pixmap.data().chunks_exact(4).flat_map(|rgba| [rgba[0], rgba[1], rgba[2]]).collect();
        Drawing { width, height, rgb }
    }

    fn add(&mut self, element: std::fmt::Arguments) {
        self.body.write_fmt(element).expect("writing to a string cannot fail");
    }
}

/// At most two decimals, no trailing zeros: platform differences in the last bits of a sine never reach the text.
fn number(value: f64) -> String {
    let hundredths = (value * 100.0).round() as i64;
    let (whole, rest) = (hundredths.abs() / 100, hundredths.abs() % 100);
    let sign = if hundredths < 0 { "-" } else { "" };
    match (rest, rest % 10) {
        (0, _) => format!("{sign}{whole}"),
        (_, 0) => format!("{sign}{whole}.{}", rest / 10),
        _ => format!("{sign}{whole}.{rest:02}"),
    }
}

fn path(points: &[(f64, f64)]) -> String {
    let mut text = String::with_capacity(points.len() * 10);
    for (i, &(x, y)) in points.iter().enumerate() {
        text.push(if i == 0 { 'M' } else { 'L' });
        text.push_str(&number(x));
        text.push(' ');
        text.push_str(&number(y));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_at_most_two_decimals() {
        let cases = [(0.0, "0"), (-0.001, "0"), (1.5, "1.5"), (-2.345, "-2.35"), (10.05, "10.05"), (3.999, "4")];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn shapes_land_where_they_are_put() {
        let mut canvas = Canvas::new(32, 16, "#ffffff");
        canvas.rect(8.0, 4.0, 4.0, 4.0, "#ff0000");
        let drawing = canvas.draw();
        let at = |x: u32, y: u32| {
            let start = ((y * 32 + x) * 3) as usize;
            [drawing.rgb[start], drawing.rgb[start + 1], drawing.rgb[start + 2]]
        };
        assert_eq!((drawing.width, drawing.height, drawing.rgb.len()), (32, 16, 32 * 16 * 3));
        assert_eq!((at(8, 4), at(11, 7), at(7, 4), at(12, 8)), ([255, 0, 0], [255, 0, 0], [255; 3], [255; 3]));
        let doubled = canvas.draw_at(64, 32);
        assert_eq!(doubled.rgb.chunks(3).filter(|pixel| *pixel == [255, 0, 0]).count(), 64);
    }

    #[test]
    fn text_is_dark_and_stays_in_its_box() {
        let mut canvas = Canvas::new(40, 20, "#ffffff");
        canvas.text(20.0, 5.0, Anchor::Middle, 1.0, "#000000", "42");
        let drawing = canvas.draw();
        let dark: Vec<(u32, u32)> = (0..20)
            .flat_map(|y| (0..40).map(move |x| (x, y)))
            .filter(|&(x, y)| drawing.rgb[((y * 40 + x) * 3) as usize] < 128)
            .collect();
        assert!(dark.len() > 20);
        assert!(dark.iter().all(|&(x, y)| (14..26).contains(&x) && (5..14).contains(&y)), "{dark:?}");
    }
}
