//! RMS norm and layer norm over the f32 residual stream.
//! Statistics are per row and in f32; a row never depends on its neighbours.
//! Cost: the forward pass reads a row twice (from cache the second time); the backward pass adds one fixed-size partial
//! sum per 64 rows for the parameters.

// T rows, D width

use crate::cpu::elementwise::accumulate_row;
use crate::cpu::shared::SharedMut;
use crate::element::Element;
use crate::isa::multiversion;
use crate::parallel::for_chunks;

// Rows handed to a thread at once. Part of the result: parameter gradients are summed per chunk first.
const ROWS: usize = 64;
// Independent running sums of a row reduction. Part of the result.
const LANES: usize = 32;

/// `y = x * rstd * w` with `rstd = 1 / sqrt(mean(x^2) + eps)` per row; `rstd` is kept for the backward pass.
pub fn rms_norm<E: Element>(x: &[f32], w: &[f32], eps: f32, y: &mut [E], rstd: &mut [f32]) {
    let (d, rows) = (w.len(), rstd.len());
    assert!(x.len() == rows * d && y.len() == x.len(), "rms_norm: lengths differ");
    let (y, rstd) = (SharedMut::new(y), SharedMut::new(rstd));
    for_chunks(rows, ROWS, |range| {
        let (start, len) = (range.start, range.len());
        // SAFETY: chunks of rows are disjoint.
        let (y, rstd) = unsafe { (y.slice(start * d, len * d), rstd.slice(start, len)) };
        rms_norm_chunk(&x[start * d..][..len * d], w, eps, y, rstd);
    });
}

multiversion! {
    fn rms_norm_chunk<E: Element>(x: &[f32], w: &[f32], eps: f32, y: &mut [E], rstd: &mut [f32]) {
        let d = w.len();
        for ((x, y), rstd) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)).zip(rstd) {
            let r = 1.0 / (sum(d, |i| x[i] * x[i]) / d as f32 + eps).sqrt();
            *rstd = r;
            for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
                *y = E::from_f32(x * r * w);
            }
        }
    }
}

/// Adds the gradient of `x` to `dx_add`, and that of `w` to `dw` unless the weight is frozen.
pub fn rms_norm_backward<E: Element>(
    dy: &[E],
    x: &[f32],
    w: &[f32],
    rstd: &[f32],
    dx_add: &mut [f32],
    dw: Option<&mut [f32]>,
) {
    let (d, rows) = (w.len(), rstd.len());
    assert!(dy.len() == rows * d && x.len() == dy.len() && dx_add.len() == dy.len(), "rms_norm_backward: lengths");
    let dx = SharedMut::new(dx_add);
    with_parameter_sums(rows, d, dw, None, |range, dw, _| {
        let (start, len) = (range.start, range.len());
        // SAFETY: chunks of rows are disjoint.
        let dx = unsafe { dx.slice(start * d, len * d) };
        let part = start * d..(start + len) * d;
        rms_norm_backward_chunk(&dy[part.clone()], &x[part], w, &rstd[start..][..len], dx, dw);
    });
}

multiversion! {
    fn rms_norm_backward_chunk<E: Element>(
        dy: &[E], x: &[f32], w: &[f32], rstd: &[f32], dx: &mut [f32], dw: &mut [f32],
    ) {
        let d = w.len();
        for (((dy, x), dx), &r) in dy.chunks_exact(d).zip(x.chunks_exact(d)).zip(dx.chunks_exact_mut(d)).zip(rstd) {
            let c = sum(d, |i| dy[i].to_f32() * w[i] * x[i]) * r * r * r / d as f32;
            for (((dx, dy), x), w) in dx.iter_mut().zip(dy).zip(x).zip(w) {
                *dx += dy.to_f32() * w * r - x * c;
            }
            for ((dw, dy), x) in dw.iter_mut().zip(dy).zip(x) {
                *dw += dy.to_f32() * (x * r);
            }
        }
    }
}

/// `y = (x - mean) * rstd * w + b` per row, `rstd = 1 / sqrt(variance + eps)`; `mean` and `rstd` are kept.
pub fn layer_norm<E: Element>(
    x: &[f32],
    w: &[f32],
    b: &[f32],
    eps: f32,
    y: &mut [E],
    mean: &mut [f32],
    rstd: &mut [f32],
) {
    let (d, rows) = (w.len(), rstd.len());
    assert!(x.len() == rows * d && y.len() == x.len() && b.len() == d && mean.len() == rows, "layer_norm: lengths");
    let (y, mean, rstd) = (SharedMut::new(y), SharedMut::new(mean), SharedMut::new(rstd));
    for_chunks(rows, ROWS, |range| {
        let (start, len) = (range.start, range.len());
        // SAFETY: chunks of rows are disjoint.
        let (y, mean, rstd) = unsafe { (y.slice(start * d, len * d), mean.slice(start, len), rstd.slice(start, len)) };
        layer_norm_chunk(&x[start * d..][..len * d], w, b, eps, y, mean, rstd);
    });
}

