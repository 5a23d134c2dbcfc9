//! Distance to the frozen reference (methods 1.7): estimators, their derivatives, and how beta moves during a run.
//! Sees log-probabilities of sampled tokens, `y = logprob - ref_logprob`. Cost: one exponential per token.

use serde::{Deserialize, Serialize};

use super::knob::FromNumber;

/// The KL term. A plain number is `beta`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KlSpec {
    /// Strength. 0 loads no reference model. 0.04 is customary for GRPO; DyME uses 0.
    pub beta: f64,
    /// Which estimate. `k3` for comparability with the published systems, `k2` where beta is meant as a real
    /// constraint: its gradient is that of KL(policy, reference).
    pub estimator: Estimator,
    /// Added to the loss, subtracted from the reward before advantages are made, or from each token's advantage.
    #[serde(rename = "where")]
    pub place: Place,
    /// How beta moves.
    pub schedule: Schedule,
    /// `grpo_d`: smallest beta.
    pub min: f64,
    /// `grpo_d`: largest beta.
    pub max: f64,
    /// `grpo_d`: share of the run after which beta rises again.
    pub switch: f64,
    /// `adaptive`: the KL per token to steer towards.
    pub target: f64,
    /// `adaptive`: answers over which beta may change by a fifth of itself, five times over.
    pub horizon: f64,
    /// Largest value of the estimate; beyond it the derivative is 0. 10 tames rare tokens with k3.
    pub cap: Option<f64>,
}

impl Default for KlSpec {
    fn default() -> Self {
        Self {
            beta: 0.0,
            estimator: Estimator::K3,
            place: Place::Loss,
            schedule: Schedule::Fixed,
            min: 0.0,
            max: 0.1,
            switch: 0.3,
            target: 0.1,
            horizon: 10_000.0,
            cap: None,
        }
    }
}

impl FromNumber for KlSpec {
    fn from_number(beta: f64) -> Self {
        Self { beta, ..Self::default() }
    }
}

/// Which estimate of the KL divergence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Estimator {
    /// `y`. Unbiased as a value, useless as a loss: its expected gradient is 0.
    K1,
    /// `y^2 / 2`.
    K2,
    /// `exp(-y) + y - 1`. Never negative, little noise.
    #[default]
    K3,
    /// `w k3` with the ratio differentiated too: unbiased when answers are reused.
    K3Corrected,
}

/// Where the term goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// Into the loss, with the weights of the policy term.
    #[default]
    Loss,
    /// Into the reward of the whole answer.
    Reward,
    /// Into the advantage of each token: a token answers for the distance of what follows it, not of what came before.
    Tokens,
}

/// How beta moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Not at all.
    #[default]
    Fixed,
    /// Towards a measured KL.
    Adaptive,
    /// From the middle down to `min`, then up to `max` (GRPO-D, arXiv 2503.16081): relax to explore, tighten to exploit.
    GrpoD,
}

impl KlSpec {
    /// Whether a reference model is needed at all.
    pub fn needs_reference(&self) -> bool {
        self.beta != 0.0 || self.schedule == Schedule::GrpoD && self.max > 0.0
    }

    /// Whether beta and its bounds make sense; the message says what does not.
    pub fn check(&self) -> Result<(), &'static str> {
        if !(self.beta.is_finite() && self.beta >= 0.0) {
            return Err("kl.beta must be a number of at least 0");
        }
        if self.schedule == Schedule::GrpoD
            && !(0.0 <= self.min && self.min <= self.max && 0.0 < self.switch && self.switch < 1.0)
        {
            return Err("kl.min must not exceed kl.max, and kl.switch lies between 0 and 1");
        }
        if self.schedule == Schedule::Adaptive && !(self.target > 0.0 && self.horizon > 0.0 && self.beta > 0.0) {
            return Err("an adaptive KL needs beta, target and horizon above 0");
        }
        if self.estimator == Estimator::K1 && self.place == Place::Loss && self.needs_reference() {
            return Err("k1 has no expected gradient in the loss; use k2 or k3, or kl.where = \"reward\"");
        }
        if self.cap.is_some_and(|cap| cap.is_nan() || cap <= 0.0) {
            return Err("kl.cap must be above 0");
        }
        Ok(())
    }

    /// Value and derivative by the log-probability. `log_ratio` is logprob - old_logprob, for `k3_corrected`.
    pub fn estimate(&self, logprob: f64, ref_logprob: f64, log_ratio: f64) -> (f64, f64) {
        let difference = logprob - ref_logprob;
        let y = difference.clamp(-20.0, 20.0);
        let k3 = (-y).exp_m1() + y;
        let (value, slope) = match self.estimator {
            Estimator::K1 => (y, 1.0),
            Estimator::K2 => (0.5 * y * y, y),
            Estimator::K3 => (k3, -(-y).exp_m1()),
            Estimator::K3Corrected => {
                let ratio = log_ratio.clamp(-20.0, 20.0).exp();
                (ratio * k3, ratio * y)
            }
        };
        match self.cap {
            Some(cap) if value > cap => (cap, 0.0),
            _ if difference.abs() > 20.0 => (value, 0.0),
            _ => (value, slope),
        }
    }

    /// Beta at `step` of `steps`, for schedules that follow the step; else the given beta.
    pub fn beta_at(&self, beta: f64, step: u64, steps: u64) -> f64 {
        if self.schedule != Schedule::GrpoD {
            return beta;
        }
        let (s, total) = (step as f64, steps.max(1) as f64);
        let (turn, middle) = (self.switch * total, 0.5 * (self.min + self.max));
        if s <= turn {
            middle - (middle - self.min) * s / turn
        } else {
            self.min + (self.max - self.min) * (s - turn).min(total - turn) / (total - turn)
        }
    }

    /// Beta after `samples` answers with a mean KL of `measured`.
    pub fn beta_after(&self, beta: f64, measured: f64, samples: u64) -> f64 {
        if self.schedule != Schedule::Adaptive || !measured.is_finite() {
            return beta;
        }
        let error = (measured / self.target - 1.0).clamp(-0.2, 0.2);
        beta * (1.0 + error * samples as f64 / self.horizon)
    }
}

