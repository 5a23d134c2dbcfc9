//! Learning-rate schedules, gradient clipping and the guard before every optimiser step.
//! Knows numbers, not losses or models: the same for supervised and reinforcement learning. The fused AdamW kernel
//! itself is `foveate_kernels::cpu::adamw_step`. Cost: none.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

/// The optimiser of a stage: AdamW (arXiv 1711.05101).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimSpec {
    /// Peak learning rate. 1e-6 to 1e-5 for checkpoints of 256M parameters and more, 1e-4 for the built-in model;
    /// halve it when the reward collapses within the first steps.
    pub lr: f64,
    /// How the rate falls after the warm-up.
    pub schedule: LrSchedule,
    /// Steps (a whole number) or share of the stage (below 1) over which the rate rises from 0. 0.03 is a safe start;
    /// without any, the first noisy steps can break a small model.
    pub warmup: Warmup,
    /// Lowest rate, as a share of the peak, at the end of `linear` and `cosine`.
    pub min_lr: f64,
    /// Decoupled weight decay, applied to matrices only; 0.01 for fine-tuning, 0.1 for training from scratch.
    pub weight_decay: f64,
    /// Decay of the two moments. A second value of 0.95 reacts faster; 0.999 is steadier.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Largest norm of the whole gradient; longer ones are scaled down. 0 turns it off.
    pub max_norm: f64,
    /// Factors on the rate per part of the model, for instance a slower vision tower.
    pub lr_of: PartRates,
}

impl Default for OptimSpec {
    fn default() -> Self {
        Self {
            lr: 1e-5,
            schedule: LrSchedule::Linear,
            warmup: Warmup::Share(0.03),
            min_lr: 0.0,
            weight_decay: 0.01,
            betas: [0.9, 0.999],
            eps: 1e-8,
            max_norm: 1.0,
            lr_of: PartRates::default(),
        }
    }
}

/// Factors on the learning rate.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PartRates {
    /// Vision tower. 0.1 is customary when it is trained at all.
    pub vision: f64,
    /// Connector between vision and language. Larger than 1 when it starts fresh.
    pub connector: f64,
    /// Language model.
    pub language: f64,
}

impl Default for PartRates {
    fn default() -> Self {
        Self { vision: 1.0, connector: 1.0, language: 1.0 }
    }
}

/// How the learning rate falls after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LrSchedule {
    /// In a straight line.
    #[default]
    Linear,
    /// As half a cosine.
    Cosine,
    /// Not at all.
    Constant,
}

/// Length of the warm-up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Warmup {
    /// This many steps.
    Steps(u64),
    /// This share of the stage.
    Share(f64),
}

impl Serialize for Warmup {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Warmup::Steps(steps) => serializer.serialize_u64(*steps),
            Warmup::Share(share) => serializer.serialize_f64(*share),
        }
    }
}

impl<'de> Deserialize<'de> for Warmup {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = f64::deserialize(deserializer)?;
        match number {
            n if n >= 1.0 && n.fract() == 0.0 && n < 1e12 => Ok(Warmup::Steps(n as u64)),
            n if (0.0..1.0).contains(&n) => Ok(Warmup::Share(n)),
            _ => Err(D::Error::custom("warmup is a whole number of steps, or a share of the stage below 1")),
        }
    }
}

/// Why a step cannot be made.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum OptimError {
    /// A setting out of range.
    #[error("optim.{knob} {why}")]
    Knob {
        /// The setting.
        knob: &'static str,
        /// What is wrong with it.
        why: &'static str,
    },
    /// NaN or infinity before the step; the weights are still good.
    #[error("step {step}: the {what} is {value}; the weights were left as they are")]
    NonFinite {
        /// The step.
        step: u64,
        /// `loss` or `gradient norm`.
        what: &'static str,
        /// What it was.
        value: f64,
    },
}

impl OptimError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            OptimError::Knob { .. } => "see the optimiser's knobs in the recipe reference",
            OptimError::NonFinite { .. } => {
                "look at the offending batch; a lower learning rate, a longer warm-up or precision = \"f32\" often helps"
            }
        }
    }
}

impl OptimSpec {
    /// Refuses settings out of range.
    pub fn check(&self) -> Result<(), OptimError> {
        let at_least_0 = |value: f64| value.is_finite() && value >= 0.0;
        let refuse = |knob, why| Err(OptimError::Knob { knob, why });
        if !at_least_0(self.lr) {
            return refuse("lr", "must be a number of at least 0");
        }
        if !(0.0..=1.0).contains(&self.min_lr) {
            return refuse("min_lr", "is a share of lr between 0 and 1");
        }
        if !at_least_0(self.weight_decay) {
            return refuse("weight_decay", "must be a number of at least 0");
        }
        if !self.betas.iter().all(|beta| (0.0..1.0).contains(beta)) {
            return refuse("betas", "must be two numbers of at least 0 and below 1");
        }
        if !(self.eps.is_finite() && self.eps > 0.0) {
            return refuse("eps", "must be above 0");
        }
        if !at_least_0(self.max_norm) {
            return refuse("max_norm", "must be a number of at least 0 (0 turns clipping off)");
        }
        let rates = [self.lr_of.vision, self.lr_of.connector, self.lr_of.language];
        if !rates.into_iter().all(at_least_0) {
            return refuse("lr_of", "factors must be at least 0");
        }
        Ok(())
    }

