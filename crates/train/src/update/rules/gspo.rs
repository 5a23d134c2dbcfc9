//! GSPO (arXiv 2507.18071): the clipped rule on the ratio of whole answers, `s = exp(mean of the log-ratios)`.
//! Per token: `-min(s A, clip(s) A)`; derivative `-A s` unless the answer is held (the factor 1/n of ds/dx is the sum
//! over the answer's n tokens that carry the same loss). The form `gspo-token` writes `s` as
//! `sg[s] exp(logprob - sg[logprob])`: the same numbers, but tokens may have advantages of their own.

use super::{Clip, Held, Sequence, Term};

/// The published bounds; ratios of whole answers stay close to 1.
pub const CLIP: Clip = Clip { low: 3e-4, high: 4e-4, dual: None };

/// The tokens of one answer.
pub fn terms(sequence: &Sequence<'_>, clip: &Clip) -> Vec<Term> {
    let ratio = sequence.mean_log_ratio().exp();
    (0..sequence.len())
        .map(|t| {
            let advantage = sequence.advantage[t];
            let (loss, held) = clip.surrogate(ratio, advantage);
            let active = held == Held::No && sequence.log_ratio(t).1;
            Term { loss, by_logprob: if active { -advantage * ratio } else { 0.0 }, held }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::check;
    use super::*;

    #[test]
    fn golden_gspo() {
        let old = [-1.0, -2.0];
        let logprob = [-0.998, -1.996];
        let by = |advantage: f64| {
            let sequence = Sequence { logprob: &logprob, old_logprob: &old, advantage: &[advantage; 2] };
            terms(&sequence, &CLIP).iter().map(|t| t.by_logprob).collect::<Vec<_>>()
        };
        assert_eq!(by(1.0), [0.0, 0.0]);
        for got in by(-1.0) {
            assert!((got - 1.003005).abs() < 1e-6, "{got}");
        }
    }

    proptest! {
        #[test]
        fn finite_differences((logprob, x, advantage) in check::cases()) {
            let clip = Clip { low: 0.3, high: 0.4, dual: Some(2.0) };
            let old: Vec<f64> = logprob.iter().zip(&x).map(|(l, x)| l - x).collect();
            let advantages = vec![advantage; x.len()];
            let of = |logprob: &[f64]| terms(&Sequence { logprob, old_logprob: &old, advantage: &advantages }, &clip);
            let ratio = (x.iter().sum::<f64>() / x.len() as f64).exp();
            prop_assume!([0.7, 1.4, 2.0].iter().all(|b| (ratio - b).abs() > 1e-4));
            check::differences(&of(&logprob), &logprob, |moved| of(moved).iter().map(|t| t.loss).sum());
        }

        #[test]
        fn finite_differences_with_advantages_per_token((logprob, x, advantage) in check::cases()) {
            let clip = Clip { low: 0.3, high: 0.4, dual: None };
            let old: Vec<f64> = logprob.iter().zip(&x).map(|(l, x)| l - x).collect();
            let advantages: Vec<f64> = (0..x.len()).map(|t| advantage + t as f64 * 0.37).collect();
            let sequence = Sequence { logprob: &logprob, old_logprob: &old, advantage: &advantages };
            let ratio = (x.iter().sum::<f64>() / x.len() as f64).exp();
            prop_assume!([0.7, 1.4].iter().all(|b| (ratio - b).abs() > 1e-4));
            let base = logprob.clone();
            check::differences(&terms(&sequence, &clip), &logprob, |moved| {
                (0..moved.len()).map(|t| clip.surrogate(ratio * (moved[t] - base[t]).exp(), advantages[t]).0).sum()
            });
        }
    }
}
