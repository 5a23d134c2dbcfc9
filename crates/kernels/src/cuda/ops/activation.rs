//! Pointwise activations, plain and gated.
//! Cost: one pass each.

use super::{flat, same_number, typed, u32_of, u64_of};
use crate::cpu::activation::Activation;
use crate::cuda::buffer::View;
use crate::cuda::engine::Argument;
use crate::cuda::sources::Module;

const MODULE: Module = Module::Activation;

/// The number of a curve in the source.
fn number(kind: Activation) -> Argument {
    Argument::U32(match kind {
        Activation::GeluTanh => 0,
        Activation::GeluErf => 1,
        Activation::QuickGelu => 2,
        Activation::Silu => 3,
        Activation::Relu => 4,
    })
}

/// `y = act(x)`.
pub fn activation(kind: Activation, x: View, y: View) {
    assert_eq!(x.len(), y.len(), "activation: lengths differ");
    let kernel = typed("activation", same_number("activation", &[x, y]));
    flat(x.device(), MODULE, &kernel, x.len(), &[number(kind), x.argument(), u64_of(x.len()), y.argument()]);
}

/// `dx = dy * act'(x)`.
pub fn activation_backward(kind: Activation, dy: View, x: View, dx: View) {
    assert!(dy.len() == x.len() && dx.len() == x.len(), "activation_backward: lengths differ");
    let kernel = typed("activation_backward", same_number("activation_backward", &[dy, x, dx]));
    let arguments = [number(kind), dy.argument(), x.argument(), u64_of(x.len()), dx.argument()];
    flat(x.device(), MODULE, &kernel, x.len(), &arguments);
}

/// `y = act(gate) * up` with rows of `gate_up` `[T, 2f]`; `y` is `[T, f]`.
pub fn gated(kind: Activation, gate_up: View, f: usize, y: View) {
    assert!(gate_up.len() == 2 * y.len() && y.len().is_multiple_of(f), "gated: lengths do not fit rows of {f}");
    let kernel = typed("gated", same_number("gated", &[gate_up, y]));
    let arguments = [number(kind), gate_up.argument(), u32_of(f), u64_of(y.len()), y.argument()];
    flat(y.device(), MODULE, &kernel, y.len(), &arguments);
}

/// Gradient of [`gated`] in the layout of `gate_up`.
pub fn gated_backward(kind: Activation, dy: View, gate_up: View, f: usize, d_gate_up: View) {
    assert!(gate_up.len() == 2 * dy.len() && d_gate_up.len() == gate_up.len(), "gated_backward: lengths differ");
    let kernel = typed("gated_backward", same_number("gated_backward", &[dy, gate_up, d_gate_up]));
    let arguments =
        [number(kind), dy.argument(), gate_up.argument(), u32_of(f), u64_of(dy.len()), d_gate_up.argument()];
    flat(dy.device(), MODULE, &kernel, dy.len(), &arguments);
}
