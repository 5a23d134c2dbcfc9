//! Dynamic sampling (DAPO, arXiv 2503.14476; methods 1.13): a step keeps only groups that can teach, and draws more
//! questions until it has enough. Sees accuracies and advantages. Cost: sampling the groups that are dropped.

use serde::{Deserialize, Serialize};

use crate::update::advantage::GroupRewards;

/// Which groups a step keeps. Off unless the recipe has the table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DynamicSpec {
    /// Turns it off while keeping the other settings.
    pub enabled: bool,
    /// Groups whose mean accuracy is at most this are dropped. 0 drops the all-wrong ones.
    pub lo: f64,
    /// Groups whose mean accuracy is at least this are dropped. 1 drops the all-right ones.
    pub hi: f64,
    /// Rounds of sampling before the step goes on with what there is. 20 is published, 3 is milder; 1 never refills.
    pub max_tries: u32,
    /// What decides.
    pub gate: GateKind,
}

impl Default for DynamicSpec {
    fn default() -> Self {
        Self { enabled: true, lo: 0.0, hi: 1.0, max_tries: 20, gate: GateKind::Accuracy }
    }
}

/// What decides whether a group is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GateKind {
    /// Its mean accuracy lies strictly between `lo` and `hi`.
    #[default]
    Accuracy,
    /// Any of its advantages is not 0; nothing is refilled.
    Advantage,
}

impl DynamicSpec {
    /// Whether the settings make sense; the message says what does not.
    pub fn check(&self) -> Result<(), &'static str> {
        if !(self.lo < self.hi && self.hi.is_finite() && self.lo.is_finite()) {
            return Err("dynamic.lo must lie below dynamic.hi");
        }
        if !(1..=1000).contains(&self.max_tries) {
            return Err("dynamic.max_tries lies between 1 and 1000");
        }
        Ok(())
    }

    /// Whether groups without a right answer are dropped.
    pub fn drops_failed(&self) -> bool {
        self.enabled && self.gate == GateKind::Accuracy && self.lo >= 0.0
    }

    /// Whether a group is kept. Groups in which nothing is known are not.
    pub fn keeps(&self, group: &GroupRewards, advantages: &[f64]) -> bool {
        match self.gate {
            _ if !self.enabled => true,
            GateKind::Accuracy => group.mean_accuracy().is_some_and(|mean| self.lo < mean && mean < self.hi),
            GateKind::Advantage => advantages.iter().any(|a| *a != 0.0),
        }
    }
}

/// Counts kept groups over the rounds of one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refill {
    wanted: usize,
    kept: usize,
    drawn: usize,
    tries: u32,
    max_tries: u32,
}

impl Refill {
    /// A step that wants this many groups.
    pub fn new(spec: &DynamicSpec, wanted: usize) -> Self {
        let refills = spec.enabled && spec.gate == GateKind::Accuracy;
        Self { wanted, kept: 0, drawn: 0, tries: 0, max_tries: if refills { spec.max_tries.max(1) } else { 1 } }
    }

    /// Questions to draw in the next round; 0 when the step has enough or the tries are used up.
    pub fn next_round(&self) -> usize {
        if self.tries >= self.max_tries { 0 } else { self.wanted.saturating_sub(self.kept) }
    }

    /// Notes a round of `drawn` groups of which `kept` passed the gate.
    pub fn note(&mut self, drawn: usize, kept: usize) {
        self.tries += 1;
        self.drawn += drawn;
        self.kept += kept;
    }

    /// Rounds so far.
    pub fn tries(&self) -> u32 {
        self.tries
    }

    /// Share of the drawn groups that were kept.
    pub fn kept_fraction(&self) -> f64 {
        self.kept as f64 / self.drawn.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(accuracy: &[Option<f64>]) -> GroupRewards {
        GroupRewards { accuracy: accuracy.to_vec(), totals: accuracy.to_vec(), ..Default::default() }
    }

    #[test]
    fn only_mixed_groups_pass() {
        let spec = DynamicSpec::default();
        for (accuracy, want) in [
            (vec![Some(0.0), Some(0.0)], false),
            (vec![Some(1.0), Some(0.0)], true),
            (vec![Some(1.0), Some(1.0)], false),
            (vec![None, None], false),
            (vec![None, Some(1.0), Some(0.0)], true),
        ] {
            assert_eq!(spec.keeps(&group(&accuracy), &[0.0]), want, "{accuracy:?}");
        }
        let advantage = DynamicSpec { gate: GateKind::Advantage, ..spec.clone() };
        assert!(advantage.keeps(&group(&[Some(0.0)]), &[0.1]) && !advantage.keeps(&group(&[Some(1.0)]), &[0.0]));
        assert!(DynamicSpec { enabled: false, ..spec }.keeps(&group(&[None]), &[]));
    }

    #[test]
    fn a_step_refills_until_it_has_enough_or_gives_up() {
        let mut refill = Refill::new(&DynamicSpec { max_tries: 3, ..Default::default() }, 8);
        assert_eq!(refill.next_round(), 8);
        refill.note(8, 3);
        assert_eq!(refill.next_round(), 5);
        refill.note(5, 5);
        assert_eq!((refill.next_round(), refill.tries()), (0, 2));
        let mut poor = Refill::new(&DynamicSpec { max_tries: 2, ..Default::default() }, 8);
        poor.note(8, 0);
        poor.note(8, 1);
        assert_eq!((poor.next_round(), poor.kept_fraction()), (0, 1.0 / 16.0));
        let mut once = Refill::new(&DynamicSpec { gate: GateKind::Advantage, ..Default::default() }, 8);
        once.note(8, 2);
        assert_eq!(once.next_round(), 0);
    }
}
