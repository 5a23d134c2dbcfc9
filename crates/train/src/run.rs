//! From what was typed to what the program uses: every default is decided here, every path checked, every row of data
//! counted; nothing optional is left that has no meaning.
//! Serialises back into a recipe: the `recipe.toml` of a run's folder says in full what was run.
//! Cost: opening the data once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use foveate_model::{Precision, Trainable, peft};
use serde::Serialize;

use crate::ask::{AskConfig, TargetConfig};
use crate::checkpoint::CheckpointConfig;
use crate::checkpoint::crc32c::crc32c;
use crate::data::{self, Sources};
use crate::error::TrainError;
use crate::eval::EvalConfig;
use crate::lora::LoraConfig;
use crate::optim::OptimSpec;
use crate::recipe::parse::RecipeError;
use crate::recipe::{ModelRef, RawRecipe, RawStage, Reference};
use crate::report::ReportConfig;
use crate::reward::{RewardSpec, Rewards, Unknown};
use crate::rollout::SamplingConfig;
use crate::source::{self, ModelSource};
use crate::update::mismatch::MismatchMode;
use crate::update::selector::SelectorKind;
use crate::update::{AdvantageSpec, RuleKind, RuleSpec, SelectorSpec};

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
}

/// Suites of a resolved run; training data stands in the stages.
#[derive(Clone, Debug, Serialize)]
pub struct TestData {
    /// Suites by name.
    pub test: BTreeMap<String, Sources>,
}

/// A stage, resolved.
#[derive(Clone, Debug, Serialize)]
pub struct Stage {
    /// Names the stage in logs.
    pub name: String,
    /// What it learns from.
    pub data: Sources,
    /// Weights it starts from.
    pub start: Start,
    /// Frozen model of the KL term, if there is one.
    pub reference: Reference,
    /// Steps to be made.
    pub steps: u64,
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
}

/// Weights that a stage starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// What the stage before left, or the run's model.
    Previous,
    /// The run's model.
    Base,
    /// A folder.
    Folder(PathBuf),
}

impl Serialize for Start {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Start::Previous => serializer.serialize_str("previous"),
            Start::Base => serializer.serialize_str("base"),
            Start::Folder(path) => serializer.serialize_str(&path.to_string_lossy()),
        }
    }
}

/// Packed tokens of one forward pass, unless the recipe says otherwise: fills two to sixteen cores and stays within a
/// few hundred megabytes for a small model.
const TOKENS_PER_BATCH: usize = 4096;

/// Decides every default of a recipe. `file` is named in messages.
pub fn resolve(file: &Path, raw: RawRecipe) -> Result<Run, TrainError> {
    let wrong = |message: String, hint: &str| RecipeError::new(file, message, hint.to_string());
    check_name(&raw.name).map_err(|message| wrong(message, "use letters, digits, - and _"))?;
    let base = file.parent().unwrap_or(Path::new("")).to_path_buf();
    let device = raw.device.clone().unwrap_or_else(|| "auto".to_string());
    if !["auto", "cpu"].contains(&device.as_str()) {
        return Err(
            wrong(format!("device = \"{device}\" is not available in this build"), "use \"auto\" or \"cpu\"").into()
        );
    }
    match &raw.model {
        ModelRef::New { new } => new.check()?,
        ModelRef::Named(name) => {
            let source = source::find(&base, name)
                .map_err(|error| RecipeError::new(file, format!("model = \"{name}\": {error}"), error.hint()))?;
            check_adapter(&source, raw.lora.as_ref()).map_err(|(message, hint)| wrong(message, hint))?;
        }
    }
    if let Some(lora) = &raw.lora {
        if let Some(problem) = lora.problem() {
            return Err(wrong(problem, "rank 16 and alpha 32 are a good start").into());
        }
        if matches!(raw.model, ModelRef::New { .. }) {
            return Err(wrong("a new model has nothing that adapters could keep".into(), "leave [lora] out").into());
        }
    }
    if raw.stage.is_empty() {
        return Err(wrong("there is no [[stage]]".into(), "add at least one, see recipes/quickstart.toml").into());
    }
    let seed = raw.seed.unwrap_or(0);
    let prompt = raw.prompt.clone().unwrap_or_default();
    let mut stages = Vec::with_capacity(raw.stage.len());
    for (index, stage) in raw.stage.iter().enumerate() {
        stages.push(resolve_stage(file, &base, &raw, stage, index, seed)?);
    }
    let mut names: Vec<&str> = stages.iter().map(|stage| stage.name.as_str()).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(wrong(format!("two stages are named \"{}\"", twice[0]), "give each stage its own name").into());
    }
    for name in raw.data.test.keys() {
        check_name(name).map_err(|message| wrong(format!("data.test: {message}"), "use letters, digits, - and _"))?;
    }
    for sources in raw.data.test.values() {
        data::open(sources, &base, seed)?;
    }
    let eval = raw.eval.clone().unwrap_or_default();
    if let Some(problem) = eval.sampling.problem() {
        return Err(wrong(format!("eval: {problem}"), "see the comments of recipes/quickstart.toml").into());
    }
    let checkpoint = raw.checkpoint.clone().unwrap_or_default();
    if checkpoint.every == 0 || checkpoint.keep_last == 0 {
        return Err(
            wrong("checkpoint.every and checkpoint.keep_last must be at least 1".into(), "leave them out").into()
        );
    }
    Ok(Run {
        name: raw.name,
        seed,
        model: raw.model,
        device,
        precision: raw.precision.unwrap_or_default(),
        lora: raw.lora,
        data: TestData { test: raw.data.test },
        eval,
        checkpoint,
        report: raw.report.unwrap_or_default(),
        prompt,
        stage: stages,
        base,
    })
}

