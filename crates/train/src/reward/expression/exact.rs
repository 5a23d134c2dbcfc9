//! Exact arithmetic for the expression verifier: sums of rational multiples of square roots.
//! `sqrt(2)^2 - 2` is 0 here and 4e-16 in floating point. Every operation may give up (`None`): numbers too large,
//! too many roots, things that are no such sum. Cost: bounded by 128-bit integers and 12 terms.

use std::collections::BTreeMap;

const MAX_TERMS: usize = 12;

/// A fraction in lowest terms, denominator positive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rational {
    pub num: i128,
    pub den: i128,
}

impl Rational {
    pub(super) fn new(num: i128, den: i128) -> Option<Self> {
        if den == 0 || num == i128::MIN || den == i128::MIN {
            return None;
        }
        let divisor = gcd(num.unsigned_abs(), den.unsigned_abs()).max(1) as i128;
        let sign = den.signum();
        Some(Self { num: sign * num / divisor, den: sign * den / divisor })
    }

    pub(super) fn integer(value: i128) -> Self {
        Self { num: value, den: 1 }
    }

    fn add(self, other: Self) -> Option<Self> {
        let left = self.num.checked_mul(other.den)?;
        let right = other.num.checked_mul(self.den)?;
        Self::new(left.checked_add(right)?, self.den.checked_mul(other.den)?)
    }

    fn mul(self, other: Self) -> Option<Self> {
        Self::new(self.num.checked_mul(other.num)?, self.den.checked_mul(other.den)?)
    }

    /// The number a decimal literal stands for.
    pub(super) fn from_decimal(text: &str) -> Option<Self> {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        if whole.len() + fraction.len() > 30 {
            return None;
        }
        let digits = format!("0{whole}{fraction}");
        Self::new(digits.parse().ok()?, 10i128.checked_pow(fraction.len() as u32)?)
    }
}

fn gcd(mut a: u128, mut b: u128) -> u128 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// `sum of coefficient * sqrt(radicand)`, radicands square-free, no zero coefficients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Surd(BTreeMap<u64, Rational>);

impl Surd {
    pub(super) fn rational(value: Rational) -> Self {
        let mut terms = BTreeMap::new();
        if value.num != 0 {
            terms.insert(1, value);
        }
        Self(terms)
    }

    /// The value, if it is a plain fraction.
    pub(super) fn as_rational(&self) -> Option<Rational> {
        match self.0.len() {
            0 => Some(Rational::integer(0)),
            1 => self.0.get(&1).copied(),
            _ => None,
        }
    }

    pub(super) fn negate(&self) -> Self {
        Self(self.0.iter().map(|(&radicand, c)| (radicand, Rational { num: -c.num, den: c.den })).collect())
    }

    pub(super) fn add(&self, other: &Self) -> Option<Self> {
        let mut sum = self.clone();
        for (&radicand, &coefficient) in &other.0 {
            sum.add_term(radicand, coefficient)?;
        }
        Some(sum)
    }

    fn add_term(&mut self, radicand: u64, coefficient: Rational) -> Option<()> {
        let old = self.0.remove(&radicand).unwrap_or(Rational::integer(0));
        let new = old.add(coefficient)?;
        if new.num != 0 {
            self.0.insert(radicand, new);
        }
        (self.0.len() <= MAX_TERMS).then_some(())
    }

    pub(super) fn mul(&self, other: &Self) -> Option<Self> {
        let mut product = Self(BTreeMap::new());
        for (&a, &ca) in &self.0 {
            for (&b, &cb) in &other.0 {
                // sqrt(a) sqrt(b) = g sqrt(a/g * b/g) with g = gcd, and the rest is square-free again.
                let g = gcd(u128::from(a), u128::from(b)) as u64;
                let radicand = (a / g).checked_mul(b / g)?;
                let coefficient = ca.mul(cb)?.mul(Rational::integer(i128::from(g)))?;
                product.add_term(radicand, coefficient)?;
            }
        }
        Some(product)
    }

