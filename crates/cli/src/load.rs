//! Opens a model for the commands that only ask it something.

use std::path::Path;

use clap::ValueEnum;
use foveate_kernels::isa;
use foveate_model::{Policy, Precision};
use foveate_train::prompt::Prompter;
use foveate_train::source;

/// Which model, and in which numbers.
#[derive(clap::Args)]
pub struct ModelArgs {
    /// A folder in Hugging Face layout, a hub id in the hub's cache, a PEFT adapter, or the name of a built-in model
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

impl From<PrecisionArg> for Precision {
    fn from(precision: PrecisionArg) -> Self {
        match precision {
            PrecisionArg::Auto => Precision::Auto,
            PrecisionArg::F32 => Precision::F32,
            PrecisionArg::Bf16 => Precision::Bf16,
        }
    }
}

/// Loads model and prompter. `usual` is the precision if none was asked for.
pub fn open(args: &ModelArgs, usual: Precision) -> anyhow::Result<(Policy, Prompter)> {
    isa::check()?;
    let precision = args.precision.map_or(usual, Precision::from);
    let source = source::find(Path::new(""), &args.model)?;
    let policy = source.load(precision)?;
    let prompter = source.prompter(&policy)?;
    Ok((policy, prompter))
}
