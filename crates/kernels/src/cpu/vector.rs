//! Sixteen f32 side by side, on each instruction set, for loops that the compiler does not vectorise well by itself:
//! those that keep a block of sums in registers, and the softmax of attention.
//! Every operation gives the same bits on every instruction set.
//! Cost: one instruction per operation with AVX-512, two with AVX2.

/// Number of values in a [`Vector`].
pub(crate) const WIDTH: usize = 16;

/// Sixteen f32. Functions that use one are `#[inline(always)]` and reached through [`vectorised`].
pub(crate) trait Vector: Copy {
    /// Whether 32 registers hold one vector each; decides how many sums a loop keeps.
    const MANY_REGISTERS: bool;
    /// The same value sixteen times.
    fn splat(value: f32) -> Self;
    /// Sixteen values from memory.
    fn load(from: &[f32; WIDTH]) -> Self;
    /// Sixteen values to memory.
    fn store(self, to: &mut [f32; WIDTH]);
    /// `self + b`
    fn add(self, b: Self) -> Self;
    /// `self - b`
    fn sub(self, b: Self) -> Self;
    /// `self * b`
    fn mul(self, b: Self) -> Self;
    /// `self * b + c`, rounded once.
    fn mul_add(self, b: Self, c: Self) -> Self;
    /// `self` where it is greater than `b`, else `b` (also where either is NaN).
    fn max(self, b: Self) -> Self;
    /// `yes` where `self < b`, else `no`.
    fn select_less(self, b: Self, yes: Self, no: Self) -> Self;
    /// `self * 2^n` for whole n from -126 to 127; `shifted` is `n + ROUND`.
    fn times_power(self, n: Self, shifted: Self) -> Self;
}

/// Adding this to a number below 2^22 rounds it to an integer, and leaves that integer in the low bits.
const ROUND: f32 = 12_582_912.0;

/// 2^x, error below 2e-7. Below -126 it stays at about 2^-126, above 127 it is wrong; NaN gives NaN.
#[expect(clippy::approx_constant, reason = "a fitted coefficient near ln 2, not ln 2")]
#[inline(always)]
pub(crate) fn exp2<V: Vector>(x: V) -> V {
    // Minimax for 2^f on [-1/2, 1/2], relative error 9.2e-8, exactly 1 at 0 (fitted by Lawson's iteration).
    power(x, [1.326_472_5e-3, 9.671_513e-3, 5.550_733_7e-2, 0.240_222_42, 0.693_147])
}

/// [`exp2`] with an error of 3e-6, for results that are rounded to bf16 (4e-3).
#[inline(always)]
pub(crate) fn exp2_short<V: Vector>(x: V) -> V {
    power(x, [9.582_852e-3, 5.590_642_7e-2, 0.240_240_99, 0.693_124_2])
}

/// 2^x by a polynomial for the fraction; coefficients from the highest power down to the first.
#[inline(always)]
fn power<V: Vector, const N: usize>(x: V, coefficients: [f32; N]) -> V {
    let round = V::splat(ROUND);
    // In this order of arguments NaN passes.
    let x = V::splat(-126.0).max(x);
    let shifted = x.add(round);
    let n = shifted.sub(round);
    let f = x.sub(n);
    let mut p = V::splat(coefficients[0]);
    for coefficient in &coefficients[1..] {
        p = p.mul_add(f, V::splat(*coefficient));
    }
    p.mul_add(f, V::splat(1.0)).times_power(n, shifted)
}

/// Any machine: arrays and loops.
#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; WIDTH]);

impl Portable {
    #[inline(always)]
    fn zip(self, b: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], b.0[i])))
    }
}

impl Vector for Portable {
    const MANY_REGISTERS: bool = cfg!(target_arch = "aarch64");
    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self([value; WIDTH])
    }
    #[inline(always)]
    fn load(from: &[f32; WIDTH]) -> Self {
        Self(*from)
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; WIDTH]) {
        *to = self.0;
    }
    #[inline(always)]
    fn add(self, b: Self) -> Self {
        self.zip(b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        self.zip(b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        self.zip(b, |a, b| a * b)
    }
    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i].mul_add(b.0[i], c.0[i])))
    }
    #[inline(always)]
    fn max(self, b: Self) -> Self {
        self.zip(b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn select_less(self, b: Self, yes: Self, no: Self) -> Self {
        Self(std::array::from_fn(|i| if self.0[i] < b.0[i] { yes.0[i] } else { no.0[i] }))
    }
    #[inline(always)]
    fn times_power(self, _: Self, shifted: Self) -> Self {
        self.zip(shifted, |p, shifted| p * f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000)))
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Vector, WIDTH};
    use std::arch::x86_64::*;

    /// One 512-bit register.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512(pub(crate) __m512);

    /// Two 256-bit registers.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2(__m256, __m256);

    // SAFETY, for every block below: the two types are used only inside functions that `vectorised` compiles for, and
    // enters on, machines with the instructions; loads and stores are unaligned ones on whole arrays of 16.
    impl Vector for Avx512 {
        const MANY_REGISTERS: bool = true;
        #[inline(always)]
        fn splat(value: f32) -> Self {
            // SAFETY: see the impl.
            unsafe { Self(_mm512_set1_ps(value)) }
        }
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

    impl Vector for Avx2 {
        const MANY_REGISTERS: bool = false;
        #[inline(always)]
        fn splat(value: f32) -> Self {
            // SAFETY: see above.
            unsafe { Self(_mm256_set1_ps(value), _mm256_set1_ps(value)) }
        }
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
            unsafe {
                let one = _mm256_set1_epi32(0x3f80_0000);
                let power = |shifted| _mm256_add_epi32(_mm256_slli_epi32::<23>(_mm256_castps_si256(shifted)), one);
                Self(
                    _mm256_mul_ps(self.0, _mm256_castsi256_ps(power(shifted.0))),
                    _mm256_mul_ps(self.1, _mm256_castsi256_ps(power(shifted.1))),
                )
            }
        }
    }
}