    /// `1 / self`, for one or two terms: `1/(a+b) = (a-b)/(a^2-b^2)`.
    pub(super) fn reciprocal(&self) -> Option<Self> {
        let terms: Vec<(u64, Rational)> = self.0.iter().map(|(&radicand, &c)| (radicand, c)).collect();
        match terms.as_slice() {
            [(radicand, c)] => {
                let inverse = Rational::new(c.den, c.num.checked_mul(i128::from(*radicand))?)?;
                Some(Self(BTreeMap::from([(*radicand, inverse)])))
            }
            [first, second] => {
                let a = Self(BTreeMap::from([*first]));
                let b = Self(BTreeMap::from([*second]));
                let below = a.mul(&a)?.add(&b.mul(&b)?.negate())?.as_rational()?;
                let inverse = Self::rational(Rational::new(below.den, below.num)?);
                a.add(&b.negate())?.mul(&inverse)
            }
            _ => None,
        }
    }

    pub(super) fn power(&self, exponent: Rational) -> Option<Self> {
        if exponent.den == 2 {
            return self.power(Rational::integer(exponent.num))?.root(2);
        }
        if exponent.den != 1 || exponent.num.abs() > 64 {
            return None;
        }
        let mut result = Self::rational(Rational::integer(1));
        for _ in 0..exponent.num.abs() {
            result = result.mul(self)?;
        }
        if exponent.num < 0 { result.reciprocal() } else { Some(result) }
    }

    pub(super) fn root(&self, index: u32) -> Option<Self> {
        let value = self.as_rational()?;
        if value.num == 0 {
            return Some(self.clone());
        }
        if index == 2 && value.num > 0 {
            // sqrt(p/q) = sqrt(p q) / q
            let (outside, inside) = split_square(u64::try_from(value.num.checked_mul(value.den)?).ok()?)?;
            let coefficient = Rational::new(i128::from(outside), value.den)?;
            return Some(Self(BTreeMap::from([(inside, coefficient)])));
        }
        let whole = |n: i128| {
            let guess = (n as f64).abs().powf(1.0 / f64::from(index)).round() as i128;
            let signed = guess * n.signum();
            (signed.checked_pow(index) == Some(n)).then_some(signed)
        };
        (value.num > 0 || index % 2 == 1)
            .then(|| Rational::new(whole(value.num)?, whole(value.den)?).map(Self::rational))
            .flatten()
    }
}

// n = outside^2 * inside with `inside` square-free. Trial division by primes below 2,000 suffices for n < 8e9;
// beyond that a rest that is no square is refused.
fn split_square(n: u64) -> Option<(u64, u64)> {
    let (mut rest, mut outside, mut inside) = (n, 1u64, 1u64);
    for p in 2..2000u64 {
        while rest % (p * p) == 0 {
            rest /= p * p;
            outside *= p;
        }
        if rest % p == 0 {
            rest /= p;
            inside *= p;
        }
    }
    let root = (rest as f64).sqrt().round() as u64;
    if root.checked_mul(root) == Some(rest) {
        return Some((outside * root, inside));
    }
    (rest < 8_000_000_000).then(|| Some((outside, inside.checked_mul(rest)?)))?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn int(value: i128) -> Surd {
        Surd::rational(Rational::integer(value))
    }

    #[test]
    fn roots_are_kept_exact() {
        let root2 = int(2).root(2).expect("sqrt 2");
        assert_eq!(root2.mul(&root2), Some(int(2)));
        assert_eq!(int(12).root(2), int(3).root(2).expect("sqrt 3").mul(&int(2)));
        assert_eq!(int(49).root(2), Some(int(7)));
        assert_eq!(int(-27).root(3), Some(int(-3)));
        assert_eq!(int(-4).root(2), None);
        let sum = int(1).add(&root2).expect("1 + sqrt 2");
        assert_eq!(sum.mul(&sum.reciprocal().expect("inverse")), Some(int(1)));
        assert_eq!(int(0).reciprocal(), None);
        assert_eq!(Rational::from_decimal("0.50"), Rational::new(1, 2));
        assert_eq!(int(2).power(Rational::integer(200)), None);
    }
}
