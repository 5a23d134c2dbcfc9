//! Pointwise activations, plain and gated.
//! Every element stands alone. Formulas are those of PyTorch (`gelu(approximate="tanh")`, exact `gelu`, transformers'
//! `quick_gelu`, `silu`, `relu`), computed in f32.
//! Cost: one pass; 20 to 35 vector instructions per 16 elements.

use crate::cpu::ask::ahead;
use crate::cpu::shared::SharedMut;
use crate::cpu::vector::{Arithmetic, Stripe, ask, exp2, in_stripes, load, reciprocal, store, vectorised};
use crate::element::Element;
use crate::parallel::for_chunks;

const CHUNK: usize = 8 * 1024;
// Rows of a gated layer handed to a thread at once.
const ROWS: usize = 16;

/// Which curve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// GELU by the tanh formula: SigLIP, SmolVLM and Qwen3 vision towers.
    GeluTanh,
    /// GELU by the error function: connectors of LLaVA and InternVL, Qwen mergers.
    GeluErf,
    /// `x * sigmoid(1.702 x)`: Qwen2-VL vision blocks.
    QuickGelu,
    /// `x * sigmoid(x)`: the gate of Llama-like blocks.
    Silu,
    /// `max(x, 0)`.
    Relu,
}

// sqrt(2 / pi), and the cubic coefficient of the tanh formula.
const ROOT_2_OVER_PI: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;

/// One curve and its slope. Implemented by types instead of a `match` inside the loop, so that each loop has one.
trait Curve {
    /// The curve.
    #[inline(always)]
    fn value<V: Arithmetic>(x: V) -> V {
        Self::both(x).0
    }
    /// The curve and its slope, which share most of their work.
    fn both<V: Arithmetic>(x: V) -> (V, V);
}

struct GeluTanh;
struct GeluErf;
struct QuickGelu;
struct Silu;
struct Relu;

impl Curve for GeluTanh {
    #[inline(always)]
    fn both<V: Arithmetic>(x: V) -> (V, V) {
        let (one, square) = (V::splat(1.0), x.mul(x));
        // (1 + tanh(u)) / 2 is sigmoid(2u): no cancellation on the negative side.
        let u = x.mul(square.mul_add(V::splat(2.0 * ROOT_2_OVER_PI * CUBIC), V::splat(2.0 * ROOT_2_OVER_PI)));
        let s = sigmoid(u);
        let by_u = square.mul_add(V::splat(6.0 * ROOT_2_OVER_PI * CUBIC), V::splat(2.0 * ROOT_2_OVER_PI));
        let value = x.mul(s);
        // Far out 1 - s is 0 while by_u overflows only beyond 1e19: no 0 * infinity for real activations.
        (value, value.mul(one.sub(s)).mul_add(by_u, s))
    }
}

impl Curve for GeluErf {
    #[inline(always)]
    fn value<V: Arithmetic>(x: V) -> V {
        let half = x.mul(V::splat(0.5));
        half.mul_add(erf(x.mul(V::splat(std::f32::consts::FRAC_1_SQRT_2))), half)
    }
    #[inline(always)]
    fn both<V: Arithmetic>(x: V) -> (V, V) {
        let half = V::splat(0.5);
        let share = erf(x.mul(V::splat(std::f32::consts::FRAC_1_SQRT_2))).mul_add(half, half);
        // 1 / sqrt(2 pi) times e^(-x^2 / 2).
        let density = exp(x.mul(x).mul(V::splat(-0.5))).mul(V::splat(0.398_942_3));
        (x.mul(share), x.mul_add(density, share))
    }
}

impl Curve for QuickGelu {
    #[inline(always)]
    fn both<V: Arithmetic>(x: V) -> (V, V) {
        let s = sigmoid(x.mul(V::splat(1.702)));
        let value = x.mul(s);
        (value, value.mul(V::splat(1.0).sub(s)).mul_add(V::splat(1.702), s))
    }
}

impl Curve for Silu {
    #[inline(always)]
    fn both<V: Arithmetic>(x: V) -> (V, V) {
        let s = sigmoid(x);
        let value = x.mul(s);
        (value, value.mul_add(V::splat(1.0).sub(s), s))
    }
}

impl Curve for Relu {
    #[inline(always)]
    fn both<V: Arithmetic>(x: V) -> (V, V) {
        let zero = V::splat(0.0);
        // Selecting by `x < 0` lets NaN pass: a broken run must not look healthy.
        (x.select_less(zero, zero, x), zero.select_less(x, V::splat(1.0), zero))
    }
}

