//! Contact sheets: many rows on one picture, each with its question and answer below, for people to look at.
//! Shows what cannot be read as an empty frame instead of failing. Cost: one large rendering per sheet.

use std::sync::Arc;

use crate::canvas::{Anchor, Canvas};
use crate::derive::question_text;
use crate::glyphs;
use crate::row::{Drawing, ImageData, Row};

/// Width of a cell without its margin; one picture fills it, two share it.
const CELL: u32 = 260;
const MARGIN: u32 = 12;
const LINE: u32 = 13;

/// The rows in cells, `columns` to a line of cells.
pub fn contact_sheet(rows: &[Row], columns: usize) -> Drawing {
    let columns = columns.clamp(1, 16).min(rows.len().max(1));
    let cells: Vec<Cell> = rows.iter().map(Cell::new).collect();
    let heights: Vec<u32> =
        cells.chunks(columns).map(|line| line.iter().map(|cell| cell.height).max().unwrap_or(0)).collect();
    let width = MARGIN + columns as u32 * (CELL + MARGIN);
    let height = (MARGIN + heights.iter().map(|height| height + MARGIN).sum::<u32>()).max(1);

    let mut canvas = Canvas::new(width, height, "#fafafa");
    let mut corners = Vec::new();
    let mut top = MARGIN;
    for (line, height) in cells.chunks(columns).zip(&heights) {
        for (column, cell) in line.iter().enumerate() {
            let left = MARGIN + column as u32 * (CELL + MARGIN);
            cell.frame(&mut canvas, left, top);
            corners.push((left, top));
        }
        top += height + MARGIN;
    }
    let mut sheet = canvas.draw();
    for (cell, (left, top)) in cells.iter().zip(corners) {
        for (picture, x) in &cell.pictures {
            paste(&mut sheet, picture, left + x, top);
        }
    }
    sheet
}

struct Cell {
    pictures: Vec<(Drawing, u32)>,
    missing: Vec<(u32, u32)>,
    picture_height: u32,
    lines: Vec<(String, &'static str)>,
    height: u32,
}

impl Cell {
    fn new(row: &Row) -> Self {
        let count = row.images.len().max(1) as u32;
        let side = ((CELL - (count - 1) * 4) / count).max(1);
        let mut cell = Cell { pictures: vec![], missing: vec![], picture_height: 0, lines: vec![], height: 0 };
        for (i, image) in row.images.iter().enumerate() {
            let left = i as u32 * (side + 4);
            match pixels(image) {
                Some(drawing) => {
                    let fitted = fit(&drawing, side);
                    cell.picture_height = cell.picture_height.max(fitted.height);
                    cell.pictures.push((fitted, left));
                }
                None => {
                    cell.picture_height = cell.picture_height.max(side.min(64));
                    cell.missing.push((left, side));
                }
            }
        }
        let width = (f64::from(CELL) / glyphs::ADVANCE) as usize;
        let mut add = |text: &str, colour: &'static str| {
            cell.lines.extend(wrap(text, width).into_iter().map(|line| (line, colour)));
        };
        add(&question_text(row), "#101010");
        add(&format!("= {}", row.answer.text()), "#0b6b2f");
        if !row.rationale.is_empty() {
            add(&row.rationale, "#6a6a6a");
        }
        add(&format!("[{}]", row.id), "#a0a0a0");
        cell.height = cell.picture_height + 6 + LINE * cell.lines.len() as u32;
        cell
    }

    /// Everything but the pictures.
    fn frame(&self, canvas: &mut Canvas, left: u32, top: u32) {
        for (x, side) in &self.missing {
            let (x, y, side) = (f64::from(left + x), f64::from(top), f64::from(*side));
            canvas.rect(x, y, side, 64.0_f64.min(side), "#e0e0e0");
            canvas.text(x + side / 2.0, y + 28.0, Anchor::Middle, 1.0, "#a00000", "no image");
        }
        for (i, (text, colour)) in self.lines.iter().enumerate() {
            let y = top + self.picture_height + 6 + i as u32 * LINE;
            canvas.text(f64::from(left), f64::from(y), Anchor::Start, 1.0, colour, text);
        }
    }
}

/// Decoded pixels, or nothing if the image cannot be read.
fn pixels(image: &ImageData) -> Option<Arc<Drawing>> {
    let decoded = match image {
        ImageData::Drawn(drawing) => return Some(Arc::clone(drawing)),
        ImageData::Path(path) => image::open(path).ok()?,
        ImageData::Encoded(bytes) => image::load_from_memory(bytes).ok()?,
    }
    .to_rgb8();
    let (width, height) = decoded.dimensions();
    Some(Arc::new(Drawing { width, height, rgb: decoded.into_raw() }))
}

/// The picture scaled to `side` pixels of width, each pixel kept visible (nearest neighbour): one sees what the
/// model gets.
fn fit(drawing: &Drawing, side: u32) -> Drawing {
    // A very tall picture is cut to three times its width; the sheet is for looking, not for measuring.
    let height = (u64::from(drawing.height) * u64::from(side) / u64::from(drawing.width.max(1)))
        .clamp(1, u64::from(side) * 3) as u32;
    let mut rgb = Vec::with_capacity((side * height * 3) as usize);
    for y in 0..height {
        for x in 0..side {
            let from_x = u64::from(x) * u64::from(drawing.width) / u64::from(side);
            let from_y = u64::from(y) * u64::from(drawing.width) / u64::from(side);
            let from_y = from_y.min(u64::from(drawing.height) - 1);
            let start = ((from_y * u64::from(drawing.width) + from_x) * 3) as usize;
            rgb.extend_from_slice(&drawing.rgb[start..start + 3]);
        }
    }
    Drawing { width: side, height, rgb }
}

fn paste(sheet: &mut Drawing, picture: &Drawing, left: u32, top: u32) {
    for y in 0..picture.height.min(sheet.height.saturating_sub(top)) {
        let from = (y * picture.width * 3) as usize;
        let to = (((top + y) * sheet.width + left) * 3) as usize;
        let length = (picture.width.min(sheet.width.saturating_sub(left)) * 3) as usize;
        sheet.rgb[to..to + length].copy_from_slice(&picture.rgb[from..from + length]);
    }
}

/// Lines of at most `width` characters, broken at spaces where possible and at every line break of the text.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for paragraph in text.lines() {
        let mut line = String::new();
        for word in paragraph.split_whitespace() {
            let mut word: Vec<char> = word.chars().collect();
            if !line.is_empty() && line.chars().count() + 1 + word.len() > width {
                lines.push(std::mem::take(&mut line));
            }
            while word.len() > width {
                lines.push(word.drain(..width).collect());
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.extend(word);
        }
        lines.push(line);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_words_and_lines_are_broken() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("abcdefghij k", 4), ["abcd", "efgh", "ij k"]);
        assert_eq!(wrap("a\nb", 4), ["a", "b"]);
    }
}
