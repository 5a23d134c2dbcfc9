//! Opens a model for the commands that only ask it something.

use std::path::PathBuf;

use clap::ValueEnum;
use foveate_kernels::isa;
use foveate_model::{Policy, Precision};
use foveate_train::builtin;
use foveate_train::prompt::Prompter;

use crate::failure::failure;

/// Which model, and in which numbers.
#[derive(clap::Args)]
pub struct ModelArgs {
    /// A folder in Hugging Face layout, or the name of a built-in model
    #[arg(long)]
    pub model: String,
    /// Number type of matrix operands
    #[arg(long)]
    pub precision: Option<PrecisionArg>,
}

/// The same as in recipes.
#[derive(Clone, Copy, ValueEnum)]
pub enum PrecisionArg {
    /// bf16 where the machine multiplies it fast, else f32
    Auto,
    /// Everything in f32: the oracle
    F32,
    /// bf16 operands, f32 sums
    Bf16,
}

/// The folder of a model named on the command line.
pub fn folder(name: &str) -> anyhow::Result<PathBuf> {
    if let Some(folder) = builtin::unpack(name)? {
        return Ok(folder);
    }
    let folder = PathBuf::from(name);
    if !folder.join("config.json").is_file() {
        let known = builtin::names().join(", ");
        return Err(failure(
            format!("{name} is neither a built-in model nor a folder with a config.json"),
            format!("built in: {known}; a checkpoint of a run lies in runs/NAME/checkpoints/"),
        ));
    }
    Ok(folder)
}

/// Loads model and prompter. `usual` is the precision if none was asked for.
pub fn open(args: &ModelArgs, usual: Precision) -> anyhow::Result<(Policy, Prompter)> {
    isa::check()?;
    let precision = match args.precision {
        None => usual,
        Some(PrecisionArg::Auto) => Precision::Auto,
        Some(PrecisionArg::F32) => Precision::F32,
        Some(PrecisionArg::Bf16) => Precision::Bf16,
    };
    let folder = folder(&args.model)?;
    Ok((Policy::load(&folder, precision)?, Prompter::load(&folder)?))
}
