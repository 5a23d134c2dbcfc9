//! What box coordinates mean: pixels of the picture as it came, pixels as the model saw it, or shares of its sides. The
//! families were taught different ones (Qwen2-VL thousandths, Qwen2.5-VL pixels as shown).
//! Knows sizes of pictures; knows nothing of what is right. Cost: a look into the head of a picture's file.

use foveate_model::PromptInput;
use foveate_tasks::row::{Answer, Row};
use serde::{Deserialize, Serialize};

use super::image;

/// What box coordinates mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Coords {
    /// Pixels of the image as it came.
    #[default]
    OriginalPixels,
    /// Pixels of the image as the model saw it. Known for families that take a picture in one piece.
    ShownPixels,
    /// 0 to 1 over width and height.
    Unit,
    /// 0 to 1000 over width and height.
    PerMille,
}

/// Sizes of the image that a box refers to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Frame {
    /// Width and height as the image came.
    pub original: [f64; 2],
    /// Width and height as the model saw it.
    pub shown: [f64; 2],
}

impl Frame {
    /// The frame of a row's first picture; nothing if its answer is no box or its size cannot be read. `input` is what
    /// the model reads: without it, or where the model sees cuts of the picture, it is taken to be shown as it came.
    pub fn of(row: &Row, input: Option<&PromptInput>) -> Option<Frame> {
        if !matches!(row.answer, Answer::Box(_)) {
            return None;
        }
        let (width, height) = image::size(row.images.first()?)?;
        let original = [f64::from(width), f64::from(height)];
        let whole = input.filter(|input| input.tiles.len() == row.images.len()).and_then(|input| input.tiles.first());
        let shown = whole.map_or(original, |tile| [f64::from(tile.width), f64::from(tile.height)]);
        Some(Frame { original, shown })
    }
}

impl Coords {
    /// Whether the frame of a picture is needed.
    pub fn needs_frame(self) -> bool {
        self != Coords::OriginalPixels
    }

    /// Factors that turn the model's numbers into original pixels; `None` if the frame is needed and missing.
    pub fn to_original(self, frame: Option<Frame>) -> Option<[f64; 2]> {
        match self {
            Coords::OriginalPixels => Some([1.0, 1.0]),
            Coords::ShownPixels => frame.map(|f| [f.original[0] / f.shown[0], f.original[1] / f.shown[1]]),
            Coords::Unit => frame.map(|f| f.original),
            Coords::PerMille => frame.map(|f| [f.original[0] / 1000.0, f.original[1] / 1000.0]),
        }
    }

    /// The answer as a model should write it: a box in these coordinates, anything else as it stands. Without a frame a
    /// box stays in original pixels.
    pub fn write(self, answer: &Answer, frame: Option<Frame>) -> String {
        let (Answer::Box(corners), Some([x, y])) = (answer, self.to_original(frame).filter(|_| self.needs_frame()))
        else {
            return answer.text();
        };
        let [x1, y1, x2, y2] = corners;
        let own = [x1 / x, y1 / y, x2 / x, y2 / y];
        let digits = if self == Coords::Unit { 3 } else { 0 };
        format!("[{}]", own.map(|value| format!("{value:.digits$}")).join(", "))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use foveate_model::batch::Tile;
    use foveate_tasks::row::{Drawing, ImageData};

    use super::*;

    #[test]
    fn boxes_follow_the_picture() {
        let drawing = Drawing { width: 200, height: 100, rgb: vec![255; 60_000] };
        let mut row = Row {
            id: "r".into(),
            images: vec![ImageData::Drawn(Arc::new(drawing.clone()))],
            question: "Where?".into(),
            answer: Answer::Box([20.0, 10.0, 101.0, 90.0]),
            choices: vec![],
            rationale: String::new(),
            facts: String::new(),
            task: "location".into(),
            split: "train".into(),
            level: 1,
            meta: serde_json::Map::new(),
        };
        let input =
            PromptInput { tiles: vec![Arc::new(Tile::new(56, 112, vec![0.0; 3 * 56 * 112]))], ..Default::default() };
        let frame = Frame::of(&row, Some(&input));
        assert_eq!(frame, Some(Frame { original: [200.0, 100.0], shown: [112.0, 56.0] }));
        for (coords, text) in [
            (Coords::OriginalPixels, "[20, 10, 101, 90]"),
            (Coords::ShownPixels, "[11, 6, 57, 50]"),
            (Coords::Unit, "[0.100, 0.100, 0.505, 0.900]"),
            (Coords::PerMille, "[100, 100, 505, 900]"),
        ] {
            assert_eq!(coords.write(&row.answer, frame), text);
        }
        assert_eq!(Frame::of(&row, None).map(|frame| frame.shown), Some([200.0, 100.0]));
        let cuts = PromptInput { tiles: vec![input.tiles[0].clone(); 5], ..Default::default() };
        assert_eq!(Frame::of(&row, Some(&cuts)).map(|frame| frame.shown), Some([200.0, 100.0]));
        // The same from the head of a file.
        let png = crate::data::write::png(&drawing);
        row.images = vec![ImageData::Encoded(png.into())];
        assert_eq!(Frame::of(&row, Some(&input)), frame);
        row.images = vec![ImageData::Path("/no/such/picture.png".into())];
        assert_eq!(Frame::of(&row, None), None);
        row.answer = Answer::Number("5".into());
        assert_eq!(Coords::Unit.write(&row.answer, frame), "5");
    }
}
