//! What the update says about itself: losses, ratios, entropy and distances as sums that add over micro-batches, and the
//! metrics made of them. Plain numbers. Cost: none.

use serde::{Deserialize, Serialize};

use super::mismatch::Gap;
use super::rule::Rule;

/// Sums over the trained tokens of one or more micro-batches; they add over micro-batches and ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RuleStats {
    /// Weighted loss of sampled tokens. About 0 at the first update after sampling although its gradient is not.
    pub loss_policy: f64,
    /// Weighted loss of supervised tokens.
    pub loss_sft: f64,
    /// Weighted KL loss.
    pub loss_kl: f64,
    /// Weighted entropy loss.
    pub loss_entropy: f64,
    /// Supervised tokens.
    pub num_supervised: u64,
    /// Ratio of trainer to sampler over sampled tokens.
    pub gap: Gap,
    /// Tokens (or, for sequence ratios, answers) that a lower bound holds.
    pub num_held_low: u64,
    /// The same for an upper bound.
    pub num_held_high: u64,
    /// Tokens or answers that could have been held.
    pub num_clippable: u64,
    /// Sum of entropies over sampled tokens.
    pub sum_entropy: f64,
    /// Sum of the k1 estimates against the reference.
    pub sum_kl_k1: f64,
    /// Sum of the k3 estimates.
    pub sum_kl_k3: f64,
    /// Tokens with a reference.
    pub num_kl: u64,
}

impl RuleStats {
    /// Adds the sums of another part.
    pub fn merge(&mut self, other: &RuleStats) {
        self.loss_policy += other.loss_policy;
        self.loss_sft += other.loss_sft;
        self.loss_kl += other.loss_kl;
        self.loss_entropy += other.loss_entropy;
        self.num_supervised += other.num_supervised;
        self.gap.merge(&other.gap);
        self.num_held_low += other.num_held_low;
        self.num_held_high += other.num_held_high;
        self.num_clippable += other.num_clippable;
        self.sum_entropy += other.sum_entropy;
        self.sum_kl_k1 += other.sum_kl_k1;
        self.sum_kl_k3 += other.sum_kl_k3;
        self.num_kl += other.num_kl;
    }

    /// Adds the distances of one answer's tokens to the reference.
    pub fn add_reference(&mut self, logprob: &[f32], ref_logprob: &[f32]) {
        for (logprob, reference) in logprob.iter().zip(ref_logprob) {
            let y = (f64::from(*logprob) - f64::from(*reference)).clamp(-20.0, 20.0);
            self.sum_kl_k1 += y;
            self.sum_kl_k3 += (-y).exp_m1() + y;
            self.num_kl += 1;
        }
    }

    /// Mean entropy over packed sampled tokens; `None` without any.
    pub fn mean_entropy(&self) -> Option<f64> {
        (self.gap.count > 0).then(|| self.sum_entropy / self.gap.count as f64)
    }

    /// Mean KL to the reference by k3; `None` without a reference.
    pub fn mean_kl(&self) -> Option<f64> {
        (self.num_kl > 0).then(|| self.sum_kl_k3 / self.num_kl as f64)
    }

    /// The whole loss.
    pub fn loss(&self) -> f64 {
        self.loss_policy + self.loss_sft + self.loss_kl + self.loss_entropy
    }

    /// Published metrics of one update.
    pub fn metrics(&self, rule: &Rule) -> Vec<(&'static str, f64)> {
        let share = |n: u64| n as f64 / self.num_clippable.max(1) as f64;
        let mut metrics = vec![
            ("update/loss_policy", self.loss_policy),
            ("update/loss_sft", self.loss_sft),
            ("update/loss_kl", self.loss_kl),
            ("update/loss_entropy", self.loss_entropy),
            ("update/clip_fraction", share(self.num_held_low + self.num_held_high)),
            ("update/clip_low_fraction", share(self.num_held_low)),
            ("update/clip_high_fraction", share(self.num_held_high)),
        ];
        if let Some(entropy) = self.mean_entropy() {
            metrics.push(("update/entropy", entropy));
            metrics.push(("update/ratio_mean", self.gap.mean_ratio()));
            metrics.push(("update/ratio_max", self.gap.max_ratio));
        }
        if let Some(kl) = self.mean_kl() {
            metrics.push(("update/kl_k3", kl));
            metrics.push(("update/kl_k1", self.sum_kl_k1 / self.num_kl as f64));
            metrics.push(("update/kl_beta", rule.beta));
        }
        metrics
    }
}
