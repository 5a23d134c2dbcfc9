//! The arithmetic of one tile of lanes against one block of keys, in f32.
//! Everything is transposed: `[key][lane]` and `[dim][lane]`, so that softmax needs no horizontal sums and a lane never
//! meets another.
//! Cost: two multiply-adds per key, dimension and lane; near the peak of the machine.

use super::{BLOCK, LANES};
use crate::cpu::vector::{Vector, exp2, vectorised};
use crate::element::Element;
use crate::isa::multiversion;

/// One value per lane.
pub(super) type Lanes = [f32; LANES];

/// Copies `count` rows of `width` values, `stride` apart, to `block` `[BLOCK, width]` and zeroes the rest.
pub(super) fn load_block<E: Element>(rows: &[E], stride: usize, count: usize, width: usize, block: &mut [f32]) {
    load_rows(rows, stride, count, width, block);
}

/// [`load_block`] of rows that stand in pairs, element beside element.
pub(super) fn load_pairs<E: Element>(pairs: &[E], count: usize, width: usize, block: &mut [f32]) {
    for (key, to) in block.chunks_exact_mut(width).enumerate() {
        if key < count {
            let pair = pairs[key / 2 * 2 * width..][..2 * width].iter().skip(key % 2).step_by(2);
            to.iter_mut().zip(pair).for_each(|(to, from)| *to = from.to_f32());
        } else {
            to.fill(0.0);
        }
    }
}

multiversion! {
    fn load_rows<E: Element>(rows: &[E], stride: usize, count: usize, width: usize, block: &mut [f32]) {
        for (key, to) in block.chunks_exact_mut(width).enumerate() {
            if key < count {
                for (to, from) in to.iter_mut().zip(&rows[key * stride..][..width]) {
                    *to = from.to_f32();
                }
            } else {
                to.fill(0.0);
            }
        }
    }
}

vectorised! {
    /// `out[key][lane] = sum over dim of block[key][dim] * lanes[dim][lane]` for the first `count` keys (rounded up).
    pub(super) fn scores<V>(block: &[f32], lanes: &[Lanes], count: usize, out: &mut [Lanes; BLOCK]) {
        assert_eq!(block.len(), BLOCK * lanes.len(), "a block of keys");
        if V::MANY_REGISTERS {
            scores_by::<V, 8>(block, lanes, count, out)
        } else {
            scores_by::<V, 4>(block, lanes, count, out)
        }
    }
}

/// [`scores`], `STEP` keys at a time.
#[inline(always)]
fn scores_by<V: Vector, const STEP: usize>(block: &[f32], lanes: &[Lanes], count: usize, out: &mut [Lanes; BLOCK]) {
    let width = lanes.len();
    for (keys, out) in block.chunks_exact(STEP * width).zip(out.chunks_exact_mut(STEP)).take(count.div_ceil(STEP)) {
        let mut sums = [V::splat(0.0); STEP];
        for (dim, q) in lanes.iter().enumerate() {
            let q = V::load(q);
            for key in 0..STEP {
                // SAFETY: `keys` holds STEP rows of `width` values, and `dim` is below `width`.
                let k = unsafe { *keys.get_unchecked(key * width + dim) };
                sums[key] = V::splat(k).mul_add(q, sums[key]);
            }
        }
        for (out, sum) in out.iter_mut().zip(sums) {
            sum.store(out);
        }
    }
}

vectorised! {
    /// `out[dim][lane] = out[dim][lane] * factor[lane] + sum over keys of block[key][dim] * p[key][lane]`.
    pub(super) fn accumulate<V>(
        block: &[f32], p: &[Lanes; BLOCK], count: usize, factor: &Lanes, out: &mut [Lanes],
    ) {
        assert!(block.len() == BLOCK * out.len() && out.len().is_multiple_of(8) && count <= BLOCK, "a block of values");
        if V::MANY_REGISTERS {
            accumulate_by::<V, 8>(block, &p[..count], factor, out)
        } else {
            accumulate_by::<V, 4>(block, &p[..count], factor, out)
        }
    }
}

