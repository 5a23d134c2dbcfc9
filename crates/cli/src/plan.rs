//! `foveate plan MODEL|RECIPE`: what a model or a run will take, before anything is loaded.

use std::path::Path;

use foveate_model::{Precision, Trainable, plan};
use foveate_train::recipe::{self, ModelRef};
use foveate_train::run::{self, Run, Stage};
use foveate_train::source;

use crate::load::PrecisionArg;

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
    /// Replace a value of the recipe
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// Prints a table for the model, or one for each stage.
pub fn run(args: Args) -> anyhow::Result<()> {
    let path = Path::new(&args.what);
    if path.extension().is_some_and(|extension| extension == "toml") {
        let raw = recipe::read(path, &args.set)?;
        let run = run::resolve(path, raw)?;
        return recipe_plan(&run);
    }
    let folder = source::find(Path::new(""), &args.what)?.folder;
    of_model(&folder, args.precision.map_or(Precision::Auto, Precision::from), args.tokens)?;
    free();
    Ok(())
}

/// The table of the model in a folder, forward passes of so many tokens.
pub fn of_model(folder: &Path, precision: Precision, tokens: usize) -> anyhow::Result<()> {
    let plan = plan::plan(folder, precision, Trainable::ALL, None)?;
    base(&plan);
    learning(&plan, tokens);
    told("all to learn", plan.to_learn(tokens, 0));
    Ok(())
}

fn recipe_plan(run: &Run) -> anyhow::Result<()> {
    let spec = run.lora.as_ref().map(|lora| lora.spec());
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
        learning(&plan, stage.tokens_per_batch);
        let reference = if stage.needs_reference() && spec.is_none() { plan.to_ask() } else { 0 };
        if reference > 0 {
            told("reference", reference);
        }
        let cache = sampling(stage, &plan);
        // The store of sampling is given back before learning begins, and what learning needs lies beside the weights.
        let peak = plan.to_ask() + reference + cache.max(plan.to_learn(stage.tokens_per_batch, 0) - plan.to_ask());
        told("peak", peak);
    }
    free();
    Ok(())
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

fn learning(plan: &plan::Plan, tokens: usize) {
    println!("  {:<18}{:>10.2} M", "that learn", plan.num_trained as f64 / 1e6);
    told("gradients", plan.gradients);
    told("moments", plan.moments);
    told("backward copies", plan.packed_backward);
    told(&format!("{tokens} tokens"), tokens * plan.activations_per_token);
    if plan.activations_per_patch > 0 {
        println!("  {:<18}{:>10} B per patch", "pictures", plan.activations_per_patch);
    }
}

/// Keys and values of a step's answers; prompts come on top, their length is known when they are rendered.
fn sampling(stage: &Stage, plan: &plan::Plan) -> usize {
    if stage.is_supervised() {
        return 0;
    }
    let answers = (stage.questions_per_step * stage.answers_per_question) as usize;
    let cache = answers * stage.sampling.max_new_tokens as usize * plan.cache_per_token;
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