    /// Steps of warm-up in a stage of `steps`.
    pub fn warmup_steps(&self, steps: u64) -> u64 {
        match self.warmup {
            Warmup::Steps(warmup) => warmup.min(steps),
            Warmup::Share(share) => (share * steps as f64).ceil() as u64,
        }
    }

    /// Learning rate of step `step` (the first is 0) of `steps`. The warm-up rises to the peak at its last step; the
    /// fall reaches its end one step behind the last, so that no step is wasted on a rate of 0.
    pub fn lr_at(&self, step: u64, steps: u64) -> f64 {
        let warmup = self.warmup_steps(steps);
        if step < warmup {
            return self.lr * (step + 1) as f64 / warmup as f64;
        }
        let length = steps.saturating_sub(warmup).max(1) as f64;
        let done = ((step - warmup) as f64 / length).min(1.0);
        let left = match self.schedule {
            LrSchedule::Constant => 1.0,
            LrSchedule::Linear => 1.0 - done,
            LrSchedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
        };
        self.lr * (self.min_lr + (1.0 - self.min_lr) * left)
    }
}

/// Factor that brings a gradient of this norm down to `max_norm`; 1 if it is short enough or clipping is off.
/// Refuses a norm that is not finite.
pub fn clip_factor(norm: f64, max_norm: f64, step: u64) -> Result<f64, OptimError> {
    guard("gradient norm", norm, step)?;
    Ok(if max_norm > 0.0 && norm > max_norm { max_norm / norm } else { 1.0 })
}

/// Refuses a number that is not finite: nothing like it may reach the weights.
pub fn guard(what: &'static str, value: f64, step: u64) -> Result<(), OptimError> {
    if value.is_finite() { Ok(()) } else { Err(OptimError::NonFinite { step, what, value }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> OptimSpec {
        let spec: OptimSpec = toml::from_str(text).expect("syntax");
        spec.check().expect("in range");
        spec
    }

    #[test]
    fn schedules_begin_and_end_where_they_should() {
        let linear = spec("lr = 1.0\nschedule = 'linear'\nwarmup = 4");
        let rates: Vec<f64> = (0..12).map(|step| linear.lr_at(step, 12)).collect();
        assert_eq!(&rates[..5], [0.25, 0.5, 0.75, 1.0, 1.0]);
        assert_eq!(rates[11], 0.125);
        assert_eq!(linear.lr_at(12, 12), 0.0);
        let cosine = spec("lr = 1.0\nschedule = 'cosine'\nwarmup = 0\nmin_lr = 0.1");
        assert_eq!(cosine.lr_at(0, 10), 1.0);
        assert!((cosine.lr_at(5, 10) - 0.55).abs() < 1e-12);
        assert!((cosine.lr_at(10, 10) - 0.1).abs() < 1e-12);
        let constant = spec("lr = 2.0\nschedule = 'constant'\nwarmup = 0.1");
        assert_eq!(constant.warmup_steps(100), 10);
        assert_eq!((constant.lr_at(0, 100), constant.lr_at(50, 100), constant.lr_at(500, 100)), (0.2, 2.0, 2.0));
        let all_warmup = spec("lr = 1.0\nwarmup = 100");
        assert_eq!(all_warmup.lr_at(49, 50), 1.0, "a warm-up ends with the stage");
        assert_eq!(spec("warmup = 0").lr_at(0, 0), 1e-5, "a stage without steps divides by nothing");
    }

    #[test]
    fn clipping_refuses_nan() {
        assert_eq!(clip_factor(0.5, 1.0, 3), Ok(1.0));
        assert_eq!(clip_factor(4.0, 1.0, 3), Ok(0.25));
        assert_eq!(clip_factor(4.0, 0.0, 3), Ok(1.0));
        assert_eq!(clip_factor(0.0, 1.0, 3), Ok(1.0));
        for bad in [f64::NAN, f64::INFINITY] {
            let error = clip_factor(bad, 0.0, 3).expect_err("not finite");
            assert!(error.to_string().contains("step 3: the gradient norm"), "{error}");
        }
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        for bad in
            ["lr = -1", "betas = [0.9, 1.0]", "eps = 0", "max_norm = -1", "min_lr = 2", "lr_of = { vision = -1 }"]
        {
            assert!(toml::from_str::<OptimSpec>(bad).expect(bad).check().is_err(), "{bad}");
        }
        for bad in
            ["warmup = 1.5", "warmup = -1", "learning_rate = 1", "schedule = 'exponential'", "lr_of = { head = 1 }"]
        {
            assert!(toml::from_str::<OptimSpec>(bad).is_err(), "{bad}");
        }
        let text = toml::to_string(&OptimSpec::default()).expect("serialises");
        assert_eq!(spec(&text), OptimSpec::default());
        assert_eq!(spec("warmup = 10").warmup, Warmup::Steps(10));
    }
}