/// [`accumulate`], `STEP` dimensions at a time.
#[inline(always)]
fn accumulate_by<V: Vector, const STEP: usize>(block: &[f32], p: &[Lanes], factor: &Lanes, out: &mut [Lanes]) {
    let (width, factor) = (out.len(), V::load(factor));
    for (at, out) in out.chunks_exact_mut(STEP).enumerate() {
        let mut sums = [V::splat(0.0); STEP];
        for (sum, out) in sums.iter_mut().zip(out.iter()) {
            *sum = V::load(out).mul(factor);
        }
        for (key, p) in p.iter().enumerate() {
            let p = V::load(p);
            for dim in 0..STEP {
                // SAFETY: `block` holds BLOCK >= p.len() rows of `width` values, and `at * STEP + dim` is below `width`.
                let value = unsafe { *block.get_unchecked(key * width + at * STEP + dim) };
                sums[dim] = V::splat(value).mul_add(p, sums[dim]);
            }
        }
        for (out, sum) in out.iter_mut().zip(sums) {
            sum.store(out);
        }
    }
}

vectorised! {
    /// `out[key][dim] += sum over lanes of p[key][lane] * rows[lane][dim]`; `width` is a multiple of 16.
    pub(super) fn outer<V>(p: &[Lanes; BLOCK], rows: &[f32], count: usize, width: usize, out: &mut [f32]) {
        assert!(width.is_multiple_of(LANES) && rows.len() == LANES * width && out.len() == BLOCK * width, "a tile");
        if V::MANY_REGISTERS {
            outer_by::<V, 8>(p, rows, count, width, out)
        } else {
            outer_by::<V, 4>(p, rows, count, width, out)
        }
    }
}

/// [`outer`], `STEP` keys at a time.
#[inline(always)]
fn outer_by<V: Vector, const STEP: usize>(
    p: &[Lanes; BLOCK],
    rows: &[f32],
    count: usize,
    width: usize,
    out: &mut [f32],
) {
    let (rows, vectors) = (rows.as_chunks::<LANES>().0, width / LANES);
    let groups = out.chunks_exact_mut(STEP * width).zip(p.chunks_exact(STEP)).take(count.div_ceil(STEP));
    for (out, p) in groups {
        let out = out.as_chunks_mut::<LANES>().0;
        for dim in 0..vectors {
            let mut sums = [V::splat(0.0); STEP];
            for lane in 0..LANES {
                // SAFETY: LANES rows of `vectors` vectors.
                let row = V::load(unsafe { rows.get_unchecked(lane * vectors + dim) });
                for key in 0..STEP {
                    sums[key] = V::splat(p[key][lane]).mul_add(row, sums[key]);
                }
            }
            for key in 0..STEP {
                let out = &mut out[key * vectors + dim];
                V::load(out).add(sums[key]).store(out);
            }
        }
    }
}

/// Which keys of a block each lane of a tile sees: lane `l` sees keys `0..limit[l]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Visible {
    /// As f32, which holds such counts exactly, to be compared in registers.
    limit: Lanes,
    /// The largest limit, at most `BLOCK`; 0 when the tile does not see the block.
    pub count: usize,
    /// The smallest limit: every lane sees so many keys.
    least: usize,
}

impl Visible {
    /// From limits counted from the segment's start, for the block that begins at `first`.
    pub(super) fn new(limits: &[u32; LANES], first: usize) -> Self {
        let limits = limits.map(|limit| (limit as usize).saturating_sub(first).min(BLOCK));
        let (most, least) = limits.iter().fold((0, BLOCK), |(most, least), &l| (l.max(most), l.min(least)));
        Self { limit: limits.map(|limit| limit as f32), count: most, least }
    }

    /// Every lane sees the first `count` keys of the block.
    pub(super) fn alike(count: usize) -> Self {
        Self { limit: [count as f32; LANES], count, least: count }
    }

    /// Limits as f32.
    pub(super) fn limit(&self) -> &Lanes {
        &self.limit
    }

    /// Whether every lane sees all `count` keys, so that nothing needs a mask.
    pub(super) fn sees_all(&self) -> bool {
        self.least == self.count
    }

    /// How many keys every lane sees.
    pub(super) fn seen_by_all(&self) -> usize {
        self.least
    }
}

