//! The optimiser step, and what is asked of gradients before it: their norm and whether they are finite.
//! Knows no schedules and no groups of parameters.
//! Cost: one pass over four buffers (28 bytes per parameter), parallel over fixed chunks.

use crate::cpu::shared::SharedMut;
use crate::isa::multiversion;
use crate::parallel::{all_chunks, for_chunks, sum_chunks};

const CHUNK: usize = 16 * 1024;

/// The numbers of one step that are the same for every parameter, on every device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Numbers {
    /// Factor on the weights.
    pub decay: f32,
    /// What is kept of the first moment.
    pub keep1: f32,
    /// What is added of the gradient.
    pub take1: f32,
    /// What is kept of the second moment.
    pub keep2: f32,
    /// What is added of the gradient's square.
    pub take2: f32,
    /// Learning rate, corrected for the first moment's start at zero.
    pub step_size: f32,
    /// The same for the root of the second moment.
    pub inv_root_correction2: f32,
    /// Added to the root.
    pub eps: f32,
    /// Factor on the gradient.
    pub gradient_scale: f32,
}

impl Numbers {
    /// The numbers of step `step`, counted from 1.
    pub fn new(
        lr: f32,
        beta1: f32,
        beta2: f32,
        eps: f32,
        weight_decay: f32,
        step: u64,
        gradient_scale: f32,
    ) -> Numbers {
        assert!(step >= 1, "adamw_step: steps are counted from 1");
        // The corrections cancel against the (1 - beta) that built the moments, so all come from the same f64 value.
        let (beta1, beta2) = (f64::from(beta1), f64::from(beta2));
        let correction1 = 1.0 - beta1.powf(step as f64);
        let correction2 = 1.0 - beta2.powf(step as f64);
        Numbers {
            decay: (1.0 - f64::from(lr) * f64::from(weight_decay)) as f32,
            keep1: beta1 as f32,
            take1: (1.0 - beta1) as f32,
            keep2: beta2 as f32,
            take2: (1.0 - beta2) as f32,
            step_size: (f64::from(lr) / correction1) as f32,
            inv_root_correction2: (1.0 / correction2.sqrt()) as f32,
            eps,
            gradient_scale,
        }
    }
}

/// One AdamW step with decoupled weight decay, as `torch.optim.AdamW` does it: `p` weights, `g` gradients (multiplied
/// by `gradient_scale` first), `m` and `v` the two moments, `step` counted from 1. A gradient of zero still decays
/// weights and moments.
pub fn adamw_step(
    p: &mut [f32],
    g: &[f32],
    m: &mut [f32],
    v: &mut [f32],
    lr: f32,
    beta1: f32,
    beta2: f32,
    eps: f32,
    weight_decay: f32,
    step: u64,
    gradient_scale: f32,
) {
    assert!(p.len() == g.len() && m.len() == g.len() && v.len() == g.len(), "adamw_step: lengths differ");
    let numbers = Numbers::new(lr, beta1, beta2, eps, weight_decay, step, gradient_scale);
    let (p, m, v) = (SharedMut::new(p), SharedMut::new(m), SharedMut::new(v));
    for_chunks(g.len(), CHUNK, |range| {
        let (start, len) = (range.start, range.len());
        // SAFETY: chunks are disjoint, and the three buffers are different ones.
        let (p, m, v) = unsafe { (p.slice(start, len), m.slice(start, len), v.slice(start, len)) };
        adamw_chunk(p, &g[range], m, v, numbers);
    });
}

multiversion! {
    fn adamw_chunk(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], s: Numbers) {
        for (((p, g), m), v) in p.iter_mut().zip(g).zip(m.iter_mut()).zip(v.iter_mut()) {
            let g = g * s.gradient_scale;
            let first = *m * s.keep1 + g * s.take1;
            let second = *v * s.keep2 + g * g * s.take2;
            let denominator = second.sqrt() * s.inv_root_correction2 + s.eps;
            *p = *p * s.decay - s.step_size * (first / denominator);
            *m = first;
            *v = second;
        }
    }
}

/// Sum of squares in f64; the same bits for any number of threads.
pub fn sum_of_squares(x: &[f32]) -> f64 {
    if x.len() <= CHUNK {
        return sum_of_squares_chunk(x);
    }
    sum_chunks(x.len(), CHUNK, |range| sum_of_squares_chunk(&x[range]))
}

multiversion! {
    fn sum_of_squares_chunk(x: &[f32]) -> f64 {
        let mut lanes = [0f64; 32];
        let mut blocks = x.chunks_exact(32);
        for block in &mut blocks {
            for (lane, value) in lanes.iter_mut().zip(block) {
                let value = f64::from(*value);
                *lane += value * value;
            }
        }
        for (lane, value) in lanes.iter_mut().zip(blocks.remainder()) {
            let value = f64::from(*value);
            *lane += value * value;
        }
        lanes.iter().sum()
    }
}

/// Whether no element is infinite or not a number.
pub fn all_finite(x: &[f32]) -> bool {
    if x.len() <= CHUNK {
        return all_finite_chunk(x);
    }
    all_chunks(x.len(), CHUNK, |range| all_finite_chunk(&x[range]))
}

multiversion! {
    fn all_finite_chunk(x: &[f32]) -> bool {
        // No early exit inside a block: the common answer is "yes", and a branch-free loop vectorises.
        x.chunks(1024).all(|block| block.iter().fold(true, |fine, value| fine & value.is_finite()))
    }
}
