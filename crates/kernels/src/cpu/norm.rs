//! RMS norm and layer norm over the f32 residual stream.
//! Statistics are per row and in f32; a row never depends on its neighbours.
//! Cost: the forward pass reads a row twice (from cache the second time); the backward pass adds one fixed-size partial
//! sum per 64 rows for the parameters.

// T rows, D width

use crate::cpu::ask::ahead;
use crate::cpu::elementwise::accumulate_row;
use crate::cpu::shared::SharedMut;
use crate::cpu::vector::{Stripe, Vector, WIDTH, ask, in_stripes, load, store, total, vectorised};
use crate::element::Element;
use crate::parallel::{for_chunks, share};

// Rows handed to a thread at once. Part of the result: parameter gradients are summed per chunk first.
pub(super) const ROWS: usize = 64;

/// Sum of a term over the vectors of a row of `d`, in two vectors of running sums: the order depends on `d` alone. A
/// macro, since closures are not always inlined and a vector operation that is not costs a hundred times as much.
macro_rules! sum {
    ($vector:ident, $d:expr, $at:ident => $term:expr) => {{
        let mut sums = [$vector::splat(0.0); 2];
        for first in (0..$d).step_by(2 * WIDTH) {
            let $at = first;
            sums[0] = sums[0].add($term);
            if first + WIDTH < $d {
                let $at = first + WIDTH;
                sums[1] = sums[1].add($term);
            }
        }
        total(sums[0].add(sums[1]))
    }};
}
pub(super) use sum;

/// `y = x * rstd * w` with `rstd = 1 / sqrt(mean(x^2) + eps)` per row; `rstd` is kept for the backward pass.
pub fn rms_norm<E: Element>(x: &[f32], w: &[f32], eps: f32, y: &mut [E], rstd: &mut [f32]) {
    let (d, rows) = (w.len(), rstd.len());
    assert!(x.len() == rows * d && y.len() == x.len(), "rms_norm: lengths differ");
    let (y, rstd) = (SharedMut::new(y), SharedMut::new(rstd));
    for_chunks(rows, share(rows, ROWS), |range| {
        let (start, len) = (range.start, range.len());
        // SAFETY: chunks of rows are disjoint.
        let (y, rstd) = unsafe { (y.slice(start * d, len * d), rstd.slice(start, len)) };
        rms_norm_chunk(&x[start * d..][..len * d], w, eps, y, rstd);
    });
}

vectorised! {
    fn rms_norm_chunk<V, E: Element>(x: &[f32], w: &[f32], eps: f32, y: &mut [E], rstd: &mut [f32]) {
        let (d, ahead) = (w.len(), ahead::<f32>(1));
        for ((x, y), rstd) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)).zip(rstd) {
            let square = sum!(V, d, at => {
                ask::<V, f32>(x, at + ahead);
                let x: V = load(x, at);
                x.mul(x)
            });
            *rstd = 1.0 / (square / d as f32 + eps).sqrt();
            in_stripes!(V, d, scaled_at::<E>(x, w, *rstd, y));
        }
    }
}