/// What `where = "reward"` subtracts from an answer's reward: `beta * sum(old_logprob - ref_logprob)`.
pub fn reward_penalty(beta: f64, old_logprob: &[f32], ref_logprob: &[f32]) -> f64 {
    beta * old_logprob
        .iter()
        .zip(ref_logprob)
        .map(|(old, reference)| f64::from(*old) - f64::from(*reference))
        .sum::<f64>()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn golden_k3() {
        let spec = KlSpec::from_number(0.04);
        for (gap, value, slope) in [
            (0.0, 0.0, 0.0),
            (0.1, 0.005171, -0.105171),
            (-0.1, 0.004837, 0.095163),
            (1.0, 0.718282, -1.718282),
            (-1.0, 0.367879, 0.632121),
        ] {
            let (k, by) = spec.estimate(-1.0, -1.0 + gap, 0.0);
            assert!((k - value).abs() < 1e-6 && (by - slope).abs() < 1e-6, "{gap}");
        }
        let capped = KlSpec { cap: Some(10.0), ..spec };
        assert_eq!(capped.estimate(-9.0, -1.0, 0.0), (10.0, 0.0));
        assert_eq!(capped.estimate(-50.0, -1.0, 0.0), (10.0, 0.0));
    }

    #[test]
    fn golden_beta() {
        let adaptive = KlSpec { schedule: Schedule::Adaptive, beta: 0.04, target: 0.1, ..Default::default() };
        for (kl, want) in [(0.2, 0.0402048), (0.1, 0.04), (0.09, 0.0398976), (0.0, 0.0397952)] {
            assert!((adaptive.beta_after(0.04, kl, 256) - want).abs() < 1e-9, "{kl}");
        }
        assert_eq!(adaptive.beta_after(0.04, f64::NAN, 256), 0.04);
        let grpo_d = KlSpec { schedule: Schedule::GrpoD, min: 0.04, max: 0.1, ..Default::default() };
        for (step, want) in [(0, 0.07), (15, 0.055), (30, 0.04), (65, 0.07), (100, 0.1), (120, 0.1)] {
            assert!((grpo_d.beta_at(0.0, step, 100) - want).abs() < 1e-12, "{step}");
        }
        assert!(grpo_d.needs_reference() && !KlSpec::default().needs_reference());
    }

    #[test]
    fn settings_without_meaning_are_refused() {
        for bad in [
            KlSpec { beta: -1.0, ..Default::default() },
            KlSpec { beta: 0.1, estimator: Estimator::K1, ..Default::default() },
            KlSpec { schedule: Schedule::GrpoD, min: 1.0, max: 0.1, ..Default::default() },
            KlSpec { schedule: Schedule::Adaptive, ..Default::default() },
            KlSpec { cap: Some(0.0), ..Default::default() },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
        let k1 = KlSpec { beta: 0.05, estimator: Estimator::K1, place: Place::Reward, ..Default::default() };
        assert!(k1.check().is_ok() && KlSpec::default().check().is_ok());
        assert!((reward_penalty(0.5, &[-1.0, -2.0], &[-1.5, -3.0]) - 0.75).abs() < 1e-6);
    }

    proptest! {
        #[test]
        fn finite_differences(logprob in -6.0f64..0.0, gap in -2.0f64..2.0, x in -1.0f64..1.0) {
            for estimator in [Estimator::K1, Estimator::K2, Estimator::K3, Estimator::K3Corrected] {
                let spec = KlSpec { estimator, ..Default::default() };
                let (reference, old) = (logprob + gap, logprob - x);
                let value = |logprob: f64| spec.estimate(logprob, reference, logprob - old).0;
                let step = 1e-6;
                let slope = (value(logprob + step) - value(logprob - step)) / (2.0 * step);
                let (_, got) = spec.estimate(logprob, reference, x);
                prop_assert!((got - slope).abs() < 1e-7 * slope.abs().max(1.0), "{estimator:?}: {got} for {slope}");
            }
        }
    }
}
