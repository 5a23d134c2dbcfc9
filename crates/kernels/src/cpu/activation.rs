//! Pointwise activations, plain and gated.
//! Every element stands alone. Formulas are those of PyTorch (`gelu(approximate="tanh")`, exact `gelu`, transformers'
//! `quick_gelu`, `silu`, `relu`), computed in f32.
//! Cost: one pass; about 15 to 25 vector instructions per 16 elements.

use crate::cpu::math::exp;
use crate::cpu::shared::SharedMut;
use crate::element::Element;
use crate::isa::multiversion;
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

/// One curve and its slope. Implemented by types instead of a `match` inside the loop, so that each loop vectorises.
trait Curve {
    fn value(x: f32) -> f32;
    fn slope(x: f32) -> f32;
}

struct GeluTanh;
struct GeluErf;
struct QuickGelu;
struct Silu;
struct Relu;

impl Curve for GeluTanh {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        // (1 + tanh(u)) / 2 is sigmoid(2u): no cancellation on the negative side.
        x * sigmoid(2.0 * ROOT_2_OVER_PI * (x + CUBIC * x * x * x))
    }
    #[inline(always)]
    fn slope(x: f32) -> f32 {
        let s = sigmoid(2.0 * ROOT_2_OVER_PI * (x + CUBIC * x * x * x));
        // Far out s (1 - s) is 0 while the polynomial overflows only beyond 1e18: no 0 * infinity for real activations.
        s + x * (s * (1.0 - s)) * (2.0 * ROOT_2_OVER_PI * (1.0 + 3.0 * CUBIC * x * x))
    }
}

impl Curve for GeluErf {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
    }
    #[inline(always)]
    fn slope(x: f32) -> f32 {
        let density = 0.398_942_3 * exp(-0.5 * x * x);
        0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2)) + x * density
    }
}

impl Curve for QuickGelu {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        x * sigmoid(1.702 * x)
    }
    #[inline(always)]
    fn slope(x: f32) -> f32 {
        let s = sigmoid(1.702 * x);
        s + 1.702 * x * (s * (1.0 - s))
    }
}

impl Curve for Silu {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        x * sigmoid(x)
    }
    #[inline(always)]
    fn slope(x: f32) -> f32 {
        let s = sigmoid(x);
        s + x * (s * (1.0 - s))
    }
}

impl Curve for Relu {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        // Not f32::max: a NaN has to stay one, or a broken run would look healthy.
        if x < 0.0 { 0.0 } else { x }
    }
    #[inline(always)]
    fn slope(x: f32) -> f32 {
        if x > 0.0 { 1.0 } else { 0.0 }
    }
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Error function after N. Juffa's two-interval fit, below 1.2 units in the last place; both intervals are computed and
/// one is chosen, so that loops vectorise.
#[inline(always)]
fn erf(x: f32) -> f32 {
    let (t, s) = (x.abs(), x * x);
    let mut far = f32::mul_add(-1.728_534_7e-5, t, 3.831_971_3e-4);
    let near_far = f32::mul_add(-3.883_964_4e-3, t, 2.425_462_2e-2);
    far = far.mul_add(s, near_far);
    far = far.mul_add(t, -1.067_778_8e-1);
    far = far.mul_add(t, -6.348_468_7e-1);
    far = far.mul_add(t, -1.287_175_1e-1);
    far = far.mul_add(t, -t);
    let far = (1.0 - exp(far)).copysign(x);
    let mut near = f32::mul_add(-5.967_617e-4, s, 4.991_194_2e-3);
    near = near.mul_add(s, -2.676_813_5e-2);
    near = near.mul_add(s, 1.128_199_25e-1);
    near = near.mul_add(s, -3.761_253_4e-1);
    near = near.mul_add(s, 1.283_791_7e-1);
    let near = near.mul_add(x, x);
    if t > 0.927_734_4 { far } else { near }
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

multiversion! {
    fn activation_chunk<E: Element, C: Curve>(x: &[E], y: &mut [E]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = E::from_f32(C::value(x.to_f32()));
        }
    }
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

multiversion! {
    fn activation_backward_chunk<E: Element, C: Curve>(dy: &[E], x: &[E], dx: &mut [E]) {
        for ((dx, dy), x) in dx.iter_mut().zip(dy).zip(x) {
            *dx = E::from_f32(dy.to_f32() * C::slope(x.to_f32()));
        }
    }
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

multiversion! {
    fn gated_chunk<E: Element, C: Curve>(gate_up: &[E], f: usize, y: &mut [E]) {
        for (gate_up, y) in gate_up.chunks_exact(2 * f).zip(y.chunks_exact_mut(f)) {
            let (gate, up) = gate_up.split_at(f);
            for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
                *y = E::from_f32(C::value(gate.to_f32()) * up.to_f32());
            }
        }
    }
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

multiversion! {
    fn gated_backward_chunk<E: Element, C: Curve>(dy: &[E], gate_up: &[E], f: usize, d_gate_up: &mut [E]) {
        let rows = dy.chunks_exact(f).zip(gate_up.chunks_exact(2 * f)).zip(d_gate_up.chunks_exact_mut(2 * f));
        for ((dy, gate_up), d_gate_up) in rows {
            let (gate, up) = gate_up.split_at(f);
            let (d_gate, d_up) = d_gate_up.split_at_mut(f);
            for i in 0..f {
                let (dy, gate) = (dy[i].to_f32(), gate[i].to_f32());
                d_gate[i] = E::from_f32(dy * up[i].to_f32() * C::slope(gate));
                d_up[i] = E::from_f32(dy * C::value(gate));
            }
        }
    }
}
