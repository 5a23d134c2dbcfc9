//! Sixteen f32 side by side, on each instruction set, for loops that the compiler does not vectorise well by itself:
//! those that keep a block of sums in registers, softmax, norms and activations.
//! Every operation gives the same bits on every instruction set, but for the rounding of the tiniest numbers to bf16.
//! Cost: one instruction per operation with AVX-512, two with AVX2.

use crate::cpu::ask::ask_ahead;
use crate::element::{Element, bf16};

mod four;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(crate) use four::{FOUR, Four, in_stripes};
#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512, Avx512Bf16};

/// Number of values in a [`Vector`].
pub(crate) const WIDTH: usize = 16;

/// What can be computed with one or more vectors of f32. Functions that use one are `#[inline(always)]` and reached
/// through [`vectorised`].
pub(crate) trait Arithmetic: Copy {
    /// The same value everywhere.
    fn splat(value: f32) -> Self;
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
    /// `self` where it is less than `b`, else `b` (also where either is NaN).
    fn min(self, b: Self) -> Self;
    /// `yes` where `self < b`, else `no`.
    fn select_less(self, b: Self, yes: Self, no: Self) -> Self;
    /// About `1 / self` for positive numbers, within 13 %.
    fn rough_reciprocal(self) -> Self;
    /// `self * 2^n` for whole n from -126 to 127; `shifted` is `n + ROUND`.
    fn times_power(self, n: Self, shifted: Self) -> Self;
}

/// Sixteen f32.
pub(crate) trait Vector: Arithmetic {
    /// Whether 32 registers hold one vector each; decides how many sums a loop keeps.
    const MANY_REGISTERS: bool;
    /// Sixteen values from memory.
    fn load(from: &[f32; WIDTH]) -> Self;
    /// Sixteen values to memory.
    fn store(self, to: &mut [f32; WIDTH]);
    /// Sixteen bf16 from memory.
    fn load_bf16(from: &[bf16; WIDTH]) -> Self;
    /// Rounds to the nearest bf16, ties to even, NaN to NaN. Numbers below 2^-126 may become zero.
    fn store_bf16(self, to: &mut [bf16; WIDTH]);
}

/// What a loop over slices takes at a time: a vector, or [`Four`] of them.
pub(crate) trait Stripe: Arithmetic {
    /// The values of `x` from `at` on. A vector reads zeros beyond the end; four vectors want all their values there.
    fn load_at<E: Element>(x: &[E], at: usize) -> Self;
    /// Writes to `x` from `at` on, rounded: a vector as far as `x` goes, four vectors whole.
    fn store_at<E: Element>(self, x: &mut [E], at: usize);
}

/// Adding this to a number below 2^22 rounds it to an integer, and leaves that integer in the low bits.
const ROUND: f32 = 12_582_912.0;

/// 2^x, error below 2e-7. Below -126 it stays at about 2^-126, above 127 it is wrong; NaN gives NaN.
#[expect(clippy::approx_constant, reason = "a fitted coefficient near ln 2, not ln 2")]
#[inline(always)]
pub(crate) fn exp2<V: Arithmetic>(x: V) -> V {
    // Minimax for 2^f on [-1/2, 1/2], relative error 9.2e-8, exactly 1 at 0 (fitted by Lawson's iteration).
    power(x, [1.326_472_5e-3, 9.671_513e-3, 5.550_733_7e-2, 0.240_222_42, 0.693_147])
}

/// [`exp2`] with an error of 3e-6, for results that are rounded to bf16 (4e-3).
#[inline(always)]
pub(crate) fn exp2_short<V: Arithmetic>(x: V) -> V {
    power(x, [9.582_852e-3, 5.590_642_7e-2, 0.240_240_99, 0.693_124_2])
}

