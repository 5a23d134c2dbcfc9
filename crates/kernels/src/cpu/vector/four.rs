//! Four vectors whose operations are issued in turns: each waits about four cycles for its last result, and the
//! processor looks only some hundred instructions ahead for others that it may begin meanwhile.
//! Knows operations; of memory it asks whole runs of 64 values. Cost: as four vectors, in a half to a third of the time.

use super::{Arithmetic, Stripe, Vector, WIDTH};
use crate::element::Element;

/// Values in a [`Four`].
pub(crate) const FOUR: usize = 4 * WIDTH;

/// See the file's header.
#[derive(Clone, Copy)]
pub(crate) struct Four<V>(V, V, V, V);

impl<V: Vector> Four<V> {
    /// In the order of memory.
    #[inline(always)]
    pub(crate) fn vectors(self) -> [V; 4] {
        [self.0, self.1, self.2, self.3]
    }
}

/// One operation on all four. Spelled out, since functions over registers are not always inlined.
macro_rules! each {
    ($name:ident($($argument:ident),*)) => {
        #[inline(always)]
        fn $name(self $(, $argument: Self)*) -> Self {
            Self(
                self.0.$name($($argument.0),*),
                self.1.$name($($argument.1),*),
                self.2.$name($($argument.2),*),
                self.3.$name($($argument.3),*),
            )
        }
    };
}

impl<V: Vector> Arithmetic for Four<V> {
    #[inline(always)]
    fn splat(value: f32) -> Self {
        let all = V::splat(value);
        Self(all, all, all, all)
    }
    each!(add(b));
    each!(sub(b));
    each!(mul(b));
    each!(mul_add(b, c));
    each!(max(b));
    each!(min(b));
    each!(select_less(b, yes, no));
    each!(rough_reciprocal());
    each!(times_power(n, shifted));
}

impl<V: Vector> Stripe for Four<V> {
    #[inline(always)]
    fn load_at<E: Element>(x: &[E], at: usize) -> Self {
        let x = &x[at..at + FOUR];
        Self(V::load_at(x, 0), V::load_at(x, WIDTH), V::load_at(x, 2 * WIDTH), V::load_at(x, 3 * WIDTH))
    }
    #[inline(always)]
    fn store_at<E: Element>(self, x: &mut [E], at: usize) {
        let x = &mut x[at..at + FOUR];
        self.0.store_at(x, 0);
        self.1.store_at(x, WIDTH);
        self.2.store_at(x, 2 * WIDTH);
        self.3.store_at(x, 3 * WIDTH);
    }
}

/// Calls a function over a [`Stripe`] type for all of `0..len`, with [`Four`] as long as there are so many values and with
/// the vector type for the rest: `in_stripes!(V, len, step::<E>(x, y))` calls `step::<Four<V>, E>(at, x, y)` and
/// `step::<V, E>(at, x, y)`.
macro_rules! in_stripes {
    ($vector:ident, $len:expr, $step:ident $(::<$($generic:ty),*>)?($($argument:expr),* $(,)?)) => {{
        let len: usize = $len;
        let whole = len / $crate::cpu::vector::FOUR * $crate::cpu::vector::FOUR;
        for at in (0..whole).step_by($crate::cpu::vector::FOUR) {
            $step::<$crate::cpu::vector::Four<$vector> $($(, $generic)*)?>(at, $($argument),*);
        }
        for at in (whole..len).step_by($crate::cpu::vector::WIDTH) {
            $step::<$vector $($(, $generic)*)?>(at, $($argument),*);
        }
    }};
}
pub(crate) use in_stripes;

#[cfg(test)]
mod tests {
    use super::super::{load, store, vectorised};
    use super::*;
    use crate::element::bf16;
    use crate::isa::for_each_isa;

    #[inline(always)]
    fn mixed_at<S: Stripe, E: Element>(at: usize, x: &[E], y: &mut [E]) {
        let (x, two): (S, S) = (load(x, at), S::splat(2.0));
        store(x.mul_add(two, x.max(two).min(S::splat(30.0))).sub(x.select_less(two, x, two)), y, at);
    }

    vectorised! {
        fn mixed<V, E: Element>(x: &[E], y: &mut [E]) {
            in_stripes!(V, x.len(), mixed_at::<E>(x, y));
        }
    }

    #[test]
    fn stripes_cover_slices_of_any_length() {
        fn check<E: Element>(isa: &str) {
            for len in [0, 1, 16, 63, 64, 65, 128, 200] {
                let x: Vec<E> = (0..len).map(|i| E::from_f32(i as f32 - 5.0)).collect();
                let mut y = vec![E::default(); len];
                mixed(&x, &mut y);
                for (x, y) in x.iter().zip(&y) {
                    let x = x.to_f32();
                    let want = E::from_f32(x.mul_add(2.0, x.clamp(2.0, 30.0)) - x.min(2.0));
                    assert_eq!(*y, want, "{isa}, {}: {x} of {len}", E::NAME);
                }
            }
        }
        for_each_isa(|isa| {
            check::<f32>(isa.name());
            check::<bf16>(isa.name());
        });
    }
}
