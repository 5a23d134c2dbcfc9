//! Folding and cutting of images, index by index.
//! Cost: as slow as it looks.

/// transformers' Idefics3 connector, read as where each input element goes.
pub fn pixel_shuffle(x: &[f64], tiles: usize, h: usize, w: usize, d: usize, factor: usize) -> Vec<f64> {
    let mut out = vec![0.0; x.len()];
    for tile in 0..tiles {
        for y in 0..h {
            for column in 0..w {
                for channel in 0..d {
                    let row = (tile * (h / factor) + y / factor) * (w / factor) + column / factor;
                    let place = (y % factor * factor + column % factor) * d + channel;
                    out[row * d * factor * factor + place] = x[((tile * h + y) * w + column) * d + channel];
                }
            }
        }
    }
    out
}

/// Patches of a picture: colour, line, column inside each. What does not fill a patch is left out.
pub fn im2col(pixels: &[f64], c: usize, h: usize, w: usize, patch: usize) -> Vec<f64> {
    let mut out = vec![0.0; (h / patch) * (w / patch) * c * patch * patch];
    for colour in 0..c {
        for y in 0..h / patch * patch {
            for x in 0..w / patch * patch {
                let row = y / patch * (w / patch) + x / patch;
                let place = (colour * patch + y % patch) * patch + x % patch;
                out[row * c * patch * patch + place] = pixels[(colour * h + y) * w + x];
            }
        }
    }
    out
}
