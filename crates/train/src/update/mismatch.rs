//! When the sampler is not the trainer (methods 1.10): weights that correct for it, and how far apart the two are.
//! With one engine and the same weights nothing is corrected, and the gap is still measured. Cost: none.

use serde::{Deserialize, Serialize};

/// Correction for answers from a foreign or stale sampler.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MismatchSpec {
    /// How the ratio of trainer to sampler enters the loss.
    pub mode: MismatchMode,
    /// Upper bound of the ratio; 2 for truncation, 3 for masks, unless set.
    pub max: Option<f64>,
    /// Lower bound of the masks.
    pub min: f64,
    /// What a sequence ratio is.
    pub over: Over,
}

impl Default for MismatchSpec {
    fn default() -> Self {
        Self { mode: MismatchMode::Off, max: None, min: 0.0, over: Over::Product }
    }
}

/// How the ratio of trainer to sampler enters the loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MismatchMode {
    /// Not at all: one engine.
    #[default]
    Off,
    /// Per token, cut at the upper bound.
    TokenTruncate,
    /// Per token, 0 outside the bounds.
    TokenMask,
    /// Per answer, cut at the upper bound.
    SequenceTruncate,
    /// Per answer, 0 outside the bounds.
    SequenceMask,
}

/// What a sequence ratio is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Over {
    /// The product of the token ratios.
    #[default]
    Product,
    /// Their geometric mean.
    GeometricMean,
}

/// One weight per token of an answer, from the trainer's and the sampler's log-probabilities.
pub fn weights(spec: &MismatchSpec, trainer: &[f32], sampler: &[f32]) -> Vec<f64> {
    let log_ratio: Vec<f64> = trainer.iter().zip(sampler).map(|(t, s)| f64::from(*t) - f64::from(*s)).collect();
    let (truncate, per_token) = match spec.mode {
        MismatchMode::Off => return vec![1.0; log_ratio.len()],
        MismatchMode::TokenTruncate => (true, true),
        MismatchMode::TokenMask => (false, true),
        MismatchMode::SequenceTruncate => (true, false),
        MismatchMode::SequenceMask => (false, false),
    };
    let max = spec.max.unwrap_or(if truncate { 2.0 } else { 3.0 });
    let bounded = |log: f64| {
        let ratio = log.clamp(-20.0, 20.0).exp();
        match truncate {
            true => ratio.min(max),
            false if (spec.min..=max).contains(&ratio) => ratio,
            false => 0.0,
        }
    };
    if per_token {
        return log_ratio.into_iter().map(bounded).collect();
    }
    let sum: f64 = log_ratio.iter().sum();
    let log = if spec.over == Over::Product { sum } else { sum / log_ratio.len().max(1) as f64 };
    vec![bounded(log); log_ratio.len()]
}

/// Distance between trainer and sampler over loss tokens, as sums that add over micro-batches and ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Gap {
    /// Tokens.
    pub count: u64,
    /// Sum of |trainer - sampler|.
    pub sum_abs: f64,
    /// Largest |trainer - sampler|.
    pub max_abs: f64,
    /// Sum of sampler - trainer.
    pub sum_k1: f64,
    /// Sum of the k3 estimate of KL(sampler, trainer).
    pub sum_k3: f64,
    /// Sum of the ratios.
    pub sum_ratio: f64,
    /// Sum of the squared ratios.
    pub sum_square: f64,
    /// Largest ratio.
    pub max_ratio: f64,
}

impl Gap {
    /// Adds one token.
    pub fn add(&mut self, trainer: f64, sampler: f64) {
        let x = (trainer - sampler).clamp(-20.0, 20.0);
        let ratio = x.exp();
        self.count += 1;
        self.sum_abs += (trainer - sampler).abs();
        self.max_abs = self.max_abs.max((trainer - sampler).abs());
        self.sum_k1 -= x;
        self.sum_k3 += x.exp_m1() - x;
        self.sum_ratio += ratio;
        self.sum_square += ratio * ratio;
        self.max_ratio = self.max_ratio.max(ratio);
    }

    /// Adds the sums of another part.
    pub fn merge(&mut self, other: &Gap) {
        self.count += other.count;
        self.sum_abs += other.sum_abs;
        self.max_abs = self.max_abs.max(other.max_abs);
        self.sum_k1 += other.sum_k1;
        self.sum_k3 += other.sum_k3;
        self.sum_ratio += other.sum_ratio;
        self.sum_square += other.sum_square;
        self.max_ratio = self.max_ratio.max(other.max_ratio);
    }

    fn mean(&self, sum: f64) -> f64 {
        sum / self.count.max(1) as f64
    }

    /// Mean of |trainer - sampler|.
    pub fn mean_abs(&self) -> f64 {
        self.mean(self.sum_abs)
    }

    /// KL(sampler, trainer) by k3.
    pub fn kl(&self) -> f64 {
        self.mean(self.sum_k3)
    }

    /// Mean ratio.
    pub fn mean_ratio(&self) -> f64 {
        self.mean(self.sum_ratio)
    }

    /// `mean(ratio^2) - 1`.
    pub fn chi_square(&self) -> f64 {
        self.mean(self.sum_square) - 1.0
    }

    /// Share of samples that the weighted sample is worth.
    pub fn effective_share(&self) -> f64 {
        if self.sum_square == 0.0 { 1.0 } else { self.sum_ratio.powi(2) / (self.count as f64 * self.sum_square) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_effective_share() {
        let mut gap = Gap::default();
        for ratio in [0.5f64, 1.0, 2.0, 0.5] {
            gap.add(ratio.ln(), 0.0);
        }
        assert!((gap.effective_share() - 0.727273).abs() < 1e-6);
        assert!((gap.chi_square() - 0.375).abs() < 1e-9);
        assert!((gap.max_ratio - 2.0).abs() < 1e-12 && (gap.mean_ratio() - 1.0).abs() < 1e-12);
        let mut halves = Gap::default();
        halves.merge(&gap);
        assert_eq!(halves, gap);
    }

    #[test]
    fn weights_are_cut_or_masked() {
        let log = |ratio: f64| ratio.ln() as f32;
        let trainer = [log(0.5), log(1.0), log(4.0)];
        let near = |got: Vec<f64>, want: [f64; 3]| {
            assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-6), "{got:?}");
        };
        let spec = |mode, over| MismatchSpec { mode, over, min: 0.6, ..Default::default() };
        near(weights(&spec(MismatchMode::Off, Over::Product), &trainer, &[0.0; 3]), [1.0; 3]);
        near(weights(&spec(MismatchMode::TokenTruncate, Over::Product), &trainer, &[0.0; 3]), [0.5, 1.0, 2.0]);
        near(weights(&spec(MismatchMode::TokenMask, Over::Product), &trainer, &[0.0; 3]), [0.0, 1.0, 0.0]);
        near(weights(&spec(MismatchMode::SequenceTruncate, Over::Product), &trainer, &[0.0; 3]), [2.0; 3]);
        let mean = 2f64.powf(1.0 / 3.0);
        near(weights(&spec(MismatchMode::SequenceMask, Over::GeometricMean), &trainer, &[0.0; 3]), [mean; 3]);
    }
}
