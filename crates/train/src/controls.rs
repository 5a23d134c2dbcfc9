//! What a stage carries from step to step beside weights and moments: strengths that move, what is known of the
//! questions, buffers and budgets. Plain data, written into every checkpoint. Cost: none.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::reward::refiner::TemplateStore;
use crate::reward::watch::{ConstantWatch, UnknownWatch};
use crate::run::Stage;
use crate::update::difficulty::pools::Pools;
use crate::update::entropy::EntropyState;
use crate::update::replay::{ReplayBuffer, TargetQueue};
use crate::update::statistics::RunningAccuracy;
use crate::update::{Rule, RuleStats};

/// What a stage carries from step to step; part of a checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Controls {
    /// Strength of the KL term.
    pub beta: f64,
    /// Strength of the entropy term.
    pub entropy: EntropyState,
    /// Accuracy per question so far.
    pub accuracy: RunningAccuracy,
    /// Questions asked so far, those that were dropped included. The order follows from the seed.
    pub position: u64,
    /// Worked examples shown so far by a mixture.
    pub shown: u64,
    /// Latest results per question.
    pub pools: Pools,
    /// Past answers to be learned again.
    pub replay: ReplayBuffer,
    /// Questions whose target waits for a supervised step.
    pub queue: TargetQueue,
    /// The refiner's template.
    pub templates: TemplateStore,
    /// Unknown rewards of the last steps.
    pub unknown: UnknownWatch,
    /// Targets of the last steps that could not be written anew.
    #[serde(default)]
    pub refiner: UnknownWatch,
    /// Rewards that were constant so far.
    pub constant: ConstantWatch,
    /// Requests to language models so far, over all stages, by the name of the reward or helper.
    pub calls: BTreeMap<String, u64>,
    /// The watched metric, newest last.
    pub history: VecDeque<f64>,
    /// Whether the stage is over before its steps are.
    pub ended: bool,
}

impl Controls {
    /// At the start of a stage.
    pub fn new(stage: &Stage) -> Self {
        let template = stage.refiner.as_ref().map(|refiner| refiner.first_template()).unwrap_or_default();
        Self {
            beta: stage.rule.kl.beta,
            entropy: stage.rule.entropy.start(),
            accuracy: RunningAccuracy::default(),
            position: 0,
            shown: 0,
            pools: Pools::default(),
            replay: ReplayBuffer::default(),
            queue: TargetQueue::default(),
            templates: TemplateStore::new(template),
            unknown: UnknownWatch::default(),
            refiner: UnknownWatch::default(),
            constant: ConstantWatch::default(),
            calls: BTreeMap::new(),
            history: VecDeque::new(),
            ended: false,
        }
    }

    /// Moves the strengths after a step with these measurements over `samples` answers.
    pub fn after(&mut self, rule: &Rule, stats: &RuleStats, samples: u64) {
        if let Some(kl) = stats.mean_kl() {
            self.beta = rule.kl.beta_after(self.beta, kl, samples);
        }
        if let Some(entropy) = stats.mean_entropy() {
            self.entropy = self.entropy.after(&rule.entropy, entropy);
        }
    }
}
