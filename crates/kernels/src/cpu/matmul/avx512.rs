//! The 32x32 block kernel on AVX-512 BF16: eight rows of two 512-bit sums at a time, `vdpbf16ps` per pair of k.
//! Cost: at most twice the speed of an f32 product; its point is that operands are half as large.

use super::kernel::Block;
use super::pack::{STEP, TILE, TILE_LEN};
use std::arch::x86_64::{__m512, __m512bh, _mm512_dpbf16_ps, _mm512_loadu_ps, _mm512_set1_epi32, _mm512_setzero_ps};
use std::arch::x86_64::{_mm512_loadu_si512, _mm512_storeu_ps};

/// Rows whose sums fit the registers together with two lines of B.
const ROWS: usize = 8;

/// Computes one block.
///
/// # Safety
/// The machine has AVX-512 F and BF16 (`Machine::avx512_bf16`), the pointers of `block` are valid for its sizes, and
/// nobody else writes to its sums.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn multiply(block: &Block) {
    for tile in 0..block.num_tiles {
        for first in (0..TILE).step_by(ROWS) {
            // SAFETY: rows `first..first + 8` of this tile lie in the operands that the caller vouches for.
            unsafe {
                let a = block.a.add(tile * TILE_LEN + first * STEP);
                let c = block.c.add((tile * TILE + first) * block.c_stride);
                rows(a, block.b, block.steps, c, block.c_stride, block.fresh);
            }
        }
    }
}

/// # Safety
/// As for [`multiply`]; `a` and `c` point to the first of eight rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn rows(a: *const half::bf16, b: *const half::bf16, steps: usize, c: *mut f32, c_stride: usize, fresh: bool) {
    let mut sums: [[__m512; 2]; ROWS] = [[_mm512_setzero_ps(); 2]; ROWS];
    // SAFETY: all addresses lie in the operands that the caller vouches for.
    unsafe {
        if !fresh {
            for (r, sums) in sums.iter_mut().enumerate() {
                *sums = [_mm512_loadu_ps(c.add(r * c_stride)), _mm512_loadu_ps(c.add(r * c_stride + TILE))];
            }
        }
        for step in 0..steps {
            let (a, b) = (a.add(step * 2 * TILE_LEN), b.add(step * 2 * TILE_LEN));
            for pair in 0..TILE {
                let left: __m512bh = std::mem::transmute(_mm512_loadu_si512(b.add(pair * STEP).cast()));
                let right: __m512bh = std::mem::transmute(_mm512_loadu_si512(b.add(TILE_LEN + pair * STEP).cast()));
                for (r, sums) in sums.iter_mut().enumerate() {
                    let both = a.add(r * STEP + 2 * pair).cast::<i32>().read_unaligned();
                    let both: __m512bh = std::mem::transmute(_mm512_set1_epi32(both));
                    sums[0] = _mm512_dpbf16_ps(sums[0], both, left);
                    sums[1] = _mm512_dpbf16_ps(sums[1], both, right);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            _mm512_storeu_ps(c.add(r * c_stride), sums[0]);
            _mm512_storeu_ps(c.add(r * c_stride + TILE), sums[1]);
        }
    }
}

/// Rounds of [`peak`].
pub(super) const PEAK_ROUNDS: usize = 100_000;

/// Products from registers alone.
///
/// # Safety
/// The machine has AVX-512 F and BF16.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn peak() -> f32 {
    let ones: __m512bh = {
        // SAFETY: both types are 512 bits.
        unsafe { std::mem::transmute(std::hint::black_box(_mm512_set1_epi32(0x3f80_3f80))) }
    };
    let mut sums: [[__m512; 2]; ROWS] = [[_mm512_setzero_ps(); 2]; ROWS];
    for _ in 0..PEAK_ROUNDS {
        for sums in &mut sums {
            sums[0] = _mm512_dpbf16_ps(sums[0], ones, ones);
            sums[1] = _mm512_dpbf16_ps(sums[1], ones, ones);
        }
    }
    let mut total = 0.0;
    for sum in sums.iter().flatten() {
        total += std::arch::x86_64::_mm512_reduce_add_ps(*sum);
    }
    total
}
