//! `foveate score`: log-probabilities of given answers.

use std::path::PathBuf;

use foveate_model::Precision;
use foveate_train::score;

use crate::load::{self, ModelArgs};

/// Arguments of `foveate score`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Conversations, one JSON object a line; the last turn is scored
    #[arg(long)]
    input: PathBuf,
    /// Where the log-probabilities go, one JSON object a line
    #[arg(long)]
    output: PathBuf,
}

/// Scores every row and writes the output as a whole.
pub fn run(args: Args) -> anyhow::Result<()> {
    let (mut policy, prompter) = load::open(&args.model, Precision::F32)?;
    let rows = score::score_file(&mut policy, &prompter, &args.input)?;
    score::write_rows(&args.output, &rows)?;
    let tokens: usize = rows.iter().map(|row| row.completion_ids.len()).sum();
    println!("{} rows, {tokens} tokens: {}", rows.len(), args.output.display());
    Ok(())
}