/// Compiles a function over a [`Vector`] type for every instruction set and picks at run time, as
/// [`multiversion`](crate::isa::multiversion) does for plain loops.
///
/// ```ignore
/// vectorised! {
///     fn double<V>(x: &mut [[f32; WIDTH]]) {
///         for x in x { V::load(x).mul(V::splat(2.0)).store(x); }
///     }
/// }
/// ```
macro_rules! vectorised {
    (
        $(#[$meta:meta])*
        $visibility:vis fn $name:ident<$vector:ident>($($argument:ident : $kind:ty),* $(,)?) $(-> $result:ty)?
        $body:block
    ) => {
        $(#[$meta])*
        $visibility fn $name($($argument: $kind),*) $(-> $result)? {
            #[inline(always)]
            fn body<$vector: $crate::cpu::vector::Vector>($($argument: $kind),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,bmi1,bmi2,popcnt,lzcnt")]
                fn avx512($($argument: $kind),*) $(-> $result)? {
                    body::<$crate::cpu::vector::Avx512>($($argument),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($argument: $kind),*) $(-> $result)? {
                    body::<$crate::cpu::vector::Avx2>($($argument),*)
                }
                match $crate::isa::vector_isa() {
                    $crate::isa::VectorIsa::Avx512 => {
                        // SAFETY: `vector_isa` answers Avx512 only where detection found these features.
                        return unsafe { avx512($($argument),*) };
                    }
                    $crate::isa::VectorIsa::Avx2 => {
                        // SAFETY: `vector_isa` answers Avx2 only where detection found these features.
                        return unsafe { avx2($($argument),*) };
                    }
                    _ => {}
                }
            }
            body::<$crate::cpu::vector::Portable>($($argument),*)
        }
    };
}
pub(crate) use vectorised;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::for_each_isa;

    vectorised! {
        fn powers<V>(x: &mut [[f32; WIDTH]]) {
            for x in x {
                exp2(V::load(x)).store(x);
            }
        }
    }

    vectorised! {
        fn short_powers<V>(x: &mut [[f32; WIDTH]]) {
            for x in x {
                exp2_short(V::load(x)).store(x);
            }
        }
    }

    vectorised! {
        fn every_operation<V>(x: &[[f32; WIDTH]; 3], out: &mut [[f32; WIDTH]; 6]) {
            let [a, b, c] = [V::load(&x[0]), V::load(&x[1]), V::load(&x[2])];
            a.add(b).store(&mut out[0]);
            a.sub(b).store(&mut out[1]);
            a.mul(b).store(&mut out[2]);
            a.mul_add(b, c).store(&mut out[3]);
            a.max(b).store(&mut out[4]);
            a.select_less(b, b, c).store(&mut out[5]);
        }
    }

    #[test]
    fn powers_of_two_are_accurate() {
        for_each_isa(|isa| {
            let mut x: Vec<[f32; WIDTH]> =
                (0..2000).map(|row| std::array::from_fn(|i| (row * WIDTH + i) as f32 / 252.0 - 126.0)).collect();
            let given = x.clone();
            let mut short = x.clone();
            powers(&mut x);
            short_powers(&mut short);
            for ((have, short), at) in x.as_flattened().iter().zip(short.as_flattened()).zip(given.as_flattened()) {
                let want = f64::from(*at).exp2();
                assert!((f64::from(*have) / want - 1.0).abs() < 2e-7, "{}: 2^{at} is {have}", isa.name());
                assert!((f64::from(*short) / want - 1.0).abs() < 3e-6, "{}: 2^{at} is about {short}", isa.name());
            }
            let mut special =
                [[0.0, -1.0, -500.0, f32::NEG_INFINITY, f32::NAN, 1.0, 0., 0., 0., 0., 0., 0., 0., 0., 0., 0.]];
            powers(&mut special);
            assert_eq!(special[0][..2], [1.0, 0.5]);
            assert!(special[0][2] < 1.2e-38 && special[0][3] < 1.2e-38 && special[0][4].is_nan());
            assert_eq!(special[0][5], 2.0);
        });
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let pick = |seed: u32| -> [f32; WIDTH] {
            std::array::from_fn(|i| match i {
                0 => f32::NAN,
                1 => f32::INFINITY,
                2 => -0.0,
                _ => f32::from_bits((seed + i as u32).wrapping_mul(2_654_435_761)),
            })
        };
        let mut results = Vec::new();
        for_each_isa(|_| {
            let mut out = [[0.0; WIDTH]; 6];
            every_operation(&[pick(3), [1.5; WIDTH], pick(900)], &mut out);
            let bits = |x: &f32| if x.is_nan() { u32::MAX } else { x.to_bits() };
            results.push(out.as_flattened().iter().map(bits).collect::<Vec<_>>());
        });
        assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
    }
}
