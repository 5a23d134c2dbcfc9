//! A recipe as the program uses it: `resolve` decides every default, `check` looks at the data; nothing optional is left
//! that has no meaning.
//! Serialises back into a recipe: the `recipe.toml` of a run's folder says in full what was run.
//! Cost: opening the data once.

mod check;
mod resolve;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use foveate_model::{Precision, Trainable};
use serde::Serialize;

use crate::ask::{AskConfig, TargetConfig, TargetTemperature};
use crate::checkpoint::CheckpointConfig;
use crate::checkpoint::crc32c::crc32c;
use crate::data::{self, Amount, DataError, Dataset, Sources, Take};
use crate::eval::EvalConfig;
use crate::lora::LoraConfig;
use crate::memory::MemoryConfig;
use crate::optim::OptimSpec;
use crate::prompt::ImageLimits;
use crate::recipe::{ModelRef, Reference};
use crate::report::ReportConfig;
use crate::reward::refiner::RefinerSpec;
use crate::reward::watch::MaxUnknown;
use crate::reward::{RewardSpec, Unknown};
use crate::rollout::SamplingConfig;
use crate::until::UntilSpec;
use crate::update::assemble::Temperatures;
use crate::update::difficulty::gate::DynamicSpec;
use crate::update::difficulty::pools::PoolSpec;
use crate::update::difficulty::start_state::StartStateSpec;
use crate::update::mix::MixSpec;
use crate::update::replay::ReplaySpec;
use crate::update::{AdvantageSpec, RuleKind, RuleSpec, SelectorSpec};

pub use check::overlaps;
pub use resolve::resolve;

/// A run, resolved.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// Names the run.
    pub name: String,
    /// Key of all randomness.
    pub seed: u64,
    /// Where it starts.
    pub model: ModelRef,
    /// Where it computes.
    pub device: String,
    /// Number type of matrix operands.
    pub precision: Precision,
    /// Adapters that learn in the place of the weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraConfig>,
    /// What waits where.
    #[serde(skip_serializing_if = "MemoryConfig::is_default")]
    pub memory: MemoryConfig,
    /// Limits on pictures.
    #[serde(skip_serializing_if = "ImageLimits::is_empty")]
    pub images: ImageLimits,
    /// Test suites.
    pub data: TestData,
    /// Evaluation before and after.
    pub eval: EvalConfig,
    /// When checkpoints are written.
    pub checkpoint: CheckpointConfig,
    /// What is written down.
    pub report: ReportConfig,
    /// How rows are put to the model in evaluations, and in stages that say nothing else.
    pub prompt: AskConfig,
    /// The stages, in order.
    pub stage: Vec<Stage>,
    /// The recipe's folder: relative paths start there.
    #[serde(skip)]
    pub base: PathBuf,
    /// What the person should know about odd combinations.
    #[serde(skip)]
    pub remarks: Vec<String>,
}

/// Suites of a resolved run; training data stands in the stages.
#[derive(Clone, Debug, Serialize)]
pub struct TestData {
    /// Suites by name.
    pub test: BTreeMap<String, Sources>,
    /// Accepts test rows that are in the training data as well.
    pub allow_overlap: bool,
}

