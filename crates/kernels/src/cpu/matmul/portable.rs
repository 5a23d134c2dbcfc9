//! The 32x32 block kernel without matrix instructions: operands widened to f32, one chain of sums per element.
//! Products of two bf16 values are exact in f32, so fused and unfused versions give the same bits.
//! Cost: about the speed of a plain f32 product.

use super::pack::{PANEL, STEP, TILE, TILE_LEN};
use crate::element::{Element, bf16};
use crate::isa::multiversion;

multiversion! {
    /// c[32, 32] (+)= A·B over `b.len() / 1024` steps of k; `a` holds one or two blocks of 16 rows.
    pub(crate) fn block(a: &[bf16], num_blocks: usize, a_stride: usize, b: &[bf16], c: &mut [f32], fresh: bool) {
        const ROWS: usize = 4;
        for first in (0..num_blocks * TILE).step_by(ROWS) {
            let a = &a[first / TILE * a_stride + first % TILE * STEP..];
            let c = &mut c[first * PANEL..][..ROWS * PANEL];
            let mut sums = [[0.0f32; PANEL]; ROWS];
            if !fresh {
                for (sums, c) in sums.iter_mut().zip(c.chunks_exact(PANEL)) {
                    sums.copy_from_slice(c);
                }
            }
            for (step, b) in b.chunks_exact(2 * TILE_LEN).enumerate() {
                let a = &a[step * TILE_LEN..];
                for pair in 0..TILE {
                    let (left, right) = (&b[pair * STEP..][..STEP], &b[TILE_LEN + pair * STEP..][..STEP]);
                    let (mut even, mut odd) = ([0.0f32; PANEL], [0.0f32; PANEL]);
                    for j in 0..TILE {
                        even[j] = Element::to_f32(left[2 * j]);
                        odd[j] = Element::to_f32(left[2 * j + 1]);
                        even[TILE + j] = Element::to_f32(right[2 * j]);
                        odd[TILE + j] = Element::to_f32(right[2 * j + 1]);
                    }
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let x = Element::to_f32(a[r * STEP + 2 * pair]);
                        let y = Element::to_f32(a[r * STEP + 2 * pair + 1]);
                        for j in 0..PANEL {
                            sums[j] += x * even[j];
                            sums[j] += y * odd[j];
                        }
                    }
                }
            }
            for (sums, c) in sums.iter().zip(c.chunks_exact_mut(PANEL)) {
                c.copy_from_slice(sums);
            }
        }
    }
}
