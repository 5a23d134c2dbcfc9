//! Which questions come next, given how the model fared on them before (methods 1.13): pools of easy, normal and hard
//! questions, or a preference for questions that are answered right half of the time.
//! State is one number per question met. Cost of a draw: one random number per question of the dataset.

use std::collections::BTreeMap;

use foveate_kernels::rng::{Purpose, Stream};
use serde::{Deserialize, Serialize};

/// How past results choose questions. Off unless the recipe has the table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PoolSpec {
    /// What the weight follows.
    pub kind: PoolKind,
    /// `thresholds`: results up to this are hard.
    pub hard: f64,
    /// `thresholds`: results up to this, and above `hard`, are normal; the rest is easy.
    pub normal: f64,
    /// `thresholds`: weights of hard, normal and easy questions. Questions not met yet weigh 1.
    pub weights: [f64; 3],
    /// `variance`: weight that even a question without spread keeps, so that it comes back now and then.
    pub floor: f64,
    /// `variance`: share of the newest result in the running accuracy.
    pub momentum: f64,
}

impl PoolSpec {
    /// Whether the settings make sense; the message says what does not.
    pub fn check(&self) -> Result<(), &'static str> {
        if !(0.0 <= self.hard && self.hard <= self.normal && self.normal <= 1.0) {
            return Err("pools.hard and pools.normal lie between 0 and 1, hard not above normal");
        }
        if !self.weights.iter().all(|w| w.is_finite() && *w >= 0.0) || self.weights.iter().all(|w| *w == 0.0) {
            return Err("pools.weights are three numbers of at least 0, not all 0");
        }
        if !(self.floor > 0.0 && self.floor.is_finite() && self.momentum > 0.0 && self.momentum <= 1.0) {
            return Err("pools.floor is above 0, pools.momentum above 0 and at most 1");
        }
        Ok(())
    }
}

impl Default for PoolSpec {
    fn default() -> Self {
        Self {
            kind: PoolKind::Thresholds,
            hard: 0.25,
            normal: 0.75,
            weights: [0.2, 1.0, 0.2],
            floor: 0.05,
            momentum: 0.5,
        }
    }
}

/// What the weight of a question follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolKind {
    /// The latest group mean falls into one of three pools.
    #[default]
    Thresholds,
    /// `p (1 - p) + floor` of a running accuracy p.
    Variance,
}

/// Where the keys of rounds begin: the numbers before it belong to other draws for the same purpose.
const ROUNDS: u32 = 16;

/// Results per question; part of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pools {
    results: BTreeMap<u64, f64>,
}

impl Pools {
    /// Notes the mean of a group, between 0 and 1.
    pub fn note(&mut self, spec: &PoolSpec, question: u64, mean: f64) {
        if !mean.is_finite() {
            return;
        }
        let entry = self.results.entry(question).or_insert(mean);
        *entry = match spec.kind {
            PoolKind::Thresholds => mean,
            PoolKind::Variance => *entry + spec.momentum * (mean - *entry),
        };
    }

    /// Weight of a question.
    pub fn weight(&self, spec: &PoolSpec, question: u64) -> f64 {
        let Some(&result) = self.results.get(&question) else { return 1.0 };
        match spec.kind {
            PoolKind::Thresholds if result <= spec.hard => spec.weights[0],
            PoolKind::Thresholds if result <= spec.normal => spec.weights[1],
            PoolKind::Thresholds => spec.weights[2],
            // Four times, so that the largest weight is that of a question not met yet.
            PoolKind::Variance => 4.0 * result * (1.0 - result) + spec.floor,
        }
    }

    /// Draws `count` different questions out of `total` by weight, without replacement; fewer if fewer have weight.
    /// `round` tells draws of one step apart.
    pub fn draw(&self, spec: &PoolSpec, total: u64, count: usize, seed: u64, step: u32, round: u32) -> Vec<u64> {
        let mut keys: Vec<(f64, u64)> = Vec::new();
        for question in 0..total {
            let weight = self.weight(spec, question);
            if weight > 0.0 {
                let uniform =
                    f64::from(Stream::new(seed, Purpose::Replay, step, question as u32, ROUNDS + round).uniform(0));
                // Efraimidis and Spirakis 2006: the largest u^(1/w) are a weighted sample; in logarithms.
                keys.push((uniform.max(1e-12).ln() / weight, question));
            }
        }
        keys.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        keys.into_iter().take(count).map(|(_, question)| question).collect()
    }

    /// Number of questions met so far in the pools hard, normal and easy.
    pub fn sizes(&self, spec: &PoolSpec) -> [usize; 3] {
        let mut sizes = [0; 3];
        for &result in self.results.values() {
            let pool = usize::from(result > spec.hard) + usize::from(result > spec.normal);
            sizes[pool] += 1;
        }
        sizes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_follow_the_results() {
        let spec = PoolSpec::default();
        let mut pools = Pools::default();
        for (question, mean) in [(0, 0.0), (1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0)] {
            pools.note(&spec, question, mean);
        }
        let weights: Vec<f64> = (0..6).map(|q| pools.weight(&spec, q)).collect();
        assert_eq!(weights, [0.2, 0.2, 1.0, 1.0, 0.2, 1.0]);
        assert_eq!(pools.sizes(&spec), [2, 2, 1]);
        assert!(spec.check().is_ok() && PoolSpec { hard: 0.9, ..spec.clone() }.check().is_err());
        assert!(PoolSpec { weights: [0.0; 3], ..spec.clone() }.check().is_err());
        let variance = PoolSpec { kind: PoolKind::Variance, ..spec };
        let mut pools = Pools::default();
        pools.note(&variance, 7, 1.0);
        assert_eq!(pools.weight(&variance, 7), 0.05);
        pools.note(&variance, 7, 0.0);
        assert_eq!(pools.weight(&variance, 7), 1.05);
    }

    #[test]
    fn draws_repeat_and_prefer_heavy_questions() {
        let spec = PoolSpec { weights: [0.0, 1.0, 0.1], ..Default::default() };
        let mut pools = Pools::default();
        for question in 0..30 {
            pools.note(&spec, question, [0.0, 0.5, 1.0][question as usize % 3]);
        }
        let mut seen = [0usize; 3];
        for step in 0..200 {
            let drawn = pools.draw(&spec, 30, 5, 7, step, 0);
            assert_eq!(drawn, pools.draw(&spec, 30, 5, 7, step, 0));
            let mut distinct = drawn.clone();
            distinct.sort_unstable();
            distinct.dedup();
            assert_eq!(distinct.len(), 5);
            drawn.iter().for_each(|q| seen[*q as usize % 3] += 1);
        }
        assert!(seen[0] == 0 && seen[1] > 4 * seen[2], "{seen:?}");
        assert_eq!(pools.draw(&spec, 30, 50, 7, 0, 1).len(), 20, "questions without weight never come");
    }
}
