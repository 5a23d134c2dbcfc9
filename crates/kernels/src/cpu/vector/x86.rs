//! [`Vector`](super::Vector) on x86-64: one register of AVX-512, or two of AVX2.
//! Knows instructions; what they are for is said at the traits. Cost: one instruction per operation and register, more for
//! bf16.

use super::{Arithmetic, RECIPROCAL, Vector, WIDTH};
use crate::element::bf16;
use std::arch::x86_64::*;

/// One 512-bit register.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(pub(crate) __m512);

/// The same on machines that have an instruction for rounding to bf16, which makes numbers below 2^-126 zero, as the
/// matrix units do with their operands anyway.
#[derive(Clone, Copy)]
pub(crate) struct Avx512Bf16(Avx512);

/// Two 256-bit registers.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(__m256, __m256);

// No closures and no array functions over registers in this file: they are not always inlined, and an intrinsic in
// a function that was compiled without its instructions is a call.

/// 2^n where `shifted` is `n + ROUND`.
#[inline(always)]
fn power(shifted: __m256) -> __m256 {
    // SAFETY: see below.
    unsafe {
        let exponent = _mm256_slli_epi32::<23>(_mm256_castps_si256(shifted));
        _mm256_castsi256_ps(_mm256_add_epi32(exponent, _mm256_set1_epi32(0x3f80_0000)))
    }
}

/// f32 rounded to bf16 in the low halves of words.
#[inline(always)]
fn rounded_half(x: __m256) -> __m256i {
    // SAFETY: see below.
    unsafe {
        let bits = _mm256_castps_si256(x);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
        let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000));
        let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
        _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet, nan))
    }
}

// SAFETY, for every block below: these types are used only inside functions that `vectorised` compiles for, and
// enters on, machines with the instructions; loads and stores are unaligned ones on whole arrays of 16.
impl Arithmetic for Avx512 {
    #[inline(always)]
    fn splat(value: f32) -> Self {
        // SAFETY: see the impl.
        unsafe { Self(_mm512_set1_ps(value)) }
    }
    #[inline(always)]
    fn add(self, b: Self) -> Self {
        // SAFETY: see the impl.
        unsafe { Self(_mm512_add_ps(self.0, b.0)) }
    }
    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        // SAFETY: see the impl.
        unsafe { Self(_mm512_sub_ps(self.0, b.0)) }
    }
    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        // SAFETY: see the impl.
        unsafe { Self(_mm512_mul_ps(self.0, b.0)) }
    }
    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: see the impl.
        unsafe { Self(_mm512_fmadd_ps(self.0, b.0, c.0)) }
    }
    #[inline(always)]
    fn max(self, b: Self) -> Self {
        // SAFETY: see the impl.
        unsafe { Self(_mm512_max_ps(self.0, b.0)) }
    }
    #[inline(always)]
    fn min(self, b: Self) -> Self {
        // SAFETY: see the impl.
        unsafe { Self(_mm512_min_ps(self.0, b.0)) }
    }
    #[inline(always)]
    fn rough_reciprocal(self) -> Self {
        // SAFETY: see the impl.
        unsafe {
            let bits = _mm512_sub_epi32(_mm512_set1_epi32(RECIPROCAL as i32), _mm512_castps_si512(self.0));
            Self(_mm512_castsi512_ps(bits))
        }
    }
    #[inline(always)]
    fn select_less(self, b: Self, yes: Self, no: Self) -> Self {
        // SAFETY: see the impl.
        unsafe { Self(_mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, b.0), no.0, yes.0)) }
    }
    #[inline(always)]
    fn times_power(self, n: Self, _: Self) -> Self {
        // SAFETY: see the impl.
        unsafe { Self(_mm512_scalef_ps(self.0, n.0)) }
    }
}

