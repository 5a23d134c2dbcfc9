//! A recipe as it was typed: every key, nothing decided, nothing opened.
//! Each room declares its own settings; here they are put together. Unknown keys are refused with the nearest known
//! one. Cost: none.

pub mod parse;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use foveate_model::{Precision, Trainable};
use serde::de::{self, MapAccess, Visitor, value::MapAccessDeserializer};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::ask::{AskConfig, TargetConfig};
use crate::checkpoint::CheckpointConfig;
use crate::data::{Amount, Format, Sources, Take};
use crate::eval::EvalConfig;
use crate::fresh::NewModel;
use crate::lora::LoraConfig;
use crate::memory::MemoryConfig;
use crate::optim::OptimSpec;
use crate::prompt::ImageLimits;
use crate::report::ReportConfig;
use crate::reward::refiner::RefinerSpec;
use crate::reward::watch::MaxUnknown;
use crate::reward::{Compat, RewardSpec, Unknown};
use crate::rollout::SamplingConfig;
use crate::until::UntilSpec;
use crate::update::difficulty::gate::DynamicSpec;
use crate::update::difficulty::pools::PoolSpec;
use crate::update::difficulty::start_state::StartStateSpec;
use crate::update::mix::MixSpec;
use crate::update::replay::ReplaySpec;
use crate::update::{AdvantageSpec, RuleSpec, SelectorSpec};
use parse::RecipeError;

/// What a recipe says.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawRecipe {
    /// Names the run and its folder.
    pub name: String,
    /// Key of all randomness. Same recipe, same seed, same kind of machine: same bytes.
    pub seed: Option<u64>,
    /// Where the run starts: `"minnow"` (built in), a folder in Hugging Face layout, a folder with a PEFT adapter, or a
    /// new model. With `[lora]` an adapter goes on learning, without it is merged into the model first.
    pub model: ModelRef,
    /// Where it computes: `cpu`, `cuda:0` (the first NVIDIA GPU) or `auto`. `auto` is the CPU until the GPU's results have
    /// been seen on a GPU (docs/gpu.md).
    pub device: Option<String>,
    /// Number type of matrix operands: `auto`, `bf16`, `f32`. `auto` is bf16 where the machine is fast at it.
    pub precision: Option<Precision>,
    /// Reproduces a published system, quirks included, in every reward that does not say otherwise.
    pub compat: Option<Compat>,
    /// Learn small adapters beside the frozen weights instead of the weights themselves.
    pub lora: Option<LoraConfig>,
    /// Needs less memory and more time.
    pub memory: Option<MemoryConfig>,
    /// Limits on what the model sees of a picture: detail against cost.
    pub images: Option<ImageLimits>,
    /// Questions to learn from and to be tested on.
    pub data: RawData,
    /// Evaluation before and after.
    pub eval: Option<EvalConfig>,
    /// When checkpoints are written.
    pub checkpoint: Option<CheckpointConfig>,
    /// What is written down beside the metrics.
    pub report: Option<ReportConfig>,
    /// The stages, in order.
    pub stage: Vec<RawStage>,

    // What stages share: a stage that does not say otherwise takes these.
    /// See [`RawStage::prompt`].
    pub prompt: Option<AskConfig>,
    /// See [`RawStage::target`].
    pub target: Option<TargetConfig>,
    /// See [`RawStage::questions_per_step`].
    pub questions_per_step: Option<u32>,
    /// See [`RawStage::answers_per_question`].
    pub answers_per_question: Option<u32>,
    /// See [`RawStage::updates`].
    pub updates: Option<u32>,
    /// See [`RawStage::tokens_per_batch`].
    pub tokens_per_batch: Option<usize>,
    /// See [`RawStage::sampling`].
    pub sampling: Option<SamplingConfig>,
    /// See [`RawStage::rewards`].
    pub rewards: Option<Vec<RewardSpec>>,
    /// See [`RawStage::unknown`].
    pub unknown: Option<Unknown>,
    /// See [`RawStage::advantage`].
    pub advantage: Option<AdvantageSpec>,
    /// See [`RawStage::selector`].
    pub selector: Option<SelectorSpec>,
    /// See [`RawStage::rule`].
    pub rule: Option<RuleSpec>,
    /// See [`RawStage::max_unknown`].
    pub max_unknown: Option<MaxUnknown>,
    /// See [`RawStage::dynamic`].
    pub dynamic: Option<DynamicSpec>,
    /// See [`RawStage::pools`].
    pub pools: Option<PoolSpec>,
    /// See [`RawStage::replay`].
    pub replay: Option<ReplaySpec>,
    /// See [`RawStage::mix`].
    pub mix: Option<MixSpec>,
    /// See [`RawStage::start_state`].
    pub start_state: Option<StartStateSpec>,
    /// See [`RawStage::refiner`].
    pub refiner: Option<RefinerSpec>,
    /// See [`RawStage::optim`].
    pub optim: Option<OptimSpec>,
    /// See [`RawStage::train`].
    pub train: Option<Trainable>,
}