fn resolve_stage(
    file: &Path,
    base: &Path,
    raw: &RawRecipe,
    stage: &RawStage,
    index: usize,
    seed: u64,
) -> Result<Stage, TrainError> {
    let name = stage.name.clone().unwrap_or_else(|| format!("stage-{}", index + 1));
    let wrong = |message: String, hint: &str| -> TrainError {
        RecipeError::new(file, format!("stage \"{name}\": {message}"), hint.to_string()).into()
    };
    check_name(&name).map_err(|message| wrong(message, "use letters, digits, - and _"))?;

    macro_rules! shared {
        ($field:ident) => {
            stage.$field.clone().or_else(|| raw.$field.clone())
        };
    }
    let rule: RuleSpec = shared!(rule).unwrap_or_default();
    rule.resolve()?;
    let optim: OptimSpec = shared!(optim).unwrap_or_default();
    optim.check()?;
    let supervised = rule.kind == RuleKind::Sft;
    let data = stage.data.clone().or_else(|| raw.data.train.clone());
    let data = data.ok_or_else(|| wrong("it has no data".into(), "set data.train, or data in the stage"))?;
    let rows = data::open(&data, base, seed)?;
    let questions_per_step = shared!(questions_per_step).unwrap_or(if supervised { 32 } else { 16 });
    let answers_per_question = if supervised { 1 } else { shared!(answers_per_question).unwrap_or(8) };
    let updates = if supervised { 1 } else { shared!(updates).unwrap_or(1) };
    let least_answers = if supervised { 1 } else { 2 };
    if questions_per_step == 0 || updates == 0 || answers_per_question < least_answers {
        return Err(wrong(
            format!("questions_per_step and updates must be at least 1, answers_per_question at least {least_answers}"),
            "a group needs two answers to have a baseline; 8 is a good start",
        ));
    }
    if updates > questions_per_step {
        return Err(wrong(
            format!("updates = {updates} cannot split {questions_per_step} questions"),
            "whole groups go into an optimiser step: use fewer updates or more questions",
        ));
    }
    let steps = match (stage.steps, stage.epochs) {
        (Some(_), Some(_)) => return Err(wrong("it has both steps and epochs".into(), "give one of them")),
        (None, None) => return Err(wrong("it has neither steps nor epochs".into(), "add steps = 200, for example")),
        (Some(steps), None) => steps,
        (None, Some(epochs)) if epochs > 0.0 && epochs.is_finite() => {
            (epochs * rows.len() as f64 / f64::from(questions_per_step)).ceil() as u64
        }
        (None, Some(epochs)) => return Err(wrong(format!("epochs = {epochs} must be above 0"), "1 is one pass")),
    };
    if steps == 0 || steps > 10_000_000 {
        return Err(wrong(format!("{steps} steps are out of range"), "use 1 to 10 million steps"));
    }
    let tokens_per_batch = shared!(tokens_per_batch).unwrap_or(TOKENS_PER_BATCH);
    if tokens_per_batch < 16 {
        return Err(wrong(format!("tokens_per_batch = {tokens_per_batch} is too small"), "4096 is a good start"));
    }
    let sampling: SamplingConfig = shared!(sampling).unwrap_or_default();
    if !supervised {
        if let Some(problem) = sampling.problem() {
            return Err(wrong(problem, "see the comments of recipes/quickstart.toml"));
        }
        if sampling.temperature == 0.0 {
            return Err(wrong("sampling.temperature is 0: all answers of a group would be equal".into(), "1 is usual"));
        }
    }
    let mut rewards = if supervised { Vec::new() } else { shared!(rewards).unwrap_or_default() };
    if !supervised && rewards.is_empty() {
        return Err(wrong("it has no rewards".into(), "add rewards = [ { kind = \"accuracy\" } ]"));
    }
    if let Some(compat) = raw.compat {
        rewards.iter_mut().for_each(|reward| reward.set_default_compat(compat));
    }
    let unknown = shared!(unknown).unwrap_or_default();
    let checked = Rewards::new(rewards.clone(), unknown, sampling.max_new_tokens as usize)?;
    if !supervised {
        // A gold that its verifier cannot read would score every answer zero.
        for index in 0..rows.len().min(CHECKED_ROWS) {
            checked.check_row(&rows.text_row(index), None)?;
        }
    }
    let start = match stage.start.as_deref() {
        None | Some("previous") => Start::Previous,
        Some("base") => Start::Base,
        Some(folder) => {
            let found = source::find(base, folder).map_err(|error| {
                let hint = error.hint().unwrap_or_default();
                wrong(format!("start = \"{folder}\" is neither previous, base nor a model: {error}"), &hint)
            })?;
            if raw.lora.is_some() && found.adapter.is_none() {
                return Err(wrong(
                    format!("start = \"{folder}\" is a whole model, and this run learns adapters"),
                    "with [lora] a stage starts from previous, base or the folder of an adapter",
                ));
            }
            Start::Folder(PathBuf::from(folder))
        }
    };
    let train = shared!(train).unwrap_or(Trainable::ALL);
    if train == Trainable::NONE {
        return Err(wrong("nothing is trained".into(), "set one of train.vision, train.connector, train.language"));
    }
    if let Some(lora) = &raw.lora
        && ![(lora.vision, train.vision), (lora.connector, train.connector), (lora.language, train.language)]
            .contains(&(true, true))
    {
        return Err(wrong("none of the parts that have adapters is trained".into(), "compare [lora] with train"));
    }
    let selector: SelectorSpec = shared!(selector).unwrap_or_default();
    if selector.kind == SelectorKind::Replay {
        return Err(wrong(
            "the selector `replay` cannot be run yet".into(),
            "use never, any_correct, threshold or anneal",
        ));
    }
    if rule.mismatch.mode != MismatchMode::Off {
        return Err(wrong(
            "rule.mismatch corrects for a foreign sampler, and there is none".into(),
            "leave it out: the weights that sample are the weights that train",
        ));
    }
    Ok(Stage {
        data,
        start,
        reference: stage.reference.unwrap_or_default(),
        steps,
        prompt: shared!(prompt).unwrap_or_default(),
        target: shared!(target).unwrap_or_default(),
        questions_per_step,
        answers_per_question,
        updates,
        tokens_per_batch,
        sampling,
        rewards,
        unknown,
        advantage: shared!(advantage).unwrap_or_default(),
        selector,
        rule,
        optim,
        train,
        name,
    })
}

