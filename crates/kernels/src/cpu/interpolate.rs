//! Position tables for grids of another size: a learned table of `h0 x w0` rows read at `h x w` places.
//! Three ways of reading, each the arithmetic of one PyTorch or transformers function.
//! Cost: 4 or 16 rows read per row written.

// D width of the table's rows

use crate::cpu::shared::SharedMut;
use crate::parallel::for_chunks;

/// How a table is read between its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interpolation {
    /// `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`: places are cell centres.
    Bilinear,
    /// `mode="bicubic"`, `align_corners=False`: cubic convolution with A = -0.75 and repeated borders.
    Bicubic,
    /// Qwen3-VL: bilinear between `linspace(0, n - 1)`, so that corners meet corners.
    BilinearLinspace,
}

/// Source rows (or columns) and their weights for one output row (or column).
#[derive(Clone, Copy, Debug)]
struct Taps {
    index: [usize; 4],
    weight: [f32; 4],
    count: usize,
}

/// `out` `[h*w, d]` = `table` `[h0*w0, d]` read at `h x w` places.
pub fn interpolate_positions(
    table: &[f32],
    h0: usize,
    w0: usize,
    h: usize,
    w: usize,
    d: usize,
    align: Interpolation,
    out: &mut [f32],
) {
    assert_eq!(table.len(), h0 * w0 * d, "interpolate_positions: table length");
    assert_eq!(out.len(), h * w * d, "interpolate_positions: output length");
    let (rows, columns) = (taps(h0, h, align), taps(w0, w, align));
    let shared = SharedMut::new(out);
    for_chunks(h, 1, |range| {
        for y in range {
            // SAFETY: each line of the output belongs to one call.
            let line = unsafe { shared.slice(y * w * d, w * d) };
            for (column, out) in columns.iter().zip(line.chunks_exact_mut(d)) {
                out.fill(0.0);
                for (from, weight) in corners(&rows[y], column, w0) {
                    for (out, value) in out.iter_mut().zip(&table[from * d..][..d]) {
                        *out += weight * value;
                    }
                }
            }
        }
    });
}

/// `dtable += ` the gradient of `dout` `[h*w, d]`, in the order of the output rows.
pub fn interpolate_positions_backward(
    dout: &[f32],
    h0: usize,
    w0: usize,
    h: usize,
    w: usize,
    d: usize,
    align: Interpolation,
    dtable: &mut [f32],
) {
    assert_eq!(dtable.len(), h0 * w0 * d, "interpolate_positions_backward: table length");
    assert_eq!(dout.len(), h * w * d, "interpolate_positions_backward: gradient length");
    let (rows, columns) = (taps(h0, h, align), taps(w0, w, align));
    let shared = SharedMut::new(dtable);
    // Parallel over columns of the table: every element sums its contributions in one fixed order.
    for_chunks(d, 64, |range| {
        for y in 0..h {
            for x in 0..w {
                let dout = &dout[(y * w + x) * d..][range.clone()];
                for (to, weight) in corners(&rows[y], &columns[x], w0) {
                    // SAFETY: column ranges are disjoint.
                    let dtable = unsafe { shared.slice(to * d + range.start, range.len()) };
                    for (sum, value) in dtable.iter_mut().zip(dout) {
                        *sum += weight * value;
                    }
                }
            }
        }
    });
}

/// For every output place, row by row, the rows of the table that it reads and their weights.
pub fn places(from: [usize; 2], to: [usize; 2], align: Interpolation) -> Vec<Vec<(usize, f32)>> {
    let (rows, columns) = (taps(from[0], to[0], align), taps(from[1], to[1], align));
    rows.iter().flat_map(|row| columns.iter().map(|column| corners(row, column, from[1]).collect())).collect()
}

/// The source rows of one output place with the products of their weights.
fn corners<'a>(row: &'a Taps, column: &'a Taps, w0: usize) -> impl Iterator<Item = (usize, f32)> + 'a {
    (0..row.count).flat_map(move |i| {
        (0..column.count).map(move |j| (row.index[i] * w0 + column.index[j], row.weight[i] * column.weight[j]))
    })
}

/// Taps of every output place along one axis.
fn taps(from: usize, to: usize, align: Interpolation) -> Vec<Taps> {
    assert!(from > 0, "interpolate_positions: the table is empty");
    (0..to).map(|place| tap(from, to, place, align)).collect()
}

fn tap(from: usize, to: usize, place: usize, align: Interpolation) -> Taps {
    let last = from - 1;
    let two = |at: f32| {
        let low = (at as usize).min(last);
        let part = at - low as f32;
        Taps { index: [low, (low + 1).min(last), 0, 0], weight: [1.0 - part, part, 0.0, 0.0], count: 2 }
    };
    let scale = from as f32 / to as f32;
    match align {
        Interpolation::Bilinear => two(((place as f32 + 0.5) * scale - 0.5).max(0.0)),
        Interpolation::BilinearLinspace => {
            // torch.linspace walks from both ends towards the middle, in f32.
            let step = if to > 1 { last as f32 / (to - 1) as f32 } else { 0.0 };
            let near_start = to == 1 || place < to / 2;
            two(if near_start { step * place as f32 } else { last as f32 - step * (to - 1 - place) as f32 })
        }
        Interpolation::Bicubic => {
            let at = (place as f32 + 0.5) * scale - 0.5;
            let low = at.floor();
            let t = at - low;
            let clamp = |offset: i64| (low as i64 + offset).clamp(0, last as i64) as usize;
            Taps {
                index: [clamp(-1), clamp(0), clamp(1), clamp(2)],
                weight: [cubic_far(t + 1.0), cubic_near(t), cubic_near(1.0 - t), cubic_far(2.0 - t)],
                count: 4,
            }
        }
    }
}

// torch's upsample_bicubic2d; Pillow uses -0.5.
const A: f32 = -0.75;

/// Cubic convolution kernel for distances up to 1.
fn cubic_near(x: f32) -> f32 {
    ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
}

/// Cubic convolution kernel for distances from 1 to 2.
fn cubic_far(x: f32) -> f32 {
    ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A
}
