//! Attention of packed rows over segments: each query sees its segment's ancestors, root first, and then its own
//! segment, causally or in full; grouped key/value heads; log-sum-exp kept for the backward pass.
//! Knows segments and heads; knows neither caches nor models. Training and decoding call the same function and get the
//! same bits for the same query: keys are visited in blocks counted from each segment's start, every query has a lane
//! of its own in all arithmetic, and a key that is masked changes a lane exactly as little as one that is absent.
//! Cost: no `tokens x tokens` matrix; the forward pass touches each key block once per 512 lanes (query rows times
//! query heads per key/value head), the backward pass recomputes the probabilities from the stored log-sum-exp.

#[cfg(target_arch = "x86_64")]
mod amx;
mod backward;
#[cfg(target_arch = "x86_64")]
mod backward_amx;
#[cfg(target_arch = "x86_64")]
mod few;
#[cfg(target_arch = "x86_64")]
mod few_amx;
mod forward;
#[cfg(target_arch = "x86_64")]
mod forward_amx;
mod lanes;
mod plan;
mod store;

pub use backward::attention_backward;
pub use forward::{attention, attention_stored};
pub use store::store;

use crate::segment::Segment;

/// Lanes of a tile: queries that are worked on side by side. One AVX-512 register, one column set of an AMX tile.
const LANES: usize = 16;
/// Keys of a block. Part of the result: the running maximum and the sums advance block by block.
const BLOCK: usize = 64;

/// A view of a tensor's rows: head `h` of row `r` begins at `data[offset + r * stride + h * head]`.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a, E> {
    /// The whole tensor.
    pub data: &'a [E],
    /// Where row 0 begins.
    pub offset: usize,
    /// Distance between rows.
    pub stride: usize,
    /// Distance between heads: their width where heads lie side by side in a row, more where each head has its own
    /// rows one after the other.
    pub head: usize,
}

impl<'a, E> Rows<'a, E> {
    /// The `len` elements of head `head` in row `row`.
    #[inline(always)]
    fn at(&self, row: usize, head: usize, len: usize) -> &'a [E] {
        &self.data[self.offset + row * self.stride + head * self.head..][..len]
    }
}

/// Shape and kind of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Heads {
    /// Query heads; a multiple of `num_kv_heads`.
    pub num_heads: usize,
    /// Key/value heads.
    pub num_kv_heads: usize,
    /// Width of a head: a multiple of 8 from 8 to 256.
    pub head_dim: usize,
    /// Factor on the scores, usually `1 / sqrt(head_dim)`; positive.
    pub scale: f32,
    /// Whether a row sees only rows up to itself in its own segment. Ancestors are always seen in full.
    pub causal: bool,
}

impl Heads {
    /// Query heads per key/value head.
    fn group(&self) -> usize {
        self.num_heads / self.num_kv_heads
    }

    fn check(&self, segments: &[Segment]) {
        let d = self.head_dim;
        assert!(
            (8..=256).contains(&d) && d.is_multiple_of(8),
            "attention: head_dim {d} is not a multiple of 8 from 8 to 256"
        );
        assert!(
            self.num_kv_heads > 0 && self.num_heads.is_multiple_of(self.num_kv_heads),
            "attention: {} query heads do not divide among {} key/value heads",
            self.num_heads,
            self.num_kv_heads
        );
        assert!(self.scale > 0.0, "attention: the scale must be positive");
        for (index, segment) in segments.iter().enumerate() {
            let ordered = segment.parent.is_none_or(|parent| (parent as usize) < index);
            assert!(ordered, "attention: segment {index} stands before its parent");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::backward::attention_backward_on;
    use super::forward::attention_on;
    use super::*;
    use crate::element::{Element, bf16};
    use crate::isa::{MatmulPath, for_each_isa};
    use crate::rng::{Purpose, Stream};
    use crate::segment::Queries;

    /// Forward and backward of three related segments on one path, widened.
    fn run<E: Element>(path: MatmulPath) -> Vec<f32> {
        let heads = Heads { num_heads: 6, num_kv_heads: 2, head_dim: 40, scale: 0.2, causal: true };
        let segments = [(0, 70, None), (70, 90, Some(0)), (160, 3, Some(0))];
        let segments = segments.map(|(start, len, parent)| Segment { start, len, parent });
        let stream = Stream::new(5, Purpose::Test, 0, 0, 0);
        let qkv: Vec<E> = (0..163 * 400).map(|at| E::from_f32(stream.normal(at))).collect();
        let view = |head: usize| Rows { data: &qkv[..], offset: head * 40, stride: 400, head: 40 };
        let (mut out, mut lse) = (vec![E::default(); 163 * 240], vec![0.0; 163 * 6]);
        let queries = Queries::whole(&segments);
        attention_on(path, &heads, &queries, &segments, view(0), view(6), view(8), false, &mut out, &mut lse);
        let mut d_qkv = vec![E::default(); qkv.len()];
        attention_backward_on(path, &heads, &segments, &qkv, &out, &lse, &out, None, &mut d_qkv);
        out.iter().chain(&d_qkv).map(|x| x.to_f32()).chain(lse).collect()
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        fn check<E: Element>() {
            let mut results = Vec::new();
            for_each_isa(|_| {
                results.push(run::<E>(MatmulPath::Portable).iter().map(|x| x.to_bits()).collect::<Vec<_>>());
            });
            assert!(results.windows(2).all(|pair| pair[0] == pair[1]), "{}", E::NAME);
        }
        check::<f32>();
        check::<bf16>();
    }

    #[test]
    fn every_bf16_path_gives_the_same_numbers() {
        let want = run::<bf16>(MatmulPath::Portable);
        for path in MatmulPath::available() {
            let have = run::<bf16>(path);
            for (have, want) in have.iter().zip(&want) {
                assert!((have - want).abs() < 0.02 * want.abs().max(1.0), "{}: {have} instead of {want}", path.name());
            }
        }
    }
}
