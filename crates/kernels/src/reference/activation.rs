//! Activations by their formulas.
//! Cost: as slow as it looks.

use crate::cpu::activation::Activation;

/// `act(x)`.
pub fn activation(kind: Activation, x: f64) -> f64 {
    match kind {
        Activation::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
        }
        Activation::GeluErf => 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2)),
        Activation::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Relu => x.max(0.0),
    }
}

/// `act(gate) * up` for rows of `2 * f` values.
pub fn gated(kind: Activation, gate_up: &[f64], f: usize) -> Vec<f64> {
    let rows = gate_up.chunks_exact(2 * f);
    rows.flat_map(|row| (0..f).map(|i| activation(kind, row[i]) * row[f + i]).collect::<Vec<_>>()).collect()
}

/// Error function by the series with positive terms, `2/sqrt(pi) e^(-x^2) sum 2^n x^(2n+1) / (2n+1)!!`.
pub fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum, mut n) = (x, x, 0.0);
    while term.abs() > 1e-18 * sum.abs() {
        n += 1.0;
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
    }
    2.0 / std::f64::consts::PI.sqrt() * (-x * x).exp() * sum
}