/// Running softmax of a tile: everything in powers of two, so that the exponential needs no multiplication.
#[derive(Clone, Copy)]
pub(super) struct Softmax {
    /// Largest score so far, times `scale * log2(e)`.
    pub max: Lanes,
    /// Sum of the probabilities relative to `max`.
    pub sum: Lanes,
}

impl Softmax {
    pub(super) const EMPTY: Self = Self { max: [f32::NEG_INFINITY; LANES], sum: [0.0; LANES] };

    /// What a lane's sums are to be multiplied with, and its log-sum-exp. A query that sees nothing (of an empty
    /// segment without ancestors) answers zero.
    pub(super) fn finish(&self, lane: usize) -> (f32, f32) {
        let (max, sum) = (self.max[lane], self.sum[lane]);
        if sum == 0.0 { (0.0, 0.0) } else { (1.0 / sum, (max + sum.log2()) * std::f32::consts::LN_2) }
    }
}

vectorised! {
    /// Turns scores into probabilities relative to the new maximum, masked ones into exactly 0, advances `state` and
    /// returns the factor by which earlier sums shrink.
    pub(super) fn softmax_step<V>(
        scores: &mut [Lanes; BLOCK], visible: &Visible, scale2: f32, state: &mut Softmax,
    ) -> Lanes {
        let scores = &mut scores[..visible.count];
        let (limit, least) = (V::load(&visible.limit), V::splat(f32::NEG_INFINITY));
        let mut top = least;
        if visible.sees_all() {
            for s in scores.iter() {
                top = V::load(s).max(top);
            }
        } else {
            for (key, s) in scores.iter_mut().enumerate() {
                let seen = V::splat(key as f32).select_less(limit, V::load(s), least);
                seen.store(s);
                top = seen.max(top);
            }
        }
        // The scale is positive: the largest score stays the largest.
        let (scale2, old) = (V::splat(scale2), V::load(&state.max));
        let new = top.mul(scale2).max(old);
        new.store(&mut state.max);
        // An unchanged maximum must leave the lane's bits alone; -inf minus itself would not. From -inf to a number
        // the factor is about 2^-126, times a sum of 0.
        let factor = old.select_less(new, exp2(old.sub(new)), V::splat(1.0));
        // A lane that has seen nothing yet: any finite origin will do, its keys are masked.
        let origin = least.select_less(new, new, V::splat(0.0));
        let (minus, mut sum) = (V::splat(0.0).sub(origin), V::splat(0.0));
        if visible.sees_all() {
            for s in scores.iter_mut() {
                let p = exp2(V::load(s).mul_add(scale2, minus));
                p.store(s);
                sum = sum.add(p);
            }
        } else {
            for (key, s) in scores.iter_mut().enumerate() {
                let p = exp2(V::load(s).mul_add(scale2, minus));
                let p = V::splat(key as f32).select_less(limit, p, V::splat(0.0));
                p.store(s);
                sum = sum.add(p);
            }
        }
        V::load(&state.sum).mul_add(factor, sum).store(&mut state.sum);
        let mut out = [0.0; LANES];
        factor.store(&mut out);
        out
    }
}

vectorised! {
    /// Backward: turns scores into probabilities by the stored log-sum-exp (times log2(e)), and `dp` into the gradient
    /// of the scaled scores, `p * (dp - delta)`; masked ones and those beyond `count` into exactly 0.
    pub(super) fn softmax_backward<V>(
        scores: &mut [Lanes; BLOCK], dp: &mut [Lanes; BLOCK], visible: &Visible, scale2: f32, lse2: &Lanes,
        delta: &Lanes,
    ) {
        let (scale2, delta, zero) = (V::splat(scale2), V::load(delta), V::splat(0.0));
        let (limit, minus) = (V::load(&visible.limit), zero.sub(V::load(lse2)));
        for (key, (s, dp)) in scores.iter_mut().zip(dp.iter_mut()).enumerate() {
            if key >= visible.count {
                (*s, *dp) = ([0.0; LANES], [0.0; LANES]);
                continue;
            }
            let p = exp2(V::load(s).mul_add(scale2, minus));
            let ds = p.mul(V::load(dp).sub(delta));
            let key = V::splat(key as f32);
            key.select_less(limit, p, zero).store(s);
            key.select_less(limit, ds, zero).store(dp);
        }
    }
}
