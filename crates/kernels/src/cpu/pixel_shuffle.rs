//! Images as rows: cutting pixels into patches, and folding neighbouring patches into wider rows.
//! Knows no weights: the products that follow are plain matrix products.
//! Cost: one copy each.

// T tiles, H height, W width, D channels, F factor, C colours, P patch side

use crate::cpu::shared::SharedMut;
use crate::element::Element;
use crate::parallel::for_chunks;

// Output rows handed to a thread at once.
const ROWS: usize = 16;

/// Folds each `factor x factor` square of patches into one row: `x` `[tiles*h*w, d]` becomes
/// `[tiles*(h/f)*(w/f), d*f*f]`. Inside a row the patches of the square stand row by row, each with its `d` channels,
/// which is the order of `pixel_shuffle` in transformers' Idefics3 and SmolVLM connectors.
pub fn pixel_shuffle<E: Element>(x: &[E], tiles: usize, h: usize, w: usize, d: usize, factor: usize, out: &mut [E]) {
    check(x.len(), out.len(), tiles, h, w, d, factor);
    let (h_out, w_out, run) = (h / factor, w / factor, factor * d);
    let width = factor * run;
    let shared = SharedMut::new(out);
    for_chunks(tiles * h_out * w_out, ROWS, |range| {
        // SAFETY: chunks of output rows are disjoint.
        let out = unsafe { shared.slice(range.start * width, range.len() * width) };
        for (row, out) in range.zip(out.chunks_exact_mut(width)) {
            for (fy, out) in out.chunks_exact_mut(run).enumerate() {
                out.copy_from_slice(&x[source(row, fy, h, w, h_out, w_out, factor) * d..][..run]);
            }
        }
    });
}

/// Unfolds the gradient again: `dout` as [`pixel_shuffle`]'s output, `dx` as its input.
pub fn pixel_shuffle_backward<E: Element>(
    dout: &[E],
    tiles: usize,
    h: usize,
    w: usize,
    d: usize,
    factor: usize,
    dx: &mut [E],
) {
    check(dx.len(), dout.len(), tiles, h, w, d, factor);
    let (h_out, w_out, run) = (h / factor, w / factor, factor * d);
    let width = factor * run;
    let shared = SharedMut::new(dx);
    for_chunks(tiles * h_out * w_out, ROWS, |range| {
        for row in range {
            for (fy, dout) in dout[row * width..][..width].chunks_exact(run).enumerate() {
                // SAFETY: the map from (row, fy) to runs of the input is one to one.
                let dx = unsafe { shared.slice(source(row, fy, h, w, h_out, w_out, factor) * d, run) };
                dx.copy_from_slice(dout);
            }
        }
    });
}

fn check(input: usize, output: usize, tiles: usize, h: usize, w: usize, d: usize, factor: usize) {
    assert!(
        factor > 0 && h.is_multiple_of(factor) && w.is_multiple_of(factor),
        "pixel_shuffle: {h}x{w} is not a multiple of {factor}"
    );
    assert_eq!(input, tiles * h * w * d, "pixel_shuffle: input length");
    assert_eq!(output, input, "pixel_shuffle: output length");
}

/// Patch at the left end of line `fy` of the square that output row `row` stands for.
fn source(row: usize, fy: usize, h: usize, w: usize, h_out: usize, w_out: usize, factor: usize) -> usize {
    let (tile, y, x) = (row / (h_out * w_out), row / w_out % h_out, row % w_out);
    (tile * h + y * factor + fy) * w + x * factor
}

/// Cuts `pixels` `[c, h, w]` into patches `[(h/p)*(w/p), c*p*p]`: patches row by row, inside a patch colour, line,
/// column, the order of a convolution weight. The patch embedding is then a matrix product. Lines and columns that do
/// not fill a patch are left out at the bottom and the right, as an unpadded convolution leaves them.
pub fn im2col<E: Element>(pixels: &[f32], c: usize, h: usize, w: usize, patch: usize, out: &mut [E]) {
    assert!(patch > 0, "im2col: patches have a side");
    assert_eq!(pixels.len(), c * h * w, "im2col: pixels length");
    let (h_out, w_out, width) = (h / patch, w / patch, c * patch * patch);
    assert_eq!(out.len(), h_out * w_out * width, "im2col: output length");
    let shared = SharedMut::new(out);
    for_chunks(h_out * w_out, ROWS, |range| {
        // SAFETY: chunks of output rows are disjoint.
        let out = unsafe { shared.slice(range.start * width, range.len() * width) };
        for (row, out) in range.zip(out.chunks_exact_mut(width)) {
            let (y, x) = (row / w_out * patch, row % w_out * patch);
            for (line, out) in out.chunks_exact_mut(patch).enumerate() {
                let (colour, py) = (line / patch, line % patch);
                let from = &pixels[(colour * h + y + py) * w + x..][..patch];
                for (out, value) in out.iter_mut().zip(from) {
                    *out = E::from_f32(*value);
                }
            }
        }
    });
}