impl Vector for Avx512 {
    const MANY_REGISTERS: bool = true;
    #[inline(always)]
    fn load(from: &[f32; WIDTH]) -> Self {
        // SAFETY: see the impl.
        unsafe { Self(_mm512_loadu_ps(from.as_ptr())) }
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; WIDTH]) {
        // SAFETY: see the impl.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), self.0) }
    }
    #[inline(always)]
    fn load_bf16(from: &[bf16; WIDTH]) -> Self {
        // SAFETY: see the impl.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide)))
        }
    }
    #[inline(always)]
    fn store_bf16(self, to: &mut [bf16; WIDTH]) {
        // SAFETY: see the impl.
        unsafe {
            let bits = _mm512_castps_si512(self.0);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(self.0, self.0);
            let rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x40_0000));
            let narrow = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(rounded));
            _mm256_storeu_si256(to.as_mut_ptr().cast(), narrow);
        }
    }
}

impl Arithmetic for Avx2 {
    #[inline(always)]
    fn splat(value: f32) -> Self {
        // SAFETY: see above.
        unsafe { Self(_mm256_set1_ps(value), _mm256_set1_ps(value)) }
    }
    #[inline(always)]
    fn add(self, b: Self) -> Self {
        // SAFETY: see above.
        unsafe { Self(_mm256_add_ps(self.0, b.0), _mm256_add_ps(self.1, b.1)) }
    }
    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        // SAFETY: see above.
        unsafe { Self(_mm256_sub_ps(self.0, b.0), _mm256_sub_ps(self.1, b.1)) }
    }
    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        // SAFETY: see above.
        unsafe { Self(_mm256_mul_ps(self.0, b.0), _mm256_mul_ps(self.1, b.1)) }
    }
    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: see above.
        unsafe { Self(_mm256_fmadd_ps(self.0, b.0, c.0), _mm256_fmadd_ps(self.1, b.1, c.1)) }
    }
    #[inline(always)]
    fn max(self, b: Self) -> Self {
        // SAFETY: see above.
        unsafe { Self(_mm256_max_ps(self.0, b.0), _mm256_max_ps(self.1, b.1)) }
    }
    #[inline(always)]
    fn min(self, b: Self) -> Self {
        // SAFETY: see above.
        unsafe { Self(_mm256_min_ps(self.0, b.0), _mm256_min_ps(self.1, b.1)) }
    }
    #[inline(always)]
    fn rough_reciprocal(self) -> Self {
        // SAFETY: see above.
        unsafe {
            let magic = _mm256_set1_epi32(RECIPROCAL as i32);
            Self(
                _mm256_castsi256_ps(_mm256_sub_epi32(magic, _mm256_castps_si256(self.0))),
                _mm256_castsi256_ps(_mm256_sub_epi32(magic, _mm256_castps_si256(self.1))),
            )
        }
    }
    #[inline(always)]
    fn select_less(self, b: Self, yes: Self, no: Self) -> Self {
        // SAFETY: see above.
        unsafe {
            Self(
                _mm256_blendv_ps(no.0, yes.0, _mm256_cmp_ps::<_CMP_LT_OQ>(self.0, b.0)),
                _mm256_blendv_ps(no.1, yes.1, _mm256_cmp_ps::<_CMP_LT_OQ>(self.1, b.1)),
            )
        }
    }
    #[inline(always)]
    fn times_power(self, _: Self, shifted: Self) -> Self {
        // SAFETY: see above.
        unsafe { Self(_mm256_mul_ps(self.0, power(shifted.0)), _mm256_mul_ps(self.1, power(shifted.1))) }
    }
}

