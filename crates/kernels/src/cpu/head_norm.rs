//! RMS norm of every query and key head by itself, inside fused rows of queries, keys and values (Qwen3).
//! Knows where heads lie; a row never depends on its neighbours. Values pass through unchanged.
//! Cost: one pass over the rows; the backward pass adds one partial sum per 64 rows for the two weights.

// T rows, d head width

use crate::cpu::norm::{ROWS, sum, with_parameter_sums};
use crate::cpu::shared::SharedMut;
use crate::cpu::vector::{WIDTH, load, store, total, vectorised};
use crate::element::Element;
use crate::parallel::for_chunks;

/// Where heads lie in a row: queries first, keys next, then whatever is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NormedHeads {
    /// Values per row.
    pub width: usize,
    /// Query heads, normed by the first weight.
    pub queries: usize,
    /// Key heads, normed by the second weight.
    pub keys: usize,
    /// Values per head.
    pub head_dim: usize,
}

impl NormedHeads {
    /// Heads that are normed.
    pub fn count(&self) -> usize {
        self.queries + self.keys
    }

    fn rows(&self, len: usize) -> usize {
        assert!(self.width > 0 && len.is_multiple_of(self.width), "head_norm: rows of {} do not fit", self.width);
        assert!(self.head_dim > 0 && self.count() * self.head_dim <= self.width, "head_norm: heads outside the row");
        len / self.width
    }
}

/// `y = x * rstd * w` per head with `rstd = 1 / sqrt(mean(x^2) + eps)`; `rstd` `[T, heads]` is kept.
pub fn head_norm<E: Element>(
    heads: &NormedHeads,
    x: &[E],
    weights: [&[f32]; 2],
    eps: f32,
    y: &mut [E],
    rstd: &mut [f32],
) {
    let (rows, width, count) = (heads.rows(x.len()), heads.width, heads.count());
    assert!(y.len() == x.len() && rstd.len() == rows * count, "head_norm: lengths differ");
    assert!(weights.iter().all(|w| w.len() == heads.head_dim), "head_norm: a weight has another width");
    let (y, rstd) = (SharedMut::new(y), SharedMut::new(rstd));
    for_chunks(rows, ROWS, |range| {
        let (start, len) = (range.start, range.len());
        // SAFETY: chunks of rows are disjoint.
        let (y, rstd) = unsafe { (y.slice(start * width, len * width), rstd.slice(start * count, len * count)) };
        head_norm_chunk(heads, &x[start * width..][..len * width], weights, eps, y, rstd);
    });
}

vectorised! {
    fn head_norm_chunk<V, E: Element>(
        heads: &NormedHeads, x: &[E], weights: [&[f32]; 2], eps: f32, y: &mut [E], rstd: &mut [f32],
    ) {
        let (d, count) = (heads.head_dim, heads.count());
        let rows = x.chunks_exact(heads.width).zip(y.chunks_exact_mut(heads.width)).zip(rstd.chunks_exact_mut(count));
        for ((x, y), rstd) in rows {
            y[count * d..].copy_from_slice(&x[count * d..]);
            for (head, rstd) in rstd.iter_mut().enumerate() {
                let w = weights[(head >= heads.queries) as usize];
                let (x, y) = (&x[head * d..][..d], &mut y[head * d..][..d]);
                let square = sum!(V, d, at => {
                    let x: V = load(x, at);
                    x.mul(x)
                });
                *rstd = 1.0 / (square / d as f32 + eps).sqrt();
                let r = V::splat(*rstd);
                for at in (0..d).step_by(WIDTH) {
                    store(load::<V, E>(x, at).mul(r).mul(load(w, at)), y, at);
                }
            }
        }
    }
}

/// Turns the gradient of the output into that of the input, in place, and adds those of the weights unless frozen.
pub fn head_norm_backward<E: Element>(
    heads: &NormedHeads,
    dy_dx: &mut [E],
    x: &[E],
    weights: [&[f32]; 2],
    rstd: &[f32],
    d_weights: [Option<&mut [f32]>; 2],
) {
    let (rows, width, count) = (heads.rows(x.len()), heads.width, heads.count());
    assert!(dy_dx.len() == x.len() && rstd.len() == rows * count, "head_norm_backward: lengths differ");
    let dy = SharedMut::new(dy_dx);
    let [d_queries, d_keys] = d_weights;
    with_parameter_sums(rows, heads.head_dim, d_queries, d_keys, |range, d_queries, d_keys| {
        let (start, len) = (range.start, range.len());
        // SAFETY: chunks of rows are disjoint.
        let dy = unsafe { dy.slice(start * width, len * width) };
        let (x, rstd) = (&x[start * width..][..len * width], &rstd[start * count..][..len * count]);
        head_norm_backward_chunk(heads, dy, x, weights, rstd, d_queries, d_keys);
    });
}

vectorised! {
    fn head_norm_backward_chunk<V, E: Element>(
        heads: &NormedHeads, dy: &mut [E], x: &[E], weights: [&[f32]; 2], rstd: &[f32], d_queries: &mut [f32],
        d_keys: &mut [f32],
    ) {
        let (d, count) = (heads.head_dim, heads.count());
        let rows = x.chunks_exact(heads.width).zip(dy.chunks_exact_mut(heads.width)).zip(rstd.chunks_exact(count));
        for ((x, dy), rstd) in rows {
            for (head, &r) in rstd.iter().enumerate() {
                let is_key = head >= heads.queries;
                let w = weights[is_key as usize];
                let dw = if is_key { &mut *d_keys } else { &mut *d_queries };
                let (x, dy) = (&x[head * d..][..d], &mut dy[head * d..][..d]);
                let by_x = sum!(V, d, at => load::<V, E>(dy, at).mul(load(w, at)).mul(load(x, at)));
                let c = V::splat(by_x * r * r * r / d as f32);
                let r = V::splat(r);
                for at in (0..d).step_by(WIDTH) {
                    let (g, x): (V, V) = (load(dy, at), load(x, at));
                    store(g.mul(load(w, at)).mul(r).sub(x.mul(c)), dy, at);
                    if !dw.is_empty() {
                        store(load::<V, f32>(dw, at).add(g.mul(x.mul(r))), dw, at);
                    }
                }
            }
        }
    }
}
