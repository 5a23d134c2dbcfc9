//! CISPO (MiniMax-M1, arXiv 2506.13585): a policy gradient whose ratio is only a bounded factor.
//! Per token: `-sg[min(w, cap)] A logprob`; derivative `-min(w, cap) A`, never switched off. The released form caps at
//! an absolute value; the other variant clamps the ratio between bounds around 1.

use super::{Held, MAX_LOG_RATIO, Sequence, Term};

/// How the factor is bounded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// At most this.
    Cap(f64),
    /// Between these.
    Range(f64, f64),
}

/// The released bound.
pub const BOUND: Bound = Bound::Cap(5.0);

/// The tokens of one answer.
pub fn terms(sequence: &Sequence<'_>, bound: &Bound) -> Vec<Term> {
    (0..sequence.len())
        .map(|t| {
            let (logprob, advantage) = (sequence.logprob[t], sequence.advantage[t]);
            let (x, inside) = sequence.log_ratio(t);
            let ratio = x.exp();
            let (low, high) = match *bound {
                Bound::Cap(cap) => (0.0, cap),
                Bound::Range(low, high) => (low, high),
            };
            let held = match ratio {
                _ if ratio > high => Held::High,
                _ if ratio < low => Held::Low,
                _ => Held::No,
            };
            let slope = -advantage * ratio.clamp(low, high);
            // Beyond the clamp a token has no derivative in any ratio rule.
            debug_assert!(inside || x.abs() == MAX_LOG_RATIO);
            Term { loss: slope * logprob, by_logprob: if inside { slope } else { 0.0 }, held }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::check;
    use super::*;

    proptest! {
        #[test]
        fn finite_differences((logprob, x, advantage) in check::cases(), capped in any::<bool>()) {
            let bound = if capped { BOUND } else { Bound::Range(0.8, 1.28) };
            let old: Vec<f64> = logprob.iter().zip(&x).map(|(l, x)| l - x).collect();
            let advantages = vec![advantage; x.len()];
            let sequence = Sequence { logprob: &logprob, old_logprob: &old, advantage: &advantages };
            let factor = |x: f64| if capped { x.exp().min(5.0) } else { x.exp().clamp(0.8, 1.28) };
            check::differences(&terms(&sequence, &bound), &logprob, |moved| {
                moved.iter().zip(&x).map(|(l, x)| -factor(*x) * advantage * l).sum()
            });
        }
    }
}
