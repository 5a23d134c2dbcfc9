//! When a stage is over before its steps are: a metric has reached a bound, or has stopped moving.
//! Knows one series of numbers. Cost: none.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// The end of a stage beside its steps, which stay the upper bound (the learning rate follows them). The first of the
/// given conditions that holds ends the stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UntilSpec {
    /// The metric that is watched; `update/loss_sft` in supervised stages and `reward/accuracy/mean` in others, unless
    /// set. Steps without it do not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric: Option<String>,
    /// Over when its mean over the window is at least this: accuracy reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_least: Option<f64>,
    /// Over when its mean over the window is at most this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_most: Option<f64>,
    /// Over when its means over the window and over the window before it differ by less than this, whichever way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plateau: Option<f64>,
    /// Steps of a window. One step of 16 questions swings by ten points on luck alone; 20 or more are needed.
    pub window: usize,
    /// The stage has at least so many steps.
    pub min_steps: u64,
}

impl Default for UntilSpec {
    fn default() -> Self {
        Self { metric: None, at_least: None, at_most: None, plateau: None, window: 20, min_steps: 0 }
    }
}

impl UntilSpec {
    /// Whether the settings make sense; the message says what does not.
    pub fn check(&self) -> Result<(), &'static str> {
        let bounds = [self.at_least, self.at_most, self.plateau];
        if bounds.iter().all(Option::is_none) {
            return Err("until has no condition: give at_least, at_most or plateau");
        }
        if bounds.iter().flatten().any(|bound| !bound.is_finite()) || self.plateau.is_some_and(|by| by <= 0.0) {
            return Err("the bounds of until are finite numbers, and plateau is above 0");
        }
        if self.window == 0 {
            return Err("until.window must be at least 1");
        }
        Ok(())
    }

    /// Why the stage is over after `steps` steps, if it is. `history` holds the metric, newest last.
    pub fn reached(&self, history: &VecDeque<f64>, steps: u64) -> Option<String> {
        let window = self.window;
        if steps < self.min_steps || history.len() < window {
            return None;
        }
        let newest = history.len() - window;
        let mean = |from: usize| history.range(from..from + window).sum::<f64>() / window as f64;
        let now = mean(newest);
        if self.at_least.is_some_and(|bound| now >= bound) || self.at_most.is_some_and(|bound| now <= bound) {
            return Some(format!("its mean over {window} steps is {now:.4}"));
        }
        let before = newest.checked_sub(window).map(mean)?;
        let moved = (now - before).abs();
        self.plateau.is_some_and(|by| moved < by).then(|| format!("its mean moved by {moved:.4} over {window} steps"))
    }

    /// Values that have to be kept.
    pub fn memory(&self) -> usize {
        2 * self.window
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn until(text: &str) -> UntilSpec {
        toml::from_str(text).expect("syntax")
    }

    #[test]
    fn a_bound_is_reached_by_the_mean_of_a_window() {
        let spec = until("at_least = 0.5\nwindow = 2\nmin_steps = 3");
        let history = |values: &[f64]| values.iter().copied().collect::<VecDeque<f64>>();
        assert!(spec.reached(&history(&[0.9]), 9).is_none(), "no full window");
        assert!(spec.reached(&history(&[0.9, 0.0]), 9).is_none());
        assert!(spec.reached(&history(&[0.0, 0.4, 0.6]), 3).is_some());
        assert!(spec.reached(&history(&[0.9, 0.9]), 2).is_none(), "too early");
        let falling = until("at_most = 0.1\nwindow = 1");
        assert!(falling.reached(&history(&[0.3, 0.1]), 2).is_some() && falling.reached(&history(&[0.2]), 1).is_none());
    }

    #[test]
    fn a_plateau_needs_two_windows() {
        let spec = until("plateau = 0.05\nwindow = 2");
        let history = |values: &[f64]| values.iter().copied().collect::<VecDeque<f64>>();
        assert!(spec.reached(&history(&[0.5, 0.5, 0.5]), 3).is_none());
        assert!(spec.reached(&history(&[0.5, 0.5, 0.52, 0.5]), 4).is_some());
        assert!(spec.reached(&history(&[0.5, 0.5, 0.7, 0.6]), 4).is_none());
        assert!(spec.reached(&history(&[0.5, 0.5, 0.1, 0.1]), 4).is_none(), "falling is moving too");
    }

    #[test]
    fn settings_without_meaning_are_refused() {
        for bad in ["", "plateau = 0", "at_least = nan", "at_least = 1\nwindow = 0"] {
            assert!(until(bad).check().is_err(), "{bad}");
        }
        assert!(until("at_least = 0.9").check().is_ok());
    }
}
