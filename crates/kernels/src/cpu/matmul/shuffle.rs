//! The loops of packing that change the order of values, with AVX-512 where the machine has it and as plain loops elsewhere.
//! Both give the same bits. Cost: about 50 cycles per tile of 1 KiB with AVX-512.

use super::pack::{STEP, TILE, TILE_LEN};
use crate::element::{Element, bf16};
use crate::isa::{VectorIsa, vector_isa};

/// Two tiles of A from 32 rows of 32 elements, transposed: column c of the source becomes line c.
pub(super) fn transpose(source: &[bf16], stride: usize, pair: &mut [bf16]) {
    assert!(pair.len() == 2 * TILE_LEN && source.len() >= (STEP - 1) * stride + STEP, "32 x 32 elements");
    #[cfg(target_arch = "x86_64")]
    if vector_isa() == VectorIsa::Avx512 {
        // SAFETY: the machine has AVX-512, and both sides have 32 x 32 elements.
        return unsafe { avx512::transpose(source.as_ptr(), stride, pair.as_mut_ptr()) };
    }
    transpose_plain(source, stride, pair);
}

fn transpose_plain(source: &[bf16], stride: usize, pair: &mut [bf16]) {
    for (c, line) in pair.chunks_exact_mut(STEP).enumerate() {
        for (r, value) in line.iter_mut().enumerate() {
            *value = source[r * stride + c];
        }
    }
}

/// Two tiles of B from 32 rows of 32 elements: values of row pairs side by side.
pub(super) fn interleave(source: &[bf16], stride: usize, pair: &mut [bf16]) {
    assert!(pair.len() == 2 * TILE_LEN && source.len() >= (STEP - 1) * stride + STEP, "32 x 32 elements");
    #[cfg(target_arch = "x86_64")]
    if vector_isa() == VectorIsa::Avx512 {
        // SAFETY: the machine has AVX-512, and both sides have 32 x 32 elements.
        return unsafe { avx512::interleave(source.as_ptr(), stride, pair.as_mut_ptr()) };
    }
    interleave_plain(source, stride, pair);
}

fn interleave_plain(source: &[bf16], stride: usize, pair: &mut [bf16]) {
    for (index, line) in pair.chunks_exact_mut(STEP).enumerate() {
        let start = 2 * (index % TILE) * stride + index / TILE * TILE;
        for (j, both) in line.chunks_exact_mut(2).enumerate() {
            both.copy_from_slice(&[source[start + j], source[start + stride + j]]);
        }
    }
}

/// One tile of B from 16 rows of 32 f32: row j becomes column j, rounded.
pub(super) fn round_transpose(source: &[f32], stride: usize, tile: &mut [bf16]) {
    assert!(tile.len() == TILE_LEN && source.len() >= (TILE - 1) * stride + STEP, "16 x 32 elements");
    #[cfg(target_arch = "x86_64")]
    if vector_isa() == VectorIsa::Avx512 {
        // SAFETY: the machine has AVX-512, and both sides have 16 x 32 elements.
        return unsafe { avx512::round_transpose(source.as_ptr(), stride, tile.as_mut_ptr()) };
    }
    round_transpose_plain(source, stride, tile);
}

