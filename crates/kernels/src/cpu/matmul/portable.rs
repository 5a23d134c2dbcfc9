//! The 32x32 block kernel without matrix instructions: operands widened to f32, one chain of sums per element.
//! Products of two bf16 values are exact in f32, so fused and unfused versions give the same bits.
//! Cost: about the speed of a plain f32 product.

use super::kernel::Block;
use super::pack::{PANEL, STEP, TILE, TILE_LEN};
use crate::element::{Element, bf16};
use crate::isa::multiversion;

/// Rows whose sums the compiler keeps in registers.
const ROWS: usize = 4;

/// Computes one block.
///
/// # Safety
/// The pointers of `block` are valid for its sizes, and nobody else writes to its sums.
pub(super) unsafe fn multiply(block: &Block) {
    let operand = block.steps * 2 * TILE_LEN;
    // SAFETY: `steps` steps of A and of B, as the caller promises.
    let (a, b) =
        unsafe { (std::slice::from_raw_parts(block.a, operand), std::slice::from_raw_parts(block.b, operand)) };
    for first in (0..block.num_tiles * TILE).step_by(ROWS) {
        let mut sums = [[0.0f32; PANEL]; ROWS];
        // SAFETY: the block has these rows of 32 sums.
        let row = |r: usize| unsafe { block.c.add((first + r) * block.c_stride).cast::<[f32; PANEL]>() };
        if !block.fresh {
            for (r, sums) in sums.iter_mut().enumerate() {
                // SAFETY: as above.
                *sums = unsafe { row(r).read() };
            }
        }
        rows(&a[first / TILE * TILE_LEN + first % TILE * STEP..], b, &mut sums);
        for (r, sums) in sums.iter().enumerate() {
            // SAFETY: as above.
            unsafe { row(r).write(*sums) }
        }
    }
}

multiversion! {
    /// Adds the products of all steps to the sums of four rows.
    fn rows(a: &[bf16], b: &[bf16], sums: &mut [[f32; PANEL]; ROWS]) {
        for (step, b) in b.chunks_exact(2 * TILE_LEN).enumerate() {
            let a = &a[step * 2 * TILE_LEN..];
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
    }
}
