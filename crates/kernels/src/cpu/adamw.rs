//! The optimiser step, and what is asked of gradients before it: their norm and whether they are finite.
//! Knows no schedules and no groups of parameters.
//! Cost: one pass over four buffers (28 bytes per parameter) at memory speed, parallel over fixed chunks; 4 bytes more for
//! what is packed on the way.

use crate::cpu::ask::{ahead, ask_ahead};
use crate::cpu::matmul::Forms;
use crate::cpu::past_caches::finish_stores;
use crate::cpu::shared::SharedMut;
use crate::isa::multiversion;
use crate::parallel::{all_chunks, for_chunks, share, sum_chunks};
use std::ops::Range;

const CHUNK: usize = 16 * 1024;
/// Neighbouring pieces of one task: four long streams of memory take 5 % less time than many short ones.
const TOGETHER: usize = 8;

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
    let numbers = Numbers::new(lr, beta1, beta2, eps, weight_decay, step, gradient_scale);
    adamw_step_packed(p, g, m, v, &numbers, &mut []);
}

/// A matrix among the weights of a step, and its packed forms.
pub struct PackedWeight<'a> {
    /// Its first weight.
    pub first: usize,
    /// The forms that get the new values.
    pub forms: Forms<'a>,
}

/// [`adamw_step`] that packs some matrices anew, each block of rows while its new values are in the caches: reading them
/// again for both forms would cost a third of the step. `matrices` are in the order of their places and do not overlap.
pub fn adamw_step_packed(
    p: &mut [f32],
    g: &[f32],
    m: &mut [f32],
    v: &mut [f32],
    numbers: &Numbers,
    matrices: &mut [PackedWeight<'_>],
) {
    // Exclusive, so that nobody else packs them meanwhile; the tasks share them.
    let matrices = &*matrices;
    assert!(p.len() == g.len() && m.len() == g.len() && v.len() == g.len(), "adamw_step: lengths differ");
    let pieces = pieces(g.len(), matrices);
    let (p, m, v) = (SharedMut::new(p), SharedMut::new(m), SharedMut::new(v));
    for_chunks(pieces.len(), share(pieces.len(), TOGETHER), |task| {
        for Piece { range, block } in &pieces[task] {
            let (start, len) = (range.start, range.len());
            // SAFETY: pieces are disjoint, each is in one task, and the three buffers are different ones.
            let (p, m, v) = unsafe { (p.slice(start, len), m.slice(start, len), v.slice(start, len)) };
            adamw_chunk(p, &g[range.clone()], m, v, *numbers);
            if let Some((matrix, block)) = *block {
                // SAFETY: every block of every matrix is one piece.
                unsafe { matrices[matrix].forms.pack_block(block, p) }
            }
        }
        finish_stores();
    });
}

/// Weights that move together.
struct Piece {
    range: Range<usize>,
    /// The matrix that they belong to, and which of its blocks they are, if they are packed.
    block: Option<(usize, usize)>,
}

/// Cuts `len` weights into blocks of matrices, and chunks of what lies between these.
fn pieces(len: usize, matrices: &[PackedWeight<'_>]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut cut = |range: Range<usize>, chunk: usize, matrix: Option<usize>| {
        for (index, start) in range.clone().step_by(chunk).enumerate() {
            let block = matrix.map(|matrix| (matrix, index));
            pieces.push(Piece { range: start..(start + chunk).min(range.end), block });
        }
    };
    let mut done = 0;
    for (index, PackedWeight { first, forms }) in matrices.iter().enumerate() {
        let end = first + forms.num_weights();
        assert!(done <= *first && end <= len, "matrices lie one behind the other, inside what is stepped");
        cut(done..*first, CHUNK, None);
        cut(*first..end, forms.block_len(), Some(index));
        done = end;
    }
    cut(done..len, CHUNK, None);
    pieces
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
        let (mut blocks, ahead) = (x.chunks_exact(32), ahead::<f32>(1));
        for block in &mut blocks {
            ask_ahead(block, ahead, 32);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::matmul::PackedMatrix;
    use crate::isa::for_each_isa;
    use crate::rng::{Purpose, Stream};
    use crate::team::with_threads;

    /// Matrices `[n, k]`, and how many weights lie in front of each. The first has a block of its own for every row of
    /// tiles, the others begin and end within one.
    const MATRICES: [(usize, usize, usize); 6] =
        [(0, 64, 96), (0, 1, 1), (17, 33, 31), (20_000, 70, 130), (1, 48, 32), (3, 31, 65)];
    /// Weights behind the last.
    const BEHIND: usize = 40;

    fn values(len: usize, question: u32) -> Vec<f32> {
        let stream = Stream::new(5, Purpose::Test, 0, question, 0);
        (0..len).map(|i| 2.0 * stream.uniform(i as u32) - 1.0).collect()
    }

    /// Two steps; bits of weights, moments, and of every form: both of most matrices, one or none of some.
    fn two_steps(packed: bool) -> Vec<Vec<u32>> {
        let len = MATRICES.iter().map(|(before, n, k)| before + n * k).sum::<usize>() + BEHIND;
        let mut p = values(len, 0);
        let (mut m, mut v) = (values(len, 1), values(len, 2).iter().map(|v| v * v).collect::<Vec<_>>());
        let mut forms: Vec<[Option<PackedMatrix>; 2]> = (0..MATRICES.len())
            .map(|index| {
                let (_, n, k) = MATRICES[index];
                [(index != 4).then(|| PackedMatrix::new(k, n)), (index != 2).then(|| PackedMatrix::new(n, k))]
            })
            .collect();
        for step in 1..=2 {
            let g = values(len, 2 + step);
            let numbers = Numbers::new(0.1, 0.9, 0.99, 1e-8, 0.1, u64::from(step), 0.5);
            let mut end = 0;
            let places: Vec<Range<usize>> = MATRICES
                .iter()
                .map(|(before, n, k)| {
                    let first = end + before;
                    end = first + n * k;
                    first..end
                })
                .collect();
            if packed {
                let mut matrices: Vec<PackedWeight> = forms
                    .iter_mut()
                    .zip(places.iter().zip(MATRICES))
                    .map(|([forward, backward], (place, (_, n, k)))| PackedWeight {
                        first: place.start,
                        forms: Forms::new(n, k, forward.as_mut(), backward.as_mut()),
                    })
                    .collect();
                adamw_step_packed(&mut p, &g, &mut m, &mut v, &numbers, &mut matrices);
            } else {
                adamw_step(&mut p, &g, &mut m, &mut v, 0.1, 0.9, 0.99, 1e-8, 0.1, u64::from(step), 0.5);
                for ([forward, backward], place) in forms.iter_mut().zip(places) {
                    forward.iter_mut().for_each(|form| form.pack_transposed(&p[place.clone()]));
                    backward.iter_mut().for_each(|form| form.pack(&p[place.clone()]));
                }
            }
        }
        let mut all: Vec<Vec<u32>> = [p, m, v].iter().map(|x| x.iter().map(|x| x.to_bits()).collect()).collect();
        let bits = |form: &PackedMatrix| form.columns().values().iter().map(|x| u32::from(x.to_bits())).collect();
        all.extend(forms.iter().flatten().flatten().map(bits));
        all
    }

    #[test]
    fn packing_beside_the_step_gives_the_bits_of_packing_afterwards() {
        let want = two_steps(false);
        for_each_isa(|isa| {
            for threads in [1, 2, 5] {
                let found = with_threads(threads, || two_steps(true));
                assert_eq!(found.len(), want.len());
                let same: Vec<bool> = found.iter().zip(&want).map(|(found, want)| found == want).collect();
                assert!(same.iter().all(|same| *same), "{isa:?}, {threads} threads: {same:?}");
            }
        });
    }

    #[test]
    #[should_panic(expected = "one behind the other")]
    fn matrices_that_overlap_are_refused() {
        let (mut first, mut second) = (PackedMatrix::new(4, 4), PackedMatrix::new(4, 4));
        let mut matrices = [(0, &mut first), (15, &mut second)]
            .map(|(first, form)| PackedWeight { first, forms: Forms::new(4, 4, Some(form), None) });
        let numbers = Numbers::new(0.1, 0.9, 0.99, 1e-8, 0.0, 1, 1.0);
        adamw_step_packed(&mut [0.0; 40], &[0.0; 40], &mut [0.0; 40], &mut [0.0; 40], &numbers, &mut matrices);
    }
}
