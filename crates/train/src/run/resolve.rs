//! Decides every default of a recipe and refuses settings that do not fit together.
//! Knows the settings of every room; looks at data only to count it and through `check`. Cost: opening the data once.

use std::path::{Path, PathBuf};

use foveate_model::{DeviceChoice, Trainable, peft};

use super::check;
use super::{Run, Stage, Start, TestData};
use crate::ask::{TargetConfig, TargetTemperature, TargetTemplate};
use crate::data;
use crate::error::TrainError;
use crate::lora::LoraConfig;
use crate::optim::OptimSpec;
use crate::recipe::parse::RecipeError;
use crate::recipe::{ModelRef, RawRecipe, RawStage, Reference};
use crate::reward::spec::Against;
use crate::reward::{RewardSpec, Rewards};
use crate::rollout::SamplingConfig;
use crate::source::{self, ModelSource};
use crate::update::difficulty::GroupWeight;
use crate::update::difficulty::start_state::StartKind;
use crate::update::kl::Place;
use crate::update::mismatch::MismatchMode;
use crate::update::mix::MixKind;
use crate::update::selector::SelectorKind;
use crate::update::{RuleKind, RuleSpec, SelectorSpec};

/// Packed tokens of one forward pass, unless the recipe says otherwise: fills two to sixteen cores and stays within a
/// few hundred megabytes for a small model.
const TOKENS_PER_BATCH: usize = 4096;

