//! SAPO (arXiv 2511.20347): the ratio passes a soft gate in place of a hard clip. Per token: `-A (4/k) sigmoid(k (w - 1))`, derivative
//! `-A 4 s (1 - s) w` with s the sigmoid; k = 1 for good answers, 1.05 for bad ones. Nothing is ever held.

use super::{Sequence, Term};

/// Steepness of the gate for good and for bad answers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gate {
    /// For A > 0.
    pub good: f64,
    /// For A <= 0.
    pub bad: f64,
}

/// The published steepness.
pub const GATE: Gate = Gate { good: 1.0, bad: 1.05 };

/// The tokens of one answer.
pub fn terms(sequence: &Sequence<'_>, gate: &Gate) -> Vec<Term> {
    (0..sequence.len())
        .map(|t| {
            let advantage = sequence.advantage[t];
            let (x, inside) = sequence.log_ratio(t);
            let ratio = x.exp();
            let k = if advantage > 0.0 { gate.good } else { gate.bad };
            let s = 1.0 / (1.0 + (-k * (ratio - 1.0)).exp());
            let slope = if inside { -advantage * 4.0 * s * (1.0 - s) * ratio } else { 0.0 };
            Term { loss: -advantage * 4.0 / k * s, by_logprob: slope, ..Term::default() }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::check;
    use super::*;

    #[test]
    fn golden_sapo() {
        for (advantage, want) in
            [(1.0, [-0.470007, -1.0, -1.410022, -1.572895]), (-1.0, [0.46707, 1.0, 1.40121, 1.53622])]
        {
            for (ratio, want) in [0.5f64, 1.0, 1.5, 2.0].into_iter().zip(want) {
                let sequence = Sequence { logprob: &[ratio.ln()], old_logprob: &[0.0], advantage: &[advantage] };
                let got = terms(&sequence, &GATE)[0].by_logprob;
                assert!((got - want).abs() < 1e-5, "{got} for {want}");
            }
        }
    }

    proptest! {
        #[test]
        fn finite_differences((logprob, x, advantage) in check::cases()) {
            let old: Vec<f64> = logprob.iter().zip(&x).map(|(l, x)| l - x).collect();
            let advantages = vec![advantage; x.len()];
            let of = |logprob: &[f64]| terms(&Sequence { logprob, old_logprob: &old, advantage: &advantages }, &GATE);
            check::differences(&of(&logprob), &logprob, |moved| of(moved).iter().map(|t| t.loss).sum());
        }
    }
}
