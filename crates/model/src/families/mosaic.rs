//! How the features of a picture's tiles become one sequence in LLaVA-OneVision: what of the grid shows the picture and
//! not its padding, and how far it is thinned out. Pure arithmetic, shared by prompt and model, so that both count alike.
//! Knows no tensors. Cost: none.

use crate::batch::Cuts;

/// What is read of the grid of features that the tiles of one picture make together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mosaic {
    /// First row of features that shows the picture.
    pub top: usize,
    /// First column.
    pub left: usize,
    /// Rows that show it; may be none for a picture that is extremely flat.
    pub height: usize,
    /// Columns that show it.
    pub width: usize,
    /// Rows and columns that they are resampled to, where there would be too many.
    pub resampled: Option<(usize, usize)>,
}

impl Mosaic {
    /// From the picture's size and grid, the features along one side of a tile, and the `9` of `anyres_max_9`.
    pub fn of(cuts: &Cuts, side: usize, max_tiles: usize) -> Mosaic {
        let (rows, columns) = (cuts.rows as usize * side, cuts.columns as usize * side);
        let (picture_height, picture_width) = (f64::from(cuts.picture_height), f64::from(cuts.picture_width));
        let (mut top, mut left) = (0, 0);
        if picture_width / picture_height > columns as f64 / rows as f64 {
            let shown = whole(picture_height * (columns as f64 / picture_width));
            top = rows.saturating_sub(shown) / 2;
        } else {
            let shown = whole(picture_width * (rows as f64 / picture_height));
            left = columns.saturating_sub(shown) / 2;
        }
        let (height, width) = (rows - 2 * top, columns - 2 * left);
        let ratio = ((height * width) as f64 / (max_tiles * side * side) as f64).sqrt();
        let thin = |count: usize| floor_divide(count as f64, ratio) as usize;
        let resampled = (ratio > 1.1).then(|| (thin(height), thin(width)));
        Mosaic { top, left, height, width, resampled }
    }

    /// Rows and columns of features as the decoder reads them.
    pub fn shown(&self) -> (usize, usize) {
        self.resampled.unwrap_or((self.height, self.width))
    }

    /// Features, the newline at the end of every row included.
    pub fn num_features(&self) -> usize {
        let (rows, columns) = self.shown();
        rows * (columns + 1)
    }
}

/// Python's `int(round(x, 7))`: seven decimals first, so that 26.9999999999 counts as 27.
fn whole(x: f64) -> usize {
    format!("{x:.7}").parse::<f64>().map_or(0, |x| x as usize)
}

/// Python's `a // b` of positive floats, which is not `(a / b).floor()` where the quotient is nearly whole.
fn floor_divide(a: f64, b: f64) -> f64 {
    let quotient = (a - a % b) / b;
    let floor = quotient.floor();
    if quotient - floor > 0.5 { floor + 1.0 } else { floor }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sizes, grids and feature counts as `transformers` gives them for the published 36 grids.
    #[test]
    fn equal_to_transformers() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/tiles/llava_onevision.json");
        let golden: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let cases = golden["cases"].as_array().unwrap();
        assert!(cases.len() > 200);
        for case in cases {
            let number = |key: &str| case[key].as_u64().unwrap();
            let (side, max_tiles) = (number("side") as usize, number("max_tiles") as usize);
            let cuts = Cuts {
                rows: number("rows") as u32,
                columns: number("columns") as u32,
                picture_height: number("height") as u32,
                picture_width: number("width") as u32,
            };
            let mosaic = Mosaic::of(&cuts, side, max_tiles);
            let (rows, columns) = mosaic.shown();
            let window = [mosaic.top, mosaic.left, mosaic.height, mosaic.width, rows, columns];
            let want: Vec<usize> =
                case["window"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as usize).collect();
            assert_eq!(window[..], want, "{case}");
            assert_eq!(side * side + mosaic.num_features(), number("features") as usize, "{case}");
        }
    }
}
