//! `foveate plan MODEL|RECIPE`: what a model or a run will take, before anything is loaded.

use std::path::Path;

use foveate_kernels::cuda::driver;
use foveate_model::plan_device::{DevicePlan, Load, Manner};
use foveate_model::{AdapterSpec, DeviceChoice, Precision, Trainable, plan};
use foveate_train::recipe::{self, ModelRef};
use foveate_train::reserve::manner;
use foveate_train::run::{self, Run, Stage};
use foveate_train::source;

use crate::load::PrecisionArg;
use crate::train::set_device;

/// Arguments of `foveate plan`.
#[derive(clap::Args)]
pub struct Args {
    /// A recipe, a folder in Hugging Face layout, a hub id (ORG/NAME), or the name of a built-in model
    what: String,
    /// Tokens of one forward pass, for a model; recipes say theirs
    #[arg(long, default_value_t = 4096)]
    tokens: usize,
    /// Number type of matrix operands, for a model; recipes say theirs
    #[arg(long)]
    precision: Option<PrecisionArg>,
    /// Where it will compute: auto, cpu or cuda:0; recipes say theirs. No GPU is needed to plan for one
    #[arg(long)]
    device: Option<DeviceChoice>,
    /// Replace a value of the recipe
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// Prints a table for the model, or one for each stage.
pub fn run(args: Args) -> anyhow::Result<()> {
    let path = Path::new(&args.what);
    if path.extension().is_some_and(|extension| extension == "toml") {
        let mut set = args.set.clone();
        set.extend(args.device.map(set_device));
        let raw = recipe::read(path, &set)?;
        let run = run::resolve(path, raw)?;
        return recipe_plan(&run);
    }
    let folder = source::find(Path::new(""), &args.what)?.folder;
    let precision = args.precision.map_or(Precision::Auto, Precision::from);
    if let Some(DeviceChoice::Cuda(index)) = args.device {
        let plan = DevicePlan::new(&folder, precision, Trainable::ALL, None, Manner::default())?;
        let load = Load { tokens: args.tokens, trained: args.tokens, ..Load::default() };
        on_device(&plan, load);
        told("all to learn", plan.to_learn(load));
        free_on(index);
        return Ok(());
    }
    of_model(&folder, precision, args.tokens)?;
    free();
    Ok(())
}

/// The table of the model in a folder, forward passes of so many tokens.
pub fn of_model(folder: &Path, precision: Precision, tokens: usize) -> anyhow::Result<()> {
    let plan = plan::plan(folder, precision, Trainable::ALL, None)?;
    base(&plan);
    learning(&plan, tokens, false);
    told("all to learn", plan.to_learn(tokens, 0, false));
    Ok(())
}

fn recipe_plan(run: &Run) -> anyhow::Result<()> {
    let spec = run.lora.as_ref().map(|lora| lora.spec());
    if let Ok(DeviceChoice::Cuda(index)) = run.device.parse() {
        return recipe_plan_on_device(run, spec.as_ref(), index);
    }
    let recompute = run.memory.recompute;
    for stage in &run.stage {
        println!("stage {}", stage.name);
        let plan = match &run.model {
            ModelRef::Named(name) => {
                let folder = source::find(&run.base, name)?.folder;
                plan::plan(&folder, run.precision, stage.train, spec.as_ref())?
            }
            // The table of words has as many rows as the recipe asks for, or fewer where the data has fewer words.
            ModelRef::New { new } => {
                let config = new.config(new.vocabulary);
                plan::of_config(Path::new("model.new"), &config, run.precision, stage.train, spec.as_ref())?
            }
        };
        base(&plan);
        learning(&plan, stage.tokens_per_batch, recompute);
        let reference = if stage.needs_reference() && spec.is_none() { plan.to_ask() } else { 0 };
        if reference > 0 {
            told("reference", reference);
        }
        let cache = sampling(stage, plan.cache_per_token);
        // The store of sampling is given back before learning begins, and what learning needs lies beside the weights.
        let learning = plan.to_learn(stage.tokens_per_batch, 0, recompute) - plan.to_ask();
        told("peak", plan.to_ask() + reference + cache.max(learning));
    }
    free();
    Ok(())
}

/// The same on a GPU. Pictures come on top; a run that begins looks at its questions and counts them in.
fn recipe_plan_on_device(run: &Run, spec: Option<&AdapterSpec>, index: usize) -> anyhow::Result<()> {
    let manner = manner(&run.memory);
    for stage in &run.stage {
        println!("stage {}", stage.name);
        let plan = match &run.model {
            ModelRef::Named(name) => {
                let folder = source::find(&run.base, name)?.folder;
                DevicePlan::new(&folder, run.precision, stage.train, spec, manner)?
            }
            ModelRef::New { new } => {
                let config = new.config(new.vocabulary);
                let path = Path::new("model.new");
                DevicePlan::of_config(path, &config, run.precision, stage.train, spec, manner)?
            }
        };
        let tokens = stage.tokens_per_batch;
        let answers = (stage.questions_per_step * stage.answers_per_question) as usize;
        let stored = if stage.is_supervised() { 0 } else { answers * stage.sampling.max_new_tokens as usize };
        let load = Load { tokens, trained: tokens, patches: 0, stored };
        on_device(&plan, load);
        let reference = if stage.needs_reference() && spec.is_none() { plan.weights } else { 0 };
        if reference > 0 {
            told("reference", reference);
        }
        sampling(stage, plan.cache_per_token);
        told("peak", plan.to_learn(load) + reference);
    }
    free_on(index);
    Ok(())
}

fn on_device(plan: &DevicePlan, load: Load) {
    told("weights", plan.weights);
    told("gradients", plan.gradients);
    told("moments", plan.moments);
    let [token, patch] = plan.activations;
    told(&format!("{} tokens", load.tokens), load.tokens * (token + plan.working[0]));
    told(&format!("head, {}", load.trained), load.trained * plan.head_per_token);
    if patch.max(plan.working[1]) > 0 {
        println!("  {:<18}{:>10} B per patch", "pictures", patch + plan.working[1]);
    }
    println!("  {:<18}{:>10} B per token", "keys and values", plan.cache_per_token);
}

/// What the GPU has, where there is one.
fn free_on(index: usize) {
    let card = driver::cards().ok().and_then(|cards| cards.into_iter().nth(index));
    match card {
        Some(card) => told(&format!("cuda:{index} has"), card.bytes),
        None => println!("  cuda:{index} is not in this machine"),
    }
}

fn base(plan: &plan::Plan) {
    let [vision, connector, language] = plan.num_parameters;
    let millions = |count: usize| count as f64 / 1e6;
    println!(
        "  {:<18}{:>10.2} M  (vision {:.2}, connector {:.2}, language {:.2})",
        "parameters",
        millions(vision + connector + language),
        millions(vision),
        millions(connector),
        millions(language)
    );
    told("weights", plan.weights);
    told("bf16 copies", plan.packed);
    told("to ask", plan.to_ask());
    println!("  {:<18}{:>10} B per token", "keys and values", plan.cache_per_token);
}

fn learning(plan: &plan::Plan, tokens: usize, recompute: bool) {
    println!("  {:<18}{:>10.2} M", "that learn", plan.num_trained as f64 / 1e6);
    told("gradients", plan.gradients);
    told("moments", plan.moments);
    told("backward copies", plan.packed_backward);
    let [token, patch] = plan.activations(recompute);
    told(&format!("{tokens} tokens"), tokens * token);
    told("probabilities", plan.masses(tokens));
    if patch > 0 {
        println!("  {:<18}{:>10} B per patch", "pictures", patch);
    }
}

/// Keys and values of a step's answers; prompts come on top, their length is known when they are rendered.
fn sampling(stage: &Stage, cache_per_token: usize) -> usize {
    if stage.is_supervised() {
        return 0;
    }
    let answers = (stage.questions_per_step * stage.answers_per_question) as usize;
    let cache = answers * stage.sampling.max_new_tokens as usize * cache_per_token;
    told(&format!("{answers} answers"), cache);
    cache
}

fn told(name: &str, bytes: usize) {
    println!("  {name:<18}{:>10.1} MiB", bytes as f64 / f64::from(1 << 20));
}

fn free() {
    if let Some(available) = plan::available_memory() {
        told("free here", available);
    }
}