/// A stage, resolved.
#[derive(Clone, Debug, Serialize)]
pub struct Stage {
    /// Names the stage in logs.
    pub name: String,
    /// What it learns from.
    pub data: Sources,
    /// Rows at its start that are left out.
    pub skip: Amount,
    /// Which of the rest are used.
    pub take: Take,
    /// Weights it starts from.
    pub start: Start,
    /// Frozen model of the KL term, if there is one.
    pub reference: Reference,
    /// Steps to be made, at most.
    pub steps: u64,
    /// What ends it earlier.
    pub until: Option<UntilSpec>,
    /// How a row is put to the model.
    pub prompt: AskConfig,
    /// What a supervised or memorised answer looks like.
    pub target: TargetConfig,
    /// Questions of one step.
    pub questions_per_step: u32,
    /// Answers per question; 1 in supervised stages.
    pub answers_per_question: u32,
    /// Optimiser steps per step.
    pub updates: u32,
    /// Packed tokens of one forward pass.
    pub tokens_per_batch: usize,
    /// How answers are drawn.
    pub sampling: SamplingConfig,
    /// Terms of the reward.
    pub rewards: Vec<RewardSpec>,
    /// What happens to an answer with an unknown reward.
    pub unknown: Unknown,
    /// How many unknown rewards stop the run.
    pub max_unknown: MaxUnknown,
    /// From rewards to advantages.
    pub advantage: AdvantageSpec,
    /// Explore, memorise or skip.
    pub selector: SelectorSpec,
    /// The update rule.
    pub rule: RuleSpec,
    /// Optimiser and schedule.
    pub optim: OptimSpec,
    /// Which parts learn.
    pub train: Trainable,
    /// Keeps only questions that can teach.
    pub dynamic: Option<DynamicSpec>,
    /// Chooses questions by past results.
    pub pools: Option<PoolSpec>,
    /// Learns again from past answers.
    pub replay: Option<ReplaySpec>,
    /// Mixes supervised learning in.
    pub mix: Option<MixSpec>,
    /// Starts answers part of the way through.
    pub start_state: Option<StartStateSpec>,
    /// Writes targets anew.
    pub refiner: Option<RefinerSpec>,
}

/// Weights that a stage starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// What the stage before left, or the run's model.
    Previous,
    /// The run's model.
    Base,
    /// What an earlier stage left.
    Stage(String),
    /// A folder.
    Folder(PathBuf),
}

impl Serialize for Start {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Start::Previous => serializer.serialize_str("previous"),
            Start::Base => serializer.serialize_str("base"),
            Start::Stage(name) => serializer.serialize_str(name),
            Start::Folder(path) => serializer.serialize_str(&path.to_string_lossy()),
        }
    }
}

impl Stage {
    /// The rows it learns from.
    pub fn open(&self, base: &Path, seed: u64) -> Result<Dataset, DataError> {
        data::open(&self.data, base, seed)?.select(self.skip, self.take, seed)
    }

    /// The worked examples of its supervised part, if it mixes some in.
    pub fn open_mix(&self, base: &Path, seed: u64) -> Result<Option<Dataset>, DataError> {
        match &self.mix {
            None => Ok(None),
            Some(MixSpec { data: Some(data), .. }) => data::open(data, base, seed).map(Some),
            Some(_) => self.open(base, seed).map(Some),
        }
    }

    /// The temperatures that log-probabilities of sampled answers and of targets refer to.
    pub fn temperatures(&self) -> Temperatures {
        let sampled = self.sampling.scored_at();
        let target = match self.target.temperature {
            TargetTemperature::At(temperature) => temperature,
            TargetTemperature::Same => sampled,
        };
        Temperatures { sampled, target }
    }

    /// The metric that its end condition watches, if it has one.
    pub fn watched_metric(&self) -> Option<&str> {
        let default = if self.is_supervised() { "update/loss_sft" } else { "reward/accuracy/mean" };
        Some(self.until.as_ref()?.metric.as_deref().unwrap_or(default))
    }

    /// Whether it learns from given targets instead of sampled answers.
    pub fn is_supervised(&self) -> bool {
        self.rule.kind == RuleKind::Sft
    }

    /// Whether its loss or rewards need a frozen model.
    pub fn needs_reference(&self) -> bool {
        self.rule.kl.needs_reference()
    }
}

/// A resolved recipe without what may change between a stop and a resume: where it computes, and what waits where.
pub fn lasting(recipe: &str) -> String {
    let Ok(mut table) = recipe.parse::<toml::Table>() else { return recipe.to_string() };
    for key in ["device", "memory"] {
        table.remove(key);
    }
    table.to_string()
}

impl Run {
    /// The resolved recipe as TOML.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a resolved run is plain data")
    }

    /// Checksum of everything that a resumed run must share with the run it continues.
    pub fn fingerprint(&self) -> u32 {
        crc32c(lasting(&self.to_toml()).as_bytes())
    }

    /// Steps of all stages.
    pub fn num_steps(&self) -> u64 {
        self.stage.iter().map(|stage| stage.steps).sum()
    }
}