impl Vector for Avx2 {
    const MANY_REGISTERS: bool = false;
    #[inline(always)]
    fn load(from: &[f32; WIDTH]) -> Self {
        // SAFETY: see above.
        unsafe { Self(_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from.as_ptr().add(8))) }
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; WIDTH]) {
        // SAFETY: see above.
        unsafe {
            _mm256_storeu_ps(to.as_mut_ptr(), self.0);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), self.1);
        }
    }
    #[inline(always)]
    fn load_bf16(from: &[bf16; WIDTH]) -> Self {
        // SAFETY: see above.
        unsafe {
            let all = _mm256_loadu_si256(from.as_ptr().cast());
            let low = _mm256_cvtepu16_epi32(_mm256_castsi256_si128(all));
            let high = _mm256_cvtepu16_epi32(_mm256_extracti128_si256::<1>(all));
            Self(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)), _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)))
        }
    }
    #[inline(always)]
    fn store_bf16(self, to: &mut [bf16; WIDTH]) {
        // SAFETY: see above.
        unsafe {
            // Packing works within 128-bit halves; the permutation puts the quarters in order.
            let packed = _mm256_packus_epi32(rounded_half(self.0), rounded_half(self.1));
            _mm256_storeu_si256(to.as_mut_ptr().cast(), _mm256_permute4x64_epi64::<0b11_01_10_00>(packed));
        }
    }
}

/// An operation of [`Avx512`].
macro_rules! as_avx512 {
    ($name:ident($($argument:ident),*)) => {
        #[inline(always)]
        fn $name(self $(, $argument: Self)*) -> Self {
            Self(self.0.$name($($argument.0),*))
        }
    };
}

impl Arithmetic for Avx512Bf16 {
    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self(Avx512::splat(value))
    }
    as_avx512!(add(b));
    as_avx512!(sub(b));
    as_avx512!(mul(b));
    as_avx512!(mul_add(b, c));
    as_avx512!(max(b));
    as_avx512!(min(b));
    as_avx512!(select_less(b, yes, no));
    as_avx512!(rough_reciprocal());
    as_avx512!(times_power(n, shifted));
}

impl Vector for Avx512Bf16 {
    const MANY_REGISTERS: bool = true;
    #[inline(always)]
    fn load(from: &[f32; WIDTH]) -> Self {
        Self(Avx512::load(from))
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; WIDTH]) {
        self.0.store(to);
    }
    #[inline(always)]
    fn load_bf16(from: &[bf16; WIDTH]) -> Self {
        Self(Avx512::load_bf16(from))
    }
    #[inline(always)]
    fn store_bf16(self, to: &mut [bf16; WIDTH]) {
        // SAFETY: as above; `vectorised` enters only where the machine has AVX-512 BF16.
        unsafe {
            let narrow: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(self.0.0));
            _mm256_storeu_si256(to.as_mut_ptr().cast(), narrow);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Machine;

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma")]
    fn both_roundings(x: &[f32; WIDTH]) -> [[bf16; WIDTH]; 2] {
        let mut out = [[bf16::ZERO; WIDTH]; 2];
        Avx512::load(x).store_bf16(&mut out[0]);
        Avx512Bf16::load(x).store_bf16(&mut out[1]);
        out
    }

    #[test]
    fn the_machine_rounds_as_the_loop_does() {
        if !Machine::get().avx512_bf16 {
            println!("skipped: this machine has no AVX-512 BF16");
            return;
        }
        for seed in 0..4096u32 {
            let x: [f32; WIDTH] = std::array::from_fn(|i| {
                let bits = (seed * WIDTH as u32 + i as u32).wrapping_mul(2_654_435_761);
                // Ties as well: half of the numbers end exactly between two bf16.
                f32::from_bits(if i % 2 == 0 { bits } else { bits & 0xffff_0000 | 0x8000 })
            });
            // SAFETY: the machine has these instructions.
            let [loops, machine] = unsafe { both_roundings(&x) };
            for ((x, loops), machine) in x.iter().zip(loops).zip(machine) {
                let same = loops.to_bits() == machine.to_bits() || x.is_nan() && loops.is_nan() && machine.is_nan();
                assert!(same || !x.is_normal() && machine.to_f32() == 0.0, "{x:e}: {loops:?} and {machine:?}");
            }
        }
    }
}