/// 2^x by a polynomial for the fraction; coefficients from the highest power down to the first.
#[inline(always)]
fn power<V: Arithmetic, const N: usize>(x: V, coefficients: [f32; N]) -> V {
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

/// Subtracting the bits of a positive number from this divides 1 by it, roughly: the exponent changes its sign.
const RECIPROCAL: u32 = 0x7ef3_11c7;

/// `1 / x` for x from 1 to 2^126, error below 2e-7. Three Newton steps: a division takes the unit four times as long.
#[inline(always)]
pub(crate) fn reciprocal<V: Arithmetic>(x: V) -> V {
    let (mut y, one, minus) = (x.rough_reciprocal(), V::splat(1.0), V::splat(0.0).sub(x));
    for _ in 0..3 {
        // y + y (1 - x y), which squares the error.
        y = minus.mul_add(y, one).mul_add(y, y);
    }
    y
}

/// [`Stripe::load_at`].
#[inline(always)]
pub(crate) fn load<S: Stripe, E: Element>(x: &[E], at: usize) -> S {
    S::load_at(x, at)
}

/// [`Stripe::store_at`].
#[inline(always)]
pub(crate) fn store<S: Stripe, E: Element>(value: S, x: &mut [E], at: usize) {
    value.store_at(x, at);
}

impl<V: Vector> Stripe for V {
    #[inline(always)]
    fn load_at<E: Element>(x: &[E], at: usize) -> Self {
        let rest;
        let values: &[E; WIDTH] = match x.get(at..at + WIDTH) {
            Some(values) => values.try_into().expect("sliced to WIDTH"),
            None => {
                rest = rest_of(x, at);
                &rest
            }
        };
        // One of the two casts always fits; which one is known when the function is compiled.
        if size_of::<E>() == size_of::<bf16>() {
            V::load_bf16(bytemuck::cast_ref::<[E; WIDTH], [bf16; WIDTH]>(values))
        } else {
            V::load(bytemuck::cast_ref::<[E; WIDTH], [f32; WIDTH]>(values))
        }
    }
    #[inline(always)]
    fn store_at<E: Element>(self, x: &mut [E], at: usize) {
        if let Some(to) = x.get_mut(at..at + WIDTH) {
            return store_sixteen(self, to.try_into().expect("sliced to WIDTH"));
        }
        let mut rest = [E::default(); WIDTH];
        store_sixteen(self, &mut rest);
        let to = &mut x[at..];
        to.copy_from_slice(&rest[..to.len()]);
    }
}

/// Asks for what [`load`] reads, which need not exist.
#[inline(always)]
pub(crate) fn ask<S: Stripe, E: Element>(x: &[E], at: usize) {
    ask_ahead(x, at, size_of::<S>() / size_of::<f32>());
}

/// The last values of `x`, from `at` on, and zeros. Out of line, so that loops over whole vectors stay short.
#[cold]
#[inline(never)]
fn rest_of<E: Element>(x: &[E], at: usize) -> [E; WIDTH] {
    let (mut rest, part) = ([E::default(); WIDTH], &x[at..]);
    rest[..part.len()].copy_from_slice(part);
    rest
}

#[inline(always)]
fn store_sixteen<V: Vector, E: Element>(value: V, to: &mut [E; WIDTH]) {
    if size_of::<E>() == size_of::<bf16>() {
        value.store_bf16(bytemuck::cast_mut::<[E; WIDTH], [bf16; WIDTH]>(to));
    } else {
        value.store(bytemuck::cast_mut::<[E; WIDTH], [f32; WIDTH]>(to));
    }
}

/// The sum of the sixteen values, pairwise.
#[inline(always)]
pub(crate) fn total<V: Vector>(x: V) -> f32 {
    let mut values = [0.0; WIDTH];
    x.store(&mut values);
    let mut width = WIDTH / 2;
    while width > 0 {
        for lane in 0..width {
            values[lane] += values[lane + width];
        }
        width /= 2;
    }
    values[0]
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

impl Arithmetic for Portable {
    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self([value; WIDTH])
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
    fn min(self, b: Self) -> Self {
        self.zip(b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn rough_reciprocal(self) -> Self {
        Self(self.0.map(|x| f32::from_bits(RECIPROCAL.wrapping_sub(x.to_bits()))))
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

impl Vector for Portable {
    const MANY_REGISTERS: bool = cfg!(target_arch = "aarch64");
    #[inline(always)]
    fn load(from: &[f32; WIDTH]) -> Self {
        Self(*from)
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; WIDTH]) {
        *to = self.0;
    }
    #[inline(always)]
    fn load_bf16(from: &[bf16; WIDTH]) -> Self {
        Self(from.map(|x| x.to_f32()))
    }
    #[inline(always)]
    fn store_bf16(self, to: &mut [bf16; WIDTH]) {
        *to = self.0.map(Element::from_f32);
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
        $visibility:vis fn $name:ident<$vector:ident $(, $generic:ident : $bound:path)*>($($argument:ident : $kind:ty),* $(,)?) $(-> $result:ty)?
        $body:block
    ) => {
        $(#[$meta])*
        $visibility fn $name<$($generic: $bound),*>($($argument: $kind),*) $(-> $result)? {
            #[inline(always)]
            fn body<$vector: $crate::cpu::vector::Vector $(, $generic: $bound)*>($($argument: $kind),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,bmi1,bmi2,popcnt,lzcnt")]
                fn avx512<$($generic: $bound),*>($($argument: $kind),*) $(-> $result)? {
                    body::<$crate::cpu::vector::Avx512 $(, $generic)*>($($argument),*)
                }
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,bmi1,bmi2,popcnt,lzcnt")]
                fn avx512_bf16<$($generic: $bound),*>($($argument: $kind),*) $(-> $result)? {
                    body::<$crate::cpu::vector::Avx512Bf16 $(, $generic)*>($($argument),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2<$($generic: $bound),*>($($argument: $kind),*) $(-> $result)? {
                    body::<$crate::cpu::vector::Avx2 $(, $generic)*>($($argument),*)
                }
                match $crate::isa::vector_isa() {
                    $crate::isa::VectorIsa::Avx512 if $crate::isa::Machine::get().avx512_bf16 => {
                        // SAFETY: detection found these features.
                        return unsafe { avx512_bf16::<$($generic),*>($($argument),*) };
                    }
                    $crate::isa::VectorIsa::Avx512 => {
                        // SAFETY: `vector_isa` answers Avx512 only where detection found these features.
                        return unsafe { avx512::<$($generic),*>($($argument),*) };
                    }
                    $crate::isa::VectorIsa::Avx2 => {
                        // SAFETY: `vector_isa` answers Avx2 only where detection found these features.
                        return unsafe { avx2::<$($generic),*>($($argument),*) };
                    }
                    _ => {}
                }
            }
            body::<$crate::cpu::vector::Portable $(, $generic)*>($($argument),*)
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
        fn every_operation<V>(x: &[[f32; WIDTH]; 3], out: &mut [[f32; WIDTH]; 9]) {
            let [a, b, c] = [V::load(&x[0]), V::load(&x[1]), V::load(&x[2])];
            a.add(b).store(&mut out[0]);
            a.sub(b).store(&mut out[1]);
            a.mul(b).store(&mut out[2]);
            a.mul_add(b, c).store(&mut out[3]);
            a.max(b).store(&mut out[4]);
            a.select_less(b, b, c).store(&mut out[5]);
            a.min(b).store(&mut out[6]);
            reciprocal(b).store(&mut out[7]);
            let mut narrow = [bf16::ZERO; WIDTH];
            a.store_bf16(&mut narrow);
            assert!(narrow.iter().zip(&x[0]).all(|(have, x)| have.to_bits() == bf16::from_f32(*x).to_bits()));
            V::load_bf16(&narrow).store(&mut out[8]);
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

    vectorised! {
        fn round_trip<V, E: Element>(x: &[E], y: &mut [E], sum: &mut [f32; 1], inverse: &mut [E]) {
            let mut all = V::splat(0.0);
            for at in (0..x.len()).step_by(WIDTH) {
                let values: V = load(x, at);
                store(values, y, at);
                store(reciprocal(values), inverse, at);
                all = all.add(values);
            }
            sum[0] = total(all);
        }
    }

    #[test]
    fn slices_of_any_length_go_in_and_out() {
        fn check<E: Element>() {
            for len in [0, 1, 15, 16, 17, 50] {
                let x: Vec<E> = (0..len).map(|i| E::from_f32(1.0 + i as f32)).collect();
                let (mut y, mut inverse, mut sum) = (vec![E::default(); len], vec![E::default(); len], [0.0]);
                round_trip(&x, &mut y, &mut sum, &mut inverse);
                assert_eq!(x, y);
                assert_eq!(sum[0], (len * (len + 1) / 2) as f32);
                for (x, y) in x.iter().zip(&inverse) {
                    let room = if E::NAME == "bf16" { 0.004 } else { 2e-7 };
                    assert!((x.to_f32() * y.to_f32() - 1.0).abs() < room, "1 / {x:?} is {y:?}");
                }
            }
        }
        for_each_isa(|_| {
            check::<f32>();
            check::<bf16>();
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
            let mut out = [[0.0; WIDTH]; 9];
            every_operation(&[pick(3), [1.5; WIDTH], pick(900)], &mut out);
            let bits = |x: &f32| if x.is_nan() { u32::MAX } else { x.to_bits() };
            results.push(out.as_flattened().iter().map(bits).collect::<Vec<_>>());
        });
        assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
    }
}
