//! GMPO (arXiv 2507.20673): the geometric mean of token ratios, each log-ratio clipped on its harmful side first:
//! `x' = min(x, high)` for good answers, `max(x, -low)` for bad ones; `-A exp(mean x')`. Derivative `-A exp(mean x')`
//! on tokens that are not held. Unlike GSPO it clips in log space, and before the mean.

use super::{Held, Sequence, Term};

/// Bounds of a log-ratio.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogClip {
    /// Bad answers: below `-low` the log-ratio stops.
    pub low: f64,
    /// Good answers: above `high` it stops.
    pub high: f64,
}

/// The published bounds.
pub const CLIP: LogClip = LogClip { low: 0.4, high: 0.4 };

/// The tokens of one answer. The advantage of the first token is that of the answer.
pub fn terms(sequence: &Sequence<'_>, clip: &LogClip) -> Vec<Term> {
    let Some(&advantage) = sequence.advantage.first() else { return Vec::new() };
    let bounded = |t: usize| {
        let (x, inside) = sequence.log_ratio(t);
        match advantage {
            a if a > 0.0 && x > clip.high => (clip.high, Held::High, inside),
            a if a < 0.0 && x < -clip.low => (-clip.low, Held::Low, inside),
            _ => (x, Held::No, inside),
        }
    };
    let mean = (0..sequence.len()).map(|t| bounded(t).0).sum::<f64>() / sequence.len() as f64;
    let ratio = mean.exp();
    (0..sequence.len())
        .map(|t| {
            let (_, held, inside) = bounded(t);
            let active = held == Held::No && inside;
            Term { loss: -advantage * ratio, by_logprob: if active { -advantage * ratio } else { 0.0 }, held }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::check;
    use super::*;

    #[test]
    fn golden_gmpo() {
        let by = |advantage: f64, x: [f64; 2]| {
            let sequence = Sequence { logprob: &x, old_logprob: &[0.0; 2], advantage: &[advantage; 2] };
            terms(&sequence, &CLIP).iter().map(|t| t.by_logprob).collect::<Vec<_>>()
        };
        let got = by(1.0, [0.1, 0.5]);
        assert!((got[0] + 1.284025).abs() < 1e-6 && got[1] == 0.0);
        let got = by(-1.0, [-0.5, 0.2]);
        assert!(got[0] == 0.0 && (got[1] - 0.904837).abs() < 1e-6);
    }

    proptest! {
        #[test]
        fn finite_differences((logprob, x, advantage) in check::cases()) {
            prop_assume!(x.iter().all(|x| (x.abs() - 0.4).abs() > 1e-4));
            let old: Vec<f64> = logprob.iter().zip(&x).map(|(l, x)| l - x).collect();
            let advantages = vec![advantage; x.len()];
            let of = |logprob: &[f64]| terms(&Sequence { logprob, old_logprob: &old, advantage: &advantages }, &CLIP);
            check::differences(&of(&logprob), &logprob, |moved| of(moved).iter().map(|t| t.loss).sum());
        }
    }
}
