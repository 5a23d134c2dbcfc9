//! VESPO: a policy gradient whose factor is a smooth function of the whole answer's ratio W = exp(sum of log-ratios):
//! `-sg[phi(W)] A logprob`, `phi(W) = W^k exp(l (1 - W))`, so `phi(1) = 1` and far answers fade on both sides.
//! The logarithm of W is clamped to ln 1e-8 .. 20. A correction for another sampler is part of W, not a factor beside it:
//! `assemble` moves `old_logprob` by its logarithm. Source: arXiv 2602.10693.

use super::{Sequence, Term};

/// Exponent and decay of phi for good and for bad answers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// (k, l) for A >= 0.
    pub good: (f64, f64),
    /// (k, l) for A < 0.
    pub bad: (f64, f64),
}

/// The published shape.
pub const SHAPE: Shape = Shape { good: (2.0, 3.0), bad: (3.0, 2.0) };

/// Ratios below this count as this.
pub const LEAST_RATIO: f64 = 1e-8;

/// The factor, from the logarithm of the answer's ratio.
pub fn phi(log_ratio: f64, (k, decay): (f64, f64)) -> f64 {
    let log_ratio = log_ratio.clamp(LEAST_RATIO.ln(), 20.0);
    // In one exponent: W^k alone overflows.
    (decay + k * log_ratio - decay * log_ratio.exp()).exp()
}

/// The tokens of one answer.
pub fn terms(sequence: &Sequence<'_>, shape: &Shape) -> Vec<Term> {
    let log_ratio: f64 = (0..sequence.len()).map(|t| sequence.log_ratio(t).0).sum();
    (0..sequence.len())
        .map(|t| {
            let advantage = sequence.advantage[t];
            let factor = phi(log_ratio, if advantage >= 0.0 { shape.good } else { shape.bad });
            let slope = -factor * advantage;
            let inside = sequence.log_ratio(t).1;
            Term { loss: slope * sequence.logprob[t], by_logprob: if inside { slope } else { 0.0 }, ..Term::default() }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::check;
    use super::*;

    #[test]
    fn golden_phi() {
        let good = [1.120422, 1.0, 0.502043, 0.199148];
        let bad = [0.339785, 1.0, 1.241593, 1.082682];
        for (i, w) in [0.5f64, 1.0, 1.5, 2.0].into_iter().enumerate() {
            assert!((phi(w.ln(), SHAPE.good) - good[i]).abs() < 1e-6);
            assert!((phi(w.ln(), SHAPE.bad) - bad[i]).abs() < 1e-6);
        }
        assert!(phi(1e9, SHAPE.good) == 0.0 && phi(-1e9, SHAPE.bad).is_finite());
    }

    proptest! {
        #[test]
        fn finite_differences((logprob, x, advantage) in check::cases()) {
            let old: Vec<f64> = logprob.iter().zip(&x).map(|(l, x)| l - x).collect();
            let advantages = vec![advantage; x.len()];
            let sequence = Sequence { logprob: &logprob, old_logprob: &old, advantage: &advantages };
            let factor = phi(x.iter().sum(), if advantage >= 0.0 { SHAPE.good } else { SHAPE.bad });
            check::differences(&terms(&sequence, &SHAPE), &logprob, |moved| {
                moved.iter().map(|l| -factor * advantage * l).sum()
            });
        }
    }
}
