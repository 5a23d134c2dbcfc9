//! Both packed forms of one weight, rewritten in blocks of its rows while these are still in a core's caches: what an
//! optimiser step leaves behind. 32 rows of a weight `[n, k]` are one panel of the forward form and one step of all panels
//! of the backward form, so tasks with different blocks never share a tile.
//! Knows layouts; nothing of optimisers. Cost: 4 bytes written per weight for both forms, none read.

use super::PackedMatrix;
use super::pack::{self, PAIR_LEN, PANEL};
use crate::cpu::past_caches::copy_past_caches;
use crate::cpu::scratch::Line;
use crate::cpu::shared::SharedMut;
use crate::element::bf16;
use bytemuck::Zeroable;

/// The packed forms of a weight `[n, k]` that are wanted.
pub struct Forms<'a> {
    n: usize,
    k: usize,
    forward: Option<SharedMut<'a, bf16>>,
    backward: Option<SharedMut<'a, bf16>>,
}

impl<'a> Forms<'a> {
    /// Forms of a weight `[n, k]`: `forward` as [`PackedMatrix::pack_transposed`] fills it, `backward` as
    /// [`PackedMatrix::pack`] does.
    pub fn new(
        n: usize,
        k: usize,
        forward: Option<&'a mut PackedMatrix>,
        backward: Option<&'a mut PackedMatrix>,
    ) -> Self {
        if let Some(forward) = &forward {
            assert_eq!((forward.k, forward.n), (k, n), "the forward form of [{n}, {k}]");
        }
        if let Some(backward) = &backward {
            assert_eq!((backward.k, backward.n), (n, k), "the backward form of [{n}, {k}]");
        }
        let shared = |packed: &'a mut PackedMatrix| SharedMut::new(packed.panels_mut());
        Self { n, k, forward: forward.map(shared), backward: backward.map(shared) }
    }

    /// Number of weights.
    pub(crate) fn num_weights(&self) -> usize {
        self.n * self.k
    }

    /// Number of weights in each block but the last: 32 rows.
    pub(crate) fn block_len(&self) -> usize {
        PANEL * self.k
    }

    /// Packs block `block`, whose `rows` have their new values. [`finish_stores`](crate::cpu::past_caches::finish_stores) before others read the forms.
    ///
    /// # Safety
    /// No other thread packs the same block.
    pub(crate) unsafe fn pack_block(&self, block: usize, rows: &[f32]) {
        let (across, down) = (self.k.div_ceil(PANEL), self.n.div_ceil(PANEL));
        let mut tiles = [Line::zeroed(); PAIR_LEN * size_of::<bf16>() / size_of::<Line>()];
        for step in 0..across {
            let square = pack::Square { rows, width: self.k, step };
            if let Some(forward) = &self.forward {
                square.transposed(bytemuck::cast_slice_mut(&mut tiles));
                // SAFETY: the caller's block is this thread's.
                unsafe { store(&tiles, forward, block * across + step) }
            }
            if let Some(backward) = &self.backward {
                square.as_stored(bytemuck::cast_slice_mut(&mut tiles));
                // SAFETY: as above.
                unsafe { store(&tiles, backward, step * down + block) }
            }
        }
    }
}

/// Writes two tiles to their place, which nobody reads before the optimiser has gone over everything else.
///
/// # Safety
/// No other thread uses this pair.
unsafe fn store(tiles: &[Line], form: &SharedMut<'_, bf16>, pair: usize) {
    // SAFETY: as promised by the caller.
    let out = unsafe { form.slice(pair * PAIR_LEN, PAIR_LEN) };
    copy_past_caches(bytemuck::cast_slice(tiles), out);
}