/// Data of a recipe.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawData {
    /// What stages without data of their own learn from: one source or a list.
    pub train: Option<Sources>,
    /// Test suites by name, for instance `id` and `ood`.
    #[serde(default)]
    pub test: BTreeMap<String, Sources>,
    /// Accepts test rows that are in the training data as well. Their score says what was learnt by heart.
    #[serde(default)]
    pub allow_overlap: bool,
}

/// One stage as it was typed.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawStage {
    /// Names the stage in logs.
    pub name: Option<String>,
    /// Data of this stage, if not the recipe's `data.train`.
    pub data: Option<Sources>,
    /// How many rows at the start of that data are left out: `N` or `N%`.
    pub skip: Option<Amount>,
    /// Which of the rest are used: `all` (the default), `first:N`, `end:N`, `random:N`; each N may be a share, `25%`.
    pub take: Option<Take>,
    /// In which form questions are put, in place of what the sources say: `open`, `choice` or `judge`.
    pub format: Option<Format>,
    /// Weights it starts from: `previous` (the default), `base`, the name of an earlier stage, or a folder.
    pub start: Option<String>,
    /// Frozen model of the KL term: `stage_start` (the default), `base`, the name of an earlier stage, a folder,
    /// `{ ema = 0.99 }` for a mean that follows slowly, or `none` for a stage that must not have one. Loaded only if the
    /// rule has a KL term.
    pub reference: Option<Reference>,
    /// Optimiser steps (rollout batches, for reinforcement). Give this or `epochs`.
    pub steps: Option<u64>,
    /// Passes over the data. Give this or `steps`.
    pub epochs: Option<f64>,
    /// Ends the stage earlier: accuracy reached, or a plateau.
    pub until: Option<UntilSpec>,
    /// How a row is put to the model.
    pub prompt: Option<AskConfig>,
    /// What a supervised or memorised answer looks like.
    pub target: Option<TargetConfig>,
    /// Questions (rows, for supervised stages) of one step. More gives a steadier gradient and costs time in
    /// proportion; 16 is a good start for reinforcement, 32 to 64 for supervision.
    pub questions_per_step: Option<u32>,
    /// Answers sampled per question. More gives a steadier baseline and costs sampling time in proportion; 8 is a good
    /// start, 4 the least that works well.
    pub answers_per_question: Option<u32>,
    /// Optimiser steps that the answers of one step are split over. 1 keeps learning exactly on-policy; more saves
    /// sampling time and lets clipping matter.
    pub updates: Option<u32>,
    /// Packed tokens of one forward pass. Bounds memory; changes neither gradients nor results beyond rounding.
    pub tokens_per_batch: Option<usize>,
    /// How answers are drawn.
    pub sampling: Option<SamplingConfig>,
    /// Terms of the reward.
    pub rewards: Option<Vec<RewardSpec>>,
    /// What happens to an answer with an unknown reward.
    pub unknown: Option<Unknown>,
    /// From rewards to advantages.
    pub advantage: Option<AdvantageSpec>,
    /// Explore, memorise or skip, per group.
    pub selector: Option<SelectorSpec>,
    /// The update rule; `sft` makes this a supervised stage.
    pub rule: Option<RuleSpec>,
    /// How many unknown rewards stop the run: a judge or plug-in that fails this often teaches nothing.
    pub max_unknown: Option<MaxUnknown>,
    /// Keeps only questions that can teach, and draws more until the step is full.
    pub dynamic: Option<DynamicSpec>,
    /// Chooses questions by how the model fared on them before.
    pub pools: Option<PoolSpec>,
    /// Learns again from answers of earlier steps.
    pub replay: Option<ReplaySpec>,
    /// Mixes supervised learning into a reinforcement stage.
    pub mix: Option<MixSpec>,
    /// Lets answers start part of the way through the reference reasoning.
    pub start_state: Option<StartStateSpec>,
    /// Writes the targets of failed questions anew.
    pub refiner: Option<RefinerSpec>,
    /// Optimiser and schedule.
    pub optim: Option<OptimSpec>,
    /// Which parts of the model learn.
    pub train: Option<Trainable>,
}

