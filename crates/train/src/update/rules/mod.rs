//! Update rules, one file each: what a sequence of trained tokens contributes to the loss, and its derivative by each
//! log-probability (methods 1.5, 1.12). Pure functions over f64 slices; weights and denominators are applied outside.
//! Cost: a few exponentials per token.

pub mod cispo;
pub mod dapo;
pub mod dr_grpo;
pub mod gmpo;
pub mod grpo;
pub mod gspo;
pub mod luspo;
pub mod sapo;
pub mod sft;
pub mod vespo;

/// Log-ratios are clamped to this size, where their derivative ends.
pub const MAX_LOG_RATIO: f64 = 20.0;

/// One sampled answer as a rule sees it; the columns have one entry per trained token.
#[derive(Clone, Copy, Debug)]
pub struct Sequence<'a> {
    /// Log-probability under the weights being trained.
    pub logprob: &'a [f64],
    /// Log-probability when the answer was sampled.
    pub old_logprob: &'a [f64],
    /// Advantage.
    pub advantage: &'a [f64],
}

/// What one token contributes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Term {
    /// Loss before its weight.
    pub loss: f64,
    /// Derivative of the sequence's loss by this log-probability, before its weight.
    pub by_logprob: f64,
    /// Whether a bound holds the token.
    pub held: Held,
}

/// Which bound holds a token (or its whole sequence, for sequence ratios).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Held {
    /// None.
    #[default]
    No,
    /// The lower one.
    Low,
    /// The upper one.
    High,
}

impl Sequence<'_> {
    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.logprob.len()
    }

    /// Whether there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.logprob.is_empty()
    }

    /// Log-ratio of token `t`, clamped, and whether its derivative survives the clamp.
    pub fn log_ratio(&self, t: usize) -> (f64, bool) {
        let x = self.logprob[t] - self.old_logprob[t];
        (x.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO), x.abs() <= MAX_LOG_RATIO)
    }

    /// Mean of the clamped log-ratios.
    pub fn mean_log_ratio(&self) -> f64 {
        (0..self.len()).map(|t| self.log_ratio(t).0).sum::<f64>() / self.len().max(1) as f64
    }
}

/// Bounds of a ratio around 1, and the optional bound for bad answers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clip {
    /// The ratio of a bad answer stops counting below `1 - low`.
    pub low: f64,
    /// The ratio of a good answer stops counting above `1 + high`.
    pub high: f64,
    /// The ratio of a bad answer stops counting above this value (dual clip; the same function as a delta bound).
    pub dual: Option<f64>,
}

impl Clip {
    /// Clipped surrogate of one ratio (token or sequence): its loss and which bound holds it. Ties are not held.
    pub fn surrogate(&self, ratio: f64, advantage: f64) -> (f64, Held) {
        let clamped = ratio.clamp(1.0 - self.low, 1.0 + self.high);
        let loss = -(ratio * advantage).min(clamped * advantage);
        if advantage > 0.0 && ratio > 1.0 + self.high {
            return (loss, Held::High);
        }
        if advantage < 0.0 && ratio < 1.0 - self.low {
            return (loss, Held::Low);
        }
        match self.dual {
            Some(bound) if advantage < 0.0 && ratio > bound => (-bound * advantage, Held::High),
            _ => (loss, Held::No),
        }
    }
}

#[cfg(test)]
pub(super) mod check {
    //! Finite differences for rules: perturb one log-probability, hold the stopped parts fixed.

    use proptest::prelude::*;

    use super::*;

    /// Log-probabilities, log-ratios and one advantage. Bounds of every rule are avoided by `keep`.
    pub fn cases() -> impl Strategy<Value = (Vec<f64>, Vec<f64>, f64)> {
        (1usize..6).prop_flat_map(|n| {
            let advantage = prop_oneof![-3.0f64..-0.1, 0.1f64..3.0, Just(0.0)];
            (
                proptest::collection::vec(-6.0f64..-0.01, n),
                proptest::collection::vec(prop_oneof![-0.9f64..0.9, -3.0f64..3.0], n),
                advantage,
            )
        })
    }

    /// Compares `by_logprob` with central differences of `total`, the summed loss as a function of the
    /// log-probabilities with everything behind a stop-gradient held at the base point.
    pub fn differences(terms: &[Term], logprob: &[f64], total: impl Fn(&[f64]) -> f64) {
        let step = 1e-6;
        for t in 0..logprob.len() {
            let mut moved = logprob.to_vec();
            moved[t] += step;
            let up = total(&moved);
            moved[t] -= 2.0 * step;
            let slope = (up - total(&moved)) / (2.0 * step);
            // Round-off of the difference itself is about 1e-16 * loss / step.
            let size = total(logprob).abs().max(1.0);
            let got = terms[t].by_logprob;
            assert!((got - slope).abs() < 1e-7 * size.max(slope.abs()), "token {t}: {got} for {slope}");
        }
    }
}
