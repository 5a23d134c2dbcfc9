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
mod forward;
#[cfg(target_arch = "x86_64")]
mod forward_amx;
mod lanes;
mod plan;

pub use backward::attention_backward;
pub use forward::attention;

use crate::segment::Segment;

/// Lanes of a tile: queries that are worked on side by side. One AVX-512 register, one column set of an AMX tile.
const LANES: usize = 16;
/// Keys of a block. Part of the result: the running maximum and the sums advance block by block.
const BLOCK: usize = 64;

/// A view of a tensor's rows: row `r` begins at `data[offset + r * stride]`.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a, E> {
    /// The whole tensor.
    pub data: &'a [E],
    /// Where row 0 begins.
    pub offset: usize,
    /// Distance between rows.
    pub stride: usize,
}

impl<'a, E> Rows<'a, E> {
    /// `len` elements of row `row`, from its column `column` on.
    #[inline(always)]
    fn at(&self, row: usize, column: usize, len: usize) -> &'a [E] {
        &self.data[self.offset + row * self.stride + column..][..len]
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