/// Frozen model of the KL term.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Reference {
    /// The weights at the start of the stage.
    #[default]
    StageStart,
    /// The weights at the start of the run.
    Base,
    /// The model underneath the adapters that learn, whatever they were when the run began.
    AdapterOff,
    /// What an earlier stage left.
    Stage(String),
    /// A folder.
    Folder(PathBuf),
    /// A mean over the weights that learn, `ema * mean + (1 - ema) * weights` after each step: it begins where the stage
    /// does and follows. The KL term then slows a run down without tying it to where it began; 0.99 forgets in about a
    /// hundred steps.
    Mean(f64),
    /// No model: a rule with a KL term is refused.
    None,
}

impl Serialize for Reference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Reference::StageStart => serializer.serialize_str("stage_start"),
            Reference::Base => serializer.serialize_str("base"),
            Reference::AdapterOff => serializer.serialize_str("adapter_off"),
            Reference::None => serializer.serialize_str("none"),
            Reference::Stage(name) => serializer.serialize_str(name),
            Reference::Folder(folder) => serializer.serialize_str(&folder.to_string_lossy()),
            Reference::Mean(ema) => BTreeMap::from([("ema", ema)]).serialize(serializer),
        }
    }
}

// By hand for the same reason as `ModelRef` below. A name that is no word is a folder until the stages are known.
impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Table {
            ema: f64,
        }
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Reference;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("\"stage_start\", \"base\", \"none\", an earlier stage, a folder, or { ema = 0.99 }")
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<Reference, E> {
                Ok(match name {
                    "stage_start" => Reference::StageStart,
                    "base" => Reference::Base,
                    "adapter_off" => Reference::AdapterOff,
                    "none" => Reference::None,
                    name => Reference::Folder(PathBuf::from(name)),
                })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Reference, A::Error> {
                Ok(Reference::Mean(Table::deserialize(MapAccessDeserializer::new(map))?.ema))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// Where a run starts.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum ModelRef {
    /// `"minnow"` or a folder.
    Named(String),
    /// A model with random weights.
    New {
        /// Its architecture.
        new: NewModel,
    },
}

// By hand, because an untagged enum would answer every typing error with "did not match any variant".
impl<'de> Deserialize<'de> for ModelRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Table {
            new: NewModel,
        }
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = ModelRef;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("\"minnow\", a folder, or a table [model.new]")
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<ModelRef, E> {
                Ok(ModelRef::Named(name.to_string()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ModelRef, A::Error> {
                Ok(ModelRef::New { new: Table::deserialize(MapAccessDeserializer::new(map))?.new })
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// Reads a recipe file; `sets` are `key=value` pairs that replace what it says.
pub fn read(file: &Path, sets: &[String]) -> Result<RawRecipe, RecipeError> {
    let text = std::fs::read_to_string(file).map_err(|error| {
        RecipeError::new(file, format!("cannot be read: {error}"), "recipes are TOML files; see recipes/".to_string())
    })?;
    parse::parse(file, &text, sets)
}
