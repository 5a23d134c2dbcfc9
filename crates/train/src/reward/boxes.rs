//! Verifies bounding boxes (methods 6.11).
//! Sees the extracted answer and, where coordinates are not pixels of the original image, the image's sizes.
//! Cost: one pass.

use serde::{Deserialize, Serialize};

use super::{Compat, Status, Verdict};
pub use crate::prompt::{Coords, Frame};

/// Options of the verifier `box`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BoxOptions {
    /// What an overlap is worth.
    pub score: BoxScore,
    /// The overlap (intersection over union) that counts as right, exclusive. 0.5 is customary.
    pub threshold: f64,
    /// What the model's numbers mean; the gold is in pixels of the original image. `target.coords` must say the same
    /// where targets are learned.
    pub coords: Coords,
}

impl Default for BoxOptions {
    fn default() -> Self {
        Self { score: BoxScore::Hard, threshold: 0.5, coords: Coords::OriginalPixels }
    }
}

/// What an overlap is worth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BoxScore {
    /// 1 above the threshold, else 0.
    #[default]
    Hard,
    /// The overlap itself: a signal for models that rarely pass the threshold.
    Soft,
    /// The overlap above the threshold, rescaled to 0..1.
    SoftAbove,
}

/// Whether this is a box: finite, with a positive width and height.
pub fn valid(b: &[f64; 4]) -> bool {
    b.iter().all(|c| c.is_finite()) && b[2] > b[0] && b[3] > b[1]
}

/// Intersection over union, coordinates as continuous numbers.
pub fn overlap(a: &[f64; 4], b: &[f64; 4]) -> f64 {
    if !valid(a) || !valid(b) {
        return 0.0;
    }
    let width = (a[2].min(b[2]) - a[0].max(b[0])).max(0.0);
    let height = (a[3].min(b[3]) - a[1].max(b[1])).max(0.0);
    let area = |r: &[f64; 4]| (r[2] - r[0]) * (r[3] - r[1]);
    let inter = width * height;
    let union = area(a) + area(b) - inter;
    // Coordinates near the end of f64 can make the areas infinite.
    let value = inter / union;
    if value.is_finite() { value } else { 0.0 }
}

/// Curr-ReFT's geometry: whole pixels, overlaps one pixel wide count as none.
pub fn overlap_compat(a: &[f64; 4], b: &[f64; 4]) -> f64 {
    let (a, b) = (a.map(f64::trunc), b.map(f64::trunc));
    let (x1, y1) = (a[0].max(b[0]), a[1].max(b[1]));
    let (x2, y2) = (a[2].min(b[2]) - 1.0, a[3].min(b[3]) - 1.0);
    let inter = if x1 < x2 && y1 < y2 { (x2 - x1 + 1.0) * (y2 - y1 + 1.0) } else { 0.0 };
    let area = |r: &[f64; 4]| (r[2] - r[0]) * (r[3] - r[1]);
    let union = area(&a) + area(&b) - inter;
    let value = inter / union;
    if union == 0.0 || !value.is_finite() { 0.0 } else { value }
}

/// Every innermost bracketed list in the text: its numbers, or `None` where something in it is no finite number.
pub fn lists(text: &str) -> Vec<Option<Vec<f64>>> {
    let mut lists = Vec::new();
    let mut open = None;
    for (at, c) in text.char_indices() {
        match c {
            '[' => open = Some(at + 1),
            ']' => {
                if let Some(start) = open.take() {
                    lists.push(text[start..at].split(',').map(finite).collect());
                }
            }
            _ => {}
        }
    }
    lists
}

fn finite(text: &str) -> Option<f64> {
    let text = text.trim();
    // Rust's own parser also reads "inf" and "nan".
    let plain = text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.' | b'e' | b'E'));
    text.parse().ok().filter(|value: &f64| plain && value.is_finite())
}

/// Scores `answer` against the gold box, in original pixels after scaling by `to_original`.
pub fn verify(answer: &str, gold: &[f64; 4], options: &BoxOptions, to_original: [f64; 2]) -> Verdict {
    let lists = lists(answer);
    let list = match lists.as_slice() {
        [] => return Verdict::fail(Status::NoAnswer),
        [Some(list)] if list.len() == 4 => list,
        [_] => return Verdict::fail(Status::Unparsable),
        _ => return Verdict::fail(Status::Ambiguous),
    };
    let [x, y] = to_original;
    let found = [list[0] * x, list[1] * y, list[2] * x, list[3] * y];
    if !valid(&found) {
        return Verdict::fail(Status::Unparsable);
    }
    let overlap = overlap(&found, gold);
    let score = match options.score {
        BoxScore::Hard => f64::from(u8::from(overlap > options.threshold)),
        BoxScore::Soft => overlap,
        BoxScore::SoftAbove => ((overlap - options.threshold) / (1.0 - options.threshold)).max(0.0),
    };
    Verdict::ok(score as f32, format!("{list:?}"))
}

