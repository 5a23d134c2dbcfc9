//! Interpolated position tables by the definition: each output place weighs every table row by a kernel.
//! Cost: as slow as it looks.

use crate::cpu::interpolate::Interpolation;

/// `out` `[h*w, d]` from `table` `[h0*w0, d]`.
pub fn interpolate_positions(
    table: &[f64],
    [h0, w0]: [usize; 2],
    [h, w]: [usize; 2],
    d: usize,
    align: Interpolation,
) -> Vec<f64> {
    let mut out = vec![0.0; h * w * d];
    for y in 0..h {
        for x in 0..w {
            for (y0, wy) in weights(h0, h, y, align).into_iter().enumerate() {
                for (x0, wx) in weights(w0, w, x, align).into_iter().enumerate() {
                    for i in 0..d {
                        out[(y * w + x) * d + i] += wy * wx * table[(y0 * w0 + x0) * d + i];
                    }
                }
            }
        }
    }
    out
}

/// Weight of every source row for one output place; places outside the table repeat its border.
fn weights(from: usize, to: usize, place: usize, align: Interpolation) -> Vec<f64> {
    let last = from as f64 - 1.0;
    let centre = (place as f64 + 0.5) * from as f64 / to as f64 - 0.5;
    let at = match align {
        Interpolation::Bilinear => centre.clamp(0.0, last),
        Interpolation::Bicubic => centre,
        Interpolation::BilinearLinspace if to == 1 => 0.0,
        Interpolation::BilinearLinspace => place as f64 * last / (to as f64 - 1.0),
    };
    let mut weights = vec![0.0; from];
    for neighbour in at.floor() as i64 - 1..=at.floor() as i64 + 2 {
        let distance = (at - neighbour as f64).abs();
        let weight = if align == Interpolation::Bicubic { cubic(distance) } else { (1.0 - distance).max(0.0) };
        weights[neighbour.clamp(0, from as i64 - 1) as usize] += weight;
    }
    weights
}

/// Keys' cubic convolution with A = -0.75.
fn cubic(x: f64) -> f64 {
    let a = -0.75;
    if x <= 1.0 {
        (a + 2.0) * x.powi(3) - (a + 3.0) * x.powi(2) + 1.0
    } else if x < 2.0 {
        a * x.powi(3) - 5.0 * a * x.powi(2) + 8.0 * a * x - 4.0 * a
    } else {
        0.0
    }
}
