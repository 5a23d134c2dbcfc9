//! Notices a judge that fails too often: a run that silently loses its reward teaches nothing.
//! Counts only; part of a checkpoint. Cost: none.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Bound on unknown rewards.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MaxUnknown {
    /// The run stops when more than this share of answers had an unknown reward.
    pub share: f64,
    /// Steps over which the share is taken.
    pub steps: usize,
}

impl Default for MaxUnknown {
    fn default() -> Self {
        Self { share: 0.2, steps: 50 }
    }
}

impl MaxUnknown {
    /// Whether the settings make sense; the message says what does not.
    pub fn check(&self) -> Result<(), &'static str> {
        if !(0.0..=1.0).contains(&self.share) || self.steps == 0 {
            return Err("max_unknown.share lies between 0 and 1, max_unknown.steps is at least 1");
        }
        Ok(())
    }
}

/// Steps without a single known reward that are enough to stop.
const SILENT_STEPS: usize = 5;

/// Steps after which a reward that never told two answers of a group apart is mentioned.
pub const CONSTANT_STEPS: u32 = 10;

/// Notices rewards that are the same for all answers of every group: they teach nothing, and something is wrong with
/// their settings, or the model is far from earning them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ConstantWatch {
    steps: u32,
    varied: Vec<String>,
}

impl ConstantWatch {
    /// Notes a step: for each reward, whether it differed within any group. Once, after the first steps, gives the
    /// rewards that never did.
    pub fn note<'a>(&mut self, rewards: impl IntoIterator<Item = (&'a str, bool)>) -> Vec<&'a str> {
        self.steps = self.steps.saturating_add(1);
        if self.steps > CONSTANT_STEPS {
            return Vec::new();
        }
        let mut constant = Vec::new();
        for (name, varies) in rewards {
            let known = self.varied.iter().any(|other| other == name);
            if varies && !known {
                self.varied.push(name.to_string());
            } else if !known {
                constant.push(name);
            }
        }
        if self.steps == CONSTANT_STEPS { constant } else { Vec::new() }
    }
}

/// Unknown rewards of the last steps.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct UnknownWatch {
    window: VecDeque<(u64, u64)>,
}

impl UnknownWatch {
    /// Notes a step; gives the share over the window if it is above the bound and the window is full, or if nothing was
    /// known for some steps.
    pub fn note(&mut self, bound: &MaxUnknown, unknown: usize, answers: usize) -> Option<f64> {
        self.window.push_back((unknown as u64, answers as u64));
        while self.window.len() > bound.steps.max(1) {
            self.window.pop_front();
        }
        let (unknown, answers) = self.window.iter().fold((0, 0), |(u, n), (du, dn)| (u + du, n + dn));
        let share = unknown as f64 / (answers as f64).max(1.0);
        // A helper that never answered need not be waited for as long as one that fails now and then.
        let full = self.window.len() >= bound.steps.max(1);
        let silent = self.window.len() >= SILENT_STEPS && unknown == answers && answers > 0;
        ((full || silent) && share > bound.share).then_some(share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reward_that_never_varies_is_mentioned_once() {
        let mut watch = ConstantWatch::default();
        for step in 1..=25 {
            let constant = watch.note([("format", false), ("accuracy", step == 3), ("length", step > 10)]);
            assert_eq!(constant, if step == CONSTANT_STEPS { vec!["format", "length"] } else { vec![] }, "{step}");
        }
    }

    #[test]
    fn a_failing_judge_is_noticed() {
        let bound = MaxUnknown { share: 0.2, steps: 3 };
        let mut watch = UnknownWatch::default();
        assert_eq!(watch.note(&bound, 8, 8), None, "one bad step is an outage");
        assert_eq!(watch.note(&bound, 0, 8), None);
        assert_eq!(watch.note(&bound, 0, 8), Some(1.0 / 3.0));
        assert_eq!(watch.note(&bound, 0, 8), None);
        assert_eq!(watch.note(&bound, 0, 0), None);
        let mut silent = UnknownWatch::default();
        let verdicts: Vec<_> = (0..5).map(|_| silent.note(&MaxUnknown::default(), 8, 8)).collect();
        assert_eq!(verdicts, [None, None, None, None, Some(1.0)]);
    }
}