/// As Curr-ReFT's code: the first four-number list, a parse failure is the box `[0, 0, 0, 0]`, right above 0.5.
pub fn verify_compat(answer: &str, gold: &[f64; 4], compat: Compat) -> Verdict {
    debug_assert!(compat != Compat::Dyme);
    let found = lists(answer).into_iter().flatten().find(|list| list.len() == 4);
    let found = found.map_or([0.0; 4], |list| [list[0], list[1], list[2], list[3]]);
    Verdict::ok(f32::from(u8::from(overlap_compat(&found, gold) > 0.5)), format!("{found:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_boxes() {
        let near = |a: f64, b: f64| (a - b).abs() < 1e-6;
        let ten = [0.0, 0.0, 10.0, 10.0];
        for (other, want) in
            [([5.0, 5.0, 15.0, 15.0], 0.142857), ([0.0, 0.0, 10.0, 5.0], 0.5), ([0.0, 0.0, 10.0, 6.0], 0.6), (ten, 1.0)]
        {
            assert!(near(overlap(&ten, &other), want) && near(overlap_compat(&ten, &other), want), "{other:?}");
        }
        for (a, b, compat, strict) in [
            ([0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0], 0.0, 1.0),
            (ten, [9.0, 0.0, 19.0, 10.0], 0.0, 0.052632),
            ([0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.5, 0.5], 0.0, 1.0),
        ] {
            assert!(near(overlap_compat(&a, &b), compat) && near(overlap(&a, &b), strict), "{a:?} {b:?}");
        }
        let hard = |text: &str| verify(text, &ten, &BoxOptions::default(), [1.0, 1.0]).score;
        assert_eq!(hard("[0, 0, 10, 5]"), 0.0);
        assert_eq!(hard("{\"bbox\": [0, 0, 10, 6]}"), 1.0);
        assert_eq!(verify_compat("[0, 0, 10, 6]", &ten, Compat::CurrReft).score, 1.0);
        assert_eq!(verify_compat("none", &ten, Compat::CurrReft).score, 0.0);
    }

    #[test]
    fn adversarial_boxes() {
        let gold = [0.0, 0.0, 10.0, 10.0];
        let verdict = |text: &str| verify(text, &gold, &BoxOptions::default(), [1.0, 1.0]);
        for text in [
            "",
            "[0,0,10,10] [1,1,2,2]",
            "[10,10,0,0]",
            "[0,0,10,10,10]",
            "[NaN,0,10,10]",
            "[inf,0,10,10]",
            "[0,0,0,0]",
            "[]",
        ] {
            assert_eq!(verdict(text).score, 0.0, "{text:?}");
            assert_ne!(verdict(text).status, Status::Ok, "{text:?}");
        }
        let soft = BoxOptions { score: BoxScore::Soft, ..Default::default() };
        assert!((verify("[0,0,100,100]", &gold, &soft, [1.0, 1.0]).score - 0.01).abs() < 1e-6);
        let above = BoxOptions { score: BoxScore::SoftAbove, ..Default::default() };
        assert!((verify("[0,0,10,6]", &gold, &above, [1.0, 1.0]).score - 0.2).abs() < 1e-6);
    }

    #[test]
    fn coordinates_follow_the_image() {
        let frame = Frame { original: [200.0, 100.0], shown: [100.0, 50.0] };
        assert_eq!(Coords::Unit.to_original(Some(frame)), Some([200.0, 100.0]));
        assert_eq!(Coords::PerMille.to_original(Some(frame)), Some([0.2, 0.1]));
        assert_eq!(Coords::ShownPixels.to_original(Some(frame)), Some([2.0, 2.0]));
        assert_eq!(Coords::Unit.to_original(None), None);
        let gold = [20.0, 10.0, 100.0, 50.0];
        let factors = Coords::Unit.to_original(Some(frame)).expect("frame given");
        assert_eq!(verify("[0.1, 0.1, 0.5, 0.5]", &gold, &BoxOptions::default(), factors).score, 1.0);
    }
}