/// e^x; below about e^-87 it stays there. Not for x above 87.
#[inline(always)]
fn exp<V: Arithmetic>(x: V) -> V {
    exp2(x.mul(V::splat(std::f32::consts::LOG2_E)))
}

/// 1 / (1 + e^-x). The exponent is held below 2^125, where nothing overflows and the result is 0 for every purpose.
#[inline(always)]
fn sigmoid<V: Arithmetic>(x: V) -> V {
    let exponent = V::splat(125.0).min(x.mul(V::splat(-std::f32::consts::LOG2_E)));
    reciprocal(exp2(exponent).add(V::splat(1.0)))
}

/// Error function after N. Juffa's two-interval fit, below 1.2 units in the last place; both intervals are computed and
/// one is chosen, so that there is no branch.
#[inline(always)]
fn erf<V: Arithmetic>(x: V) -> V {
    let (zero, s) = (V::splat(0.0), x.mul(x));
    let t = x.max(zero.sub(x));
    let mut far = V::splat(-1.728_534_7e-5).mul_add(t, V::splat(3.831_971_3e-4));
    far = far.mul_add(s, V::splat(-3.883_964_4e-3).mul_add(t, V::splat(2.425_462_2e-2)));
    for coefficient in [-1.067_778_8e-1, -6.348_468_7e-1, -1.287_175_1e-1] {
        far = far.mul_add(t, V::splat(coefficient));
    }
    let far = V::splat(1.0).sub(exp(far.mul_add(t, zero.sub(t))));
    let far = x.select_less(zero, zero.sub(far), far);
    let mut near = V::splat(-5.967_617e-4);
    for coefficient in [4.991_194_2e-3, -2.676_813_5e-2, 1.128_199_25e-1, -3.761_253_4e-1, 1.283_791_7e-1] {
        near = near.mul_add(s, V::splat(coefficient));
    }
    let near = near.mul_add(x, x);
    V::splat(0.927_734_4).select_less(t, far, near)
}

macro_rules! for_curve {
    ($kind:expr, $function:ident($($argument:expr),*)) => {
        match $kind {
            Activation::GeluTanh => $function::<E, GeluTanh>($($argument),*),
            Activation::GeluErf => $function::<E, GeluErf>($($argument),*),
            Activation::QuickGelu => $function::<E, QuickGelu>($($argument),*),
            Activation::Silu => $function::<E, Silu>($($argument),*),
            Activation::Relu => $function::<E, Relu>($($argument),*),
        }
    };
}

/// `y = act(x)`.
pub fn activation<E: Element>(kind: Activation, x: &[E], y: &mut [E]) {
    assert_eq!(x.len(), y.len(), "activation: lengths differ");
    let shared = SharedMut::new(y);
    for_chunks(x.len(), CHUNK, |range| {
        // SAFETY: chunks are disjoint.
        let y = unsafe { shared.slice(range.start, range.len()) };
        for_curve!(kind, activation_chunk(&x[range], y));
    });
}

vectorised! {
    fn activation_chunk<V, E: Element, C: Curve>(x: &[E], y: &mut [E]) {
        in_stripes!(V, x.len(), activation_at::<E, C>(x, y));
    }
}

#[inline(always)]
fn activation_at<S: Stripe, E: Element, C: Curve>(at: usize, x: &[E], y: &mut [E]) {
    store(C::value(load::<S, E>(x, at)), y, at);
}

/// `dx = dy * act'(x)`.
pub fn activation_backward<E: Element>(kind: Activation, dy: &[E], x: &[E], dx: &mut [E]) {
    assert!(dy.len() == x.len() && dx.len() == x.len(), "activation_backward: lengths differ");
    let shared = SharedMut::new(dx);
    for_chunks(x.len(), CHUNK, |range| {
        // SAFETY: chunks are disjoint.
        let dx = unsafe { shared.slice(range.start, range.len()) };
        for_curve!(kind, activation_backward_chunk(&dy[range.clone()], &x[range], dx));
    });
}

vectorised! {
    fn activation_backward_chunk<V, E: Element, C: Curve>(dy: &[E], x: &[E], dx: &mut [E]) {
        in_stripes!(V, x.len(), activation_backward_at::<E, C>(dy, x, dx));
    }
}

#[inline(always)]
fn activation_backward_at<S: Stripe, E: Element, C: Curve>(at: usize, dy: &[E], x: &[E], dx: &mut [E]) {
    let slope = C::both(load::<S, E>(x, at)).1;
    store(load::<S, E>(dy, at).mul(slope), dx, at);
}