multiversion! {
    fn layer_norm_chunk<E: Element>(
        x: &[f32], w: &[f32], b: &[f32], eps: f32, y: &mut [E], mean: &mut [f32], rstd: &mut [f32],
    ) {
        let d = w.len();
        let statistics = mean.iter_mut().zip(rstd);
        for ((x, y), (mean, rstd)) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)).zip(statistics) {
            let m = sum(d, |i| x[i]) / d as f32;
            // Second pass over the centred row: the one-pass formula cancels when the mean is large.
            let r = 1.0 / (sum(d, |i| (x[i] - m) * (x[i] - m)) / d as f32 + eps).sqrt();
            (*mean, *rstd) = (m, r);
            for (((y, x), w), b) in y.iter_mut().zip(x).zip(w).zip(b) {
                *y = E::from_f32((x - m) * r * w + b);
            }
        }
    }
}

/// Adds the gradient of `x` to `dx_add`, and those of `w` and `b` to `dw` and `db` unless they are frozen.
pub fn layer_norm_backward<E: Element>(
    dy: &[E],
    x: &[f32],
    w: &[f32],
    mean: &[f32],
    rstd: &[f32],
    dx_add: &mut [f32],
    dw: Option<&mut [f32]>,
    db: Option<&mut [f32]>,
) {
    let (d, rows) = (w.len(), rstd.len());
    assert!(dy.len() == rows * d && x.len() == dy.len() && dx_add.len() == dy.len(), "layer_norm_backward: lengths");
    assert_eq!(mean.len(), rows, "layer_norm_backward: means");
    let dx = SharedMut::new(dx_add);
    with_parameter_sums(rows, d, dw, db, |range, dw, db| {
        let (start, len) = (range.start, range.len());
        // SAFETY: chunks of rows are disjoint.
        let dx = unsafe { dx.slice(start * d, len * d) };
        let part = start * d..(start + len) * d;
        let statistics = (&mean[start..][..len], &rstd[start..][..len]);
        layer_norm_backward_chunk(&dy[part.clone()], &x[part], w, statistics, dx, dw, db);
    });
}

multiversion! {
    fn layer_norm_backward_chunk<E: Element>(
        dy: &[E], x: &[f32], w: &[f32], statistics: (&[f32], &[f32]), dx: &mut [f32], dw: &mut [f32], db: &mut [f32],
    ) {
        let d = w.len();
        let statistics = statistics.0.iter().zip(statistics.1);
        for (((dy, x), dx), (&m, &r)) in
            dy.chunks_exact(d).zip(x.chunks_exact(d)).zip(dx.chunks_exact_mut(d)).zip(statistics)
        {
            let mean_g = sum(d, |i| dy[i].to_f32() * w[i]) / d as f32;
            let mean_gx = sum(d, |i| dy[i].to_f32() * w[i] * ((x[i] - m) * r)) / d as f32;
            for (((dx, dy), x), w) in dx.iter_mut().zip(dy).zip(x).zip(w) {
                *dx += r * (dy.to_f32() * w - mean_g - (x - m) * r * mean_gx);
            }
            for ((dw, dy), x) in dw.iter_mut().zip(dy).zip(x) {
                *dw += dy.to_f32() * ((x - m) * r);
            }
            for (db, dy) in db.iter_mut().zip(dy) {
                *db += dy.to_f32();
            }
        }
    }
}

/// Sum of `term(0..d)` in [`LANES`] running sums, then pairwise: the order depends on `d` alone.
#[inline(always)]
fn sum(d: usize, term: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let whole = d / LANES * LANES;
    for block in (0..whole).step_by(LANES) {
        for lane in 0..LANES {
            lanes[lane] += term(block + lane);
        }
    }
    for (lane, i) in (whole..d).enumerate() {
        lanes[lane] += term(i);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// Runs `task` over chunks of rows with zeroed partial sums for up to two parameters (empty when frozen), then adds the
/// partial sums to the parameters' gradients in the order of the chunks.
fn with_parameter_sums(
    rows: usize,
    d: usize,
    mut dw: Option<&mut [f32]>,
    mut db: Option<&mut [f32]>,
    task: impl Fn(std::ops::Range<usize>, &mut [f32], &mut [f32]) + Sync + Send,
) {
    let wanted = [dw.is_some(), db.is_some()];
    let width = [wanted[0] as usize * d, wanted[1] as usize * d];
    let stride = width[0] + width[1];
    let mut partial = vec![0f32; rows.div_ceil(ROWS) * stride];
    let shared = SharedMut::new(&mut partial);
    for_chunks(rows, ROWS, |range| {
        // SAFETY: each chunk of rows has its own partial sums.
        let sums = unsafe { shared.slice(range.start / ROWS * stride, stride) };
        let (dw, db) = sums.split_at_mut(width[0]);
        task(range, dw, db);
    });
    for sums in partial.chunks_exact(stride.max(1)) {
        let (part_w, part_b) = sums.split_at(width[0]);
        if let Some(dw) = dw.as_deref_mut() {
            accumulate_row(dw, part_w);
        }
        if let Some(db) = db.as_deref_mut() {
            accumulate_row(db, part_b);
        }
    }
}