/// Rows whose answers are checked before a run starts; the rest is checked when it is used.
const CHECKED_ROWS: usize = 256;

fn check_name(name: &str) -> Result<(), String> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if !name.is_empty() && name.len() <= 100 && name.chars().all(fine) && !name.starts_with('.') {
        Ok(())
    } else {
        Err(format!("the name \"{name}\" cannot name a folder"))
    }
}

/// Refuses `[lora]` settings that differ from those of an adapter that goes on learning.
fn check_adapter(source: &ModelSource, lora: Option<&LoraConfig>) -> Result<(), (String, &'static str)> {
    let (Some(adapter), Some(lora)) = (&source.adapter, lora) else { return Ok(()) };
    let wrong = |message: String| (message, "leave [lora] out to merge the adapter and train all weights");
    let found = peft::read_config(adapter).map_err(|error| wrong(error.to_string()))?;
    let found = found.expect("a source names an adapter only if it has settings").spec;
    let told = |rank: usize, alpha: f32, stabilised: bool| {
        format!("rank {rank}, alpha {alpha}, {}stabilised", if stabilised { "" } else { "not " })
    };
    let (was, is) =
        (told(found.rank, found.alpha, found.rank_stabilised), told(lora.rank, lora.alpha, lora.rank_stabilised));
    if was == is { Ok(()) } else { Err(wrong(format!("the adapter has {was}; [lora] says {is}"))) }
}

impl Stage {
    /// Whether it learns from given targets instead of sampled answers.
    pub fn is_supervised(&self) -> bool {
        self.rule.kind == RuleKind::Sft
    }

    /// Whether its loss or rewards need a frozen model.
    pub fn needs_reference(&self) -> bool {
        self.rule.kl.needs_reference()
    }
}

impl Run {
    /// The resolved recipe as TOML.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a resolved run is plain data")
    }

    /// Checksum of everything that a resumed run must share with the run it continues.
    pub fn fingerprint(&self) -> u32 {
        crc32c(self.to_toml().as_bytes())
    }

    /// Steps of all stages.
    pub fn num_steps(&self) -> u64 {
        self.stage.iter().map(|stage| stage.steps).sum()
    }
}
