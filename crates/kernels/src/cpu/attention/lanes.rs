//! The arithmetic of one tile of lanes against one block of keys, in f32.
//! Everything is transposed: `[key][lane]` and `[dim][lane]`, so that softmax needs no horizontal sums and a lane never
//! meets another. Loops have fixed trip counts of 8 and 16 for the compiler to turn into registers.
//! Cost: two multiply-adds per key, dimension and lane; near the peak of the machine with AVX-512.

use super::{BLOCK, LANES};
use crate::element::Element;
use crate::isa::multiversion;

/// One value per lane.
pub(super) type Lanes = [f32; LANES];

/// Keys (or dimensions) that are worked on together: accumulators that fit the registers.
const STEP: usize = 8;

/// Copies `count` rows of `width` values, `stride` apart, to `block` `[BLOCK, width]` and zeroes the rest.
pub(super) fn load_block<E: Element>(rows: &[E], stride: usize, count: usize, width: usize, block: &mut [f32]) {
    load_rows(rows, stride, count, width, block);
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

multiversion! {
    /// `out[key][lane] = sum over dim of block[key][dim] * lanes[dim][lane]` for the first `count` keys (rounded up).
    pub(super) fn scores(block: &[f32], lanes: &[Lanes], count: usize, out: &mut [Lanes; BLOCK]) {
        let width = lanes.len();
        for (keys, out) in block.chunks_exact(STEP * width).zip(out.chunks_exact_mut(STEP)).take(count.div_ceil(STEP)) {
            let mut sums = [[0f32; LANES]; STEP];
            for dim in 0..width {
                let q = lanes[dim];
                for key in 0..STEP {
                    let k = keys[key * width + dim];
                    for lane in 0..LANES {
                        sums[key][lane] = k.mul_add(q[lane], sums[key][lane]);
                    }
                }
            }
            out.copy_from_slice(&sums);
        }
    }
}

multiversion! {
    /// `out[dim][lane] = out[dim][lane] * factor[lane] + sum over keys of block[key][dim] * p[key][lane]`.
    pub(super) fn accumulate(block: &[f32], p: &[Lanes; BLOCK], count: usize, factor: &Lanes, out: &mut [Lanes]) {
        let width = out.len();
        for (at, out) in out.chunks_exact_mut(STEP).enumerate() {
            let mut sums = [[0f32; LANES]; STEP];
            for dim in 0..STEP {
                for lane in 0..LANES {
                    sums[dim][lane] = out[dim][lane] * factor[lane];
                }
            }
            for key in 0..count {
                let p = p[key];
                let values = &block[key * width + at * STEP..][..STEP];
                for dim in 0..STEP {
                    for lane in 0..LANES {
                        sums[dim][lane] = values[dim].mul_add(p[lane], sums[dim][lane]);
                    }
                }
            }
            out.copy_from_slice(&sums);
        }
    }
}

multiversion! {
    /// `out[key][dim] += sum over lanes of p[key][lane] * rows[lane][dim]`.
    pub(super) fn outer(p: &[Lanes; BLOCK], rows: &[f32], count: usize, width: usize, out: &mut [f32]) {
        const KEYS: usize = 4;
        const DIMS: usize = 8;
        for key in (0..count.next_multiple_of(KEYS)).step_by(KEYS) {
            for dim in (0..width).step_by(DIMS) {
                let mut sums = [[0f32; DIMS]; KEYS];
                for lane in 0..LANES {
                    let row: [f32; DIMS] = rows[lane * width + dim..][..DIMS].try_into().expect("sliced to DIMS");
                    for k in 0..KEYS {
                        for i in 0..DIMS {
                            sums[k][i] = p[key + k][lane].mul_add(row[i], sums[k][i]);
                        }
                    }
                }
                for k in 0..KEYS {
                    for (out, sum) in out[(key + k) * width + dim..][..DIMS].iter_mut().zip(sums[k]) {
                        *out += sum;
                    }
                }
            }
        }
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
}

multiversion! {
    /// Turns scores into probabilities relative to the new maximum, masked ones into exactly 0, advances `state` and
    /// returns the factor by which earlier sums shrink. Lane `l` sees keys `0..visible[l]`.
    pub(super) fn softmax_step(
        scores: &mut [Lanes; BLOCK], count: usize, visible: &[u32; LANES], scale2: f32, state: &mut Softmax,
    ) -> Lanes {
        let mut top = [f32::NEG_INFINITY; LANES];
        for (key, s) in scores[..count].iter_mut().enumerate() {
            for lane in 0..LANES {
                let value = if (key as u32) < visible[lane] { s[lane] * scale2 } else { f32::NEG_INFINITY };
                s[lane] = value;
                top[lane] = if value > top[lane] { value } else { top[lane] };
            }
        }
        let mut factor = [1f32; LANES];
        let mut origin = [0f32; LANES];
        for lane in 0..LANES {
            let (old, new) = (state.max[lane], if top[lane] > state.max[lane] { top[lane] } else { state.max[lane] });
            // An unchanged maximum must leave the lane's bits alone; -inf minus itself would not.
            factor[lane] = if new > old { exp2(old - new) } else { 1.0 };
            // A lane that has seen nothing yet: any finite origin makes its masked probabilities 0.
            origin[lane] = if new == f32::NEG_INFINITY { 0.0 } else { new };
            state.max[lane] = new;
        }
        let mut sum = [0f32; LANES];
        for s in &mut scores[..count] {
            for lane in 0..LANES {
                let p = exp2(s[lane] - origin[lane]);
                s[lane] = p;
                sum[lane] += p;
            }
        }
        for lane in 0..LANES {
            state.sum[lane] = state.sum[lane] * factor[lane] + sum[lane];
        }
        factor
    }
}

multiversion! {
    /// Backward: turns scores into probabilities by the stored log-sum-exp (times log2(e)), and `dp` into the gradient
    /// of the scores, `p * (dp - delta) * scale`; masked ones into exactly 0.
    pub(super) fn softmax_backward(
        scores: &mut [Lanes; BLOCK], dp: &mut [Lanes; BLOCK], count: usize, visible: &[u32; LANES], scale: f32,
        lse2: &Lanes, delta: &Lanes,
    ) {
        let scale2 = scale * std::f32::consts::LOG2_E;
        for (key, (s, dp)) in scores.iter_mut().zip(dp.iter_mut()).enumerate() {
            for lane in 0..LANES {
                let seen = key < count && (key as u32) < visible[lane];
                let p = if seen { exp2(s[lane].mul_add(scale2, -lse2[lane])) } else { 0.0 };
                s[lane] = p;
                dp[lane] = if seen { p * (dp[lane] - delta[lane]) * scale } else { 0.0 };
            }
        }
    }
}

/// 2^x for x up to about 1, exactly 0 below 2^-126, NaN for NaN. Coefficients of Cephes' exp2f, error below 2e-7.
#[inline(always)]
pub(super) fn exp2(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
    const MAGIC: f32 = 12_582_912.0;
    let t = x + MAGIC;
    let f = x - (t - MAGIC);
    let mut p = f32::mul_add(1.535_336_2e-4, f, 1.339_887_4e-3);
    p = p.mul_add(f, 9.618_437e-3);
    p = p.mul_add(f, 5.550_332_5e-2);
    p = p.mul_add(f, 2.402_264_8e-1);
    p = p.mul_add(f, 6.931_472e-1);
    p = p.mul_add(f, 1.0);
    let power = f32::from_bits((t.to_bits() << 23).wrapping_add(0x3f80_0000));
    if x < -126.0 { 0.0 } else { p * power }
}