#[inline(always)]
fn scaled_at<S: Stripe, E: Element>(at: usize, x: &[f32], w: &[f32], rstd: f32, y: &mut [E]) {
    store(load::<S, f32>(x, at).mul(S::splat(rstd)).mul(load(w, at)), y, at);
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

vectorised! {
    fn rms_norm_backward_chunk<V, E: Element>(
        dy: &[E], x: &[f32], w: &[f32], rstd: &[f32], dx: &mut [f32], dw: &mut [f32],
    ) {
        let (d, ahead) = (w.len(), ahead::<f32>(1));
        for (((dy, x), dx), &r) in dy.chunks_exact(d).zip(x.chunks_exact(d)).zip(dx.chunks_exact_mut(d)).zip(rstd) {
            let by_x = sum!(V, d, at => {
                ask::<V, E>(dy, at + ahead);
                ask::<V, f32>(x, at + ahead);
                ask::<V, f32>(dx, at + ahead);
                load::<V, E>(dy, at).mul(load(w, at)).mul(load(x, at))
            });
            in_stripes!(V, d, rms_norm_backward_at::<E>(dy, x, w, r, by_x * r * r * r / d as f32, dx, dw));
        }
    }
}

#[inline(always)]
fn rms_norm_backward_at<S: Stripe, E: Element>(
    at: usize,
    dy: &[E],
    x: &[f32],
    w: &[f32],
    r: f32,
    c: f32,
    dx: &mut [f32],
    dw: &mut [f32],
) {
    let (dy, x, r): (S, S, S) = (load(dy, at), load(x, at), S::splat(r));
    let change = dy.mul(load(w, at)).mul(r).sub(x.mul(S::splat(c)));
    store(load::<S, f32>(dx, at).add(change), dx, at);
    if !dw.is_empty() {
        store(load::<S, f32>(dw, at).add(dy.mul(x.mul(r))), dw, at);
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
    for_chunks(rows, share(rows, ROWS), |range| {
        let (start, len) = (range.start, range.len());
        // SAFETY: chunks of rows are disjoint.
        let (y, mean, rstd) = unsafe { (y.slice(start * d, len * d), mean.slice(start, len), rstd.slice(start, len)) };
        layer_norm_chunk(&x[start * d..][..len * d], w, b, eps, y, mean, rstd);
    });
}

vectorised! {
    fn layer_norm_chunk<V, E: Element>(
        x: &[f32], w: &[f32], b: &[f32], eps: f32, y: &mut [E], mean: &mut [f32], rstd: &mut [f32],
    ) {
        let d = w.len();
        let statistics = mean.iter_mut().zip(rstd);
        for ((x, y), (mean, rstd)) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)).zip(statistics) {
            *mean = sum!(V, d, at => load::<V, f32>(x, at)) / d as f32;
            let m = V::splat(*mean);
            // Second pass over the centred row: the one-pass formula cancels when the mean is large.
            let square = sum!(V, d, at => {
                let centred = load::<V, f32>(x, at).sub(m).mul(inside::<V>(at, d));
                centred.mul(centred)
            });
            *rstd = 1.0 / (square / d as f32 + eps).sqrt();
            let r = V::splat(*rstd);
            for at in (0..d).step_by(WIDTH) {
                let y_at = load::<V, f32>(x, at).sub(m).mul(r).mul(load(w, at)).add(load(b, at));
                store(y_at, y, at);
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

vectorised! {
    fn layer_norm_backward_chunk<V, E: Element>(
        dy: &[E], x: &[f32], w: &[f32], statistics: (&[f32], &[f32]), dx: &mut [f32], dw: &mut [f32], db: &mut [f32],
    ) {
        let d = w.len();
        let statistics = statistics.0.iter().zip(statistics.1);
        for (((dy, x), dx), (&m, &r)) in
            dy.chunks_exact(d).zip(x.chunks_exact(d)).zip(dx.chunks_exact_mut(d)).zip(statistics)
        {
            let mean_g = sum!(V, d, at => load::<V, E>(dy, at).mul(load(w, at))) / d as f32;
            let (m, r) = (V::splat(m), V::splat(r));
            let mean_gx = sum!(V, d, at => load::<V, E>(dy, at).mul(load(w, at)).mul(load::<V, f32>(x, at).sub(m).mul(r)));
            let (mean_g, mean_gx) = (V::splat(mean_g), V::splat(mean_gx / d as f32));
            for at in (0..d).step_by(WIDTH) {
                let dy: V = load(dy, at);
                let x = load::<V, f32>(x, at).sub(m).mul(r);
                let change = r.mul(dy.mul(load(w, at)).sub(mean_g).sub(x.mul(mean_gx)));
                store(load::<V, f32>(dx, at).add(change), dx, at);
                if !dw.is_empty() {
                    store(load::<V, f32>(dw, at).add(dy.mul(x)), dw, at);
                }
                if !db.is_empty() {
                    store(load::<V, f32>(db, at).add(dy), db, at);
                }
            }
        }
    }
}

/// 1 where a vector that begins at `at` lies inside a row of `d`, else 0.
#[inline(always)]
fn inside<V: Vector>(at: usize, d: usize) -> V {
    const COUNT: [f32; WIDTH] = [0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.];
    V::load(&COUNT).select_less(V::splat((d - at) as f32), V::splat(1.0), V::splat(0.0))
}

/// Runs `task` over chunks of rows with zeroed partial sums for up to two parameters (empty when frozen), then adds the
/// partial sums to the parameters' gradients in the order of the chunks.
pub(super) fn with_parameter_sums(
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
