//! The entropy bonus (methods 1.8): `-alpha H` in the loss, H the mean entropy over loss tokens of sampled answers.
//! Knows one measured number per step. Cost: none; the head computes entropies anyway.

use serde::{Deserialize, Serialize};

use super::knob::FromNumber;

/// The entropy term. A plain number is a fixed `alpha`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EntropySpec {
    /// Strength, at the start if a target is given. 0 by default; 0.001 to 0.01 where answers become all alike.
    pub alpha: f64,
    /// Entropy to hold. With a target, alpha rises while the measured entropy is at most this and falls otherwise.
    /// Choose a value near what the run shows early on.
    pub target: Option<f64>,
    /// How far alpha moves per step.
    pub delta: f64,
    /// Smallest alpha.
    pub min: f64,
    /// Largest alpha.
    pub max: f64,
}

impl Default for EntropySpec {
    fn default() -> Self {
        Self { alpha: 0.0, target: None, delta: 0.005, min: 0.0, max: 1.0 }
    }
}

impl FromNumber for EntropySpec {
    fn from_number(alpha: f64) -> Self {
        Self { alpha, ..Self::default() }
    }
}

/// What the bonus remembers between steps; part of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct EntropyState {
    /// Strength.
    pub alpha: f64,
    /// Whether the next step applies it.
    pub on: bool,
}

impl EntropySpec {
    /// Whether the settings make sense; the message says what does not.
    pub fn check(&self) -> Result<(), &'static str> {
        if !self.alpha.is_finite() || !self.delta.is_finite() || self.min.is_nan() || self.min > self.max {
            return Err("entropy needs finite numbers, and entropy.min must not exceed entropy.max");
        }
        Ok(())
    }

    /// The state before the first step. With a target nothing has been measured yet, so nothing is applied.
    pub fn start(&self) -> EntropyState {
        EntropyState { alpha: self.alpha, on: self.target.is_none() && self.alpha != 0.0 }
    }

    /// Whether the term may ever be used.
    pub fn is_used(&self) -> bool {
        self.alpha != 0.0 || self.target.is_some()
    }
}

impl EntropyState {
    /// Strength in the next step.
    pub fn alpha(&self) -> f64 {
        if self.on { self.alpha } else { 0.0 }
    }

    /// The state after a step with this measured entropy.
    pub fn after(self, spec: &EntropySpec, measured: f64) -> Self {
        let Some(target) = spec.target else { return self };
        let low = measured <= target;
        let alpha = if low { (self.alpha + spec.delta).min(spec.max) } else { (self.alpha - spec.delta).max(spec.min) };
        Self { alpha, on: low }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alpha_follows_the_measured_entropy() {
        let spec = EntropySpec { target: Some(0.5), delta: 0.25, max: 0.5, ..Default::default() };
        let mut state = spec.start();
        assert_eq!(state.alpha(), 0.0);
        for (measured, alpha, applied) in
            [(0.4, 0.25, 0.25), (0.5, 0.5, 0.5), (0.1, 0.5, 0.5), (0.6, 0.25, 0.0), (0.6, 0.0, 0.0), (0.6, 0.0, 0.0)]
        {
            state = state.after(&spec, measured);
            assert_eq!((state.alpha, state.alpha()), (alpha, applied));
        }
        let fixed = EntropySpec::from_number(0.01);
        assert_eq!(fixed.start().after(&fixed, 9.0).alpha(), 0.01);
    }
}
