//! `foveate report RUN`: writes the page of a run anew.

use std::path::PathBuf;

/// Arguments of `foveate report`.
#[derive(clap::Args)]
pub struct Args {
    /// A run's folder, for example runs/quickstart
    run: PathBuf,
}

/// Writes the page and says where it is.
pub fn run(args: Args) -> anyhow::Result<()> {
    let path = foveate_train::report::page::write(&args.run)?;
    println!("{}", path.display());
    Ok(())
}
