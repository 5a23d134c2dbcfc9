//! Clipped policy gradient (PPO, arXiv 1707.06347; GRPO, arXiv 2402.03300). Per token, `w = exp(logprob - old)`:
//! `-min(w A, clip(w, 1-low, 1+high) A)`, and for A < 0 optionally at most `-c A` (dual clip, arXiv 1912.09729).
//! Derivative `-A w` unless a bound holds the token. We differ from released trainers in nothing here; the
//! denominators are global (methods 1.6).

use super::{Clip, Held, Sequence, Term};

/// Default bounds.
pub const CLIP: Clip = Clip { low: 0.2, high: 0.2, dual: None };

/// The tokens of one answer.
pub fn terms(sequence: &Sequence<'_>, clip: &Clip) -> Vec<Term> {
    (0..sequence.len())
        .map(|t| {
            let (x, inside) = sequence.log_ratio(t);
            let (ratio, advantage) = (x.exp(), sequence.advantage[t]);
            let (loss, held) = clip.surrogate(ratio, advantage);
            let active = held == Held::No && inside;
            Term { loss, by_logprob: if active { -advantage * ratio } else { 0.0 }, held }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::check;
    use super::*;

    fn by_logprob(ratio: f64, advantage: f64, clip: &Clip) -> f64 {
        let sequence = Sequence { logprob: &[ratio.ln() - 1.0], old_logprob: &[-1.0], advantage: &[advantage] };
        terms(&sequence, clip)[0].by_logprob
    }

    #[test]
    fn golden_clip() {
        let clip = Clip { low: 0.2, high: 0.28, dual: Some(3.0) };
        for (ratio, want) in [(0.5, -0.5), (1.0, -1.0), (1.2799999, -1.2799999), (1.5, 0.0)] {
            assert!((by_logprob(ratio, 1.0, &clip) - want).abs() < 1e-9, "{ratio}");
        }
        for (ratio, want) in [(0.5, 0.0), (0.8000001, 0.8000001), (1.0, 1.0), (1.5, 1.5), (3.5, 0.0)] {
            assert!((by_logprob(ratio, -1.0, &clip) - want).abs() < 1e-9, "{ratio}");
        }
        // Exactly on a bound is active.
        assert_eq!(clip.surrogate(1.28, 1.0).1, Held::No);
        assert_eq!(clip.surrogate(0.8, -1.0).1, Held::No);
    }

    #[test]
    fn a_dual_bound_is_a_delta_bound() {
        // Delta: the unclipped branch uses min(w, delta).
        let clip = Clip { low: 0.2, high: 0.2, dual: Some(3.0) };
        for ratio in [0.1, 0.5, 1.0, 1.5, 2.9, 3.1, 10.0] {
            for advantage in [-2.0, -0.5, 0.5, 2.0] {
                let delta = -(f64::min(ratio, 3.0) * advantage).min(ratio.clamp(0.8, 1.2) * advantage);
                assert!((clip.surrogate(ratio, advantage).0 - delta).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn far_ratios_have_no_derivative() {
        let sequence = Sequence { logprob: &[-1.0, -30.0], old_logprob: &[-30.0, -1.0], advantage: &[-1.0, 1.0] };
        for term in terms(&sequence, &CLIP) {
            assert!(term.by_logprob == 0.0 && term.loss.is_finite());
        }
    }

    proptest! {
        #[test]
        fn finite_differences((logprob, x, advantage) in check::cases(), dual in prop_oneof![Just(None), Just(Some(3.0))]) {
            let clip = Clip { low: 0.2, high: 0.28, dual };
            prop_assume!(x.iter().all(|x| [0.8, 1.28, 3.0].iter().all(|b: &f64| (x.exp() - b).abs() > 1e-4)));
            let old: Vec<f64> = logprob.iter().zip(&x).map(|(l, x)| l - x).collect();
            let advantages = vec![advantage; x.len()];
            let of = |logprob: &[f64]| terms(&Sequence { logprob, old_logprob: &old, advantage: &advantages }, &clip);
            check::differences(&of(&logprob), &logprob, |moved| of(moved).iter().map(|t| t.loss).sum());
        }
    }
}
