//! `foveate model`: what a checkpoint is, in numbers, and several checkpoints made one.

use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};
use foveate_model::SaveType;
use foveate_train::merge;

use crate::inspect;

/// Arguments of `foveate model`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show family, sizes and tokens of a model
    Inspect(inspect::Args),
    /// Merge an adapter into its model, or several models into their weighted sum
    Merge {
        /// One folder of an adapter, or several models of one architecture
        #[arg(required = true)]
        models: Vec<String>,
        /// The new folder
        #[arg(long)]
        out: PathBuf,
        /// Share of each model, adding up to 1; equal shares if left out
        #[arg(long, value_delimiter = ',')]
        weights: Vec<f32>,
        /// Number format of the weights; as in the first model if left out
        #[arg(long)]
        dtype: Option<DtypeArg>,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum DtypeArg {
    /// 32 bits
    F32,
    /// 16 bits with the range of 32
    Bf16,
    /// 16 bits, IEEE half
    F16,
}

/// Does what was asked.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Inspect(args) => inspect::run(args),
        Command::Merge { models, out, weights, dtype } => {
            let dtype = dtype.map(|dtype| match dtype {
                DtypeArg::F32 => SaveType::F32,
                DtypeArg::Bf16 => SaveType::Bf16,
                DtypeArg::F16 => SaveType::F16,
            });
            let folder = merge::merge(&models, &weights, &out, dtype)?;
            println!("{}", folder.display());
            Ok(())
        }
    }
}
