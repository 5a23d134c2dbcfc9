//! `foveate generate`: what a model says to given conversations.

use std::path::PathBuf;

use foveate_model::Precision;
use foveate_train::rollout::SamplingConfig;
use foveate_train::score;

use crate::failure::failure;
use crate::load::{self, ModelArgs};

/// Arguments of `foveate generate`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Conversations, one JSON object a line; a last turn of the assistant is left out
    #[arg(long)]
    input: PathBuf,
    /// Where the answers go, one JSON object a line
    #[arg(long)]
    output: PathBuf,
    /// Take the likeliest token always
    #[arg(long, conflicts_with_all = ["temperature", "top_p", "top_k"])]
    greedy: bool,
    /// Longest answer in tokens
    #[arg(long, default_value_t = 256)]
    max_new_tokens: u32,
    /// Divides the logits
    #[arg(long, default_value_t = 1.0)]
    temperature: f32,
    /// Draw from the likeliest tokens that together reach this share
    #[arg(long, default_value_t = 1.0)]
    top_p: f32,
    /// Draw from so many likeliest tokens; 0 draws from all
    #[arg(long, default_value_t = 0)]
    top_k: u32,
    /// Key of the random draws
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// Answers every row and writes the output as a whole.
pub fn run(args: Args) -> anyhow::Result<()> {
    let sampling = SamplingConfig {
        temperature: if args.greedy { 0.0 } else { args.temperature },
        max_new_tokens: args.max_new_tokens,
        top_p: args.top_p,
        top_k: args.top_k,
        ..SamplingConfig::default()
    };
    if let Some(problem) = sampling.problem() {
        return Err(failure(problem, "see foveate generate --help"));
    }
    let (mut policy, prompter) = load::open(&args.model, Precision::F32)?;
    let rows = score::generate_file(&mut policy, &prompter, &args.input, &sampling, args.seed)?;
    score::write_rows(&args.output, &rows)?;
    println!("{} rows: {}", rows.len(), args.output.display());
    Ok(())
}