/// `y = act(gate) * up` with rows of `gate_up` `[T, 2f]` holding the gate first, then up; `y` is `[T, f]`.
pub fn gated<E: Element>(kind: Activation, gate_up: &[E], f: usize, y: &mut [E]) {
    assert!(
        f > 0 && gate_up.len() == 2 * y.len() && y.len().is_multiple_of(f),
        "gated: lengths do not fit rows of {f}"
    );
    let rows = y.len() / f;
    let shared = SharedMut::new(y);
    for_chunks(rows, ROWS, |range| {
        // SAFETY: chunks of rows are disjoint.
        let y = unsafe { shared.slice(range.start * f, range.len() * f) };
        for_curve!(kind, gated_chunk(&gate_up[range.start * 2 * f..range.end * 2 * f], f, y));
    });
}

vectorised! {
    fn gated_chunk<V, E: Element, C: Curve>(gate_up: &[E], f: usize, y: &mut [E]) {
        let ahead = ahead::<E>(2 * f);
        for (gate_up, y) in gate_up.chunks_exact(2 * f).zip(y.chunks_exact_mut(f)) {
            let (gate, up) = gate_up.split_at(f);
            in_stripes!(V, f, gated_at::<E, C>(gate, up, ahead, y));
        }
    }
}

#[inline(always)]
fn gated_at<S: Stripe, E: Element, C: Curve>(at: usize, gate: &[E], up: &[E], ahead: usize, y: &mut [E]) {
    ask::<S, E>(gate, at + ahead);
    ask::<S, E>(up, at + ahead);
    let value = C::value(load::<S, E>(gate, at));
    store(value.mul(load(up, at)), y, at);
}

/// Gradient of [`gated`]: `d_gate_up` in the layout of `gate_up`.
pub fn gated_backward<E: Element>(kind: Activation, dy: &[E], gate_up: &[E], f: usize, d_gate_up: &mut [E]) {
    assert!(
        f > 0 && gate_up.len() == 2 * dy.len() && dy.len().is_multiple_of(f),
        "gated_backward: lengths do not fit {f}"
    );
    assert_eq!(d_gate_up.len(), gate_up.len(), "gated_backward: lengths differ");
    let rows = dy.len() / f;
    let shared = SharedMut::new(d_gate_up);
    for_chunks(rows, ROWS, |range| {
        // SAFETY: chunks of rows are disjoint.
        let d_gate_up = unsafe { shared.slice(range.start * 2 * f, range.len() * 2 * f) };
        let gate_up = &gate_up[range.start * 2 * f..range.end * 2 * f];
        for_curve!(kind, gated_backward_chunk(&dy[range.start * f..range.end * f], gate_up, f, d_gate_up));
    });
}

vectorised! {
    fn gated_backward_chunk<V, E: Element, C: Curve>(dy: &[E], gate_up: &[E], f: usize, d_gate_up: &mut [E]) {
        let ahead = [ahead::<E>(f), ahead::<E>(2 * f)];
        let rows = dy.chunks_exact(f).zip(gate_up.chunks_exact(2 * f)).zip(d_gate_up.chunks_exact_mut(2 * f));
        for ((dy, gate_up), d_gate_up) in rows {
            let (gate, up) = gate_up.split_at(f);
            let (d_gate, d_up) = d_gate_up.split_at_mut(f);
            in_stripes!(V, f, gated_backward_at::<E, C>(dy, gate, up, ahead, d_gate, d_up));
        }
    }
}

#[inline(always)]
fn gated_backward_at<S: Stripe, E: Element, C: Curve>(
    at: usize,
    dy: &[E],
    gate: &[E],
    up: &[E],
    ahead: [usize; 2],
    d_gate: &mut [E],
    d_up: &mut [E],
) {
    ask::<S, E>(dy, at + ahead[0]);
    ask::<S, E>(gate, at + ahead[1]);
    ask::<S, E>(up, at + ahead[1]);
    let (value, slope) = C::both(load::<S, E>(gate, at));
    let dy: S = load(dy, at);
    store(dy.mul(load(up, at)).mul(slope), d_gate, at);
    store(dy.mul(value), d_up, at);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::for_each_isa;

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let x: Vec<f32> = (-900..900).map(|i| i as f32 / 61.0).collect();
        let mut results = Vec::new();
        for_each_isa(|_| {
            let mut bits = Vec::new();
            for kind in [Activation::GeluTanh, Activation::GeluErf, Activation::Silu] {
                let (mut y, mut dx) = (vec![0f32; x.len()], vec![0f32; x.len()]);
                activation(kind, &x, &mut y);
                activation_backward(kind, &x, &x, &mut dx);
                bits.extend(y.iter().chain(&dx).map(|y| y.to_bits()));
            }
            results.push(bits);
        });
        assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
    }
}