fn round_transpose_plain(source: &[f32], stride: usize, tile: &mut [bf16]) {
    for (p, line) in tile.chunks_exact_mut(STEP).enumerate() {
        for (j, both) in line.chunks_exact_mut(2).enumerate() {
            both[0] = Element::from_f32(source[j * stride + 2 * p]);
            both[1] = Element::from_f32(source[j * stride + 2 * p + 1]);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::{STEP, TILE, bf16};
    use std::arch::x86_64::*;

    /// Eight 128-bit pieces from eight groups of four rows, as four lanes each: lane l of register i is row 8 l + i.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn gather_lanes(source: *const bf16, stride: usize, i: usize) -> __m512i {
        // SAFETY: the caller vouches for 32 rows.
        unsafe {
            let piece = |row: usize| _mm_loadu_si128(source.add(row * stride).cast());
            // Broadcast loads under a mask run on the load ports, unlike inserts.
            let lanes = _mm512_castsi128_si512(piece(i));
            let lanes = _mm512_mask_broadcast_i32x4(lanes, 0x00f0, piece(8 + i));
            let lanes = _mm512_mask_broadcast_i32x4(lanes, 0x0f00, piece(16 + i));
            _mm512_mask_broadcast_i32x4(lanes, 0xf000, piece(24 + i))
        }
    }

    /// # Safety
    /// AVX-512; `source` has 32 rows of 32 elements at `stride`, `out` 32 lines of 32.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub(super) unsafe fn transpose(source: *const bf16, stride: usize, out: *mut bf16) {
        for quarter in 0..4 {
            // SAFETY: eight columns from `8 * quarter` on, as the caller promises.
            unsafe {
                let source = source.add(8 * quarter);
                let r: [__m512i; 8] = std::array::from_fn(|i| gather_lanes(source, stride, i));
                // 8x8 transposes of 16-bit values within each 128-bit lane.
                let a: [__m512i; 4] = std::array::from_fn(|i| _mm512_unpacklo_epi16(r[2 * i], r[2 * i + 1]));
                let b: [__m512i; 4] = std::array::from_fn(|i| _mm512_unpackhi_epi16(r[2 * i], r[2 * i + 1]));
                let quads = [
                    (_mm512_unpacklo_epi32(a[0], a[1]), _mm512_unpacklo_epi32(a[2], a[3])),
                    (_mm512_unpackhi_epi32(a[0], a[1]), _mm512_unpackhi_epi32(a[2], a[3])),
                    (_mm512_unpacklo_epi32(b[0], b[1]), _mm512_unpacklo_epi32(b[2], b[3])),
                    (_mm512_unpackhi_epi32(b[0], b[1]), _mm512_unpackhi_epi32(b[2], b[3])),
                ];
                let out = out.add(8 * quarter * STEP);
                for (i, (first, second)) in quads.into_iter().enumerate() {
                    _mm512_storeu_si512(out.add(2 * i * STEP).cast(), _mm512_unpacklo_epi64(first, second));
                    _mm512_storeu_si512(out.add((2 * i + 1) * STEP).cast(), _mm512_unpackhi_epi64(first, second));
                }
            }
        }
    }

    /// # Safety
    /// AVX-512; `source` has 32 rows of 32 elements at `stride`, `out` 32 lines of 32.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub(super) unsafe fn interleave(source: *const bf16, stride: usize, out: *mut bf16) {
        /// Values of the first register by their place, of the second from 32 on.
        const ORDER: [u16; 2 * STEP] = {
            let mut order = [0; 2 * STEP];
            let mut at = 0;
            while at < STEP {
                (order[2 * at], order[2 * at + 1]) = (at as u16, (STEP + at) as u16);
                at += 1;
            }
            order
        };
        // SAFETY: 32 rows and 32 lines, as the caller promises.
        unsafe {
            let low = _mm512_loadu_si512(ORDER.as_ptr().cast());
            let high = _mm512_loadu_si512(ORDER.as_ptr().add(STEP).cast());
            for pair in 0..TILE {
                let even = _mm512_loadu_si512(source.add(2 * pair * stride).cast());
                let odd = _mm512_loadu_si512(source.add((2 * pair + 1) * stride).cast());
                _mm512_storeu_si512(out.add(pair * STEP).cast(), _mm512_permutex2var_epi16(even, low, odd));
                _mm512_storeu_si512(out.add((TILE + pair) * STEP).cast(), _mm512_permutex2var_epi16(even, high, odd));
            }
        }
    }

    /// Rounds like `Element::from_f32`; the result is in the low halves.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    fn round(x: __m512) -> __m512i {
        let bits = _mm512_castps_si512(x);
        let high = _mm512_srli_epi32::<16>(bits);
        let odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
        let rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
        let quiet = _mm512_or_si512(high, _mm512_set1_epi32(0x40));
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
        _mm512_mask_mov_epi32(_mm512_srli_epi32::<16>(rounded), nan, quiet)
    }

    /// # Safety
    /// AVX-512; `source` has 16 rows of 32 elements at `stride`, `out` 16 lines of 32.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub(super) unsafe fn round_transpose(source: *const f32, stride: usize, out: *mut bf16) {
        // SAFETY: 16 rows and 16 lines, as the caller promises.
        unsafe {
            // Row j as 16 pairs of bf16. Packing works in 128-bit lanes: lane l holds pairs 2l, 2l+1, 8+2l, 9+2l.
            let rows: [__m512i; TILE] = std::array::from_fn(|j| {
                let row = source.add(j * stride);
                _mm512_packus_epi32(round(_mm512_loadu_ps(row)), round(_mm512_loadu_ps(row.add(TILE))))
            });
            // 4x4 transposes of pairs within each lane, for each group of four rows.
            let mut columns = [_mm512_setzero_si512(); TILE];
            for group in 0..4 {
                let r = &rows[4 * group..4 * group + 4];
                let (a, b) = (_mm512_unpacklo_epi32(r[0], r[1]), _mm512_unpackhi_epi32(r[0], r[1]));
                let (c, d) = (_mm512_unpacklo_epi32(r[2], r[3]), _mm512_unpackhi_epi32(r[2], r[3]));
                columns[4 * group] = _mm512_unpacklo_epi64(a, c);
                columns[4 * group + 1] = _mm512_unpackhi_epi64(a, c);
                columns[4 * group + 2] = _mm512_unpacklo_epi64(b, d);
                columns[4 * group + 3] = _mm512_unpackhi_epi64(b, d);
            }
            // Register 4 g + i, lane l: position i of lane l for rows 4 g .. 4 g + 4. Now 4x4 transposes of lanes.
            for i in 0..4 {
                let [a, b, c, d] = [columns[i], columns[4 + i], columns[8 + i], columns[12 + i]];
                let (ab_low, ab_high) = (_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0xee>(a, b));
                let (cd_low, cd_high) = (_mm512_shuffle_i32x4::<0x44>(c, d), _mm512_shuffle_i32x4::<0xee>(c, d));
                let lanes = [
                    _mm512_shuffle_i32x4::<0x88>(ab_low, cd_low),
                    _mm512_shuffle_i32x4::<0xdd>(ab_low, cd_low),
                    _mm512_shuffle_i32x4::<0x88>(ab_high, cd_high),
                    _mm512_shuffle_i32x4::<0xdd>(ab_high, cd_high),
                ];
                for (lane, line) in lanes.into_iter().enumerate() {
                    let pair = if i < 2 { 2 * lane + i } else { 8 + 2 * lane + i - 2 };
                    _mm512_storeu_si512(out.add(pair * STEP).cast(), line);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vector_and_plain_loops_agree_bit_for_bit() {
        let stride = 37;
        // Every kind of bit pattern, NaN and subnormal numbers included.
        let wide: Vec<f32> =
            (0..32 * stride as u32).map(|i| f32::from_bits(i.wrapping_mul(0x9e37_79b9) ^ (i << 7))).collect();
        let narrow: Vec<bf16> = wide.iter().map(|x| bf16::from_bits((x.to_bits() >> 9) as u16)).collect();
        let bits = |x: &[bf16]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let (mut fast, mut plain) = ([bf16::ZERO; 2 * TILE_LEN], [bf16::ONE; 2 * TILE_LEN]);
        transpose(&narrow, stride, &mut fast);
        transpose_plain(&narrow, stride, &mut plain);
        assert_eq!(bits(&fast), bits(&plain));
        interleave(&narrow, stride, &mut fast);
        interleave_plain(&narrow, stride, &mut plain);
        assert_eq!(bits(&fast), bits(&plain));
        round_transpose(&wide, stride, &mut fast[..TILE_LEN]);
        round_transpose_plain(&wide, stride, &mut plain[..TILE_LEN]);
        assert_eq!(bits(&fast), bits(&plain));
    }
}
