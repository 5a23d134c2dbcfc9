//! `exp` and `ln` in f32, written so that loops over them vectorise and that every instruction set gives the same bits.
//! Cost: about 20 operations each, no tables, no branches. Errors below one unit in the last place for `exp` and below
//! two for `ln`, measured over all orders of magnitude by the tests below.

/// e to the power of `x`. Negative infinity gives 0, overflow gives infinity, NaN stays NaN; subnormal results are kept.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // ln 2 in two parts; the first has 15 trailing zeros, so that n * HIGH is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer, and leaves that integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // Beyond these the result is infinity or rounds to 0. A comparison with NaN is false, so NaN passes through.
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -104.0 { -104.0 } else { x };
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_HIGH, x);
    let r = n.mul_add(-LN2_LOW, r);
    // Minimax polynomial of (e^r - 1 - r) / r^2 on [-ln2/2, ln2/2] (Cephes expf, Moshier).
    let mut p = 1.987_569_1e-4f32;
    p = p.mul_add(r, 1.398_199_9e-3);
    p = p.mul_add(r, 8.333_452e-3);
    p = p.mul_add(r, 4.166_579_6e-2);
    p = p.mul_add(r, 1.666_666_5e-1);
    p = p.mul_add(r, 0.5);
    let p = p.mul_add(r * r, r) + 1.0;
    // 2^n in two factors: one alone would not reach subnormal results, nor n = 128.
    let n = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let half = n >> 1;
    let first = f32::from_bits(((half + 127) << 23) as u32);
    let second = f32::from_bits(((n.wrapping_sub(half)).wrapping_add(127) << 23) as u32);
    p * first * second
}

/// Natural logarithm. 0 gives negative infinity, negative numbers give NaN, infinity and NaN stay as they are.
#[inline(always)]
pub fn ln(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Subnormals are scaled up by 2^23 first.
    let small = x < f32::MIN_POSITIVE;
    let scaled = if small { x * 8_388_608.0 } else { x };
    let offset = if small { -23.0f32 } else { 0.0 };
    // x = m * 2^e with m in [sqrt(1/2), sqrt(2)): the exponent is counted from sqrt(1/2).
    const SQRT_HALF: u32 = 0x3f35_04f3;
    let bits = scaled.to_bits().wrapping_sub(SQRT_HALF);
    let e = ((bits as i32) >> 23) as f32 + offset;
    let m = f32::from_bits((bits & 0x007f_ffff).wrapping_add(SQRT_HALF)) - 1.0;
    // Cephes logf (Moshier): ln(1 + m) = m - m^2 / 2 + m^3 P(m).
    let mut p = 7.037_683_6e-2f32;
    p = p.mul_add(m, -1.151_461e-1);
    p = p.mul_add(m, 1.167_699_9e-1);
    p = p.mul_add(m, -1.242_014_1e-1);
    p = p.mul_add(m, 1.424_932_3e-1);
    p = p.mul_add(m, -1.666_805_8e-1);
    p = p.mul_add(m, 2.000_071_5e-1);
    p = p.mul_add(m, -2.499_999_4e-1);
    p = p.mul_add(m, 3.333_333e-1);
    let square = m * m;
    let mut y = p * m * square;
    y = e.mul_add(LN2_LOW, y);
    y = square.mul_add(-0.5, y);
    let y = e.mul_add(LN2_HIGH, m + y);
    let y = if x == f32::INFINITY { x } else { y };
    let y = if x == 0.0 { f32::NEG_INFINITY } else { y };
    // True for negative numbers and for NaN.
    if x >= 0.0 { y } else { f32::NAN }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::{for_each_isa, multiversion};

    /// Distance in units in the last place of the f32 nearest to `exact`.
    fn ulps(value: f32, exact: f64) -> f64 {
        let near = exact as f32;
        let next = f32::from_bits(near.abs().to_bits() + 1);
        let unit = f64::from(next) - f64::from(near.abs());
        ((f64::from(value) - exact) / unit).abs()
    }

    #[test]
    fn exp_is_accurate_everywhere() {
        let mut worst = 0.0f64;
        for i in 0..400_000 {
            let x = -103.5 + i as f32 * (192.2 / 400_000.0);
            worst = worst.max(ulps(exp(x), f64::from(x).exp()));
        }
        assert!(worst < 1.1, "worst error {worst} ulp");
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-104.5), 0.0);
        assert_eq!(exp(-1e30), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(89.5), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn ln_is_accurate_everywhere() {
        let mut worst = 0.0f64;
        for i in 0..400_000u32 {
            let x = f32::from_bits(1 + i * 5_300);
            if x.is_finite() {
                worst = worst.max(ulps(ln(x), f64::from(x).ln()));
            }
        }
        for i in 1..100_000 {
            let x = 0.5 + i as f32 * 1e-5;
            worst = worst.max(ulps(ln(x), f64::from(x).ln()));
        }
        assert!(worst < 2.0, "worst error {worst} ulp");
        assert_eq!(ln(1.0), 0.0);
        assert_eq!(ln(0.0), f32::NEG_INFINITY);
        assert_eq!(ln(f32::INFINITY), f32::INFINITY);
        assert!(ln(-1.0).is_nan());
        assert!(ln(f32::NAN).is_nan());
    }

    multiversion! {
        fn both(x: &[f32], exps: &mut [f32], lns: &mut [f32]) {
            for ((x, e), l) in x.iter().zip(exps).zip(lns) {
                *e = exp(*x);
                *l = ln(*x);
            }
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let x: Vec<f32> = (0..5000u32).map(|i| f32::from_bits(i.wrapping_mul(858_993) ^ (i << 31))).collect();
        let mut results: Vec<Vec<u32>> = Vec::new();
        for_each_isa(|_| {
            let (mut exps, mut lns) = (vec![0.0; x.len()], vec![0.0; x.len()]);
            both(&x, &mut exps, &mut lns);
            let bits = |v: &f32| if v.is_nan() { u32::MAX } else { v.to_bits() };
            results.push(exps.iter().chain(&lns).map(bits).collect());
        });
        let alone: Vec<u32> = x
            .iter()
            .map(|&x| exp(x))
            .chain(x.iter().map(|&x| ln(x)))
            .map(|v| if v.is_nan() { u32::MAX } else { v.to_bits() })
            .collect();
        assert!(results.iter().all(|result| *result == alone));
    }
}
