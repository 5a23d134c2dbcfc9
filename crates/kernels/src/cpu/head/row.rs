//! Softmax statistics of one full row of logits: what sampling asks of it, in the chunks and with the bits of training.
//! Knows one row; knows nothing of answers. Cost: one `exp` per token for the statistics; a draw looks at one chunk.

use super::CHUNK;
use super::softmax::{Partial, Scaling, block_sum, combine, masses, partial};
use crate::cpu::math::exp;
use std::borrow::Cow;

/// Statistics of a row at one scaling, chunk by chunk.
#[derive(Clone, Debug)]
pub struct RowStatistics<'a> {
    scaling: Scaling<'a>,
    partials: Vec<Partial>,
}

impl<'a> RowStatistics<'a> {
    /// From a row of logits.
    pub fn new(logits_v: &[f32], scaling: Scaling<'a>) -> Self {
        let parts = logits_v.chunks(CHUNK).enumerate();
        let partials = parts.map(|(chunk, z)| partial::<f32>(z, chunk * CHUNK, &scaling, u32::MAX, None)).collect();
        Self { scaling, partials }
    }

    /// From what was found chunk by chunk.
    pub(super) fn from_partials(scaling: Scaling<'a>, partials: Vec<Partial>) -> Self {
        Self { scaling, partials }
    }

    /// These statistics, if they are those of `scaling`, else new ones.
    pub fn at<'s>(&'s self, logits_v: &[f32], scaling: Scaling<'a>) -> Cow<'s, RowStatistics<'a>> {
        if self.scaling == scaling { Cow::Borrowed(self) } else { Cow::Owned(Self::new(logits_v, scaling)) }
    }

    /// Log-probability of `target` and the entropy of the row, with the bits of
    /// [`head_logprob`](super::head_logprob).
    pub fn logprob(&self, logits_v: &[f32], target: u32) -> (f32, f32) {
        let at = target as usize;
        assert!(at < logits_v.len(), "token {target} is in the vocabulary");
        let mut partials = self.partials.clone();
        partials[at / CHUNK].set_target(self.scaling.of(logits_v[at], target));
        let result = combine(partials.into_iter());
        (result.logprob, result.entropy)
    }

    /// The token at `uniform` of the cumulative distribution, in the order of ids. Banned tokens are never drawn while
    /// any other has probability.
    pub fn draw(&self, logits_v: &[f32], uniform: f64) -> u32 {
        let max = self.partials.iter().fold(f32::NEG_INFINITY, |max, part| part.max().max(max));
        let mass = |part: &Partial| match f64::from(part.sum()) * f64::from(exp(part.max() - max)) {
            // A chunk without a single number has no mass.
            mass if mass > 0.0 => mass,
            _ => 0.0,
        };
        let mut left = uniform * self.partials.iter().map(mass).sum::<f64>();
        let mut last = None;
        for (chunk, part) in self.partials.iter().enumerate() {
            let own = mass(part);
            if own == 0.0 {
                continue;
            }
            if left < own {
                return self.draw_in(logits_v, chunk, left / f64::from(exp(part.max() - max)));
            }
            left -= own;
            last = Some(chunk);
        }
        // A crumb after the last chunk, or a row without a single number.
        last.map_or(0, |chunk| self.draw_in(logits_v, chunk, f64::INFINITY))
    }

    /// The token of one chunk at `left` of its mass, relative to its largest; its last one beyond that.
    fn draw_in(&self, logits_v: &[f32], chunk: usize, mut left: f64) -> u32 {
        /// Tokens that are summed together, so that most of the chunk is skipped in steps of this size.
        const BLOCK: usize = 64;
        let first = chunk * CHUNK;
        let mut own = [f32::NEG_INFINITY; CHUNK];
        self.scaling.apply(&logits_v[first..(first + CHUNK).min(logits_v.len())], first, &mut own);
        masses(&mut own, self.partials[chunk].max());
        let mut last = 0;
        for (index, block) in own.chunks_exact(BLOCK).enumerate() {
            let sum = block_sum(block);
            if left >= sum {
                left -= sum;
                if sum > 0.0 {
                    last = index;
                }
                continue;
            }
            for (offset, mass) in block.iter().enumerate() {
                left -= f64::from(*mass);
                if *mass > 0.0 && left < 0.0 {
                    return (first + index * BLOCK + offset) as u32;
                }
            }
            // Rounding leaves a crumb at the end of a block: its last token with any mass takes it.
            last = index;
            break;
        }
        let block = &own[last * BLOCK..][..BLOCK];
        (first + last * BLOCK + block.iter().rposition(|mass| *mass > 0.0).unwrap_or(0)) as u32
    }
}