/// Decides every default of a recipe. `file` is named in messages.
pub fn resolve(file: &Path, raw: RawRecipe) -> Result<Run, TrainError> {
    let wrong = |message: String, hint: &str| RecipeError::new(file, message, hint.to_string());
    check_name(&raw.name).map_err(|message| wrong(message, "use letters, digits, - and _"))?;
    let base = file.parent().unwrap_or(Path::new("")).to_path_buf();
    let device = raw.device.clone().unwrap_or_else(|| "auto".to_string());
    device.parse::<DeviceChoice>().map_err(|message| wrong(message, "use \"auto\", \"cpu\" or \"cuda:0\""))?;
    match &raw.model {
        ModelRef::New { new } => new.check()?,
        ModelRef::Named(name) => {
            let source = source::find(&base, name)
                .map_err(|error| RecipeError::new(file, format!("model = \"{name}\": {error}"), error.hint()))?;
            check_adapter(&source, raw.lora.as_ref()).map_err(|(message, hint)| wrong(message, hint))?;
        }
    }
    let images = raw.images.clone().unwrap_or_default();
    if let (ModelRef::Named(name), false) = (&raw.model, images.is_empty()) {
        // Read here as well, so that a limit the model does not know is refused before anything is loaded.
        let mut processor = source::find(&base, name)?.processor()?;
        images.apply(&mut processor).map_err(|error| wrong(error.to_string(), error.hint()))?;
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
    if prompt.max_pixels == Some(0) {
        return Err(wrong("prompt.max_pixels must be at least 1".into(), "262144 is a published value").into());
    }
    let mut stages: Vec<Stage> = Vec::with_capacity(raw.stage.len());
    let mut remarks = Vec::new();
    for (index, stage) in raw.stage.iter().enumerate() {
        let earlier: Vec<&str> = stages.iter().map(|stage| stage.name.as_str()).collect();
        let stage = resolve_stage(file, &base, &raw, stage, index, seed, &earlier, &mut remarks)?;
        stages.push(stage);
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
    if let Some(problem) = eval.problem() {
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
        memory: raw.memory.unwrap_or_default(),
        precision: raw.precision.unwrap_or_default(),
        lora: raw.lora,
        images,
        data: TestData { test: raw.data.test, allow_overlap: raw.data.allow_overlap },
        eval,
        checkpoint,
        report: raw.report.unwrap_or_default(),
        prompt,
        stage: stages,
        base,
        remarks,
    })
}

fn resolve_stage(
    file: &Path,
    base: &Path,
    raw: &RawRecipe,
    stage: &RawStage,
    index: usize,
    seed: u64,
    earlier: &[&str],
    remarks: &mut Vec<String>,
) -> Result<Stage, TrainError> {
    let name = stage.name.clone().unwrap_or_else(|| format!("stage-{}", index + 1));
    let wrong = |message: String, hint: &str| -> TrainError {
        RecipeError::new(file, format!("stage \"{name}\": {message}"), hint.to_string()).into()
    };
    check_name(&name).map_err(|message| wrong(message, "use letters, digits, - and _"))?;
    if ["previous", "base", "none"].contains(&name.as_str()) {
        return Err(wrong("this name means something else where stages start".into(), "choose another name"));
    }

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
    let mut data = data.ok_or_else(|| wrong("it has no data".into(), "set data.train, or data in the stage"))?;
    if let Some(format) = stage.format {
        data.0.iter_mut().for_each(|source| source.format = format);
    }
    let (skip, take) = (stage.skip.unwrap_or_default(), stage.take.unwrap_or_default());
    let rows = data::open(&data, base, seed)?.select(skip, take, seed)?;
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
    let mut rewards: Vec<RewardSpec> = if supervised { Vec::new() } else { shared!(rewards).unwrap_or_default() };
    if !supervised && rewards.is_empty() {
        return Err(wrong("it has no rewards".into(), "add rewards = [ { kind = \"accuracy\" } ]"));
    }
    if let Some(compat) = raw.compat {
        rewards.iter_mut().for_each(|reward| reward.set_default_compat(compat));
    }
    let unknown = shared!(unknown).unwrap_or_default();
    let checked = Rewards::new(rewards.clone(), unknown, sampling.max_new_tokens as usize)?;
    let start = match stage.start.as_deref() {
        None | Some("previous") => Start::Previous,
        Some("base") => Start::Base,
        Some(name) if earlier.contains(&name) => Start::Stage(name.to_string()),
        Some(folder) => {
            let found = source::find(base, folder).map_err(|error| {
                let hint = error.hint().unwrap_or_default();
                let what = "is neither previous, base, an earlier stage nor a model";
                wrong(format!("start = \"{folder}\" {what}: {error}"), &hint)
            })?;
            if raw.lora.is_some() && found.adapter.is_none() {
                return Err(wrong(
                    format!("start = \"{folder}\" is a whole model, and this run learns adapters"),
                    "with [lora] a stage starts from previous, base, an earlier stage or the folder of an adapter",
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
    if rule.mismatch.mode != MismatchMode::Off && (supervised || !sampling.is_off_policy()) {
        return Err(wrong(
            "rule.mismatch corrects for answers that are drawn from another distribution than the trained one, and \
             these are not"
                .into(),
            "leave it out, or set sampling.logprob_temperature, top_p, top_k or min_p",
        ));
    }
    let target: TargetConfig = shared!(target).unwrap_or_default();
    if let TargetTemperature::At(at) = target.temperature
        && !(at > 0.0 && at.is_finite())
    {
        return Err(wrong(format!("target.temperature = {at} must be above 0"), "1 is usual, \"same\" as published"));
    }
    let reference = resolve_reference(base, stage.reference.clone().unwrap_or_default(), earlier, raw.lora.is_some())
        .map_err(|(message, hint)| wrong(message, &hint))?;
    if reference == Reference::None && rule.kl.needs_reference() {
        return Err(wrong(
            "reference = \"none\", but its rule has a KL term".into(),
            "set rule.kl = 0, or name a reference",
        ));
    }
    let until = stage.until.clone();
    if let Some(until) = &until {
        until
            .check()
            .map_err(|problem| wrong(problem.into(), "until = { at_least = 0.9, window = 20 }, for example"))?;
    }
    // What only sampled answers can have: shared settings pass supervised stages by, a stage's own are a mistake.
    let own = [
        ("dynamic", stage.dynamic.is_some()),
        ("pools", stage.pools.is_some()),
        ("replay", stage.replay.is_some()),
        ("mix", stage.mix.is_some()),
        ("start_state", stage.start_state.is_some()),
        ("refiner", stage.refiner.is_some()),
    ];
    if let Some((key, _)) = own.iter().find(|(_, given)| supervised && *given) {
        return Err(wrong(format!("`{key}` needs sampled answers, and this stage is supervised"), "leave it out here"));
    }
    macro_rules! sampled {
        ($field:ident) => {
            if supervised { None } else { shared!($field) }
        };
    }
    let stage = Stage {
        data,
        skip,
        take,
        start,
        reference,
        steps,
        until,
        prompt: shared!(prompt).unwrap_or_default(),
        target,
        questions_per_step,
        answers_per_question,
        updates,
        tokens_per_batch,
        sampling,
        rewards,
        unknown,
        max_unknown: shared!(max_unknown).unwrap_or_default(),
        advantage: shared!(advantage).unwrap_or_default(),
        selector,
        rule,
        optim,
        train,
        dynamic: sampled!(dynamic),
        pools: sampled!(pools),
        replay: sampled!(replay),
        mix: sampled!(mix).filter(|mix| mix.kind != MixKind::None),
        start_state: sampled!(start_state).filter(|start| start.kind != StartKind::None),
        refiner: sampled!(refiner),
        name: name.clone(),
    };
    if !supervised {
        combine(&stage).map_err(|(message, hint)| wrong(message, &hint))?;
        if let Some(mix) = &stage.mix {
            data::open(mix.data.as_ref().unwrap_or(&stage.data), base, seed)?;
        }
        let found = check::stage(&stage, &checked, &rows)?.map_err(|(message, hint)| wrong(message, &hint))?;
        remarks.extend(found.into_iter().map(|remark| format!("stage {name}: {remark}")));
    }
    Ok(stage)
}

/// Tells earlier stages from folders, and refuses what cannot be a frozen model here.
fn resolve_reference(
    base: &Path,
    reference: Reference,
    earlier: &[&str],
    adapters: bool,
) -> Result<Reference, (String, String)> {
    match reference {
        Reference::Folder(folder) if earlier.contains(&folder.to_string_lossy().as_ref()) => {
            Ok(Reference::Stage(folder.to_string_lossy().into_owned()))
        }
        Reference::Folder(folder) => {
            let name = folder.to_string_lossy().into_owned();
            let found = source::find(base, &name).map_err(|error| {
                let what = "is neither stage_start, base, none, an earlier stage nor a model";
                (format!("reference = \"{name}\" {what}: {error}"), error.hint().unwrap_or_default())
            })?;
            if adapters && found.adapter.is_none() {
                return Err((
                    format!("reference = \"{name}\" is a whole model, and this run learns adapters"),
                    "with [lora] the reference is the folder of an adapter, an earlier stage, base or adapter_off"
                        .into(),
                ));
            }
            Ok(Reference::Folder(folder))
        }
        Reference::AdapterOff if !adapters => Err((
            "reference = \"adapter_off\", and this run learns no adapters".into(),
            "write reference = \"base\", or add [lora]".into(),
        )),
        Reference::Mean(ema) if !(0.0..1.0).contains(&ema) => Err((
            format!("reference.ema = {ema} lies outside of 0 to 1"),
            "0.99 forgets in about a hundred steps; 0 is the model of the step before".into(),
        )),
        reference => Ok(reference),
    }
}

/// Refuses parts that are sound alone and cannot work together. Gives what is wrong, and a hint.
fn combine(stage: &Stage) -> Result<(), (String, String)> {
    let refuse = |message: &str, hint: &str| Err((message.to_string(), hint.to_string()));
    let own = |problem: &str| (problem.to_string(), "see docs/methods for the setting".to_string());
    stage.max_unknown.check().map_err(own)?;
    stage.dynamic.as_ref().map_or(Ok(()), |dynamic| dynamic.check()).map_err(own)?;
    stage.pools.as_ref().map_or(Ok(()), |pools| pools.check()).map_err(own)?;
    stage.replay.as_ref().map_or(Ok(()), |replay| replay.check()).map_err(own)?;
    stage.mix.as_ref().map_or(Ok(()), |mix| mix.check()).map_err(own)?;
    let selects = stage.selector.kind;
    let has_accuracy = stage.rewards.iter().any(|reward| matches!(reward, RewardSpec::Accuracy(_)));
    if !has_accuracy {
        let needs = [
            ("the selector", matches!(selects, SelectorKind::AnyCorrect | SelectorKind::Replay)),
            ("dynamic sampling", stage.dynamic.as_ref().is_some_and(|dynamic| dynamic.enabled)),
            ("pools", stage.pools.is_some()),
            ("advantage.weight", stage.advantage.weight != GroupWeight::None),
        ];
        if let Some((part, _)) = needs.iter().find(|(_, used)| *used) {
            return refuse(
                &format!("{part} looks at the accuracy, and there is no such reward"),
                "add { kind = \"accuracy\" }",
            );
        }
    }
    if stage.dynamic.as_ref().is_some_and(|dynamic| dynamic.drops_failed()) && selects != SelectorKind::Never {
        return refuse(
            "dynamic sampling drops the failed groups that the selector would memorise",
            "set dynamic.lo = -1 to keep them, or selector.kind = \"never\"",
        );
    }
    if stage.replay.is_some() && selects != SelectorKind::Never {
        return refuse(
            "replay learns from answers alone, and the selector puts targets in their place",
            "set selector.kind = \"never\", or leave replay out",
        );
    }
    if stage.replay.is_some() && stage.rule.kl.place == Place::Tokens && stage.needs_reference() {
        return refuse(
            "replay keeps one advantage per answer, and rule.kl.where = \"tokens\" makes one per token",
            "set rule.kl.where = \"loss\"",
        );
    }
    if stage.refiner.is_some() && selects == SelectorKind::Never {
        return refuse(
            "the refiner writes targets, and the selector \"never\" uses none",
            "set selector.kind = \"any_correct\", or leave the refiner out",
        );
    }
    if let Some(refiner) = &stage.refiner {
        if let Some(chat) = &refiner.writer {
            chat.check()
                .map_err(|problem| (format!("refiner.writer: {problem}"), "see docs/methods/dyme.md".to_string()))?;
        }
        let judged = stage
            .rewards
            .iter()
            .any(|reward| matches!(reward, RewardSpec::Checker(checker) if checker.judge.is_some()));
        if refiner.elements && refiner.writer.is_none() {
            return refuse("refiner.elements are listed by a language model", "set refiner.writer as well");
        }
        if refiner.learn_template && !(judged && refiner.writer.is_some()) {
            return refuse(
                "refiner.learn_template needs a language model that writes and one that grades",
                "set refiner.writer, and add { kind = \"checker\", judge = { .. } } to the rewards",
            );
        }
    }
    // A language model writes for failed groups alone, and only after answers are scored.
    let writes_first = stage.refiner.as_ref().is_some_and(|refiner| refiner.writer.is_none());
    let compares_refined = |reward: &RewardSpec| match reward {
        RewardSpec::ThinkingF1(thinking) => thinking.against == Against::Refined && !writes_first,
        RewardSpec::Checker(checker) => checker.against == Against::Refined,
        _ => false,
    };
    if let Some(reward) = stage.rewards.iter().find(|reward| compares_refined(reward)) {
        return refuse(
            &format!("{}.against = \"refined\", and nothing is refined before answers are scored", reward.name()),
            "compare with rationale or facts; thinking_f1 can have \"refined\" beside a refiner without writer",
        );
    }
    if stage.start_state.is_some() && !stage.target.has_rationale() {
        return refuse(
            "start_state gives the beginning of the reasoning, and target.template has none",
            "set target.template = \"cot\" or \"tags\"",
        );
    }
    if stage.start_state.is_some() && stage.target.template == TargetTemplate::Caption {
        return refuse(
            "start_state gives the beginning of the reasoning, and a caption target begins with other parts",
            "set target.template = \"tags\"",
        );
    }
    Ok(())
}

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
